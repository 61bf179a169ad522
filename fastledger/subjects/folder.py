"""Folders: records of one patient and one category under one key, in epochs (SPEC-REC-1..2).

The *owner* opens folders and keeps their keys wrapped to itself. Which category a folder is for is known only to who
holds its key. When a reader's consent ends, the owner opens the next epoch: what is written from then on needs a key
that the former reader never saw.
"""

from typing import Annotated

from msgspec import Meta

from fastledger.limits import FOLDERS_PER_CONSENT_MAX
from fastledger.model.body import Body
from fastledger.model.fields import FolderWraps, Identity16, KeyWrap, UInt32
from fastledger.model.terms import SUBJECT
from fastledger.state.context import Context
from fastledger.state.entity import Entity
from fastledger.state.subject import Subject
from fastledger.state.view import Refusal
from fastledger.subjects.identity import actor

folders = Subject("folder", number=12, summary="Records of one patient and one category under one key, in epochs")

FOLDER_EXISTS = folders.refusal(1, "folder-exists", "the folder's id is taken")
UNKNOWN_FOLDER = folders.refusal(2, "unknown-folder", "no such folder")
WRONG_EPOCH = folders.refusal(3, "wrong-epoch", "not the folder's epoch at this time")
NOT_OWNER = folders.refusal(4, "not-owner", "the folder, record or consent is another's")
COUNTS_DIFFER = folders.refusal(5, "counts-differ", "folders and keys are not one to one")


class Folder(Entity, frozen=True):
    """Records of one patient and one category (which only key holders know) at a key epoch."""

    owner: Identity16
    epoch: UInt32


# The same few folders are written again and again.
FOLDERS = folders.table(1, "folder", Folder, read_ahead=False)


class FolderOpen(Body, frozen=True):
    """The signer opens folders that it owns, at epoch 1, keeping their keys wrapped to itself."""

    folders: Annotated[
        list[Annotated[bytes, FOLDERS.key]], Meta(min_length=1, max_length=FOLDERS_PER_CONSENT_MAX)
    ]
    keys: FolderWraps
    wrap: KeyWrap


@folders.rule("open")
def open_folders(ctx: Context, body: FolderOpen) -> None:
    """Fresh folders at epoch 1, owned by the signer."""
    actor_id, _ = actor(ctx)
    ctx.find_by(SUBJECT, actor_id)
    if len(body.keys) != len(body.folders) or len(set(body.folders)) != len(body.folders):
        raise Refusal(COUNTS_DIFFER)
    for folder in body.folders:
        if ctx.view.load(FOLDERS, folder) is not None:
            raise Refusal(FOLDER_EXISTS)
        ctx.view.store(FOLDERS, folder, Folder(actor_id, 1))


class FolderRotate(Body, frozen=True):
    """The owner opens the next ``epoch`` of ``folder``: what is written from here on needs the new key."""

    epoch: UInt32
    folder: Annotated[bytes, FOLDERS.key]
    keys: FolderWraps
    wrap: KeyWrap


@folders.rule("rotate")
def rotate_folder(ctx: Context, body: FolderRotate) -> None:
    """The next epoch: records from here on are sealed under a key that earlier readers do not hold."""
    actor_id, _ = actor(ctx)
    ctx.find_by(SUBJECT, actor_id)
    folder = ctx.view.load(FOLDERS, body.folder)
    if folder is None:
        raise Refusal(UNKNOWN_FOLDER)
    if folder.owner != actor_id:
        raise Refusal(NOT_OWNER)
    if body.epoch != folder.epoch + 1:
        raise Refusal(WRONG_EPOCH)
    if len(body.keys) != 1:
        raise Refusal(COUNTS_DIFFER)
    ctx.view.store(FOLDERS, body.folder, Folder(actor_id, body.epoch))

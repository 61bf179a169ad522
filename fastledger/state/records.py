"""Folders and records: open, rotate, put, amend, erase (SPEC-REC-1..8)."""

from fastledger.errors import Code
from fastledger.limits import VERSIONS_PER_RECORD_MAX
from fastledger.model.bodies import FolderOpen, FolderRotate, RecordAmend, RecordErase, RecordPut
from fastledger.state.consent import WRITE, permit
from fastledger.state.context import Context
from fastledger.state.entities import (
    BLOBS,
    FOLDERS,
    RECORDS,
    VERSIONS,
    BlobOwner,
    Folder,
    Identity,
    Record,
    RecordVersion,
    version_key,
)
from fastledger.state.terms import FOLDER, RECORD, SUBJECT, TOKEN
from fastledger.state.view import Refusal


def open_folders(ctx: Context, body: FolderOpen) -> None:
    """Fresh folders at epoch 1, owned by the signer."""
    actor_id, _ = ctx.actor()
    ctx.find_by(SUBJECT, actor_id)
    if len(body.keys) != len(body.folders) or len(set(body.folders)) != len(body.folders):
        raise Refusal(Code.COUNTS_DIFFER)
    for folder in body.folders:
        ctx.find_by(FOLDER, folder)
        if ctx.view.load(FOLDERS, folder) is not None:
            raise Refusal(Code.FOLDER_EXISTS)
        ctx.view.store(FOLDERS, folder, Folder(actor_id, 1))


def rotate_folder(ctx: Context, body: FolderRotate) -> None:
    """The next epoch: records from here on are sealed under a key that earlier readers do not hold."""
    actor_id, _ = ctx.actor()
    ctx.find_by(FOLDER, body.folder)
    ctx.find_by(SUBJECT, actor_id)
    folder = ctx.view.load(FOLDERS, body.folder)
    if folder is None:
        raise Refusal(Code.UNKNOWN_FOLDER)
    if folder.owner != actor_id:
        raise Refusal(Code.NOT_OWNER)
    if body.epoch != folder.epoch + 1:
        raise Refusal(Code.WRONG_EPOCH)
    if len(body.keys) != 1:
        raise Refusal(Code.COUNTS_DIFFER)
    ctx.view.store(FOLDERS, body.folder, Folder(actor_id, body.epoch))


def _writable_folder(ctx: Context, actor_id: bytes, actor: Identity, folder_id: bytes, epoch: int) -> Folder:
    """The folder, where the actor may write in it at its present epoch."""
    ctx.find_by(FOLDER, folder_id)
    folder = ctx.view.load(FOLDERS, folder_id)
    if folder is None:
        raise Refusal(Code.UNKNOWN_FOLDER)
    ctx.find_by(SUBJECT, folder.owner)
    if folder.owner != actor_id:
        permit(ctx, actor_id, actor, folder_id, WRITE)
    if epoch != folder.epoch:
        raise Refusal(Code.WRONG_EPOCH)
    return folder


def _claim_blob(ctx: Context, digest: bytes, record: bytes) -> None:
    """No envelope serves two records: else who may read or erase one could read or erase the other."""
    if ctx.view.load(BLOBS, digest) is not None:
        raise Refusal(Code.BLOB_IN_USE)
    ctx.view.store(BLOBS, digest, BlobOwner(record))


def put(ctx: Context, body: RecordPut) -> None:
    """Version 1 of a new record."""
    ctx.find_by(RECORD, body.record)
    actor_id, actor = ctx.actor()
    _writable_folder(ctx, actor_id, actor, body.folder, body.epoch)
    if ctx.view.load(RECORDS, body.record) is not None:
        raise Refusal(Code.RECORD_EXISTS)
    _claim_blob(ctx, body.digest, body.record)
    version = RecordVersion(body.digest, body.size, body.epoch, actor_id, ctx.time_ms)
    ctx.view.store(RECORDS, body.record, Record(body.folder, 1, False, version))
    ctx.terms.add_all(TOKEN, body.tokens)


def amend(ctx: Context, body: RecordAmend) -> None:
    """The next version of a record; the earlier ones stay."""
    ctx.find_by(RECORD, body.record)
    actor_id, actor = ctx.actor()
    record = ctx.view.load(RECORDS, body.record)
    if record is None:
        raise Refusal(Code.UNKNOWN_RECORD)
    _writable_folder(ctx, actor_id, actor, record.folder, body.epoch)
    if record.erased:
        raise Refusal(Code.RECORD_ERASED)
    if body.version != record.version + 1 or body.version > VERSIONS_PER_RECORD_MAX:
        raise Refusal(Code.WRONG_VERSION)
    _claim_blob(ctx, body.digest, body.record)
    version = RecordVersion(body.digest, body.size, body.epoch, actor_id, ctx.time_ms)
    ctx.view.store(VERSIONS, version_key(body.record, record.version), record.present)
    ctx.view.store(RECORDS, body.record, Record(record.folder, body.version, False, version))
    ctx.terms.add_all(TOKEN, body.tokens)


def erase(ctx: Context, body: RecordErase) -> None:
    """The owner has every version's envelope destroyed; the record's place and this receipt remain."""
    ctx.find_by(RECORD, body.record)
    actor_id, _ = ctx.actor()
    record = ctx.view.load(RECORDS, body.record)
    if record is None:
        raise Refusal(Code.UNKNOWN_RECORD)
    folder = ctx.view.load(FOLDERS, record.folder)
    if folder is None or folder.owner != actor_id:
        raise Refusal(Code.NOT_OWNER)
    ctx.find_by(SUBJECT, actor_id)
    if record.erased:
        raise Refusal(Code.RECORD_ERASED)
    for number in range(1, record.version):
        version = ctx.view.load(VERSIONS, version_key(body.record, number))
        if version is not None:
            ctx.erased.append(version.digest)
    ctx.erased.append(record.present.digest)
    ctx.view.store(RECORDS, body.record, Record(record.folder, record.version, True, record.present))

"""Records: envelopes of one patient's data in a folder, with versions and a real erasure (SPEC-REC-3..8).

The *owner* of a folder, and whom a consent lets write there, puts records and amends them; only the owner erases. The
chain holds an envelope's digest, its size and the blind tokens that find it. The envelope itself lies in the blob
store, where an erasure destroys it with the only copy of its key.
"""

from typing import Annotated

from msgspec import field

from fastledger.limits import VERSIONS_PER_RECORD_MAX
from fastledger.model.body import Body
from fastledger.model.fields import Digest32, Id16, Identity16, SizeBytes, TimeMs, Tokens, UInt32
from fastledger.model.terms import SUBJECT
from fastledger.state.context import Context
from fastledger.state.entity import Entity
from fastledger.state.subject import Subject
from fastledger.state.view import Refusal
from fastledger.subjects.consent import WRITE, permit
from fastledger.subjects.folder import FOLDERS, NOT_OWNER, UNKNOWN_FOLDER, WRONG_EPOCH, Folder
from fastledger.subjects.identity import Identity, actor

records = Subject("record", number=13, summary="Envelopes of one patient's data, with versions and erasure")

RECORD_EXISTS = records.refusal(1, "record-exists", "the record's id is taken")
UNKNOWN_RECORD = records.refusal(2, "unknown-record", "no such record")
RECORD_ERASED = records.refusal(3, "record-erased", "the record was erased")
WRONG_VERSION = records.refusal(4, "wrong-version", "the record has no such version, or may not get it now")
BLOB_IN_USE = records.refusal(5, "blob-in-use", "the envelope belongs to another record or version")


class RecordVersion(Entity, frozen=True):
    """One version's envelope."""

    digest: Digest32
    size: SizeBytes
    epoch: UInt32
    author: Identity16
    time_ms: TimeMs


class Record(Entity, frozen=True):
    """A record and its present version, numbered from 1; an erased one keeps its place."""

    folder: Annotated[bytes, FOLDERS.key]
    version: UInt32
    erased: bool
    present: RecordVersion


class BlobOwner(Entity, frozen=True):
    """Which record an envelope belongs to: no envelope serves two."""

    record: Id16


RECORDS = records.table(1, "record", Record)
VERSIONS = records.table(2, "record_version", RecordVersion, key={"record": Id16, "version": UInt32})
BLOBS = records.table(3, "envelope", BlobOwner, key={"digest": Digest32})


def _writable_folder(
    ctx: Context, actor_id: bytes, identity: Identity, folder_id: bytes, epoch: int
) -> Folder:
    """The folder, where the actor may write in it at its present epoch."""
    folder = ctx.view.load(FOLDERS, folder_id)
    if folder is None:
        raise Refusal(UNKNOWN_FOLDER)
    ctx.find_by(SUBJECT, folder.owner)
    if folder.owner != actor_id:
        permit(ctx, actor_id, identity, folder_id, WRITE)
    if epoch != folder.epoch:
        raise Refusal(WRONG_EPOCH)
    return folder


def _claim_blob(ctx: Context, digest: bytes, record: bytes) -> None:
    """No envelope serves two records: else who may read or erase one could read or erase the other."""
    if ctx.view.load(BLOBS, digest) is not None:
        raise Refusal(BLOB_IN_USE)
    ctx.view.store(BLOBS, digest, BlobOwner(record))


class RecordPut(Body, frozen=True):
    """A new record: the digest and size of its envelope, and the blind tokens that find it."""

    digest: Annotated[bytes, BLOBS.key_with(blob=True)]
    epoch: UInt32
    folder: Annotated[bytes, FOLDERS.key]
    record: Annotated[bytes, RECORDS.key]
    size: SizeBytes
    tokens: Tokens = field(default_factory=list)


@records.rule("put")
def put(ctx: Context, body: RecordPut) -> None:
    """Version 1 of a new record."""
    actor_id, identity = actor(ctx)
    _writable_folder(ctx, actor_id, identity, body.folder, body.epoch)
    if ctx.view.load(RECORDS, body.record) is not None:
        raise Refusal(RECORD_EXISTS)
    _claim_blob(ctx, body.digest, body.record)
    version = RecordVersion(body.digest, body.size, body.epoch, actor_id, ctx.time_ms)
    ctx.view.store(RECORDS, body.record, Record(body.folder, 1, False, version))


class RecordAmend(Body, frozen=True):
    """Version ``version`` of a record supersedes the one before; earlier versions stay readable."""

    digest: Annotated[bytes, BLOBS.key_with(blob=True)]
    epoch: UInt32
    record: Annotated[bytes, RECORDS.key]
    size: SizeBytes
    version: UInt32
    tokens: Tokens = field(default_factory=list)


@records.rule("amend")
def amend(ctx: Context, body: RecordAmend) -> None:
    """The next version of a record; the earlier ones stay."""
    actor_id, identity = actor(ctx)
    record = ctx.view.load(RECORDS, body.record)
    if record is None:
        raise Refusal(UNKNOWN_RECORD)
    ctx.find_by(FOLDERS.term, record.folder)
    _writable_folder(ctx, actor_id, identity, record.folder, body.epoch)
    if record.erased:
        raise Refusal(RECORD_ERASED)
    if body.version != record.version + 1 or body.version > VERSIONS_PER_RECORD_MAX:
        raise Refusal(WRONG_VERSION)
    _claim_blob(ctx, body.digest, body.record)
    version = RecordVersion(body.digest, body.size, body.epoch, actor_id, ctx.time_ms)
    ctx.view.store(VERSIONS, VERSIONS.pack(body.record, record.version), record.present)
    ctx.view.store(RECORDS, body.record, Record(record.folder, body.version, False, version))


class RecordErase(Body, frozen=True):
    """Every version's envelope is destroyed, and with it the only copy of its data key."""

    reason: UInt32
    record: Annotated[bytes, RECORDS.key]


@records.rule("erase")
def erase(ctx: Context, body: RecordErase) -> None:
    """The owner has every version's envelope destroyed; the record's place and this receipt remain."""
    actor_id, _ = actor(ctx)
    record = ctx.view.load(RECORDS, body.record)
    if record is None:
        raise Refusal(UNKNOWN_RECORD)
    folder = ctx.view.load(FOLDERS, record.folder)
    if folder is None or folder.owner != actor_id:
        raise Refusal(NOT_OWNER)
    ctx.find_by(SUBJECT, actor_id)
    if record.erased:
        raise Refusal(RECORD_ERASED)
    for number in range(1, record.version):
        version = ctx.view.load(VERSIONS, VERSIONS.pack(body.record, number))
        if version is not None:
            ctx.erased.append(version.digest)
    ctx.erased.append(record.present.digest)
    ctx.view.store(RECORDS, body.record, Record(record.folder, record.version, True, record.present))

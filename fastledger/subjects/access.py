"""Access: every read of a record is a transaction, granted or refused, and its result the audit (SPEC-ACC-1..3)."""

from typing import Annotated

from fastledger.model.body import Body
from fastledger.model.fields import UInt32
from fastledger.model.terms import SUBJECT
from fastledger.state.context import Context
from fastledger.state.subject import Subject
from fastledger.state.view import Refusal
from fastledger.subjects.consent import PURPOSE_BITS, READ, Purpose, permit
from fastledger.subjects.folder import FOLDERS
from fastledger.subjects.identity import actor
from fastledger.subjects.record import RECORD_ERASED, RECORDS, UNKNOWN_RECORD, WRONG_VERSION

accesses = Subject("access", number=15, summary="Every read of a record, granted or refused, for the audit")


class AccessRead(Body, frozen=True):
    """The signer asks to read ``record`` for ``purpose``; the verdict is the transaction's result."""

    purpose: Purpose
    record: Annotated[bytes, RECORDS.key]
    version: UInt32 = 0


@accesses.rule("read")
def read(ctx: Context, body: AccessRead) -> None:
    """Grants the read to the owner, and to whom a consent gives it for the purpose; version 0 is the present one."""
    record = ctx.view.load(RECORDS, body.record)
    folder = ctx.view.load(FOLDERS, record.folder) if record is not None else None
    if folder is not None:
        # Before anything is refused: a patient's audit shows the strangers too.
        ctx.find_by(SUBJECT, folder.owner)
    actor_id, identity = actor(ctx)
    if record is None or folder is None:
        raise Refusal(UNKNOWN_RECORD)
    if folder.owner != actor_id:
        permit(ctx, actor_id, identity, record.folder, READ, PURPOSE_BITS[body.purpose])
    if record.erased:
        raise Refusal(RECORD_ERASED)
    if body.version > record.version:
        raise Refusal(WRONG_VERSION)

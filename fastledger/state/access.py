"""Access: every read of a record is a transaction, granted or refused, and its result the audit (SPEC-ACC-1..3)."""

from fastledger.errors import Code
from fastledger.model.bodies import AccessRead
from fastledger.state.consent import READ, permit
from fastledger.state.context import Context
from fastledger.state.entities import FOLDERS, PURPOSE_BITS, RECORDS
from fastledger.state.terms import RECORD, SUBJECT
from fastledger.state.view import Refusal


def read(ctx: Context, body: AccessRead) -> None:
    """Grants the read to the owner, and to whom a consent gives it for the purpose; version 0 is the present one."""
    ctx.find_by(RECORD, body.record)
    record = ctx.view.load(RECORDS, body.record)
    folder = ctx.view.load(FOLDERS, record.folder) if record is not None else None
    if folder is not None:
        # Before anything is refused: a patient's audit shows the strangers too.
        ctx.find_by(SUBJECT, folder.owner)
    actor_id, actor = ctx.actor()
    if record is None or folder is None:
        raise Refusal(Code.UNKNOWN_RECORD)
    if folder.owner != actor_id:
        permit(ctx, actor_id, actor, record.folder, READ, PURPOSE_BITS[body.purpose])
    if record.erased:
        raise Refusal(Code.RECORD_ERASED)
    if body.version > record.version:
        raise Refusal(Code.WRONG_VERSION)

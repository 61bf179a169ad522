"""The transition function: one transaction against a view of the state (SPEC-STATE-4).

Pure and deterministic: the same view, block time and transaction give the same code, writes and terms on every
machine. A refused transaction writes nothing.
"""

from collections.abc import Callable, Sequence
from typing import Any

from fastledger.errors import Code
from fastledger.limits import CLOCK_SKEW_MS_MAX, VALIDITY_WINDOW_MS_MAX
from fastledger.model.bodies import BODIES, AccessRead, RecordAmend, RecordPut
from fastledger.state import access, consent, identity, records
from fastledger.state.context import Context
from fastledger.state.entities import BLOBS, RECORDS
from fastledger.state.terms import CODE, KIND, KIND_NAMES, code_name
from fastledger.state.view import Refusal

_HANDLERS: dict[str, Callable[[Context, Any], None]] = {
    "identity.register": identity.register,
    "identity.endorse": identity.endorse,
    "identity.rotate": identity.rotate,
    "identity.revoke": identity.revoke,
    "folder.open": records.open_folders,
    "folder.rotate": records.rotate_folder,
    "record.put": records.put,
    "record.amend": records.amend,
    "record.erase": records.erase,
    "consent.grant": consent.grant,
    "consent.rekey": consent.rekey,
    "consent.revoke": consent.revoke,
    "access.read": access.read,
}
if set(_HANDLERS) != set(BODIES):
    raise RuntimeError("every kind of transaction has a body and a rule")
# One lookup a transaction: body type -> rule, kind's name.
_RULES = {BODIES[kind]: (_HANDLERS[kind], KIND_NAMES[kind]) for kind in BODIES}
_OK = Code.OK
_ABOUT_ENVELOPES = (RecordPut, RecordAmend)
_ABOUT_RECORDS = (*_ABOUT_ENVELOPES, AccessRead)


def keys_read(bodies: Sequence[Any]) -> list[bytes]:
    """State keys, new to most blocks, that judging ``bodies`` will read: a hint for reading ahead, no more."""
    found = [RECORDS.prefix + body.record for body in bodies if isinstance(body, _ABOUT_RECORDS)]
    found += [BLOBS.prefix + body.digest for body in bodies if isinstance(body, _ABOUT_ENVELOPES)]
    return found


def validity_code(issued_ms: int, expires_ms: int, time_ms: int) -> Code:
    """Whether a transaction's window is well formed and open at ``time_ms`` (SPEC-TX-9)."""
    if not 0 < expires_ms - issued_ms <= VALIDITY_WINDOW_MS_MAX:
        return Code.WINDOW_TOO_LONG
    if time_ms > expires_ms:
        return Code.EXPIRED
    if issued_ms > time_ms + CLOCK_SKEW_MS_MAX:
        return Code.NOT_YET_VALID
    return Code.OK


def all_valid(windows: tuple[int, int, int, int] | None, time_ms: int) -> bool:
    """Whether :func:`validity_code` is OK for all of a batch, from its extremes (``ScanBatch.windows``)."""
    if windows is None:
        return False
    last_issue_ms, first_expiry_ms, shortest_ms, longest_ms = windows
    well_formed = shortest_ms > 0 and longest_ms <= VALIDITY_WINDOW_MS_MAX
    return well_formed and last_issue_ms - CLOCK_SKEW_MS_MAX <= time_ms <= first_expiry_ms


def apply(ctx: Context, signer: bytes, body: Any) -> Code:
    """Judges the next transaction, whose form, signature, chain and window were checked; ``body`` is its typed body.

    On success its writes are committed to the context's view, on refusal they are gone. Either way the terms under
    which it is found are added to the context's, and what it erased.
    """
    handler, kind = _RULES[type(body)]
    ctx.signer = signer
    ctx.find_by(KIND, kind)
    erased_before = len(ctx.erased)
    try:
        handler(ctx, body)
    except Refusal as refusal:
        ctx.view.rollback()
        del ctx.erased[erased_before:]
        code = refusal.code
        ctx.find_by(CODE, code_name(code))
    else:
        ctx.view.commit()
        code = _OK
    ctx.terms.end()
    return code

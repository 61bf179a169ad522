"""The transition function: one transaction against a view of the state (SPEC-STATE-4).

Pure and deterministic: the same view, block time and transaction give the same code, writes and terms on every
machine. A refused transaction writes nothing.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from fastledger.errors import Code
from fastledger.limits import CLOCK_SKEW_MS_MAX, VALIDITY_WINDOW_MS_MAX
from fastledger.model.bodies import BODIES, AccessRead, RecordAmend, RecordPut
from fastledger.state import access, consent, identity, records
from fastledger.state.context import Context
from fastledger.state.entities import BLOBS, RECORDS
from fastledger.state.terms import KIND_TERMS, code_term
from fastledger.state.view import Refusal, View

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
# One lookup a transaction: body type -> rule, kind's term.
_RULES = {BODIES[kind]: (_HANDLERS[kind], KIND_TERMS[kind]) for kind in BODIES}
_ABOUT_ENVELOPES = (RecordPut, RecordAmend)
_ABOUT_RECORDS = (*_ABOUT_ENVELOPES, AccessRead)


def keys_read(bodies: Sequence[Any]) -> list[bytes]:
    """State keys, new to most blocks, that judging ``bodies`` will read: a hint for reading ahead, no more."""
    found = [RECORDS.prefix + body.record for body in bodies if isinstance(body, _ABOUT_RECORDS)]
    found += [BLOBS.prefix + body.digest for body in bodies if isinstance(body, _ABOUT_ENVELOPES)]
    return found


class Effect(NamedTuple):
    """What a transaction came to: its result code, where it is found, which envelopes it erased."""

    code: Code
    terms: list[bytes]
    erased: list[bytes]


def validity_code(issued_ms: int, expires_ms: int, time_ms: int) -> Code:
    """Whether a transaction's window is well formed and open at ``time_ms`` (SPEC-TX-9)."""
    if not 0 < expires_ms - issued_ms <= VALIDITY_WINDOW_MS_MAX:
        return Code.WINDOW_TOO_LONG
    if time_ms > expires_ms:
        return Code.EXPIRED
    if issued_ms > time_ms + CLOCK_SKEW_MS_MAX:
        return Code.NOT_YET_VALID
    return Code.OK


def apply(view: View, chain_id: bytes, signer: bytes, time_ms: int, body: Any) -> Effect:
    """Judges one transaction whose form, signature, chain and window were checked; ``body`` is its typed body.

    On success its writes are committed to ``view``, on refusal they are gone.
    """
    handler, kind_term = _RULES[type(body)]
    ctx = Context(view, chain_id, signer, time_ms)
    ctx.terms.append(kind_term)
    try:
        handler(ctx, body)
    except Refusal as refusal:
        view.rollback()
        ctx.terms.append(code_term(refusal.code))
        return Effect(refusal.code, ctx.terms, [])
    view.commit()
    return Effect(Code.OK, ctx.terms, ctx.erased)

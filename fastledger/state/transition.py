"""The transition function: one transaction against a view of the state (SPEC-STATE-4).

Pure and deterministic: the same view, block time and transaction give the same code, writes and terms on every
machine. A refused transaction writes nothing.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import cbor2

from fastledger.errors import Code
from fastledger.limits import CLOCK_SKEW_MS_MAX, VALIDITY_WINDOW_MS_MAX
from fastledger.model.bodies import BODIES, AccessRead, RecordAmend, RecordPut, parse_body
from fastledger.state import access, consent, identity, records
from fastledger.state.context import Context
from fastledger.state.entities import BLOBS, FOLDERS, KEYS, RECORDS
from fastledger.state.terms import KIND_TERMS, Term, code_term
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


def keys_read(signer: bytes, body: Any) -> tuple[bytes, ...]:
    """State keys that judging a transaction will surely read: a hint for reading them ahead, without meaning."""
    if isinstance(body, RecordPut):
        return (
            KEYS.prefix + signer,
            FOLDERS.prefix + body.folder,
            RECORDS.prefix + body.record,
            BLOBS.prefix + body.digest,
        )
    if isinstance(body, RecordAmend):
        return (KEYS.prefix + signer, RECORDS.prefix + body.record, BLOBS.prefix + body.digest)
    if isinstance(body, AccessRead):
        return (KEYS.prefix + signer, RECORDS.prefix + body.record)
    return (KEYS.prefix + signer,)


class Effect(NamedTuple):
    """What a transaction came to: its result code, where it is found, which envelopes it erased."""

    code: Code
    terms: list[tuple[Term, bytes]]
    erased: list[bytes]


def validity_code(issued_ms: int, expires_ms: int, time_ms: int) -> Code:
    """Whether a transaction's window is well formed and open at ``time_ms`` (SPEC-TX-5)."""
    if not 0 < expires_ms - issued_ms <= VALIDITY_WINDOW_MS_MAX:
        return Code.WINDOW_TOO_LONG
    if time_ms > expires_ms:
        return Code.EXPIRED
    if issued_ms > time_ms + CLOCK_SKEW_MS_MAX:
        return Code.NOT_YET_VALID
    return Code.OK


def parse(kind: str, body: bytes) -> Any:
    """The typed body of a transaction whose CBOR was found deterministic.

    Raises ``InputError`` with ``UNKNOWN_KIND`` or ``BAD_BODY``.
    """
    return parse_body(kind, cbor2.loads(body))


def apply(view: View, *, chain_id: bytes, signer: bytes, time_ms: int, body: Any) -> Effect:
    """Judges one transaction whose form, signature, chain and window were checked; ``body`` is from :func:`parse`.

    On success its writes are committed to ``view``, on refusal they are gone.
    """
    handler, kind_term = _RULES[type(body)]
    ctx = Context(view, chain_id=chain_id, signer=signer, time_ms=time_ms)
    ctx.terms.append((Term.KIND, kind_term))
    try:
        handler(ctx, body)
    except Refusal as refusal:
        view.rollback()
        ctx.terms.append((Term.CODE, code_term(refusal.code)))
        return Effect(refusal.code, ctx.terms, [])
    view.commit()
    return Effect(Code.OK, ctx.terms, ctx.erased)

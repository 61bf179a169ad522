"""The transition function: one transaction against a view of the state (SPEC-STATE-4).

Pure and deterministic: the same view, rule set, block time and transaction give the same code, writes and terms on
every machine. A refused transaction writes nothing.
"""

from typing import Any

from fastledger.errors import Code
from fastledger.limits import CLOCK_SKEW_MS_MAX, VALIDITY_WINDOW_MS_MAX
from fastledger.model.body import kind_of
from fastledger.model.terms import CODE, KIND, code_name, kind_name
from fastledger.state.context import Context
from fastledger.state.registry import NotInForce, Rules
from fastledger.state.view import Refusal

_OK = Code.OK


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


def apply(ctx: Context, rules: Rules, signer: bytes, body: Any) -> Code:
    """Judges the next transaction, whose form, signature, chain and window were checked.

    ``rules`` is the rule set in force, ``signer`` the 33-byte key, ``body`` the typed body.

    On success its writes are committed to the context's view, on refusal they are gone. Either way the terms under
    which it is found are added to the context's, and what it erased. A body whose kind the rule set does not have is
    refused with ``KIND_NOT_IN_FORCE``.
    """
    kind = rules.by_body.get(type(body))
    if kind is None:
        return _not_in_force(ctx, body)
    ctx.signer = signer
    terms = ctx.terms
    terms.add(KIND, kind.term_name)
    terms.add_found(kind.terms, body)
    erased_before = len(ctx.erased)
    try:
        kind.rule(ctx, body)
    except Refusal as refusal:
        ctx.view.rollback()
        del ctx.erased[erased_before:]
        code = refusal.code
        terms.add(CODE, code_name(code))
    else:
        ctx.view.commit()
        code = _OK
        terms.add_found(kind.late_terms, body)
    terms.end()
    return code


def _not_in_force(ctx: Context, body: Any) -> Code:
    ctx.find_by(KIND, kind_name(body.kind if isinstance(body, NotInForce) else kind_of(type(body))))
    ctx.find_by(CODE, code_name(Code.KIND_NOT_IN_FORCE))
    ctx.terms.end()
    return Code.KIND_NOT_IN_FORCE

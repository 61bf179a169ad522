"""Errors in the forms that clients get: JSON-RPC errors and HTTP statuses (SPEC-RPC-5).

A code is one of JSON-RPC's own (negative) or of :class:`fastledger.Code` (positive, stable). An unexpected error
becomes ``INTERNAL_ERROR`` with an incident id that stands in the log beside where it happened; neither the answer
nor the log repeats what such an exception says, since it could hold a part of the input.
"""

import logging
import secrets
import traceback
from collections.abc import Mapping

import msgspec

from fastledger.errors import (
    AccessRefused,
    BadRequestError,
    Code,
    CorruptionError,
    FastLedgerError,
    ForbiddenError,
    FormatVersionError,
    InputError,
    LedgerBusyError,
    LedgerClosedError,
    LedgerHaltedError,
    NotFoundError,
    RateLimitedError,
    ReleaseNeededError,
    StorageFullError,
    TransactionError,
    UnauthenticatedError,
)
from fastledger.rpc.protocol import INTERNAL_ERROR, ErrorData, RpcError

INCIDENT_LOGGER = logging.getLogger("fastledger.rpc.incidents")
"""Where incidents go, with (incident, type, places) as arguments."""

_STATUSES: tuple[tuple[type[FastLedgerError], int], ...] = (
    (UnauthenticatedError, 401),
    (ForbiddenError, 403),
    (AccessRefused, 403),
    (NotFoundError, 404),
    (RateLimitedError, 429),
    (InputError, 400),
    (LedgerBusyError, 503),
    (LedgerClosedError, 503),
    (LedgerHaltedError, 503),
    (ReleaseNeededError, 503),
    (StorageFullError, 507),
)
_OWN_STATUS = {Code.OVERSIZED: 413}
# Their messages name files of the node: for its log, not for its clients.
_PRIVATE = (CorruptionError, FormatVersionError)
_CLOSED_RETRY_MS = 1_000


class RpcFault(Exception):
    """Raised for one of JSON-RPC's own errors; ``path`` points into the parameters."""

    def __init__(self, code: int, reason: str, message: str, *, path: str | None = None) -> None:
        super().__init__(message)
        self.error = RpcError(code, message, ErrorData(reason, path=path))


def rpc_error(error: BaseException) -> RpcError:
    """Returns the error that a client is told of; an error that it is not told is logged."""
    if isinstance(error, RpcFault):
        return error.error
    if isinstance(error, FastLedgerError) and not isinstance(error, _PRIVATE):
        txid = error.txid if isinstance(error, TransactionError | AccessRefused) else None
        data = ErrorData(
            reason=error.code.slug,
            txid=None if txid is None else txid.hex(),
            retry_after_ms=retry_after_ms(error),
        )
        return RpcError(int(error.code), Exception.__str__(error), data)
    incident = report(error)
    message = f"something went wrong in the node; its log has it under incident {incident}"
    if isinstance(error, FastLedgerError):
        return RpcError(int(error.code), message, ErrorData(error.code.slug, incident=incident))
    return RpcError(INTERNAL_ERROR, message, ErrorData("internal-error", incident=incident))


def report(error: BaseException) -> str:
    """Logs an unexpected error by type and place alone; returns the incident's id."""
    incident = secrets.token_hex(8)
    frames = traceback.extract_tb(error.__traceback__)[-12:]
    places = [
        f"{frame.filename.rpartition('fastledger/')[2]}:{frame.lineno} {frame.name}" for frame in frames
    ]
    detail = str(error) if isinstance(error, FastLedgerError) else type(error).__name__
    INCIDENT_LOGGER.error("incident %s: %s at %s", incident, detail, " < ".join(reversed(places)))
    return incident


def retry_after_ms(error: BaseException) -> int | None:
    """Returns after how many milliseconds to try again, None where that does not help."""
    if isinstance(error, LedgerBusyError | RateLimitedError):
        return error.retry_after_ms
    return _CLOSED_RETRY_MS if isinstance(error, LedgerClosedError) else None


def http_status(error: BaseException) -> int:
    """Returns the HTTP status of an error."""
    if isinstance(error, RpcFault):
        return 400
    if isinstance(error, BadRequestError):
        return error.status
    if isinstance(error, FastLedgerError):
        if error.code in _OWN_STATUS:
            return _OWN_STATUS[error.code]
        for cls, status in _STATUSES:
            if isinstance(error, cls):
                return status
    return 500


def http_headers(error: BaseException) -> Mapping[str, str]:
    """Returns the HTTP headers that belong to an error's answer."""
    headers: dict[str, str] = {}
    if isinstance(error, BadRequestError) and error.headers:
        headers.update(error.headers)
    if isinstance(error, UnauthenticatedError):
        headers["WWW-Authenticate"] = "Bearer"
    wait_ms = retry_after_ms(error)
    if wait_ms is not None:
        # Seconds, rounded up (RFC 9110 §10.2.3); the body has the milliseconds.
        headers["Retry-After"] = str(max(1, -(-wait_ms // 1000)))
    return headers


class ErrorBody(msgspec.Struct, frozen=True):
    """The body of every error answer of a path other than /v1/rpc."""

    error: RpcError

"""A node's errors become the exceptions of :mod:`fastledger.errors` again, by their code (SPEC-CLI-4)."""

from collections.abc import Iterator, Mapping
from inspect import Parameter, signature

import msgspec

from fastledger import errors
from fastledger.errors import (
    Code,
    FastLedgerError,
    InputError,
    LedgerBusyError,
    LedgerError,
    TransactionError,
    UnreachableError,
)
from fastledger.rpc.protocol import INTERNAL_ERROR, ErrorData, RpcError

MESSAGE_CHARS_MAX = 500
RETRY_AFTER_S_MAX = 3600
_LEDGER_CODES = range(900, 1000)
_BORDER_CODES = range(100, 200)


def _classes(root: type[FastLedgerError]) -> Iterator[type[FastLedgerError]]:
    for cls in root.__subclasses__():
        yield cls
        yield from _classes(cls)


def _asked(cls: type[FastLedgerError]) -> set[str]:
    """What a constructor wants to know."""
    return {name for name, item in signature(cls).parameters.items() if item.default is Parameter.empty}


def _by_code(asked: set[str]) -> dict[Code, type[FastLedgerError]]:
    """The most general class of each code, of those that are made of so much."""
    found: dict[Code, type[FastLedgerError]] = {}
    for cls in _classes(FastLedgerError):
        if cls.__module__ == errors.__name__ and _asked(cls) == asked:
            found.setdefault(cls.default_code, cls)
    return found


_PLAIN = _by_code({"message"})
_WITH_WAIT = _by_code({"message", "retry_after_ms"})


def error_of(fault: RpcError, *, retry_after_ms: int | None = None) -> FastLedgerError:
    """The exception that a node's error stands for; ``retry_after_ms`` where only a header told it."""
    data = fault.data or ErrorData(reason="")
    message = fault.message[:MESSAGE_CHARS_MAX]
    wait_ms = data.retry_after_ms if data.retry_after_ms is not None else retry_after_ms
    try:
        code = Code(fault.code)
    except ValueError:
        return _foreign(fault.code, message)
    message = message.removeprefix(f"{code.slug}: ")
    if code.is_refusal or code in _BORDER_CODES:
        return TransactionError(message, code=code, txid=_txid(data.txid))
    if code in _WITH_WAIT:
        bounded_ms = min(max(wait_ms or 0, 0), RETRY_AFTER_S_MAX * 1000)
        return _WITH_WAIT[code](message, retry_after_ms=bounded_ms)  # type: ignore[call-arg]
    if code in _PLAIN:
        return _PLAIN[code](message)
    return (LedgerError if code in _LEDGER_CODES else InputError)(message, code=code)


def _foreign(code: int, message: str) -> FastLedgerError:
    """JSON-RPC's own errors, and those of a node that is newer than this client."""
    if code == INTERNAL_ERROR:
        return LedgerError(message)
    if code < 0:
        return InputError(f"the node refuses the request ({code}): {message}", code=Code.BAD_QUERY)
    return UnreachableError(f"the node answers with error {code}, which is unknown here", transient=False)


def _txid(text: str | None) -> bytes | None:
    try:
        return None if text is None else bytes.fromhex(text)
    except ValueError:
        return None


class _Wrapped(msgspec.Struct):
    error: RpcError


_DECODE_WRAPPED = msgspec.json.Decoder(_Wrapped).decode
_DECODE_PLAIN = msgspec.json.Decoder(RpcError).decode


def error_of_answer(status: int, headers: Mapping[str, str], body: bytes) -> FastLedgerError:
    """The exception for an HTTP answer other than success, whoever gave it."""
    for decode in (_DECODE_WRAPPED, _DECODE_PLAIN):
        try:
            answer = decode(body)
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
            continue
        fault = answer.error if isinstance(answer, _Wrapped) else answer
        return error_of(fault, retry_after_ms=retry_after_ms(headers))
    wait_ms = retry_after_ms(headers)
    if status in (429, 503) and wait_ms is not None:
        return LedgerBusyError(f"the node answers with status {status}", retry_after_ms=wait_ms)
    transient = status in (408, 425, 429) or status >= 500
    return UnreachableError(f"the node answers with status {status}", transient=transient)


def retry_after_ms(headers: Mapping[str, str]) -> int | None:
    """``Retry-After`` in milliseconds; None where it is absent or a date (RFC 9110 §10.2.3)."""
    text = headers.get("Retry-After", "")
    return (
        min(int(text), RETRY_AFTER_S_MAX) * 1000
        if text.isascii() and text.isdigit() and len(text) < 9
        else None
    )

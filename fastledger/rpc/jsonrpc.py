"""JSON-RPC 2.0 over one request body: decode, look up, check, run, answer (SPEC-RPC-1, SPEC-RPC-2).

What is not JSON, or not a request, is answered under its own code; names that stand twice in an object are refused,
since two readers could take different ones for true.
"""

import asyncio
import json
import re
import time
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, cast

import msgspec

from fastledger.errors import (
    Code,
    FastLedgerError,
    ForbiddenError,
    LedgerError,
    RateLimitedError,
    UnauthenticatedError,
)
from fastledger.rpc.errors import RpcFault, http_headers, http_status, rpc_error
from fastledger.rpc.http.access import check_role
from fastledger.rpc.http.routes import Caller
from fastledger.rpc.methods import Method, Read, RpcContext
from fastledger.rpc.protocol import (
    INVALID_PARAMS,
    INVALID_REQUEST,
    METHOD_NOT_FOUND,
    PARSE_ERROR,
    Request,
    RpcError,
)

_decode_request = msgspec.json.Decoder(Request).decode
_decode_batch = msgspec.json.Decoder(list[msgspec.Raw]).decode
_encode = msgspec.json.encode
_PATH = re.compile(r"at `(\$[\w.\[\]]{0,80})`$")
_UNSET = msgspec.UNSET


class Reply(NamedTuple):
    """The body (None where there were only notifications), the HTTP status and the headers of an answer."""

    body: bytes | None
    status: int = 200
    headers: Mapping[str, str] | None = None


class JsonRpc:
    """Answers request bodies by the method table."""

    def __init__(self, context: RpcContext, methods: Mapping[str, Method], counters: "Counter[str]") -> None:
        """Takes the method table; ``counters`` counts "method result" for every call."""
        self._context = context
        self._methods = methods
        self._counters = counters

    async def answer(self, data: bytes, caller: Caller) -> Reply:
        """Answers one request body, which holds a request or a batch of them; never raises for what it holds."""
        try:
            if data.lstrip(b" \t\r\n")[:1] == b"[":
                return await self._answer_batch(data, caller)
            request = decode_request(data)
        except RpcFault as fault:
            self._counters["rpc invalid"] += 1
            return refusal(fault)
        try:
            result = await self._run(request, data, caller)
        except Exception as error:
            return self._failed(request, error)
        if request.id is _UNSET:
            return Reply(None, 204)
        return Reply(success(request.id, result))

    # Short reads, without a task.

    def short_read(self, data: bytes) -> tuple[Request, Method] | None:
        """The call in ``data`` and its method, where it is one call of a method that only reads shortly."""
        if data[:1] != b"{":
            return None
        try:
            request: Request = _decode_request(data)
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
            return None
        method = self._methods.get(request.method)
        if method is None or method.read is None or request.id is _UNSET:
            return None
        return request, method

    def begin(
        self, request: Request, method: Method, data: bytes, caller: Caller, tell: Callable[[Reply], None]
    ) -> None:
        """Answers what :meth:`short_read` found; ``tell`` is called on the loop, perhaps at once."""
        began = time.perf_counter()
        read = cast(Read, method.read)

        def told(result: Any, error: BaseException | None) -> None:
            self._count(method, error, began)
            tell(Reply(result) if error is None else self._failed(request, error))

        try:
            check_role(caller, method.role)
            params = decode_params(method.decode, request, data, required=method.required)
            # Encoded on the reader's thread too: what comes back to the loop is what goes out.
            self._context.service.begin_read(lambda ledger: success(request.id, read(ledger, params)), told)
        except Exception as error:
            told(None, error)

    def _failed(self, request: Request, error: BaseException) -> Reply:
        told = rpc_error(error)
        if request.id is _UNSET:
            return Reply(None, 204)
        # An error of the call travels as 200; where HTTP itself has something to add, it says it too.
        speaks = isinstance(error, UnauthenticatedError | ForbiddenError | RateLimitedError | LedgerError)
        status = http_status(error) if speaks else 200
        return Reply(failure(request.id, told), status, http_headers(error))

    # Batches.

    async def _answer_batch(self, data: bytes, caller: Caller) -> Reply:
        encoded = self._split(data)
        self._context.rates.take_request(caller, len(encoded) - 1)
        calls = [_decoded(call) for call in encoded]
        self._check_weight(calls)
        answers = await asyncio.gather(
            *(self._answer_one(call, raw, caller) for call, raw in zip(calls, encoded, strict=True))
        )
        told = [answer for answer in answers if answer is not None]
        return Reply(b"[%b]" % b",".join(told)) if told else Reply(None, 204)

    def _split(self, data: bytes) -> list[bytes]:
        calls: list[msgspec.Raw] = _guard(_decode_batch, data)
        calls_max = self._context.options.calls_per_request_max
        if not calls:
            raise RpcFault(INVALID_REQUEST, "invalid-request", "a batch holds at least one request")
        if len(calls) > calls_max:
            message = f"{len(calls)} requests in a batch, at most {calls_max}"
            raise RpcFault(INVALID_REQUEST, "invalid-request", message)
        return [bytes(call) for call in calls]

    def _check_weight(self, calls: "list[Request | RpcFault]") -> None:
        """Raises ``RpcFault`` for a batch with too many long answers: a hundred pages are hundreds of megabytes."""
        methods = [self._methods.get(call.method) for call in calls if isinstance(call, Request)]
        heavy = sum(method is not None and method.heavy for method in methods)
        heavy_max = self._context.options.heavy_calls_per_request_max
        if heavy > heavy_max:
            message = f"{heavy} requests for pages or proofs in a batch, at most {heavy_max}"
            raise RpcFault(INVALID_REQUEST, "invalid-request", message)

    async def _answer_one(self, call: "Request | RpcFault", encoded: bytes, caller: Caller) -> bytes | None:
        if isinstance(call, RpcFault):
            self._counters["rpc invalid"] += 1
            return failure(None, call.error)
        try:
            answer = success(call.id, await self._run(call, encoded, caller))
        except Exception as error:
            answer = failure(call.id, rpc_error(error))
        return None if call.id is _UNSET else answer

    # One call.

    async def _run(self, request: Request, data: bytes, caller: Caller) -> Any:
        method = self._methods.get(request.method)
        if method is None:
            self._counters["rpc unknown-method"] += 1
            raise RpcFault(METHOD_NOT_FOUND, "method-not-found", "there is no such method")
        began = time.perf_counter()
        failed: Exception | None = None
        try:
            check_role(caller, method.role)
            params = decode_params(method.decode, request, data, required=method.required)
            return await method.run(self._context, caller, params)
        except Exception as error:
            failed = error
            raise
        finally:
            self._count(method, failed, began)

    def _count(self, method: Method, error: BaseException | None, began: float) -> None:
        code = Code.OK if error is None else _code_of(error)
        self._counters[method.name if code == Code.OK else f"{method.name} {code.slug}"] += 1
        if self._context.metrics is not None:
            self._context.metrics.request(method.name, code, time.perf_counter() - began)


def _code_of(error: BaseException) -> Code:
    """Returns the code under which metrics count an error."""
    if isinstance(error, FastLedgerError):
        return error.code
    return Code.BAD_REQUEST if isinstance(error, RpcFault) else Code.STORAGE


def refusal(error: BaseException) -> Reply:
    """Returns the answer that refuses a request as a whole."""
    return Reply(failure(None, rpc_error(error)), http_status(error), http_headers(error))


def decode_request(data: bytes) -> Request:
    """Returns the request in ``data``; raises ``RpcFault`` where it is none."""
    request: Request = _guard(_decode_request, data)
    return request


def _decoded(encoded: bytes) -> "Request | RpcFault":
    try:
        return decode_request(encoded)
    except RpcFault as fault:
        return fault


def _guard(decode: Any, data: bytes) -> Any:
    """Returns what ``decode`` makes of ``data``. Its errors, which may repeat the input, become ``RpcFault``."""
    try:
        return decode(data)
    except msgspec.ValidationError:
        raise RpcFault(INVALID_REQUEST, "invalid-request", "this is no JSON-RPC 2.0 request") from None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        raise RpcFault(PARSE_ERROR, "parse-error", "this is not JSON") from None


def decode_params(decode: Any, request: Request, data: bytes, *, required: int) -> Any:
    """Returns a request's parameters; raises ``RpcFault`` where they do not fit.

    ``data`` is the whole request; ``required`` is how many names the parameters have at least.
    """
    raw = request.params
    present = not isinstance(raw, msgspec.UnsetType)
    try:
        params = decode(raw if present else b"{}")
    except msgspec.ValidationError as error:
        found = _PATH.search(str(error))
        raise RpcFault(
            INVALID_PARAMS,
            "invalid-params",
            "the parameters do not fit the method",
            path=None if found is None else found.group(1),
        ) from None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        raise RpcFault(PARSE_ERROR, "parse-error", "this is not JSON") from None
    # Every name brings a colon, so where there are no more colons than names that must be there, none stands twice.
    names_min = 2 + present + (request.id is not _UNSET) + required
    if data.count(b":") > names_min:
        check_names(data)
    return params


def check_names(data: bytes) -> None:
    """Raises ``RpcFault`` where an object has a name twice."""
    try:
        json.loads(data, object_pairs_hook=_unique)
    except (ValueError, RecursionError):
        raise RpcFault(INVALID_REQUEST, "invalid-request", "a name stands twice in an object") from None


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError
    return found


def success(identifier: Any, result: Any) -> bytes:
    """Returns the response to a call, empty for a notification."""
    if identifier is _UNSET:
        return b""
    return b'{"jsonrpc":"2.0","id":%b,"result":%b}' % (_encode(identifier), _encode(result))


def failure(identifier: Any, error: RpcError) -> bytes:
    """Returns the error response to a call, empty for a notification."""
    if identifier is _UNSET:
        return b""
    return b'{"jsonrpc":"2.0","id":%b,"error":%b}' % (_encode(identifier), _encode(error))

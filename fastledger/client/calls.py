"""JSON-RPC calls. Those that wait for a free lane travel together: one request carries what has gathered.

A call that is alone goes at once, so nothing waits for company; under load a request carries dozens, which costs both
sides a fraction of as many requests.
"""

import asyncio
from collections import deque
from typing import Any, TypeVar

import msgspec

from fastledger.client.faults import error_of
from fastledger.client.http import HttpTransport
from fastledger.errors import FastLedgerError, UnreachableError
from fastledger.rpc.protocol import JSON_TYPE, RpcError

T = TypeVar("T")
RPC_PATH = "/v1/rpc"
POINT_ANSWER_BYTES_MAX = 512 * 1024
_HEADERS = {"Content-Type": JSON_TYPE}


class _Answer(msgspec.Struct):
    id: int | None = None
    result: msgspec.Raw | msgspec.UnsetType = msgspec.UNSET
    error: RpcError | None = None


_decode_one = msgspec.json.Decoder(_Answer).decode
_decode_many = msgspec.json.Decoder(list[_Answer]).decode
_encode = msgspec.json.encode
_NOT_JSON_RPC = "the node's answer is not JSON-RPC 2.0"


class Calls:
    """JSON-RPC over a transport; raises the node's errors and ``UnreachableError``."""

    def __init__(self, transport: HttpTransport, *, lanes: int = 2, calls_max: int = 32) -> None:
        """At most ``lanes`` requests with at most ``calls_max`` gathered calls each are under way."""
        self._transport = transport
        self._lanes = lanes
        self._calls_max = calls_max
        self._waiting: deque[tuple[bytes, asyncio.Future[msgspec.Raw]]] = deque()
        self._running: set[asyncio.Task[None]] = set()

    async def call(self, method: str, params: dict[str, Any], result: type[T], *, answer_bytes_max: int) -> T:
        """One call in a request of its own, for what takes the node long or may be answered at length."""
        raw = await self._send([_encode_call(method, params)], answer_bytes_max)
        return decode_result(_value(raw[0]), result)

    async def point(self, method: str, params: dict[str, Any], result: type[T]) -> T:
        """One of many short calls, answered with at most ``POINT_ANSWER_BYTES_MAX`` bytes."""
        future: asyncio.Future[msgspec.Raw] = asyncio.get_running_loop().create_future()
        self._waiting.append((_encode_call(method, params), future))
        if len(self._running) < self._lanes:
            task = asyncio.get_running_loop().create_task(self._run_lane())
            self._running.add(task)
            task.add_done_callback(self._running.discard)
        return decode_result(await future, result)

    async def _run_lane(self) -> None:
        while self._waiting:
            taken = [self._waiting.popleft() for _ in range(min(self._calls_max, len(self._waiting)))]
            taken = [(call, future) for call, future in taken if not future.done()]
            if not taken:
                continue
            try:
                answers = await self._send([call for call, _ in taken], POINT_ANSWER_BYTES_MAX * len(taken))
            except BaseException as error:
                _fail(taken, error)
                if not isinstance(error, FastLedgerError):
                    raise
                continue
            for (_, future), answer in zip(taken, answers, strict=True):
                _settle(future, answer)

    async def _send(self, calls: list[bytes], answer_bytes_max: int) -> list[_Answer]:
        """The answers to ``calls``, in their order; each call's id is its place."""
        numbered = [b'{"jsonrpc":"2.0","id":%d,%s' % item for item in enumerate(calls)]
        single = len(calls) == 1
        body = numbered[0] if single else b"[" + b",".join(numbered) + b"]"
        answer = await self._transport.exchange(
            "POST", RPC_PATH, body=body, headers=_HEADERS, answer_bytes_max=answer_bytes_max
        )
        try:
            answers = [_decode_one(answer.body)] if single else _decode_many(answer.body)
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
            raise UnreachableError(_NOT_JSON_RPC, transient=False) from None
        placed = {item.id: item for item in answers}
        if len(answers) != len(calls) or set(placed) != set(range(len(calls))):
            _raise_common_error(answers)
            raise UnreachableError("the node's answers are not those to the calls", transient=False)
        return [placed[number] for number in range(len(calls))]

    async def close(self) -> None:
        """Gives up what is under way."""
        running = list(self._running)
        for task in running:
            task.cancel()
        await asyncio.gather(*running, return_exceptions=True)
        _fail(list(self._waiting), UnreachableError("the client was closed", transient=False))
        self._waiting.clear()


def _encode_call(method: str, params: dict[str, Any]) -> bytes:
    """A call from behind its id on."""
    return b'"method":%s,"params":%s}' % (_encode(method), _encode(params))


def _raise_common_error(answers: list[_Answer]) -> None:
    """An error that names no call is about the request as a whole."""
    if len(answers) == 1 and answers[0].id is None and answers[0].error is not None:
        raise error_of(answers[0].error)


def _value(answer: _Answer) -> msgspec.Raw:
    if answer.error is not None:
        raise error_of(answer.error)
    if isinstance(answer.result, msgspec.UnsetType):
        raise UnreachableError(_NOT_JSON_RPC, transient=False)
    return answer.result


def _settle(future: "asyncio.Future[msgspec.Raw]", answer: _Answer) -> None:
    if future.done():
        return
    try:
        future.set_result(_value(answer))
    except FastLedgerError as error:
        future.set_exception(error)


def _fail(taken: "list[tuple[bytes, asyncio.Future[msgspec.Raw]]]", error: BaseException) -> None:
    """Everyone who waits gets an error of their own: one object raised twice would mix their tracebacks."""
    for _, future in taken:
        if future.done():
            continue
        if isinstance(error, UnreachableError):
            future.set_exception(UnreachableError(error.args[0], transient=error.transient))
        elif isinstance(error, FastLedgerError):
            future.set_exception(error)
        else:
            future.set_exception(UnreachableError("the client was closed", transient=False))


def decode_result(raw: msgspec.Raw | bytes, result: type[T]) -> T:
    """A result of the expected shape; raises ``UnreachableError`` for any other."""
    try:
        return msgspec.json.decode(raw, type=result)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        raise UnreachableError(
            "the node's result has another shape than this client expects", transient=False
        ) from None

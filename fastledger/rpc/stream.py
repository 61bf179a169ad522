"""Subscriptions over a WebSocket: pages of events as JSON-RPC notifications (SPEC-SUB-5..7).

Each subscription is a cursor into the chain and one small task. Nothing is read for a connection whose socket has not
taken what was sent before; whatever of a page does not fit is dropped and read again. A connection that takes nothing
for long is closed with a typed reason, and its cursors resume it.
"""

import asyncio
from collections import Counter
from collections.abc import Iterator
from typing import Any, cast

import msgspec
from aiohttp import WSCloseCode, WSMsgType, web

from fastledger.chain.reading.following import FeedFilter, FeedPage
from fastledger.chain.reading.query import query_terms
from fastledger.errors import BadRequestError, LedgerBusyError, LedgerClosedError
from fastledger.model.query import Query
from fastledger.node.feed import Subscription
from fastledger.node.service import NodeService
from fastledger.rpc.errors import RpcFault, rpc_error
from fastledger.rpc.http.connection import Connection
from fastledger.rpc.http.rate import RateLimits
from fastledger.rpc.http.routes import Call
from fastledger.rpc.jsonrpc import decode_params, decode_request, failure, success
from fastledger.rpc.options import RpcOptions
from fastledger.rpc.protocol import ENDED, METHOD_NOT_FOUND, Event, Events, Filter
from fastledger.rpc.views import (
    ClosedView,
    CloseParams,
    OpenedView,
    OpenParams,
    block_view,
    entry_view,
)

SLOW_CLOSE_CODE = 4008
_CHUNK_BYTES = 256 * 1024
_BUSY_RETRY_MS = 1_000
_CLOSE_S = 2.0
# The framework would wait for the socket by itself, without end; this file waits, with one.
_NEVER_WAIT = 1 << 40

_OPEN_PARAMS = msgspec.json.Decoder(OpenParams).decode
_CLOSE_PARAMS = msgspec.json.Decoder(CloseParams).decode


class Streams:
    """All WebSocket connections of a server."""

    def __init__(
        self, service: NodeService, options: RpcOptions, counters: "Counter[str]", rates: RateLimits
    ) -> None:
        """Takes the bounds in ``options``; every message counts as a request of its caller."""
        self.service = service
        self.options = options
        self.counters = counters
        self.rates = rates
        self.subscription_count = 0
        self._open: set[Stream] = set()

    @property
    def connection_count(self) -> int:
        """How many WebSocket connections are open."""
        return len(self._open)

    async def serve(self, call: Call) -> web.StreamResponse:
        """Takes a connection over as a WebSocket; returns when it ends."""
        socket = web.WebSocketResponse(
            compress=False,
            heartbeat=self.options.ping_interval_ms / 1000,
            max_msg_size=self.options.frame_bytes_max,
            timeout=_CLOSE_S,
            autoping=False,
            writer_limit=_NEVER_WAIT,
        )
        if not socket.can_prepare(call.request):
            raise BadRequestError("this path speaks WebSocket", status=426, headers={"Upgrade": "websocket"})
        await socket.prepare(call.request)
        stream = Stream(self, call, socket)
        self._open.add(stream)
        try:
            await stream.run()
        finally:
            self._open.discard(stream)
        return socket

    async def close(self) -> None:
        """Closes all connections, and tells each client that the node goes away."""
        await asyncio.gather(
            *(stream.close(WSCloseCode.GOING_AWAY, "stopping") for stream in list(self._open))
        )


class Stream:
    """One WebSocket connection and its subscriptions."""

    def __init__(self, streams: Streams, call: Call, socket: web.WebSocketResponse) -> None:
        self._streams = streams
        self._service = streams.service
        self._options = streams.options
        self._socket = socket
        self._caller = call.caller
        self._connection = cast(Connection, call.request.protocol)
        self._transport = call.request.transport
        self._subscriptions: dict[str, Subscription] = {}
        self._pumps: dict[str, asyncio.Task[None]] = {}
        # Behind what was sent; the subscription's own cursor is behind what was read.
        self._sent: dict[str, int] = {}
        self._opened = 0

    # What the client sends.

    async def run(self) -> None:
        """Answers the client until it closes the connection, or the node does."""
        try:
            while True:
                message = await self._socket.receive()
                if message.type is WSMsgType.TEXT:
                    await self._answer(message.data.encode())
                elif message.type is WSMsgType.BINARY:
                    await self.close(WSCloseCode.UNSUPPORTED_DATA, "text-only")
                elif message.type is WSMsgType.PING:
                    await self._socket.pong(message.data)
                    # As after any other answer: who pings and never reads is let go.
                    await self._drained()
                elif message.type is not WSMsgType.PONG:
                    return  # closed, or closed for what it sent: the reason has gone out
        except ConnectionError:
            pass
        finally:
            for name in list(self._subscriptions):
                self._forget(name)

    async def _answer(self, data: bytes) -> None:
        try:
            request = decode_request(data)
        except RpcFault as fault:
            await self._send(failure(None, fault.error))
            return
        try:
            self._streams.rates.take_request(self._caller)
            if request.method == "subscription.open":
                result: Any = self._open(decode_params(_OPEN_PARAMS, request, data, required=1))
            elif request.method == "subscription.close":
                result = self._close(decode_params(_CLOSE_PARAMS, request, data, required=1))
            else:
                raise RpcFault(METHOD_NOT_FOUND, "method-not-found", "there is no such method here")
            answer = success(request.id, result)
        except Exception as error:
            answer = failure(request.id, rpc_error(error))
        if answer:
            await self._send(answer)

    def _open(self, params: OpenParams) -> OpenedView:
        options = self._options
        if len(self._subscriptions) >= options.subscriptions_per_connection_max:
            raise LedgerBusyError("too many subscriptions of this connection", retry_after_ms=_BUSY_RETRY_MS)
        if self._streams.subscription_count >= options.subscriptions_max:
            raise LedgerBusyError("too many subscriptions", retry_after_ms=_BUSY_RETRY_MS)
        subscription = self._service.feed.follow(
            params.topic, cursor=params.cursor, conditions=conditions_of(params.filter)
        )
        self._opened += 1
        name = f"s{self._opened}"
        self._subscriptions[name] = subscription
        self._sent[name] = subscription.cursor
        self._streams.subscription_count += 1
        opened = OpenedView(name, subscription.cursor)
        self._pumps[name] = asyncio.get_running_loop().create_task(self._pump(name, subscription))
        return opened

    def _close(self, params: CloseParams) -> ClosedView:
        cursor = self._sent.get(params.subscription)
        if cursor is None:
            raise BadRequestError("there is no such subscription", status=404)
        self._forget(params.subscription)
        return ClosedView(params.subscription, cursor)

    def _forget(self, name: str) -> None:
        self._sent.pop(name, None)
        subscription = self._subscriptions.pop(name, None)
        if subscription is not None:
            self._streams.subscription_count -= 1
            subscription.close()
        pump = self._pumps.pop(name, None)
        if pump is not None and pump is not asyncio.current_task():
            pump.cancel()

    # What the client gets.

    async def _pump(self, name: str, subscription: Subscription) -> None:
        """Sends a subscription's pages, each once the one before has left the socket's buffer."""
        try:
            while True:
                await self._drained()
                try:
                    page = await subscription.next_page()
                except LedgerBusyError as busy:
                    await asyncio.sleep(busy.retry_after_ms / 1000)
                    subscription.wake()
                    continue
                await self._send_page(name, subscription, page)
        except ConnectionError:
            pass
        except LedgerClosedError:
            await self.close(WSCloseCode.GOING_AWAY, "stopping")
        except Exception as error:
            await self._end(name, error)

    async def _send_page(self, name: str, subscription: Subscription, page: FeedPage) -> None:
        chunks = await self._service.reads.run(lambda: list(_chunks(name, page)), heavy=True)
        for place, (encoded, next_cursor) in enumerate(chunks):
            self._streams.counters["stream events"] += 1
            await self._write(encoded)
            self._sent[name] = next_cursor
            if self._connection.is_write_paused and place + 1 < len(chunks):
                # The rest is dropped rather than kept: it stands in the chain.
                subscription.cursor = next_cursor
                subscription.wake()
                return

    async def _end(self, name: str, error: Exception) -> None:
        """Tells the client that a subscription cannot go on, and why."""
        params = {"subscription": name, "cursor": self._sent[name], "error": rpc_error(error)}
        notice = {"jsonrpc": "2.0", "method": ENDED, "params": params}
        self._forget(name)
        try:
            await self._send(msgspec.json.encode(notice))
        except ConnectionError:
            return

    # The socket.

    async def _send(self, data: bytes) -> None:
        await self._write(data)
        await self._drained()

    async def _write(self, data: bytes) -> None:
        if self._socket.closed:
            raise ConnectionResetError
        await self._socket.send_frame(data, WSMsgType.TEXT)

    async def _drained(self) -> None:
        """Returns once the socket took what was written; ends the connection where it does not in time."""
        if not self._connection.is_write_paused:
            return
        try:
            async with asyncio.timeout(self._options.write_timeout_ms / 1000):
                await self._connection.writable()
        except TimeoutError:
            self._end_slow()
            raise ConnectionResetError from None

    def _end_slow(self) -> None:
        """Closes the connection of a client that does not read.

        The reason stands behind what lies in the socket, for a client that wakes up; soon after the connection is
        aborted.
        """
        self._streams.counters["stream slow"] += 1
        transport = self._transport
        if transport is None or transport.is_closing():
            return
        reason = b"slow-consumer"
        head = bytes((0x88, len(reason) + 2)) + SLOW_CLOSE_CODE.to_bytes(2, "big")
        transport.write(head + reason)
        transport.close()
        asyncio.get_running_loop().call_later(self._options.write_timeout_ms / 1000, transport.abort)

    async def close(self, code: int, reason: str) -> None:
        """Closes the connection with a reason; a client that does not answer is cut off."""
        try:
            async with asyncio.timeout(_CLOSE_S):
                await self._socket.close(code=code, message=reason.encode())
        except (TimeoutError, ConnectionError, RuntimeError):
            if self._transport is not None:
                self._transport.abort()


def conditions_of(conditions: Filter | None) -> FeedFilter:
    """Returns the feed's form of the wire's filter; raises ``InputError`` (``BAD_QUERY``) for an unknown kind."""
    if conditions is None:
        return FeedFilter()
    signed_by = None if conditions.signed_by is None else bytes.fromhex(conditions.signed_by)
    subject = None if conditions.subject is None else bytes.fromhex(conditions.subject)
    query_terms(Query(kind=conditions.kind, signed_by=signed_by, subject=subject))
    return FeedFilter(kind=conditions.kind, signed_by=signed_by, subject=subject)


def _events(page: FeedPage) -> Iterator[tuple[Event, int]]:
    """Yields the events of a page, and about how many bytes each takes."""
    for block, first_seq in page.blocks:
        yield Event(block.height + 1, block=block_view(block, first_seq)), 512
    for entry in page.entries:
        yield Event(entry.seq + 1, entry=entry_view(entry)), 512 + len(entry.encoded) * 4 // 3


def _chunks(name: str, page: FeedPage) -> Iterator[tuple[bytes, int]]:
    """Yields the notifications of a page, each with the cursor behind it."""
    events: list[Event] = []
    byte_count = 0
    for event, length in _events(page):
        if events and byte_count + length > _CHUNK_BYTES:
            cursor = events[-1].cursor
            yield _notification(Events(name, events, cursor, caught_up=False)), cursor
            events, byte_count = [], 0
        events.append(event)
        byte_count += length
    yield _notification(Events(name, events, page.next_cursor, page.caught_up)), page.next_cursor


def _notification(events: Events) -> bytes:
    return b'{"jsonrpc":"2.0","method":"subscription.event","params":%b}' % msgspec.json.encode(events)

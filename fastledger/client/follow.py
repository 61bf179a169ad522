"""Following a topic across reconnects, each event once and none left out (SPEC-CLI-6)."""

import time
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import TYPE_CHECKING, Any

import msgspec

from fastledger.client.calls import decode_result
from fastledger.client.faults import error_of
from fastledger.client.http import HttpTransport
from fastledger.client.retry import Retry, is_transient
from fastledger.client.views import block_of, entry_of
from fastledger.errors import FastLedgerError, UnreachableError
from fastledger.model.following import FollowEvent, FollowPage
from fastledger.model.query import Query, Topic, check_topic
from fastledger.rpc.protocol import BlockView, Events, Filter, RpcError

if TYPE_CHECKING:
    import aiohttp

SUBSCRIBE_PATH = "/v1/subscribe"
SUBSCRIBE = "subscription.open"
EVENT = "subscription.event"
ENDED = "subscription.ended"
# What may come before the answer to a subscription: nothing but it, so a few messages are already too many.
_STRANGERS_MAX = 16


class _Subscribed(msgspec.Struct):
    subscription: str
    cursor: int


class _Ended(msgspec.Struct):
    error: RpcError


class _Message(msgspec.Struct):
    id: int | None = None
    method: str | None = None
    params: msgspec.Raw | msgspec.UnsetType = msgspec.UNSET
    result: msgspec.Raw | msgspec.UnsetType = msgspec.UNSET
    error: RpcError | None = None


_decode = msgspec.json.Decoder(_Message).decode


class Follower:
    """One subscription; remembers the cursor behind what it gave out."""

    def __init__(
        self,
        transport: HttpTransport,
        retry: Retry,
        topic: Topic,
        cursor: int | None,
        conditions: Filter | None,
    ) -> None:
        """``cursor`` None: from now on."""
        self._transport = transport
        self._retry = retry
        self._topic = topic
        self._conditions = conditions
        self.cursor = cursor

    async def pages(self) -> AsyncGenerator[FollowPage, None]:
        """Pages without end; raises the last error once nothing was heard for the deadline of the retries."""
        failures, heard = 0, time.monotonic()
        while True:
            try:
                async with aclosing(self._connected()) as pages:
                    async for page in pages:
                        failures, heard = 0, time.monotonic()
                        yield page
                        heard = time.monotonic()
            except FastLedgerError as error:
                wait_ms = self._retry.wait_ms(failures, error)
                silent_ms = (time.monotonic() - heard) * 1000
                if not is_transient(error) or silent_ms + wait_ms > self._retry.deadline_ms:
                    raise
                failures += 1
            await self._retry.pause(wait_ms)

    async def _connected(self) -> AsyncGenerator[FollowPage, None]:
        """The pages of one connection, from the cursor on; ends by raising."""
        async with self._transport.websocket(SUBSCRIBE_PATH) as socket:
            subscribed, early = await self._subscribe(socket)
            if self.cursor is None:
                self.cursor = subscribed.cursor
            for message in early:
                yield self._accept(message)
            while True:
                message = await _receive(socket)
                if message.method == EVENT:
                    yield self._accept(message)
                elif message.method == ENDED:
                    raise error_of(decode_result(_params(message), _Ended).error)
                elif message.error is not None:
                    raise error_of(message.error)

    async def _subscribe(self, socket: "aiohttp.ClientWebSocketResponse") -> tuple[_Subscribed, list[_Message]]:
        """The node's answer to the subscription, and the pages that overtook it."""
        params: dict[str, Any] = {"topic": self._topic}
        if self.cursor is not None:
            params["cursor"] = self.cursor
        if self._conditions is not None:
            params["filter"] = self._conditions
        request = {"jsonrpc": "2.0", "id": 1, "method": SUBSCRIBE, "params": params}
        await socket.send_str(msgspec.json.encode(request).decode())
        early: list[_Message] = []
        for _ in range(_STRANGERS_MAX):
            message = await _receive(socket)
            if message.error is not None:
                raise error_of(message.error)
            if message.id == 1 and not isinstance(message.result, msgspec.UnsetType):
                return decode_result(message.result, _Subscribed), early
            early.append(message)
        raise UnreachableError("the node does not answer to a subscription", transient=False)

    def _accept(self, message: _Message) -> FollowPage:
        """The new events of a page; raises where one is missing, and the next connection asks for it again."""
        page = decode_result(_params(message), Events)
        events: list[FollowEvent] = []
        cursor = self.cursor or 0
        for event in page.events:
            if event.cursor <= cursor:
                continue  # given out before
            place = self._place(event.block, None if event.entry is None else event.entry.seq)
            if self._is_whole and place != cursor:
                raise UnreachableError(f"the node leaves out what follows cursor {cursor}")
            cursor = event.cursor
            entry = None if event.entry is None else entry_of(event.entry)
            block = None if event.block is None else block_of(event.block)
            events.append(FollowEvent(cursor, entry, block))
        self.cursor = max(cursor, page.next_cursor)
        return FollowPage(events, self.cursor, page.caught_up)

    @property
    def _is_whole(self) -> bool:
        """Whether the topic gives every one of its numbers, so that a gap shows."""
        return self._topic == "blocks" or (self._topic == "transactions" and self._conditions is None)

    def _place(self, block: BlockView | None, seq: int | None) -> int:
        place = block.height if self._topic == "blocks" and block is not None else seq
        if place is None:
            raise UnreachableError("the node sends an event of another topic", transient=False)
        return place


def conditions_of(
    topic: Topic, kind: str | None, signed_by: bytes | None, subject: bytes | None
) -> Filter | None:
    """Returns the wire's form of conditions; raises ``InputError`` with ``BAD_QUERY`` where they make no sense."""
    has_conditions = (kind, signed_by, subject) != (None, None, None)
    check_topic(topic, has_conditions=has_conditions)
    if not has_conditions:
        return None
    Query(signed_by=signed_by, subject=subject).check()
    return Filter(
        kind=kind,
        signed_by=None if signed_by is None else signed_by.hex(),
        subject=None if subject is None else subject.hex(),
    )


def _params(message: _Message) -> msgspec.Raw:
    if isinstance(message.params, msgspec.UnsetType):
        raise UnreachableError("the node sends a notification without content", transient=False)
    return message.params


async def _receive(socket: "aiohttp.ClientWebSocketResponse") -> _Message:
    import aiohttp

    message = await socket.receive()
    if message.type is not aiohttp.WSMsgType.TEXT:
        raise UnreachableError("the connection to the node broke")
    try:
        return _decode(message.data)
    except (msgspec.MsgspecError, RecursionError):
        raise UnreachableError("the node's message is not JSON-RPC 2.0", transient=False) from None

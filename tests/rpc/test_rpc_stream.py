"""Subscriptions over a WebSocket: cursors that resume, filters, slow readers, bounds, and the node's end."""

import asyncio
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import msgspec
import pytest
import pytest_asyncio
from node_world import NodeWorld, serve_world, until
from test_rpc import registrations
from test_rpc_hostile import frame, upgraded
from world import new_wallet

from fastledger import Code
from fastledger.rpc import stream
from fastledger.rpc.options import RateOptions, RpcOptions
from fastledger.rpc.protocol import Events
from fastledger.subjects.identity import UNKNOWN_SIGNER

OPTIONS = RpcOptions(subscriptions_per_connection_max=3, subscriptions_max=4, write_timeout_ms=300)


@pytest_asyncio.fixture
async def node(tmp_path: Path) -> AsyncIterator[NodeWorld]:
    async with serve_world(tmp_path / "ledger", options=OPTIONS) as made:
        yield made


class Follower:
    """One connection that calls and collects."""

    def __init__(self, socket: aiohttp.ClientWebSocketResponse) -> None:
        self.socket = socket
        self.pages: list[Events] = []
        self.notices: list[dict[str, Any]] = []
        self._calls = 0

    async def _receive(self) -> dict[str, Any] | None:
        """The next answer; events are put aside."""
        async with asyncio.timeout(20):
            message: dict[str, Any] = msgspec.json.decode(await self.socket.receive_str())
        if message.get("method") == "subscription.event":
            self.pages.append(msgspec.convert(message["params"], Events))
            return None
        if "method" in message:
            self.notices.append(message)
            return None
        return message

    async def call(self, method: str, **params: Any) -> dict[str, Any]:
        self._calls += 1
        request = {"jsonrpc": "2.0", "id": self._calls, "method": method, "params": params}
        await self.socket.send_str(msgspec.json.encode(request).decode())
        while (answer := await self._receive()) is None:
            pass
        assert answer["id"] == self._calls
        return answer

    async def open(self, topic: str, **params: Any) -> dict[str, Any]:
        opened: dict[str, Any] = (await self.call("subscription.open", topic=topic, **params))["result"]
        return opened

    async def caught_up(self, name: str, cursor: int) -> list[Any]:
        """The events of a subscription up to ``cursor``."""
        while not any(page.subscription == name and page.next_cursor >= cursor for page in self.pages):
            await self._receive()
        return [event for page in self.pages if page.subscription == name for event in page.events]


@asynccontextmanager
async def following(node: NodeWorld) -> AsyncIterator[Follower]:
    async with (
        aiohttp.ClientSession() as session,
        session.ws_connect(f"{node.url}/v1/subscribe") as socket,
    ):
        yield Follower(socket)


async def submit(node: NodeWorld, count: int) -> list[str]:
    transactions = registrations(node.world, count)
    await node.service.ingest.submit_batch([tx.encoded for tx in transactions])
    return [tx.txid.hex() for tx in transactions]


async def test_every_event_once_from_the_cursor_on(node: NodeWorld) -> None:  # SPEC-SUB-1, SPEC-SUB-5
    ledger = node.world.ledger
    async with following(node) as follower:
        opened = await follower.open("transactions", cursor=0)
        assert opened == {"subscription": "s1", "cursor": 0}
        await submit(node, 5)
        await submit(node, 3)
        events = await follower.caught_up("s1", ledger.transaction_count)
        assert [event.entry.seq for event in events] == list(range(ledger.transaction_count))
        assert [event.cursor for event in events] == list(range(1, ledger.transaction_count + 1))
        closed = await follower.call("subscription.close", subscription="s1")
        assert closed["result"] == {"subscription": "s1", "cursor": ledger.transaction_count}
        assert (await follower.call("subscription.close", subscription="s1"))["error"][
            "code"
        ] == Code.BAD_REQUEST
    middle = events[3].cursor
    async with following(node) as follower:  # SPEC-SUB-2
        await follower.open("transactions", cursor=middle)
        again = await follower.caught_up("s1", ledger.transaction_count)
        assert again == events[4:]


async def test_blocks_and_filters_and_alerts(node: NodeWorld) -> None:  # SPEC-SUB-4, SPEC-SUB-5
    world = node.world
    async with following(node) as follower:
        blocks = await follower.open("blocks", cursor=0)
        doctor = world.doctor.identity.hex()
        filtered = await follower.open(
            "transactions", cursor=0, filter={"kind": "identity.endorse", "subject": doctor}
        )
        alerts = await follower.open("alerts")
        assert alerts["cursor"] == world.ledger.transaction_count
        refused = new_wallet(world.clock).join(world.ledger.chain_id).open_folders("vitals")
        await node.service.ingest.submit(refused.encoded)
        events = await follower.caught_up(blocks["subscription"], world.ledger.height + 1)
        assert [event.block.height for event in events] == list(range(world.ledger.height + 1))
        assert events[-1].block.block_id == world.ledger.head.hex()
        events = await follower.caught_up(filtered["subscription"], 8)
        assert [event.entry.kind for event in events] == ["identity.endorse"]
        events = await follower.caught_up(alerts["subscription"], world.ledger.transaction_count)
        assert [(event.entry.txid, event.entry.code) for event in events] == [
            (refused.txid.hex(), UNKNOWN_SIGNER)
        ]


async def test_a_cursor_never_leaves_behind_what_was_not_sent(
    node: NodeWorld, monkeypatch: pytest.MonkeyPatch
) -> None:  # SPEC-SUB-2
    encoding, may_encode = threading.Event(), threading.Event()
    chunks = stream._chunks

    def held(name: str, page: Any) -> Any:
        encoding.set()
        may_encode.wait(20)
        return chunks(name, page)

    monkeypatch.setattr(stream, "_chunks", held)
    async with following(node) as follower:
        await follower.open("transactions", cursor=0)
        await until(encoding.is_set)
        closed = await follower.call("subscription.close", subscription="s1")
        may_encode.set()
        assert not follower.pages
        assert closed["result"] == {"subscription": "s1", "cursor": 0}


async def test_messages_count_as_requests(tmp_path: Path) -> None:  # SPEC-RPC-7
    options = RpcOptions(rate=RateOptions(requests_per_second=0.001, requests_burst=3))
    async with serve_world(tmp_path / "ledger", options=options) as node, following(node) as follower:
        for _ in range(2):
            assert "result" in await follower.call("subscription.open", topic="blocks")
        refused = (await follower.call("subscription.open", topic="blocks"))["error"]
        assert refused["code"] == Code.RATE_LIMITED
        assert refused["data"]["retry_after_ms"] > 0
        assert node.server.streams.subscription_count == 2


async def test_what_makes_no_sense_is_refused_at_once(node: NodeWorld) -> None:
    async with following(node) as follower:
        for params, code in (
            ({"topic": "weather"}, -32602),
            ({"topic": "blocks", "filter": {"color": "red"}}, -32602),
            ({"topic": "blocks", "cursor": -1}, -32602),
            ({"topic": "transactions", "filter": {"kind": "no.such"}}, Code.BAD_QUERY),
        ):
            assert (await follower.call("subscription.open", **params))["error"]["code"] == code
        assert (await follower.call("transaction.get"))["error"]["code"] == -32601


async def test_subscriptions_are_bounded(node: NodeWorld) -> None:  # SPEC-SUB-7
    async with following(node) as first, following(node) as second:
        for _ in range(3):
            await first.open("blocks")
        assert (await first.call("subscription.open", topic="blocks"))["error"]["code"] == Code.BUSY
        await second.open("blocks")
        assert (await second.call("subscription.open", topic="blocks"))["error"]["code"] == Code.BUSY
        await first.call("subscription.close", subscription="s2")
        await second.open("blocks")
    await until(lambda: not (node.server.streams.subscription_count or node.service.feed.subscription_count))


async def test_a_reader_that_does_not_read_is_let_go_and_resumes(
    tmp_path: Path,
) -> None:  # SPEC-SUB-3, SPEC-SUB-6
    async with serve_world(tmp_path / "ledger", options=OPTIONS) as node:
        reads = 0
        read_page = node.service.feed.read_page

        async def counting(subscription: Any) -> Any:
            nonlocal reads
            reads += 1
            return await read_page(subscription)

        node.service.feed.read_page = counting  # type: ignore[method-assign]
        for _ in range(4):
            await submit(node, 1_000)
        slow = await upgraded(node)
        request = b'{"jsonrpc":"2.0","id":1,"method":"subscription.open","params":{"topic":"transactions","cursor":0}}'
        slow.reader._transport.pause_reading()  # type: ignore[attr-defined]
        for _ in range(3):
            await slow.send(frame(1, request))
        await until(lambda: node.server.counters["stream slow"])
        pages = (node.world.ledger.transaction_count + 255) // 256
        assert reads < 3 * pages, "nothing is read for a socket that takes nothing"
        async with following(node) as other:
            await other.open("blocks")
        slow.reader._transport.resume_reading()  # type: ignore[attr-defined]
        rest = await slow.rest()
        assert rest.endswith(b"\x0f\xa8slow-consumer") or b"subscription.event" in rest
        async with following(node) as again:
            await again.open("transactions", cursor=17)
            events = await again.caught_up("s1", node.world.ledger.transaction_count)
            assert [event.entry.seq for event in events] == list(
                range(17, node.world.ledger.transaction_count)
            )


async def test_followers_hear_that_the_node_stops(tmp_path: Path) -> None:
    async with serve_world(tmp_path / "ledger", options=OPTIONS) as node, following(node) as follower:
        await follower.open("blocks")
        stopping = asyncio.create_task(node.server.stop())
        async with asyncio.timeout(20):
            while (message := await follower.socket.receive()).type is aiohttp.WSMsgType.TEXT:
                pass
        assert (message.type, message.data, message.extra) == (aiohttp.WSMsgType.CLOSE, 1001, "stopping")
        await stopping


async def test_pings_find_out_who_has_gone(tmp_path: Path) -> None:  # SPEC-SUB-7
    options = RpcOptions(ping_interval_ms=100)
    async with serve_world(tmp_path / "ledger", options=options) as node:
        await upgraded(node)  # never answers a ping
        async with following(node) as follower:
            receiving = asyncio.create_task(follower.socket.receive())
            await until(lambda: node.server.streams.connection_count == 1)
            receiving.cancel()

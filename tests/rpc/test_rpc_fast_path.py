"""The fast path of a read answers as the long one does, whatever else comes over the connection."""

import asyncio
import itertools
from collections.abc import AsyncIterator, Sequence
from hashlib import sha256
from pathlib import Path

import msgspec
import pytest
import pytest_asyncio
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from msgspec.structs import replace
from node_world import NodeWorld, serve_world, until

from fastledger.rpc.http.connection import Connection
from fastledger.rpc.options import AccessOptions, ClientRule, RateOptions, RpcOptions

TOKEN = "a token of a test"
RULE = ClientRule(name="ward", roles=frozenset({"reader"}), token_sha256=sha256(TOKEN.encode()).hexdigest())


@pytest_asyncio.fixture
async def node(tmp_path: Path) -> AsyncIterator[NodeWorld]:
    async with serve_world(tmp_path / "ledger") as made:
        yield made


def call(number: int, method: str = "block.get", params: str = '{"height":1}', *headers: str) -> bytes:
    body = f'{{"jsonrpc":"2.0","id":{number},"method":"{method}","params":{params}}}'.encode()
    fields = ("Host: 127.0.0.1", "Content-Type: application/json", *headers, f"Content-Length: {len(body)}")
    return "\r\n".join(("POST /v1/rpc HTTP/1.1", *fields, "", "")).encode() + body


class Client:
    """A connection whose answers are read one by one."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer

    @classmethod
    async def connect(cls, node: NodeWorld) -> "Client":
        return cls(*await asyncio.open_connection("127.0.0.1", node.server.port))

    async def answer(self) -> tuple[int, dict[str, object]]:
        async with asyncio.timeout(30):
            head = (await self.reader.readuntil(b"\r\n\r\n")).decode()
            length = int(head.lower().partition("content-length:")[2].split()[0])
            return int(head.split()[1]), msgspec.json.decode(await self.reader.readexactly(length))

    async def ask(self, request: bytes) -> tuple[int, dict[str, object]]:
        self.writer.write(request)
        return await self.answer()


def short(node: NodeWorld) -> int:
    return node.server.counters["rpc fast"]


async def test_a_known_head_takes_the_fast_path_and_answers_the_same(node: NodeWorld) -> None:  # SPEC-RPC-12
    client = await Client.connect(node)
    first = await client.ask(call(1))
    assert short(node) == 0
    assert await client.ask(call(1)) == first
    assert short(node) == 1
    # Another connection with the same head, from its first request on.
    other = await Client.connect(node)
    assert await other.ask(call(1)) == await other.ask(call(1)) == first
    assert short(node) == 3
    assert node.server.listener.requests_count == 4
    assert node.server.counters["block.get"] == 4


CASES = [
    ("block.get", '{"height":1}'),
    ("block.get", '{"height":9999999}'),
    ("block.get", '{"height":-1}'),
    ("block.get", '{"height":1,"height":2}'),
    ("block.get", '{"heigth":1}'),
    ("block.get", '["\\ud800"]'),
    ("transaction.get", f'{{"txid":"{"00" * 32}"}}'),
    ("transaction.get", '{"txid":"00"}'),
    ("transaction.status", f'{{"txid":"{"00" * 32}"}}'),
    ("no.such.method", "{}"),
    ("identity.get", f'{{"identity":"{"00" * 16}"}}'),
]


@pytest.mark.parametrize(("method", "params"), CASES)
async def test_errors_are_the_same_on_both_ways(node: NodeWorld, method: str, params: str) -> None:
    slow_path = await (await Client.connect(node)).ask(call(7, method, params))
    client = await Client.connect(node)
    await client.ask(call(7, method, params))
    assert await client.ask(call(7, method, params)) == slow_path


async def test_roles_are_looked_at_with_every_request(tmp_path: Path) -> None:  # SPEC-RPC-6
    access = AccessOptions(anonymous_roles=frozenset(), clients=[RULE])
    async with serve_world(tmp_path / "ledger", access=access) as node:
        request = call(1, "block.get", "{}", f"Authorization: Bearer {TOKEN}")
        client = await Client.connect(node)
        assert (await client.ask(request))[0] == 200
        assert (await client.ask(request))[0] == 200
        assert short(node) == 1
        node.server.access.replace(replace(access, clients=[replace(RULE, roles=frozenset({"operator"}))]))
        assert (await client.ask(request))[0] == 403
        node.server.access.replace(replace(access, clients=[]))
        assert (await client.ask(request))[0] == 401
        node.server.access.replace(access)
        assert (await client.ask(request))[0] == 200
        # Without the token the head is another.
        assert (await client.ask(call(1, "block.get", "{}")))[0] == 401


async def test_rates_hold_on_the_fast_path(tmp_path: Path) -> None:  # SPEC-RPC-7
    options = RpcOptions(rate=RateOptions(requests_per_second=0.001, requests_burst=3))
    async with serve_world(tmp_path / "ledger", options=options) as node:
        client = await Client.connect(node)
        assert [(await client.ask(call(1)))[0] for _ in range(5)] == [200, 200, 200, 429, 429]
        assert short(node) == 4
        assert node.server.rates.refused["anonymous"] == 2


MIXED = [
    call(1),
    call(2),
    call(3, "ledger.info", "{}"),
    call(4, "block.header", '{"height":0}'),
    call(55, "block.get", '{"height":99}'),
    call(6),
    b"GET /health/live HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n",
    call(7),
]


def number_of(answer: dict[str, object]) -> object:
    return answer.get("id", "live")


async def numbers(client: Client, pieces: Sequence[bytes], count: int) -> list[object]:
    for piece in pieces:
        client.writer.write(piece)
        await asyncio.sleep(0)
    return [number_of((await client.answer())[1]) for _ in range(count)]


async def test_however_a_stream_of_requests_is_cut_the_answers_keep_their_order(
    tmp_path: Path,
) -> None:  # SPEC-RPC-12
    """Requests in one piece, in pieces, several in a piece, and one before the answer to the last."""
    async with serve_world(tmp_path / "ledger") as node:
        loop = asyncio.get_running_loop()

        @settings(
            max_examples=60,
            deadline=None,
            suppress_health_check=[HealthCheck.function_scoped_fixture],
        )
        @given(
            chosen=st.lists(st.sampled_from(MIXED), min_size=1, max_size=12),
            cuts=st.lists(st.integers(0, 3_000), max_size=6),
            at_bounds=st.booleans(),
        )
        def check(chosen: list[bytes], cuts: list[int], at_bounds: bool) -> None:
            async def run() -> None:
                client = await Client.connect(node)
                # So that the heads are known and the connection stands at the beginning of a request.
                await client.ask(call(1))
                stream = b"".join(chosen)
                places = {cut for cut in cuts if 0 < cut < len(stream)}
                if at_bounds:
                    place = 0
                    for request in chosen:
                        place += len(request)
                        places.add(place)
                edges = [0, *sorted(places), len(stream)]
                pieces = [stream[a:b] for a, b in itertools.pairwise(edges) if a < b]
                expected = [number_of_request(request) for request in chosen]
                assert await numbers(client, pieces, len(chosen)) == expected
                client.writer.close()

            asyncio.run_coroutine_threadsafe(run(), loop).result(30)

        await asyncio.to_thread(check)
        assert short(node) > 0


def number_of_request(request: bytes) -> object:
    if request.startswith(b"GET"):
        return "live"
    return msgspec.json.decode(request.partition(b"\r\n\r\n")[2])["id"]


@pytest.mark.parametrize(
    "prefix",
    [
        b"POST /v1/rpc HTTP/1.1\r\nX-Before: ",
        b"POST /v1/rpc HTTP/1.1\r\nContent-Type: application/json\r\nAuthorization: Bearer x\r\nX-Before: ",
        b"GET /health/live HTTP/1.1\r\nX-Before: ",
        b"POST /v1/rpc HTTP/1.1\r\nContent-Type: application/json\r\nContent-Length: 400\r\n\r\n",
    ],
)
async def test_a_known_head_behind_part_of_another_request_is_no_request(
    node: NodeWorld, prefix: bytes
) -> None:
    teacher = await Client.connect(node)
    await teacher.ask(call(1))
    await teacher.ask(call(1))
    client = await Client.connect(node)
    await client.ask(call(1))
    before = short(node)
    client.writer.write(prefix)
    await asyncio.sleep(0.05)
    client.writer.write(call(1))
    await asyncio.sleep(0.05)
    client.writer.write(call(1))
    await asyncio.sleep(0.05)
    client.writer.close()
    assert short(node) == before


async def test_what_a_request_before_says_is_not_learned_for_the_next(tmp_path: Path) -> None:
    """Two requests at a time, the first with a token: the second one's head must not inherit it."""
    access = AccessOptions(anonymous_roles=frozenset(), clients=[RULE])
    async with serve_world(tmp_path / "ledger", access=access) as node:
        client = await Client.connect(node)
        client.writer.write(call(1, "block.get", "{}", f"Authorization: Bearer {TOKEN}"))
        await asyncio.sleep(0)
        client.writer.write(call(1, "block.get", "{}"))
        assert [(await client.answer())[0] for _ in range(2)] == [200, 401]
        assert [(await client.ask(call(1, "block.get", "{}")))[0] for _ in range(3)] == [401, 401, 401]


def only_connection(node: NodeWorld) -> Connection:
    (connection,) = node.server.listener.connections
    assert isinstance(connection, Connection)
    return connection


async def test_a_client_that_does_not_read_is_disconnected(tmp_path: Path) -> None:  # SPEC-RPC-7
    options = RpcOptions(write_timeout_ms=100)
    async with serve_world(tmp_path / "ledger", options=options) as node:
        client = await Client.connect(node)
        await client.ask(call(1))
        # As the transport does where what is written lies unread.
        only_connection(node).pause_writing()
        client.writer.write(call(1))
        await until(lambda: short(node) == 1)
        client.writer.write(call(1))
        await until(lambda: not node.server.listener.connections)
        assert node.server.counters["connections_undrained"] == 1
        assert node.server.listener.unread_bytes == 0
        assert short(node) == 1


async def test_nothing_is_read_before_the_last_answer_is_taken(node: NodeWorld) -> None:  # SPEC-RPC-7
    client = await Client.connect(node)
    await client.ask(call(1))
    connection = only_connection(node)
    connection.pause_writing()
    await client.ask(call(1))
    client.writer.write(call(2))
    await asyncio.sleep(0.05)
    assert short(node) == 1
    connection.resume_writing()
    assert (await client.answer())[1]["id"] == 2
    assert short(node) == 2


async def test_a_read_under_way_is_answered_when_the_server_stops(node: NodeWorld) -> None:
    client = await Client.connect(node)
    expected = await client.ask(call(1))
    client.writer.write(call(1))
    await until(lambda: short(node) == 1)
    await node.server.stop()
    assert await client.answer() == expected

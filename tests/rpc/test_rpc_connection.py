"""Connections stand on what aiohttp makes public, and their bookkeeping of requests and times holds on every way."""

import ast
import asyncio
import inspect
from pathlib import Path

import pytest
from aiohttp import web
from node_world import serve_world, until
from test_rpc_fast_path import Client, call, short
from test_rpc_hostile import CBOR, SMALL, Peer, post

from fastledger.rpc.http import answers, connection
from fastledger.rpc.http.answers import Answer, Streamed
from fastledger.rpc.http.connection import Connection, Listener
from fastledger.rpc.server import RpcServer

HTTP = sorted((Path(inspect.getfile(connection)).parent.parent).rglob("*.py"))
# Of ours -> of aiohttp's, and the names that ours has in the place of aiohttp's.
OVERRIDDEN: dict[type, set[str]] = {
    Connection: {
        *("connection_made", "connection_lost", "data_received", "pause_writing", "resume_writing"),
        *("close", "force_close", "shutdown", "handle_error", "log_exception", "__init__"),
    },
    Listener: {"__call__", "__init__"},
    Answer: {"status", "keep_alive", "prepare", "write_eof", "__init__"},
    Streamed: {"prepare", "write_eof"},
}


def private_names_of_others(tree: ast.AST) -> set[str]:
    """``x._name`` where ``x`` is neither ``self`` nor ``cls``."""
    return {
        node.attr
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute)
        and node.attr.startswith("_")
        and not node.attr.startswith("__")
        and not (isinstance(node.value, ast.Name) and node.value.id in {"self", "cls"})
    }


def private_names_of_self(tree: ast.AST) -> set[str]:
    """``self._name`` and ``super()._name``, wherever they stand."""
    return {
        node.attr
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute) and node.attr.startswith("_") and not node.attr.startswith("__")
    }


@pytest.mark.parametrize("path", HTTP, ids=lambda path: path.name)
def test_no_private_name_of_the_framework_is_used(path: Path) -> None:
    assert private_names_of_others(ast.parse(path.read_text())) == set()


@pytest.mark.parametrize("ours", OVERRIDDEN, ids=lambda ours: ours.__name__)
def test_what_is_overridden_is_there_and_public_and_nothing_else_is_shadowed(ours: type) -> None:
    """Fails where a release of aiohttp renames what is overridden, or takes a name of ours for itself."""
    (base,) = ours.__bases__
    # What instances have besides: what __init__ and the methods assign.
    theirs = set(dir(base)) | private_names_of_self(ast.parse(inspect.getsource(base)))
    own = {name for name in vars(ours) if not name.startswith("__")} | (OVERRIDDEN[ours] & set(vars(ours)))
    own |= private_names_of_self(ast.parse(inspect.getsource(ours)))
    assert (own & theirs) - {"_abc_impl"} == OVERRIDDEN[ours]
    for name in OVERRIDDEN[ours] - {"__init__", "__call__"}:
        assert not name.startswith("_")
    assert base in {web.RequestHandler, web.Server, web.StreamResponse}


def test_the_check_of_private_names_sees_them() -> None:
    assert private_names_of_others(ast.parse("request._message.path; self._mine; self._a._b")) == {"_message", "_b"}
    assert private_names_of_self(ast.parse("super()._keepalive(); self._mine = 1")) == {"_keepalive", "_mine"}
    assert web.RequestHandler in Connection.__mro__ and answers.web is web


async def test_a_connection_finds_back_to_the_fast_path(tmp_path: Path) -> None:  # SPEC-RPC-12
    """After other requests too, and after bodies that came in pieces; not after one whose end is not in its head."""
    async with serve_world(tmp_path / "ledger") as node:
        client = await Client.connect(node)
        expected = await client.ask(call(1))
        batch = post(b"/v1/transactions", b"\x40" * 9, CBOR)
        for request in (
            b"GET /health/live HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n",
            call(1, "ledger.info", "{}"),
            post(b"/v1/nowhere", b"x" * 5_000, CBOR),
        ):
            await client.ask(request)
            before = short(node)
            assert await client.ask(call(1)) == expected
            assert short(node) == before + 1
        for request in (call(2, "ledger.info", '{"":"' + "x" * 2_000 + '"}'), batch):
            client.writer.write(request[:-7])
            await asyncio.sleep(0.02)
            client.writer.write(request[-7:])
            await client.answer() if request is not batch else await client.reader.readuntil(b'"}}}')
            before = short(node)
            assert await client.ask(call(1)) == expected
            assert short(node) == before + 1
        chunked = b"POST /v1/rpc HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n"
        chunked += b"Transfer-Encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\n\r\n"
        await client.ask(chunked)
        before = short(node)
        assert await client.ask(call(1)) == expected
        assert short(node) == before


async def test_bytes_ahead_of_an_answer_are_the_next_request_s_beginning(tmp_path: Path) -> None:  # SPEC-RPC-12
    """A request and the half of another in one piece: the other's rest is no request of its own."""
    async with serve_world(tmp_path / "ledger") as node:
        client = await Client.connect(node)
        await client.ask(call(1))
        before = short(node)
        stream = call(1, "ledger.info", "{}") + b"POST /v1/rpc HTTP/1.1\r\nX-Before: "
        assert (await client.ask(stream))[1]["id"] == 1
        client.writer.write(call(2))
        await asyncio.sleep(0.05)
        assert short(node) == before


async def test_short_reads_keep_a_connection_open_and_silence_ends_it(tmp_path: Path) -> None:  # SPEC-RPC-7
    async with serve_world(tmp_path / "ledger", options=SMALL) as node:
        client = await Client.connect(node)
        await client.ask(call(1))
        for _ in range(8):
            await asyncio.sleep(0.2)  # 1.6 s in all, and the idle time is 1 s
            await client.ask(call(1))
        assert short(node) == 8
        loop = asyncio.get_running_loop()
        begin = loop.time()
        assert await client.reader.read() == b""
        assert loop.time() - begin > 0.9


@pytest.mark.parametrize("first", [call(1), b"GET /health/live HTTP/1.1\r\nHost: a\r\n\r\n"])
async def test_headers_are_timed_on_a_connection_that_was_used(tmp_path: Path, first: bytes) -> None:  # SPEC-RPC-7
    async with serve_world(tmp_path / "ledger", options=SMALL) as node:
        client = await Client.connect(node)
        await client.ask(first)
        await client.ask(first)
        client.writer.write(b"POST /v1/rpc HTTP/1.1\r\nX-Slow: ")
        answer = await client.reader.read()
        assert answer.startswith(b"HTTP/1.1 408 ")
        assert node.server.counters["header_timeouts"] == 1


async def test_a_body_that_nobody_reads_ends_the_connection(tmp_path: Path) -> None:
    """The answer says so: what comes of the body cannot be taken for a request."""
    async with serve_world(tmp_path / "ledger", options=SMALL) as node:
        peer = await Peer.connect(node)
        await peer.send(b"GET /health/live HTTP/1.1\r\nHost: localhost\r\nContent-Length: 9\r\n\r\n")
        answer = await peer.rest()
        assert answer.startswith(b"HTTP/1.1 200 ")
        assert b"\r\nConnection: close\r\n" in answer


async def test_the_server_stops_with_idle_and_silent_connections(tmp_path: Path) -> None:  # SPEC-RPC-10
    async with serve_world(tmp_path / "ledger") as node:
        clients = [await Client.connect(node) for _ in range(5)]
        for client in clients[:3]:
            await client.ask(call(1))
        await until(lambda: len(node.server.listener.connections) == 5)
        async with asyncio.timeout(5):
            await node.server.stop()
            for client in clients:
                assert await client.reader.read() == b""


async def test_servers_of_a_program_take_ports_that_are_free(tmp_path: Path) -> None:
    """An embedded server without options stands beside a node on the default port, and beside others of its kind."""
    async with serve_world(tmp_path / "ledger") as world:
        servers = [RpcServer(world.service) for _ in range(3)]
        for server in servers:
            await server.start()
        assert len({server.port for server in servers}) == 3
        for server in servers:
            await server.stop()

"""Hostile clients on real sockets: one clear answer each, bounded memory, and another client is served all along."""

import asyncio
import os
import struct
import zlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from hashlib import sha256
from pathlib import Path

import msgspec
import pytest
import pytest_asyncio
from msgspec.structs import replace
from node_world import NodeWorld, RawClient, raw_client, serve_world, until
from test_rpc import SEQUENCE, registrations

from fastledger import Code
from fastledger.node.authority import CertificateAuthority
from fastledger.node.options import ServerTlsOptions
from fastledger.node.tls import ServerTls, client_context
from fastledger.rpc.options import AccessOptions, ClientRule, RpcOptions
from fastledger.rpc.protocol import decode_outcomes

SMALL = RpcOptions(
    header_timeout_ms=200,
    request_timeout_ms=300,
    idle_timeout_ms=1_000,
    write_timeout_ms=300,
    json_bytes_max=64 * 1024,
    batch_bytes_max=256 * 1024,
    bodies_bytes_max=512 * 1024,
    bodies_share_bytes_max=300 * 1024,
    frame_bytes_max=4 * 1024,
    connections_max=200,
    connections_per_address_max=150,
    stop_timeout_ms=1_000,
)


@pytest_asyncio.fixture
async def node(tmp_path: Path) -> AsyncIterator[NodeWorld]:
    async with serve_world(tmp_path / "ledger", options=SMALL) as made:
        yield made


@asynccontextmanager
async def served_meanwhile(node: NodeWorld) -> AsyncIterator[RawClient]:
    """Another client, which must be answered at the beginning, again and again, and at the end."""
    done = asyncio.Event()

    async def keep_asking(client: RawClient) -> int:
        count = 0
        while not done.is_set() or not count:
            assert (await client.call("block.get"))["height"] >= 1
            count += 1
            await asyncio.sleep(0.02)
        return count

    async with raw_client(node.url) as client:
        asking = asyncio.create_task(keep_asking(client))
        try:
            yield client
        finally:
            done.set()
            assert await asyncio.wait_for(asking, 30) > 0


class Peer:
    """A socket that says whatever it is told to."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer

    @classmethod
    async def connect(cls, node: NodeWorld) -> "Peer":
        return cls(*await asyncio.open_connection("127.0.0.1", node.server.port, limit=1 << 20))

    async def send(self, data: bytes) -> None:
        self.writer.write(data)
        await self.writer.drain()

    async def rest(self) -> bytes:
        """Everything until the server closes, which it has to."""
        data = b""
        async with asyncio.timeout(30):
            with suppress(ConnectionError):
                while piece := await self.reader.read(1 << 16):
                    data += piece
        self.writer.close()
        return data

    async def say(self, data: bytes) -> tuple[int, bytes]:
        """The status and the body of the answer to ``data``, after which the server closes."""
        with suppress(ConnectionError):
            await self.send(data)
        head, _, body = (await self.rest()).partition(b"\r\n\r\n")
        return (int(head.split()[1]) if head else 0), body


def post(path: bytes, body: bytes, *headers: bytes, length: int | None = None) -> bytes:
    lines = [
        b"POST " + path + b" HTTP/1.1",
        b"Host: localhost",
        b"Content-Length: %d" % (len(body) if length is None else length),
        *headers,
    ]
    return b"\r\n".join(lines) + b"\r\n\r\n" + body


JSON = b"Content-Type: application/json"
CBOR = b"Content-Type: application/cbor-seq"
CALL = b'{"jsonrpc":"2.0","id":1,"method":"ledger.info"}'


async def test_headers_that_never_end_are_cut_off(node: NodeWorld) -> None:  # SPEC-RPC-7
    async with served_meanwhile(node):
        peers = [await Peer.connect(node) for _ in range(20)]
        for peer in peers:
            await peer.send(b"POST /v1/rpc HTTP/1.1\r\nHost: localhost\r\nX-Slow: ")
        for peer in peers:
            answer = await peer.rest()
            assert answer.startswith(b"HTTP/1.1 408 ")
            assert b'"reason":"bad-request"' in answer
        # One byte at a time changes nothing: the clock runs from the first byte.
        slow = await Peer.connect(node)
        with pytest.raises((ConnectionError, AssertionError)):
            for byte in b"GET /health/live HTTP/1.1\r\nX-A: " + b"a" * 200:
                await slow.send(bytes((byte,)))
                assert not slow.reader.at_eof()
                await asyncio.sleep(0.02)
    assert node.server.counters["header_timeouts"] >= 20


async def test_bodies_that_stop_half_way_are_cut_off(node: NodeWorld) -> None:  # SPEC-RPC-7
    async with served_meanwhile(node):
        for head in (JSON, CBOR):
            path = b"/v1/rpc" if head is JSON else b"/v1/transactions"
            status, body = await (await Peer.connect(node)).say(post(path, b"{", head, length=1_000))
            assert status == 408
            assert b"did not come in time" in body
        gone = await Peer.connect(node)
        await gone.send(post(b"/v1/transactions", b"{", CBOR, length=100_000))
        gone.writer.close()
    await until(lambda: not node.server.figures()["body_bytes"])


@pytest.mark.parametrize(
    ("request_bytes", "status"),
    [
        (post(b"/v1/rpc", b"", JSON, length=10**6), 413),
        (post(b"/v1/transactions", b"", CBOR, length=10**9), 413),
        (post(b"/v1/rpc", b"", JSON, length=10**30), 413),
        (post(b"/v1/rpc", b"", JSON, b"Content-Encoding: gzip"), 415),
        (post(b"/v1/rpc", CALL, b"Content-Type: text/html"), 415),
        (b"GET /" + b"a" * 20_000 + b" HTTP/1.1\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nX: " + b"a" * 20_000 + b"\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\n" + b"X: y\r\n" * 500 + b"\r\n", 400),
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(64), 400),
        (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 400),
        (b"\x00\xff\xfe garbage \r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nContent-Length: -1\r\n\r\n", 400),
        (b"POST /v1/rpc HTTP/1.1\r\nContent-Length: 3\r\nContent-Length: 4\r\n\r\nabcd", 400),
        (b"POST /v1/rpc HTTP/1.1\r\nContent-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n", 400),
    ],
    ids=lambda value: str(value) if isinstance(value, int) else value[:24].decode("latin-1"),
)
async def test_what_is_too_long_or_no_http_gets_one_error(
    node: NodeWorld, request_bytes: bytes, status: int
) -> None:  # SPEC-RPC-7
    async with served_meanwhile(node):
        answered, body = await (await Peer.connect(node)).say(request_bytes)
    assert answered == status or (status == 413 and answered == 400)
    error = msgspec.json.decode(body)["error"]
    assert error["message"]
    assert b"aaaa" not in body
    assert b"garbage" not in body


async def test_chunked_garbage_and_endless_chunks(node: NodeWorld) -> None:
    head = (
        b"POST /v1/transactions HTTP/1.1\r\nHost: localhost\r\n"
        + CBOR
        + b"\r\nTransfer-Encoding: chunked\r\n\r\n"
    )
    async with served_meanwhile(node):
        status, _ = await (await Peer.connect(node)).say(head + b"zz\r\nnope\r\n")
        assert status == 400
        status, body = await (await Peer.connect(node)).say(
            head + (b"8000\r\n" + bytes(0x8000) + b"\r\n") * 40
        )
        assert (status, msgspec.json.decode(body)["error"]["code"]) == (413, Code.OVERSIZED)
    assert node.server.figures()["body_bytes"] == 0


LONG = 256 * 1024


async def hold(node: NodeWorld, count: int, sent: int, *headers: bytes) -> list[Peer]:
    """So many connections that announce a long body and stop when so many bytes of it are sent."""
    before = node.server.figures()["body_bytes"]
    holders = [await Peer.connect(node) for _ in range(count)]
    for holder in holders:
        await holder.send(post(b"/v1/transactions", b"", CBOR, *headers, length=LONG))
        await asyncio.sleep(0)
        await holder.send(bytes(sent))
    await until(lambda: node.server.figures()["body_bytes"] == before + count * sent)
    return holders


async def test_many_long_bodies_at_a_time_are_told_busy(node: NodeWorld) -> None:  # SPEC-RPC-7
    async with served_meanwhile(node):
        holders = await hold(node, 1, LONG - 1)
        second = await Peer.connect(node)
        status, body = await second.say(post(b"/v1/transactions", bytes(LONG), CBOR))
        assert (status, msgspec.json.decode(body)["error"]["code"]) == (503, Code.BUSY)
        for holder in holders:
            await holder.rest()
    assert node.server.figures()["body_bytes"] == 0


async def test_what_is_announced_takes_no_room_from_others(node: NodeWorld) -> None:  # SPEC-RPC-7
    async with served_meanwhile(node):
        holders = await hold(node, 50, 100)
        # 12 MiB are announced where half a MiB has room: who comes with a body is served all the same.
        status, _ = await (await Peer.connect(node)).say(post(b"/v1/transactions", bytes(LONG), CBOR))
        assert status == 400
        for holder in holders:
            await holder.rest()
    assert node.server.figures()["body_bytes"] == 0


async def test_one_client_leaves_room_for_another(tmp_path: Path) -> None:  # SPEC-RPC-7
    rules = [
        ClientRule(name=name, roles=frozenset({"submitter"}), token_sha256=sha256(name.encode()).hexdigest())
        for name in ("ward", "lab")
    ]
    async with serve_world(tmp_path / "ledger", options=SMALL, access=AccessOptions(clients=rules)) as node:
        ward, lab = b"Authorization: Bearer ward", b"Authorization: Bearer lab"
        holders = await hold(node, 2, 149 * 1024, ward)
        request = [post(b"/v1/transactions", bytes(LONG - 60 * 1024), CBOR, name) for name in (ward, lab)]
        assert (await (await Peer.connect(node)).say(request[0]))[0] == 503
        assert (await (await Peer.connect(node)).say(request[1]))[0] == 400
        for holder in holders:
            await holder.rest()
        assert node.server.figures()["body_bytes"] == 0
        assert not node.server._room._shares


async def test_idle_connections_are_counted_and_end(node: NodeWorld) -> None:  # SPEC-RPC-7
    async with served_meanwhile(node):
        idle = [await Peer.connect(node) for _ in range(148)]
        await until(lambda: node.server.listener.open_connections >= 149)
        more = [await Peer.connect(node) for _ in range(5)]
        answers = await asyncio.gather(*(peer.rest() for peer in more))
        refused = [
            answer for answer in answers if answer.startswith(b"HTTP/1.1 503 ") and b"Retry-After" in answer
        ]
        assert len(refused) >= 4
        for peer in idle:
            assert await peer.rest() == b""
    await until(lambda: not node.server.listener.open_connections)


async def test_pipelining_without_reading_is_cut_off(node: NodeWorld) -> None:  # SPEC-RPC-7
    async with served_meanwhile(node):
        peer = await Peer.connect(node)
        request = b"GET /openrpc.json HTTP/1.1\r\nHost: localhost\r\n\r\n"
        with pytest.raises((ConnectionError, TimeoutError)):
            async with asyncio.timeout(20):
                while True:
                    await peer.send(request * 100)
        peer.writer.close()
    assert node.server.counters["connections_undrained"] == 1


async def test_answers_that_nobody_reads_are_bounded_together(tmp_path: Path) -> None:  # SPEC-RPC-7
    size = 16 * 1024 * 1024
    options = replace(SMALL, write_timeout_ms=20_000, answers_bytes_max=size + 1)
    async with serve_world(tmp_path / "ledger", options=options) as node, served_meanwhile(node):
        node.server._descriptions["/openrpc.json"] = bytes(size)
        first, second = await Peer.connect(node), await Peer.connect(node)
        for peer in (first, second):
            peer.reader._transport.pause_reading()  # type: ignore[attr-defined]
        await first.send(b"GET /openrpc.json HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
        await until(lambda: node.server.listener.unread_bytes > 0)
        await second.send(b"GET /openrpc.json HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
        await until(lambda: node.server.counters["connections_undrained"] == 1)
        for peer in (first, second):
            peer.reader._transport.resume_reading()  # type: ignore[attr-defined]
        assert len(await second.rest()) < size < len(await first.rest())
        await until(lambda: node.server.listener.unread_bytes == 0)


async def test_a_flood_of_bad_signatures_is_refused_one_by_one(node: NodeWorld) -> None:
    transactions = registrations(node.world, 100)
    forged = [tx.encoded[:-32] + os.urandom(31) + b"\x01" for tx in transactions]
    height = node.world.ledger.height
    async with served_meanwhile(node) as client:
        for _ in range(5):
            status, body = await client.post("/v1/transactions", b"".join(forged), SEQUENCE)
            outcomes = decode_outcomes(body, [tx.txid for tx in transactions])[1]
            assert (status, {outcome.code for outcome in outcomes}) == (200, {Code.BAD_SIGNATURE})
    assert node.world.ledger.height == height


async def test_a_client_that_hangs_up_is_no_incident(
    node: NodeWorld, caplog: pytest.LogCaptureFixture
) -> None:  # SPEC-RPC-5
    for head, path in ((JSON, b"/v1/rpc"), (CBOR, b"/v1/transactions"), (CBOR, b"/v1/blobs")):
        peer = await Peer.connect(node)
        await peer.send(post(path, b"{" * 500, head, length=1_000))
        await until(lambda: node.server.figures()["body_bytes"] > 0)
        peer.writer.transport.abort()
        await until(lambda: node.server.figures()["body_bytes"] == 0)
    assert node.server.counters["http 500"] == 0
    assert not caplog.records


# WebSocket.


async def upgraded(node: NodeWorld, *headers: bytes) -> Peer:
    peer = await Peer.connect(node)
    lines = [
        b"GET /v1/subscribe HTTP/1.1",
        b"Host: localhost",
        b"Upgrade: websocket",
        b"Connection: Upgrade",
        b"Sec-WebSocket-Version: 13",
        b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==",
        *headers,
    ]
    await peer.send(b"\r\n".join(lines) + b"\r\n\r\n")
    head = await peer.reader.readuntil(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 101")
    assert b"permessage-deflate" not in head
    return peer


def frame(opcode: int, payload: bytes, *, rsv1: bool = False, length: int | None = None) -> bytes:
    size = len(payload) if length is None else length
    head = bytes((0x80 | (0x40 if rsv1 else 0) | opcode,))
    if size < 126:
        head += bytes((0x80 | size,))
    elif size < 65_536:
        head += b"\xfe" + struct.pack(">H", size)
    else:
        head += b"\xff" + struct.pack(">Q", size)
    return head + bytes(4) + payload


def close_code(data: bytes) -> int:
    """The code of the close frame that ends ``data``."""
    place = data.rindex(b"\x88")
    return int.from_bytes(data[place + 2 : place + 4], "big")


@pytest.mark.parametrize(
    ("sent", "code"),
    [
        (frame(1, b"", length=10**9), 1009),
        (frame(1, bytes(5_000)), 1009),
        (frame(2, b"binary"), 1003),
        (frame(1, b"\xff\xfe"), 1007),
        (frame(3, b"reserved"), 1002),
        (frame(1, zlib.compress(bytes(10**6))[2:-4], rsv1=True), 1002),
        (b"\x00" * 64, 1002),
        (frame(9, bytes(126)), 1002),
    ],
    ids=["announced", "long", "binary", "utf8", "opcode", "compressed", "garbage", "long-ping"],
)
async def test_bad_frames_end_their_connection_alone(
    node: NodeWorld, sent: bytes, code: int
) -> None:  # SPEC-SUB-7
    async with served_meanwhile(node):
        peer = await upgraded(node, b"Sec-WebSocket-Extensions: permessage-deflate")
        await peer.send(sent)
        assert close_code(await peer.rest()) == code
    assert node.server.streams.connection_count == 0


async def test_pings_without_reading_are_cut_off(node: NodeWorld) -> None:  # SPEC-SUB-7
    async with served_meanwhile(node):
        peer = await upgraded(node)
        with pytest.raises(ConnectionError):
            async with asyncio.timeout(30):
                while True:
                    # What is answered and never read must not pile up in the node.
                    await peer.send(frame(9, bytes(125)) * 500)
                    await asyncio.sleep(0)
        peer.writer.close()
    assert node.server.counters["stream slow"] == 1
    await until(lambda: not node.server.streams.connection_count)


async def test_json_that_is_none_is_answered_on_a_socket_too(node: NodeWorld) -> None:
    peer = await upgraded(node)
    for sent, expected in ((b"{", -32700), (b"[]", -32600), (CALL, -32601), (b"[" * 4_000, -32600)):
        await peer.send(frame(1, sent))
        async with asyncio.timeout(10):
            head = await peer.reader.readexactly(2)
            size = head[1]
            if size == 126:
                size = int.from_bytes(await peer.reader.readexactly(2), "big")
            answer = await peer.reader.readexactly(size)
        assert msgspec.json.decode(answer)["error"]["code"] == expected
    peer.writer.close()


async def test_tls_keeps_those_out_who_do_not_speak_it(tmp_path: Path) -> None:
    authority = CertificateAuthority.create(tmp_path / "authority")
    authority.issue("node", "node", names=["localhost"])
    folder = tmp_path / "authority"
    tls = ServerTls(ServerTlsOptions(certificate=str(folder / "node.pem"), key=str(folder / "node.key")))
    options = replace(SMALL, header_timeout_ms=300)
    async with serve_world(tmp_path / "ledger", options=options, tls=tls.context) as node:
        assert (await (await Peer.connect(node)).say(b"GET / HTTP/1.1\r\n\r\n"))[0] == 0
        assert await (await Peer.connect(node)).rest() == b""
        context = client_context(ca=folder / "bundle.pem")
        reader, writer = await asyncio.open_connection(
            "127.0.0.1", node.server.port, ssl=context, server_hostname="localhost"
        )
        writer.write(b"GET /health/live HTTP/1.1\r\nHost: localhost\r\n\r\n")
        assert (await reader.readline()).startswith(b"HTTP/1.1 200")
        writer.close()

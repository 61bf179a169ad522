"""What a client makes of a node that lies, babbles, or speaks another protocol: one bounded, typed error."""

import base64
import json
import socket
from collections.abc import Callable, Iterator
from typing import Any

import cbor2
import pytest
from net_faults import Scripted, answer
from world import World

from fastledger import Client, Code, FastLedgerError
from fastledger.client.aio import ClientOptions
from fastledger.client.faults import error_of
from fastledger.client.http import node_url
from fastledger.client.retry import Retry
from fastledger.errors import (
    AccessRefused,
    InputError,
    LedgerBusyError,
    LedgerClosedError,
    LedgerError,
    LedgerHaltedError,
    NotFoundError,
    StorageFullError,
    TransactionError,
    UnreachableError,
)
from fastledger.rpc.protocol import ErrorData, RpcError
from fastledger.subjects.consent import CONSENT_MISSING

ONCE = ClientOptions(retry=Retry(deadline_ms=0), request_timeout_ms=2_000)
Respond = Callable[[str, str, bytes], bytes]


def json_answer(value: Any, **options: Any) -> bytes:
    return answer(json.dumps(value).encode(), headers="Content-Type: application/json\r\n", **options)


def result(value: Any) -> bytes:
    return json_answer({"jsonrpc": "2.0", "id": 0, "result": value})


class Liar:
    """A scripted node that tells its genesis document and then answers with ``respond``."""

    def __init__(self, world: World) -> None:
        info = {
            "protocol": 1,
            "genesis": base64.b64encode(world.ledger.genesis.encoded).decode(),
            "height": 1,
            "head": "00" * 32,
            "transactions": 1,
        }
        self.info = result(info)
        self.respond: Respond = lambda method, path, body: answer(b"", status="404 Not Found")
        self.server = Scripted(self._answer)

    def _answer(self, method: str, path: str, body: bytes) -> bytes:
        return self.info if b"ledger.info" in body else self.respond(method, path, body)


@pytest.fixture
def liar(world: World) -> Iterator[Liar]:
    made = Liar(world)
    with made.server:
        yield made


@pytest.fixture
def client(liar: Liar) -> Iterator[Client]:
    with Client.connect(liar.server.url, options=ONCE) as client:
        yield client


def unusable(error: pytest.ExceptionInfo[FastLedgerError]) -> UnreachableError:
    assert isinstance(error.value, UnreachableError)
    assert error.value.code == Code.UNREACHABLE
    return error.value


# Connecting.


def test_a_node_of_another_chain_is_refused(liar: Liar, world: World) -> None:  # SPEC-CLI-2
    with Client.connect(liar.server.url, chain_id=world.ledger.chain_id, options=ONCE) as client:
        assert client.chain_id == world.ledger.chain_id
    with pytest.raises(InputError) as error:
        Client.connect(liar.server.url, chain_id=bytes(8), options=ONCE)
    assert error.value.code == Code.WRONG_CHAIN


def test_a_node_of_another_protocol_version_is_refused(liar: Liar) -> None:  # SPEC-CLI-2
    honest = liar.info
    for lie in (
        honest.replace(b"\r\n", b"\r\nFastLedger-Protocol: 2\r\n", 1),
        honest.replace(b'"protocol": 1', b'"protocol": 2'),
    ):
        liar.info = lie
        with pytest.raises(UnreachableError, match="protocol version") as error:
            Client.connect(liar.server.url, options=ONCE)
        assert not error.value.transient


def test_nobody_there() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    with pytest.raises(UnreachableError) as error:
        Client.connect(f"http://127.0.0.1:{port}", options=ONCE)
    assert error.value.transient
    assert str(port) not in str(error.value)


@pytest.mark.parametrize(
    "url",
    [
        "",
        "node",
        "ftp://node",
        "http://",
        "http://node:port",
        "http://node:0",
        "http://name:word@node",
        "http://node?x",
        "http://node#x",
        "http://[::1",
    ],
)
def test_what_is_no_url_of_a_node(url: str) -> None:
    with pytest.raises(InputError) as error:
        Client.connect(url)
    assert error.value.code == Code.BAD_QUERY
    assert "word" not in str(error.value)


def test_urls_of_nodes() -> None:
    assert node_url("https://node:8443/") == "https://node:8443"
    assert node_url("http://[::1]:80") == "http://[::1]:80"


def test_a_token_that_would_break_out_of_its_header() -> None:
    for token in ("a\r\nX: y", "a b", "é"):
        with pytest.raises(InputError):
            Client.connect("http://127.0.0.1:1", token=token)


# Answers.

GARBAGE = {
    "no HTTP": b"\x00\xff garbage\r\n\r\n",
    "nothing": b"",
    "endless header": b"HTTP/1.1 200 OK\r\nX: " + b"x" * 100_000,
    "half a body": answer(b'{"jsonrpc"', length=500),
    "negative length": b"HTTP/1.1 200 OK\r\nContent-Length: -1\r\n\r\n",
    "two lengths": b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nContent-Length: 3\r\n\r\n{}",
    "bad chunks": b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
    "no JSON": answer(b"<html>"),
    "deep JSON": answer(b"[" * 100_000),
    "invalid UTF-8": answer(b'{"jsonrpc":"2.0","id":0,"result":"\xff"}'),
    "a list": json_answer([]),
    "another id": json_answer({"jsonrpc": "2.0", "id": 7, "result": {}}),
    "neither result nor error": json_answer({"jsonrpc": "2.0", "id": 0}),
    "another shape": result({"seq": "many"}),
    "another transaction": result(
        {
            "seq": 0,
            "txid": "00" * 32,
            "height": 1,
            "index": 0,
            "time_ms": 0,
            "kind": "x",
            "signer": "00" * 33,
            "code": 0,
            "reason": "ok",
            "transaction": "AAAA",
        }
    ),
    "an unknown code": json_answer({"jsonrpc": "2.0", "id": 0, "error": {"code": 64_999, "message": "no"}}),
    "a redirection": answer(b"", status="302 Found", headers="Location: http://127.0.0.1:1/\r\n"),
    "a page of a gateway": answer(b"<html>", status="502 Bad Gateway"),
}


@pytest.mark.parametrize("name", GARBAGE)
def test_garbage_is_one_typed_error(liar: Liar, client: Client, name: str) -> None:  # SPEC-CLI-2
    liar.respond = lambda method, path, body: GARBAGE[name]
    with pytest.raises(UnreachableError) as error:
        client.get(bytes(32))
    unusable(error)


def test_a_huge_answer_is_cut_off(liar: Liar, client: Client, world: World) -> None:  # SPEC-CLI-2
    liar.respond = lambda method, path, body: answer(b"", length=10**12)
    with pytest.raises(UnreachableError, match="longer than"):
        client.get(bytes(32))
    chunk = b"100000\r\n" + b" " * 0x100000 + b"\r\n"
    head = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
    liar.respond = lambda method, path, body: head + 64 * chunk
    with pytest.raises(UnreachableError, match="longer than"):
        client.get(bytes(32))
    with pytest.raises(UnreachableError, match="longer than"):
        client.submit([world.patient.open_folders("more")])


def column(tag: int, data: bytes) -> cbor2.CBORTag:
    return cbor2.CBORTag(tag, data)


def verdicts(
    wait: str = "durable", codes: bytes = bytes(2), heights: bytes = bytes(8), flags: bytes = b"\0"
) -> bytes:
    columns = [column(69, codes), column(71, heights), column(70, bytes(4)), flags]
    return answer(cbor2.dumps([1, wait, *columns]))


@pytest.mark.parametrize(
    "lie",
    [
        answer(b""),
        answer(b"\xff"),
        answer(cbor2.dumps([2, "durable"])),
        verdicts(codes=bytes(4), heights=bytes(16), flags=b"\0\0"),
        verdicts(codes=b"", heights=b"", flags=b""),
        verdicts(codes=b"\0"),
        verdicts(codes=(64_999).to_bytes(2, "little")),
        verdicts(wait="accepted"),
        verdicts(wait="soon"),
    ],
)
def test_verdicts_that_do_not_fit_the_batch(liar: Liar, client: Client, world: World, lie: bytes) -> None:
    liar.respond = lambda method, path, body: lie
    with pytest.raises(UnreachableError) as error:
        client.submit([world.patient.open_folders("more")])
    assert not unusable(error).transient


def test_an_honest_verdict_is_taken(liar: Liar, client: Client, world: World) -> None:
    liar.respond = lambda method, path, body: verdicts()
    transaction = world.patient.open_folders("more")
    assert [(item.txid, item.ok) for item in client.submit([transaction])] == [(transaction.txid, True)]


def test_malformed_transactions_are_judged_before_they_are_sent(
    liar: Liar, client: Client, world: World
) -> None:  # SPEC-CLI-3
    """One would break the framing of the rest: its verdict is the one that a ledger's border has for it."""
    liar.respond = lambda method, path, body: verdicts()
    transaction = world.patient.open_folders("more")
    batch = [b"garbage", transaction, transaction.encoded[:-1]]
    here = client.submit(batch)
    assert [item.code for item in here] == [Code.MALFORMED, Code.OK, Code.MALFORMED]
    there = world.ledger.submit([batch[0], batch[2]])
    assert [(item.txid, item.code) for item in there] == [
        (here[0].txid, here[0].code),
        (here[2].txid, here[2].code),
    ]


@pytest.mark.parametrize(
    "lie",
    [
        answer(b"x"),
        answer(b"x", headers="FastLedger-Digest: zz\r\n"),
        answer(b"x", headers=f"FastLedger-Digest: {bytes(32).hex()}\r\n"),
        answer(b"", length=10**12, headers=f"FastLedger-Digest: {bytes(32).hex()}\r\n"),
    ],
)
def test_an_envelope_that_is_not_the_one_announced(
    liar: Liar, client: Client, world: World, lie: bytes
) -> None:
    liar.respond = lambda method, path, body: lie
    sealed = world.put()
    with pytest.raises(UnreachableError) as error:
        client.read(world.patient.access(sealed.record, "PATRQT"))  # type: ignore[arg-type]
    assert not unusable(error).transient


def test_a_subscription_to_garbage_ends(liar: Liar, client: Client) -> None:
    for lie in (answer(b"no"), b"HTTP/1.1 101 Switching Protocols\r\n\r\n", b"\0"):
        liar.respond = lambda method, path, body, lie=lie: lie  # type: ignore[misc]
        with pytest.raises(UnreachableError):
            next(client.follow(cursor=0))


# Errors.


@pytest.mark.parametrize(
    ("code", "kind"),
    [
        (Code.BAD_SIGNATURE, TransactionError),
        (CONSENT_MISSING, TransactionError),
        (Code.NOT_FOUND, NotFoundError),
        (Code.BAD_QUERY, InputError),
        (Code.CLOSED, LedgerClosedError),
        (Code.HALTED, LedgerHaltedError),
        (Code.STORAGE_FULL, StorageFullError),
        (Code.CORRUPT, LedgerError),
        (Code.BUSY, LedgerBusyError),
        (-32602, InputError),
        (-32603, LedgerError),
    ],
)
def test_errors_are_rebuilt_by_their_code(code: int, kind: type[FastLedgerError]) -> None:  # SPEC-CLI-4
    error = error_of(
        RpcError(int(code), "busy: for some reason", ErrorData("x", txid="ab" * 32, retry_after_ms=7))
    )
    assert type(error) is kind
    if code > 0:
        assert error.code == code
    if isinstance(error, LedgerBusyError):
        assert error.retry_after_ms == 7
    if isinstance(error, TransactionError):
        assert error.txid == bytes.fromhex("ab" * 32)


def test_every_code_is_rebuilt_with_its_code() -> None:  # SPEC-CLI-4
    for code in set(Code.all()) - {Code.OK}:
        error = error_of(RpcError(code, f"{code.slug}: a message", ErrorData(code.slug)))
        assert error.code == code
        assert str(error) == f"{code.slug}: a message"
        assert not isinstance(error, AccessRefused)


def test_hostile_errors_are_bounded() -> None:
    error = error_of(
        RpcError(Code.BUSY, "x" * 10**6, ErrorData("busy", retry_after_ms=10**18, txid="no hex"))
    )
    assert len(str(error)) < 1_000
    assert isinstance(error, LedgerBusyError)
    assert error.retry_after_ms <= 3_600_000
    assert isinstance(
        error_of(RpcError(Code.BUSY, "", ErrorData("busy", retry_after_ms=-5))), LedgerBusyError
    )

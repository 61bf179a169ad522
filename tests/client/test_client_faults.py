"""Clients of a node that is killed, cut off, slow or full: all of it once, nothing lost, one typed error at the end."""

import hashlib
import json
import random
import signal
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import cbor2
import pytest
from client_world import ONE_TRY, WITH_BLOBS, NodeWorld, make_node_world, wallet
from net_faults import Authority, Proxy, Scripted, answer

from fastledger import Client, ClientOptions, ClientTls, Code, Purpose, Role
from fastledger.client.retry import Retry
from fastledger.errors import (
    EnvelopeError,
    InputError,
    LedgerBusyError,
    LedgerClosedError,
    StorageFullError,
    TransactionError,
    UnreachableError,
)
from fastledger.subjects.consent import CONSENT_MISSING
from fastledger.subjects.record import RECORDS


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[NodeWorld]:
    made = make_node_world(tmp_path_factory.mktemp("node"))
    yield made
    made.close()


@pytest.fixture
def proxy(world: NodeWorld) -> Iterator[Proxy]:
    with Proxy(world.node.port) as made:
        yield made


@pytest.fixture
def through(world: NodeWorld, proxy: Proxy) -> Client:
    return world.connect(proxy.url)


# The retries themselves.


def test_waits_grow_and_are_drawn_from_the_whole_range() -> None:  # SPEC-CLI-3
    retry = Retry(base_ms=100, wait_ms_max=1_000)
    for attempt, ceiling in ((0, 100), (1, 200), (3, 800), (4, 1_000), (10_000, 1_000)):
        waits = [retry.wait_ms(attempt) for _ in range(300)]
        assert max(waits) <= ceiling
        assert min(waits) < ceiling / 4
        assert max(waits) > ceiling * 3 / 4
    busy = LedgerBusyError("full", retry_after_ms=500)
    assert all(500 < retry.wait_ms(0, busy) <= 600 for _ in range(100))


async def test_retries_end_with_the_deadline() -> None:  # SPEC-CLI-3
    attempts = []

    async def fail() -> None:
        attempts.append(time.monotonic())
        raise UnreachableError("no")

    with pytest.raises(UnreachableError):
        await Retry(base_ms=1, wait_ms_max=8, deadline_ms=100).run(fail)
    assert 5 < len(attempts) < 200
    for error in (InputError("no"), UnreachableError("no", transient=False), StorageFullError("full")):
        attempts.clear()

        async def fail_for_good(error: Exception = error) -> None:
            attempts.append(0.0)
            raise error

        with pytest.raises(type(error)):
            await Retry().run(fail_for_good)
        assert len(attempts) == 1


Script = list[bytes]


def busy(status: str, code: Code, data: dict[str, Any], headers: str = "") -> bytes:
    body = {"error": {"code": int(code), "message": "not now", "data": {"reason": code.slug, **data}}}
    return answer(json.dumps(body).encode(), status=status, headers=headers)


def test_a_busy_node_is_asked_again_when_it_says(
    world: NodeWorld, monkeypatch: pytest.MonkeyPatch
) -> None:  # SPEC-CLI-3
    waits: list[float] = []

    async def pause(_self: Retry, wait_ms: float) -> None:
        waits.append(wait_ms)

    monkeypatch.setattr(Retry, "pause", pause)
    columns = (cbor2.CBORTag(69, bytes(2)), cbor2.CBORTag(71, bytes(8)), cbor2.CBORTag(70, bytes(4)))
    done = answer(cbor2.dumps([1, "durable", *columns, b"\0"]))
    script = [
        busy("503 Service Unavailable", Code.BUSY, {"retry_after_ms": 300}),
        busy("429 Too Many Requests", Code.RATE_LIMITED, {"retry_after_ms": 700}),
        answer(b"<html>", status="503 Service Unavailable", headers="Retry-After: 2\r\n"),
        busy("503 Service Unavailable", Code.CLOSED, {}),
        answer(b"", status="502 Bad Gateway"),
        done,
    ]
    real = world.connect()
    with Scripted(lambda method, path, body: script.pop(0)) as server:
        client = world.keep(Client(real._loop, real._client))
        client._client._transport.url = server.url
        outcomes = client.submit([world.patient.open_folders("busy")])
    assert [outcome.ok for outcome in outcomes] == [True]
    assert [wait // 100 >= floor for wait, floor in zip(waits, (3, 7, 20, 0, 0), strict=True)] == [True] * 5
    assert all(wait < 2_000 + 50 * 2**5 for wait in waits)


def test_what_cannot_be_helped_is_told_at_once(world: NodeWorld) -> None:
    full = busy("507 Insufficient Storage", Code.STORAGE_FULL, {})
    real = world.connect()
    with Scripted(lambda method, path, body: full) as server:
        real._client._transport.url = server.url
        with pytest.raises(StorageFullError):
            real.submit([world.patient.open_folders("full")])
        assert len(server.requests) == 1


# A connection that breaks.


@pytest.mark.parametrize("after_bytes", [0, 1, 20, 100])
def test_a_lost_answer_is_found_again(
    world: NodeWorld, proxy: Proxy, through: Client, after_bytes: int
) -> None:  # SPEC-CLI-3
    transactions = [world.patient.open_folders(f"{after_bytes} {number}") for number in range(3)]
    proxy.cut_answers(after_bytes)
    outcomes = through.submit(transactions)
    assert proxy.cut_count == 1
    assert [(item.ok, item.duplicate) for item in outcomes] == [(True, True)] * 3
    found = [entry.txid for entry in through.query(signed_by=world.patient.identity, newest_first=True, limit=3)]
    assert found == [item.txid for item in reversed(transactions)]


def test_half_a_request_enters_nothing_until_it_is_sent_again(
    world: NodeWorld, proxy: Proxy, through: Client
) -> None:
    before = through.tip().transaction_count
    proxy.cut_requests(400)
    outcomes = through.submit([world.patient.open_folders("half"), world.patient.open_folders("sent")])
    assert proxy.cut_count == 1
    assert [(item.ok, item.duplicate) for item in outcomes] == [(True, False)] * 2
    assert through.tip().transaction_count == before + 2


def test_reads_survive_cuts(world: NodeWorld, proxy: Proxy, through: Client) -> None:
    txids = [entry.txid for entry in through.query(limit=5)]
    for after_bytes in (0, 50, 300):
        proxy.cut_answers(after_bytes)
        assert [through.get(txid).txid for txid in txids] == txids
    assert proxy.cut_count == 3


def test_an_upload_goes_on_where_it_broke(
    world: NodeWorld, proxy: Proxy, through: Client
) -> None:  # SPEC-CLI-5
    blob = random.Random(5).randbytes(9_000_000)
    proxy.cut_requests(3_000_000, 2_000_000)
    assert through.store_blobs([blob]) == [hashlib.sha256(blob).digest()]
    assert proxy.cut_count == 2
    proxy.cut_answers(0)
    assert through.store_blobs([blob[1:]]) == [hashlib.sha256(blob[1:]).digest()]
    assert proxy.cut_count == 3
    # What the node has is not sent again.
    sent = []
    pump = proxy._pump

    async def count(source: Any, sink: Any, cuts: Callable[[], list[int]]) -> None:
        sent.append(1)
        await pump(source, sink, cuts)

    through.store_blobs([blob, blob[1:]])
    assert world.node.process is not None


def test_an_upload_survives_a_kill(tmp_path: Path) -> None:  # SPEC-CLI-5
    world = make_node_world(tmp_path)
    try:
        with Proxy(world.node.port) as proxy:
            client = world.connect(proxy.url)
            proxy.cut_requests(6_000_000)
            killer = threading.Thread(
                target=lambda: (wait_until(lambda: proxy.cut_count > 0), restart(world))
            )
            killer.start()
            content = random.Random(6).randbytes(9_000_000)
            sealed = client.put_record(world.patient, "vitals", content)
            killer.join()
        assert world.connect().read_record(world.patient, sealed.record, Purpose.PATIENT_REQUEST) == content
    finally:
        world.close()


def test_a_download_goes_on_where_it_broke(
    world: NodeWorld, proxy: Proxy, through: Client
) -> None:  # SPEC-CLI-5
    content = random.Random(7).randbytes(5_000_000)
    sealed = through.put_record(world.patient, "vitals", content)
    access = world.patient.access(sealed.record, Purpose.PATIENT_REQUEST)
    proxy.cut_answers(1_000_000, 0, 1_500_000)
    assert through.read(access) == sealed.blob
    assert proxy.cut_count == 3
    audited = [entry.txid for entry in through.query(kind="access.read", record=sealed.record)]
    assert audited == [access.txid], "one read, one entry"


def test_a_read_whose_answer_was_lost_stands_in_the_audit(
    world: NodeWorld, proxy: Proxy, through: Client
) -> None:  # SPEC-CLI-5
    sealed = through.put_record(world.patient, "vitals", b"72 bpm")
    proxy.cut_answers(0)
    access = world.patient.access(sealed.record, Purpose.PATIENT_REQUEST)
    with pytest.raises(TransactionError) as error:
        through.read(access)
    assert (error.value.code, error.value.txid) == (Code.DUPLICATE, access.txid)
    assert through.get(access.txid).code == Code.OK
    # Who holds the wallet signs another.
    proxy.cut_answers(0)
    assert through.read_record(world.patient, sealed.record, Purpose.PATIENT_REQUEST) == b"72 bpm"
    assert len(through.query(kind="access.read", record=sealed.record)) == 3


def test_a_refusal_whose_answer_was_lost_is_a_refusal_still(
    world: NodeWorld, proxy: Proxy, through: Client
) -> None:  # SPEC-CLI-5
    sealed = through.put_record(world.patient, "vitals", b"72 bpm")
    proxy.cut_answers(0)
    with pytest.raises(InputError) as error:
        through.read(world.clinic.access(sealed.record, Purpose.TREATMENT))
    assert error.value.code == CONSENT_MISSING


def test_bytes_that_are_not_what_was_announced(world: NodeWorld, monkeypatch: pytest.MonkeyPatch) -> None:
    client = world.connect()
    blob = random.Random(8).randbytes(2_000_000)
    with pytest.raises(EnvelopeError):
        client._run(client._client._transfers.upload(bytes(32), blob))


def test_a_slow_connection_is_waited_for(world: NodeWorld, proxy: Proxy, through: Client) -> None:
    proxy.delay_s = 0.05
    assert through.submit([world.patient.open_folders("slow")])[0].ok
    impatient = ClientOptions(retry=Retry(deadline_ms=0), request_timeout_ms=200)
    hasty = world.connect(options=impatient)
    hasty._client._transport.url = proxy.url
    proxy.delay_s = 2.0
    with pytest.raises(UnreachableError, match="in time"):
        hasty.status()


def test_no_more_than_the_deadline(world: NodeWorld) -> None:
    client = world.connect(options=ClientOptions(retry=Retry(base_ms=1, wait_ms_max=5, deadline_ms=50)))
    with Scripted(lambda method, path, body: b"") as server:
        port = server.port
    client._client._transport.url = f"http://127.0.0.1:{port}"
    for use in (client.status, lambda: client.submit([world.patient.open_folders("gone")])):
        with pytest.raises(UnreachableError):
            use()
    with pytest.raises(UnreachableError):
        next(client.follow(cursor=0))


# A node that is killed.


def wait_until(holds: Callable[[], bool], timeout_s: float = 60.0) -> None:
    deadline = time.monotonic() + timeout_s
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def restart(world: NodeWorld) -> None:
    world.node.kill()
    world.node.start()


def test_each_transaction_once_whatever_happens_to_the_node(tmp_path: Path) -> None:  # SPEC-CLI-3, SPEC-CLI-6
    """Two threads submit and one follows while the node is killed and started, again and again."""
    world = make_node_world(tmp_path)
    client = world.connect()
    follower = world.connect()
    people = [wallet(world.chain_id) for _ in range(2)]
    submitted: list[bytes] = []
    done = threading.Event()
    seen: list[int] = []
    txids: list[bytes] = []
    failures: list[BaseException] = []

    def submit(person: Any) -> None:
        try:
            client.submit([person.register(Role.PATIENT)])[0].raise_for_status()
            number = 0
            while not done.is_set():
                batch = [person.open_folders(f"{number + place}") for place in range(20)]
                number += len(batch)
                for outcome in client.submit(batch):
                    outcome.raise_for_status()
                submitted.extend(transaction.txid for transaction in batch)
        except BaseException as error:
            failures.append(error)

    def follow() -> None:
        try:
            for event in follower.follow(cursor=0):
                assert event.entry is not None
                seen.append(event.cursor)
                txids.append(event.entry.txid)
                ended = done.is_set() and not any(thread.is_alive() for thread in threads)
                if ended and event.cursor == follower.tip().transaction_count:
                    return
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=submit, args=(person,)) for person in people]
    watcher = threading.Thread(target=follow)
    try:
        for thread in (*threads, watcher):
            thread.start()
        for _ in range(4):
            count = len(submitted)
            wait_until(lambda: len(submitted) >= count + 60 or bool(failures))  # noqa: B023
            restart(world)
        done.set()
        for thread in threads:
            thread.join(60)
        client.submit([people[0].open_folders("the last")])
        watcher.join(60)
        assert failures == []
        assert not watcher.is_alive()
        assert seen == list(range(1, len(seen) + 1)), "an event is missing or there twice"
        assert len(set(txids)) == len(txids), "a transaction stands twice in the chain"
        assert set(submitted) <= set(txids)
    finally:
        done.set()
        world.close()


def test_a_stopping_node_sends_followers_away_and_they_come_back(tmp_path: Path) -> None:  # SPEC-CLI-6
    world = make_node_world(tmp_path)
    try:
        client = world.connect()
        blocks = client.follow("blocks", cursor=0)
        heights = [next(blocks).cursor for _ in range(client.tip().height + 1)]
        assert world.node.stop() == 0
        world.node.start()
        client.submit([world.patient.open_folders("after")])
        heights.append(next(blocks).cursor)
        assert heights == list(range(1, len(heights) + 1))
        client.close()
        with pytest.raises(LedgerClosedError):
            next(blocks)
    finally:
        world.close()


# TLS.

TLS = WITH_BLOBS.replace(
    "[rpc.access]",
    '[rpc.tls]\ncertificate = "{folder}/node.pem"\nkey = "{folder}/node.key"\n{more}\n[rpc.access]',
)


def tls_config(folder: Path, more: str = "") -> str:
    return TLS.replace("{folder}", str(folder)).replace("{more}", more)


class TlsNode:
    """A node that speaks TLS, which the plain readiness check of the tests does not."""

    def __init__(self, folder: Path, more: str = "") -> None:
        self.world = make_node_world(folder)
        assert self.world.node.stop() == 0
        self.world.node.config = tls_config(folder, more)
        self.world.node.start(ready=False)
        self.url = f"https://localhost:{self.world.node.port}"

    def connect(self, tls: ClientTls) -> Client:
        return self.world.connect(self.url, tls=tls)


def test_tls(tmp_path: Path) -> None:  # SPEC-CLI-2
    authority, stranger = Authority(tmp_path), Authority(tmp_path, "somebody else")
    authority.issue("node")
    node = TlsNode(tmp_path)
    try:
        client = node.connect(ClientTls(ca=authority.path))
        sealed = client.put_record(node.world.patient, "vitals", b"72 bpm")
        assert next(client.follow(cursor=0)).entry == client.query(limit=1).entries[0]
        assert client.entity(RECORDS, sealed.record).version == 1
        for tls in (ClientTls(ca=stranger.path), None):
            with pytest.raises(UnreachableError, match="not trusted") as error:
                node.world.connect(node.url, tls=tls, options=ONE_TRY)
            assert not error.value.transient
        with pytest.raises(UnreachableError):
            node.world.connect(f"http://localhost:{node.world.node.port}", options=ONE_TRY)
    finally:
        node.world.close()


def test_mutual_tls(tmp_path: Path) -> None:  # SPEC-CLI-2
    authority, stranger = Authority(tmp_path), Authority(tmp_path, "somebody else")
    authority.issue("node")
    certificate, key = authority.issue("clinic")
    foreign_certificate, foreign_key = stranger.issue("intruder")
    more = f'authorities = "{authority.path}"\nclient_certificates = "required"'
    node = TlsNode(tmp_path, more)
    try:
        client = node.connect(ClientTls(authority.path, certificate, key))
        assert client.submit([node.world.patient.open_folders("mutual")])[0].ok
        for tls in (ClientTls(authority.path), ClientTls(authority.path, foreign_certificate, foreign_key)):
            with pytest.raises(UnreachableError):
                node.world.connect(node.url, tls=tls, options=ONE_TRY)
    finally:
        node.world.close()


def test_files_that_are_no_certificates(tmp_path: Path) -> None:
    (tmp_path / "text").write_text("secret text")
    for tls in (
        ClientTls(ca=tmp_path / "absent"),
        ClientTls(ca=tmp_path / "text"),
        ClientTls(certificate=tmp_path / "text"),
    ):
        with pytest.raises(InputError) as error:
            tls.context()
        assert "secret" not in str(error.value)
    assert ClientTls().context().minimum_version >= ssl.TLSVersion.TLSv1_2


# Interrupts.


def test_an_interrupt_that_ends_no_wait_of_the_system_is_heard(world: NodeWorld) -> None:  # SPEC-CLI-6
    """As where a signal comes between Python's last look for one and the system's wait: the wait goes on."""
    client = world.connect()
    pages = client.follow_pages(cursor=client.tip().transaction_count)

    def interrupt() -> None:
        time.sleep(0.2)
        # To this thread: the handler has to run on the main one, whose wait it does not touch.
        signal.raise_signal(signal.SIGINT)

    interrupter = threading.Thread(target=interrupt)
    interrupter.start()
    with pytest.raises(KeyboardInterrupt):
        for _ in pages:
            pass
    interrupter.join()
    # It harmed nobody else.
    assert client.tip().height >= 0
    client.close()

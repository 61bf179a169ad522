"""Clients of a real node over real sockets: the same answers as from the ledger itself, from one thread or many."""

import asyncio
import hashlib
import os
import random
import threading
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from client_world import ONE_TRY, PATIENT_RETRY, NodeWorld, make_node_world, wallet

from fastledger import AsyncClient, Client, Code, Ledger, LedgerApi, Outcome, Purpose, Role, Transaction
from fastledger.errors import (
    AccessRefused,
    InputError,
    LedgerClosedError,
    NotFoundError,
    ReceiptError,
    TransactionError,
    UnreachableError,
)
from fastledger.subjects.consent import CONSENT_MISSING, CONSENTS
from fastledger.subjects.folder import FOLDERS
from fastledger.subjects.identity import IDENTITIES, KEM_KEYS, KEYS, UNKNOWN_SIGNER
from fastledger.subjects.record import RECORDS


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[NodeWorld]:
    made = make_node_world(tmp_path_factory.mktemp("node"))
    yield made
    made.close()


@pytest.fixture(scope="module")
def client(world: NodeWorld) -> Client:
    return world.connect()


def readings(ledger: LedgerApi, world: NodeWorld, txid: bytes, consent: bytes, record: bytes) -> list[Any]:
    """What every reading method says."""
    everything = ledger.query(limit=1_000).entries
    return [
        ledger.chain_id,
        ledger.genesis.encoded,
        ledger.tip(),
        [entry.encoded for entry in everything],
        [(entry.seq, entry.height, entry.index, entry.time_ms, entry.code) for entry in everything],
        [entry.txid for entry in ledger.query(kind="record.put", signed_by=world.patient.identity)],
        [entry.txid for entry in ledger.query(newest_first=True, limit=3)],
        ledger.query(limit=2).next_cursor,
        ledger.query(code=UNKNOWN_SIGNER).entries,
        ledger.get(txid),
        ledger.prove(txid),
        ledger.entity(KEYS, world.hospital.public_key).identity,
        ledger.entity(IDENTITIES, world.hospital.identity),
        ledger.entity(IDENTITIES, world.regulator.identity),
        ledger.entity(KEM_KEYS, world.clinic.identity).kem,
        ledger.entity(FOLDERS, world.patient.folder("vitals")),
        ledger.entity(RECORDS, record),
        ledger.record_version(record, 1),
        ledger.record_version(record),
        ledger.entity(CONSENTS, consent),
        ledger.status()["chain_id"],
    ]


def test_a_client_answers_as_the_ledger_does(tmp_path: Path) -> None:  # SPEC-CLI-1
    world = make_node_world(tmp_path)
    client = world.connect()
    sealed = client.put_record(world.patient, "vitals", b"72 bpm", ["code:x|1"])
    amended = world.patient.amend_record("vitals", sealed.record, 2, b"73 bpm")
    grant = world.patient.grant(
        world.clinic.identity,
        client.entity(KEM_KEYS, world.clinic.identity).kem,
        ["vitals", "laboratory"],
        purposes=[Purpose.TREATMENT, Purpose.RESEARCH],
    )
    client.submit([amended.transaction, grant], [amended.blob])
    named = (world, grant.txid, grant.body_map["consent"], sealed.record)
    over_the_wire = readings(client, *named)
    assert world.node.stop() == 0
    with Ledger.open(world.node.ledger) as ledger:
        assert over_the_wire == readings(ledger, *named)
    world.close()


def test_what_is_not_there_is_the_same_error_too(client: Client) -> None:  # SPEC-CLI-4
    for ask in (client.get, client.prove):
        with pytest.raises(NotFoundError):
            ask(bytes(32))
    for table in (IDENTITIES, KEM_KEYS, FOLDERS, RECORDS, CONSENTS):
        with pytest.raises(NotFoundError):
            client.entity(table, bytes(16))
    with pytest.raises(NotFoundError):
        client.entity(KEYS, b"\2" + bytes(32))
    with pytest.raises(InputError) as error:
        client.query(kind="no.such")
    assert error.value.code == Code.BAD_QUERY
    with pytest.raises(InputError):
        client.query(limit=0)


# Submitting.


def test_verdicts_in_the_order_of_the_batch(world: NodeWorld, client: Client) -> None:
    stranger = wallet(world.chain_id)
    other_chain = wallet(bytes(8)).register(Role.PATIENT)
    batch = [world.patient.open_folders("a"), b"garbage", stranger.open_folders("b"), other_chain]
    outcomes = client.submit(batch)
    assert [item.status for item in outcomes] == ["durable", "rejected", "refused", "rejected"]
    assert [item.code for item in outcomes] == [
        Code.OK,
        Code.MALFORMED,
        UNKNOWN_SIGNER,
        Code.WRONG_CHAIN,
    ]
    again = client.submit(batch)
    assert [item.duplicate for item in again] == [True, False, True, False]
    assert [item.height for item in again] == [item.height for item in outcomes]
    assert client.submit([]) == []


def test_a_long_batch_takes_several_requests_in_order(world: NodeWorld) -> None:  # SPEC-CLI-3
    options = PATIENT_RETRY.__class__(retry=PATIENT_RETRY.retry, batch_transactions=3)
    client = world.connect(options=options)
    people = [wallet(world.chain_id) for _ in range(4)]
    batch = [item for one in people for item in (one.register(Role.PATIENT), one.open_folders("x"))]
    batch.insert(3, b"garbage")  # type: ignore[arg-type]
    outcomes = client.submit(batch)
    assert [item.ok for item in outcomes] == [True] * 3 + [False] + [True] * 5
    assert len({item.height for item in outcomes if item.ok}) > 1


@pytest.mark.parametrize("wait", ["accepted", "ordered", "durable"])
def test_waiting_for_less_promises_less(world: NodeWorld, client: Client, wait: Any) -> None:
    transaction = world.patient.open_folders(f"wait {wait}")
    (outcome,) = client.submit([transaction], wait=wait)
    assert outcome.code == Code.OK
    assert (outcome.height is None) == (wait == "accepted")
    entry = client.wait_for(transaction.txid)
    assert entry.code == Code.OK
    with pytest.raises(NotFoundError):
        client.wait_for(bytes(32), timeout_ms=30)


def test_a_stream_gives_verdicts_in_its_order(world: NodeWorld, client: Client) -> None:
    options = PATIENT_RETRY.__class__(retry=PATIENT_RETRY.retry, batch_transactions=7)
    small = world.connect(options=options)
    transactions = [world.patient.open_folders(f"stream {number}") for number in range(60)]
    for in_flight in (1, 3):
        outcomes = list(small.submit_stream(iter(transactions), in_flight=in_flight))
        assert [item.txid for item in outcomes] == [item.txid for item in transactions]
        assert all(item.ok for item in outcomes)
    with pytest.raises(InputError):
        next(small.submit_stream([], in_flight=0))
    # Whoever stops listening leaves nothing behind.
    some = small.submit_stream(iter(transactions))
    next(some)
    some.close()  # type: ignore[attr-defined]


async def test_an_asynchronous_stream(world: NodeWorld) -> None:
    transactions = [world.patient.open_folders(f"{number}") for number in range(20)]

    async def source() -> AsyncIterator[Transaction]:
        for transaction in transactions:
            await asyncio.sleep(0)
            yield transaction

    async with await AsyncClient.connect(world.node.url, options=PATIENT_RETRY) as client:
        outcomes = [item async for item in client.submit_stream(source())]
        assert [item.txid for item in outcomes] == [item.txid for item in transactions]
        entries = await asyncio.gather(*(client.get(item.txid) for item in transactions))
        assert [entry.txid for entry in entries] == [item.txid for item in transactions]


# Records.


def test_records_are_put_and_read(world: NodeWorld, client: Client) -> None:
    content = random.Random(1).randbytes(3_000_000)
    for size in (1, 1_000, len(content)):
        sealed = client.put_record(world.patient, "vitals", content[:size])
        assert client.read_record(world.patient, sealed.record, Purpose.PATIENT_REQUEST) == content[:size]
    amended = world.patient.amend_record("vitals", sealed.record, 2, b"second")
    client.submit([amended.transaction], [amended.blob])[0].raise_for_status()
    request = Purpose.PATIENT_REQUEST
    assert client.read_record(world.patient, sealed.record, request) == b"second"
    assert client.read_record(world.patient, sealed.record, request, version=1) == content


def test_a_refused_read_names_its_audit_entry(world: NodeWorld, client: Client) -> None:  # SPEC-CLI-4
    sealed = client.put_record(world.patient, "vitals", b"72 bpm")
    access = world.clinic.access(sealed.record, Purpose.TREATMENT)
    with pytest.raises(AccessRefused) as refusal:
        client.read(access)
    assert (refusal.value.code, refusal.value.txid) == (CONSENT_MISSING, access.txid)
    assert client.get(access.txid).code == CONSENT_MISSING
    with pytest.raises(InputError) as error:
        client.read(world.patient.open_folders("no access"))
    assert error.value.code == Code.BAD_BODY
    with pytest.raises(TransactionError):
        client.read(b"garbage")


def test_a_record_whose_envelope_is_not_there(world: NodeWorld, client: Client) -> None:
    sealed = world.patient.put_record("vitals", b"72 bpm")
    (outcome,) = client.submit([sealed.transaction])
    assert (outcome.status, outcome.code) == ("rejected", Code.BLOB_MISSING)
    assert client.store_blobs([sealed.blob, sealed.blob]) == [hashlib.sha256(sealed.blob).digest()] * 2
    assert client.submit([sealed.transaction])[0].ok


# Proofs.


def test_receipts_are_checked_against_the_pinned_chain(world: NodeWorld, client: Client) -> None:
    transaction = world.patient.open_folders("proof")
    client.submit([transaction])
    statement = client.prove(transaction.txid, verify=True)
    assert client.verify_statement(statement, transaction.txid).transaction.txid == transaction.txid
    with pytest.raises(ReceiptError):
        client.verify_statement(statement, bytes(32))
    damaged = bytearray(statement)
    damaged[-40] ^= 1
    with pytest.raises(InputError):
        client.verify_statement(bytes(damaged))


# Following.


def test_following_from_a_cursor(world: NodeWorld, client: Client) -> None:  # SPEC-CLI-6
    seen = []
    for event in client.follow(cursor=0):
        assert event.entry is not None
        assert event.cursor == event.entry.seq + 1
        seen.append(event.entry)
        if len(seen) == client.tip().transaction_count:
            break
    assert [entry.seq for entry in seen] == list(range(len(seen)))
    assert seen == client.query(limit=1_000).entries
    (behind,) = [event for _, event in zip(range(1), client.follow(cursor=3), strict=False)]
    assert behind.entry == seen[3]
    blocks = client.follow("blocks", cursor=0)
    for height in range(client.tip().height + 1):
        event = next(blocks)
        assert event.block is not None
        assert (event.block.height, event.cursor) == (height, height + 1)
    (outcome,) = client.submit([wallet(world.chain_id).open_folders("refused")])
    for event in client.follow("alerts", cursor=0):
        assert event.entry is not None
        assert event.entry.code != Code.OK
        if event.entry.txid == outcome.txid:
            break


def test_following_with_a_filter_and_from_now_on(world: NodeWorld, client: Client) -> None:  # SPEC-CLI-6
    wanted = client.query(kind="record.put", signed_by=world.patient.identity, limit=1_000).entries
    for page in client.follow_pages(cursor=0, kind="record.put", signed_by=world.patient.identity):
        wanted = [entry for entry in wanted if entry not in [event.entry for event in page.events]]
        if page.caught_up:
            break
    assert wanted == []
    assert page.cursor == client.tip().transaction_count
    pages = client.follow_pages(cursor=None)
    first = next(pages)
    assert (first.events, first.caught_up) == ([], True)
    transaction = world.patient.open_folders("now")
    client.submit([transaction])
    event = next(event for page in pages for event in page.events)
    assert event.entry is not None
    assert event.entry.txid == transaction.txid
    with pytest.raises(InputError):
        next(client.follow(kind="no.such"))


# Threads.


def test_many_threads_share_a_client(world: NodeWorld, client: Client) -> None:  # SPEC-CLI-7
    def work(number: int) -> list[Outcome]:
        person = wallet(world.chain_id)
        outcomes = client.submit([person.register(Role.PATIENT), person.open_folders("x")])
        sealed = client.put_record(person, "x", os.urandom(100))
        assert len(client.read_record(person, sealed.record, Purpose.PATIENT_REQUEST)) == 100
        for outcome in outcomes:
            assert client.get(outcome.txid).height == outcome.height
        return outcomes

    with ThreadPoolExecutor(8) as pool:
        outcomes = [outcome for found in pool.map(work, range(32)) for outcome in found]
    assert len({outcome.txid for outcome in outcomes}) == 64
    assert all(outcome.ok for outcome in outcomes)


def test_an_iterator_may_be_collected_on_the_clients_own_thread(client: Client) -> None:  # SPEC-CLI-7
    pages = client.follow_pages(cursor=None)
    next(pages)
    held = [pages]
    del pages
    # As the garbage collector does, on whatever thread it runs.
    client._loop._loop.call_soon_threadsafe(held.clear)
    heights: list[int] = []
    asking = threading.Thread(target=lambda: heights.append(client.tip().height), daemon=True)
    asking.start()
    asking.join(20)
    assert len(heights) == 1
    assert not held


def test_a_closed_client_says_so(world: NodeWorld) -> None:
    client = world.connect()
    events = client.follow()
    client.close()
    client.close()
    for use in (client.status, lambda: client.submit([b""]), lambda: next(events)):
        with pytest.raises(LedgerClosedError):
            use()


async def test_closing_ends_what_waits(world: NodeWorld) -> None:
    client = await AsyncClient.connect(world.node.url, options=ONE_TRY)
    waiting = [asyncio.create_task(client.get(bytes(32))) for _ in range(100)]
    await asyncio.sleep(0)
    await client.close()
    for error in await asyncio.gather(*waiting, return_exceptions=True):
        assert isinstance(error, UnreachableError | NotFoundError)

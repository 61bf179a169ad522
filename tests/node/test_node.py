"""The node without a wire: batches that form by themselves, reads that share a job, subscriptions that are cursors."""

import asyncio
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import cbor2
import pytest
import pytest_asyncio
from world import TERM, World, make_world, new_wallet

from fastledger import Code, Ledger, Role, Transaction
from fastledger.chain.execution.store import BlockEntry, BlockPlaces
from fastledger.chain.reading import following
from fastledger.chain.reading.following import FeedFilter
from fastledger.errors import InputError, LedgerBusyError, LedgerClosedError, NotFoundError
from fastledger.model.outcome import Outcome, Wait
from fastledger.node.feed import Feed, Subscription
from fastledger.node.options import IngestOptions
from fastledger.node.reads import Reads
from fastledger.node.service import NodeService, ServiceOptions
from fastledger.rpc.protocol import Verdict, decode_outcomes, encode_outcomes
from fastledger.subjects.consent import CONSENT_MISSING
from fastledger.subjects.identity import ALREADY_REGISTERED


@pytest_asyncio.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    made = await asyncio.to_thread(make_world, tmp_path / "ledger")
    yield made
    await asyncio.to_thread(made.close)


@pytest.fixture
def world_(tmp_path: Path) -> Iterator[World]:
    made = make_world(tmp_path / "ledger")
    yield made
    made.close()


@pytest_asyncio.fixture
async def node(world: World) -> AsyncIterator[NodeService]:
    service = await NodeService.start(world.ledger)
    yield service
    await service.stop()


def patients(world: World, count: int) -> list[Transaction]:
    """Registrations: cheap transactions that all succeed."""
    return [new_wallet(world.clock).join(world.ledger.chain_id).register(Role.PATIENT) for _ in range(count)]


class Gate:
    """Holds the executor: what was ordered before goes on, what comes later waits."""

    def __init__(self, world: World) -> None:
        self._paused = world.ledger._pipeline.paused()

    async def __aenter__(self) -> None:
        await asyncio.to_thread(self._paused.__enter__)

    async def __aexit__(self, *_: object) -> None:
        await asyncio.to_thread(self._paused.__exit__, None, None, None)


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(20):
        while not condition():  # noqa: ASYNC110 - the ledger knows no events of a loop
            await asyncio.sleep(0.002)


# Ingest.


async def test_singles_that_come_together_share_blocks(
    world: World, node: NodeService
) -> None:  # SPEC-NODE-1
    height = world.ledger.height
    transactions = patients(world, 60)
    outcomes = await asyncio.gather(*(node.ingest.submit(tx.encoded) for tx in transactions))
    assert [outcome.txid for outcome in outcomes] == [tx.txid for tx in transactions]
    assert all(outcome.ok for outcome in outcomes)
    assert world.ledger.height - height <= 3
    assert node.ingest.pending_transactions == 0


async def test_a_bad_single_does_not_spoil_its_batch(world: World, node: NodeService) -> None:  # SPEC-NODE-1
    good, bad = patients(world, 2)
    broken = bytearray(bad.encoded)
    broken[-1] ^= 1
    results = await asyncio.gather(
        node.ingest.submit(good.encoded), node.ingest.submit(bytes(broken)), node.ingest.submit(b"\xff")
    )
    assert [result.code for result in results] == [Code.OK, Code.BAD_SIGNATURE, Code.MALFORMED]
    assert [result.status for result in results] == ["durable", "rejected", "rejected"]


async def test_three_words_three_moments(world: World, node: NodeService) -> None:  # SPEC-NODE-3
    first, second, third = patients(world, 3)
    async with Gate(world):
        accepted = await asyncio.wait_for(node.ingest.submit(first.encoded, wait="accepted"), 20)
        assert (accepted.status, accepted.height) == ("accepted", None)
        batch = await asyncio.wait_for(node.ingest.submit_batch([second.encoded], wait="accepted"), 20)
        assert [outcome.status for outcome in batch] == ["accepted"]
        with pytest.raises(NotFoundError):
            world.ledger.get(first.txid)
        waiting = asyncio.create_task(node.ingest.submit(third.encoded, wait="ordered"))
        await until(lambda: world.ledger._pipeline.queue_depth == 3)
        assert not waiting.done()
    ordered = await asyncio.wait_for(waiting, 20)
    assert ordered.height is not None
    await until(lambda: world.ledger.transaction_count >= 3 and world.ledger.height >= (ordered.height or 0))
    assert world.ledger.get(first.txid).code == Code.OK


@pytest.mark.parametrize("wait", ["accepted", "ordered", "durable"])
async def test_room_is_held_until_what_took_it_is_durable(
    world: World, node: NodeService, wait: Wait
) -> None:  # SPEC-NODE-2
    one, *batch = patients(world, 3)
    encoded = [transaction.encoded for transaction in batch]
    ingest = node.ingest
    async with Gate(world):
        asking = [
            asyncio.create_task(ingest.submit(one.encoded, wait=wait)),
            asyncio.create_task(ingest.submit_batch(encoded, wait=wait)),
        ]
        await until(lambda: world.ledger._pipeline.queue_depth == 2)
        if wait == "accepted":
            await asyncio.wait_for(asyncio.gather(*asking), 20)
        else:
            # Whoever asked has gone; the batch has not.
            for task in asking:
                task.cancel()
            await asyncio.gather(*asking, return_exceptions=True)
        assert ingest.pending_transactions == 3
        assert ingest.pending_bytes == len(one.encoded) + sum(map(len, encoded))
    await until(lambda: ingest.pending_transactions == 0)
    assert ingest.pending_bytes == 0
    for transaction in (one, *batch):
        assert world.ledger.get(transaction.txid).code == Code.OK


async def test_what_the_border_rejects_is_told_at_once(
    world: World, node: NodeService
) -> None:  # SPEC-NODE-3
    async with Gate(world):
        outcome = await asyncio.wait_for(node.ingest.submit(b"\x00", wait="durable"), 20)
    assert outcome.status == "rejected"


async def test_a_sequence_goes_through_whole(world: World, node: NodeService) -> None:
    transactions = patients(world, 7)
    outcomes = await node.ingest.submit_sequence(b"".join(tx.encoded for tx in transactions))
    assert [outcome.txid for outcome in outcomes] == [tx.txid for tx in transactions]
    assert all(outcome.ok for outcome in outcomes)
    assert await node.ingest.submit_sequence(b"") == []


async def test_a_broken_sequence_names_the_byte(world: World, node: NodeService) -> None:
    transactions = patients(world, 2)
    count = world.ledger.transaction_count
    data = transactions[0].encoded + b"\x00" + transactions[1].encoded
    with pytest.raises(InputError, match=f"byte {len(transactions[0].encoded)}"):
        await node.ingest.submit_sequence(data)
    assert world.ledger.transaction_count == count
    assert node.ingest.pending_bytes == 0


async def test_a_full_queue_says_busy_and_recovers(world: World) -> None:  # SPEC-NODE-2
    options = ServiceOptions(ingest=IngestOptions(pending_transactions_max=5, retry_after_ms=70))
    node = await NodeService.start(world.ledger, options)
    transactions = patients(world, 8)
    async with Gate(world):
        tasks = [asyncio.create_task(node.ingest.submit(tx.encoded)) for tx in transactions[:5]]
        await until(lambda: node.ingest.pending_transactions == 5)
        with pytest.raises(LedgerBusyError) as caught:
            await node.ingest.submit(transactions[5].encoded)
        assert caught.value.retry_after_ms == 70
        with pytest.raises(LedgerBusyError):
            await node.ingest.submit_batch([tx.encoded for tx in transactions[6:]])
    assert all(outcome.ok for outcome in await asyncio.gather(*tasks))
    assert (await node.ingest.submit(transactions[5].encoded)).ok
    await node.stop()


async def test_who_gives_up_does_not_take_the_batch_along(world: World, node: NodeService) -> None:
    transactions = patients(world, 3)
    async with Gate(world):
        tasks = [asyncio.create_task(node.ingest.submit(tx.encoded)) for tx in transactions]
        await until(lambda: world.ledger._pipeline.queue_depth >= 1)
        tasks[1].cancel()
    outcomes = await asyncio.gather(tasks[0], tasks[2])
    assert all(outcome.ok for outcome in outcomes)
    # It had been taken, and what is taken enters.
    await until(lambda: _stands(world, transactions[1]))


def _stands(world: World, transaction: Transaction) -> bool:
    try:
        world.ledger.get(transaction.txid)
    except NotFoundError:
        return False
    return True


async def test_stopping_answers_everything_that_was_taken(world: World) -> None:  # SPEC-NODE-4
    node = await NodeService.start(world.ledger)
    transactions = patients(world, 40)
    tasks = [asyncio.create_task(node.ingest.submit(tx.encoded)) for tx in transactions]
    await asyncio.sleep(0)
    assert node.state == "ready"
    await node.stop()
    assert all(outcome.ok for outcome in await asyncio.gather(*tasks))
    assert node.state == "stopped"
    with pytest.raises(LedgerClosedError):
        await node.ingest.submit(transactions[0].encoded)
    with pytest.raises(LedgerClosedError):
        await node.read(lambda ledger: ledger.height)
    await node.stop()
    world.reopen()
    assert all(_stands(world, transaction) for transaction in transactions)


# Reads.


async def test_reads_run_off_the_loop_and_raise_what_they_raise(world: World, node: NodeService) -> None:
    seen: set[str] = set()

    def work(ledger: Any) -> int:
        seen.add(threading.current_thread().name)
        return int(ledger.height)

    heights = await asyncio.gather(*(node.read(work) for _ in range(300)))
    assert set(heights) == {world.ledger.height}
    assert all(name.startswith("fastledger-reader") for name in seen)
    with pytest.raises(NotFoundError):
        await node.read(lambda ledger: ledger.get(bytes(32)))
    assert node.reads.pending == 0


async def test_too_many_reads_are_told_to_wait(world: World) -> None:  # SPEC-NODE-2
    node = await NodeService.start(world.ledger, ServiceOptions(reads_pending_max=3))
    release = threading.Event()
    tasks = [asyncio.create_task(node.read(lambda _: release.wait(20))) for _ in range(3)]
    await until(lambda: node.reads.pending == 3)
    with pytest.raises(LedgerBusyError):
        await node.read(lambda ledger: ledger.height)
    # Pages have a lane of their own.
    assert await node.read(lambda ledger: ledger.height, heavy=True) == world.ledger.height
    release.set()
    assert await asyncio.gather(*tasks) == [True] * 3
    await node.stop()


# Following.


async def take(subscription: Subscription, count: int) -> list[Any]:
    """The next ``count`` events."""
    found: list[Any] = []
    async with asyncio.timeout(20):
        while len(found) < count:
            page = await subscription.next_page()
            found += page.blocks or page.entries
    return found


async def test_blocks_from_the_first_and_then_as_they_come(
    world: World, node: NodeService
) -> None:  # SPEC-SUB-1
    subscription = node.feed.follow("blocks", cursor=0)
    old = await take(subscription, world.ledger.height + 1)
    assert [event.block.height for event in old] == list(range(world.ledger.height + 1))
    await node.ingest.submit(patients(world, 1)[0].encoded)
    (new,) = await take(subscription, 1)
    assert new.block.height == world.ledger.height
    assert new.first_seq == world.ledger.transaction_count - 1
    assert subscription.cursor == world.ledger.height + 1


async def test_a_cursor_resumes_without_gap_or_double(world: World, node: NodeService) -> None:  # SPEC-SUB-2
    transactions = patients(world, 30)
    subscription = node.feed.follow("transactions")
    cursor = subscription.cursor
    for tx in transactions[:10]:
        await node.ingest.submit(tx.encoded)
    seen = await take(subscription, 10)
    resumed_at = seen[3].seq + 1
    subscription.close()
    for tx in transactions[10:]:
        await node.ingest.submit(tx.encoded)
    again = node.feed.follow("transactions", cursor=resumed_at)
    rest = await take(again, 26)
    txids = [entry.txid for entry in seen[:4] + rest]
    assert txids == [tx.txid for tx in transactions]
    assert [entry.seq for entry in seen[:4] + rest] == list(range(cursor, cursor + 30))


async def test_filters_ring_only_for_what_they_ask(world: World, node: NodeService) -> None:  # SPEC-SUB-3
    sealed = world.patient.put_record("vitals", b"{}", (TERM,))
    by_kind = node.feed.follow("transactions", conditions=FeedFilter(kind="record.put"))
    by_subject = node.feed.follow("transactions", conditions=FeedFilter(subject=world.patient.identity))
    by_signer = node.feed.follow("transactions", conditions=FeedFilter(signed_by=world.doctor.identity))
    for subscription in (by_kind, by_subject, by_signer):
        page = await asyncio.wait_for(subscription.next_page(), 20)
        assert page.caught_up and not page.entries
    await node.ingest.submit_batch([tx.encoded for tx in patients(world, 5)])
    assert not any(subscription._woken.is_set() for subscription in (by_kind, by_subject, by_signer))
    world.ledger.submit([sealed.transaction], [sealed.blob])[0].raise_for_status()
    for subscription in (by_kind, by_subject):
        (entry,) = await take(subscription, 1)
        assert entry.txid == sealed.transaction.txid
    assert not by_signer._woken.is_set()
    # What it passed over lies behind its cursor.
    assert by_kind.cursor == world.ledger.transaction_count


async def test_alerts_are_refusals_and_ended_identities(
    world: World, node: NodeService
) -> None:  # SPEC-SUB-4
    alerts = node.feed.follow("alerts", cursor=0)
    assert not (await asyncio.wait_for(alerts.next_page(), 20)).entries
    again = world.patient.register(Role.PATIENT)
    revoked = world.regulator.revoke_identity(world.clinic.identity)
    outcomes = world.ledger.submit([*patients(world, 2), again, revoked])
    assert [outcome.code for outcome in outcomes] == [0, 0, ALREADY_REGISTERED, 0]
    entries = await take(alerts, 2)
    assert [entry.txid for entry in entries] == [again.txid, revoked.txid]


async def test_a_slow_subscriber_holds_nothing_and_misses_nothing(  # SPEC-SUB-3
    world: World, node: NodeService
) -> None:
    slow = node.feed.follow("transactions")
    begin = slow.cursor
    for _ in range(4):
        await node.ingest.submit_batch([tx.encoded for tx in patients(world, 100)])
    entries = await take(slow, 400)
    assert [entry.seq for entry in entries] == list(range(begin, begin + 400))


async def test_pages_are_bounded_in_bytes(
    world: World, node: NodeService, monkeypatch: pytest.MonkeyPatch
) -> None:  # SPEC-SUB-3
    for _ in range(3):
        await node.ingest.submit_batch([tx.encoded for tx in patients(world, 20)])
    bytes_max = 2_000
    monkeypatch.setattr(following, "PAGE_BYTES_MAX", bytes_max)
    entries = node.feed.follow("transactions", cursor=0)
    seqs: list[int] = []
    while len(seqs) < world.ledger.transaction_count:
        page = await entries.next_page()
        assert len(page.entries) == 1 or sum(len(entry.encoded) for entry in page.entries) <= bytes_max
        seqs += [entry.seq for entry in page.entries]
        assert page.caught_up == (len(seqs) == world.ledger.transaction_count)
    assert seqs == list(range(world.ledger.transaction_count))
    blocks = node.feed.follow("blocks", cursor=0)
    heights: list[int] = []
    while len(heights) <= world.ledger.height:
        page = await blocks.next_page()
        sizes = [len(event.block.transactions) for event in page.blocks]
        assert sum(sizes[:-1]) < bytes_max
        heights += [event.block.height for event in page.blocks]
        assert page.caught_up == (len(heights) == world.ledger.height + 1)
    assert heights == list(range(world.ledger.height + 1))


async def test_followers_hear_of_the_end(world: World) -> None:
    node = await NodeService.start(world.ledger)
    subscription = node.feed.follow("blocks")
    await asyncio.wait_for(subscription.next_page(), 20)
    waiting = asyncio.create_task(subscription.next_page())
    await asyncio.sleep(0.01)
    await node.stop()
    with pytest.raises(LedgerClosedError):
        await asyncio.wait_for(waiting, 20)
    with pytest.raises(LedgerClosedError):
        node.feed.follow("blocks")


async def test_a_loop_that_has_ended_does_not_halt_the_ledger(world: World) -> None:  # SPEC-NODE-4
    class Ended:
        def is_closed(self) -> bool:
            return False  # a moment ago

        def call_soon_threadsafe(self, *_: object) -> None:
            raise RuntimeError("Event loop is closed")

    Feed(world.ledger, Reads(pending_max=1), Ended())  # type: ignore[arg-type]
    for transaction in patients(world, 2):
        outcomes = await asyncio.to_thread(world.ledger.submit, [transaction])
        assert outcomes[0].ok
    assert not world.ledger.halted


async def test_closed_subscriptions_are_forgotten(world: World, node: NodeService) -> None:
    subscriptions = [
        node.feed.follow("blocks"),
        node.feed.follow("alerts"),
        node.feed.follow("transactions", conditions=FeedFilter(signed_by=world.doctor.identity)),
    ]
    assert node.feed.subscription_count == 3
    for subscription in subscriptions:
        subscription.close()
        subscription.close()
    assert node.feed.subscription_count == 0
    assert not node.feed._by_term


# The wire's verdict array.


def test_verdict_arrays_go_there_and_back() -> None:  # SPEC-RPC-4
    outcomes = [
        Outcome(b"\x01" * 32, Code.OK, 7, 0),
        Outcome(b"\x02" * 32, Code.BAD_SIGNATURE),
        Outcome(b"\x03" * 32, CONSENT_MISSING, 2**40, 9_999, duplicate=True),
    ]
    data = encode_outcomes(outcomes, wait="durable")
    assert decode_outcomes(data, [outcome.txid for outcome in outcomes]) == ("durable", outcomes)
    version, _, codes, *_ = cbor2.loads(data)
    assert version == 1
    assert codes.tag == 69  # RFC 8746: uint16, little-endian
    assert [Verdict.of(outcome).outcome() for outcome in outcomes] == outcomes


@pytest.mark.parametrize(
    "change", [lambda d: d[:-1], lambda d: b"", lambda d: b"\x80", lambda d: d.replace(b"\x82", b"\x81")]
)
def test_an_answer_that_does_not_fit_is_refused(change: Callable[[bytes], bytes]) -> None:  # SPEC-RPC-4
    data = encode_outcomes([Outcome(bytes(32), Code.OK, 7, 0)], wait="durable")
    with pytest.raises(InputError):
        decode_outcomes(change(data), [bytes(32), bytes(32)])


# Reads that share a snapshot.


async def test_reads_of_one_job_see_what_was_durable_before(world: World, node: NodeService) -> None:
    async with asyncio.timeout(30):
        for transaction in patients(world, 20):
            outcome = await node.ingest.submit(transaction.encoded)
            height = outcome.height or 0
            entries = await asyncio.gather(
                *(node.read(partial(Ledger.get, txid=transaction.txid)) for _ in range(5))
            )
            assert {entry.height for entry in entries} == {height}
            assert (await node.read(partial(Ledger.block, height=height))).height == height


def test_a_shared_snapshot_stands_still(world_: World) -> None:
    before = world_.ledger.query().end_seq
    with world_.ledger.shared_snapshot():
        world_.submit(*patients(world_, 3))
        assert world_.ledger.query().end_seq == before
    assert world_.ledger.query().end_seq == before + 3


def test_places_of_blocks_are_found_again_and_bounded(world_: World) -> None:
    for transaction in patients(world_, 12):
        world_.submit(transaction)
    world_.ledger.checkpoint()
    with world_.ledger._store.snapshot() as snapshot:
        expected = {seq: snapshot._index.block_of_seq(seq) for seq in range(snapshot.end_seq)}
        places = BlockPlaces(places_max=4)
        for seq in [*expected, *reversed(expected), 0, 5, 19, 3]:
            found = places.find(seq)
            truth = expected[seq]
            assert truth is not None
            if found is None:
                places.add(truth[0], BlockEntry.unpack(truth[2]))
                found = places.find(seq)
            assert found is not None and found[0] == truth[0]
            assert len(places._found[0]) <= 4
        assert places.find(snapshot.end_seq) is None

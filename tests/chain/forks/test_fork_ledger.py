"""The façade over a chain that may reorganise: submissions, keeping, restarts (SPEC-FORK-12)."""

import threading
import time
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest
from fork_world import EASY_BITS, mine, mining, patients
from world import TERM, VITALS, Clock, new_wallet

from fastledger import (
    Genesis,
    Ledger,
    LedgerOptions,
    Purpose,
    Role,
    SigningKey,
    import_blocks,
    restore_backup,
    restore_snapshot,
)
from fastledger.chain.forks.chain import ForkChain
from fastledger.chain.forks.events import BlockConnected, BlocksFinal
from fastledger.chain.forks.mining import mine_block
from fastledger.errors import (
    Code,
    InputError,
    LedgerBusyError,
    LedgerClosedError,
    LedgerHaltedError,
    NotFoundError,
)
from fastledger.model.genesis import WorkParameters
from fastledger.model.outcome import Outcome
from fastledger.model.receipt import verify_statement
from fastledger.subjects.reward import ACCOUNTS

DEPTH = 3


def make_chain(
    clock: Clock, keys: list[SigningKey], *, finality_depth: int = DEPTH, **fields: Any
) -> Genesis:
    work = WorkParameters(
        spacing_ms=1_000,
        initial_bits=EASY_BITS,
        limit_bits=EASY_BITS,
        finality_depth=finality_depth,
        rewards=((0, 7),),
    )
    return Genesis.create(
        created_ms=clock.now_ms,
        proposers=tuple(key.public_key for key in keys),
        engine="pow",
        work=work,
        **fields,
    )


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def key() -> SigningKey:
    return SigningKey.generate()


@pytest.fixture
def ledger(tmp_path: Path, clock: Clock, key: SigningKey) -> Iterator[Ledger]:
    with Ledger.join(
        tmp_path / "ledger",
        make_chain(clock, [key]),
        node_key=key,
        options=LedgerOptions(clock_ms=clock, verify_threads=1),
    ) as opened:
        yield opened


def submit_and_mine(ledger: Ledger, clock: Clock, *items: Any, blobs: Any = ()) -> list[Outcome]:
    future = ledger.submit_nowait(items, blobs)
    mine(ledger, clock, DEPTH + 1)
    return future.result(10)


def test_the_stages_of_a_submission(ledger: Ledger, clock: Clock) -> None:  # SPEC-FORK-12
    (transaction,) = patients(ledger.genesis, 1, clock)
    submission = ledger.begin([transaction])
    assert [outcome.status for outcome in submission.accepted] == ["accepted"]
    assert ledger.queue_depth == 1
    mine(ledger, clock)
    (outcome,) = submission.ordered.result(10)
    assert (outcome.height, outcome.code) == (1, Code.OK)
    mine(ledger, clock, DEPTH - 1)
    assert not submission.durable.done()
    assert (ledger.height, ledger.transaction_count) == (0, 0)
    with pytest.raises(NotFoundError):
        ledger.get(transaction.txid)
    mine(ledger, clock)
    (outcome,) = submission.durable.result(10)
    assert (outcome.status, outcome.height, outcome.duplicate) == ("durable", 1, False)
    assert ledger.get(transaction.txid).height == 1
    assert ledger.queue_depth == 0
    statement = ledger.prove(transaction.txid)
    found = verify_statement(statement, chain_id=ledger.chain_id, proposers=ledger.genesis.proposers)
    assert found.height == 1
    assert ledger.entity(ACCOUNTS, ledger.genesis.proposers[0]).balance == 7 * ledger.height


def test_a_retry_gets_the_first_verdict(ledger: Ledger, clock: Clock) -> None:  # SPEC-FORK-12
    (transaction,) = patients(ledger.genesis, 1, clock)
    first = ledger.submit_nowait([transaction])
    waiting = ledger.submit_nowait([transaction, transaction])
    mine(ledger, clock)
    ordered = ledger.submit_nowait([transaction])
    mine(ledger, clock, DEPTH)
    assert [outcome.duplicate for outcome in first.result(10)] == [False]
    assert [outcome.duplicate for outcome in waiting.result(10)] == [True, True]
    assert [(outcome.height, outcome.duplicate) for outcome in ordered.result(10)] == [(1, True)]
    (late,) = ledger.submit([transaction])
    assert (late.height, late.duplicate, late.code) == (1, True, Code.OK)
    clock.advance(25 * 60 * 60 * 1_000)
    (late,) = ledger.submit([transaction])
    assert (late.height, late.duplicate) == (1, True)


def test_bad_ones_are_rejected_and_the_rest_goes_through(ledger: Ledger, clock: Clock) -> None:
    good, other = patients(ledger.genesis, 2, clock)
    spoiled = good.encoded[:-1] + bytes([good.encoded[-1] ^ 1])
    outcomes = submit_and_mine(ledger, clock, spoiled, other, b"junk")
    assert [outcome.status for outcome in outcomes] == ["rejected", "durable", "rejected"]
    assert outcomes[0].code == Code.BAD_SIGNATURE
    assert ledger.submit([spoiled])[0].code == Code.BAD_SIGNATURE
    assert ledger.submit([]) == []


def test_what_no_block_can_hold_any_more_is_expired(ledger: Ledger, clock: Clock) -> None:  # SPEC-POOL-5
    (transaction,) = patients(ledger.genesis, 1, clock)
    submission = ledger.begin([transaction])
    clock.advance(25 * 60 * 60 * 1_000)
    mine(ledger, clock, DEPTH)
    assert not submission.durable.done()
    mine(ledger, clock)
    (outcome,) = submission.durable.result(10)
    assert (outcome.status, outcome.code) == ("rejected", Code.EXPIRED)
    assert ledger.transaction_count == 0


def test_records_reads_and_erasure(tmp_path: Path, clock: Clock, key: SigningKey) -> None:
    regulator, patient, doctor = (new_wallet(clock) for _ in range(3))
    genesis = make_chain(clock, [key], authorities=(regulator.authority,))
    options = LedgerOptions(clock_ms=clock, verify_threads=1)
    with Ledger.join(tmp_path / "ledger", genesis, node_key=key, options=options) as ledger:
        for wallet in (regulator, patient, doctor):
            wallet.join(ledger.chain_id)
        with mining(ledger, clock):
            outcomes = ledger.submit([patient.register(Role.PATIENT), patient.open_folders("vitals")])
            assert all(outcome.ok for outcome in outcomes)
            sealed = patient.put_record("vitals", VITALS, [TERM])
            assert ledger.submit([sealed.transaction], [sealed.blob])[0].ok
            assert ledger.read(patient.access(sealed.record, Purpose.PATIENT_REQUEST)) == sealed.blob
            assert ledger.submit([patient.erase_record(sealed.record)])[0].ok
        with pytest.raises(NotFoundError):
            list(ledger.blob_reader(ledger.record_version(sealed.record).digest))
        assert ledger.verify().problems == []


def test_reopening_goes_on_where_it_stood(tmp_path: Path, clock: Clock, key: SigningKey) -> None:
    options = LedgerOptions(clock_ms=clock, verify_threads=1)
    genesis = make_chain(clock, [key])
    with Ledger.join(tmp_path / "a", genesis, node_key=key, keep_key=True, options=options) as ledger:
        transactions = patients(genesis, 3, clock)
        late = ledger.begin(transactions[:2])
        mine(ledger, clock, DEPTH)
        assert ledger.forks is not None
        tip = ledger.forks.call(lambda chain: chain.tip).result(10)
    with pytest.raises(LedgerClosedError):
        late.durable.result(0)
    assert late.ordered.result(0)[0].height == 1
    for reopen in (Ledger.open, Ledger.reindex):
        with reopen(tmp_path / "a", options=options) as ledger:
            assert ledger.forks is not None
            assert ledger.forks.call(lambda chain: chain.tip).result(10) == tip
            again = ledger.submit_nowait(transactions[:2])
            assert not again.done()
    with Ledger.open(tmp_path / "a", options=options) as ledger:
        again = ledger.submit_nowait(transactions[:2])
        mine(ledger, clock)
        assert [outcome.duplicate for outcome in again.result(10)] == [True, True]
        assert ledger.verify().ok


def test_a_genesis_document_is_joined_by_members_and_watchers(tmp_path: Path, clock: Clock) -> None:
    keys = [SigningKey.generate() for _ in range(2)]
    genesis, options = make_chain(clock, keys), LedgerOptions(clock_ms=clock)
    with pytest.raises(InputError):
        Ledger.join(tmp_path / "c", genesis, node_key=SigningKey.generate(), options=options)
    assert not (tmp_path / "c").exists()
    with (
        Ledger.join(tmp_path / "a", genesis, node_key=keys[0], options=options) as ours,
        Ledger.join(tmp_path / "b", genesis.encoded, options=options) as theirs,
    ):
        assert theirs.is_replica
        assert ours.forks is not None and theirs.forks is not None
        told: list[object] = []
        stop = theirs.forks.subscribe(told.extend)
        blocks = mine(ours, clock, DEPTH + 1)
        for block in blocks:
            theirs.forks.call(lambda chain, block=block: chain.add_block(block, clock.now_ms)).result(10)
        stop()
        assert sum(isinstance(event, BlockConnected) for event in told) >= DEPTH
        assert theirs.height == ours.height == 1
        assert theirs.state_root == ours.state_root
        with pytest.raises(InputError):
            theirs.submit(patients(genesis, 1, clock))
        assert theirs.forks.call(lambda chain: chain.template(clock.now_ms)).result(10) is None


# Keeping.


@pytest.fixture
def lived(ledger: Ledger, clock: Clock) -> Ledger:
    """A chain with some final transactions and a few blocks above."""
    for _ in range(3):
        submit_and_mine(ledger, clock, *patients(ledger.genesis, 4, clock))
    return ledger


def test_verify_beside_a_miner_and_paused(lived: Ledger, clock: Clock) -> None:
    assert lived.verify().problems == []
    with mining(lived, clock):
        report = lived.verify(online=True)
        assert report.problems == []
    assert report.transactions == 12


def test_backup_and_restore(lived: Ledger, clock: Clock, tmp_path: Path, key: SigningKey) -> None:
    with mining(lived, clock):
        report = lived.backup(tmp_path / "backup", include_snapshot=True)
    restored = restore_backup(tmp_path / "backup", tmp_path / "restored")
    assert (restored.height, restored.state_root) == (report.height, report.state_root)
    assert restored.verified is None or restored.verified.ok
    options = LedgerOptions(clock_ms=clock)
    with Ledger.open(tmp_path / "restored", node_key=key, options=options) as ledger:
        mine(ledger, clock, DEPTH + 1)
        assert ledger.height > report.height
        assert ledger.verify().ok


def test_snapshot_restored_alone_goes_on(
    lived: Ledger, clock: Clock, tmp_path: Path, key: SigningKey
) -> None:
    manifest = lived.snapshot(tmp_path / "snapshot")
    restored = restore_snapshot(
        tmp_path / "snapshot", tmp_path / "restored", lived.genesis.encoded, node_key=key
    )
    assert (restored.height, restored.block_id) == (manifest.height, manifest.block_id)
    options = LedgerOptions(clock_ms=clock)
    with Ledger.open(tmp_path / "restored", options=options) as ledger:
        assert lived.forks is not None and ledger.forks is not None
        locator = ledger.forks.call(ForkChain.locator).result(10)
        headers = lived.forks.call(lambda chain: chain.headers_after(locator, 100)).result(10)
        assert headers[0].body.height == manifest.height + 1
        for header in headers:
            block = lived.forks.call(lambda chain, header=header: chain.block(header.block_id)).result(10)
            assert block is not None
            ledger.forks.call(lambda chain, block=block: chain.add_block(block, clock.now_ms)).result(10)
        ours, theirs = (
            each.forks.call(lambda chain: (chain.tip.block_id, chain.work)).result(10)  # type: ignore[union-attr]
            for each in (lived, ledger)
        )
        assert ours == theirs


def test_export_and_import(lived: Ledger, tmp_path: Path) -> None:
    out = BytesIO()
    lived.export_blocks(out, with_blobs=True)
    out.seek(0)
    report = import_blocks(out, tmp_path / "imported")
    assert (report.height, report.state_root) == (lived.height, lived.state_root)
    lines = BytesIO()
    assert lived.export_ndjson(lines).transactions == 12


def test_pruning(lived: Ledger, clock: Clock) -> None:
    report = lived.prune(keep_blocks=1)
    assert report.first_height == 0  # one segment is kept whole
    mine(lived, clock, 2)
    assert lived.verify().ok


# Pausing, bounds, failures.


def test_a_pause_holds_everything(ledger: Ledger, clock: Clock) -> None:
    assert ledger.forks is not None
    mine(ledger, clock, DEPTH)
    with ledger.forks.paused():
        clock.advance(1_000)
        call = ledger.forks.call(lambda chain: mine_block(chain, clock.now_ms))
        time.sleep(0.4)  # longer than a tick
        assert not call.done()
        assert ledger.height == 0
    call.result(10)
    assert ledger.forks.call(lambda chain: chain.final.height).result(10) == 1


def test_a_full_pool_is_busy(ledger: Ledger, clock: Clock) -> None:  # SPEC-POOL-1
    assert ledger.forks is not None
    ledger.forks._chain.mempool.transactions_max = 5
    transactions = patients(ledger.genesis, 7, clock)
    first = ledger.submit_nowait(transactions[:4])
    with pytest.raises(LedgerBusyError):
        ledger.submit_nowait(transactions[4:])
    waiting = threading.Thread(target=lambda: ledger.begin(transactions[4:], wait=True))
    waiting.start()
    mine(ledger, clock)
    waiting.join(10)
    assert not waiting.is_alive()
    mine(ledger, clock, DEPTH + 1)
    assert [outcome.ok for outcome in first.result(10)] == [True] * 4
    assert ledger.submit(transactions[4:])[0].duplicate


def test_an_error_of_the_caller_is_the_callers(ledger: Ledger) -> None:
    assert ledger.forks is not None

    def refuse(_: ForkChain) -> None:
        raise InputError("no")

    with pytest.raises(InputError):
        ledger.forks.call(refuse).result(10)
    assert not ledger.halted


def test_a_failure_halts_and_tells_everyone(
    ledger: Ledger, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:  # SPEC-PIPE-2
    assert ledger.forks is not None
    future = ledger.submit_nowait(patients(ledger.genesis, 1, clock))
    mine(ledger, clock, DEPTH)

    def fail() -> None:
        raise LedgerHaltedError("sync failed")

    monkeypatch.setattr(ledger._log, "sync", fail)
    with pytest.raises(LedgerHaltedError):
        mine(ledger, clock)
    with pytest.raises(LedgerHaltedError):
        future.result(10)
    assert ledger.halted
    assert ledger.transaction_count == 0
    with pytest.raises(LedgerHaltedError):
        ledger.submit(patients(ledger.genesis, 1, clock))
    with pytest.raises(LedgerHaltedError):
        ledger.forks.call(lambda chain: chain.tip)


def test_calls_that_never_ran_fail_at_closing(tmp_path: Path, clock: Clock, key: SigningKey) -> None:
    ledger = Ledger.join(
        tmp_path / "x", make_chain(clock, [key]), node_key=key, options=LedgerOptions(clock_ms=clock)
    )
    assert ledger.forks is not None
    begun, go = threading.Event(), threading.Event()

    def hold(_: ForkChain) -> None:
        begun.set()
        go.wait(10)

    ledger.forks.post(hold)
    assert begun.wait(10)
    late = ledger.forks.call(lambda chain: chain.tip)
    closing = threading.Thread(target=ledger.close)
    closing.start()
    while not ledger.forks._closing:
        time.sleep(0.001)
    go.set()
    closing.join(10)
    with pytest.raises(LedgerClosedError):
        late.result(0)
    with pytest.raises(LedgerClosedError):
        ledger.submit(patients(ledger.genesis, 1, clock))


def test_listeners_hear_of_final_blocks(ledger: Ledger, clock: Clock) -> None:
    assert ledger.forks is not None
    heights: list[int] = []
    events: list[object] = []
    ledger.add_listener(lambda layers: heights.extend(layer.height for layer in layers))
    ledger.forks.subscribe(events.extend)
    mine(ledger, clock, DEPTH + 2)
    assert heights == [1, 2]
    final = [layer.height for event in events if isinstance(event, BlocksFinal) for layer in event.layers]
    assert final == [1, 2]

"""Verification beside submissions, and what all long operations share: a rate, progress, an end."""

import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from feeds import Feed, History, fill, small_files, submit_next
from storage_faults import flip
from test_backup import Load
from world import World, make_world

from fastledger import Ledger, restore_snapshot
from fastledger.errors import (
    InputError,
    LedgerClosedError,
    NotFoundError,
    OperationCancelledError,
)
from fastledger.pace import Pace

Filled = tuple[World, list[Feed], History]


@pytest.fixture
def filled(tmp_path: Path) -> Iterator[Filled]:
    with small_files():
        world = make_world(tmp_path / "ledger", checkpoint_transactions=40)
        feeds, history = fill(world, 40)
        yield world, feeds, history
        world.close()


# Pace.


def test_a_rate_is_kept_and_does_not_pile_up(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100.0

    def sleep(seconds: float) -> None:
        nonlocal now
        now += seconds

    monkeypatch.setattr("fastledger.pace.time.monotonic", lambda: now)
    monkeypatch.setattr("fastledger.pace.time.sleep", sleep)
    pace = Pace(rate_bytes_per_second=1_000)
    for _ in range(20):
        pace.spend(500)
    assert 109.9 < now < 110.1
    now = 10_000.0  # a long pause earns one second at most
    for _ in range(20):
        pace.spend(500)
    assert 10_008.9 < now < 10_009.1
    with pytest.raises(InputError):
        Pace(rate_bytes_per_second=0)


def test_whoever_calls_it_off_is_heard() -> None:
    cancel, closing = threading.Event(), threading.Event()
    pace = Pace(cancel=cancel, closing=closing)
    pace.spend(1 << 40)
    pace.tell("stage", 0, 1)
    cancel.set()
    for call in (pace.check, lambda: pace.spend(1), lambda: pace.tell("stage", 0, 1)):
        with pytest.raises(OperationCancelledError):
            call()
    cancel.clear()
    closing.set()
    with pytest.raises(LedgerClosedError):
        pace.check()


# Verifying online.


def test_a_verification_beside_submissions(filled: Filled) -> None:  # SPEC-REP-5
    world, feeds, history = filled
    stages: list[str] = []
    begun = world.ledger.height
    with Load(world.ledger, feeds) as load:
        while load.batches < 4:
            time.sleep(0.001)
        before = load.batches
        report = world.ledger.verify(
            lambda stage, _done, _total: stages.append(stage), online=True, rate_bytes_per_second=1_000_000
        )
        during = load.batches - before
    assert report.problems == []
    assert during > 4, "submissions waited"
    assert begun < report.height <= world.ledger.height
    assert report.blocks == report.height + 1
    assert dict.fromkeys(stages) == dict.fromkeys(("log", "blobs", "blocks", "records"))
    assert not any(world.path.glob("tmp/*"))
    history.check(world.ledger, everything=True)


def test_a_snapshot_beside_submissions_is_of_one_height(
    filled: Filled, tmp_path: Path
) -> None:  # SPEC-SNAP-5
    world, feeds, _ = filled
    with Load(world.ledger, feeds) as load:
        while load.batches < 4:
            time.sleep(0.001)
        manifest = world.ledger.snapshot(tmp_path / "snapshot", rate_bytes_per_second=200_000)
    assert world.ledger.height > manifest.height
    block = world.ledger.block(manifest.height)
    assert (block.block_id, block.body.state_root) == (manifest.block_id, manifest.state_root)
    genesis = world.ledger.genesis.encoded
    report = restore_snapshot(tmp_path / "snapshot", tmp_path / "restored", genesis)
    assert report.transactions == sum(
        world.ledger.block(height).count for height in range(manifest.height + 1)
    )


def test_what_is_erased_meanwhile_is_no_damage(filled: Filled) -> None:  # SPEC-REP-5
    world, _, _ = filled
    records = [world.put(b"%d" % n * 300) for n in range(6)] + [world.put(bytes(15_000)) for _ in range(2)]
    done: set[str] = set()

    def erase(stage: str, _done: int, _total: int) -> None:
        if stage in done:
            return
        done.add(stage)
        for _ in range(2):
            if records:
                world.submit(world.patient.erase_record(records.pop().record))

    assert world.ledger.verify(erase, online=True).problems == []
    assert records == []


@pytest.mark.parametrize("online", [False, True])
def test_damage_is_found_either_way(filled: Filled, online: bool) -> None:  # SPEC-REP-3, SPEC-REP-5
    world, _, _ = filled
    segment = sorted((world.path / "log").iterdir())[0]
    pack = sorted((world.path / "blobs" / "packs").iterdir())[0]
    for path, offset in ((segment, 2_000), (pack, 400)):
        flip(path, offset)
        problems = world.ledger.verify(online=online).problems
        assert any(path.name in problem for problem in problems), path
        flip(path, offset)
    assert world.ledger.verify(online=online).problems == []


def test_a_cancelled_verification_leaves_nothing(filled: Filled) -> None:
    world, feeds, history = filled
    for online in (True, False):
        for stage in ("log", "blobs", "blocks", "records"):
            cancel = threading.Event()

            def at(
                told: str, _done: int, _total: int, stage: str = stage, cancel: threading.Event = cancel
            ) -> None:
                if told == stage:
                    cancel.set()

            with pytest.raises(OperationCancelledError):
                world.ledger.verify(at, online=online, cancel=cancel)
            assert not any(world.path.glob("tmp/*"))
            submit_next(world.ledger, feeds[0], history)
    assert world.ledger.verify(online=True).problems == []


def test_operations_wait_for_each_other(filled: Filled, tmp_path: Path) -> None:
    world, _, _ = filled
    running = 0
    most = 0
    lock = threading.Lock()

    def told(_stage: str, _done: int, _total: int) -> None:
        nonlocal running, most
        with lock:
            running += 1
            most = max(most, running)
        time.sleep(0.0005)
        with lock:
            running -= 1

    work: list[Callable[[], object]] = [
        lambda: world.ledger.verify(told, online=True),
        lambda: world.ledger.backup(tmp_path / "backup", progress=told),
        lambda: world.ledger.snapshot(progress=told),
        lambda: world.ledger.prune(keep_blocks=1, progress=told),
        lambda: world.ledger.verify(told),
    ]
    threads = [threading.Thread(target=each) for each in work]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most == 1
    assert world.ledger.verify().problems == []


def test_a_closed_ledger_keeps_nothing(filled: Filled, tmp_path: Path) -> None:
    world, _, _ = filled
    world.close()
    for call in (
        world.ledger.verify,
        world.ledger.snapshot,
        lambda: world.ledger.backup(tmp_path / "backup"),
        lambda: world.ledger.prune(keep_blocks=1),
    ):
        with pytest.raises(LedgerClosedError):
            call()


def test_reading_goes_on_while_blocks_are_pruned(filled: Filled) -> None:  # SPEC-PRUNE-4
    world, feeds, history = filled
    failures: list[BaseException] = []
    stop = threading.Event()

    def read() -> None:
        while not stop.is_set():
            for height in range(world.ledger.height):
                try:
                    assert world.ledger.block(height).height == height
                except NotFoundError:
                    continue
                except BaseException as error:
                    failures.append(error)
                    return

    threads = [threading.Thread(target=read) for _ in range(1)]
    for thread in threads:
        thread.start()
    for _ in range(3):
        for number in range(10):
            submit_next(world.ledger, feeds[number % 2], history)
        world.ledger.prune(keep_blocks=5)
    stop.set()
    for thread in threads:
        thread.join()
    assert failures == []


def test_a_replica_answers_and_takes_nothing(filled: Filled) -> None:  # SPEC-BAK-6
    world, _, history = filled
    head = world.ledger.head
    world.close()
    (world.path / "node.key").unlink()
    with Ledger.open(world.path, replica=True) as replica:
        assert replica.head == head and replica.is_replica
        history.check(replica, everything=True)
        assert replica.verify().problems == []
        with pytest.raises(InputError):
            replica.submit(history.batches[0].transactions, history.batches[0].blobs)
        assert replica.prune(keep_blocks=1).freed_bytes > 0
    with pytest.raises(InputError):
        Ledger.open(world.path)

"""Full disks, failing syncs, two owners, closing in the middle: nothing acknowledged is lost and nobody hangs."""

import asyncio
import errno
import os
import random
import resource
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, wait
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from feeds import (
    Feed,
    History,
    Planned,
    check_all,
    check_blocks,
    fill,
    holds,
    make_feeds,
    small_files,
    submit_next,
)
from storage_faults import PowerCutFiles, SimulatedCrash
from world import World, make_world

from fastledger import AsyncLedger, Code, Ledger, Outcome
from fastledger.errors import (
    FastLedgerError,
    LedgerBusyError,
    LedgerClosedError,
    LedgerError,
    LedgerHaltedError,
    LedgerLockedError,
    StorageFullError,
)
from fastledger.limits import PENDING_BATCHES_MAX
from fastledger.storage.files import OpenFile, OsFiles
from fastledger.storage.index import Index
from fastledger.subjects.record import RECORD_EXISTS

WAIT_SECONDS_MAX = 60
SEGMENT_BYTES = 128 * 1024  # room for a block of a full queue


@pytest.fixture(autouse=True)
def small() -> Iterator[None]:
    with small_files(SEGMENT_BYTES):
        yield


@pytest.fixture
def filled(tmp_path: Path) -> Iterator[tuple[World, list[Feed], History]]:
    """An open ledger with some acknowledged work, and more to come."""
    world = make_world(tmp_path / "ledger", checkpoint_transactions=20)
    feeds, history = fill(world, 6)
    yield world, feeds, history
    world.ledger.close()


def submit_until_it_fails(ledger: Ledger, feed: Feed, history: History) -> tuple[Planned, FastLedgerError]:
    """The batch that was not acknowledged, and why."""
    for _ in range(10_000):
        planned = feed.plan()
        try:
            outcomes = ledger.submit(planned.transactions, planned.blobs)
        except FastLedgerError as error:
            return planned, error
        history.acknowledge(planned, [outcome.code for outcome in outcomes])
    raise AssertionError("it never failed")


def resubmit(ledger: Ledger, planned: Planned, history: History) -> None:
    outcomes = ledger.submit(planned.transactions, planned.blobs)
    history.acknowledge(planned, [outcome.code for outcome in outcomes])


def close_halted(ledger: Ledger) -> None:
    """Whatever closing a halted ledger says, it lets go of everything."""
    with suppress(LedgerError):
        ledger.close()


# Full disks.


@contextmanager
def file_size_limit(path: Path, size: int) -> Iterator[Callable[[], None]]:
    """No file may grow beyond ``size``; the yielded function lifts that."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)

    def lift() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))

    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield lift
    finally:
        lift()


@contextmanager
def small_disk(path: Path, size: int) -> Iterator[Callable[[], None]]:
    """A tmpfs of ``size`` bytes on ``path``; the yielded function gives it room."""
    command = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(path)]
    if os.geteuid() != 0 or subprocess.run(command, capture_output=True, check=False).returncode != 0:
        pytest.skip("only root can mount a small disk")
    try:
        yield lambda: subprocess.run(["mount", "-o", "remount,size=256m", str(path)], check=True) and None
    finally:
        subprocess.run(["umount", "-l", str(path)], check=True)


def check_full_disk(world: World, history: History, feed: Feed, lift: Callable[[], None]) -> None:
    """The disk of ``world`` is about to be full; ``lift`` ends that."""
    planned, error = submit_until_it_fails(world.ledger, feed, history)
    # A checkpoint that found no space has halted the ledger behind the submitter's back.
    assert isinstance(error if isinstance(error, StorageFullError) else error.__cause__, StorageFullError)
    assert "storage-full" in str(error)
    check_blocks(world.ledger)
    history.check(world.ledger, everything=True)  # what was acknowledged can still be read
    with pytest.raises((LedgerHaltedError, StorageFullError)):
        resubmit(world.ledger, planned, history)
    close_halted(world.ledger)
    # It opens while the disk is full, too, to be read.
    ledger = Ledger.open(world.path, options=world.options)
    check_blocks(ledger)
    history.check(ledger, everything=True)
    close_halted(ledger)
    lift()
    world.ledger = Ledger.open(world.path, options=world.options)
    resubmit(world.ledger, planned, history)
    for _ in range(5):
        submit_next(world.ledger, feed, history)
    check_all(world.ledger, history)
    world.ledger.close()


@pytest.mark.parametrize("size", [1100, 1240, 1340, 1450])
def test_a_full_disk(tmp_path: Path, size: int) -> None:  # SPEC-LOG-6, SPEC-PIPE-2
    with small_disk(tmp_path, size * 1024) as lift:
        world = make_world(tmp_path / "ledger", checkpoint_transactions=20)
        feeds, history = make_feeds(world, random.Random(size), 1), History()
        check_full_disk(world, history, feeds[0], lift)


@pytest.mark.parametrize("size", [64, 150])
def test_a_file_size_limit(tmp_path: Path, size: int) -> None:  # SPEC-LOG-6, SPEC-PIPE-2
    """Packs and the index outgrow it; the segments do not."""
    world = make_world(tmp_path / "ledger", checkpoint_transactions=20)
    feeds, history = make_feeds(world, random.Random(size), 1), History()
    with file_size_limit(tmp_path, size * 1024) as lift:
        check_full_disk(world, history, feeds[0], lift)


# Syncs that fail.


@contextmanager
def failing_sync(suffix: str, after: int) -> Iterator[None]:
    """fdatasync of files with ``suffix`` fails, from call number ``after`` on."""
    calls = 0

    def fdatasync(files: OsFiles, file: OpenFile) -> None:
        nonlocal calls
        if file.path.name.endswith(suffix):
            calls += 1
            if calls > after:
                raise OSError(errno.EIO, os.strerror(errno.EIO))
        os.fdatasync(file.fd)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(OsFiles, "raw_fdatasync", fdatasync)
        yield


@pytest.mark.parametrize("suffix", [".seg", ".pack"])
@pytest.mark.parametrize("after", [0, 7])
def test_a_failed_sync_halts(
    filled: tuple[World, list[Feed], History], suffix: str, after: int
) -> None:  # SPEC-LOG-6, SPEC-PIPE-2
    world, feeds, history = filled
    with failing_sync(suffix, after):
        planned, error = submit_until_it_fails(world.ledger, feeds[0], history)
        assert isinstance(error, LedgerHaltedError)
        assert "EIO" in str(error)
        history.check(world.ledger, everything=True)
    # The device is well again, which nobody relies on: the kernel may have dropped what it did not write.
    while not planned.blobs:
        planned = feeds[0].plan()
    with pytest.raises(LedgerHaltedError):
        world.ledger.submit(planned.transactions, planned.blobs)
    close_halted(world.ledger)
    world.ledger = Ledger.open(world.path, options=world.options)
    check_all(world.ledger, history)


class PowerCut(PowerCutFiles):
    """A disk that does nothing more from operation number ``fatal`` on."""

    def __init__(self, fatal: int) -> None:
        super().__init__()
        self._left = fatal
        self._one = threading.RLock()

    def __getattribute__(self, name: str) -> Any:
        found = super().__getattribute__(name)
        return partial(self._count, found) if name.startswith("raw_") else found

    def _count(self, method: Callable[..., Any], *arguments: Any) -> Any:
        with self._one:
            self._left -= 1
            if self._left <= 0:
                raise SimulatedCrash
            return method(*arguments)


@contextmanager
def on_disk(files: OsFiles) -> Iterator[None]:
    """Ledgers opened in the block write through ``files``."""
    with pytest.MonkeyPatch.context() as patch:
        for module in ("directory", "log", "blobs.store"):
            patch.setattr(f"fastledger.storage.{module}.OsFiles", lambda: files)
        yield


def test_nothing_acknowledged_is_lost_by_a_power_cut(tmp_path: Path) -> None:  # SPEC-PIPE-1, SPEC-BLOB-1
    """Sectors that no sync has covered come back as they were, at a random moment of two threads' work."""
    rng = random.Random(99)
    world = make_world(tmp_path / "ledger", checkpoint_transactions=20)
    feeds, history = make_feeds(world, rng, 2), History()
    pending: list[Planned | None] = [None, None]
    world.ledger.close()
    for _ in range(12):
        disk = PowerCut(rng.randint(1, 300))
        with on_disk(disk), suppress(SimulatedCrash, FastLedgerError):
            world.ledger = Ledger.open(world.path, options=world.options)
            run_feeds(world.ledger, feeds, pending, history)
            world.ledger.close()
        disk.cut(rng)
        with Ledger.open(world.path, options=world.options) as ledger:
            check_all(ledger, history)
        world.clock.advance(1000)
    assert len(history.batches) > 100


def run_feeds(ledger: Ledger, feeds: list[Feed], pending: list[Planned | None], history: History) -> None:
    """One thread a feed, each until its first error; what was not acknowledged stays in ``pending``."""

    def run(number: int) -> None:
        with suppress(SimulatedCrash, FastLedgerError):
            for _ in range(40):
                planned = pending[number] = pending[number] or feeds[number].plan()
                resubmit(ledger, planned, history)
                pending[number] = None

    in_threads([lambda: run(0), lambda: run(1)])


def in_threads(jobs: list[Callable[[], None]]) -> None:
    """Runs jobs at once; fails where one raises or hangs."""
    failures: list[BaseException] = []

    def guarded(job: Callable[[], None]) -> None:
        try:
            job()
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=guarded, args=(job,), daemon=True) for job in jobs]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(WAIT_SECONDS_MAX)
    assert not any(thread.is_alive() for thread in threads)
    assert failures == []


# Two owners.


def test_a_ledger_is_open_once_in_a_process(filled: tuple[World, list[Feed], History]) -> None:  # SPEC-LOG-1
    world, _, history = filled
    for _ in range(2):
        with pytest.raises(LedgerLockedError, match=f"pid {os.getpid()}"):
            Ledger.open(world.path, options=world.options)
    with pytest.raises(FastLedgerError):
        Ledger.create(world.path)
    check_all(world.ledger, history)
    world.reopen()


def test_another_process_is_named_and_its_death_frees_the_ledger(
    filled: tuple[World, list[Feed], History],
) -> None:  # SPEC-LOG-1
    world, _, history = filled
    world.ledger.close()
    reader, writer = os.pipe()
    pid = os.fork()
    if not pid:
        Ledger.open(world.path, options=world.options)
        os.write(writer, b"open")
        signal.pause()
    assert os.read(reader, 4) == b"open"
    try:
        with pytest.raises(LedgerLockedError, match=f"another process .pid {pid}"):
            Ledger.open(world.path, options=world.options)
        with pytest.raises(LedgerLockedError):
            Ledger.reindex(world.path, options=world.options)
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
    world.ledger = Ledger.open(world.path, options=world.options)
    check_all(world.ledger, history)


# Closing, halting and waiting.


def submit_until_closed(ledger: Ledger, feed: Feed, history: History, unacknowledged: list[Planned]) -> None:
    planned, error = submit_until_it_fails(ledger, feed, history)
    assert isinstance(error, LedgerClosedError)
    unacknowledged.append(planned)


def close_after(ledger: Ledger, seconds: float) -> None:
    time.sleep(seconds)
    ledger.close()


def test_closing_in_the_middle_answers_everyone(tmp_path: Path) -> None:  # SPEC-PIPE-4
    world = make_world(tmp_path / "ledger", checkpoint_transactions=20)
    feeds = make_feeds(world, random.Random(5), 4)
    history = History()
    for number in range(8):
        unacknowledged: list[Planned] = []
        ledger = world.ledger
        close = partial(close_after, ledger, 0.01 * number)
        work = [partial(submit_until_closed, ledger, feed, history, unacknowledged) for feed in feeds]
        in_threads([*work, close, close])
        for attempt in (
            partial(ledger.submit, [b""]),
            ledger.verify,
            ledger.checkpoint,
            partial(ledger.get, b""),
        ):
            with pytest.raises(LedgerClosedError):
                attempt()
        world.ledger = Ledger.open(world.path, options=world.options)
        check_all(world.ledger, history)
        for planned in unacknowledged:
            assert not any(holds(world.ledger, txid) for txid in planned.entering)
            resubmit(world.ledger, planned, history)
    world.ledger.close()


def test_futures_taken_before_closing_resolve(
    filled: tuple[World, list[Feed], History],
) -> None:  # SPEC-PIPE-4
    world, feeds, history = filled
    batches = [feeds[0].plan() for _ in range(40)]
    futures = [world.ledger.submit_nowait(planned.transactions, planned.blobs) for planned in batches]
    world.ledger.close()
    for planned, future in zip(batches, futures, strict=True):
        assert future.done()
        history.acknowledge(planned, [outcome.code for outcome in future.result()])
    world.ledger = Ledger.open(world.path, options=world.options)
    assert world.ledger.replayed_blocks == 0
    check_all(world.ledger, history)


def until_closed(work: Callable[[], None]) -> None:
    with suppress(LedgerClosedError):
        while True:
            work()


def test_reading_and_verifying_while_the_ledger_closes(tmp_path: Path) -> None:
    world = make_world(tmp_path / "ledger")
    _, history = fill(world, 12)
    for number in range(6):
        ledger = world.ledger
        read = partial(until_closed, partial(history.check, ledger, everything=True))
        walk = partial(until_closed, partial(check_blocks, ledger))
        verify = partial(until_closed, partial(check_all, ledger, history))
        in_threads([read, walk, verify, verify, partial(close_after, ledger, 0.02 * number)])
        world.ledger = Ledger.open(world.path, options=world.options)
    world.ledger.close()


@pytest.mark.parametrize("error", [StorageFullError("no space to checkpoint"), RuntimeError("a defect")])
def test_a_failing_checkpointer_halts_and_hangs_nobody(
    filled: tuple[World, list[Feed], History], monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:  # SPEC-PIPE-2
    world, feeds, history = filled

    def fail(index: Index, batch: Any) -> None:
        raise error

    with monkeypatch.context() as patch:
        patch.setattr(Index, "write_checkpoint", fail)

        def submit(feed: Feed) -> None:
            _, raised = submit_until_it_fails(world.ledger, feed, history)
            assert isinstance(raised, StorageFullError | LedgerHaltedError)

        in_threads([lambda: submit(feeds[0]), lambda: submit(feeds[1])])
        for attempt in (world.ledger.checkpoint, world.ledger.verify):
            with pytest.raises(LedgerHaltedError):
                attempt()
        assert world.ledger.status()["queue_depth"] == 0
        close_halted(world.ledger)
    world.ledger = Ledger.open(world.path, options=world.options)
    assert world.ledger.replayed_blocks > 0
    check_all(world.ledger, history)


def test_nothing_becomes_visible_after_a_halt(
    filled: tuple[World, list[Feed], History], monkeypatch: pytest.MonkeyPatch
) -> None:  # SPEC-PIPE-2
    """A checkpoint fails while a block is being synced: that block was answered with an error, and stays unseen."""
    world, feeds, history = filled
    world.ledger.checkpoint()
    syncing, failed = threading.Event(), threading.Event()

    def fail(index: Index, batch: Any) -> None:
        assert syncing.wait(WAIT_SECONDS_MAX)
        raise StorageFullError("no space to checkpoint")

    def fdatasync(files: OsFiles, file: OpenFile) -> None:
        os.fdatasync(file.fd)
        if file.path.name.endswith(".seg") and world.ledger._pipeline._frozen is not None:
            syncing.set()
            assert failed.wait(WAIT_SECONDS_MAX)

    with monkeypatch.context() as patch:
        patch.setattr(Index, "write_checkpoint", fail)
        patch.setattr(OsFiles, "raw_fdatasync", fdatasync)
        planned, error = submit_until_it_fails(world.ledger, feeds[0], history)
        assert isinstance(error, LedgerHaltedError | StorageFullError)
        seen = world.ledger.height, world.ledger.head, world.ledger.transaction_count
        failed.set()
        for thread in world.ledger._pipeline._threads:
            thread.join(WAIT_SECONDS_MAX)
        assert (world.ledger.height, world.ledger.head, world.ledger.transaction_count) == seen
        check_blocks(world.ledger)
        close_halted(world.ledger)
    world.ledger = Ledger.open(world.path, options=world.options)
    assert world.ledger.height == seen[0] + 1  # it was on the disk, only not told
    resubmit(world.ledger, planned, history)
    check_all(world.ledger, history)


def test_a_checkpoint_that_failed_is_written_later(
    filled: tuple[World, list[Feed], History], monkeypatch: pytest.MonkeyPatch
) -> None:
    world, feeds, history = filled

    def fail(index: Index, batch: Any) -> None:
        raise StorageFullError("no space to checkpoint")

    world.ledger.checkpoint()
    resubmit(world.ledger, feeds[0].plan(), history)
    with monkeypatch.context() as patch:
        patch.setattr(Index, "write_checkpoint", fail)
        with pytest.raises(StorageFullError):
            world.ledger.checkpoint()
    resubmit(world.ledger, feeds[0].plan(), history)
    check_all(world.ledger, history)
    world.ledger.close()
    world.ledger = Ledger.open(world.path, options=world.options)
    assert world.ledger.replayed_blocks == 0
    check_all(world.ledger, history)


def test_a_full_queue_says_so(filled: tuple[World, list[Feed], History]) -> None:  # SPEC-PIPE-3
    world, feeds, history = filled
    batches = [feeds[0].plan() for _ in range(PENDING_BATCHES_MAX)]
    late = feeds[0].plan()
    waiting: list[list[Outcome]] = []

    def nowait(planned: Planned) -> "Future[list[Outcome]]":
        return world.ledger.submit_nowait(planned.transactions, planned.blobs)

    with world.ledger._pipeline.paused():
        futures = [nowait(planned) for planned in batches]
        assert world.ledger.status()["queue_depth"] == PENDING_BATCHES_MAX
        for _ in range(2):
            with pytest.raises(LedgerBusyError) as error:
                nowait(late)
            assert error.value.retry_after_ms > 0
        patient = threading.Thread(
            target=lambda: waiting.append(world.ledger.submit(late.transactions, late.blobs)), daemon=True
        )
        patient.start()
        assert not wait(futures, timeout=0.05).done
    patient.join(WAIT_SECONDS_MAX)
    for planned, future in zip(batches, futures, strict=True):
        history.acknowledge(planned, [outcome.code for outcome in future.result(WAIT_SECONDS_MAX)])
    history.acknowledge(late, [outcome.code for outcome in waiting[0]])
    check_all(world.ledger, history)


async def test_a_caller_who_gives_up_harms_nobody(filled: tuple[World, list[Feed], History]) -> None:
    world, feeds, history = filled
    given_up, planned = feeds[0].plan(), feeds[0].plan()
    ledger = AsyncLedger(world.ledger)
    with world.ledger._pipeline.paused():
        with pytest.raises(asyncio.TimeoutError):
            await asyncio.wait_for(ledger.submit(given_up.transactions, given_up.blobs), 0.2)
        future = world.ledger.submit_nowait(planned.transactions, planned.blobs)
        assert not future.cancel()
    history.acknowledge(planned, [outcome.code for outcome in future.result(WAIT_SECONDS_MAX)])
    # Nobody waited for it, and it is durable all the same.
    assert all(holds(world.ledger, txid) for txid in given_up.entering)
    resubmit(world.ledger, given_up, history)
    check_all(world.ledger, history)


def test_a_retry_does_not_bring_an_erased_envelope_back(world: World) -> None:  # SPEC-REC-7, SPEC-ADM-3
    sealed = world.put()
    world.submit(world.patient.erase_record(sealed.record))
    for blobs in ([sealed.blob], []):
        (outcome,) = world.ledger.submit([sealed.transaction], blobs)
        assert (outcome.ok, outcome.duplicate) == (True, True)
        assert world.ledger.verify().problems == []
    thief = world.patient.sign(sealed.transaction.body)
    assert world.ledger.submit([thief], [sealed.blob])[0].code == RECORD_EXISTS
    world.clock.advance(10**10)
    late = world.ledger.submit([sealed.transaction], [sealed.blob])[0]
    assert (late.code, late.duplicate) == (Code.OK, True)
    assert world.ledger.verify().problems == []

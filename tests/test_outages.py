"""Full disks, failing syncs, two owners, closing in the middle: nothing acknowledged is lost and nobody hangs."""

import os
import random
import resource
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
from feeds import Feed, History, Planned, check_all, check_blocks, fill, make_feeds, small_files, submit_next
from world import World, make_world

from fastledger import Ledger
from fastledger.errors import (
    FastLedgerError,
    LedgerError,
    LedgerHaltedError,
    StorageFullError,
)

WAIT_SECONDS_MAX = 60


@pytest.fixture(autouse=True)
def small() -> Iterator[None]:
    with small_files():
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


@pytest.mark.parametrize("size", [900, 1000, 1100, 1200])
def test_a_full_disk(tmp_path: Path, size: int) -> None:  # SPEC-LOG-6, SPEC-PIPE-2
    with small_disk(tmp_path, size * 1024) as lift:
        world = make_world(tmp_path / "ledger", checkpoint_transactions=20)
        feeds, history = make_feeds(world, random.Random(size), 1), History()
        check_full_disk(world, history, feeds[0], lift)


@pytest.mark.parametrize("size", [64, 100])
def test_a_file_size_limit(tmp_path: Path, size: int) -> None:  # SPEC-LOG-6, SPEC-PIPE-2
    """Packs and the index outgrow it; the segments do not."""
    world = make_world(tmp_path / "ledger", checkpoint_transactions=20)
    feeds, history = make_feeds(world, random.Random(size), 1), History()
    with file_size_limit(tmp_path, size * 1024) as lift:
        check_full_disk(world, history, feeds[0], lift)

"""``kill -9`` at random moments of a node's life: what was acknowledged is there, whatever else happened.

A child process submits batches from two threads and reports each acknowledgement over a pipe once ``submit`` has
returned. The parent, which knows every verdict beforehand, kills it and looks at what is left.

``FASTLEDGER_CRASH_ROUNDS`` sets the number of kills, ``FASTLEDGER_CRASH_SEED`` the seed.
"""

import os
import random
import select
import signal
import threading
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from feeds import History, Planned, check_blocks, holds, make_feeds, small_files
from world import World, make_world

from fastledger import Ledger, LedgerOptions
from fastledger.errors import NotFoundError
from fastledger.storage.files import OsFiles
from fastledger.storage.index import Index

ROUNDS = int(os.environ.get("FASTLEDGER_CRASH_ROUNDS", "15"))
SEED = int(os.environ.get("FASTLEDGER_CRASH_SEED", "20261121"))
FEEDS = 2
BATCHES_PER_ROUND = 25
ROUNDS_PER_DIRECTORY = 25
OPERATIONS_PER_ROUND = 400
CHILD_SECONDS_MAX = 60
PHASES = ("startup", "ingest", "checkpoint", "close", "operation")
_CHANGING = (
    "raw_pwritev",
    "raw_fdatasync",
    "raw_fsync_dir",
    "raw_allocate",
    "raw_rename",
    "raw_unlink",
    "raw_create",
)


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)
    signal.pause()


class Operations:
    """Kills its own process at the ``fatal``-th operation that changes a file; a write is torn first."""

    def __init__(self, fatal: int, torn: float) -> None:
        self.count = 0
        self._fatal = fatal
        self._torn = torn
        self._lock = threading.Lock()

    def install(self) -> None:
        for name in _CHANGING:
            setattr(OsFiles, name, self._wrap(name, getattr(OsFiles, name)))

    def _wrap(self, name: str, original: Callable[..., Any]) -> Callable[..., Any]:
        def call(files: OsFiles, *arguments: Any) -> Any:
            with self._lock:
                self.count += 1
                if self.count == self._fatal:
                    if name == "raw_pwritev":
                        file, buffers, offset = arguments
                        data = b"".join(buffers)
                        os.pwrite(file.fd, data[: int(len(data) * self._torn)], offset)
                    die()
            return original(files, *arguments)

        return call


# The child.


def run_node(
    path: Path, options: LedgerOptions, work: list[list[Planned]], tell: Callable[[str], None]
) -> None:
    """Opens the ledger, submits each feed's batches from a thread of its own, closes."""
    write_checkpoint = Index.write_checkpoint

    def announced(index: Index, batch: Any) -> None:
        tell("K")
        write_checkpoint(index, batch)

    Index.write_checkpoint = announced  # type: ignore[method-assign]
    ledger = Ledger.open(path, options=options)
    tell("O")

    def submit_all(feed: int) -> None:
        for planned in work[feed]:
            outcomes = ledger.submit(planned.transactions, planned.blobs)
            tell(f"A {feed} " + " ".join(str(int(outcome.code)) for outcome in outcomes))

    threads = [threading.Thread(target=submit_all, args=(feed,)) for feed in range(len(work))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    tell("C")
    ledger.close()


def fork(work: Callable[[Callable[[str], None]], None]) -> tuple[int, int]:
    """(pid, pipe) of a child that runs ``work``, which tells lines to the pipe; X and a traceback where it fails."""
    reader, writer = os.pipe()
    pid = os.fork()
    if pid:
        os.close(writer)
        return pid, reader

    def tell(line: str) -> None:
        os.write(writer, line.encode() + b"\n")  # shorter than PIPE_BUF, so never in parts

    threading.excepthook = lambda failure: tell("X" + repr(failure.exc_value))
    try:
        work(tell)
    except BaseException:
        tell("X" + traceback.format_exc().replace("\n", " | "))
    os._exit(0)


class Child:
    """The parent's end of a forked node."""

    def __init__(self, work: Callable[[Callable[[str], None]], None]) -> None:
        self._started = time.monotonic()
        self.opened_after: float | None = None
        self.pid, self._pipe = fork(work)
        self._rest = b""

    def lines(self, seconds: float) -> Iterator[str]:
        """What the child says, until it is silent at the end of ``seconds`` or its end of the pipe is closed."""
        until = time.monotonic() + seconds
        poll = select.poll()
        poll.register(self._pipe, select.POLLIN)
        while poll.poll(max(0.0, until - time.monotonic()) * 1000):
            data = os.read(self._pipe, 1 << 16)
            if not data:
                return
            *whole, self._rest = (self._rest + data).split(b"\n")
            for line in whole:
                if line == b"O":
                    self.opened_after = time.monotonic() - self._started
                yield line.decode()

    def kill(self) -> tuple[bool, list[str]]:
        """Whether the kill met a living process, and what that still had said."""
        os.kill(self.pid, signal.SIGKILL)
        said = list(self.lines(CHILD_SECONDS_MAX))
        os.close(self._pipe)
        _, status = os.waitpid(self.pid, 0)
        return os.WIFSIGNALED(status), said


# The parent.


@dataclass
class Life:
    """A ledger directory over many lives of its node, and what must be true of it."""

    world: World
    rng: random.Random
    history: History = field(default_factory=History)
    pending: list[list[Planned]] = field(default_factory=list)
    killed: Counter[str] = field(default_factory=Counter)
    startup_seconds: float = 0.05
    close_seconds: float = 0.006

    def __post_init__(self) -> None:
        self.feeds = make_feeds(self.world, self.rng, FEEDS)
        self.pending = [[] for _ in self.feeds]
        self.world.close()

    def round(self, phase: str) -> None:
        """One life: starts the node with what was never acknowledged and new work, and kills it in ``phase``."""
        self.world.clock.advance(1000)
        for feed, pending in zip(self.feeds, self.pending, strict=True):
            pending += [feed.plan() for _ in range(BATCHES_PER_ROUND - len(pending))]
        operations = Operations(self.rng.randint(1, OPERATIONS_PER_ROUND), self.rng.random())

        def work(tell: Callable[[str], None]) -> None:
            if phase == "operation":
                operations.install()
            run_node(self.world.path, self.world.options, self.pending, tell)

        child = Child(work)
        said = self._wait(child, phase)
        killed, rest = child.kill()
        self.killed[phase] += killed
        if phase == "close":
            self.close_seconds *= 1.2 if killed else 0.5
        if child.opened_after is not None:
            self.startup_seconds = child.opened_after
        self._take([*said, *rest])

    def _wait(self, child: Child, phase: str) -> list[str]:
        """Returns at the moment to kill."""
        mark, count, delay = {
            "startup": ("", 0, self.rng.uniform(0, 1.2 * self.startup_seconds)),
            "ingest": ("A", self.rng.randint(0, FEEDS * BATCHES_PER_ROUND - 5), self.rng.uniform(0, 0.003)),
            "checkpoint": ("K", self.rng.randint(1, 3), self.rng.uniform(0, 0.003)),
            "close": ("C", 1, self.rng.uniform(0, self.close_seconds)),
            "operation": ("never", 1, 0.0),
        }[phase]
        said: list[str] = []
        if count:
            for line in child.lines(CHILD_SECONDS_MAX):
                said.append(line)
                count -= line.startswith(mark)
                if not count:
                    break
        time.sleep(delay)
        return said

    def _take(self, said: list[str]) -> None:
        for line in said:
            assert not line.startswith("X"), line
            if line.startswith("A"):
                feed, *codes = map(int, line.split()[1:])
                self.history.acknowledge(self.pending[feed].pop(0), codes)

    def check(self, *, everything: bool = False) -> None:
        """Reopens the ledger and holds it against everything that was acknowledged."""
        with Ledger.open(self.world.path, options=self.world.options) as ledger:
            check_blocks(ledger)
            self.history.check(ledger, everything=everything)
            for planned in (planned for pending in self.pending for planned in pending):
                there = [holds(ledger, txid) for txid in planned.entering]
                assert all(there) or not any(there), "half a batch is there"
            assert ledger.verify().problems == []


@pytest.fixture
def small() -> Iterator[None]:
    with small_files():
        yield


@contextmanager
def new_life(path: Path, rng: random.Random) -> Iterator[Life]:
    with small_files():
        # Checkpoints every few blocks; the node key of a real ledger is in its directory.
        yield Life(make_world(path, checkpoint_transactions=rng.choice((10, 30, 80))), rng)


@pytest.mark.slow
def test_nothing_acknowledged_is_lost_by_kill_9(tmp_path: Path) -> None:  # SPEC-PIPE-1, SPEC-LOG-5
    rng = random.Random(SEED)
    killed: Counter[str] = Counter()
    acknowledged = rounds = 0
    while killed.total() < ROUNDS:
        with new_life(tmp_path / f"ledger-{rounds}", rng) as life:
            for _ in range(ROUNDS_PER_DIRECTORY):
                life.round(PHASES[rounds % len(PHASES)])
                rounds += 1
                # Sometimes the next life begins on what this one left, torn tail and all.
                if rng.random() < 0.75:
                    life.check()
                if killed.total() + life.killed.total() >= ROUNDS:
                    break
            life.check(everything=True)
            killed += life.killed
            acknowledged += sum(len(planned.txids) for planned in life.history.batches)
        assert rounds <= 3 * ROUNDS + 20, "the node is never alive when it is to be killed"
    print(
        f"seed {SEED}: {killed.total()} kills in {rounds} rounds {dict(killed)}, {acknowledged} transactions kept"
    )
    assert set(killed) == set(PHASES)
    assert acknowledged > ROUNDS


@pytest.mark.usefixtures("small")
def test_a_creation_that_is_killed_can_be_done_again(tmp_path: Path) -> None:  # SPEC-LOG-1
    killed, fatal = True, 0
    while killed:
        fatal += 1
        path = tmp_path / f"ledger-{fatal}"
        operations = Operations(fatal, torn=0.5)

        def work(tell: Callable[[str], None], path: Path = path, operations: Operations = operations) -> None:
            operations.install()
            Ledger.create(path, password=None).close()

        child = Child(work)
        said = list(child.lines(CHILD_SECONDS_MAX))
        killed, rest = child.kill()
        assert [*said, *rest] == []
        try:
            ledger = Ledger.open(path)
        except NotFoundError:
            ledger = Ledger.create(path)
        assert (ledger.height, ledger.verify().problems) == (0, [])
        ledger.close()
    assert fatal > 10

"""Checkpoints that take many transactions: cut anywhere, interrupted anywhere, they are there wholly or not at all."""

import errno
import os
import random
import signal
import threading
from array import array
from collections.abc import Callable
from itertools import groupby
from pathlib import Path

import pytest
from cuts import CHAIN, dying_after, open_index, transactions_counted
from hypothesis import given, settings
from hypothesis import strategies as st
from storage_faults import CountingFiles, CrashingFiles, FailingFiles, SimulatedCrash

from fastledger._native.lmdb_batch import encode_seqs, pack_items, seal_many, sorted_items
from fastledger.errors import (
    CorruptionError,
    FormatVersionError,
    LedgerHaltedError,
    StorageFullError,
)
from fastledger.storage import keys
from fastledger.storage.checkpoint import CheckpointBatch
from fastledger.storage.index import DATABASES, Index
from fastledger.storage.lmdb_engine import Environment, LmdbTransaction
from fastledger.storage.redo import REDO_NAME


def contents(index: Index) -> dict[str, dict[bytes, bytes]]:
    with index.snapshot(whole=True) as view:
        return {name: dict(view.iter_all(name)) for name in DATABASES}


def batch_of(seed: int, count: int = 12) -> CheckpointBatch:
    """A checkpoint that changes and deletes what those before it wrote too."""
    rng = random.Random(seed)
    first = seed * count
    terms = [[b"\1" + rng.choice((b"often", b"rarer")) * 3 + b"xy", rng.randbytes(18)] for _ in range(count)]
    state: dict[bytes, bytes | None] = {
        b"key %d" % rng.randrange(40): rng.randbytes(rng.randrange(3_000)) for _ in range(count)
    }
    state |= {b"key %d" % rng.randrange(40): None for _ in range(count // 4)}
    return CheckpointBatch(
        state=state,
        txids={rng.randbytes(32): first + n for n in range(count)},
        blocks=[(seed, first, b"entry %d" % seed)],
        postings=[keys.TermLog(b"".join(map(b"".join, terms)), array("I", map(len, terms)), first)],
        meta={b"number": b"%d" % seed},
    )


@pytest.fixture(scope="module")
def states(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, dict[bytes, bytes]]]:
    """What the index holds after 0, 1, 2 and 3 of the batches, written in one transaction each."""
    index = open_index(tmp_path_factory.mktemp("whole"), pages_max=10_000)
    found = [contents(index)]
    for number in (1, 2, 3):
        index.write_checkpoint(batch_of(number))
        found.append(contents(index))
    index.close()
    return found


def interrupted(path: Path, batch: CheckpointBatch, transactions: int) -> None:
    """Leaves what a process leaves that dies with so many transactions of a checkpoint committed."""
    index = open_index(path)
    with pytest.raises(SimulatedCrash), transactions_counted(dying_after(transactions)):
        index.write_checkpoint(batch)
    index.close()


def transactions_of(path: Path, batch: CheckpointBatch) -> int:
    """How many transactions a checkpoint takes."""
    index, seen = open_index(path), [0]
    with transactions_counted(seen.append):
        index.write_checkpoint(batch)
    index.close()
    return seen[-1] + 1


@given(pages=st.integers(1, 200), numbers=st.lists(st.integers(1, 6), min_size=1, max_size=4))
@settings(max_examples=25, deadline=None)
def test_where_a_checkpoint_is_cut_does_not_matter(  # SPEC-IDX-2
    tmp_path_factory: pytest.TempPathFactory, pages: int, numbers: list[int]
) -> None:
    path = tmp_path_factory.mktemp("cut")
    cut, whole = open_index(path / "cut", pages_max=pages), open_index(path / "whole", pages_max=10_000)
    for number in sorted(set(numbers)):
        cut.write_checkpoint(batch_of(number))
        whole.write_checkpoint(batch_of(number))
        assert contents(cut) == contents(whole)
    assert sorted(entry.name for entry in (path / "cut").iterdir()) == ["data.mdb", "lock.mdb"]
    cut.close()
    whole.close()


@given(names=st.lists(st.binary(max_size=40), max_size=60))
def test_names_are_sorted_and_packed(names: list[bytes]) -> None:
    items = {name: number for number, name in enumerate(names)}
    assert sorted_items(items) == (sorted(items), [items[name] for name in sorted(items)])
    assert seal_many(names, names[::-1]) == (names, list(map(keys.seal_value, names, names[::-1])), [])
    some = [None if len(name) % 2 else name for name in names]
    kept = [name for name in names if len(name) % 2 == 0]
    gone = [name for name in names if len(name) % 2]
    assert seal_many(names, some) == (kept, list(map(keys.seal_value, kept, kept)), gone)
    assert encode_seqs([len(name) << 42 for name in names]) == [
        keys.encode_seq(len(name) << 42) for name in names
    ]
    values = [None if len(name) % 3 == 0 else name * 2 for name in names]
    assert pack_items(names, values) == b"".join(
        len(name).to_bytes(2, "big")
        + (b"\xff" * 4 if value is None else len(value).to_bytes(4, "big"))
        + name
        + (value or b"")
        for name, value in zip(names, values, strict=True)
    )


def test_what_cannot_be_sorted_or_packed_is_refused() -> None:
    with pytest.raises(ValueError, match="item 1: expected bytes, got str"):
        sorted_items({b"": 1, "text": 2})  # type: ignore[dict-item]
    with pytest.raises(ValueError, match="expected 2, got 1"):
        seal_many([b"", b""], [b""])
    for bad in (-1, 1 << 48, 1 << 64):
        with pytest.raises((ValueError, OverflowError)):
            encode_seqs([0, bad])
    with pytest.raises(ValueError, match="expected 1, got 2"):
        pack_items([b""], [b"", b""])
    with pytest.raises(ValueError, match="item 0: 1 bytes under a key of 65536"):
        pack_items([bytes(65_536)], [b"1"])


def test_pages_are_counted_at_least_by_half(tmp_path: Path) -> None:  # SPEC-IDX-7
    names = [random.Random(n).randbytes(32) for n in range(20_000)]
    with Environment(tmp_path, ("x",), map_bytes=1 << 28, readers_max=4, readonly=False) as environment:
        database = environment.databases["x"]
        for _ in range(2):
            with environment.write() as txn:
                pages = txn.put_many(database, names, [bytes(100)] * len(names))
        leaves = (tmp_path / "data.mdb").stat().st_size // 4096
        # Every leaf was written to; a file of two trees has them twice, and few other pages.
        assert 0.95 * leaves / 4 <= pages <= leaves / 2
        with environment.write() as txn:
            assert txn.put_many(database, names[:1], [bytes(100)]) == 1
            assert txn.put_many(database, [], []) == 0


def test_no_transaction_writes_more_pages_than_it_may(tmp_path: Path) -> None:  # SPEC-IDX-7
    rng = random.Random(1)
    index = open_index(tmp_path, pages_max=64)
    written: list[int] = []
    put_many = LmdbTransaction.put_many

    def counted(txn: LmdbTransaction, database: int, names: list[bytes], values: list[bytes]) -> int:
        written[-1] += (pages := put_many(txn, database, names, values))
        return pages

    with pytest.MonkeyPatch.context() as patch, transactions_counted(lambda _: written.append(0)):
        patch.setattr(LmdbTransaction, "put_many", counted)
        for _ in range(3):
            index.write_checkpoint(
                CheckpointBatch(state={rng.randbytes(32): bytes(90) for _ in range(4_000)})
            )
    index.close()
    # 12,000 entries of 130 bytes are some 600 leaves; the last piece of a transaction may go beyond the bound.
    assert max(written) <= 2 * 64
    assert sum(written) > 1_000
    assert len(written) < 60


def test_a_crash_between_any_two_transactions_is_made_good(  # SPEC-IDX-2, SPEC-IDX-7
    tmp_path: Path, states: list[dict[str, dict[bytes, bytes]]]
) -> None:
    total = transactions_of(tmp_path / "count", batch_of(1))
    following = transactions_of(tmp_path / "count", batch_of(2))
    assert total > 10
    for committed in range(total):
        path = tmp_path / str(committed)
        interrupted(path, batch_of(1), committed)
        assert (path / REDO_NAME).exists()
        # The second one is interrupted as well: on what an interrupted one left.
        interrupted(path, batch_of(2), (total - committed) % following)
        index = open_index(path)
        assert contents(index) == states[2]
        assert not (path / REDO_NAME).exists()
        index.write_checkpoint(batch_of(3))
        assert contents(index) == states[3]
        index.close()


@pytest.mark.parametrize("when", ["before", "after"])
def test_kill_9_at_any_commit_is_made_good(
    tmp_path: Path, states: list[dict[str, dict[bytes, bytes]]], when: str
) -> None:  # SPEC-IDX-2
    def child(path: Path, fatal: int) -> None:
        index, commit, count = open_index(path), LmdbTransaction.commit, 0

        def deadly(txn: LmdbTransaction) -> None:
            nonlocal count
            count += 1
            if when == "after":
                commit(txn)
            if count == fatal:
                os.kill(os.getpid(), signal.SIGKILL)
            if when == "before":
                commit(txn)

        LmdbTransaction.commit = deadly  # type: ignore[method-assign]
        index.write_checkpoint(batch_of(2))

    fatal, killed = 0, True
    while killed:
        fatal += 1
        path = tmp_path / str(fatal)
        index = open_index(path, pages_max=10_000)
        index.write_checkpoint(batch_of(1))
        index.close()
        pid = os.fork()
        if not pid:
            try:
                child(path, fatal)
            finally:
                os._exit(0)
        killed = os.WIFSIGNALED(os.waitpid(pid, 0)[1])
        index = open_index(path)
        assert contents(index) == states[2]
        index.close()
    assert fatal > 10


@pytest.mark.parametrize("torn", [0.0, 0.5, 1.0])
def test_a_crash_at_any_step_of_the_redo_file_is_made_good(  # SPEC-IDX-7
    tmp_path: Path, states: list[dict[str, dict[bytes, bytes]]], torn: float
) -> None:
    seen: set[bool] = set()
    crash_at, crashed = 0, True
    while crashed:
        path = tmp_path / str(crash_at)
        index = open_index(path)
        index.write_checkpoint(batch_of(1))
        index.close()
        files = CrashingFiles(10**9, torn)
        index = open_index(path, files=files)
        files.kinds.clear()
        files.operations, files._crash_at = 0, crash_at
        try:
            index.write_checkpoint(batch_of(2))
            crashed = False
        except SimulatedCrash:
            pass
        index.close()
        index = open_index(path)
        renamed = "rename" in files.kinds[:-1]
        assert states.index(contents(index)) == 1 + renamed
        seen.add(renamed)
        assert sorted(entry.name for entry in path.iterdir()) == ["data.mdb", "lock.mdb"]
        index.close()
        crash_at += 1
    assert seen == {False, True}
    assert crash_at > 10


def test_every_step_of_the_redo_file_is_durable_before_the_next(tmp_path: Path) -> None:  # SPEC-IDX-7
    files = CountingFiles()
    index = open_index(tmp_path, files=files)
    files.kinds.clear()
    sync = Environment.sync

    def told(environment: Environment) -> None:
        files.kinds.append("sync-index")
        sync(environment)

    with (
        pytest.MonkeyPatch.context() as patch,
        transactions_counted(lambda _: files.kinds.append("transaction")),
    ):
        patch.setattr(Environment, "sync", told)
        index.write_checkpoint(batch_of(1))
    index.close()
    steps = [kind for kind, _ in groupby(files.kinds)]
    assert steps == [
        *("sync-index", "unlink", "create", "write", "sync", "rename", "sync-dir"),
        *("transaction", "sync-index", "unlink", "sync-dir"),
    ]


def test_a_power_cut_takes_back_the_last_commit_at_most(  # SPEC-IDX-2, SPEC-IDX-7
    tmp_path: Path, states: list[dict[str, dict[bytes, bytes]]]
) -> None:
    """LMDB syncs the pages of each commit but not the meta page that makes it one: that may be the one before."""
    total = transactions_of(tmp_path / "count", batch_of(1))
    for committed in range(1, total):
        path = tmp_path / str(committed)
        index, metas = open_index(path), []

        def before(number: int, path: Path = path, metas: list[bytes] = metas, last: int = committed) -> None:
            metas.append((path / "data.mdb").read_bytes()[:8192])
            if number == last:
                raise SimulatedCrash

        with pytest.raises(SimulatedCrash), transactions_counted(before):
            index.write_checkpoint(batch_of(1))
        index.close()
        with (path / "data.mdb").open("r+b") as file:
            assert file.read(8192) != metas[-2]
            file.seek(0)
            file.write(metas[-2])
        index = open_index(path)
        assert contents(index) == states[1]
        index.close()


def test_a_damaged_redo_file_is_refused_where_it_is_needed(
    tmp_path: Path, states: list[dict[str, dict[bytes, bytes]]]
) -> None:  # SPEC-IDX-7
    path = tmp_path / "index"
    rng = random.Random(5)
    for committed, needed in ((0, False), (1, True), (6, True)):
        index = open_index(path)
        index.write_checkpoint(batch_of(1))
        index.close()
        interrupted(path, batch_of(2), committed)
        redo = path / REDO_NAME
        whole = redo.read_bytes()
        damages = [b"", whole[:-1], whole[:-9], whole + b"\0", whole[:11], whole[:16]]
        for _ in range(20):
            at = rng.randrange(len(whole))
            damages.append(whole[:at] + bytes([whole[at] ^ 1 << rng.randrange(8)]) + whole[at + 1 :])
        for damaged in damages if needed else damages[:3]:
            redo.write_bytes(damaged)
            if needed:
                with pytest.raises((CorruptionError, FormatVersionError)):
                    open_index(path)
                continue
            index = open_index(path)
            assert contents(index) == states[1]
            assert not redo.exists()
            index.close()
        if needed:
            redo.unlink()
            with pytest.raises(CorruptionError, match="reindex"):
                open_index(path)
            redo.write_bytes(whole)
            index = open_index(path)
            assert contents(index) == states[2]
            index.close()
        Index.destroy(path)


def test_half_a_checkpoint_is_no_index_for_an_earlier_release(tmp_path: Path) -> None:  # SPEC-IDX-7
    interrupted(tmp_path, batch_of(1), 3)
    with (
        Environment(tmp_path, DATABASES, map_bytes=1 << 26, readers_max=4, readonly=False) as environment,
        environment.read() as txn,
    ):
        assert txn.get(environment.databases["meta"], keys.META_FORMAT) == b"\xff\xff"
    with pytest.raises(LedgerHaltedError, match="half"):
        Index.open(tmp_path, CHAIN, readonly=True)


def test_a_redo_file_beside_no_index_is_dropped(tmp_path: Path) -> None:
    interrupted(tmp_path, batch_of(1), 3)
    (tmp_path / "data.mdb").unlink()  # as a destruction that was interrupted leaves it
    index = open_index(tmp_path)
    assert index.stats() == {name: 2 * (name == "meta") for name in DATABASES}
    assert not (tmp_path / REDO_NAME).exists()
    index.close()


@pytest.mark.parametrize("kind", ["write", "create", "rename"])
def test_without_room_for_the_redo_file_nothing_has_begun(
    tmp_path: Path, states: list[dict[str, dict[bytes, bytes]]], kind: str
) -> None:  # SPEC-IDX-5
    files = FailingFiles(kind, errno.ENOSPC)
    index = open_index(tmp_path, files=files)
    index.write_checkpoint(batch_of(1))
    files.armed = True
    with pytest.raises(StorageFullError):
        index.write_checkpoint(batch_of(2))
    assert contents(index) == states[1]
    assert not (tmp_path / REDO_NAME).exists()
    files.armed = False
    index.write_checkpoint(batch_of(2))
    assert contents(index) == states[2]
    index.close()


@pytest.mark.parametrize("kind", ["unlink", "sync-dir"])
def test_a_redo_file_that_does_not_go_halts_and_is_harmless(
    tmp_path: Path, states: list[dict[str, dict[bytes, bytes]]], kind: str
) -> None:  # SPEC-IDX-7
    def later(nth: int) -> bool:
        return nth >= 1  # the first one is the redo file's making

    files = FailingFiles(kind, errno.EIO, later)
    index = open_index(tmp_path, files=files)
    files.armed = True
    with pytest.raises(LedgerHaltedError):
        index.write_checkpoint(batch_of(1))
    files.armed = False
    # Another checkpoint would be undone by it: so it is gone before that begins.
    index.write_checkpoint(batch_of(2))
    index.close()
    index = open_index(tmp_path)
    assert contents(index) == states[2]
    index.close()


def test_a_full_disk_midway_is_made_good_by_the_next_attempt_or_opening(
    tmp_path: Path, states: list[dict[str, dict[bytes, bytes]]]
) -> None:  # SPEC-IDX-5
    def full_at(transaction: int) -> Callable[[int], None]:
        def before(number: int) -> None:
            if number == transaction:
                raise StorageFullError("no space")

        return before

    for again in (True, False):
        for transaction in (0, 1, 5):
            index = open_index(tmp_path)
            index.write_checkpoint(batch_of(1))
            for _ in range(2):  # the attempt to complete it finds no room either
                with transactions_counted(full_at(transaction)), pytest.raises(StorageFullError):
                    index.write_checkpoint(batch_of(2))
            with pytest.raises(LedgerHaltedError), index.snapshot(whole=True):
                pass
            if again:
                index.write_checkpoint(batch_of(2))
            else:
                index.close()
                with transactions_counted(full_at(1 + transaction)):  # the first one opens the databases
                    index = open_index(tmp_path)
                assert index.pending is not None
                assert (index.get_meta(b"number"), index.get_meta(b"none")) == (b"2", None)
                with pytest.raises(LedgerHaltedError), index.snapshot(whole=True):
                    pass
                index.close()
                index = open_index(tmp_path)
                assert (index.pending, index.get_meta(b"number")) == (None, b"2")
            assert contents(index) == states[2]
            index.close()
            Index.destroy(tmp_path)


def test_a_map_that_fills_midway_grows_when_reopened(tmp_path: Path) -> None:  # SPEC-IDX-5
    index = open_index(tmp_path, map_bytes=256 * 1024)
    index.write_checkpoint(CheckpointBatch(state={b"k": b"old"}))
    state: dict[bytes, bytes | None] = {b"%02d" % n: bytes(10_000) for n in range(30)}
    with pytest.raises(StorageFullError):
        index.write_checkpoint(CheckpointBatch(state=state | {b"k": b"new"}))
    index.close()
    index = open_index(tmp_path, map_bytes=256 * 1024)
    with index.snapshot(whole=True) as view:
        assert dict(view.iter_state()) == state | {b"k": b"new"}
    index.close()


def test_a_whole_view_waits_for_the_end_of_a_checkpoint(tmp_path: Path) -> None:  # SPEC-IDX-8
    index = open_index(tmp_path)
    index.write_checkpoint(batch_of(1))
    midway, go_on = threading.Event(), threading.Event()

    def before(number: int) -> None:
        if number == 5:
            midway.set()
            go_on.wait()

    seen: list[bytes | None] = []

    def look() -> None:
        with index.snapshot(whole=True) as view:
            seen.append(view.get_meta(b"number"))

    with transactions_counted(before):
        writer = threading.Thread(target=index.write_checkpoint, args=(batch_of(2),))
        writer.start()
        midway.wait()
        reader = threading.Thread(target=look)
        reader.start()
        with index.snapshot() as view:  # any other view does not
            assert view.get_meta(b"number") == b"1"
        reader.join(0.05)
        assert reader.is_alive()
        go_on.set()
        writer.join()
        reader.join()
    assert seen == [b"2"]
    index.close()

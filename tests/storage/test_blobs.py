"""The blob store: content-addressed, durable on return, really erased."""

import errno
import random
import shutil
import threading
from collections.abc import Callable, Sequence
from hashlib import sha256
from pathlib import Path

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, invariant, rule
from storage_faults import CountingFiles, CrashingFiles, FailingFiles, PowerCutFiles, SimulatedCrash, flip

from fastledger.errors import (
    Code,
    CorruptionError,
    FastLedgerError,
    InputError,
    LedgerClosedError,
    LedgerHaltedError,
    NotFoundError,
    StorageFullError,
)
from fastledger.storage.blobs import store as blobs_module
from fastledger.storage.blobs.packs import BLOB_HEADER_BYTES, PACK_HEADER_BYTES, blob_bytes
from fastledger.storage.blobs.store import BlobStore
from fastledger.storage.files import OsFiles

PACK = 4096
LARGE = 1000  # longer than this: a file of its own


def open_store(path: Path, files: OsFiles | None = None, **options: object) -> BlobStore:
    return BlobStore.open(
        path,
        files,
        pack_bytes=PACK,
        packed_bytes_max=LARGE,
        **options,  # type: ignore[arg-type]
    )


def blob(seed: int, size: int | None = None) -> bytes:
    rng = random.Random(seed)
    return rng.randbytes(rng.randrange(0, 2 * LARGE) if size is None else size)


def digest_of(data: bytes) -> bytes:
    return sha256(data).digest()


def bytes_on_disk(path: Path) -> bytes:
    return b"".join(p.read_bytes() for p in sorted(path.rglob("*")) if p.is_file())


# Putting and getting.


def test_blobs_come_back_before_and_after_reopening(tmp_path: Path) -> None:  # SPEC-BLOB-3
    store = open_store(tmp_path)
    data = [blob(n) for n in range(30)]
    assert store.put_many(data) == [digest_of(d) for d in data]
    for _ in range(2):
        for d in data:
            assert store.get(digest_of(d)) == d
            assert b"".join(store.open_reader(digest_of(d), 100)) == d
            assert store.size(digest_of(d)) == len(d)
            assert store.has(digest_of(d))
        assert store.verify() == []
        store.close()
        store = open_store(tmp_path)
    stats = store.stats()
    assert stats.large == sum(len(d) > LARGE for d in data)
    assert stats.packed + stats.large == len({*data})
    assert stats.packs > 1


def test_the_same_bytes_are_stored_once(tmp_path: Path) -> None:
    store = open_store(tmp_path)
    small, large = blob(1, 500), blob(2, 3000)
    for _ in range(2):
        store.put_many([small, large, bytearray(small), memoryview(large)])
        store.flush()
    stats = store.stats()
    assert (stats.packed, stats.packs, stats.large, stats.large_bytes) == (1, 1, 1, 3000)


def test_one_sync_makes_a_batch_durable(tmp_path: Path) -> None:
    files = CountingFiles()
    store = open_store(tmp_path, files)
    store.put_many([blob(0, 8)])
    files.kinds.clear()
    store.put_many([blob(n, 10) for n in range(1, 20)])
    assert files.kinds == ["write", "sync"]
    files.kinds.clear()
    store.put_many([blob(n, 10) for n in range(1, 20)])
    assert files.kinds == []


def test_missing_keeps_the_order(tmp_path: Path) -> None:
    store = open_store(tmp_path)
    data = [blob(n) for n in range(10)]
    store.put_many(data[::2])
    wanted = [digest_of(d) for d in data]
    assert store.missing(wanted) == wanted[1::2]
    store.flush()
    assert store.missing(wanted) == wanted[1::2]


def test_what_is_not_there_or_not_a_digest_says_so(tmp_path: Path) -> None:
    store = open_store(tmp_path)
    absent = bytes(32)
    calls: list[Callable[[bytes], object]] = [store.get, store.size, lambda d: list(store.open_reader(d))]
    for call in calls:
        with pytest.raises(NotFoundError):
            call(absent)
        with pytest.raises(InputError, match="31 bytes"):
            call(absent[1:])
    assert not store.has(absent)
    assert store.erase(absent) is False
    with pytest.raises(NotFoundError):
        open_store(tmp_path / "none", readonly=True)
    with pytest.raises(InputError):
        BlobStore.open(tmp_path / "x", pack_bytes=1000, packed_bytes_max=1000)


def test_a_blob_that_is_too_long_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fastledger.storage.blobs.store.BLOB_BYTES_MAX", 5000)
    monkeypatch.setattr("fastledger.storage.blobs.large.BLOB_BYTES_MAX", 5000)
    store = open_store(tmp_path)
    with pytest.raises(InputError) as caught:
        store.put_many([b"fine", bytes(5001)])
    assert caught.value.code is Code.OVERSIZED
    with pytest.raises(InputError), store.open_writer() as writer:
        for _ in range(6):
            writer.write(bytes(1000))
    assert store.stats().packed == store.stats().large == 0
    assert list((tmp_path / "tmp").iterdir()) == []


@pytest.mark.parametrize("sizes", [[], [0], [10, 20], [LARGE], [LARGE, 1], [400, 400, 400], [5000, 1]])
def test_writing_in_pieces_is_writing_at_once(tmp_path: Path, sizes: list[int]) -> None:
    store = open_store(tmp_path)
    pieces = [blob(n, size) for n, size in enumerate(sizes)]
    whole = b"".join(pieces)
    with store.open_writer() as writer:
        for piece in pieces:
            writer.write(piece)
        assert not store.has(digest_of(whole))
        assert writer.commit() == digest_of(whole)
    assert store.get(digest_of(whole)) == whole
    assert store.put_many([whole]) == [digest_of(whole)]
    assert store.stats().packed + store.stats().large == 1
    assert list((tmp_path / "tmp").iterdir()) == []
    with pytest.raises(LedgerClosedError):
        writer.write(b"more")


def test_a_writer_left_without_commit_leaves_nothing(tmp_path: Path) -> None:
    store = open_store(tmp_path)
    with store.open_writer() as writer:
        writer.write(blob(1, 5000))
    assert list((tmp_path / "tmp").iterdir()) == []
    (tmp_path / "tmp" / "left-by-a-crash").write_bytes(b"x")
    store.close()
    open_store(tmp_path)
    assert list((tmp_path / "tmp").iterdir()) == []


def test_a_native_hash_can_stand_in(tmp_path: Path) -> None:
    seen: list[int] = []

    def hash_many(data: Sequence[bytes | bytearray | memoryview]) -> list[bytes]:
        seen.append(len(data))
        return [sha256(d).digest() for d in data]

    store = open_store(tmp_path, hash_many=hash_many)
    store.put_many([b"a", b"b"])
    assert seen == [2]


# Erasing. SPEC-BLOB-5.


@pytest.mark.parametrize("size", [1, 100, 999, 5000])
@pytest.mark.parametrize("flushed", [False, True])
def test_erased_bytes_are_gone_from_the_disk(tmp_path: Path, size: int, flushed: bool) -> None:
    store = open_store(tmp_path)
    data, neighbours = blob(9, size), [blob(1, 300), blob(2, 300)]
    store.put_many([neighbours[0], data, neighbours[1]])
    if flushed:
        store.flush()
    if size > 1:
        assert data[:64] in bytes_on_disk(tmp_path)
    assert store.erase(digest_of(data)) is True
    assert store.erase(digest_of(data)) is False
    for _ in range(2):
        assert not store.has(digest_of(data))
        with pytest.raises(NotFoundError):
            store.get(digest_of(data))
        if size > 1:
            assert data[:64] not in bytes_on_disk(tmp_path)
        assert [store.get(digest_of(n)) for n in neighbours] == neighbours
        assert store.verify() == []
        store.close()
        store = open_store(tmp_path)
    assert store.put_many([data]) == [digest_of(data)]
    assert store.get(digest_of(data)) == data
    assert store.verify() == []


def test_a_lost_index_is_rebuilt_without_what_was_erased(tmp_path: Path) -> None:
    store = open_store(tmp_path)
    data = [blob(n, 200 + n) for n in range(40)]
    store.put_many(data)
    store.erase(digest_of(data[3]))
    store.put_many([data[5], blob(99, 50)])
    store.close()
    for damage in (
        lambda: shutil.rmtree(tmp_path / "index"),
        lambda: (tmp_path / "index" / "data.mdb").write_bytes(b"nonsense" * 2000),
    ):
        damage()
        store = open_store(tmp_path)
        assert not store.has(digest_of(data[3]))
        kept = [d for n, d in enumerate(data) if n != 3]
        assert [store.get(digest_of(d)) for d in kept] == kept
        assert store.stats().packed == 40
        assert store.verify() == []
        store.close()


# Crashes. SPEC-BLOB-1, SPEC-BLOB-4.

ROUNDS = [[blob(10 * n + k, size) for k, size in enumerate((40, 700, 300))] for n in range(6)]
BIG = blob(77, 2500)


def scripted_run(root: Path, files: OsFiles, put: set[bytes], erased: set[bytes]) -> None:
    """Puts, erases and flushes; notes what was acknowledged."""
    store = open_store(root, files)
    try:
        for n, data in enumerate(ROUNDS):
            put.update(store.put_many(data))
            if n == 2:
                put.update(store.put_many([BIG]))
                store.flush()
            if n == 3:
                for doomed in (digest_of(ROUNDS[1][1]), digest_of(ROUNDS[3][0]), digest_of(BIG)):
                    put.discard(doomed)
                    store.erase(doomed)
                    erased.add(doomed)
    finally:
        # What the kernel does for a dead process.
        store._index.close()
        store._packs.close()


@pytest.mark.parametrize("torn", [0.0, 0.3, 0.99, 1.0])
def test_a_crash_at_any_system_call_keeps_what_was_put_and_what_was_erased(
    tmp_path: Path, torn: float
) -> None:
    counting = CountingFiles()
    scripted_run(tmp_path / "whole", counting, set(), set())
    contents = {digest_of(d): d for data in [*ROUNDS, [BIG]] for d in data}
    for crash_at in range(counting.operations):
        root = tmp_path / "crash"
        put: set[bytes] = set()
        erased: set[bytes] = set()
        with pytest.raises(SimulatedCrash):
            scripted_run(root, CrashingFiles(crash_at, torn), put, erased)
        store = open_store(root)
        for digest in put:
            assert store.get(digest) == contents[digest], crash_at
        for digest in erased:
            assert not store.has(digest), crash_at
        for digest, data in contents.items():  # nothing is half visible
            if store.has(digest):
                assert store.get(digest) == data
            elif digest in erased and len(data) > 100:
                assert data not in bytes_on_disk(root)
        assert store.verify() == [], crash_at
        # Whatever happened, putting it all again makes it all there.
        store.put_many(list(contents.values()))
        assert all(store.get(digest) == data for digest, data in contents.items())
        assert store.verify() == []
        store.close()
        shutil.rmtree(root)


def test_a_power_cut_that_keeps_any_sectors_loses_nothing_put(tmp_path: Path) -> None:
    class Unsynced(PowerCutFiles):
        """The last batch of each run is written but not synced."""

        lost = False

        def raw_fdatasync(self, file: object) -> None:
            if self.lost:
                raise SimulatedCrash
            super().raw_fdatasync(file)  # type: ignore[arg-type]

    for seed in range(40):
        rng = random.Random(seed)
        root = tmp_path / str(seed)
        files = Unsynced()
        store = open_store(root, files)
        put = [blob(n, rng.randrange(LARGE)) for n in range(rng.randrange(12))]
        for d in put:
            store.put_many([d])
        if rng.random() < 0.5:
            store.flush()
        files.lost = True
        with pytest.raises(SimulatedCrash):
            store.put_many([blob(100 + n, rng.randrange(1, LARGE)) for n in range(3)])
        store._index.close()
        store._packs.close()
        files.cut(rng)
        store = open_store(root)
        assert [store.get(digest_of(d)) for d in put] == put
        assert store.verify() == []
        store.close()


def test_readonly_opening_sees_what_is_not_indexed_and_writes_nothing(tmp_path: Path) -> None:
    store = open_store(tmp_path)
    data = [blob(n, 100) for n in range(5)]
    store.put_many(data[:3])
    store.flush()
    store.put_many(data[3:])
    store._index.close()
    before = bytes_on_disk(tmp_path / "packs")
    store = open_store(tmp_path, readonly=True)
    assert [store.get(digest_of(d)) for d in data] == data
    for call in (
        lambda: store.put_many([b"new"]),
        lambda: store.erase(digest_of(data[0])),
        store.open_writer,
    ):
        with pytest.raises(LedgerHaltedError):
            call()
    store.close()
    assert bytes_on_disk(tmp_path / "packs") == before


# Damage. SPEC-BLOB-6.


def test_verify_names_every_flipped_byte_of_a_pack(tmp_path: Path) -> None:  # SPEC-BLOB-2
    store = BlobStore.open(tmp_path, pack_bytes=1024, packed_bytes_max=300)
    data = [blob(n, 101) for n in range(4)]
    store.put_many(data)
    store.erase(digest_of(data[2]))
    store.flush()
    assert store.verify() == []
    path = tmp_path / "packs" / "00000000.pack"
    for offset in range(1024):
        flip(path, offset, offset % 8)
        errors = store.verify()
        flip(path, offset, offset % 8)
        assert errors, offset
        assert errors[0].path == str(path)
        assert errors[0].offset is not None
        place = 0 if offset < PACK_HEADER_BYTES else offset - (offset - PACK_HEADER_BYTES) % blob_bytes(101)
        assert errors[0].offset == min(place, PACK_HEADER_BYTES + 4 * blob_bytes(101)), offset
    assert store.verify() == []


def test_damaged_bytes_are_never_returned(tmp_path: Path) -> None:
    store = open_store(tmp_path)
    small, large = blob(1, 400), blob(2, 3000)
    store.put_many([small, large])
    flip(tmp_path / "packs" / "00000000.pack", PACK_HEADER_BYTES + BLOB_HEADER_BYTES + 399)
    file = next((tmp_path / "files").glob("??/*"))
    flip(file, 2999)
    calls: list[Callable[[bytes], object]] = [store.get, lambda d: list(store.open_reader(d, 700))]
    for call in calls:
        for data in (small, large):
            with pytest.raises(CorruptionError):
                call(digest_of(data))
    assert [Path(error.path).name for error in store.verify()] == ["00000000.pack", file.name]
    # Damage does not keep a store from opening, nor its other blobs from being read.
    other = blob(3, 100)
    store.put_many([other])
    store.close()
    shutil.rmtree(tmp_path / "index")
    store = open_store(tmp_path)
    assert store.get(digest_of(other)) == other
    assert len(store.verify()) == 2


def test_a_missing_pack_is_named(tmp_path: Path) -> None:
    store = open_store(tmp_path)
    data = [blob(n, 900) for n in range(12)]
    store.put_many(data)
    store.close()
    (tmp_path / "packs" / "00000001.pack").unlink()
    store = open_store(tmp_path)
    errors = store.verify()
    assert errors
    assert {Path(error.path).name for error in errors} == {"00000001.pack"}
    lost = [d for d in data if store._index.find(digest_of(d)).pack == 1]  # type: ignore[union-attr]
    with pytest.raises(CorruptionError):
        store.get(digest_of(lost[0]))


# Failing disks.


@pytest.mark.parametrize(
    ("kind", "error"),
    [("write", StorageFullError), ("allocate", StorageFullError), ("sync", LedgerHaltedError)],
)
def test_a_failing_disk_halts_puts_and_reopening_goes_on(
    tmp_path: Path, kind: str, error: type[FastLedgerError]
) -> None:
    files = FailingFiles(kind, errno.ENOSPC)
    store = open_store(tmp_path, files)
    first = [blob(n, 900) for n in range(3)]
    store.put_many(first)
    files.armed = True
    with pytest.raises(error):
        store.put_many([blob(n, 900) for n in range(10, 14)])
    files.armed = False
    with pytest.raises(LedgerHaltedError):
        store.put_many([b"more"])
    assert [store.get(digest_of(d)) for d in first] == first
    store.close()
    store = open_store(tmp_path)
    assert [store.get(digest_of(d)) for d in first] == first
    assert store.verify() == []
    store.put_many([blob(n, 900) for n in range(10, 14)])
    assert store.verify() == []


def test_a_large_blob_without_space_leaves_nothing(tmp_path: Path) -> None:
    files = FailingFiles("write", errno.ENOSPC)
    store = open_store(tmp_path, files)
    files.armed = True
    with pytest.raises(StorageFullError):
        store.put_many([blob(1, 3000)])
    files.armed = False
    assert list((tmp_path / "tmp").iterdir()) == []
    assert store.put_many([blob(1, 3000)]) == [digest_of(blob(1, 3000))]


# Threads, and many operations in any order.


def test_many_readers_beside_puts_and_flushes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(blobs_module, "PENDING_BLOBS_MAX", 7)
    store = open_store(tmp_path)
    known: list[bytes] = store.put_many([blob(0)])
    failures: list[BaseException] = []
    done = threading.Event()

    def read() -> None:
        rng = random.Random(1)
        try:
            while not done.is_set():
                digest = rng.choice(known)
                assert digest_of(store.get(digest)) == digest
                assert store.missing([digest]) == []
        except (FastLedgerError, AssertionError) as error:
            failures.append(error)

    readers = [threading.Thread(target=read) for _ in range(3)]
    for reader in readers:
        reader.start()
    for n in range(60):
        known += store.put_many([blob(3 * n + k) for k in range(1, 4)])
    done.set()
    for reader in readers:
        reader.join()
    assert failures == []
    assert store.verify() == []


def test_a_flush_between_two_steps_of_a_lookup_hides_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = open_store(tmp_path)
    digest = store.put_many([b"pending"])[0]
    find = store._index.find

    def find_then_flush(wanted: bytes) -> object:
        found = find(wanted)
        store.flush()
        return found

    monkeypatch.setattr(store._index, "find", find_then_flush)
    assert store.has(digest)


class BlobMachine(RuleBasedStateMachine):
    """The store against a dict. SPEC-BLOB-1 to SPEC-BLOB-5."""

    digests = Bundle("digests")

    def __init__(self) -> None:
        super().__init__()
        import tempfile

        self.path = Path(tempfile.mkdtemp())
        self.store = self.open()
        self.model: dict[bytes, bytes] = {}

    def open(self) -> BlobStore:
        # Real syncs would only make the test slow: nothing here cuts the power.
        return BlobStore.open(self.path, CountingFiles(), pack_bytes=512, packed_bytes_max=200)

    @rule(target=digests, data=st.binary(max_size=400), repeat=st.integers(1, 3))
    def put(self, data: bytes, repeat: int) -> bytes:
        digest = self.store.put_many([data] * repeat)[-1]
        self.model[digest] = data
        return digest

    @rule(target=digests, pieces=st.lists(st.binary(max_size=150), max_size=4))
    def write(self, pieces: list[bytes]) -> bytes:
        with self.store.open_writer() as writer:
            for piece in pieces:
                writer.write(piece)
            digest = writer.commit()
        self.model[digest] = b"".join(pieces)
        return digest

    @rule(digest=digests)
    def erase(self, digest: bytes) -> None:
        assert self.store.erase(digest) == (self.model.pop(digest, None) is not None)

    @rule(digest=digests)
    def get(self, digest: bytes) -> None:
        assert self.store.has(digest) == (digest in self.model)
        if digest in self.model:
            assert self.store.get(digest) == self.model[digest]
        else:
            with pytest.raises(NotFoundError):
                self.store.get(digest)

    @rule()
    def flush(self) -> None:
        self.store.flush()

    @rule(rebuild=st.booleans(), clean=st.booleans())
    def reopen(self, rebuild: bool, clean: bool) -> None:
        if clean:
            self.store.close()
        else:
            self.store._index.close()
            self.store._packs.close()
        if rebuild:
            shutil.rmtree(self.path / "index")
        self.store = self.open()

    @invariant()
    def counts_agree(self) -> None:
        stats = self.store.stats()
        assert stats.packed + stats.large == len(self.model)
        assert stats.large == sum(len(data) > 200 for data in self.model.values())

    def teardown(self) -> None:
        assert self.store.verify() == []
        assert all(self.store.get(digest) == data for digest, data in self.model.items())
        self.store.close()
        shutil.rmtree(self.path)


TestBlobMachine = BlobMachine.TestCase
TestBlobMachine.settings = settings(max_examples=40, stateful_step_count=25, deadline=None)

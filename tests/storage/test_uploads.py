"""Uploads in pieces, and the collection of envelopes that no record came to name."""

import errno
import os
import random
import signal
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from hashlib import sha256
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from storage_faults import CrashingFiles, FailingFiles, PowerCutFiles, SimulatedCrash, flip
from world import Clock

from fastledger.errors import (
    Code,
    EnvelopeError,
    FastLedgerError,
    InputError,
    LedgerBusyError,
    LedgerClosedError,
    LedgerHaltedError,
    NotFoundError,
    StorageFullError,
    UploadConflict,
)
from fastledger.storage.blobs import uploads as uploads_module
from fastledger.storage.blobs.options import UploadLimits
from fastledger.storage.blobs.store import BlobStore
from fastledger.storage.blobs.uploads import Uploads
from fastledger.storage.files import OsFiles

PACKED = 1_000
DATA = random.Random(7).randbytes(5_000)
DIGEST = sha256(DATA).digest()
OTHER = bytes([1]) * 32


class Yard:
    """A blob store and the uploads beside it, which can be opened again and again."""

    def __init__(self, path: Path, files: OsFiles | None = None, **limits: int) -> None:
        self.path = path
        self.clock = Clock()
        self.limits = UploadLimits(**limits)
        self.open(files)

    def open(self, files: OsFiles | None = None) -> Uploads:
        self.store = BlobStore.open(self.path / "blobs", pack_bytes=4096, packed_bytes_max=PACKED)
        self.uploads = self._open_uploads(files)
        return self.uploads

    def _open_uploads(self, files: OsFiles | None) -> Uploads:
        return Uploads.open(
            self.path / "uploads", self.store.adopt, clock_ms=self.clock, limits=self.limits, files=files
        )

    def reopen(self, *, close: bool = True) -> Uploads:
        """After a stop or, without ``close``, after a crash of the uploads."""
        if close:
            self.uploads.close()
        self.store.close()
        return self.open()

    def send(self, data: bytes, chunk: int = 700, digest: bytes | None = None) -> str:
        state = self.uploads.begin(len(data), digest or sha256(data).digest())
        self.resume(state.id, data, chunk)
        return state.id

    def resume(self, upload_id: str, data: bytes, chunk: int = 700) -> None:
        offset = self.uploads.state(upload_id).offset
        while offset < len(data):
            offset = self.uploads.append(upload_id, offset, data[offset : offset + chunk])
        assert self.uploads.finish(upload_id).finished

    def names(self) -> list[str]:
        return sorted(path.name for path in (self.path / "uploads").iterdir())


@pytest.fixture
def yard(tmp_path: Path) -> Yard:
    return Yard(tmp_path)


@pytest.mark.parametrize("size", [1, PACKED, PACKED + 1, len(DATA)])
def test_pieces_become_a_blob(yard: Yard, size: int) -> None:  # SPEC-UPL-1
    data = DATA[:size]
    upload_id = yard.send(data)
    assert yard.store.get(sha256(data).digest()) == data
    state = yard.uploads.state(upload_id)
    assert (state.offset, state.finished) == (size, True)
    assert yard.names() == [f"{upload_id}.upload"]
    assert yard.uploads.pending == (0, 0)
    assert yard.reopen().finish(upload_id).finished  # an answer that was lost is given again
    yard.uploads.abandon(upload_id)
    assert yard.names() == []
    assert yard.store.get(sha256(data).digest()) == data


def test_sent_twice_it_is_stored_once(yard: Yard) -> None:
    for data in (DATA, DATA[:100]):
        yard.send(data)
        yard.send(data)
    stats = yard.store.stats()
    assert (stats.packed, stats.large) == (1, 1)
    assert not [name for name in yard.names() if name.endswith(".part")]


@pytest.mark.parametrize("offset", [0, 99, 101, len(DATA)])
def test_bytes_for_another_place_are_a_conflict(yard: Yard, offset: int) -> None:  # SPEC-UPL-2
    state = yard.uploads.begin(len(DATA), DIGEST)
    yard.uploads.append(state.id, 0, DATA[:100])
    with pytest.raises(UploadConflict) as caught:
        yard.uploads.append(state.id, offset, b"x")
    assert (caught.value.code, caught.value.offset) == (Code.UPLOAD_CONFLICT, 100)
    with pytest.raises(UploadConflict):
        yard.uploads.finish(state.id)
    yard.resume(state.id, DATA)
    with pytest.raises(UploadConflict):
        yard.uploads.append(state.id, len(DATA), b"")


def test_more_than_announced_is_oversized(yard: Yard) -> None:  # SPEC-UPL-2
    state = yard.uploads.begin(10, DIGEST)
    with pytest.raises(InputError) as caught:
        yard.uploads.append(state.id, 0, bytes(11))
    assert caught.value.code == Code.OVERSIZED
    assert yard.uploads.state(state.id).offset == 0


@pytest.mark.parametrize("restart", [False, True])
def test_a_wrong_digest_ends_the_upload(yard: Yard, restart: bool) -> None:  # SPEC-UPL-1
    state = yard.uploads.begin(len(DATA), OTHER)
    yard.uploads.append(state.id, 0, DATA)
    if restart:
        yard.reopen()
    with pytest.raises(EnvelopeError):
        yard.uploads.finish(state.id)
    with pytest.raises(NotFoundError) as caught:
        yard.uploads.state(state.id)
    assert caught.value.code == Code.UNKNOWN_UPLOAD
    assert yard.names() == []
    assert not yard.store.has(DIGEST)


def test_bounds(tmp_path: Path) -> None:  # SPEC-UPL-3
    yard = Yard(
        tmp_path,
        uploads_max=3,
        owner_uploads_max=2,
        upload_bytes_max=100,
        pending_bytes_max=250,
        lifetime_ms=10,
    )
    begin = yard.uploads.begin
    for size, digest, owner in ((0, DIGEST, OTHER), (1, b"", OTHER), (1, DIGEST, b"")):
        with pytest.raises(InputError):
            begin(size, digest, owner)
    with pytest.raises(InputError) as caught:
        begin(101, DIGEST)
    assert caught.value.code == Code.OVERSIZED
    begin(100, DIGEST)
    begin(100, DIGEST)
    with pytest.raises(LedgerBusyError):  # of this owner
        begin(1, DIGEST)
    with pytest.raises(LedgerBusyError):  # in bytes
        begin(51, DIGEST, OTHER)
    begin(50, DIGEST, OTHER)
    with pytest.raises(LedgerBusyError):  # in all
        begin(1, DIGEST, bytes([2]) * 32)
    assert yard.uploads.pending == (3, 250)
    yard.clock.advance(10)
    begin(100, DIGEST)
    assert yard.uploads.pending == (1, 100)


def test_finished_ones_are_remembered_within_bounds(tmp_path: Path) -> None:  # SPEC-UPL-3
    yard = Yard(tmp_path, uploads_max=3)
    ids = [yard.send(bytes([i]) * 10) for i in range(6)]
    assert yard.uploads.state(ids[-1]).finished
    assert len(yard.names()) <= 4


def test_what_gets_no_byte_expires(tmp_path: Path) -> None:  # SPEC-UPL-4
    yard = Yard(tmp_path, lifetime_ms=1_000)
    idle, busy = yard.uploads.begin(10, DIGEST), yard.uploads.begin(len(DATA), DIGEST)
    yard.clock.advance(999)
    yard.uploads.append(busy.id, 0, DATA[:100])
    assert yard.uploads.expire() == 0
    yard.reopen()
    yard.clock.advance(1)
    with pytest.raises(NotFoundError):
        yard.uploads.append(idle.id, 0, b"x")
    assert yard.uploads.expire() == 1
    assert yard.uploads.state(busy.id).expires_ms == yard.clock.now_ms + 999
    assert not [name for name in yard.names() if name.startswith(idle.id)]
    yard.clock.advance(999)
    yard.reopen()
    assert yard.names() == []


def test_an_upload_is_its_owners_alone(yard: Yard) -> None:  # SPEC-UPL-5
    state = yard.uploads.begin(10, DIGEST, OTHER)
    calls: list[Callable[[], object]] = [
        lambda: yard.uploads.state(state.id),
        lambda: yard.uploads.append(state.id, 0, b"x"),
        lambda: yard.uploads.sync(state.id),
        lambda: yard.uploads.finish(state.id),
        lambda: yard.uploads.abandon(state.id),
    ]
    for _ in range(2):
        for call in calls:
            with pytest.raises(NotFoundError) as caught:
                call()
            assert caught.value.code == Code.UNKNOWN_UPLOAD
        yard.reopen()
    assert yard.uploads.state(state.id, OTHER).offset == 0


def test_a_closed_one_says_so(yard: Yard) -> None:
    state = yard.uploads.begin(len(DATA), DIGEST)
    yard.uploads.append(state.id, 0, DATA[:100])
    yard.uploads.close()
    yard.uploads.close()
    for call in (
        lambda: yard.uploads.state(state.id),
        lambda: yard.uploads.begin(1, DIGEST),
        yard.uploads.expire,
    ):
        with pytest.raises(LedgerClosedError):
            call()
    assert yard.reopen().state(state.id).offset == 100


def test_damaged_files_cost_their_upload_alone(yard: Yard) -> None:  # SPEC-UPL-6
    whole = [yard.uploads.begin(len(DATA), DIGEST) for _ in range(5)]
    for state in whole:
        yard.uploads.append(state.id, 0, DATA[:200])
    yard.uploads.close()
    folder = yard.path / "uploads"
    flip(folder / f"{whole[0].id}.upload", 60)  # the digest
    flip(folder / f"{whole[1].id}.upload", 127)  # the first mark
    os.truncate(folder / f"{whole[2].id}.upload", 20)
    os.truncate(folder / f"{whole[3].id}.part", 150)
    (folder / f"{'ab' * 16}.part").write_bytes(b"left over")
    (folder / f"{'cd' * 16}.upload.tmp").write_bytes(b"left over")
    (folder / "notes").write_bytes(b"somebody's")
    yard.reopen()
    kept = {whole[1].id: 200, whole[4].id: 200}
    assert yard.names() == sorted([*(f"{i}.{kind}" for i in kept for kind in ("part", "upload")), "notes"])
    for upload_id, offset in kept.items():
        assert yard.uploads.state(upload_id).offset == offset
        yard.resume(upload_id, DATA)
    assert yard.store.get(DIGEST) == DATA


# Crashes.


def _one_upload(yard: Yard, data: bytes, told: list[int]) -> None:
    """Sends ``data``; ``told`` collects the offsets whose sync was acknowledged."""
    state = yard.uploads.begin(len(data), sha256(data).digest())
    told.append(0)
    for at in range(0, len(data), 800):
        yard.uploads.append(state.id, at, data[at : at + 800])
        told.append(yard.uploads.sync(state.id).offset)
    yard.uploads.finish(state.id)
    told.append(-1)


@pytest.mark.parametrize("data", [DATA, DATA[:900]], ids=["large", "packed"])
@pytest.mark.parametrize("torn", [0.0, 0.5])
def test_a_crash_at_any_step_loses_nothing_that_was_synced(
    tmp_path: Path, data: bytes, torn: float
) -> None:  # SPEC-UPL-6
    crash_at = 0
    while True:
        files = CrashingFiles(crash_at, torn)
        told: list[int] = []
        yard = Yard(tmp_path / f"{crash_at}", files)
        with suppress(SimulatedCrash):
            _one_upload(yard, data, told)
        yard.reopen(close=False)
        uploads = list(yard.uploads._uploads)
        if told[-1:] == [-1]:
            assert yard.store.get(sha256(data).digest()) == data
        elif told and not uploads:
            pytest.fail(f"crash at {crash_at}: an acknowledged upload is gone")
        for upload_id in uploads:
            assert yard.uploads.state(upload_id).offset >= max(told, default=0)
            yard.resume(upload_id, data)
            assert yard.store.get(sha256(data).digest()) == data
        yard.uploads.close()
        yard.store.close()
        if files.operations <= crash_at:
            break
        crash_at += 1
    assert crash_at > 10


@pytest.mark.parametrize("seed", range(8))
def test_a_power_cut_leaves_no_hole(tmp_path: Path, seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    # SPEC-UPL-6
    monkeypatch.setattr(uploads_module, "MARK_EVERY_BYTES", 1_500)
    rng = random.Random(seed)
    files = PowerCutFiles()
    yard = Yard(tmp_path, files)
    state = yard.uploads.begin(len(DATA), DIGEST)
    end = rng.randrange(len(DATA))
    for at in range(0, end, 300):
        yard.uploads.append(state.id, at, DATA[at : at + 300])
    files.cut(rng)
    yard.reopen(close=False)
    assert yard.uploads.state(state.id).offset <= end + 300
    yard.resume(state.id, DATA)
    assert yard.store.get(DIGEST) == DATA


@pytest.mark.parametrize("kind", ["write", "create", "rename", "sync", "sync-dir"])
def test_a_failing_disk_is_reported_and_leaves_no_lie(tmp_path: Path, kind: str) -> None:  # SPEC-UPL-6
    code = errno.EIO if kind.startswith("sync") else errno.ENOSPC
    for nth in range(4):
        files = FailingFiles(kind, code, lambda seen, nth=nth: seen == nth)  # type: ignore[misc]
        yard = Yard(tmp_path / f"{nth}", files)
        files.armed = True
        with pytest.raises((StorageFullError, LedgerHaltedError)) if nth == 0 else _either():
            _one_upload(yard, DATA, [])
        files.armed = False
        for upload_id in list(yard.uploads._uploads):
            yard.resume(upload_id, DATA)
        yard.send(DATA)
        assert yard.store.get(DIGEST) == DATA
        yard.store.close()


class _either:
    """An error of the disk may come or not."""

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> bool:
        return kind is not None and issubclass(kind, FastLedgerError)


_CHILD = """
import sys
from pathlib import Path
from fastledger.storage.blobs.uploads import Uploads
uploads = Uploads.open(Path(sys.argv[1]), lambda path, digest: None, clock_ms=lambda: 1_800_000_000_000)
upload_id, size = sys.argv[2], int(sys.argv[3])
offset = uploads.state(upload_id).offset
print("ready", offset, flush=True)
data = sys.stdin.buffer
while offset < size:
    offset = uploads.append(upload_id, offset, data.read1(4096))
    if offset % 3 == 0:
        uploads.sync(upload_id)
        print(offset, flush=True)
"""


def test_kill_of_the_process_between_any_two_steps(tmp_path: Path) -> None:  # SPEC-UPL-6
    rng = random.Random(3)
    data = rng.randbytes(200_000)
    yard = Yard(tmp_path)
    state = yard.uploads.begin(len(data), sha256(data).digest())
    yard.uploads.close()
    offset = 0
    for _ in range(4):
        command = [sys.executable, "-c", _CHILD, str(tmp_path / "uploads"), state.id, str(len(data))]
        with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as child:
            assert child.stdin is not None and child.stdout is not None
            start = int(child.stdout.readline().split()[1])
            assert start >= offset
            step = rng.randrange(10_000, 60_000)
            child.stdin.write(data[start : start + step])
            child.stdin.flush()
            child.send_signal(signal.SIGKILL)
            said = child.stdout.read().split()
            offset = int(said[-1]) if said else start
    yard.reopen()
    assert yard.uploads.state(state.id).offset >= offset
    yard.resume(state.id, data)
    assert yard.store.get(sha256(data).digest()) == data


@settings(max_examples=40, deadline=None)
@given(
    st.lists(
        st.one_of(
            st.tuples(st.just("append"), st.integers(0, 5_200), st.integers(0, 1_500)),
            st.sampled_from([("sync",), ("reopen",), ("crash",), ("finish",)]),
        ),
        max_size=25,
    )
)
def test_any_order_of_steps(
    tmp_path_factory: pytest.TempPathFactory, steps: list[tuple[object, ...]]
) -> None:
    # SPEC-UPL-2
    yard = Yard(tmp_path_factory.mktemp("yard"))
    upload_id = yard.uploads.begin(len(DATA), DIGEST).id
    offset = synced = 0
    for name, *arguments in steps:
        if name == "append":
            at, length = arguments
            at = offset if int(str(at)) % 2 else int(str(at))
            chunk = DATA[at : at + int(str(length))]
            try:
                assert yard.uploads.append(upload_id, at, chunk) == at + len(chunk)
                assert at == offset
                offset += len(chunk)
            except UploadConflict as error:
                assert error.offset == offset and (at != offset or yard.uploads.state(upload_id).finished)
        elif name == "sync":
            synced = yard.uploads.sync(upload_id).offset
        elif name == "finish" and offset == len(DATA):
            assert yard.uploads.finish(upload_id).finished
        elif name in ("reopen", "crash"):
            yard.reopen(close=name == "reopen")
            now = yard.uploads.state(upload_id).offset
            assert now == offset if name == "reopen" else synced <= now <= offset
            offset = synced = now
    yard.resume(upload_id, DATA)
    assert yard.store.get(DIGEST) == DATA
    yard.uploads.close()
    yard.store.close()


class _Leaving:
    """An upload during whose inspection another thread abandons an older one."""

    def __init__(self, uploads: Uploads) -> None:
        self._uploads = uploads._uploads
        self.size = 1
        self.owner = OTHER

    def _leave(self) -> None:
        for name in list(self._uploads)[:1]:
            del self._uploads[name]

    @property
    def finished(self) -> bool:
        self._leave()
        return True

    @property
    def touched_ms(self) -> int:
        self._leave()
        return 1 << 60


def test_one_is_abandoned_while_another_begins(tmp_path: Path) -> None:  # SPEC-UPL-4
    yard = Yard(tmp_path)
    for _ in range(3):
        yard.uploads.begin(10, DIGEST)
        yard.uploads._uploads["leaving"] = _Leaving(yard.uploads)  # type: ignore[assignment]
        assert yard.uploads.begin(10, DIGEST).offset == 0
        yard.uploads._uploads.pop("leaving", None)

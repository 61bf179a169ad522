"""The segment log: nothing acknowledged is lost, nothing damaged goes unnamed."""

import errno
import random
import resource
import shutil
import subprocess
import sys
import textwrap
import threading
from pathlib import Path

import pytest
from storage_faults import (
    CountingFiles,
    CrashingFiles,
    FailingFiles,
    PowerCutFiles,
    ShortWriteFiles,
    SimulatedCrash,
    flip,
)

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
from fastledger.storage.files import FileCache, OsFiles
from fastledger.storage.frames import FRAME_HEADER_BYTES, SEGMENT_HEADER_BYTES, FrameRef, frame_bytes
from fastledger.storage.head import SLOT_BYTES
from fastledger.storage.log import SegmentLog

CHAIN = b"testnet\0"
SEGMENT = 4096


def payload_of(height: int, size: int = 300) -> bytes:
    return random.Random(height).randbytes(size + height % 9)


def id_of(height: int) -> bytes:
    return height.to_bytes(32, "big")


def fill(log: SegmentLog, count: int, *, size: int = 300, every: int = 1) -> list[FrameRef]:
    first = log.end.height + 1
    refs = []
    for height in range(first, first + count):
        refs.append(log.append(height, payload_of(height, size), id_of(height)))
        if (height + 1) % every == 0:
            log.sync()
    log.sync()
    return refs


def reopen(root: Path, files: OsFiles | None = None, **options: object) -> SegmentLog:
    return SegmentLog.open(root, CHAIN, files, segment_bytes=SEGMENT, **options)  # type: ignore[arg-type]


def heights(log: SegmentLog) -> list[int]:
    found = []
    for ref, height, payload in log.frames():
        assert payload == payload_of(height)
        assert log.read(ref) == payload
        found.append(height)
    return found


def new_log(root: Path, files: OsFiles | None = None) -> SegmentLog:
    return SegmentLog.create(root, CHAIN, files, segment_bytes=SEGMENT)


# Appending, reading, rolling.


def test_frames_come_back_in_order_across_segments(tmp_path: Path) -> None:
    log = new_log(tmp_path)
    refs = fill(log, 40)
    assert refs[-1].segment >= 3  # SPEC-LOG-4: frames never span segments
    assert heights(log) == list(range(40))
    assert [height for _, height, _ in log.frames(refs[17])] == list(range(17, 40))
    assert [height for _, height, _ in log.frames(17)] == list(range(17, 40))
    assert log.durable == log.end == (refs[-1], 39, id_of(39))
    log.close()
    again = reopen(tmp_path)
    assert heights(again) == list(range(40))
    assert again.end == again.durable == (refs[-1], 39, id_of(39))
    assert again.verify() == []
    fill(again, 5)
    assert heights(again) == list(range(45))


def test_append_gathers_buffers_of_any_kind(tmp_path: Path) -> None:
    log = new_log(tmp_path)
    parts = [b"ab", bytearray(b"cd"), memoryview(b"xefx")[1:3], b""]
    assert log.read(log.append(7, parts)) == b"abcdef"
    many = [bytes([n % 251]) for n in range(1500)]  # more than one writev takes
    assert log.read(log.append(8, many)) == b"".join(many)
    assert log.read(log.append(9, b"")) == b""


def test_refs_pack_in_log_order() -> None:
    refs = [FrameRef(0, 56, 9), FrameRef(0, 300, 1), FrameRef(1, 56, 0)]
    assert [FrameRef.unpack(ref.pack()) for ref in refs] == refs
    assert sorted(ref.pack() for ref in refs) == [ref.pack() for ref in refs]


def test_what_does_not_fit_the_rules_is_refused_and_harms_nothing(tmp_path: Path) -> None:
    log = new_log(tmp_path)
    fill(log, 2)
    for height in (0, 1, 3, -1):
        with pytest.raises(InputError) as caught:
            log.append(height, b"x")
        assert caught.value.code is Code.BAD_BLOCK
    with pytest.raises(InputError) as caught:
        log.append(2, bytes(SEGMENT))
    assert caught.value.code is Code.OVERSIZED
    with pytest.raises(InputError):
        log.append(2, b"x", b"short")
    largest = SEGMENT - SEGMENT_HEADER_BYTES - frame_bytes(1) - frame_bytes(0)
    assert len(log.read(log.append(2, bytes(largest)))) == largest
    with pytest.raises(InputError):
        new_log(tmp_path)
    with pytest.raises(InputError):
        SegmentLog.create(tmp_path / "other", b"short")
    with pytest.raises(CorruptionError):
        SegmentLog.open(tmp_path, b"another\0")


def test_a_closed_log_says_so(tmp_path: Path) -> None:
    log = new_log(tmp_path)
    ref = fill(log, 1)[0]
    log.close()
    log.close()
    for call in (lambda: log.append(1, b""), log.sync, lambda: log.read(ref), log.verify):
        with pytest.raises(LedgerClosedError):
            call()


def test_pruning_unlinks_whole_segments_only(tmp_path: Path) -> None:
    log = new_log(tmp_path)
    refs = fill(log, 40)
    keep = next(ref for ref in refs if ref.segment == 2)
    assert log.prune(keep) == 2 * SEGMENT
    assert log.prune(keep) == 0
    kept = [n for n, ref in enumerate(refs) if ref.segment >= 2]
    assert (heights(log), log.first_height) == (kept, kept[0])
    with pytest.raises(NotFoundError) as caught:
        log.read(refs[0])
    assert caught.value.code == Code.PRUNED
    log.close()
    again = reopen(tmp_path)
    assert heights(again) == kept
    assert again.verify() == []


# Crashes. SPEC-LOG-5, SPEC-LOG-8.


def scripted_run(root: Path, files: OsFiles, acknowledged: list[int]) -> None:
    """Groups of two frames, a sync after each group; notes what was acknowledged."""
    log = new_log(root, files) if not (root / "HEAD").exists() else reopen(root, files)
    for height in range(log.end.height + 1, 26):
        log.append(height, payload_of(height), id_of(height))
        if height % 2:
            acknowledged.append(log.sync().height)
    log.close()


@pytest.mark.parametrize("torn", [0.0, 0.1, 0.5, 0.99, 1.0])
def test_a_crash_at_any_system_call_loses_nothing_acknowledged(tmp_path: Path, torn: float) -> None:
    counting = CountingFiles()
    scripted_run(tmp_path / "whole", counting, [])
    assert {"write", "sync", "sync-dir", "allocate", "rename", "create"} <= set(counting.kinds)
    for crash_at in range(counting.operations):
        root = tmp_path / str(crash_at)
        acknowledged: list[int] = [-1]
        with pytest.raises(SimulatedCrash):
            scripted_run(root, CrashingFiles(crash_at, torn), acknowledged)
        if not (root / "HEAD").exists():
            assert acknowledged == [-1]
            shutil.rmtree(root)
            continue
        log = reopen(root)
        assert log.end.height >= acknowledged[-1]
        assert heights(log) == list(range(log.end.height + 1))
        assert log.verify() == []
        log.close()
        scripted_run(root, OsFiles(), [])
        log = reopen(root)
        assert heights(log) == list(range(26))
        assert log.verify() == []
        log.close()
        shutil.rmtree(root)


def test_a_power_cut_that_keeps_any_sectors_loses_nothing_acknowledged(tmp_path: Path) -> None:
    # Unsynced sectors come back in any combination, HEAD's among them. SPEC-LOG-9: that is no corruption.
    for seed in range(60):
        rng = random.Random(seed)
        root = tmp_path / str(seed)
        files = PowerCutFiles()
        log = new_log(root, files)
        acknowledged = -1
        for height in range(rng.randrange(1, 30)):
            log.append(height, payload_of(height), id_of(height))
            if rng.random() < 0.3:
                acknowledged = log.sync().height
        log.close()
        files.cut(rng)
        again = reopen(root)
        assert again.end.height >= acknowledged
        assert heights(again) == list(range(again.end.height + 1))
        assert again.verify() == []
        again.close()
        shutil.rmtree(root)


def test_readonly_opening_leaves_a_torn_tail_alone(tmp_path: Path) -> None:
    log = new_log(tmp_path)
    fill(log, 3)
    end = log.end.ref.end.offset  # type: ignore[union-attr]
    log.close()
    segment = tmp_path / "log" / "00000000.seg"
    with segment.open("r+b") as file:
        file.seek(end)
        file.write(b"FLfr torn")
    before = segment.read_bytes()
    readonly = reopen(tmp_path, readonly=True)
    assert heights(readonly) == [0, 1, 2]
    with pytest.raises(LedgerHaltedError):
        readonly.append(3, b"x")
    readonly.close()
    assert segment.read_bytes() == before
    reopen(tmp_path).close()
    assert segment.read_bytes()[end:] == bytes(SEGMENT - end)


# Damage. SPEC-LOG-10, SPEC-LOG-11.


def test_verify_names_every_flipped_byte(tmp_path: Path) -> None:  # SPEC-LOG-2
    log = SegmentLog.create(tmp_path, CHAIN, segment_bytes=1024)
    for height in range(8):
        log.append(height, payload_of(height, 90), id_of(height))
    log.sync()
    assert log.end.ref is not None
    assert log.end.ref.segment == 1 or log.end.ref.segment == 2
    assert log.verify() == []
    for name in ("00000000.seg", "00000001.seg"):
        path = tmp_path / "log" / name
        for offset in range(1024):
            flip(path, offset, offset % 8)
            errors = log.verify()
            flip(path, offset, offset % 8)
            assert errors, f"{name} byte {offset}"
            assert {Path(error.path).name for error in errors} <= {name, "00000001.seg", "00000002.seg"}
            first = errors[0]
            assert Path(first.path).name == name
            assert first.offset is not None
            assert 0 <= offset - first.offset < frame_bytes(100)
    for offset in range(2 * SLOT_BYTES):
        flip(tmp_path / "HEAD", offset)
        errors = log.verify()
        flip(tmp_path / "HEAD", offset)
        assert [error.offset for error in errors] == [offset // SLOT_BYTES * SLOT_BYTES]
    assert log.verify() == []


def test_a_flip_in_anything_durable_is_never_cut_away(tmp_path: Path) -> None:
    log = new_log(tmp_path)
    refs = fill(log, 4)
    log.close()
    path = tmp_path / "log" / "00000000.seg"
    whole = path.read_bytes()
    last = refs[-1]
    for offset in range(last.offset, last.offset + FRAME_HEADER_BYTES + last.length):
        flip(path, offset)
        with pytest.raises(CorruptionError) as caught:
            reopen(tmp_path)
        assert (caught.value.path, caught.value.offset) == (str(path), last.offset)
        flip(path, offset)
    assert path.read_bytes() == whole
    # An earlier frame is not read at opening; reading it says so.
    flip(path, refs[1].offset + 80)
    log = reopen(tmp_path)
    with pytest.raises(CorruptionError):
        log.read(refs[1])
    assert log.read(refs[2]) == payload_of(2)
    with pytest.raises(CorruptionError):
        list(log.frames())


def stale_head(root: Path, log: SegmentLog, count: int) -> list[FrameRef]:
    """HEAD as a power cut may leave it: behind the log by ``count`` durable frames."""
    head = (root / "HEAD").read_bytes()
    refs = fill(log, count)
    log.close()
    (root / "HEAD").write_bytes(head)
    return refs


def test_with_a_stale_head_later_frames_prove_what_was_durable(tmp_path: Path) -> None:
    log = new_log(tmp_path)
    fill(log, 2)
    refs = stale_head(tmp_path, log, 3)
    path = tmp_path / "log" / "00000000.seg"
    flip(path, refs[0].offset + 100)
    with pytest.raises(CorruptionError) as caught:
        reopen(tmp_path)
    assert caught.value.offset == refs[0].offset
    flip(path, refs[0].offset + 100)
    assert heights(reopen(tmp_path)) == list(range(5))


def test_with_a_damaged_head_the_log_opens_from_the_checkpoint_or_the_start(tmp_path: Path) -> None:
    log = new_log(tmp_path)
    refs = fill(log, 30)
    log.close()
    flip(tmp_path / "HEAD", 20)
    flip(tmp_path / "HEAD", SLOT_BYTES + 20)
    readonly = reopen(tmp_path, readonly=True)
    assert heights(readonly) == list(range(30))
    assert len(readonly.verify()) == 2
    readonly.close()
    head = (tmp_path / "HEAD").read_bytes()
    # From the checkpoint on, damage before it is not met; from the start it is.
    flip(tmp_path / "log" / "00000000.seg", refs[0].offset + 90)
    with pytest.raises(CorruptionError):
        reopen(tmp_path)
    assert (tmp_path / "HEAD").read_bytes() == head
    log = reopen(tmp_path, scan_from=refs[20])
    assert log.end.height == 29
    assert [error.offset for error in log.verify()] == [refs[0].offset]  # HEAD is whole again
    log.close()


def test_missing_and_foreign_files_are_named(tmp_path: Path) -> None:
    log = new_log(tmp_path)
    fill(log, 40)
    log.close()
    second = tmp_path / "log" / "00000001.seg"
    data = second.read_bytes()
    second.unlink()
    with pytest.raises(CorruptionError, match="00000001"):
        reopen(tmp_path)
    second.write_bytes(data[:-8])
    with pytest.raises(CorruptionError, match="00000001"):
        reopen(tmp_path)
    second.write_bytes((tmp_path / "log" / "00000002.seg").read_bytes())
    with pytest.raises(CorruptionError, match="00000001"):
        reopen(tmp_path)
    second.write_bytes(data)
    (tmp_path / "HEAD").unlink()
    with pytest.raises(CorruptionError, match="HEAD"):
        reopen(tmp_path)


def test_a_frame_smuggled_in_as_payload_is_not_taken_for_one(tmp_path: Path) -> None:  # SPEC-LOG-3
    donor = new_log(tmp_path / "donor")
    fill(donor, 6)
    donor.close()
    stolen = (tmp_path / "donor" / "log" / "00000000.seg").read_bytes()[SEGMENT_HEADER_BYTES:2000]
    log = new_log(tmp_path / "victim")
    log.append(0, payload_of(0), id_of(0))
    log.sync()
    ref = log.append(1, stolen, id_of(1))
    log.close()
    # The write of height 1 is torn: its header is gone, its payload with whole-looking frames is there.
    with (tmp_path / "victim" / "log" / "00000000.seg").open("r+b") as file:
        file.seek(ref.offset)
        file.write(bytes(FRAME_HEADER_BYTES))
    assert heights(reopen(tmp_path / "victim")) == [0]


def test_a_whole_segment_of_another_history_is_found(tmp_path: Path) -> None:
    for name in ("ours", "theirs"):
        log = new_log(tmp_path / name)
        fill(log, 40)
        log.close()
    shutil.copy(tmp_path / "theirs/log/00000001.seg", tmp_path / "ours/log/00000001.seg")
    log = reopen(tmp_path / "ours")
    with pytest.raises(CorruptionError, match="does not follow"):
        list(log.frames())
    assert [(Path(error.path).name, error.offset) for error in log.verify()] == [
        ("00000001.seg", 0),
        ("00000002.seg", 0),
    ]


# Failing disks. SPEC-LOG-6.


def test_a_failed_sync_halts_and_is_not_tried_again(tmp_path: Path) -> None:
    files = FailingFiles("sync", errno.EIO)
    log = new_log(tmp_path, files)
    refs = fill(log, 3)
    files.armed = True
    log.append(3, payload_of(3), id_of(3))
    before = files.operations
    with pytest.raises(LedgerHaltedError):
        log.sync()
    assert files.kinds[before:] == ["sync"]
    files.armed = False
    for call in (log.sync, lambda: log.append(4, b"x"), lambda: log.prune(refs[0])):
        with pytest.raises(LedgerHaltedError):
            call()
    assert files.kinds[before:] == ["sync"]
    assert log.halted
    assert log.durable.height == 2
    assert log.read(refs[2]) == payload_of(2)
    log.close()
    # Reopening writes the frame again before calling it durable: its pages may count as clean.
    again = CountingFiles()
    log = reopen(tmp_path, again)
    assert log.durable.height == 3
    assert again.kinds == ["write", "sync", "write"]


def test_a_full_disk_takes_the_frame_back_and_reopens(tmp_path: Path) -> None:
    files = ShortWriteFiles(64)
    log = new_log(tmp_path, files)
    fill(log, 3)
    files.full_after = 2
    with pytest.raises(StorageFullError):
        log.append(3, payload_of(3), id_of(3))
    with pytest.raises(LedgerHaltedError):
        log.append(3, payload_of(3), id_of(3))
    log.close()
    readonly = reopen(tmp_path, files, readonly=True)
    assert heights(readonly) == [0, 1, 2]
    readonly.close()
    log = reopen(tmp_path)
    assert log.verify() == []
    fill(log, 3)
    assert heights(log) == list(range(6))


@pytest.mark.parametrize("kind", ["allocate", "create", "rename", "write", "sync", "sync-dir"])
@pytest.mark.parametrize("nth", [0, 1])
def test_a_failure_while_opening_the_next_segment_loses_nothing(tmp_path: Path, kind: str, nth: int) -> None:
    files = FailingFiles(kind, errno.ENOSPC, lambda seen: seen == nth)
    log = new_log(tmp_path, files)
    expected = StorageFullError if not kind.startswith("sync") else LedgerHaltedError
    acknowledged = -1
    files.armed = True
    with pytest.raises(expected):
        for height in range(60):
            log.append(height, payload_of(height), id_of(height))
            if kind not in ("write", "sync"):
                acknowledged = log.sync().height
        log.sync()
    log.close()
    log = reopen(tmp_path)
    assert log.end.height >= acknowledged
    fill(log, 20)
    assert heights(log) == list(range(log.end.height + 1))
    assert log.verify() == []


def test_a_real_file_size_limit_is_a_full_disk(tmp_path: Path) -> None:
    script = textwrap.dedent(
        """
        import resource, signal, sys
        from pathlib import Path
        from fastledger.errors import StorageFullError
        from fastledger.storage.log import SegmentLog
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        root = Path(sys.argv[1])
        log = SegmentLog.create(root, b"testnet\\0", segment_bytes=4096)
        log.append(0, b"kept")
        log.sync()
        resource.setrlimit(resource.RLIMIT_FSIZE, (2000, 2000))
        try:
            log.append(1, bytes(3000))
        except StorageFullError:
            print("full")
        log.close()
        log = SegmentLog.open(root, b"testnet\\0", segment_bytes=4096, readonly=True)
        print([p for _, _, p in log.frames()])
        """
    )
    done = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path)], capture_output=True, text=True, check=True, timeout=60
    )
    assert done.stdout.split("\n")[:2] == ["full", "[b'kept']"]
    assert resource.getrlimit(resource.RLIMIT_FSIZE)[0] != 2000
    log = reopen(tmp_path)
    assert log.verify() == []
    assert [payload for _, _, payload in log.frames()] == [b"kept"]


def test_short_writes_are_completed(tmp_path: Path) -> None:
    log = new_log(tmp_path, ShortWriteFiles(7))
    fill(log, 20)
    assert heights(log) == list(range(20))
    assert log.verify() == []


# Threads.


def test_append_sync_and_read_from_three_threads(tmp_path: Path) -> None:
    log = SegmentLog.create(tmp_path, CHAIN, segment_bytes=64 * 1024)
    count = 1500
    refs: list[FrameRef] = []
    failures: list[FastLedgerError | AssertionError] = []
    done = threading.Event()

    def append() -> None:
        for height in range(count):
            refs.append(log.append(height, payload_of(height), id_of(height)))
        done.set()

    def sync() -> None:
        try:
            while True:
                finished = done.is_set()
                entered = log.end.height
                assert log.sync().height >= entered
                assert log.durable.height >= entered
                if finished:
                    return
        except (FastLedgerError, AssertionError) as error:
            failures.append(error)

    def read() -> None:
        rng = random.Random(5)
        try:
            while not done.is_set():
                if refs:
                    height = rng.randrange(len(refs))
                    assert log.read(refs[height]) == payload_of(height)
        except (FastLedgerError, AssertionError) as error:
            failures.append(error)

    threads = [threading.Thread(target=target) for target in (append, sync, read)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    assert log.durable.height == count - 1
    assert log.verify() == []
    assert heights(log) == list(range(count))


def test_no_file_is_closed_while_it_is_read(tmp_path: Path) -> None:
    files = OsFiles()
    for number in range(5):
        (tmp_path / str(number)).write_bytes(b"%d" % number)
    cache = FileCache(files, lambda number: tmp_path / str(number), open_max=2)
    with cache.lease(0) as first:
        for number in range(1, 5):
            with cache.lease(number) as other:
                assert files.read(other, 9, 0) == b"%d" % number
        assert len(cache._open) <= 3  # bounded: the two that the cache may keep and the one that is read
        cache.forget(0)
        assert files.read(first, 9, 0) == b"0"
    assert first not in cache._open.values()
    cache.close()
    assert not cache._open


def test_verify_reports_progress_to_the_end(tmp_path: Path) -> None:
    log = new_log(tmp_path)
    fill(log, 40)
    seen: list[tuple[int, int]] = []
    assert log.verify(lambda done, total: seen.append((done, total))) == []
    assert [done for done, _ in seen] == sorted(done for done, _ in seen)
    assert seen[-1] == (SEGMENT * len(list((tmp_path / "log").iterdir())),) * 2

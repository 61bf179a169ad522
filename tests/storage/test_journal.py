"""The fork journal (SPEC-JRN): torn tails, damage, rewriting, and disks that fail."""

import errno
import random
from contextlib import suppress
from pathlib import Path
from zlib import crc32

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from storage_faults import CountingFiles, CrashingFiles, FailingFiles, PowerCutFiles, SimulatedCrash, flip

from fastledger.errors import (
    CorruptionError,
    FormatVersionError,
    InputError,
    LedgerClosedError,
    LedgerHaltedError,
    StorageFullError,
)
from fastledger.storage.files import OsFiles
from fastledger.storage.journal import JOURNAL_HEADER_BYTES, ForkJournal

CHAIN = b"chain-id"
PAYLOADS = [b"a" * 10, b"b" * 1000, b"c", b"d" * 77]


def path_of(root: Path) -> Path:
    return root / "forks" / "journal"


def payloads_of(root: Path) -> list[bytes]:
    journal = ForkJournal.open(root, CHAIN)
    found = [payload for _, payload in journal.load()]
    journal.close()
    return found


def filled(root: Path, files: OsFiles | None = None) -> ForkJournal:
    journal = ForkJournal.open(root, CHAIN, files)
    for payload in PAYLOADS:
        journal.append(payload)
    journal.sync()
    return journal


def test_what_was_appended_is_loaded_in_order(tmp_path: Path) -> None:  # SPEC-JRN-1
    journal = filled(tmp_path)
    assert [payload for _, payload in journal.load()] == PAYLOADS
    assert [journal.read(ref) for ref, _ in journal.load()] == PAYLOADS
    assert not journal.dirty
    journal.append(b"more")
    assert journal.dirty
    journal.close()
    assert payloads_of(tmp_path) == [*PAYLOADS, b"more"]


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_a_torn_tail_is_cut_and_writing_goes_on(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:  # SPEC-JRN-2
    root = tmp_path_factory.mktemp("journal")
    filled(root).close()
    content = path_of(root).read_bytes()
    length = data.draw(st.integers(JOURNAL_HEADER_BYTES, len(content)))
    tail = data.draw(st.sampled_from([b"", bytes(40), b"x" * 13]))
    path_of(root).write_bytes(content[:length] + tail)
    journal = ForkJournal.open(root, CHAIN)
    kept = [payload for _, payload in journal.load()]
    assert kept == PAYLOADS[: len(kept)]
    journal.append(b"next")
    journal.close()
    assert payloads_of(root) == [*kept, b"next"]


@settings(max_examples=80, deadline=None)
@given(st.data())
def test_a_flipped_bit_costs_what_follows_and_no_more(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:  # SPEC-JRN-2
    root = tmp_path_factory.mktemp("journal")
    filled(root).close()
    size = path_of(root).stat().st_size
    flip(path_of(root), data.draw(st.integers(0, size - 1)), data.draw(st.integers(0, 7)))
    kept = payloads_of(root)
    assert kept == PAYLOADS[: len(kept)] and len(kept) < len(PAYLOADS)
    assert payloads_of(root) == kept


def test_damage_is_found_while_it_is_open(tmp_path: Path) -> None:  # SPEC-JRN-2
    journal = filled(tmp_path)
    refs = [ref for ref, _ in journal.load()]
    flip(path_of(tmp_path), refs[1].offset + 20)
    with pytest.raises(CorruptionError):
        journal.read(refs[1])
    assert journal.read(refs[2]) == PAYLOADS[2]
    journal.close()


def test_rewriting_keeps_what_is_asked_for(tmp_path: Path) -> None:  # SPEC-JRN-3
    journal = filled(tmp_path)
    refs = [ref for ref, _ in journal.load()]
    size = journal.byte_count
    places = journal.rewrite([refs[0], refs[2]])
    assert journal.byte_count < size
    assert [journal.read(ref) for ref in places] == [PAYLOADS[0], PAYLOADS[2]]
    journal.append(b"next")
    journal.sync()
    journal.close()
    assert payloads_of(tmp_path) == [PAYLOADS[0], PAYLOADS[2], b"next"]
    journal = ForkJournal.open(tmp_path, CHAIN)
    assert journal.rewrite([]) == []
    journal.close()
    assert payloads_of(tmp_path) == []


@pytest.mark.parametrize("torn", [0.0, 0.5])
def test_a_crash_while_rewriting_leaves_one_of_the_two(tmp_path: Path, torn: float) -> None:  # SPEC-JRN-3
    outcomes = set()
    for crash_at in range(12):
        root = tmp_path / str(crash_at)
        journal = filled(root)
        refs = [ref for ref, _ in journal.load()]
        journal._files = CrashingFiles(crash_at, torn)
        with suppress(SimulatedCrash):
            journal.rewrite(refs[2:])
        found = payloads_of(root)
        assert found in (PAYLOADS, PAYLOADS[2:])
        outcomes.add(len(found))
    assert outcomes == {2, 4}


def test_a_power_cut_takes_only_what_was_not_synced(tmp_path: Path) -> None:  # SPEC-JRN-1
    for seed in range(30):
        files = PowerCutFiles()
        root = tmp_path / str(seed)
        journal = filled(root, files)
        journal.append(b"e" * 700)
        journal.append(b"f" * 700)
        files.cut(random.Random(seed))
        journal.close()
        found = payloads_of(root)
        assert found[:4] == PAYLOADS
        assert found[4:] in ([], [b"e" * 700], [b"e" * 700, b"f" * 700])


@pytest.mark.parametrize(
    ("kind", "code", "error"),
    [
        ("write", errno.ENOSPC, StorageFullError),
        ("write", errno.EIO, LedgerHaltedError),
        ("sync", errno.EIO, LedgerHaltedError),
    ],
)
def test_a_failure_halts_it(
    tmp_path: Path, kind: str, code: int, error: type[Exception]
) -> None:  # SPEC-JRN-4
    files = FailingFiles(kind, code)
    journal = filled(tmp_path, files)
    files.armed = True
    with pytest.raises(error):
        journal.append(b"x")
        journal.sync()
    files.armed = False
    with pytest.raises(LedgerHaltedError):
        journal.append(b"y")
    with pytest.raises(LedgerHaltedError):
        journal.sync()
    journal.close()
    assert payloads_of(tmp_path)[:4] == PAYLOADS


def test_a_full_disk_while_rewriting_leaves_the_old_file_in_use(tmp_path: Path) -> None:  # SPEC-JRN-3
    files = FailingFiles("write", errno.ENOSPC)
    journal = filled(tmp_path, files)
    refs = [ref for ref, _ in journal.load()]
    files.armed = True
    with pytest.raises(StorageFullError):
        journal.rewrite(refs[:1])
    files.armed = False
    journal.append(b"more")
    journal.sync()
    assert [journal.read(ref) for ref in refs] == PAYLOADS
    journal.close()
    assert payloads_of(tmp_path) == [*PAYLOADS, b"more"]


def test_a_full_disk_keeps_it_closed_and_whole(tmp_path: Path) -> None:  # SPEC-JRN-2
    """What was told rests on it: it is not taken over before it was written again."""
    filled(tmp_path).close()
    files = FailingFiles("write", errno.ENOSPC)
    files.armed = True
    with pytest.raises(StorageFullError):
        ForkJournal.open(tmp_path, CHAIN, files)
    assert payloads_of(tmp_path) == PAYLOADS


def test_what_was_read_back_after_a_failed_sync_is_written_again(tmp_path: Path) -> None:  # SPEC-JRN-2
    journal = filled(tmp_path)
    journal.append(b"never on the device")
    journal.close()
    files = PowerCutFiles()
    ForkJournal.open(tmp_path, CHAIN, files).close()
    for seed in range(4):
        files.cut(random.Random(seed))
    assert payloads_of(tmp_path) == [*PAYLOADS, b"never on the device"]
    counting = CountingFiles()
    ForkJournal.open(tmp_path, CHAIN, counting).close()
    assert counting.kinds[-4:] == ["write", "sync", "rename", "sync-dir"]


def test_what_is_not_a_journal_of_this_chain(tmp_path: Path) -> None:  # SPEC-JRN-1
    filled(tmp_path).close()
    with pytest.raises(InputError):
        ForkJournal.open(tmp_path, b"chain-xx")
    with pytest.raises(InputError):
        ForkJournal.open(tmp_path, b"short")
    assert payloads_of(tmp_path) == PAYLOADS
    head = bytearray(path_of(tmp_path).read_bytes())
    head[9] = 2
    head[28:32] = crc32(bytes(head[:28])).to_bytes(4, "big")
    path_of(tmp_path).write_bytes(head)
    with pytest.raises(FormatVersionError):
        ForkJournal.open(tmp_path, CHAIN)


def test_misuse(tmp_path: Path) -> None:
    journal = filled(tmp_path)
    with pytest.raises(InputError):
        journal.append(b"")
    journal.close()
    journal.close()
    with pytest.raises(LedgerClosedError):
        journal.append(b"x")
    with pytest.raises(LedgerClosedError):
        list(journal.load())

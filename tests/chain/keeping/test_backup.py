"""Backups: taken while others submit, brought up to date, damaged, killed half-way, and restored elsewhere."""

import json
import os
import random
import shutil
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from feeds import Feed, History, fill, small_files, submit_next
from storage_faults import flip
from world import World, make_world

from fastledger import Ledger, restore_backup
from fastledger.chain.keeping.backup import FileCopy, read_manifest
from fastledger.errors import (
    CorruptionError,
    FormatVersionError,
    InputError,
    LedgerClosedError,
    NotFoundError,
    OperationCancelledError,
)
from fastledger.subjects.record import RECORDS

LOAD_BATCHES_MAX = 40
Filled = tuple[World, list[Feed], History]


@pytest.fixture
def filled(tmp_path: Path) -> Iterator[Filled]:
    """A ledger of several segments and packs, with its index a little behind."""
    with small_files():
        world = make_world(tmp_path / "ledger", checkpoint_transactions=40)
        feeds, history = fill(world, 50)
        for number in range(34):
            world.put(random.Random(number).randbytes(3_800))
        yield world, feeds, history
        world.close()


def objects_of(backup: Path) -> dict[str, bytes]:
    return {
        path.parent.name + path.name: path.read_bytes()
        for path in (backup / "objects").glob("??/*")
        if path.is_file()
    }


class Load:
    """Threads that submit planned work until they are told to stop, each with a history of its own."""

    def __init__(self, ledger: Ledger, feeds: list[Feed]) -> None:
        self.histories = [History() for _ in feeds]
        self._stop = threading.Event()
        self._failures: list[BaseException] = []
        self._threads = [
            threading.Thread(target=self._submit, args=(ledger, feed, history))
            for feed, history in zip(feeds, self.histories, strict=True)
        ]

    def _submit(self, ledger: Ledger, feed: Feed, history: History) -> None:
        try:
            while not self._stop.is_set() and len(history.batches) < LOAD_BATCHES_MAX:
                submit_next(ledger, feed, history)
        except BaseException as error:
            self._failures.append(error)

    @property
    def batches(self) -> int:
        return sum(len(history.batches) for history in self.histories)

    def __enter__(self) -> "Load":
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()
        assert self._failures == []


def test_a_backup_under_load_restores_and_verifies(
    filled: Filled, tmp_path: Path
) -> None:  # SPEC-BAK-1, SPEC-BAK-5
    world, feeds, history = filled
    for number in range(3):
        with Load(world.ledger, feeds) as load:
            while load.batches < 4:
                time.sleep(0.001)
            report = world.ledger.backup(tmp_path / "backup", rate_bytes_per_second=2_000_000)
            during = load.batches
        assert during > 4, "nothing was submitted while the backup ran"
        restored = restore_backup(tmp_path / "backup", tmp_path / f"restored-{number}")
        assert restored.verified is not None and restored.verified.problems == []
        assert (restored.height, restored.block_id) == (report.height, report.block_id)
        block = world.ledger.block(report.height)
        assert (block.block_id, block.body.state_root) == (report.block_id, restored.state_root)
        history.check(world.ledger, everything=True)
    # What was acknowledged before the backup began is in it, envelopes too.
    with Ledger.open(tmp_path / "restored-0", replica=True) as ledger:
        for planned in history.batches:
            for txid, code in zip(planned.txids, planned.codes, strict=True):
                if txid in planned.entering:
                    assert ledger.get(txid).code == code


def test_what_is_unchanged_is_not_copied_again(filled: Filled, tmp_path: Path) -> None:  # SPEC-BAK-2
    world, _, _ = filled
    ledger, backup = world.ledger, tmp_path / "backup"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("fastledger.chain.keeping.backup.RACY_NS", -1)
        first = ledger.backup(backup)
        assert first.copied_bytes == first.total_bytes
        sealed = {file.path for file in read_manifest(backup).files if file.source is not None}
        assert sum(path.startswith("log/") for path in sealed) >= 2
        assert sum(path.startswith("blobs/packs/") for path in sealed) >= 1
        copied: list[str] = []
        init = FileCopy.__init__

        def counted(copy: FileCopy, *arguments: object) -> None:
            init(copy, *arguments)  # type: ignore[arg-type]
            copied.append(copy.name)

        patch.setattr(FileCopy, "__init__", counted)
        world.put()
        second = ledger.backup(backup)
        assert second.copied_bytes < first.copied_bytes
        assert sealed.isdisjoint(copied)
        # A kept object that went bad is found where that is asked for.
        entry = next(file for file in read_manifest(backup).files if file.path == "log/00000000.seg")
        flip(backup / "objects" / entry.sha256[:2] / entry.sha256[2:], 3_000)
        with pytest.raises(CorruptionError) as caught:
            restore_backup(backup, tmp_path / "bad")
        assert entry.sha256[2:] in caught.value.path and not (tmp_path / "bad").exists()
        ledger.backup(backup, recheck=True)
        assert "log/00000000.seg" in copied
    assert restore_backup(backup, tmp_path / "good").height == ledger.height


def test_erased_envelopes_leave_the_backup(filled: Filled, tmp_path: Path) -> None:  # SPEC-BAK-3
    world, _, _ = filled
    backup = tmp_path / "backup"
    small, large = world.put(b"s" * 500), world.put(bytes(20_000))
    filler = [world.put(random.Random(n).randbytes(3_500)) for n in range(40)]  # their pack is full by now
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("fastledger.chain.keeping.backup.RACY_NS", -1)
        world.ledger.backup(backup)
        piece = small.blob[-300:]
        assert any(piece in data for data in objects_of(backup).values())
        assert large.blob in objects_of(backup).values()
        world.submit(world.patient.erase_record(small.record), world.patient.erase_record(large.record))
        world.ledger.backup(backup)
    assert not any(piece in data for data in objects_of(backup).values())
    assert large.blob not in objects_of(backup).values()
    assert any(filler[0].blob[-300:] in data for data in objects_of(backup).values())
    restore_backup(backup, tmp_path / "restored")


def test_an_erasure_while_a_pack_is_copied_is_done_again(
    filled: Filled, tmp_path: Path
) -> None:  # SPEC-BAK-3
    world, _, _ = filled
    records = [world.put(b"%d" % n * 400) for n in range(8)]
    extend, erased = FileCopy.extend, []

    def disturbed(copy: FileCopy, end: int, spend: Callable[[int], None]) -> None:
        extend(copy, min(end, copy.offset + 1_000), spend)
        if copy.name.endswith(".pack") and records and not world.ledger._blobs._lock.locked():
            record = records.pop()
            world.submit(world.patient.erase_record(record.record))
            erased.append(record)
        extend(copy, end, spend)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(FileCopy, "extend", disturbed)
        world.ledger.backup(tmp_path / "backup")
    assert len(erased) >= 2
    restore_backup(tmp_path / "backup", tmp_path / "restored")
    with Ledger.open(tmp_path / "restored", replica=True) as ledger:
        for sealed in erased:
            assert ledger.entity(RECORDS, sealed.record).erased
    for path in (tmp_path / "restored" / "blobs" / "packs").iterdir():
        assert not any(sealed.blob[-200:] in path.read_bytes() for sealed in erased)


def test_a_run_that_ends_early_leaves_the_backup_before_it(
    filled: Filled, tmp_path: Path
) -> None:  # SPEC-BAK-4
    world, feeds, history = filled
    ledger, backup = world.ledger, tmp_path / "backup"
    before = ledger.backup(backup)
    for number in range(6):
        submit_next(ledger, feeds[number % 2], history)
    cancel = threading.Event()

    def stop_at(stage: str, done: int, _total: int) -> None:
        if stage == "log" and done == 2:
            cancel.set()

    with pytest.raises(OperationCancelledError):
        ledger.backup(backup, progress=stop_at, cancel=cancel)
    pid = os.fork()
    if not pid:  # the same with a kill

        def die(stage: str, done: int, _total: int) -> None:
            if stage == "log" and done == 3:
                os.kill(os.getpid(), signal.SIGKILL)

        shutil.copytree(world.path, tmp_path / "copy")
        Ledger.open(tmp_path / "copy", replica=True).backup(backup, progress=die)
        os._exit(0)
    assert os.WIFSIGNALED(os.waitpid(pid, 0)[1])
    assert restore_backup(backup, tmp_path / "old").height == before.height
    after = ledger.backup(backup)
    assert not list((backup / "objects").glob("*.part"))
    assert restore_backup(backup, tmp_path / "new").height == after.height > before.height


def test_closing_ends_a_backup(filled: Filled, tmp_path: Path) -> None:
    world, _, _ = filled
    caught: list[BaseException] = []

    def run() -> None:
        try:
            world.ledger.backup(tmp_path / "backup", rate_bytes_per_second=10_000)
        except LedgerClosedError as error:
            caught.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    while not (tmp_path / "backup" / "objects").exists():
        time.sleep(0.001)
    world.ledger.close()
    thread.join()
    assert len(caught) == 1


# What is refused.


def test_where_a_backup_may_not_go(filled: Filled, tmp_path: Path) -> None:
    world, _, _ = filled
    other = make_world(tmp_path / "other")
    other.ledger.backup(tmp_path / "backup")
    other.close()
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.txt").write_text("years of work")
    for place in (tmp_path / "backup", tmp_path / "full", world.path / "backup"):
        with pytest.raises(InputError):
            world.ledger.backup(place)
    assert (tmp_path / "full" / "thesis.txt").read_text() == "years of work"
    with pytest.raises(InputError):
        restore_backup(tmp_path / "backup", tmp_path / "full")
    with pytest.raises(NotFoundError):
        restore_backup(tmp_path / "full", tmp_path / "restored")


def test_the_node_key_is_copied_only_when_asked(filled: Filled, tmp_path: Path) -> None:  # SPEC-BAK-6
    world, feeds, history = filled
    key = (world.path / "node.key").read_bytes()
    world.ledger.backup(tmp_path / "without")
    assert key not in objects_of(tmp_path / "without").values()
    assert not restore_backup(tmp_path / "without", tmp_path / "replica", verify=False).has_node_key
    with Ledger.open(tmp_path / "replica", replica=True) as ledger:
        with pytest.raises(InputError):
            ledger.submit([world.patient.open_folders("mental").encoded])
        assert ledger.head == world.ledger.head
    world.ledger.backup(tmp_path / "with", include_node_key=True)
    assert restore_backup(tmp_path / "with", tmp_path / "node").has_node_key
    assert oct((tmp_path / "node" / "node.key").stat().st_mode & 0o777) == "0o600"
    with Ledger.open(tmp_path / "node", options=world.options) as ledger:
        submit_next(ledger, feeds[0], history)


def test_every_object_and_the_manifest_are_checked(filled: Filled, tmp_path: Path) -> None:  # SPEC-BAK-5
    world, _, _ = filled
    backup, rng = tmp_path / "backup", random.Random(5)
    world.ledger.backup(backup, include_snapshot=True)
    targets = sorted((backup / "objects").glob("??/*"))
    for path in targets:
        if not path.stat().st_size:
            continue
        offset, bit = rng.randrange(path.stat().st_size), rng.randrange(8)
        flip(path, offset, bit)
        with pytest.raises(CorruptionError) as caught:
            restore_backup(backup, tmp_path / "restored", verify=False)
        assert caught.value.path == str(path)
        flip(path, offset, bit)
    whole = targets[0].read_bytes()
    targets[0].unlink()
    with pytest.raises(CorruptionError):
        restore_backup(backup, tmp_path / "restored")
    targets[0].write_bytes(whole)
    manifest = backup / "backup.json"
    text = manifest.read_text()
    for changed in ('"height": ', '"height": 1'), ('"path": "log', '"path": "../log'), ("{", ""):
        manifest.write_text(text.replace(*changed, 1))
        assert manifest.read_text() != text
        with pytest.raises(CorruptionError):
            restore_backup(backup, tmp_path / "restored")
    manifest.write_text(json.dumps({**json.loads(text), "format": 99}))
    with pytest.raises(FormatVersionError):
        restore_backup(backup, tmp_path / "restored")
    manifest.write_text(text)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["backup", "ledger"]
    restore_backup(backup, tmp_path / "restored")


def test_an_index_comes_from_the_snapshot_in_the_backup(filled: Filled, tmp_path: Path) -> None:  # SPEC-BAK-5
    world, feeds, history = filled
    erased = world.put(b"to be erased" * 20)
    world.ledger.backup(tmp_path / "backup")
    # Erased between the copy of its pack and the snapshot: no replay would do it again.
    copy_envelopes = "fastledger.chain.keeping.backup.BackupRun.copy_envelopes"
    world.submit(world.patient.erase_record(erased.record))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(copy_envelopes, lambda run, blobs: None)
        world.ledger.backup(tmp_path / "backup", include_snapshot=True)
    for number in range(4):
        submit_next(world.ledger, feeds[number % 2], history)
    world.ledger.backup(tmp_path / "backup")
    assert read_manifest(tmp_path / "backup").snapshot_height is not None
    restore_backup(tmp_path / "backup", tmp_path / "restored")
    with Ledger.open(tmp_path / "restored", replica=True) as ledger:
        assert (ledger.height, ledger.state_root) == (world.ledger.height, world.ledger.state_root)


def test_a_restore_removes_nothing_that_it_did_not_make(filled: Filled, tmp_path: Path) -> None:  # SPEC-BAK-5
    world, _, _ = filled
    world.ledger.backup(tmp_path / "backup")
    partial = tmp_path / "restored.partial"
    partial.mkdir()
    (partial / "mine").write_text("kept")
    with pytest.raises(InputError, match="in the way"):
        restore_backup(tmp_path / "backup", tmp_path / "restored")
    assert (partial / "mine").read_text() == "kept"
    (partial / "mine").unlink()
    partial.rmdir()
    partial.write_text("a file")
    with pytest.raises(InputError, match="in the way"):
        restore_backup(tmp_path / "backup", tmp_path / "restored")
    assert partial.read_text() == "a file"
    partial.unlink()
    partial.symlink_to(tmp_path / "backup")
    with pytest.raises(InputError, match="in the way"):
        restore_backup(tmp_path / "backup", tmp_path / "restored")
    partial.unlink()


def test_what_a_killed_restore_left_is_removed_by_the_next(
    filled: Filled, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:  # SPEC-BAK-5
    world, _, _ = filled
    world.ledger.backup(tmp_path / "backup")
    partial, left = tmp_path / "restored.partial", tmp_path / "left"

    def kill(*_: object, **__: object) -> None:
        shutil.copytree(partial, left)
        raise CorruptionError("as if killed", path=str(partial))

    with monkeypatch.context() as patch:
        patch.setattr("fastledger.chain.restore._prove", kill)
        with pytest.raises(CorruptionError):
            restore_backup(tmp_path / "backup", tmp_path / "restored")
    assert not partial.exists()
    shutil.copytree(left, partial)
    restore_backup(tmp_path / "backup", tmp_path / "restored")
    assert not partial.exists()
    assert (tmp_path / "restored" / "genesis.cbor").is_file()
    assert {path.name for path in (tmp_path / "restored").iterdir()} >= {"genesis.cbor", "log"}
    assert not list((tmp_path / "restored").glob("being-made*"))

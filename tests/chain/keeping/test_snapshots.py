"""Snapshots and pruning: chunks checked one by one, whole segments given back, and every step killed."""

import os
import random
import shutil
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from feeds import Feed, History, check_all, fill, small_files, submit_next
from hypothesis import given
from hypothesis import strategies as st
from storage_faults import flip
from world import World, make_world

from fastledger import Code, Ledger, Query, Transaction, VerifyReport, restore_snapshot
from fastledger.chain.keeping.snapshots import SnapshotLoader, kept_snapshots
from fastledger.errors import CorruptionError, FormatVersionError, InputError, NotFoundError
from fastledger.storage.files import OsFiles
from fastledger.storage.index import Index
from fastledger.storage.snapshot import (
    Manifest,
    SnapshotEntry,
    SnapshotFiles,
    check_chunk,
    decode_chunk,
    encode_chunks,
)

Filled = tuple[World, list[Feed], History]


@pytest.fixture
def filled(tmp_path: Path) -> Iterator[Filled]:
    with small_files():
        world = make_world(tmp_path / "ledger", checkpoint_transactions=40)
        feeds, history = fill(world, 60)
        yield world, feeds, history
        world.close()


@pytest.fixture
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(encode_chunks.__kwdefaults__ or {}, "chunk_bytes", 4_096)
    monkeypatch.setattr(encode_chunks, "__defaults__", (4_096,))


# The format.


@given(
    st.lists(
        st.builds(SnapshotEntry, st.integers(0, 3), st.binary(max_size=40), st.binary(max_size=300)),
        max_size=30,
    )
)
def test_chunks_give_their_entries_back(entries: list[SnapshotEntry]) -> None:  # SPEC-SNAP-1
    chunks = list(encode_chunks(entries, 512))
    assert [entry for chunk, _ in chunks for entry in decode_chunk(chunk, "chunk")] == entries
    assert sum(count for _, count in chunks) == len(entries)
    assert all(len(chunk) <= 512 or count == 1 for chunk, count in chunks)


@given(st.binary(max_size=200))
def test_any_bytes_are_entries_or_damage(data: bytes) -> None:  # SPEC-SNAP-1
    try:
        entries = list(decode_chunk(data, "chunk"))
    except CorruptionError:
        return
    assert b"".join(chunk for chunk, _ in encode_chunks(entries, 1 << 20)) == data


def test_a_manifest_commits_to_every_field_and_chunk(filled: Filled, tmp_path: Path) -> None:  # SPEC-SNAP-2
    world, _, _ = filled
    report = world.ledger.snapshot(tmp_path / "snapshot")
    manifest = SnapshotFiles(tmp_path / "snapshot").manifest()
    assert (report.root, report.entries) == (manifest.root, manifest.entries)
    encoded = manifest.encode()
    assert Manifest.decode(encoded, "manifest") == manifest
    for offset in range(len(encoded)):
        changed = bytearray(encoded)
        changed[offset] ^= 1 << offset % 8
        with pytest.raises((CorruptionError, FormatVersionError)):
            Manifest.decode(bytes(changed), "manifest")
    with pytest.raises(CorruptionError):
        Manifest.decode(encoded[:-1], "manifest")


# Restoring.


def test_two_nodes_make_the_same_snapshot(
    filled: Filled, tmp_path: Path, small_chunks: None
) -> None:  # SPEC-SNAP-2
    world, _, _ = filled
    world.ledger.snapshot(tmp_path / "first")
    world.close()
    # Another disk: other segments, and checkpoints elsewhere.
    shutil.copytree(world.path, tmp_path / "other")
    with Ledger.reindex(tmp_path / "other", options=world.options) as other:
        other.snapshot(tmp_path / "second")
    first, second = (SnapshotFiles(tmp_path / name).manifest() for name in ("first", "second"))
    assert (first.root, first.encode()) == (second.root, second.encode())
    assert len(first.chunks) > 10


def test_chunks_may_come_in_any_order_and_from_anyone(
    filled: Filled, tmp_path: Path, small_chunks: None
) -> None:  # SPEC-SNAP-3
    world, _, _ = filled
    world.ledger.snapshot(tmp_path / "snapshot")
    source = SnapshotFiles(tmp_path / "snapshot")
    manifest = source.manifest()
    index = Index.open(tmp_path / "index", world.ledger.chain_id)
    loader = SnapshotLoader(index, manifest, world.ledger.chain_id, "peer")
    numbers = loader.missing
    random.Random(3).shuffle(numbers)
    for number in numbers:
        chunk = source.chunk(manifest, number)
        for wrong in (chunk[:-1], chunk + b"\0", b"", chunk[:9] + bytes([chunk[9] ^ 1]) + chunk[10:]):
            with pytest.raises(CorruptionError) as caught:
                loader.feed(number, wrong)
            assert f"chunk {number}" in str(caught.value)
        if number == numbers[-1]:
            with pytest.raises(CorruptionError):
                loader.finish(None)
        loader.feed(number, chunk)
        loader.feed(number, chunk)
    with pytest.raises(InputError):
        check_chunk(manifest, len(manifest.chunks), b"", "peer")
    loader.finish(None)
    everything_but_places = ("state", "txids", "postings", "seqs")
    assert world.ledger._index.compare(index, databases=everything_but_places) == []
    index.close()


def beyond_envelopes(report: VerifyReport) -> list[str]:
    """What is wrong beside envelopes, which no snapshot brings."""
    return [problem for problem in report.problems if "missing" not in problem]


def test_a_ledger_goes_on_from_a_snapshot_alone(filled: Filled, tmp_path: Path) -> None:  # SPEC-SNAP-6
    world, feeds, history = filled
    ledger = world.ledger
    ledger.snapshot(tmp_path / "snapshot")
    genesis, key = ledger.genesis.encoded, ledger._executor._key
    known = history.batches[0].txids[0]
    world.close()
    target = tmp_path / "restored"
    report = restore_snapshot(tmp_path / "snapshot", target, genesis, node_key=key)
    assert (report.block_id, report.state_root) == (ledger.head, report.state_root)
    for _ in range(2):  # the second time with its index lost
        with Ledger.open(target, options=world.options) as restored:
            assert restored.first_height == report.height + 1
            assert beyond_envelopes(restored.verify()) == []
            with pytest.raises(NotFoundError) as caught:
                restored.get(known)
            assert caught.value.code is Code.PRUNED
            restored.snapshot()
            submit_next(restored, feeds[0], history)
            assert restored.height > report.height
            state_root = restored.state_root
        shutil.rmtree(target / "index")
    with Ledger.open(target, options=world.options) as restored:
        assert restored.state_root == state_root
        assert beyond_envelopes(restored.verify()) == beyond_envelopes(restored.verify(online=True)) == []


def test_what_no_snapshot_is(filled: Filled, tmp_path: Path) -> None:  # SPEC-SNAP-4
    world, _, _ = filled
    genesis = world.ledger.genesis.encoded
    with pytest.raises(NotFoundError):
        restore_snapshot(tmp_path / "nothing", tmp_path / "restored", genesis)
    world.ledger.snapshot(tmp_path / "snapshot")
    with pytest.raises(InputError):
        world.ledger.snapshot(tmp_path / "snapshot")
    other = make_world(tmp_path / "other")
    with pytest.raises(CorruptionError):
        restore_snapshot(tmp_path / "snapshot", tmp_path / "restored", other.ledger.genesis.encoded)
    other.close()
    flip(tmp_path / "snapshot" / "00000000.chunk", 1_000)
    with pytest.raises(CorruptionError) as caught:
        restore_snapshot(tmp_path / "snapshot", tmp_path / "restored", genesis)
    assert caught.value.path.endswith("00000000.chunk")
    (tmp_path / "snapshot" / "00000000.chunk").unlink()
    with pytest.raises(CorruptionError):
        restore_snapshot(tmp_path / "snapshot", tmp_path / "restored", genesis)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["ledger", "other", "snapshot"]


# Pruning.


def segments_of(world: World) -> list[Path]:
    return sorted((world.path / "log").iterdir())


def test_pruning_gives_back_whole_segments(filled: Filled) -> None:  # SPEC-PRUNE-1, SPEC-PRUNE-2
    world, feeds, history = filled
    ledger = world.ledger
    used = sum(path.stat().st_blocks * 512 for path in segments_of(world))
    root = ledger.state_root
    report = ledger.prune(before_height=ledger.height - 5)
    assert report.freed_bytes == used - sum(path.stat().st_blocks * 512 for path in segments_of(world)) > 0
    assert 0 < report.first_height == ledger.first_height <= ledger.height - 5
    assert ledger.prune(before_height=ledger.first_height).freed_bytes == 0
    assert ledger.state_root == root
    for height in (0, report.first_height - 1):
        with pytest.raises(NotFoundError) as caught:
            ledger.block(height)
        assert caught.value.code is Code.PRUNED
    assert ledger.block(report.first_height).height == report.first_height
    page = ledger.query(Query(limit=1000))
    assert min(entry.height for entry in page) == report.first_height
    assert ledger.query(to_height=report.first_height - 1).entries == []
    assert ledger.verify().problems == [] and ledger.verify(online=True).problems == []
    for number in range(10):
        submit_next(ledger, feeds[number % 2], history)
    again = ledger.prune(keep_blocks=1)
    assert again.freed_bytes > 0
    assert [height for height, _ in kept_snapshots(ledger._directory)] == [again.snapshot_height]


def test_envelopes_and_rules_do_not_notice(filled: Filled) -> None:  # SPEC-PRUNE-3, SPEC-PRUNE-4
    world, _, history = filled
    entered = [
        (encoded, txid, code)
        for planned in history.batches
        for encoded, txid, code in zip(planned.transactions, planned.txids, planned.codes, strict=True)
        if txid in planned.entering
    ]
    places = {
        txid: (entry.height, entry.index) for _, txid, _ in entered for entry in [world.ledger.get(txid)]
    }
    world.ledger.prune(keep_blocks=1)
    pruned = [txid for _, txid, _ in entered if places[txid][0] < world.ledger.first_height]
    assert len(pruned) > 50
    assert {code for _, txid, code in entered if txid in pruned} > {Code.OK}, "no refusal was pruned"
    # A retry gets its first verdict, place and all, though the block is gone.
    outcomes = world.ledger.submit([encoded for encoded, _, _ in entered])
    for (_, txid, code), outcome in zip(entered, outcomes, strict=True):
        assert (outcome.code, outcome.duplicate) == (code, True)
        assert (outcome.height, outcome.index) == places[txid]
    for txid in pruned[:3]:
        for call in (world.ledger.get, world.ledger.prove):
            with pytest.raises(NotFoundError) as caught:
                call(txid)
            assert caught.value.code is Code.PRUNED
    sealed = [
        blob for planned in history.batches for blob in planned.versions if blob[0] not in history.erased
    ]
    for record, version, blob in sealed:
        assert world.ledger._blobs.get(world.ledger.record_version(record, version).digest) == blob


@pytest.mark.parametrize("lost", ["nothing", "index", "HEAD", "both"])
def test_a_pruned_ledger_opens_whatever_is_lost(filled: Filled, lost: str) -> None:  # SPEC-PRUNE-5
    world, feeds, history = filled
    world.ledger.prune(keep_blocks=10)
    for number in range(8):
        submit_next(world.ledger, feeds[number % 2], history)
    height, root = world.ledger.height, world.ledger.state_root
    world.close()
    if lost in ("index", "both"):
        shutil.rmtree(world.path / "index")
        shutil.rmtree(world.path / "blobs" / "index")
    if lost in ("HEAD", "both"):
        (world.path / "HEAD").write_bytes(bytes(1024))
    world.ledger = Ledger.open(world.path, options=world.options)
    assert (world.ledger.height, world.ledger.state_root) == (height, root)
    assert world.ledger.verify().problems == []
    submit_next(world.ledger, feeds[0], history)
    world.close()
    world.ledger = Ledger.reindex(world.path, options=world.options)
    assert world.ledger.verify().problems == []


def test_without_index_and_snapshot_nothing_is_made_up(filled: Filled) -> None:  # SPEC-PRUNE-5
    world, _, _ = filled
    world.ledger.prune(keep_blocks=1)
    world.close()
    shutil.rmtree(world.path / "index")
    snapshot = next((world.path / "snapshots").iterdir())
    flip(snapshot / "manifest.cbor", 50)
    with pytest.raises(CorruptionError):
        Ledger.open(world.path, options=world.options)
    flip(snapshot / "manifest.cbor", 50)
    world.ledger = Ledger.open(world.path, options=world.options)


def test_damage_in_what_is_kept_of_a_pruned_log_is_named(filled: Filled) -> None:  # SPEC-REP-3, SPEC-PRUNE-5
    world, _, _ = filled
    world.ledger.prune(keep_blocks=10)
    flip(segments_of(world)[0], 400)
    for online in (False, True):
        problems = world.ledger.verify(online=online).problems
        assert any(segments_of(world)[0].name in problem for problem in problems)
    flip(segments_of(world)[0], 400)
    assert world.ledger.verify().problems == []


_CHANGING = (
    "raw_pwritev",
    "raw_fdatasync",
    "raw_fsync_dir",
    "raw_allocate",
    "raw_rename",
    "raw_unlink",
    "raw_create",
)


def kill_at(fatal: int) -> None:
    """Kills this process at the ``fatal``-th call that changes the disk."""
    count = 0

    def wrap(original: Callable[..., object]) -> Callable[..., object]:
        def call(*arguments: object) -> object:
            nonlocal count
            count += 1
            if count == fatal:
                os.kill(os.getpid(), signal.SIGKILL)
            return original(*arguments)

        return call

    for name in _CHANGING:
        setattr(OsFiles, name, wrap(getattr(OsFiles, name)))


def test_pruning_survives_a_kill_at_every_step(filled: Filled, tmp_path: Path) -> None:  # SPEC-PRUNE-2
    world, feeds, history = filled
    world.ledger.prune(before_height=world.ledger.height // 2)  # so that an older snapshot is replaced
    for number in range(8):
        submit_next(world.ledger, feeds[number % 2], history)
    expected = (world.ledger.height, world.ledger.head, world.ledger.state_root)
    world.close()
    killed, fatal, firsts = True, 0, set()
    while killed:
        fatal += 1
        path = tmp_path / f"run-{fatal}"
        shutil.copytree(world.path, path)
        pid = os.fork()
        if not pid:
            ledger = Ledger.open(path, options=world.options)
            kill_at(fatal)
            ledger.prune(keep_blocks=1)
            os._exit(0)
        killed = os.WIFSIGNALED(os.waitpid(pid, 0)[1])
        if fatal % 2:  # and then the index is lost too
            shutil.rmtree(path / "index")
        with Ledger.open(path, options=world.options) as ledger:
            assert (ledger.height, ledger.head, ledger.state_root) == expected
            assert not any(path.glob("tmp/*"))
            assert ledger.verify().problems == []
            firsts.add(ledger.first_height)
            ledger.prune(keep_blocks=1)
            firsts.add(ledger.first_height)
        shutil.rmtree(path)
    assert fatal > 8 and len(firsts) >= 2


def test_bounds_that_make_no_sense(filled: Filled) -> None:
    world, _, history = filled
    for bounds in ({}, {"before_height": 3, "keep_blocks": 3}, {"keep_blocks": 0}):
        with pytest.raises(InputError):
            world.ledger.prune(**bounds)  # type: ignore[arg-type]
    assert world.ledger.prune(before_height=10**9).first_height <= world.ledger.height
    assert world.ledger.block(world.ledger.height).height == world.ledger.height
    assert Transaction.decode(history.batches[-1].transactions[0])
    world.reopen()
    assert world.ledger.verify().problems == []


def test_a_whole_history_still_checks_without_pruning(filled: Filled) -> None:
    world, _, history = filled
    world.ledger.snapshot()
    world.reopen()
    check_all(world.ledger, history)

"""Damage to what is on disk: every flipped bit, missing file and forged block is found and named."""

import random
import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from feeds import PACKED_BYTES_MAX, SEGMENT_BYTES, History, check_all, check_blocks, fill, small_files
from storage_faults import flip
from world import World, make_world

from fastledger import Genesis, Ledger, SigningKey
from fastledger.errors import CorruptionError, FormatVersionError
from fastledger.model.block import Block
from fastledger.model.receipt import make_seal
from fastledger.storage.frames import FRAME_HEADER_BYTES, SEGMENT_HEADER_BYTES, FrameRef
from fastledger.storage.keys import SEQ_BYTES
from fastledger.storage.log import SegmentLog

SEED = 4711


@pytest.fixture
def small() -> Iterator[None]:
    with small_files():
        yield


@pytest.fixture
def filled(tmp_path: Path, small: None) -> Iterator[tuple[World, History]]:
    """A closed ledger of a few small segments."""
    world = make_world(tmp_path / "ledger")
    _, history = fill(world, 24)
    world.close()
    yield world, history


def frames_of(world: World) -> list[FrameRef]:
    with Ledger.open(world.path, options=world.options) as ledger:
        return [ref for ref, _, _ in ledger._log.frames()]


# Flipped bits in the log.


def finding(world: World, history: History) -> list[str]:
    """What opening and verifying say; without a word, everything must be there."""
    try:
        ledger = Ledger.open(world.path, options=world.options)
    except (CorruptionError, FormatVersionError) as error:
        return [str(error)]
    with ledger:
        problems = ledger.verify().problems
        if not problems:
            check_blocks(ledger)
            history.check(ledger, everything=True)
        return problems


def test_a_flipped_bit_in_the_log_is_named(filled: tuple[World, History]) -> None:  # SPEC-LOG-11, SPEC-LOG-10
    world, history = filled
    frames = frames_of(world)
    rng = random.Random(SEED)
    places: list[tuple[int, int]] = []
    for ref in rng.sample(frames, 12):
        header = range(ref.offset, ref.offset + FRAME_HEADER_BYTES)
        body = range(header.stop, ref.end.offset)
        places += [(ref.segment, rng.choice(header)) for _ in range(6)]
        places += [(ref.segment, rng.choice(body)) for _ in range(6)]
        places.append((ref.segment, body.stop - 1))
    places += [(0, at) for at in range(0, SEGMENT_HEADER_BYTES, 5)]
    for segment, at in places:
        path = world.path / "log" / f"{segment:08d}.seg"
        bit = rng.randrange(8)
        flip(path, at, bit)
        problems = finding(world, history)
        assert any(path.name in problem and "at byte" in problem for problem in problems), (
            segment,
            at,
            problems,
        )
        assert offset_of(problems) <= at
        flip(path, at, bit)
    assert finding(world, history) == []
    assert len(places) > 150


def offset_of(problems: list[str]) -> int:
    """The offset that the first problem names: that of the frame or the header which holds the bit."""
    return int(problems[0].split("at byte ")[1].split(":")[0])


def test_a_flip_behind_the_end_costs_nothing(filled: tuple[World, History]) -> None:  # SPEC-LOG-9
    world, history = filled
    end = frames_of(world)[-1].end
    path = world.path / "log" / f"{end.segment:08d}.seg"
    for at in (end.offset, end.offset + 1000, SEGMENT_BYTES - 1):
        with Ledger.open(world.path, options=world.options) as ledger:
            flip(path, at)
            problems = ledger.verify(online=False).problems
            assert [path.name in problem and str(at) in problem for problem in problems] == [True]
        # Like a torn write that was never acknowledged, which it cannot be told from.
        assert finding(world, history) == []


def test_every_flip_in_head_is_survived_or_named(filled: tuple[World, History]) -> None:  # SPEC-LOG-7
    world, history = filled
    path = world.path / "HEAD"
    for at in range(0, path.stat().st_size, 37):
        flip(path, at, at % 8)
        assert finding(world, history) == []  # the other slot serves; opening has made this one whole


def test_every_byte_of_a_small_log(tmp_path: Path, small: None) -> None:  # SPEC-LOG-11
    world = make_world(tmp_path / "ledger")
    ledger = world.ledger
    path = ledger._log._segments.path_of(0)
    end = list(ledger._log.frames())[-1][0].end.offset
    for at in range(0, end + 64):
        flip(path, at, at % 8)
        errors = ledger._log.verify()
        assert errors, at
        assert errors[0].path == str(path)
        assert errors[0].offset is not None
        assert errors[0].offset <= at
        flip(path, at, at % 8)
    assert ledger.verify().problems == []
    ledger.close()


# The index.


def index_file(world: World) -> Path:
    return world.path / "index" / "data.mdb"


def flip_value(world: World, value: bytes) -> None:
    """Flips a bit in the middle of ``value`` in every place of the index file where it stands."""
    data = index_file(world).read_bytes()
    at = data.find(value)
    assert at >= 0
    while at >= 0:
        flip(index_file(world), at + len(value) // 2)
        at = data.find(value, at + 1)


@pytest.mark.parametrize("database", ["state", "txids", "blocks", "postings"])
def test_a_flip_in_the_index_is_named_and_mended(
    filled: tuple[World, History], database: str
) -> None:  # SPEC-REP-2, SPEC-REP-3
    world, history = filled
    with Ledger.open(world.path, options=world.options) as ledger, ledger._index.snapshot() as view:
        entries = [(key, value) for key, value in view.iter_all(database) if not key.startswith(b"B")]
        key, value = entries[len(entries) // 2]
    # Of postings the term: runs begin where checkpoints were.
    flip_value(world, {"txids": key, "postings": key[:-SEQ_BYTES]}.get(database, value))
    (problem, *_) = finding(world, history)
    assert f"index: {database} differs at key" in problem
    with Ledger.reindex(world.path, options=world.options) as ledger:
        check_all(ledger, history)


def test_flips_anywhere_in_the_index_file(filled: tuple[World, History]) -> None:  # SPEC-REP-3
    world, history = filled
    whole = index_file(world).read_bytes()
    rng = random.Random(SEED)
    used = [at for at in range(len(whole)) if whole[at]]
    named = 0
    for _ in range(60):
        index_file(world).write_bytes(whole)
        flip(index_file(world), rng.choice(used), rng.randrange(8))
        named += finding(world, history) != []
    assert named > 8  # the others struck pages that are out of use: most of a file of many transactions
    with Ledger.reindex(world.path, options=world.options) as ledger:
        check_all(ledger, history)


@pytest.mark.parametrize("name", ["index", "blobs/index"])
def test_an_index_that_was_cut_short_is_refused_or_mended(
    filled: tuple[World, History], name: str
) -> None:  # SPEC-REP-2
    world, history = filled
    path = world.path / name / "data.mdb"
    whole = path.read_bytes()
    for size in (0, 100, 4096, 5000, len(whole) // 2, len(whole) - 4096):
        path.write_bytes(whole[:size])
        finding(world, history)  # refused, named or whole; a read beyond the end would end this process
    path.write_bytes(whole[: len(whole) // 2])
    with Ledger.reindex(world.path, options=world.options) as ledger:
        check_all(ledger, history)


def test_a_damaged_checkpoint_is_refused(filled: tuple[World, History]) -> None:  # SPEC-REP-1
    world, history = filled
    with Ledger.open(world.path, options=world.options) as ledger:
        root = ledger._executor.tip_position.state_root
    flip_value(world, root)
    with pytest.raises(CorruptionError, match="reindex"):
        Ledger.open(world.path, options=world.options)
    with Ledger.reindex(world.path, options=world.options) as ledger:
        check_all(ledger, history)


@pytest.mark.parametrize("gone", ["index", "index/data.mdb", "index/lock.mdb", "blobs/index"])
def test_what_is_derived_may_be_deleted(filled: tuple[World, History], gone: str) -> None:  # SPEC-REP-2
    world, history = filled
    path = world.path / gone
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    with Ledger.open(world.path, options=world.options) as ledger:
        check_all(ledger, history)
    assert (ledger.replayed_blocks > 0) == (gone in ("index", "index/data.mdb"))


def test_another_chains_index_is_refused(filled: tuple[World, History], tmp_path: Path) -> None:
    world, history = filled
    other = make_world(tmp_path / "other")
    other.close()
    shutil.rmtree(world.path / "index")
    shutil.copytree(other.path / "index", world.path / "index")
    with pytest.raises(CorruptionError, match="another chain"):
        Ledger.open(world.path, options=world.options)
    with Ledger.reindex(world.path, options=world.options) as ledger:
        check_all(ledger, history)


def test_an_index_ahead_of_the_log_is_refused(filled: tuple[World, History]) -> None:  # SPEC-REP-1
    world, _ = filled
    shutil.copytree(world.path, world.path.with_name("before"))
    with Ledger.open(world.path, options=world.options) as ledger:
        world.ledger = ledger
        world.submit(world.patient.open_folders("more"))
    shutil.rmtree(world.path.with_name("before") / "index")
    shutil.copytree(world.path / "index", world.path.with_name("before") / "index")
    with pytest.raises(CorruptionError):
        Ledger.open(world.path.with_name("before"), options=world.options)


# Envelopes.


def live_versions(history: History) -> list[tuple[bytes, int, bytes]]:
    versions = [version for planned in history.batches for version in planned.versions]
    return [version for version in versions if version[0] not in history.erased]


def file_with(world: World, blob: bytes) -> tuple[Path, int]:
    for path in sorted((world.path / "blobs").rglob("*")):
        if path.is_file() and (at := path.read_bytes().find(blob)) >= 0:
            return path, at
    raise AssertionError("no file holds the envelope")


@pytest.mark.parametrize("large", [False, True])
def test_a_tampered_envelope_is_named(filled: tuple[World, History], large: bool) -> None:  # SPEC-BLOB-6
    world, history = filled
    record, number, blob = next(v for v in live_versions(history) if (len(v[2]) > PACKED_BYTES_MAX) == large)
    path, at = file_with(world, blob)
    flip(path, at + len(blob) // 2)
    with Ledger.open(world.path, options=world.options) as ledger:
        (problem,) = ledger.verify().problems
        assert str(path) in problem
        digest = ledger.record_version(record, number).digest
        with pytest.raises(CorruptionError, match=digest.hex()):
            ledger._blobs.get(digest)


@pytest.mark.parametrize("large", [False, True])
def test_a_missing_envelope_is_named(filled: tuple[World, History], large: bool) -> None:  # SPEC-REP-3
    world, history = filled
    record, number, blob = next(v for v in live_versions(history) if (len(v[2]) > PACKED_BYTES_MAX) == large)
    with Ledger.open(world.path, options=world.options) as ledger:
        digest = ledger.record_version(record, number).digest
        ledger._blobs.erase(digest)
        (problem,) = ledger.verify().problems
        assert problem == f"record {record.hex()} version {number}: envelope {digest.hex()} missing"
        ledger._blobs.put_many([blob])
        assert ledger.verify().problems == []


def test_an_envelope_that_should_be_gone_is_named(filled: tuple[World, History]) -> None:  # SPEC-REC-7
    world, history = filled
    versions = [version for planned in history.batches for version in planned.versions]
    record, number, blob = next(version for version in versions if version[0] in history.erased)
    with Ledger.open(world.path, options=world.options) as ledger:
        ledger._blobs.put_many([blob])
        (problem,) = ledger.verify().problems
        assert problem.startswith(f"record {record.hex()} version {number}: ")
        assert problem.endswith("still stored")
    with Ledger.reindex(world.path, options=world.options) as ledger:  # executes every erasure again
        assert ledger.verify().problems == []


# Blocks that somebody wrote anew, with every checksum right.


def chain_id_of(world: World) -> bytes:
    return Genesis.decode((world.path / "genesis.cbor").read_bytes()).chain_id


def forge(world: World, change: Callable[[list[Block]], None]) -> None:
    """Rewrites the log with changed blocks, as someone would who can write the directory."""
    with Ledger.open(world.path, options=world.options) as ledger:
        blocks = [ledger.block(height) for height in range(ledger.height + 1)]
    change(blocks)
    for name in ("log", "index"):
        shutil.rmtree(world.path / name)
    (world.path / "HEAD").unlink()
    log = SegmentLog.create(world.path, chain_id_of(world))
    for height, block in enumerate(blocks):
        log.append(height, block.encode(), block.block_id)
    log.sync()
    log.close()


FORGED = 5


def relinked(blocks: list[Block], start: int, **changes: Any) -> None:
    """Changes the body of the block at ``start`` and makes every later header follow it."""
    previous = None
    for at in range(start, len(blocks)):
        body = replace(blocks[at].body, **(changes if at == start else {}))
        header = replace(
            blocks[at].header,
            commitment=body.commitment,
            previous_id=previous or blocks[at].header.previous_id,
        )
        blocks[at] = replace(blocks[at], body=body, header=header)
        previous = blocks[at].block_id


def change_result(blocks: list[Block]) -> None:
    block = blocks[FORGED]
    blocks[FORGED] = replace(
        block, results=bytes([block.results[0], block.results[1] ^ 1]) + block.results[2:]
    )


def drop_transaction(blocks: list[Block]) -> None:
    block = blocks[FORGED]
    blocks[FORGED] = replace(
        block,
        transactions=block.transactions[: block.offsets[-2]],
        lengths=block.lengths[:-4],
        results=block.results[:-2],
    )


def swap_signature(blocks: list[Block]) -> None:
    """The id of a transaction does not cover its signature: no root gives this one away."""
    block = blocks[FORGED]
    end = block.offsets[1]
    other = blocks[FORGED + 1].transaction_bytes(0)[-64:]
    blocks[FORGED] = replace(
        block, transactions=block.transactions[: end - 64] + other + block.transactions[end:]
    )


def sealed_by_another(blocks: list[Block]) -> None:
    block = blocks[FORGED]
    key = SigningKey.generate()
    body = replace(block.body, proposer=key.public_key)
    header = replace(block.header, commitment=body.commitment)
    blocks[FORGED] = replace(
        block, body=body, header=header, seal=make_seal(key, bytes(8), header, body, block.count)
    )


def seal_signature_flipped(blocks: list[Block]) -> None:
    seal = blocks[-1].seal
    blocks[-1] = replace(blocks[-1], seal=seal[:-1] + bytes([seal[-1] ^ 1]))


def seal_of_another_block(blocks: list[Block]) -> None:
    blocks[-1] = replace(blocks[-1], seal=blocks[FORGED].seal)


def state_root_rewritten(blocks: list[Block]) -> None:
    relinked(blocks, FORGED, state_root=bytes(32))


def time_rewritten(blocks: list[Block]) -> None:
    relinked(blocks, FORGED, time_ms=blocks[FORGED].body.time_ms + 1)


def swap_blocks(blocks: list[Block]) -> None:
    blocks[FORGED], blocks[FORGED + 1] = blocks[FORGED + 1], blocks[FORGED]


def drop_block(blocks: list[Block]) -> None:
    del blocks[FORGED]


def another_genesis(blocks: list[Block]) -> None:
    relinked(blocks, 0, time_ms=blocks[0].body.time_ms + 1000)


# At what height each forgery shows, -1 being the newest block.
FORGERIES: dict[Callable[[list[Block]], None], int] = {
    change_result: FORGED,
    drop_transaction: FORGED,
    swap_signature: FORGED,
    sealed_by_another: FORGED,
    seal_of_another_block: -1,
    seal_signature_flipped: -1,
    state_root_rewritten: FORGED,
    time_rewritten: FORGED,
    swap_blocks: FORGED,
    drop_block: FORGED,
    another_genesis: 0,
}


@pytest.mark.parametrize("forgery", FORGERIES, ids=lambda forgery: forgery.__name__)
def test_a_forged_block_is_named(
    filled: tuple[World, History], forgery: Callable[[list[Block]], None]
) -> None:  # SPEC-BLK-9, SPEC-REP-4, SPEC-RCP-1
    world, history = filled
    forge(world, lambda blocks: None)
    assert finding(world, history) == []
    forge(world, forgery)
    log = SegmentLog.open(world.path, chain_id_of(world))
    ref = [ref for ref, _, _ in log.frames()][FORGERIES[forgery]]
    log.close()
    (problem,) = finding(world, history)
    assert f"log segment {ref.segment} at byte {ref.offset}: " in problem

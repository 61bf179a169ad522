"""A damaged log is rebuilt from what it holds and from peers, who are trusted with nothing."""

import dataclasses
import shutil
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from fork_world import SPACING_MS, make_genesis, patients
from world import START_MS, Clock

from fastledger import Ledger, LedgerOptions, SigningKey
from fastledger.chain.forks.mining import mine_block
from fastledger.chain.keeping.repair import DAMAGED_NAME, DONE_NAME, WORK_NAME, repair_log
from fastledger.errors import CorruptionError, UnreachableError
from fastledger.model.block import Block, SealedHeader
from fastledger.model.reports import RepairReport
from fastledger.storage.frames import FRAME_HEADER_BYTES, Frame
from fastledger.storage.salvage import Salvage

BLOCKS, DEPTH = 40, 4


class Source:
    """A peer that has the whole chain; ``spoil`` changes what it gives."""

    def __init__(self, ledger: Ledger) -> None:
        self._forks: Any = ledger.forks
        self.spoil: Callable[[Block], Block] = lambda block: block
        self.asked: list[bytes] = []

    def headers_after(self, block_id: bytes, limit: int) -> Sequence[SealedHeader]:
        found: list[SealedHeader] = self._forks.call(
            lambda chain: chain.headers_after([block_id], limit)
        ).result()
        return found

    def blocks(self, block_ids: Sequence[bytes]) -> Iterator[Block]:
        for block_id in block_ids:
            self.asked.append(block_id)
            block = self._forks.call(lambda chain, wanted=block_id: chain.block(wanted)).result()
            yield self.spoil(block)


class Pair:
    """A ledger of a chain, closed and to be damaged, and a peer's of the same chain."""

    def __init__(self, folder: Path) -> None:
        self.key = SigningKey.generate()
        self.genesis = make_genesis([self.key], finality_depth=DEPTH)
        self.path = folder / "damaged"
        self.clock = Clock(START_MS + SPACING_MS)
        self.options = LedgerOptions(clock_ms=self.clock, require_blobs=False)
        with Ledger.join(
            self.path, self.genesis, node_key=self.key, keep_key=True, options=self.options
        ) as ledger:
            self._grow(ledger)
            self.root, self.height = ledger.state_root, ledger.height
        shutil.copytree(self.path, folder / "peer")
        self.peer = Ledger.open(folder / "peer", options=self.options)
        self.source = Source(self.peer)

    def _grow(self, ledger: Ledger) -> None:
        forks: Any = ledger.forks
        for number in range(BLOCKS):
            self.clock.now_ms += SPACING_MS
            if number % 3 == 0:
                for transaction in patients(self.genesis, 2, self.clock):
                    forks.call(
                        lambda chain, item=transaction: chain.submit([item.encoded], self.clock.now_ms)
                    ).result()
            forks.call(lambda chain: mine_block(chain, self.clock.now_ms)).result()
        forks.call(lambda chain: None).result()

    def frames(self) -> list[Frame]:
        salvage = Salvage(self.path / "log", self.genesis.chain_id)
        found = list(salvage.frames())
        salvage.close()
        return found

    def damage(self, offset: int, length: int = 8) -> None:
        path = self.path / "log" / "00000000.seg"
        with path.open("r+b") as file:
            file.seek(offset)
            data = file.read(length)
            file.seek(offset)
            file.write(bytes(byte ^ 0x55 for byte in data))

    def repair(self) -> RepairReport:
        return repair_log(self.path, self.source, verify_threads=1)

    def check(self) -> None:
        with Ledger.reindex(self.path, options=self.options) as ledger:
            assert (ledger.state_root, ledger.height) == (self.root, self.height)
            assert ledger.verify().ok
            assert ledger.forks is not None


@pytest.fixture
def pair(tmp_path: Path) -> Iterator[Pair]:
    made = Pair(tmp_path)
    yield made
    made.peer.close()


def test_blocks_that_are_damaged_come_from_a_peer(pair: Pair) -> None:  # SPEC-REP-7, SPEC-LOG-13
    frames = pair.frames()
    assert len(frames) == pair.height + 1
    pair.damage(frames[7].ref.offset + FRAME_HEADER_BYTES + 5)
    pair.damage(frames[20].ref.offset + 3)
    for number in (11, 12, 13):
        pair.damage(frames[number].ref.offset, FRAME_HEADER_BYTES + 9)
    report = pair.repair()
    assert (report.fetched, report.kept, report.height, report.replaced) == (
        5,
        len(frames) - 5,
        pair.height,
        True,
    )
    assert pair.source.asked == [frames[number].block_id for number in (7, 11, 12, 13, 20)]
    assert (pair.path / DAMAGED_NAME).is_dir()
    assert not (pair.path / WORK_NAME).exists()
    pair.check()


def test_the_first_block_is_repaired_too(pair: Pair) -> None:  # SPEC-REP-7
    frames = pair.frames()
    pair.damage(frames[0].ref.offset + FRAME_HEADER_BYTES)
    assert pair.repair().fetched == 1
    pair.check()


def test_a_whole_log_is_left_alone(pair: Pair) -> None:  # SPEC-REP-7
    before = (pair.path / "log" / "00000000.seg").stat().st_ino
    assert not pair.repair().replaced
    assert (pair.path / "log" / "00000000.seg").stat().st_ino == before
    assert not pair.source.asked


def spoilt(block: Block, **changes: Any) -> Block:
    return dataclasses.replace(block, **changes)


@pytest.mark.parametrize(
    "spoil",
    [
        lambda block: spoilt(block, seal=bytes(len(block.seal))),
        lambda block: spoilt(block, transactions=block.transactions[:-1] + b"\0"),
        lambda block: spoilt(block, results=b"\x01\x00" * block.count),
        lambda block: spoilt(block, body=dataclasses.replace(block.body, state_root=bytes(32))),
        lambda block: spoilt(block, header=dataclasses.replace(block.header, nonce=block.header.nonce ^ 1)),
    ],
    ids=["seal", "signature", "results", "body", "header"],
)
def test_a_peer_that_lies_repairs_nothing(pair: Pair, spoil: Callable[[Block], Block]) -> None:  # SPEC-REP-8
    frames = pair.frames()
    number = next(frame.height for frame in frames if frame.height > 3 and frame.ref.length > 600)
    pair.damage(frames[number].ref.offset + FRAME_HEADER_BYTES + 5)
    pair.source.spoil = spoil
    with pytest.raises(UnreachableError):
        pair.repair()
    pair.source.spoil = lambda block: block
    assert pair.repair().fetched == 1
    pair.check()


def test_an_interrupted_swap_is_finished(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:  # SPEC-REP-7
    frames = pair.frames()
    pair.damage(frames[7].ref.offset + FRAME_HEADER_BYTES + 5)
    steps = 0
    rename = Path.rename

    def stop_at(limit: int) -> Callable[[Path, Path], Path]:
        def rename_or_stop(self: Path, target: Path) -> Path:
            nonlocal steps
            steps += target.parent == pair.path
            if steps == limit:
                raise KeyboardInterrupt
            return rename(self, target)

        return rename_or_stop

    # Before the first of its three steps, the second, and, going on from there, the third.
    for limit in (1, 2, 2):
        steps = 0
        monkeypatch.setattr(Path, "rename", stop_at(limit))
        with pytest.raises(KeyboardInterrupt):
            pair.repair()
        assert (pair.path / WORK_NAME / DONE_NAME).exists()
    monkeypatch.undo()
    assert not pair.repair().replaced, "the repeated swap leaves a whole log"
    pair.check()


def test_nothing_to_go_by_is_said(pair: Pair) -> None:  # SPEC-REP-7
    for frame in pair.frames():
        pair.damage(frame.ref.offset, FRAME_HEADER_BYTES)
    with pytest.raises(CorruptionError):
        pair.repair()

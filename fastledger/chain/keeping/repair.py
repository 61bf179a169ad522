"""Repair of a damaged log: its whole frames are kept, missing blocks are fetched from peers (SPEC-REP-7..8).

::

    log/  ── whole frames ──┐
                            ├─► repaired/log + HEAD ── DONE ──► log/ ── index thrown away ──► executed again
    peers ── missing ids ───┘

Nothing is taken on trust. The ids of missing blocks follow from their neighbours: headers chain by hash from the
last block that is whole to the next. Each copy is checked like any that a peer brings, and executing all of it again
checks every root. What lies behind the last whole block is not repaired but synchronised, like anything that a node
missed.
"""

import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Protocol

from fastledger.chain.forks.blocks import check_copy
from fastledger.chain.forks.mempool import Mempool
from fastledger.errors import BlockFault, CorruptionError, InputError, UnreachableError
from fastledger.model.block import Block, SealedHeader
from fastledger.model.genesis import Genesis
from fastledger.model.reports import RepairReport
from fastledger.pace import Progress
from fastledger.storage.directory import LedgerDirectory
from fastledger.storage.frames import Frame
from fastledger.storage.index import Index
from fastledger.storage.log import SegmentLog
from fastledger.storage.salvage import Salvage

WORK_NAME = "repaired"
DONE_NAME = "DONE"
DAMAGED_NAME = "log.damaged"
HEADERS = 500
BLOCKS = 16


class BlockSource(Protocol):
    """A source of missing blocks; it is trusted with nothing."""

    def headers_after(self, block_id: bytes, limit: int) -> Sequence[SealedHeader]:
        """Returns headers of the source's chain behind that block, ascending; none where it does not know it."""

    def blocks(self, block_ids: Sequence[bytes]) -> Iterator[Block]:
        """Yields copies of these blocks, in this order; raises ``UnreachableError`` where no source has one."""


def repair_log(
    path: Path,
    source: BlockSource,
    *,
    progress: Progress = lambda _stage, _done, _total: None,
    verify_threads: int | None = None,
) -> RepairReport:
    """Rebuilds the log of the closed ledger in ``path``; the damaged one is kept as ``log.damaged``.

    A log without damage is left as it is. Interrupted at any moment, it is begun or finished by the next call. The
    index is thrown away: reindex the ledger afterwards. Raises ``UnreachableError`` where a missing block cannot be
    had, ``CorruptionError`` where not even the first block can be placed.
    """
    directory = LedgerDirectory.open(path)
    try:
        genesis = Genesis.decode(directory.read_genesis())
        if (path / WORK_NAME / DONE_NAME).exists():
            _swap(directory)
        shutil.rmtree(path / WORK_NAME, ignore_errors=True)
        return _Repair(directory, genesis, source, progress, verify_threads).run()
    finally:
        directory.close()


class _Repair:
    def __init__(
        self,
        directory: LedgerDirectory,
        genesis: Genesis,
        source: BlockSource,
        progress: Progress,
        verify_threads: int | None,
    ) -> None:
        self._directory = directory
        self._genesis = genesis
        self._source = source
        self._progress = progress
        self._verify_threads = verify_threads
        self._salvage = Salvage(directory.log_path, genesis.chain_id)
        self.fetched = 0

    def run(self) -> RepairReport:
        with ExitStack() as opened:
            opened.callback(self._salvage.close)
            found = {frame.height: frame for frame in self._salvage.frames()}
            if not found:
                raise CorruptionError("no block of the log is whole", path=str(self._directory.log_path))
            height = max(found)
            report = RepairReport(self._salvage.damaged_places, len(found), 0, height, replaced=False)
            if not report.damaged_places and len(found) == height - min(found) + 1:
                return report
            work = self._directory.root / WORK_NAME
            work.mkdir()
            first = 0 if 0 not in found and min(found) > 0 and not self._is_pruned(found) else min(found)
            log = opened.enter_context(
                _closing(SegmentLog.create(work, self._genesis.chain_id, first_height=first))
            )
            for block_height, block_id, payload in self._blocks(found, first, height):
                log.append(block_height, payload, block_id)
                self._progress("repair", block_height - first + 1, height - first + 1)
            log.sync()
        _write_mark(work / DONE_NAME)
        _swap(self._directory)
        return RepairReport(report.damaged_places, report.kept, self.fetched, height, replaced=True)

    def _is_pruned(self, found: dict[int, Frame]) -> bool:
        """Whether the chain's beginning was pruned: then a snapshot stands in its place."""
        return any(self._directory.snapshots_path.glob("*"))

    def _blocks(self, found: dict[int, Frame], first: int, last: int) -> Iterator[tuple[int, bytes, bytes]]:
        """Yields height, id and bytes of every block, ascending; those that are not found are fetched."""
        height, before = first, b""
        while height <= last:
            frame = found.get(height)
            if frame is not None:
                yield height, frame.block_id, self._salvage.payload(frame)
                before = frame.block_id
                height += 1
                continue
            upto = min(other for other in found if other > height)
            after = Block.decode(self._salvage.payload(found[upto]))
            for block in self._fetch(before, height, upto - height, after.header.previous_id):
                yield block.height, block.block_id, block.encode()
                before = block.block_id
            height = upto

    def _fetch(self, before: bytes, first: int, count: int, last_id: bytes) -> Iterator[Block]:
        """Yields the blocks between two whole ones."""
        ids = self._ids_between(before, count, last_id) if count > 1 else [last_id]
        for start in range(0, count, BLOCKS):
            wanted = ids[start : start + BLOCKS]
            for offset, block in enumerate(self._source.blocks(wanted)):
                self._check(block, wanted[offset], first + start + offset)
                self.fetched += 1
                yield block
        if self.fetched == 0:
            raise UnreachableError("no peer gave the missing blocks")

    def _ids_between(self, before: bytes, count: int, last_id: bytes) -> list[bytes]:
        """Returns the ids behind ``before`` up to ``last_id``, by headers that chain from one to the other."""
        if not before:
            raise CorruptionError(
                "the first block and the next are damaged", path=str(self._directory.log_path)
            )
        ids: list[bytes] = []
        while len(ids) < count:
            headers = self._source.headers_after(ids[-1] if ids else before, min(HEADERS, count - len(ids)))
            if not headers:
                raise UnreachableError("no peer has the headers of the missing blocks")
            for sealed in headers[: count - len(ids)]:
                if sealed.header.previous_id != (ids[-1] if ids else before):
                    raise UnreachableError("a peer's headers do not follow one another", transient=False)
                ids.append(sealed.block_id)
        if ids[-1] != last_id:
            raise UnreachableError("the peers' chain is not the one that was damaged", transient=False)
        return ids

    def _check(self, block: Block, block_id: bytes, height: int) -> None:
        """Checks that a copy is good: its id, then all that the id does not cover.

        For block 0 the id covers everything.
        """
        if block.block_id != block_id or block.height != height:
            raise UnreachableError("a peer gave another block than was asked for", transient=False)
        if height == 0:
            return
        try:
            check_copy(
                block,
                chain_id=self._genesis.chain_id,
                of_chain=True,
                pool=Mempool(),
                known_seal=b"",
                verify_threads=self._verify_threads,
            )
        except (BlockFault, InputError):
            raise UnreachableError("a peer gave a bad copy of a block", transient=False) from None


class _closing:
    def __init__(self, log: SegmentLog) -> None:
        self._log = log

    def __enter__(self) -> SegmentLog:
        return self._log

    def __exit__(self, *_: object) -> None:
        self._log.close()


def _write_mark(path: Path) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT, 0o600)
    os.fsync(descriptor)
    os.close(descriptor)
    _sync_directory(path.parent)


def _swap(directory: LedgerDirectory) -> None:
    """Puts the repaired log in the damaged one's place. After a crash at any step the next call goes on."""
    work = directory.root / WORK_NAME
    Index.destroy(directory.index_path)
    fresh = work / directory.log_path.name
    if fresh.exists():
        if directory.log_path.exists():
            kept = directory.root / DAMAGED_NAME
            shutil.rmtree(kept, ignore_errors=True)
            directory.log_path.rename(kept)
        fresh.rename(directory.log_path)
    if (work / "HEAD").exists():
        (work / "HEAD").rename(directory.root / "HEAD")
    _sync_directory(directory.root)
    (work / DONE_NAME).unlink(missing_ok=True)
    shutil.rmtree(work, ignore_errors=True)


def _sync_directory(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)

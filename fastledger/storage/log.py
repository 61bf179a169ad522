"""The segment log: the ledger's truth, an append-only sequence of checksummed frames (signatures first)."""

from collections.abc import Buffer, Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple, Self

from fastledger.errors import CorruptionError
from fastledger.storage.files import OsFiles


class FrameRef(NamedTuple):
    """Where a frame lies: segment number, byte offset of its header, payload length in bytes."""

    segment: int
    offset: int
    length: int

    def pack(self) -> bytes:
        """12 bytes, big-endian, ordered like the log itself."""

    @classmethod
    def unpack(cls, data: bytes) -> Self: ...


class LogPosition(NamedTuple):
    """What a sync made durable: the last frame, its height and block id (``ref`` is None in an empty log)."""

    ref: FrameRef | None
    height: int  # -1 in an empty log
    block_id: bytes  # 32 bytes


class SegmentLog:
    """One appending thread, one syncing thread, any number of reading threads."""

    @classmethod
    def create(cls, root: Path, chain_id: bytes, files: OsFiles | None = None, *,
               segment_bytes: int = ...) -> Self:
        """A new empty log: writes ``root/log/00000000.seg`` and ``root/HEAD``, both synced. chain_id: 8 bytes."""

    @classmethod
    def open(cls, root: Path, chain_id: bytes, files: OsFiles | None = None, *,
             scan_from: FrameRef | None = None, readonly: bool = False) -> Self:
        """Opens, and cuts a torn tail (never anything that was durable: that raises CorruptionError).

        Scans from HEAD; if HEAD is damaged from ``scan_from`` (the checkpoint), else from the first segment.
        """

    def append(self, height: int, payload: Buffer | Sequence[Buffer], block_id: bytes = bytes(32)) -> FrameRef:
        """Writes one frame, not yet durable. ``height`` is the last height + 1 (any in an empty log)."""

    def sync(self) -> LogPosition:
        """Everything appended before the call entered is durable on return; returns that position."""

    def read(self, ref: FrameRef) -> bytes:
        """The payload, checksums verified. CorruptionError names segment and offset."""

    def frames(self, start: FrameRef | int | None = None) -> Iterator[tuple[FrameRef, int, bytes]]:
        """(ref, height, payload) in order, from a frame, from a height, or from the oldest segment."""

    def verify(self, progress: Callable[[int, int], None] | None = None) -> list[CorruptionError]:
        """Every byte of every segment and of HEAD; progress gets (bytes done, bytes in all)."""

    def prune(self, before: FrameRef) -> int:
        """Unlinks whole segments older than the one of ``before``; returns how many."""

    def close(self) -> None: ...

    @property
    def end(self) -> LogPosition:
        """The last appended frame, durable or not."""

    @property
    def durable(self) -> LogPosition:
        """The last frame known to be durable."""

    @property
    def halted(self) -> bool: ...

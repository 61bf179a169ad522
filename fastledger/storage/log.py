"""The segment log: the ledger's truth, an append-only sequence of checksummed frames.

A frame is durable when :meth:`SegmentLog.sync` has returned (SPEC-LOG-5). One thread appends, one syncs, any
number read; an append may run while the sync of earlier frames is under way.
"""

import threading
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import NamedTuple, Self

from fastledger.errors import (
    Code,
    CorruptionError,
    InputError,
    LedgerClosedError,
    LedgerError,
    LedgerHaltedError,
    NotFoundError,
)
from fastledger.limits import LOG_FRAME_BYTES_MAX, LOG_SEGMENT_BYTES
from fastledger.storage.files import Buffer, OsFiles
from fastledger.storage.frames import (
    BLOCK_ID_BYTES,
    CHAIN_ID_BYTES,
    KIND_DATA,
    KIND_SEAL,
    SEGMENT_HEADER_BYTES,
    Frame,
    FramePlace,
    FrameRef,
    checksum_of,
    encode_frame_header,
    frame_bytes,
    padding_of,
)
from fastledger.storage.head import EMPTY, HeadFile, LogPosition
from fastledger.storage.recovery import Recovered, recover, repair
from fastledger.storage.segments import SegmentFiles
from fastledger.storage.verify import LogCheck, LogProgress

__all__ = ["FrameRef", "LogPin", "LogPosition", "SegmentLog"]

LOG_DIRECTORY = "log"
HEAD_NAME = "HEAD"
_SEAL_BYTES = frame_bytes(0)
_PADDING = bytes(8)
_OVERHEAD_BYTES = SEGMENT_HEADER_BYTES + frame_bytes(1) + _SEAL_BYTES


class LogPin(NamedTuple):
    """The durable log at one moment: no byte before ``end`` will ever change."""

    last: LogPosition
    end: FramePlace
    segments: tuple[int, ...]
    head: bytes  # a HEAD file that says the same


class _Tip(NamedTuple):
    """A state of the log's end; replaced as a whole, so that a reader never sees half of one."""

    last: LogPosition
    last_checksum: int
    link: int  # what the next frame links to: the checksum of the frame or segment header before it
    end: FramePlace
    sealed: bool  # the segment is full and has no successor yet


class SegmentLog:
    """An open log.

    A failed write or sync halts it: nothing more can be appended, and what it holds stays readable.
    """

    def __init__(
        self,
        segments: SegmentFiles,
        head: HeadFile,
        recovered: Recovered,
        segment_bytes: int,
        *,
        readonly: bool,
    ) -> None:
        self._segments = segments
        self._head = head
        self._segment_bytes = segment_bytes
        self._readonly = readonly
        self._tip = _Tip(
            recovered.last, recovered.last_checksum, recovered.link, recovered.end, recovered.sealed
        )
        self._durable = self._tip
        self._append_lock = threading.Lock()
        self._lock = threading.Lock()  # the two tips; taken last
        self._sync_lock = threading.Lock()  # one sync, and one writer of HEAD, at a time
        self._halted = False
        self._closed = False

    @classmethod
    def create(
        cls,
        root: Path,
        chain_id: bytes,
        files: OsFiles | None = None,
        *,
        segment_bytes: int = LOG_SEGMENT_BYTES,
        first_height: int = 0,
    ) -> Self:
        """Makes an empty log ``root/log`` with ``root/HEAD``, durable on return.

        ``chain_id`` is 8 bytes; ``first_height`` is the height of the first frame to come. A log without a single
        frame is replaced; InputError if there is one with frames.
        """
        files = files or OsFiles()
        _check_sizes(chain_id, segment_bytes)
        files.make_dir(root / LOG_DIRECTORY)
        segments = SegmentFiles(root / LOG_DIRECTORY, chain_id, files)
        # A creation that was interrupted left nothing that counts.
        if not segments.unused():
            raise InputError(f"{root} holds a log already")
        segments.create(0, segment_bytes, first_height, 0)
        HeadFile.create(root / HEAD_NAME, chain_id, files)
        segments.close()
        return cls.open(root, chain_id, files, segment_bytes=segment_bytes)

    @classmethod
    def open(
        cls,
        root: Path,
        chain_id: bytes,
        files: OsFiles | None = None,
        *,
        scan_from: FrameRef | None = None,
        readonly: bool = False,
        segment_bytes: int = LOG_SEGMENT_BYTES,
    ) -> Self:
        """Opens a log: finds its end and cuts a torn tail back (SPEC-LOG-8 to SPEC-LOG-10).

        What was durable is never cut: CorruptionError where it is damaged. The scan begins at HEAD; if HEAD is
        damaged, at ``scan_from`` (the checkpoint's frame) or else at the oldest segment. ``readonly`` changes
        nothing on disk and needs no space. ``segment_bytes`` is the size of segments to come.
        """
        files = files or OsFiles()
        _check_sizes(chain_id, segment_bytes)
        with ExitStack() as opened:
            segments = SegmentFiles(root / LOG_DIRECTORY, chain_id, files)
            opened.callback(segments.close)
            segments.load()
            head = _open_head(root / HEAD_NAME, chain_id, files, readonly=readonly)
            opened.callback(head.close)
            recovered = recover(segments, head.state, scan_from)
            if not readonly:
                repair(segments, recovered)
                head.restore(recovered.last, recovered.last_checksum)
            opened.pop_all()
        return cls(segments, head, recovered, segment_bytes, readonly=readonly)

    @property
    def end(self) -> LogPosition:
        """The position of the last appended frame, durable or not."""
        return self._tip.last

    @property
    def durable(self) -> LogPosition:
        """The position of the last frame that is known to be durable."""
        return self._durable.last

    @property
    def first_height(self) -> int:
        """The lowest height that the log holds, or will hold while it is empty; more than 0 once it is pruned."""
        return self._segments.first_header.first_height

    @property
    def first_segment(self) -> int:
        """The number of the oldest segment that is kept."""
        return self._segments.first

    def pin(self) -> LogPin:
        """Returns what is durable now, for a caller that copies or verifies it while appending goes on."""
        self._check_open()
        durable = self._durable
        numbers = (number for number in self._segments.numbers() if number <= durable.end.segment)
        head = self._head.encoded(durable.last, durable.last_checksum)
        return LogPin(durable.last, durable.end, tuple(numbers), head)

    def path_of(self, segment: int) -> Path:
        """Returns the path of a segment's file."""
        return self._segments.path_of(segment)

    def segment_bytes_of(self, segment: int) -> int:
        """Returns the length of a segment's file in bytes."""
        return self._segments.header(segment).segment_bytes

    @property
    def halted(self) -> bool:
        return self._halted

    def append(
        self, height: int, payload: Buffer | Sequence[Buffer], block_id: bytes = EMPTY.block_id
    ) -> FrameRef:
        """Writes one frame, not yet durable, and returns its place.

        The kernel gathers the buffers, nothing is copied here. ``height`` is the last one + 1 (any in an empty log),
        ``block_id`` 32 opaque bytes. Raises InputError for another height or a frame that is too long. A
        StorageFullError or LedgerHaltedError halts the log; the frame is then not in it.
        """
        parts = _parts(payload)
        length = sum(map(len, parts))
        with self._append_lock:
            self._check_writable()
            self._check_frame(height, length, block_id)
            try:
                self._make_room(frame_bytes(length), height)
                return self._write(KIND_DATA, height, parts, length, block_id)
            except BaseException:  # an interrupt, too, leaves the file and what is known of it apart
                self._halted = True
                self._undo()
                raise

    def _check_frame(self, height: int, length: int, block_id: bytes) -> None:
        last = self._tip.last
        if height < 0 or (last.ref is not None and height != last.height + 1):
            raise InputError(f"height {height} does not follow height {last.height}", code=Code.BAD_BLOCK)
        if len(block_id) != BLOCK_ID_BYTES:
            raise InputError(f"block id has {len(block_id)} bytes", code=Code.BAD_BLOCK)
        if length > min(LOG_FRAME_BYTES_MAX, self._segment_bytes - _OVERHEAD_BYTES):
            raise InputError(f"frame of {length} bytes is too long for the log", code=Code.OVERSIZED)

    def _make_room(self, count: int, height: int) -> None:
        segment, offset = self._tip.end
        if not self._tip.sealed:
            if offset + count + _SEAL_BYTES <= self._segments.header(segment).segment_bytes:
                return
            last = self._tip.last
            self._write(KIND_SEAL, last.height, [], 0, last.block_id)
        # The next segment may exist only when this one is durable: recovery relies on it.
        with self._segments.lease(segment, writable=True) as file:
            self._segments.files.fdatasync(file)
        header = self._segments.create(segment + 1, self._segment_bytes, height, self._tip.link)
        with self._lock:
            place = FramePlace(segment + 1, SEGMENT_HEADER_BYTES)
            self._tip = self._tip._replace(link=header.checksum, end=place, sealed=False)
            self._durable = self._tip

    def _write(self, kind: int, height: int, parts: list[Buffer], length: int, block_id: bytes) -> FrameRef:
        tip, durable = self._tip, self._durable.end
        header = self._segments.header(tip.end.segment)
        ref = FrameRef(*tip.end, length)
        data, checksum = encode_frame_header(
            header, ref, kind, checksum_of(parts), height, block_id, durable, tip.link
        )
        with self._segments.lease(ref.segment, writable=True) as file:
            self._segments.files.write(file, [data, *parts, _PADDING[: padding_of(length)]], ref.offset)
        new = tip._replace(link=checksum, end=ref.end, sealed=kind == KIND_SEAL)
        if kind == KIND_DATA:
            new = new._replace(last=LogPosition(ref, height, block_id), last_checksum=checksum)
        with self._lock:
            self._tip = new
        return ref

    def _undo(self) -> None:
        """Zeroes the bytes that a failed append left behind the end; if that fails too, the next opening does it."""
        segment, offset = self._tip.end
        with suppress(LedgerError), self._segments.lease(segment, writable=True) as file:
            files, end = self._segments.files, self._segments.header(segment).segment_bytes
            files.write_zeros(file, offset, files.end_of_data(file, offset, end) - offset)

    def sync(self) -> LogPosition:
        """Makes durable everything appended before the call was entered, and returns the last durable position.

        Raises LedgerHaltedError if the device refuses; the sync is not tried again.
        """
        self._check_writable()
        with self._lock:
            target = self._tip
        with self._sync_lock:
            try:
                return self._sync_to(target)
            except LedgerError:
                self._halted = True
                raise

    def _sync_to(self, target: _Tip) -> LogPosition:
        if self._durable.end < target.end:
            with self._segments.lease(target.end.segment, writable=True) as file:
                self._segments.files.fdatasync(file)
            with self._lock:
                self._durable = max(self._durable, target, key=lambda tip: tip.end)
        durable = self._durable
        state = self._head.state
        if state is None or state.position != durable.last:
            self._head.write(durable.last, durable.last_checksum)
        return durable.last

    def read(self, ref: FrameRef) -> bytes:
        """Returns the payload of the frame at ``ref``, its checksums verified.

        CorruptionError names the segment file and the frame's offset. Raises NotFoundError with PRUNED where the
        segment was pruned, before the call or during it.
        """
        self._check_open()
        place = FramePlace(ref.segment, ref.offset)
        try:
            frame = self._segments.frame_at(place, None)
            if frame is None or frame.ref != ref or frame.kind != KIND_DATA:
                raise self._damage(place)
            return self._segments.payload(frame)
        except CorruptionError:
            if ref.segment < self._segments.first:
                raise NotFoundError(f"segment {ref.segment} was pruned", code=Code.PRUNED) from None
            raise

    def read_start(self, ref: FrameRef, length: int) -> bytes:
        """Returns the first ``length`` bytes of a payload at most, unchecked: the caller has a check of its own.

        Raises CorruptionError or NotFoundError as :meth:`read` where no such frame begins at ``ref``.
        """
        self._check_open()
        place = FramePlace(ref.segment, ref.offset)
        try:
            frame = self._segments.frame_at(place, None)
            if frame is None or frame.ref != ref or frame.kind != KIND_DATA:
                raise self._damage(place)
            return self._segments.payload_start(frame, length)
        except CorruptionError:
            if ref.segment < self._segments.first:
                raise NotFoundError(f"segment {ref.segment} was pruned", code=Code.PRUNED) from None
            raise

    def frames(self, start: FrameRef | int | None = None) -> Iterator[tuple[FrameRef, int, bytes]]:
        """Yields (ref, height, payload) in order: from a frame, from a height, or from the oldest segment.

        Ends where the log ended when the iteration began. CorruptionError at the first damaged frame.
        """
        self._check_open()
        end = self._tip.end
        for frame in self._headers_from(start, end):
            if not isinstance(start, int) or frame.height >= start:
                yield frame.ref, frame.height, self._segments.payload(frame)

    def positions(self) -> Iterator[LogPosition]:
        """Yields the place, height and block id of every frame, in order; payloads are not read."""
        self._check_open()
        for frame in self._headers_from(None, self._tip.end):
            yield LogPosition(frame.ref, frame.height, frame.block_id)

    def _headers_from(self, start: FrameRef | int | None, end: FramePlace) -> Iterator[Frame]:
        if isinstance(start, FrameRef):
            return self._segments.walk(FramePlace(start.segment, start.offset), None, end)
        first = self._segments.first if start is None else self._segments.segment_of_height(start)
        header = self._segments.header(first)
        return self._segments.walk(FramePlace(first, SEGMENT_HEADER_BYTES), header.checksum, end)

    def verify(self, progress: LogProgress | None = None) -> list[CorruptionError]:
        """Reads every byte of every segment and of HEAD, padding and preallocated space too.

        Returns the errors found. ``progress`` gets (bytes done, bytes in all). Appends wait while the last segment
        is read.
        """
        self._check_open()
        check = LogCheck(self._segments, progress)
        check.closed_segments()
        with self._append_lock, self._sync_lock:
            check.last_segments(self._tip.end)
            return [*check.errors, *self._head.check()]

    def verify_sealed(self, pin: LogPin, progress: LogProgress | None = None) -> list[CorruptionError]:
        """Reads every byte of the segments before the pin's last one, which never change; returns the errors found.

        Appends do not wait.
        """
        self._check_open()
        check = LogCheck(self._segments, progress)
        check.closed_segments(pin.end.segment)
        return check.errors

    def prune(self, before: FrameRef) -> int:
        """Unlinks the whole segments that end before ``before``, oldest first; returns how many bytes that freed.

        The segment of the last durable frame stays, and HEAD is synced first. So after a crash the frame that HEAD
        names is there, or is known to be pruned.
        """
        self._check_writable()
        newest = self._durable.last.ref
        last = before.segment if newest is None else min(before.segment, newest.segment)
        doomed = [number for number in self._segments.numbers() if number < last]
        if not doomed:
            return 0
        with self._sync_lock:
            durable = self._durable
            self._head.write(durable.last, durable.last_checksum)
            self._head.sync()
        freed = 0
        for number in doomed:
            freed += self._segments.header(number).segment_bytes
            self._segments.remove(number)
        self._segments.files.fsync_dir(self._segments.path)
        return freed

    def close(self) -> None:
        """Closes the files without a sync: what was not synced was not promised."""
        if self._closed:
            return
        self._closed = True
        with self._sync_lock:
            self._head.close()
            self._segments.close()

    def _check_open(self) -> None:
        if self._closed:
            raise LedgerClosedError("the log is closed")

    def _check_writable(self) -> None:
        self._check_open()
        if self._halted:
            raise LedgerHaltedError("an earlier write or sync failed; reopen the ledger")
        if self._readonly:
            raise LedgerHaltedError("the log is open for reading only")

    def _damage(self, place: FramePlace) -> CorruptionError:
        name = str(self._segments.path_of(place.segment))
        return CorruptionError("no whole frame begins here", path=name, offset=place.offset)


def _parts(payload: Buffer | Sequence[Buffer]) -> list[Buffer]:
    parts: Sequence[Buffer] = [payload] if isinstance(payload, bytes | bytearray | memoryview) else payload
    return [part.cast("B") if isinstance(part, memoryview) else part for part in parts]


def _open_head(path: Path, chain_id: bytes, files: OsFiles, *, readonly: bool) -> HeadFile:
    try:
        return HeadFile(path, chain_id, files, readonly=readonly)
    except FileNotFoundError as error:
        raise CorruptionError("HEAD is missing", path=str(path)) from error


def _check_sizes(chain_id: bytes, segment_bytes: int) -> None:
    if len(chain_id) != CHAIN_ID_BYTES:
        raise InputError(f"chain id has {len(chain_id)} bytes")
    if not _OVERHEAD_BYTES < segment_bytes <= LOG_SEGMENT_BYTES or segment_bytes % 8:
        raise InputError(f"segment size of {segment_bytes} bytes is out of bounds")

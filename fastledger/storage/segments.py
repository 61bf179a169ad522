"""The numbered segment files of one log: finding, creating and walking them."""

import re
import threading
from bisect import bisect_right
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from fastledger.errors import CorruptionError
from fastledger.storage.files import FileCache, OpenFile, OsFiles
from fastledger.storage.frames import (
    FRAME_HEADER_BYTES,
    KIND_SEAL,
    SEGMENT_HEADER_BYTES,
    Frame,
    FramePlace,
    SegmentHeader,
    decode_segment_header,
    encode_segment_header,
    read_frame_header,
    read_payload,
)

_NAME = re.compile(r"(\d{8})\.seg")
SALT_BYTES = 8


class SegmentFiles:
    """The segment files of one log.

    Their headers are in memory (a few dozen bytes for every 64 MiB of log), their descriptors in a bounded cache.
    """

    def __init__(self, path: Path, chain_id: bytes, files: OsFiles) -> None:
        self.path = path
        self.files = files
        self._chain_id = chain_id
        self._cache = FileCache(files, self.path_of)
        self._lock = threading.Lock()
        self._headers: dict[int, SegmentHeader] = {}

    def path_of(self, segment: int) -> Path:
        return self.path / f"{segment:08d}.seg"

    def load(self) -> None:
        """Reads every segment's header. Raises CorruptionError for a gap, damage, or a segment of another chain."""
        numbers = sorted(int(m[1]) for m in map(_NAME.fullmatch, self._names()) if m)
        if not numbers:
            raise CorruptionError("the log has no segment", path=str(self.path))
        for expected, number in enumerate(numbers, start=numbers[0]):
            if number != expected:
                raise CorruptionError("segment is missing", path=str(self.path_of(expected)))
            self._headers[number] = self.read_header(number)

    def _names(self) -> list[str]:
        return self.files.names(self.path)

    def unused(self) -> bool:
        """Whether no chain ever appended here: there is at most segment 0, and it is all zero behind its header."""
        paths = [self.path / name for name in self._names() if _NAME.fullmatch(name)]
        if paths not in ([], [self.path_of(0)]):
            return False
        for path in paths:
            file = self.files.open(path)
            try:
                if self.files.first_nonzero(file, SEGMENT_HEADER_BYTES, self.files.size(file)) is not None:
                    return False
            finally:
                self.files.close(file)
        return True

    def read_header(self, segment: int) -> SegmentHeader:
        """Reads a segment's header from disk.

        Raises CorruptionError where it does not match its file's name, size or chain.
        """
        name = str(self.path_of(segment))
        with self.lease(segment) as file:
            header = decode_segment_header(self.files.read(file, SEGMENT_HEADER_BYTES, 0), name)
            size = self.files.size(file)
        if header.chain_id != self._chain_id:
            raise CorruptionError("segment belongs to another chain", path=name, offset=0)
        if header.segment != segment:
            raise CorruptionError(f"segment says that it is number {header.segment}", path=name, offset=0)
        if header.segment_bytes != size:
            raise CorruptionError(
                f"segment has {size} of {header.segment_bytes} bytes", path=name, offset=size
            )
        return header

    def create(self, segment: int, segment_bytes: int, first_height: int, previous: int) -> SegmentHeader:
        """Creates a segment and returns its header; file and directory entry are durable on return.

        After a crash the file is there with all its bytes, or not at all. ``previous`` is the checksum of the seal
        of the segment before.
        """
        name = self.path_of(segment)
        salt = self.files.random_bytes(SALT_BYTES)
        data = encode_segment_header(segment, segment_bytes, self._chain_id, salt, first_height, previous)
        self.files.create_whole(name, segment_bytes, data)
        header = decode_segment_header(data, str(name))
        with self._lock:
            self._headers = {**self._headers, segment: header}
        return header

    def header(self, segment: int) -> SegmentHeader:
        header = self._headers.get(segment)
        if header is None:
            raise CorruptionError("segment is missing", path=str(self.path_of(segment)))
        return header

    def numbers(self) -> list[int]:
        with self._lock:
            return sorted(self._headers)

    @property
    def first(self) -> int:
        """The number of the oldest segment; more than 0 once the log is pruned."""
        return min(self._headers)

    @property
    def first_header(self) -> SegmentHeader:
        """The oldest segment's header, found with one look at the headers: pruning may go on meanwhile."""
        headers = self._headers
        return headers[min(headers)]

    def segment_of_height(self, height: int) -> int:
        """Returns the only segment that can hold ``height``."""
        numbers = self.numbers()
        at = bisect_right([self._headers[n].first_height for n in numbers], height)
        return numbers[max(0, at - 1)]

    @contextmanager
    def lease(self, segment: int, *, writable: bool = False) -> Iterator[OpenFile]:
        """Yields the segment's file, open for the length of the block.

        Raises CorruptionError where it is missing.
        """
        try:
            lease = self._cache.lease(segment, writable=writable)
            with lease as file:
                yield file
        except FileNotFoundError as error:
            raise CorruptionError("segment is missing", path=str(self.path_of(segment))) from error

    def frame_at(self, place: FramePlace, previous: int | None) -> Frame | None:
        """Returns the frame whose header is at ``place``.

        None unless it is whole and links to the checksum ``previous``. With ``previous`` None the link is not
        checked.
        """
        header = self.header(place.segment)
        with self.lease(place.segment) as file:
            frame = read_frame_header(self.files, file, header, place.offset)
        if frame is None or (previous is not None and frame.previous != previous):
            return None
        return frame

    def payload(self, frame: Frame) -> bytes:
        with self.lease(frame.ref.segment) as file:
            return read_payload(self.files, file, frame)

    def payload_start(self, frame: Frame, length: int) -> bytes:
        """Returns the first ``length`` bytes of a frame's payload at most, unchecked."""
        start = frame.ref.offset + FRAME_HEADER_BYTES
        with self.lease(frame.ref.segment) as file:
            return self.files.read(file, min(length, frame.ref.length), start)

    def after_seal(self, seal: Frame) -> tuple[FramePlace, int]:
        """Returns the place of the first frame behind a seal, and the checksum that this frame links to.

        Raises CorruptionError where the next segment is missing or does not link to the seal.
        """
        segment = seal.ref.segment + 1
        header = self.header(segment)
        if header.previous != seal.checksum:
            name = str(self.path_of(segment))
            raise CorruptionError("segment does not follow the one before it", path=name, offset=0)
        return FramePlace(segment, SEGMENT_HEADER_BYTES), header.checksum

    def walk(self, start: FramePlace, previous: int | None, end: FramePlace) -> Iterator[Frame]:
        """Yields the data frames in [start, end). Every frame there must be whole: CorruptionError if one is not.

        The first frame must link to ``previous``, unless that is None.
        """
        place = start
        while place < end:
            frame = self.frame_at(place, previous)
            if frame is None:
                name = str(self.path_of(place.segment))
                raise CorruptionError("frame header is damaged", path=name, offset=place.offset)
            if frame.kind == KIND_SEAL:
                if frame.ref.end == end:
                    return
                place, previous = self.after_seal(frame)
                continue
            yield frame
            place, previous = frame.ref.end, frame.checksum

    def remove(self, segment: int) -> None:
        """Unlinks the oldest segment; its space is free when the last reader has left it."""
        with self._lock:
            # Replaced, not changed: readers look at it without the lock.
            self._headers = {number: header for number, header in self._headers.items() if number != segment}
        self._cache.forget(segment)
        self.files.unlink(self.path_of(segment))

    def close(self) -> None:
        self._cache.close()

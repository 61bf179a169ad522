"""Verification of a log: reads every byte and names each place that is not what was written (SPEC-LOG-11)."""

from collections.abc import Callable

from fastledger.errors import CorruptionError, FormatVersionError
from fastledger.storage.files import OpenFile
from fastledger.storage.frames import (
    ALIGNMENT,
    KIND_SEAL,
    SEGMENT_HEADER_BYTES,
    Frame,
    FramePlace,
    SegmentHeader,
    find_frames,
    read_frame_header,
    read_payload,
)
from fastledger.storage.segments import SegmentFiles

LogProgress = Callable[[int, int], None]
ERRORS_MAX = 1_000


class LogCheck:
    """One verification of a log. ``errors`` are in file order; it stops reading once there are ERRORS_MAX."""

    def __init__(self, segments: SegmentFiles, progress: LogProgress | None) -> None:
        self.errors: list[CorruptionError] = []
        self._segments = segments
        self._progress = progress
        self._todo = segments.numbers()
        self._bytes_done = 0
        self._previous_seal: int | None = None

    def closed_segments(self, before: int | None = None) -> None:
        """Verifies the segments that never change: all before the last, or those before the segment ``before``."""
        while len(self._todo) > 1 and (before is None or self._todo[0] < before):
            self._segment(self._todo.pop(0), None)

    def last_segments(self, end: FramePlace) -> None:
        """Verifies the segments that are left, up to ``end``; nobody may append meanwhile."""
        first = self._todo[0]
        self._todo = [number for number in self._segments.numbers() if number >= first]
        while self._todo:
            number = self._todo.pop(0)
            self._segment(number, end.offset if number == end.segment else None)

    def _segment(self, number: int, stop: int | None) -> None:
        if len(self.errors) >= ERRORS_MAX:
            return
        segments, name = self._segments, str(self._segments.path_of(number))
        try:
            header = segments.read_header(number)
        except (CorruptionError, FormatVersionError) as error:
            self.errors.append(error if isinstance(error, CorruptionError) else _error(name, 0, str(error)))
            header = segments.header(
                number
            )  # as it was when the log was opened: its frames can still be read
        if self._previous_seal not in (None, header.previous):
            self.errors.append(_error(name, 0, "segment does not follow the one before it"))
        with segments.lease(number) as file:
            end = header.segment_bytes if stop is None else stop
            self._previous_seal = _verify_frames(segments, file, header, end, self.errors)
        self._report(header.segment_bytes)

    def _report(self, count: int) -> None:
        self._bytes_done += count
        if self._progress is not None:
            rest = sum(self._segments.header(number).segment_bytes for number in self._todo)
            self._progress(self._bytes_done, self._bytes_done + rest)


def _verify_frames(
    segments: SegmentFiles, file: OpenFile, header: SegmentHeader, stop: int, errors: list[CorruptionError]
) -> int | None:
    name = str(file.path)
    offset, previous, seal = SEGMENT_HEADER_BYTES, header.checksum, None
    while offset < stop and seal is None:
        frame = read_frame_header(segments.files, file, header, offset)
        if frame is None:
            errors.append(_error(name, offset, "frame header is damaged"))
            behind = find_frames(segments.files, file, header, offset + ALIGNMENT)
            if not behind or len(errors) >= ERRORS_MAX:
                return None
            frame = behind[0]
        elif frame.previous != previous:
            errors.append(_error(name, offset, "frame does not follow the one before it"))
        _verify_payload(segments, file, frame, errors)
        offset, previous = frame.ref.end.offset, frame.checksum
        seal = frame.checksum if frame.kind == KIND_SEAL else None
    stray = segments.files.first_nonzero(file, offset, header.segment_bytes)
    if stray is not None:
        errors.append(_error(name, stray, "bytes behind the last frame are not zero"))
    return seal


def _verify_payload(
    segments: SegmentFiles, file: OpenFile, frame: Frame, errors: list[CorruptionError]
) -> None:
    try:
        read_payload(segments.files, file, frame)
    except CorruptionError as error:
        errors.append(error)


def _error(path: str, offset: int, message: str) -> CorruptionError:
    return CorruptionError(message, path=path, offset=offset)

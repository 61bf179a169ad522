"""Salvage: reads what can still be read of a damaged log, frame by frame (SPEC-LOG-13)."""

from collections.abc import Iterator
from pathlib import Path

from fastledger.errors import CorruptionError, FormatVersionError
from fastledger.storage.files import OsFiles
from fastledger.storage.frames import (
    ALIGNMENT,
    KIND_DATA,
    SEGMENT_HEADER_BYTES,
    Frame,
    SegmentHeader,
    find_frames,
    read_frame_header,
    read_payload,
)
from fastledger.storage.segments import SegmentFiles


class Salvage:
    """Reads the whole frames of the log under ``path``, whatever lies between them; changes nothing on disk."""

    def __init__(self, path: Path, chain_id: bytes, files: OsFiles | None = None) -> None:
        """Takes the log's directory.

        A segment that is missing, or whose header is damaged, counts as holding nothing.
        """
        self._files = files or OsFiles()
        self._segments = SegmentFiles(path, chain_id, self._files)
        self.damaged_places = 0

    def frames(self) -> Iterator[Frame]:
        """Yields every data frame whose header and payload are whole, in file order; counts ``damaged_places``."""
        for path in sorted(self._segments.path.glob("*.seg")):
            if not path.stem.isdigit():
                continue
            number = int(path.stem)
            try:
                header = self._segments.read_header(number)
            except (CorruptionError, FormatVersionError):
                self.damaged_places += 1
                continue
            yield from self._frames_of(number, header)

    def _frames_of(self, number: int, header: SegmentHeader) -> Iterator[Frame]:
        offset = SEGMENT_HEADER_BYTES
        while offset < header.segment_bytes:
            with self._segments.lease(number) as file:
                frame = read_frame_header(self._files, file, header, offset)
                if frame is None:
                    if self._files.first_nonzero(file, offset, header.segment_bytes) is None:
                        return
                    self.damaged_places += 1
                    behind = find_frames(self._files, file, header, offset + ALIGNMENT)
                    if not behind:
                        return
                    frame = behind[0]
            if frame.kind != KIND_DATA:
                return
            if self._is_whole(frame):
                yield frame
            offset = frame.ref.end.offset

    def _is_whole(self, frame: Frame) -> bool:
        try:
            self.payload(frame)
        except CorruptionError:
            self.damaged_places += 1
            return False
        return True

    def payload(self, frame: Frame) -> bytes:
        """Returns the payload of a frame; CorruptionError where its bytes are not what was written."""
        with self._segments.lease(frame.ref.segment) as file:
            return read_payload(self._files, file, frame)

    def close(self) -> None:
        """Closes the segment files."""
        self._segments.close()

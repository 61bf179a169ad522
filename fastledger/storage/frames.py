"""Byte formats of the segment log. All integers are big-endian; everything is aligned to 8 bytes.

Segment header, 56 bytes (SPEC-LOG-2)::

    0 magic 8 | 8 version 2 | 10 zero 2 | 12 segment 4 | 16 segment bytes 8 | 24 chain id 8 | 32 salt 8
    40 first height 8 | 48 checksum of the previous segment's seal 4 (0 in the first) | 52 checksum 4

Frame header, 72 bytes, then the payload, then zeros up to a multiple of 8 (SPEC-LOG-3)::

    0 magic 4 | 4 version 1 | 5 kind 1 | 6 zero 2 | 8 payload length 4 | 12 payload checksum 4 | 16 height 8
    24 block id 32 | 56 durable segment 4 | 60 durable offset 4 | 64 previous frame's checksum 4 | 68
    checksum 4

Checksums are CRC-32 (zlib's): they find every flipped bit and every torn write. They are no defence against
an author, who is kept out by the hashes inside the blocks. The frame checksum is seeded with the segment's
chain id, number and random salt and with the frame's offset, so that neither a frame in another place nor a
frame smuggled in as payload is taken for one. It covers the previous frame's checksum, so that the frames of
a log form a chain.

"Durable" is the log position that was known to be synced when the frame was written. It is what tells a torn
tail (no later frame claims that it was durable) from lost data (one does).
"""

import struct
from typing import NamedTuple, Self
from zlib import crc32

from fastledger.errors import CorruptionError, FormatVersionError
from fastledger.storage.files import Buffer, OpenFile, OsFiles
from fastledger.version import LOG_FORMAT_VERSION

SEGMENT_MAGIC = b"FLSEGMNT"
FRAME_MAGIC = b"FLfr"
KIND_DATA = 1
KIND_SEAL = 2  # the last frame of a full segment: no payload, height of the last data frame
ALIGNMENT = 8
CHAIN_ID_BYTES = 8
BLOCK_ID_BYTES = 32
NO_HEIGHT = -1

_SEGMENT = struct.Struct(">8sHHIQ8s8sqII")
_FRAME = struct.Struct(">4sBBHIIq32sIIII")
_CHECKSUM = struct.Struct(">I")
_REF = struct.Struct(">III")
SEGMENT_HEADER_BYTES = _SEGMENT.size
FRAME_HEADER_BYTES = _FRAME.size


class FramePlace(NamedTuple):
    """A position in the log: it stands for everything before byte ``offset`` of ``segment``.

    Places sort in log order.
    """

    segment: int
    offset: int


class FrameRef(NamedTuple):
    """The place of a frame in the log: segment number, byte offset of its header, payload length in bytes."""

    segment: int
    offset: int
    length: int

    def pack(self) -> bytes:
        """Returns 12 bytes, three big-endian uint32, whose byte order is the order of the log."""
        return _REF.pack(*self)

    @classmethod
    def unpack(cls, data: bytes) -> Self:
        return cls(*_REF.unpack(data))

    @property
    def end(self) -> FramePlace:
        """The place behind the frame and its padding, where the next frame of the segment begins."""
        return FramePlace(self.segment, self.offset + frame_bytes(self.length))


class SegmentHeader(NamedTuple):
    """A decoded segment header (SPEC-LOG-2). The segment's first frame links to its ``checksum``."""

    segment: int
    segment_bytes: int
    chain_id: bytes
    salt: bytes
    first_height: int
    previous: int
    checksum: int

    @property
    def seed(self) -> int:
        """The value that seeds the CRC-32 of every frame in this segment."""
        return crc32(self.chain_id + self.salt + _CHECKSUM.pack(self.segment))


class Frame(NamedTuple):
    """A decoded frame header (SPEC-LOG-3) and the place that it was found at."""

    ref: FrameRef
    kind: int
    payload_checksum: int
    height: int
    block_id: bytes
    durable: FramePlace
    previous: int
    checksum: int


def padding_of(length: int) -> int:
    """Returns how many zero bytes follow a payload of ``length`` bytes."""
    return -length % ALIGNMENT


def frame_bytes(length: int) -> int:
    """Returns the bytes on disk of a frame whose payload has ``length`` bytes, header and padding included."""
    return FRAME_HEADER_BYTES + length + padding_of(length)


def encode_segment_header(
    segment: int, segment_bytes: int, chain_id: bytes, salt: bytes, first_height: int, previous: int
) -> bytes:
    """Returns the 56 bytes at the head of a segment (SPEC-LOG-2)."""
    body = _SEGMENT.pack(
        SEGMENT_MAGIC,
        LOG_FORMAT_VERSION,
        0,
        segment,
        segment_bytes,
        chain_id,
        salt,
        first_height,
        previous,
        0,
    )[:-4]
    return body + _CHECKSUM.pack(crc32(body))


def decode_segment_header(data: bytes, path: str) -> SegmentHeader:
    """Returns the segment header in the first 56 bytes of ``data``; ``path`` is for the errors.

    Raises CorruptionError if the bytes are damaged, FormatVersionError if they are of another version.
    """
    if len(data) < SEGMENT_HEADER_BYTES:
        raise CorruptionError("segment header is cut short", path=path, offset=0)
    magic, version, zero, segment, size, chain_id, salt, first_height, previous, checksum = _SEGMENT.unpack(
        data[:SEGMENT_HEADER_BYTES]
    )
    if magic != SEGMENT_MAGIC or crc32(data[: SEGMENT_HEADER_BYTES - 4]) != checksum or zero:
        raise CorruptionError("segment header is damaged", path=path, offset=0)
    if version != LOG_FORMAT_VERSION:
        raise FormatVersionError(f"{path} has log format {version}, this release reads {LOG_FORMAT_VERSION}")
    return SegmentHeader(segment, size, chain_id, salt, first_height, previous, checksum)


def encode_frame_header(
    header: SegmentHeader,
    ref: FrameRef,
    kind: int,
    payload_checksum: int,
    height: int,
    block_id: bytes,
    durable: FramePlace,
    previous: int,
) -> tuple[bytes, int]:
    """Returns the 72 bytes of a frame's header (SPEC-LOG-3), and the checksum that the next frame links to."""
    body = _FRAME.pack(
        FRAME_MAGIC,
        LOG_FORMAT_VERSION,
        kind,
        0,
        ref.length,
        payload_checksum,
        height,
        block_id,
        durable.segment,
        durable.offset,
        previous,
        0,
    )[:-4]
    checksum = crc32(body, crc32(_CHECKSUM.pack(ref.offset), header.seed))
    return body + _CHECKSUM.pack(checksum), checksum


def decode_frame_header(data: bytes, header: SegmentHeader, offset: int) -> Frame | None:
    """Returns the frame whose header is the first 72 bytes of ``data``, read at ``offset`` of a segment.

    Returns None if they are not a whole header that was written for this place.
    """
    if len(data) < FRAME_HEADER_BYTES or data[:4] != FRAME_MAGIC:
        return None
    (
        _,
        version,
        kind,
        zero,
        length,
        payload_checksum,
        height,
        block_id,
        segment,
        durable,
        previous,
        checksum,
    ) = _FRAME.unpack(data[:FRAME_HEADER_BYTES])
    seed = crc32(_CHECKSUM.pack(offset), header.seed)
    if crc32(data[: FRAME_HEADER_BYTES - 4], seed) != checksum:
        return None
    if version != LOG_FORMAT_VERSION or zero or kind not in (KIND_DATA, KIND_SEAL):
        return None
    if offset + frame_bytes(length) > header.segment_bytes:
        return None
    ref = FrameRef(header.segment, offset, length)
    return Frame(ref, kind, payload_checksum, height, block_id, FramePlace(segment, durable), previous, checksum)


def checksum_of(parts: list[Buffer]) -> int:
    """Returns the CRC-32 of the concatenated parts; zlib drops the GIL for large ones."""
    checksum = 0
    for part in parts:
        checksum = crc32(part, checksum)
    return checksum


def read_frame_header(files: OsFiles, file: OpenFile, header: SegmentHeader, offset: int) -> Frame | None:
    """Reads the frame header at ``offset`` of a segment's file; None if no whole one begins there."""
    return decode_frame_header(files.read(file, FRAME_HEADER_BYTES, offset), header, offset)


def read_payload(files: OsFiles, file: OpenFile, frame: Frame) -> bytes:
    """Returns the payload of a decoded frame; CorruptionError names the frame if it or its padding is damaged."""
    length = frame.ref.length
    start = frame.ref.offset + FRAME_HEADER_BYTES
    data = files.read(file, length + padding_of(length), start)
    payload, padding = data[:length], data[length:]
    if len(data) < length + padding_of(length) or crc32(payload) != frame.payload_checksum:
        raise CorruptionError(
            f"payload of the frame of height {frame.height} is damaged",
            path=str(file.path),
            offset=frame.ref.offset,
        )
    if padding.strip(b"\0"):
        raise CorruptionError("frame padding is not zero", path=str(file.path), offset=start + length)
    return payload


def find_frames(files: OsFiles, file: OpenFile, header: SegmentHeader, start: int) -> list[Frame]:
    """Returns every whole frame header of a segment at or behind ``start``, whatever damage lies before it."""
    data = files.read(file, max(0, header.segment_bytes - start), start)
    found = []
    at = data.find(FRAME_MAGIC)
    while at >= 0:
        if (start + at) % ALIGNMENT == 0:
            frame = decode_frame_header(data[at : at + FRAME_HEADER_BYTES], header, start + at)
            if frame is not None:
                found.append(frame)
        at = data.find(FRAME_MAGIC, at + 1)
    return found

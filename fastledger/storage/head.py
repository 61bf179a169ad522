"""HEAD: a small file that remembers which frame was last known to be durable.

Two slots of 512 bytes (SPEC-LOG-7); a write goes to the older one, so that one torn write leaves the other
whole. It is written after each sync of the log and not synced itself: after ``kill -9`` it is exact, after a
power cut it may be behind the log, and it is never ahead of it.

    0 magic 8 | 8 version 2 | 10 empty 1 | 11 zero 5 | 16 sequence 8 | 24 chain id 8 | 32 height 8
    40 segment 4 | 44 offset 4 | 48 payload length 4 | 52 frame checksum 4 | 56 block id 32 | zeros | 508
    checksum 4
"""

import struct
from pathlib import Path
from typing import NamedTuple
from zlib import crc32

from fastledger.errors import CorruptionError, FormatVersionError
from fastledger.storage.files import OsFiles
from fastledger.storage.frames import BLOCK_ID_BYTES, NO_HEIGHT, FrameRef
from fastledger.version import LOG_FORMAT_VERSION

SLOT_BYTES = 512
SLOTS = 2
_MAGIC = b"FLHEADv\0"
_SLOT = struct.Struct(">8sHB5sQ8sqIIII32s")
_CHECKSUM = struct.Struct(">I")


class LogPosition(NamedTuple):
    """A frame of the log with its height and its block id (32 bytes); ``EMPTY`` where the log has no frame."""

    ref: FrameRef | None
    height: int
    block_id: bytes


EMPTY = LogPosition(None, NO_HEIGHT, bytes(BLOCK_ID_BYTES))


class HeadState(NamedTuple):
    """The contents of one slot of HEAD: a position that was durable, and the checksum of its frame's header."""

    sequence: int
    position: LogPosition
    frame_checksum: int


def _encode(state: HeadState, chain_id: bytes) -> bytes:
    ref = state.position.ref
    body = _SLOT.pack(
        _MAGIC,
        LOG_FORMAT_VERSION,
        ref is None,
        bytes(5),
        state.sequence,
        chain_id,
        state.position.height,
        *(ref or (0, 0, 0)),
        state.frame_checksum,
        state.position.block_id,
    ).ljust(SLOT_BYTES - 4, b"\0")
    return body + _CHECKSUM.pack(crc32(body))


def _decode(data: bytes, chain_id: bytes, path: Path, offset: int) -> HeadState:
    if len(data) < SLOT_BYTES or _CHECKSUM.pack(crc32(data[:-4])) != data[-4:] or data[:8] != _MAGIC:
        raise CorruptionError("HEAD slot is damaged", path=str(path), offset=offset)
    _, version, empty, _, sequence, chain, height, segment, frame_offset, length, checksum, block_id = (
        _SLOT.unpack_from(data)
    )
    if version != LOG_FORMAT_VERSION:
        raise FormatVersionError(f"{path} has format {version}, this release reads {LOG_FORMAT_VERSION}")
    if chain != chain_id:
        raise CorruptionError("HEAD belongs to another chain", path=str(path), offset=offset)
    ref = None if empty else FrameRef(segment, frame_offset, length)
    return HeadState(sequence, LogPosition(ref, height, block_id), checksum)


class HeadFile:
    """The open HEAD file of one log. One thread at a time may write it."""

    def __init__(self, path: Path, chain_id: bytes, files: OsFiles, *, readonly: bool) -> None:
        self.path = path
        self._chain_id = chain_id
        self._files = files
        self._file = files.open(path, writable=not readonly)
        self.damage: list[CorruptionError] = []
        self.state = self._load()
        self._sequence = self.state.sequence if self.state else 0

    @staticmethod
    def create(path: Path, chain_id: bytes, files: OsFiles) -> None:
        """Creates a HEAD file, durably, both of whose slots say that the log is empty."""
        slots = b"".join(_encode(HeadState(n, EMPTY, 0), chain_id) for n in range(SLOTS))
        files.create_whole(path, 0, slots)

    def _load(self) -> HeadState | None:
        """Returns the newer of the whole slots, or None if neither is whole; fills ``damage``."""
        states = []
        self.damage = []
        for slot in range(SLOTS):
            offset = slot * SLOT_BYTES
            data = self._files.read(self._file, SLOT_BYTES, offset)
            try:
                states.append(_decode(data, self._chain_id, self.path, offset))
            except CorruptionError as error:
                self.damage.append(error)
        if self._files.size(self._file) != SLOTS * SLOT_BYTES:
            self.damage.append(
                CorruptionError("HEAD has the wrong length", path=str(self.path), offset=SLOTS * SLOT_BYTES)
            )
        return max(states, key=lambda state: state.sequence, default=None)

    def check(self) -> list[CorruptionError]:
        """Reads the file again and returns the damage found in it, an error for each bad slot."""
        self._load()
        return self.damage

    def write(self, position: LogPosition, frame_checksum: int) -> None:
        """Writes a position that is already durable in the log into the older slot. HEAD is not synced."""
        self._sequence += 1
        state = HeadState(self._sequence, position, frame_checksum)
        self._files.write(self._file, [_encode(state, self._chain_id)], self._sequence % SLOTS * SLOT_BYTES)
        self.state = state

    def encoded(self, position: LogPosition, frame_checksum: int) -> bytes:
        """Returns the bytes of a HEAD file both of whose slots say ``position``."""
        return b"".join(_encode(HeadState(n, position, frame_checksum), self._chain_id) for n in range(SLOTS))

    def sync(self) -> None:
        """Makes HEAD durable.

        Pruning calls this first, so that HEAD never points into a segment that was unlinked.
        """
        self._files.fdatasync(self._file)

    def restore(self, position: LogPosition, frame_checksum: int) -> None:
        """Writes the position that recovery found: once for each damaged slot, else only where HEAD says another."""
        for _ in self.damage[:SLOTS] or range(self.state is None or self.state.position != position):
            self.write(position, frame_checksum)

    def close(self) -> None:
        self._files.close(self._file)

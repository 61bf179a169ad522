"""The fork journal: blocks that are not final yet, in one append-only file (SPEC-JRN-1..4).

::

    header, 32 bytes   0 magic 8 | 8 version 2 | 10 zero 6 | 16 chain id 8 | 24 zero 4 | 28 checksum 4
    frame              0 payload length 4 | 4 checksum 4 | payload

All integers are big-endian, checksums CRC-32; that of a frame is seeded with the header's and with the frame's offset.
What stands here was checked and can be fetched from others again, so damage costs a download and no more: reading ends
at the first frame that is not whole. What is final moves to the segment log and leaves with the next :meth:`rewrite`.
"""

import struct
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple, Self
from zlib import crc32

from fastledger.errors import (
    CorruptionError,
    FormatVersionError,
    InputError,
    LedgerClosedError,
    LedgerError,
    LedgerHaltedError,
    StorageFullError,
)
from fastledger.limits import LOG_FRAME_BYTES_MAX
from fastledger.storage.files import OpenFile, OsFiles
from fastledger.version import JOURNAL_FORMAT_VERSION

JOURNAL_DIRECTORY = "forks"
JOURNAL_NAME = "journal"
JOURNAL_MAGIC = b"FLFORKJL"

_HEADER = struct.Struct(">8sH6x8s4xI")
_FRAME = struct.Struct(">II")
JOURNAL_HEADER_BYTES = _HEADER.size
_CHAIN_ID_BYTES = 8


class JournalRef(NamedTuple):
    """The place of a frame in the journal: byte offset of its head, payload length in bytes."""

    offset: int
    length: int

    @property
    def end(self) -> int:
        """The offset at which the next frame begins."""
        return self.offset + _FRAME.size + self.length


class ForkJournal:
    """An open journal, used by one thread. A failed write or sync halts it, as it halts the ledger."""

    def __init__(self, path: Path, chain_id: bytes, files: OsFiles) -> None:
        """Prepares a journal without opening its file; callers use :meth:`open`."""
        self._path = path
        self._files = files
        self._header = _encode_header(chain_id)
        self._seed = crc32(self._header)
        self._file: OpenFile | None = None
        self._end = JOURNAL_HEADER_BYTES
        self._dirty = False
        self._halted = False

    @classmethod
    def open(cls, root: Path, chain_id: bytes, files: OsFiles | None = None) -> Self:
        """Opens the journal ``root/forks/journal`` and makes it where there is none; ``chain_id`` is 8 bytes.

        A torn tail is cut off and a damaged file begun anew. Raises FormatVersionError for another version,
        InputError for a journal of another chain.
        """
        if len(chain_id) != _CHAIN_ID_BYTES:
            raise InputError(f"chain id has {len(chain_id)} bytes")
        files = files or OsFiles()
        files.make_dir(root / JOURNAL_DIRECTORY)
        journal = cls(root / JOURNAL_DIRECTORY / JOURNAL_NAME, chain_id, files)
        try:
            journal._file = files.open(journal._path, writable=True)
        except FileNotFoundError:
            journal._begin()
            return journal
        try:
            journal._recover()
        except BaseException:
            journal.close()
            raise
        return journal

    def _begin(self) -> None:
        self._files.create_whole(self._path, 0, self._header)
        self._file = self._files.open(self._path, writable=True)
        self._end = JOURNAL_HEADER_BYTES

    def _recover(self) -> None:
        """Finds the whole frames and writes them to a new file, which drops whatever lies behind them.

        That is done even where nothing is wrong. After a failed sync the kernel may hold pages that it counts as
        clean and that never reached the device; what others were told would rest on them.
        """
        header = self._files.read(self._open_file, JOURNAL_HEADER_BYTES, 0)
        if not _is_header(header, self._header):
            self.close()
            self._begin()
            return
        whole = [ref for ref, _ in self.load()]
        self._end = whole[-1].end if whole else JOURNAL_HEADER_BYTES
        if whole or self._end != self._files.size(self._open_file):
            self.rewrite(whole)

    @property
    def _open_file(self) -> OpenFile:
        if self._file is None:
            raise LedgerClosedError("the fork journal is closed")
        return self._file

    @property
    def byte_count(self) -> int:
        """The length of the journal's file in bytes."""
        return self._end

    @property
    def dirty(self) -> bool:
        """Whether something was appended since the last sync."""
        return self._dirty

    def load(self) -> Iterator[tuple[JournalRef, bytes]]:
        """Yields (place, payload) of every frame in the order of appending; ends at the first that is not whole."""
        offset = JOURNAL_HEADER_BYTES
        while (frame := self._frame_at(offset)) is not None:
            yield frame
            offset = frame[0].end

    def _frame_at(self, offset: int) -> tuple[JournalRef, bytes] | None:
        head = self._files.read(self._open_file, _FRAME.size, offset)
        if len(head) < _FRAME.size:
            return None
        length, checksum = _FRAME.unpack(head)
        if not 0 < length <= LOG_FRAME_BYTES_MAX:
            return None
        payload = self._files.read(self._open_file, length, offset + _FRAME.size)
        if len(payload) < length or self._checksum(offset, payload) != checksum:
            return None
        return JournalRef(offset, length), payload

    def _checksum(self, offset: int, payload: bytes) -> int:
        return crc32(payload, crc32(offset.to_bytes(8, "big"), self._seed))

    def read(self, ref: JournalRef) -> bytes:
        """Returns the payload of the frame at ``ref``.

        Raises CorruptionError where its bytes are not what was written.
        """
        frame = self._frame_at(ref.offset)
        if frame is None or frame[0] != ref:
            raise CorruptionError("a journalled block is damaged", path=str(self._path), offset=ref.offset)
        return frame[1]

    def append(self, payload: bytes) -> JournalRef:
        """Writes one frame and returns its place; the next :meth:`sync` makes it durable.

        Raises StorageFullError or LedgerHaltedError where the write fails, which halts the journal.
        """
        if not 0 < len(payload) <= LOG_FRAME_BYTES_MAX:
            raise InputError(f"a frame of {len(payload)} bytes")
        self._check_writable()
        ref = JournalRef(self._end, len(payload))
        head = _FRAME.pack(len(payload), self._checksum(self._end, payload))
        try:
            self._files.write(self._open_file, [head, payload], self._end)
        except LedgerError:
            self._halted = True
            raise
        self._end = ref.end
        self._dirty = True
        return ref

    def sync(self) -> None:
        """Makes everything appended durable.

        Raises LedgerHaltedError where the device refuses, which halts the journal.
        """
        self._check_writable()
        if not self._dirty:
            return
        try:
            self._files.fdatasync(self._open_file)
        except LedgerError:
            self._halted = True
            raise
        self._dirty = False

    def rewrite(self, kept: Sequence[JournalRef]) -> list[JournalRef]:
        """Replaces the file by one that holds the frames ``kept`` alone, in this order; returns their new places.

        The new file is durable on return; after a crash there is the old one or the new one. Raises StorageFullError
        where the new one finds no space; the old one then stays in use.
        """
        self._check_writable()
        temporary = self._path.with_name(self._path.name + ".tmp")
        self._files.unlink(temporary)
        file = self._files.create(temporary)
        try:
            places = self._copy(file, kept)
            self._files.fdatasync(file)
        except BaseException as error:
            self._halted = not isinstance(error, StorageFullError)
            self._files.close(file)
            raise
        try:
            self._files.rename(temporary, self._path)
            self._files.fsync_dir(self._path.parent)
        except LedgerError:
            self._halted = True
            self._files.close(file)
            raise
        self.close()
        self._file = file
        self._end = places[-1].end if places else JOURNAL_HEADER_BYTES
        self._dirty = False
        return places

    def _copy(self, file: OpenFile, kept: Sequence[JournalRef]) -> list[JournalRef]:
        self._files.write(file, [self._header], 0)
        places: list[JournalRef] = []
        end = JOURNAL_HEADER_BYTES
        for ref in kept:
            payload = self.read(ref)
            self._files.write(file, [_FRAME.pack(ref.length, self._checksum(end, payload)), payload], end)
            places.append(JournalRef(end, ref.length))
            end = places[-1].end
        return places

    def _check_writable(self) -> None:
        if self._file is None:
            raise LedgerClosedError("the fork journal is closed")
        if self._halted:
            raise LedgerHaltedError("an earlier write to the fork journal failed; reopen the ledger")

    def close(self) -> None:
        """Closes the file without a sync. May be called twice."""
        if self._file is not None:
            self._files.close(self._file)
            self._file = None


def _encode_header(chain_id: bytes) -> bytes:
    body = _HEADER.pack(JOURNAL_MAGIC, JOURNAL_FORMAT_VERSION, chain_id, 0)[:-4]
    return body + crc32(body).to_bytes(4, "big")


def _is_header(found: bytes, expected: bytes) -> bool:
    """Whether ``found`` is this journal's header; False where it is damaged."""
    if found == expected:
        return True
    if len(found) < JOURNAL_HEADER_BYTES or crc32(found[:-4]) != int.from_bytes(found[-4:], "big"):
        return False
    _, version, _, _ = _HEADER.unpack(found)
    if version != JOURNAL_FORMAT_VERSION:
        raise FormatVersionError(
            f"the fork journal has format {version}, this release reads {JOURNAL_FORMAT_VERSION}"
        )
    raise InputError("the fork journal is another chain's")

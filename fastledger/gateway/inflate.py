"""Plain bytes of files that may be compressed by xz or gzip, with bounded memory and a count of what was read."""

import io
import lzma
import zlib
from dataclasses import dataclass
from typing import IO, Any

from fastledger.limits import INFLATED_BYTES_FREE, INFLATION_MAX

# Memory an xz stream may ask for its dictionary; real exports use up to 128 MiB.
XZ_MEMORY_BYTES_MAX = 256 * 1024 * 1024
CHUNK_BYTES = 256 * 1024


class InflationError(Exception):
    """A compressed stream that grows to more than any real data does."""


DAMAGE = (lzma.LZMAError, zlib.error, EOFError, InflationError)


@dataclass(slots=True)
class ReadingProgress:
    """The progress of a reading in bytes of the files as they lie on disk, for progress bars."""

    bytes_read: int = 0
    bytes_total: int = 0


class _Counted(io.RawIOBase):
    """A file that adds what is read of it to a ``ReadingProgress``."""

    def __init__(self, file: IO[bytes], progress: ReadingProgress | None) -> None:
        super().__init__()
        self._file = file
        self._progress = progress

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        data = self._file.read(len(buffer))
        buffer[: len(data)] = data
        if self._progress is not None:
            self._progress.bytes_read += len(data)
        return len(data)


class _Inflated(io.RawIOBase):
    """The plain bytes of an xz or gzip stream, produced only as fast as they are asked for.

    Concatenated streams are read as one, as the command-line tools do. Output is bounded per read, and, beyond the
    first ``INFLATED_BYTES_FREE``, to ``INFLATION_MAX`` times the input: no bomb fills the memory with text.
    """

    def __init__(self, file: IO[bytes], *, xz: bool) -> None:
        super().__init__()
        self._file = file
        self._xz = xz
        self._stage: Any = None
        self._input = b""
        self._taken_bytes = 0
        self._given_bytes = 0

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        data = self._read(len(buffer)) if len(buffer) else b""
        buffer[: len(data)] = data
        return len(data)

    def _read(self, size: int) -> bytes:
        while True:
            if self._stage is None:
                if not self._next_input():
                    return b""
                self._stage = _decompressor(self._xz)
            if not self._input and self._stage_needs_input() and not self._next_input():
                raise EOFError("compressed stream ends early")
            data = self._decompress(size)
            if self._stage.eof:
                # xz pads streams with zeros; gzip may be followed by another member.
                self._input = self._stage.unused_data.lstrip(b"\0")
                self._stage = None
            if data:
                return data

    def _stage_needs_input(self) -> bool:
        return bool(self._stage.needs_input) if self._xz else True

    def _next_input(self) -> bool:
        if not self._input:
            self._input = self._file.read(CHUNK_BYTES)
            self._taken_bytes += len(self._input)
        return bool(self._input)

    def _decompress(self, size: int) -> bytes:
        data: bytes = self._stage.decompress(self._input, size)
        self._given_bytes += len(data)
        if self._given_bytes > INFLATED_BYTES_FREE + INFLATION_MAX * self._taken_bytes:
            raise InflationError
        # zlib hands back what it did not use; lzma keeps it.
        self._input = b"" if self._xz else self._stage.unconsumed_tail
        return data


def _decompressor(xz: bool) -> Any:
    if xz:
        return lzma.LZMADecompressor(format=lzma.FORMAT_XZ, memlimit=XZ_MEMORY_BYTES_MAX)
    return zlib.decompressobj(wbits=31)


def plain(file: IO[bytes], progress: ReadingProgress | None = None) -> io.BufferedReader:
    """Returns a buffered reader of the plain bytes, whatever compression the first bytes show."""
    counted: io.BufferedReader = io.BufferedReader(_Counted(file, progress), CHUNK_BYTES)
    magic = counted.peek(6)[:6]
    if magic == b"\xfd7zXZ\0" or magic[:2] == b"\x1f\x8b":
        return io.BufferedReader(_Inflated(counted, xz=magic[:1] == b"\xfd"), CHUNK_BYTES)
    return counted

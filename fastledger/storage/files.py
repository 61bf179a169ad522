"""The few system calls that the storage layer makes, in one place, so that tests can make each of them fail.

Every method that changes the disk turns an ``OSError`` into the error that its caller acts on: no space ->
``StorageFullError``; anything else -> ``LedgerHaltedError``. A failed sync is never tried again: the kernel
may have dropped the dirty pages and marked them clean, so that a second call would succeed without having
written them.
"""

import ctypes
import errno
import os
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from fastledger.errors import LedgerError, LedgerHaltedError, StorageFullError

Buffer = bytes | bytearray | memoryview

ZEROS = bytes(1024 * 1024)
READ_CHUNK_BYTES = len(ZEROS)
BUFFERS_PER_WRITE_MAX = 512  # below IOV_MAX (1,024) everywhere
OPEN_FILES_MAX = 64
TEMPORARY = ".tmp"  # what a file is called before it is whole

# A quota (EDQUOT) and a file-size limit (EFBIG) are "no space" to whoever must act on it.
_FULL = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
_FALLOC_KEEP_SIZE = 0x01
_FALLOC_PUNCH_HOLE = 0x02


class OpenFile(NamedTuple):
    """A descriptor and the path that errors name."""

    fd: int
    path: Path


def storage_error(error: OSError, action: str, path: Path) -> LedgerError:
    """Returns the typed error for a failed system call on ``path``; ``action`` is the verb that its message uses."""
    reason = errno.errorcode.get(error.errno or 0, "error")
    if error.errno in _FULL:
        return StorageFullError(f"no space to {action} {path} ({reason})")
    return LedgerHaltedError(f"cannot {action} {path} ({reason})")


class OsFiles:
    """The system calls of the real operating system.

    A simulator overrides the ``raw_`` methods to make calls fail.
    """

    # The seam.

    def raw_pwritev(self, file: OpenFile, buffers: Sequence[Buffer], offset: int) -> int:
        return os.pwritev(file.fd, buffers, offset)

    def raw_fdatasync(self, file: OpenFile) -> None:
        os.fdatasync(file.fd)

    def raw_fsync_dir(self, path: Path) -> None:
        fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)

    def raw_allocate(self, file: OpenFile, size: int) -> None:
        os.posix_fallocate(file.fd, 0, size)

    def raw_rename(self, source: Path, target: Path) -> None:
        source.rename(target)

    def raw_unlink(self, path: Path) -> None:
        path.unlink(missing_ok=True)

    def raw_create(self, path: Path) -> int:
        return os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)

    # What the storage layer calls.

    def create(self, path: Path) -> OpenFile:
        """Creates an empty file that only its owner may read and write; it must not exist."""
        try:
            return OpenFile(self.raw_create(path), path)
        except OSError as error:
            raise storage_error(error, "create", path) from error

    def open(self, path: Path, *, writable: bool = False) -> OpenFile:
        """Opens an existing file. ``FileNotFoundError`` is left to the caller, for whom it may be ordinary."""
        return OpenFile(os.open(path, (os.O_RDWR if writable else os.O_RDONLY) | os.O_CLOEXEC), path)

    def close(self, file: OpenFile) -> None:
        os.close(file.fd)

    def size(self, file: OpenFile) -> int:
        return os.fstat(file.fd).st_size

    def write(self, file: OpenFile, buffers: Sequence[Buffer], offset: int) -> int:
        """Writes all buffers one after another at ``offset`` and returns how many bytes that was.

        It takes one system call unless the kernel cuts that short.
        """
        total = sum(map(len, buffers))
        if len(buffers) > BUFFERS_PER_WRITE_MAX:
            buffers = [b"".join(buffers)]
        try:
            written = self.raw_pwritev(file, buffers, offset)
            if written != total:
                rest = memoryview(b"".join(buffers))
                while written < total:
                    count = self.raw_pwritev(file, [rest[written:]], offset + written)
                    if count == 0:
                        raise OSError(errno.EIO, "write made no progress")
                    written += count
        except OSError as error:
            raise storage_error(error, "write to", file.path) from error
        return total

    def write_zeros(self, file: OpenFile, offset: int, length: int) -> None:
        zeros = memoryview(ZEROS)
        while length > 0:
            count = self.write(file, [zeros[: min(length, len(ZEROS))]], offset)
            offset += count
            length -= count

    def read(self, file: OpenFile, length: int, offset: int) -> bytes:
        """Returns ``length`` bytes from ``offset``, or fewer where the file ends before."""
        try:
            data = os.pread(file.fd, length, offset)
            while len(data) < length:
                more = os.pread(file.fd, length - len(data), offset + len(data))
                if not more:
                    break
                data += more
        except OSError as error:
            raise storage_error(error, "read", file.path) from error
        return data

    def fdatasync(self, file: OpenFile) -> None:
        """Puts the file's bytes on the device.

        Raises LedgerHaltedError where that fails; it is never tried again.
        """
        try:
            self.raw_fdatasync(file)
        except OSError as error:
            reason = errno.errorcode.get(error.errno or 0, "error")
            raise LedgerHaltedError(f"sync of {file.path} failed ({reason}); reopen the ledger") from error

    def fsync_dir(self, path: Path) -> None:
        """Puts the directory's entries on the device. Raises LedgerHaltedError where that fails."""
        try:
            self.raw_fsync_dir(path)
        except OSError as error:
            raise LedgerHaltedError(f"sync of directory {path} failed; reopen the ledger") from error

    def allocate(self, file: OpenFile, size: int) -> None:
        """Reserves ``size`` zero bytes, so that later writes neither grow the file nor run out of space."""
        try:
            self.raw_allocate(file, size)
        except OSError as error:
            raise storage_error(error, "allocate", file.path) from error

    def rename(self, source: Path, target: Path) -> None:
        try:
            self.raw_rename(source, target)
        except OSError as error:
            raise storage_error(error, "rename", source) from error

    def unlink(self, path: Path) -> None:
        try:
            self.raw_unlink(path)
        except OSError as error:
            raise storage_error(error, "unlink", path) from error

    def make_dir(self, path: Path) -> None:
        try:
            path.mkdir(mode=0o700, parents=True, exist_ok=True)
        except OSError as error:
            raise storage_error(error, "create directory", path) from error

    def names(self, path: Path) -> list[str]:
        """Returns the names in a directory, in no order; an empty list where there is no directory."""
        return [entry.name for entry in path.iterdir()] if path.is_dir() else []

    def punch_hole(self, file: OpenFile, offset: int, length: int) -> bool:
        """Gives the whole pages of a zeroed range back to the file system.

        Returns False where it cannot take them.
        """
        if _fallocate is None:
            return False
        return _fallocate(file.fd, _FALLOC_PUNCH_HOLE | _FALLOC_KEEP_SIZE, offset, length) == 0

    def random_bytes(self, count: int) -> bytes:
        return os.urandom(count)

    def create_whole(self, path: Path, size: int, header: bytes) -> None:
        """Creates a file of ``size`` bytes that begins with ``header``, durable on return.

        After a crash the file is there with all its bytes, or not at all.
        """

        def fill(file: OpenFile) -> None:
            if size:
                self.allocate(file, size)
            self.write(file, [header], 0)

        self._create_whole(path, fill)

    def create_streamed(self, path: Path, pieces: Iterable[Buffer]) -> None:
        """Creates a file of the ``pieces`` one after another, each written before the next is made.

        Durable on return. After a crash the file is there with all its bytes, or not at all.
        """

        def fill(file: OpenFile) -> None:
            end = 0
            for piece in pieces:
                end += self.write(file, [piece], end)

        self._create_whole(path, fill)

    def _create_whole(self, path: Path, fill: Callable[[OpenFile], None]) -> None:
        temporary = path.with_name(path.name + TEMPORARY)
        self.unlink(temporary)
        file = self.create(temporary)
        try:
            fill(file)
            self.fdatasync(file)
        except LedgerError:
            self._discard(temporary)
            raise
        finally:
            self.close(file)
        self.rename(temporary, path)
        self.fsync_dir(path.parent)

    def _discard(self, path: Path) -> None:
        """Unlinks a file on the way out of an error. A failure of this is not reported: the first error is."""
        try:
            self.unlink(path)
        except LedgerError:
            return

    def first_nonzero(self, file: OpenFile, start: int, end: int) -> int | None:
        """Returns the offset of the first byte in [start, end) that is not zero, or None."""
        while start < end:
            chunk = self.read(file, min(READ_CHUNK_BYTES, end - start), start)
            if not chunk:
                return None
            if chunk != ZEROS[: len(chunk)]:
                return start + len(chunk) - len(chunk.lstrip(b"\0"))
            start += len(chunk)
        return None

    def end_of_data(self, file: OpenFile, start: int, end: int) -> int:
        """Returns the offset behind the last byte in [start, end) that is not zero; ``start`` if all are zero."""
        found = start
        while start < end:
            chunk = self.read(file, min(READ_CHUNK_BYTES, end - start), start)
            if not chunk:
                break
            if chunk != ZEROS[: len(chunk)]:
                found = start + len(chunk.rstrip(b"\0"))
            start += len(chunk)
        return found


def _load_fallocate() -> Callable[[int, int, int, int], int] | None:
    """``fallocate(2)``, which the os module does not have; None on a C library without it."""
    function = getattr(ctypes.CDLL(None, use_errno=True), "fallocate", None)
    if function is None:
        return None
    function.argtypes = (ctypes.c_int, ctypes.c_int, ctypes.c_longlong, ctypes.c_longlong)
    function.restype = ctypes.c_int
    call: Callable[[int, int, int, int], int] = function
    return call


_fallocate = _load_fallocate()


class FileCache:
    """Keeps descriptors of numbered files open, at most so many; none is closed while somebody reads through it."""

    def __init__(
        self, files: OsFiles, path_of: Callable[[int], Path], *, open_max: int = OPEN_FILES_MAX
    ) -> None:
        self._files = files
        self._path_of = path_of
        self._open_max = open_max
        self._lock = threading.Lock()
        self._open: OrderedDict[int, OpenFile] = OrderedDict()
        self._leases: dict[int, int] = {}
        self._doomed: set[int] = set()
        self._closed = False

    @contextmanager
    def lease(self, number: int, *, writable: bool = False) -> Iterator[OpenFile]:
        """Yields the file ``number``, open for the length of the block.

        Raises ``FileNotFoundError`` if it does not exist.
        """
        file, key = self._take(number, writable)
        try:
            yield file
        finally:
            with self._lock:
                self._leases[key] -= 1
                if not self._leases[key]:
                    del self._leases[key]
                    if self._closed or key in self._doomed:
                        self._doomed.discard(key)
                        self._files.close(self._open.pop(key))

    def _take(self, number: int, writable: bool) -> tuple[OpenFile, int]:
        # Two descriptors at most per number: the writer's must not depend on who read first.
        key = number * 2 + writable
        with self._lock:
            file = self._open.get(key)
            if file is None:
                file = self._files.open(self._path_of(number), writable=writable)
                self._open[key] = file
                self._evict()
            self._open.move_to_end(key)
            self._leases[key] = self._leases.get(key, 0) + 1
        return file, key

    def _evict(self) -> None:
        for key in list(self._open)[: max(0, len(self._open) - self._open_max)]:
            if key not in self._leases:
                self._files.close(self._open.pop(key))

    def forget(self, number: int) -> None:
        """Closes the descriptors of a file that is about to be unlinked, each when its last reader has left it."""
        with self._lock:
            for key in {number * 2, number * 2 + 1} & self._open.keys():
                if key in self._leases:
                    self._doomed.add(key)
                else:
                    self._files.close(self._open.pop(key))

    def close(self) -> None:
        """Closes every file; one that is being read is closed when its last reader has left it."""
        self._closed = True
        for number in {key // 2 for key in list(self._open)}:
            self.forget(number)

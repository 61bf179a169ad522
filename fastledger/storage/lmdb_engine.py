"""LMDB 0.9 through its C functions: single calls with the GIL held, batches with one release of it.

py-lmdb drops the GIL around every single get and put. Beside one busy Python thread each of those calls then
waits for the GIL again: measured, a get of 1 µs takes 600 µs and a put of 0.5 µs takes 150 to 2,000. Calls
this short must keep the GIL; batches, commit, sync and open let it go. The engine is
the one bundled with py-lmdb: its shared object exports the table of functions that the binding itself goes
through (``MdbApi`` in its ``mdb_api.h``), which names its own version. Its layout may
change with any release but those of 3.0: another one is refused with a typed error.

Nothing here is checked by the C side: a :class:`LmdbTransaction` refuses calls after its end, an
:class:`Environment` ends its transactions before it closes, and nobody else may call the functions.
"""

import ctypes
import errno
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Self, cast

import lmdb

from fastledger._native.lmdb_batch import PostingRuns, get_many, put_many
from fastledger.errors import (
    CorruptionError,
    FormatVersionError,
    InstallationError,
    LedgerBusyError,
    LedgerClosedError,
    LedgerError,
    LedgerHaltedError,
    LedgerLockedError,
    StorageFullError,
)
from fastledger.storage.files import storage_error

_LMDB_RELEASE = "3.0."
_ENGINE = (0, 9)
_TABLE = "lmdb_api_v09"
_DATA_VERSION = 1
_FUNCTIONS = (
    *("env_create", "env_open", "env_close", "env_copy2", "env_copyfd2", "env_copy3", "env_copyfd3"),
    *("env_sync", "env_stat", "env_info", "env_get_flags", "env_set_flags", "env_get_maxkeysize"),
    *("env_get_maxreaders", "env_get_path", "env_set_mapsize", "env_set_maxdbs", "env_set_maxreaders"),
    *("reader_check", "reader_list"),
    *("txn_begin", "txn_commit", "txn_abort", "txn_reset", "txn_renew", "txn_id"),
    *("dbi_open", "dbi_flags", "dbi_close", "drop", "get", "put", "del", "stat"),
    *("cursor_open", "cursor_close", "cursor_get", "cursor_put", "cursor_del", "cursor_count"),
    *("strerror", "version"),
)

_ENV_NOMETASYNC = 0x40000
_ENV_RDONLY = 0x20000
_ENV_NOTLS = 0x200000  # a read transaction belongs to its object, not to its thread
_TXN_RDONLY = 0x20000
_DBI_CREATE = 0x40000
CURSOR_FIRST, CURSOR_LAST, CURSOR_NEXT, CURSOR_PREV, CURSOR_SET_RANGE = 0, 6, 8, 12, 17

_NOTFOUND = -30798
_FULL = frozenset({28, 122, 27, -30792})  # ENOSPC, EDQUOT, EFBIG, MDB_MAP_FULL
_CORRUPTED = -30796
_CORRUPT = frozenset({-30793, _CORRUPTED, -30797})  # MDB_INVALID, MDB_CORRUPTED, MDB_PAGE_NOTFOUND
_HALT = frozenset({5, -30795})  # EIO, MDB_PANIC
_VERSION_MISMATCH = -30794
_READERS_FULL = -30790
_RETRY_AFTER_MS = 100
_PAGE_BYTES = 4096
_DATA_NAME = "data.mdb"
_LOCK_NAME = "lock.mdb"
_LOCK_READER_BYTES = 64
_LOCK_BYTES = 128  # before the first reader

_pointer, _uint, _size = ctypes.c_void_p, ctypes.c_uint, ctypes.c_size_t


class _Value(ctypes.Structure):
    """LMDB's ``MDB_val`` for an argument; keeps the bytes object alive."""

    _fields_ = (("size", _size), ("data", ctypes.c_char_p))


class _Result(ctypes.Structure):
    """LMDB's ``MDB_val`` for a result: an address in the map and a length."""

    _fields_ = (("size", _size), ("data", _pointer))


class _Stat(ctypes.Structure):
    _fields_ = (
        ("page_bytes", _uint),
        ("depth", _uint),
        ("branch_pages", _size),
        ("leaf_pages", _size),
        ("overflow_pages", _size),
        ("entries", _size),
    )


class _Info(ctypes.Structure):
    _fields_ = (
        ("map_address", _pointer),
        ("map_bytes", _size),
        ("last_page", _size),
        ("last_transaction", _size),
        ("readers_max", _uint),
        ("readers", _uint),
    )


_Call = Callable[..., int]


def _wrong_lmdb(problem: str) -> InstallationError:
    return InstallationError(f"{problem}: pip install --only-binary lmdb 'lmdb>=3.0,<3.1'")


class _Api:
    """The function table of the bundled engine."""

    def __init__(self) -> None:
        if not lmdb.__version__.startswith(_LMDB_RELEASE):
            raise _wrong_lmdb(f"lmdb {lmdb.__version__} is not of the releases {_LMDB_RELEASE}x")
        binding = find_spec("lmdb.cpython")
        if binding is None or binding.origin is None:
            raise _wrong_lmdb("lmdb is installed without its C extension")
        try:
            table = (ctypes.c_char * 0).in_dll(ctypes.PyDLL(binding.origin), _TABLE)
        except (OSError, ValueError):
            raise _wrong_lmdb(f"lmdb {lmdb.__version__} has no {_TABLE}") from None
        base = ctypes.addressof(table)
        version = tuple((ctypes.c_int * 4).from_address(base))
        if version[:2] != _ENGINE or version[3] != _DATA_VERSION:
            raise _wrong_lmdb(f"the LMDB engine is {version}, not {_ENGINE}")
        self._table = table
        pointers = (_pointer * len(_FUNCTIONS)).from_address(base + 4 * ctypes.sizeof(ctypes.c_int))
        self.address = {name: cast(int, pointers[n]) for n, name in enumerate(_FUNCTIONS)}
        self._bind_environment()
        self._bind_data()

    def _held(self, name: str, *types: Any, result: Any = ctypes.c_int) -> _Call:
        return cast(_Call, ctypes.PYFUNCTYPE(result, *types)(self.address[name]))

    def _released(self, name: str, *types: Any, result: Any = ctypes.c_int) -> _Call:
        return cast(_Call, ctypes.CFUNCTYPE(result, *types)(self.address[name]))

    def _bind_environment(self) -> None:
        self.env_create = self._held("env_create", _pointer)
        self.env_open = self._released("env_open", _pointer, ctypes.c_char_p, _uint, _uint)
        self.env_close = self._released("env_close", _pointer, result=None)
        self.env_sync = self._released("env_sync", _pointer, ctypes.c_int)
        self.env_info = self._held("env_info", _pointer, _pointer)
        self.env_stat = self._held("env_stat", _pointer, _pointer)
        self.env_set_mapsize = self._held("env_set_mapsize", _pointer, _size)
        self.env_set_maxdbs = self._held("env_set_maxdbs", _pointer, _uint)
        self.env_set_maxreaders = self._held("env_set_maxreaders", _pointer, _uint)
        self.reader_check = self._held("reader_check", _pointer, _pointer)
        self.strerror = self._held("strerror", ctypes.c_int, result=ctypes.c_char_p)

    def _bind_data(self) -> None:
        self.write_begin = self._released("txn_begin", _pointer, _pointer, _uint, _pointer)
        self.read_begin = self._held("txn_begin", _pointer, _pointer, _uint, _pointer)
        self.commit = self._released("txn_commit", _pointer)
        self.abort = self._held("txn_abort", _pointer, result=None)
        self.reset = self._held("txn_reset", _pointer, result=None)
        self.renew = self._held("txn_renew", _pointer)
        self.dbi_open = self._held("dbi_open", _pointer, ctypes.c_char_p, _uint, _pointer)
        self.get = self._held("get", _pointer, _uint, _pointer, _pointer)
        self.delete = self._held("del", _pointer, _uint, _pointer, _pointer)
        self.stat = self._held("stat", _pointer, _uint, _pointer)
        self.cursor_open = self._held("cursor_open", _pointer, _uint, _pointer)
        self.cursor_close = self._held("cursor_close", _pointer, result=None)
        self.cursor_get = self._held("cursor_get", _pointer, _pointer, _pointer, _uint)

    def error(self, code: int, path: Path) -> LedgerError:
        """Returns the typed error for a code of LMDB's or the system's."""
        reason = (cast(bytes | None, self.strerror(code)) or b"").decode("ascii", "replace")
        message = f"{reason} ({code})"
        if code in _FULL or (code == errno.EIO and _is_full(path)):
            return StorageFullError(f"{path}: {message}")
        if code in _CORRUPT:
            return CorruptionError(message, path=str(path))
        if code in _HALT:
            return LedgerHaltedError(f"{path}: {message}")
        if code == _VERSION_MISMATCH:
            return FormatVersionError(f"{path}: {message}")
        if code == _READERS_FULL:
            return LedgerBusyError(f"{path}: {message}", retry_after_ms=_RETRY_AFTER_MS)
        return LedgerError(f"{path}: {message}")


def _reserve(path: Path, size: int) -> None:
    """Gives LMDB's lock file its disk blocks. Raises StorageFullError where the disk has none.

    LMDB makes the file sparse and writes to it through a memory map: on a full disk the first reader to use a new
    page of it would end the process.
    """
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        os.posix_fallocate(fd, 0, size)
    except OSError as error:
        raise storage_error(error, "allocate", path) from error
    finally:
        os.close(fd)


def _is_full(path: Path) -> bool:
    """Whether the file cannot grow by one more page, be it for the disk, a quota or a limit.

    LMDB reports a write that was cut short, as the last one on a filling disk is, as an I/O error.
    """
    data = path / _DATA_NAME
    fd = os.open(data, os.O_RDWR | os.O_CLOEXEC)
    try:
        os.posix_fallocate(fd, os.fstat(fd).st_size, _PAGE_BYTES)
    except OSError as error:
        return isinstance(storage_error(error, "extend", data), StorageFullError)
    finally:
        os.close(fd)
    return False


def _mapping_of(path: Path) -> tuple[int, int]:
    """Returns the addresses between which this process has mapped a file from offset 0; (0, 0) if not known."""
    inode = path.stat().st_ino
    try:
        lines = Path("/proc/self/maps").read_bytes().splitlines()
    except OSError:
        return 0, 0
    for line in lines:
        addresses, _, offset, _, number = line.split(maxsplit=5)[:5]
        if int(number) == inode and not int(offset, 16):
            start, end = addresses.split(b"-")
            return int(start, 16), int(end, 16)
    return 0, 0


_paths_lock = threading.Lock()
_open_paths: set[Path] = set()


# Before anything is written, an lmdb that cannot be used is an error of the import.
_API = _Api()


class LmdbTransaction:
    """One LMDB transaction. A read transaction may move between threads but is used by one at a time."""

    def __init__(self, environment: "Environment", handle: int) -> None:
        self._environment = environment
        self._api = environment.api
        self._handle: int | None = handle
        self._key = _Value()
        self._value = _Result()
        self._key_at = ctypes.addressof(self._key)
        self._value_at = ctypes.addressof(self._value)

    @property
    def handle(self) -> int:
        if self._handle is None:
            raise LedgerClosedError("the read snapshot or its index is closed")
        return self._handle

    def check(self, code: int) -> None:
        if code:
            raise self._api.error(code, self._environment.path)

    def get(self, database: int, key: bytes) -> bytes | None:
        """Returns a copy of the value; None if there is no such key."""
        if not key:
            return None
        self._key.size, self._key.data = len(key), key
        code = self._api.get(self.handle, database, self._key_at, self._value_at)
        if code == _NOTFOUND:
            return None
        self.check(code)
        return self.copy(self._value)

    def copy(self, found: _Result) -> bytes:
        """Returns the bytes that LMDB points at. Raises CorruptionError where they would end beyond the file.

        LMDB takes lengths from the page unchecked. A flipped bit in one may lead beyond the end of the file, where a
        read would end the process.
        """
        environment = self._environment
        if found.data + found.size > environment.file_end and not environment.holds(found.data, found.size):
            raise CorruptionError("a value that leads beyond the file: reindex", path=str(environment.path))
        return ctypes.string_at(found.data, found.size)

    def count(self, database: int) -> int:
        stat = _Stat()
        self.check(self._api.stat(self.handle, database, ctypes.addressof(stat)))
        return int(stat.entries)

    def get_many(self, database: int, keys: list[bytes]) -> list[bytes | None]:
        """Returns copies of the values, in order; None for a key that is not there. The GIL is released once."""
        self._environment.find_end()
        found = get_many(
            self._api.address["get"], self.handle, database, keys, *self._environment.mapped, _CORRUPTED
        )
        if isinstance(found, int):
            raise self._api.error(found, self._environment.path)
        return found

    def put_many(self, database: int, keys: list[bytes], values: list[bytes]) -> int:
        """Puts pairs, given in any order; returns about how many leaf pages that wrote to.

        The GIL is released once.
        """
        api = self._api.address
        with self.cursor(database) as cursor:
            code, pages = put_many(api["cursor_put"], api["cursor_get"], cursor.address, keys, values)
        self.check(code)
        return pages

    def put_runs(self, database: int, runs: PostingRuns, runs_max: int) -> int:
        """Puts up to ``runs_max`` runs of postings (``keys.py``); else as :meth:`put_many`."""
        api = self._api.address
        with self.cursor(database) as cursor:
            code, pages = runs.put(api["cursor_put"], api["cursor_get"], cursor.address, runs_max)
        self.check(code)
        return pages

    def delete_many(self, database: int, keys: list[bytes]) -> int:
        """Deletes the keys that are there; returns how many leaf pages that wrote to at most."""
        for key in keys:
            self._key.size, self._key.data = len(key), key
            code = self._api.delete(self.handle, database, self._key_at, None)
            if code != _NOTFOUND:
                self.check(code)
        return len(keys)

    @contextmanager
    def cursor(self, database: int) -> "Iterator[Cursor]":
        cursor = Cursor(self, self._api, database)
        try:
            yield cursor
        finally:
            cursor.close()

    def renew(self) -> None:
        """Moves a read transaction to the newest commit; its cursors must be closed."""
        self._api.reset(self.handle)
        self.check(self._api.renew(self.handle))

    def commit(self) -> None:
        handle, self._handle = self.handle, None
        self.check(self._api.commit(handle))

    def abort(self) -> None:
        """Ends the transaction; harmless when it has ended."""
        handle, self._handle = self._handle, None
        if handle is not None:
            self._api.abort(handle)
        self._environment.ended(self)


class Cursor:
    """A cursor over one database; it is closed before its transaction ends."""

    def __init__(self, transaction: LmdbTransaction, api: _Api, database: int) -> None:
        self._transaction = transaction
        self._api = api
        self._key = _Value()
        self._key_out = _Result.from_buffer(self._key)
        self._value = _Result()
        self._key_at = ctypes.addressof(self._key)
        self._value_at = ctypes.addressof(self._value)
        handle = _pointer()
        transaction.check(api.cursor_open(transaction.handle, database, ctypes.byref(handle)))
        self._handle = handle.value

    @property
    def address(self) -> int:
        if self._handle is None or not self._transaction.handle:
            raise LedgerClosedError("the cursor is closed")
        return self._handle

    def move(self, operation: int, key: bytes = b"") -> tuple[bytes, bytes] | None:
        """Moves by one of the ``CURSOR_`` operations; returns (key, value) there, None if there is none."""
        self._key.size, self._key.data = len(key), key
        code = self._api.cursor_get(self.address, self._key_at, self._value_at, operation)
        if code == _NOTFOUND:
            return None
        self._transaction.check(code)
        copy = self._transaction.copy
        return copy(self._key_out), copy(self._value)

    def scan(self, start: bytes) -> Iterator[tuple[bytes, bytes]]:
        """Yields (key, value), ascending, from the first key >= ``start``."""
        item = self.move(CURSOR_SET_RANGE, start) if start else self.move(CURSOR_FIRST)
        while item is not None:
            yield item
            item = self.move(CURSOR_NEXT)

    def scan_back(self, start: bytes) -> Iterator[tuple[bytes, bytes]]:
        """Yields (key, value), descending, from the last key <= ``start``."""
        item = self.move(CURSOR_SET_RANGE, start)
        if item is None:
            item = self.move(CURSOR_LAST)
        elif item[0] != start:
            item = self.move(CURSOR_PREV)
        while item is not None:
            yield item
            item = self.move(CURSOR_PREV)

    def close(self) -> None:
        handle, self._handle = self._handle, None
        if handle is not None:
            self._api.cursor_close(handle)


class Environment:
    """One open LMDB environment: one writing thread, many readers. A process may open a path once at a time."""

    def __init__(
        self, path: Path, databases: Sequence[str], *, map_bytes: int, readers_max: int, readonly: bool
    ) -> None:
        self.api = _API
        self.path = path
        self.readonly = readonly
        self.databases: dict[str, int] = {}
        self._identity = path.resolve()
        self._write_lock = threading.Lock()
        self._readers: set[LmdbTransaction] = set()
        self._inside_changed = threading.Condition()
        self._inside = 0  # blocks of read() that are under way
        self._closing = False
        # Addresses: where the map begins and ends and, between, the file; 0 before it is mapped.
        self._map_start = self._map_end = self.file_end = 0
        with _paths_lock:
            if self._identity in _open_paths:
                raise LedgerLockedError(f"{path} is open in this process")
            _open_paths.add(self._identity)
        self._handle: int | None = None
        try:
            self._open(map_bytes, readers_max, databases)
        except BaseException:
            self.close()
            raise

    def _check(self, code: int) -> None:
        if code:
            raise self.api.error(code, self.path)

    def _open(self, map_bytes: int, readers_max: int, databases: Sequence[str]) -> None:
        api, handle = self.api, _pointer()
        self._check(api.env_create(ctypes.byref(handle)))
        self._handle = handle.value
        self._check(api.env_set_mapsize(handle, map_bytes))
        self._check(api.env_set_maxdbs(handle, len(databases)))
        self._check(api.env_set_maxreaders(handle, readers_max))
        # Without the sync of the meta page a power cut may undo the last commit, never half of one.
        flags = _ENV_NOTLS | _ENV_NOMETASYNC | (_ENV_RDONLY if self.readonly else 0)
        if not self.readonly:
            _reserve(self.path / _LOCK_NAME, _LOCK_BYTES + readers_max * _LOCK_READER_BYTES)
        self._check(api.env_open(handle, bytes(self.path), flags, 0o600))
        if not self.readonly:
            self._make_whole()
        self._find_map()
        dead = ctypes.c_int()
        self._check(api.reader_check(handle, ctypes.byref(dead)))
        with self.read() if self.readonly else self.write() as txn:
            for name in databases:
                dbi = _uint()
                flags = 0 if self.readonly else _DBI_CREATE
                self._check(api.dbi_open(txn.handle, name.encode("ascii"), flags, ctypes.byref(dbi)))
                self.databases[name] = dbi.value
            if self.readonly:
                txn.commit()  # only a commit keeps the handles

    def _find_map(self) -> None:
        """Finds the addresses of the memory map, which LMDB does not tell.

        Where the system does not, nothing is checked.
        """
        self._map_start, self._map_end = _mapping_of(self.path / _DATA_NAME)
        self.find_end()

    def _make_whole(self) -> None:
        """Lengthens a data file that was cut short with zeros, which LMDB takes for damage.

        LMDB reads through a memory map, and a read beyond the end of the file would end the process.
        """
        info, stat = _Info(), _Stat()
        self._check(self.api.env_info(self._handle, ctypes.addressof(info)))
        self._check(self.api.env_stat(self._handle, ctypes.addressof(stat)))
        data = self.path / _DATA_NAME
        if data.stat().st_size < (info.last_page + 1) * stat.page_bytes:
            os.truncate(data, (info.last_page + 1) * stat.page_bytes)

    @property
    def mapped(self) -> tuple[int, int]:
        """The address at which the map begins, and the one at which the file in it ended when last asked."""
        return self._map_start, self.file_end

    def find_end(self) -> None:
        """Updates the address at which the file ends in the map: the file may have grown."""
        if self._map_start:
            self.file_end = self._map_start + (self.path / _DATA_NAME).stat().st_size

    def holds(self, address: int, size: int) -> bool:
        """Whether bytes at an address can be read: in the file, or outside the map as a page being written is."""
        self.find_end()
        inside = self._map_start <= address < self._map_end
        return not inside or address + size <= self.file_end

    def _begin(self, flags: int, begin: _Call) -> LmdbTransaction:
        if self._handle is None:
            raise LedgerClosedError(f"{self.path} is closed")
        handle = _pointer()
        self._check(begin(self._handle, None, flags, ctypes.byref(handle)))
        return LmdbTransaction(self, cast(int, handle.value))

    def begin_read(self) -> LmdbTransaction:
        """Begins a read transaction that the caller ends, with ``abort()``, before another thread may close."""
        transaction = self._begin(_TXN_RDONLY, self.api.read_begin)
        self._readers.add(transaction)
        return transaction

    @contextmanager
    def read(self) -> Iterator[LmdbTransaction]:
        """Yields a read transaction for the length of the block, which :meth:`close` waits for."""
        with self._inside_changed:
            if self._closing:
                raise LedgerClosedError(f"{self.path} is closed")
            self._inside += 1
        try:
            transaction = self.begin_read()
            try:
                yield transaction
            finally:
                transaction.abort()
        finally:
            with self._inside_changed:
                self._inside -= 1
                self._inside_changed.notify_all()

    @contextmanager
    def write(self) -> Iterator[LmdbTransaction]:
        """Yields a write transaction, committed at the end of the block; takes everything back if that raises."""
        # Two threads of one process must not meet at LMDB's own mutex: it knows nothing of the GIL.
        with self._write_lock:
            transaction = self._begin(0, self.api.write_begin)
            try:
                yield transaction
            except BaseException:
                transaction.abort()
                raise
            transaction.commit()

    def ended(self, transaction: LmdbTransaction) -> None:
        self._readers.discard(transaction)

    def sync(self) -> None:
        """Makes the meta page of the last commit durable, which a commit alone leaves to the kernel."""
        if self._handle is None:
            raise LedgerClosedError(f"{self.path} is closed")
        self._check(self.api.env_sync(self._handle, 1))

    def close(self) -> None:
        """Waits for those inside :meth:`read`, ends what :meth:`begin_read` gave, and closes.

        The owners of the latter get LedgerClosedError. A value that LMDB has found lies in the memory map: unmapping
        it under a reader would end the process.
        """
        with self._inside_changed:
            self._closing = True
            while self._inside:
                self._inside_changed.wait()
        with self._write_lock:
            for transaction in list(self._readers):
                transaction.abort()
            handle, self._handle = self._handle, None
            if handle is not None:
                self.api.env_close(handle)
        with _paths_lock:
            _open_paths.discard(self._identity)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

"""The ledger directory: its layout, and the lock that lets one process at a time have it.

::

    genesis.cbor   the chain's first bytes, written once (SPEC-LOG-1)
    LOCK           held with flock(2); its text is the pid of the holder
    HEAD  log/     the segment log
    forks/         blocks that are not final, under an engine whose chain can reorganise
    index/         LMDB, derived
    blobs/         the blob store; in it ``orphans``, those that no record names
    uploads/       blobs on their way in
    snapshots/     whole states of the index to start from where the log is pruned
    tmp/           what a running operation needs; emptied on opening
    node.key       the node's own key, if it has one
"""

import contextlib
import fcntl
import os
import shutil
import tempfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from types import TracebackType
from typing import Self

from fastledger.errors import InputError, LedgerClosedError, LedgerLockedError, NotFoundError
from fastledger.storage.files import OsFiles

GENESIS_NAME = "genesis.cbor"
LOCK_NAME = "LOCK"
LOCK_BYTES_MAX = 32

# flock would let one process lock a directory twice after a fork; within a process, this set decides.
_held: set[tuple[int, int]] = set()
_held_lock = threading.Lock()


class LedgerDirectory:
    """The paths of one ledger; holds its lock until closed. The kernel drops the lock of a killed process."""

    def __init__(self, root: Path, lock_fd: int, identity: tuple[int, int], files: OsFiles) -> None:
        self.root = root
        self.genesis_path = root / GENESIS_NAME
        self.node_key_path = root / "node.key"
        self.log_path = root / "log"
        self.index_path = root / "index"
        self.blobs_path = root / "blobs"
        self.orphans_path = self.blobs_path / "orphans"
        self.uploads_path = root / "uploads"
        self.snapshots_path = root / "snapshots"
        self.tmp_path = root / "tmp"
        self._files = files
        self._lock_fd: int | None = lock_fd
        self._identity = identity

    @classmethod
    def create(
        cls,
        root: Path,
        genesis: bytes,
        files: OsFiles | None = None,
        *,
        fill: Callable[[Self], None] = lambda _directory: None,
    ) -> Self:
        """Makes the directory with its ``genesis.cbor``, durable on return, and takes the lock.

        ``fill`` puts in what else belongs there. The genesis comes last: where a creation was interrupted there is
        no ledger, and it can be done again. Raises InputError if a ledger is there already.
        """
        files = files or OsFiles()
        files.make_dir(root)
        directory = cls._locked(root, files)
        try:
            if directory.genesis_path.exists():
                raise InputError(f"{root} holds a ledger already")
            fill(directory)
            files.create_whole(directory.genesis_path, 0, genesis)
            files.fsync_dir(root.absolute().parent)
        except BaseException:
            directory.close()
            raise
        return directory

    @classmethod
    def open(cls, root: Path, files: OsFiles | None = None) -> Self:
        """Takes the lock of the ledger at ``root`` and gives its paths.

        LedgerLockedError names the pid that holds the lock; NotFoundError says that ``root`` holds no ledger.
        """
        if not (root / GENESIS_NAME).is_file():
            raise NotFoundError(f"{root} holds no ledger")
        return cls._locked(root, files or OsFiles())

    @classmethod
    def _locked(cls, root: Path, files: OsFiles) -> Self:
        status = root.stat()
        identity = (status.st_dev, status.st_ino)  # the same directory under any name
        with _held_lock:
            if identity in _held:
                raise LedgerLockedError(f"{root} is open in this process (pid {os.getpid()})")
            fd = _take_lock(root / LOCK_NAME)
            _held.add(identity)
        return cls(root, fd, identity, files)

    def read_genesis(self) -> bytes:
        """Returns the bytes of ``genesis.cbor``, as :meth:`create` was given them."""
        if self._lock_fd is None:
            raise LedgerClosedError(f"{self.root} is closed")
        return self.genesis_path.read_bytes()

    def clear_tmp(self) -> None:
        """Drops what an interrupted operation left in ``tmp/``."""
        shutil.rmtree(self.tmp_path, ignore_errors=True)

    @contextlib.contextmanager
    def workspace(self) -> Iterator[Path]:
        """Makes an empty directory in ``tmp/``, yields its path, and deletes the directory at the end of the block.

        It lies on the file system of the ledger, so that a file made in it can be renamed into place.
        """
        self._files.make_dir(self.tmp_path)
        path = Path(tempfile.mkdtemp(dir=self.tmp_path))
        try:
            yield path
        finally:
            shutil.rmtree(path, ignore_errors=True)

    def close(self) -> None:
        """Drops the lock. The file LOCK stays: unlinking it would let two openers lock two different files."""
        if self._lock_fd is None:
            return
        with _held_lock:
            _held.discard(self._identity)
            with contextlib.suppress(OSError):
                os.ftruncate(self._lock_fd, 0)
            os.close(self._lock_fd)
            self._lock_fd = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _take_lock(path: Path) -> int:
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        holder = os.pread(fd, LOCK_BYTES_MAX, 0).decode("ascii", "replace").strip()
        os.close(fd)
        pid = holder if holder.isdigit() else "unknown"
        raise LedgerLockedError(f"{path.parent} is open in another process (pid {pid})") from error
    # The pid is a courtesy to people; a full disk must not keep a ledger from opening.
    with contextlib.suppress(OSError):
        os.ftruncate(fd, 0)
        os.pwrite(fd, f"{os.getpid()}\n".encode("ascii"), 0)
    return fd

"""Blobs too long for a pack: one file each, written beside its place and renamed into it."""

import os
from collections.abc import Iterator
from contextlib import suppress
from hashlib import sha256
from pathlib import Path

from fastledger.errors import Code, CorruptionError, InputError, LedgerError, NotFoundError
from fastledger.limits import BLOB_BYTES_MAX
from fastledger.storage.files import READ_CHUNK_BYTES, Buffer, OpenFile, OsFiles

_NAME_BYTES = 16


class LargeBlobs:
    """The directory ``files/`` and its anterooms ``tmp/`` and ``erasing/``.

    A name in ``files/`` is a whole, durable blob.
    """

    def __init__(self, path: Path, files: OsFiles) -> None:
        self._path = path / "files"
        self._incoming = path / "tmp"
        self._erasing = path / "erasing"
        self._files = files

    def prepare(self) -> None:
        """Makes the directories, drops what was being written and finishes what was being erased."""
        for path in (self._path, self._incoming, self._erasing):
            self._files.make_dir(path)
        for path in self._incoming.iterdir():
            self._files.unlink(path)
        for path in self._erasing.iterdir():
            self._overwrite(path)

    def path_of(self, digest: bytes) -> Path:
        name = digest.hex()
        return self._path / name[:2] / name[2:]

    def has(self, digest: bytes) -> bool:
        return self.path_of(digest).exists()

    def size(self, digest: bytes) -> int:
        try:
            return self.path_of(digest).stat().st_size
        except FileNotFoundError as error:
            raise NotFoundError(f"no blob {digest.hex()}") from error

    def paths(self) -> list[Path]:
        """Returns the path of every large blob, in digest order."""
        return sorted(self._path.glob("??/*"))

    def writer(self) -> "LargeWriter":
        return LargeWriter(self, self._files, self._incoming / self._files.random_bytes(_NAME_BYTES).hex())

    def adopt(self, source: Path, digest: bytes) -> None:
        """Moves a synced file to the place of ``digest``, durably."""
        target = self.path_of(digest)
        if not target.parent.is_dir():
            self._files.make_dir(target.parent)
            self._files.fsync_dir(self._path)
        self._files.rename(source, target)
        self._files.fsync_dir(target.parent)

    def drop(self, source: Path) -> None:
        """Unlinks a file that was not adopted."""
        self._files.unlink(source)

    def pages(self) -> Iterator[list[bytes]]:
        """Yields the digests of all large blobs, one list for each directory of ``files/``."""
        for folder in sorted(self._path.iterdir()):
            digests = []
            for path in folder.iterdir():
                with suppress(ValueError):
                    digests.append(bytes.fromhex(folder.name + path.name))
            yield digests

    def read(self, digest: bytes, chunk_bytes: int, *, offset: int = 0) -> Iterator[bytes]:
        """Yields the blob from ``offset`` in pieces of ``chunk_bytes``.

        From offset 0 the whole is hashed: CorruptionError at the end if it does not match ``digest``. Raises
        NotFoundError where there is no such blob, or once it is being erased.
        """
        path = self.path_of(digest)
        try:
            file = self._files.open(path)
        except FileNotFoundError as error:
            raise NotFoundError(f"no blob {digest.hex()}") from error
        try:
            hasher = sha256()
            for chunk in self._chunks(file, chunk_bytes, offset):
                # An erasure takes the name before it overwrites: who has it after the read has read no zeros.
                if not _is_at(file, path):
                    raise NotFoundError(f"blob {digest.hex()} is erased")
                if not offset:
                    hasher.update(chunk)
                yield chunk
        finally:
            self._files.close(file)
        if not offset and hasher.digest() != digest:
            raise CorruptionError(f"blob {digest.hex()} is damaged", path=str(path), offset=0)

    def _chunks(self, file: OpenFile, chunk_bytes: int, offset: int) -> Iterator[bytes]:
        while chunk := self._files.read(file, chunk_bytes, offset):
            offset += len(chunk)
            yield chunk

    def erase(self, digest: bytes) -> bool:
        """Takes the name away durably, then overwrites and unlinks the file.

        Returns False if there is no such blob.
        """
        path = self.path_of(digest)
        if not path.exists():
            return False
        target = self._erasing / digest.hex()
        self._files.rename(path, target)
        self._files.fsync_dir(path.parent)
        self._files.fsync_dir(self._erasing)
        self._overwrite(target)
        return True

    def _overwrite(self, path: Path) -> None:
        file = self._files.open(path, writable=True)
        try:
            self._files.write_zeros(file, 0, self._files.size(file))
            self._files.fdatasync(file)
        finally:
            self._files.close(file)
        self._files.unlink(path)
        self._files.fsync_dir(path.parent)

    def verify(self, path: Path) -> list[CorruptionError]:
        """Reads one file and returns the damage found; a blob that is erased meanwhile is no damage."""
        try:
            digest = bytes.fromhex(path.parent.name + path.name)
            for _ in self.read(digest, READ_CHUNK_BYTES):
                pass
        except CorruptionError as error:
            return [error]
        except ValueError:
            return [CorruptionError("file is not named by a digest", path=str(path))]
        except NotFoundError:
            return []
        return []


def _is_at(file: OpenFile, path: Path) -> bool:
    """Whether ``path`` still names the open file."""
    try:
        return os.path.samestat(os.fstat(file.fd), path.stat())
    except FileNotFoundError:
        return False


class LargeWriter:
    """Writes one incoming file, which is created with its first byte."""

    def __init__(self, store: LargeBlobs, files: OsFiles, path: Path) -> None:
        self._store = store
        self._files = files
        self._path = path
        self._file: OpenFile | None = None
        self._hasher = sha256()
        self._length = 0

    def write(self, chunk: Buffer) -> None:
        if self._length + len(chunk) > BLOB_BYTES_MAX:
            raise InputError(f"blob is longer than {BLOB_BYTES_MAX} bytes", code=Code.OVERSIZED)
        if self._file is None:
            self._file = self._files.create(self._path)
        self._files.write(self._file, [chunk], self._length)
        self._hasher.update(chunk)
        self._length += len(chunk)

    def commit(self) -> bytes:
        if self._file is None:
            raise InputError("blob is empty")
        self._files.fdatasync(self._file)
        digest = self._hasher.digest()
        if not self._store.has(digest):
            self._store.adopt(self._path, digest)
        self.discard()
        return digest

    def discard(self) -> None:
        """Closes the file and unlinks it if it was not adopted; harmless when called again."""
        file, self._file = self._file, None
        if file is not None:
            self._files.close(file)
            with suppress(LedgerError):
                self._files.unlink(self._path)

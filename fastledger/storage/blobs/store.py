"""The content-addressed blob store: a blob's name is the SHA-256 of its stored bytes.

::

    packs/00000000.pack   blobs up to BLOB_PACKED_BYTES_MAX, many to a file
    files/ab/cdef...      larger ones, a file each, named by their digest in hex
    index/                LMDB, derived: digest -> place in a pack
    tmp/  erasing/        files on their way in and out

A blob is there when the call that puts it has returned, and then durably (SPEC-BLOB-1). Erasure overwrites
the bytes in place. A device that remaps writes, or a file system that copies on write, may keep old ones: so
what is stored here is meant to be encrypted, and its key to be destroyed as well.
"""

import threading
from collections.abc import Callable, Collection, Generator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from hashlib import sha256
from pathlib import Path
from types import TracebackType
from typing import Self

from fastledger.errors import (
    Code,
    CorruptionError,
    InputError,
    LedgerClosedError,
    LedgerError,
    LedgerHaltedError,
    NotFoundError,
)
from fastledger.limits import BLOB_BYTES_MAX, BLOB_PACK_BYTES, BLOB_PACKED_BYTES_MAX
from fastledger.storage.blobs.index import BlobIndex, Location
from fastledger.storage.blobs.large import LargeBlobs, LargeWriter
from fastledger.storage.blobs.packs import (
    ALIGNMENT,
    DIGEST_BYTES,
    KIND_ERASED,
    KIND_LIVE,
    PACK_HEADER_BYTES,
    PackFiles,
    blob_bytes,
)
from fastledger.storage.files import READ_CHUNK_BYTES, Buffer, OsFiles
from fastledger.storage.verify import ERRORS_MAX, LogProgress

HashMany = Callable[[Sequence[Buffer]], list[bytes]]
Unwanted = Callable[[Sequence[bytes]], Collection[bytes]]
Arriving = Callable[[Sequence[bytes]], None]
INDEX_NAME = "index"
PENDING_BLOBS_MAX = 8_192  # indexed together; they are scanned again after a crash
WALK_PAGE = 512


def _nothing(_digests: Sequence[bytes]) -> tuple[()]:
    """Answers for a caller that gave no ``unwanted``: no blob is unwanted."""
    return ()


def _ignore(_digests: Sequence[bytes]) -> None:
    """Stands in for the ``arriving`` of a caller that gave none: tells nobody."""


def hash_each(blobs: Sequence[Buffer]) -> list[bytes]:
    """Returns the SHA-256 of each blob, in order."""
    return [sha256(blob).digest() for blob in blobs]


@dataclass(frozen=True, slots=True)
class BlobStats:
    """Counts of a store's blobs and files. Bytes are the lengths of the files, erased ranges included."""

    packed: int
    packs: int
    pack_bytes: int
    large: int
    large_bytes: int


class BlobStore:
    """An open store: one put or erase at a time, any number of readers."""

    def __init__(
        self,
        packs: PackFiles,
        large: LargeBlobs,
        index: BlobIndex,
        hash_many: HashMany,
        *,
        packed_bytes_max: int,
        readonly: bool,
    ) -> None:
        self._packs = packs
        self._large = large
        self._index = index
        self._hash_many = hash_many
        self._packed_bytes_max = packed_bytes_max
        self._readonly = readonly
        self._lock = threading.Lock()
        self._pending: dict[bytes, Location] = {}  # durable, not yet indexed
        self._erasures = 0
        self._halted = False
        self._closed = False

    @classmethod
    def open(
        cls,
        path: Path,
        files: OsFiles | None = None,
        *,
        hash_many: HashMany = hash_each,
        readonly: bool = False,
        pack_bytes: int = BLOB_PACK_BYTES,
        packed_bytes_max: int = BLOB_PACKED_BYTES_MAX,
    ) -> Self:
        """Opens the store at ``path`` and makes it where there is none.

        Erasures that were under way are finished, and blobs that a crash left unindexed are indexed. ``hash_many``
        may be a native function; ``pack_bytes`` is the size of packs to come. ``readonly``: NotFoundError where
        there is no store.
        """
        files = files or OsFiles()
        if not 0 < packed_bytes_max <= pack_bytes - PACK_HEADER_BYTES - blob_bytes(0) - ALIGNMENT:
            raise InputError(f"blobs of {packed_bytes_max} bytes do not fit packs of {pack_bytes}")
        if readonly and not path.is_dir():
            raise NotFoundError(f"{path} holds no blob store")
        packs = PackFiles(path / "packs", files, pack_bytes)
        large = LargeBlobs(path, files)
        if not readonly:
            files.make_dir(packs.path)
            large.prepare()
        index = BlobIndex(path / INDEX_NAME, readonly=readonly)
        store = cls(packs, large, index, hash_many, packed_bytes_max=packed_bytes_max, readonly=readonly)
        try:
            store._recover()
        except BaseException:
            packs.close()
            index.close()
            raise
        return store

    @staticmethod
    def destroy_index(path: Path) -> None:
        """Makes the next opening of a closed store index its packs anew; erasures that are under way are forgotten."""
        BlobIndex.destroy(path / INDEX_NAME)

    def _recover(self) -> None:
        if not self._readonly:
            for digest, location in self._index.erasures():
                self._packs.erase(digest, *location)
                self._index.end_erasure(digest)
        first, start = self._index.position()
        numbers = [number for number in self._packs.numbers() if number >= first]
        for number in numbers:
            if number == numbers[-1]:
                found = self._packs.open_last(start, readonly=self._readonly)
            else:
                found = self._packs.scan_pack(number, start)
            start = 0
            for blob in found:
                if blob.kind == KIND_LIVE:
                    self._pending[blob.digest] = Location(blob.pack, blob.offset, blob.length)
            if not self._readonly and len(self._pending) >= PENDING_BLOBS_MAX:
                self._flush(self._packs.position if number == numbers[-1] else (number + 1, 0))

    def put_many(
        self, blobs: Sequence[Buffer], *, unwanted: Unwanted = _nothing, arriving: Arriving = _ignore
    ) -> list[bytes]:
        """Stores blobs and returns their digests (32 bytes each), in the order given; all are durable on return.

        The small ones become so by one sync. Bytes that are stored already are not stored again, nor are those that
        ``unwanted`` picks of the digests that it is asked about: no erasure runs between its answer and the store's.
        ``arriving`` is told every digest, of blobs that are stored already too: no erasure runs between that and the
        look whether the blob is there. Raises InputError if a blob is longer than BLOB_BYTES_MAX.
        """
        blobs = [blob.cast("B") if isinstance(blob, memoryview) else blob for blob in blobs]
        for blob in blobs:
            if len(blob) > BLOB_BYTES_MAX:
                raise InputError(f"blob of {len(blob)} bytes is too long", code=Code.OVERSIZED)
        digests = self._hash_many(blobs)
        small: dict[bytes, Buffer] = {}
        for digest, blob in zip(digests, blobs, strict=True):
            if len(blob) <= self._packed_bytes_max:
                small[digest] = blob
            elif not self._arrives(digest, arriving):
                self._put_large(digest, blob, unwanted)
        if small:
            with self._lock:
                arriving(list(small))
                self._put_small(small, unwanted)
        return digests

    def _arrives(self, digest: bytes, arriving: Arriving) -> bool:
        """Announces a large blob; returns whether it is stored already."""
        with self._lock:
            arriving([digest])
            return self._large.has(digest)

    def adopt(
        self,
        source: Path,
        digest: bytes,
        *,
        unwanted: Unwanted = _nothing,
        arriving: Arriving = _ignore,
    ) -> None:
        """Takes over a synced file of the same file system, whose SHA-256 the caller has found to be ``digest``.

        A large one is moved, a small one copied into a pack. On return the blob is durable (or unwanted) and the
        file is gone; after a crash before that, adopting again is harmless. Raises InputError as in
        :meth:`put_many`.
        """
        length = source.stat().st_size
        if length > BLOB_BYTES_MAX:
            raise InputError(f"blob of {length} bytes is too long", code=Code.OVERSIZED)
        if length <= self._packed_bytes_max:
            if self.put_many([source.read_bytes()], unwanted=unwanted, arriving=arriving) != [digest]:
                raise CorruptionError("the file is not what it was found to be", path=str(source))
            self._large.drop(source)
            return
        with self._lock:
            self._check_writable()
            arriving([digest])
            if self._large.has(digest) or unwanted([digest]):
                self._large.drop(source)
            else:
                self._large.adopt(source, digest)

    def _put_small(self, blobs: dict[bytes, Buffer], unwanted: Unwanted) -> None:
        self._check_writable()
        present = self._present(blobs)
        new = {digest: blob for digest, blob in blobs.items() if digest not in present}
        for digest in unwanted(list(new)) if new else ():
            del new[digest]
        if not new:
            return
        try:
            placed = self._packs.append(list(new), list(new.values()))
            self._packs.sync()
        except BaseException:  # an interrupt, too, leaves the pack and what is known of it apart
            self._halted = True
            raise
        for blob in placed:
            self._pending[blob.digest] = Location(blob.pack, blob.offset, blob.length)
        if len(self._pending) >= PENDING_BLOBS_MAX:
            self._flush(self._packs.position)

    def _put_large(self, digest: bytes, blob: Buffer, unwanted: Unwanted) -> None:
        with self.open_writer() as writer:
            writer.write(blob)
            with self._lock:
                if not unwanted([digest]):
                    writer.commit()

    def open_writer(self) -> "BlobWriter":
        """Returns a writer for a blob that comes in pieces.

        The blob is not there before the writer's ``commit()``.
        """
        self._check_writable()
        return BlobWriter(self, self._large.writer(), self._packed_bytes_max)

    def get(self, digest: bytes) -> bytes:
        """Returns a blob's bytes.

        Raises NotFoundError if it is not there (any more), CorruptionError if they no longer match.
        """
        self._check_open()
        location = self._locate(digest)
        if location is None:
            return b"".join(self._large.read(digest, READ_CHUNK_BYTES))
        data = self._packs.read(*location)
        if sha256(data).digest() == digest:
            return data
        header = self._packs.header(location.pack, location.offset)
        if header is not None and header.kind == KIND_ERASED:
            raise NotFoundError(f"blob {digest.hex()} is erased")
        name = str(self._packs.path_of(location.pack))
        raise CorruptionError(f"blob {digest.hex()} is damaged", path=name, offset=location.offset)

    def open_reader(
        self, digest: bytes, chunk_bytes: int = READ_CHUNK_BYTES, *, offset: int = 0
    ) -> Generator[bytes, None, None]:
        """Yields the blob from ``offset`` in pieces, then raises CorruptionError if they do not hash to ``digest``.

        The pieces of a large blob from an offset other than 0 are not checked: a caller that resumes has the
        beginning and checks the whole. No piece is read from what is being overwritten: an erasure on the way raises
        NotFoundError.
        """
        self._check_open()
        if self._locate(digest) is None:
            yield from self._large.read(digest, chunk_bytes, offset=offset)
            return
        data = self.get(digest)
        for at in range(offset, len(data), chunk_bytes):
            yield data[at : at + chunk_bytes]

    def has(self, digest: bytes) -> bool:
        self._check_open()
        return self._locate(digest) is not None or self._large.has(digest)

    def missing(self, digests: Sequence[bytes]) -> list[bytes]:
        """Returns those of the digests whose blobs are not there, in the order given."""
        self._check_open()
        present = self._present(digests)
        return [digest for digest in digests if digest not in present and not self._large.has(digest)]

    def size(self, digest: bytes) -> int:
        """Returns a blob's length in bytes. Raises NotFoundError if it is not there."""
        self._check_open()
        location = self._locate(digest)
        return self._large.size(digest) if location is None else location.length

    def _locate(self, digest: bytes) -> Location | None:
        if len(digest) != DIGEST_BYTES:
            raise InputError(f"digest has {len(digest)} bytes")
        # Pending first: a flush indexes before it clears.
        return self._pending.get(digest) or self._index.find(digest)

    def _present(self, digests: Sequence[bytes] | dict[bytes, Buffer]) -> set[bytes]:
        pending = self._pending
        found = {digest for digest in digests if digest in pending}
        return found | self._index.present(digest for digest in digests if digest not in found)

    def erase(self, digest: bytes, *, if_still: Callable[[], bool] = lambda: True) -> bool:
        """Overwrites the blob, durably; returns False if it is not there: erasing twice is harmless.

        From the first step on nobody finds the blob; a crash at any step is finished by the next opening. Nothing is
        erased where ``if_still`` returns False: no put runs between its answer and the erasure.
        """
        with self._lock:
            self._check_writable()
            if not if_still():
                return False
            location = self._locate(digest)
            self._erasures += 1
            if location is None:
                return self._large.erase(digest)
            try:
                self._index.begin_erasure(digest, location)
                self._pending.pop(digest, None)
                self._packs.erase(digest, *location)
                self._index.end_erasure(digest)
            except LedgerError:
                self._halted = True
                raise
            return True

    def walk(self) -> Iterator[list[bytes]]:
        """Yields the digests of all blobs in pages; the walk may miss what comes or goes meanwhile.

        A page of packed blobs has at most WALK_PAGE digests; one of large blobs has those of one directory.
        """
        self._check_open()
        pending = list(self._pending)
        for at in range(0, len(pending), WALK_PAGE):
            yield pending[at : at + WALK_PAGE]
        page = self._index.after(b"", WALK_PAGE)
        while page:
            yield [digest for digest, _ in page]
            page = self._index.after(page[-1][0], WALK_PAGE)
        yield from self._large.pages()

    def flush(self) -> None:
        """Indexes the latest blobs. Nothing is lost without it; the next opening is faster with it."""
        with self._lock:
            self._check_writable()
            self._flush(self._packs.position)

    def _flush(self, position: tuple[int, int]) -> None:
        self._index.add(self._pending, position)
        self._pending = {}

    @property
    def erasures(self) -> int:
        """How many erasures this store has begun. A copy made between two equal readings of it is whole."""
        return self._erasures

    @contextmanager
    def held(self) -> Iterator[tuple[int, int]]:
        """Keeps puts and erasures waiting for the length of the block.

        Yields the (pack, offset) up to which the packs are durable.
        """
        self._check_open()
        with self._lock:
            yield self._packs.position

    def pack_files(self) -> list[tuple[int, Path]]:
        """Returns number and path of every pack, ascending."""
        self._check_open()
        return [(number, self._packs.path_of(number)) for number in self._packs.numbers()]

    def large_files(self) -> list[tuple[bytes, Path]]:
        """Returns digest and path of every blob that has a file of its own."""
        self._check_open()
        paths = self._large.paths()
        return [(bytes.fromhex(path.parent.name + path.name), path) for path in paths]

    def packed_digests(self, packs: Collection[int]) -> Iterator[bytes]:
        """Yields the digests of the blobs in the given packs.

        Those put last may be missed, as they are not indexed yet.
        """
        page = self._index.after(b"", PENDING_BLOBS_MAX)
        while page:
            yield from (digest for digest, location in page if location.pack in packs)
            page = self._index.after(page[-1][0], PENDING_BLOBS_MAX)

    def verify(
        self, progress: LogProgress | None = None, step: Callable[[int], None] = lambda _byte_count: None
    ) -> list[CorruptionError]:
        """Reads every byte of every pack and file, and every entry of the index; returns at most ERRORS_MAX errors.

        ``progress`` gets (files done, files in all), ``step`` the bytes of each before it is read. A pack that seems
        damaged may just have been written to, so it is read again, and puts wait for that.
        """
        self._check_open()
        packs, files = self._packs.numbers(), self._large.paths()
        checks: list[Callable[[], list[CorruptionError]]] = [
            *(partial(self._verify_pack, number, step) for number in packs),
            *(partial(self._verify_file, path, step) for path in files),
            self._verify_index,
        ]
        errors: list[CorruptionError] = []
        for done, check in enumerate(checks, start=1):
            errors += check()
            if progress is not None:
                progress(done, len(checks))
            if len(errors) >= ERRORS_MAX:
                break
        return errors[:ERRORS_MAX]

    def _verify_pack(self, number: int, step: Callable[[int], None]) -> list[CorruptionError]:
        step(self._packs.path_of(number).stat().st_size)
        if not self._packs.verify(number):
            return []
        with self._lock:
            return self._packs.verify(number)

    def _verify_file(self, path: Path, step: Callable[[int], None]) -> list[CorruptionError]:
        try:
            step(path.stat().st_size)
        except FileNotFoundError:  # erased meanwhile
            return []
        errors = self._large.verify(path)
        return errors if path.exists() else []

    def _verify_index(self) -> list[CorruptionError]:
        errors: list[CorruptionError] = []
        page = self._index.after(b"", PENDING_BLOBS_MAX)
        while page and len(errors) < ERRORS_MAX:
            for digest, location in page:
                try:
                    header = self._packs.header(location.pack, location.offset)
                except CorruptionError as error:
                    errors.append(error)
                    continue
                if header is None or (header.digest, header.kind) != (digest, KIND_LIVE):
                    if self._index.find(digest) != location:  # erased meanwhile
                        continue
                    name = str(self._packs.path_of(location.pack))
                    message = f"blob {digest.hex()} is not where the index has it"
                    errors.append(CorruptionError(message, path=name, offset=location.offset))
            page = self._index.after(page[-1][0], PENDING_BLOBS_MAX)
        return errors

    def stats(self) -> BlobStats:
        """Counts by looking at every directory: meant for an operator, not for a hot path."""
        self._check_open()
        packs = self._packs.numbers()
        files = [path.stat().st_size for path in self._large.paths()]
        return BlobStats(
            packed=self._index.count() + len(self._pending),
            packs=len(packs),
            pack_bytes=sum(self._packs.path_of(number).stat().st_size for number in packs),
            large=len(files),
            large_bytes=sum(files),
        )

    def close(self) -> None:
        with self._lock:
            if self._closed:
                return
            self._closed = True
            try:
                if not self._readonly and not self._halted and self._pending:
                    self._flush(self._packs.position)
            finally:
                self._packs.close()
                self._index.close()

    def _check_open(self) -> None:
        if self._closed:
            raise LedgerClosedError("the blob store is closed")

    def _check_writable(self) -> None:
        self._check_open()
        if self._halted:
            raise LedgerHaltedError("an earlier write or sync of the blob store failed; reopen it")
        if self._readonly:
            raise LedgerHaltedError("the blob store is open for reading only")


class BlobWriter:
    """Takes a blob in pieces; leaving the ``with`` block without ``commit()`` leaves nothing behind."""

    def __init__(self, store: BlobStore, large: LargeWriter, packed_bytes_max: int) -> None:
        self._store = store
        self._large = large
        self._packed_bytes_max = packed_bytes_max
        self._small: bytearray | None = bytearray()  # until the blob is too long for a pack
        self._closed = False

    def write(self, chunk: Buffer) -> None:
        """Takes the next bytes of the blob. InputError once it is longer than BLOB_BYTES_MAX."""
        if self._closed:
            raise LedgerClosedError("the blob writer is closed")
        if self._small is not None:
            if len(self._small) + len(chunk) <= self._packed_bytes_max:
                self._small += chunk
                return
            self._large.write(self._small)
            self._small = None
        self._large.write(chunk)

    def commit(self) -> bytes:
        """Stores the blob, durable on return, and returns its digest."""
        if self._closed:
            raise LedgerClosedError("the blob writer is closed")
        self._closed = True
        if self._small is not None:
            return self._store.put_many([self._small])[0]
        return self._large.commit()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._closed = True
        self._large.discard()

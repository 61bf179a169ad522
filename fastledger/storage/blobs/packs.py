"""Pack files: small blobs, many to a file, so that one sync makes a whole batch durable.

Pack header, 32 bytes (SPEC-BLOB-2)::

    0 magic 8 | 8 version 2 | 10 zero 2 | 12 pack 4 | 16 pack bytes 4 | 20 salt 8 | 28 checksum 4

Blob header, 56 bytes, then the blob, then zeros up to a multiple of 8::

    0 magic 4 | 4 length 4 | 8 digest 32 | 40 durable 4 | 44 zero 4 | 48 version 1 | 49 kind 1 | 50 zero 2
    52 checksum 4

The checksum is CRC-32, seeded with the pack's salt and number and the header's offset; the blob is covered by
its digest. ``durable`` is the offset up to which the pack was known to be synced. Kind and checksum share one
aligned word of 8 bytes, so that marking a blob as erased cannot tear.
"""

import re
import struct
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from hashlib import sha256
from pathlib import Path
from typing import NamedTuple
from zlib import crc32

from fastledger.errors import CorruptionError, FormatVersionError
from fastledger.storage.files import Buffer, FileCache, OpenFile, OsFiles
from fastledger.version import BLOB_FORMAT_VERSION

PACK_MAGIC = b"FLPACKv\0"
BLOB_MAGIC = b"FLbl"
KIND_LIVE = 1
KIND_ERASED = 2
ALIGNMENT = 8
DIGEST_BYTES = 32
SALT_BYTES = 8

_PACK = struct.Struct(">8sHHII8sI")
_BLOB = struct.Struct(">4sI32sIIBBHI")
_U32 = struct.Struct(">I")
_NAME = re.compile(r"(\d{8})\.pack")
_WORD_AT = 48
_PADDING = bytes(ALIGNMENT)
PACK_HEADER_BYTES = _PACK.size
BLOB_HEADER_BYTES = _BLOB.size


class PackBlob(NamedTuple):
    """A decoded blob header: the place of a blob and the SHA-256 that it should have."""

    pack: int
    offset: int
    length: int
    digest: bytes
    kind: int
    durable: int

    @property
    def data_offset(self) -> int:
        return self.offset + BLOB_HEADER_BYTES

    @property
    def end(self) -> int:
        return self.offset + blob_bytes(self.length)


def blob_bytes(length: int) -> int:
    """Returns the bytes that a blob of ``length`` bytes takes in a pack, header and padding included."""
    return BLOB_HEADER_BYTES + length + -length % ALIGNMENT


def encode_blob_header(blob: PackBlob, seed: int) -> bytes:
    """Returns the 56 bytes that stand before a packed blob; ``seed`` is its pack's (:attr:`Pack.seed`)."""
    body = _BLOB.pack(
        BLOB_MAGIC, blob.length, blob.digest, blob.durable, 0, BLOB_FORMAT_VERSION, blob.kind, 0, 0
    )[:-4]
    return body + _U32.pack(crc32(body, crc32(_U32.pack(blob.offset), seed)))


class Pack(NamedTuple):
    """A decoded pack header: number, size of the file in bytes, salt (8 bytes)."""

    number: int
    size: int
    salt: bytes

    @property
    def seed(self) -> int:
        return crc32(self.salt + _U32.pack(self.number))

    def encode(self) -> bytes:
        body = _PACK.pack(PACK_MAGIC, BLOB_FORMAT_VERSION, 0, self.number, self.size, self.salt, 0)[:-4]
        return body + _U32.pack(crc32(body))

    def decode_blob(self, data: bytes, offset: int) -> PackBlob | None:
        """Returns the blob header in ``data``, read at ``offset``.

        Returns None if that is not a whole header of this place.
        """
        if len(data) < BLOB_HEADER_BYTES or data[:4] != BLOB_MAGIC:
            return None
        _, length, digest, durable, zero, version, kind, zero2, checksum = _BLOB.unpack(
            data[:BLOB_HEADER_BYTES]
        )
        if crc32(data[: BLOB_HEADER_BYTES - 4], crc32(_U32.pack(offset), self.seed)) != checksum:
            return None
        if version != BLOB_FORMAT_VERSION or zero or zero2 or kind not in (KIND_LIVE, KIND_ERASED):
            return None
        blob = PackBlob(self.number, offset, length, digest, kind, durable)
        return blob if blob.end <= self.size else None


def decode_pack(data: bytes, number: int, size: int, path: str) -> Pack:
    """Returns the pack header in ``data``; ``size`` is the length of the file, ``path`` is for the errors.

    Raises CorruptionError or FormatVersionError if it is not the header of pack ``number``.
    """
    if len(data) < PACK_HEADER_BYTES:
        raise CorruptionError("pack header is cut short", path=path, offset=0)
    magic, version, zero, found, pack_bytes, salt, checksum = _PACK.unpack(data[:PACK_HEADER_BYTES])
    if magic != PACK_MAGIC or zero or crc32(data[: PACK_HEADER_BYTES - 4]) != checksum or found != number:
        raise CorruptionError("pack header is damaged", path=path, offset=0)
    if version != BLOB_FORMAT_VERSION:
        raise FormatVersionError(
            f"{path} has blob format {version}, this release reads {BLOB_FORMAT_VERSION}"
        )
    if pack_bytes != size:
        raise CorruptionError(f"pack has {size} of {pack_bytes} bytes", path=path, offset=size)
    return Pack(number, pack_bytes, salt)


class PackFiles:
    """The packs of one store, and the place where the last one ends. Writes happen under the store's lock."""

    def __init__(self, path: Path, files: OsFiles, pack_bytes: int) -> None:
        self.path = path
        self.files = files
        self._pack_bytes = pack_bytes
        self._packs: dict[int, Pack] = {}
        self._cache = FileCache(files, self.path_of)
        self._last = -1
        self.end = 0  # of the last pack
        self._durable = 0

    def path_of(self, number: int) -> Path:
        return self.path / f"{number:08d}.pack"

    def numbers(self) -> list[int]:
        """Returns the numbers of the packs on disk, ascending."""
        return sorted(int(m[1]) for m in (_NAME.fullmatch(p.name) for p in self.path.iterdir()) if m)

    def pack(self, number: int) -> Pack:
        """Returns a pack's header, which is read once. Raises CorruptionError if it is damaged or missing."""
        pack = self._packs.get(number)
        if pack is None:
            pack = self._packs[number] = self.read_header(number)
        return pack

    def read_header(self, number: int) -> Pack:
        name = self.path_of(number)
        with self._lease(number) as file:
            data, size = self.files.read(file, PACK_HEADER_BYTES, 0), self.files.size(file)
        return decode_pack(data, number, size, str(name))

    @contextmanager
    def _lease(self, number: int, *, writable: bool = False) -> Iterator[OpenFile]:
        try:
            with self._cache.lease(number, writable=writable) as file:
                yield file
        except FileNotFoundError as error:
            raise CorruptionError("pack is missing", path=str(self.path_of(number))) from error

    def open_last(self, start: int, *, readonly: bool) -> list[PackBlob]:
        """Finds the end of the last pack; returns its blobs behind the offset ``start`` (0: all of them).

        What an interrupted put left behind the last whole blob is zeroed; nobody was told that it is there.
        """
        self._last = self.numbers()[-1]
        pack = self.pack(self._last)
        with self._lease(pack.number, writable=not readonly) as file:
            found, self.end = self._whole_blobs(pack, file, max(start, PACK_HEADER_BYTES))
            torn_end = self.files.end_of_data(file, self.end, pack.size)
            if not readonly and (found or torn_end > self.end):
                # Written again before it counts as durable, like the end of the log: see recovery.repair.
                self._rewrite(file, found)
                self.files.write_zeros(file, self.end, torn_end - self.end)
                self.files.fdatasync(file)
        self._durable = self.end
        return found

    def _whole_blobs(self, pack: Pack, file: OpenFile, start: int) -> tuple[list[PackBlob], int]:
        """Returns the whole blobs from ``start``, and the end of the pack.

        The end lies before the first bad blob that no later blob claims to have been durable.
        """
        blobs = list(self.scan(pack, file, start))
        found: list[PackBlob] = []
        end = start
        for n, blob in enumerate(blobs):
            whole = blob.kind == KIND_ERASED or self._matches(file, blob)
            bad_at = end if blob.offset != end else blob.offset if not whole else None
            if bad_at is not None and not any(later.durable > bad_at for later in blobs[n:]):
                return found, bad_at
            if whole:
                found.append(blob)
            end = blob.end
        return found, end

    def _matches(self, file: OpenFile, blob: PackBlob) -> bool:
        return sha256(self.files.read(file, blob.length, blob.data_offset)).digest() == blob.digest

    def _rewrite(self, file: OpenFile, blobs: Sequence[PackBlob]) -> None:
        for blob in blobs:
            size = blob_bytes(blob.length)
            self.files.write(file, [self.files.read(file, size, blob.offset)], blob.offset)

    def scan(self, pack: Pack, file: OpenFile, start: int) -> Iterator[PackBlob]:
        """Yields the whole blob headers from ``start`` on and steps over damage. Blobs are not read."""
        offset = start
        while offset + BLOB_HEADER_BYTES <= pack.size:
            blob = pack.decode_blob(self.files.read(file, BLOB_HEADER_BYTES, offset), offset)
            if blob is None:
                blob = self._next_blob(pack, file, offset)
            if blob is None:
                return
            yield blob
            offset = blob.end

    def _next_blob(self, pack: Pack, file: OpenFile, offset: int) -> PackBlob | None:
        """Returns the first whole header behind ``offset``. Usually there is none: the rest of the pack is zero."""
        at = self.files.first_nonzero(file, offset, pack.size)
        if at is None:
            return None
        data = self.files.read(file, pack.size - offset, offset)
        at = data.find(BLOB_MAGIC)
        while at >= 0:
            if (offset + at) % ALIGNMENT == 0:
                blob = pack.decode_blob(data[at : at + BLOB_HEADER_BYTES], offset + at)
                if blob is not None:
                    return blob
            at = data.find(BLOB_MAGIC, at + 1)
        return None

    def scan_pack(self, number: int, start: int) -> list[PackBlob]:
        """Returns the blob headers from ``start`` (0: the first) of a pack that is no longer appended to."""
        pack = self.pack(number)
        with self._lease(number) as file:
            return list(self.scan(pack, file, max(start, PACK_HEADER_BYTES)))

    def append(self, digests: Sequence[bytes], blobs: Sequence[Buffer]) -> list[PackBlob]:
        """Writes blobs behind the end, in a new pack when the last is full, and returns their places.

        They are durable after :meth:`sync`.
        """
        placed: list[PackBlob] = []
        buffers: list[Buffer] = []
        start = self.end
        seed = self._packs[self._last].seed if self._last >= 0 else 0
        for digest, data in zip(digests, blobs, strict=True):
            length = len(data)
            if self._last < 0 or self.end + blob_bytes(length) > self._packs[self._last].size:
                self._write(buffers, start)
                buffers.clear()
                self._next_pack()
                start, seed = self.end, self._packs[self._last].seed
            blob = PackBlob(self._last, self.end, length, digest, KIND_LIVE, self._durable)
            buffers += (encode_blob_header(blob, seed), data, _PADDING[: -length % ALIGNMENT])
            placed.append(blob)
            self.end = blob.end
        self._write(buffers, start)
        return placed

    def _write(self, buffers: Sequence[Buffer], offset: int) -> None:
        if buffers:
            with self._lease(self._last, writable=True) as file:
                self.files.write(file, buffers, offset)

    def _next_pack(self) -> None:
        self.sync()  # a pack that has a successor is durable: only the last one can have a torn tail
        number = self._last + 1
        pack = Pack(number, self._pack_bytes, self.files.random_bytes(SALT_BYTES))
        self.files.create_whole(self.path_of(number), pack.size, pack.encode())
        self._packs[number] = pack
        self._last = number
        self.end = self._durable = PACK_HEADER_BYTES

    def sync(self) -> None:
        """Makes everything appended durable with one sync."""
        if self._durable < self.end:
            with self._lease(self._last, writable=True) as file:
                self.files.fdatasync(file)
            self._durable = self.end

    def header(self, number: int, offset: int) -> PackBlob | None:
        """Reads the blob header at a place from disk; None if no whole one stands there."""
        pack = self.pack(number)
        with self._lease(number) as file:
            return pack.decode_blob(self.files.read(file, BLOB_HEADER_BYTES, offset), offset)

    def read(self, number: int, offset: int, length: int) -> bytes:
        """Returns the ``length`` bytes of the blob whose header is at ``offset``, unchecked."""
        with self._lease(number) as file:
            return self.files.read(file, length, offset + BLOB_HEADER_BYTES)

    def erase(self, digest: bytes, number: int, offset: int, length: int) -> None:
        """Marks the blob as erased, then overwrites it; each step durable before the next. Idempotent."""
        pack, blob = self.pack(number), self.header(number, offset)
        # A header that is damaged, or torn by a crash in this very step, is written anew.
        erased = blob or PackBlob(number, offset, length, digest, KIND_ERASED, 0)
        header = encode_blob_header(erased._replace(kind=KIND_ERASED), pack.seed)
        start = _WORD_AT if blob is not None else 0
        with self._lease(number, writable=True) as file:
            self.files.write(file, [header[start:]], offset + start)
            self.files.fdatasync(file)
            self.files.write_zeros(file, erased.data_offset, length)
            self.files.fdatasync(file)
            self.files.punch_hole(file, erased.data_offset, length)

    @property
    def position(self) -> tuple[int, int]:
        """(pack, offset) up to which everything is durable; (0, 0) if there is no pack."""
        return max(self._last, 0), self._durable

    def verify(self, number: int) -> list[CorruptionError]:
        """Reads every byte of one pack, erased ranges and the space at the end too; returns the damage found."""
        name = str(self.path_of(number))
        try:
            pack = self.read_header(number)
        except CorruptionError as error:
            return [error]
        errors = []
        expected = PACK_HEADER_BYTES
        with self._lease(number) as file:
            for blob in self.scan(pack, file, PACK_HEADER_BYTES):
                if blob.offset != expected:
                    errors.append(CorruptionError("blob header is damaged", path=name, offset=expected))
                errors += self._verify_blob(file, blob, name)
                expected = blob.end
            stray = self.files.first_nonzero(file, expected, pack.size)
        if stray is not None:
            message = "bytes behind the last blob are not zero"
            errors.append(CorruptionError(message, path=name, offset=expected))
        return errors

    def _verify_blob(self, file: OpenFile, blob: PackBlob, name: str) -> list[CorruptionError]:
        data = self.files.read(file, blob.end - blob.data_offset, blob.data_offset)
        body, padding = data[: blob.length], data[blob.length :]
        problem = None
        if blob.kind == KIND_ERASED:
            problem = "erased blob is not zero" if body.strip(b"\0") else None
        elif sha256(body).digest() != blob.digest:
            problem = "blob does not match its digest"
        if padding.strip(b"\0"):
            problem = problem or "blob padding is not zero"
        return [CorruptionError(problem, path=name, offset=blob.offset)] if problem else []

    def close(self) -> None:
        self._cache.close()

"""The index of packed blobs, which the packs can rebuild, and the journal of erasures: one LMDB environment.

======== ========= =========================== ===========================================================
database key       value                       holds
======== ========= =========================== ===========================================================
blobs    digest 32 pack 4, offset 4, length 4  the packed blobs
erasing  digest 32 pack 4, offset 4, length 4  erasures that are under way (SPEC-BLOB-5)
meta     name      format 2; pack 4, offset 4  the format; how far the packs are indexed
======== ========= =========================== ===========================================================
"""

import shutil
import struct
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import NamedTuple

from fastledger.errors import CorruptionError, FormatVersionError
from fastledger.limits import LMDB_MAP_BYTES, LMDB_READERS_MAX
from fastledger.storage.lmdb_engine import Environment
from fastledger.version import BLOB_FORMAT_VERSION

_DATABASES = ("blobs", "erasing", "meta")
_LOCATION = struct.Struct(">III")
_POSITION = struct.Struct(">II")
_FORMAT = BLOB_FORMAT_VERSION.to_bytes(2, "big")


class Location(NamedTuple):
    """The place of a packed blob: pack number, offset of its header, its length in bytes."""

    pack: int
    offset: int
    length: int


class BlobIndex:
    """Maps digests to locations. Any thread may read; the store writes under its own lock."""

    def __init__(self, path: Path, *, readonly: bool) -> None:
        self.path = path
        try:
            self._environment = self._open(path, readonly)
        except (CorruptionError, FormatVersionError):
            if readonly:
                raise
            shutil.rmtree(path)
            self._environment = self._open(path, readonly)
        self._blobs, self._erasing, self._meta = map(self._environment.databases.__getitem__, _DATABASES)

    @staticmethod
    def _open(path: Path, readonly: bool) -> Environment:
        if not readonly:
            path.mkdir(mode=0o700, parents=True, exist_ok=True)
        environment = Environment(
            path, _DATABASES, map_bytes=LMDB_MAP_BYTES, readers_max=LMDB_READERS_MAX, readonly=readonly
        )
        try:
            BlobIndex._check_format(environment)
        except BaseException:
            environment.close()
            raise
        return environment

    @staticmethod
    def _check_format(environment: Environment) -> None:
        meta = environment.databases["meta"]
        with environment.read() as txn:
            found = txn.get(meta, b"format")
        if found is None and not environment.readonly:
            with environment.write() as txn:
                txn.put_many(meta, [b"format"], [_FORMAT])
        elif found != _FORMAT:
            raise FormatVersionError(f"{environment.path} has another blob format than {BLOB_FORMAT_VERSION}")

    def find(self, digest: bytes) -> Location | None:
        with self._environment.read() as txn:
            data = txn.get(self._blobs, digest)
        return None if data is None else Location(*_LOCATION.unpack(data))

    def present(self, digests: Iterable[bytes]) -> set[bytes]:
        """Returns those of the digests that are indexed, all looked up in one snapshot."""
        with self._environment.read() as txn:
            return {digest for digest in digests if txn.get(self._blobs, digest) is not None}

    def position(self) -> tuple[int, int]:
        """Returns the (pack, offset) up to which the packs are indexed."""
        with self._environment.read() as txn:
            data = txn.get(self._meta, b"indexed")
        return (0, 0) if data is None else _POSITION.unpack(data)

    def add(self, locations: Mapping[bytes, Location], position: tuple[int, int]) -> None:
        """Records blobs, and how far the packs are now indexed, in one transaction."""
        with self._environment.write() as txn:
            items = sorted((digest, _LOCATION.pack(*where)) for digest, where in locations.items())
            txn.put_many(self._blobs, [digest for digest, _ in items], [place for _, place in items])
            txn.put_many(self._meta, [b"indexed"], [_POSITION.pack(*position)])

    def begin_erasure(self, digest: bytes, location: Location) -> None:
        """Moves a blob from ``blobs`` to ``erasing``, durably.

        Nobody finds it any more, and its erasure will be finished.
        """
        with self._environment.write() as txn:
            txn.delete_many(self._blobs, [digest])
            txn.put_many(self._erasing, [digest], [_LOCATION.pack(*location)])
        self._environment.sync()

    def end_erasure(self, digest: bytes) -> None:
        with self._environment.write() as txn:
            txn.delete_many(self._erasing, [digest])

    def erasures(self) -> list[tuple[bytes, Location]]:
        """Returns the erasures that are under way: at most one, since the store erases one blob at a time."""
        with self._environment.read() as txn, txn.cursor(self._erasing) as cursor:
            return [(digest, Location(*_LOCATION.unpack(data))) for digest, data in cursor.scan(b"")]

    def after(self, digest: bytes, count: int) -> list[tuple[bytes, Location]]:
        """Returns up to ``count`` entries behind ``digest`` in digest order: one page of a walk over all of them."""
        page: list[tuple[bytes, Location]] = []
        with self._environment.read() as txn, txn.cursor(self._blobs) as cursor:
            for key, data in cursor.scan(digest):
                if key != digest:
                    page.append((key, Location(*_LOCATION.unpack(data))))
                if len(page) == count:
                    break
        return page

    def count(self) -> int:
        with self._environment.read() as txn:
            return txn.count(self._blobs)

    @staticmethod
    def destroy(path: Path) -> None:
        """Deletes a closed index, which the packs can rebuild; erasures that are under way are forgotten."""
        shutil.rmtree(path, ignore_errors=True)

    def close(self) -> None:
        self._environment.close()

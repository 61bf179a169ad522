"""Snapshots: a whole index as chunks that are verified one by one, wherever they come from (SPEC-SNAP-1..4).

::

    manifest.cbor    chain, height, block id, state root, position, the SHA-256 of every chunk
    00000000.chunk   up to SNAPSHOT_CHUNK_BYTES of entries, ascending by table and key
    …

An entry is ``table u8 | key length u16 | value length u32 | key | value`` and never spans chunks. The same state of
the same chain gives the same chunks on every node: what depends on a node's disk is left out by who makes the entries.
The manifest's id is the RFC 9162 root over the chunks' digests with a digest of all its other fields as first leaf: a
node that trusts the 32 bytes can take each chunk from anyone. Nothing here does I/O but :class:`SnapshotFiles`.
"""

import struct
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any, NamedTuple

import cbor2

from fastledger._native.hashing import RFC9162, merkle_root
from fastledger._native.scan import check_cbor
from fastledger.errors import CorruptionError, FormatVersionError, InputError, NotFoundError
from fastledger.limits import SNAPSHOT_CHUNK_BYTES, SNAPSHOT_MANIFEST_BYTES_MAX, SNAPSHOT_VALUE_BYTES_MAX
from fastledger.storage.files import OsFiles
from fastledger.version import SNAPSHOT_FORMAT_VERSION

MANIFEST_NAME = "manifest.cbor"
TABLES = ("state", "txids", "blocks", "postings")
_HEAD = struct.Struct(">BHI")
_DIGEST_BYTES = 32


class SnapshotEntry(NamedTuple):
    """One key and its value; ``table`` is a number in ``TABLES``."""

    table: int
    key: bytes
    value: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Manifest:
    """Names the state that a snapshot is of, and the SHA-256 digests (n × 32 bytes) of its chunks.

    ``position`` is opaque here: all that executing the next block needs beside the entries.
    """

    chain_id: bytes
    height: int
    block_id: bytes
    state_root: bytes
    position: bytes
    entries: int
    chunks: tuple[bytes, ...]

    @property
    def root(self) -> bytes:
        """The 32 bytes that commit to the whole snapshot (SPEC-SNAP-2).

        They are the RFC 9162 root over the digest of the other fields and the digests of the chunks.
        """
        fields = [SNAPSHOT_FORMAT_VERSION, *self._fields(), len(self.chunks)]
        leaves = [sha256(cbor2.dumps(fields, canonical=True)).digest(), *self.chunks]
        return merkle_root(leaves, RFC9162)

    def _fields(self) -> list[bytes | int]:
        return [self.chain_id, self.height, self.block_id, self.state_root, self.position, self.entries]

    def encode(self) -> bytes:
        """Returns the manifest as deterministic CBOR: ``[version, …fields, chunk digests, root]``."""
        fields = [SNAPSHOT_FORMAT_VERSION, *self._fields(), b"".join(self.chunks), self.root]
        return cbor2.dumps(fields, canonical=True)

    @classmethod
    def decode(cls, data: bytes, path: str) -> "Manifest":
        """Returns the manifest in ``data``; ``path`` is for the errors.

        Raises CorruptionError where a field has another shape or the root does not commit to the fields;
        FormatVersionError for another version.
        """
        fields = _decode_array(data, path)
        if fields[0] != SNAPSHOT_FORMAT_VERSION:
            raise FormatVersionError(f"{path} has another snapshot format than {SNAPSHOT_FORMAT_VERSION}")
        kinds = (int, bytes, int, bytes, bytes, bytes, int, bytes, bytes)
        if [type(field) for field in fields] != list(kinds) or len(fields[7]) % _DIGEST_BYTES:
            raise CorruptionError("the snapshot's manifest is damaged", path=path, offset=0)
        digests = fields[7]
        chunks = tuple(digests[at : at + _DIGEST_BYTES] for at in range(0, len(digests), _DIGEST_BYTES))
        manifest = cls(
            chain_id=fields[1],
            height=fields[2],
            block_id=fields[3],
            state_root=fields[4],
            position=fields[5],
            entries=fields[6],
            chunks=chunks,
        )
        if manifest.root != fields[8]:
            raise CorruptionError("the snapshot's manifest does not match its root", path=path, offset=0)
        return manifest


def _decode_array(data: bytes, path: str) -> list[Any]:
    if len(data) > SNAPSHOT_MANIFEST_BYTES_MAX or check_cbor(data)[0]:
        raise CorruptionError("the snapshot's manifest is damaged", path=path, offset=0)
    fields = cbor2.loads(data)
    if not isinstance(fields, list) or not fields:
        raise CorruptionError("the snapshot's manifest is damaged", path=path, offset=0)
    return list(fields)


def encode_chunks(
    entries: Iterable[SnapshotEntry], chunk_bytes: int = SNAPSHOT_CHUNK_BYTES
) -> Iterator[tuple[bytes, int]]:
    """Yields (chunk, how many entries it has), filling each with entries in their order up to ``chunk_bytes``."""
    parts: list[bytes] = []
    size = count = 0
    pack = _HEAD.pack
    for table, key, value in entries:
        length = _HEAD.size + len(key) + len(value)
        if size + length > chunk_bytes and parts:
            yield b"".join(parts), count
            parts, size, count = [], 0, 0
        parts += (pack(table, len(key), len(value)), key, value)
        size += length
        count += 1
    if parts:
        yield b"".join(parts), count


def decode_chunk(chunk: bytes, name: str) -> Iterator[SnapshotEntry]:
    """Yields the entries of a chunk.

    CorruptionError gives ``name`` and the offset at which no whole entry begins.
    """
    offset, end = 0, len(chunk)
    while offset < end:
        start = offset + _HEAD.size
        table, key_bytes, value_bytes = _HEAD.unpack_from(chunk, offset) if start <= end else (255, 0, 0)
        value_at = start + key_bytes
        if table >= len(TABLES) or value_bytes > SNAPSHOT_VALUE_BYTES_MAX or value_at + value_bytes > end:
            raise CorruptionError("no whole entry begins here", path=name, offset=offset)
        offset = value_at + value_bytes
        yield SnapshotEntry(table, chunk[start:value_at], chunk[value_at:offset])


def check_chunk(manifest: Manifest, number: int, chunk: bytes, name: str) -> None:
    """Raises CorruptionError with ``name`` unless ``chunk`` is chunk ``number`` of the manifest (SPEC-SNAP-3)."""
    if not 0 <= number < len(manifest.chunks):
        raise InputError(f"the snapshot has {len(manifest.chunks)} chunks, no number {number}")
    if sha256(chunk).digest() != manifest.chunks[number]:
        raise CorruptionError(f"chunk {number} does not match the manifest", path=name, offset=0)


def chunk_name(number: int) -> str:
    """Returns the file name of chunk ``number``."""
    return f"{number:08d}.chunk"


class SnapshotFiles:
    """A snapshot in a directory. The manifest is written last: without it there is no snapshot (SPEC-SNAP-4)."""

    def __init__(self, path: Path, files: OsFiles | None = None) -> None:
        self.path = path
        self._files = files or OsFiles()

    def begin(self) -> None:
        """Makes the directory. Raises InputError where it holds something already."""
        self._files.make_dir(self.path)
        if any(self.path.iterdir()):
            raise InputError("the place for the snapshot is not empty")

    def write_chunk(self, number: int, chunk: bytes) -> bytes:
        """Writes the file of a chunk, synced on return, and returns its SHA-256."""
        file = self._files.create(self.path / chunk_name(number))
        try:
            self._files.write(file, [chunk], 0)
            self._files.fdatasync(file)
        finally:
            self._files.close(file)
        return sha256(chunk).digest()

    def finish(self, manifest: Manifest) -> None:
        """Writes the manifest durably; from here on the snapshot exists."""
        self._files.create_whole(self.path / MANIFEST_NAME, 0, manifest.encode())
        self._files.fsync_dir(self.path.parent)

    def manifest(self) -> Manifest:
        """Returns the manifest.

        Raises NotFoundError where there is no snapshot, CorruptionError where it is damaged.
        """
        path = self.path / MANIFEST_NAME
        try:
            with path.open("rb") as file:
                data = file.read(SNAPSHOT_MANIFEST_BYTES_MAX + 1)
        except FileNotFoundError:
            raise NotFoundError("there is no snapshot") from None
        return Manifest.decode(data, str(path))

    def chunk(self, manifest: Manifest, number: int) -> bytes:
        """Returns chunk ``number``, checked against the manifest. CorruptionError names its file."""
        path = self.path / chunk_name(number)
        try:
            with path.open("rb") as file:
                data = file.read(SNAPSHOT_CHUNK_BYTES + SNAPSHOT_VALUE_BYTES_MAX)
        except FileNotFoundError:
            raise CorruptionError(f"chunk {number} is missing", path=str(path)) from None
        check_chunk(manifest, number, data, str(path))
        return data

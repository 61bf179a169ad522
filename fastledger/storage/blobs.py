"""The content-addressed blob store (signatures first)."""

from collections.abc import Buffer, Callable, Iterator, Sequence
from pathlib import Path
from typing import Self

from fastledger.errors import CorruptionError
from fastledger.storage.files import OsFiles


class BlobStore:
    """digest = SHA-256 of the stored bytes (32 bytes)."""

    @classmethod
    def open(cls, path: Path, files: OsFiles | None = None, *,
             hash_many: Callable[[Sequence[Buffer]], list[bytes]] = ..., readonly: bool = False) -> Self:
        """Creates if absent."""

    def put_many(self, blobs: Sequence[Buffer]) -> list[bytes]:
        """Durable on return (one sync for all the small ones); digests in the order given."""

    def get(self, digest: bytes) -> bytes:
        """NotFoundError if absent or erased; CorruptionError if the bytes no longer match."""

    def has(self, digest: bytes) -> bool: ...
    def missing(self, digests: Sequence[bytes]) -> list[bytes]:
        """Those not stored, in the order given (one lookup for a batch)."""
    def size(self, digest: bytes) -> int: ...
    def open_writer(self) -> "BlobWriter": ...
    def open_reader(self, digest: bytes, chunk_bytes: int = ...) -> Iterator[bytes]:
        """Streams the bytes; the digest is checked at the end (CorruptionError before StopIteration)."""
    def erase(self, digest: bytes) -> bool:
        """Overwrites and syncs; False if it was not there. Durable on return, idempotent."""
    def verify(self, progress: Callable[[int, int], None] | None = None) -> list[CorruptionError]: ...
    def stats(self) -> "BlobStats": ...
    def flush(self) -> None:
        """Writes the lazily kept location index; loses nothing if never called."""
    def close(self) -> None: ...


class BlobStats: ...


class BlobWriter:
    """``with store.open_writer() as w: w.write(chunk); digest = w.commit()``; leaving without commit discards."""

    def write(self, chunk: Buffer) -> None: ...
    def commit(self) -> bytes: ...

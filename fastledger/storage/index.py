"""The LMDB index: all that can be rebuilt from the log (signatures first)."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self


@dataclass(slots=True)
class CheckpointBatch:
    """What one checkpoint changes; applied in one LMDB transaction."""

    state: Mapping[bytes, bytes | None] = field(default_factory=dict)  # None deletes; key 1..500 bytes
    txids: Mapping[bytes, int] | Sequence[tuple[bytes, int]] = ()  # txid (32 bytes) -> seq (u48)
    blocks: Sequence[tuple[int, int, bytes]] = ()  # (height, first_seq, entry: opaque bytes)
    postings: Sequence[bytes] = ()  # keys.posting_key(table, term16, seq); unsorted is fine
    meta: Mapping[bytes, bytes] = field(default_factory=dict)


class IndexView:
    """One consistent read snapshot, owned by one thread."""

    def get_meta(self, name: bytes) -> bytes | None: ...
    def get_state(self, key: bytes) -> bytes | None: ...
    def seq_of_txid(self, txid: bytes) -> int | None: ...
    def seqs_of_txids(self, txids: Sequence[bytes]) -> dict[bytes, int]:
        """Only those that are present; one cursor for the batch."""
    def block_entry(self, height: int) -> bytes | None: ...
    def block_of_seq(self, seq: int) -> tuple[int, int, bytes] | None:
        """(height, first_seq, entry) of the last block with first_seq <= seq."""
    def iter_postings(self, table: int, term: bytes, *, start_seq: int | None = None,
                      reverse: bool = False, limit: int = ...) -> Iterator[int]:
        """Sequence numbers, ascending (descending if reverse) from start_seq inclusive."""
    def iter_state(self, prefix: bytes = b"", *, start: bytes | None = None) -> Iterator[tuple[bytes, bytes]]: ...
    def iter_all(self, database: str) -> Iterator[tuple[bytes, bytes]]: ...


class Reader(IndexView):
    """A long-lived view for one thread: ``renew()`` moves it to the newest checkpoint; ``close()`` frees its slot."""

    def renew(self) -> None: ...
    def close(self) -> None: ...


class Index:
    @classmethod
    def open(cls, path: Path, chain_id: bytes, *, readonly: bool = False, map_bytes: int = ...) -> Self:
        """Creates if absent. FormatVersionError on another format; CorruptionError if it is another chain's."""

    def write_checkpoint(self, batch: CheckpointBatch) -> None:
        """Atomic: after a crash either the previous checkpoint or this one. One thread only."""

    def snapshot(self) -> "IndexView":
        """Context manager: ``with index.snapshot() as view``."""

    def reader(self) -> Reader: ...
    def compare(self, other: "Index", *, limit: int = 20) -> list["Difference"]: ...
    def stats(self) -> dict[str, int]: ...
    def close(self) -> None: ...

    # A fresh index: Index.destroy(path) then open().
    @staticmethod
    def destroy(path: Path) -> None: ...


@dataclass(frozen=True, slots=True)
class Difference:
    database: str
    key: bytes
    ours: bytes | None
    theirs: bytes | None

"""The index in memory: what :class:`ChainStore` asks of LMDB, as immutable checkpoints.

A power cut takes back any number of the last checkpoints, as LMDB without ``metasync`` does; the log makes up for it.
"""

import random
from bisect import bisect_right
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import cast

from fastledger._native.lmdb_batch import find_postings
from fastledger.storage.checkpoint import CheckpointBatch
from fastledger.storage.index import Index, IndexView
from fastledger.storage.keys import SEQ_MAX, TermLog

KEPT_CHECKPOINTS = 3


@dataclass
class Checkpoint:
    """One state of the index; never changed once it is made."""

    state: dict[bytes, bytes] = field(default_factory=dict)
    txids: dict[bytes, int] = field(default_factory=dict)
    blocks: dict[int, tuple[int, bytes]] = field(default_factory=dict)
    postings: list[TermLog] = field(default_factory=list)
    meta: dict[bytes, bytes] = field(default_factory=dict)

    def with_batch(self, batch: CheckpointBatch) -> "Checkpoint":
        state = {**self.state, **batch.state}
        return Checkpoint(
            {key: value for key, value in state.items() if value is not None},
            {**self.txids, **dict(batch.txids)},
            {**self.blocks, **{height: (seq, entry) for height, seq, entry in batch.blocks}},
            [*self.postings, *batch.postings],
            {**self.meta, **batch.meta},
        )


class MemoryView:
    """The reading half of :class:`IndexView`."""

    def __init__(self, index: "MemoryIndex") -> None:
        self._index = index
        self._data = index.newest

    def renew(self) -> None:
        self._data = self._index.newest

    def close(self) -> None:
        """Nothing is held."""

    def get_meta(self, name: bytes) -> bytes | None:
        return self._data.meta.get(name)

    def get_state(self, key: bytes) -> bytes | None:
        return self._data.state.get(key)

    def get_states(self, wanted: Iterable[bytes]) -> dict[bytes, bytes | None]:
        return {key: self._data.state.get(key) for key in wanted}

    def seq_of_txid(self, txid: bytes) -> int | None:
        return self._data.txids.get(txid)

    def has_txid(self, txid: bytes) -> bool:
        return txid in self._data.txids

    def seqs_of_txids(self, txids: Iterable[bytes]) -> dict[bytes, int]:
        return {txid: self._data.txids[txid] for txid in txids if txid in self._data.txids}

    def block_entry(self, height: int) -> bytes | None:
        found = self._data.blocks.get(height)
        return None if found is None else found[1]

    def block_of_seq(self, seq: int) -> tuple[int, int, bytes] | None:
        heights = sorted(self._data.blocks)
        at = bisect_right(heights, seq, key=lambda height: self._data.blocks[height][0]) - 1
        return None if at < 0 else (heights[at], *self._data.blocks[heights[at]])

    def last_block(self) -> tuple[int, int, bytes] | None:
        if not self._data.blocks:
            return None
        height = max(self._data.blocks)
        return (height, *self._data.blocks[height])

    def iter_postings(
        self, term: bytes, *, start_seq: int | None = None, reverse: bool = False
    ) -> Iterator[int]:
        found = sorted({seq for log in self._data.postings for seq in find_postings([log], term)})
        if reverse:
            last = SEQ_MAX if start_seq is None else start_seq
            return (seq for seq in reversed(found) if seq <= last)
        return (seq for seq in found if seq >= (start_seq or 0))

    def iter_state(self, prefix: bytes = b"", *, start: bytes | None = None) -> Iterator[tuple[bytes, bytes]]:
        first = prefix if start is None else max(prefix, start)
        for key in sorted(self._data.state):
            if key >= first and key.startswith(prefix):
                yield key, self._data.state[key]


class MemoryIndex:
    """The index of one node; it outlives the node's processes, but not always a power cut."""

    def __init__(self) -> None:
        self._checkpoints = [Checkpoint()]

    @property
    def newest(self) -> Checkpoint:
        return self._checkpoints[-1]

    @property
    def pending(self) -> None:
        """Checkpoints are written at once here: none is ever half written."""

    def get_meta(self, name: bytes) -> bytes | None:
        return self.newest.meta.get(name)

    def as_index(self) -> Index:
        """Itself, as what it stands in for."""
        return cast(Index, self)

    def reader(self) -> MemoryView:
        return MemoryView(self)

    @contextmanager
    def snapshot(self) -> Iterator[IndexView]:
        yield cast(IndexView, MemoryView(self))

    def write_checkpoint(self, batch: CheckpointBatch) -> None:
        self._checkpoints = [*self._checkpoints, self.newest.with_batch(batch)][-KEPT_CHECKPOINTS:]

    def sync(self) -> None:
        self._checkpoints = [self.newest]

    def close(self) -> None:
        """Nothing is held."""

    # Faults, from outside.

    def power_cut(self, rng: random.Random) -> None:
        """Any number of the last checkpoints are gone."""
        self._checkpoints = self._checkpoints[: rng.randint(1, len(self._checkpoints))]

    def destroy(self) -> None:
        """Forgets everything, as ``reindex`` does."""
        self._checkpoints = [Checkpoint()]

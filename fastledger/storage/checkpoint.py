"""A checkpoint as puts in key order, a bounded number of them at a time.

LMDB keeps the memory of its largest write transaction, page by page, until it is closed. Terms, transaction ids and
most state keys are spread evenly over their ranges: in a large index nearly every put dirties a page of its own. So
a checkpoint is cut; in key order, because then no page is written by two of the pieces.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, TypeAlias

from fastledger._native.lmdb_batch import PostingRuns, encode_seqs, seal_many, sorted_items
from fastledger.errors import InputError
from fastledger.storage import keys
from fastledger.storage.lmdb_engine import Transaction

# Puts some of it, given a transaction and the numbers of the databases; about how many leaves that wrote to.
Piece: TypeAlias = Callable[[Transaction, Mapping[str, int]], int]
_Put: TypeAlias = Callable[[list[bytes], list[Any], Transaction, Mapping[str, int]], int]
PIECE_PUTS = 1_024


@dataclass(slots=True)
class CheckpointBatch:
    """What one checkpoint changes. Order does not matter; later entries of ``blocks`` win."""

    state: Mapping[bytes, bytes | None] = field(default_factory=dict)  # None deletes
    txids: Mapping[bytes, int] | Sequence[tuple[bytes, int]] = ()  # txid (32 bytes), seq
    blocks: Sequence[tuple[int, int, bytes]] = ()  # height, first seq, opaque entry
    postings: Sequence[keys.TermLog] = ()
    meta: Mapping[bytes, bytes] = field(default_factory=dict)


class Checkpoint:
    """A batch that was found to be in bounds (else InputError, ValueError), ready to be put."""

    def __init__(self, batch: CheckpointBatch) -> None:
        self.state = batch.state
        self.txids = batch.txids if isinstance(batch.txids, Mapping) else dict(batch.txids)
        _check_lengths("state key", self.state, 1, keys.STATE_KEY_BYTES_MAX)
        _check_lengths("txid", self.txids, keys.TXID_BYTES, keys.TXID_BYTES)
        for seq in (min(self.txids.values(), default=0), max(self.txids.values(), default=0)):
            keys.encode_seq(seq)
        self.blocks = {
            keys.encode_height(height): keys.encode_seq(seq) + entry for height, seq, entry in batch.blocks
        }
        self.seqs = {keys.seq_key(seq, height): b"" for height, seq, _ in batch.blocks}
        self.logs = batch.postings
        self.meta = batch.meta
        self._runs = PostingRuns(list(batch.postings))

    def __len__(self) -> int:
        """At most so many puts and deletions are left."""
        tables = (self.state, self.txids, self.blocks, self.seqs, self.meta)
        return sum(map(len, tables)) + len(self._runs)

    def pieces(self, puts_max: int = PIECE_PUTS) -> Iterator[Piece]:
        """What to put, once, each piece before the next is asked for; all but ``meta``, which comes last."""
        tables: tuple[tuple[Mapping[bytes, Any], _Put], ...] = (
            (self.state, _put_state),
            (self.txids, _put_txids),
            (self.blocks, partial(_put_bytes, "blocks")),
            (self.seqs, partial(_put_bytes, "seqs")),
        )
        for items, put in tables:
            names, values = sorted_items(items)
            for start in range(0, len(names), puts_max):
                end = start + puts_max
                yield partial(put, names[start:end], values[start:end])
        while self._runs:
            yield partial(self._put_runs, puts_max)

    def put_meta(self, txn: Transaction, databases: Mapping[str, int]) -> None:
        """The piece that makes it the index's checkpoint."""
        txn.put_many(databases["meta"], list(self.meta), list(self.meta.values()))

    def _put_runs(self, runs_max: int, txn: Transaction, databases: Mapping[str, int]) -> int:
        return txn.put_runs(databases["postings"], self._runs, runs_max)


def _put_state(
    names: list[bytes], values: list[bytes | None], txn: Transaction, databases: Mapping[str, int]
) -> int:
    pages = 0
    gone = [name for name, value in zip(names, values, strict=True) if value is None]
    if gone:
        pages = txn.delete_many(databases["state"], gone)
        names = [name for name, value in zip(names, values, strict=True) if value is not None]
    held = [value for value in values if value is not None]
    return pages + txn.put_many(databases["state"], names, seal_many(names, held))


def _put_txids(names: list[bytes], seqs: list[int], txn: Transaction, databases: Mapping[str, int]) -> int:
    return txn.put_many(databases["txids"], names, encode_seqs(seqs))


def _put_bytes(
    database: str, names: list[bytes], values: list[bytes], txn: Transaction, databases: Mapping[str, int]
) -> int:
    return txn.put_many(databases[database], names, values)


def _check_lengths(what: str, names: Iterable[bytes], shortest: int, longest: int) -> None:
    for length in set(map(len, names)):
        if not shortest <= length <= longest:
            raise InputError(f"{what} of {length} bytes")

"""A checkpoint as puts in key order, a bounded number of them at a time.

LMDB keeps the memory of its largest write transaction, page by page, until it is closed. Terms, transaction ids and
most state keys are spread evenly over their ranges: in a large index nearly every put dirties a page of its own. So
a checkpoint is cut; in key order, because then no page is written by two of the pieces.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, TypeAlias, TypeVar

from fastledger._native.lmdb_batch import PostingRuns, encode_seqs, seal_many, sorted_items
from fastledger.errors import InputError
from fastledger.storage import keys
from fastledger.storage.lmdb_engine import LmdbTransaction

ValueT = TypeVar("ValueT")
# Puts some of it, given a transaction and the numbers of the databases; about how many leaves that wrote to.
WritePiece: TypeAlias = Callable[[LmdbTransaction, Mapping[str, int]], int]
# Keys, and the value of each.
Items: TypeAlias = tuple[list[bytes], list[ValueT]]
_Put: TypeAlias = Callable[[list[bytes], list[Any], LmdbTransaction, Mapping[str, int]], int]
PIECE_PUTS = 1_024


@dataclass(slots=True)
class CheckpointBatch:
    """The changes that one checkpoint makes.

    Order does not matter, but of two ``blocks`` of one height the later wins.
    """

    state: Mapping[bytes, bytes | None] = field(default_factory=dict)  # None deletes
    txids: Mapping[bytes, int] | Sequence[tuple[bytes, int]] = ()  # txid (32 bytes), seq
    blocks: Sequence[tuple[int, int, bytes]] = ()  # height, first seq, opaque entry
    postings: Sequence[keys.TermLog] = ()
    meta: Mapping[bytes, bytes] = field(default_factory=dict)


class Checkpoint:
    """A checked batch, sorted and ready to be put.

    The constructor raises InputError or ValueError where a key, a number or a term of the batch is out of bounds.
    """

    def __init__(self, batch: CheckpointBatch) -> None:
        txids = batch.txids if isinstance(batch.txids, Mapping) else dict(batch.txids)
        _check_lengths("state key", batch.state, 1, keys.STATE_KEY_BYTES_MAX)
        _check_lengths("txid", txids, keys.TXID_BYTES, keys.TXID_BYTES)
        for seq in (min(txids.values(), default=0), max(txids.values(), default=0)):
            keys.encode_seq(seq)
        # Keys and values of each table, in the order of the keys: what is written twice is looked up once.
        self.state: Items[bytes | None] = sorted_items(batch.state)
        self.txids: Items[int] = sorted_items(txids)
        self.blocks: Items[bytes] = sorted_items(
            {keys.encode_height(height): keys.encode_seq(seq) + entry for height, seq, entry in batch.blocks}
        )
        self._seqs = sorted_items({keys.seq_key(seq, height): b"" for height, seq, _ in batch.blocks})
        self.logs = batch.postings
        self.meta = batch.meta
        self._runs = PostingRuns(list(batch.postings))

    def __len__(self) -> int:
        """Returns an upper bound of the puts and deletions that are left to do."""
        tables = (self.state[0], self.txids[0], self.blocks[0], self._seqs[0], self.meta)
        return sum(map(len, tables)) + len(self._runs)

    def pieces(self, puts_max: int = PIECE_PUTS) -> Iterator[WritePiece]:
        """Yields the puts of everything but ``meta``, in pieces of at most ``puts_max``.

        :meth:`put_meta` comes after them. Each piece must be put before the next is asked for, and the pieces can be
        had only once.
        """
        tables: tuple[tuple[Items[Any], _Put], ...] = (
            (self.state, _put_state),
            (self.txids, _put_txids),
            (self.blocks, partial(_put_bytes, "blocks")),
            (self._seqs, partial(_put_bytes, "seqs")),
        )
        for items, put in tables:
            for names, values in parts_of(items, puts_max):
                yield partial(put, names, values)
        while self._runs:
            yield partial(self._put_runs, puts_max)

    def put_meta(self, txn: LmdbTransaction, databases: Mapping[str, int]) -> None:
        """Puts ``meta``, the last piece: it names the height at which the index now stands."""
        txn.put_many(databases["meta"], list(self.meta), list(self.meta.values()))

    def _put_runs(self, runs_max: int, txn: LmdbTransaction, databases: Mapping[str, int]) -> int:
        return txn.put_runs(databases["postings"], self._runs, runs_max)


def parts_of(items: Items[ValueT], size_max: int) -> Iterator[Items[ValueT]]:
    """Yields the items in their order, in parts of at most ``size_max``."""
    names, values = items
    for start in range(0, len(names), size_max):
        end = start + size_max
        yield names[start:end], values[start:end]


def _put_state(
    names: list[bytes], values: list[bytes | None], txn: LmdbTransaction, databases: Mapping[str, int]
) -> int:
    held, sealed, gone = seal_many(names, values)
    pages = txn.delete_many(databases["state"], gone) if gone else 0
    return pages + txn.put_many(databases["state"], held, sealed)


def _put_txids(names: list[bytes], seqs: list[int], txn: LmdbTransaction, databases: Mapping[str, int]) -> int:
    return txn.put_many(databases["txids"], names, encode_seqs(seqs))


def _put_bytes(
    database: str, names: list[bytes], values: list[bytes], txn: LmdbTransaction, databases: Mapping[str, int]
) -> int:
    return txn.put_many(databases[database], names, values)


def _check_lengths(what: str, names: Iterable[bytes], shortest: int, longest: int) -> None:
    for length in set(map(len, names)):
        if not shortest <= length <= longest:
            raise InputError(f"{what} of {length} bytes")

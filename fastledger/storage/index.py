"""The LMDB index: everything that can be rebuilt from the log, in checkpoints (SPEC-IDX-1 to SPEC-IDX-8).

One thread writes checkpoints; any thread reads, through a snapshot of its own. ``keys.py`` has the layout.
"""

import shutil
import threading
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, contextmanager, nullcontext, suppress
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Self, TypeAlias

from fastledger.errors import CorruptionError, FormatVersionError, LedgerHaltedError, StorageFullError
from fastledger.limits import CHECKPOINT_PAGES_MAX, LMDB_MAP_BYTES, LMDB_READERS_MAX
from fastledger.storage import keys
from fastledger.storage.checkpoint import PIECE_PUTS, Checkpoint, CheckpointBatch
from fastledger.storage.files import OsFiles
from fastledger.storage.lmdb_engine import CURSOR_LAST, Environment, LmdbTransaction
from fastledger.storage.redo import RedoFile
from fastledger.version import INDEX_FORMAT_VERSION

DATABASES = ("meta", "state", "txids", "blocks", "seqs", "postings")
_EMPTY = b""
_FORMAT = INDEX_FORMAT_VERSION.to_bytes(2, "big")
# (database, key, value) -> what of the value two indexes must agree on
Meaning: TypeAlias = Callable[[str, bytes, bytes], bytes]
WALK_KEYS = 1_024


@dataclass(frozen=True, slots=True)
class Difference:
    """A key on which two indexes disagree; a value is None where that index does not have the key."""

    database: str
    key: bytes
    ours: bytes | None
    theirs: bytes | None


class IndexOutdatedError(FormatVersionError):
    """An index of an earlier format, which the log can rebuild in the present one."""


class IndexView:
    """The index as one committed transaction left it; used by one thread at a time."""

    def __init__(self, transaction: LmdbTransaction, databases: Mapping[str, int]) -> None:
        self._transaction = transaction
        self._databases = databases
        self._state = databases["state"]
        self._txids = databases["txids"]

    def get_meta(self, name: bytes) -> bytes | None:
        return self._transaction.get(self._databases["meta"], name)

    def get_state(self, key: bytes) -> bytes | None:
        """Returns the value of a state key, or None.

        Raises CorruptionError where it does not match its checksum (SPEC-IDX-6).
        """
        data = self._transaction.get(self._state, key)
        return None if data is None else keys.open_value(key, data)

    def get_states(self, wanted: Iterable[bytes]) -> dict[bytes, bytes | None]:
        """Returns the values of many state keys at once; None for a key that is not there.

        Errors as :meth:`get_state`.
        """
        keys_wanted = list(wanted)
        found = self._transaction.get_many(self._state, keys_wanted)
        return {
            key: None if data is None else keys.open_value(key, data)
            for key, data in zip(keys_wanted, found, strict=True)
        }

    def seq_of_txid(self, txid: bytes) -> int | None:
        data = self._transaction.get(self._txids, txid)
        return None if data is None else keys.decode_seq(data)

    def has_txid(self, txid: bytes) -> bool:
        return self._transaction.get(self._txids, txid) is not None

    def seqs_of_txids(self, txids: Iterable[bytes]) -> dict[bytes, int]:
        """Returns txid -> seq for those of the given transaction ids (32 bytes each) that the index has."""
        wanted = list(txids)
        found = self._transaction.get_many(self._txids, wanted)
        return {
            txid: keys.decode_seq(data) for txid, data in zip(wanted, found, strict=True) if data is not None
        }

    def block_entry(self, height: int) -> bytes | None:
        data = self._transaction.get(self._databases["blocks"], keys.encode_height(height))
        return None if data is None else data[keys.SEQ_BYTES :]

    def block_of_seq(self, seq: int) -> tuple[int, int, bytes] | None:
        """Returns (height, first seq, entry) of the last block whose first seq is <= ``seq``, or None."""
        last = keys.encode_seq(seq) + b"\xff" * keys.HEIGHT_BYTES
        with self._transaction.cursor(self._databases["seqs"]) as cursor:
            for key, _ in cursor.scan_back(last):
                first_seq, height = keys.split_seq_key(key)
                return height, first_seq, self.block_entry(height) or _EMPTY
        return None

    def last_block(self) -> tuple[int, int, bytes] | None:
        """Returns (height, first seq, entry) of the highest block, or None if there is no block."""
        with self._transaction.cursor(self._databases["blocks"]) as cursor:
            item = cursor.move(CURSOR_LAST)
        if item is None:
            return None
        return keys.decode_height(item[0]), keys.decode_seq(item[1]), item[1][keys.SEQ_BYTES :]

    def iter_postings(
        self,
        term: bytes,
        *,
        start_seq: int | None = None,
        reverse: bool = False,
    ) -> Iterator[int]:
        """Yields the seqs under ``term`` (17 bytes) from ``start_seq`` on, ascending or (``reverse``) descending.

        They are read from disk as they are asked for.
        """
        if start_seq is None:
            start_seq = keys.SEQ_MAX if reverse else 0
        start = term + keys.encode_seq(start_seq)
        with self._transaction.cursor(self._databases["postings"]) as cursor:
            if reverse:
                for run in _runs(cursor.scan_back(start), term):
                    yield from (seq for seq in reversed(run) if seq <= start_seq)
                return
            # The run before may reach beyond the start.
            for run in _runs(islice(cursor.scan_back(start), 1), term):
                yield from (seq for seq in run if seq >= start_seq)
                start = term + keys.encode_seq(min(run[0] + 1, keys.SEQ_MAX))
            for run in _runs(cursor.scan(start), term):
                yield from (seq for seq in run if seq >= start_seq)

    def iter_state(self, prefix: bytes = b"", *, start: bytes | None = None) -> Iterator[tuple[bytes, bytes]]:
        """Yields (key, value) of the state keys that begin with ``prefix``, ascending, from the key ``start`` on."""
        with self._transaction.cursor(self._state) as cursor:
            for key, value in cursor.scan(prefix if start is None else max(prefix, start)):
                if not key.startswith(prefix):
                    return
                yield key, keys.open_value(key, value)

    def iter_all(self, database: str) -> Generator[tuple[bytes, bytes], None, None]:
        """Yields every (key, value) of one of ``DATABASES``, ascending; of ``postings`` one key for each posting."""
        with self._transaction.cursor(self._databases[database]) as cursor:
            if database != "postings":
                yield from cursor.scan(_EMPTY)
                return
            # Runs are cut where checkpoints were: what is the same in any index are the postings themselves.
            for key, value in cursor.scan(_EMPTY):
                prefix = key[: -keys.SEQ_BYTES]
                yield from ((prefix + keys.encode_seq(seq), _EMPTY) for seq in keys.run_seqs(key, value))

    def iter_raw(self, database: str) -> Generator[tuple[bytes, bytes], None, None]:
        """Yields every (key, value) of one of ``DATABASES`` as it is stored, ascending."""
        with self._transaction.cursor(self._databases[database]) as cursor:
            yield from cursor.scan(_EMPTY)

    def unreachable(self, database: str, limit: int) -> list[tuple[str, bytes]]:
        """Returns up to ``limit`` (database, key) of ``database`` that a walk meets and a search does not find."""
        number = self._databases[database]
        found: list[tuple[str, bytes]] = []
        with self._transaction.cursor(number) as cursor:
            walk = (key for key, _ in cursor.scan(_EMPTY))
            while len(found) < limit and (met := list(islice(walk, WALK_KEYS))):
                values = self._transaction.get_many(number, met)
                found += [(database, key) for key, value in zip(met, values, strict=True) if value is None]
        return found[:limit]

    def count(self, database: str) -> int:
        return self._transaction.count(self._databases[database])


class IndexReader(IndexView):
    """A view that one thread keeps.

    LMDB does not reuse pages that it can see, so it is renewed at each checkpoint.
    """

    def renew(self) -> None:
        """Moves the view to the newest commit; iterators that were begun before it are void."""
        self._transaction.renew()

    def close(self) -> None:
        self._transaction.abort()


class Index:
    """An open index; it owns one LMDB environment."""

    def __init__(self, environment: Environment, redo: RedoFile, pages_max: int) -> None:
        self._environment = environment
        self._redo = redo
        self._pages_max = pages_max
        # Held while the index is between two checkpoints; what it holds is half a checkpoint after a failure too.
        self._checkpointing = threading.Lock()
        self._unfinished = False
        self._pending: CheckpointBatch | None = None

    @classmethod
    def open(
        cls,
        path: Path,
        chain_id: bytes,
        *,
        readonly: bool = False,
        map_bytes: int = LMDB_MAP_BYTES,
        pages_max: int = CHECKPOINT_PAGES_MAX,
        files: OsFiles | None = None,
    ) -> Self:
        """Creates the index if there is none; completes a checkpoint that was interrupted (see :attr:`pending`).

        Raises FormatVersionError for another format, CorruptionError for another chain's or where half a checkpoint
        cannot be completed: destroy it and rebuild it.
        """
        if not readonly:
            path.mkdir(mode=0o700, parents=True, exist_ok=True)
        environment = Environment(
            path,
            DATABASES,
            map_bytes=_map_bytes(path, map_bytes),
            readers_max=LMDB_READERS_MAX,
            readonly=readonly,
        )
        try:
            index = cls(environment, RedoFile(path, chain_id, files or OsFiles()), pages_max)
            index._settle(chain_id)
        except BaseException:
            environment.close()
            raise
        return index

    @staticmethod
    def destroy(path: Path) -> None:
        """Deletes a closed index, which the log can rebuild."""
        shutil.rmtree(path, ignore_errors=True)

    def write_checkpoint(self, batch: CheckpointBatch) -> None:
        """Writes one checkpoint.

        After a crash and the opening that follows, the index is at this or at the one before. A large one is written
        in several transactions, behind a redo file (SPEC-IDX-7). Raises StorageFullError if the disk or the map is
        full (the map grows at the next opening). The next call or the next opening then completes what was begun,
        and until then nobody may rely on the index alone.
        """
        checkpoint = Checkpoint(batch)
        with self._checkpointing:
            if self._unfinished:
                self._complete()
            if len(checkpoint) <= self._pages_max:
                self._write_at_once(checkpoint)
                return
            # The redo file is of the difference to the checkpoint before, which must not be lost from here on.
            self._environment.sync()
            self._redo.write(checkpoint)
            self._unfinished = True
            self._write_pieces(checkpoint)

    def _write_at_once(self, checkpoint: Checkpoint) -> None:
        databases = self._environment.databases
        with self._environment.write() as txn:
            for piece in checkpoint.pieces():
                piece(txn, databases)
            checkpoint.put_meta(txn, databases)

    def _write_pieces(self, checkpoint: Checkpoint) -> None:
        """Writes one bounded transaction after another; removes the redo file once the last of them is durable."""
        databases = self._environment.databases
        with self._environment.write() as txn:
            txn.put_many(databases["meta"], [keys.META_FORMAT], [keys.FORMAT_UNDER_WAY])
        pieces = checkpoint.pieces(min(PIECE_PUTS, self._pages_max))
        piece = next(pieces, None)
        while piece is not None:
            with self._environment.write() as txn:
                pages = 0
                while piece is not None and pages < self._pages_max:
                    pages += piece(txn, databases)
                    piece = next(pieces, None)
        with self._environment.write() as txn:
            txn.put_many(databases["meta"], [keys.META_FORMAT], [_FORMAT])
            checkpoint.put_meta(txn, databases)
        self._environment.sync()
        self._redo.remove()
        self._unfinished, self._pending = False, None

    def _complete(self) -> None:
        """Writes the checkpoint in the redo file again. Any part of it may have been written before."""
        if self._redo.exists():
            self._write_pieces(Checkpoint(self._redo.read()))
        else:  # it was written, and the file's removal failed halfway
            self._redo.remove()
            self._unfinished, self._pending = False, None

    def _settle(self, chain_id: bytes) -> None:
        """Checks that the index is this chain's and of this format, and leaves it at one whole checkpoint."""
        environment, meta = self._environment, self._environment.databases["meta"]
        with environment.read() as txn:
            version, chain = txn.get(meta, keys.META_FORMAT), txn.get(meta, keys.META_CHAIN)
        if version is None and not environment.readonly:
            self._redo.remove()  # of an index that was destroyed
            version, chain = _FORMAT, chain_id
            with environment.write() as txn:
                txn.put_many(meta, [keys.META_CHAIN, keys.META_FORMAT], [chain_id, version])
        under_way = version == keys.FORMAT_UNDER_WAY
        if version != _FORMAT and not under_way:
            number = int.from_bytes(version or b"")
            kind = IndexOutdatedError if 0 < number < INDEX_FORMAT_VERSION else FormatVersionError
            raise kind(f"{environment.path} has index format {number}, not {INDEX_FORMAT_VERSION}")
        if chain != chain_id:
            raise CorruptionError("index belongs to another chain", path=str(environment.path))
        if not environment.readonly:
            self._recover(under_way=under_way)
        elif under_way:
            raise LedgerHaltedError(f"{environment.path} holds half a checkpoint: open it for writing first")

    def _recover(self, *, under_way: bool) -> None:
        """Completes the checkpoint in the redo file, if there is such a file and room to complete it."""
        if self._redo.exists():
            try:
                batch = self._redo.read()
            except (CorruptionError, FormatVersionError):
                if under_way:
                    raise
            else:
                self._unfinished, self._pending = True, batch
                # On a full disk a ledger opens, to be read.
                with suppress(StorageFullError):
                    self._write_pieces(Checkpoint(batch))
                return
        elif under_way:
            path = str(self._environment.path)
            raise CorruptionError("half a checkpoint without its redo file: reindex", path=path)
        self._redo.remove()

    @property
    def pending(self) -> CheckpointBatch | None:
        """The checkpoint that opening found half written and had no room to complete, or None.

        The next :meth:`write_checkpoint` completes it first. Until then whoever reads a view must put it on top.
        """
        return self._pending

    def get_meta(self, name: bytes) -> bytes | None:
        """Returns the value that the last checkpoint, pending or not, put under ``name``, or None."""
        if self._pending is not None and name in self._pending.meta:
            return self._pending.meta[name]
        with self.snapshot() as view:
            return view.get_meta(name)

    def put_raw(self, database: str, names: list[bytes], values: list[bytes]) -> None:
        """Puts entries into one of ``DATABASES`` as they are stored; used to build a whole index from a copy."""
        with self._environment.write() as txn:
            txn.put_many(self._environment.databases[database], names, values)

    def sync(self) -> None:
        """Makes the last checkpoint durable, so that no power cut takes it back."""
        self._environment.sync()

    @contextmanager
    def snapshot(self, *, whole: bool = False) -> Iterator[IndexView]:
        """Yields one view that does not change for the length of the block. Keep it short: it pins old pages.

        While a checkpoint is being written the view may show a part of it. That does no harm to a caller that looks
        at the same blocks elsewhere first. With ``whole`` the call waits for the checkpoint's end instead, and
        raises LedgerHaltedError where the checkpoint has failed.
        """
        with ExitStack() as stack:
            with self._checkpointing if whole else nullcontext():
                if whole and self._unfinished:
                    raise LedgerHaltedError("half a checkpoint was written: reopen the ledger to complete it")
                transaction = stack.enter_context(self._environment.read())
            yield IndexView(transaction, self._environment.databases)

    def reader(self) -> IndexReader:
        """Returns a view that the caller renews and closes."""
        return IndexReader(self._environment.begin_read(), self._environment.databases)

    def compare(
        self, other: "Index", *, limit: int = 20, databases: Sequence[str] = DATABASES[1:]
    ) -> list[Difference]:
        """Returns the first ``limit`` differences to another index, in key order.

        ``meta`` is compared only if asked for.
        """
        with self.snapshot(whole=True) as ours, other.snapshot(whole=True) as theirs:
            return compare_views(ours, theirs, limit=limit, databases=databases)

    def unreachable(self, *, limit: int = 20) -> list[tuple[str, bytes]]:
        """Returns up to ``limit`` (database, key) that :func:`unreachable_entries` finds."""
        with self.snapshot(whole=True) as view:
            return unreachable_entries(view, limit=limit)

    def stats(self) -> dict[str, int]:
        """Returns how many entries each database has."""
        with self.snapshot() as view:
            return {name: view.count(name) for name in DATABASES}

    def close(self) -> None:
        self._environment.close()


def compare_views(
    ours: IndexView,
    theirs: IndexView,
    *,
    limit: int = 20,
    databases: Sequence[str] = DATABASES[1:],
    meaning: Meaning = lambda _database, _key, value: value,
    step: Callable[[], None] = lambda: None,
) -> list[Difference]:
    """Returns the first ``limit`` differences of two views, in key order.

    Values are compared in the form that ``meaning`` (database, key, value) gives them. ``step`` is called every
    WALK_KEYS entries and may raise to end the walk.
    """
    found: list[Difference] = []
    for database in databases:
        with closing(ours.iter_all(database)) as left, closing(theirs.iter_all(database)) as right:
            for difference in _differences(database, _paced(left, step), right, meaning):
                if len(found) >= limit:
                    return found
                found.append(difference)
    return found


def _paced(items: Iterator[tuple[bytes, bytes]], step: Callable[[], None]) -> Iterator[tuple[bytes, bytes]]:
    for number, item in enumerate(items):
        if number % WALK_KEYS == 0:
            step()
        yield item


def unreachable_entries(view: IndexView, *, limit: int = 20) -> list[tuple[str, bytes]]:
    """Returns up to ``limit`` (database, key) of entries that a walk meets and a search does not find.

    Damage to LMDB's inner pages has this effect, and no comparison in key order shows it.
    """
    found: list[tuple[str, bytes]] = []
    for database in DATABASES:
        found += view.unreachable(database, limit - len(found))
    return found


def _runs(items: Iterator[tuple[bytes, bytes]], term: bytes) -> Iterator[list[int]]:
    """Yields the runs of one term from ``items`` and ends where another term begins."""
    for key, value in items:
        if not key.startswith(term):
            return
        yield keys.run_seqs(key, value)


def _map_bytes(path: Path, map_bytes: int) -> int:
    """Returns the bytes of the memory map to open with, which are address space and take no disk.

    That is at least twice the file, so that an index that filled its map opens with room.
    """
    data = path / "data.mdb"
    return max(map_bytes, 2 * data.stat().st_size) if data.exists() else map_bytes


def _differences(
    database: str,
    ours: Iterator[tuple[bytes, bytes]],
    theirs: Iterator[tuple[bytes, bytes]],
    meaning: Meaning,
) -> Iterator[Difference]:
    left, right = next(ours, None), next(theirs, None)
    while left is not None or right is not None:
        if right is None or (left is not None and left[0] < right[0]):
            yield Difference(database, left[0], left[1], None)  # type: ignore[index]
            left = next(ours, None)
        elif left is None or right[0] < left[0]:
            yield Difference(database, right[0], None, right[1])
            right = next(theirs, None)
        else:
            if left[1] != right[1] and meaning(database, *left) != meaning(database, *right):
                yield Difference(database, left[0], left[1], right[1])
            left, right = next(ours, None), next(theirs, None)

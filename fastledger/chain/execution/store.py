"""The chain's state as a stack: blocks not yet durable, durable blocks not yet checkpointed, the LMDB index.

::

    layers      one per block appended to the log, not yet synced      seen by the executor alone
    active      durable blocks since the last checkpoint began          seen by everyone
    frozen      the blocks that the checkpoint in progress is writing    seen by everyone
    index       everything before, in LMDB

Three threads meet here. The executor pushes layers and reads through all of them; the syncer turns layers into
overlay; the checkpointer writes the frozen overlay. Each structure has one writer, what readers see is replaced in
one assignment, and an entry always stands in the next structure before it leaves the one above (SPEC-PIPE-5).
"""

import threading
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import NamedTuple

from fastledger._native.lmdb_batch import find_postings
from fastledger.chain.admission import Prefetched
from fastledger.errors import Code, CorruptionError
from fastledger.limits import BLOCK_PLACES_MAX, STATE_CACHE_ENTRIES_MAX
from fastledger.model.terms import code_term
from fastledger.state.view import Stack, Writes
from fastledger.storage.checkpoint import CheckpointBatch
from fastledger.storage.index import Index, IndexView
from fastledger.storage.keys import TermLog
from fastledger.storage.log import FrameRef

_ENTRY_BYTES = 64
# The place of a block that this node's log does not hold: no frame begins where a segment's header stands.
NOWHERE = FrameRef(0, 0, 0)
_WRITE_BYTES = 220


class BlockEntry(NamedTuple):
    """The index entry of a block: its place in the log, its id, its time, and its transactions' numbers."""

    ref: FrameRef
    block_id: bytes
    time_ms: int
    first_seq: int
    tx_count: int

    def pack(self) -> bytes:
        """Returns the value in the ``blocks`` database, 64 bytes."""
        return b"".join(
            (
                self.ref.pack(),
                self.block_id,
                self.time_ms.to_bytes(8, "big"),
                self.first_seq.to_bytes(8, "big"),
                self.tx_count.to_bytes(4, "big"),
            )
        )

    @classmethod
    def unpack(cls, data: bytes) -> "BlockEntry":
        """Returns the entry that :meth:`pack` packed. Raises ``CorruptionError`` for another length."""
        if len(data) != _ENTRY_BYTES:
            raise CorruptionError(f"the entry of a block has {len(data)} bytes: reindex", path="index")
        tail = data[-52:]
        return cls(
            FrameRef.unpack(data[:-52]),
            tail[:32],
            int.from_bytes(tail[32:40], "big"),
            int.from_bytes(tail[40:48], "big"),
            int.from_bytes(tail[48:52], "big"),
        )


class Layer(NamedTuple):
    """Everything that one block adds to the index."""

    height: int
    entry: BlockEntry
    writes: Writes
    txids: dict[bytes, int]
    terms: TermLog
    meta: dict[bytes, bytes]


class Durable(NamedTuple):
    """The newest block that is durable and visible, and the number of the transaction after it."""

    height: int = -1
    block_id: bytes = bytes(32)
    next_seq: int = 0


@dataclass
class Overlay:
    """Durable blocks that the index does not hold yet."""

    state: Writes = field(default_factory=dict)
    txids: dict[bytes, int] = field(default_factory=dict)
    terms: list[TermLog] = field(default_factory=list)
    heights: list[int] = field(default_factory=list)
    first_seqs: list[int] = field(default_factory=list)
    entries: list[BlockEntry] = field(default_factory=list)
    meta: dict[bytes, bytes] = field(default_factory=dict)
    term_bytes: int = 0

    @classmethod
    def of(cls, batch: CheckpointBatch) -> "Overlay":
        """Returns the overlay that :meth:`batch` made a checkpoint of."""
        return cls(
            state=dict(batch.state),
            txids=dict(batch.txids),
            terms=list(batch.postings),
            heights=[height for height, _, _ in batch.blocks],
            first_seqs=[seq for _, seq, _ in batch.blocks],
            entries=[BlockEntry.unpack(entry) for _, _, entry in batch.blocks],
            meta=dict(batch.meta),
            term_bytes=sum(len(log.terms) for log in batch.postings),
        )

    def add(self, layer: Layer) -> None:
        """Takes a block in; sequence numbers only grow, so every posting list stays sorted."""
        self.state.update(layer.writes)
        self.terms.append(layer.terms)
        self.term_bytes += len(layer.terms.terms)
        self.entries.append(layer.entry)
        self.first_seqs.append(layer.entry.first_seq)
        self.heights.append(layer.height)
        self.meta = layer.meta
        self.txids.update(layer.txids)

    def terms_between(self, start_seq: int, end_seq: int) -> list[TermLog]:
        """Returns the term logs of the blocks that hold transactions of [start_seq, end_seq)."""
        first = max(bisect_right(self.first_seqs, start_seq) - 1, 0)
        return [log for log in self.terms[first:] if log.first_seq < end_seq]

    @property
    def transaction_count(self) -> int:
        """How many transactions the overlay holds."""
        return len(self.txids)

    @property
    def bytes_estimate(self) -> int:
        """About how many bytes of memory the overlay takes, for the checkpoint bound."""
        return len(self.state) * _WRITE_BYTES + self.term_bytes

    def batch(self) -> CheckpointBatch:
        """Returns the overlay as one checkpoint of the index."""
        blocks = [
            (height, entry.first_seq, entry.pack())
            for height, entry in zip(self.heights, self.entries, strict=True)
        ]
        return CheckpointBatch(
            state=self.state, txids=self.txids, blocks=blocks, postings=self.terms, meta=self.meta
        )


class BlockPlaces:
    """A cache of block entries by first transaction: a block never moves, and most reads are near each other."""

    def __init__(self, places_max: int = BLOCK_PLACES_MAX) -> None:
        self._places_max = places_max
        # Replaced as one, never changed: readers look without a lock, and a lost addition costs a look-up.
        self._found: tuple[list[int], list[tuple[int, BlockEntry]]] = ([], [])

    def find(self, seq: int) -> tuple[int, BlockEntry] | None:
        """Returns height and entry of the block that holds ``seq``, if it is in the cache."""
        first_seqs, places = self._found
        position = bisect_right(first_seqs, seq) - 1
        if position < 0:
            return None
        place = places[position]
        return place if seq < place[1].first_seq + place[1].tx_count else None

    def add(self, height: int, entry: BlockEntry) -> None:
        """Adds a block; where there are too many, all others are dropped."""
        first_seqs, places = self._found
        if len(first_seqs) >= self._places_max:
            first_seqs, places = [], []
        at = bisect_right(first_seqs, entry.first_seq)
        self._found = (
            [*first_seqs[:at], entry.first_seq, *first_seqs[at:]],
            [*places[:at], (height, entry), *places[at:]],
        )


class Snapshot:
    """A consistent read view of everything durable, for one thread and a short time."""

    def __init__(
        self, overlays: Sequence[Overlay], index: IndexView, end_seq: int, places: BlockPlaces | None = None
    ) -> None:
        self._overlays = overlays
        self._index = index
        self._places = places or BlockPlaces()
        self.end_seq = end_seq

    def get_state(self, key: bytes) -> bytes | None:
        """Returns the state value of ``key``, or None."""
        for overlay in self._overlays:
            if key in overlay.state:
                return overlay.state[key]
        return self._index.get_state(key)

    def meta(self, name: bytes) -> bytes | None:
        """Returns the value that the newest durable block, or the checkpoint before, put under ``name``; or None."""
        for overlay in self._overlays:
            if name in overlay.meta:
                return overlay.meta[name]
        return self._index.get_meta(name)

    def get_states(self, keys: Sequence[bytes]) -> dict[bytes, bytes | None]:
        """Returns the state values of many keys; None for a key that is not there."""
        # One by one: a batch read drops the GIL, and the ledger may be closed by another thread meanwhile.
        return {key: self.get_state(key) for key in keys}

    def seq_of_txid(self, txid: bytes) -> int | None:
        """Returns the transaction's number in the chain, counted from 0, or None."""
        for overlay in self._overlays:
            seq = overlay.txids.get(txid)
            if seq is not None:
                return seq
        return self._index.seq_of_txid(txid)

    def block_entry(self, height: int) -> BlockEntry | None:
        """Returns the entry of the block at ``height``, or None."""
        for overlay in self._overlays:
            if overlay.heights and height >= overlay.heights[0]:
                position = height - overlay.heights[0]
                if position < len(overlay.entries):
                    return overlay.entries[position]
        value = self._index.block_entry(height)
        return None if value is None else BlockEntry.unpack(value)

    def block_of_seq(self, seq: int) -> tuple[int, BlockEntry] | None:
        """Returns height and entry of the block that holds transaction number ``seq``, or None."""
        for overlay in self._overlays:
            if overlay.first_seqs and seq >= overlay.first_seqs[0]:
                position = bisect_right(overlay.first_seqs, seq) - 1
                return overlay.heights[position], overlay.entries[position]
        place = self._places.find(seq)
        if place is None:
            found = self._index.block_of_seq(seq)
            if found is None:
                return None
            place = found[0], BlockEntry.unpack(found[2])
            self._places.add(*place)
        return place

    def postings(self, term: bytes, start_seq: int, end_seq: int, *, reverse: bool = False) -> Iterator[int]:
        """Yields the numbers of the transactions under a term in [start_seq, end_seq), ascending or descending."""
        recent = self._recent_postings(term, start_seq, end_seq)
        if reverse:
            yield from reversed(recent)
            first = recent[0] if recent else end_seq
            if first > 0:
                for seq in self._index.iter_postings(term, start_seq=first - 1, reverse=True):
                    if seq < start_seq:
                        return
                    yield seq
            return
        last = -1
        for seq in self._index.iter_postings(term, start_seq=start_seq):
            if seq >= end_seq:
                return
            yield seq
            last = seq
        yield from (seq for seq in recent if seq > last)

    def _recent_postings(self, term: bytes, start_seq: int, end_seq: int) -> list[int]:
        found: list[int] = []
        for overlay in reversed(self._overlays):
            logs = overlay.terms_between(start_seq, end_seq)
            found += [seq for seq in find_postings(logs, term) if start_seq <= seq < end_seq]
        return found

    def has_posting(self, term: bytes, seq: int) -> bool:
        """Whether transaction number ``seq`` is under a term."""
        return next(self.postings(term, seq, seq + 1), None) == seq


class ChainStore:
    """Owns the stack. The module's docstring says which thread calls what."""

    def __init__(self, index: Index) -> None:
        self.index = index
        self._lock = threading.Lock()
        self._shared = threading.local()
        self._places = BlockPlaces()
        self._layers: tuple[Layer, ...] = ()
        # active first, then frozen where a checkpoint is in progress
        self._overlays: tuple[Overlay, ...] = (Overlay(),)
        self._frozen_written = False
        self._reader = index.reader()
        self._cache: Writes = {}
        self._ahead: Writes = {}
        # How often an overlay was let go of, because the index holds it.
        self._epoch = 0
        self.durable = Durable()
        self._unwritten: Overlay | None = None
        if index.pending is not None:
            self._unwritten = Overlay.of(index.pending)
            self._overlays = (Overlay(), self._unwritten)

    # The executor's side.

    def lookup(self) -> Stack:
        """Returns the state with all layers, durable or not.

        For the executor's thread, until it pushes, pops or renews. What is prefetched from here on is for this
        lookup.
        """
        if len(self._cache) > STATE_CACHE_ENTRIES_MAX:
            self._cache.clear()
        # One small map a block, which stays in the processor's cache, for what few other blocks will ask.
        self._ahead = {}
        # What the others do meanwhile takes nothing away: a layer that settles stands in an overlay by then, and a
        # frozen overlay that the index has stays until it is renewed.
        maps = [layer.writes for layer in reversed(self._layers)]
        maps += [overlay.state for overlay in self._overlays]
        maps.append(self._ahead)
        return Stack(maps, self._cache, self._reader.get_state)

    def prefetch(self, keys: Iterable[bytes]) -> None:
        """Reads in one go what the newest lookup is likely to be asked for; for the executor's thread."""
        self._ahead.update(self._reader.get_states(keys))

    def take_ahead(self, ahead: Prefetched | None) -> bool:
        """Gives the newest lookup what :meth:`read_ahead` found.

        Returns False where there is nothing, or it holds no more.
        """
        if ahead is None or ahead.epoch != self._epoch:
            return False
        self._ahead.update(ahead.states)
        return True

    def seqs_of_txids(
        self, txids: Sequence[bytes], indexed: dict[bytes, int] | None = None
    ) -> dict[bytes, int]:
        """Returns txid -> seq for those of ``txids`` that the chain holds, durable or not.

        For the executor's thread. ``indexed`` are those that the index holds, where that was looked up before.
        """
        known = [layer.txids for layer in self._layers if layer.txids]
        known += [overlay.txids for overlay in self._overlays]
        found = self._reader.seqs_of_txids(txids) if indexed is None else dict(indexed)
        for seqs in known:
            for txid in seqs.keys() & txids:
                found[txid] = seqs[txid]
        return found

    def entry_of_seq(self, seq: int) -> tuple[int, BlockEntry]:
        """Returns height and entry of the block that holds ``seq``, durable or not; for the executor's thread."""
        for layer in reversed(self._layers):
            if seq >= layer.entry.first_seq:
                return layer.height, layer.entry
        found = Snapshot(self._overlays, self._reader, seq).block_of_seq(seq)
        if found is None:
            raise LookupError(f"no block holds transaction number {seq}")
        return found

    def code_of_seq(self, seq: int) -> Code:
        """Returns the verdict on a transaction of a pruned block: refusals stand in the postings (SPEC-PRUNE-3)."""
        found = Snapshot(self._overlays, self._reader, seq + 1)
        refusals = (code for code in Code.all() if code.is_refusal)
        return next((code for code in refusals if found.has_posting(code_term(code), seq)), Code.OK)

    def push(self, layer: Layer) -> None:
        """Adds an appended block on top; for the executor's thread."""
        with self._lock:
            self._layers = (*self._layers, layer)

    def pop(self) -> Layer:
        """Takes the top layer off, whose block left the best chain; for the executor's thread."""
        with self._lock:
            layer = self._layers[-1]
            self._layers = self._layers[:-1]
        return layer

    @property
    def layers(self) -> tuple[Layer, ...]:
        """The blocks that are not durable, lowest first; for the executor's thread."""
        return self._layers

    def entry_at(self, height: int) -> BlockEntry | None:
        """Returns the entry of the durable block at ``height``, or None; for the executor's thread."""
        return Snapshot(self._overlays, self._reader, self.durable.next_seq).block_entry(height)

    def renew(self) -> None:
        """Drops a frozen overlay that the index holds by now; for the executor's thread, between blocks."""
        with self._lock:
            if self._frozen_written:
                self._reader.renew()
                # It may hold what the frozen overlay had overwritten.
                self._cache.clear()
                self._overlays = self._overlays[:1]
                self._frozen_written = False
                self._epoch += 1

    # The submitters' side.

    def read_ahead(self, keys: Sequence[bytes], txids: Sequence[bytes]) -> Prefetched | None:
        """Looks up in the index what the executor will need for a batch; on any thread.

        Returns None where the index is damaged. The view is opened after the epoch is noted, so it shows every
        overlay that was dropped by then. What it shows of a later one, whole or in part, stands in an overlay still,
        where the executor looks first.
        """
        epoch = self._epoch
        try:
            with self.index.snapshot() as view:
                return Prefetched(epoch, view.get_states(keys), view.seqs_of_txids(txids))
        except CorruptionError:
            return None  # the executor will meet it, and halt

    # The syncer's side.

    def settle(self, count: int) -> None:
        """Moves the lowest ``count`` layers, which became durable, into the overlay."""
        self.settle_layers(self._layers[:count])

    def settle_layers(self, layers: Sequence[Layer]) -> None:
        """Moves the lowest layers into the overlay.

        ``layers`` take their place, with their places in the log filled in.
        """
        active = self._overlays[0]
        for layer in layers:
            active.add(layer)
            entry = layer.entry
            self.durable = Durable(layer.height, entry.block_id, entry.first_seq + entry.tx_count)
        with self._lock:
            self._layers = self._layers[len(layers) :]

    def freeze(self, *, transactions_min: int, bytes_min: int) -> Overlay | None:
        """Begins a checkpoint where there is enough to write and none in progress; returns what to write, or None.

        One that could not be written is begun again first.
        """
        with self._lock:
            if self._unwritten is not None:
                frozen, self._unwritten = self._unwritten, None
                return frozen
            active = self._overlays[0]
            enough = active.transaction_count >= transactions_min or active.bytes_estimate >= bytes_min
            if len(self._overlays) > 1 or not active.entries or not enough:
                return None
            self._overlays = (Overlay(), active)
            return active

    # The checkpointer's side.

    def write_frozen(self, frozen: Overlay) -> None:
        """Writes the frozen overlay to the index; the executor lets go of it later (:meth:`renew`)."""
        try:
            self.index.write_checkpoint(frozen.batch())
        except BaseException:
            with self._lock:
                self._unwritten = frozen
            raise
        with self._lock:
            self._frozen_written = True

    # Everyone's side.

    @contextmanager
    def snapshot(self) -> Iterator[Snapshot]:
        """Yields a view of everything durable now, or when the thread's :meth:`shared_snapshot` began."""
        shared: Snapshot | None = getattr(self._shared, "snapshot", None)
        if shared is not None:
            yield shared
            return
        while True:
            # Overlays first: what leaves them later is in the index that is opened after.
            end_seq = self.durable.next_seq
            overlays = self._overlays
            with self.index.snapshot() as view:
                # Unless they were replaced meanwhile, no overlay but these has left a trace in the view.
                if self._overlays is overlays:
                    yield Snapshot(overlays, view, end_seq, self._places)
                    return

    @contextmanager
    def shared_snapshot(self) -> Iterator[None]:
        """Makes all reads of this thread see one moment and open the index once, for the length of a short block."""
        with self.snapshot() as snapshot:
            self._shared.snapshot = snapshot
            try:
                yield
            finally:
                self._shared.snapshot = None

    def close(self) -> None:
        """Frees the executor's reader; the index is closed by its owner."""
        self._reader.close()

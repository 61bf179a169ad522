"""What readers see through the overlays while a checkpoint is written, piece by piece."""

import random
from array import array
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
from cuts import dying_after, open_index, transactions_counted
from storage_faults import SimulatedCrash

from fastledger.chain.execution.replay import checkpoint_if_due
from fastledger.chain.execution.store import BlockEntry, ChainStore, Layer, Prefetched
from fastledger.errors import StorageFullError
from fastledger.storage import keys
from fastledger.storage.index import Index, IndexView
from fastledger.storage.log import FrameRef

TERMS = [b"\x00\x02" + bytes([n]) * 16 for n in range(3)]
KEYS = [b"key %d" % n for n in range(30)]
TXIDS_MAX = 1_000


class Model:
    """A chain store and what it must answer."""

    def __init__(self, index: Index, seed: int) -> None:
        self.store = ChainStore(index)
        self.rng = random.Random(seed)
        self.state: dict[bytes, bytes | None] = {}
        self.txids: list[bytes] = []
        self.terms: list[list[bytes]] = []
        self.first_seqs: list[int] = []
        self.coming = [self.rng.randbytes(32) for _ in range(TXIDS_MAX)]
        self.aheads: list[Prefetched] = []
        self.taken = self.refused = 0

    def block(self) -> None:
        """One more block, durable at once."""
        count, first = self.rng.randrange(1, 6), len(self.txids)
        txids = {self.coming[first + n]: first + n for n in range(count)}
        terms = [[term for term in TERMS if self.rng.random() < 0.6] for _ in range(count)]
        writes = {self.rng.choice(KEYS): self.rng.choice((None, b"%d" % first)) for _ in range(4)}
        height = len(self.first_seqs)
        entry = BlockEntry(FrameRef(0, 64 * height, 1), height.to_bytes(32, "big"), 0, first, count)
        log = keys.TermLog(b"".join(map(b"".join, terms)), array("I", map(len, terms)), first)
        self.store.push(Layer(height, entry, writes, txids, log, {b"height": b"%d" % height}))
        self.store.settle(1)
        self.state |= writes
        self.txids += txids
        self.terms += terms
        self.first_seqs.append(first)

    def check(self) -> None:
        """Asks for everything, as readers and as the executor does."""
        end = len(self.txids)
        with self.store.snapshot() as snapshot:
            assert snapshot.end_seq == end
            assert snapshot.meta(b"height") == b"%d" % (len(self.first_seqs) - 1)
            for key, value in self.state.items():
                assert snapshot.get_state(key) == self.store.lookup()(key) == value
            for seq in self.rng.sample(range(end), min(end, 10)):
                assert snapshot.seq_of_txid(self.txids[seq]) == seq
                height = sum(first <= seq for first in self.first_seqs) - 1
                found = snapshot.block_of_seq(seq)
                assert found is not None
                assert (found[0], found[1].first_seq) == (height, self.first_seqs[height])
                assert snapshot.block_entry(height) == found[1]
                assert [snapshot.has_posting(term, seq) for term in TERMS] == [
                    term in self.terms[seq] for term in TERMS
                ]
            low, high = sorted(self.rng.sample(range(end + 1), 2))
            for term in TERMS:
                for start, stop in ((0, end), (low, high)):
                    wanted = [seq for seq in range(start, stop) if term in self.terms[seq]]
                    assert list(snapshot.postings(term, start, stop)) == wanted
                    assert list(snapshot.postings(term, start, stop, reverse=True)) == wanted[::-1]
        assert self.store.seqs_of_txids(self.txids) == {txid: seq for seq, txid in enumerate(self.txids)}
        self.check_aheads()

    def check_aheads(self) -> None:
        """What was read before, at any moment of any checkpoint, gives the present state or is not taken."""
        known = {txid: seq for seq, txid in enumerate(self.txids)}
        for ahead in self.aheads:
            lookup = self.store.lookup()
            if not self.store.take_ahead(ahead):
                self.refused += 1
                continue
            self.taken += 1
            assert {key: lookup(key) for key in KEYS} == dict.fromkeys(KEYS) | self.state
            assert self.store.seqs_of_txids(self.coming, ahead.seqs) == known
        found = self.store.read_ahead(KEYS, self.coming)
        assert found is not None
        self.aheads = [*self.aheads[-20:], found]


@pytest.mark.parametrize("seed", range(2))
def test_readers_see_every_block_once_between_the_pieces_of_a_checkpoint(  # SPEC-IDX-8
    tmp_path: Path, seed: int
) -> None:
    index = open_index(tmp_path)
    model = Model(index, seed)
    moments = 0

    def before(number: int) -> None:
        nonlocal moments
        moments += 1
        if model.rng.random() < 0.3:
            model.block()
        model.check()

    for attempt in range(6):
        for _ in range(8):
            model.block()
        model.check()
        frozen = model.store.freeze(transactions_min=0, bytes_min=0)
        assert frozen is not None
        if attempt == 3:
            # One that fails midway stands above the index as before, and is written again.
            with transactions_counted(dying_after(4)), pytest.raises(SimulatedCrash):
                model.store.write_frozen(frozen)
            model.check()
            frozen = model.store.freeze(transactions_min=0, bytes_min=0)
            assert frozen is not None
        with transactions_counted(before):
            model.store.write_frozen(frozen)
        model.check()
        model.store.renew()
        model.check()
    assert moments > 60
    assert model.taken > 500
    assert model.refused > 20
    assert not model.store.take_ahead(None)
    model.store.close()
    index.close()


def test_a_snapshot_never_mixes_old_overlays_with_a_later_view(tmp_path: Path) -> None:  # SPEC-IDX-8
    index = open_index(tmp_path)
    model = Model(index, 1)
    model.block()
    snapshot, checkpoints = index.snapshot, 0

    @contextmanager
    def late(*, whole: bool = False) -> Iterator[IndexView]:
        """A reader that sleeps between overlays and view while the chain goes on by two checkpoints and a half."""
        nonlocal checkpoints
        while checkpoints < 3:
            checkpoints += 1
            for _ in range(5):
                model.block()
            frozen = model.store.freeze(transactions_min=0, bytes_min=0)
            assert frozen is not None
            if checkpoints == 3:
                with transactions_counted(dying_after(6)), pytest.raises(SimulatedCrash):
                    model.store.write_frozen(frozen)
                break
            model.store.write_frozen(frozen)
            model.store.renew()
        with snapshot(whole=whole) as view:
            yield view

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(index, "snapshot", late)
        with model.store.snapshot() as found:
            assert found.end_seq == len(model.txids)
            assert found.get_states(list(model.state)) == model.state
            assert [found.seq_of_txid(txid) for txid in model.txids] == list(range(found.end_seq))
    assert checkpoints == 3
    model.store.close()
    index.close()


def test_what_opening_cannot_complete_is_read_through_the_redo_file(tmp_path: Path) -> None:  # SPEC-IDX-5
    def full(number: int) -> None:
        if number == 7:
            raise StorageFullError("no space")

    index = open_index(tmp_path)
    model = Model(index, 3)
    for before in (lambda _: None, full):
        for _ in range(8):
            model.block()
        frozen = model.store.freeze(transactions_min=0, bytes_min=0)
        assert frozen is not None
        with transactions_counted(before), suppress(StorageFullError):
            model.store.write_frozen(frozen)
        model.store.renew()
    durable = model.store.durable
    model.store.close()
    index.close()
    with transactions_counted(full):
        index = open_index(tmp_path)
    model.store = ChainStore(index)
    model.store.durable = durable
    model.check()
    model.block()
    checkpoint_if_due(model.store)  # does not try again, block by block
    model.check()
    while (frozen := model.store.freeze(transactions_min=0, bytes_min=0)) is not None:
        model.store.write_frozen(frozen)
        model.store.renew()
        model.check()
    assert index.pending is None
    assert index.stats()["txids"] == len(model.txids)
    model.store.close()
    index.close()

"""Envelopes that no record names: of refused records, and of uploads that were never submitted (SPEC-ORPH-1)."""

import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice

from fastledger.chain.pace import Pace
from fastledger.chain.pipeline import Pipeline
from fastledger.chain.store import ChainStore
from fastledger.state.entities import BLOBS
from fastledger.storage.blobs import BlobStore

_LOOKED_UP_AT_ONCE = 1_000
_ERASED_AT_ONCE = 64
_WAIT_SECONDS = 0.05
_POLL_SECONDS = 0.001


@dataclass(frozen=True, slots=True)
class OrphanReport:
    """How many old envelopes were looked at; how many of them nobody named, and their bytes, now given back."""

    examined: int
    collected: int
    freed_bytes: int


class Gate:
    """Lets any number of submitters through, or nobody."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._inside = 0
        self._shut = False

    @contextmanager
    def entered(self) -> Iterator[None]:
        """For a submitter, from before its envelopes are stored until its batch is queued."""
        with self._changed:
            while self._shut:
                self._changed.wait()
            self._inside += 1
        try:
            yield
        finally:
            with self._changed:
                self._inside -= 1
                self._changed.notify_all()

    @contextmanager
    def shut(self, pace: Pace) -> Iterator[None]:
        """Nobody is inside for the length of the block; who comes waits."""
        with self._changed:
            self._shut = True
        try:
            with self._changed:
                while self._inside:
                    pace.check()
                    self._changed.wait(_WAIT_SECONDS)
            yield
        finally:
            with self._changed:
                self._shut = False
                self._changed.notify_all()


def collect_orphans(
    *, blobs: BlobStore, store: ChainStore, pipeline: Pipeline, gate: Gate, older_than_ms: int, pace: Pace
) -> OrphanReport:
    """Erases the envelopes that no record names and whose file was last written to longer ago than that."""
    before = time.time() - older_than_ms / 1000
    old_packs = {number for number, path in blobs.pack_files() if path.stat().st_mtime < before}
    blobs.flush()
    orphans: list[bytes] = []
    examined = 0
    candidates = _old_digests(blobs, old_packs, before)
    while looked_at := list(islice(candidates, _LOOKED_UP_AT_ONCE)):
        examined += len(looked_at)
        orphans += _unnamed(store, looked_at)
        pace.tell("orphans", examined, examined)
    collected = freed = 0
    for at in range(0, len(orphans), _ERASED_AT_ONCE):
        with gate.shut(pace):
            while pipeline.queue_depth:  # what was let through before may name one of them
                pace.check()
                time.sleep(_POLL_SECONDS)
            for digest in _unnamed(store, orphans[at : at + _ERASED_AT_ONCE]):
                freed += blobs.size(digest)
                collected += blobs.erase(digest)
        pace.tell("erase", min(at + _ERASED_AT_ONCE, len(orphans)), len(orphans))
    return OrphanReport(examined, collected, freed)


def _old_digests(blobs: BlobStore, old_packs: set[int], before: float) -> Iterator[bytes]:
    yield from blobs.packed_digests(old_packs)
    for digest, path in blobs.large_files():
        if path.stat().st_mtime < before:
            yield digest


def _unnamed(store: ChainStore, digests: Sequence[bytes]) -> list[bytes]:
    """Those of the digests that no record on the chain names, live or erased."""
    with store.snapshot() as snapshot:
        owners = snapshot.get_states([BLOBS.prefix + digest for digest in digests])
    return [digest for digest in digests if owners[BLOBS.prefix + digest] is None]

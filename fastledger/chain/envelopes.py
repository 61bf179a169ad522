"""Envelopes between the chain and the blob store: who may store, read and collect which (SPEC-READ, SPEC-ORPH).

An envelope is stored before the record that names it. Where that record never comes, nobody owns the envelope, and
it is collected once it has been seen like that for long enough. Three things hold a collection off, and it looks at
them in this order, under the blob store's lock, in which no put runs:

1. A batch that names it is between admission and its verdict: it is *pinned*. Admission pins before it looks whether
   the envelope is stored, and is told that it is missing where a collection came first.
2. The durable state names it. What was pinned and is not any more is there already, or was refused; unless the ledger
   has halted, where what the log holds is known at the next opening only, and nothing is collected.
3. It was put again meanwhile: a put takes it off the list of those without an owner.
"""

import threading
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple

from fastledger.chain.execution.store import ChainStore, Snapshot
from fastledger.chain.unreferenced import UnreferencedQuota
from fastledger.errors import AccessRefused, Code, InputError, NotFoundError, TransactionError
from fastledger.limits import ORPHANS_MAX, UNREFERENCED_BYTES_MAX
from fastledger.model.outcome import Outcome
from fastledger.model.reports import Collected
from fastledger.model.transaction import Transaction
from fastledger.state.view import View
from fastledger.storage.blobs.orphans import OrphanJournal
from fastledger.storage.blobs.store import BlobStore
from fastledger.subjects.access import AccessRead
from fastledger.subjects.record import BLOBS, RECORDS

READER_CHUNK_BYTES = 256 * 1024
_WAIT_SECONDS = 0.1


class ReadGrant(NamedTuple):
    """A read that the chain granted, on record as ``txid``, and the envelope that it is for (``size`` in bytes)."""

    txid: bytes
    record: bytes
    version: int
    digest: bytes
    size: int
    signer: bytes
    access: AccessRead


def access_body(transaction: Transaction) -> AccessRead:
    """Returns the body of an ``access.read``; raises ``InputError`` for any other transaction."""
    body = transaction.body
    if not isinstance(body, AccessRead):
        raise InputError(f"a read is asked for by access.read, not {transaction.kind}", code=Code.BAD_BODY)
    return body


def check_granted(txid: bytes, outcome: Outcome) -> None:
    """Raises ``AccessRefused`` for a read that the rules refused, ``TransactionError`` for one rejected or used."""
    if outcome.status == "refused":
        raise AccessRefused(f"read {txid.hex()} was refused", code=outcome.code, txid=txid)
    outcome.raise_for_status()
    if outcome.duplicate:
        raise TransactionError(f"read {txid.hex()} was used before", code=Code.DUPLICATE, txid=txid)


class Pins:
    """The envelopes that one batch names, held from its admission to :meth:`release`."""

    def __init__(self, envelopes: "Envelopes") -> None:
        """Takes the envelopes' owner; nothing is pinned yet."""
        self._envelopes = envelopes

    def missing(self, digests: Sequence[bytes]) -> list[bytes]:
        """Pins envelopes; returns those that are neither stored nor on the chain, or are being collected."""
        self._envelopes.pin(self, digests)
        return self._envelopes.missing(digests)

    def hold(self, digests: Sequence[bytes]) -> list[bytes]:
        """Pins envelopes and calls none missing, for a node that keeps envelopes elsewhere too."""
        self._envelopes.pin(self, digests)
        return []

    def release(self) -> None:
        """Ends the pins; may be called twice."""
        self._envelopes.unpin(self)


class Envelopes:
    """The blob store under the rules of a chain. Every method may be called from any thread."""

    def __init__(
        self,
        *,
        try_out: Callable[[View, bytes, Any, int], Code],
        store: ChainStore,
        blobs: BlobStore,
        journal: Path,
        clock_ms: Callable[[], int],
        check_running: Callable[[], None],
        unreferenced_max: int = ORPHANS_MAX,
        unreferenced_bytes_max: int = UNREFERENCED_BYTES_MAX,
    ) -> None:
        """``try_out`` is :meth:`Executor.try_out`. ``check_running`` raises once the ledger has halted.

        ``journal`` is the file of those without an owner.
        ``unreferenced_max`` and ``unreferenced_bytes_max`` bound what is stored ahead of the records that name it.
        """
        self._try_out = try_out
        self._store = store
        self._blobs = blobs
        self._clock_ms = clock_ms
        self._check_running = check_running
        self._journal = OrphanJournal(journal)
        # Taken under the blob store's lock, never around it.
        self._journal_lock = threading.Lock()
        self._pins_lock = threading.Lock()
        # Who holds what: a step a batch, not one an envelope.
        self._pins: dict[Pins, Sequence[bytes]] = {}
        self._condemned: set[bytes] = set()
        self._collecting = threading.Lock()
        self.unreferenced = UnreferencedQuota(
            count_max=unreferenced_max,
            bytes_max=unreferenced_bytes_max,
            unowned=self._unowned,
            found_before=self._found_before,
        )

    # Storing.

    def put(self, blobs: Sequence[bytes]) -> list[bytes]:
        """Stores envelopes, durably, and returns their digests in order. Those of erased records are not stored."""
        return self._blobs.put_many(blobs, unwanted=self._erased, arriving=self._arriving)

    def put_ahead(self, blobs: Sequence[bytes]) -> list[bytes]:
        """Stores envelopes ahead of the records that will name them, as :meth:`put` does.

        Raises ``LedgerBusyError`` where too many wait for their records.
        """
        sizes = [len(blob) for blob in blobs]
        self.unreferenced.check(len(sizes), sum(sizes))
        digests = self.put(blobs)
        self.unreferenced.add(zip(digests, sizes, strict=True))
        return digests

    def adopt(self, source: Path, digest: bytes) -> None:
        """Takes over a whole file as :meth:`BlobStore.adopt` does, ahead of the record that will name it.

        There is room: what may be under way was checked when it began (:meth:`UnreferencedQuota.check`).
        """
        size = source.stat().st_size
        self._blobs.adopt(source, digest, unwanted=self._erased, arriving=self._arriving)
        self.unreferenced.add([(digest, size)])

    def _found_before(self) -> Iterator[tuple[bytes, int]]:
        """Yields digest and size of the envelopes that a collection before this start found without an owner."""
        with self._journal_lock:
            known = list(self._journal.since_ms)
        return self._sized(known)

    def _sized(self, digests: Iterable[bytes]) -> Iterator[tuple[bytes, int]]:
        for digest in digests:
            with suppress(NotFoundError):
                yield digest, self._blobs.size(digest)

    def _erased(self, digests: Sequence[bytes]) -> list[bytes]:
        """Returns the envelopes that a durable erasure destroyed. A batch sent again must not bring them back."""
        with self._store.snapshot() as snapshot:
            owners = snapshot.get_states([BLOBS.prefix + digest for digest in digests])
            return [
                key[len(BLOBS.prefix) :]
                for key, owner in owners.items()
                if owner is not None and self._is_erased(snapshot, BLOBS.decode(owner).record)
            ]

    def _is_erased(self, snapshot: Snapshot, record: bytes) -> bool:
        raw = snapshot.get_state(RECORDS.prefix + record)
        return raw is not None and RECORDS.decode(raw).erased

    def _arriving(self, digests: Sequence[bytes]) -> None:
        with self._journal_lock:
            if self._journal.since_ms:
                self._journal.remove(digests)

    def missing(self, digests: Sequence[bytes]) -> list[bytes]:
        """Returns those of the envelopes that are neither stored nor named on the chain.

        A transaction sent again whose envelope the chain names gets its first verdict, so that nothing is missing
        for it.
        """
        with self._pins_lock:
            lost = self._condemned.intersection(digests)
        gone = lost.union(self._blobs.missing(digests))
        return self._unowned([digest for digest in digests if digest in gone]) if gone else []

    def _unowned(self, digests: Sequence[bytes]) -> list[bytes]:
        with self._store.snapshot() as snapshot:
            owners = snapshot.get_states([BLOBS.prefix + digest for digest in digests])
        return [digest for digest in digests if owners[BLOBS.prefix + digest] is None]

    def pin(self, holder: Pins, digests: Sequence[bytes]) -> None:
        """Keeps envelopes from being collected while ``holder`` pins them.

        An envelope whose collection has begun already counts as :meth:`missing` from then on.
        """
        with self._pins_lock:
            self._pins[holder] = digests

    def unpin(self, holder: Pins) -> None:
        """Ends the pins of ``holder``."""
        with self._pins_lock:
            self._pins.pop(holder, None)

    # Reading.

    def reader(self, digest: bytes, offset: int = 0) -> Generator[bytes, None, None]:
        """Yields an envelope from ``offset`` on, in chunks of up to READER_CHUNK_BYTES."""
        return self._blobs.open_reader(digest, READER_CHUNK_BYTES, offset=offset)

    def check_permitted(self, grant: ReadGrant) -> None:
        """Raises ``AccessRefused`` where a read that was granted would be refused now, judged on the durable state.

        Raises ``NotFoundError`` where the envelope is not here any more. Nothing is put on record.
        """
        with self._store.snapshot() as snapshot:
            view = View(snapshot.get_state)
            code = self._try_out(view, grant.signer, grant.access, self._clock_ms())
        if code:
            raise AccessRefused(f"read {grant.txid.hex()} is permitted no more", code=code, txid=grant.txid)
        if not self._blobs.has(grant.digest):
            raise NotFoundError(f"envelope {grant.digest.hex()} is not here")

    # Collecting.

    @contextmanager
    def quiet(self, check: Callable[[], None] = lambda: None) -> Iterator[None]:
        """Keeps collections from running for the length of the block.

        A wait for one ends with what ``check`` raises.
        """
        while not self._collecting.acquire(timeout=_WAIT_SECONDS):
            check()
        try:
            yield
        finally:
            self._collecting.release()

    def collect_orphans(self, older_than_ms: int, *, pause: Callable[[], None] = lambda: None) -> Collected:
        """Destroys envelopes that have been without an owner for ``older_than_ms``; returns their number and bytes.

        The time counts from the first collection that saw an envelope so, or from the end of its last put where that
        is later: with 0 everything goes that no record names now. ``pause`` is called after each page of a walk over
        the whole store. Raises ``LedgerHaltedError`` once the ledger has halted, ``LedgerClosedError`` on closing.
        """
        with self.quiet(self._check_running):
            self._check_running()
            kept: set[bytes] = set()
            fresh: list[bytes] = []
            count = byte_count = 0
            for page in self._blobs.walk():
                self._check_running()
                for digest in self._unowned(page):
                    now_ms = self._clock_ms()
                    since_ms = self._journal.since_ms.get(digest)
                    # One of the future was written while the clock was wrong.
                    if older_than_ms and (since_ms is None or since_ms > now_ms):
                        fresh.append(digest)
                    elif since_ms is not None and now_ms - since_ms < older_than_ms:
                        kept.add(digest)
                    else:
                        taken = self._collect(digest, since_ms)
                        count += taken is not None
                        byte_count += taken or 0
                pause()
            self._note(kept, fresh)
            self.unreferenced.add(self._sized(fresh))
            return Collected(count, byte_count)

    def _note(self, kept: set[bytes], fresh: Sequence[bytes]) -> None:
        """Writes the journal after a walk.

        The fresh ones count from now on, so that no put during the walk is older.
        """
        with self._journal_lock:
            # What was put again during the walk is in the journal no more.
            since_ms = {digest: since for digest, since in self._journal.since_ms.items() if digest in kept}
            now_ms = self._clock_ms()
            for digest in fresh[: max(0, ORPHANS_MAX - len(since_ms))]:
                since_ms.setdefault(digest, now_ms)
            if since_ms or self._journal.since_ms:
                self._journal.replace(since_ms)

    def _collect(self, digest: bytes, since_ms: int | None) -> int | None:
        """Destroys one envelope and returns the bytes freed; None where a pin, a record or a put kept it."""
        try:
            size = self._blobs.size(digest)
            erased = self._blobs.erase(digest, if_still=lambda: self._condemn(digest, since_ms))
        except NotFoundError:
            return None
        finally:
            with self._pins_lock:
                self._condemned.discard(digest)
        if erased:
            self.unreferenced.discard([digest])
        return size if erased else None

    def _condemn(self, digest: bytes, since_ms: int | None) -> bool:
        """Whether to destroy the envelope; if so, admission counts it as missing from here on."""
        with self._pins_lock:
            if any(digest in held for held in self._pins.values()):
                return False
            self._condemned.add(digest)
        self._check_running()
        if not self._unowned([digest]):
            return False
        with self._journal_lock:
            return self._journal.since_ms.get(digest) == since_ms

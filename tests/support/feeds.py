"""Planned work for fault tests: batches whose every verdict is known beforehand, and what must stand afterwards."""

import random
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import pytest
from world import World, new_wallet

from fastledger import Code, Ledger, Purpose, Right, Role, SealedRecord, Transaction, Wallet
from fastledger.errors import NotFoundError
from fastledger.storage.blobs.store import BlobStore
from fastledger.storage.index import Index
from fastledger.storage.log import SegmentLog
from fastledger.subjects.consent import ConsentGrant
from fastledger.subjects.record import RECORDS, UNKNOWN_RECORD

SEGMENT_BYTES = 32 * 1024
PACK_BYTES = 128 * 1024
PACKED_BYTES_MAX = 4 * 1024
CHECKPOINT_PAGES = 8


@contextmanager
def small_files(segment_bytes: int = SEGMENT_BYTES) -> Iterator[None]:
    """Segments, packs and index transactions so small that a short test fills many; a block must fit a segment."""
    with pytest.MonkeyPatch.context() as patch:
        for function, name, value in (
            (SegmentLog.create, "segment_bytes", segment_bytes),
            (SegmentLog.open, "segment_bytes", segment_bytes),
            (BlobStore.open, "pack_bytes", PACK_BYTES),
            (BlobStore.open, "packed_bytes_max", PACKED_BYTES_MAX),
            (Index.open, "pages_max", CHECKPOINT_PAGES),
        ):
            patch.setitem(function.__func__.__kwdefaults__, name, value)
        yield


@dataclass
class Planned:
    """A batch, the verdict that each transaction must get, and what those verdicts do to records."""

    transactions: list[bytes] = field(default_factory=list)
    txids: list[bytes] = field(default_factory=list)
    codes: list[Code] = field(default_factory=list)
    blobs: list[bytes] = field(default_factory=list)
    versions: list[tuple[bytes, int, bytes]] = field(default_factory=list)  # record, version, envelope
    erased: list[bytes] = field(default_factory=list)

    def add(self, transaction: Transaction, code: Code = Code.OK, encoded: bytes | None = None) -> None:
        self.transactions.append(encoded or transaction.encoded)
        self.txids.append(transaction.txid)
        self.codes.append(code)

    @property
    def entering(self) -> list[bytes]:
        """The ids of those that the border lets through."""
        return [txid for txid, code in zip(self.txids, self.codes, strict=True) if not 100 <= code < 200]


class Feed:
    """One patient's work, in an order in which every verdict is certain; for one submitting thread."""

    def __init__(self, patient: Wallet, grantee: bytes, grantee_kem: bytes, rng: random.Random) -> None:
        self._patient = patient
        self._grantee, self._grantee_kem = grantee, grantee_kem
        self._rng = rng
        self._records: dict[bytes, int] = {}  # live record -> version
        self._consents: list[bytes] = []

    def plan(self) -> Planned:
        """The next batch: 1 to 8 transactions."""
        planned = Planned()
        for _ in range(self._rng.randint(1, 8)):
            steps, weights = zip(*self._STEPS, strict=True)
            self._rng.choices(steps, weights)[0](self, planned)
        return planned

    def _content(self) -> bytes:
        # Now and then an envelope that gets a file of its own.
        size = 3 * PACKED_BYTES_MAX if self._rng.random() < 0.05 else self._rng.randint(1, 900)
        return self._rng.randbytes(size)

    def _put(self, planned: Planned) -> None:
        sealed = self._patient.put_record("vitals", self._content(), ["code:a", "code:b"])
        self._records[sealed.record] = 1
        self._envelope(planned, sealed)

    def _amend(self, planned: Planned) -> None:
        if not self._records:
            return self._put(planned)
        record = self._rng.choice(list(self._records))
        self._records[record] += 1
        version = self._records[record]
        return self._envelope(planned, self._patient.amend_record("vitals", record, version, self._content()))

    def _envelope(self, planned: Planned, sealed: SealedRecord) -> None:
        planned.add(sealed.transaction)
        planned.blobs.append(sealed.blob)
        planned.versions.append((sealed.record, sealed.version, sealed.blob))

    def _erase(self, planned: Planned) -> None:
        if not self._records:
            return self._put(planned)
        record = self._rng.choice(list(self._records))
        del self._records[record]
        planned.add(self._patient.erase_record(record))
        planned.erased.append(record)
        return None

    def _grant(self, planned: Planned) -> None:
        if len(self._consents) >= 4:
            planned.add(self._patient.revoke_consent(self._consents.pop(0)))
            return
        grant = self._patient.grant(
            self._grantee, self._grantee_kem, ["vitals"], purposes=[Purpose.TREATMENT], rights=Right.READ
        )
        assert isinstance(grant.body, ConsentGrant)
        self._consents.append(grant.body.consent)
        planned.add(grant)

    def _refused(self, planned: Planned) -> None:
        planned.add(self._patient.erase_record(self._rng.randbytes(16)), UNKNOWN_RECORD)

    def _rejected(self, planned: Planned) -> None:
        transaction = self._patient.erase_record(self._rng.randbytes(16))
        encoded = transaction.encoded[:-1] + bytes([transaction.encoded[-1] ^ 1])
        planned.add(transaction, Code.BAD_SIGNATURE, encoded)

    _STEPS = ((_put, 55), (_amend, 20), (_erase, 10), (_grant, 5), (_refused, 5), (_rejected, 5))


@dataclass
class History:
    """Everything that was acknowledged, and so must be there whatever happens."""

    batches: list[Planned] = field(default_factory=list)
    erased: set[bytes] = field(default_factory=set)
    _checked: int = 0

    def acknowledge(self, planned: Planned, codes: list[int]) -> None:
        assert codes == planned.codes
        self.batches.append(planned)
        self.erased.update(planned.erased)

    def check(self, ledger: Ledger, *, everything: bool = False) -> None:
        """Every acknowledged verdict, version and envelope is there; what was erased is gone."""
        for planned in self.batches[0 if everything else self._checked :]:
            for txid, code in zip(planned.txids, planned.codes, strict=True):
                if txid in planned.entering:
                    assert ledger.get(txid).code == code
                else:
                    assert not holds(ledger, txid)
            for record, number, blob in planned.versions:
                version = ledger.record_version(record, number)
                erased = ledger.entity(RECORDS, record).erased
                assert erased or record not in self.erased
                assert ledger._blobs.has(version.digest) != erased
                assert erased or ledger._blobs.get(version.digest) == blob
        self._checked = len(self.batches)


def holds(ledger: Ledger, txid: bytes) -> bool:
    try:
        ledger.get(txid)
    except NotFoundError:
        return False
    return True


def check_blocks(ledger: Ledger) -> None:
    """No half block: heights without a gap, each decodes, each follows the one before, the numbers add up."""
    previous, count = None, 0
    for height in range(ledger.height + 1):
        block = ledger.block(height)
        assert block.height == height
        assert previous is None or block.header.previous_id == previous
        previous, count = block.block_id, count + block.count
    assert (previous, count) == (ledger.head, ledger.transaction_count)
    with pytest.raises(NotFoundError):
        ledger.block(ledger.height + 1)


def make_feeds(world: World, rng: random.Random, count: int) -> list[Feed]:
    """Feeds of new patients, registered in ``world``."""
    feeds = []
    for _ in range(count):
        patient = new_wallet(world.clock).join(world.ledger.chain_id)
        world.submit(patient.register(Role.PATIENT), patient.open_folders("vitals"))
        feeds.append(Feed(patient, world.clinic.identity, world.clinic.kem_public, rng))
    return feeds


def fill(world: World, batches: int, seed: int = 4711) -> tuple[list[Feed], History]:
    """Acknowledged work of two patients."""
    rng = random.Random(seed)
    feeds, history = make_feeds(world, rng, 2), History()
    for number in range(batches):
        submit_next(world.ledger, feeds[number % 2], history)
    return feeds, history


def submit_next(ledger: Ledger, feed: Feed, history: History) -> None:
    planned = feed.plan()
    outcomes = ledger.submit(planned.transactions, planned.blobs)
    history.acknowledge(planned, [outcome.code for outcome in outcomes])


def check_all(ledger: Ledger, history: History) -> None:
    check_blocks(ledger)
    history.check(ledger, everything=True)
    assert ledger.verify().problems == []

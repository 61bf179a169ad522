"""Envelopes for peers: given against a granted access alone, chunk by chunk, and taken in whole or not at all."""

import asyncio
import random
from collections.abc import Iterator
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest
from world import World, make_world

from fastledger import Purpose, SealedRecord, Transaction
from fastledger.errors import Code, LedgerBusyError, NotFoundError
from fastledger.node.federation.blobs import ATTEMPTS, PROOF_LIFETIME_MS, EnvelopeFetcher, EnvelopeGate
from fastledger.peers.port import BlobSink
from fastledger.subjects.consent import CONSENT_MISSING, CONSENT_REVOKED
from fastledger.subjects.record import RECORD_ERASED

CONTENT = random.Random(3).randbytes(700_000)
CHUNK = 256 * 1024
PEER = "lab"


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    made = make_world(tmp_path / "ledger")
    yield made
    made.close()


def digest_of(sealed: SealedRecord) -> bytes:
    return sha256(sealed.blob).digest()


def access(world: World, record: bytes, *, by: str = "patient") -> Transaction:
    transaction = getattr(world, by).access(record, Purpose.TREATMENT)
    world.ledger.submit([transaction])
    made: Transaction = transaction
    return made


def fetched(gate: EnvelopeGate, digest: bytes, txid: bytes) -> bytes:
    data = b""
    while True:
        answer = gate.blob_for(PEER, digest, txid, len(data), CHUNK)
        assert answer.code == Code.OK
        assert len(answer.data) <= CHUNK
        data += answer.data
        if len(data) == answer.size:
            return data


def test_a_granted_access_opens_its_envelope_and_no_other(world: World) -> None:  # SPEC-FED-18
    sealed, other = world.put(CONTENT), world.put(b"something else")
    gate = EnvelopeGate(world.ledger)
    read = access(world, sealed.record)
    assert fetched(gate, digest_of(sealed), read.txid) == sealed.blob
    assert gate.blob_for(PEER, digest_of(other), read.txid, 0, CHUNK).code == Code.NOT_FOUND
    assert gate.blob_for(PEER, digest_of(sealed), bytes(32), 0, CHUNK).code == Code.NOT_FOUND
    registration = next(iter(world.ledger.query(limit=1)))
    assert gate.blob_for(PEER, digest_of(sealed), registration.txid, 0, CHUNK).code == Code.BAD_BODY
    beyond = gate.blob_for(PEER, digest_of(sealed), read.txid, len(sealed.blob) + 1, CHUNK)
    assert (beyond.code, beyond.data) == (Code.NOT_FOUND, b"")


def test_consent_decides_at_every_chunk(world: World) -> None:  # SPEC-FED-18
    sealed = world.put(CONTENT)
    gate = EnvelopeGate(world.ledger)
    refused = access(world, sealed.record, by="doctor")
    assert gate.blob_for(PEER, digest_of(sealed), refused.txid, 0, CHUNK).code == CONSENT_MISSING
    consent = world.grant(world.doctor, "vitals")
    granted = access(world, sealed.record, by="doctor")
    assert gate.blob_for(PEER, digest_of(sealed), granted.txid, 0, CHUNK).code == Code.OK
    world.submit(world.patient.revoke_consent(consent.body_map["consent"]))
    assert gate.blob_for(PEER, digest_of(sealed), granted.txid, CHUNK, CHUNK).code == CONSENT_REVOKED


def test_an_old_access_proves_nothing_and_an_erased_envelope_is_gone(world: World) -> None:  # SPEC-FED-18
    sealed, erased = world.put(CONTENT), world.put(b"to be erased")
    gate = EnvelopeGate(world.ledger)
    read, read_erased = access(world, sealed.record), access(world, erased.record)
    world.submit(world.patient.erase_record(erased.record))
    gone = gate.blob_for(PEER, digest_of(erased), read_erased.txid, 0, CHUNK).code
    assert gone in (Code.NOT_FOUND, RECORD_ERASED)
    world.clock.advance(PROOF_LIFETIME_MS + 1_000)
    assert gate.blob_for(PEER, digest_of(sealed), read.txid, 0, CHUNK).code == Code.EXPIRED


class Peers:
    """A federation whose peers do as each attempt in ``script`` says."""

    def __init__(self, script: list[Any]) -> None:
        self.script = script
        self.asked = 0

    async def fetch_blob(self, digest: bytes, access_txid: bytes, sink: BlobSink) -> None:
        self.asked += 1
        step = self.script.pop(0)
        if isinstance(step, Exception):
            raise step
        if isinstance(step, Code):
            sink.fail(step)
            return
        for piece in step:
            if piece is None:
                sink.restart()
            else:
                sink.write(piece)
        sink.finish()


def fetcher(world: World, peers: Peers, folder: Path) -> EnvelopeFetcher:
    return EnvelopeFetcher(world.ledger, peers, world.ledger.open_uploads(), folder)  # type: ignore[arg-type]


@pytest.mark.parametrize("size", [100, 3_000_000, 20_000_000])
async def test_what_peers_give_is_stored(  # SPEC-FED-19
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, size: int
) -> None:
    monkeypatch.setattr("fastledger.node.federation.blobs.PAUSE_S", 0.001)
    world = make_world(tmp_path / "ledger", require_blobs=False)
    sealed = world.patient.put_record("vitals", random.Random(size).randbytes(size), ())
    world.submit(sealed.transaction)
    read = access(world, sealed.record)
    with pytest.raises(NotFoundError):
        world.ledger.blob_size(digest_of(sealed))
    pieces = [sealed.blob[at : at + CHUNK] for at in range(0, len(sealed.blob), CHUNK)]
    peers = Peers([Code.NOT_FOUND, LedgerBusyError("busy", retry_after_ms=1), [b"junk", None, *pieces]])
    envelopes = fetcher(world, peers, tmp_path / "spool")
    await asyncio.gather(envelopes.fetch(read), envelopes.fetch(read))
    assert peers.asked == 3, "two who wait for one envelope share its fetch"
    assert world.ledger.blob_size(digest_of(sealed)) == len(sealed.blob)
    assert sha256(b"".join(world.ledger.blob_reader(digest_of(sealed)))).digest() == digest_of(sealed)
    assert list((tmp_path / "spool").iterdir()) == []
    world.close()


async def test_where_nobody_has_it_the_reader_hears_so(  # SPEC-FED-19
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fastledger.node.federation.blobs.PAUSE_S", 0.001)
    world = make_world(tmp_path / "ledger", require_blobs=False)
    sealed = world.patient.put_record("vitals", b"nowhere", ())
    world.submit(sealed.transaction)
    read = access(world, sealed.record)
    envelopes = fetcher(world, Peers([Code.NOT_FOUND] * ATTEMPTS), tmp_path / "spool")
    with pytest.raises(NotFoundError):
        await envelopes.fetch(read)
    world.close()

"""Envelopes and snapshots by digest (SPEC-PEER-32..36)."""

import hashlib
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
from fork_world import make_genesis
from peer_liars import is_banned
from peer_net import Member, Net

from fastledger import Code, SigningKey
from fastledger.errors import CorruptionError, LedgerBusyError, NotFoundError
from fastledger.limits import PEER_CHUNK_BYTES, PEER_SNAPSHOT_PIECE_BYTES_MAX
from fastledger.peers.port import BlobAnswer, SnapshotOffer
from fastledger.peers.snapshots import attest
from fastledger.peers.wire import (
    Attestation,
    BlobChunk,
    GetBlob,
    GetPiece,
    GetSnapshots,
    Piece,
    Snapshots,
)
from fastledger.subjects.consent import CONSENT_MISSING

ACCESS = b"\7" * 32
ENVELOPE = bytes(range(256)) * 10_000
DIGEST = hashlib.sha256(ENVELOPE).digest()


class Shelf:
    """Envelopes that are given to one organisation for one transaction of access."""

    def __init__(self, *envelopes: bytes, to: str = "asker") -> None:
        self.held = {hashlib.sha256(envelope).digest(): envelope for envelope in envelopes}
        self.to = to
        self.asked: list[tuple[str, int]] = []

    def blob_for(
        self, organisation: str, digest: bytes, access_txid: bytes, offset: int, length: int
    ) -> BlobAnswer:
        self.asked.append((organisation, offset))
        envelope = self.held.get(digest)
        if envelope is None:
            return BlobAnswer(Code.NOT_FOUND)
        if organisation != self.to or access_txid != ACCESS:
            return BlobAnswer(CONSENT_MISSING)
        return BlobAnswer(Code.OK, envelope[offset : offset + length], len(envelope))


class Sink:
    def __init__(self) -> None:
        self.data = bytearray()
        self.restarts = 0
        self.outcome: Code | None = None

    def write(self, data: bytes) -> None:
        assert len(data) <= PEER_CHUNK_BYTES
        self.data += data

    def restart(self) -> None:
        self.restarts += 1
        self.data.clear()

    def finish(self) -> None:
        self.outcome = Code.OK

    def fail(self, code: Code) -> None:
        self.outcome = code


@pytest.fixture
def keys() -> list[SigningKey]:
    return [SigningKey.generate() for _ in range(4)]


@pytest.fixture
def net(tmp_path: Path, keys: list[SigningKey]) -> Iterator[Net]:
    made = Net(tmp_path, make_genesis(keys))
    yield made
    made.close()


def fetch(net: Net, member: Member, digest: bytes = DIGEST, access: bytes = ACCESS) -> Sink:
    sink = Sink()
    member.network.fetch_blob(digest, access, sink, net.now_ms)
    net.settle(member)
    return sink


def test_an_envelope_comes_in_parts_from_who_may_give_it(
    net: Net, keys: list[SigningKey]
) -> None:  # SPEC-PEER-32
    shelves = [Shelf(), Shelf(ENVELOPE, to="other"), Shelf(ENVELOPE)]
    for index, shelf in enumerate(shelves):
        net.add(f"s{index}", keys[index], blobs=shelf)
    asker = net.add("asker", None, peers=["s0", "s1", "s2"])
    net.run(5_000)
    sink = fetch(net, asker)
    assert net.run(10_000, lambda: sink.outcome is not None)
    assert (sink.outcome, bytes(sink.data)) == (Code.OK, ENVELOPE)
    assert shelves[2].asked == [("asker", at) for at in range(0, len(ENVELOPE), PEER_CHUNK_BYTES)]


def test_a_refusal_reaches_who_asked(net: Net, keys: list[SigningKey]) -> None:  # SPEC-PEER-32
    net.add("s0", keys[0], blobs=Shelf(ENVELOPE))
    asker = net.add("asker", None, peers=["s0"])
    net.run(5_000)
    sink = fetch(net, asker, access=bytes(32))
    net.run(1_000)
    assert sink.outcome == CONSENT_MISSING
    assert fetch(net, asker, digest=bytes(32)).outcome is None
    net.run(1_000)


def test_without_peers_nothing_is_found(net: Net) -> None:  # SPEC-PEER-32
    asker = net.add("asker", None)
    assert fetch(net, asker).outcome == Code.NOT_FOUND


def test_a_wrong_envelope_is_charged_and_asked_of_another(
    net: Net, keys: list[SigningKey]
) -> None:  # SPEC-PEER-33
    asker = net.add("asker", None)
    liar = net.stranger(asker, name="liar").greet()
    sink = fetch(net, asker)
    net.run(50)
    assert liar.heard(GetBlob)[0].offset == 0
    net.add("s0", keys[0], blobs=Shelf(ENVELOPE))
    asker.network.add_peer("s0:1")
    net.run(5_000)
    liar.say(BlobChunk(DIGEST, 0, len(ENVELOPE), 0, bytes(len(ENVELOPE) // 4)))
    net.run(50)
    liar.say(BlobChunk(DIGEST, len(ENVELOPE) // 4, 99, 0, bytes(99)))
    assert net.run(10_000, lambda: sink.outcome is not None)
    assert (sink.outcome, bytes(sink.data), sink.restarts) == (Code.OK, ENVELOPE, 1)
    assert any(info.organisation == "liar" and info.points > 50 for info in asker.network.peers())


def test_a_whole_envelope_with_another_digest_is_not_finished(net: Net) -> None:  # SPEC-PEER-33
    asker = net.add("asker", None)
    liar = net.stranger(asker, name="liar").greet()
    sink = fetch(net, asker)
    net.run(50)
    liar.say(BlobChunk(DIGEST, 0, 10, 0, bytes(10)))
    assert (sink.outcome, sink.restarts) == (Code.NOT_FOUND, 1)


def test_a_silent_holder_is_left(net: Net, keys: list[SigningKey]) -> None:  # SPEC-PEER-33
    asker = net.add("asker", None)
    net.stranger(asker, name="mute").greet()
    sink = fetch(net, asker)
    net.add("s0", keys[0], blobs=Shelf(ENVELOPE))
    asker.network.add_peer("s0:1")
    assert net.run(40_000, lambda: sink.outcome == Code.OK)


def test_fetches_are_bounded(net: Net) -> None:  # SPEC-PEER-33
    asker = net.add("asker", None)
    net.stranger(asker, name="mute").greet()
    for number in range(16):
        fetch(net, asker, digest=bytes([number]) * 32)
    with pytest.raises(LedgerBusyError):
        fetch(net, asker)


# Snapshots.

CHUNKS = [bytes([number]) * 70_000 for number in range(5)]
MANIFEST = b"".join(hashlib.sha256(chunk).digest() for chunk in CHUNKS)
ROOT = hashlib.sha256(b"root" + MANIFEST).digest()
BLOCK_ID = b"\5" * 32


class Snapshot:
    """A snapshot port: offers what was attested, installs what comes."""

    def __init__(self, offers: Sequence[SnapshotOffer] = (), *, holds: bool = True) -> None:
        self.offers = list(offers)
        pieces = [MANIFEST, *CHUNKS] if holds else []
        self.pieces = {hashlib.sha256(piece).digest(): piece for piece in pieces}
        self.installed: dict[int, bytes] = {}
        self.done: SnapshotOffer | None = None

    def snapshot_offers(self) -> list[SnapshotOffer]:
        return self.offers

    def snapshot_piece(self, digest: bytes) -> bytes | None:
        return self.pieces.get(digest)

    def manifest_pieces(self, offer: SnapshotOffer, manifest: bytes) -> list[bytes]:
        if hashlib.sha256(b"root" + manifest).digest() != offer.root:
            raise CorruptionError("not of this root", path="manifest")
        return [manifest[at : at + 32] for at in range(0, len(manifest), 32)]

    def install_piece(self, number: int, piece: bytes) -> None:
        self.installed[number] = piece

    def install_snapshot(self, offer: SnapshotOffer) -> None:
        self.done = offer


def offer_of(net: Net, key: SigningKey, *, root: bytes = ROOT, height: int = 90) -> SnapshotOffer:
    return attest(key, net.genesis.chain_id, height=height, block_id=BLOCK_ID, root=root, manifest=MANIFEST)


def test_a_snapshot_that_a_quorum_attests_comes_from_several(net: Net, keys: list[SigningKey]) -> None:
    # SPEC-PEER-34, SPEC-PEER-35
    for index in range(3):
        net.add(f"s{index}", keys[index], snapshots=Snapshot([offer_of(net, keys[index])]))
    port = Snapshot(holds=False)
    late = net.add("late", None, peers=["s0", "s1", "s2"], snapshots=port)
    net.run(5_000)
    late.network.fetch_snapshot(net.now_ms)
    net.settle(late)
    assert net.run(20_000, lambda: port.done is not None)
    assert [port.installed[number] for number in range(5)] == CHUNKS
    assert port.done is not None
    assert (port.done.height, port.done.root) == (90, ROOT)


def test_a_minority_attests_nothing(net: Net, keys: list[SigningKey]) -> None:  # SPEC-PEER-34
    outsider = SigningKey.generate()
    offers = [offer_of(net, keys[0]), offer_of(net, keys[0]), offer_of(net, outsider), offer_of(net, keys[1])]
    other = offer_of(net, keys[2], root=bytes(32))
    net.add("s0", keys[0], snapshots=Snapshot([*offers, other]))
    port = Snapshot(holds=False)
    late = net.add("late", None, peers=["s0"], snapshots=port)
    net.run(5_000)
    late.network.fetch_snapshot(net.now_ms)
    net.settle(late)
    net.run(20_000)
    # Two of four proposers, one said it twice, and two are not of them or speak of something else.
    assert (port.installed, port.done) == ({}, None)
    net.add("s3", keys[3], snapshots=Snapshot([offer_of(net, keys[3])]))
    late.network.add_peer("s3:1")
    assert net.run(20_000, lambda: port.done is not None)


def test_a_forged_attestation_is_a_ban(net: Net, keys: list[SigningKey]) -> None:  # SPEC-PEER-34
    late = net.add("late", None, snapshots=Snapshot(holds=False))
    liar = net.stranger(late, name="liar").greet()
    late.network.fetch_snapshot(net.now_ms)
    net.settle(late)
    net.run(50)
    assert liar.heard(GetSnapshots)
    forged = offer_of(net, SigningKey.generate())._replace(signer=keys[0].public_key)
    liar.say(Snapshots([Attestation(*forged)]))
    assert is_banned(late, net, "liar")


def test_a_wrong_piece_is_a_ban_and_asked_of_another(
    net: Net, keys: list[SigningKey]
) -> None:  # SPEC-PEER-36
    offers = [offer_of(net, key) for key in keys[:3]]
    port = Snapshot(holds=False)
    late = net.add("late", None, snapshots=port)
    liar = net.stranger(late, name="liar").greet()
    late.network.fetch_snapshot(net.now_ms)
    net.settle(late)
    net.run(50)
    liar.say(Snapshots([Attestation(*offer) for offer in offers]))
    net.run(50)
    asked = liar.heard(GetPiece)[0]
    liar.say(Piece(asked.digest, 0, len(MANIFEST), bytes(len(MANIFEST))))
    assert is_banned(late, net, "liar")
    net.add("s0", keys[0], snapshots=Snapshot(offers))
    late.network.add_peer("s0:1")
    assert net.run(20_000, lambda: port.done is not None)


def test_no_port_no_snapshot(net: Net) -> None:
    late = net.add("late", None)
    with pytest.raises(NotFoundError):
        late.network.fetch_snapshot(net.now_ms)


def test_pieces_longer_than_a_message_come_in_parts(
    net: Net, keys: list[SigningKey], monkeypatch: pytest.MonkeyPatch
) -> None:  # SPEC-PEER-36
    assert PEER_SNAPSHOT_PIECE_BYTES_MAX > 30_000
    monkeypatch.setattr("fastledger.peers.serving.PEER_SNAPSHOT_PIECE_BYTES_MAX", 30_000)
    net.add("s0", keys[0], snapshots=Snapshot([offer_of(net, key) for key in keys[:3]]))
    port = Snapshot(holds=False)
    late = net.add("late", None, peers=["s0"], snapshots=port)
    net.run(5_000)
    late.network.fetch_snapshot(net.now_ms)
    net.settle(late)
    assert net.run(20_000, lambda: port.done is not None)
    assert [port.installed[number] for number in range(5)] == CHUNKS

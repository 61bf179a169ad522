"""A snapshot from peers: attested by a quorum of proposers, its pieces taken from anyone (SPEC-PEER-34..36).

A proposer signs height, block id, the root that commits to the whole content, and digest and length of the manifest.
Only what enough *distinct* proposers of the genesis document signed alike is fetched; then every piece is checked by
its SHA-256, so that it does not matter who gave it.
"""

import hashlib
from collections.abc import Sequence

from fastledger.crypto.signing import SigningKey, verify_one
from fastledger.errors import CorruptionError, InputError
from fastledger.limits import PEER_PIECE_MS_MAX, PEER_SNAPSHOT_PIECE_BYTES_MAX, SNAPSHOT_MANIFEST_BYTES_MAX
from fastledger.peers.host import NEVER_MS, Host
from fastledger.peers.port import SnapshotOffer, SnapshotPort
from fastledger.peers.scores import Offence
from fastledger.peers.session import Link
from fastledger.peers.wire import Attestation, GetPiece, GetSnapshots, Piece, Snapshots

_CONTEXT = b"fastledger/snapshot/v1"


def attestation_digest(
    chain_id: bytes, height: int, block_id: bytes, root: bytes, manifest: bytes, manifest_bytes: int
) -> bytes:
    """Returns the 32 bytes that a proposer signs: SHA-256 of context, chain and content (SPEC-PEER-34).

    Integers are u64 big-endian; ``manifest`` is the SHA-256 of the encoded manifest.
    """
    numbers = (height.to_bytes(8, "big"), manifest_bytes.to_bytes(8, "big"))
    return hashlib.sha256(b"".join((_CONTEXT, chain_id, *numbers, block_id, root, manifest))).digest()


def attest(
    key: SigningKey, chain_id: bytes, *, height: int, block_id: bytes, root: bytes, manifest: bytes
) -> SnapshotOffer:
    """Signs a snapshot as a proposer; ``manifest`` is the encoded manifest, ``root`` what it commits to."""
    digest = hashlib.sha256(manifest).digest()
    signed = attestation_digest(chain_id, height, block_id, root, digest, len(manifest))
    return SnapshotOffer(height, block_id, root, digest, len(manifest), key.public_key, key.sign(signed))


class _Content:
    """A snapshot that attestations agree on, its signers, and the links whose peers hold it."""

    __slots__ = ("holders", "offer", "signers")

    def __init__(self, offer: SnapshotOffer) -> None:
        self.offer = offer
        self.signers: set[bytes] = set()
        self.holders: set[int] = set()


class _Transfer:
    """One piece on its way from one peer: number, digest, and the bytes so far."""

    __slots__ = ("buffer", "deadline_ms", "digest", "number")

    def __init__(self, digest: bytes, number: int, deadline_ms: int) -> None:
        self.digest = digest
        self.number = number
        self.buffer = bytearray()
        self.deadline_ms = deadline_ms


_MANIFEST = -1


class SnapshotFetcher:
    """Collects attestations, then the manifest, then its chunks, one piece at a time from each holder."""

    def __init__(self, host: Host, port: SnapshotPort | None) -> None:
        self._host = host
        self.port = port
        self._contents: dict[tuple[int, bytes, bytes, bytes, int], _Content] = {}
        self._chosen: _Content | None = None
        self._pieces: dict[int, bytes] = {}
        self._transfers: dict[int, _Transfer] = {}
        self._collecting = False

    @property
    def next_ms(self) -> int:
        """When the next piece is late."""
        return min((transfer.deadline_ms for transfer in self._transfers.values()), default=NEVER_MS)

    @property
    def is_active(self) -> bool:
        """Whether a snapshot is being looked for or fetched."""
        return self._collecting or self._chosen is not None

    def begin(self, now_ms: int) -> None:
        """Asks all peers for their attestations."""
        if self.is_active:
            return
        self._collecting = True
        for link in self._host.ready_links():
            self._ask_for_offers(link)

    def ready(self, link: Link, now_ms: int) -> None:
        """Asks a new peer for its attestations while a snapshot is looked for or fetched."""
        if self.is_active:
            self._ask_for_offers(link)

    def _ask_for_offers(self, link: Link) -> None:
        if not link.expected(GetSnapshots):
            link.expect(GetSnapshots)
            self._host.send(link, GetSnapshots())

    def gone(self, link: Link, now_ms: int) -> None:
        """Asks another holder for the piece that a link that has ended was to bring."""
        for content in self._contents.values():
            content.holders.discard(link.number)
        self._return(link.number)
        self._fill(now_ms)

    def tick(self, now_ms: int) -> None:
        """Charges peers whose pieces are late, and asks other holders for those."""
        for number, transfer in list(self._transfers.items()):
            if transfer.deadline_ms <= now_ms:
                self._leave(number, Offence.STALLING)
        self._fill(now_ms)

    def _return(self, number: int) -> None:
        transfer = self._transfers.pop(number, None)
        if transfer is not None:
            self._pieces[transfer.number] = transfer.digest

    def _leave(self, number: int, offence: Offence) -> None:
        """Charges a holder and asks it for no more pieces."""
        self._return(number)
        if self._chosen is not None:
            self._chosen.holders.discard(number)
        link = self._host.link(number)
        if link is not None:
            self._host.charge(link, offence)

    # Attestations.

    def on_snapshots(self, link: Link, message: Snapshots, now_ms: int) -> None:
        """Notes the attestations that a peer holds; one that does not verify is an offence."""
        link.settle(GetSnapshots)
        proposers = self._host.chain.genesis.proposers
        for item in message.attestations:
            if item.signer in proposers and item.manifest_bytes <= SNAPSHOT_MANIFEST_BYTES_MAX:
                if not self._verifies(item):
                    self._host.charge(link, Offence.BAD_SNAPSHOT)
                    return
                self._note(link, item)
        self._choose(now_ms)
        self._fill(now_ms)

    def _verifies(self, item: Attestation) -> bool:
        content = (item.height, item.block_id, item.root, item.manifest, item.manifest_bytes)
        try:
            verify_one(attestation_digest(self._host.chain.chain_id, *content), item.signature, item.signer)
        except InputError:
            return False
        return True

    def _note(self, link: Link, item: Attestation) -> None:
        key = (item.height, item.block_id, item.root, item.manifest, item.manifest_bytes)
        if key not in self._contents and len(self._contents) >= 64:
            # Each is signed by a proposer, so this many differ only where proposers lie: the lowest makes room.
            lowest = min(self._contents, key=lambda other: other[0])
            if self._contents[lowest] is self._chosen:
                return
            del self._contents[lowest]
        offer = SnapshotOffer(*key, item.signer, item.signature)
        content = self._contents.setdefault(key, _Content(offer))
        content.signers.add(item.signer)
        content.holders.add(link.number)

    def _choose(self, now_ms: int) -> None:
        """Chooses the highest snapshot that enough proposers signed, if there is one, and asks for its manifest."""
        if self._chosen is not None or not self._collecting:
            return
        proposers = self._host.chain.genesis.proposers
        quorum = self._host.settings.snapshot_quorum or len(set(proposers)) // 2 + 1
        agreed = [content for content in self._contents.values() if len(content.signers) >= quorum]
        if not agreed:
            return
        best = max(agreed, key=lambda content: content.offer.height)
        if best.offer.height <= self._host.chain.tip.height:
            return
        self._collecting = False
        self._chosen = best
        self._pieces = {_MANIFEST: best.offer.manifest}

    # Pieces.

    def _fill(self, now_ms: int) -> None:
        """Asks each idle holder for one of the pieces that are left."""
        if self._chosen is None:
            return
        for number in sorted(self._chosen.holders):
            link = self._host.link(number)
            if link is None or number in self._transfers or not self._pieces:
                continue
            piece = min(self._pieces)
            digest = self._pieces.pop(piece)
            self._transfers[number] = _Transfer(digest, piece, now_ms + PEER_PIECE_MS_MAX)
            self._ask(link, digest, 0)

    def _ask(self, link: Link, digest: bytes, offset: int) -> None:
        link.expect(GetPiece)
        self._host.send(link, GetPiece(digest, offset))

    def on_piece(self, link: Link, message: Piece, now_ms: int) -> None:
        """Takes the next part of a piece; a piece that is whole is checked and handed on."""
        link.settle(GetPiece)
        transfer = self._transfers.get(link.number)
        if transfer is None or (message.digest, message.offset) != (transfer.digest, len(transfer.buffer)):
            return
        bytes_max = PEER_SNAPSHOT_PIECE_BYTES_MAX
        if transfer.number == _MANIFEST and self._chosen is not None:
            bytes_max = self._chosen.offer.manifest_bytes
        transfer.buffer += message.data
        if not message.size:
            # It no longer has the snapshot, which is no offence.
            self._return(link.number)
            if self._chosen is not None:
                self._chosen.holders.discard(link.number)
        elif not message.data or message.size > bytes_max or len(transfer.buffer) > message.size:
            self._leave(link.number, Offence.BAD_SNAPSHOT)
        elif len(transfer.buffer) < message.size:
            transfer.deadline_ms = now_ms + PEER_PIECE_MS_MAX
            self._ask(link, transfer.digest, len(transfer.buffer))
        else:
            self._whole(link, transfer)
        self._fill(now_ms)

    def _whole(self, link: Link, transfer: _Transfer) -> None:
        piece = bytes(transfer.buffer)
        if hashlib.sha256(piece).digest() != transfer.digest:
            self._leave(link.number, Offence.BAD_SNAPSHOT)
            return
        del self._transfers[link.number]
        if transfer.number == _MANIFEST:
            self._take_manifest(piece)
        elif self.port is not None:
            self.port.install_piece(transfer.number, piece)
        if self._chosen is not None and self.port is not None and not self._pieces and not self._transfers:
            chosen, self._chosen = self._chosen, None
            self._contents.clear()
            self.port.install_snapshot(chosen.offer)

    def _take_manifest(self, manifest: bytes) -> None:
        """Lists the chunks of a manifest as pieces to fetch.

        One that a quorum signed and that is not sound ends the search.
        """
        if self.port is None or self._chosen is None:
            return
        try:
            digests: Sequence[bytes] = self.port.manifest_pieces(self._chosen.offer, manifest)
        except (InputError, CorruptionError):
            self._chosen = None
            self._contents.clear()
            return
        self._pieces = dict(enumerate(digests))

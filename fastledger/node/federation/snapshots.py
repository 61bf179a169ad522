"""Snapshots between organisations, kept at agreed heights and attested by their proposers (SPEC-FED-20..21).

A snapshot at one final height has the same bytes at every node. Whoever joins late asks all its peers what they attest,
takes what more than half of the chain's proposers signed, piece by piece from any of them, and begins there.
"""

import hashlib
import threading
from collections import defaultdict
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from shutil import rmtree

from fastledger.chain.ledger import Ledger
from fastledger.crypto.signing import SigningKey, verify_one
from fastledger.errors import (
    CertificateError,
    CorruptionError,
    FastLedgerError,
    InputError,
    NotFoundError,
    UnreachableError,
)
from fastledger.limits import PEER_SNAPSHOT_PIECE_BYTES_MAX, SNAPSHOT_MANIFEST_BYTES_MAX
from fastledger.model.genesis import Genesis
from fastledger.node.federation.options import FederationOptions
from fastledger.node.federation.source import Conversation
from fastledger.node.federation.tls import PeerTls
from fastledger.peers.port import SnapshotOffer
from fastledger.peers.snapshots import attest, attestation_digest
from fastledger.peers.wire import Attestation, GetPiece, GetSnapshots, Piece, Snapshots
from fastledger.storage.snapshot import Manifest, SnapshotFiles

KEPT = 2


class SnapshotGate:
    """Gives a running node's kept snapshots to peers (a ``SnapshotPort``); on the chain's thread.

    It takes none in.
    """

    def __init__(self, path: Path, genesis: Genesis, key: SigningKey | None) -> None:
        """``path`` holds the kept snapshots; ``key`` attests them (None: nothing is offered)."""
        self._path = path
        self._genesis = genesis
        self._key = key
        self._offers: dict[Path, SnapshotOffer] = {}
        self._pieces: dict[bytes, tuple[Path, int]] = {}
        self._manifests: dict[bytes, bytes] = {}
        self._last: tuple[bytes, bytes] = (b"", b"")

    def snapshot_offers(self) -> list[SnapshotOffer]:
        """Returns attestations of the newest whole snapshots."""
        names = sorted(self._path.iterdir(), reverse=True)[:KEPT] if self._path.is_dir() else []
        for path in names:
            if path not in self._offers:
                self._look_at(path)
        for path in [path for path in self._offers if path not in names]:
            del self._offers[path]
        return [self._offers[path] for path in names if path in self._offers]

    def _look_at(self, path: Path) -> None:
        try:
            manifest = SnapshotFiles(path).manifest()
        except (FastLedgerError, OSError):
            return  # being written, or damaged: not to be offered
        encoded = manifest.encode()
        if self._key is None or manifest.chain_id != self._genesis.chain_id:
            return
        offer = attest(
            self._key,
            manifest.chain_id,
            height=manifest.height,
            block_id=manifest.block_id,
            root=manifest.root,
            manifest=encoded,
        )
        self._offers[path] = offer
        self._manifests = {offer.manifest: encoded, **dict(list(self._manifests.items())[: KEPT - 1])}
        self._pieces |= {digest: (path, number) for number, digest in enumerate(manifest.chunks)}

    def snapshot_piece(self, digest: bytes) -> bytes | None:
        """Returns a manifest or chunk by its SHA-256; None where it is not here any more."""
        if digest in self._manifests:
            return self._manifests[digest]
        if self._last[0] != digest:
            path, number = self._pieces.get(digest, (None, 0))
            if path is None:
                return None
            try:
                files = SnapshotFiles(path)
                self._last = digest, files.chunk(files.manifest(), number)
            except (FastLedgerError, OSError):
                del self._pieces[digest]
                return None
        return self._last[1]

    def manifest_pieces(self, offer: SnapshotOffer, manifest: bytes) -> list[bytes]:
        """Raises ``InputError``: a running node takes no snapshots.

        :func:`fetch_snapshot` does, before the start.
        """
        raise InputError("a running node takes no snapshot")

    def install_piece(self, number: int, piece: bytes) -> None:
        """Raises ``InputError``: a running node takes no snapshots."""
        raise InputError("a running node takes no snapshot")

    def install_snapshot(self, offer: SnapshotOffer) -> None:
        """Raises ``InputError``: a running node takes no snapshots."""
        raise InputError("a running node takes no snapshot")


class SnapshotKeeper:
    """Makes a snapshot when the final height reaches a multiple of ``every``, and keeps the newest two of them."""

    def __init__(
        self, ledger: Ledger, path: Path, every: int, failed: Callable[[BaseException], None]
    ) -> None:
        """Takes the ledger and the place of its snapshots; with ``every`` 0 the keeper makes none."""
        self._ledger = ledger
        self._path = path
        self._every = every
        self._failed = failed
        self._busy = threading.Lock()

    def final_height(self, height: int) -> None:
        """Makes a snapshot, on a thread of its own, if one is due at this height.

        Called where the final height moves.
        """
        if self._every and height % self._every == 0 and self._busy.acquire(blocking=False):
            threading.Thread(
                target=self._keep, args=(height,), name="fastledger-snapshot", daemon=True
            ).start()

    def _keep(self, height: int) -> None:
        try:
            manifest = self._ledger.snapshot()
            if manifest.height != height:
                # The chain went on meanwhile: at another height nobody else attests it.
                rmtree(self._path / f"{manifest.height:012d}", ignore_errors=True)
            self._drop_old()
        except (FastLedgerError, OSError) as error:
            self._failed(error)
        finally:
            self._busy.release()

    def _drop_old(self) -> None:
        """Drops all but the newest snapshots that were made here.

        The one that a pruned log starts from is the newest.
        """
        for path in sorted(self._path.iterdir(), reverse=True)[KEPT:]:
            if path.name.isdigit() and int(path.name) % self._every == 0:
                rmtree(path, ignore_errors=True)


# The joiner's side.


def fetch_snapshot(config: FederationOptions, genesis: Genesis, folder: Path) -> Manifest:
    """Brings the highest snapshot that a quorum of proposers attests into ``folder``, checked piece by piece.

    Raises ``NotFoundError`` where no quorum agrees on one, ``UnreachableError`` where nobody gives a piece of it.
    """
    tls = PeerTls(config.tls)
    links: list[Conversation] = []
    try:
        for address in config.peers:
            with suppress(OSError, InputError, UnreachableError, CertificateError):
                links.append(Conversation(address, tls, config, genesis))
        offer, holders = _agreed(links, genesis)
        manifest = _taken_manifest(offer, holders)
        files = SnapshotFiles(folder)
        files.begin()
        for number, digest in enumerate(manifest.chunks):
            files.write_chunk(number, _piece(holders, digest, PEER_SNAPSHOT_PIECE_BYTES_MAX * 64))
        files.finish(manifest)
        return manifest
    finally:
        for link in links:
            link.close()


def _agreed(links: Sequence[Conversation], genesis: Genesis) -> tuple[Attestation, list[Conversation]]:
    """Returns the highest content that more than half of the proposers signed, and the links whose peers hold it."""
    signers: dict[tuple[object, ...], set[bytes]] = defaultdict(set)
    holders: dict[tuple[object, ...], list[Conversation]] = defaultdict(list)
    found: dict[tuple[object, ...], Attestation] = {}
    for link in links:
        with suppress(OSError, InputError, UnreachableError):
            for item in link.ask(GetSnapshots(), Snapshots).attestations:
                if _is_signed(item, genesis):
                    key = (item.height, item.block_id, item.root, item.manifest, item.manifest_bytes)
                    found[key] = item
                    signers[key].add(item.signer)
                    holders[key].append(link)
    quorum = len(set(genesis.proposers)) // 2 + 1
    agreed = [key for key in found if len(signers[key]) >= quorum]
    if not agreed:
        most = max((len(names) for names in signers.values()), default=0)
        raise NotFoundError(f"no snapshot is attested by {quorum} proposers, one by {most} at most")
    best = max(agreed, key=lambda key: found[key].height)
    return found[best], holders[best]


def _is_signed(item: Attestation, genesis: Genesis) -> bool:
    if item.signer not in genesis.proposers or not 0 < item.manifest_bytes <= SNAPSHOT_MANIFEST_BYTES_MAX:
        return False
    signed = attestation_digest(
        genesis.chain_id, item.height, item.block_id, item.root, item.manifest, item.manifest_bytes
    )
    try:
        verify_one(signed, item.signature, item.signer)
    except InputError:
        return False
    return True


def _taken_manifest(offer: Attestation, holders: Sequence[Conversation]) -> Manifest:
    data = _piece(holders, offer.manifest, offer.manifest_bytes)
    manifest = Manifest.decode(data, "the attested snapshot")
    if (manifest.height, manifest.block_id, manifest.root) != (offer.height, offer.block_id, offer.root):
        raise CorruptionError("the manifest contradicts its attestation", path="the attested snapshot")
    return manifest


def _piece(holders: Sequence[Conversation], digest: bytes, bytes_max: int) -> bytes:
    """Returns a piece from the first holder that gives the right one."""
    for link in holders:
        with suppress(OSError, InputError, UnreachableError):
            data = b""
            while True:
                part = link.ask(GetPiece(digest, len(data)), Piece)
                data += part.data
                if not part.data or len(data) > min(part.size, bytes_max):
                    break
                if len(data) == part.size:
                    if hashlib.sha256(data).digest() == digest:
                        return data
                    break
    raise UnreachableError("no peer gives a piece of the snapshot")

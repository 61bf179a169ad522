"""The protocols between the peer network and the node's parts: chain, envelopes, snapshots (SPEC-PEER-5).

The network trusts no header, block or transaction that the chain has not taken.
"""

from collections.abc import Iterator, Sequence
from typing import NamedTuple, Protocol

from fastledger.errors import Code
from fastledger.model.block import Block, SealedHeader


class TipView(Protocol):
    """The tip of a chain: its height and its block id (32 bytes)."""

    @property
    def height(self) -> int: ...
    @property
    def block_id(self) -> bytes: ...


class TreeEntryView(Protocol):
    """A header that the chain knows; ``work`` is that of its whole chain, ``count`` its number of transactions."""

    @property
    def block_id(self) -> bytes: ...
    @property
    def height(self) -> int: ...
    @property
    def work(self) -> int: ...
    @property
    def count(self) -> int: ...


class TreeView(Protocol):
    """The headers above the last final block."""

    def get(self, block_id: bytes) -> TreeEntryView | None: ...
    def best_header(self) -> TreeEntryView: ...


class PooledView(Protocol):
    """A verified transaction that waits or stands in a block that is not final."""

    @property
    def encoded(self) -> bytes: ...


class PoolView(Protocol):
    """Transactions that wait for a block, in order of arrival."""

    def __len__(self) -> int: ...
    def __iter__(self) -> Iterator[bytes]: ...
    def __contains__(self, txid: object, /) -> bool: ...
    def find(self, txid: bytes) -> PooledView | None: ...


class GenesisView(Protocol):
    """The document that all nodes of a chain agree on."""

    @property
    def digest(self) -> bytes: ...
    @property
    def proposers(self) -> tuple[bytes, ...]: ...


class ChainPort(Protocol):
    """The part of the chain that the network calls. It is single-threaded and called by nobody else meanwhile."""

    @property
    def chain_id(self) -> bytes: ...
    @property
    def genesis(self) -> GenesisView: ...
    @property
    def tip(self) -> TipView: ...
    @property
    def work(self) -> int: ...
    @property
    def newest_rule_set(self) -> int: ...
    @property
    def tree(self) -> TreeView: ...
    @property
    def mempool(self) -> PoolView: ...

    def add_headers(self, headers: Sequence[SealedHeader], now_ms: int) -> int: ...
    def add_block(self, block: Block, now_ms: int) -> bool: ...
    def wanted(self, limit: int) -> list[bytes]: ...
    def locator(self) -> list[bytes]: ...
    def headers_after(self, locator: Sequence[bytes], limit: int) -> Sequence[SealedHeader]: ...
    def block(self, block_id: bytes) -> Block | None: ...
    def has_block(self, block_id: bytes) -> bool: ...
    def submit(self, encoded: Sequence[bytes], now_ms: int, *, source: bytes = b"") -> list[Code]: ...


class BlobAnswer(NamedTuple):
    """Part of an envelope: OK with its bytes and the whole's ``size``, else the code of the refusal."""

    code: Code
    data: bytes = b""
    size: int = 0


class BlobPort(Protocol):
    """The envelopes that this node holds, given out under the consent rules."""

    def blob_for(
        self, organisation: str, digest: bytes, access_txid: bytes, offset: int, length: int
    ) -> BlobAnswer:
        """Returns up to ``length`` bytes of an envelope from ``offset``, or the refusal of the consent rules.

        ``access_txid`` is the transaction that the organisation shows as its title.
        """


class BlobSink(Protocol):
    """The destination of a fetched envelope, which comes chunk by chunk; nothing counts before ``finish``."""

    def write(self, data: bytes) -> None:
        """Takes the next bytes."""

    def restart(self) -> None:
        """Drops what was written, which was not the envelope: another peer is asked, from the first byte."""

    def finish(self) -> None:
        """Ends the transfer: all of it was written, and its SHA-256 is the digest."""

    def fail(self, code: Code) -> None:
        """Ends the transfer: no peer gave the envelope. ``code`` is the last refusal, or NOT_FOUND."""


class SnapshotOffer(NamedTuple):
    """A proposer's attestation of a snapshot that this node holds; the fields are those of ``wire.Attestation``."""

    height: int
    block_id: bytes
    root: bytes
    manifest: bytes
    manifest_bytes: int
    signer: bytes
    signature: bytes


class SnapshotPort(Protocol):
    """The snapshots that this node holds, and the way by which it takes one in."""

    def snapshot_offers(self) -> list[SnapshotOffer]:
        """Returns the attestations that this node can give now."""

    def snapshot_piece(self, digest: bytes) -> bytes | None:
        """Returns a manifest or chunk by its SHA-256, None where this node has none of that digest."""

    def manifest_pieces(self, offer: SnapshotOffer, manifest: bytes) -> list[bytes]:
        """Returns the digests of a manifest's chunks.

        Raises InputError or CorruptionError where it is not that of ``offer``.
        """

    def install_piece(self, number: int, piece: bytes) -> None:
        """Takes chunk ``number``, whose digest was checked."""

    def install_snapshot(self, offer: SnapshotOffer) -> None:
        """Installs the snapshot: every chunk was taken."""

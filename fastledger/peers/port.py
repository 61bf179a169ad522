"""What the peer network asks of the chain: the part of ForkChain that it calls, and what it is told (SPEC-PEER-5).

Everything behind this is the chain's: the network trusts no header, block or transaction that the chain has not taken.
"""

from collections.abc import Iterator, Sequence
from typing import NamedTuple, Protocol

from fastledger.errors import Code
from fastledger.model.block import Block, SealedHeader


class TipView(Protocol):
    """The tip of a chain."""

    @property
    def height(self) -> int: ...
    @property
    def block_id(self) -> bytes: ...


class EntryView(Protocol):
    """A header that the chain knows; ``work`` is that of the whole way to it."""

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

    def get(self, block_id: bytes) -> EntryView | None: ...
    def best_header(self) -> EntryView: ...


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
    """The chain; single-threaded, called from nowhere else."""

    @property
    def chain_id(self) -> bytes: ...
    @property
    def genesis(self) -> GenesisView: ...
    @property
    def tip(self) -> TipView: ...
    @property
    def work(self) -> int: ...
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
    """Envelopes that this node holds, under the consent rules."""

    def blob_for(
        self, organisation: str, digest: bytes, access_txid: bytes, offset: int, length: int
    ) -> BlobAnswer:
        """A part of an envelope for an organisation that shows ``access_txid``."""


class BlobSink(Protocol):
    """Where a fetched envelope goes, chunk by chunk; nothing counts before ``finish``."""

    def write(self, data: bytes) -> None:
        """The next bytes."""

    def restart(self) -> None:
        """What was written was not the envelope: another peer is asked, from the first byte."""

    def finish(self) -> None:
        """All of it was written, and its SHA-256 is the digest."""

    def fail(self, code: Code) -> None:
        """No peer gave it; ``code`` is the last refusal, or NOT_FOUND."""


class SnapshotOffer(NamedTuple):
    """A snapshot that this node attests or whose attestations it holds; see wire.Attestation."""

    height: int
    block_id: bytes
    root: bytes
    manifest: bytes
    manifest_bytes: int
    signer: bytes
    signature: bytes


class SnapshotPort(Protocol):
    """Snapshots that this node holds, and the way of one into it."""

    def snapshot_offers(self) -> list[SnapshotOffer]:
        """What it can attest now."""

    def snapshot_piece(self, digest: bytes) -> bytes | None:
        """A manifest or chunk by its SHA-256."""

    def manifest_pieces(self, offer: SnapshotOffer, manifest: bytes) -> list[bytes]:
        """The digests of the chunks of a manifest; InputError or CorruptionError where it is not ``offer``'s."""

    def install_piece(self, number: int, piece: bytes) -> None:
        """Chunk ``number``, its digest checked."""

    def install_snapshot(self, offer: SnapshotOffer) -> None:
        """Every chunk is there."""

"""Answers to peers' requests, made no faster than the peers read them (SPEC-PEER-11)."""

import struct
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

from fastledger.errors import Code
from fastledger.limits import PEER_FRAME_BYTES_MAX, PEER_SNAPSHOT_PIECE_BYTES_MAX
from fastledger.peers.gossip import TransactionRelay
from fastledger.peers.host import Host
from fastledger.peers.port import BlobPort, SnapshotPort
from fastledger.peers.scores import Offence
from fastledger.peers.session import Link
from fastledger.peers.settings import CloseCode
from fastledger.peers.sync import close_header
from fastledger.peers.wire import (
    WORK_BYTES,
    Attestation,
    BlobChunk,
    BlockMessage,
    BlockTransactions,
    GetBlob,
    GetBlocks,
    GetBlockTransactions,
    GetHeaders,
    GetPiece,
    GetSnapshots,
    GetTransactions,
    Headers,
    Message,
    NotFound,
    Piece,
    Snapshots,
    WireFault,
    split_ids,
)


class Server:
    """Answers requests in their order; a link's next answer is made when its last ones have mostly been sent."""

    def __init__(
        self, host: Host, gossip: TransactionRelay, blobs: BlobPort | None, snapshots: SnapshotPort | None
    ) -> None:
        self._host = host
        self._gossip = gossip
        self._blobs = blobs
        self._snapshots = snapshots
        self._makers: dict[type[Message], Any] = {
            GetHeaders: self._headers,
            GetBlockTransactions: self._block_transactions,
            GetTransactions: self._transactions,
            GetBlob: self._blob,
            GetSnapshots: self._snapshot_list,
            GetPiece: self._piece,
        }

    def on_request(self, link: Link, message: Message, now_ms: int) -> None:
        """Queues a request, each block of it by itself, and answers what may be answered now."""
        if isinstance(message, GetBlocks):
            for block_id in split_ids(message.ids):
                link.queue(block_id)
        else:
            link.queue(message)
        self.pump(link, now_ms)

    def pump(self, link: Link, now_ms: int) -> None:
        """Answers queued requests as long as the peer reads; charges and closes it where one is malformed."""
        while link.requests and not link.closing and self._host.may_serve(link):
            request = link.requests.popleft()
            try:
                if isinstance(request, bytes):
                    self._block(link, request)
                else:
                    self._makers[type(request)](link, request)
            except WireFault as fault:
                self._host.charge(link, fault.offence)
                self._host.close(link, CloseCode.OFFENCE, fault.offence.slug)

    def _block(self, link: Link, block_id: bytes) -> None:
        block = self._host.chain.block(block_id)
        encoded = block.encode() if block is not None else b""
        if block is None or len(encoded) > PEER_FRAME_BYTES_MAX - 64:
            self._host.send(link, NotFound(block_id))
        else:
            self._host.send(link, BlockMessage(encoded))

    def _headers(self, link: Link, request: GetHeaders) -> None:
        chain = self._host.chain
        found = chain.headers_after(split_ids(request.locator), request.limit)
        wires = [close_header(sealed) for sealed in found[: request.limit]]
        tip = chain.tip
        work = chain.work.to_bytes(WORK_BYTES, "big")
        self._host.send(link, Headers(wires, tip.height, work, tip.block_id))

    def _block_transactions(self, link: Link, request: GetBlockTransactions) -> None:
        indexes = _indexes(request.indexes)
        block = self._host.chain.block(request.block_id)
        bodies: list[bytes] = []
        if block is not None:
            if indexes and indexes[-1] >= block.count:
                raise WireFault("an index beyond the block", Offence.GARBAGE)
            bodies = [block.transaction_bytes(index) for index in indexes]
        self._host.send(link, BlockTransactions(request.block_id, bodies))

    def _transactions(self, link: Link, request: GetTransactions) -> None:
        self._gossip.serve(link, split_ids(request.txids))

    def _blob(self, link: Link, request: GetBlob) -> None:
        code, data, size = Code.NOT_FOUND, b"", 0
        if self._blobs is not None:
            code, data, size = self._blobs.blob_for(
                link.organisation, request.digest, request.access_txid, request.offset, request.length
            )
        data = data[: request.length] if code == Code.OK else b""
        self._host.send(link, BlobChunk(request.digest, request.offset, size, int(code), data))

    def _snapshot_list(self, link: Link, request: GetSnapshots) -> None:
        offers = self._snapshots.snapshot_offers() if self._snapshots is not None else []
        self._host.send(link, Snapshots([Attestation(*offer) for offer in offers[:64]]))

    def _piece(self, link: Link, request: GetPiece) -> None:
        piece = self._snapshots.snapshot_piece(request.digest) if self._snapshots is not None else None
        whole = piece or b""
        part = whole[request.offset : request.offset + PEER_SNAPSHOT_PIECE_BYTES_MAX]
        self._host.send(link, Piece(request.digest, request.offset, len(whole), part))


def _indexes(packed: bytes) -> Sequence[int]:
    if len(packed) % 2:
        raise WireFault("half an index", Offence.GARBAGE)
    indexes = struct.unpack(f">{len(packed) // 2}H", packed)
    if any(first >= second for first, second in pairwise(indexes)):
        raise WireFault("indexes that do not ascend", Offence.GARBAGE)
    return indexes

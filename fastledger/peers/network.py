"""All links of a node as one machine (SPEC-PEER-5, SPEC-PEER-6).

The node reports what happened (a connection, bytes, the time, what the chain did) and carries out the actions that it
takes out afterwards. Nothing that a peer sends raises here: it ends in an offence, which is counted against its
organisation. What does raise is the chain's own trouble (LedgerError).
"""

from collections.abc import Callable, Iterable, Sequence
from typing import Any

from fastledger.errors import Code, NotFoundError
from fastledger.limits import PEER_LINKS_MAX
from fastledger.model.block import Block
from fastledger.peers.addresses import AddressBook, is_address
from fastledger.peers.blobs import BlobFetcher
from fastledger.peers.compact import CompactRelay
from fastledger.peers.fetch import BlockFetcher
from fastledger.peers.gossip import TransactionRelay
from fastledger.peers.host import NEVER_MS, Random, random_bytes
from fastledger.peers.outbound import Outbound
from fastledger.peers.port import BlobPort, BlobSink, ChainPort, SnapshotPort
from fastledger.peers.scores import Ban, Offence, ScoreBoard, Subject
from fastledger.peers.serving import Server
from fastledger.peers.session import Link
from fastledger.peers.settings import (
    Action,
    Banned,
    Close,
    CloseCode,
    Dial,
    PeerInfo,
    PeerSettings,
    Send,
    SyncStatus,
)
from fastledger.peers.snapshots import SnapshotFetcher
from fastledger.peers.sync import HeaderSync
from fastledger.peers.wire import (
    WORK_BYTES,
    BlobChunk,
    BlockMessage,
    BlockTransactions,
    Compact,
    GetBlob,
    GetBlocks,
    GetBlockTransactions,
    GetHeaders,
    GetPeers,
    GetPiece,
    GetSnapshots,
    GetTransactions,
    Goodbye,
    Headers,
    Hello,
    Inventory,
    Message,
    NotFound,
    Peers,
    Piece,
    Ping,
    Pong,
    Snapshots,
    Transactions,
    WireFault,
    encode_frame,
)

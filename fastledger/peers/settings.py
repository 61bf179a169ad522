"""The settings of a node's peer network, the actions that it asks of its node, and its reports (SPEC-PEER-6)."""

from enum import IntEnum, unique
from typing import NamedTuple, TypeAlias

from fastledger.peers.scores import Party


@unique
class CloseCode(IntEnum):
    """The reason why a link is closed, told to the peer in Goodbye and to the node."""

    DONE = 0
    WRONG_CHAIN = 1
    WRONG_VERSION = 2
    SELF = 3
    DUPLICATE_LINK = 4
    FULL = 5
    BANNED = 6
    OFFENCE = 7
    TIMEOUT = 8
    NOT_READING = 9
    EVICTED = 10
    PEER_CLOSED = 11


class Send(NamedTuple):
    """The node is to write these bytes to the link, and to report by ``PeerNetwork.sent`` what was sent."""

    link: int
    data: bytes


class Close(NamedTuple):
    """The node is to write what was given to be sent (for a short while), then close.

    It need not report ``closed``.
    """

    link: int
    code: CloseCode
    why: str = ""


class Dial(NamedTuple):
    """The node is to connect to this address, then to report ``connected`` or ``dial_failed``."""

    address: str


class Banned(NamedTuple):
    """A subject is banned from now on; the node is to persist ``PeerNetwork.bans``."""

    subject: Party
    until_ms: int
    why: str


NetworkAction: TypeAlias = Send | Close | Dial | Banned


class PeerInfo(NamedTuple):
    """The state of one link, for ``peers list`` and metrics.

    ``height`` and ``work`` are what the peer last claimed; ``rule_set`` is the newest that its release knows, 0
    before it has told.
    """

    link: int
    address: str
    organisation: str
    inbound: bool
    ready: bool
    agent: str
    rule_set: int
    height: int
    work: int
    rtt_ms: int | None
    clock_offset_ms: int
    bytes_received: int
    bytes_sent: int
    unsent_bytes: int
    points: int
    connected_ms: int
    blocks_in_flight: int
    transactions_in_flight: int


class SyncStatus(NamedTuple):
    """How far this node is behind its peers.

    ``clock_offset_ms`` is the median of the offsets of the peers' clocks.
    """

    height: int
    header_height: int
    claimed_height: int
    blocks_in_flight: int
    syncing: bool
    ready_peers: int
    clock_offset_ms: int

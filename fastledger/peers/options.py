"""Settings of a peer network, and what peers may take of a node (SPEC-PEER-6)."""

from typing import Annotated

from msgspec import Meta, Struct

from fastledger.settings import DAY_MS, KIB, MIB, SECOND_MS
from fastledger.version import VERSION

Address = Annotated[str, Meta(pattern=r"^\S{1,255}:[0-9]{1,5}$")]
AddressOrNone = Annotated[str, Meta(pattern=r"^(\S{1,255}:[0-9]{1,5})?$")]


class PeerLimits(Struct, frozen=True, kw_only=True):
    """What peers may take of this node."""

    links_max: Annotated[int, Meta(description="Open links to peers, both ways.", ge=1, le=1_024)] = 64
    links_per_organisation_max: Annotated[
        int, Meta(description="Open links to nodes of one organisation.", ge=1, le=1_024)
    ] = 4
    outbound_links: Annotated[
        int, Meta(description="Links that the node opens itself, spread over organisations.", ge=1, le=256)
    ] = 8
    dial_timeout_ms: Annotated[
        int, Meta(description="Time to reach a peer, TLS included.", ge=100, le=600 * SECOND_MS)
    ] = 10 * SECOND_MS
    send_buffer_bytes_max: Annotated[
        int,
        Meta(
            description="Bytes that may wait to be sent over a link; it ends beyond.",
            ge=64 * KIB,
            le=1_024 * MIB,
        ),
    ] = 64 * MIB
    inbox_bytes_max: Annotated[
        int,
        Meta(
            description="Bytes from all peers that may wait to be worked on; no link is read beyond.",
            ge=64 * KIB,
            le=1_024 * MIB,
        ),
    ] = 32 * MIB
    ban_ms: Annotated[
        int, Meta(description="How long a peer that broke the rules is kept out.", ge=SECOND_MS, le=365 * DAY_MS)
    ] = DAY_MS


class PeerOptions(Struct, frozen=True, kw_only=True):
    """The settings of a peer network.

    ``peers`` are dialled for ever. The network looks for an address to dial every ``dial_pause_ms`` at most. A tick is
    due after ``tick_ms_max`` at the latest: the chain may want blocks without an event of the network's own, when a
    header's time has come. Bounds that protect memory are not settings: they stand in limits.py.
    """

    advertise: Annotated[
        AddressOrNone,
        Meta(description="Address and port under which others reach this node; empty: they are not told."),
    ] = ""
    peers: Annotated[
        tuple[Address, ...], Meta(description="Nodes to call, as address:port.", max_length=1_000)
    ] = ()
    discover: Annotated[
        bool, Meta(description="Whether nodes that peers tell of are called too, not those of `peers` alone.")
    ] = True
    limits: Annotated[PeerLimits, Meta(description="Bounds.")] = PeerLimits()
    agent: str = f"fastledger/{VERSION}"
    inbound_per_address: int = 8
    outbound_per_organisation: int = 1
    dial_pause_ms: int = 500
    tick_ms_max: int = 1_000
    redial_ms: int = 2_000
    redial_ms_max: int = 5 * 60 * 1000
    stale_tip_ms: int = 10 * 60 * 1000
    announce_ms_max: int = 100
    snapshot_quorum: int | None = None

"""JSON-RPC methods about the other organisations' nodes, forks, finality and mining (SPEC-FED-13)."""

from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from fastledger.errors import Code, InputError, NotFoundError
from fastledger.node.federation.driver import Federation
from fastledger.peers.scores import Ban, Party, PartyKind
from fastledger.peers.settings import PeerInfo
from fastledger.rpc.http.routes import Caller
from fastledger.rpc.methods import Method, RpcContext, method
from fastledger.rpc.protocol import Count, Hex32
from fastledger.rpc.views import Nothing, Params, RuleSetStepView, RulesView

BAN_MS_DEFAULT = 24 * 3_600_000
BAN_MS_MAX = 10 * 365 * 24 * 3_600_000

AddressText = Annotated[str, Meta(min_length=3, max_length=262)]
SubjectName = Annotated[str, Meta(min_length=1, max_length=255)]
SubjectWord = Literal["organisation", "address"]
WorkHex = Annotated[str, Meta(pattern="^[0-9a-f]+$", description="a whole number, hexadecimal")]


class MiningView(msgspec.Struct, frozen=True):
    """Whether the node searches blocks, how fast, and how many it found since its start."""

    on: bool
    threads: Count
    percent: Count
    hashes_per_second: float
    blocks_found: Count


class FederationStatusView(msgspec.Struct, frozen=True):
    """The node's state among its peers. Blocks up to ``final_height`` stay; above, the best chain may change.

    ``header_height`` is proven by work, ``lag_blocks`` of it are not executed yet; ``claimed_height`` is peers'
    word. ``reorganisations`` and the ``stale_blocks`` that they dropped are counted since the node's start.
    ``left_behind`` are the peers whose release lacks the rule set that is scheduled, or in force.
    """

    organisation: str
    finality_depth: Count
    tip_height: Count
    tip: Hex32
    tip_time_ms: Count
    final_height: Count
    work: WorkHex
    header_height: Count
    claimed_height: Count
    lag_blocks: Count
    syncing: bool
    mempool: Count
    rules: RulesView
    left_behind: list[str]
    peers: Count
    bans: Count
    clock_offset_ms: int
    reorganisations: Count
    stale_blocks: Count
    mining: MiningView


class PeerView(msgspec.Struct, frozen=True):
    """A link. ``height`` and ``work`` are what the peer claims, ``points`` its organisation's offences.

    ``rule_set`` is the newest that the peer's release knows, 0 before it has told.
    """

    address: str
    organisation: str
    inbound: bool
    ready: bool
    agent: str
    rule_set: Count
    height: Count
    work: WorkHex
    rtt_ms: Count | None
    clock_offset_ms: int
    bytes_received: Count
    bytes_sent: Count
    points: Count
    connected_ms: Count

    @classmethod
    def of(cls, peer: PeerInfo) -> "PeerView":
        """Returns a link in its wire form."""
        return cls(
            peer.address,
            peer.organisation,
            peer.inbound,
            peer.ready,
            peer.agent,
            peer.rule_set,
            peer.height,
            f"{peer.work:x}",
            peer.rtt_ms,
            peer.clock_offset_ms,
            peer.bytes_received,
            peer.bytes_sent,
            peer.points,
            peer.connected_ms,
        )


class BanView(msgspec.Struct, frozen=True):
    """A ban: on whom, until when and why (an offence's word, or ``operator``)."""

    kind: SubjectWord
    name: str
    until_ms: Count
    why: str

    @classmethod
    def of(cls, ban: Ban) -> "BanView":
        """Returns a ban in its wire form."""
        kind: SubjectWord = "address" if ban.subject.kind is PartyKind.ADDRESS else "organisation"
        return cls(kind, ban.subject.name, ban.until_ms, ban.why)


class PeersView(msgspec.Struct, frozen=True):
    """Every link and every ban."""

    peers: list[PeerView]
    bans: list[BanView]


class AddPeerParams(Params, frozen=True):
    """The address, ``host:port``, of another organisation's node."""

    address: AddressText


class SubjectParams(Params, frozen=True):
    """Exactly one of an organisation, by the name in its certificate, and the host of an address."""

    organisation: SubjectName | None = None
    address: SubjectName | None = None


class BanParams(SubjectParams, frozen=True):
    """The organisation or host to ban, and for how long."""

    duration_ms: Annotated[int, Meta(ge=1, le=BAN_MS_MAX)] = BAN_MS_DEFAULT


class MineParams(Params, frozen=True):
    """Whether to mine until the node ends; absent, nothing changes."""

    on: bool | None = None


class DoneView(msgspec.Struct, frozen=True):
    """Whether something changed."""

    done: bool


def federation_methods(federation: Federation | None) -> tuple[Method, ...]:
    """Returns the federation's methods; of a node without a federation each raises ``NotFoundError``."""

    def present() -> Federation:
        if federation is None:
            raise NotFoundError("this chain is one organisation's: it has no peers")
        return federation

    @method("federation.status", "reader", Nothing, FederationStatusView)
    async def status(context: RpcContext, caller: Caller, params: Nothing) -> FederationStatusView:
        """Tip, finality, synchronisation and mining of a node among its peers."""
        return _status(context, present())

    @method("federation.peers", "operator", Nothing, PeersView)
    async def peers(context: RpcContext, caller: Caller, params: Nothing) -> PeersView:
        """Every link to another organisation's node, and who is shut out."""
        found = present()
        return PeersView(
            [PeerView.of(peer) for peer in await found.peers()],
            [BanView.of(ban) for ban in await found.bans()],
        )

    @method("federation.add_peer", "operator", AddPeerParams, DoneView)
    async def add_peer(context: RpcContext, caller: Caller, params: AddPeerParams) -> DoneView:
        """Calls a node from now on, also after a restart."""
        await present().add_peer(params.address)
        return DoneView(done=True)

    @method("federation.ban", "operator", BanParams, DoneView)
    async def ban(context: RpcContext, caller: Caller, params: BanParams) -> DoneView:
        """Shuts an organisation or a host out for a time, also over a restart."""
        await present().ban(_subject(params), params.duration_ms)
        return DoneView(done=True)

    @method("federation.unban", "operator", SubjectParams, DoneView)
    async def unban(context: RpcContext, caller: Caller, params: SubjectParams) -> DoneView:
        """Lets an organisation or a host in again."""
        return DoneView(await present().unban(_subject(params)))

    @method("federation.mine", "operator", MineParams, MiningView)
    async def mine(context: RpcContext, caller: Caller, params: MineParams) -> MiningView:
        """Begins or ends the search for blocks, and tells how it goes."""
        found = present()
        if params.on is not None:
            found.miner.switch(on=params.on)
        return _mining(found)

    return (status, peers, add_peer, ban, unban, mine)


def _subject(params: SubjectParams) -> Party:
    if (params.organisation is None) == (params.address is None):
        raise InputError("say organisation or address", code=Code.BAD_QUERY)
    if params.organisation is not None:
        return Party(PartyKind.ORGANISATION, params.organisation)
    return Party(PartyKind.ADDRESS, params.address or "")


def _mining(federation: Federation) -> MiningView:
    miner = federation.miner
    return MiningView(
        miner.is_on,
        federation.mine_threads,
        federation.mine_percent,
        round(miner.hashes_per_second, 1),
        miner.blocks_found,
    )


def _rules(context: RpcContext, federation: Federation) -> RulesView:
    """Those of the best chain, final or not."""
    figures, needed = federation.figures, context.service.ledger.release_needed
    step = figures.scheduled
    return RulesView(
        figures.rule_set,
        figures.rule_set_known,
        None if step is None else RuleSetStepView(step.rule_set, step.height, step.release),
        None if needed is None else str(needed),
    )


def _status(context: RpcContext, federation: Federation) -> FederationStatusView:
    figures = federation.figures
    work = context.service.ledger.genesis.work
    return FederationStatusView(
        federation.organisation,
        0 if work is None else work.finality_depth,
        figures.tip_height,
        figures.tip_id.hex(),
        figures.tip_time_ms,
        figures.final_height,
        f"{figures.work:x}",
        figures.sync.header_height,
        figures.sync.claimed_height,
        figures.lag,
        federation.is_syncing,
        figures.mempool,
        _rules(context, federation),
        list(figures.left_behind),
        sum(peer.ready for peer in figures.peers),
        len(figures.bans),
        figures.sync.clock_offset_ms,
        federation.reorganisations,
        federation.stale_blocks,
        _mining(federation),
    )

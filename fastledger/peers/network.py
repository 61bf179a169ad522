"""All links of a node as one machine (SPEC-PEER-5, SPEC-PEER-6).

The node reports what happened (a connection, bytes, the time, what the chain did) and carries out the actions that it
takes out afterwards. Nothing that a peer sends raises here: it ends in an offence, which is counted against its
organisation. What does raise is the chain's own trouble (LedgerError).
"""

from collections import OrderedDict
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from fastledger.errors import Code, NotFoundError
from fastledger.limits import PEER_LINKS_MAX, PEER_SLEPT_MS, PEER_UNSENT_TOTAL_BYTES_MAX
from fastledger.model.block import Block
from fastledger.peers.addresses import AddressBook, is_address
from fastledger.peers.blobs import BlobFetcher
from fastledger.peers.compact import CompactRelay
from fastledger.peers.fetch import BlockFetcher
from fastledger.peers.gossip import TransactionRelay
from fastledger.peers.host import Random, random_bytes
from fastledger.peers.options import PeerOptions
from fastledger.peers.outbound import Outbound
from fastledger.peers.port import BlobPort, BlobSink, ChainPort, SnapshotPort
from fastledger.peers.scores import Ban, Offence, Party, ScoreBoard
from fastledger.peers.serving import Server
from fastledger.peers.session import Budgets, Link
from fastledger.peers.settings import (
    Banned,
    Close,
    CloseCode,
    Dial,
    NetworkAction,
    PeerInfo,
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

# Whatever a part thinks is due, the node is not woken more often than this.
TICK_MS_MIN = 5
# After these an address is tried again soon; after all others with growing pauses.
_REDIALLED = {CloseCode.DONE, CloseCode.PEER_CLOSED, CloseCode.DUPLICATE_LINK, CloseCode.EVICTED}


class PeerNetwork:
    """The peers of one node. Single-threaded; ``rng`` is a ``random.Random`` or like one.

    ``now_ms`` is UTC in milliseconds, as the chain wants it. Where it jumps, what was being waited for counts as
    late, and nothing else breaks. After each call the node takes the actions out and hands in what
    ``chain.take_events`` has, until both are empty.
    """

    def __init__(
        self,
        chain: ChainPort,
        settings: PeerOptions,
        *,
        rng: Random,
        now_ms: int,
        bans: Sequence[Ban] = (),
        blobs: BlobPort | None = None,
        snapshots: SnapshotPort | None = None,
    ) -> None:
        self.chain = chain
        self.settings = settings
        self.rng = rng
        self._now_ms = now_ms
        self._budgets: OrderedDict[Party, Budgets] = OrderedDict()
        self._ticked_ms = now_ms
        self._lenient_until_ms = 0
        self._nonce = random_bytes(rng, 8)
        self._links: dict[int, Link] = {}
        self._actions: list[NetworkAction] = []
        self._scores = ScoreBoard(tuple(bans), ban_ms=settings.limits.ban_ms)
        self._book = AddressBook(rng, redial_ms=settings.redial_ms, redial_ms_max=settings.redial_ms_max)
        for address in settings.peers:
            self._book.configure(address)
        self._sync = HeaderSync(self)
        self._fetch = BlockFetcher(self)
        self._compact = CompactRelay(self, self._fetch, self._sync)
        self._gossip = TransactionRelay(self)
        self._blobs = BlobFetcher(self)
        self._snapshots = SnapshotFetcher(self, snapshots)
        self._server = Server(self, self._gossip, blobs, snapshots)
        self._outbound = Outbound(self, self._book, self._scores, now_ms)
        self._handlers = self._make_handlers()

    def _make_handlers(self) -> dict[type[Message], Callable[[Link, Any, int], None]]:
        return {
            Ping: self._on_ping,
            Pong: self._on_pong,
            Headers: self._on_headers,
            BlockMessage: self._on_block,
            NotFound: self._fetch.on_not_found,
            Compact: self._compact.on_compact,
            BlockTransactions: self._compact.on_transactions,
            Inventory: self._gossip.on_inventory,
            Transactions: self._gossip.on_transactions,
            Peers: self._outbound.on_peers,
            GetPeers: self._outbound.on_get_peers,
            BlobChunk: self._blobs.on_chunk,
            Snapshots: self._snapshots.on_snapshots,
            Piece: self._snapshots.on_piece,
            **dict.fromkeys(
                (
                    GetHeaders,
                    GetBlocks,
                    GetBlockTransactions,
                    GetTransactions,
                    GetBlob,
                    GetSnapshots,
                    GetPiece,
                ),
                self._server.on_request,
            ),
        }

    # What the node reports.

    def connected(self, link: int, address: str, *, inbound: bool, organisation: str, now_ms: int) -> None:
        """Takes in a new connection, numbered ``link``, and sends Hello or closes it.

        ``organisation`` is the name in the peer's verified certificate, empty where it has none.
        """
        self._now_ms = now_ms
        state = Link(link, address, organisation, inbound, now_ms)
        state.budgets = self._budgets_of(state.subject)
        self._links[link] = state
        if not inbound:
            self._book.connected(address, organisation)
        refusal = self._refusal(state)
        if refusal is not None:
            self.close(state, refusal)
            return
        state.hello_tip = self.chain.tip.block_id
        self.send(state, self._hello())

    def dial_failed(self, address: str, now_ms: int) -> None:
        """Notes that an address did not answer, or that its certificate was not good."""
        self._now_ms = now_ms
        self._book.failed(address, now_ms)

    def received(self, link: int, data: bytes, now_ms: int) -> None:
        """Takes bytes that arrived on a link, cut anywhere, and handles every message that they complete."""
        self._now_ms = now_ms
        state = self._links.get(link)
        if state is None or state.closing:
            return
        try:
            for message in state.messages(data, now_ms):
                self._handle(state, message)
                if state.closing:
                    return
        except WireFault as fault:
            self.charge(state, fault.offence)
            # A stream that broke cannot be read on; a flood and a loose answer can, but nothing is gained by it.
            self.close(state, CloseCode.OFFENCE, fault.offence.slug)

    def sent(self, link: int, byte_count: int, now_ms: int) -> None:
        """Notes that ``byte_count`` bytes of a link have left this node's buffers.

        A transport without buffers reports them at once.
        """
        self._now_ms = now_ms
        state = self._links.get(link)
        if state is not None:
            state.drained(byte_count, now_ms)
            if state.ready:
                self._server.pump(state, now_ms)
                self._gossip.flush(state, now_ms)

    def closed(self, link: int, now_ms: int) -> None:
        """Notes that a connection has ended, whichever side closed it."""
        self._now_ms = now_ms
        state = self._links.get(link)
        if state is not None and not state.closing:
            self._forget(state, CloseCode.PEER_CLOSED)

    def tick(self, now_ms: int) -> None:
        """Does what is due by the clock; the node calls it at ``next_tick_ms`` or later."""
        self._now_ms = now_ms
        if now_ms - self._ticked_ms > self.settings.tick_ms_max + PEER_SLEPT_MS:
            # This node slept or was busy: what peers sent meanwhile may still lie before its door.
            self._lenient_until_ms = now_ms + PEER_SLEPT_MS
        self._ticked_ms = now_ms
        for link in list(self._links.values()):
            self._tick_link(link, now_ms)
        self._sync.tick(now_ms)
        self._compact.tick(now_ms)
        self._fetch.tick(now_ms)
        self._gossip.tick(now_ms)
        self._blobs.tick(now_ms)
        self._snapshots.tick(now_ms)
        self._outbound.tick(now_ms)

    @property
    def next_tick_ms(self) -> int:
        """When ``tick`` has something to do again, as far as is known now."""
        parts = (
            self._sync,
            self._compact,
            self._fetch,
            self._gossip,
            self._blobs,
            self._snapshots,
            self._outbound,
        )
        times = [part.next_ms for part in parts]
        times += [link.next_ms for link in self._links.values()]
        return min(max(self._now_ms + TICK_MS_MIN, min(times)), self._now_ms + self.settings.tick_ms_max)

    def chain_events(self, events: Sequence[Any], now_ms: int) -> None:
        """Takes the chain's reports: blocks and transactions are told to the peers that do not have them."""
        self._now_ms = now_ms
        self._gossip.chain_events(events, now_ms)
        self._fetch.chain_events(events, now_ms)
        self._compact.chain_events(events, now_ms)
        self._outbound.chain_events(events, now_ms)
        self._fetch.tick(now_ms)

    def take_actions(self) -> list[NetworkAction]:
        """Returns the actions that the node has to carry out now, in this order; they are handed out once."""
        actions, self._actions = self._actions, []
        return actions

    # What operators ask.

    def add_peer(self, address: str) -> None:
        """Adds an address (``host:port``) that is dialled for ever. Raises ValueError where it is none."""
        if not is_address(address):
            raise ValueError("an address is host:port")
        self._book.configure(address)

    def ban(self, subject: Party, duration_ms: int, now_ms: int) -> None:
        """Shuts an organisation or a host out and closes its links."""
        self._now_ms = now_ms
        self._shut_out(self._scores.ban(subject, now_ms + duration_ms, "operator"))

    def unban(self, subject: Party) -> bool:
        """Lets a subject in again; False where it was not banned."""
        return self._scores.unban(subject)

    def bans(self, now_ms: int) -> list[Ban]:
        """Returns all bans that hold, to be persisted and handed in again as ``bans``."""
        return self._scores.bans(now_ms)

    def peers(self) -> list[PeerInfo]:
        """Returns what is known of every link."""
        return [self._info(link) for link in self._links.values()]

    def sync_status(self) -> SyncStatus:
        """Returns how far this node is behind its peers."""
        ready = list(self.ready_links())
        offsets = sorted(link.clock_offset_ms for link in ready)
        return SyncStatus(
            height=self.chain.tip.height,
            header_height=self.chain.tree.best_header().height,
            claimed_height=max((link.height for link in ready), default=0),
            blocks_in_flight=self._fetch.in_flight,
            syncing=self._sync.is_behind or self._fetch.is_behind,
            ready_peers=len(ready),
            clock_offset_ms=offsets[len(offsets) // 2] if offsets else 0,
        )

    def fetch_blob(self, digest: bytes, access_txid: bytes, sink: BlobSink, now_ms: int) -> None:
        """Fetches an envelope by its SHA-256 from whichever peer gives it, and writes it to ``sink``.

        ``access_txid`` is the transaction that entitles this organisation to it. Raises ``LedgerBusyError`` where as
        many fetches as may are under way.
        """
        self._now_ms = now_ms
        self._blobs.fetch(digest, access_txid, sink, now_ms)

    def seek_block(self, block_id: bytes, take: Callable[[Block], bool], now_ms: int) -> None:
        """Fetches one block by its id; ``take`` gets each copy until it returns True (SPEC-PEER-37).

        A copy has the id and the shape of the block; ``take`` checks roots and signatures. Where it returns False,
        the sender is charged. Copies are fetched until one is taken or ``seek_no_more`` is called. Raises
        LedgerBusyError where many blocks are sought.
        """
        self._now_ms = now_ms
        self._fetch.seek(block_id, take, now_ms)

    def seek_no_more(self, block_id: bytes) -> None:
        """Ends a ``seek_block`` whose caller no longer needs the block."""
        self._fetch.seek_no_more(block_id)

    def fetch_snapshot(self, now_ms: int) -> None:
        """Looks for a snapshot that a quorum of proposers attest, and brings it to the SnapshotPort (SPEC-PEER-34).

        Raises NotFoundError where this node has no SnapshotPort.
        """
        self._now_ms = now_ms
        if self._snapshots.port is None:
            raise NotFoundError("this node takes no snapshots", code=Code.NOT_FOUND)
        self._snapshots.begin(now_ms)

    # The host of the parts.

    def send(self, link: Link, message: Message) -> None:
        """Gives a message to be sent. A peer that lets too much pile up is charged and its link closed."""
        if link.closing:
            return
        frame = encode_frame(message)
        self._actions.append(Send(link.number, frame))
        if not link.put(len(frame), self._now_ms):
            self.charge(link, Offence.NOT_READING)
            self.close(link, CloseCode.NOT_READING)

    def charge(self, link: Link, offence: Offence) -> None:
        """Counts an offence against the link's organisation (or host); enough of them are a ban."""
        ban = self._scores.charge(link.subject, offence, self._now_ms)
        if ban is not None:
            self._shut_out(ban)

    def close(self, link: Link, code: CloseCode, why: str = "") -> None:
        """Sends Goodbye and closes the link; what it was to bring is asked of other peers."""
        if link.closing:
            return
        link.closing = True
        if code != CloseCode.PEER_CLOSED:
            self._actions.append(Send(link.number, encode_frame(Goodbye(int(code)))))
        self._actions.append(Close(link.number, code, why))
        self._forget(link, code)

    def link(self, number: int) -> Link | None:
        """Returns a link by its number, None where it has ended or its handshake is not done."""
        link = self._links.get(number)
        return link if link is not None and link.ready and not link.closing else None

    def links(self) -> Iterable[Link]:
        """Returns every link, oldest first."""
        return self._links.values()

    def ready_links(self) -> Iterable[Link]:
        """Returns the links whose handshake is done, oldest first."""
        return [link for link in self._links.values() if link.ready and not link.closing]

    def may_serve(self, link: Link) -> bool:
        """Whether an answer may be made for a peer: it reads, and all peers together leave not too much unread."""
        unsent = sum(other.unsent for other in self._links.values())
        return link.may_serve and unsent < PEER_UNSENT_TOTAL_BYTES_MAX

    def dial(self, address: str) -> None:
        """Asks the node to connect to an address."""
        self._actions.append(Dial(address))

    # Inside.

    def _budgets_of(self, subject: Party) -> Budgets:
        """Returns the budgets of an organisation or host: the old ones, or new ones where those were dropped."""
        budgets = self._budgets.setdefault(subject, Budgets(self._now_ms))
        self._budgets.move_to_end(subject)
        while len(self._budgets) > 2 * PEER_LINKS_MAX:
            self._budgets.popitem(last=False)
        return budgets

    def _refusal(self, link: Link) -> CloseCode | None:
        for subject in (link.subject, link.host):
            if self._scores.is_banned(subject, self._now_ms):
                return CloseCode.BANNED
        if len(self._links) > PEER_LINKS_MAX:
            return CloseCode.FULL
        return self._outbound.refusal(link)

    def _forget(self, link: Link, code: CloseCode) -> None:
        self._links.pop(link.number, None)
        link.closing = True
        if not link.inbound:
            if link.ready and code in _REDIALLED:
                self._book.closed(link.address, self._now_ms)
            else:
                self._book.failed(link.address, self._now_ms)
        for part in (self._sync, self._compact, self._fetch, self._gossip, self._blobs, self._snapshots):
            part.gone(link, self._now_ms)

    def _shut_out(self, ban: Ban) -> None:
        self._actions.append(Banned(ban.subject, ban.until_ms, ban.why))
        for link in list(self._links.values()):
            if ban.subject in (link.subject, link.host):
                self.close(link, CloseCode.BANNED, ban.why)

    def _hello(self) -> Hello:
        tip = self.chain.tip
        return Hello(
            self.chain.chain_id,
            self.chain.genesis.digest,
            self._nonce,
            tip.height,
            self.chain.work.to_bytes(WORK_BYTES, "big"),
            tip.block_id,
            max(0, self._now_ms),
            self.settings.advertise,
            self.settings.agent,
            self.chain.newest_rule_set,
        )

    def _tick_link(self, link: Link, now_ms: int) -> None:
        judged = now_ms >= self._lenient_until_ms and not link.closing
        late = link.late(now_ms) if judged else None
        if late is not None:
            code, offence = late
            if offence is not None:
                self.charge(link, offence)
            self.close(link, code)
        elif link.ping_due(now_ms):
            self._ping(link)
        if link.ready and not link.closing:
            self._server.pump(link, now_ms)

    def _ping(self, link: Link) -> None:
        nonce = random_bytes(self.rng, 8)
        link.pinged(nonce, self._now_ms)
        link.expect(Ping)
        self.send(link, Ping(nonce, *self._tip_fields()))

    def _tip_fields(self) -> tuple[int, bytes, bytes]:
        tip = self.chain.tip
        return tip.height, self.chain.work.to_bytes(WORK_BYTES, "big"), tip.block_id

    def _handle(self, link: Link, message: Message) -> None:
        if isinstance(message, Hello):
            self._on_hello(link, message)
            return
        if isinstance(message, Goodbye):
            self.close(link, CloseCode.PEER_CLOSED, _goodbye_word(message.code))
            return
        self._handlers[type(message)](link, message, self._now_ms)

    def _on_hello(self, link: Link, hello: Hello) -> None:
        link.hello = hello
        if hello.nonce == self._nonce:
            self._book.is_self(link.address)
            self.close(link, CloseCode.SELF)
        elif hello.chain_id != self.chain.chain_id or hello.genesis_digest != self.chain.genesis.digest:
            self.charge(link, Offence.WRONG_CHAIN)
            self.close(link, CloseCode.WRONG_CHAIN)
        else:
            rival = self._outbound.rival(link, self._nonce)
            if rival is not None:
                self.close(rival, CloseCode.DUPLICATE_LINK)
            if rival is not link:
                self._ready(link, hello)

    def _ready(self, link: Link, hello: Hello) -> None:
        link.ready = True
        link.clock_offset_ms = hello.time_ms - self._now_ms
        link.rule_set = hello.rule_set
        self._told_tip(link, hello)
        if link.hello_tip != self.chain.tip.block_id:
            # The tip moved between our Hello and theirs, when there was nobody yet to tell.
            self._ping(link)
        self._outbound.ready(link, self._now_ms)
        self._gossip.ready(link, self._now_ms)
        self._sync.ready(link, self._now_ms)
        self._fetch.ready(link, self._now_ms)
        self._snapshots.ready(link, self._now_ms)

    def _told_tip(self, link: Link, message: Hello | Ping | Pong | Headers) -> None:
        """Records what a peer claims of its tip. The claim steers whom to ask; headers must prove it later."""
        link.height = message.height
        link.work = int.from_bytes(message.work, "big")
        link.tip = message.tip

    def _on_ping(self, link: Link, message: Ping, now_ms: int) -> None:
        self._told_tip(link, message)
        self.send(link, Pong(message.nonce, *self._tip_fields()))
        self._sync.consider(now_ms)

    def _on_pong(self, link: Link, message: Pong, now_ms: int) -> None:
        link.settle(Ping)
        if not link.ponged(message.nonce, now_ms):
            raise WireFault("a Pong without its Ping", Offence.UNREQUESTED)
        self._told_tip(link, message)
        self._sync.consider(now_ms)

    def _on_headers(self, link: Link, message: Headers, now_ms: int) -> None:
        self._told_tip(link, message)
        self._sync.on_headers(link, message, now_ms)
        self._fetch.refill(now_ms)

    def _on_block(self, link: Link, message: BlockMessage, now_ms: int) -> None:
        self._fetch.on_block(link, message, now_ms)
        self._sync.consider(now_ms)

    def _info(self, link: Link) -> PeerInfo:
        return PeerInfo(
            link=link.number,
            address=link.address,
            organisation=link.organisation,
            inbound=link.inbound,
            ready=link.ready,
            agent=link.hello.agent if link.hello is not None else "",
            rule_set=link.rule_set,
            height=link.height,
            work=link.work,
            rtt_ms=link.rtt_ms,
            clock_offset_ms=link.clock_offset_ms,
            bytes_received=link.bytes_received,
            bytes_sent=link.bytes_sent,
            unsent_bytes=link.unsent,
            points=int(self._scores.points(link.subject, self._now_ms)),
            connected_ms=link.connected_ms,
            blocks_in_flight=self._fetch.load(link),
            transactions_in_flight=self._gossip.load(link),
        )


def _goodbye_word(code: int) -> str:
    try:
        return CloseCode(code).name.lower()
    except ValueError:
        return f"code {code}"

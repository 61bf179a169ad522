"""The choice of links: whom this node dials, whom it lets in, which of two to one node stays (SPEC-PEER-24..27)."""

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any, Protocol

from fastledger.chain.forks.events import BlockConnected
from fastledger.peers.addresses import AddressBook, Known
from fastledger.peers.host import NEVER_MS, Host
from fastledger.peers.scores import Party, PartyKind, ScoreBoard, host_of
from fastledger.peers.session import Link
from fastledger.peers.settings import CloseCode
from fastledger.peers.wire import GetPeers, Peers


class LinkHost(Host, Protocol):
    """A host that also shows all its links and dials."""

    def links(self) -> Iterable[Link]:
        """Returns every link, oldest first."""

    def dial(self, address: str) -> None:
        """Asks the node to connect to an address."""


class Outbound:
    """Keeps as many links of this node's own choice as it should have, to distinct organisations."""

    def __init__(self, host: LinkHost, book: AddressBook, scores: ScoreBoard, now_ms: int) -> None:
        self._host = host
        self._book = book
        self._scores = scores
        self._try_ms = 0
        self._moved_ms = now_ms
        self._stale = False

    @property
    def next_ms(self) -> int:
        """When the next address may be dialled, or a tip that stands still is to be doubted."""
        times = [self._moved_ms + self._host.settings.stale_tip_ms]
        times.append(max(self._book.next_ms(), self._try_ms))
        return min(times, default=NEVER_MS)

    def tick(self, now_ms: int) -> None:
        """Dials where links are missing.

        Where the tip stands still for long, asks for peers and allows one link more.
        """
        settings = self._host.settings
        if now_ms >= self._moved_ms + settings.stale_tip_ms:
            # Perhaps all that this node hears of is what someone wants it to hear.
            self._stale = True
            self._moved_ms = now_ms
            for link in self._host.ready_links():
                self._ask_for_peers(link)
        if now_ms >= self._try_ms:
            self._dial(now_ms)
            self._try_ms = now_ms + self._host.settings.dial_pause_ms

    def chain_events(self, events: Sequence[Any], now_ms: int) -> None:
        """Ends the doubt about the tip when a block is connected, and closes the link that was opened for it."""
        if not any(isinstance(event, BlockConnected) for event in events):
            return
        self._moved_ms = now_ms
        if self._stale:
            self._stale = False
            chosen = [link for link in self._outbound() if link.address not in self._book.configured()]
            if len(self._outbound()) > self._host.settings.limits.outbound_links and chosen:
                self._host.close(chosen[-1], CloseCode.EVICTED)

    def _outbound(self) -> list[Link]:
        return [link for link in self._host.links() if not link.inbound]

    def _dial(self, now_ms: int) -> None:
        target = self._host.settings.limits.outbound_links + (1 if self._stale else 0)
        room = target - len(self._outbound()) - self._book.dialling
        nodes, addresses, organisations = self._connected()

        def may(address: str, known: Known) -> bool:
            if address in addresses or (known.node and known.node in nodes):
                return False
            if self._is_banned(address, known, now_ms):
                return False
            if known.configured:
                return True
            per_organisation = self._host.settings.outbound_per_organisation
            return room > 0 and not (
                known.organisation and organisations[known.organisation] >= per_organisation
            )

        for _ in range(max(room, 1)):
            address = self._book.choose(now_ms, may)
            if address is None:
                break
            self._host.dial(address)

    def _connected(self) -> tuple[set[bytes], set[str], Counter[str]]:
        """Returns the nodes and addresses with a link, and how many chosen links each organisation has."""
        links = list(self._host.links())
        nodes = {link.hello.nonce for link in links if link.hello is not None}
        addresses = {link.address for link in links if not link.inbound}
        addresses |= {link.hello.listen for link in links if link.hello is not None and link.ready}
        addresses.add(self._host.settings.advertise)
        return nodes, addresses, Counter(link.organisation for link in links if not link.inbound)

    def _is_banned(self, address: str, known: Known, now_ms: int) -> bool:
        organisation = Party(PartyKind.ORGANISATION, known.organisation)
        host = Party(PartyKind.ADDRESS, host_of(address))
        return any(self._scores.is_banned(subject, now_ms) for subject in (organisation, host))

    def refusal(self, link: Link) -> CloseCode | None:
        """Returns why a new connection is not kept, None where it is."""
        others = [
            other for other in self._host.links() if other is not link and other.inbound == link.inbound
        ]
        same = [other for other in others if link.organisation and other.organisation == link.organisation]
        settings = self._host.settings
        if not link.inbound:
            taken = len(same) >= settings.outbound_per_organisation
            return CloseCode.DUPLICATE_LINK if taken and link.address not in self._book.configured() else None
        same_host = [other for other in others if other.host == link.host]
        if len(same) >= settings.limits.links_per_organisation_max:
            return CloseCode.FULL
        # Organisations behind one translated address are told apart by their certificates.
        if not link.organisation and len(same_host) >= settings.inbound_per_address:
            return CloseCode.FULL
        if len(others) >= settings.limits.links_max and not self._make_room(others, len(same)):
            return CloseCode.FULL
        return None

    def _make_room(self, inbound: list[Link], own: int) -> bool:
        """Closes the newest link of the organisation that has most, if that is more than the newcomer's will have.
        """
        counts = Counter(link.subject for link in inbound)
        subject, most = counts.most_common(1)[0]
        if most <= own + 1:
            return False
        newest = [link for link in inbound if link.subject == subject][-1]
        self._host.close(newest, CloseCode.EVICTED)
        return True

    def rival(self, link: Link, own_nonce: bytes) -> Link | None:
        """Returns which of two links to one node is to be closed, None where there is no second.

        Both ends choose alike: the link stays that was dialled by the node with the greater nonce. A nonce counts
        for its organisation only, so that nobody can have another's links closed by repeating it.
        """
        nonce = link.hello.nonce if link.hello is not None else b""
        for other in self._host.links():
            if other is link or not other.ready or other.hello is None:
                continue
            if other.hello.nonce != nonce or other.organisation != link.organisation:
                continue
            if other.inbound == link.inbound:
                return link
            by_peer, by_us = (link, other) if link.inbound else (other, link)
            return by_us if nonce > own_nonce else by_peer
        return None

    def ready(self, link: Link, now_ms: int) -> None:
        """Records the address of a peer after its handshake, and asks a peer that this node dialled for others."""
        if link.hello is None:
            return
        if not link.inbound:
            self._book.proved(link.address, link.hello.nonce)
            self._ask_for_peers(link)
        elif link.hello.listen and self._host.settings.discover:
            self._book.learn(link.hello.listen, link.subject.name)

    def _ask_for_peers(self, link: Link) -> None:
        if self._host.settings.discover and not link.expected(GetPeers):
            link.expect(GetPeers)
            self._host.send(link, GetPeers())

    def on_peers(self, link: Link, message: Peers, now_ms: int) -> None:
        """Learns the addresses that a peer tells; how many of them are kept is bounded for each source."""
        link.settle(GetPeers)
        for address in message.addresses:
            if address != self._host.settings.advertise:
                self._book.learn(address, link.subject.name)

    def on_get_peers(self, link: Link, message: GetPeers, now_ms: int) -> None:
        """Answers a peer that asks for addresses."""
        self._host.send(link, Peers(self._book.sample()))

"""Peer networks joined without sockets: a seeded clock, links with delay that end, bytes dealt out as they come."""

import heapq
import random
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from typing import Any
from unittest.mock import patch

import fork_world
from fork_world import Node
from world import START_MS

from fastledger import Genesis, SigningKey, Transaction
from fastledger.chain.forks.mining import mine_block
from fastledger.model.block import Block
from fastledger.peers.network import PeerNetwork
from fastledger.peers.options import PeerLimits, PeerOptions
from fastledger.peers.settings import Banned, Close, CloseCode, Dial, Send
from fastledger.peers.wire import TAGS, FrameReader, Hello, Message, encode_frame
from fastledger.subjects.catalogue import REGISTRY

SEGMENT_BYTES = 1 << 22


@dataclass
class Pipe:
    """One direction of a link: bytes arrive in order, each after a delay of its own but never before the last."""

    to: str
    to_link: int
    at_ms: int = 0


@dataclass
class Member:
    """An honest node: a chain in a directory and its peer network."""

    name: str
    node: Node
    network: PeerNetwork
    address: str
    closed: list[tuple[int, CloseCode, str]] = field(default_factory=list)
    banned: list[Banned] = field(default_factory=list)
    unsent_max: int = 0

    @property
    def chain(self) -> Any:
        return self.node.chain


@dataclass
class Stranger:
    """The far end of a link that a test plays by hand."""

    net: "Net"
    name: str
    link: int
    victim: str
    victim_link: int
    inbox: list[Any] = field(default_factory=list)
    is_open: bool = True
    reads: bool = True

    def __post_init__(self) -> None:
        self._reader = FrameReader(lambda tag: None)

    def take(self, data: bytes) -> None:
        self.inbox += self._reader.feed(data)

    def say(self, *messages: Message) -> None:
        for message in messages:
            self.say_bytes(encode_frame(message))

    def say_bytes(self, data: bytes) -> None:
        """At once, as one piece."""
        if self.is_open:
            member = self.net.members[self.victim]
            member.network.received(self.victim_link, data, self.net.now_ms)
            self.net.settle(member)

    def heard(self, kind: type[Message]) -> list[Any]:
        return [message for message in self.inbox if type(message) is kind]

    def greet(self, **changes: Any) -> "Stranger":
        """A good handshake, but for ``changes``."""
        self.say(self.hello(**changes))
        return self

    def hello(self, **changes: Any) -> Hello:
        chain = self.net.members[self.victim].chain
        fields: dict[str, Any] = {
            "chain_id": chain.chain_id,
            "genesis_digest": chain.genesis.digest,
            "nonce": self.link.to_bytes(8, "big"),
            "height": 0,
            "work": bytes(32),
            "tip": bytes(32),
            "time_ms": self.net.now_ms,
            "listen": "",
            "agent": "stranger",
            "rule_set": 1,
        }
        return Hello(**(fields | changes))


class Net:
    """Members, the links between them, and the one clock."""

    def __init__(
        self, root: Path, genesis: Genesis, *, seed: int = 1, delay_ms: tuple[int, int] = (1, 20)
    ) -> None:
        self.root = root
        self.genesis = genesis
        self.rng = random.Random(seed)
        self.delay_ms = delay_ms
        self.now_ms = START_MS + 1_000
        self.members: dict[str, Member] = {}
        self.strangers: dict[int, Stranger] = {}
        self.split = False
        self.parted: set[frozenset[str]] = set()
        self.dialled: list[tuple[str, str]] = []
        self.bytes_by_tag: Counter[int] = Counter()
        self._numbers = count(1)
        self._order = count()
        self._pipes: dict[tuple[str, int], Pipe] = {}
        self._ends: dict[tuple[str, int], tuple[str, int]] = {}
        self._heap: list[tuple[int, int, Callable[[], None]]] = []
        self._wake: dict[str, int] = {}

    def add(self, name: str, key: SigningKey | None, *, peers: Sequence[str] = (), **settings: Any) -> Member:
        node = Node(self.root / name, self.genesis, key, registry=settings.pop("registry", REGISTRY))
        node.now_ms = self.now_ms
        # Larger blocks than the tests of the chain make.
        with patch.object(fork_world, "SEGMENT_BYTES", SEGMENT_BYTES):
            node.start()
        ports = {port: settings.pop(port) for port in ("bans", "blobs", "snapshots") if port in settings}
        limits = {limit: settings.pop(limit) for limit in PeerLimits.__struct_fields__ if limit in settings}
        options = PeerOptions(
            limits=PeerLimits(**limits),
            advertise=f"{name}:1",
            peers=tuple(f"{peer}:1" for peer in peers),
            redial_ms=200,
            **settings,
        )
        rng = random.Random(self.rng.getrandbits(64))
        network = PeerNetwork(node.chain, options, rng=rng, now_ms=self.now_ms, **ports)
        member = self.members[name] = Member(name, node, network, f"{name}:1")
        self.settle(member)
        return member

    def mesh(self, keys: Sequence[SigningKey], **settings: Any) -> list[Member]:
        """Everyone knows everyone."""
        names = [f"m{index}" for index in range(len(keys))]
        return [
            self.add(name, key, peers=[other for other in names if other != name], **settings)
            for name, key in zip(names, keys, strict=True)
        ]

    def close(self) -> None:
        for member in self.members.values():
            member.node.stop()

    # What members do.

    def settle(self, member: Member) -> None:
        """Carries out what a member wants done, until it wants nothing more."""
        while True:
            events = member.node.drain()
            if events:
                member.network.chain_events(events, self.now_ms)
            actions = member.network.take_actions()
            if not actions and not events:
                break
            for action in actions:
                self._carry_out(member, action)
        for info in member.network.peers():
            member.unsent_max = max(member.unsent_max, info.unsent_bytes)
        self._wake_at(member, member.network.next_tick_ms)

    def _carry_out(self, member: Member, action: Any) -> None:
        if isinstance(action, Send):
            self._send(member, action.link, action.data)
        elif isinstance(action, Close):
            member.closed.append((action.link, action.code, action.why))
            self._end(member.name, action.link)
        elif isinstance(action, Banned):
            member.banned.append(action)
        elif isinstance(action, Dial):
            self._at(self.now_ms + self._delay(), lambda: self._dial(member, action.address))

    def _wake_at(self, member: Member, when_ms: int) -> None:
        if when_ms > self.now_ms + 10**9 or self._wake.get(member.name, 2**62) <= when_ms:
            return
        self._wake[member.name] = when_ms

        def tick() -> None:
            if self._wake.get(member.name) == when_ms and self.members.get(member.name) is member:
                del self._wake[member.name]
                member.chain.tick(self.now_ms)
                member.network.tick(self.now_ms)
                self.settle(member)

        self._at(when_ms, tick)

    def mine(self, member: Member) -> Block:
        block = mine_block(member.chain, self.now_ms)
        self.settle(member)
        return block

    def submit(self, member: Member, transactions: Sequence[Transaction]) -> list[int]:
        codes = member.chain.submit([item.encoded for item in transactions], self.now_ms)
        self.settle(member)
        return [int(code) for code in codes]

    # Links.

    def _delay(self) -> int:
        return self.rng.randint(*self.delay_ms)

    def _at(self, when_ms: int, act: Callable[[], None]) -> None:
        heapq.heappush(self._heap, (when_ms, next(self._order), act))

    def _dial(self, member: Member, address: str) -> None:
        self.dialled.append((member.name, address))
        target = self.members.get(address.partition(":")[0])
        if target is None or frozenset((member.name, target.name)) in self.parted:
            member.network.dial_failed(address, self.now_ms)
            self.settle(member)
            return
        ours, theirs = next(self._numbers), next(self._numbers)
        self._join(member.name, ours, target.name, theirs)
        member.network.connected(ours, address, inbound=False, organisation=target.name, now_ms=self.now_ms)
        target.network.connected(
            theirs, f"{member.name}:{ours}", inbound=True, organisation=member.name, now_ms=self.now_ms
        )
        self.settle(member)
        self.settle(target)

    def _join(self, name: str, link: int, other: str, other_link: int) -> None:
        self._pipes[name, link] = Pipe(other, other_link)
        self._pipes[other, other_link] = Pipe(name, link)
        self._ends[name, link] = (other, other_link)
        self._ends[other, other_link] = (name, link)

    def _send(self, member: Member, link: int, data: bytes) -> None:
        self.bytes_by_tag[data[6]] += len(data)
        pipe = self._pipes.get((member.name, link))
        if pipe is None:
            return
        pipe.at_ms = max(pipe.at_ms, self.now_ms + self._delay())
        self._at(pipe.at_ms, lambda: self._deliver(member, link, pipe, data))

    def _deliver(self, member: Member, link: int, pipe: Pipe, data: bytes) -> None:
        stranger = self.strangers.get(pipe.to_link)
        if stranger is not None and not stranger.reads:
            return
        member.network.sent(link, len(data), self.now_ms)
        self.settle(member)
        if stranger is not None:
            stranger.take(data)
            return
        target = self.members.get(pipe.to)
        if target is None or (pipe.to, pipe.to_link) not in self._ends:
            return
        cut = self.rng.randrange(len(data) + 1) if self.split else 0
        for piece in (data[:cut], data[cut:]):
            if piece:
                target.network.received(pipe.to_link, piece, self.now_ms)
        self.settle(target)

    def _end(self, name: str, link: int) -> None:
        """One side has closed: what it said before still arrives, then the other side hears of the end."""
        other = self._ends.pop((name, link), None)
        if other is None:
            return
        pipe = self._pipes.pop((name, link))
        self._at(max(pipe.at_ms, self.now_ms + 1), lambda: self._ended(*other))

    def _ended(self, name: str, link: int) -> None:
        if self._ends.pop((name, link), None) is None:
            return
        self._pipes.pop((name, link), None)
        if link in self.strangers:
            self.strangers[link].is_open = False
        elif name in self.members:
            self.members[name].network.closed(link, self.now_ms)
            self.settle(self.members[name])

    def cut(self, name: str, other: str) -> None:
        """The links between two members end at once, with what is under way."""
        for (near, link), (far, far_link) in list(self._ends.items()):
            if (near, far) == (name, other):
                self._pipes.pop((near, link), None)
                self._pipes.pop((far, far_link), None)
                self._ended(near, link)
                self._ended(far, far_link)

    def part(self, ones: Sequence[str], others: Sequence[str]) -> None:
        """A partition."""
        for one in ones:
            for other in others:
                self.parted.add(frozenset((one, other)))
                self.cut(one, other)

    def heal(self) -> None:
        self.parted.clear()

    def stranger(
        self, victim: Member, *, name: str = "mallory", organisation: str | None = None, inbound: bool = True
    ) -> Stranger:
        """A link to a member that the test plays; its host is ``name``."""
        link, victim_link = next(self._numbers), next(self._numbers)
        stranger = self.strangers[link] = Stranger(self, name, link, victim.name, victim_link)
        self._join(name, link, victim.name, victim_link)
        victim.network.connected(
            victim_link,
            f"{name}:{link}",
            inbound=inbound,
            organisation=name if organisation is None else organisation,
            now_ms=self.now_ms,
        )
        self.settle(victim)
        return stranger

    # Time.

    def run(self, duration_ms: int, until: Callable[[], bool] | None = None) -> bool:
        """Lets time pass; ends early where ``until`` holds. Whether it held at the end (True without it)."""
        end = self.now_ms + duration_ms
        while self._heap and self._heap[0][0] <= end:
            if until is not None and until():
                return True
            when, _, act = heapq.heappop(self._heap)
            self.now_ms = max(self.now_ms, when)
            act()
        self.now_ms = end
        return until() if until is not None else True

    def agree(self, *members: Member) -> bool:
        """Whether they have one tip."""
        some = members or tuple(self.members.values())
        return len({member.chain.tip.block_id for member in some}) == 1

    def joined(self) -> bool:
        """Whether everyone is linked with everyone."""
        return all(
            sum(info.ready for info in member.network.peers()) == len(self.members) - 1
            for member in self.members.values()
        )

    def bytes_of(self, *kinds: type[Message]) -> int:
        return sum(self.bytes_by_tag[TAGS[kind]] for kind in kinds)

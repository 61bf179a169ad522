"""A network of byte streams: delay, odd pieces, silence one way or both, broken connections, partitions.

A link is what TLS over TCP leaves: bytes arrive in order and whole, or the connection ends. What TCP excludes,
duplicated or reordered bytes of one stream, is excluded here too; messages are reordered across links and are sent
twice by peers that do so (``hostile.py``). A silenced direction holds its bytes back and delivers them when the
silence ends, as retransmission does.
"""

import random
from collections import deque
from dataclasses import dataclass
from functools import partial
from typing import Protocol

from simulator.clock import Schedule

DIAL_TIMEOUT_MS = 5_000
WINDOW_BYTES = 128 * 1024  # what a connection takes from its sender before the receiver has it


class Endpoint(Protocol):
    """A machine on the network."""

    name: str
    address: str
    organisation: str

    @property
    def listening(self) -> bool:
        """Whether somebody would answer."""

    def link_opened(self, link: int, address: str, organisation: str, *, inbound: bool) -> None:
        """A connection stands; ``organisation`` is what the other end's certificate says."""

    def link_failed(self, address: str) -> None:
        """A dialled connection did not come to be."""

    def link_received(self, link: int, data: bytes) -> None:
        """Bytes arrived."""

    def link_sent(self, link: int, size: int) -> None:
        """So many of the bytes that were given to be sent have gone into the network."""

    def link_closed(self, link: int) -> None:
        """The other end, or what lies between, ended the connection."""


@dataclass(frozen=True)
class Conditions:
    """How the network is; all times in ms."""

    delay_ms: tuple[int, int] = (5, 80)
    piece_bytes_max: int = 0  # 0: what is sent at once arrives at once
    slow_share: float = 0.0  # of the deliveries that are slow
    slow_ms_max: int = 0


class Direction:
    """One way of a link: a queue in which nothing overtakes."""

    __slots__ = ("held", "in_flight", "last_ms", "open", "receiver", "receiver_link", "sender", "unreported")

    def __init__(self, sender: Endpoint, receiver: Endpoint, receiver_link: int) -> None:
        self.sender, self.receiver, self.receiver_link = sender, receiver, receiver_link
        self.held: deque[bytes | None] = deque()
        self.open = True
        self.last_ms = 0
        self.in_flight = 0
        self.unreported = 0


class Link:
    """A connection of two endpoints; its number is the same at both."""

    __slots__ = ("ends", "number", "ways")

    def __init__(self, number: int, dialler: Endpoint, listener: Endpoint) -> None:
        self.number = number
        self.ends = (dialler, listener)
        self.ways = (Direction(dialler, listener, number), Direction(listener, dialler, number))

    def way_from(self, sender: Endpoint) -> Direction:
        return self.ways[0] if sender is self.ends[0] else self.ways[1]

    @property
    def alive(self) -> bool:
        return self.ways[0].open or self.ways[1].open


class Network:
    """All links, and who is silenced against whom."""

    def __init__(self, schedule: Schedule, rng: random.Random, conditions: Conditions) -> None:
        self.conditions = conditions
        self.links: dict[int, Link] = {}
        self.bytes_sent = 0
        self._schedule = schedule
        self._rng = rng
        self._endpoints: dict[str, Endpoint] = {}
        self._silent: dict[tuple[str, str], int] = {}
        self._numbers = 0

    def attach(self, endpoint: Endpoint) -> None:
        self._endpoints[endpoint.address] = endpoint

    # What endpoints do.

    def dial(self, dialler: Endpoint, address: str) -> None:
        """Connects, or fails, later."""
        target = self._endpoints.get(address)
        delay = self._delay() * 2
        reachable = target is not None and target.listening and not self._either_silent(dialler, target)
        if target is None or not reachable:
            wait = delay if target is not None and not target.listening else DIAL_TIMEOUT_MS
            self._schedule.after(wait, partial(dialler.link_failed, address))
            return
        self._schedule.after(delay, partial(self._connect, dialler, target))

    def _connect(self, dialler: Endpoint, target: Endpoint) -> None:
        if not dialler.listening:
            return
        if not target.listening or self._either_silent(dialler, target):
            dialler.link_failed(target.address)
            return
        self._numbers += 1
        link = self.links[self._numbers] = Link(self._numbers, dialler, target)
        target.link_opened(link.number, dialler.address, dialler.organisation, inbound=True)
        if link.ways[0].open:
            dialler.link_opened(link.number, target.address, target.organisation, inbound=False)

    def send(self, sender: Endpoint, number: int, data: bytes) -> int:
        """Bytes for the other end; they are lost where the connection has ended.

        Returns how many have gone at once; the sender hears of the others by ``link_sent``.
        """
        link = self.links.get(number)
        if link is None:
            return 0
        way = link.way_from(sender)
        if not way.open:
            return 0
        self.bytes_sent += len(data)
        way.in_flight += len(data)
        self._dispatch(way, data)
        if way.in_flight <= WINDOW_BYTES:
            return len(data)
        way.unreported += len(data)
        return 0

    def _dispatch(self, way: Direction, data: bytes) -> None:
        limit = self.conditions.piece_bytes_max
        if not limit or len(data) <= 1:
            self._post(way, data)
            return
        at = 0
        while at < len(data):
            size = self._rng.randint(1, limit)
            self._post(way, data[at : at + size])
            at += size

    def close(self, closer: Endpoint, number: int) -> None:
        """The closer hears no more; the other end hears of it behind what was sent before."""
        link = self.links.get(number)
        if link is None:
            return
        way = link.way_from(closer)
        back = link.ways[1] if way is link.ways[0] else link.ways[0]
        back.open = False
        back.held.clear()
        if way.open:
            self._post(way, None)

    def _post(self, way: Direction, data: bytes | None) -> None:
        way.last_ms = max(self._schedule.now_ms + self._delay(), way.last_ms)
        self._schedule.at(way.last_ms, partial(self._arrive, way, data))

    def _delay(self) -> int:
        conditions = self.conditions
        delay = self._rng.randint(*conditions.delay_ms)
        if conditions.slow_share and self._rng.random() < conditions.slow_share:
            delay += self._rng.randint(0, conditions.slow_ms_max)
        return delay

    def _arrive(self, way: Direction, data: bytes | None) -> None:
        if not way.open:
            return
        if way.held or self._is_silent(way):
            way.held.append(data)
            return
        self._deliver(way, data)

    def _deliver(self, way: Direction, data: bytes | None) -> None:
        if data is not None:
            way.in_flight -= len(data)
            self._report(way)
            way.receiver.link_received(way.receiver_link, data)
            return
        way.open = False
        self.links.pop(way.receiver_link, None)
        way.receiver.link_closed(way.receiver_link)

    # Faults, from outside.

    def break_link(self, number: int) -> None:
        """The connection is reset: what was on its way is lost, both ends hear of it, each in its time."""
        link = self.links.pop(number, None)
        if link is None:
            return
        for way in link.ways:
            if way.open:
                way.open = False
                way.held.clear()
                self._schedule.after(self._delay(), partial(way.receiver.link_closed, number))

    def machine_gone(self, endpoint: Endpoint) -> None:
        """A machine stopped: its peers hear a reset, those that can; the others find out by themselves."""
        for link in [link for link in self.links.values() if endpoint in link.ends]:
            del self.links[link.number]
            for way in link.ways:
                if way.open and way.receiver is not endpoint and not self._is_silent(way):
                    self._schedule.after(self._delay(), partial(way.receiver.link_closed, link.number))
                way.open = False
                way.held.clear()

    def silence(self, sender: Endpoint, receiver: Endpoint) -> None:
        """Bytes of one direction stop flowing; the links stay, new ones do not come to be."""
        pair = (sender.address, receiver.address)
        self._silent[pair] = self._silent.get(pair, 0) + 1

    def unsilence(self, sender: Endpoint, receiver: Endpoint) -> None:
        """Ends one :meth:`silence`; what was held arrives."""
        pair = (sender.address, receiver.address)
        self._silent[pair] -= 1
        if self._silent[pair]:
            return
        del self._silent[pair]
        for link in list(self.links.values()):
            for way in link.ways:
                if way.sender is sender and way.receiver is receiver:
                    self._schedule.after(self._delay(), partial(self._release, way))

    def _report(self, way: Direction) -> None:
        """Tells the sender what has gone, where the receiver is not too far behind."""
        if way.open and way.unreported and way.in_flight <= WINDOW_BYTES:
            size, way.unreported = way.unreported, 0
            way.sender.link_sent(way.receiver_link, size)

    def _release(self, way: Direction) -> None:
        """What was held arrives, in order, before anything that was sent later."""
        while way.held and way.open and not self._is_silent(way):
            self._deliver(way, way.held.popleft())

    def _is_silent(self, way: Direction) -> bool:
        return (way.sender.address, way.receiver.address) in self._silent

    def _either_silent(self, one: Endpoint, other: Endpoint) -> bool:
        there = (one.address, other.address)
        return there in self._silent or there[::-1] in self._silent

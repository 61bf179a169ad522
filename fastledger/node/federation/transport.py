"""Links to other organisations' nodes: TCP under mutual TLS 1.3, bytes up and down, and nothing of what they mean.

::

    accept ─► handshake ─► certificate is an organisation's ─► connected ─► received … ─► closed
    dial   ─►    "      ─►               "                  ─►    "

Everything here runs on the event loop. What a link may cost is bounded: handshakes at a time and of one address,
links at all and of one organisation, bytes that wait to be sent, and how long a peer may leave them unread
(SPEC-FED-6..8).
"""

import asyncio
import contextlib
import socket
import time
from collections import Counter, OrderedDict
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field
from typing import Any, Protocol, cast

from fastledger.errors import CertificateError
from fastledger.node.federation.options import split_address
from fastledger.node.federation.tls import PeerCertificate, PeerTls, peer_certificate
from fastledger.peers.options import PeerLimits

BACKLOG = 128
HANDSHAKES_MAX = 64
HANDSHAKES_PER_ADDRESS_MAX = 16
HANDSHAKE_TIMEOUT_S = 10.0
# A handshake costs milliseconds of a core. An honest node calls every few seconds at most; whoever is shut out and
# calls on and on is turned away before that.
HANDSHAKES_BURST = 32
HANDSHAKES_PER_SECOND = 2.0
CALLERS_MAX = 4_096
# A peer that leaves what it asked for unread for so long is gone or means ill.
STALL_TIMEOUT_S = 30.0
FLUSH_TIMEOUT_S = 2.0
# From here on a link counts as congested; far more than a round trip's worth of headers.
CONGESTED_BYTES = 1024 * 1024


class LinkEvents(Protocol):
    """The receiver of what happens to links, called on the loop; ``closed`` comes once for each ``connected``."""

    def connected(self, link: int, address: str, *, inbound: bool, organisation: str) -> None:
        """Takes in a link whose handshake is done."""

    def received(self, link: int, data: bytes) -> None:
        """Takes bytes of a link, in order."""

    def closed(self, link: int) -> None:
        """Hears that a link has ended."""

    def dial_failed(self, address: str) -> None:
        """Hears that a call reached nobody, or nobody who may be a peer."""


class PeerLink(asyncio.Protocol):
    """One connection; it becomes a link once its certificate turned out to be an organisation's."""

    def __init__(self, transport: "Transport", address: str, *, inbound: bool) -> None:
        self._owner = transport
        self.address = address
        self.inbound = inbound
        self.number = 0
        self.peer: PeerCertificate | None = None
        # Bytes given to be sent, and how many of them the other parts were told have gone.
        self.given = 0
        self.told = 0
        # From ``connection_made`` on, and before that nobody knows this link.
        self.stream: asyncio.Transport
        self._stall: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Takes the connection after its TLS handshake."""
        self.stream = cast(asyncio.Transport, transport)
        self.stream.set_write_buffer_limits(high=CONGESTED_BYTES)
        self._owner._made(self)

    def data_received(self, data: bytes) -> None:
        """Passes the peer's bytes on."""
        if self.number:
            self._owner._received(self, data)

    def pause_writing(self) -> None:
        """Starts the time that a peer that does not read has to begin again."""
        loop = asyncio.get_running_loop()
        self._stall = loop.call_later(STALL_TIMEOUT_S, self._owner._stalled, self)

    def resume_writing(self) -> None:
        """Ends that time: the peer reads again."""
        if self._stall is not None:
            self._stall.cancel()
            self._stall = None

    def connection_lost(self, exc: Exception | None) -> None:
        """Reports the end of the connection, whichever side made it."""
        self.resume_writing()
        self._owner._lost(self)


class CallRates:
    """A token bucket of handshakes for each calling address; the number of addresses is bounded."""

    def __init__(self) -> None:
        self._buckets: OrderedDict[str, tuple[float, float]] = OrderedDict()

    def admit(self, host: str, now: float) -> bool:
        """Takes one handshake of an address; False where it has none left. ``now`` is in seconds."""
        left, at = self._buckets.pop(host, (float(HANDSHAKES_BURST), now))
        left = min(HANDSHAKES_BURST, left + (now - at) * HANDSHAKES_PER_SECOND)
        admitted = left >= 1
        self._buckets[host] = (left - admitted, now)
        if len(self._buckets) > CALLERS_MAX:
            self._buckets.popitem(last=False)
        return admitted


@dataclass(slots=True)
class TransportFigures:
    """Counters of a transport since its start."""

    bytes_in: int = 0
    bytes_out: int = 0
    refused: "Counter[str]" = field(default_factory=Counter)


class Transport:
    """The links of one node, in both directions; made and used on one event loop."""

    def __init__(
        self,
        tls: PeerTls,
        events: LinkEvents,
        limits: PeerLimits,
        *,
        may_join: Callable[[str], bool] = lambda _organisation: True,
    ) -> None:
        """Takes the receiver of events; ``may_join`` says whether an organisation may be a peer at all."""
        self._tls = tls
        self._events = events
        self._limits = limits
        self._may_join = may_join
        self._links: dict[int, PeerLink] = {}
        self._next_link = 1
        self._dialling: set[str] = set()
        self._listener: socket.socket | None = None
        self._handshakes: Counter[str] = Counter()
        self._callers = CallRates()
        self._tasks: set[asyncio.Task[None]] = set()
        self._reading = True
        self._stopped = False
        self.figures = TransportFigures()

    # Starting and ending.

    async def listen(self, address: str) -> int:
        """Takes calls at ``address`` (``host:port``) from now on; returns the port. Raises ``OSError``."""
        host, port = split_address(address)
        loop = asyncio.get_running_loop()
        found = await loop.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        family, _, _, _, place = found[0]
        listener = socket.create_server(place[:2], family=family, backlog=BACKLOG)
        listener.setblocking(False)
        self._listener = listener
        self._begin(self._accept_forever(listener))
        bound: int = listener.getsockname()[1]
        return bound

    async def stop(self) -> None:
        """Ends the listener and every link."""
        self._stopped = True
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        if self._listener is not None:
            self._listener.close()
        for link in list(self._links.values()):
            link.stream.abort()
        # connection_lost is called by the loop, soon after.
        while self._links:  # noqa: ASYNC110 - a few turns of the loop
            await asyncio.sleep(0)

    def _begin(self, work: Coroutine[Any, Any, None]) -> "asyncio.Task[None]":
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    # Calls of others.

    async def _accept_forever(self, listener: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        while True:
            try:
                connection, place = await loop.sock_accept(listener)
            except OSError:  # no descriptors left, or a caller that has gone already
                await asyncio.sleep(0.1)
                continue
            host = str(place[0])
            if not self._callers.admit(host, time.monotonic()):
                self.figures.refused["rate"] += 1
                connection.close()
                continue
            if (
                self._handshakes.total() >= HANDSHAKES_MAX
                or self._handshakes[host] >= HANDSHAKES_PER_ADDRESS_MAX
                or len(self._links) >= self._limits.links_max
            ):
                self.figures.refused["limit"] += 1
                connection.close()
                continue
            self._begin(self._take(connection, host, _text(place)))

    async def _take(self, connection: socket.socket, host: str, address: str) -> None:
        """Makes one handshake with a caller."""
        self._handshakes[host] += 1
        try:
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            await asyncio.get_running_loop().connect_accepted_socket(
                lambda: PeerLink(self, address, inbound=True),
                connection,
                ssl=self._tls.server_context,
                ssl_handshake_timeout=HANDSHAKE_TIMEOUT_S,
            )
        except OSError:  # SSLError is one
            self.figures.refused["handshake"] += 1
            connection.close()
        finally:
            self._handshakes[host] -= 1
            if not self._handshakes[host]:
                del self._handshakes[host]

    # Calling others.

    def dial(self, address: str) -> None:
        """Calls ``address`` once; a call to it that is under way is not made twice."""
        if not self._stopped and address not in self._dialling:
            self._dialling.add(address)
            self._begin(self._call(address))

    async def _call(self, address: str) -> None:
        try:
            host, port = split_address(address)
            async with asyncio.timeout(self._limits.dial_timeout_ms / 1000):
                await asyncio.get_running_loop().create_connection(
                    lambda: PeerLink(self, address, inbound=False),
                    host,
                    port,
                    ssl=self._tls.client_context,
                    server_hostname="",
                    ssl_handshake_timeout=HANDSHAKE_TIMEOUT_S,
                )
        except (OSError, ValueError, TimeoutError):
            self._events.dial_failed(address)
        finally:
            self._dialling.discard(address)

    # Links.

    def _made(self, link: PeerLink) -> None:
        """Makes a link of a connection whose handshake is done, or ends it without a word."""
        try:
            peer = peer_certificate(link.stream.get_extra_info("ssl_object"))
        except CertificateError:
            self._refuse(link, "certificate")
            return
        problem = self._problem_of(peer)
        if problem:
            self._refuse(link, problem)
            return
        link.peer = peer
        link.number, self._next_link = self._next_link, self._next_link + 1
        self._links[link.number] = link
        self._events.connected(
            link.number, link.address, inbound=link.inbound, organisation=peer.organisation
        )

    def _problem_of(self, peer: PeerCertificate) -> str:
        """Returns why there can be no link to this organisation now; "" where there can."""
        if self._stopped:
            return "stopped"
        if not self._may_join(peer.organisation) or self._tls.is_revoked(peer):
            return "organisation"
        of_organisation = sum(
            other.peer is not None and other.peer.organisation == peer.organisation
            for other in self._links.values()
        )
        full = len(self._links) >= self._limits.links_max
        return "limit" if full or of_organisation >= self._limits.links_per_organisation_max else ""

    def _refuse(self, link: PeerLink, why: str) -> None:
        self.figures.refused[why] += 1
        link.stream.abort()

    def _received(self, link: PeerLink, data: bytes) -> None:
        self.figures.bytes_in += len(data)
        if not self._reading:
            # A link made since reading stopped. Paused any earlier, the end of its handshake would never leave.
            self._apply_reading(link)
        self._events.received(link.number, data)

    def _stalled(self, link: PeerLink) -> None:
        self.figures.refused["stalled"] += 1
        link.stream.abort()

    def _lost(self, link: PeerLink) -> None:
        if self._links.pop(link.number, None) is not None:
            self._events.closed(link.number)
        elif not link.inbound:
            self._events.dial_failed(link.address)

    def send(self, link: int, data: bytes) -> None:
        """Sends bytes to a peer; a link that has too much unsent already is ended."""
        found = self._links.get(link)
        if found is None or found.stream.is_closing():
            return
        if found.stream.get_write_buffer_size() + len(data) > self._limits.send_buffer_bytes_max:
            self.figures.refused["stalled"] += 1
            found.stream.abort()
            return
        self.figures.bytes_out += len(data)
        found.given += len(data)
        found.stream.write(data)

    def gone(self) -> list[tuple[int, int]]:
        """Returns (link, bytes) of what has been sent since the last call."""
        counts = []
        for link in self._links.values():
            # What waits in the transport is encrypted already and a little longer than what was given.
            gone = max(link.told, link.given - link.stream.get_write_buffer_size())
            if gone > link.told:
                counts.append((link.number, gone - link.told))
                link.told = gone
        return counts

    @property
    def has_unsent(self) -> bool:
        """Whether :meth:`gone` has not reported everything that was given to be sent."""
        return any(link.given > link.told for link in self._links.values())

    def close(self, link: int) -> None:
        """Ends a link once what was given to it has been sent, or after FLUSH_TIMEOUT_S."""
        found = self._links.get(link)
        if found is not None:
            found.stream.close()
            asyncio.get_running_loop().call_later(FLUSH_TIMEOUT_S, found.stream.abort)

    def pause_reading(self) -> None:
        """Stops reading from all links: what came has to be worked on first."""
        self._set_reading(reading=False)

    def resume_reading(self) -> None:
        """Reads from all links again."""
        self._set_reading(reading=True)

    def _set_reading(self, *, reading: bool) -> None:
        if self._reading == reading:
            return
        self._reading = reading
        for link in self._links.values():
            self._apply_reading(link)

    def _apply_reading(self, link: PeerLink) -> None:
        if not link.stream.is_closing():
            with contextlib.suppress(RuntimeError):
                (link.stream.resume_reading if self._reading else link.stream.pause_reading)()

    def drop_revoked(self) -> int:
        """Ends the links whose certificates are revoked by now, and returns how many those were."""
        revoked = [
            link for link in self._links.values() if link.peer is not None and self._tls.is_revoked(link.peer)
        ]
        for link in revoked:
            self._refuse(link, "organisation")
        return len(revoked)

    @property
    def link_count(self) -> int:
        """How many links are open."""
        return len(self._links)


def _text(place: tuple[str, int, int, int] | tuple[str, int]) -> str:
    host, port = place[0], place[1]
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"

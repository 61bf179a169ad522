"""The protocol between the network and its parts: what each part may ask of the whole."""

from collections.abc import Iterable
from typing import Protocol

from fastledger.peers.options import PeerOptions
from fastledger.peers.port import ChainPort
from fastledger.peers.scores import Offence
from fastledger.peers.session import Link
from fastledger.peers.settings import CloseCode
from fastledger.peers.wire import Message

NEVER_MS = 2**62


class Random(Protocol):
    """The part of ``random.Random`` that the network uses."""

    def random(self) -> float: ...
    def getrandbits(self, k: int, /) -> int: ...


class Host(Protocol):
    """The network as its parts see it."""

    chain: ChainPort
    settings: PeerOptions
    rng: Random

    def send(self, link: Link, message: Message) -> None:
        """Gives a message to be sent over a link."""

    def charge(self, link: Link, offence: Offence) -> None:
        """Counts an offence against the peer, which may close the link and end in a ban."""

    def close(self, link: Link, code: CloseCode, why: str = "") -> None:
        """Sends Goodbye and closes the link; ``why`` is for the node's log."""

    def link(self, number: int) -> Link | None:
        """Returns a link by its number, None where it has ended or its handshake is not done."""

    def ready_links(self) -> Iterable[Link]:
        """Returns the links whose handshake is done, oldest first."""

    def may_serve(self, link: Link) -> bool:
        """Whether an answer may be made for a peer: it reads, and all peers together leave not too much unread."""


def pick(rng: Random, count: int) -> int:
    """Returns a random number from 0 to ``count`` - 1; ``count`` is at least 1."""
    return min(count - 1, int(rng.random() * count))


def random_bytes(rng: Random, count: int) -> bytes:
    """Returns ``count`` random bytes from ``rng``."""
    return rng.getrandbits(8 * count).to_bytes(count, "big")

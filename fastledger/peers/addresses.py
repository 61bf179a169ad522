"""The address book: which addresses a node knows and which of them it dials next (SPEC-PEER-24..27).

An eclipse needs every link of a node. Inbound links never count towards those that this node chose itself, learned
addresses are bounded for each source, configured ones are never forgotten, and chosen links go to distinct
organisations.
"""

from collections import Counter, OrderedDict
from collections.abc import Callable

from fastledger.limits import (
    PEER_ADDRESSES_MAX,
    PEER_ADDRESSES_PER_MESSAGE_MAX,
    PEER_ADDRESSES_PER_SOURCE_MAX,
    PEER_TEXT_BYTES_MAX,
)
from fastledger.peers.host import NEVER_MS, Random, pick

OPERATOR = ""


class Known:
    """One address: who told of it, when to try it, how often that failed, and which node answered there."""

    __slots__ = (
        "configured",
        "dialling",
        "failures",
        "node",
        "not_before_ms",
        "organisation",
        "source",
        "useless",
    )

    def __init__(self, source: str, configured: bool) -> None:
        self.source = source
        self.configured = configured
        self.not_before_ms = 0
        self.failures = 0
        self.organisation = ""
        self.node = b""
        self.dialling = False
        self.useless = False


def is_address(text: str) -> bool:
    """Whether a text can be ``host:port``: printable ASCII, a port of 1 … 65535."""
    host, colon, port = text.rpartition(":")
    printable = text.isascii() and text.isprintable() and " " not in text
    if not colon or not host or not printable or len(text) > PEER_TEXT_BYTES_MAX:
        return False
    return port.isdecimal() and len(port) <= 5 and 0 < int(port) < 65536


class AddressBook:
    """All addresses that this node knows; their number is bounded in all and for each source."""

    def __init__(self, rng: Random, *, redial_ms: int, redial_ms_max: int) -> None:
        self._rng = rng
        self._redial_ms = redial_ms
        self._redial_ms_max = redial_ms_max
        self._known: OrderedDict[str, Known] = OrderedDict()
        self._by_source: Counter[str] = Counter()

    def __len__(self) -> int:
        return len(self._known)

    def __contains__(self, address: object) -> bool:
        return address in self._known

    @property
    def dialling(self) -> int:
        """How many addresses are being dialled."""
        return sum(known.dialling for known in self._known.values())

    def configure(self, address: str) -> None:
        """Adds an address of the operator's, which is never dropped and never given up, and makes it due at once."""
        known = self._known.get(address)
        if known is None:
            known = self._insert(address, OPERATOR)
        known.configured = True
        known.useless = False
        known.not_before_ms = 0
        known.failures = 0

    def learn(self, address: str, source: str) -> bool:
        """Adds an address that a peer told of.

        Returns False where it is none, is known, or its source told of too many.
        """
        if not is_address(address) or address in self._known:
            return False
        if self._by_source[source] >= PEER_ADDRESSES_PER_SOURCE_MAX:
            return False
        if len(self._known) >= PEER_ADDRESSES_MAX and not self._drop_one():
            return False
        self._insert(address, source)
        return True

    def _insert(self, address: str, source: str) -> Known:
        known = self._known[address] = Known(source, source == OPERATOR)
        self._by_source[source] += 1
        return known

    def _drop_one(self) -> bool:
        """Drops the learned address that failed most often, of several the oldest; False where there is none."""
        learned = [name for name, known in self._known.items() if not known.configured and not known.dialling]
        if not learned:
            return False
        worst = max(learned, key=lambda name: self._known[name].failures)
        self.forget(worst)
        return True

    def forget(self, address: str) -> None:
        """Drops an address, configured or learned."""
        known = self._known.pop(address, None)
        if known is not None:
            self._by_source[known.source] -= 1
            if not self._by_source[known.source]:
                del self._by_source[known.source]

    def choose(self, now_ms: int, may: Callable[[str, Known], bool]) -> str | None:
        """Returns an address to dial now, or None: a configured one first, else one by chance.

        Marks it as being dialled. Only addresses for which ``may`` (address, what is known of it) is True are
        considered.
        """
        due = [
            (name, known)
            for name, known in self._known.items()
            if not known.dialling and not known.useless and known.not_before_ms <= now_ms and may(name, known)
        ]
        if not due:
            return None
        preferred = [name for name, known in due if known.configured] or [name for name, _ in due]
        name = preferred[pick(self._rng, len(preferred))]
        known = self._known[name]
        known.dialling = True
        # Until an answer comes, and so that a transport that never answers cannot block the address for ever.
        known.not_before_ms = now_ms + self._redial_ms_max
        return name

    def connected(self, address: str, organisation: str) -> None:
        """Records that an address answered, and whose certificate it showed (empty where it showed none)."""
        known = self._known.get(address)
        if known is not None:
            known.dialling = False
            known.organisation = organisation

    def proved(self, address: str, node: bytes) -> None:
        """Records that an address's handshake was good, and the nonce of the node that it leads to."""
        known = self._known.get(address)
        if known is not None:
            known.failures = 0
            known.node = node

    def failed(self, address: str, now_ms: int) -> None:
        """Records that an address did not answer, or not well, and puts its next try off.

        The pause doubles with each failure up to its maximum, with jitter. A learned address is dropped at its
        eleventh.
        """
        known = self._known.get(address)
        if known is None:
            return
        known.dialling = False
        known.failures += 1
        if known.failures > 10 and not known.configured:
            self.forget(address)
            return
        pause_ms = min(self._redial_ms_max, self._redial_ms << min(known.failures - 1, 20))
        known.not_before_ms = now_ms + pause_ms // 2 + int(self._rng.random() * pause_ms / 2)

    def closed(self, address: str, now_ms: int) -> None:
        """Records that the link to an address ended after a good handshake; it is due again after a short pause."""
        known = self._known.get(address)
        if known is not None:
            known.dialling = False
            known.not_before_ms = now_ms + self._redial_ms // 2 + int(self._rng.random() * self._redial_ms)

    def is_self(self, address: str) -> None:
        """Records that an address leads to this very node: it is never dialled again."""
        known = self._known.get(address)
        if known is not None:
            known.useless = True

    def sample(self) -> list[str]:
        """Returns up to PEER_ADDRESSES_PER_MESSAGE_MAX addresses to tell a peer of, chosen by chance.

        Only addresses are told that answered and have not failed since.
        """
        good = [
            name
            for name, known in self._known.items()
            if known.organisation and not known.failures and not known.useless
        ]
        count = min(len(good), PEER_ADDRESSES_PER_MESSAGE_MAX)
        for place in range(count):
            other = place + pick(self._rng, len(good) - place)
            good[place], good[other] = good[other], good[place]
        return good[:count]

    def next_ms(self) -> int:
        """Returns when the next address may be tried."""
        times = [
            known.not_before_ms for known in self._known.values() if not known.dialling and not known.useless
        ]
        return min(times, default=NEVER_MS)

    def configured(self) -> list[str]:
        """Returns the operator's addresses."""
        return [name for name, known in self._known.items() if known.configured]

"""One link: framing, handshake state, budgets, deadlines, and what waits on it (SPEC-PEER-7..12)."""

from collections import Counter, deque
from typing import Any, Final

from fastledger.limits import (
    PEER_FRAME_BYTES_PER_SECOND_MIN,
    PEER_FRAME_MS_MAX,
    PEER_HANDSHAKE_MS_MAX,
    PEER_PING_MS,
    PEER_PONG_MS_MAX,
    PEER_REQUESTS_QUEUED_MAX,
    PEER_SERVE_UNSENT_BYTES,
    PEER_UNSENT_BYTES_MAX,
    PEER_UNSENT_STALL_MS_MAX,
)
from fastledger.peers.scores import Bucket, Offence, Party, PartyKind, host_of
from fastledger.peers.settings import CloseCode
from fastledger.peers.wire import (
    HASH_BYTES,
    MESSAGES,
    TAGS,
    Compact,
    FrameReader,
    GetBlob,
    GetBlocks,
    GetBlockTransactions,
    GetHeaders,
    GetPeers,
    GetPiece,
    GetSnapshots,
    GetTransactions,
    Goodbye,
    Hello,
    Inventory,
    Message,
    Ping,
    WireFault,
)

# What one organisation may send of each kind, over all its links: tokens a second and at once. A token is a message,
# of lists an id.
RATES: Final[dict[type[Message], tuple[float, float]]] = {
    Ping: (2, 20),
    GetPeers: (0.1, 4),
    GetHeaders: (20, 200),
    GetBlocks: (5_000, 20_000),
    Compact: (5, 100),
    GetBlockTransactions: (20, 100),
    Inventory: (20_000, 200_000),
    GetTransactions: (20_000, 200_000),
    GetBlob: (200, 2_000),
    GetSnapshots: (0.2, 4),
    GetPiece: (200, 2_000),
}
# Bytes a second and at once of what was not asked for.
UNSOLICITED_BYTES: Final = (8 * 1024 * 1024.0, 64 * 1024 * 1024.0)
_BEFORE_HELLO: Final = {TAGS[Hello], TAGS[Goodbye]}
_HELLO_BYTES_MAX: Final = 1024


def token_count(message: Message) -> int:
    """Returns how many tokens of its kind a message takes: 1, and 1 for each id that it lists."""
    if isinstance(message, Inventory | GetTransactions):
        return 1 + len(message.txids) // HASH_BYTES
    if isinstance(message, GetBlocks):
        return 1 + len(message.ids) // HASH_BYTES
    return 1


class Budgets:
    """The amounts that one organisation may still send.

    They outlive its links, so that connecting anew gives nothing.
    """

    def __init__(self, now_ms: int) -> None:
        self._buckets = {kind: Bucket(rate, burst, now_ms) for kind, (rate, burst) in RATES.items()}
        self._unsolicited = Bucket(*UNSOLICITED_BYTES, now_ms)

    def take(self, message: Message, now_ms: int) -> None:
        """Takes the cost of a message; WireFault where it is more than there is."""
        kind = type(message)
        bucket = self._buckets.get(kind)
        if bucket is not None and not bucket.take(token_count(message), now_ms):
            raise WireFault(f"too many of message {TAGS[kind]}", Offence.FLOOD)
        size = len(getattr(message, "txids", b"")) + len(getattr(message, "short_ids", b""))
        if kind.answers is None and not self._unsolicited.take(64 + size, now_ms):
            raise WireFault("too many bytes that were not asked for", Offence.FLOOD)


class Link:
    """The state of one connection: which messages may come on it, and when its peer is late.

    It decides nothing about the chain.
    """

    def __init__(
        self,
        number: int,
        address: str,
        organisation: str,
        inbound: bool,
        now_ms: int,
        budgets: Budgets | None = None,
    ) -> None:
        self.number = number
        self.address = address
        self.organisation = organisation
        self.inbound = inbound
        self.connected_ms = now_ms
        self.hello: Hello | None = None
        self.hello_tip = b""
        self.ready = False
        self.closing = False
        # What the peer last told of its chain; proven by nothing but headers.
        self.height = 0
        self.work = 0
        self.tip = b""
        self.clock_offset_ms = 0
        # The newest rule set that the peer says it knows.
        self.rule_set = 0
        self.rtt_ms: int | None = None
        self.bytes_received = 0
        self.bytes_sent = 0
        self.unsent = 0
        self.requests: deque[Any] = deque()
        self._expected: Counter[int] = Counter()
        self._reader = FrameReader(self._admit)
        self._frame_ms: int | None = None
        self._drained_ms = now_ms
        self._heard_ms = now_ms
        self._ping: tuple[bytes, int] | None = None
        self.budgets = budgets or Budgets(now_ms)

    @property
    def subject(self) -> Party:
        """The organisation that answers for what comes on this link, or its host where it showed no certificate."""
        if self.organisation:
            return Party(PartyKind.ORGANISATION, self.organisation)
        return Party(PartyKind.ADDRESS, host_of(self.address))

    @property
    def host(self) -> Party:
        """The host at the other end, as a subject of bans."""
        return Party(PartyKind.ADDRESS, host_of(self.address))

    @property
    def source(self) -> bytes:
        """The name under which the pool counts transactions from this link."""
        return self.subject.name.encode()

    # What comes in.

    def messages(self, data: bytes, now_ms: int) -> Any:
        """Yields the messages that ``data`` completes; WireFault at the first one that may not come."""
        self.bytes_received += len(data)
        self._heard_ms = now_ms
        for message in self._reader.feed(data):
            self._frame_ms = None
            self.budgets.take(message, now_ms)
            yield message
        if not self._reader.held_bytes:
            self._frame_ms = None
        elif self._frame_ms is None:
            self._frame_ms = now_ms

    def _admit(self, tag: int) -> None:
        """Raises WireFault where a frame with this tag may not come now; called before the frame is whole."""
        if not self.ready:
            if tag not in _BEFORE_HELLO or self.hello is not None:
                raise WireFault(f"message {tag} before the handshake", Offence.GARBAGE)
            if self._reader.frame_bytes > _HELLO_BYTES_MAX:
                raise WireFault("a long message before the handshake", Offence.OVERSIZED)
            return
        if tag == TAGS[Hello]:
            raise WireFault("a second Hello", Offence.GARBAGE)
        request = MESSAGES[tag].answers
        if request is not None and self._expected[request] <= 0:
            raise WireFault(f"message {tag} was not asked for", Offence.UNREQUESTED)

    # Requests of ours.

    def expect(self, request: type[Message], count: int = 1) -> None:
        """Allows ``count`` more answers to requests of this kind."""
        self._expected[TAGS[request]] += count

    def settle(self, request: type[Message], count: int = 1) -> None:
        """Counts ``count`` answers to requests of this kind; WireFault where more came than were asked for."""
        tag = TAGS[request]
        self._expected[tag] -= count
        if self._expected[tag] < 0:
            raise WireFault("more answers than requests", Offence.UNREQUESTED)

    def expected(self, request: type[Message]) -> int:
        """Returns how many answers to requests of this kind are still to come, late ones included."""
        return self._expected[TAGS[request]]

    # Requests of theirs.

    def queue(self, request: Any) -> None:
        """Queues a peer's request until earlier answers have been sent; WireFault where too many wait."""
        if len(self.requests) >= PEER_REQUESTS_QUEUED_MAX:
            raise WireFault("too many requests wait", Offence.FLOOD)
        self.requests.append(request)

    @property
    def may_serve(self) -> bool:
        """Whether the peer reads fast enough for another answer to be made."""
        return self.unsent < PEER_SERVE_UNSENT_BYTES

    # What goes out.

    def put(self, size: int, now_ms: int) -> bool:
        """Counts bytes that were given to be sent; False where so many wait that the peer counts as not reading."""
        if not self.unsent:
            self._drained_ms = now_ms
        self.unsent += size
        self.bytes_sent += size
        return self.unsent <= PEER_UNSENT_BYTES_MAX

    def drained(self, size: int, now_ms: int) -> None:
        """Counts bytes that have been sent."""
        self.unsent = max(0, self.unsent - size)
        if size > 0:
            self._drained_ms = now_ms

    # Signs of life.

    def ping_due(self, now_ms: int) -> bool:
        """Whether the peer was silent for so long that it should be sent a Ping."""
        return self.ready and self._ping is None and now_ms - self._heard_ms >= PEER_PING_MS

    def pinged(self, nonce: bytes, now_ms: int) -> None:
        """Records that a Ping with this nonce was sent."""
        self._ping = (nonce, now_ms)

    def ponged(self, nonce: bytes, now_ms: int) -> bool:
        """Records a Pong and the round trip; False where it answers no Ping."""
        if self._ping is None or self._ping[0] != nonce:
            return False
        self.rtt_ms = max(0, now_ms - self._ping[1])
        self._ping = None
        return True

    # Deadlines.

    def late(self, now_ms: int) -> tuple[CloseCode, Offence | None] | None:
        """Returns why to close a link whose peer is late with something, and the offence where it is one.

        Else None.
        """
        if not self.ready and now_ms >= self.connected_ms + PEER_HANDSHAKE_MS_MAX:
            return CloseCode.TIMEOUT, None
        frame_until = self._frame_until()
        if frame_until is not None and now_ms >= frame_until:
            return CloseCode.OFFENCE, Offence.DRIBBLED
        if self._ping is not None and now_ms >= self._ping[1] + PEER_PONG_MS_MAX:
            return CloseCode.TIMEOUT, None
        if self.unsent and now_ms >= self._drained_ms + PEER_UNSENT_STALL_MS_MAX:
            return CloseCode.NOT_READING, Offence.NOT_READING
        return None

    def _frame_until(self) -> int | None:
        if self._frame_ms is None:
            return None
        slow_ms = self._reader.frame_bytes * 1000 // PEER_FRAME_BYTES_PER_SECOND_MIN
        return self._frame_ms + PEER_FRAME_MS_MAX + slow_ms

    @property
    def held_bytes(self) -> int:
        """How many bytes are held of a frame that is not whole yet."""
        return self._reader.held_bytes

    @property
    def next_ms(self) -> int:
        """When ``late`` or ``ping_due`` should be asked next."""
        times = [self._heard_ms + PEER_PING_MS if self._ping is None else self._ping[1] + PEER_PONG_MS_MAX]
        if not self.ready:
            times.append(self.connected_ms + PEER_HANDSHAKE_MS_MAX)
        frame_until = self._frame_until()
        if frame_until is not None:
            times.append(frame_until)
        if self.unsent:
            times.append(self._drained_ms + PEER_UNSENT_STALL_MS_MAX)
        return min(times)

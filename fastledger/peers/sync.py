"""Headers first: which chain there is, before any block of it is fetched (SPEC-PEER-13..15).

One peer is asked at a time, the one that claims most work. A claim counts for nothing: the headers that prove it must
come, in bounded batches, each checked by the chain (seal, work, time). How far headers may run ahead of blocks is
bounded, so a long history is never held at once.
"""

from fastledger.errors import BlockFault, Code, InputError
from fastledger.limits import (
    PEER_HEADERS_AHEAD_MAX,
    PEER_HEADERS_LOW_WORK_MAX,
    PEER_HEADERS_MAX,
    PEER_HEADERS_MS_MAX,
    PEER_LOCATOR_MAX,
)
from fastledger.model.block import SealedHeader
from fastledger.peers.host import NEVER_MS, Host
from fastledger.peers.scores import Offence
from fastledger.peers.session import Link
from fastledger.peers.settings import CloseCode
from fastledger.peers.wire import GetHeaders, Headers, WireFault, WireHeader

# The peer is not at fault: its chain and ours have parted, or this node has no room.
NO_FAULT = {Code.BELOW_FINAL, Code.TREE_FULL}
_COOL_MS = 60_000
_SECOND_MS = 2_000
_TIMEOUTS_MAX = 2
_NEAR = 2


def open_header(wire: WireHeader) -> SealedHeader:
    """Decodes the header of a message; WireFault where it is none."""
    try:
        return SealedHeader.decode(wire.header80, wire.body, wire.seal, wire.count)
    except InputError as error:
        raise WireFault(f"a header that does not decode ({error.code.slug})", Offence.BAD_HEADER) from None


def close_header(sealed: SealedHeader) -> WireHeader:
    """Returns the wire form of a header."""
    return WireHeader(sealed.header.encode(), sealed.body.encode(), sealed.seal, sealed.count)


class HeaderSync:
    """Asks peers for headers where they claim more work than the best header that is known."""

    def __init__(self, host: Host) -> None:
        self._host = host
        # Who is asked, and since when; a second is asked where the first is slow.
        self._asked: dict[int, int] = {}
        self._timeouts: dict[int, int] = {}
        self._claims: dict[int, tuple[int, int]] = {}
        self._low_work: dict[int, int] = {}
        self._cool_until: dict[int, int] = {}
        self._hinted: set[int] = set()

    @property
    def is_behind(self) -> bool:
        """Whether the best header is more than two blocks above the tip."""
        chain = self._host.chain
        return chain.tree.best_header().height > chain.tip.height + _NEAR

    @property
    def next_ms(self) -> int:
        """When an answer is late, a second peer may be asked, or a peer may be asked again."""
        times = [asked_ms + PEER_HEADERS_MS_MAX for asked_ms in self._asked.values()]
        times += [asked_ms + _SECOND_MS for asked_ms in self._asked.values() if len(self._asked) == 1]
        times += list(self._cool_until.values())
        return min(times, default=NEVER_MS)

    def ready(self, link: Link, now_ms: int) -> None:
        """Takes in a new peer, which may claim more work."""
        self.consider(now_ms)

    def gone(self, link: Link, now_ms: int) -> None:
        """Asks another peer for the headers that a link that has ended was asked for."""
        for table in (self._claims, self._low_work, self._cool_until, self._timeouts):
            table.pop(link.number, None)
        self._hinted.discard(link.number)
        if self._asked.pop(link.number, None) is not None:
            self.consider(now_ms)

    def tick(self, now_ms: int) -> None:
        """Charges peers whose answers are late, and asks others."""
        for number in [number for number, until in self._cool_until.items() if until <= now_ms]:
            del self._cool_until[number]
        for number in [number for number, at in self._asked.items() if at + PEER_HEADERS_MS_MAX <= now_ms]:
            del self._asked[number]
            self._timed_out(number, now_ms)
        self.consider(now_ms)

    def _timed_out(self, number: int, now_ms: int) -> None:
        link = self._host.link(number)
        if link is None:
            return
        self._cool_until[number] = now_ms + _COOL_MS
        self._timeouts[number] = self._timeouts.get(number, 0) + 1
        self._host.charge(link, Offence.STALLING)
        if self._timeouts.get(number, 0) >= _TIMEOUTS_MAX:
            self._host.close(link, CloseCode.TIMEOUT, Offence.STALLING.slug)

    def hint(self, link: Link, now_ms: int) -> None:
        """Asks a peer for headers that told of a block whose parent is unknown here, whatever work it claims."""
        self._hinted.add(link.number)
        self.consider(now_ms)

    def consider(self, now_ms: int) -> None:
        """Asks the peer that claims most work, where that is more than is known and there is room for headers."""
        chain = self._host.chain
        if len(self._asked) > 1 or any(now_ms < at + _SECOND_MS for at in self._asked.values()):
            return
        best = chain.tree.best_header()
        if best.height - chain.tip.height >= PEER_HEADERS_AHEAD_MAX:
            return
        candidates = [
            link
            for link in self._host.ready_links()
            if (link.work > best.work or link.number in self._hinted)
            and link.number not in self._cool_until
            and link.number not in self._asked
        ]
        if candidates:
            self._ask(max(candidates, key=lambda link: link.work), now_ms)

    def _ask(self, link: Link, now_ms: int) -> None:
        self._claims[link.number] = (link.height, link.work)
        self._hinted.discard(link.number)
        self._ask_after(link, self._host.chain.tree.best_header().block_id, now_ms)

    def on_headers(self, link: Link, message: Headers, now_ms: int) -> None:
        """Hands a peer's headers to the chain, and holds its claim of work against them."""
        link.settle(GetHeaders)
        self._asked.pop(link.number, None)
        self._timeouts.pop(link.number, None)
        headers = [open_header(wire) for wire in message.headers]
        if headers and not self._take(link, headers, now_ms):
            self.consider(now_ms)
            return
        if len(headers) < PEER_HEADERS_MAX:
            self._ended(link, headers, now_ms)
        else:
            self._go_on(link, headers[-1], now_ms)
        self.consider(now_ms)

    def _take(self, link: Link, headers: list[SealedHeader], now_ms: int) -> bool:
        """Hands headers to the chain; False where it did not take them all."""
        try:
            self._host.chain.add_headers(headers, now_ms)
        except BlockFault as fault:
            self._refused(link, fault.code, fault.index, now_ms)
        except InputError as error:
            self._refused(link, error.code, 0, now_ms)
        else:
            return True
        return False

    def _refused(self, link: Link, code: Code, index: int, now_ms: int) -> None:
        self._cool_until[link.number] = now_ms + _COOL_MS
        if code in NO_FAULT:
            return
        if code == Code.NOT_YET_VALID:
            self._host.charge(link, Offence.FAR_FUTURE)
            return
        if code == Code.UNKNOWN_PARENT and index == 0:
            # The block that the locator named may have left the tree since.
            self._host.charge(link, Offence.LOOSE_HEADERS)
            return
        self._host.charge(link, Offence.BAD_HEADER)

    def _ended(self, link: Link, headers: list[SealedHeader], now_ms: int) -> None:
        """Handles the last batch of a peer's headers: the work that it claimed must be proven now."""
        _, claimed = self._claims.pop(link.number, (0, 0))
        chain = self._host.chain
        last = chain.tree.get(headers[-1].block_id) if headers else None
        best_work = max(chain.work, chain.tree.best_header().work)
        if best_work >= max(claimed, link.work):
            return
        self._cool_until[link.number] = now_ms + _COOL_MS
        if not headers:
            # A node that pruned its history cannot prove it, nor can one that has none.
            self._drop(link, Offence.NO_HEADERS)
        elif last is None:
            return  # held back by the chain, its time is still to come: neither proven nor a lie yet
        elif last.work >= max(claimed, link.work):
            # The work is there and the chain does not want it: one of its blocks is known to break the rules.
            self._host.charge(link, Offence.BAD_BLOCK)
        else:
            self._drop(link, Offence.FALSE_WORK)

    def _drop(self, link: Link, offence: Offence) -> None:
        self._host.charge(link, offence)
        self._host.close(link, CloseCode.OFFENCE, offence.slug)

    def _go_on(self, link: Link, last: SealedHeader, now_ms: int) -> None:
        """Handles a full batch, after which more will come.

        A peer that goes on for ever without more work is dropped.
        """
        chain = self._host.chain
        claimed_height, _ = self._claims.get(link.number, (0, 0))
        entry = chain.tree.get(last.block_id)
        if entry is None or entry.work <= chain.work:
            low = self._low_work[link.number] = self._low_work.get(link.number, 0) + PEER_HEADERS_MAX
        else:
            low = self._low_work[link.number] = 0
        past_claim = last.body.height > max(claimed_height, link.height) + PEER_HEADERS_MAX
        if low > PEER_HEADERS_LOW_WORK_MAX or past_claim:
            self._drop(link, Offence.ENDLESS_HEADERS)
        elif not self._asked and self._room():
            self._ask_after(link, last.block_id, now_ms)

    def _room(self) -> bool:
        chain = self._host.chain
        return chain.tree.best_header().height - chain.tip.height < PEER_HEADERS_AHEAD_MAX

    def _ask_after(self, link: Link, block_id: bytes, now_ms: int) -> None:
        """Asks a peer for the headers after a block.

        Where it does not have that block, after the last one that both have.
        """
        self._asked[link.number] = now_ms
        locator = self._host.chain.locator()
        ids = [block_id, *locator[: PEER_LOCATOR_MAX - 2], *locator[-1:]]
        link.expect(GetHeaders)
        self._host.send(link, GetHeaders(b"".join(dict.fromkeys(ids)), PEER_HEADERS_MAX))

"""Whole blocks, several at a time from several peers, lowest first (SPEC-PEER-16..17).

What is asked for is bounded for each peer and in bytes. A peer that delivers nothing for a while loses its requests to
others and may hold fewer at a time; the block that all others wait for is asked of a second peer early.
"""

from collections import OrderedDict
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from fastledger.chain.forks.events import WrongHints
from fastledger.errors import BlockFault, Code, InputError, LedgerBusyError
from fastledger.limits import (
    PEER_BLOCK_MS_MAX,
    PEER_BLOCKS_BYTES_IN_FLIGHT,
    PEER_BLOCKS_PER_LINK_MAX,
    PEER_BLOCKS_SOUGHT_MAX,
    PEER_BLOCKS_WINDOW,
)
from fastledger.model.block import Block
from fastledger.peers.host import NEVER_MS, Host
from fastledger.peers.scores import Offence
from fastledger.peers.session import Link
from fastledger.peers.settings import CloseCode
from fastledger.peers.wire import BlockMessage, GetBlocks, NotFound, WireFault, split_ids

# Of the moment or of this node, not of who brought the block.
_NO_FAULT = {Code.BELOW_FINAL, Code.TREE_FULL, Code.UNKNOWN_PARENT, Code.RELEASE_NEEDED}
_HEAD_MS = 2_000
_RETRY_MS = 15_000
_BYTES_PER_MS = 256
_BRINGERS_MAX = 512
_TRIED_MAX = 4 * PEER_BLOCKS_WINDOW


class _Load:
    """The requests to one peer: ``open`` maps block ids to the bytes expected, ``late`` are those given to others.
    """

    __slots__ = ("cap", "late", "moved_ms", "open")

    def __init__(self, now_ms: int) -> None:
        self.open: dict[bytes, int] = {}
        self.late: dict[bytes, None] = {}
        self.cap = PEER_BLOCKS_PER_LINK_MAX
        self.moved_ms = now_ms

    @property
    def deadline_ms(self) -> int:
        """When the peer will have delivered nothing for too long; the size of its first request is allowed for."""
        if not self.open:
            return NEVER_MS
        return self.moved_ms + PEER_BLOCK_MS_MAX + next(iter(self.open.values())) // _BYTES_PER_MS


class BlockFetcher:
    """Fetches the blocks that the chain wants. ``reserved`` are ids of blocks that come by another way."""

    def __init__(self, host: Host) -> None:
        self._host = host
        self._loads: dict[int, _Load] = {}
        self._holder: dict[bytes, tuple[int, int]] = {}
        self._tried: OrderedDict[bytes, dict[int, int]] = OrderedDict()
        self._bringers: OrderedDict[bytes, int] = OrderedDict()
        self._bytes = 0
        self._transaction_bytes = 600
        self._ticked_ms = 0
        self.reserved: set[bytes] = set()
        self._sought: dict[bytes, Callable[[Block], bool]] = {}

    @property
    def in_flight(self) -> int:
        """How many blocks peers are asked for."""
        return len(self._holder)

    @property
    def is_behind(self) -> bool:
        """Whether more blocks are under way than the two newest."""
        return len(self._holder) > 2

    @property
    def next_ms(self) -> int:
        """When a peer is late, when the first block may be asked of a second peer, or when a retry is due."""
        times = [load.deadline_ms for load in self._loads.values()]
        if self._holder and len(self._loads) > 1:
            _, asked_ms = next(iter(self._holder.values()))
            times.append(max(asked_ms, self._ticked_ms) + _HEAD_MS)
        times += [min(tried.values()) + _RETRY_MS for tried in list(self._tried.values())[:1]]
        return min(times, default=NEVER_MS)

    def load(self, link: Link) -> int:
        """Returns how many blocks a peer is asked for."""
        load = self._loads.get(link.number)
        return len(load.open) if load is not None else 0

    def ready(self, link: Link, now_ms: int) -> None:
        """Takes in a new peer, which may have blocks that are wanted."""
        self._loads[link.number] = _Load(now_ms)
        self.refill(now_ms)

    def gone(self, link: Link, now_ms: int) -> None:
        """Asks other peers for the blocks that a link that has ended was to bring."""
        load = self._loads.pop(link.number, None)
        if load is not None:
            self._release(link.number, load)
            self.refill(now_ms)

    def tick(self, now_ms: int) -> None:
        """Takes requests from peers that do not deliver, and asks for the blocks that are wanted."""
        for number, load in list(self._loads.items()):
            if load.deadline_ms <= now_ms:
                self._stalled(number, load, now_ms)
        for block_id in list(self._tried):
            tried = {number: at for number, at in self._tried[block_id].items() if at + _RETRY_MS > now_ms}
            if tried:
                self._tried[block_id] = tried
            else:
                del self._tried[block_id]
        self._ticked_ms = now_ms
        self.refill(now_ms)

    def chain_events(self, events: Sequence[Any], now_ms: int) -> None:
        """Charges the peer that brought a block with wrong hints."""
        for event in events:
            if isinstance(event, WrongHints):
                link = self._host.link(self._bringers.get(event.block_id, -1))
                if link is not None:
                    self._host.charge(link, Offence.WRONG_HINTS)

    def _stalled(self, number: int, load: _Load, now_ms: int) -> None:
        for block_id in load.open:
            self._mark_tried(block_id, number, now_ms)
            load.late[block_id] = None
        self._release(number, load)
        link = self._host.link(number)
        if link is None:
            return
        self._host.charge(link, Offence.STALLING)
        if load.cap == 1 or len(load.late) > PEER_BLOCKS_PER_LINK_MAX * 2:
            self._host.close(link, CloseCode.TIMEOUT, Offence.STALLING.slug)
        load.cap = max(1, load.cap // 4)

    def _release(self, number: int, load: _Load) -> None:
        for block_id, size in load.open.items():
            if self._holder.get(block_id, (-1, 0))[0] == number:
                del self._holder[block_id]
                self._bytes -= size
        load.open.clear()

    def _mark_tried(self, block_id: bytes, number: int, now_ms: int) -> None:
        self._tried.setdefault(block_id, {})[number] = now_ms
        while len(self._tried) > _TRIED_MAX:
            self._tried.popitem(last=False)

    def seek(self, block_id: bytes, take: Callable[[Block], bool], now_ms: int) -> None:
        """Fetches one block for a caller other than the chain; each copy goes to ``take`` until it returns True.

        Raises LedgerBusyError where many blocks are sought already.
        """
        if len(self._sought) >= PEER_BLOCKS_SOUGHT_MAX:
            raise LedgerBusyError("many blocks are sought", retry_after_ms=PEER_BLOCK_MS_MAX)
        self._sought[block_id] = take
        self.refill(now_ms)

    def seek_no_more(self, block_id: bytes) -> None:
        """Ends a :meth:`seek` whose caller no longer needs the block."""
        self._sought.pop(block_id, None)

    # Asking.

    def refill(self, now_ms: int) -> None:
        """Asks peers that have room for the lowest blocks that are wanted and not under way.

        The block that all others wait for may be asked of a second peer.
        """
        if not any(len(load.open) <= load.cap // 2 for load in self._loads.values()):
            return
        plan: dict[int, list[bytes]] = {}
        wanted = [*self._host.chain.wanted(PEER_BLOCKS_WINDOW), *self._sought]
        for place, block_id in enumerate(wanted):
            if block_id in self.reserved:
                continue
            held = self._holder.get(block_id)
            if held is not None and not (place == 0 and held[1] + _HEAD_MS <= now_ms):
                continue
            if not self._assign(block_id, held, plan, now_ms):
                break
        for number, ids in plan.items():
            link = self._host.link(number)
            if link is not None:
                link.expect(GetBlocks, len(ids))
                self._host.send(link, GetBlocks(b"".join(ids)))

    def _assign(
        self, block_id: bytes, held: tuple[int, int] | None, plan: dict[int, list[bytes]], now_ms: int
    ) -> bool:
        """Gives a block to a peer, if one may have it; returns False where no more may be in flight."""
        entry = self._host.chain.tree.get(block_id)
        count, height = (entry.count, entry.height) if entry is not None else (0, 0)
        size = 1024 + count * self._transaction_bytes
        if self._holder and self._bytes + size > PEER_BLOCKS_BYTES_IN_FLIGHT:
            return False
        number = self._choose(block_id, height, held)
        if number is None:
            return True
        if held is not None:
            self._give_up(block_id, held[0])
        load = self._loads[number]
        if not load.open:
            load.moved_ms = now_ms
        load.open[block_id] = size
        self._holder[block_id] = (number, now_ms)
        self._bytes += size
        plan.setdefault(number, []).append(block_id)
        return True

    def _give_up(self, block_id: bytes, number: int) -> None:
        load = self._loads.get(number)
        if load is not None and block_id in load.open:
            self._bytes -= load.open.pop(block_id)
            load.late[block_id] = None
        self._holder.pop(block_id, None)

    def _choose(self, block_id: bytes, height: int, held: tuple[int, int] | None) -> int | None:
        """Returns the peer with the fewest requests that may have the block.

        Where it is ``held``, only an idle second one.
        """
        tried = self._tried.get(block_id, {})
        best: tuple[int, int] | None = None
        for number, load in self._loads.items():
            link = self._host.link(number)
            if link is None or link.height < height or number in tried or len(load.open) >= load.cap:
                continue
            if block_id in load.late or (held is not None and (held[0] == number or load.open)):
                continue
            # A peer that was slow before comes after one that was not.
            rank = (len(load.open) + PEER_BLOCKS_PER_LINK_MAX - load.cap, number)
            if best is None or rank < best:
                best = rank
        return best[1] if best is not None else None

    # Answers.

    def on_block(self, link: Link, message: BlockMessage, now_ms: int) -> None:
        """Hands a block that was asked for to the chain.

        Raises WireFault where it does not decode or was not asked for.
        """
        link.settle(GetBlocks)
        try:
            block = Block.decode(message.block)
        except InputError as error:
            raise WireFault(f"a block that does not decode ({error.code.slug})", Offence.BAD_COPY) from None
        self._answered(link, [block.block_id], now_ms)
        if block.count:
            mean = len(message.block) // block.count
            self._transaction_bytes = max(100, (3 * self._transaction_bytes + mean) // 4)
        self.deliver(link, block, now_ms)
        self.refill(now_ms)

    def on_not_found(self, link: Link, message: NotFound, now_ms: int) -> None:
        """Asks others for blocks that a peer does not have (any more), and this peer not for a while."""
        ids = split_ids(message.ids)
        link.settle(GetBlocks, len(ids))
        self._answered(link, ids, now_ms)
        for block_id in ids:
            self._mark_tried(block_id, link.number, now_ms)
        self.refill(now_ms)

    def _answered(self, link: Link, ids: Iterable[bytes], now_ms: int) -> None:
        load = self._loads[link.number]
        for block_id in ids:
            size = load.open.pop(block_id, None)
            if size is None:
                if block_id not in load.late:
                    raise WireFault("a block that was not asked for", Offence.UNREQUESTED)
                del load.late[block_id]
                continue
            load.cap = min(PEER_BLOCKS_PER_LINK_MAX, load.cap + 1)
            self._bytes -= size
            self._holder.pop(block_id, None)
        load.moved_ms = now_ms

    def deliver(self, link: Link, block: Block, now_ms: int) -> bool:
        """Hands a block to the chain, or to the caller that seeks it; returns whether it was taken.

        A fault in it is charged to the peer that brought it.
        """
        block_id = block.block_id
        self._bringers[block_id] = link.number
        self._bringers.move_to_end(block_id)
        while len(self._bringers) > _BRINGERS_MAX:
            self._bringers.popitem(last=False)
        take = self._sought.get(block_id)
        if take is not None:
            return self._hand_over(link, block, take, now_ms)
        try:
            self._host.chain.add_block(block, now_ms)
        except BlockFault as fault:
            self._blame(link, block_id, fault, now_ms)
            return False
        except InputError as error:
            if error.code not in _NO_FAULT:
                self._host.charge(link, Offence.BAD_COPY)
            return False
        return True

    def _hand_over(self, link: Link, block: Block, take: Callable[[Block], bool], now_ms: int) -> bool:
        """Gives a block to the caller that seeks it.

        A copy that it refuses is charged, and the next peer is asked.
        """
        if take(block):
            self._sought.pop(block.block_id, None)
            return True
        self._mark_tried(block.block_id, link.number, now_ms)
        self._host.charge(link, Offence.BAD_COPY)
        return False

    def _blame(self, link: Link, block_id: bytes, fault: BlockFault, now_ms: int) -> None:
        """Charges a block's fault to the peer that brought it (SPEC-PEER-21).

        A fault that condemns the block is one that no honest node passes on; any other is a fault of this sender's
        copy.
        """
        if fault.code in _NO_FAULT and not fault.condemns:
            return
        if fault.code == Code.NOT_YET_VALID:
            self._host.charge(link, Offence.FAR_FUTURE)
            return
        culprit: Link | None = link
        if fault.block_id and fault.block_id != block_id:
            culprit = self._host.link(self._bringers.get(fault.block_id, -1))
        if not fault.condemns:
            self._mark_tried(block_id, link.number, now_ms)
        if culprit is not None:
            self._host.charge(culprit, Offence.BAD_BLOCK if fault.condemns else Offence.BAD_COPY)

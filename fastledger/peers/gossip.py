"""Transactions: told by id, fetched once, passed on after they were verified (SPEC-PEER-28..31).

Each body is asked of one peer at a time, the first that told of it; when that one does not deliver, of the next. Ids
are told in batches after a short random pause, so that of two nodes that got a transaction from the same third one
usually hears of it before it speaks. A peer that tells of what it does not deliver is found out by its share of both.
"""

from array import array
from collections import OrderedDict, deque
from collections.abc import Iterable, Sequence
from typing import Any

from fastledger._native.scan import scan_many
from fastledger.chain.forks.events import BlockConnected, BlockDisconnected, TransactionsAccepted
from fastledger.errors import Code, InputError
from fastledger.limits import (
    PEER_ANNOUNCE_QUEUE_MAX,
    PEER_IDS_MAX,
    PEER_KNOWN_IDS_MAX,
    PEER_SEEN_IDS_MAX,
    PEER_SERVE_UNSENT_BYTES,
    PEER_TRANSACTION_MS_MAX,
    PEER_TRANSACTIONS_BYTES,
    PEER_TRANSACTIONS_PER_LINK_MAX,
    PEER_TRANSACTIONS_PER_REQUEST,
    PEER_WANTED_PER_LINK_MAX,
    PEER_WANTED_TRANSACTIONS_MAX,
)
from fastledger.peers.host import NEVER_MS, Host, pick
from fastledger.peers.scores import Offence
from fastledger.peers.session import Link
from fastledger.peers.wire import (
    HASH_BYTES,
    GetTransactions,
    Inventory,
    Transactions,
    WireFault,
    split_ids,
)

# What an honest node may pass on all the same: time went on, or a block was faster.
_HARMLESS = {
    Code.OK,
    Code.DUPLICATE,
    Code.EXPIRED,
    Code.NOT_YET_VALID,
    Code.POOL_FULL,
    Code.BUSY,
    Code.BLOB_MISSING,
    # Of another rule set, or of a newer release: what its sender has in force need not be in force here.
    Code.UNKNOWN_KIND,
    Code.RELEASE_NEEDED,
}
# What is worth another try later, when there is room or it has become valid.
_UNDECIDED = {Code.POOL_FULL, Code.NOT_YET_VALID, Code.BUSY, Code.BLOB_MISSING}
_UNDELIVERED_MIN = 64


class _Want:
    """A transaction that a peer has and this node has not: who told of it, in order, and who is asked."""

    __slots__ = ("asked", "tellers")

    def __init__(self) -> None:
        self.tellers: deque[int] = deque()
        self.asked: int | None = None


class _Side:
    """One peer's account: what it and this node know of each other's transactions, and how well it delivers."""

    __slots__ = ("announce", "asked", "delivered", "flush_ms", "known", "late", "todo", "undelivered")

    def __init__(self) -> None:
        self.known: OrderedDict[bytes, None] = OrderedDict()
        self.announce: OrderedDict[bytes, None] = OrderedDict()
        self.flush_ms = NEVER_MS
        self.todo: deque[bytes] = deque()
        # txid -> deadline, oldest first; what is late may still come.
        self.asked: OrderedDict[bytes, int] = OrderedDict()
        self.late: OrderedDict[bytes, None] = OrderedDict()
        self.delivered = 0
        self.undelivered = 0

    def knows(self, txid: bytes) -> None:
        """Records that the peer has this transaction, so that it need not be told."""
        self.known[txid] = None
        self.announce.pop(txid, None)
        if len(self.known) > PEER_KNOWN_IDS_MAX:
            self.known.popitem(last=False)

    @property
    def room(self) -> int:
        """How many more transactions the peer may be asked for.

        One that is late counts until it comes, so that a peer that never answers is asked no more.
        """
        return PEER_TRANSACTIONS_PER_LINK_MAX - len(self.asked) - len(self.late)

    def equivocates(self) -> bool:
        """Whether the peer did not have most of the transactions that it told of."""
        return self.undelivered >= _UNDELIVERED_MIN and self.undelivered > self.delivered

    def fade(self) -> None:
        """Halves the counts of delivered and undelivered once they are large, so that old conduct counts less."""
        if self.delivered + self.undelivered > 8 * _UNDELIVERED_MIN:
            self.delivered //= 2
            self.undelivered //= 2


class TransactionRelay:
    """Exchanges inventories with all peers and fetches the bodies of transactions."""

    def __init__(self, host: Host) -> None:
        self._host = host
        self._sides: dict[int, _Side] = {}
        self._wants: dict[bytes, _Want] = {}
        # Seen and decided: in the pool, in a block, or refused for good.
        self._seen: OrderedDict[bytes, None] = OrderedDict()

    @property
    def next_ms(self) -> int:
        """When the next inventory is due or the next answer late."""
        times = [side.flush_ms for side in self._sides.values()]
        times += [next(iter(side.asked.values())) for side in self._sides.values() if side.asked]
        return min(times, default=NEVER_MS)

    @property
    def wanted_count(self) -> int:
        """How many transactions peers told of that this node does not have yet."""
        return len(self._wants)

    def load(self, link: Link) -> int:
        """Returns how many transactions a peer is asked for."""
        side = self._sides.get(link.number)
        return len(side.asked) if side is not None else 0

    def ready(self, link: Link, now_ms: int) -> None:
        """Takes in a new peer and prepares to tell it of the transactions in the pool."""
        side = self._sides[link.number] = _Side()
        for txid in self._host.chain.mempool:
            if len(side.announce) >= PEER_ANNOUNCE_QUEUE_MAX:
                break
            side.announce[txid] = None
        if side.announce:
            side.flush_ms = now_ms + self._pause_ms()

    def gone(self, link: Link, now_ms: int) -> None:
        """Asks other peers for the transactions that a link that has ended was asked for."""
        side = self._sides.pop(link.number, None)
        if side is None:
            return
        for txid in (*side.asked, *side.todo):
            self._next_teller(txid, link.number)
        self._fetch(now_ms)

    def tick(self, now_ms: int) -> None:
        """Sends the inventories that are due, and asks other peers for transactions that are late."""
        for number, side in list(self._sides.items()):
            link = self._host.link(number)
            if link is None:
                continue
            self._expire(link, side, now_ms)
            if side.flush_ms <= now_ms:
                self.flush(link, now_ms)
                # A peer that does not read now is told later.
                side.flush_ms = max(side.flush_ms, now_ms + 1)
        self._fetch(now_ms)

    def _pause_ms(self) -> int:
        longest = self._host.settings.announce_ms_max
        return longest // 4 + pick(self._host.rng, max(1, longest))

    # Telling.

    def chain_events(self, events: Sequence[Any], now_ms: int) -> None:
        """Prepares to tell new transactions to all peers that do not have them.

        Those of a connected block need no telling. Those of a disconnected block wait in the pool again and may
        never have been told.
        """
        for event in events:
            if isinstance(event, TransactionsAccepted):
                self._tell(event.txids, local=not event.source, now_ms=now_ms)
            elif isinstance(event, BlockConnected):
                self._decided(event.txids)
            elif isinstance(event, BlockDisconnected):
                # What waits again was perhaps never told: it went from the pool into the block at once.
                pool = self._host.chain.mempool
                self._tell([txid for txid in event.txids if txid in pool], local=False, now_ms=now_ms)
                for txid in event.txids:
                    if txid not in pool:
                        self._seen.pop(txid, None)
        self._fetch(now_ms)

    def _tell(self, txids: Iterable[bytes], *, local: bool, now_ms: int) -> None:
        ids = list(txids)
        self._decided(ids)
        for side in self._sides.values():
            for txid in ids:
                if txid not in side.known and len(side.announce) < PEER_ANNOUNCE_QUEUE_MAX:
                    side.announce[txid] = None
            if side.announce and side.flush_ms == NEVER_MS:
                # Nobody else can tell of this node's own, so there is no need to wait and hear.
                side.flush_ms = now_ms + (pick(self._host.rng, 10) if local else self._pause_ms())

    def _decided(self, txids: Iterable[bytes]) -> None:
        for txid in txids:
            self._wants.pop(txid, None)
            self._seen[txid] = None
        while len(self._seen) > PEER_SEEN_IDS_MAX:
            self._seen.popitem(last=False)

    def flush(self, link: Link, now_ms: int) -> None:
        """Sends the peer the inventory that is due, if it reads what was sent before."""
        side = self._sides.get(link.number)
        if side is None or side.flush_ms > now_ms or link.unsent > PEER_SERVE_UNSENT_BYTES:
            return
        pool = self._host.chain.mempool
        batch: list[bytes] = []
        while side.announce and len(batch) < PEER_IDS_MAX:
            txid, _ = side.announce.popitem(last=False)
            if txid not in side.known and txid in pool:
                batch.append(txid)
        for txid in batch:
            side.knows(txid)
        side.flush_ms = now_ms + 1 if side.announce else NEVER_MS
        if batch:
            self._host.send(link, Inventory(b"".join(batch)))

    def serve(self, link: Link, txids: Sequence[bytes]) -> None:
        """Sends the peer the bodies of the transactions that it asks for, in as many messages as they need."""
        pool = self._host.chain.mempool
        side = self._sides.get(link.number)
        bodies: list[bytes] = []
        missing: list[bytes] = []
        size = 0
        for txid in txids:
            pooled = pool.find(txid)
            if side is not None:
                side.knows(txid)
            if pooled is None:
                missing.append(txid)
                continue
            if size + len(pooled.encoded) > PEER_TRANSACTIONS_BYTES and bodies:
                self._host.send(link, Transactions(bodies, b""))
                bodies, size = [], 0
            bodies.append(pooled.encoded)
            size += len(pooled.encoded)
        self._host.send(link, Transactions(bodies, b"".join(missing)))

    # Hearing.

    def on_inventory(self, link: Link, message: Inventory, now_ms: int) -> None:
        """Notes which transactions a peer has, and wants those that are new here."""
        side = self._sides[link.number]
        for txid in split_ids(message.txids):
            side.knows(txid)
            if txid in self._seen:
                continue
            want = self._wants.get(txid)
            if want is None:
                if len(side.todo) + len(side.asked) >= PEER_WANTED_PER_LINK_MAX:
                    continue
                if (
                    len(self._wants) >= PEER_WANTED_TRANSACTIONS_MAX
                    or self._host.chain.mempool.find(txid) is not None
                ):
                    continue
                want = self._wants[txid] = _Want()
                side.todo.append(txid)
                want.tellers.append(link.number)
            elif link.number not in want.tellers:
                want.tellers.append(link.number)
                self._take_from_debtor(txid, want, link.number)
        self._fetch(now_ms)

    def _take_from_debtor(self, txid: bytes, want: _Want, number: int) -> None:
        """Lets a second teller be asked at once where the first is late with others or may be asked no more."""
        side = self._sides[number]
        if side.late:
            return
        if want.asked is None:
            first = self._sides.get(want.tellers[0])
            if first is not None and first.room <= 0:
                side.todo.append(txid)
            return
        debtor = self._sides.get(want.asked)
        if debtor is None or not debtor.late:
            return
        debtor.asked.pop(txid, None)
        debtor.late[txid] = None
        want.asked = None
        side.todo.append(txid)

    def _fetch(self, now_ms: int) -> None:
        """Asks each peer for the transactions that it was the first to tell of, as far as it may be asked."""
        chain = self._host.chain
        if chain.tree.best_header().height > chain.tip.height + 2:
            # What waits elsewhere may well stand in the blocks that are still to come.
            return
        for number, side in list(self._sides.items()):
            link = self._host.link(number)
            while link is not None and not link.closing and side.todo and side.room > 0:
                batch = self._batch(number, side)
                if not batch:
                    break
                for txid in batch:
                    side.asked[txid] = now_ms + PEER_TRANSACTION_MS_MAX
                link.expect(GetTransactions, len(batch))
                self._host.send(link, GetTransactions(b"".join(batch)))

    def _batch(self, number: int, side: _Side) -> list[bytes]:
        batch: list[bytes] = []
        while side.todo and len(batch) < min(side.room, PEER_TRANSACTIONS_PER_REQUEST):
            txid = side.todo.popleft()
            want = self._wants.get(txid)
            if want is None or want.asked is not None or txid in side.asked or txid in side.late:
                continue
            want.asked = number
            batch.append(txid)
        return batch

    def _next_teller(self, txid: bytes, number: int) -> None:
        """Passes a transaction that a peer does not deliver to the next peer that told of it.

        Forgets it where none is left.
        """
        want = self._wants.get(txid)
        if want is None or want.asked not in (number, None):
            return
        want.asked = None
        while want.tellers:
            if want.tellers[0] != number and want.tellers[0] in self._sides:
                self._sides[want.tellers[0]].todo.append(txid)
                return
            want.tellers.popleft()
        del self._wants[txid]

    def _expire(self, link: Link, side: _Side, now_ms: int) -> None:
        late = 0
        while side.asked and next(iter(side.asked.values())) <= now_ms:
            txid, _ = side.asked.popitem(last=False)
            side.late[txid] = None
            self._next_teller(txid, link.number)
            late += 1
        if late:
            self._host.charge(link, Offence.STALLING)

    def _undelivered(self, link: Link, side: _Side, count: int) -> None:
        side.undelivered += count
        if side.equivocates():
            side.undelivered = side.delivered = 0
            self._host.charge(link, Offence.EQUIVOCATION)
        side.fade()

    def on_transactions(self, link: Link, message: Transactions, now_ms: int) -> None:
        """Submits the bodies that were asked for to the chain in one batch.

        Raises WireFault where one was not asked for or is no transaction.
        """
        side = self._sides[link.number]
        missing = split_ids(message.missing)
        link.settle(GetTransactions, len(message.bodies) + len(missing))
        txids = _ids_of(message.bodies)
        for txid in (*txids, *missing):
            if side.asked.pop(txid, None) is None and side.late.pop(txid, b"") == b"":
                raise WireFault("a transaction that was not asked for", Offence.UNREQUESTED)
        for txid in missing:
            self._next_teller(txid, link.number)
        if missing:
            self._undelivered(link, side, len(missing))
        side.delivered += len(txids)
        if message.bodies:
            self._submit(link, txids, message.bodies, now_ms)
        self._fetch(now_ms)

    def _submit(self, link: Link, txids: list[bytes], bodies: Sequence[bytes], now_ms: int) -> None:
        codes = self._host.chain.submit(bodies, now_ms, source=link.source)
        bad = False
        # Of a newer release: a body that fits nothing here may be right there.
        newer = link.rule_set > self._host.chain.newest_rule_set
        for txid, code in zip(txids, codes, strict=True):
            if code in _HARMLESS or (newer and code == Code.BAD_BODY):
                self._wants.pop(txid, None)
                if code not in _UNDECIDED:
                    self._decided((txid,))
                continue
            bad = True
            if code == Code.BAD_SIGNATURE:
                # The id does not cover the signature: another peer may have the transaction with a good one.
                self._next_teller(txid, link.number)
            else:
                self._decided((txid,))
        if bad:
            self._host.charge(link, Offence.BAD_TRANSACTION)


def _ids_of(bodies: Sequence[bytes]) -> list[bytes]:
    offsets = array("Q", [0])
    for body in bodies:
        offsets.append(offsets[-1] + len(body))
    try:
        scan = scan_many(b"".join(bodies), offsets)
    except InputError:
        raise WireFault("transactions that do not decode", Offence.BAD_TRANSACTION) from None
    if not scan.all_ok:
        raise WireFault("a transaction of another form", Offence.BAD_TRANSACTION)
    return [scan.txids[at : at + HASH_BYTES] for at in range(0, HASH_BYTES * len(bodies), HASH_BYTES)]

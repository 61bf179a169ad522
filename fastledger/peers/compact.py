"""New blocks without the transactions that everybody has (SPEC-PEER-18..19).

A block is told as its sealed header, its results and a short id for each transaction: the first 6 bytes of
SHA-256(block id ‖ salt ‖ txid). Nobody can prepare two transactions with one short id before the block is there, and
the salt differs from sender to sender. What the pool lacks is asked for by index. Where the ids that were found do not
give the block's root, a short id stood for another transaction: nobody is to blame, and the whole block is fetched.
"""

import struct
from array import array
from collections import Counter, OrderedDict
from collections.abc import Iterable, Sequence
from itertools import chain as chained
from typing import Any

from fastledger._native.scan import scan_many
from fastledger.chain.forks.events import BlockConnected, TransactionsAccepted
from fastledger.crypto.hashing import sha256_many
from fastledger.crypto.merkle import merkle_root
from fastledger.errors import BlockFault, Code, InputError
from fastledger.limits import (
    PEER_COMPACT_MS_MAX,
    PEER_COMPACTS_MAX,
    PEER_COMPACTS_PER_BLOCK_MAX,
    PEER_SEEN_IDS_MAX,
)
from fastledger.model.block import Block, SealedHeader
from fastledger.peers.fetch import BlockFetcher
from fastledger.peers.host import NEVER_MS, Host, random_bytes
from fastledger.peers.scores import Offence
from fastledger.peers.session import Link
from fastledger.peers.sync import NO_FAULT, HeaderSync, close_header, open_header
from fastledger.peers.wire import (
    HASH_BYTES,
    SHORT_ID_BYTES,
    BlockTransactions,
    Compact,
    GetBlockTransactions,
    WireFault,
)

_KNOWN_BLOCKS_MAX = 64


def short_ids(block_id: bytes, salt: bytes, txids: Sequence[bytes]) -> list[bytes]:
    """Returns the short ids (6 bytes each) of transactions in a block, under one sender's ``salt`` of 8 bytes."""
    key = block_id + salt
    size = len(key) + HASH_BYTES
    buffer = key + key.join(txids)
    digests = sha256_many(buffer, range(0, size * len(txids) + 1, size)) if txids else b""
    return [digests[at : at + SHORT_ID_BYTES] for at in range(0, len(digests), HASH_BYTES)]


def compact_form(sealed: SealedHeader, results: bytes, txids: Sequence[bytes], salt: bytes) -> Compact:
    """Returns the message that tells peers of a block; ``results`` are n × 2 bytes, ``txids`` n ids of 32 bytes."""
    ids = short_ids(sealed.block_id, salt, txids)
    return Compact(close_header(sealed), salt, b"".join(ids), results)


class _Partial:
    """A block that is being put together: ``bodies[i]`` is None where transaction i is asked for."""

    __slots__ = ("bodies", "deadline_ms", "link", "message", "missing", "sealed", "txids")

    def __init__(self, link: int, sealed: SealedHeader, message: Compact, deadline_ms: int) -> None:
        self.link = link
        self.sealed = sealed
        self.message = message
        self.deadline_ms = deadline_ms
        self.txids: list[bytes] = []
        self.bodies: list[bytes | None] = []
        self.missing: list[int] = []

    @property
    def shorts(self) -> list[bytes]:
        """The short ids in the sender's message, in block order."""
        packed = self.message.short_ids
        return [packed[at : at + SHORT_ID_BYTES] for at in range(0, len(packed), SHORT_ID_BYTES)]

    def fill(self, candidates: Sequence[bytes], encoded: Any) -> None:
        """Fills in the transactions that are found among ``candidates`` (ids), and lists the indexes of the others.

        ``encoded(txid)`` gives a transaction's bytes or None. A short id that two candidates or two places of the
        block share counts as not found.
        """
        by_short: dict[bytes, bytes] = {}
        doubtful: set[bytes] = set()
        for short, txid in zip(
            short_ids(self.sealed.block_id, self.message.salt, candidates), candidates, strict=True
        ):
            if by_short.setdefault(short, txid) != txid:
                doubtful.add(short)
        told = self.shorts
        doubtful |= {short for short, count in Counter(told).items() if count > 1}
        for index, short in enumerate(told):
            found = by_short.get(short) if short not in doubtful else None
            body = encoded(found) if found is not None else None
            self.txids.append(found if found is not None and body is not None else b"")
            self.bodies.append(body)
            if body is None:
                self.missing.append(index)

    def block(self) -> Block | None:
        """Returns the whole block, without hints; None where the transactions do not give its root."""
        bodies = [body for body in self.bodies if body is not None]
        if len(bodies) != self.sealed.count or merkle_root(b"".join(self.txids)) != self.sealed.body.tx_root:
            return None
        lengths = b"".join(len(body).to_bytes(4, "little") for body in bodies)
        sealed = self.sealed
        return Block(sealed.header, sealed.body, sealed.seal, b"".join(bodies), lengths, self.message.results)


class CompactRelay:
    """Tells peers of new blocks, and puts together the blocks that peers tell of."""

    def __init__(self, host: Host, fetch: BlockFetcher, sync: HeaderSync) -> None:
        self._host = host
        self._fetch = fetch
        self._sync = sync
        # Of one block there may be several, from as many peers: a silent one then delays nothing.
        self._partials: dict[bytes, dict[int, _Partial]] = {}
        self._known: dict[int, OrderedDict[bytes, None]] = {}
        # Accepted lately, in blocks or not: after a reorganisation a block's transactions no longer wait.
        self._accepted: OrderedDict[bytes, None] = OrderedDict()

    @property
    def next_ms(self) -> int:
        """When the next answer is late."""
        deadlines = (partial.deadline_ms for some in self._partials.values() for partial in some.values())
        return min(deadlines, default=NEVER_MS)

    def gone(self, link: Link, now_ms: int) -> None:
        """Gives up the blocks that a link that has ended was to complete; they are then fetched whole."""
        self._known.pop(link.number, None)
        for block_id in list(self._partials):
            self._drop(block_id, link.number)

    def tick(self, now_ms: int) -> None:
        """Gives up the blocks that were not completed in time, charges their senders, and has them fetched whole."""
        late = [
            (block_id, number)
            for block_id, some in self._partials.items()
            for number, partial in some.items()
            if partial.deadline_ms <= now_ms
        ]
        for block_id, number in late:
            self._drop(block_id, number)
            link = self._host.link(number)
            if link is not None:
                self._host.charge(link, Offence.STALLING)
        self._fetch.refill(now_ms)

    def _drop(self, block_id: bytes, number: int) -> _Partial | None:
        """Ends one peer's part in a block. Where no other peer has a part in it, the block may be fetched whole."""
        some = self._partials.get(block_id, {})
        partial = some.pop(number, None)
        if not some:
            self._partials.pop(block_id, None)
            self._fetch.reserved.discard(block_id)
        return partial

    def _knows(self, link: Link, block_id: bytes) -> bool:
        """Returns whether the peer is known to have the block, and records that it has it from now on."""
        known = self._known.setdefault(link.number, OrderedDict())
        if block_id in known:
            return True
        known[block_id] = None
        if len(known) > _KNOWN_BLOCKS_MAX:
            known.popitem(last=False)
        return False

    # Telling.

    def chain_events(self, events: Sequence[Any], now_ms: int) -> None:
        """Tells a new tip to all peers that have less work and do not know it; remembers accepted transactions."""
        tip_id = self._host.chain.tip.block_id
        for event in events:
            if isinstance(event, TransactionsAccepted):
                self._remember(event.txids)
            elif isinstance(event, BlockConnected) and event.block.block_id == tip_id:
                self._announce(event.block, event.txids)

    def _remember(self, txids: Iterable[bytes]) -> None:
        for txid in txids:
            self._accepted[txid] = None
        while len(self._accepted) > PEER_SEEN_IDS_MAX:
            self._accepted.popitem(last=False)

    def _announce(self, block: Block, txids: Sequence[bytes]) -> None:
        message: Compact | None = None
        work = self._host.chain.work
        for link in self._host.ready_links():
            if link.work >= work or self._knows(link, block.block_id):
                continue
            if message is None:
                salt = random_bytes(self._host.rng, 8)
                message = compact_form(block.sealed_header, block.results, txids, salt)
            self._host.send(link, message)

    # Hearing.

    def on_compact(self, link: Link, message: Compact, now_ms: int) -> None:
        """Takes a block that a peer tells of: its header goes to the chain, and its transactions are looked for.

        They are looked for only where the header is the best. Raises WireFault where ids or results differ from the
        header in number.
        """
        sealed = open_header(message.header)
        if (len(message.short_ids), len(message.results)) != (
            SHORT_ID_BYTES * sealed.count,
            2 * sealed.count,
        ):
            raise WireFault("short ids or results differ from the header in number", Offence.GARBAGE)
        block_id = sealed.block_id
        self._knows(link, block_id)
        link.height = max(link.height, sealed.body.height)
        if not self._take_header(link, sealed, now_ms):
            return
        chain = self._host.chain
        entry = chain.tree.get(block_id)
        if entry is None:
            return
        if entry.work >= link.work:
            link.height, link.work, link.tip = entry.height, entry.work, block_id
        if chain.has_block(block_id) or entry.work <= chain.work:
            return
        some = self._partials.get(block_id, {})
        room = len(self._partials) < PEER_COMPACTS_MAX and len(some) < PEER_COMPACTS_PER_BLOCK_MAX
        if room and link.number not in some and chain.has_block(sealed.header.previous_id):
            self._begin(link, sealed, message, now_ms)
        self._fetch.refill(now_ms)

    def _take_header(self, link: Link, sealed: SealedHeader, now_ms: int) -> bool:
        try:
            self._host.chain.add_headers([sealed], now_ms)
        except InputError as error:
            if error.code == Code.UNKNOWN_PARENT:
                self._sync.hint(link, now_ms)
            elif error.code == Code.NOT_YET_VALID:
                self._host.charge(link, Offence.FAR_FUTURE)
            elif error.code not in NO_FAULT or (isinstance(error, BlockFault) and error.condemns):
                self._host.charge(link, Offence.BAD_HEADER)
            return False
        return True

    def _begin(self, link: Link, sealed: SealedHeader, message: Compact, now_ms: int) -> None:
        pool = self._host.chain.mempool
        partial = _Partial(link.number, sealed, message, now_ms + PEER_COMPACT_MS_MAX)
        candidates = list(dict.fromkeys(chained(self._accepted, pool)))
        partial.fill(candidates, lambda txid: _encoded(pool.find(txid)))
        if not partial.missing:
            self._finish(link, partial, now_ms)
            return
        self._partials.setdefault(sealed.block_id, {})[link.number] = partial
        self._fetch.reserved.add(sealed.block_id)
        link.expect(GetBlockTransactions)
        indexes = struct.pack(f">{len(partial.missing)}H", *partial.missing)
        self._host.send(link, GetBlockTransactions(sealed.block_id, indexes))

    def on_transactions(self, link: Link, message: BlockTransactions, now_ms: int) -> None:
        """Completes a block with the transactions that the peer was asked for, and hands it to the chain."""
        link.settle(GetBlockTransactions)
        partial = self._drop(message.block_id, link.number)
        if partial is None or self._host.chain.has_block(message.block_id):
            return  # too late, or another was faster
        if message.transactions and not _complete(partial, message.transactions):
            self._host.charge(link, Offence.BAD_COPY)
        elif message.transactions:
            self._finish(link, partial, now_ms)
        self._fetch.refill(now_ms)

    def _finish(self, link: Link, partial: _Partial, now_ms: int) -> None:
        block = partial.block()
        if block is not None:
            self._fetch.deliver(link, block, now_ms)


def _encoded(pooled: Any) -> bytes | None:
    return pooled.encoded if pooled is not None else None


def _complete(partial: _Partial, transactions: Sequence[bytes]) -> bool:
    """Puts the transactions that were asked for into a block; False where they are not those."""
    if len(transactions) != len(partial.missing):
        return False
    offsets = array("Q", [0])
    for transaction in transactions:
        offsets.append(offsets[-1] + len(transaction))
    try:
        scan = scan_many(b"".join(transactions), offsets)
    except InputError:
        return False
    txids = [scan.txids[at : at + HASH_BYTES] for at in range(0, HASH_BYTES * len(transactions), HASH_BYTES)]
    told = partial.shorts
    shorts = short_ids(partial.sealed.block_id, partial.message.salt, txids)
    if not scan.all_ok or any(
        told[index] != short for index, short in zip(partial.missing, shorts, strict=True)
    ):
        return False
    for index, txid, body in zip(partial.missing, txids, transactions, strict=True):
        partial.txids[index] = txid
        partial.bodies[index] = body
    return True

"""Transactions that wait for a block, in order of arrival (SPEC-POOL-1..5).

A transaction is here once its form, chain, window and signature were checked. While a block of the best chain holds it
it stands aside, *confirmed*, so that a reorganisation can put it back and a rival block with the same bytes need not
have them verified again; when that block is final it is forgotten.
"""

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

from fastledger.errors import Code
from fastledger.limits import (
    MEMPOOL_BYTES_MAX,
    MEMPOOL_SOURCE_TRANSACTIONS_MAX,
    MEMPOOL_TRANSACTIONS_MAX,
)

LOCAL = b""


class Pending(NamedTuple):
    """One verified transaction: its wire form, its 33-byte verification hint, its typed body, and who brought it.

    ``source`` is empty for what this node's own users submit; of others it names the organisation.
    """

    txid: bytes
    encoded: bytes
    hint: bytes
    signer: bytes
    body: Any
    issued_ms: int
    expires_ms: int
    source: bytes = LOCAL


class Mempool:
    """Bounded by count, by bytes, and for every source but the node itself by a quota."""

    def __init__(
        self,
        *,
        transactions_max: int = MEMPOOL_TRANSACTIONS_MAX,
        bytes_max: int = MEMPOOL_BYTES_MAX,
        source_transactions_max: int = MEMPOOL_SOURCE_TRANSACTIONS_MAX,
    ) -> None:
        self.transactions_max = transactions_max
        self.bytes_max = bytes_max
        self.source_transactions_max = source_transactions_max
        # Insertion order is arrival order.
        self._waiting: dict[bytes, Pending] = {}
        self._confirmed: dict[bytes, Pending] = {}
        self._by_source: Counter[bytes] = Counter()
        self._byte_count = 0
        self._confirmed_bytes = 0
        self._first_expiry_ms = 0

    def __len__(self) -> int:
        return len(self._waiting)

    def __contains__(self, txid: object) -> bool:
        return txid in self._waiting

    def __iter__(self) -> Iterator[bytes]:
        """The ids of those that wait, in order of arrival."""
        return iter(self._waiting)

    @property
    def byte_count(self) -> int:
        """Bytes of all that wait."""
        return self._byte_count

    @property
    def is_empty(self) -> bool:
        """Whether nothing waits and nothing stands aside."""
        return not self._waiting and not self._confirmed

    @property
    def room(self) -> int:
        """How many more transactions it takes."""
        return max(0, self.transactions_max - len(self._waiting))

    def get(self, txid: bytes) -> Pending | None:
        """A transaction that waits."""
        return self._waiting.get(txid)

    def find(self, txid: bytes) -> Pending | None:
        """A transaction that waits or stands in a block that is not final."""
        return self._waiting.get(txid) or self._confirmed.get(txid)

    def add(self, pending: Pending) -> Code:
        """OK, DUPLICATE, or POOL_FULL where there is no room for it or its source has had its share."""
        if pending.txid in self._waiting:
            return Code.DUPLICATE
        full = (
            len(self._waiting) >= self.transactions_max
            or self._byte_count + len(pending.encoded) > self.bytes_max
            or (pending.source != LOCAL and self._by_source[pending.source] >= self.source_transactions_max)
        )
        if full:
            return Code.POOL_FULL
        self._insert(pending)
        return Code.OK

    def _insert(self, pending: Pending) -> None:
        if not self._waiting or pending.expires_ms < self._first_expiry_ms:
            self._first_expiry_ms = pending.expires_ms
        self._waiting[pending.txid] = pending
        self._by_source[pending.source] += 1
        self._byte_count += len(pending.encoded)

    def _remove(self, txid: bytes) -> Pending | None:
        pending = self._waiting.pop(txid, None)
        if pending is not None:
            self._byte_count -= len(pending.encoded)
            self._by_source[pending.source] -= 1
            if not self._by_source[pending.source]:
                del self._by_source[pending.source]
        return pending

    def take(self, count_max: int, bytes_max: int, time_ms: int) -> list[Pending]:
        """The first that may stand in a block of ``time_ms``, up to so many and so many bytes; they stay here."""
        taken: list[Pending] = []
        byte_count = 0
        for pending in self._waiting.values():
            if len(taken) >= count_max:
                break
            if pending.expires_ms < time_ms:
                continue
            byte_count += len(pending.encoded)
            if byte_count > bytes_max:
                break
            taken.append(pending)
        return taken

    def drop(self, txids: Iterable[bytes]) -> None:
        """Lets go of them, wherever they stand."""
        if self.is_empty:
            return
        for txid in txids:
            self._remove(txid)
            self._unconfirm(txid)

    def _unconfirm(self, txid: bytes) -> None:
        pending = self._confirmed.pop(txid, None)
        if pending is not None:
            self._confirmed_bytes -= len(pending.encoded)

    def confirm(self, txids: Iterable[bytes]) -> None:
        """A block of the best chain holds them now; the oldest stand aside no longer where there are too many."""
        if not self._waiting:
            return
        for txid in txids:
            pending = self._remove(txid)
            if pending is not None:
                self._confirmed[txid] = pending
                self._confirmed_bytes += len(pending.encoded)
        while len(self._confirmed) > self.transactions_max or self._confirmed_bytes > self.bytes_max:
            self._unconfirm(next(iter(self._confirmed)))

    def put_back(self, pendings: Sequence[Pending]) -> None:
        """No block of the best chain holds these any more: they come before all that wait.

        They had their place before, so neither quota nor room is asked; what is too much leaves at the end, newest
        first, where it was promised least.
        """
        returned = [pending for pending in pendings if pending.txid not in self._waiting]
        if not returned:
            return
        for pending in returned:
            self._unconfirm(pending.txid)
            self._insert(pending)
        ids = {pending.txid for pending in returned}
        behind = {txid: pending for txid, pending in self._waiting.items() if txid not in ids}
        self._waiting = {pending.txid: pending for pending in returned} | behind
        while len(self._waiting) > self.transactions_max or self._byte_count > self.bytes_max:
            self._remove(next(reversed(self._waiting)))

    def expire(self, final_time_ms: int) -> list[bytes]:
        """Drops what no block to come may hold, given the time of the last final one; returns their ids."""
        if not self._waiting or self._first_expiry_ms > final_time_ms:
            return []
        # A block to come is later than this one, by a millisecond at least.
        expired = [txid for txid, pending in self._waiting.items() if pending.expires_ms <= final_time_ms]
        for txid in expired:
            self._remove(txid)
        self._first_expiry_ms = min((item.expires_ms for item in self._waiting.values()), default=0)
        return expired

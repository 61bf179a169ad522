"""Transactions that wait for a block, in order of arrival (SPEC-POOL-1..5).

A transaction is here once its form, chain, window and signature were checked. While a block of the best chain holds it
it stands aside, *confirmed*, so that a reorganisation can put it back and a rival block with the same bytes need not
have them verified again; when that block is final it is forgotten.
"""

from array import array
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence

from fastledger._native.scan import scan_many
from fastledger.chain.admission import LOCAL, Pending
from fastledger.errors import Code, InputError
from fastledger.limits import (
    MEMPOOL_BYTES_MAX,
    MEMPOOL_SOURCE_TRANSACTIONS_MAX,
    MEMPOOL_TRANSACTIONS_MAX,
)
from fastledger.state.registry import Rules


class Mempool:
    """The pool of waiting transactions, bounded by count and bytes, and by a quota for each source but the node."""

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
        self._rules: Rules | None = None
        # Of those that wait: which have no body under ``_rules``.
        self._unfit: set[bytes] = set()

    def __len__(self) -> int:
        return len(self._waiting)

    def __contains__(self, txid: object) -> bool:
        return txid in self._waiting

    def __iter__(self) -> Iterator[bytes]:
        """Yields the ids of the transactions that wait, in order of arrival."""
        return iter(self._waiting)

    @property
    def byte_count(self) -> int:
        """The bytes of all transactions that wait."""
        return self._byte_count

    @property
    def is_empty(self) -> bool:
        """Whether the pool holds no transaction, waiting or confirmed."""
        return not self._waiting and not self._confirmed

    @property
    def room(self) -> int:
        """How many more transactions the pool takes."""
        return max(0, self.transactions_max - len(self._waiting))

    def get(self, txid: bytes) -> Pending | None:
        """Returns a transaction that waits, None where none of this id does."""
        return self._waiting.get(txid)

    def find(self, txid: bytes) -> Pending | None:
        """Returns a transaction that waits or stands in a block that is not final, or None."""
        return self._waiting.get(txid) or self._confirmed.get(txid)

    def add(self, pending: Pending) -> Code:
        """Adds a transaction.

        Returns OK, DUPLICATE, or POOL_FULL where there is no room or its source has used its quota.
        """
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
        if self._rules is not None:
            self._fit(pending, self._rules)
        self._by_source[pending.source] += 1
        self._byte_count += len(pending.encoded)

    def _remove(self, txid: bytes) -> Pending | None:
        pending = self._waiting.pop(txid, None)
        if pending is not None:
            self._unfit.discard(txid)
            self._byte_count -= len(pending.encoded)
            self._by_source[pending.source] -= 1
            if not self._by_source[pending.source]:
                del self._by_source[pending.source]
        return pending

    def fit(self, rules: Rules) -> None:
        """Decodes the bodies of what waits by the rule set of the next block, where they are of another (SPEC-RULE-10).

        What has no body under it keeps its place, for a reorganisation may bring the other set back, and is not taken.
        """
        if self._rules is rules:
            return
        self._rules = rules
        self._unfit.clear()
        for pending in list(self._waiting.values()):
            self._fit(pending, rules)

    def _fit(self, pending: Pending, rules: Rules) -> None:
        if type(pending.body) in rules.by_body:
            return
        scan = scan_many(pending.encoded, array("Q", (0, len(pending.encoded))))
        try:
            body = rules.decode_body(scan.kind(0), scan.body_as_msgpack(0))
        except InputError:
            self._unfit.add(pending.txid)
            return
        self._waiting[pending.txid] = pending._replace(body=body)

    def take(self, count_max: int, bytes_max: int, time_ms: int) -> list[Pending]:
        """Returns the first transactions that may stand in a block of ``time_ms``; they stay in the pool.

        They are at most ``count_max`` and have at most ``bytes_max`` bytes together.
        """
        taken: list[Pending] = []
        byte_count = 0
        for pending in self._waiting.values():
            if len(taken) >= count_max:
                break
            if pending.expires_ms < time_ms or pending.txid in self._unfit:
                continue
            byte_count += len(pending.encoded)
            if byte_count > bytes_max:
                break
            taken.append(pending)
        return taken

    def drop(self, txids: Iterable[bytes]) -> None:
        """Removes transactions from the pool, waiting or confirmed."""
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
        """Sets transactions aside that a block of the best chain holds now.

        Where too many are set aside, the oldest are forgotten.
        """
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
        """Puts transactions back that no block of the best chain holds any more, before all that wait.

        They had their place before, so neither quota nor room is asked. What is too much then is dropped from the
        end, newest first, where it was promised least.
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
        """Drops the transactions that no block to come may hold, and returns their ids.

        ``final_time_ms`` is the time of the last final block, which all blocks to come are later than.
        """
        if not self._waiting or self._first_expiry_ms > final_time_ms:
            return []
        # A block to come is later than this one, by a millisecond at least.
        expired = [txid for txid, pending in self._waiting.items() if pending.expires_ms <= final_time_ms]
        for txid in expired:
            self._remove(txid)
        self._first_expiry_ms = min((item.expires_ms for item in self._waiting.values()), default=0)
        return expired

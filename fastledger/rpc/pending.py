"""The ids of transactions that were answered before they were durable, so that their status can be told."""

from collections import OrderedDict
from collections.abc import Sequence

from fastledger.model.outcome import Outcome

PENDING_MAX = 100_000


class PendingTransactions:
    """A bounded set of ids whose transactions were answered before they were durable; the oldest are dropped."""

    def __init__(self, count_max: int = PENDING_MAX) -> None:
        self._txids: OrderedDict[bytes, None] = OrderedDict()
        self._count_max = count_max

    def note(self, outcomes: Sequence[Outcome]) -> None:
        """Adds the ids of the outcomes that were not rejected."""
        for outcome in outcomes:
            if outcome.status != "rejected":
                self._txids[outcome.txid] = None
        while len(self._txids) > self._count_max:
            self._txids.popitem(last=False)

    def forget(self, txid: bytes) -> None:
        """Drops an id whose transaction stands in the chain by now."""
        self._txids.pop(txid, None)

    def __contains__(self, txid: bytes) -> bool:
        return txid in self._txids

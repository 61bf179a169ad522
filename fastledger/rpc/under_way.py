"""What was answered before it was durable, so that its status can be told until the chain itself tells it."""

from collections import OrderedDict
from collections.abc import Sequence

from fastledger.model.outcome import Outcome

UNDER_WAY_MAX = 100_000


class UnderWay:
    """Ids that were answered before they were durable, so that their status can be told; the newest so many."""

    def __init__(self, count_max: int = UNDER_WAY_MAX) -> None:
        self._txids: OrderedDict[bytes, None] = OrderedDict()
        self._count_max = count_max

    def note(self, outcomes: Sequence[Outcome]) -> None:
        """Remembers those that were taken."""
        for outcome in outcomes:
            if outcome.status != "rejected":
                self._txids[outcome.txid] = None
        while len(self._txids) > self._count_max:
            self._txids.popitem(last=False)

    def forget(self, txid: bytes) -> None:
        """It stands in the chain by now."""
        self._txids.pop(txid, None)

    def __contains__(self, txid: bytes) -> bool:
        return txid in self._txids

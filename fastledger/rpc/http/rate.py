"""Rate limits of each client: token buckets in a bounded table (SPEC-RPC-7)."""

from collections import Counter, OrderedDict
from collections.abc import Callable

from fastledger.errors import RateLimitedError
from fastledger.rpc.http.routes import Caller
from fastledger.rpc.options import RateOptions


class Bucket:
    """A token bucket that fills at ``rate`` tokens a second up to ``burst``; a taker may leave it in debt."""

    __slots__ = ("_at", "_burst", "_rate", "_tokens")

    def __init__(self, rate: float, burst: float, now: float) -> None:
        self._rate = rate
        self._burst = burst
        self._tokens = burst
        self._at = now

    def take(self, count: float, now: float) -> float:
        """Takes ``count`` tokens and returns 0, or takes none and returns the seconds until it would.

        More than a burst at once is let through where the bucket is full, and paid for afterwards: else it could
        never pass.
        """
        self._tokens = min(self._burst, self._tokens + (now - self._at) * self._rate)
        self._at = now
        wanted = min(count, self._burst)
        if self._tokens < wanted:
            return (wanted - self._tokens) / self._rate
        self._tokens -= count
        return 0.0

    def is_full(self, now: float) -> bool:
        """Whether the bucket is full, so that dropping it would change nothing."""
        return self._tokens + (now - self._at) * self._rate >= self._burst


class RateLimits:
    """The token buckets of all clients; a client is its configured name, or the address it calls from."""

    def __init__(self, options: RateOptions, clock: Callable[[], float]) -> None:
        """Takes the limits; ``clock`` gives monotonic seconds."""
        self._options = options
        self._clock = clock
        self._requests: OrderedDict[str, Bucket] = OrderedDict()
        self._transactions: OrderedDict[str, Bucket] = OrderedDict()
        self._probes: OrderedDict[str, Bucket] = OrderedDict()
        self.refused: Counter[str] = Counter()

    def take_request(self, caller: Caller, count: int = 1) -> None:
        """Counts requests of a caller; raises ``RateLimitedError`` where it sent too many."""
        rate = self._options.requests_per_second
        if rate:
            self._take(self._requests, caller, count, rate, self._options.requests_burst, "requests")

    def take_probe(self, caller: Caller) -> None:
        """Counts a request for health or metrics; raises ``RateLimitedError`` where the caller sent too many.

        Probes have tokens of their own: a flood of calls must not blind an alarm.
        """
        options = self._options
        if options.requests_per_second:
            self._take(self._probes, caller, 1, options.probes_per_second, options.probes_burst, "requests")

    def take_transactions(self, caller: Caller, count: int) -> None:
        """Counts transactions of a caller; raises ``RateLimitedError`` where it sent too many."""
        rate = self._options.transactions_per_second
        if rate:
            self._take(
                self._transactions, caller, count, rate, self._options.transactions_burst, "transactions"
            )

    def _take(
        self,
        table: OrderedDict[str, Bucket],
        caller: Caller,
        count: int,
        rate: float,
        burst: float,
        what: str,
    ) -> None:
        now = self._clock()
        key = caller.key
        bucket = table.get(key)
        if bucket is None:
            bucket = table[key] = Bucket(rate, burst, now)
            self._forget_some(table, now)
        else:
            table.move_to_end(key)
        wait_s = bucket.take(count, now)
        if wait_s > 0:
            # Names are configured and few; addresses are not, and count as one.
            self.refused[caller.name if caller.authenticated else "anonymous"] += 1
            raise RateLimitedError(f"too many {what}", retry_after_ms=max(1, int(wait_s * 1000) + 1))

    def _forget_some(self, table: OrderedDict[str, Bucket], now: float) -> None:
        """Keeps the table within its bound: drops full buckets first, then those of the longest quiet clients."""
        while table and next(iter(table.values())).is_full(now) and len(table) > 1:
            table.popitem(last=False)
        while len(table) > self._options.clients_max:
            table.popitem(last=False)

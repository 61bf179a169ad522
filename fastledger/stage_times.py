"""Times of the stages of the hot path: sums that an operator can turn into shares, and their distribution."""

import threading
import time
from bisect import bisect_left
from collections.abc import Iterator
from contextlib import contextmanager

# Upper ends in seconds, from a cached sync to a stalled disk; one more bucket takes the rest.
STAGE_BUCKETS_S = (
    0.0001,
    0.00025,
    0.0005,
    0.001,
    0.0025,
    0.005,
    0.01,
    0.025,
    0.05,
    0.1,
    0.25,
    0.5,
    1.0,
    2.5,
    10.0,
)


class StageTimes:
    """Seconds and calls per stage; safe to use from several threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._seconds: dict[str, float] = {}
        self._calls: dict[str, int] = {}
        self._buckets: dict[str, list[int]] = {}
        self._ended: dict[str, float] = {}

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Adds the time that the block takes, in seconds, to the stage ``name``."""
        begin = time.perf_counter()
        try:
            yield
        finally:
            self.add(name, time.perf_counter() - begin)

    def add(self, name: str, seconds: float) -> None:
        """Adds one call of ``seconds`` to the stage ``name``."""
        with self._lock:
            self._seconds[name] = self._seconds.get(name, 0.0) + seconds
            self._calls[name] = self._calls.get(name, 0) + 1
            self._ended[name] = time.time()
            buckets = self._buckets.get(name)
            if buckets is None:
                buckets = self._buckets[name] = [0] * (len(STAGE_BUCKETS_S) + 1)
            buckets[bisect_left(STAGE_BUCKETS_S, seconds)] += 1

    def snapshot(self) -> dict[str, tuple[float, int]]:
        """Returns stage -> (seconds, calls), both since the start."""
        with self._lock:
            return {name: (self._seconds[name], self._calls[name]) for name in self._seconds}

    def ended(self, name: str) -> float:
        """Returns when the last call of a stage ended, seconds of the Unix epoch; 0 where there was none."""
        return self._ended.get(name, 0.0)

    def histograms(self) -> dict[str, tuple[tuple[int, ...], float]]:
        """Returns stage -> (calls in each bucket of ``STAGE_BUCKETS_S`` and beyond, seconds), since the start."""
        with self._lock:
            return {name: (tuple(counts), self._seconds[name]) for name, counts in self._buckets.items()}

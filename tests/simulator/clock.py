"""Virtual time: one heap of events, and the clocks of the nodes, which are off and drift."""

import heapq
from collections.abc import Callable

START_MS = 1_800_000_000_000  # the true time at which every run begins
MILLION = 1_000_000


class Schedule:
    """Events in order of their time; those of the same millisecond in the order in which they were made."""

    def __init__(self) -> None:
        self.now_ms = 0
        self.executed = 0
        self._heap: list[tuple[int, int, Callable[[], None]]] = []
        self._made = 0

    def at(self, time_ms: int, act: Callable[[], None]) -> None:
        """Calls ``act`` at a true time; one that has passed means now, after what is due already."""
        self._made += 1
        heapq.heappush(self._heap, (max(time_ms, self.now_ms), self._made, act))

    def after(self, delay_ms: int, act: Callable[[], None]) -> None:
        """Calls ``act`` when ``delay_ms`` have passed."""
        self.at(self.now_ms + delay_ms, act)

    def run_until(self, end_ms: int) -> None:
        """Executes everything due up to and with ``end_ms``; the time is ``end_ms`` on return."""
        heap = self._heap
        while heap and heap[0][0] <= end_ms:
            self.now_ms, _, act = heapq.heappop(heap)
            self.executed += 1
            act()
        self.now_ms = end_ms


class NodeClock:
    """A node's clock: ``skew_ms`` off at the start and ``drift_ppm`` too fast; it never runs backwards."""

    def __init__(self, schedule: Schedule, *, skew_ms: int = 0, drift_ppm: int = 0) -> None:
        self._schedule = schedule
        self.skew_ms = skew_ms
        self.drift_ppm = drift_ppm
        self._last_ms = 0

    def __call__(self) -> int:
        now_ms = self._schedule.now_ms
        reading = START_MS + now_ms + self.skew_ms + now_ms * self.drift_ppm // MILLION
        self._last_ms = max(self._last_ms, reading)
        return self._last_ms

    def true_delay(self, reading_ms: int) -> int:
        """How long it takes until this clock shows ``reading_ms``; at least 1 ms."""
        ahead = reading_ms - self()
        return max(1, ahead * MILLION // (MILLION + self.drift_ppm) + 1)

"""Measuring: contestants take turns, their results must agree, and the clock is found in the same run.

Figures are nanoseconds an item over the rounds, least, median and most. Cycles come from the clock rate right
before each turn, found by a chain of multiplications that wait for each other, 3 cycles each: neither
frequency scaling nor a nominal rate enters. Inputs are seeded and made beforehand; result objects are made
inside the measured part.
"""

import platform
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from statistics import median
from time import perf_counter_ns
from typing import TypedDict

from fastledger._native.hashing import multiply_chain

SEED = 20_260_901

_TURN_NS_MIN = 500_000  # shorter runs are repeated within a turn: the first ones find cold caches
_REPEATS_MAX = 500
_CHAIN_MULTIPLICATIONS = 60_000
_CYCLES_EACH = 3


class Spread(TypedDict):
    """The least, median and greatest value over the rounds of one measurement."""

    min: float
    median: float
    max: float


class Row(TypedDict):
    """One contestant at one task.

    ``ratio`` is how many times as fast as the first contestant it is, the median over the rounds. ``checked`` begins
    the SHA-256 of the result, on which all contestants agreed.
    """

    task: str
    contestant: str
    items: int
    unit: str
    ns: Spread
    cycles: float
    ratio: float
    rounds: int
    checked: str


@dataclass(frozen=True, slots=True)
class Contestant:
    """An implementation that runs a task: ``prepare`` before its turn, unmeasured, then ``run`` over ``items``
    items.

    A slow peer may do fewer items than the others, and where its result then differs it is not ``compared``.
    """

    name: str
    run: Callable[[], bytes]
    items: int
    prepare: Callable[[], object] = lambda: None
    compared: bool = True


def spread(values: Sequence[float]) -> Spread:
    """Returns the least, median and greatest of the values."""
    return {"min": min(values), "median": median(values), "max": max(values)}


def clock_ghz() -> float:
    """Measures the clock rate of this moment in GHz.

    It is the best of three short probes, since an interrupt only makes the clock look slower.
    """
    best = 0.0
    for _ in range(3):
        start = perf_counter_ns()
        multiply_chain(_CHAIN_MULTIPLICATIONS)
        best = max(best, _CYCLES_EACH * _CHAIN_MULTIPLICATIONS / (perf_counter_ns() - start))
    return best


@dataclass(slots=True)
class _Turns:
    """The turns that one contestant has taken so far, in nanoseconds and cycles an item."""

    contestant: Contestant
    repeats: int = 1
    ns: list[float] = field(default_factory=list)
    cycles: list[float] = field(default_factory=list)

    def take(self) -> tuple[bytes, float]:
        """Takes one turn; returns its result, and the nanoseconds of one run."""
        self.contestant.prepare()
        ghz = clock_ghz()
        start = perf_counter_ns()
        for _ in range(self.repeats):
            result = self.contestant.run()
        spent = (perf_counter_ns() - start) / self.repeats
        self.ns.append(spent / self.contestant.items)
        self.cycles.append(spent * ghz / self.contestant.items)
        return result, spent

    def warm_up(self) -> bytes:
        """Takes a turn that does not count, and sets from its length how many runs fill a turn."""
        result, spent = self.take()
        self.repeats = max(1, min(_REPEATS_MAX, int(_TURN_NS_MIN / spent)))
        self.ns.clear()
        self.cycles.clear()
        return result


def compete(task: str, unit: str, contestants: Sequence[Contestant], rounds: int) -> list[Row]:
    """Runs all contestants in every round, in turn, compares what they computed, and returns a row for each.

    Raises:
        RuntimeError: two results differ.
    """
    everyone = [_Turns(contestant) for contestant in contestants]
    expected: bytes | None = None
    for round_index in range(rounds + 1):
        for turns in everyone:
            result = turns.warm_up() if round_index == 0 else turns.take()[0]
            if turns.contestant.compared:
                expected = result if expected is None else expected
                if result != expected:
                    raise RuntimeError(
                        f"{task}: {turns.contestant.name} disagrees with {contestants[0].name}"
                    )
    checked = sha256(expected or b"").hexdigest()[:16]
    return [
        {
            "task": task,
            "contestant": turns.contestant.name,
            "items": turns.contestant.items,
            "unit": unit,
            "ns": spread(turns.ns),
            "cycles": median(turns.cycles),
            "ratio": median(first / own for first, own in zip(everyone[0].ns, turns.ns, strict=True)),
            "rounds": rounds,
            "checked": checked,
        }
        for turns in everyone
    ]


def cpu_name() -> str:
    """Returns the name of the CPU's model as Linux tells it, or the machine's type."""
    try:
        text = Path("/proc/cpuinfo").read_text()
    except OSError:
        return platform.processor() or platform.machine()
    names = (line.split(":", 1)[1].strip() for line in text.splitlines() if line.startswith("model name"))
    return next(names, platform.machine())

"""What goes wrong in a run: each kind of fault strikes at random times of its own until the faults' time is over."""

import random
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING

from simulator.options import MINUTE_MS, SECOND_MS

if TYPE_CHECKING:
    from simulator.node import Node
    from simulator.run import Run

HEALING_MS = 5 * MINUTE_MS  # between two partitions: time to dial again and to fetch what was missed
CRASH_OPERATIONS_MAX = 60
FLIP_TRIES = 5


class Storm:
    """Draws the faults of a run and lets them strike."""

    def __init__(self, run: "Run") -> None:
        self._run = run
        self._heals: list[Callable[[], None]] = []
        self.struck: dict[str, int] = {}

    def begin(self) -> None:
        """Arms every fault that the options have."""
        options = self._run.options
        for kind, every_ms, strike in (
            ("break", options.break_every_ms, self._break),
            ("double", 5 * MINUTE_MS if options.double_links else 0, self._double),
            ("kill", options.kill_every_ms, self._kill),
            ("power", options.power_cut_every_ms, self._power_cut),
            ("crash", options.crash_in_write_every_ms, self._crash_in_write),
            ("sync", options.failed_sync_every_ms, self._fail_sync),
            ("full", options.full_every_ms, self._fill),
            ("flip", options.flip_every_ms, self._flip),
            ("hash", 8 * MINUTE_MS if options.hash_power_changes else 0, self._change_power),
        ):
            if every_ms:
                rng = self._run.source(f"fault-{kind}")
                self._again(kind, every_ms, rng, strike)
        if options.partition_every_ms:
            rng = self._run.source("fault-partition")
            self._run.schedule.after(_wait(rng, options.partition_every_ms), partial(self._part, rng))
        if options.all_cut:
            rng = self._run.source("fault-all")
            self._run.schedule.at(rng.randint(0, options.faults_ms), self._cut_all)

    def end(self) -> None:
        """Heals what is still broken."""
        for heal in self._heals:
            heal()
        self._heals.clear()
        for node in self._run.nodes:
            node.disk.crash_in = node.disk.sync_fails_in = None
            node.disk.full = False

    def _again(
        self, kind: str, every_ms: int, rng: random.Random, strike: Callable[[random.Random], None]
    ) -> None:
        def act() -> None:
            if self._run.calm:
                return
            self.struck[kind] = self.struck.get(kind, 0) + 1
            strike(rng)
            self._again(kind, every_ms, rng, strike)

        self._run.schedule.after(_wait(rng, every_ms), act)

    def _victim(self, rng: random.Random) -> "Node":
        return rng.choice(self._run.nodes)

    # Links.

    def _break(self, rng: random.Random) -> None:
        links = sorted(self._run.network.links)
        if links:
            number = rng.choice(links)
            self._run.trace(f"link {number} breaks")
            self._run.network.break_link(number)

    def _double(self, rng: random.Random) -> None:
        """A second connection of two that may have one: the other end must keep one, or both, and no more."""
        one, other = rng.sample(self._run.nodes, 2)
        if one.running:
            self._run.trace(f"{one.name} dials {other.name} once more")
            self._run.network.dial(one, other.address)

    def _part(self, rng: random.Random) -> None:
        run, options = self._run, self._run.options
        if run.calm:
            return
        everyone = list(run.nodes)
        rng.shuffle(everyone)
        size = rng.randint(1, len(everyone) - 1)
        here, there = everyone[:size], everyone[size:]
        kind = rng.choice(options.partition_kinds)
        length_ms = rng.randint(options.partition_ms_max // 4, options.partition_ms_max)
        run.trace(f"partition ({kind}) of {[node.name for node in here]} for {length_ms} ms")
        self.struck["partition"] = self.struck.get("partition", 0) + 1
        pairs = [(one, other) for one in here for other in there]
        if kind != "one-way":
            pairs += [(other, one) for one, other in pairs]
        stagger_ms = 5 * SECOND_MS if options.swizzle else 0
        for one, other in pairs:
            heal = _Once(partial(run.network.unsilence, one, other))
            self._heals.append(heal)
            run.schedule.after(rng.randint(0, stagger_ms), partial(self._silence, one, other, heal))
            run.schedule.after(length_ms + rng.randint(0, stagger_ms), heal)
        if kind == "cut":
            for link in list(run.network.links.values()):
                if (link.ends[0] in here) != (link.ends[1] in here):
                    run.network.break_link(link.number)
        pause_ms = length_ms + stagger_ms + HEALING_MS + _wait(rng, options.partition_every_ms)
        run.schedule.after(pause_ms, partial(self._part, rng))

    def _silence(self, one: "Node", other: "Node", heal: "_Once") -> None:
        if not heal.done:
            heal.armed = True
            self._run.network.silence(one, other)

    # Machines.

    def _kill(self, rng: random.Random) -> None:
        self._victim(rng).kill()

    def _power_cut(self, rng: random.Random) -> None:
        self._victim(rng).power_cut()

    def _cut_all(self) -> None:
        self.struck["all"] = 1
        self._run.trace("the power fails everywhere")
        for node in self._run.nodes:
            node.power_cut()

    # Disks.

    def _crash_in_write(self, rng: random.Random) -> None:
        self._victim(rng).disk.crash_in = rng.randint(1, CRASH_OPERATIONS_MAX)

    def _fail_sync(self, rng: random.Random) -> None:
        self._victim(rng).disk.sync_fails_in = rng.randint(0, 3)

    def _fill(self, rng: random.Random) -> None:
        disk = self._victim(rng).disk
        disk.full = True
        self._run.schedule.after(rng.randint(10 * SECOND_MS, 3 * MINUTE_MS), partial(_empty, disk))

    def _flip(self, rng: random.Random) -> None:
        """A bit of a minority's disks: what all nodes lose, nobody can give back."""
        minority = (len(self._run.nodes) - 1) // 2
        if not minority:
            return
        node = rng.choice(self._run.nodes[:minority])
        names = node.disk.files_named("")
        for _ in range(FLIP_TRIES):
            name = rng.choice(names) if names else ""
            if name and self._flip_in(node, name, rng):
                return

    def _flip_in(self, node: "Node", name: str, rng: random.Random) -> bool:
        data = node.disk.contents(name).rstrip(b"\0")
        if not data:
            return False
        offset, bit = rng.randrange(len(data)), rng.randrange(8)
        self._run.trace(f"a bit flips in {name} of {node.name} at {offset}")
        node.disk.flip_bit(name, offset, bit)
        self._run.flipped(node)
        return True

    # Power.

    def _change_power(self, rng: random.Random) -> None:
        self._run.hashes_per_ms = self._run.hashes_per_ms_mean * rng.uniform(0.5, 1.5)
        for node in self._run.nodes:
            node.power_changed()


class _Once:
    """Undoes a silence that was begun, once."""

    def __init__(self, undo: Callable[[], None]) -> None:
        self._undo = undo
        self.armed = False
        self.done = False

    def __call__(self) -> None:
        if not self.done:
            self.done = True
            if self.armed:
                self._undo()


def _wait(rng: random.Random, mean_ms: int) -> int:
    return int(rng.expovariate(1 / mean_ms)) + 1


def _empty(disk: object) -> None:
    disk.full = False  # type: ignore[attr-defined]

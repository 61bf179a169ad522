"""What a run is made of: drawn from its seed alone, printed whole, so that a run can be read and repeated.

A swarm: each seed flips a coin for every kind of fault and draws how often it strikes, so that some runs have one
fault and much of it, others everything at once, and some none. The draw keeps one relation (``finality_depth``):
finality by depth is a matter of probability, and a partition longer than it rightly parts the nodes.
"""

import random
from dataclasses import asdict, dataclass, fields, replace
from typing import Any, Self

from fastledger.limits import ACTIVATION_NOTICE_BLOCKS_MIN

MINUTE_MS = 60_000
SECOND_MS = 1_000

HOSTILE_KINDS = (
    "wrong-chain",
    "wrong-root",
    "bad-work",
    "bad-signature",
    "wrong-hints",
    "bad-copies",
    "withheld-data",
    "future-time",
    "endless-headers",
    "lying-inventory",
    "huge-frames",
    "dribble",
    "eclipse",
    "garbage",
    "echo",
)
# Miners that are whole nodes: two cheat within the protocol and gain nothing, two make blocks that break the rules.
ROGUE_KINDS = ("withholding", "time-warping", "double-executing", "forging")


@dataclass(frozen=True)
class Options:
    """Everything that a run depends on, beside the code. Times in ms of virtual time; a rate of 0 is: never."""

    seed: int = 0
    nodes: int = 4
    # The chain.
    spacing_ms: int = MINUTE_MS
    finality_depth: int = 16
    window_blocks: int = 72
    work_hashes: int = 8  # a block's work at the beginning
    rewards: bool = False
    # The run.
    faults_ms: int = 60 * MINUTE_MS
    calm_power: int = 1  # times the hash power once faults stop: what is to become final does so sooner
    rest_ms: int = 0  # how long it may take to come to rest once faults stop; 0: as docs/simulator.md says
    hash_power_changes: bool = False
    # Clocks.
    skew_ms_max: int = 0
    drift_ppm_max: int = 0
    # Network.
    delay_ms_max: int = 100
    piece_bytes_max: int = 0
    slow_share: float = 0.0
    slow_ms_max: int = 0
    break_every_ms: int = 0
    double_links: bool = False
    partition_every_ms: int = 0
    partition_ms_max: int = 0
    partition_kinds: tuple[str, ...] = ()
    swizzle: bool = False  # links of a partition fall silent, and come back, one by one
    # Machines.
    kill_every_ms: int = 0
    power_cut_every_ms: int = 0
    down_ms_max: int = 2 * MINUTE_MS
    all_cut: bool = False  # once in the run, the power of all nodes fails at one moment
    latecomers: int = 0
    # Disks.
    crash_in_write_every_ms: int = 0
    failed_sync_every_ms: int = 0
    full_every_ms: int = 0
    flip_every_ms: int = 0
    checkpoint_transactions: int = 40
    segment_bytes: int = 256 * 1024
    # Users.
    transactions: int = 60
    conflict_share: float = 0.2
    short_window_share: float = 0.0
    retries: bool = True  # users send again what is not final; without, what one node took has to get there
    # Others.
    hostile: tuple[str, ...] = ()
    rogue: str = ""
    stale_templates: bool = False
    # Releases: so many nodes begin without rule set 2, which the authority's vote activates at a height (0: nobody
    # votes), and are upgraded one by one until the faults stop; ``cancels``: the authority thinks better of it.
    older: int = 0
    activation_height: int = 0
    cancels: bool = False

    @classmethod
    def draw(cls, seed: int) -> Self:
        """The options of a seed."""
        found: Self = _draw(cls, random.Random(f"options/{seed}"))(seed)
        return found

    def with_changes(self, **changes: Any) -> Self:
        """A copy in which some options have other values; for tests that pin one down."""
        return replace(self, **changes)

    @classmethod
    def parse(cls, name: str, text: str) -> Any:
        """A field's value from the command line."""
        default: Any = next(item.default for item in fields(cls) if item.name == name)
        if isinstance(default, bool):
            return text.lower() in ("1", "true", "yes")
        if isinstance(default, tuple):
            return tuple(part for part in text.split(",") if part)
        return type(default)(text)

    def lines(self) -> list[str]:
        """``name = value``, what is not as by default first marked with a star."""
        plain = asdict(type(self)())
        return [
            f"{'*' if value != plain[name] else ' '} {name} = {value!r}"
            for name, value in asdict(self).items()
        ]

    @property
    def blocks_apart(self) -> float:
        """How many blocks the weaker half of the network finds on average while it is apart from the other.

        For as long as a partition lasts and its healing takes: dialling again, finding a silent link dead, two minutes
        at most, and as long for each half's fetching. What breaks single links or stops machines counts as one such
        healing.
        """
        healing_ms = (4 if self.partition_every_ms else 2) * MINUTE_MS
        share = 0.5 if self.window_blocks >= 72 else 0.75  # a short window soon makes up for missing power
        most_power = 1.5 if self.hash_power_changes else 1.0
        return (self.partition_ms_max + healing_ms) * share * most_power / self.spacing_ms

    @property
    def depth_needed(self) -> int:
        """The least finality depth that outlasts this run's faults: 9 + 3.5 x the mean of :attr:`blocks_apart`.

        For a Poisson variable of mean m, P(X >= 9 + 3.5m) is below 1e-9 for every m: no divergence is to be blamed on
        chance in fewer runs than anybody will make. A miner who withholds adds six blocks: his private branch wins from
        so far behind with 0.18^15.
        """
        return 9 + int(3.5 * self.blocks_apart + 1) + (6 if self.rogue else 0)


_DEADLY = (
    "kill_every_ms",
    "power_cut_every_ms",
    "all_cut",
    "crash_in_write_every_ms",
    "failed_sync_every_ms",
    "full_every_ms",
    "flip_every_ms",
    "latecomers",
)


class _draw:
    """Draws the fields group by group; each group has a source of its own, so that adding a group moves no other."""

    def __init__(self, cls: type[Any], rng: random.Random) -> None:
        self._cls = cls
        self._salt = rng.getrandbits(64)
        self._source = rng

    def __call__(self, seed: int) -> Any:
        found: dict[str, Any] = {"seed": seed}
        for group in (_chain, _clocks, _network, _partitions, _machines, _disks, _users, _others):
            found.update(group(random.Random(f"{self._salt}/{group.__name__}")))
        # A pool is memory: what a dead node alone had taken is gone, and nobody promised otherwise.
        found["retries"] = found["retries"] or any(found[name] for name in _DEADLY)
        options = self._cls(**found)
        options = replace(options, finality_depth=options.depth_needed)
        return _releases(options, random.Random(f"{self._salt}/_releases"))


def _some(rng: random.Random, chance: float = 0.5) -> bool:
    return rng.random() < chance


def _rate(rng: random.Random, least_ms: int, most_ms: int, chance: float = 0.4) -> int:
    return rng.randint(least_ms, most_ms) if _some(rng, chance) else 0


def _chain(rng: random.Random) -> dict[str, Any]:
    return {
        "nodes": rng.choice((3,) * 13 + (4,) * 4 + (5, 6, 7)),
        "spacing_ms": rng.choice((30, 60, 120)) * SECOND_MS,
        "window_blocks": rng.choice((24, 72, 144)),
        "work_hashes": rng.choice((2, 8, 64)),
        "rewards": _some(rng),
        "faults_ms": rng.randint(*((3, 10) if _some(rng, 0.75) else (10, 45))) * MINUTE_MS,
        "hash_power_changes": _some(rng, 0.3),
        "calm_power": 4 if _some(rng, 0.9) else 1,
    }


def _clocks(rng: random.Random) -> dict[str, Any]:
    return {
        "skew_ms_max": rng.choice((500, 20_000, 50_000)) if _some(rng) else 0,
        "drift_ppm_max": rng.choice((50, 1_000)) if _some(rng) else 0,
    }


def _network(rng: random.Random) -> dict[str, Any]:
    return {
        "delay_ms_max": rng.choice((20, 200, 2_000)),
        "piece_bytes_max": rng.choice((400, 4_000)) if _some(rng, 0.3) else 0,
        "slow_share": rng.choice((0.01, 0.1)) if _some(rng, 0.3) else 0.0,
        "slow_ms_max": rng.choice((1_000, 8_000)),
        "break_every_ms": _rate(rng, 10 * SECOND_MS, 5 * MINUTE_MS),
        "double_links": _some(rng, 0.2),
    }


def _partitions(rng: random.Random) -> dict[str, Any]:
    if not _some(rng):
        return {}
    kinds = [kind for kind in ("cut", "silent", "one-way") if _some(rng)]
    return {
        "partition_every_ms": rng.randint(1, 5) * MINUTE_MS,
        "partition_ms_max": rng.randint(1, 6) * MINUTE_MS if _some(rng, 0.8) else 12 * MINUTE_MS,
        "partition_kinds": tuple(kinds or ["cut"]),
        "swizzle": _some(rng, 0.3),
    }


def _machines(rng: random.Random) -> dict[str, Any]:
    return {
        "kill_every_ms": _rate(rng, MINUTE_MS // 2, 6 * MINUTE_MS),
        "power_cut_every_ms": _rate(rng, MINUTE_MS // 2, 6 * MINUTE_MS),
        "down_ms_max": rng.choice((10 * SECOND_MS, MINUTE_MS, 4 * MINUTE_MS)),
        "all_cut": _some(rng, 0.2),
        "latecomers": int(_some(rng, 0.2)),
    }


def _disks(rng: random.Random) -> dict[str, Any]:
    return {
        "crash_in_write_every_ms": _rate(rng, MINUTE_MS // 2, 6 * MINUTE_MS),
        "failed_sync_every_ms": _rate(rng, MINUTE_MS, 8 * MINUTE_MS, 0.25),
        "full_every_ms": _rate(rng, MINUTE_MS, 8 * MINUTE_MS, 0.25),
        "flip_every_ms": _rate(rng, 2 * MINUTE_MS, 15 * MINUTE_MS, 0.2),
        "checkpoint_transactions": rng.choice((1, 40, 100_000)),
    }


def _users(rng: random.Random) -> dict[str, Any]:
    return {
        "transactions": rng.choice((8, 20, 60)),
        "conflict_share": rng.choice((0.0, 0.2, 0.6)),
        "short_window_share": 0.2 if _some(rng, 0.3) else 0.0,
        "retries": _some(rng),
    }


def _releases(options: Options, rng: random.Random) -> Options:
    """Runs through an activation are long: the vote has to come in time, and is final before it takes effect."""
    if not _some(rng, 0.25):
        return options
    height = ACTIVATION_NOTICE_BLOCKS_MIN + options.finality_depth + rng.randint(4, 8)
    return replace(
        options,
        older=rng.randint(1, options.nodes),
        activation_height=height,
        cancels=_some(rng, 0.2),
        faults_ms=(height + rng.randint(4, 10)) * options.spacing_ms,
        retries=True,
    )


def _others(rng: random.Random) -> dict[str, Any]:
    hostile = rng.sample(HOSTILE_KINDS, rng.randint(1, 2)) if _some(rng, 0.4) else []
    return {
        "hostile": tuple(hostile),
        "rogue": rng.choice(ROGUE_KINDS) if _some(rng, 0.2) else "",
        "stale_templates": _some(rng),
    }

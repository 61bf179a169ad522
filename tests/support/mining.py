"""Miners at header level: the real rules of the pow engine and the real tree, with the hashing left to chance.

Time is simulated, one block every ``spacing_ms`` or so: finding a block takes an exponentially distributed time whose
rate is the miner's hashes a millisecond times the probability that its target gives one. No delays: what is published
is seen by all honest miners at once, and they keep to the first of equals.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from random import Random

from fastledger.consensus.engine import EngineTip
from fastledger.consensus.pow import PowEngine
from fastledger.consensus.tree import BlockTree, TreeEntry
from fastledger.crypto.work import bits_to_target
from fastledger.limits import FUTURE_MS_MAX
from fastledger.model.block import ZERO32, Header, HeaderBody, SealedHeader
from fastledger.model.genesis import Genesis, WorkParameters

HONEST, HOSTILE = bytes([2]) + bytes(32), bytes([3]) + bytes(32)
START_MS = 1_800_000_000_000
PARAMETERS = WorkParameters(initial_bits=0x1D00FFFF)

# On a block that is as far ahead as may be, the next one is a millisecond further and waits for it.
HELD_MS_MAX = 20

Stamp = Callable[[int, EngineTip], int]


def in_time(now_ms: int, parent: EngineTip) -> int:
    """What an honest miner writes."""
    return max(now_ms, parent.time_ms + 1)


def ahead(now_ms: int, parent: EngineTip) -> int:
    """The latest time that others take."""
    return max(now_ms + FUTURE_MS_MAX, parent.time_ms + 1)


def behind(_now_ms: int, parent: EngineTip) -> int:
    """The earliest time that the rules allow."""
    return parent.time_ms + 1


def in_turns(now_ms: int, parent: EngineTip) -> int:
    """Both ends of what the rules allow, by turns."""
    return (ahead if parent.height % 2 else behind)(now_ms, parent)


class UnhashedPow(PowEngine):
    """The pow engine for headers whose nonce nobody searched."""

    def check_hash(self, header: Header, height: int) -> None:
        """Any hash will do."""


def make_genesis(parameters: WorkParameters = PARAMETERS) -> Genesis:
    """A chain of one honest and one hostile member."""
    return Genesis(START_MS, (HONEST, HOSTILE), (), "pow", bytes(16), parameters)


def header_on(
    parent: EngineTip, time_ms: int, bits: int, *, proposer: bytes = HONEST, number: int = 0
) -> SealedHeader:
    """A header without transactions or seal; ``number`` tells siblings apart."""
    body = HeaderBody(parent.height + 1, time_ms, *[ZERO32] * 4, proposer, ZERO32, number)
    return SealedHeader(
        Header(parent.block_id, number.to_bytes(32, "big"), time_ms // 1000, bits), body, b"", 0
    )


def make_tree(engine: PowEngine, genesis: Genesis, entries_max: int = 10_000) -> BlockTree:
    """A tree of block 0 alone."""
    sealed = genesis.block(ZERO32).sealed_header
    tip = engine.tip(sealed.header, sealed.body, sealed.seal, None)
    return BlockTree(engine, tip, sealed, entries_max=entries_max)


@dataclass
class Race:
    """Honest miners against a hostile one of ``share`` of all hashes, who may withhold and write any time."""

    share: float
    seed: int = 1
    withholds: bool = False
    stamp: Stamp = in_time
    hashes_ms: float = 2**32 / 10_000
    parameters: WorkParameters = PARAMETERS
    now_ms: float = START_MS
    counts: dict[bytes, int] = field(default_factory=lambda: {HONEST: 0, HOSTILE: 0})

    def __post_init__(self) -> None:
        self.random = Random(self.seed)
        genesis = make_genesis(self.parameters)
        self.engine = UnhashedPow(genesis)
        self.tree = make_tree(self.engine, genesis)
        self.found = 0
        # The hostile miner's own blocks above ``base``, and how many of them are published.
        self.base: TreeEntry = self.tree.root
        self.branch: list[tuple[SealedHeader, EngineTip]] = []
        self.published = 0

    @property
    def best(self) -> TreeEntry:
        return self.tree.best_stored()

    def publish(self, sealed: SealedHeader) -> None:
        assert self.engine.ready_ms(sealed.body) <= self.now_ms + HELD_MS_MAX
        self.tree.mark_stored(self.tree.add(sealed).block_id)

    def run(self, blocks: int) -> None:
        """Until so many blocks were found; afterwards ``counts`` tells whose blocks the best chain holds."""
        for _ in range(blocks):
            self.step()
            if self.best.height - self.tree.root.height > 400:
                self.settle(self.best.height - 200)
        self.settle(self.best.height)

    def settle(self, height: int) -> None:
        """Counts the best chain up to a height and makes it the tree's root."""
        final = entry = self.tree.on_path(self.best, height)
        while entry is not self.tree.root:
            self.counts[entry.body.proposer] += 1
            assert entry.parent is not None
            entry = entry.parent
        self.tree.finalise(final)

    def step(self) -> None:
        """The next block that anybody finds."""
        own = self.branch[-1][1] if self.branch else self.base.tip
        honest = self.best.tip
        rates = [
            hashes * bits_to_target(self.engine.next_bits(parent)) / 2**256
            for hashes, parent in (
                (self.hashes_ms * self.share, own),
                (self.hashes_ms * (1 - self.share), honest),
            )
        ]
        self.now_ms += self.random.expovariate(sum(rates))
        self.found += 1
        if self.random.random() * sum(rates) < rates[0]:
            self.hostile_found(self.make(own, self.stamp, HOSTILE))
        else:
            self.publish(self.make(honest, in_time, HONEST))
            self.honest_found()

    def make(self, parent: EngineTip, stamp: Stamp, proposer: bytes) -> SealedHeader:
        bits = self.engine.next_bits(parent)
        return header_on(parent, stamp(int(self.now_ms), parent), bits, proposer=proposer, number=self.found)

    def hostile_found(self, sealed: SealedHeader) -> None:
        parent = self.branch[-1][1] if self.branch else self.base.tip
        self.branch.append((sealed, self.engine.tip(sealed.header, sealed.body, b"", parent)))
        raced = self.best.height > self.base.height
        if not self.withholds or (raced and self.lead == 1):
            self.publish_branch()

    def honest_found(self) -> None:
        if self.lead < 0:
            self.adopt()
        elif self.branch and self.lead <= 1:
            self.publish_branch()

    @property
    def lead(self) -> int:
        return self.base.height + len(self.branch) - self.best.height

    def publish_branch(self) -> None:
        for sealed, _tip in self.branch[self.published :]:
            self.publish(sealed)
        self.published = len(self.branch)
        entry = self.tree.get(self.branch[-1][1].block_id)
        if entry is self.best or (entry is not None and entry.work < self.best.work):
            self.adopt()

    def adopt(self) -> None:
        self.base, self.branch, self.published = self.best, [], 0

    @property
    def hostile_part(self) -> float:
        """The hostile miner's part of the chain's blocks, and so of its rewards."""
        return self.counts[HOSTILE] / sum(self.counts.values())

    @property
    def spacing(self) -> float:
        """Simulated time a block of the chain, in spacings."""
        return (self.now_ms - START_MS) / sum(self.counts.values()) / self.parameters.spacing_ms

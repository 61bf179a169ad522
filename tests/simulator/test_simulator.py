"""The simulator as a whole: a short swarm, runs that repeat themselves, and bugs planted for each checker to find."""

import os
from collections.abc import Callable
from dataclasses import replace
from functools import cache

import pytest

from fastledger.chain import admission
from fastledger.chain.admission import Pending
from fastledger.chain.execution import executor
from fastledger.chain.execution.in_force import RulesInForce
from fastledger.chain.execution.store import ChainStore, Overlay
from fastledger.chain.forks import chain as forks
from fastledger.chain.forks.events import BlockConnected, ChainEvent
from fastledger.chain.forks.mempool import Mempool
from fastledger.consensus.engine import EngineAction, EngineEvent, FinaliseBlock, TipMoved
from fastledger.consensus.pow import PowEngine
from fastledger.consensus.tree import BlockTree, TreeEntry
from fastledger.errors import Code
from fastledger.peers.fetch import BlockFetcher
from fastledger.peers.network import PeerNetwork
from fastledger.peers.scores import ScoreBoard
from fastledger.state.context import Context
from fastledger.state.registry import Rules
from fastledger.storage.journal import ForkJournal
from fastledger.storage.log import SegmentLog
from fastledger.subjects.catalogue import REGISTRY
from fastledger.subjects.consent import CONSENTS
from fastledger.subjects.folder import FOLDERS, Folder, FolderOpen
from fastledger.subjects.identity import actor
from simulator.checkers import CHECKERS
from simulator.hostile import KINDS
from simulator.node import Node
from simulator.options import HOSTILE_KINDS, MINUTE_MS, ROGUE_KINDS, SECOND_MS, Options
from simulator.run import Report, Run

SWARM_SEEDS = int(os.environ.get("FASTLEDGER_SIMULATE_SEEDS", "8"))

# Small, quick, and with enough going on; a test changes what it is about.
CALM = Options(
    seed=1,
    nodes=3,
    finality_depth=14,
    faults_ms=8 * MINUTE_MS,
    transactions=10,
    calm_power=4,
    conflict_share=0.3,
)
# Blocks found so close together that branches come about by themselves.
CROWDED = CALM.with_changes(delay_ms_max=8_000, spacing_ms=20 * SECOND_MS)
Patch = pytest.MonkeyPatch


def run(options: Options) -> Report:
    return Run(options).execute()


@cache
def clean(options: Options) -> Report:
    """The run without a planted bug."""
    return run(options)


def test_a_seed_gives_the_same_run_every_time() -> None:
    options = Options.draw(5).with_changes(faults_ms=10 * MINUTE_MS, transactions=15)
    first, second = run(options), run(options)
    assert first.failure == ""
    assert (first.digest, first.events, first.heights) == (second.digest, second.events, second.heights)
    assert run(options.with_changes(seed=6)).digest != first.digest


@pytest.mark.parametrize("seed", range(SWARM_SEEDS))
def test_a_short_swarm(seed: int) -> None:
    report = run(Options.draw(seed))
    assert not report.failure, report.text()


@pytest.mark.parametrize("kind", HOSTILE_KINDS)
def test_a_liar_alone_does_no_harm(kind: str) -> None:
    report = run(CALM.with_changes(hostile=(kind,), seed=7))
    assert not report.failure, report.text()
    assert report.bans >= CALM.nodes or not KINDS[kind].provable


@pytest.mark.parametrize("kind", ROGUE_KINDS)
def test_a_miner_who_cheats_within_the_rules_does_no_harm(kind: str) -> None:
    report = run(CALM.with_changes(rogue=kind, finality_depth=20))
    assert not report.failure, report.text()


# Planted bugs: each makes a node do wrong what its name says; the checker that it is listed with has to find it.


def finality_too_soon(patch: Patch) -> None:
    """The depth is ignored: what is connected is final."""

    def handle(self: PowEngine, event: EngineEvent) -> tuple[EngineAction, ...]:
        if isinstance(event, TipMoved):
            return (FinaliseBlock(event.tip.height),)
        return real(self, event)

    real = PowEngine.handle
    patch.setattr(PowEngine, "handle", handle)


def journal_not_synced(patch: Patch) -> None:
    """Blocks are told of before they are on the device."""
    patch.setattr(ForkJournal, "sync", lambda self: None)


def log_not_synced(patch: Patch) -> None:
    """Final blocks are acknowledged before they are on the device."""
    patch.setattr(SegmentLog, "sync", lambda self: self.end)


def durable_when_ordered(patch: Patch) -> None:
    """Users are told that a transaction is durable when it is only in a block."""

    def observe(self: Node, event: ChainEvent) -> None:
        if isinstance(event, BlockConnected):
            self.run.acknowledged(self, event.height, list(event.txids))
        real(self, event)

    real = Node._observe
    patch.setattr(Node, "_observe", observe)


def state_forgets_a_consent(patch: Patch) -> None:
    """What becomes final is not all of what was executed."""

    def add(self: Overlay, layer: object) -> None:
        real(self, layer)
        for key in [key for key in self.state if key.startswith(CONSENTS.prefix)]:
            del self.state[key]

    real = Overlay.add
    patch.setattr(Overlay, "add", add)


def executed_twice(patch: Patch) -> None:
    """Nobody looks whether the chain has a transaction already."""
    patch.setattr(ChainStore, "seqs_of_txids", lambda self, txids, indexed=None: {})


def folders_opened_twice(patch: Patch) -> None:
    """A folder that is there is opened again, by whoever comes."""

    def open_again(ctx: Context, body: FolderOpen) -> None:
        owner, _ = actor(ctx)
        for folder in body.folders:
            ctx.view.store(FOLDERS, folder, Folder(owner, 1))

    rules = REGISTRY.rules(1)
    planted = replace(rules.by_body[FolderOpen], rule=open_again)
    patch.setattr(rules, "by_body", {**rules.by_body, FolderOpen: planted})


def signatures_not_checked(patch: Patch) -> None:
    """Whatever is signed by anybody is taken."""
    patch.setattr(admission, "check_signatures", lambda batch, *_args, **_named: None)
    patch.setattr(Pending, "hint", bytes(33), raising=False)


def pool_without_bounds(patch: Patch) -> None:
    """The pool takes whatever comes."""

    class Small(Mempool):
        def __init__(self) -> None:
            super().__init__(transactions_max=2)

        def add(self, pending: Pending) -> Code:
            self._insert(pending)
            return Code.OK

    patch.setattr(forks, "Mempool", Small)


def nobody_is_banned(patch: Patch) -> None:
    """Offences are counted and lead to nothing."""
    patch.setattr(ScoreBoard, "charge", lambda self, subject, offence, now_ms: None)


def broken_links_are_offences(patch: Patch) -> None:
    """Whoever's link breaks is shut out."""

    def closed(self: PeerNetwork, link: int, now_ms: int) -> None:
        state = self._links.get(link)
        if state is not None:
            self._shut_out(self._scores.ban(state.subject, now_ms + 60 * MINUTE_MS, "gone"))
        real(self, link, now_ms)

    real = PeerNetwork.closed
    patch.setattr(PeerNetwork, "closed", closed)


def blocks_not_fetched(patch: Patch) -> None:
    """Headers are known, and nobody asks for the blocks under them."""
    patch.setattr(BlockFetcher, "refill", lambda self, now_ms: None)


def branch_never_left(patch: Patch) -> None:
    """A node keeps to the first branch that it saw."""

    def best(self: BlockTree) -> TreeEntry:
        held = getattr(self, "held", self.root)
        found = real(self)
        entry = found
        while entry.parent is not None and entry.height > held.height:
            entry = entry.parent
        if entry is held or held.height <= self.root.height:
            self.held = found  # type: ignore[attr-defined]
            return found
        return held

    real = BlockTree.best_stored
    patch.setattr(BlockTree, "best_stored", best)


def put_back_forgotten(patch: Patch) -> None:
    """Transactions of blocks that a reorganisation dropped are gone."""
    patch.setattr(Mempool, "put_back", lambda self, pendings: None)


def bodies_kept_from_the_pool(patch: Patch) -> None:
    """A block's transaction is taken for what the pool had made of it, under the rule set of that time."""

    def fit(batch: admission.Batch, rules: Rules) -> None:
        kept = list(batch.bodies)
        real(batch, rules)
        if batch.in_block:
            batch.bodies[:] = [old if old is not None else new for old, new in zip(kept, batch.bodies, strict=True)]

    real = admission.fit_bodies
    patch.setattr(executor, "fit_bodies", fit)


def older_rules_go_on(patch: Patch) -> None:
    """A release that lacks the rule set goes on with the one that it knows."""
    patch.setattr(RulesInForce, "rules", property(lambda self: self.next.latest_known))
    patch.setattr(RulesInForce, "release_needed", None)


POWER_CUTS = CALM.with_changes(power_cut_every_ms=MINUTE_MS, finality_depth=5)
PARTED = CROWDED.with_changes(
    delay_ms_max=100,
    partition_every_ms=2 * MINUTE_MS,
    partition_ms_max=4 * MINUTE_MS,
    partition_kinds=("cut",),
)
PARTED = PARTED.with_changes(finality_depth=PARTED.depth_needed)
# Two of three are left behind for a while, or not at all, as their upgrades come.
MIXED = CROWDED.with_changes(activation_height=28, faults_ms=14 * MINUTE_MS, older=2, transactions=4)
PLANTED: list[tuple[str, Callable[[Patch], None], Options]] = [
    ("agreement", finality_too_soon, CROWDED),
    ("durability", journal_not_synced, POWER_CUTS),
    ("durability", log_not_synced, POWER_CUTS),
    ("acknowledged", durable_when_ordered, CROWDED),
    ("acknowledged", executed_twice, CALM.with_changes(faults_ms=15 * MINUTE_MS, transactions=20)),
    ("same-state", state_forgets_a_consent, CALM),
    ("once", folders_opened_twice, CALM.with_changes(transactions=60, conflict_share=0.6)),
    ("signed", signatures_not_checked, CALM.with_changes(transactions=60)),
    ("bounds", pool_without_bounds, CALM),
    ("bans", nobody_is_banned, CALM.with_changes(hostile=("garbage",))),
    ("bans", broken_links_are_offences, CALM.with_changes(break_every_ms=MINUTE_MS)),
    ("bans", bodies_kept_from_the_pool, MIXED.with_changes(nodes=5, seed=4)),
    ("releases", older_rules_go_on, MIXED),
    ("liveness", blocks_not_fetched, CALM.with_changes(latecomers=1, rest_ms=20 * MINUTE_MS)),
    ("liveness", branch_never_left, CROWDED.with_changes(rest_ms=20 * MINUTE_MS)),
    (
        "liveness",
        put_back_forgotten,
        PARTED.with_changes(retries=False, rest_ms=40 * MINUTE_MS, faults_ms=20 * MINUTE_MS, transactions=30),
    ),
]


@pytest.mark.parametrize(
    ("checker", "plant", "options"), PLANTED, ids=lambda value: getattr(value, "__name__", "")
)
def test_a_planted_bug_is_found(
    checker: str, plant: Callable[[Patch], None], options: Options, monkeypatch: Patch
) -> None:
    assert not clean(options).failure, clean(options).text()
    plant(monkeypatch)
    report = run(options)
    assert report.checker == checker, report.text()


def test_every_checker_has_a_planted_bug() -> None:
    assert {checker for checker, _, _ in PLANTED} == {checker.name for checker in CHECKERS}

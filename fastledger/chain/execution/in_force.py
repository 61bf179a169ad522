"""Which rule set is in force at the heights of one chain, as the state after its tip tells (SPEC-RULE-9)."""

from typing import NamedTuple

from fastledger.errors import ReleaseNeededError
from fastledger.model.genesis import Genesis
from fastledger.state.registry import Registry, Rules
from fastledger.state.view import StateLookup, Writes
from fastledger.subjects.chain import RULE_SETS, RuleSetStep, rule_sets_of
from fastledger.version import VERSION


class InForce(NamedTuple):
    """The rule set of the block after a tip.

    ``rules`` is None where this release does not know the set. ``latest_known`` is then that of the tip, else the same.
    """

    step: RuleSetStep
    rules: Rules | None
    latest_known: Rules


class RulesInForce:
    """The rule sets of a chain up to the block after its tip.

    It follows the tip on the executor's thread (:meth:`moved`, :meth:`load`). ``next`` is replaced as one, so that any
    thread may read it; everything else belongs to the executor's thread.
    """

    def __init__(self, registry: Registry, genesis: Genesis) -> None:
        self._registry = registry
        self._key = RULE_SETS.prefix + genesis.chain_id
        self._sets = rule_sets_of(genesis)
        self._height = 0
        self.next = self._find(0)

    def load(self, lookup: StateLookup, height: int) -> None:
        """Takes everything from the state that ``lookup`` reads; the next block is that at ``height``."""
        value = lookup(self._key)
        if value is not None:
            self._sets = RULE_SETS.decode(value)
        self._move(height)

    def moved(self, writes: Writes, height: int) -> None:
        """Follows the tip onto a block that wrote ``writes``; the next block is that at ``height``."""
        value = writes.get(self._key)
        if value is not None:
            self._sets = RULE_SETS.decode(value)
        self._move(height)

    def _move(self, height: int) -> None:
        self._height = height
        if self._sets.at(height) != self.next.step:
            self.next = self._find(height)

    def _find(self, height: int) -> InForce:
        step = self._sets.at(height)
        known = [other.rule_set for other in self._sets.begun(height) if self._knows(other.rule_set)]
        if not known:
            raise release_needed(step)
        latest_known = self._registry.rules(known[-1])
        return InForce(step, latest_known if known[-1] == step.rule_set else None, latest_known)

    def _knows(self, rule_set: int) -> bool:
        return rule_set <= self._registry.newest_rule_set

    @property
    def rules(self) -> Rules:
        """The rule set of the next block; raises ``ReleaseNeededError`` where this release does not know it."""
        found = self.next
        if found.rules is None:
            raise release_needed(found.step)
        return found.rules

    @property
    def release_needed(self) -> ReleaseNeededError | None:
        """Why this release can judge no next block, for any thread; None where it can."""
        found = self.next
        return release_needed(found.step) if found.rules is None else None

    @property
    def scheduled(self) -> RuleSetStep | None:
        """The rule set that is decided on and begins after the next block; None where there is none."""
        return self._sets.scheduled(self._height)

    def at(self, height: int) -> Rules:
        """The rule set at a height up to the next block's; raises ``ReleaseNeededError`` for one it does not know."""
        return rules_of(self._registry, self._sets.at(height))


def rules_of(registry: Registry, step: RuleSetStep) -> Rules:
    """The rule set of a step; raises ``ReleaseNeededError`` where this release does not know it."""
    if step.rule_set > registry.newest_rule_set:
        raise release_needed(step)
    return registry.rules(step.rule_set)


def release_needed(step: RuleSetStep) -> ReleaseNeededError:
    """The error that tells what an operator has to install to go on from a step."""
    wanted = f"release {step.release} or newer" if step.release else "a newer release"
    return ReleaseNeededError(
        f"rule set {step.rule_set} is in force from height {step.height} on, and release {VERSION} does not know it: "
        f"install {wanted} and start again",
        rule_set=step.rule_set,
        height=step.height,
        release=step.release,
    )

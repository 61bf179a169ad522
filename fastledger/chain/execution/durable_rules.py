"""The rule sets of an open ledger as far as they are durable: for any thread, and for people (SPEC-RULE-9)."""

from typing import Any

from msgspec import structs

from fastledger.chain.execution.executor import Executor
from fastledger.chain.execution.in_force import rules_of
from fastledger.chain.execution.store import ChainStore
from fastledger.state.registry import Rules
from fastledger.subjects.chain import RULE_SETS, RuleSets, rule_sets_of


class DurableRules:
    """Reads the rule sets of a chain from its durable state."""

    def __init__(self, store: ChainStore, executor: Executor) -> None:
        """Takes the parts of an open ledger, and reads nothing before it is asked."""
        self._store = store
        self._executor = executor

    def _sets(self) -> RuleSets:
        genesis = self._executor.genesis
        with self._store.snapshot() as snapshot:
            value = snapshot.get_state(RULE_SETS.prefix + genesis.chain_id)
        return rule_sets_of(genesis) if value is None else RULE_SETS.decode(value)

    def at(self, height: int) -> Rules:
        """Returns the rule set of a durable block; raises ``ReleaseNeededError`` where this release does not know it.
        """
        return rules_of(self._executor.registry, self._sets().at(height))

    def status(self, height: int) -> dict[str, Any]:
        """Returns what people are told about the block at ``height``, which is the next one.

        That is its rule set, the newest that this release knows, what is scheduled after it, and why this release
        cannot go on, if it cannot.
        """
        sets, needed = self._sets(), self._executor.in_force.release_needed
        scheduled = sets.scheduled(height)
        return {
            "in_force": sets.at(height).rule_set,
            "newest_known": self._executor.registry.newest_rule_set,
            "scheduled": None if scheduled is None else structs.asdict(scheduled),
            "release_needed": None if needed is None else str(needed),
        }

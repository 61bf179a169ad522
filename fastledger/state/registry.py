"""Which subjects there are, and which rules are in force under which rule set (SPEC-RULE-1).

There is one registry a process: :data:`REGISTRY`. Importing :mod:`fastledger.subjects` fills it. A *rule set* is a
number from 1 on: set n has, of every kind, the newest rule whose ``since`` is at most n. A release knows the sets up to
the highest ``since`` that it declares.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, NamedTuple, Protocol, TypeAlias

from fastledger.errors import Code, InputError
from fastledger.model.body import Body
from fastledger.model.genesis import Genesis
from fastledger.model.terms import code_term, kind_term
from fastledger.state.entity import EntityTable
from fastledger.state.kind import Kind
from fastledger.state.view import View


class Declaration(Protocol):
    """What the registry needs of a :class:`fastledger.state.subject.Subject`."""

    name: str
    number: int
    summary: str
    tables: dict[int, EntityTable[Any]]
    refusals: list[Code]
    kinds: list[Kind]


@dataclass(frozen=True, slots=True)
class BlockOpening:
    """What a hook knows of a block before its first transaction; ``proposer`` is the 33-byte key that made it."""

    genesis: Genesis
    height: int
    time_ms: int
    proposer: bytes


RulesAt: TypeAlias = "Callable[[int], Rules]"
"""Which rule set is in force at a height of one chain."""
GenesisHook: TypeAlias = Callable[[View, Genesis], None]
BlockHook: TypeAlias = Callable[[View, BlockOpening], None]


class NotInForce(NamedTuple):
    """Stands for the body of a transaction in a block whose kind the rule set does not have."""

    kind: str


class Rules:
    """One rule set: the kinds that are in force under it, by name and by the type of their body."""

    def __init__(self, number: int, kinds: Mapping[str, Kind]) -> None:
        self.number = number
        self.by_name: Mapping[str, Kind] = MappingProxyType(dict(kinds))
        self.by_body: Mapping[type[Body], Kind] = MappingProxyType(
            {kind.body: kind for kind in kinds.values()}
        )

    def __repr__(self) -> str:
        return f"<rule set {self.number}, {len(self.by_name)} kinds>"

    def decode_body(self, kind: str, encoded: bytes) -> Body:
        """The typed body of a transaction, from the MessagePack form that the native scan makes of it.

        Raises ``InputError`` with ``UNKNOWN_KIND`` or ``BAD_BODY``; the message repeats no value.
        """
        found = self.by_name.get(kind)
        if found is None:
            raise InputError("no such kind of transaction", code=Code.UNKNOWN_KIND)
        return found.decode(encoded)

    def decode_in_block(self, kind: str, encoded: bytes) -> "Body | NotInForce":
        """Like :meth:`decode_body` for a transaction that stands in a block already.

        There a kind that is not in force is no fault of the block: the transaction is refused at execution
        (SPEC-RULE-4).
        """
        found = self.by_name.get(kind)
        return NotInForce(kind) if found is None else found.decode(encoded)

    def keys_read(self, bodies: Sequence[Any]) -> list[bytes]:
        """State keys, new to most blocks, that judging ``bodies`` will read: a hint for reading ahead, no more."""
        by_body = self.by_body
        found: list[bytes] = []
        for body in bodies:
            kind = by_body.get(type(body))
            if kind is not None:
                found += [prefix + value for prefix, get in kind.keys_read if (value := get(body)) is not None]
        return found

    def envelopes(self, bodies: Sequence[Any]) -> list[tuple[int, bytes]]:
        """The envelopes that have to be stored first: pairs of a place in ``bodies`` and a 32-byte digest."""
        by_body = self.by_body
        found: list[tuple[int, bytes]] = []
        for place, body in enumerate(bodies):
            kind = by_body.get(type(body))
            if kind is not None and kind.envelope is not None:
                found.append((place, kind.envelope(body)))
        return found


class Registry:
    """All subjects of a process, their tables and kinds."""

    def __init__(self) -> None:
        self._subjects: dict[int, Declaration] = {}
        self._tables: dict[str, EntityTable[Any]] = {}
        self._kinds: dict[str, list[Kind]] = {}
        self._rules: dict[int, Rules] = {}
        self.genesis_hooks: list[tuple[int, GenesisHook]] = []
        self.block_hooks: list[tuple[int, BlockHook]] = []

    def add(self, subject: Declaration) -> None:
        """Takes in a subject; ``ValueError`` where another has its number or its name."""
        if subject.number in self._subjects or any(
            other.name == subject.name for other in self._subjects.values()
        ):
            raise ValueError(f"subject {subject.number} {subject.name}: the number or the name is taken")
        self._subjects[subject.number] = subject

    def add_table(self, table: EntityTable[Any]) -> None:
        """Takes in a subject's table; ``ValueError`` where another has its name."""
        if self._tables.setdefault(table.name, table) is not table:
            raise ValueError(f"two tables are named {table.name}")

    def add_kind(self, kind: Kind) -> None:
        """Takes in a kind; ``ValueError`` where it has a rule since the same rule set already."""
        versions = self._kinds.setdefault(kind.name, [])
        if any(other.since == kind.since for other in versions):
            raise ValueError(f"{kind.name} has two rules since rule set {kind.since}")
        versions.append(kind)
        versions.sort(key=lambda each: each.since)
        self._rules.clear()

    def remove(self, subject: Declaration) -> None:
        """Forgets a subject, its tables, kinds and hooks."""
        del self._subjects[subject.number]
        for table in subject.tables.values():
            del self._tables[table.name]
        for kind in subject.kinds:
            self._kinds.pop(kind.name, None)
        self._rules.clear()
        self.genesis_hooks = [entry for entry in self.genesis_hooks if entry[0] != subject.number]
        self.block_hooks = [entry for entry in self.block_hooks if entry[0] != subject.number]

    @property
    def subjects(self) -> tuple[Declaration, ...]:
        """All subjects, in the order of their numbers."""
        return tuple(self._subjects[number] for number in sorted(self._subjects))

    @property
    def tables(self) -> Mapping[str, EntityTable[Any]]:
        """All tables by name, in the order in which they were declared."""
        return MappingProxyType(self._tables)

    @property
    def kinds(self) -> Mapping[str, Kind]:
        """Of every kind its newest rule, by name, whatever rule set it belongs to."""
        return MappingProxyType({name: versions[-1] for name, versions in self._kinds.items()})

    @property
    def alert_terms(self) -> tuple[bytes, ...]:
        """The search terms of what somebody should look at: every refusal, and the kinds that say so of themselves."""
        refusals = (code_term(code) for code in Code.all() if code.is_refusal)
        return (*refusals, *(kind_term(kind.name) for kind in self.kinds.values() if kind.is_alert))

    @property
    def newest_rule_set(self) -> int:
        """The number of the newest rule set that this release knows."""
        return max((kind.since for versions in self._kinds.values() for kind in versions), default=1)

    def rules(self, number: int) -> Rules:
        """The rule set ``number``; raises ``ValueError`` for one that this release does not know."""
        rules = self._rules.get(number)
        if rules is None:
            if not 1 <= number <= self.newest_rule_set:
                raise ValueError(f"this release knows no rule set {number}")
            in_force = {}
            for name, versions in self._kinds.items():
                applicable = [kind for kind in versions if kind.since <= number]
                if applicable:
                    in_force[name] = applicable[-1]
            rules = self._rules[number] = Rules(number, in_force)
        return rules

    def install_genesis(self, view: View, genesis: Genesis) -> None:
        """Has every subject write what the genesis document installs."""
        for _, hook in sorted(self.genesis_hooks, key=lambda entry: entry[0]):
            hook(view, genesis)
        view.commit()

    def open_block(self, view: View, opening: BlockOpening) -> None:
        """Has every subject do what is due at a block before its first transaction."""
        for _, hook in sorted(self.block_hooks, key=lambda entry: entry[0]):
            hook(view, opening)
        view.commit()


REGISTRY = Registry()

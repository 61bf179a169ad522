"""Which subjects there are, and which rules are in force under which rule set (SPEC-RULE-1).

There is one registry a process: :data:`REGISTRY`. Importing :mod:`fastledger.subjects` fills it. A *rule set* is a
number from 1 on: set n has, of every kind, the newest rule whose ``since`` is at most n. A release knows the sets up to
the highest ``since`` that it declares.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, NamedTuple, Protocol, TypeAlias, TypeVar

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
HookT = TypeVar("HookT")


class NotInForce(NamedTuple):
    """Stands for the body of a transaction in a block whose kind the rule set does not have."""

    kind: str


class Rules:
    """One rule set: the kinds that are in force under it, by name and by the type of their body.

    ``others`` are the kinds of other rule sets, by name: what a body may be of that does not fit here.
    ``block_hooks`` run at each block before its first transaction, in this order.
    """

    def __init__(
        self,
        number: int,
        kinds: Mapping[str, Kind],
        others: Mapping[str, Sequence[Kind]] = MappingProxyType({}),
        block_hooks: "Sequence[BlockHook]" = (),
    ) -> None:
        self.number = number
        self._others = others
        self._block_hooks = tuple(block_hooks)
        # Plain dictionaries, since they are looked into for every transaction: a proxy costs more.
        self.by_name: Mapping[str, Kind] = dict(kinds)
        self.by_body: Mapping[type[Body], Kind] = {kind.body: kind for kind in kinds.values()}

    def __repr__(self) -> str:
        return f"<rule set {self.number}, {len(self.by_name)} kinds>"

    def decode_body(self, kind: str, encoded: bytes) -> Body:
        """The typed body of a transaction, from the MessagePack form that the native scan makes of it.

        Raises ``InputError`` with ``UNKNOWN_KIND`` or ``BAD_BODY``; the message repeats no value. A body that fits the
        kind under another rule set is of a kind that is not in force, for the border, and of no bad form.
        """
        found = self.by_name.get(kind)
        if found is None:
            raise InputError("no such kind of transaction", code=Code.UNKNOWN_KIND)
        try:
            return found.decode(encoded)
        except InputError:
            for other in self._others.get(kind, ()):
                if other.fits(encoded):
                    raise InputError("the body is of another rule set", code=Code.UNKNOWN_KIND) from None
            raise

    def decode_in_block(self, kind: str, encoded: bytes) -> "Body | NotInForce":
        """Like :meth:`decode_body` for a transaction that stands in a block already.

        There a kind that is not in force is no fault of the block: the transaction is refused at execution
        (SPEC-RULE-4).
        """
        found = self.by_name.get(kind)
        return NotInForce(kind) if found is None else found.decode(encoded)

    def open_block(self, view: View, opening: BlockOpening) -> None:
        """Has every subject do what is due at a block before its first transaction."""
        for hook in self._block_hooks:
            hook(view, opening)
        view.commit()

    def keys_read(self, bodies: Sequence[Any]) -> list[bytes]:
        """State keys, new to most blocks, that judging ``bodies`` will read: a hint for reading ahead, no more."""
        by_body = self.by_body
        found: list[bytes] = []
        for body in bodies:
            kind = by_body.get(type(body))
            if kind is not None:
                for prefix, get in kind.keys_read:
                    value = get(body)
                    if value is not None:
                        found.append(prefix + value)
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
        self._genesis_hooks: list[tuple[int, int, GenesisHook]] = []
        self._block_hooks: list[tuple[int, int, BlockHook]] = []

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

    def add_genesis_hook(self, subject: Declaration, since: int, hook: GenesisHook) -> None:
        """Takes in what a subject writes before block 0, on chains that begin with the rule set ``since`` or newer."""
        self._genesis_hooks.append((subject.number, since, hook))

    def add_block_hook(self, subject: Declaration, since: int, hook: BlockHook) -> None:
        """Takes in what a subject does at each block, from the rule set ``since`` on."""
        self._block_hooks.append((subject.number, since, hook))
        self._rules.clear()

    def remove(self, subject: Declaration) -> None:
        """Forgets a subject, its tables, kinds and hooks."""
        del self._subjects[subject.number]
        for table in subject.tables.values():
            del self._tables[table.name]
        for kind in subject.kinds:
            self._kinds.pop(kind.name, None)
        self._rules.clear()
        self._genesis_hooks = [entry for entry in self._genesis_hooks if entry[0] != subject.number]
        self._block_hooks = [entry for entry in self._block_hooks if entry[0] != subject.number]

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

    def kinds_of(self, subject: str) -> list[Kind]:
        """The kinds of a subject by its name, each once, by its newest rule; none of a subject that is not there."""
        return [kind for kind in self.kinds.values() if kind.subject == subject]

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
            others = {
                name: [kind for kind in versions if kind is not in_force.get(name)]
                for name, versions in self._kinds.items()
            }
            hooks = _hooks_of(self._block_hooks, number)
            rules = self._rules[number] = Rules(number, in_force, others, hooks)
        return rules

    def install_genesis(self, view: View, genesis: Genesis) -> None:
        """Has every subject of the rule set that the genesis document names write what the document installs."""
        for hook in _hooks_of(self._genesis_hooks, genesis.rule_set):
            hook(view, genesis)
        view.commit()


def _hooks_of(hooks: Sequence[tuple[int, int, HookT]], number: int) -> list[HookT]:
    """The hooks that a rule set has, in the order of their subjects' numbers."""
    found = sorted((entry for entry in hooks if entry[1] <= number), key=lambda entry: entry[0])
    return [hook for _, _, hook in found]


REGISTRY = Registry()

"""A medical subject, declared once: everything else is derived from the declaration (docs/architecture.md).

::

    certificates = Subject("certificate", number=20, summary="Certificates that somebody may present")

    class Certificate(Entity, frozen=True):
        holder: Identity16
        revoked: bool

    CERTIFICATES = certificates.table(1, "certificate", Certificate)
    UNKNOWN_CERTIFICATE = certificates.refusal(1, "unknown-certificate", "no such certificate")

    class Issue(Body, frozen=True):
        '''The signer certifies ``holder``.'''
        certificate: Annotated[bytes, CERTIFICATES.key]
        holder: Identity16

    @certificates.rule("issue")
    def issue(ctx: Context, body: Issue) -> None: ...
"""

import inspect
from collections.abc import Callable, Mapping
from typing import Any, TypeVar, get_type_hints

from fastledger.errors import Code
from fastledger.model.body import RULE_SET_FIRST, Body, forget_kind, name_kind
from fastledger.state.context import Context
from fastledger.state.entity import EntityT, EntityTable
from fastledger.state.kind import Kind
from fastledger.state.registry import REGISTRY, BlockHook, GenesisHook, Registry

BodyT = TypeVar("BodyT", bound=Body)
SUBJECT_NUMBER_MIN, SUBJECT_NUMBER_MAX = 10, 255
_REFUSALS_MAX = 99
_TABLES_MAX = 255


class Subject:
    """The declaration of one subject: tables, refusals, kinds with their bodies and rules, hooks.

    ``name`` stands before the dot of each kind. ``number`` (10 to 255) is stable for ever: it namespaces result codes
    (``number * 100 + n``), state keys and search terms. Both are unique; ``ValueError`` otherwise.
    """

    def __init__(self, name: str, *, number: int, summary: str, registry: Registry = REGISTRY) -> None:
        if not SUBJECT_NUMBER_MIN <= number <= SUBJECT_NUMBER_MAX:
            raise ValueError(f"a subject's number is {SUBJECT_NUMBER_MIN} to {SUBJECT_NUMBER_MAX}")
        self.name = name
        self.number = number
        self.summary = summary
        self.tables: dict[int, EntityTable[Any]] = {}
        self.refusals: list[Code] = []
        self.kinds: list[Kind] = []
        self._registry = registry
        registry.add(self)

    def __repr__(self) -> str:
        return f"<subject {self.number} {self.name}>"

    def table(
        self,
        number: int,
        name: str,
        entity: type[EntityT],
        *,
        key: Mapping[str, Any] | None = None,
        term: bytes | None = None,
        read_ahead: bool = True,
    ) -> EntityTable[EntityT]:
        """A table of entities; ``number`` (1 to 255) is stable and the subject's own, ``name`` the network's.

        ``key`` names the parts of the key and their types, each of one fixed size; without it the key is a 16-byte id
        called ``name``. ``term`` is a term table that stands in for the table's own. ``read_ahead`` false: the
        entities are few and hot, so that reading them before their turn would gain nothing.
        """
        if not 0 < number <= _TABLES_MAX or number in self.tables:
            raise ValueError(f"table {number} of {self.name} is taken or out of range")
        summary = (inspect.getdoc(entity) or "").partition("\n")[0]
        table = EntityTable(
            bytes((self.number, number)), name, entity, key, term=term, read_ahead=read_ahead, summary=summary
        )
        self._registry.add_table(table)
        self.tables[number] = table
        return table

    def refusal(self, number: int, slug: str, text: str) -> Code:
        """A reason for which a rule of this subject refuses; ``number`` is 1 to 99, stable, and never reused."""
        if not 0 < number <= _REFUSALS_MAX:
            raise ValueError(f"a refusal's number is 1 to {_REFUSALS_MAX}")
        code = Code.define(100 * self.number + number, slug, text, is_refusal=True)
        self.refusals.append(code)
        return code

    def rule(
        self, action: str, *, since: int = RULE_SET_FIRST, is_alert: bool = False
    ) -> Callable[[Callable[[Context, BodyT], None]], Callable[[Context, BodyT], None]]:
        """Makes a function the rule of the kind ``<subject>.<action>``; the type of its ``body`` is the kind's body.

        ``since`` is the number of the first rule set that has it. A later rule of the same action takes the place of
        an earlier one from its own rule set on; the earlier one stays, for the blocks that it judged. ``is_alert``: who
        watches the chain is told of every such transaction.
        """

        def declare(rule: Callable[[Context, BodyT], None]) -> Callable[[Context, BodyT], None]:
            body: type[Body] = get_type_hints(rule)["body"]
            name = f"{self.name}.{action}"
            name_kind(name, body, since)
            summary = (inspect.getdoc(body) or "").partition("\n\n")[0].replace("\n", " ")
            kind = Kind(name, body, rule, since, summary, is_alert)
            self._registry.add_kind(kind)
            self.kinds.append(kind)
            return rule

        return declare

    def at_genesis(self, *, since: int = RULE_SET_FIRST) -> Callable[[GenesisHook], GenesisHook]:
        """Has ``hook(view, genesis)`` write what the genesis document itself installs, before the first block.

        It runs on chains that begin with the rule set ``since`` or a newer one, and on no other.
        """

        def declare(hook: GenesisHook) -> GenesisHook:
            self._registry.add_genesis_hook(self, since, hook)
            return hook

        return declare

    def at_block(self, *, since: int = RULE_SET_FIRST) -> Callable[[BlockHook], BlockHook]:
        """Has ``hook(view, opening)`` run at each block before its first transaction, from the rule set ``since`` on.
        """

        def declare(hook: BlockHook) -> BlockHook:
            self._registry.add_block_hook(self, since, hook)
            return hook

        return declare

    def withdraw(self) -> None:
        """Takes the subject out of the registry again: for a test that brought one of its own."""
        self._registry.remove(self)
        for kind in self.kinds:
            forget_kind(kind.name)
        for code in self.refusals:
            Code.withdraw(code)


"""The base of all transaction bodies, and the table of which kind has which body (SPEC-BODY-1).

A subject module declares a struct for each of its kinds and a rule over it
(:meth:`fastledger.state.subject.Subject.rule`); that enters it here. No field may hold clinical data, a name or any
identifier from outside: categories, codes and texts stay inside envelopes, and search happens over blind tokens
(SPEC-PRIV-1).
"""

from typing import Any

import msgspec

from fastledger.errors import Code, InputError
from fastledger.reprs import brief_fields


class Body(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True, gc=False):
    """Base of all bodies: unknown fields are refused, so that a signed field always means something."""

    def __repr__(self) -> str:
        return brief_fields(self, self.__struct_fields__)


# Each kind's bodies, the newest first: a rule set may give a kind another body, and old transactions keep theirs.
_BODIES: dict[str, list[type[Body]]] = {}
_KINDS: dict[type[Body], str] = {}
# Of each body the newest rule set that declares a rule over it.
_SINCE: dict[type[Body], int] = {}
RULE_SET_FIRST = 1


def name_kind(kind: str, body: type[Body], since: int = RULE_SET_FIRST) -> None:
    """Declares that transactions of ``kind`` carry ``body`` from the rule set ``since`` on.

    Raises ``ValueError`` where the body has a kind already.
    """
    if _KINDS.setdefault(body, kind) != kind:
        raise ValueError(f"{body.__name__} is the body of {_KINDS[body]}")
    _SINCE[body] = max(since, _SINCE.get(body, RULE_SET_FIRST))
    bodies = _BODIES.setdefault(kind, [])
    if body not in bodies:
        bodies.insert(0, body)


def forget_kind(kind: str) -> None:
    """Takes back every :func:`name_kind` of ``kind``."""
    for body in _BODIES.pop(kind, ()):
        del _KINDS[body], _SINCE[body]


def newest_rule_set() -> int:
    """The number of the newest rule set that a subject of this process has declared anything for."""
    return max(_SINCE.values(), default=RULE_SET_FIRST)


def kind_of(body: type[Body]) -> str:
    """The kind that carries ``body``; raises ``InputError`` with ``UNKNOWN_KIND`` where none does."""
    kind = _KINDS.get(body)
    if kind is None:
        raise InputError(f"{body.__name__} is the body of no kind of transaction", code=Code.UNKNOWN_KIND)
    return kind


def parse_body(kind: str, value: Any) -> Body:
    """The typed body of a decoded map; raises ``InputError`` with ``UNKNOWN_KIND`` or ``BAD_BODY``.

    The message names the kind alone: what a validator says of a value could repeat the value.
    """
    bodies = _BODIES.get(kind)
    if bodies is None:
        raise InputError("no such kind of transaction", code=Code.UNKNOWN_KIND)
    for body_type in bodies:
        try:
            return msgspec.convert(value, body_type)
        except msgspec.ValidationError:
            continue
    raise InputError(f"the body does not fit {kind}", code=Code.BAD_BODY)


def body_map(body: Body) -> dict[str, Any]:
    """The body as the map that is encoded: fields at their default are left out."""
    value = msgspec.to_builtins(body, builtin_types=(bytes,))
    if not isinstance(value, dict):
        raise TypeError("a body encodes to a map")
    return value

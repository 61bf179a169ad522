"""A kind of transaction: its body and rule, and what follows from the types of the body's fields."""

from collections.abc import Callable
from dataclasses import dataclass, field
from operator import attrgetter
from typing import Any, NamedTuple, TypeAlias

import msgspec

from fastledger.errors import Code, InputError
from fastledger.model.body import Body
from fastledger.model.shape import FieldShape, Shape, fields_of
from fastledger.model.terms import NAME_BYTES, kind_name
from fastledger.state.context import Context

Rule: TypeAlias = Callable[[Context, Any], None]


class TermSource(NamedTuple):
    """Which terms a body gives: names in ``table`` from ``get(body)``, one (``many`` false) or a list of them."""

    table: bytes
    get: Callable[[Any], Any]
    many: bool


@dataclass(frozen=True, slots=True, eq=False)
class Kind:
    """One kind of transaction under the rule sets from number ``since`` on, until a newer rule takes its place.

    ``terms`` are found for refused transactions too, ``late_terms`` for accepted ones alone. ``keys_read`` tells
    which state keys judging a body will read. ``envelope`` reads the 32-byte digest of the envelope that has to be
    stored first, and is None where no field names one. ``is_alert``: somebody should look at such a transaction.
    """

    name: str
    body: type[Body]
    rule: Rule
    since: int
    summary: str
    is_alert: bool = False
    term_name: bytes = field(init=False)
    terms: tuple[TermSource, ...] = field(init=False)
    late_terms: tuple[TermSource, ...] = field(init=False)
    keys_read: tuple[tuple[bytes, Callable[[Any], bytes]], ...] = field(init=False)
    envelope: Callable[[Any], bytes] | None = field(init=False)
    _decode: Callable[[bytes], Body] = field(init=False)

    def __post_init__(self) -> None:
        """Derives everything once, when the subject is declared."""
        shapes = fields_of(self.body)
        sources = [(shape, source) for shape in shapes if (source := _term_source(shape)) is not None]
        values = {
            "term_name": kind_name(self.name),
            "terms": tuple(source for shape, source in sources if not _term_shape(shape).extra.get("late")),
            "late_terms": tuple(source for shape, source in sources if _term_shape(shape).extra.get("late")),
            "keys_read": tuple(
                (table.prefix, attrgetter(shape.name))
                for shape in shapes
                if (table := shape.shape.extra.get("table")) is not None and table.read_ahead
            ),
            "envelope": next((attrgetter(item.name) for item in shapes if item.shape.extra.get("blob")), None),
            "_decode": msgspec.msgpack.Decoder(self.body).decode,
        }
        for name, value in values.items():
            object.__setattr__(self, name, value)

    @property
    def subject(self) -> str:
        """The part of the name before the dot: the name of the subject."""
        return self.name.partition(".")[0]

    @property
    def action(self) -> str:
        """The part of the name behind the dot."""
        return self.name.partition(".")[2]

    def fits(self, encoded: bytes) -> bool:
        """Whether :meth:`decode` would give a body."""
        try:
            self._decode(encoded)
        except msgspec.DecodeError:
            return False
        return True

    def decode(self, encoded: bytes) -> Body:
        """The body from the MessagePack form that the native scan makes of it; ``InputError`` with ``BAD_BODY``."""
        try:
            return self._decode(encoded)
        except msgspec.DecodeError:
            raise InputError(f"the body does not fit {self.name}", code=Code.BAD_BODY) from None


def _term_shape(field: FieldShape) -> Shape:
    """The shape, in a field, that carries a term: the field's own, that of its items, or that of a place of these."""
    shape = field.shape
    while "term" not in shape.extra:
        item = shape.item
        if item is not None:
            shape = item
            continue
        member = next((member for member in shape.members if "term" in member.extra), None)
        if member is None:
            break
        shape = member
    return shape


def _term_source(field: FieldShape) -> TermSource | None:
    """How to read a field's terms, or None where it has none."""
    shape, table = field.shape, _term_shape(field).extra.get("term")
    if table is None:
        return None
    get = attrgetter(field.name)
    item = shape.item
    if item is None:
        return TermSource(table, _name_of(get, shape), False)
    for place, member in enumerate(item.members):
        if "term" in member.extra:
            return TermSource(table, _column(get, place), True)
    return TermSource(table, get, True)


def _column(get: Callable[[Any], Any], place: int) -> Callable[[Any], list[bytes]]:
    return lambda body: [entry[place] for entry in get(body)]


def _name_of(get: Callable[[Any], bytes], shape: Shape) -> Callable[[Any], bytes]:
    if shape.fixed_bytes == NAME_BYTES:
        return get
    raise TypeError(f"a term has a name of {NAME_BYTES} bytes")

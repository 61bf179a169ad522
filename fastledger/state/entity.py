"""What stands in the state: entities, and the tables that they stand in (SPEC-STATE-3).

A state key is ``subject number 1 || table number 1 || key parts``, so that no two subjects can meet. Values are
MessagePack arrays of the entity's fields in order, integers in shortest form.
"""

from collections.abc import Mapping
from typing import Any, Generic, NamedTuple, TypeVar

import msgspec
from msgspec import Meta

from fastledger._native.view import Table
from fastledger.errors import Code, InputError
from fastledger.model.fields import Id16
from fastledger.model.shape import Shape, fields_of, fixed_bytes, integer_bytes
from fastledger.model.terms import NAME_BYTES, SIGNER, SUBJECT
from fastledger.reprs import brief, brief_fields

EntityT = TypeVar("EntityT", bound="Entity")
KeyValue = bytes | int


class Entity(msgspec.Struct, array_like=True, frozen=True, gc=False):
    """Base of all state values: a MessagePack array of the fields in order, integers in shortest form."""

    def __repr__(self) -> str:
        return brief_fields(self, self.__struct_fields__)


class EntityItem(NamedTuple, Generic[EntityT]):
    """An entity and the values of the parts of its key."""

    key: tuple[KeyValue, ...]
    entity: EntityT

    def __repr__(self) -> str:
        return f"<{' '.join(map(brief, self.key))}: {self.entity!r}>"


class EntityPage(NamedTuple, Generic[EntityT]):
    """Some entities of a list; ``next_cursor`` is None on the last page."""

    items: list[EntityItem[EntityT]]
    next_cursor: int | None

    def __repr__(self) -> str:
        following = "the last" if self.next_cursor is None else f"next_cursor={self.next_cursor}"
        return f"<EntityPage of {len(self.items)}, {following}>"


class KeyPart(NamedTuple):
    """One part of a state key: its name, its type, and how many bytes it takes."""

    name: str
    type: Any
    size_bytes: int
    is_integer: bool


class EntityTable(Table[EntityT], Generic[EntityT]):
    """The entities of one kind, by key; made by :meth:`fastledger.state.subject.Subject.table`."""

    def __init__(
        self,
        prefix: bytes,
        name: str,
        entity: type[EntityT],
        key: Mapping[str, Any] | None,
        *,
        term: bytes | None,
        read_ahead: bool,
        summary: str,
    ) -> None:
        super().__init__(prefix, entity)
        self.name = name
        self.entity = entity
        self.parts = tuple(_key_part(*part) for part in (key or {name: Id16}).items())
        self.read_ahead = read_ahead
        self.summary = summary
        self.is_indexed = key is None
        """Whether a transaction that names one of these entities is found under it, in the term table ``term``."""
        self.term = term or prefix
        self.listed_by = {
            field.name: terms for field in fields_of(entity) if (terms := _list_terms(field.shape)) is not None
        }
        """The fields by which the entities are listed: of each the term tables that lead to them."""

    @property
    def key(self) -> Meta:
        """What makes a field of a body a key of this table: ``record: Annotated[bytes, RECORDS.key]``."""
        return self.key_with()

    def key_with(self, **extra: Any) -> Meta:
        """Like :attr:`key`, with more about the field (see :mod:`fastledger.model.fields`)."""
        if len(self.parts) != 1 or self.parts[0].is_integer:
            raise TypeError(f"{self.name} has a key of several parts: no field alone is one")
        size = self.parts[0].size_bytes
        term = {"term": self.term} if self.is_indexed else {}
        return Meta(min_length=size, max_length=size, extra={"table": self, **term, **extra})

    def pack(self, *values: KeyValue) -> bytes:
        """The state key, without the table's prefix, of the entity under ``values``, one for each part.

        Integers are packed big-endian. Raises ``ValueError`` where a value has another size than its part.
        """
        if len(values) != len(self.parts):
            raise ValueError(f"{self.name} is found by {', '.join(part.name for part in self.parts)}")
        return b"".join(_pack(part, value) for part, value in zip(self.parts, values, strict=True))

    def checked(self, *values: KeyValue) -> tuple[KeyValue, ...]:
        """The values as they are, where they are a key; raises ``InputError`` with ``BAD_QUERY`` where not."""
        try:
            self.pack(*values)
        except ValueError as error:
            raise InputError(f"no key of a {self.name}: {error}", code=Code.BAD_QUERY) from None
        return values

    def checked_list(self, by: Mapping[str, bytes]) -> Mapping[str, bytes]:
        """``by`` as it is, where it can find a list of the table's entities.

        Raises ``InputError`` with ``BAD_QUERY`` for a table without a list, a field by which there is none, or a
        value that is no id.
        """
        if not self.is_indexed:
            raise InputError(f"there is no list of {self.name}", code=Code.BAD_QUERY)
        for name, value in by.items():
            if name not in self.listed_by:
                raise InputError(f"a list of {self.name} is not found by {name}", code=Code.BAD_QUERY)
            if not isinstance(value, bytes) or len(value) != NAME_BYTES:
                raise InputError(f"{name} is not an id of {NAME_BYTES} bytes", code=Code.BAD_QUERY)
        return by

    def unpack(self, key: bytes) -> tuple[KeyValue, ...]:
        """The inverse of :meth:`pack`."""
        values: list[KeyValue] = []
        at = 0
        for part in self.parts:
            piece = key[at : at + part.size_bytes]
            values.append(int.from_bytes(piece, "big") if part.is_integer else piece)
            at += part.size_bytes
        return tuple(values)

    def __repr__(self) -> str:
        return f"<table {self.name}>"


def _list_terms(shape: Shape) -> tuple[bytes, ...] | None:
    """The term tables of transactions that name what a field holds; None for a field that none is found by."""
    if shape.extra.get("identity"):
        return (SIGNER, SUBJECT)
    other = shape.extra.get("table")
    return (other.term,) if other is not None and other.is_indexed else None


def _key_part(name: str, type_: Any) -> KeyPart:
    size = fixed_bytes(type_)
    if size is not None:
        return KeyPart(name, type_, size, False)
    size = integer_bytes(type_)
    if size is None:
        raise TypeError(f"{name}: a part of a key has one fixed size")
    return KeyPart(name, type_, size, True)


def _pack(part: KeyPart, value: KeyValue) -> bytes:
    if part.is_integer:
        if not isinstance(value, int) or not 0 <= value < 1 << (8 * part.size_bytes):
            raise ValueError(f"{part.name} is a whole number of {part.size_bytes} bytes")
        return value.to_bytes(part.size_bytes, "big")
    if not isinstance(value, bytes) or len(value) != part.size_bytes:
        raise ValueError(f"{part.name} is {part.size_bytes} bytes")
    return value

"""An entity in JSON, derived from its table: the struct that travels, its parameters, and both conversions.

Byte strings of one fixed length travel as lower-case hexadecimal, others in base64; sets of bits as lists of names;
times as integers, UTC milliseconds. Server and client use the same class, so they cannot differ (SPEC-RPC-13).
"""

from collections.abc import Callable, Mapping
from enum import Enum
from functools import cache
from typing import Annotated, Any, Literal, NamedTuple

import msgspec
from msgspec import Meta, inspect

from fastledger.model.shape import Shape, fields_of, shape_of
from fastledger.state.entity import Entity, EntityTable, KeyValue


class Form(NamedTuple):
    """How values of a type travel: the type in JSON, and the conversions, of which ``parse`` raises ``ValueError``."""

    type: Any
    show: Callable[[Any], Any]
    parse: Callable[[Any], Any]


def _same(value: Any) -> Any:
    return value


def _hex_form(size: int | None) -> Form:
    pattern = "^([0-9a-f]{2})*$" if size is None else f"^[0-9a-f]{{{2 * size}}}$"

    def parse(text: str) -> bytes:
        data = bytes.fromhex(text)
        if size is not None and len(data) != size:
            raise ValueError(f"not {size} bytes")
        return data

    return Form(Annotated[str, Meta(pattern=pattern)], bytes.hex, parse)


def _mask_form(bits: Mapping[Any, int]) -> Form:
    names = {_name(name): bit for name, bit in bits.items()}

    def show(value: int) -> list[str]:
        return [name for name, bit in names.items() if value & bit]

    def parse(shown: list[str]) -> int:
        return sum(names[name] for name in dict.fromkeys(shown))

    return Form(list[Literal[tuple(names)]], show, parse)  # type: ignore[misc]


def _name(member: Any) -> str:
    return str(member.value if isinstance(member, Enum) else member)


def form_of(shape: Shape) -> Form:
    """How values of a field's type travel; ``TypeError`` for a type that no entity may have."""
    found = shape.type
    if "mask" in shape.extra:
        return _mask_form(shape.extra["mask"])
    if isinstance(found, inspect.BytesType):
        if shape.fixed_bytes is not None or shape.extra.get("hex"):
            return _hex_form(shape.fixed_bytes)
        return Form(bytes, _same, _same)
    if isinstance(found, inspect.IntType):
        return Form(Annotated[int, Meta(ge=0)], _same, _same)
    if isinstance(found, inspect.BoolType):
        return Form(bool, _same, _same)
    if isinstance(found, inspect.EnumType):
        return Form(found.cls, _same, _same)
    if isinstance(found, inspect.StructType) and issubclass(found.cls, Entity):
        return _struct_form(found.cls)
    item = shape.item
    if item is not None:
        form = form_of(item)
        build = tuple if isinstance(found, inspect.VarTupleType) else list
        return Form(
            list[form.type],  # type: ignore[name-defined]
            lambda values: [form.show(value) for value in values],
            lambda values: build(form.parse(value) for value in values),
        )
    if shape.members:
        forms = [form_of(member) for member in shape.members]
        return Form(
            tuple[tuple(form.type for form in forms)],  # type: ignore[misc]
            lambda values: tuple(form.show(value) for form, value in zip(forms, values, strict=True)),
            lambda values: tuple(form.parse(value) for form, value in zip(forms, values, strict=True)),
        )
    raise TypeError(f"no entity has a field of type {type(found).__name__}")


@cache
def _struct_form(entity: type[Entity]) -> Form:
    """A nested entity: an object with the same fields."""
    forms = {field.name: form_of(field.shape) for field in fields_of(entity)}
    view = _define(entity.__name__, forms, entity.__doc__)

    def show(value: Entity) -> msgspec.Struct:
        return view(*(form.show(getattr(value, name)) for name, form in forms.items()))

    def parse(shown: msgspec.Struct) -> Entity:
        return entity(*(form.parse(getattr(shown, name)) for name, form in forms.items()))

    return Form(view, show, parse)


def _define(name: str, forms: Mapping[str, Form], doc: str | None) -> type[msgspec.Struct]:
    return msgspec.defstruct(
        name,
        [(field, form.type) for field, form in forms.items()],
        frozen=True,
        namespace={"__doc__": doc},
        module=__name__,
    )


class EntityView:
    """The JSON forms of one table; make it with :func:`view_of`.

    ``type`` is the struct of an entity with its key, ``params`` that of the key alone.
    """

    def __init__(self, table: EntityTable[Any]) -> None:
        self.table = table
        self._key_forms = {part.name: form_of(shape_of(part.type)) for part in table.parts}
        self._forms = {field.name: form_of(field.shape) for field in fields_of(table.entity)}
        twice = self._key_forms.keys() & self._forms.keys()
        if twice:
            raise TypeError(f"{table.name}: {min(twice)} is a part of the key and a field")
        name = "".join(word.capitalize() for word in table.name.split("_"))
        self.type = _define(f"{name}View", {**self._key_forms, **self._forms}, table.entity.__doc__)
        self.params = msgspec.defstruct(
            f"{name}Key",
            [(field, form.type) for field, form in self._key_forms.items()],
            frozen=True,
            forbid_unknown_fields=True,
            kw_only=True,
            namespace={"__doc__": f"The key of an entity of the table {table.name}."},
            module=__name__,
        )

    def show(self, key: tuple[KeyValue, ...], entity: Entity) -> msgspec.Struct:
        """The entity under ``key`` as it travels."""
        keys = (form.show(value) for form, value in zip(self._key_forms.values(), key, strict=True))
        return self.type(
            *keys, *(form.show(getattr(entity, name)) for name, form in self._forms.items())
        )

    def parse(self, view: msgspec.Struct) -> tuple[tuple[KeyValue, ...], Any]:
        """The key and the entity of what travelled; ``ValueError`` where it is no such entity."""
        key = tuple(form.parse(getattr(view, name)) for name, form in self._key_forms.items())
        return key, self.table.entity(
            *(form.parse(getattr(view, name)) for name, form in self._forms.items())
        )

    def show_key(self, key: tuple[KeyValue, ...]) -> dict[str, Any]:
        """The parts of a key as parameters."""
        return {
            name: form.show(value)
            for (name, form), value in zip(self._key_forms.items(), key, strict=True)
        }

    def parse_key(self, params: msgspec.Struct) -> tuple[KeyValue, ...]:
        """The inverse of :meth:`show_key`."""
        return tuple(form.parse(getattr(params, name)) for name, form in self._key_forms.items())


@cache
def view_of(table: EntityTable[Any]) -> EntityView:
    """The JSON forms of a table, made once."""
    return EntityView(table)

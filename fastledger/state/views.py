"""Entities and bodies in JSON, derived from their types: the struct that travels, and both conversions.

Byte strings of one fixed length travel as lower-case hexadecimal, others in base64; sets of bits as lists of names;
times as integers, UTC milliseconds. Server and client use the same class, so they cannot differ (SPEC-RPC-13).
"""

from collections.abc import Callable, Iterable, Mapping
from functools import cache
from inspect import getdoc
from typing import Annotated, Any, Literal, NamedTuple

import msgspec
from msgspec import Meta, inspect

from fastledger.model.body import Body
from fastledger.model.shape import FieldShape, Shape, fields_of, shape_of
from fastledger.state.entity import Entity, EntityTable, KeyValue
from fastledger.state.wording import name_of, text_of


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
    names = {name_of(name): bit for name, bit in bits.items()}

    def show(value: int) -> list[str]:
        return [name for name, bit in names.items() if value & bit]

    def parse(shown: list[str]) -> int:
        return sum(names[name] for name in dict.fromkeys(shown))

    return Form(list[Literal[tuple(names)]], show, parse)  # type: ignore[misc]


def form_of(shape: Shape) -> Form:
    """How values of a field's type travel; ``TypeError`` for a type that nothing in the chain may have."""
    found = shape.type
    if "mask" in shape.extra:
        return _mask_form(shape.extra["mask"])
    if isinstance(found, inspect.BytesType):
        if shape.fixed_bytes is not None or shape.extra.get("hex"):
            return _hex_form(shape.fixed_bytes)
        return Form(Annotated[bytes, _lengths(found)], _same, _same)
    if isinstance(found, inspect.IntType):
        return Form(Annotated[int, Meta(ge=found.ge, le=found.le)], _same, _same)
    if isinstance(found, inspect.BoolType):
        return Form(bool, _same, _same)
    if isinstance(found, inspect.StrType):
        return Form(str, _same, _same)
    if isinstance(found, inspect.EnumType):
        return Form(found.cls, _same, _same)
    if isinstance(found, inspect.StructType) and issubclass(found.cls, Entity):
        return struct_form(found.cls)
    item = shape.item
    if item is not None and isinstance(found, inspect.ListType | inspect.VarTupleType):
        form = form_of(item)
        listed = list[form.type]  # type: ignore[name-defined]
        build = tuple if isinstance(found, inspect.VarTupleType) else list
        return Form(
            Annotated[listed, _lengths(found)],
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
    raise TypeError(f"no entity or body has a field of type {type(found).__name__}")


def _lengths(found: inspect.BytesType | inspect.ListType | inspect.VarTupleType) -> Meta:
    return Meta(min_length=found.min_length, max_length=found.max_length)


@cache
def struct_form(struct: type[Entity] | type[Body]) -> Form:
    """How an entity without its key, or a body, travels: an object with the same fields, and the same ones optional."""
    shapes = fields_of(struct)
    forms = {field.name: form_of(field.shape) for field in shapes}
    members = [_member(field, forms[field.name]) for field in shapes]
    view = _define(struct.__name__, members, getdoc(struct), strict=issubclass(struct, Body))

    def show(value: msgspec.Struct) -> msgspec.Struct:
        return view(**{name: form.show(getattr(value, name)) for name, form in forms.items()})

    def parse(shown: msgspec.Struct) -> msgspec.Struct:
        return struct(**{name: form.parse(getattr(shown, name)) for name, form in forms.items()})

    return Form(view, show, parse)


def _member(field: FieldShape, form: Form) -> tuple[Any, ...]:
    """A field of a struct that travels, as :func:`msgspec.defstruct` takes it."""
    described: Any = Annotated[form.type, Meta(description=text_of(field.shape))]
    if field.required:
        return field.name, described
    default = form.show(field.default)
    return field.name, described, msgspec.field(default_factory=lambda: default)


def _define(name: str, members: Iterable[Any], doc: str | None, *, strict: bool = False) -> type[msgspec.Struct]:
    return msgspec.defstruct(
        name,
        members,
        frozen=True,
        kw_only=True,
        forbid_unknown_fields=strict,
        namespace={"__doc__": doc},
        module=__name__,
    )


class EntityView:
    """The JSON forms of one table; make it with :func:`view_of`.

    ``type`` is the struct of an entity with its key, ``params`` that of the key alone.
    """

    def __init__(self, table: EntityTable[Any]) -> None:
        self.table = table
        keys = [FieldShape(part.name, shape_of(part.type), True, None) for part in table.parts]
        fields = fields_of(table.entity)
        self._key_forms = {key.name: form_of(key.shape) for key in keys}
        self._forms = {field.name: form_of(field.shape) for field in fields}
        twice = self._key_forms.keys() & self._forms.keys()
        if twice:
            raise TypeError(f"{table.name}: {min(twice)} is a part of the key and a field")
        name = "".join(word.capitalize() for word in table.name.split("_"))
        key_members = [_member(key, self._key_forms[key.name]) for key in keys]
        # An entity is always whole: what is optional in the state is written out too.
        members = [_member(field._replace(required=True), self._forms[field.name]) for field in fields]
        self.type = _define(f"{name}View", [*key_members, *members], getdoc(table.entity))
        self.params = _define(
            f"{name}Key", key_members, f"The key of an entity of the table {table.name}.", strict=True
        )

    def show(self, key: tuple[KeyValue, ...], entity: Entity) -> msgspec.Struct:
        """The entity under ``key`` as it travels."""
        keys = {
            name: form.show(value)
            for (name, form), value in zip(self._key_forms.items(), key, strict=True)
        }
        return self.type(
            **keys, **{name: form.show(getattr(entity, name)) for name, form in self._forms.items()}
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

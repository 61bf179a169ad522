"""Looks into the types of a struct's fields: what the JSON forms, search terms and options are derived from."""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

import msgspec
from msgspec import inspect

_NONE: Mapping[str, Any] = MappingProxyType({})


class Shape(NamedTuple):
    """A type: what ``msgspec.inspect`` says of it, the ``extra`` of its ``Meta``, and whether None may stand there."""

    type: inspect.Type
    extra: Mapping[str, Any]
    optional: bool = False

    @property
    def fixed_bytes(self) -> int | None:
        """The length of a byte string that has one length only; None for every other type."""
        found = self.type
        if isinstance(found, inspect.BytesType) and found.min_length == found.max_length:
            return found.min_length
        return None

    @property
    def item(self) -> "Shape | None":
        """The type of the items of a list or of a tuple of any length; None for every other type."""
        if isinstance(self.type, inspect.ListType | inspect.VarTupleType):
            return unwrap(self.type.item_type)
        return None

    @property
    def members(self) -> "tuple[Shape, ...]":
        """The types of the places of a tuple of fixed length; empty for every other type."""
        if isinstance(self.type, inspect.TupleType):
            return tuple(unwrap(member) for member in self.type.item_types)
        return ()


class FieldShape(NamedTuple):
    """A field of a struct: its name, its type, and whether it has to be given."""

    name: str
    shape: Shape
    required: bool
    default: Any


def unwrap(type_: inspect.Type) -> Shape:
    """The type without its metadata, and the ``extra`` of that."""
    extra = _NONE
    optional = False
    while isinstance(type_, inspect.Metadata | inspect.UnionType):
        if isinstance(type_, inspect.Metadata):
            extra = {**(type_.extra or {}), **extra}
            type_ = type_.type
            continue
        others = [each for each in type_.types if not isinstance(each, inspect.NoneType)]
        if len(others) != 1 or len(others) == len(type_.types):
            break
        type_, optional = others[0], True
    return Shape(type_, extra, optional)


def shape_of(type_: Any) -> Shape:
    """Returns the shape of a Python type annotation."""
    return unwrap(inspect.type_info(type_))


def fields_of(struct: type[msgspec.Struct]) -> tuple[FieldShape, ...]:
    """The fields of a struct, in order."""
    shape = shape_of(struct)
    if not isinstance(shape.type, inspect.StructType):
        raise TypeError(f"{struct} is no struct")
    return tuple(
        FieldShape(
            field.name,
            unwrap(field.type),
            field.required,
            field.default_factory() if field.default_factory is not msgspec.NODEFAULT else field.default,
        )
        for field in shape.type.fields
    )


def fixed_bytes(type_: Any) -> int | None:
    """The length of a byte string type that has one length only; None for every other type."""
    return shape_of(type_).fixed_bytes


def integer_bytes(type_: Any) -> int | None:
    """How many bytes hold every value of a bounded integer type from 0 on; None for every other type."""
    found = shape_of(type_).type
    if isinstance(found, inspect.IntType) and found.ge == 0 and found.le is not None:
        return (found.le.bit_length() + 7) // 8
    return None

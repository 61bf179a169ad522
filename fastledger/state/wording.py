"""What a field may hold, in a few words for people: the same in documents, schemas and the help of commands."""

from collections.abc import Mapping
from enum import Enum
from typing import Any

from msgspec import inspect

from fastledger.model.shape import Shape
from fastledger.model.terms import TOKEN


def text_of(shape: Shape) -> str:
    """Says what a value of the type is and within which bounds, such as ``1 to 64 of: id of a folder``."""
    meant = _meaning(shape.extra)
    if meant is not None:
        return f"{meant}, or nothing" if getattr(shape.type, "min_length", 1) is None else meant
    found = shape.type
    if isinstance(found, inspect.BytesType):
        if found.min_length is None and found.max_length is None:
            return "bytes"
        return f"{_bounds(found.min_length, found.max_length)} bytes"
    if isinstance(found, inspect.StrType):
        return f"text of {_bounds(found.min_length, found.max_length)} characters"
    if isinstance(found, inspect.IntType):
        return f"whole number, {_bounds(found.ge, found.le)}"
    if isinstance(found, inspect.BoolType):
        return "yes or no"
    if isinstance(found, inspect.EnumType):
        return f"one of {', '.join(str(member.value) for member in found.cls)}"
    if isinstance(found, inspect.StructType):
        return found.cls.__name__
    if isinstance(found, inspect.ListType | inspect.VarTupleType) and shape.item is not None:
        return f"{_bounds(found.min_length, found.max_length)} of: {text_of(shape.item)}"
    if shape.members:
        return f"({'; '.join(text_of(member) for member in shape.members)})"
    return type(found).__name__.removesuffix("Type").lower()


def name_of(member: Any) -> str:
    """The text that stands for a member of an enum, or for a name that is a text already."""
    return str(member.value if isinstance(member, Enum) else member)


def _meaning(extra: Mapping[str, Any]) -> str | None:
    """What the ``extra`` of the type's ``Meta`` says it is; None where it says nothing of that."""
    if extra.get("blob"):
        return "digest of an envelope that is stored already"
    table = extra.get("table")
    if table is not None:
        name = table.name.replace("_", " ")
        return f"id of {'an' if name[0] in 'aeiou' else 'a'} {name}"
    if extra.get("identity"):
        return "id of an identity"
    if extra.get("term") == TOKEN:
        return "blind token"
    if "mask" in extra:
        return f"set of {', '.join(name_of(name) for name in extra['mask'])}"
    return "time" if extra.get("time") else None


def _bounds(low: int | None, high: int | None) -> str:
    if high is None:
        return "any number" if low is None else f"{low:,} or more"
    if low == high:
        return f"{low:,}"
    return f"{low or 0:,} to {high:,}"

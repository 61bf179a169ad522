"""Options of the command line from the types of fields: what is typed, and the value that it stands for."""

from collections.abc import Callable, Collection, Mapping, Sequence
from enum import Enum
from pathlib import Path
from typing import Any

import click
import msgspec
from msgspec import inspect

from fastledger.cli.options import TIME, HexBytes
from fastledger.limits import BLOB_BYTES_MAX
from fastledger.model.fields import ID_BYTES
from fastledger.model.ids import random_id
from fastledger.model.shape import Shape
from fastledger.state.views import form_of
from fastledger.state.wording import name_of, text_of

NEW = "new"
PREFIX = "field_"
"""Stands before the names under which a command gets the values, so that none is another option's."""


def flag_of(name: str) -> str:
    """Returns the option of a field: ``until_ms`` is ``--until``, since a time is not typed in milliseconds alone."""
    return f"--{name.removesuffix('_ms').replace('_', '-')}"


def option_of(
    name: str,
    shape: Shape,
    *,
    required: bool,
    default: Any = None,
    lookup: str = "",
    taken: Collection[str] = (),
    subject: str = "",
) -> click.Option:
    """Returns the option that fills the field or argument ``name`` with a value of the type ``shape``.

    ``default`` and ``lookup`` are only told in the help: what is left out stays out. Where the option's name is among
    ``taken``, it gets the subject's before it.
    """
    flag = flag_of(name)
    if flag in taken:
        flag = f"--{subject}-{flag.removeprefix('--')}"
    help_text = _help_of(shape)
    if lookup:
        help_text += f"; {lookup}"
    elif default not in (None, [], b"", ()):
        shown = form_of(shape).show(default)
        help_text += f"; {', '.join(shown) if isinstance(shown, list) else name_of(shown)} if left out"
    flags = f"{flag}/--no-{flag.removeprefix('--')}" if isinstance(shape.type, inspect.BoolType) else flag
    several = _item_of(shape)
    return click.Option(
        [flags, PREFIX + name],
        type=type_of(several or shape),
        required=required and (several is None or bool(_length_min(shape))),
        multiple=several is not None,
        metavar=_metavar_of(several or shape),
        help=f"{help_text}.",
        callback=_gather(shape) if several is not None else None,
    )


def _help_of(shape: Shape) -> str:
    text = text_of(shape)
    if shape.extra.get("time"):
        text += ", such as 2026-01-31T08:30Z, or UTC milliseconds"
    elif isinstance(shape.type, inspect.IntType):
        text = text if "mask" in shape.extra else text.partition(",")[0]  # click tells the bounds
    return text[0].upper() + text[1:]


def _metavar_of(shape: Shape) -> str | None:
    """A word in the place of all choices, which the help lists; None for what click says by itself."""
    if "mask" in shape.extra:
        return "NAME"
    return shape.type.cls.__name__.upper() if isinstance(shape.type, inspect.EnumType) else None


def _item_of(shape: Shape) -> Shape | None:
    """What is typed again and again: an item of a list, a member of a set; None where one value is all."""
    if "mask" in shape.extra:
        return shape
    # A list in a list has no form of its own on a command line.
    return shape.item if shape.item is not None and shape.item.item is None else None


def _length_min(shape: Shape) -> int:
    found = shape.type
    return (found.ge if isinstance(found, inspect.IntType) else getattr(found, "min_length", None)) or 0


def _gather(shape: Shape) -> Callable[[click.Context, click.Parameter, Any], Any]:
    """Makes what follows the parsing of an option that may be repeated: the list or the set, within its bounds."""
    bits: Mapping[str, int] = {name_of(name): bit for name, bit in shape.extra.get("mask", {}).items()}
    length_max = getattr(shape.type, "max_length", None)

    def gather(ctx: click.Context, param: click.Parameter, values: Sequence[Any] | None) -> Any:
        if not values:
            return None
        if bits:
            return sum(bits[name] for name in dict.fromkeys(values))
        if not _length_min(shape) <= len(values) <= (length_max or len(values)):
            raise click.BadParameter(f"is given {len(values)} times, expected {text_of(shape)}", ctx, param)
        return list(values)

    return gather


def type_of(shape: Shape) -> click.ParamType[Any]:
    """Returns how one value of a type is typed: an id or a key in hexadecimal, other bytes also as ``@FILE``."""
    found = shape.type
    if "mask" in shape.extra:
        return click.Choice([name_of(name) for name in shape.extra["mask"]], case_sensitive=False)
    if isinstance(found, inspect.BytesType):
        if shape.fixed_bytes == ID_BYTES and shape.extra.get("table") is not None:
            return EntityId()
        if shape.fixed_bytes is not None:
            return HexBytes(shape.fixed_bytes)
        return AnyBytes(found.min_length or 0, found.max_length or BLOB_BYTES_MAX)
    if isinstance(found, inspect.IntType):
        return Within(TIME, found.ge, found.le) if shape.extra.get("time") else click.IntRange(found.ge, found.le)
    if isinstance(found, inspect.BoolType):
        return click.BOOL
    if isinstance(found, inspect.EnumType):
        return EnumChoice(found.cls)
    if isinstance(found, inspect.StrType):
        return click.STRING
    if shape.members:
        return click.Tuple([type_of(member) for member in shape.members])
    return Json(shape)


class EntityId(HexBytes):
    """The key of an entity: 16 bytes in hexadecimal, or ``new`` for a fresh one from the operating system."""

    name = "id"

    def __init__(self) -> None:
        super().__init__(ID_BYTES)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> bytes:
        """Returns the 16 bytes, or fails with a usage error."""
        return random_id() if value == NEW else super().convert(value, param, ctx)


class AnyBytes(click.ParamType[bytes]):
    """Bytes of any length within bounds: in hexadecimal, or ``@FILE`` for what is in a file."""

    name = "hex|@file"

    def __init__(self, length_min: int, length_max: int) -> None:
        self.length_min = length_min
        self.length_max = length_max

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> bytes:
        """Returns the bytes, or fails with a usage error."""
        if isinstance(value, bytes):
            return value
        if value.startswith("@"):
            data = self._read(Path(value[1:]), param, ctx)
        else:
            try:
                data = bytes.fromhex(value)
            except ValueError:
                self.fail("is neither hexadecimal nor @FILE", param, ctx)
        if not self.length_min <= len(data) <= self.length_max:
            self.fail(f"has {len(data)} bytes, not {self.length_min} to {self.length_max}", param, ctx)
        return data

    def _read(self, path: Path, param: click.Parameter | None, ctx: click.Context | None) -> bytes:
        try:
            with path.open("rb") as file:
                return file.read(self.length_max + 1)
        except OSError as error:
            self.fail(f"the file cannot be read: {error.strerror}", param, ctx)


class Within(click.ParamType[int]):
    """A number that ``inner`` reads, from ``low`` to ``high``; None is no bound."""

    def __init__(self, inner: click.ParamType[int], low: int | None, high: int | None) -> None:
        self.name = inner.name
        self.inner = inner
        self.low = low
        self.high = high

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        """Returns the number, or fails with a usage error."""
        number = self.inner.convert(value, param, ctx)
        if (self.low is not None and number < self.low) or (self.high is not None and number > self.high):
            self.fail(f"is out of bounds: {self.low} to {self.high}", param, ctx)
        return number


class EnumChoice(click.Choice[Any]):
    """A member of an enum, typed as its value in either case."""

    def __init__(self, enum: type[Enum]) -> None:
        super().__init__([str(member.value) for member in enum], case_sensitive=False)
        self.members = {str(member.value): member for member in enum}

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Returns the member, or fails with a usage error."""
        if isinstance(value, Enum):
            return value
        return self.members[super().convert(value, param, ctx)]


class Json(click.ParamType[Any]):
    """A value of a type that has no other form on a command line, as JSON has it in ``/openrpc.json``."""

    name = "json"

    def __init__(self, shape: Shape) -> None:
        self.form = form_of(shape)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Returns the value, or fails with a usage error that repeats nothing of it."""
        if not isinstance(value, str):
            return value
        try:
            return self.form.parse(msgspec.json.decode(value, type=self.form.type))
        except (msgspec.DecodeError, ValueError):
            self.fail("is not JSON of that form", param, ctx)

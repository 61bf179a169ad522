"""What a command has to be told to make a transaction of a kind, and how it makes it.

A kind has the fields of its body for options, and the body's constructor makes it; where keys go into the body, the
options are the arguments of the wallet's builder (:mod:`fastledger.wallet.builders`).
"""

import inspect
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, get_args, get_origin, get_type_hints

import click

from fastledger.cli.derived.fields import PREFIX, flag_of, option_of
from fastledger.client.api import LedgerApi
from fastledger.errors import Code, InputError
from fastledger.model.body import body_map, parse_body
from fastledger.model.fields import ID_BYTES
from fastledger.model.shape import FieldShape, fields_of, shape_of
from fastledger.model.transaction import Transaction
from fastledger.state.kind import Kind
from fastledger.wallet.builders import BUILDERS, Builder
from fastledger.wallet.wallet import SealedRecord, Wallet


@dataclass(frozen=True, slots=True)
class Made:
    """A signed transaction and the envelopes that go along."""

    transaction: Transaction
    blobs: tuple[bytes, ...] = ()


class CommandPlan(Protocol):
    """How transactions of one kind are made."""

    options: list[click.Parameter]
    heir: str | None
    summary: str

    def make(self, wallet: Wallet, ledger: LedgerApi, values: Mapping[str, Any]) -> Made:
        """Makes and signs one from what the options said; a value of None was left out."""


def plan_of(kind: Kind, taken: Collection[str]) -> CommandPlan:
    """Returns the plan of a kind; its options have no name that is ``taken``."""
    builder = BUILDERS.get(kind.body)
    return _FromFields(kind, taken) if builder is None else _FromBuilder(kind, builder, taken)


class _FromFields:
    """The fields of the body are the options."""

    heir: str | None = None

    def __init__(self, kind: Kind, taken: Collection[str]) -> None:
        self._kind = kind
        self.summary = kind.body.__doc__ or ""
        self.options: list[click.Parameter] = [
            option_of(
                field.name,
                field.shape,
                required=field.required,
                default=None if field.required else field.default,
                taken=taken,
                subject=kind.subject,
            )
            for field in fields_of(kind.body)
        ]

    def make(self, wallet: Wallet, ledger: LedgerApi, values: Mapping[str, Any]) -> Made:
        given = {name: value for name, value in values.items() if value is not None}
        for field in fields_of(self._kind.body):
            if field.required and field.name not in given:  # an option without which the list or set is empty
                given[field.name] = 0 if "mask" in field.shape.extra else []
        try:
            body = self._kind.body(**given)
        except ValueError:  # its own check; what that says could repeat a value
            raise InputError(f"the body does not fit {self._kind.name}", code=Code.BAD_BODY) from None
        # Constructors check no bounds: what the options let through is refused here, before it is signed.
        return Made(wallet.sign(parse_body(self._kind.name, body_map(body))))


class _FolderName(click.ParamType[str | bytes]):
    """A folder by its label in the wallet, or by its id in hexadecimal."""

    name = "label|id"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str | bytes:
        """Returns the 16 bytes of what looks like an id, and every other text as it is."""
        try:
            found = bytes.fromhex(value)
        except (TypeError, ValueError):
            return value  # type: ignore[no-any-return]
        return found if len(found) == ID_BYTES else value


def _special_type(hint: Any) -> tuple[click.ParamType[Any], str, bool] | None:
    """The option's type, its help and whether it may be repeated, for an argument that is no field of any body."""
    if get_origin(hint) in (Sequence, Iterable):
        inner = _special_type(get_args(hint)[0])
        return None if inner is None else (inner[0], inner[1], True)
    if hint is Wallet:
        return click.STRING, "Name of a wallet in the keystore", False
    if hint == str | bytes:
        return _FolderName(), "A folder, by its label in the wallet or its id", False
    return (click.STRING, "Text", False) if hint is str else None


class _FromBuilder:
    """The arguments of the wallet's method are the options."""

    def __init__(self, kind: Kind, builder: Builder, taken: Collection[str]) -> None:
        self._builder = builder
        self.heir = builder.heir
        self.summary = builder.method.__doc__ or ""
        self._parameters = dict(list(inspect.signature(builder.method).parameters.items())[1:])
        hints = get_type_hints(builder.method)
        fields = {flag_of(field.name): field for field in fields_of(kind.body)}
        self.options: list[click.Parameter] = [
            self._option(parameter, hints[name], fields.get(flag_of(name)), taken, kind.subject)
            for name, parameter in self._parameters.items()
        ]

    def _option(
        self,
        parameter: inspect.Parameter,
        hint: Any,
        field: FieldShape | None,
        taken: Collection[str],
        subject: str,
    ) -> click.Parameter:
        name = parameter.name
        lookup = self._builder.lookups.get(name)
        several = parameter.kind is parameter.VAR_POSITIONAL
        required = lookup is None and (several or parameter.default is parameter.empty)
        told = f"that of the {lookup.table.name.replace('_', ' ')} if left out" if lookup else ""
        special = _special_type(hint)
        if special is None:
            default = None if parameter.default in (parameter.empty, None, ()) else parameter.default
            return option_of(
                name,
                field.shape if field is not None else shape_of(hint),
                required=required,
                default=default,
                lookup=told,
                taken=taken,
                subject=subject,
            )
        type_, text, is_list = special
        notes = [text, "may be repeated" if several or is_list else "", told]
        return click.Option(
            [flag_of(name), PREFIX + name],
            type=type_,
            required=required,
            multiple=several or is_list,
            help="; ".join(note for note in notes if note) + ".",
        )

    def make(self, wallet: Wallet, ledger: LedgerApi, values: Mapping[str, Any]) -> Made:
        given = {name: value for name, value in values.items() if value not in (None, ())}
        for name, lookup in self._builder.lookups.items():
            if name not in given:
                entity = ledger.entity(lookup.table, given[lookup.by])
                given[name] = getattr(entity, lookup.field)
        positional: list[Any] = []
        for name, parameter in self._parameters.items():
            if parameter.kind is parameter.VAR_POSITIONAL:
                positional = list(given.pop(name, ()))
        made = self._builder.method(wallet, *positional, **given)
        return Made(made.transaction, (made.blob,)) if isinstance(made, SealedRecord) else Made(made)

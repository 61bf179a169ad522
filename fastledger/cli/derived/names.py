"""Names that subjects declare, for the completions of a shell; and the ids that a transaction names."""

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import click
from click.shell_completion import CompletionItem

from fastledger.errors import Code

if TYPE_CHECKING:
    from fastledger.model.transaction import Transaction


def completed(names: Iterable[str], incomplete: str) -> list[CompletionItem]:
    """Returns the names that begin with what was typed so far."""
    return [CompletionItem(name) for name in names if name.startswith(incomplete)]


def complete_kind(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Completes the name of a kind of transaction."""
    from fastledger.subjects.catalogue import REGISTRY

    return completed(REGISTRY.kinds, incomplete)


def complete_table_id(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Completes the table of ``TABLE=ID``: those whose entities transactions are found by."""
    from fastledger.subjects.catalogue import REGISTRY

    return completed((f"{name}=" for name, table in REGISTRY.tables.items() if table.is_indexed), incomplete)


def complete_code(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Completes the name of a code with which rules refuse."""
    from fastledger.subjects import catalogue

    subjects = catalogue.REGISTRY.subjects
    refusals: list[Code] = [code for subject in subjects for code in subject.refusals]
    return [CompletionItem(code.slug, help=code.text) for code in refusals if code.slug.startswith(incomplete)]


def ids_in(transaction: "Transaction") -> dict[str, Any]:
    """Returns the ids that a body names, in hexadecimal, by the names of their fields."""
    from fastledger.model.shape import fields_of
    from fastledger.subjects.catalogue import REGISTRY

    kind = REGISTRY.kinds.get(transaction.kind)
    body = transaction.body_map
    found: dict[str, Any] = {}
    for field in fields_of(kind.body) if kind is not None else ():
        shape = field.shape.item or field.shape
        if field.name in body and (shape.extra.get("identity") or shape.extra.get("table")):
            value = body[field.name]
            found[field.name] = [item.hex() for item in value] if isinstance(value, list) else value.hex()
    return found

"""``fastledger show``: a command for each table of entities that the subjects declare."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import click
import msgspec
from click.shell_completion import CompletionItem

from fastledger.cli.derived.names import completed
from fastledger.cli.options import (
    ID16,
    HexBytes,
    LedgerCommand,
    LedgerTarget,
    command_options,
    ledger_options,
)
from fastledger.cli.output import Output
from fastledger.limits import QUERY_PAGE_DEFAULT, QUERY_PAGE_MAX

if TYPE_CHECKING:
    from fastledger.state.entity import EntityTable


class _Tables(click.Group):
    """Its commands are the tables; they are looked up when they are asked for."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Returns the tables' names."""
        from fastledger.subjects.catalogue import REGISTRY

        return sorted(REGISTRY.tables)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Returns the command of one table, None where there is none of that name."""
        from fastledger.subjects.catalogue import REGISTRY

        table = REGISTRY.tables.get(cmd_name.replace("-", "_"))
        return None if table is None else command_of(table)


class _ShowCommand(LedgerCommand):
    """The command of one table."""

    table: "EntityTable[Any]"

    def leaves_ledger_out(self, ctx: click.Context, args: Sequence[str]) -> bool:
        """Whether the arguments are a key and nothing before it, or there are none."""
        given, _, _ = self.make_parser(ctx).parse_args(list(args))
        place, parts = given.get("place"), given.get("parts")
        if not isinstance(place, str):
            return True
        try:
            _key(self.table, (place, *(parts if isinstance(parts, tuple) else ())))
        except click.UsageError:
            return False
        return True


@click.command(cls=_Tables)
def show() -> None:
    """Show an entity of the state, or a list: show TABLE LEDGER KEY."""


def command_of(table: "EntityTable[Any]") -> click.Command:
    """Returns the command that shows an entity of ``table`` by its key, or a list of them where there is one."""
    names = [part.name.upper() for part in table.parts]
    conditions = ", ".join(table.listed_by)

    @click.command(table.name, cls=_ShowCommand, short_help=table.summary.replace("``", ""))
    @ledger_options
    @click.argument("parts", nargs=-1, metavar=f"[{' '.join(names)}]")
    @command_options
    def run(
        output: Output,
        target: LedgerTarget,
        parts: tuple[str, ...],
        by: tuple[tuple[str, bytes], ...] = (),
        cursor: int | None = None,
        limit: int = QUERY_PAGE_DEFAULT,
    ) -> None:
        from fastledger.state.views import view_of

        view = view_of(table)
        values = _key(table, parts)
        if by and values:
            raise click.UsageError(f"either {' '.join(names)} or --by, not both")
        with target.open(replica=True) as ledger:
            if values:
                output.answer(msgspec.to_builtins(view.show(values, ledger.entity(table, *values))))
                return
            page = ledger.entities(table, by=dict(by), cursor=cursor, limit=limit)
        items = [msgspec.to_builtins(view.show(item.key, item.entity)) for item in page.items]
        output.answer({"items": items, "next_cursor": page.next_cursor})

    run.table = table
    run.help = f"{(table.entity.__doc__ or '').replace('``', '')}\n\nShows the one under {' and '.join(names)}"
    if table.is_indexed:
        run.help += ", or without a key the list of all"
        if conditions:
            help_text = f"Only those whose field has the id; fields: {conditions}. May be repeated."
            run.params.append(click.Option(["--by"], type=Condition(table), multiple=True, help=help_text))
        run.params += [
            click.Option(["--cursor"], type=click.IntRange(0), help="Go on from the page before's next_cursor."),
            click.Option(
                ["--limit"],
                type=click.IntRange(1, QUERY_PAGE_MAX),
                default=QUERY_PAGE_DEFAULT,
                show_default=True,
                help="How many at most.",
            ),
        ]
    run.help += "."
    return run


def _key(table: "EntityTable[Any]", texts: tuple[str, ...]) -> tuple[bytes | int, ...]:
    """The parts of a key as they were typed; empty for a list; a usage error for what is neither."""
    if not texts and table.is_indexed:
        return ()
    if len(texts) != len(table.parts):
        raise click.UsageError(f"the key of a {table.name} is {' '.join(part.name.upper() for part in table.parts)}")
    values: list[bytes | int] = []
    for part, text in zip(table.parts, texts, strict=True):
        type_: click.ParamType[Any] = click.IntRange(0) if part.is_integer else HexBytes(part.size_bytes)
        try:
            values.append(type_(text))
        except click.BadParameter as error:
            error.param_hint = f"'{part.name.upper()}'"
            raise
    return tuple(values)


class Condition(click.ParamType[tuple[str, bytes]]):
    """``FIELD=ID``: a field by which a table is listed, and 16 bytes in hexadecimal."""

    name = "field=id"

    def __init__(self, table: "EntityTable[Any]") -> None:
        self.fields = tuple(table.listed_by)

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[str, bytes]:
        """Returns the field and the bytes, or fails with a usage error."""
        if isinstance(value, tuple):
            return value
        name, equals, text = value.partition("=")
        if not equals or name not in self.fields:
            self.fail(f"expected FIELD=ID, where FIELD is one of {', '.join(self.fields)}", param, ctx)
        return name, ID16.convert(text, param, ctx)

    def shell_complete(
        self, ctx: click.Context, param: click.Parameter, incomplete: str
    ) -> list[CompletionItem]:
        """Returns the fields that begin so."""
        return completed((f"{name}=" for name in self.fields), incomplete)

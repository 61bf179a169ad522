"""The answers of commands: a table for people or one JSON document for programs, and exit codes that mean something.

====  ==================================================================
code  meaning
====  ==================================================================
0     done, and what was checked is right
1     done, and what was checked is wrong (``verify``, ``verify-receipt``, ``demo``), or not all of it could
      be done (``ingest`` with refused resources)
2     the command line is wrong
3     the input is at fault: sending it again cannot help
4     the ledger is busy or locked, or the node away: try again later
5     the ledger or its disk is at fault: an operator must look
====  ==================================================================
"""

import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from enum import IntEnum
from typing import Any, NoReturn

import click
import msgspec

from fastledger.errors import (
    AccessRefused,
    FastLedgerError,
    FhirError,
    InputError,
    LedgerBusyError,
    LedgerLockedError,
    UnreachableError,
)
from fastledger.times import time_text

# How the names of moments end; every other number of milliseconds is a duration.
_MOMENTS = tuple(
    f"_{name}_ms" for name in ("time", "created", "issued", "expires", "started", "until", "not_after", "revoked")
)


class Exit(IntEnum):
    """The exit codes; the module's docstring says what they mean."""

    OK = 0
    WRONG = 1
    USAGE = 2
    INPUT = 3
    RETRY = 4
    LEDGER = 5


def exit_code(error: FastLedgerError) -> Exit:
    """Returns the exit code for an error."""
    if isinstance(error, InputError):
        return Exit.INPUT
    if isinstance(error, LedgerBusyError | LedgerLockedError | UnreachableError):
        return Exit.RETRY
    return Exit.LEDGER


class Output:
    """Writes a command's answer to standard output; progress and errors go to standard error."""

    def __init__(self, *, as_json: bool) -> None:
        self.as_json = as_json

    def answer(self, value: Mapping[str, Any], title: str = "") -> None:
        """Writes the command's result: one JSON object, or lines of names and values."""
        if self.as_json:
            click.echo(msgspec.json.encode(value).decode())
            return
        if title:
            click.secho(title, bold=True)
        for name, item in _for_people(value).items():
            if isinstance(item, list):
                click.echo(f"{name}: {len(item)}")
                for line in item:
                    click.echo(f"  {_line(line)}")
            elif isinstance(item, Mapping):
                click.echo(f"{name}: {_line(item)}")
            else:
                click.echo(f"{name}: {item}")

    def table(self, title: str, header: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
        """Writes a table for people; in JSON mode nothing."""
        if self.as_json:
            return
        from rich.console import Console
        from rich.table import Table

        table = Table(*header, title=title, title_justify="left")
        for row in rows:
            table.add_row(*(str(cell) for cell in row))
        Console(width=None if sys.stdout.isatty() else 110).print(table)

    def say(self, text: str) -> None:
        """Writes a line for people; in JSON mode nothing."""
        if not self.as_json:
            click.echo(text)

    @contextmanager
    def progress(self, label: str) -> "Iterator[ProgressBar]":
        """Shows a progress bar on standard error, where that is a terminal and no JSON is asked for; yields it."""
        if self.as_json or not sys.stderr.isatty():
            yield ProgressBar(None, 0)
            return
        from rich.console import Console
        from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            TaskProgressColumn(),
            TimeRemainingColumn(),
        )
        with Progress(*columns, console=Console(stderr=True), transient=True) as display:
            yield ProgressBar(display, display.add_task(label, total=None))


class ProgressBar:
    """A progress bar on the terminal, or none."""

    def __init__(self, display: Any, task: int) -> None:
        self._display = display
        self._task = task

    def update(self, done: int, total: int, label: str | None = None) -> None:
        """Moves the bar to ``done`` of ``total``, and changes its label where one is given."""
        if self._display is not None:
            changes = {} if label is None else {"description": label}
            self._display.update(self._task, completed=done, total=total, **changes)


def _for_people(value: Any) -> Any:
    """An answer with its moments as ISO 8601 text, under names without the unit; 0 stands for none."""
    if isinstance(value, list):
        return [_for_people(item) for item in value]
    if not isinstance(value, Mapping):
        return value
    shown: dict[str, Any] = {}
    for name, item in value.items():
        if isinstance(item, int) and f"_{name}".endswith(_MOMENTS):
            shown[name.removesuffix("_ms")] = time_text(item) if item else "-"
        else:
            shown[name] = _for_people(item)
    return shown


def _line(item: Any) -> str:
    if isinstance(item, Mapping):
        return "  ".join(f"{name}={value}" for name, value in item.items())
    return str(item)


def fail(error: FastLedgerError, *, as_json: bool) -> NoReturn:
    """Reports an error on standard error and ends with its exit code."""
    code = exit_code(error)
    if as_json:
        report: dict[str, Any] = {"error": error.code.slug, "code": int(error.code), "message": str(error)}
        if isinstance(error, FhirError):
            report["issues"] = [list(issue) for issue in error.issues]
        if isinstance(error, AccessRefused):
            report["txid"] = error.txid.hex()
        click.echo(msgspec.json.encode(report).decode(), err=True)
    else:
        click.secho(f"error: {error}", fg="red", err=True)
        if isinstance(error, FhirError):
            for path, problem in error.issues:
                click.echo(f"  {path}: {problem}", err=True)
    raise click.exceptions.Exit(int(code))

"""Options that several commands share, and how their values become keys, ids and open ledgers."""

from collections.abc import Callable
from functools import update_wrapper
from pathlib import Path
from typing import Any, TypeVar

import click

from fastledger.cli.output import Output, fail
from fastledger.errors import Code, FastLedgerError, InputError

CommandT = TypeVar("CommandT", bound=Callable[..., Any])
PASSWORD_VARIABLE = "FASTLEDGER_PASSWORD"  # noqa: S105 - the name of a variable, not a password


def command_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """Adds ``--json``; the command gets an :class:`Output` and its errors become exit codes."""

    @click.option("--json", "as_json", is_flag=True, help="Answer with one JSON document.")
    def run(as_json: bool, **arguments: Any) -> Any:
        try:
            return function(output=Output(as_json=as_json), **arguments)
        except FastLedgerError as error:
            fail(error, as_json=as_json)

    return update_wrapper(run, function)


def ledger_argument(command: CommandT) -> CommandT:
    """The ledger directory, also from ``FASTLEDGER_LEDGER``."""
    return click.argument(
        "ledger_path", metavar="LEDGER", type=click.Path(path_type=Path), envvar="FASTLEDGER_LEDGER"
    )(command)


def keystore_option(command: CommandT) -> CommandT:
    """The keystore file, also from ``FASTLEDGER_KEYSTORE``."""
    return click.option(
        "--keystore",
        "keystore_path",
        type=click.Path(path_type=Path),
        required=True,
        envvar="FASTLEDGER_KEYSTORE",
        help="The sealed file that holds the wallets.",
    )(command)


def password_option(command: CommandT) -> CommandT:
    """Where the keystore's password comes from."""
    return click.option(
        "--password-file",
        type=click.Path(path_type=Path, dir_okay=False),
        help=f"File whose first line is the password; else {PASSWORD_VARIABLE}, else it is asked for.",
    )(command)


def read_password(password_file: Path | None, *, confirm: bool = False) -> str:
    """The password from file, environment or prompt."""
    import os

    if password_file is not None:
        try:
            return password_file.read_text().split("\n", 1)[0]
        except OSError as error:
            raise InputError(
                f"cannot read the password file: {error.strerror}", code=Code.BAD_KEYSTORE
            ) from None
    given = os.environ.get(PASSWORD_VARIABLE)
    if given is not None:
        return given
    answer: str = click.prompt("Password", hide_input=True, confirmation_prompt=confirm, err=True)
    return answer


class HexBytes(click.ParamType[bytes]):
    """A hexadecimal id of a fixed number of bytes."""

    name = "hex"

    def __init__(self, size: int) -> None:
        self.size = size

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> bytes:
        """The bytes, or a usage error."""
        if isinstance(value, bytes):
            return value
        try:
            data = bytes.fromhex(value)
        except ValueError:
            self.fail("is not hexadecimal", param, ctx)
        if len(data) != self.size:
            self.fail(f"has {len(data)} bytes, not {self.size}", param, ctx)
        return data


ID16 = HexBytes(16)
TXID = HexBytes(32)

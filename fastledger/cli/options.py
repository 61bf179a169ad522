"""Options that several commands share, and how their values become keys, ids and open ledgers."""

import errno
from collections.abc import Callable
from functools import update_wrapper
from pathlib import Path
from typing import Any, TypeVar

import click

from fastledger.cli.output import Output, fail
from fastledger.errors import Code, FastLedgerError, InputError, LedgerError, StorageFullError
from fastledger.limits import PASSWORD_BYTES_MAX

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
        except OSError as error:
            if error.errno == errno.EPIPE:  # whoever read the answer has gone: click ends quietly
                raise
            # Without the file's name: in exports it is often a patient's.
            full = error.errno in (errno.ENOSPC, errno.EDQUOT)
            kind = StorageFullError if full else LedgerError
            fail(kind(f"{error.strerror} (errno {error.errno})"), as_json=as_json)

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
            with password_file.open("rb") as file:
                return file.readline(PASSWORD_BYTES_MAX + 2).decode().rstrip("\r\n")
        except OSError as error:
            raise InputError(
                f"cannot read the password file: {error.strerror}", code=Code.BAD_KEYSTORE
            ) from None
        except UnicodeDecodeError:
            raise InputError("the password file is not UTF-8", code=Code.BAD_KEYSTORE) from None
    given = os.environ.get(PASSWORD_VARIABLE)
    if given is not None:
        return given
    return ask_password("Password", confirm=confirm)


def ask_password(label: str, *, confirm: bool) -> str:
    """The password from the terminal; raises ``InputError`` where nobody answers."""
    try:
        answer: str = click.prompt(label, hide_input=True, confirmation_prompt=confirm, err=True)
    except click.Abort:
        raise InputError("no password was given", code=Code.WRONG_PASSWORD) from None
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


CHAIN_ID = HexBytes(8)
ID16 = HexBytes(16)
TXID = HexBytes(32)

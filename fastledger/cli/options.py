"""Options that several commands share, and the ways from their values to keys, ids and open ledgers."""

import errno
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import update_wrapper
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from fastledger.cli.output import Output, fail
from fastledger.errors import Code, FastLedgerError, InputError, LedgerError, StorageFullError
from fastledger.limits import PASSWORD_BYTES_MAX
from fastledger.times import time_ms

if TYPE_CHECKING:
    from fastledger.client.api import LedgerApi
    from fastledger.client.sync import Client

CommandT = TypeVar("CommandT", bound=Callable[..., Any])
# As patient as the client library: a node that is being restarted comes back within it.
RETRY_FOR_S = 60
# As many digits as any 64-bit number has.
MS_DIGITS_MAX = 20
LEDGER_VARIABLE = "FASTLEDGER_LEDGER"
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


@dataclass(frozen=True, slots=True)
class LedgerTarget:
    """The ledger that a command is about: a directory, or a node by its URL and what it asks of a client."""

    place: str
    token_file: Path | None = None
    ca: Path | None = None
    certificate: Path | None = None
    key: Path | None = None
    retry_for_s: int = RETRY_FOR_S

    @property
    def is_node(self) -> bool:
        """Whether the ledger is a node's."""
        return self.place.startswith(("http://", "https://"))

    @property
    def path(self) -> Path:
        """The ledger directory; a usage error where it is a node's URL."""
        if self.is_node:
            raise click.UsageError("this command works on a ledger directory, not on a node")
        return Path(self.place)

    def open(self, *, replica: bool = False) -> "LedgerApi":
        """Opens the ledger, or connects to the node; either is a context manager and a ``LedgerApi``.

        ``replica``: a ledger is opened without its key, to be read.
        """
        if self.is_node:
            return self.connect()
        from fastledger.chain.ledger import Ledger

        return Ledger.open(self.path, replica=replica)

    def connect(self) -> "Client":
        """Returns a client of the node; a usage error for a directory."""
        if not self.is_node:
            raise click.UsageError("this command asks a node: give its URL")
        from fastledger.client.aio import ClientOptions
        from fastledger.client.http import ClientTls
        from fastledger.client.retry import Retry
        from fastledger.client.sync import Client

        token = None if self.token_file is None else _first_line(self.token_file, "token file")
        tls = ClientTls(self.ca, self.certificate, self.key)
        options = ClientOptions(retry=Retry(deadline_ms=self.retry_for_s * 1000))
        return Client.connect(self.place, token=token, tls=tls, options=options)


class LedgerCommand(click.Command):
    """A command whose first argument is LEDGER; ``--node URL`` and ``FASTLEDGER_LEDGER`` are other ways to give it."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Puts the URL of ``--node`` in the place of LEDGER, or what the environment says where LEDGER is left out."""
        args = _node_first(args)
        place = os.environ.get(LEDGER_VARIABLE)
        if place and not ctx.resilient_parsing and self.leaves_ledger_out(ctx, args):
            args = [place, *args]
        return super().parse_args(ctx, args)

    def leaves_ledger_out(self, ctx: click.Context, args: Sequence[str]) -> bool:
        """Whether there are fewer arguments than the command needs, so that LEDGER is not the first of them."""
        given, _, _ = self.make_parser(ctx).parse_args(list(args))
        needed = [param for param in self.params if isinstance(param, click.Argument) and param.required]
        return not all(isinstance(given.get(param.name), str | tuple) for param in needed if param.name)


def _node_first(args: Sequence[str]) -> list[str]:
    for place, argument in enumerate(args):
        if argument == "--":
            break
        if argument == "--node" and place + 1 < len(args):
            return [args[place + 1], *args[:place], *args[place + 2 :]]
        if argument.startswith("--node="):
            return [argument.removeprefix("--node="), *args[:place], *args[place + 1 :]]
    return list(args)


FILE = click.Path(path_type=Path, dir_okay=False)


def retry_option(command: CommandT) -> CommandT:
    """Adds ``--retry-for``, how long a node that does not answer is tried again."""
    return click.option(
        "--retry-for",
        "retry_for_s",
        type=click.IntRange(0, 86_400),
        default=RETRY_FOR_S,
        show_default=True,
        envvar="FASTLEDGER_RETRY_FOR_S",
        help="Seconds to go on trying a node that is busy or away.",
    )(command)


def ledger_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """Adds LEDGER (also from ``FASTLEDGER_LEDGER``) and how to reach a node: the command gets a ``LedgerTarget``."""

    def run(
        place: str,
        token_file: Path | None,
        ca: Path | None,
        certificate: Path | None,
        key: Path | None,
        retry_for_s: int,
        **arguments: Any,
    ) -> Any:
        target = LedgerTarget(place, token_file, ca, certificate, key, retry_for_s)
        return function(target=target, **arguments)

    wrapped: Callable[..., Any] = update_wrapper(run, function)
    for decorate in (
        retry_option,
        click.option("--key", type=FILE, envvar="FASTLEDGER_KEY", help="Its key, if in a file of its own."),
        click.option(
            "--cert",
            "certificate",
            type=FILE,
            envvar="FASTLEDGER_CERT",
            help="The client's certificate (PEM).",
        ),
        click.option(
            "--ca", type=FILE, envvar="FASTLEDGER_CA", help="Authorities to trust for a node (PEM)."
        ),
        click.option(
            "--token-file",
            type=FILE,
            envvar="FASTLEDGER_TOKEN_FILE",
            help="File whose first line is the token that the node asks for.",
        ),
        click.option("--node", metavar="URL", expose_value=False, help="The node, in the place of LEDGER."),
        click.argument("place", metavar="LEDGER", envvar=LEDGER_VARIABLE),
    ):
        wrapped = decorate(wrapped)
    return wrapped


def rate_option(command: CommandT) -> CommandT:
    """Adds ``--rate``, at which long work reads and writes at most."""
    return click.option(
        "--rate",
        type=click.IntRange(min=1),
        help="Bytes a second, at most; as fast as possible where it is left out.",
    )(command)


def keystore_option(command: CommandT) -> CommandT:
    """Adds ``--keystore``, the keystore's file, also from ``FASTLEDGER_KEYSTORE``."""
    return click.option(
        "--keystore",
        "keystore_path",
        type=click.Path(path_type=Path),
        required=True,
        envvar="FASTLEDGER_KEYSTORE",
        help="The sealed file that holds the wallets.",
    )(command)


def password_option(command: CommandT) -> CommandT:
    """Adds ``--password-file``, which holds the keystore's password."""
    return click.option(
        "--password-file",
        type=click.Path(path_type=Path, dir_okay=False),
        help=f"File whose first line is the password; else {PASSWORD_VARIABLE}, else it is asked for.",
    )(command)


def read_password(password_file: Path | None, *, confirm: bool = False) -> str:
    """Returns the password from the file, the environment or a prompt."""
    if password_file is not None:
        return _first_line(password_file, "password file")
    given = os.environ.get(PASSWORD_VARIABLE)
    if given is not None:
        return given
    return ask_password("Password", confirm=confirm)


def _first_line(path: Path, what: str) -> str:
    """Returns the first line of a file that holds a secret; raises ``InputError`` where it cannot be read."""
    try:
        with path.open("rb") as file:
            return file.readline(PASSWORD_BYTES_MAX + 2).decode().rstrip("\r\n")
    except OSError as error:
        raise InputError(f"cannot read the {what}: {error.strerror}", code=Code.BAD_KEYSTORE) from None
    except UnicodeDecodeError:
        raise InputError(f"the {what} is not UTF-8", code=Code.BAD_KEYSTORE) from None


def ask_password(label: str, *, confirm: bool) -> str:
    """Asks for the password on the terminal; raises ``InputError`` where nobody answers."""
    try:
        answer: str = click.prompt(label, hide_input=True, confirmation_prompt=confirm, err=True)
    except click.Abort:
        raise InputError("no password was given", code=Code.WRONG_PASSWORD) from None
    return answer


class HexBytes(click.ParamType[bytes]):
    """An id of a fixed number of bytes, in hexadecimal."""

    name = "hex"

    def __init__(self, size: int) -> None:
        self.size = size

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> bytes:
        """Returns the bytes, or fails with a usage error."""
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
class TableId(click.ParamType[tuple[str, bytes]]):
    """``TABLE=ID``: the name of a table of entities and a hexadecimal id of 16 bytes."""

    name = "table=id"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[str, bytes]:
        """The name and the bytes, or a usage error."""
        if isinstance(value, tuple):
            return value
        name, equals, text = value.partition("=")
        if not equals:
            self.fail("expected TABLE=ID, such as record=00112233445566778899aabbccddeeff", param, ctx)
        return name, ID16.convert(text, param, ctx)


class TimeType(click.ParamType[int]):
    """A moment: ISO 8601 text with an offset, or UTC milliseconds in digits. A command gets the milliseconds."""

    name = "time"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        """Returns UTC milliseconds, or fails with a usage error that says how a time is written."""
        if isinstance(value, str) and value.isascii() and value.removeprefix("-").isdigit():
            return int(value[:MS_DIGITS_MAX])
        try:
            return time_ms(value)
        except InputError as error:
            self.fail(error.args[0], param, ctx)


ID16 = HexBytes(16)
TIME = TimeType()
TABLE_ID = TableId()
TXID = HexBytes(32)

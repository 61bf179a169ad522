"""What a command's exit code means, whatever went wrong."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import pytest
from commands import PASSWORD, Cli, make_cli

from fastledger import Ledger
from fastledger.cli.main import main
from fastledger.cli.output import Exit, exit_code
from fastledger.errors import (
    CorruptionError,
    FastLedgerError,
    InputError,
    LedgerBusyError,
    LedgerLockedError,
    NotFoundError,
    StorageFullError,
)

SCRIPT = Path(sys.executable).with_name("fastledger")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Cli:
    return make_cli(tmp_path_factory.mktemp("cli"))


EVERY_LEDGER_COMMAND = [
    ("status",),
    ("query",),
    ("verify",),
    ("reindex",),
    ("prove", "00" * 32, "-o", "x"),
    ("ingest", "."),
    ("read", "00" * 16, "--as", "organisation", "--purpose", "TREAT"),
]


@pytest.mark.parametrize("command", EVERY_LEDGER_COMMAND, ids=lambda command: command[0])
def test_no_ledger_and_a_locked_ledger(made: Cli, tmp_path: Path, command: tuple[str, ...]) -> None:
    name, *arguments = command
    absent = made.error(name, tmp_path / "absent", *arguments)
    assert absent["error"] == "not-found"
    with Ledger.open(made.ledger):
        locked = made.error(name, made.ledger, *arguments, code=Exit.RETRY)
        assert locked["error"] == "locked"
        text = made.run(name, made.ledger, *arguments, code=Exit.RETRY)
    assert "error: locked" in text.stderr
    assert text.stdout == ""


@pytest.mark.parametrize("command", ["ingest", "read", "keys"])
def test_a_wrong_password_is_the_inputs_fault(made: Cli, command: str) -> None:
    wrong = Cli(made.folder, password="wrong")
    arguments = {
        "ingest": ("ingest", made.ledger, made.folder / "bundles"),
        "read": ("read", made.ledger, "00" * 16, "--as", "organisation", "--purpose", "TREAT"),
        "keys": ("keys", "list"),
    }
    assert wrong.error(*arguments[command])["error"] == "wrong-password"
    absent = ("--keystore", made.folder / "absent")
    assert made.error(*arguments[command], *absent)["error"] == "not-found"


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (InputError("x"), Exit.INPUT),
        (NotFoundError("x"), Exit.INPUT),
        (LedgerLockedError("x"), Exit.RETRY),
        (LedgerBusyError("x", retry_after_ms=1), Exit.RETRY),
        (CorruptionError("x", path="log"), Exit.LEDGER),
        (StorageFullError("x"), Exit.LEDGER),
    ],
    ids=lambda value: type(value).__name__,
)
def test_errors_have_their_exit_codes(error: FastLedgerError, code: Exit) -> None:
    assert exit_code(error) == code


def test_the_systems_errors_are_answered_too(
    made: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file where a folder should be, a device that is full: exit code 5, and no name of a file of the user's."""
    blocker = tmp_path / "Wilhelmina"
    blocker.write_text("")
    keystore = ("--keystore", tmp_path / "k")
    made.error("init", blocker / "ledger", *keystore, code=Exit.LEDGER)
    assert not (tmp_path / "k").exists()
    made.error("demo", "--dir", blocker / "demo", "--patients", "1", code=Exit.LEDGER)

    def full(*_: Any, **__: Any) -> None:
        raise OSError(28, "No space left on device", "Wilhelmina")

    monkeypatch.setattr(Ledger, "open", full)
    failure = made.error("status", made.ledger, code=Exit.LEDGER)
    assert failure["error"] == "storage-full"
    assert "Wilhelmina" not in failure["message"]


def commands(group: click.Group, *path: str) -> Iterator[tuple[str, ...]]:
    context = click.Context(group)
    for name in group.list_commands(context):
        command = group.get_command(context, name)
        if isinstance(command, click.Group):
            yield from commands(command, *path, name)
        yield (*path, name)


def test_every_command_has_help_and_json() -> None:
    cli = Cli(Path())
    found = list(commands(main))
    groups = {command[:-1] for command in found if len(command) > 1}
    assert len(found) >= 40
    for command in found:
        text = cli.run(*command, "--help").stdout
        assert "Usage: " in text
        assert command in groups or "--json" in text
        assert "--help" in text
    assert "fastledger, version" in cli.run("--version").stdout


@pytest.mark.parametrize(
    "arguments",
    [
        ("frobnicate",),
        ("status",),
        ("status", "a", "b"),
        ("status", "a", "--frobnicate"),
        ("init", "a", "--keystore"),
        ("keys", "frobnicate"),
        ("keys", "new", "a", "--suite", "rot13"),
        ("keys", "new", "a", "--chain", "zz"),
        ("keys", "new", "a", "--chain", "00"),
        ("demo", "--patients", "0"),
        ("demo", "--bundles", "absent"),
        ("ingest", "a", "absent"),
    ],
    ids=" ".join,
)
def test_wrong_command_lines_are_usage_errors(tmp_path: Path, arguments: tuple[str, ...]) -> None:
    Cli(tmp_path).run(*arguments, code=Exit.USAGE)


# The installed script, in a process of its own.


def script(*arguments: Any, password: str = PASSWORD, code: int = 0) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"FASTLEDGER_PASSWORD": password}
    done = subprocess.run(
        [str(SCRIPT), *map(str, arguments)], env=environment, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == code, done.stderr[-2000:]
    assert "Traceback" not in done.stderr
    return done


def test_the_script_answers_as_the_commands_do(made: Cli) -> None:
    answer, same = (
        json.loads(script("status", made.ledger, "--json").stdout),
        made.json("status", made.ledger),
    )
    assert answer.pop("backend")["sha256"] == same.pop("backend")["sha256"]
    assert answer == same
    failure = script("keys", "list", "--keystore", made.keystore, "--json", password="wrong", code=Exit.INPUT)
    assert json.loads(failure.stderr)["error"] == "wrong-password"
    with Ledger.open(made.ledger):
        locked = script("verify", made.ledger, code=Exit.RETRY)
        assert f"pid {os.getpid()}" in locked.stderr
    script("frobnicate", code=Exit.USAGE)


def test_a_reader_that_goes_away_is_no_error(made: Cli) -> None:
    """A reader that closes the pipe early, as in ``fastledger query … | head -1``, ends the command."""
    command = f'"{SCRIPT}" query "{made.ledger}" --limit 1000 --json | head -c 10; exit ${{PIPESTATUS[0]}}'
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, timeout=60)
    assert "Traceback" not in done.stderr
    assert done.stderr == ""

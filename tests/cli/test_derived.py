"""``fastledger tx`` and ``show``: every kind and every table, from the declarations and the wallet's builders."""

import inspect
import subprocess
import sys
from pathlib import Path
from typing import Annotated, Any

import click
import pytest
from click.shell_completion import ShellComplete
from commands import PASSWORD, Cli, cheapen
from msgspec import Meta

from fastledger import Keystore, Wallet
from fastledger.cli.derived.fields import option_of
from fastledger.cli.main import main
from fastledger.cli.output import Exit
from fastledger.model.body import kind_of
from fastledger.model.fields import OptionalIdentity, TimeMs, UInt32
from fastledger.model.shape import shape_of
from fastledger.subjects.catalogue import REGISTRY
from fastledger.subjects.consent import Purpose, Rights
from fastledger.wallet.builders import BUILDERS

GRANTED = ("--grantee", "00" * 16, "--folders", "a")
PULSE = b'{"resourceType": "Observation", "status": "final", "code": {"text": "pulse"}}'


@pytest.fixture(scope="module")
def cli(tmp_path_factory: pytest.TempPathFactory) -> Cli:
    """A ledger whose keystore has wallets that nobody registered, besides those of ``init``."""
    made = Cli(tmp_path_factory.mktemp("derived"))
    made.json("init", made.ledger)
    cheapen(made.keystore)
    for name in ("patient", "clinic", "successor", "stranger"):
        made.json("keys", "new", name, "--suite", "x25519")
    return made


def identity(cli: Cli, name: str) -> str:
    return Wallet.load(Keystore.open(cli.keystore, PASSWORD), name).identity.hex()


def tx(cli: Cli, kind: str, wallet: str, *options: Any, code: int = 0) -> dict[str, Any]:
    return cli.json("tx", *kind.split("."), cli.ledger, "--as", wallet, *options, code=code)


def test_a_history_on_the_command_line_alone(cli: Cli, tmp_path: Path) -> None:  # SPEC-CLI-12
    """Every kind that carries keys or envelopes, then those whose fields are typed."""
    content = tmp_path / "pulse.json"
    content.write_bytes(PULSE)
    for name, role in (("patient", "patient"), ("clinic", "organisation")):
        told = tx(cli, "identity.register", name, "--role", role)
        assert (told["status"], told["code"]) == ("durable", "ok")
        assert {"txid", "time_ms", "height", "index"} <= set(told)
    clinic = identity(cli, "clinic")
    endorsed = ("--subject", clinic, "--role", "ORGANISATION", "--until", "2090-01-01T00:00Z")
    assert tx(cli, "identity.endorse", "regulator", *endorsed)["subject"] == clinic

    assert len(tx(cli, "folder.open", "patient", "--labels", "vitals", "--labels", "laboratory")["folders"]) == 2
    put = tx(cli, "record.put", "patient", "--folder", "vitals", "--content", f"@{content}", "--terms", "code:a|b")
    record = put["record"]
    reading = ("--purpose", "treat", "--record", record)
    missing = tx(cli, "access.read", "clinic", *reading, code=Exit.WRONG)
    assert (missing["code"], missing["reason"]) == ("consent-missing", "no consent lets the signer use the folder")

    granted = ("--grantee", clinic, "--folders", "vitals", "--purposes", "TREAT", "--purposes", "HRESCH")
    consent = tx(cli, "consent.grant", "patient", *granted, "--rights", "read", "--rights", "write")["consent"]
    shown = cli.json("show", "consent", cli.ledger, consent)
    assert (shown["grantee"], shown["rights"], shown["purposes"]) == (clinic, ["read", "write"], ["TREAT", "HRESCH"])
    assert tx(cli, "access.read", "clinic", *reading)["code"] == "ok"

    assert tx(cli, "folder.rotate", "patient", "--folder", put["folder"])["folder"] == put["folder"]
    # The folders, the grantee and its key stand in the ledger.
    assert tx(cli, "consent.rekey", "patient", "--consent", consent)["consent"] == consent
    amended = tx(cli, "record.amend", "patient", "--record", record, "--version", 2, "--content", PULSE.hex())
    assert (amended["code"], amended["record"]) == ("ok", record)
    assert cli.json("show", "record_version", cli.ledger, record, 1)["epoch"] == 1
    assert cli.json("show", "record", cli.ledger, record)["present"]["epoch"] == 2
    read = cli.json("read", cli.ledger, record, "--as", "patient", "--purpose", "PATRQT")
    assert read["content"].encode() == PULSE

    assert tx(cli, "identity.rotate", "patient", "--successor", "successor")["code"] == "ok"
    assert identity(cli, "successor") == identity(cli, "patient")
    assert tx(cli, "consent.revoke", "successor", "--consent", consent)["code"] == "ok"
    assert tx(cli, "record.erase", "successor", "--record", record, "--reason", 7)["code"] == "ok"
    assert tx(cli, "identity.revoke", "regulator", "--subject", clinic, "--reason", 1)["code"] == "ok"
    assert tx(cli, "consent.revoke", "patient", "--consent", consent, code=Exit.WRONG)["code"] == "unknown-signer"
    assert cli.json("verify", cli.ledger)["ok"]
    done = {entry["kind"] for entry in cli.entries("--limit", 1000)}
    assert {kind_of(body) for body in BUILDERS} <= done


def test_what_is_refused_leaves_the_keystore_as_it_was(cli: Cli) -> None:  # SPEC-CLI-12
    before = cli.json("keys", "list")
    refused = tx(cli, "folder.open", "stranger", "--labels", "vitals", code=Exit.WRONG)
    assert (refused["status"], refused["code"]) == ("refused", "unknown-signer")
    assert cli.json("keys", "list") == before
    heir = tx(cli, "identity.rotate", "stranger", "--successor", "patient", code=Exit.WRONG)
    assert heir["status"] == "refused"
    assert cli.json("keys", "list") == before
    rotated = cli.error("tx", "folder", "rotate", cli.ledger, "--as", "stranger", "--folder", "vitals")
    assert rotated["error"] == "unknown-folder"


def test_people_are_told_times_and_reasons(cli: Cli) -> None:
    options = ("--as", "stranger", "--consent", "00" * 16)
    told = cli.run("tx", "consent", "revoke", cli.ledger, *options, code=Exit.WRONG).stdout
    assert "status: refused\n" in told
    assert "reason: its key signs for no identity\n" in told
    assert "time: 2" in told
    assert "time_ms" not in told
    until = cli.run("show", "identity", cli.ledger, identity(cli, "organisation")).stdout
    assert "endorsed_until: 2" in until
    assert "role: organisation" in until


def test_tables_by_key_and_in_lists(cli: Cli) -> None:
    organisation, regulator = identity(cli, "organisation"), identity(cli, "regulator")
    found = cli.json("show", "identity", cli.ledger, "--by", f"endorser={regulator}")["items"]
    assert organisation in {item["identity"] for item in found}
    first = cli.json("show", "identity", cli.ledger, "--limit", 1)
    rest = cli.json("show", "identity", cli.ledger, "--cursor", first["next_cursor"])
    assert len(first["items"]) == 1
    assert first["items"][0] not in rest["items"]
    assert cli.error("show", "folder", cli.ledger, "00" * 16)["error"] == "not-found"
    assert cli.json("show", "kem-key", cli.ledger, organisation)["identity"] == organisation


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (("tx", "consent", "revoke", "--consent", "xyz"), "'--consent'"),
        (("tx", "consent", "revoke", "--consent", "00"), "'--consent'"),
        (("tx", "consent", "revoke"), "'--consent'"),
        (("tx", "identity", "revoke", "--subject", "00" * 16, "--reason", 2**32), "'--reason'"),
        (("tx", "identity", "endorse", "--subject", "00" * 16, "--role", "king", "--until", 1), "'--role'"),
        (("tx", "identity", "endorse", "--subject", "00" * 16, "--role", "patient", "--until", "soon"), "'--until'"),
        (("tx", "identity", "endorse", "--subject", "00" * 16, "--role", "patient", "--until", "-1"), "'--until'"),
        (("tx", "identity", "endorse", "--subject", "00" * 16, "--role", "patient", "--until", 2**53), "'--until'"),
        (("tx", "record", "put", "--folder", "a", "--content", "@/nowhere"), "'--content'"),
        (("tx", "record", "put", "--folder", "a", "--content", "zz"), "'--content'"),
        (("tx", "consent", "grant", *GRANTED, *("--purposes", "TREAT") * 9), "'--purposes'"),
        (("tx", "consent", "zebra"), "'zebra'"),
        (("tx", "zebra"), "'zebra'"),
        (("show", "zebra"), "'zebra'"),
        (("show", "consent", "LEDGER", "zz"), "'CONSENT'"),
        (("show", "record_version", "LEDGER", "00" * 16, "minus"), "'VERSION'"),
        (("show", "record_version", "LEDGER", "00" * 16), "RECORD VERSION"),
        (("show", "kem_key", "LEDGER"), "IDENTITY"),
        (("show", "consent", "LEDGER", "--by", f"rights={'00' * 16}"), "'--by'"),
        (("show", "consent", "LEDGER", "--by", "owner=zz"), "'--by'"),
        (("show", "consent", "LEDGER", "00" * 16, "--by", f"owner={'00' * 16}"), "not both"),
    ],
    ids=lambda value: " ".join(map(str, value))[:60] if isinstance(value, tuple) else None,
)
def test_a_wrong_value_names_its_option(cli: Cli, arguments: tuple[Any, ...], named: str) -> None:
    more = (cli.ledger, "--as", "patient") if arguments[0] == "tx" and len(arguments) > 2 else ()
    given = [cli.ledger if argument == "LEDGER" else argument for argument in arguments]
    assert named in cli.run(*given[:3], *more, *given[3:], code=Exit.USAGE).stderr


def test_the_ledger_stands_in_the_environment(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    organisation = identity(cli, "organisation")
    monkeypatch.setenv("FASTLEDGER_LEDGER", cli.ledger)
    assert cli.json("show", "identity", organisation)["identity"] == organisation
    assert cli.json("show", "identity", cli.ledger, organisation)["identity"] == organisation
    everybody = cli.json("show", "identity")["items"]
    assert everybody == cli.json("show", "identity", cli.ledger)["items"]
    assert organisation in {item["identity"] for item in everybody}
    assert cli.error("show", "record_version", "00" * 16, 1)["error"] == "not-found"
    assert cli.error("read", "00" * 16, "--as", "organisation", "--purpose", "TREAT")["error"] == "unknown-record"
    revoked = cli.json("tx", "consent", "revoke", "--as", "organisation", "--consent", "00" * 16, code=Exit.WRONG)
    assert revoked["code"] == "unknown-consent"


# Types.


def value_of(hint: Any, *texts: str, **options: Any) -> Any:
    """What an option of a field of the type ``hint`` makes of what is typed."""
    option = option_of("thing", shape_of(hint), required=False, **options)
    command = click.Command("x", params=[option], callback=lambda field_thing: field_thing)
    typed = [part for text in texts for part in (option.opts[0], *text.split(" "))]
    return command.main(typed, standalone_mode=False)


def test_types_of_fields(tmp_path: Path) -> None:
    (tmp_path / "bytes").write_bytes(b"\x01\x02")
    some = Annotated[bytes, Meta(min_length=2, max_length=4)]
    pairs = Annotated[list[tuple[UInt32, TimeMs]], Meta(max_length=2)]
    for hint, texts, expected in (
        (UInt32, ["7"], 7),
        (TimeMs, ["1970-01-01T00:00:01Z"], 1000),
        (TimeMs, ["1000"], 1000),
        (some, ["0a0b"], b"\x0a\x0b"),
        (some, [f"@{tmp_path}/bytes"], b"\x01\x02"),
        (OptionalIdentity, [""], b""),
        (Purpose, ["hresch"], Purpose.RESEARCH),
        (Rights, ["read", "write", "read"], 3),
        (list[UInt32], ["3", "1"], [3, 1]),
        (pairs, ["1 2", "3 1970-01-01T00:00:00Z"], [(1, 2), (3, 0)]),
        (list[list[UInt32]], ["[[1,2],[]]"], [[1, 2], []]),
        (UInt32, [], None),
        (list[UInt32], [], None),
    ):
        assert value_of(hint, *texts) == expected
    for hint, texts in (
        (some, ["0a"]),
        (some, ["0a0b0c0d0e"]),
        (pairs, ["1 2", "1 2", "1 2"]),
        (list[list[UInt32]], ["[[-1]]"]),
        (list[list[UInt32]], ["{"]),
    ):
        with pytest.raises(click.BadParameter):
            value_of(hint, *texts)


def test_a_flag_and_a_name_that_is_taken() -> None:
    option = option_of("key", shape_of(bool), required=True, taken={"--key"}, subject="lamp")
    assert (option.opts, option.secondary_opts, option.name) == (["--lamp-key"], ["--no-lamp-key"], "field_key")


# Builders.


def test_builders_are_the_wallet_s_methods_for_kinds_that_there_are() -> None:
    bodies = {kind.body for kind in REGISTRY.kinds.values()}
    assert set(BUILDERS) <= bodies
    for builder in BUILDERS.values():
        assert getattr(Wallet, builder.method.__name__) is builder.method
        arguments = inspect.signature(builder.method).parameters
        for name, lookup in builder.lookups.items():
            assert {name, lookup.by} <= set(arguments)
            assert lookup.field in lookup.table.entity.__struct_fields__


# Help and completion.


def test_help_does_not_load_the_subjects() -> None:
    program = (
        "import sys\nfrom fastledger.cli.main import main\nmain(['--help'], standalone_mode=False)\n"
        "print([name for name in sys.modules if name.startswith('fastledger.subjects')])"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"
    assert "  tx " in done.stdout


def completions(*words: str) -> list[str]:
    *before, incomplete = words
    found = ShellComplete(main, {}, "fastledger", "_X").get_completions(before, incomplete)
    return [item.value for item in found]


def test_names_are_completed() -> None:
    assert completions("tx", "con") == ["consent"]
    assert completions("tx", "consent", "r") == ["rekey", "revoke"]
    assert completions("show", "record") == ["record", "record_version"]
    assert completions("tx", "identity", "register", "L", "--role", "pat") == ["patient"]
    assert completions("query", "L", "--id", "re") == ["record="]
    assert completions("query", "L", "--code", "consent-m") == ["consent-missing"]
    assert completions("query", "L", "--kind", "folder.") == ["folder.open", "folder.rotate"]
    assert completions("show", "consent", "L", "--by", "own") == ["owner="]

"""The command line run in this process, and a ledger that it made."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from click.testing import CliRunner, Result
from hospital import BASE, CHEAP_KDF

from fastledger import Keystore
from fastledger.cli.main import main
from fastledger.workload import generate
from fastledger.workload.generator import transaction_bundle

PASSWORD = "of a hospital in a test"


@dataclass
class Cli:
    """Runs commands in this process, with the password in the environment."""

    folder: Path
    password: str | None = PASSWORD

    @property
    def ledger(self) -> str:
        return str(self.folder / "clinic.ledger")

    @property
    def keystore(self) -> str:
        return str(self.folder / "wallets.keystore")

    def run(self, *arguments: Any, code: int = 0, typed: str | None = None) -> Result:
        environment = {
            "FASTLEDGER_PASSWORD": self.password,
            "FASTLEDGER_KEYSTORE": self.keystore,
            "FASTLEDGER_SOURCE": BASE,
        }
        result = CliRunner().invoke(main, [*map(str, arguments)], input=typed, env=environment)
        told = f"{result.output}\n{result.exception!r}"
        assert result.exception is None or isinstance(result.exception, SystemExit), told
        assert result.exit_code == code, told
        assert PASSWORD not in result.output
        return result

    def json(self, *arguments: Any, code: int = 0) -> dict[str, Any]:
        """The one JSON document of an answer."""
        result = self.run(*arguments, "--json", code=code)
        answer: dict[str, Any] = json.loads(result.stdout)
        assert result.stdout.count("\n") == 1
        return answer

    def error(self, *arguments: Any, code: int = 3) -> dict[str, Any]:
        """The JSON document of a failure, on standard error."""
        result = self.run(*arguments, "--json", code=code)
        assert result.stdout == ""
        failure: dict[str, Any] = json.loads(result.stderr)
        assert {"error", "code", "message"} <= set(failure)
        return failure

    def entries(self, *conditions: Any) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = self.json("query", self.ledger, *conditions)["entries"]
        return found


def cheapen(keystore: str) -> None:
    """Seals the keystore again with a derivation that costs a test nothing."""
    Keystore.open(keystore, PASSWORD).change_password(PASSWORD, **CHEAP_KDF)


def make_cli(folder: Path) -> Cli:
    """A ledger made by ``init`` with two histories in it, ingested from a directory."""
    cli = Cli(folder)
    answer = cli.json("init", cli.ledger)
    assert set(answer) == {"chain_id", "ledger", "keystore", "regulator", "organisation"}
    cheapen(cli.keystore)
    bundles = cli.folder / "bundles"
    bundles.mkdir()
    for number, bundle in enumerate(generate(seed=4, patients=2)):
        (bundles / f"{number}.json").write_bytes(transaction_bundle(bundle))
    report = cli.json("ingest", cli.ledger, bundles)
    assert (report["bundles"], report["patients"], report["refused"], report["failures"]) == (3, 2, 0, {})
    assert report["committed"] == report["resources"] > 100
    return cli

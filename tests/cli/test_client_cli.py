"""The command line against a node: the same commands, the same answers; the demo through a node."""

import json
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from client_world import NodeWorld, make_node_world
from commands import PASSWORD, Cli, cheapen
from hospital import CHEAP_KDF
from node_process import NodeProcess

from fastledger import Keystore, Purpose
from fastledger.cli.demo.organisations import free_port
from fastledger.cli.output import Exit
from fastledger.workload import generate
from fastledger.workload.generator import transaction_bundle


class NodeCli(Cli):
    """Commands whose LEDGER is a node's URL; ``directory`` is the ledger under it."""

    url: str = ""
    directory: Path

    @property
    def ledger(self) -> str:
        return self.url


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[NodeWorld]:
    made = make_node_world(tmp_path_factory.mktemp("node"))
    yield made
    made.close()


@pytest.fixture(scope="module")
def cli(world: NodeWorld, tmp_path_factory: pytest.TempPathFactory) -> NodeCli:
    made = NodeCli(tmp_path_factory.mktemp("cli"))
    made.url, made.directory = world.node.url, world.node.ledger
    keystore = Keystore.create(made.keystore, PASSWORD, **CHEAP_KDF)
    wallets = {"regulator": world.regulator, "organisation": world.hospital, "patient": world.patient}
    for name, wallet in wallets.items():
        wallet.save(keystore, name)
    keystore.save()
    return made


def test_every_command_works_on_a_node(cli: NodeCli, world: NodeWorld, tmp_path: Path) -> None:  # SPEC-CLI-8
    bundles = tmp_path / "bundles"
    bundles.mkdir()
    for number, bundle in enumerate(generate(seed=4, patients=1)):
        (bundles / f"{number}.json").write_bytes(transaction_bundle(bundle))
    report = cli.json("ingest", cli.url, bundles)
    assert (report["refused"], report["failures"]) == (0, {})
    assert report["committed"] == report["resources"] > 50
    found = cli.json("query", cli.url, "--kind", "record.put", "--limit", 1)
    assert len(found["entries"]) == 1
    entry = found["entries"][0]
    content = cli.json("read", cli.url, entry["record"], "--as", "organisation", "--purpose", "TREAT")
    assert "resourceType" in content["content"]
    receipt = tmp_path / "receipt"
    cli.json("prove", cli.url, entry["txid"], "-o", receipt)
    checked = cli.json("verify-receipt", receipt, "--genesis", cli.directory / "genesis.cbor")
    assert (checked["valid"], checked["txid"]) == (True, entry["txid"])
    status = cli.json("status", cli.url)
    assert status["chain_id"] == world.chain_id.hex()
    verified = cli.json("verify", cli.url)
    assert (verified["ok"], verified["transactions"]) == (True, status["transactions"] + 0)


def test_the_node_is_named_in_any_of_three_ways(cli: NodeCli, monkeypatch: pytest.MonkeyPatch) -> None:
    named = cli.json("status", cli.url)["chain_id"]
    assert cli.json("status", "--node", cli.url)["chain_id"] == named
    assert cli.json("query", f"--node={cli.url}", "--limit", 1)["entries"]
    monkeypatch.setenv("FASTLEDGER_LEDGER", cli.url)
    assert cli.json("status")["chain_id"] == named
    cli.run("status", cli.url, "--node", cli.url, code=Exit.USAGE)
    cli.run("status", "--node", code=Exit.USAGE)


def test_what_makes_no_sense_over_a_network_says_so(cli: NodeCli) -> None:  # SPEC-CLI-8
    for command in ("reindex", "init"):
        result = cli.run(command, cli.url, code=Exit.USAGE)
        assert "not on a node" in result.stderr


def test_a_node_that_is_away_is_worth_another_try(cli: NodeCli, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fastledger.client.retry.Retry.run", lambda self, attempt: attempt())
    failure = cli.error("status", f"http://127.0.0.1:{free_port()}", code=Exit.RETRY)
    assert (failure["error"], failure["code"]) == ("unreachable", 319)
    assert cli.error("status", "http://", code=Exit.INPUT)["error"] == "bad-query"


def test_files_of_transactions(cli: NodeCli, world: NodeWorld, tmp_path: Path) -> None:
    """One file, a node and a directory: the same answer, and a second time duplicates."""
    file = tmp_path / "transactions.cbor"
    transactions = [world.patient.open_folders(f"file {number}") for number in range(3)]
    file.write_bytes(b"".join(transaction.encoded for transaction in transactions))
    names = ("transactions", "durable", "refused", "rejected", "duplicates")
    first = cli.json("submit", cli.url, file)
    assert [first[name] for name in names] == [3, 3, 0, 0, 0]
    again = cli.json("submit", cli.url, file, file)
    assert [again[name] for name in names] == [6, 6, 0, 0, 6]
    file.write_bytes(transactions[0].encoded + b"garbage")
    assert cli.error("submit", cli.url, file)["error"] == "malformed"
    file.write_bytes(world.patient.access(bytes(16), Purpose.TREATMENT).encoded)
    refused = cli.json("submit", cli.url, file, code=Exit.WRONG)
    assert (refused["refused"], refused["problems"][0]["code"]) == (1, "unknown-record")


def lines(cli: Cli, *arguments: Any) -> list[dict[str, Any]]:
    return [json.loads(line) for line in cli.run(*arguments).stdout.splitlines()]


def test_following_prints_the_same_of_a_node_and_of_a_directory(
    tmp_path: Path,
) -> None:  # SPEC-CLI-6, SPEC-CLI-8
    world = make_node_world(tmp_path)
    cli = NodeCli(tmp_path)
    choices = (
        ("--cursor", 0),
        ("--cursor", 3),
        ("--cursor", 0, "--kind", "identity.register"),
        ("--cursor", 0, "--signed-by", world.patient.identity.hex()),
        ("--cursor", 0, "--topic", "blocks"),
        ("--cursor", 0, "--topic", "alerts"),
        (),
    )
    try:
        of_node = [lines(cli, "follow", world.node.url, "--until-now", *choice) for choice in choices]
        world.node.stop()
        of_directory = [lines(cli, "follow", world.node.ledger, *choice) for choice in choices]
        assert of_node == of_directory
        assert [len(found) for found in of_node] == [6, 3, 3, 2, 2, 0, 0]
        assert [line["cursor"] for line in of_node[0]] == [1, 2, 3, 4, 5, 6]
        blocks = ("--topic", "blocks", "--kind", "record.put")
        assert cli.error("follow", world.node.ledger, *blocks)["error"] == "bad-query"
    finally:
        world.close()


def test_following_waits_for_more(cli: NodeCli, world: NodeWorld) -> None:
    client = world.connect()
    cursor = client.tip().transaction_count
    command = [sys.executable, "-m", "fastledger", "follow", cli.url, "--cursor", str(cursor)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        for number in range(2):
            transaction = world.patient.open_folders(f"followed {number}")
            client.submit([transaction])
            line = json.loads(process.stdout.readline())
            assert (line["txid"], line["cursor"]) == (transaction.txid.hex(), cursor + number + 1)
    finally:
        process.send_signal(signal.SIGINT)
        process.wait(30)


# The demo.


def run_demo(*arguments: Any, code: int = 0) -> dict[str, Any]:
    done = subprocess.run(
        [sys.executable, "-m", "fastledger", "demo", "--json", *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == code, done.stdout + done.stderr
    answer: dict[str, Any] = json.loads(done.stdout or done.stderr)
    return answer


def test_the_demo_through_a_node_of_its_own(tmp_path: Path) -> None:
    answer = run_demo("--dir", tmp_path / "demo", "--patients", 4, "--node")
    assert answer["ok"] is True
    assert len(answer["steps"]) == 10
    assert any("node stopped" in step for step in answer["steps"])
    assert answer["committed"] == answer["resources"] > 0
    # It has really ended: the ledger is free.
    cli = Cli(tmp_path)
    ledger = tmp_path / "demo" / "ledger"
    assert cli.json("status", ledger)["transactions"] == answer["transactions"]


def test_the_demo_through_a_node_that_runs_already(tmp_path: Path) -> None:
    cli = Cli(tmp_path)
    cli.json("init", cli.ledger)
    cheapen(cli.keystore)
    (tmp_path / "password").write_text(PASSWORD)
    with NodeProcess(tmp_path, Path(cli.ledger)).start() as node:
        choice = ("--keystore", cli.keystore, "--password-file", tmp_path / "password")
        answer = run_demo("--dir", tmp_path / "demo", "--patients", 4, "--node", node.url, *choice)
        assert len(answer["steps"]) == 10
        assert any("by the node" in step for step in answer["steps"])
        assert node.stop() == 0
    patience = ("--retry-for", 1)
    refused = run_demo("--dir", tmp_path / "other", "--node", node.url, *choice, *patience, code=Exit.RETRY)
    assert refused["error"] == "unreachable"

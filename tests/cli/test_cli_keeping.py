"""The commands that keep a ledger, each through the command line and in JSON."""

import base64
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from commands import Cli, make_cli

from fastledger import Ledger, SigningKey, Transaction
from fastledger.cli.output import Exit
from fastledger.crypto.node_key import save_node_key


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Cli:
    return make_cli(tmp_path_factory.mktemp("cli"))


def stands_like(cli: Cli, path: Path, answer: dict[str, Any]) -> None:
    """The ledger ``path`` stands where that of ``cli`` does."""
    status, original = cli.json("status", path), cli.json("status", cli.ledger)
    for name in ("chain_id", "height", "head", "transactions"):
        assert status[name] == original[name]
    assert (answer["height"], answer["block_id"]) == (status["height"], status["head"])
    assert cli.json("verify", path)["ok"]


def test_backup_and_restore(made: Cli, tmp_path: Path) -> None:
    backup = tmp_path / "backup"
    first = made.json("backup", made.ledger, backup, "--include-node-key")
    assert set(first) == {
        *("height", "block_id", "state_root", "files", "total_bytes", "copied_bytes", "dropped_objects"),
    }
    again = made.json("backup", made.ledger, backup, "--include-snapshot", "--recheck", "--rate", 10**9)
    assert again["copied_bytes"] < 2 * first["copied_bytes"]
    answer = made.json("restore", backup, tmp_path / "restored")
    assert answer["verified"] and not answer["has_node_key"]  # asked for each time
    assert answer["state_root"] == first["state_root"]
    stands_like(made, tmp_path / "restored", answer)
    assert made.error("restore", backup, tmp_path / "restored")["error"] == "malformed"
    assert not made.json("restore", backup, tmp_path / "quick", "--no-verify")["verified"]
    next((backup / "objects").glob("??/*")).write_bytes(b"")
    assert made.error("restore", backup, tmp_path / "bad", code=Exit.LEDGER)["error"] == "corrupt"
    assert made.error("restore", tmp_path, tmp_path / "bad")["error"] == "not-found"
    assert "height: " in made.run("backup", made.ledger, tmp_path / "another").stdout


def test_export_and_import(made: Cli, tmp_path: Path) -> None:
    lines = tmp_path / "all.ndjson"
    report = made.json("export", made.ledger, lines)
    written = [json.loads(line) for line in lines.read_text().splitlines()]
    assert len(written) == report["transactions"] == made.json("status", made.ledger)["transactions"]
    assert Transaction.decode(base64.b64decode(written[0]["encoded"])).txid.hex() == written[0]["txid"]
    piped = made.run("export", made.ledger, "-", "--from-height", 1, "--to-height", 1).stdout
    assert [json.loads(line)["height"] for line in piped.splitlines()] == [1, 1]
    made.error("export", made.ledger, lines, code=Exit.LEDGER)  # is there already
    made.error("export", made.ledger, tmp_path / "no", "--with-blobs")
    blocks = tmp_path / "chain.blocks"
    assert made.json("export", made.ledger, blocks, "--format", "blocks", "--with-blobs")["envelopes"] > 0
    answer = made.json("import", blocks, tmp_path / "replica")
    assert not answer["has_node_key"]
    stands_like(made, tmp_path / "replica", answer)
    key = Path(made.ledger) / "node.key"
    assert made.json("import", blocks, tmp_path / "node", "--node-key", key)["has_node_key"]
    with Ledger.open(tmp_path / "node") as node:
        assert not node.is_replica
    stranger = tmp_path / "stranger.key"
    save_node_key(stranger, SigningKey.generate(), None)
    refused = made.error("import", blocks, tmp_path / "foreign", "--node-key", stranger)
    assert refused["error"] == "not-a-proposer"
    blocks.write_bytes(blocks.read_bytes()[:-5])
    assert made.error("import", blocks, tmp_path / "short", code=Exit.LEDGER)["error"] == "corrupt"
    assert not (tmp_path / "short").exists() and not (tmp_path / "foreign").exists()


def test_snapshot_create_and_restore(made: Cli, tmp_path: Path) -> None:
    answer = made.json("snapshot", "create", made.ledger, tmp_path / "snapshot")
    assert answer["height"] == made.json("status", made.ledger)["height"]
    assert len(bytes.fromhex(answer["root"])) == 32
    genesis = Path(made.ledger) / "genesis.cbor"
    target = tmp_path / "restored"
    restored = made.json("snapshot", "restore", tmp_path / "snapshot", target, "--genesis", genesis)
    assert (restored["state_root"], restored["height"]) == (answer["state_root"], answer["height"])
    assert made.json("status", target)["first_height"] == answer["height"] + 1
    assert made.json("query", target)["entries"] == []


def test_prune(made: Cli, tmp_path: Path) -> None:
    copy = Cli(tmp_path)
    shutil.copytree(made.ledger, copy.ledger)
    # One segment of 64 MiB holds all: there is nothing whole to give back.
    answer = copy.json("prune", copy.ledger, "--keep-blocks", 1)
    assert answer == {"first_height": 0, "freed_bytes": 0, "snapshot_height": None}
    assert copy.error("prune", copy.ledger)["error"] == "bad-query"
    assert copy.json("verify", copy.ledger)["ok"]


def test_collect_orphans(made: Cli, tmp_path: Path) -> None:
    copy = Cli(tmp_path)
    shutil.copytree(made.ledger, copy.ledger)
    orphan = b"an envelope that no record names"
    with Ledger.open(copy.ledger) as ledger:
        ledger.store_blobs([orphan])
    nothing = {"envelopes": 0, "bytes": 0}
    assert copy.json("collect-orphans", copy.ledger) == nothing  # all are young
    answer = copy.json("collect-orphans", copy.ledger, "--older-than-hours", 0)
    assert answer == {"envelopes": 1, "bytes": len(orphan)}
    assert copy.json("collect-orphans", copy.ledger, "--older-than-hours", 0) == nothing

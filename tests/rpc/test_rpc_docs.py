"""docs/rpc.md: its examples run; what is derived in it and in docs/subjects.md is that of the code."""

import base64
import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
from node_world import NodeThread
from test_rpc import registrations

from fastledger.cli.derived.pages import pages
from fastledger.errors import Code
from fastledger.rpc.protocol import decode_outcomes

DOCS = Path(__file__).resolve().parents[2] / "docs"
TEXT = (DOCS / "rpc.md").read_text()
EXAMPLES = re.findall(
    r"^```http\nPOST (\S+)\n(.*?)\n```\n```json\n(.*?)\n```", TEXT, re.DOTALL | re.MULTILINE
)


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory) -> Any:
    with NodeThread(tmp_path_factory.mktemp("docs") / "ledger") as made:
        yield made


def post(url: str, path: str, body: str) -> Any:
    """With curl where there is one, as a reader would."""
    command = ["curl", "-s", "-X", "POST", "-H", "Content-Type: application/json", "-d", body, url + path]
    return json.loads(subprocess.run(command, capture_output=True, timeout=30, check=True).stdout)


def shape(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: shape(item) for name, item in value.items()}
    if isinstance(value, list):
        return [shape(item) for item in value]
    return type(value).__name__


@pytest.mark.skipif(shutil.which("curl") is None, reason="no curl here")
def test_examples_run_as_they_stand(node: NodeThread, tmp_path: Path) -> None:
    assert len(EXAMPLES) >= 4
    (transaction,) = registrations(node.world, 1)
    for path, body, expected in EXAMPLES:
        body = body.replace("$TRANSACTION", base64.b64encode(transaction.encoded).decode())
        answer = post(node.url, path, body.replace("$TXID", transaction.txid.hex()))
        wanted = json.loads(expected)
        assert shape(answer) == shape(wanted), body
        assert answer.get("error") == wanted.get("error")
    (command,) = re.findall(r"^```sh\n(.*?)\n```", TEXT, re.DOTALL | re.MULTILINE)
    (tmp_path / "batch.cbor").write_bytes(transaction.encoded)
    subprocess.run(
        ["sh", "-c", command], cwd=tmp_path, env={"NODE": node.url, "PATH": "/usr/bin:/bin"}, check=True
    )
    wait, outcomes = decode_outcomes((tmp_path / "verdicts.cbor").read_bytes(), [transaction.txid])
    assert (wait, outcomes[0].code, outcomes[0].duplicate) == ("durable", Code.OK, True)


def test_the_pages_are_those_of_the_code() -> None:  # SPEC-RPC-2, SPEC-RULE-3
    for path, text in pages(DOCS).items():
        assert path.read_text() == text, f"{path.name} is out of date: run `make docs`"
    assert "| `ledger.info` |" in TEXT

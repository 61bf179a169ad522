"""The main job from end to end, and what may never be seen of it (SPEC-PRIV-1)."""

import base64
import json
import os
import subprocess
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest

from fastledger.gateway.sources import SourceBundle, read_bundles
from fastledger.workload import generate

PLAIN_CHARS_MIN = 4
STAGES = {"validate", "encrypt", "sign", "verify", "execute, append", "sync"}


def run_demo(folder: Path, *arguments: str) -> tuple[dict[str, Any], str]:
    """The demo's answer, and everything that it printed."""
    command = [sys.executable, "-m", "fastledger.cli.main", "demo", "--json", "--dir", str(folder), *arguments]
    code = "from fastledger.cli.main import main; main()"
    command[1:3] = ["-c", code]
    done = subprocess.run(command, capture_output=True, text=True, timeout=900, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return json.loads(done.stdout), done.stdout + done.stderr


def strings_of(node: Any) -> Iterator[str]:
    if isinstance(node, dict):
        for value in node.values():
            yield from strings_of(value)
    elif isinstance(node, list):
        for value in node:
            yield from strings_of(value)
    elif isinstance(node, str):
        yield node


def identifying_strings(bundles: Iterable[Any]) -> set[str]:
    """Names, addresses, birth dates, telephone numbers and identifiers of the patients, and their resource ids."""
    found: set[str] = set()
    for bundle in bundles:
        if not isinstance(bundle, SourceBundle):
            continue
        for resource in bundle.resources:
            if resource.resource_type != "Patient":
                continue
            patient = json.loads(resource.raw)
            for name in patient.get("name", []):
                found.update([name.get("family", ""), *name.get("given", [])])
            for address in patient.get("address", []):
                found.update([*address.get("line", []), address.get("city", "")])
            found.update(telecom.get("value", "") for telecom in patient.get("telecom", []))
            found.update(identifier.get("value", "") for identifier in patient.get("identifier", []))
            found.update([patient.get("birthDate", ""), patient.get("id", "")])
    return {text for text in found if len(text) >= PLAIN_CHARS_MIN}


def forms_of(text: str) -> list[bytes]:
    """A string as it is, and as careless code would hide it."""
    plain = text.encode()
    # Base64 of the middle, whatever stands around it.
    inside = base64.b64encode(plain[: len(plain) // 3 * 3])
    return [plain, plain.hex().encode(), text.encode("utf-16-le"), inside]


def leaks(folder: Path, secrets: Iterable[str]) -> list[tuple[str, str]]:
    """(file, string) of every secret that stands in any form in a file under ``folder``."""
    files = {path: path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}
    return [
        (path.name, secret)
        for secret in secrets
        for form in forms_of(secret)
        if len(form) >= PLAIN_CHARS_MIN + 1
        for path, content in files.items()
        if form in content
    ]


def check_demo(folder: Path, answer: dict[str, Any], printed: str, secrets: set[str]) -> None:
    assert answer["ok"] is True
    assert len(answer["steps"]) == 10
    assert {row["stage"] for row in answer["stages"]} >= STAGES
    assert answer["committed"] + answer["refused"] == answer["resources"] > 0
    assert all(Path(path).exists() for path in answer["places"].values())
    assert len(secrets) > 3 * answer["patients"]
    assert leaks(folder / "ledger", secrets) == []
    assert [secret for secret in secrets if secret in printed] == []


def test_the_demo_on_generated_histories(tmp_path: Path) -> None:  # SPEC-PRIV-1, SPEC-PRIV-3, SPEC-ING-2
    answer, printed = run_demo(tmp_path / "demo", "--patients", "6", "--seed", "3")
    secrets = identifying_strings(generate(seed=3, patients=6))
    check_demo(tmp_path / "demo", answer, printed, secrets)
    assert answer["patients"] == 6
    assert answer["refused"] == 0
    # The search finds what is there: the same strings, planted.
    planted = sorted(secrets)[0]
    for number, form in enumerate(forms_of(planted)):
        (tmp_path / "demo" / "ledger" / f"planted{number}").write_bytes(b"\0" + form + b"\0")
        assert leaks(tmp_path / "demo" / "ledger", [planted]) != []
        (tmp_path / "demo" / "ledger" / f"planted{number}").unlink()
    again = [sys.executable, "-c", "from fastledger.cli.main import main; main()", "demo", "--dir"]
    refused = subprocess.run([*again, str(tmp_path / "demo")], capture_output=True, text=True, check=False)
    assert refused.returncode == 3, "what an earlier demo left is not overwritten"


@pytest.mark.data
def test_the_demo_on_real_histories(tmp_path: Path, shared_data: Path) -> None:  # SPEC-PRIV-1
    pick = sorted((shared_data / "synthea-r4" / "pick").glob("*.json"), key=lambda path: path.stat().st_size)
    sources = pick[:5]
    arguments = [argument for path in sources for argument in ("--bundles", str(path))]
    answer, printed = run_demo(tmp_path / "demo", *arguments)
    secrets = identifying_strings(read_bundles(sources))
    names = {part for path in sources for part in path.stem.split("_")[:2] if len(part) >= PLAIN_CHARS_MIN}
    check_demo(tmp_path / "demo", answer, printed, secrets | {name for name in names if name[0].isupper()})


@pytest.mark.data
@pytest.mark.slow
@pytest.mark.skipif(os.environ.get("FASTLEDGER_FULL_DEMO") != "1", reason="FASTLEDGER_FULL_DEMO=1 runs it")
def test_the_demo_on_all_histories(tmp_path: Path, shared_data: Path) -> None:  # SPEC-PRIV-1
    archive = shared_data / "synthea-r4" / "r4-bundles.tar.xz"
    answer, printed = run_demo(tmp_path / "demo", "--bundles", str(archive))
    assert answer["committed"] == answer["resources"] == 49_634
    assert answer["peak_memory_mib"] < 1536
    check_demo(tmp_path / "demo", answer, printed, identifying_strings(read_bundles([archive])))

"""The main job from end to end, and what may never be seen of it (SPEC-PRIV-1)."""

import base64
import json
import os
import random
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hospital import observation, patient, write_bundle
from leaks import Haystack, forms_of, identifying, identifying_strings, leaks, strings_of

from fastledger import Ledger, verify_statement
from fastledger.cli.output import Exit
from fastledger.gateway.sources import read_bundles
from fastledger.workload import generate
from fastledger.workload.generator import transaction_bundle

STAGES = {"read", "validate", "encrypt", "sign", "store envelopes", "verify", "execute, append", "sync"}
STEPS = 10
# Of some hundred megabytes of ciphertext any few bytes are there by chance.
PLAIN_BYTES_MIN_FULL = 8
SCRIPT = Path(sys.executable).with_name("fastledger")


def run_demo(*arguments: Any, code: int = 0) -> tuple[dict[str, Any], str]:
    """The demo's answer, and everything that it printed."""
    done = subprocess.run(
        [str(SCRIPT), "demo", "--json", *map(str, arguments)], capture_output=True, text=True, timeout=900
    )
    assert done.returncode == code, done.stdout + done.stderr
    return json.loads(done.stdout or done.stderr), done.stdout + done.stderr


def check_demo(answer: dict[str, Any]) -> None:
    """Every step was done, everything was committed, and all is where the answer says."""
    assert answer["ok"] is True
    assert len(answer["steps"]) == STEPS
    assert {row["stage"] for row in answer["stages"]} >= STAGES
    assert answer["committed"] + answer["refused"] == answer["resources"] > 0
    ledger_path, keystore, receipt = map(Path, answer["places"].values())
    assert keystore.stat().st_mode & 0o077 == 0
    with Ledger.open(ledger_path) as ledger:
        assert (ledger.transaction_count, ledger.height) == (answer["transactions"], answer["height"])
        genesis = ledger.genesis
        verified = verify_statement(
            receipt.read_bytes(), chain_id=genesis.chain_id, proposers=genesis.proposers
        )
        assert verified.transaction.kind == "record.erase"


def check_privacy(folder: Path, printed: str, secrets: set[str], **options: Any) -> None:
    assert leaks(folder, secrets, **options) == []
    assert [secret for secret in secrets if secret in printed] == []


# The demo.


def test_the_demo_on_generated_histories(tmp_path: Path) -> None:  # SPEC-PRIV-1, SPEC-PRIV-3, SPEC-ING-2
    folder = tmp_path / "demo"
    answer, printed = run_demo("--dir", folder, "--patients", 6, "--seed", 3)
    check_demo(answer)
    assert (answer["patients"], answer["practitioners"], answer["refused"]) == (6, 0, 0)
    secrets = identifying_strings(generate(seed=3, patients=6))
    assert len(secrets) >= 6 * 4
    check_privacy(folder, printed, secrets)
    # What an earlier demo left is not overwritten, unless that is asked for; anything else is never removed.
    refused, _ = run_demo("--dir", folder, "--patients", 1, code=Exit.INPUT)
    assert refused["error"] == "bad-query"
    again, _ = run_demo("--dir", folder, "--patients", 2, "--force")
    assert again["patients"] == 2
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "thesis.tex").write_text("")
    run_demo("--dir", mine, "--force", "--patients", 1, code=Exit.INPUT)
    assert (mine / "thesis.tex").exists()


def test_the_demo_goes_on_past_what_it_cannot_read(tmp_path: Path) -> None:  # SPEC-ING-1
    """Sources and entries that are not FHIR are counted; once they ended the demo as lost resources."""
    sources = tmp_path / "sources"
    sources.mkdir()
    for number, bundle in enumerate(generate(seed=3, patients=4)):
        text = transaction_bundle(bundle).decode()
        (sources / f"{number}.json").write_text(
            text.replace('"entry":[', '"entry":[{"fullUrl":"urn:uuid:1"},', 1)
        )
    (sources / "broken.json").write_text("{")
    write_bundle(sources / "invalid.json", patient("x"), observation("Patient/x", status="Wilhelmina"))
    answer, printed = run_demo("--dir", tmp_path / "demo", "--bundles", sources)
    check_demo(answer)
    assert (answer["patients"], answer["refused"]) == (5, 1)
    assert "Wilhelmina" not in printed


def test_a_demo_without_a_story_says_so(tmp_path: Path) -> None:
    source = write_bundle(tmp_path / "a.json", patient(), observation())
    answer, _ = run_demo("--dir", tmp_path / "demo", "--bundles", source, code=Exit.WRONG)
    assert answer["ok"] is False
    assert "no patient" in answer["problem"]
    assert len(answer["steps"]) == 1


@pytest.mark.data
def test_the_demo_on_real_histories(tmp_path: Path, shared_data: Path) -> None:  # SPEC-PRIV-1
    pick = sorted((shared_data / "synthea-r4" / "pick").glob("*.json"), key=lambda path: path.stat().st_size)
    sources = pick[:5]
    assert sum("Information" in path.name for path in sources) == 2
    answer, printed = run_demo(
        "--dir", tmp_path / "demo", *(item for path in sources for item in ("--bundles", path))
    )
    check_demo(answer)
    assert (answer["patients"], answer["refused"]) == (3, 0)
    secrets = identifying_strings(read_bundles(sources))
    file_names = {path.stem for path in sources}
    assert len(secrets) > 3 * 10
    check_privacy(tmp_path / "demo", printed, secrets | file_names)


@pytest.mark.data
@pytest.mark.slow
@pytest.mark.skipif(os.environ.get("FASTLEDGER_FULL_DEMO") != "1", reason="FASTLEDGER_FULL_DEMO=1 runs it")
def test_the_demo_on_all_histories(tmp_path: Path, shared_data: Path) -> None:  # SPEC-PRIV-1
    archive = shared_data / "synthea-r4" / "r4-bundles.tar.xz"
    answer, printed = run_demo("--dir", tmp_path / "demo", "--bundles", archive)
    check_demo(answer)
    assert answer["committed"] == answer["resources"] == 49_634
    assert answer["peak_memory_mib"] < 1536
    secrets = identifying_strings(read_bundles([archive]))
    check_privacy(tmp_path / "demo", printed, secrets, plain_bytes_min=PLAIN_BYTES_MIN_FULL)
    shutil.rmtree(tmp_path / "demo")


# The search itself: it finds what is there.

SECRETS = [
    "Castellanos",
    "Gustavo",
    "Mejía",
    "Chet",
    "999-47-1234",
    "1970-02-28",
    "555-123-4567",
    "12 Elm Street",
]


def disguises(secret: str) -> dict[str, bytes]:
    """What careless code might write."""
    text = json.dumps({"resourceType": "Patient", "name": secret}, ensure_ascii=False)
    record = text.encode()
    return {
        "json": record,
        "lower case": text.lower().encode(),
        "upper case": text.upper().encode(),
        "hexadecimal": record.hex().encode(),
        "upper hexadecimal": record.hex().upper().encode(),
        "UTF-16, little-endian": text.encode("utf-16-le"),
        "UTF-16, big-endian": text.encode("utf-16-be"),
        **{f"base64 at {offset}": base64.b64encode(bytes(offset) + record) for offset in range(3)},
        **{f"base64url at {offset}": base64.urlsafe_b64encode(bytes(offset) + record) for offset in range(3)},
    }


@pytest.mark.parametrize("secret", SECRETS)
def test_the_search_finds_every_disguise_in_ciphertext(secret: str) -> None:
    noise = random.Random(secret)
    forms = forms_of(secret)
    assert not Haystack.of("file", noise.randbytes(50_000) + bytes(100_000)).holds(forms)
    for name, disguise in disguises(secret).items():
        for before in (b"", noise.randbytes(1_001), bytes(5_000)):
            assert Haystack.of("file", before + disguise + noise.randbytes(999)).holds(forms), name


def test_the_search_finds_what_is_planted_in_a_ledger(tmp_path: Path) -> None:
    """In the middle of a real file, in a file's name, and in a folder's."""
    with Ledger.create(tmp_path / "ledger"):
        pass
    assert leaks(tmp_path, SECRETS) == []
    (segment,) = (tmp_path / "ledger" / "log").glob("*.seg")
    with segment.open("r+b") as file:
        file.seek(1_000_003)
        file.write(b"born 1970-02-28")
    assert leaks(tmp_path, SECRETS) == [("ledger/log/00000000.seg", "1970-02-28")]
    (tmp_path / "ledger" / "Castellanos").mkdir()
    (tmp_path / "ledger" / "Castellanos" / "19700228.txt").write_bytes(b"")
    assert ("ledger/Castellanos", "Castellanos") in leaks(tmp_path, SECRETS)
    assert ("ledger/Castellanos/19700228.txt", "1970-02-28") in leaks(tmp_path, SECRETS)


@pytest.mark.data
def test_the_secrets_are_really_taken_from_the_histories(shared_data: Path) -> None:
    """Names, SSN, medical record number, telephone, address: a search for too little proves nothing."""
    (path,) = (shared_data / "synthea-r4" / "pick").glob("Antonio_*.json")
    (bundle,) = read_bundles([path])
    assert not isinstance(bundle, Exception)
    secrets = identifying_strings([bundle])
    (person,) = [json.loads(item.raw) for item in bundle.resources if item.resource_type == "Patient"]
    kinds = {
        coding["code"] for item in person["identifier"] for coding in item.get("type", {}).get("coding", [])
    }
    assert {"MR", "SS"} <= kinds
    assert {item["value"] for item in person["identifier"]} <= secrets
    assert {person["birthDate"], person["id"], person["address"][0]["line"][0]} <= secrets
    assert secrets == identifying(person)
    assert secrets < set(strings_of(person))
    assert any(name.startswith("Antonio") for name in secrets)
    # All of it stands in the source: the search would find it there.
    assert {secret for _, secret in leaks_in_copy(path, secrets)} == secrets


def leaks_in_copy(path: Path, secrets: set[str]) -> list[tuple[str, str]]:
    haystack = Haystack.of("copy", path.read_bytes())
    return [("copy", secret) for secret in secrets if haystack.holds(forms_of(secret))]

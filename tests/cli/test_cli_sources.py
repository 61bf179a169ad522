"""The command line on sources: who they are, what was not taken, and who is one person."""

import json
from pathlib import Path

import pytest
from commands import Cli, cheapen
from hospital import observation, patient, person, practitioner, write_bundle, write_ndjson

from fastledger.cli.output import Exit

NORTH, SOUTH = "https://north.example/fhir", "https://south.example/fhir"


@pytest.fixture
def cli(tmp_path: Path) -> Cli:
    made = Cli(tmp_path)
    made.json("init", made.ledger)
    cheapen(made.keystore)
    return made


def lines(path: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in path.read_bytes().splitlines()]


def test_report_and_map_tell_everything(cli: Cli, tmp_path: Path) -> None:  # SPEC-ING-1, SPEC-ING-4
    source = write_ndjson(
        tmp_path / "Wilhelmina.ndjson",
        patient("a"),
        observation("Patient/a", id="good"),
        observation("Patient/a", id="bad", status="Wilhelmina"),
        observation("Location/a", id="parked"),
        "{broken",
    )
    report, kept = tmp_path / "report.ndjson", tmp_path / "map.ndjson"
    files = ("--report", report, "--map", kept)
    answer = cli.json("ingest", cli.ledger, source, *files, code=Exit.WRONG)
    assert (answer["committed"], answer["parked"], answer["refused"], answer["unreadable"]) == (2, 1, 1, 1)
    told = [(item["code"], item["resource_id"], item["element"]) for item in lines(report)]
    assert told == [
        ("not-a-resource", "", ""),
        ("not-valid", "bad", "Observation.status"),
        ("subject-is-no-patient", "parked", "Observation.subject"),
    ]
    assert [item["origin"] for item in lines(report)] == [f"source 1, line {number}" for number in (5, 3, 4)]
    rows = lines(kept)
    assert [item["resource_id"] for item in rows] == ["a", "good", "parked"]
    content = cli.json("read", cli.ledger, rows[1]["record"], "--as", "organisation", "--purpose", "TREAT")
    assert json.loads(content["content"])["id"] == "good"
    for path in (report, kept):
        assert path.stat().st_mode & 0o777 == 0o600
        assert "Wilhelmina" not in path.read_text()
    again = cli.json("ingest", cli.ledger, source, *files, code=Exit.WRONG)
    assert (again["unchanged"], again["committed"], again["parked"], again["transactions"]) == (3, 0, 0, 0)
    assert lines(kept) == []


def test_a_source_must_be_named(
    cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:  # SPEC-FHIR-8
    source = write_ndjson(tmp_path / "a.ndjson", patient("a"))
    assert cli.error("ingest", cli.ledger, source, "--source", "clinic")["error"] == "malformed"
    assert cli.json("ingest", cli.ledger, source, "--source", NORTH)["patients"] == 1
    assert cli.json("ingest", cli.ledger, source, "--source", SOUTH)["patients"] == 1
    names = {item["name"] for item in cli.json("keys", "list")["wallets"]}
    assert {f"patient:{base}/Patient/a" for base in (NORTH, SOUTH)} <= names


def test_the_list_of_sources_says_who_signs(cli: Cli, tmp_path: Path) -> None:  # SPEC-ING-7
    listed = tmp_path / "sources.toml"
    listed.write_text(f'[[source]]\nbase = "{NORTH}"\npractitioners = ["http://npi.example|1"]\n')
    doctor = practitioner(None, identifier=[{"system": "http://npi.example", "value": "1"}])
    source = write_bundle(tmp_path / "a.json", patient("a"), doctor, observation("Patient/a"))
    for base, count in ((SOUTH, 0), (NORTH, 1)):
        answer = cli.json("ingest", cli.ledger, source, "--source", base, "--sources-file", listed)
        assert (answer["practitioners"], answer["committed"]) == (count, 3)
    listed.write_text("[[source]]\n")
    failure = cli.error("ingest", cli.ledger, source, "--source", NORTH, "--sources-file", listed)
    assert failure["error"] == "malformed"


def test_matches_are_said_and_listed(cli: Cli, tmp_path: Path) -> None:  # SPEC-ING-8
    numbered = observation(None, id="n") | {"subject": {"identifier": {"system": "s:s", "value": "12"}}}
    source = write_ndjson(tmp_path / "a.ndjson", patient("a"), numbered)
    assert cli.json("ingest", cli.ledger, source, code=Exit.WRONG)["parked"] == 1
    cli.json("ingest", cli.ledger, source, "--source", NORTH, code=Exit.WRONG)
    assert cli.json("matches", "list")["matches"] == []
    by = ("--by", "records office")
    made = cli.json("matches", "add", cli.ledger, "--identifier", "s:s|12", "--same-as", "Patient/a", *by)
    assert len(bytes.fromhex(made["record"])) == 16
    answer = cli.json("ingest", cli.ledger, source)
    assert (answer["committed"], answer["unchanged"], answer["parked"]) == (1, 1, 0)
    words = (
        "--patient",
        "Patient/a",
        "--same-as",
        person("a"),
        "--same-source",
        "https://clinic.example/fhir",
    )
    cli.json("matches", "add", cli.ledger, "--source", NORTH, *words, *by)
    found = cli.json("matches", "list")["matches"]
    assert [(item["what"], item["person"], item["by"]) for item in found] == [
        ("s:s|12", person("a"), "records office"),
        (f"{NORTH}/Patient/a", person("a"), "records office"),
    ]
    again = cli.error("matches", "add", cli.ledger, "--source", NORTH, *words, *by)
    assert "one already" in again["message"]
    cli.run("matches", "add", cli.ledger, "--same-as", "Patient/a", *by, code=2)
    cli.run("matches", "add", cli.ledger, "--patient", "Location/1", "--same-as", "Patient/a", *by, code=3)

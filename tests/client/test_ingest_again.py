"""Ingest again: nothing twice, nothing lost, whatever was changed, erased, killed or forgotten in between."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from fhir_world import ingest_killer
from hospital import (
    BASE,
    Hospital,
    hospital,
    observation,
    patient,
    write_bundle,
    write_ndjson,
)

from fastledger.client.ingest import PARKED, ResourceMap, map_path
from fastledger.client.ingest.resource_map import Plan
from fastledger.errors import InputError, LedgerError
from fastledger.gateway.fhir_source import Source
from fastledger.subjects.record import RECORDS
from fastledger.workload import generate

# `make soak` asks for enough rounds that more than 200 ingests are killed.
ROUNDS = int(os.environ.get("FASTLEDGER_INGEST_ROUNDS", "12"))


@pytest.fixture
def clinic(tmp_path: Path) -> Iterator[Hospital]:
    with hospital(tmp_path) as made:
        yield made


def record_count(clinic: Hospital) -> int:
    return len(clinic.ledger.entities(RECORDS, limit=1000).items)


def test_the_same_again_adds_nothing(clinic: Hospital) -> None:  # SPEC-ING-4
    bundles = list(generate(seed=2, patients=2))
    first = clinic.ingest(bundles)
    before = clinic.ledger.transaction_count
    for _ in range(2):
        again = clinic.ingest(bundles)
        assert again.report.unchanged == again.report.resources == first.report.committed
        assert (again.report.committed, again.report.transactions, again.kept) == (0, 0, [])
    assert clinic.ledger.transaction_count == before


def test_a_changed_one_amends(clinic: Hospital, tmp_path: Path) -> None:  # SPEC-ING-4
    def lines(name: str, value: str) -> Path:
        return write_ndjson(tmp_path / name, patient("p"), observation("Patient/p", id="o", valueString=value))

    first = clinic.ingest([lines("a.ndjson", "one")])
    second = clinic.ingest([lines("b.ndjson", "two")])
    assert (second.report.committed, second.report.amended, second.report.unchanged) == (1, 1, 1)
    (kept,) = second.kept
    assert (kept.record, kept.version) == (first.kept[1].record, 2)
    assert json.loads(second.content(kept))["valueString"] == "two"
    assert json.loads(first.content(first.kept[1]))["valueString"] == "one"
    # Both files again, the older one last: what is known is known, and the newest stays the newest.
    for name in ("b.ndjson", "a.ndjson"):
        again = clinic.ingest([tmp_path / name])
        assert (again.report.unchanged, again.report.committed) == (2, 0)
    assert clinic.ledger.entity(RECORDS, kept.record).version == 2


def test_versions_in_one_source_amend_in_their_order(clinic: Hospital, tmp_path: Path) -> None:  # SPEC-ING-4
    """A file that has a resource several times, and a history, whose newest version stands first."""
    values = ["one", "two", "three"]
    nodes = [observation(id="o", valueString=value) for value in values]
    done = clinic.ingest([write_ndjson(tmp_path / "a.ndjson", *nodes)])
    assert [kept.version for kept in done.kept] == [1, 2, 3]
    history = {
        "resourceType": "Bundle",
        "type": "history",
        "entry": [
            {
                "fullUrl": f"{BASE}/Observation/h",
                "resource": {**node, "id": "h"},
                "request": {"method": "PUT", "url": "Observation/h"},
                "response": {"status": "200"},
            }
            for node in reversed(nodes)
        ],
    }
    (tmp_path / "h.json").write_text(json.dumps(history))
    done = clinic.ingest([tmp_path / "h.json"])
    assert [json.loads(done.content(kept))["valueString"] for kept in done.kept] == values


def test_what_turns_out_to_be_anothers_is_not_amended_into_the_first_ones_folder(
    clinic: Hospital, tmp_path: Path
) -> None:  # SPEC-ING-5
    """A correction of whose it is goes to the right person; the wrong one's folder learns nothing of it."""
    first = clinic.ingest([write_ndjson(tmp_path / "a.ndjson", observation("Patient/a", id="o"))])
    second = clinic.ingest([write_ndjson(tmp_path / "b.ndjson", observation("Patient/b", id="o"))])
    assert (second.report.committed, second.report.moved, second.report.amended) == (1, 1, 0)
    assert second.kept[0].folder != first.kept[0].folder
    assert second.kept[0].record != first.kept[0].record
    assert [(item.code, item.resource_id) for item in second.remarks] == [("moved", "o")]
    assert clinic.ledger.entity(RECORDS, first.kept[0].record).version == 1
    # The same with the category: a reader of the one is no reader of the other.
    laboratory = [{"coding": [{"code": "laboratory"}]}]
    node = observation("Patient/b", id="o", category=laboratory)
    third = clinic.ingest([write_ndjson(tmp_path / "c.ndjson", node)])
    assert (third.report.moved, third.kept[0].category) == (1, "laboratory")
    for name in ("a", "b", "c"):
        assert clinic.ingest([tmp_path / f"{name}.ndjson"]).report.unchanged == 1


def test_what_cannot_be_told_any_more_is_not_amended_either(clinic: Hospital, tmp_path: Path) -> None:
    """SPEC-ING-5. The first stays where it is; the unclear version is parked."""
    first = clinic.ingest([write_ndjson(tmp_path / "a.ndjson", observation("Patient/a", id="o"))])
    second = clinic.ingest([write_ndjson(tmp_path / "b.ndjson", observation("urn:uuid:1", id="o"))])
    assert [kept.category for kept in second.kept] == [PARKED]
    assert clinic.ledger.entity(RECORDS, first.kept[0].record).version == 1
    third = clinic.ingest([write_ndjson(tmp_path / "c.ndjson", observation("Patient/a", id="o", valueString="x"))])
    assert (third.report.amended, third.kept[0].record) == (1, first.kept[0].record)
    assert clinic.ledger.entity(RECORDS, second.kept[0].record).erased


def test_the_erased_stays_erased(clinic: Hospital, tmp_path: Path) -> None:  # SPEC-ING-5
    lines = write_ndjson(tmp_path / "a.ndjson", observation("Patient/p", id="o"))
    done = clinic.ingest([lines])
    (owner,) = done.custodian.patients.values()
    clinic.submit(owner.erase_record(done.kept[0].record))
    assert clinic.ingest([lines]).report.unchanged == 1
    changed = write_ndjson(tmp_path / "b.ndjson", observation("Patient/p", id="o", valueString="new"))
    again = clinic.ingest([changed])
    assert (again.report.erased, again.report.committed) == (1, 0)
    assert [item.code for item in again.remarks] == ["erased"]
    map_path(clinic.keystore, "organisation").unlink()
    assert clinic.ingest([lines]).report.erased == 1
    assert record_count(clinic) == 1


def test_a_lost_map_doubles_nothing(clinic: Hospital, tmp_path: Path) -> None:  # SPEC-ING-4
    """Ids of records follow from the keystore's key: the chain refuses a second put, and the map learns anew."""
    nodes = [observation("Patient/p", id=f"o{number}") for number in range(5)]
    lines = write_ndjson(tmp_path / "a.ndjson", patient("p"), *nodes)
    clinic.ingest([lines])
    changed = write_ndjson(tmp_path / "b.ndjson", *[node | {"valueString": "x"} for node in nodes[:2]])
    map_path(clinic.keystore, "organisation").unlink()
    second = clinic.ingest([changed])
    assert (second.report.amended, second.report.failures) == (2, {})
    map_path(clinic.keystore, "organisation").unlink()
    third = clinic.ingest([changed])
    assert (third.report.unchanged, third.report.committed) == (2, 0)
    assert record_count(clinic) == 6
    assert clinic.ingest([changed]).report.transactions == 0


def test_the_same_words_in_another_bundle_are_about_somebody_else(clinic: Hospital, tmp_path: Path) -> None:
    """SPEC-ING-5. Resources without ids go by their content, and by their placeholder."""
    url = "urn:uuid:0b0e4a4e-3f7a-4b5e-9a0d-8d3c2b1a0f9e"
    bundles = [
        write_bundle(tmp_path / f"{number}.json", patient(None, gender=gender), observation(url), urls=[url])
        for number, gender in enumerate(("female", "male"))
    ]
    assert clinic.ingest(bundles).report.committed == 4
    assert clinic.ingest(bundles).report.unchanged == 4


def test_one_organisations_map_is_not_anothers(clinic: Hospital, tmp_path: Path) -> None:  # SPEC-ING-4
    clinic.organisation("other")
    lines = write_ndjson(tmp_path / "a.ndjson", observation("Patient/p", id="o"))
    for entry in ("organisation", "other"):
        assert clinic.ingest([lines], entry=entry).report.committed == 1
    assert clinic.ingest([lines], source=Source.named("urn:x:y")).report.committed == 1


def test_a_killed_ingest_goes_on_and_doubles_nothing(tmp_path: Path) -> None:  # SPEC-ING-4
    """Hundreds of kills at random moments, and right beside each write; then every resource stands exactly once."""
    tests = Path(__file__).parents[1]
    paths = [str(tests.parent), str(tests / "support"), str(tests)]
    done = subprocess.run(
        [sys.executable, str(tests / "fhir_world" / "ingest_killer.py"), str(tmp_path), str(ROUNDS), "1"],
        capture_output=True,
        text=True,
        timeout=3_000,
        check=False,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(paths)},
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    records, versions = ingest_killer.expected(ROUNDS)
    assert (found["records"], found["versions"]) == (records, versions)
    assert (found["erased"], found["problems"]) == (0, 0)
    # A run that ends before its moment is not killed; how many do depends on what else the machine does.
    assert found["points"] >= ROUNDS
    assert found["killed"] >= found["points"] // 4


# The map.


def a_map(path: Path | None) -> ResourceMap:
    return ResourceMap(path, bytes(32), bytes(8))


def test_the_map_tells_nobody_anything(clinic: Hospital, tmp_path: Path) -> None:  # SPEC-ING-4
    url = f"{BASE}/Observation/secret-observation"
    node = observation("Patient/secret-patient", id="secret-observation", valueString="secret-value")
    clinic.ingest([write_bundle(tmp_path / "a.json", node, patient("secret-patient"), urls=[url])])
    path = map_path(clinic.keystore, "organisation")
    text = path.read_bytes()
    for word in (b"secret", b"Observation", b"clinic.example"):
        assert word not in text
    assert path.stat().st_mode & 0o777 == 0o600


def test_tags_keep_their_parts_apart() -> None:
    tags = a_map(None)
    seen = {
        tags.tag(*parts)
        for parts in (("a", b"b", b"c"), ("a", b"bc"), ("a", b"", b"bc"), ("ab", b"c"), ("a", b"b", b"c", b""))
    }
    assert len(seen) == 5
    assert ResourceMap(None, bytes(32), b"chain  2").tag("a", b"b") != tags.tag("a", b"b")


def test_a_map_is_one_process_at_a_time(tmp_path: Path) -> None:
    path = tmp_path / "map"
    with a_map(path) as first:
        first.plan([Plan(bytes(16), bytes(16), bytes(16), 1, bytes(16), bytes(16))])
        with pytest.raises(LedgerError):
            a_map(path)
    with a_map(path) as second:
        second.recover(lambda record, version: True)
        assert second.resource_count == 1
    path.write_bytes(b"something else, and long enough to be looked at" * 40)
    with pytest.raises(LedgerError):
        a_map(path)
    with pytest.raises(InputError):
        map_path(path, "../x")

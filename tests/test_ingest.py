"""From FHIR sources to durable records (SPEC-ING)."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from world import World, new_wallet

from fastledger import Keystore, Purpose
from fastledger.client.ingest import Custodian, Ingest, IngestReport, Kept
from fastledger.crypto.keystore import KdfParams
from fastledger.errors import FhirError
from fastledger.gateway.sources import SourceBundle, read_bundles
from fastledger.workload import generate, transaction_bundle

WEAK_KDF = KdfParams(memory_kib=8, iterations=1)


def custodian_of(world: World) -> Custodian:
    return Custodian(
        world.ledger,
        world.hospital,
        new_wallet=lambda: new_wallet(world.clock).join(world.ledger.chain_id),
    )


@pytest.fixture
def bundles(tmp_path: Path) -> Iterator[list[SourceBundle | FhirError]]:
    """Two generated patients, one of whose resources is broken, and a file that is no FHIR."""
    folder = tmp_path / "sources"
    folder.mkdir()
    for number, bundle in enumerate(generate(seed=5, patients=2)):
        document = json.loads(transaction_bundle(bundle))
        if number == 1:
            broken = next(
                entry["resource"]
                for entry in document["entry"]
                if entry["resource"]["resourceType"] == "Observation"
            )
            broken["status"] = "Jane Roe"
        (folder / f"{number}.json").write_text(json.dumps(document))
    (folder / "9.json").write_text("{not json")
    yield list(read_bundles([folder]))


def test_bad_resources_are_counted_and_the_rest_goes_through(
    world: World, bundles: list[SourceBundle | FhirError]
) -> None:  # SPEC-ING-1
    kept: list[Kept] = []
    report = Ingest(world.ledger, custodian_of(world), on_kept=kept.append).run(bundles)
    assert (report.patients, report.failures) == (2, {})
    assert (report.refused, report.unreadable) == (1, 1), "one resource and one file"
    assert report.committed == report.resources - 1 == len(kept)
    places = [(path, problem) for _, path, problem in report.refusals]
    assert ("Observation.status" in [path for path, _ in places]) is True
    assert "Jane Roe" not in repr(report)
    assert all(world.ledger.record(item.record).version == 1 for item in kept)


def test_a_patient_s_resources_lie_in_the_patient_s_folders(
    world: World, bundles: list[SourceBundle | FhirError]
) -> None:  # SPEC-ING-2
    kept: list[Kept] = []
    custodian = custodian_of(world)
    Ingest(world.ledger, custodian, on_kept=kept.append).run(bundles)
    for item in kept:
        owner = world.ledger.folder(item.folder).owner
        if item.patient is None:
            assert owner == world.hospital.identity
        else:
            patient = custodian.patients[item.patient]
            assert owner == patient.identity
            assert patient.labels[item.category] == item.folder
    assert {item.patient for item in kept} == {None, *custodian.patients}
    assert len({item.category for item in kept}) > 5


def test_keys_are_saved_before_what_needs_them_and_serve_again(
    world: World, bundles: list[SourceBundle | FhirError], tmp_path: Path
) -> None:  # SPEC-ING-3
    keystore = Keystore.create(tmp_path / "keys", "password", kdf_params=WEAK_KDF, allow_weak_kdf=True)
    custodian = custodian_of(world)
    heights: list[int] = []

    def save() -> None:
        heights.append(world.ledger.height)
        custodian.save(keystore)
        keystore.save()

    kept: list[Kept] = []
    before = world.ledger.height
    Ingest(world.ledger, custodian, before_submit=save, on_kept=kept.append).run(bundles)
    assert heights[0] == before, "saved before the first block of it"
    again = custodian_of(world)
    again.load(Keystore.open(tmp_path / "keys", "password"))
    assert set(again.patients) == set(custodian.patients)
    item = next(item for item in kept if item.patient is not None)
    patient = again.patients[str(item.patient)]
    patient._clock_ms = world.clock
    envelope = world.ledger.read(patient.access(item.record, Purpose.PATIENT_REQUEST))
    content = json.loads(patient.open_record(envelope, folder=item.folder, record=item.record))
    assert content["resourceType"]
    # The same sources once more: the same people, new records.
    people = world.ledger.query(kind="identity.register", limit=1000)
    second = Ingest(world.ledger, again).run(bundles)
    assert (second.patients, second.failures) == (0, {})
    assert len(world.ledger.query(kind="identity.register", limit=1000)) == len(people)


def test_lines_without_a_bundle_go_to_the_patients_that_they_name(world: World, tmp_path: Path) -> None:  # SPEC-ING-2
    lines = [
        {"resourceType": "Patient", "id": "one"},
        {"resourceType": "Patient", "id": "two"},
        *(
            {
                "resourceType": "Observation",
                "status": "final",
                "code": {"text": "pulse"},
                "subject": {"reference": f"Patient/{name}"},
            }
            for name in ("one", "two", "one")
        ),
        {"resourceType": "Observation", "status": "final", "code": {"text": "of nobody"}},
    ]
    path = tmp_path / "export.ndjson"
    path.write_text("\n".join(json.dumps(line) for line in lines))
    kept: list[Kept] = []
    custodian = custodian_of(world)
    report: IngestReport = Ingest(world.ledger, custodian, on_kept=kept.append).run(read_bundles([path]))
    assert sorted(str(item.patient) for item in kept) == ["one", "one", "one", "two", "two"]
    assert (report.refused, report.refusals[0][1]) == (1, "Observation")
    assert set(custodian.patients) == {"one", "two"}

"""From FHIR sources to durable records: nothing invalid, nobody else's folder, no key lost (SPEC-ING)."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hospital import (
    BASE,
    SOURCE,
    Hospital,
    hospital,
    observation,
    patient,
    person,
    practitioner,
    write_bundle,
    write_ndjson,
)

from fastledger import Purpose, Wallet
from fastledger.client.ingest import REFUSALS_KEPT, Custodian
from fastledger.client.ingest import run as ingest_module
from fastledger.errors import NotFoundError
from fastledger.gateway.fhir_source import Source
from fastledger.limits import KEYSTORE_NAME_BYTES_MAX
from fastledger.model.outcome import Outcome
from fastledger.subjects.consent import ConsentGrant
from fastledger.subjects.folder import FOLDERS, FolderOpen
from fastledger.subjects.identity import IDENTITIES, SIGNER_REVOKED
from fastledger.subjects.record import RECORDS, RecordPut
from fastledger.workload import generate


@pytest.fixture
def clinic(tmp_path: Path) -> Iterator[Hospital]:
    with hospital(tmp_path) as made:
        yield made


def count_of(clinic: Hospital, kind: str) -> int:
    return len(clinic.ledger.query(kind=kind, limit=1000))


# What goes in comes out.


def test_generated_histories_go_in_whole_and_come_out_byte_for_byte(clinic: Hospital) -> None:
    # SPEC-ING-2, SPEC-FHIR-2
    bundles = list(generate(seed=3, patients=2))
    done = clinic.ingest(bundles)
    resources = [resource for bundle in bundles for resource in bundle.resources]
    report = done.report
    assert (report.bundles, report.patients, report.practitioners) == (3, 2, 0)
    assert report.resources == report.committed == len(resources) == len(done.kept)
    assert report.resource_bytes == sum(len(resource.raw) for resource in resources)
    assert (report.refused, report.unreadable, report.failures) == (0, 0, {})
    assert sorted(done.content(kept) for kept in done.kept) == sorted(item.raw for item in resources)
    assert report.transactions == clinic.ledger.transaction_count - 2
    assert clinic.ledger.verify().problems == []


def test_a_patients_records_are_that_patients(clinic: Hospital) -> None:  # SPEC-ING-2
    """Owned by the patient's identity, written by the practitioner, readable by both and the organisation."""
    done = clinic.ingest([*generate(seed=5, patients=1)])
    (reference,) = done.custodian.patients
    wallet = done.custodian.patients[reference]
    organisation = done.custodian.organisation
    mine = [kept for kept in done.kept if kept.patient == reference]
    assert {kept.category for kept in mine} == set(wallet.labels)
    for kept in mine[:8]:
        record = clinic.ledger.entity(RECORDS, kept.record)
        assert clinic.ledger.entity(FOLDERS, record.folder).owner == wallet.identity
        assert record.folder == wallet.labels[kept.category]
        for reader, purpose in ((wallet, Purpose.PATIENT_REQUEST), (organisation, Purpose.TREATMENT)):
            blob = clinic.ledger.read(reader.access(kept.record, purpose))
            assert reader.open_record(blob, folder=kept.folder, record=kept.record)
        for term in kept.terms:
            token = wallet.tokens(kept.folder, term)[0]
            found = [entry.transaction.body_map["record"] for entry in clinic.ledger.query(token=token)]
            assert kept.record in found
    directory = [kept for kept in done.kept if kept.patient is None]
    assert {kept.folder for kept in directory} == {organisation.labels["directory"]}


NPI = "http://hl7.org/fhir/sid/us-npi"


def doctor(value: str = "1111111111", system: str | None = NPI) -> dict[str, Any]:
    identifier = {"value": value} | ({} if system is None else {"system": system})
    return practitioner(None, identifier=[identifier], name=[{"family": "x"}])


def test_a_source_enrols_and_signs_as_nobody(clinic: Hospital, tmp_path: Path) -> None:  # SPEC-ING-7
    """Whoever it names: staff are listed by the operator, by system and value, for each source."""
    crowd = [doctor(f"ghost-{number}") for number in range(50)]
    done = clinic.ingest([write_bundle(tmp_path / "a.json", patient(), *crowd, doctor(), observation())])
    assert (done.report.practitioners, done.custodian.staff) == (0, {})
    assert count_of(clinic, "identity.register") == 2
    organisation = done.custodian.organisation.identity
    assert {clinic.ledger.record_version(kept.record).author for kept in done.kept} == {organisation}


def test_the_listed_practitioner_of_a_bundle_signs(clinic: Hospital, tmp_path: Path) -> None:  # SPEC-ING-7
    listed = Source.named(BASE, practitioners=[(NPI, "1111111111"), (NPI, "2222222222")])
    other = Source.named("https://other.example/fhir")

    def author_of(number: int, *staff: Any, source: Source = listed) -> bytes:
        node = observation(id=f"o{number}")
        done = clinic.ingest(
            [write_bundle(tmp_path / f"{number}.json", patient(), *staff, node)], source=source
        )
        (record,) = (kept.record for kept in done.kept if kept.category == "vitals")
        return clinic.ledger.record_version(record).author

    real = author_of(1, doctor())
    custodian, _ = clinic.custodian()
    assert custodian.staff[f"{NPI}|1111111111"].identity == real
    for number, staff in enumerate(
        (
            [doctor(system=None)],
            [doctor(system="http://another.example")],
            [doctor("3333333333")],
            [doctor(), doctor("2222222222")],  # which of them it was, nobody says
            [],
        )
    ):
        assert author_of(10 + number, *staff) == custodian.organisation.identity
    assert author_of(20, doctor(), source=other) == custodian.organisation.identity
    assert author_of(21, doctor(), doctor("3333333333")) == real
    assert count_of(clinic, "identity.endorse") == 2


# What is not valid.


def test_invalid_resources_are_counted_and_the_rest_goes_through(clinic: Hospital, tmp_path: Path) -> None:
    # SPEC-ING-1, SPEC-FHIR-7
    bundle = write_bundle(
        tmp_path / "Wilhelmina_Planted.json",
        patient(),
        patient("p1", birthDate="1970-02-31"),
        observation(status="Wilhelmina"),
        observation(),
        observation(Planted="Wilhelmina"),
        {"resourceType": "Obervation"},
    )
    done = clinic.ingest([bundle])
    report = done.report
    assert (report.resources, report.committed, report.refused, report.unreadable) == (6, 2, 4, 0)
    assert [(origin, path) for origin, path, _ in report.refusals] == [
        ("source 1, entry 2", "Patient.birthDate"),
        ("source 1, entry 3", "Observation.status"),
        ("source 1, entry 5", "Observation"),
        ("source 1, entry 6", "Resource"),
    ]
    assert all(problem for _, _, problem in report.refusals)
    assert [(item.code, item.origin, item.resource_type) for item in done.remarks] == [
        ("not-valid", origin, kind)
        for (origin, _, _), kind in zip(
            report.refusals, ("Patient", "Observation", "Observation", "Obervation"), strict=True
        )
    ]
    for told in (repr(report), repr(done.remarks)):
        assert "Wilhelmina" not in told
        assert "Planted" not in told
    assert len(done.contents_of("p1")) == 2


def test_what_cannot_be_read_is_told_apart(
    clinic: Hospital, tmp_path: Path
) -> None:  # SPEC-ING-1, SPEC-FHIR-6
    """Neither a file nor an entry without a resource counts as a resource; both are counted."""
    text = write_bundle(tmp_path / "a.json", patient(), observation()).read_text()
    bundle = tmp_path / "holes.json"
    bundle.write_text(text.replace('"entry": [', '"entry": [{"fullUrl": "urn:uuid:1"}, 7, '))
    broken = tmp_path / "broken.json"
    broken.write_text("{")
    lines = write_ndjson(tmp_path / "lines.ndjson", observation(), "{broken", "", observation())
    report = clinic.ingest([bundle, broken, lines, tmp_path / "absent.json"]).report
    assert (report.resources, report.committed, report.unchanged, report.unreadable) == (4, 2, 2, 5)
    assert all(origin.startswith("source 1") for origin, _, _ in report.refusals)
    assert all(path == "" and problem for _, path, problem in report.refusals)


def test_only_the_first_refusals_are_kept(clinic: Hospital, tmp_path: Path) -> None:
    bad = [observation(status="x")] * (REFUSALS_KEPT + 5)
    report = clinic.ingest([write_bundle(tmp_path / "a.json", *bad)]).report
    assert (report.refused, len(report.refusals)) == (REFUSALS_KEPT + 5, REFUSALS_KEPT)


def test_a_refusal_by_the_rules_is_counted_by_its_code(clinic: Hospital, tmp_path: Path) -> None:
    """An organisation whose endorsement was withdrawn writes nothing more into its patients' folders."""
    assert clinic.ingest([write_bundle(tmp_path / "a.json", patient())]).report.failures == {}
    custodian, _ = clinic.custodian()
    clinic.submit(clinic.regulator.revoke_identity(custodian.organisation.identity))
    more = write_bundle(tmp_path / "b.json", patient(gender="female"), observation(id="o"))
    done = clinic.ingest([more])
    assert done.report.committed == 0
    assert set(done.report.failures) == {SIGNER_REVOKED.slug}
    assert SIGNER_REVOKED.slug in {item.code for item in done.remarks}


# Whose it is.


def test_ndjson_without_bundles_goes_to_each_patient(clinic: Hospital, tmp_path: Path) -> None:  # SPEC-ING-2
    people = [patient(f"p{number}") for number in range(3)]
    notes = [
        observation(f"Patient/p{number % 3}", id=f"o{number}", valueString=f"of p{number % 3}")
        for number in range(9)
    ]
    done = clinic.ingest(
        [write_ndjson(tmp_path / "Everything.ndjson", *people, *notes, {"resourceType": "Location"})]
    )
    assert (done.report.patients, done.report.committed, done.report.failures) == (3, 13, {})
    for number in range(3):
        person, *observed = done.contents_of(f"p{number}")
        assert person["id"] == f"p{number}"
        assert [item["valueString"] for item in observed] == [f"of p{number}"] * 3
    assert [item["resourceType"] for item in done.contents_of(None)] == ["Location"]
    owners = {clinic.ledger.entity(FOLDERS, kept.folder).owner for kept in done.kept if kept.patient}
    assert len(owners) == 3


def test_another_patients_resource_never_goes_to_the_bundles_patient(
    clinic: Hospital, tmp_path: Path
) -> None:
    """A bundle or a run of lines with one Patient once took every clinical resource for that patient's (SPEC-ING-2)."""
    mixed = (patient("p1"), observation("Patient/p1"), observation("Patient/p2", valueString="of p2"))
    for number, path in enumerate(
        (write_bundle(tmp_path / "a.json", *mixed), write_ndjson(tmp_path / "a.ndjson", *mixed))
    ):
        done = clinic.ingest([path], source=Source.named(f"urn:x:{number}"))
        base = f"urn:x:{number}/Patient/"
        assert [item.get("valueString") for item in done.contents_of(base + "p1")] == [None, None]
        assert [item["valueString"] for item in done.contents_of(base + "p2")] == ["of p2"]


@pytest.mark.parametrize(
    ("reference", "owner"),
    [
        ("Patient/p1", "p1"),
        (f"{BASE}/Patient/p1", "p1"),
        ("Patient/p1/_history/7", "p1"),
        (f"{BASE}/Patient/p1/_history/7", "p1"),
        ("https://example.org/fhir/Patient/p1", f"https://example.org/fhir/Patient/p1 {BASE}"),
        ("urn:uuid:0b0e4a4e-3f7a-4b5e-9a0d-8d3c2b1a0f9e", None),
        ("urn:oid:1.2.36.146", None),
        ("#contained", None),
        ("Patient?identifier=https://example.org|7", None),
        ("https://example.org/fhir?x=Patient/9", None),
        ("Location/p1", None),
        ("Patient/" + "x" * 65, None),
        ("Patient/p 1", None),
    ],
)
def test_references_name_whom_they_name(
    clinic: Hospital, tmp_path: Path, reference: str, owner: str | None
) -> None:  # SPEC-ING-1, SPEC-ING-2, SPEC-FHIR-9
    """A version or a contained resource once passed for a patient, and with it one patient for another."""
    node = observation(reference)
    if reference.startswith("#"):
        node["contained"] = [{"resourceType": "Patient", "id": "contained"}]
    done = clinic.ingest([write_ndjson(tmp_path / "a.ndjson", node)])
    assert done.patients == ([] if owner is None else [owner])
    assert (done.report.committed, done.report.parked) == ((0, 1) if owner is None else (1, 0))


def test_a_patient_without_id_is_a_placeholder_of_its_bundle(clinic: Hospital, tmp_path: Path) -> None:
    """SPEC-FHIR-10. As in a transaction bundle whose entries are still to be given ids."""
    url = "urn:uuid:0b0e4a4e-3f7a-4b5e-9a0d-8d3c2b1a0f9e"
    one = write_bundle(
        tmp_path / "a.json", patient(None), observation(url), observation("Patient?x=1"), urls=[url]
    )
    two = write_bundle(tmp_path / "b.json", patient(None), observation(url), patient("p9"), urls=[url])
    done = clinic.ingest([one])
    (name,) = done.patients
    assert name.startswith(url)
    assert (done.report.committed, done.report.parked) == (2, 1)
    again = clinic.ingest([one, two])
    assert len(again.patients) == 3
    assert (again.report.committed, again.report.unchanged) == (3, 3)


def test_a_patients_url_and_id_are_one_patient(clinic: Hospital, tmp_path: Path) -> None:  # SPEC-ING-2
    url = "urn:uuid:0b0e4a4e-3f7a-4b5e-9a0d-8d3c2b1a0f9e"
    bundle = write_bundle(
        tmp_path / "a.json", patient("p1"), observation(url), observation("Patient/p1"), urls=[url]
    )
    done = clinic.ingest([bundle])
    assert (done.patients, len(done.contents_of("p1"))) == (["p1"], 3)


@pytest.mark.parametrize("value", ["x" * 300, "ä" * 100, "\n"])
def test_names_that_a_keystore_has_no_room_for_break_nothing(
    clinic: Hospital, tmp_path: Path, value: str
) -> None:
    """Names of keystore entries are bounded; a longer one goes by its digest."""
    source = Source.named(BASE, practitioners=[(NPI, value)])
    bundle = write_bundle(tmp_path / "a.json", patient(), doctor(value), observation())
    far = observation("https://example.org/" + "x" * 200 + "/Patient/7", id="far")
    lines = write_ndjson(tmp_path / "b.ndjson", far)
    done = clinic.ingest([bundle, lines], source=source)
    if value != "\n":
        assert (done.report.committed, done.report.failures) == (4, {})
        names = clinic.open_keystore().names()
        assert sum(name.startswith("staff:") for name in names) == 1
        assert max(len(name.encode()) for name in names) <= KEYSTORE_NAME_BYTES_MAX
    again = clinic.ingest([bundle, lines], source=source)
    assert (again.report.practitioners, again.report.patients, again.report.committed) == (0, 0, 0)


# Keys.


def folders_of(transactions: Any) -> set[bytes]:
    """Every folder that transactions write into or open."""
    found: set[bytes] = set()
    for transaction in transactions:
        body = transaction.body
        if isinstance(body, RecordPut):
            found.add(body.folder)
        elif isinstance(body, FolderOpen):
            found.update(body.folders)
        elif isinstance(body, ConsentGrant):
            found.update(folder for folder, _ in body.folders)
    return found


def test_keys_are_on_disk_before_anything_is_submitted(
    clinic: Hospital, monkeypatch: pytest.MonkeyPatch
) -> None:  # SPEC-ING-3
    submit = clinic.ledger.submit
    checked: list[int] = []

    def watched(transactions: Any, blobs: Any = ()) -> list[Outcome]:
        on_disk = clinic.open_keystore()
        held: set[bytes] = set()
        signers: set[bytes] = set()
        for name in on_disk.names():
            if name.startswith("ingest:"):
                continue
            wallet = Wallet.load(on_disk, name)
            held.update(wallet.folders)
            signers.add(wallet.public_key)
        assert folders_of(transactions) <= held
        assert {transaction.signer for transaction in transactions} <= signers
        checked.append(len(transactions))
        return submit(transactions, blobs)

    monkeypatch.setattr(clinic.ledger, "submit", watched)
    monkeypatch.setattr(ingest_module, "BATCH_RECORDS", 50)
    report = clinic.ingest(generate(seed=2, patients=2)).report
    assert len(checked) > 3
    assert sum(checked) == report.transactions


class Crash(Exception):
    """The process ends here."""


def crash_before_submitting(clinic: Hospital, monkeypatch: pytest.MonkeyPatch, source: Path) -> None:
    def crash(*_: Any) -> list[Outcome]:
        raise Crash

    with monkeypatch.context() as patch:
        patch.setattr(clinic.ledger, "submit", crash)
        with pytest.raises(Crash):
            clinic.ingest([source])


def test_an_ingest_goes_on_after_a_crash_between_keys_and_chain(
    clinic: Hospital, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:  # SPEC-ING-3
    """The keystore then knows patients, folders and staff that the chain does not; once, all was refused for good."""
    vitals = write_bundle(
        tmp_path / "a.json", patient(), practitioner(), observation(), {"resourceType": "Location"}
    )
    crash_before_submitting(clinic, monkeypatch, vitals)
    custodian, _ = clinic.custodian()
    with pytest.raises(NotFoundError):
        clinic.ledger.entity(IDENTITIES, custodian.patients[person("p1")].identity)
    done = clinic.ingest([vitals])
    assert (done.report.committed, done.report.failures) == (4, {})
    # Nor is anything lost of one more category of a patient who is there already.
    laboratory = observation(category=[{"coding": [{"code": "laboratory"}]}])
    more = write_bundle(tmp_path / "b.json", laboratory, observation(id="another"))
    crash_before_submitting(clinic, monkeypatch, more)
    done = clinic.ingest([more])
    assert (done.report.committed, done.report.patients, done.report.failures) == (2, 0, {})
    assert {kept.category for kept in done.kept} == {"laboratory", "vitals"}
    assert len([done.content(kept) for kept in done.kept]) == 2


def test_organisations_share_a_keystore_and_a_patient(clinic: Hospital, tmp_path: Path) -> None:
    """The second once overwrote the first's entry, and wrote into folders that nobody had opened for it."""
    clinic.organisation("clinic")
    before = {
        entry: Wallet.load(clinic.open_keystore(), entry).identity for entry in ("organisation", "clinic")
    }
    source = write_bundle(tmp_path / "a.json", patient(), observation(), {"resourceType": "Location"})
    for number, entry in enumerate(("organisation", "clinic", "organisation", "clinic")):
        done = clinic.ingest([source], entry=entry)
        assert (done.report.committed, done.report.unchanged) == ((3, 0) if number < 2 else (0, 3))
        assert done.report.failures == {}
        assert all(done.content(kept) for kept in done.kept)
    keystore = clinic.open_keystore()
    assert {entry: Wallet.load(keystore, entry).identity for entry in before} == before
    assert keystore.names() == [
        "clinic",
        "ingest:clinic",
        "ingest:organisation",
        "organisation",
        f"patient:{person('p1')}",
    ]
    assert count_of(clinic, "identity.register") == 3
    assert count_of(clinic, "consent.grant") == 2


def test_a_custodian_takes_only_its_own_entries(clinic: Hospital, tmp_path: Path) -> None:
    keystore = clinic.open_keystore()
    keystore.put("something else", b"not a wallet")
    keystore.save()
    done = clinic.ingest([write_bundle(tmp_path / "a.json", patient())])
    assert done.patients == ["p1"]
    assert clinic.open_keystore().get("something else") == b"not a wallet"


# Bounds.


def test_batches_stay_bounded_however_many_are_enrolled(
    clinic: Hospital, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A bundle of thousands of patients or staff once was one batch, and beyond its limit none at all."""
    sizes: list[int] = []
    submit = clinic.ledger.submit

    def watched(transactions: Any, blobs: Any = ()) -> list[Outcome]:
        sizes.append(len(transactions))
        return submit(transactions, blobs)

    monkeypatch.setattr(clinic.ledger, "submit", watched)
    monkeypatch.setattr(ingest_module, "BATCH_RECORDS", 10)
    people = [patient(f"p{number}") for number in range(30)]
    places = [{"resourceType": "Location", "id": str(number)} for number in range(30)]
    report = clinic.ingest([write_bundle(tmp_path / "a.json", *people, *places)]).report
    assert (report.committed, report.patients, report.failures) == (60, 30, {})
    assert max(sizes) <= 10 + 3


def test_batches_are_bounded_by_the_bytes_of_envelopes(
    clinic: Hospital, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    batches: list[int] = []
    submit = clinic.ledger.submit

    def watched(transactions: Any, blobs: Any = ()) -> list[Outcome]:
        batches.append(sum(map(len, blobs)))
        return submit(transactions, blobs)

    monkeypatch.setattr(clinic.ledger, "submit", watched)
    monkeypatch.setattr(ingest_module, "BATCH_BLOB_BYTES", 100_000)
    notes = [observation(id=f"o{number}", valueString="x" * 40_000) for number in range(9)]
    report = clinic.ingest([write_bundle(tmp_path / "a.json", patient(), *notes)]).report
    assert report.committed == 10
    assert max(batches) < 100_000 + 50_000


def test_records_are_told_of_once_they_are_durable(clinic: Hospital, tmp_path: Path) -> None:  # SPEC-PIPE-1
    organisation = clinic.custodian()[0].organisation
    custodian = Custodian(clinic.ledger, organisation, new_wallet=clinic.new_wallet)
    seen: list[int] = []
    run = ingest_module.Ingest(
        clinic.ledger,
        custodian,
        source=SOURCE,
        on_kept=lambda kept: seen.append(clinic.ledger.entity(RECORDS, kept.record).version),
    )
    bundles = list(generate(seed=2, patients=1))
    report = run.run(bundles)
    assert seen == [1] * report.committed


# Real exports.


@pytest.mark.data
def test_a_bulk_export_goes_in(clinic: Hospital, shared_data: Path) -> None:  # SPEC-ING-1, SPEC-ING-2
    """NDJSON as a FHIR server exports it: a file a type, references between them."""
    folder = shared_data / "synthea-bulk-ndjson" / "10-patients"
    files = [
        folder / f"{name}.000.ndjson" for name in ("Patient", "AllergyIntolerance", "Device", "Organization")
    ]
    done = clinic.ingest(files)
    report = done.report
    assert report.committed + report.refused == report.resources
    assert (report.failures, report.unreadable, report.parked) == ({}, 0, 0)
    assert report.patients >= 10
    for kept in done.kept:
        node = done.content(kept)
        if kept.patient is not None and kept.category != "demographics":
            assert kept.patient.removeprefix(BASE + "/").encode() in node

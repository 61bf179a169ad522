"""Whose record it is: sources that lie about it in every way that a reference, an id or a bundle can."""

import base64
import json
import lzma
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from fhir_world.lying_bundles import MATCHED, MRN, Maker, Person
from hospital import (
    BASE,
    SOURCE,
    Hospital,
    Ingested,
    hospital,
    observation,
    patient,
    person,
    write_bundle,
    write_ndjson,
)

from fastledger import Purpose
from fastledger.client.ingest import PARKED
from fastledger.client.ingest.matching import match_identifier, match_patient, person_named
from fastledger.errors import InputError
from fastledger.gateway.fhir_source import Source
from fastledger.gateway.sources import SourceError, read_bundles
from fastledger.subjects.folder import FOLDERS
from fastledger.subjects.record import RECORDS

NORTH = Source.named("https://north.example/fhir")
SOUTH = Source.named("https://south.example/fhir")


@pytest.fixture
def clinic(tmp_path: Path) -> Iterator[Hospital]:
    with hospital(tmp_path) as made:
        yield made


def owners(done: Ingested) -> dict[str | None, list[str]]:
    """The types of what went to each patient; of the source's own, their ids."""
    found: dict[str | None, list[str]] = {}
    for kept in done.kept:
        name = kept.patient and kept.patient.removeprefix(f"{BASE}/Patient/")
        found.setdefault(name, []).append(kept.category if kept.patient is None else kept.resource_type)
    return found


def codes(done: Ingested) -> list[str]:
    return [item.code for item in done.remarks]


# Lies about whom a resource is of.


def test_a_search_for_the_mother_is_not_the_child(clinic: Hospital, tmp_path: Path) -> None:  # SPEC-FHIR-9
    number = [{"system": MRN, "value": "CHILD"}]
    child = patient("child", identifier=number)
    for text in (f"Patient?identifier={MRN}|MOTHER", f"Patient?identifier={MRN}/child", f"{BASE}?x=Patient/child"):
        done = clinic.ingest([write_bundle(tmp_path / "a.json", child, observation(text, valueString=text))])
        assert "child" not in {kept.patient for kept in done.kept if kept.resource_type == "Observation"}
        assert [kept.category for kept in done.kept if kept.resource_type == "Observation"] == [PARKED]
    assert done.patients == ["child"]


def test_a_place_a_group_a_device_are_no_patients(clinic: Hospital, tmp_path: Path) -> None:  # SPEC-FHIR-9
    notes = [observation(f"{kind}/7") for kind in ("Location", "Group", "Device", "Patient")]
    done = clinic.ingest([write_ndjson(tmp_path / "a.ndjson", patient("7"), *notes)])
    assert owners(done) == {"7": ["Patient", "Observation"], None: [PARKED] * 3}
    assert codes(done) == ["subject-is-no-patient"] * 3
    assert {item.element for item in done.remarks} == {"Observation.subject"}


def test_patient_1_of_two_servers_is_two_people(clinic: Hospital, tmp_path: Path) -> None:  # SPEC-FHIR-8
    """By the source's name, and within one source by the base of the full URL."""
    lines = write_ndjson(tmp_path / "a.ndjson", patient("1"), observation("Patient/1"))
    for source in (NORTH, SOUTH):
        assert clinic.ingest([lines], source=source).report.committed == 2
    bundles = [
        write_bundle(tmp_path / f"{number}.json", patient("1"), urls=[f"{source.base}/Patient/1"])
        for number, source in enumerate((NORTH, SOUTH))
    ]
    done = clinic.ingest(bundles)
    assert len(done.custodian.patients) == 4
    assert len({wallet.identity for wallet in done.custodian.patients.values()}) == 4


def test_one_source_never_writes_into_anothers_patient(clinic: Hospital, tmp_path: Path) -> None:  # SPEC-FHIR-8
    mine = clinic.ingest([write_ndjson(tmp_path / "a.ndjson", patient("7"), observation("Patient/7"))], source=NORTH)
    url = f"{NORTH.base}/Patient/7"
    lies = [
        write_bundle(tmp_path / "b.json", patient("7"), observation(url), urls=[url]),
        write_ndjson(tmp_path / "c.ndjson", observation(url, id="x"), observation(url + "/_history/1", id="y")),
    ]
    done = clinic.ingest(lies, source=SOUTH)
    assert done.report.committed == 4
    assert not {kept.folder for kept in done.kept} & {kept.folder for kept in mine.kept}


def test_two_patients_without_ids_are_two(clinic: Hospital, tmp_path: Path) -> None:  # SPEC-FHIR-10
    urls = [f"urn:uuid:0b0c1d2e-0000-4000-8000-00000000000{number}" for number in (1, 2)]
    bundle = write_bundle(
        tmp_path / "a.json", patient(None), patient(None, gender="male"), observation(urls[1]), urls=urls
    )
    done = clinic.ingest([bundle])
    assert (done.report.committed, done.report.patients) == (3, 2)
    newborn = [kept.patient for kept in done.kept if kept.resource_type == "Observation"]
    assert newborn[0] is not None
    assert newborn[0].startswith(urls[1])


def test_every_form_of_lie_stays_where_it_belongs(clinic: Hospital, tmp_path: Path) -> None:  # SPEC-FHIR-9, SPEC-ING-2
    """Generated bundles with every form of reference through the whole ingest, read back from the folders."""
    source = Source.named(BASE, identifier_systems=[MRN])

    def told(meant: Person) -> str:
        return f"{BASE}/Patient/{meant[1]}" if meant[0] == BASE else meant[1]

    meant: dict[str, Person | None] = {}
    paths = []
    for seed in range(25):
        bundle = Maker(seed).bundle(20)
        for number, case in enumerate(bundle.cases):
            node = case.entry["resource"]
            node |= {"id": f"s{seed}c{number}", "status": "final", "code": {"text": "x"}}
            if "fullUrl" in case.entry and "/Observation/" in case.entry["fullUrl"]:
                case.entry["fullUrl"] = case.entry["fullUrl"].rpartition("/")[0] + f"/{node['id']}"
            meant[node["id"]] = None if case.meant in MATCHED.values() else case.meant
        if bundle.kind == "transaction":
            for entry in bundle.entries:
                entry["request"] = {"method": "POST", "url": entry["resource"]["resourceType"]}
        path = tmp_path / f"{seed}.json"
        path.write_text(json.dumps({"resourceType": "Bundle", "type": bundle.kind, "entry": bundle.entries}))
        paths.append(path)
    done = clinic.ingest(paths, source=source)
    checked = 0
    for kept in done.kept:
        if kept.resource_type != "Observation":
            continue
        who = meant[kept.resource_id]
        told_of = done.content(kept)
        assert json.loads(told_of)["id"] == kept.resource_id
        if who is None:
            assert (kept.patient, kept.category) == (None, PARKED), (kept.resource_id, told_of)
        else:
            assert kept.patient is not None
            assert kept.patient.startswith(who[0] if who[0] in kept.patient else told(who)), (kept, who)
            assert who[1] in kept.patient
            owner = clinic.ledger.entity(FOLDERS, clinic.ledger.entity(RECORDS, kept.record).folder).owner
            assert owner != done.custodian.organisation.identity
        checked += 1
    assert checked > 300


# The whole compartment, and bundles in bundles.

P1 = {"reference": "Patient/p1"}
OF_A_PATIENT = [
    {"resourceType": "Binary", "contentType": "text/plain", "securityContext": P1, "data": "c2VjcmV0"},
    {
        "resourceType": "ResearchSubject",
        "status": "candidate",
        "study": {"reference": "ResearchStudy/1"},
        "individual": P1,
    },
    {"resourceType": "EnrollmentRequest", "status": "active", "candidate": P1},
    {
        "resourceType": "MeasureReport",
        "status": "complete",
        "type": "individual",
        "measure": "http://m.example/M",
        "subject": P1,
        "period": {"start": "2026-01-01", "end": "2026-02-01"},
    },
    {"resourceType": "GuidanceResponse", "moduleUri": "http://m.example/M", "status": "success", "subject": P1},
    {"resourceType": "Basic", "code": {"text": "referral"}, "subject": P1},
    {"resourceType": "Group", "type": "person", "actual": True, "member": [{"entity": P1}]},
    {
        "resourceType": "SupplyRequest",
        "itemCodeableConcept": {"text": "insulin pump"},
        "quantity": {"value": 1},
        "deliverTo": P1,
    },
]


def test_what_names_a_patient_is_never_the_organisations(clinic: Hospital, tmp_path: Path) -> None:  # SPEC-FHIR-11
    done = clinic.ingest([write_ndjson(tmp_path / "a.ndjson", *OF_A_PATIENT)])
    assert owners(done) == {"p1": [node["resourceType"] for node in OF_A_PATIENT]}
    hidden = {
        "resourceType": "Organization",
        "name": "x",
        "extension": [{"url": "http://x.example", "valueReference": P1}],
    }
    plain = {"resourceType": "Organization", "name": "y"}
    device = {"resourceType": "Device", "id": "d"}
    done = clinic.ingest([write_ndjson(tmp_path / "b.ndjson", hidden, plain, device)])
    assert owners(done) == {None: [PARKED, "administrative", PARKED]}
    folders = {kept.category: kept.folder for kept in done.kept}
    labels = done.custodian.organisation.labels
    assert folders == {PARKED: labels["parked"], "administrative": labels["directory"]}


def nested(*resources: Any) -> dict[str, Any]:
    entries = [
        {"fullUrl": f"http://h.example/{node['resourceType']}/{node['id']}", "resource": node}
        for node in resources
    ]
    return {"resourceType": "Bundle", "type": "collection", "entry": entries}


def test_bundles_within_bundles_are_their_entries(clinic: Hospital, tmp_path: Path) -> None:  # SPEC-FHIR-13
    inner = nested(patient("p"), observation("Patient/p", id="o"))
    batch = {
        "resourceType": "Bundle",
        "type": "batch-response",
        "entry": [{"resource": inner, "response": {"status": "200"}}],
    }
    parameters = {
        "resourceType": "Parameters",
        "parameter": [
            {"name": "a", "resource": inner},
            {"name": "b", "part": [{"name": "c", "resource": observation("Patient/q", id="q")}]},
        ],
    }
    (tmp_path / "array.json").write_text(json.dumps([patient("r"), observation("Patient/r", id="r"), inner]))
    (tmp_path / "batch.json").write_text(json.dumps(batch))
    (tmp_path / "parameters.json").write_text(json.dumps(parameters))
    write_ndjson(tmp_path / "lines.jsonl", inner)
    expected = {
        "array.json": 4,
        "batch.json": 2,
        "lines.jsonl": 2,
        "parameters.json": 3,
    }
    for name, count in expected.items():
        source = Source.named(f"urn:x:{name.partition('.')[0]}")
        done = clinic.ingest([tmp_path / name], source=source)
        assert (done.report.committed, done.report.parked) == (count, 0), name
        assert None not in owners(done)
    # What else an operation holds is kept whole, by the organisation alone.
    parameters["parameter"].append({"name": "d", "valueString": "x"})
    (tmp_path / "parameters.json").write_text(json.dumps(parameters))
    done = clinic.ingest([tmp_path / "parameters.json"])
    assert (done.report.committed, done.report.parked, codes(done)) == (3, 1, ["operation-values"])


def test_placeholders_do_not_cross_bundles_in_bundles(clinic: Hospital, tmp_path: Path) -> None:  # SPEC-FHIR-10
    url = "urn:uuid:0b0c1d2e-0000-4000-8000-000000000001"
    inner = {"resourceType": "Bundle", "type": "collection", "entry": [{"resource": observation(url)}]}
    done = clinic.ingest([write_bundle(tmp_path / "a.json", patient(None), inner, urls=[url])])
    assert codes(done) == ["reference-unresolved"]


def test_deletions_and_requests_are_told_and_not_done(clinic: Hospital, tmp_path: Path) -> None:  # SPEC-ING-6
    kept = clinic.ingest([write_ndjson(tmp_path / "a.ndjson", patient(), observation(id="o"))])
    entries = [
        {"request": {"method": "DELETE", "url": "Observation/o"}},
        {"request": {"method": "GET", "url": "Patient?name=Wilhelmina"}},
        {"request": {"method": "PATCH", "url": "Patient/p1"}, "resource": {"resourceType": "Binary"}},
        {"request": {"method": "PUT", "url": "Patient/p1"}, "resource": patient("p2")},
        {"request": {"method": "PUT", "url": "Patient/p2"}, "resource": patient("p2")},
        {"fullUrl": f"{BASE}/Patient/p1", "resource": patient("p3"), "request": {"method": "POST", "url": "Patient"}},
    ]
    path = tmp_path / "b.json"
    path.write_text(json.dumps({"resourceType": "Bundle", "type": "transaction", "entry": entries}))
    done = clinic.ingest([path])
    report = done.report
    assert (report.deletions, report.requests, report.unreadable, report.refused, report.committed) == (1, 1, 1, 2, 1)
    assert [(item.code, item.resource_type, item.resource_id, item.element) for item in done.remarks] == [
        ("patch-not-applied", "", "", "request.method"),
        ("deletion-not-applied", "Observation", "o", "request"),
        ("request-without-resource", "", "", "request"),
        ("entry-contradicts-itself", "Patient", "p2", "request.url"),
        ("entry-contradicts-itself", "Patient", "p3", "fullUrl"),
    ]
    assert "Wilhelmina" not in str(msgspec.json.encode(done.remarks))
    assert not clinic.ledger.entity(RECORDS, kept.kept[1].record).erased
    # What a program prints by accident names nobody.
    for shown in (repr(kept.kept), repr(done.remarks), repr(SOURCE)):
        assert "p1" not in shown
        assert "8867-4" not in shown


# One bad item.


def test_a_bad_item_ends_nothing_but_itself(clinic: Hospital, tmp_path: Path) -> None:  # SPEC-ING-1
    long = "a" * 208
    url = "urn:uuid:0b0c1d2e-0000-4000-8000-000000000001"
    bad = write_bundle(tmp_path / "a.json", patient(long), observation(f"Patient/{long}"), urls=[url])
    coded = observation("Patient/ok", id="o")
    # A code whose term would be longer than an index takes.
    coded["code"]["coding"].append({"system": "s:s", "code": "\U0001f49a" * 200})
    good = write_ndjson(tmp_path / "b.ndjson", patient("ok"), coded)
    done = clinic.ingest([bad, good])
    assert (done.report.refused, done.report.parked, done.report.committed) == (1, 1, 2)
    assert codes(done) == ["not-valid", "reference-malformed"]
    assert [item.origin for item in done.remarks] == ["source 1, entry 1", "source 1, entry 2"]


def _bundle_of(count: int, items: bytes) -> bytes:
    entry = b'{"resource":{"resourceType":"Basic","x":[' + items + b"]}}"
    return b'{"resourceType":"Bundle","type":"collection","entry":[' + b",".join([entry] * count) + b"]}"


READ = r"""
import re, sys
from fastledger.gateway.fhir import validate_each
from fastledger.gateway.sources import read_bundles
# Of this program alone; the high-water mark of getrusage survives the start of another program.
peak = lambda: int(re.search(r"VmHWM:\s+(\d+) kB", open("/proc/self/status").read())[1])
before = peak()
count = 0
for bundle in read_bundles(sys.argv[1:]):
    for verdict in validate_each([item.raw for item in getattr(bundle, "resources", ())]):
        count += 1
print(count, (peak() - before) // 1024)
"""
BOMBS = {
    "empty arrays in two resources": _bundle_of(2, b"[]," * 5_000_000 + b"[]"),
    "entries that are none": b'{"resourceType":"Bundle","entry":[' + b"0," * 14_000_000 + b"0]}",
    "objects in one resource": b'{"resourceType":"Basic","x":[' + b'{"a":{}},' * 3_000_000 + b"{}]}",
    "an array of resources": b"[" + b"{}," * 9_000_000 + b"{}]",
    "each resource too much": _bundle_of(2, b"[]," * 1_000_000 + b"[]"),
    "each resource just allowed": _bundle_of(9, b"[]," * 240_000 + b"[]"),
    "objects just allowed": _bundle_of(10, b'{"a":{"b":1}},' * 160_000 + b"{}"),
    "keys": b'{"resourceType":"Basic",' + b",".join(b'"k%d":0' % n for n in range(1_500_000)) + b"}",
}


@pytest.mark.parametrize("name", BOMBS)
def test_a_bomb_costs_no_more_than_its_text(tmp_path: Path, name: str) -> None:  # SPEC-FHIR-14
    """A few kilobytes of xz once became a gigabyte of objects."""
    text = BOMBS[name]
    path = tmp_path / "a.json.xz"
    path.write_bytes(lzma.compress(text, preset=0))
    assert path.stat().st_size < len(text) // 40
    done = subprocess.run(
        [sys.executable, "-c", READ, str(path)], capture_output=True, text=True, timeout=120, check=True
    )
    mebibytes = int(done.stdout.split()[1])
    # The text itself, that of its resources, and what the values of one resource may cost.
    assert 0 < mebibytes < 3 * len(text) // 2**20 + 160, (mebibytes, len(text) // 2**20)


def test_text_that_only_a_bomb_grows_to_is_not_read(tmp_path: Path) -> None:  # SPEC-FHIR-14
    with lzma.open(tmp_path / "a.json.xz", "wb", preset=0) as file:
        for _ in range(100):
            file.write(b" " * 2**20)
    (bundle,) = read_bundles([tmp_path])
    assert isinstance(bundle, SourceError)
    assert bundle.fault == "grows-too-much"


LARGE = """
import re, sys
sys.path[:0] = sys.argv[2:]
from pathlib import Path
from hospital import hospital, person
peak = lambda: int(re.search(r"VmHWM:\\s+(\\d+) kB", open("/proc/self/status").read())[1])
with hospital(Path(sys.argv[1])) as clinic:
    before = peak()
    done = clinic.ingest([Path(sys.argv[1]) / "large.ndjson"])
    after = peak()
    raw = done.content(done.kept[0])
    line = (Path(sys.argv[1]) / "large.ndjson").read_bytes().strip()
    print(done.report.committed, raw == line, (after - before) // 1024)
"""


def test_a_large_resource_costs_a_few_times_its_text(tmp_path: Path) -> None:  # SPEC-FHIR-14
    """Resources may be as large as an envelope; the limit once was 16 MiB."""
    size = 48 * 2**20
    data = base64.b64encode(os.urandom(2**20 * 3 // 4)).decode() * 48
    node = {
        "resourceType": "DocumentReference",
        "id": "large",
        "status": "current",
        "subject": {"reference": "Patient/p1"},
        "content": [{"attachment": {"contentType": "application/pdf", "data": data}}],
    }
    write_ndjson(tmp_path / "large.ndjson", node)
    paths = [str(Path(__file__).parents[1] / "support"), str(Path(__file__).parents[1])]
    done = subprocess.run(
        [sys.executable, "-c", LARGE, str(tmp_path), *paths],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    committed, is_same, mebibytes = done.stdout.split()
    assert (committed, is_same) == ("1", "True")
    assert int(mebibytes) < 5 * size // 2**20, mebibytes


# Matching.


def test_two_names_are_one_person_once_somebody_said_so(clinic: Hospital, tmp_path: Path) -> None:  # SPEC-ING-8
    lines = write_ndjson(tmp_path / "a.ndjson", patient("7"), observation("Patient/7", id="o"))
    clinic.ingest([lines], source=NORTH)
    clinic.ingest([lines], source=SOUTH)
    custodian, keystore = clinic.custodian()

    def save() -> None:
        custodian.save(keystore)
        keystore.save()

    before = clinic.ledger.transaction_count
    match = match_patient(
        clinic.ledger,
        custodian,
        name=(SOUTH, "Patient/7"),
        same_as=(NORTH, "Patient/7"),
        by="Wilhelmina Planted, records office",
        save=save,
    )
    # On the chain only pseudonyms; the person can read who said it.
    chain = b"".join(entry.transaction.encoded for entry in clinic.ledger.query(limit=1000))
    for word in (b"Wilhelmina", b"Patient/7", b"north", b"south", b"matching"):
        assert word not in chain
    assert clinic.ledger.transaction_count > before
    owner = custodian.patients[f"{NORTH.base}/Patient/7"]
    blob = clinic.ledger.read(owner.access(match.record, Purpose.PATIENT_REQUEST))
    told = json.loads(owner.open_record(blob, folder=owner.labels["matching"], record=match.record))["match"]
    assert told["by"] == "Wilhelmina Planted, records office"
    assert told["what"] == f"{SOUTH.base}/Patient/7"
    # What stands, stands; what is new goes to the one person.
    again = clinic.ingest([lines], source=SOUTH)
    assert (again.report.unchanged, again.report.committed) == (2, 0)
    more = write_ndjson(tmp_path / "b.ndjson", observation("Patient/7", id="new"))
    done = clinic.ingest([more], source=SOUTH)
    assert [kept.patient for kept in done.kept] == [f"{NORTH.base}/Patient/7"]
    with pytest.raises(InputError):
        match_patient(
            clinic.ledger,
            done.custodian,
            name=(NORTH, "Patient/7"),
            same_as=(SOUTH, "Patient/7"),
            by="x",
            save=save,
        )
    # And may be taken back.
    custodian, keystore = clinic.custodian()
    match_patient(
        clinic.ledger, custodian, name=(SOUTH, "Patient/7"), same_as=(SOUTH, "Patient/7"), by="x", save=save
    )
    last = write_ndjson(tmp_path / "c.ndjson", observation("Patient/7", id="last"))
    assert [kept.patient for kept in clinic.ingest([last], source=SOUTH).kept] == [f"{SOUTH.base}/Patient/7"]


def test_what_was_parked_goes_to_whom_it_is_matched_to(clinic: Hospital, tmp_path: Path) -> None:  # SPEC-ING-8

    def numbered(value: str, **more: Any) -> dict[str, Any]:
        return observation(None, **more) | {"subject": {"identifier": {"system": MRN, "value": value}}}

    named, nameless, other = numbered("12", id="o"), numbered("12"), numbered("13", id="x")
    lines = write_ndjson(tmp_path / "a.ndjson", patient("p1"), named, nameless, other)
    first = clinic.ingest([lines])
    assert (first.report.parked, first.report.committed) == (3, 1)
    custodian, keystore = clinic.custodian()

    def save() -> None:
        custodian.save(keystore)
        keystore.save()

    match_identifier(
        clinic.ledger,
        custodian,
        source=SOURCE,
        identifier=(MRN, "12"),
        same_as=(SOURCE, "Patient/p1"),
        by="records office",
        save=save,
    )
    second = clinic.ingest([lines])
    assert (second.report.parked, second.report.committed, second.report.unchanged) == (0, 2, 2)
    assert [kept.patient for kept in second.kept] == [person("p1")] * 2
    # Nothing valid is lost, and nothing stays with the organisation that is somebody's.
    parked = {kept.resource_id: kept.record for kept in first.kept if kept.category == PARKED}
    erased = [clinic.ledger.entity(RECORDS, kept.record).erased for kept in first.kept if kept.category == PARKED]
    assert erased == [True, True, False]
    assert not clinic.ledger.entity(RECORDS, parked["x"]).erased
    third = clinic.ingest([lines])
    assert (third.report.unchanged, third.report.committed, third.report.parked) == (4, 0, 0)
    # Another source's number is another number.
    assert clinic.ingest([lines], source=NORTH).report.parked == 3


def test_only_patients_by_id_or_url_can_be_matched() -> None:  # SPEC-ING-8
    assert person_named(SOURCE, "Patient/7") == person("7")
    assert person_named(SOURCE, f"{NORTH.base}/Patient/7") == f"{NORTH.base}/Patient/7 {BASE}"
    for text in ("Location/7", "7", "urn:uuid:7", "Patient?identifier=x", "#7", ""):
        with pytest.raises(InputError):
            person_named(SOURCE, text)

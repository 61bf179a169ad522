"""References as FHIR R4 says: whom each form names, in its source and bundle, and that a lie names nobody."""

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from fhir_world import compartment_table
from fhir_world.lying_bundles import BASE, MATCHED, MRN, Lying, Maker
from fhir_world.resolver import Resolver

from fastledger.errors import InputError
from fastledger.gateway import fhir_compartment
from fastledger.gateway.fhir_compartment import ABOUT, OF_NO_PATIENT, OTHERS, RESOURCE_TYPES
from fastledger.gateway.fhir_owner import owner_of
from fastledger.gateway.fhir_references import Place, Reason, Scope, entry_fault, identifiers_of, restful
from fastledger.gateway.fhir_source import Identifier, Source, normal_base, read_sources

Node = dict[str, Any]
SOURCE = Source.named(BASE, identifier_systems=[MRN])
DIGEST = bytes(range(32))


def digest() -> bytes:
    return DIGEST


def place_of(entry: Node) -> Place:
    resource = entry["resource"]
    return Place(
        resource["resourceType"], resource.get("id"), entry.get("fullUrl"), tuple(identifiers_of(resource))
    )


def name_of(person: tuple[str, str]) -> str:
    """The name that the product gives a person of the resolver."""
    base, number = person
    if base == "placeholder":
        return f"{number} {DIGEST.hex()[:32]} {BASE}"
    return f"{BASE}/Patient/{number}" if base == BASE else f"{base}/Patient/{number} {BASE}"


def matches(source: Source, identifier: Identifier) -> str | None:
    person = MATCHED.get(identifier)
    return None if person is None else name_of(person)


def scope_of(bundle: Lying) -> Scope:
    places = [place_of(entry) for entry in bundle.entries]
    return Scope(SOURCE, places, digest, transaction=bundle.kind == "transaction", matches=matches)


def test_references_agree_with_an_independent_resolver_and_with_their_maker() -> None:  # SPEC-FHIR-9, SPEC-FHIR-10
    """10^5 references of every form, true and false, in generated bundles."""
    seen: Counter[str] = Counter()
    resolved = 0
    for seed in range(2_500):
        bundle = Maker(seed).bundle(40)
        scope = scope_of(bundle)
        resolver = Resolver(
            BASE,
            bundle.entries,
            set(RESOURCE_TYPES),
            systems={MRN},
            matched=MATCHED,
            transaction=bundle.kind == "transaction",
        )
        for case in bundle.cases:
            holder = case.entry["resource"]
            target = scope.resolve(case.reference, holder, place_of(case.entry))
            kind, answer = resolver.resolve(case.reference, holder, case.entry)
            told = (seed, case.form, case.reference, target, kind, answer)
            person = name_of(answer) if isinstance(answer, tuple) else None
            assert target.person == person, told
            assert target.person == (None if case.meant is None else name_of(case.meant)), told
            if person is None and target.reason is None:
                assert target.resource_type == kind, told
                assert kind not in (None, "Patient"), told
            seen[case.form] += 1
            resolved += person is not None
    assert seen.total() >= 100_000
    assert len(seen) == len([name for name in dir(Maker) if name.startswith("_form_")])
    assert min(seen.values()) > 300
    assert 30_000 < resolved < 80_000


# The table.


@pytest.mark.data
def test_the_compartment_table_is_that_of_the_definitions(shared_data: Path) -> None:  # SPEC-FHIR-11
    assert Path(fhir_compartment.__file__).read_text() == compartment_table.render(shared_data)


@pytest.mark.data
def test_every_type_and_element_of_the_compartment_is_known(shared_data: Path) -> None:  # SPEC-FHIR-11
    text = (shared_data / "fhir-r4-definitions" / "compartmentdefinition-patient.json").read_bytes()
    rows = {row["code"]: row.get("param", []) for row in json.loads(text)["resource"]}
    assert set(rows) <= RESOURCE_TYPES
    for name, parameters in rows.items():
        if parameters and name != "Patient":
            assert ABOUT[name] or OTHERS[name]
            assert name not in OF_NO_PATIENT
        known = name in ABOUT or name in OF_NO_PATIENT
        assert known != (name in ("Bundle", "Parameters", "Patient", *compartment_table.INDIRECT)), name


def node_with(resource_type: str, path: str, reference: Node) -> Node:
    """A resource with a reference at a path of element names."""
    value: Any = reference
    for key in reversed(path.split(".")):
        value = {key: value}
    return {"resourceType": resource_type, **value}


ELEMENTS = [(name, path) for table in (ABOUT, OTHERS) for name, paths in table.items() for path in paths]


@pytest.mark.parametrize(("resource_type", "path"), ELEMENTS)
def test_each_element_of_the_compartment_says_whose_it_is(resource_type: str, path: str) -> None:
    """SPEC-FHIR-11. And what it names otherwise is never taken for the patient of the same number."""
    scope = Scope(SOURCE, [], digest)
    place = Place(resource_type, "x", None)

    def owner(reference: Node) -> Any:
        return owner_of(node_with(resource_type, path, reference), place, scope)

    assert owner({"reference": "Patient/7"}).person == f"{BASE}/Patient/7"
    other = "https://b.example/fhir/Patient/7"
    assert owner({"reference": other}).person == f"{other} {BASE}"
    for text in ("Location/7", "Group/7", "Patient?identifier=x|7", "7", "urn:uuid:7", "#7", "Patient/7/8"):
        found = owner({"reference": text})
        assert (found.person, found.reason is not None) == (None, True), text
    assert owner({"display": "Patient/7"}).reason is not None
    assert owner({"identifier": {"system": MRN, "value": "7"}}).reason is not None


# Whose it is.


def owner_in(resource: Node, *others: Node, url: str | None = None, source: Source = SOURCE, **more: Any) -> Any:
    """Whose ``resource`` is in a bundle with ``others``."""
    places = [place_of(entry) for entry in others]
    place = Place(resource["resourceType"], resource.get("id"), url)
    return owner_of(resource, place, Scope(source, [place, *places], digest, **more))


def patient_entry(number: str | None = "child", url: str | None = None, **more: Any) -> Node:
    node = {"resourceType": "Patient"} | ({} if number is None else {"id": number}) | more
    return {"resource": node} | ({} if url is None else {"fullUrl": url})


def observation(**more: Any) -> Node:
    return {"resourceType": "Observation", **more}


def test_the_bundles_only_patient_is_not_everybodys() -> None:  # SPEC-FHIR-11
    for resource, reason in (
        (observation(), Reason.NAMES_NO_PATIENT),
        (observation(subject={"display": "mother"}), Reason.UNRESOLVED),
        (observation(subject={"reference": f"Patient?identifier={MRN}|MOTHER"}), Reason.CONDITIONAL_UNMATCHED),
        (observation(subject={"identifier": {"system": MRN, "value": "MOTHER"}}), Reason.IDENTIFIER_UNMATCHED),
        (observation(subject={"reference": "urn:uuid:mother"}), Reason.UNRESOLVED),
        (observation(subject={"reference": "Location/child"}), Reason.SUBJECT_IS_NO_PATIENT),
    ):
        child = patient_entry(identifier=[{"system": MRN, "value": "CHILD"}])
        assert owner_in(resource, child, transaction=True).reason is reason


def test_whom_it_is_about_decides_before_who_made_it() -> None:  # SPEC-FHIR-11
    mother, child = {"reference": "Patient/mother"}, {"reference": "Patient/child"}
    assert owner_in(observation(subject=mother, performer=[child])).person == f"{BASE}/Patient/mother"
    assert owner_in(observation(performer=[child])).person == f"{BASE}/Patient/child"
    # What cannot be told of the subject is not told by the performer.
    elsewhere = {"reference": "urn:uuid:mother"}
    assert owner_in(observation(subject=elsewhere, performer=[child])).reason is Reason.UNRESOLVED
    coverage = {"resourceType": "Coverage", "policyHolder": mother, "beneficiary": child, "payor": [mother]}
    assert owner_in(coverage).person == f"{BASE}/Patient/child"


def test_what_is_of_two_patients_is_of_neither() -> None:  # SPEC-FHIR-11
    people = [{"reference": "Patient/1"}, {"reference": "Patient/2"}]
    for node in (
        observation(performer=people),
        {"resourceType": "Appointment", "participant": [{"actor": item} for item in people]},
        {"resourceType": "Provenance", "target": people},
        {"resourceType": "Group", "member": [{"entity": item} for item in people]},
        {"resourceType": "AuditEvent", "agent": [{"who": people[0]}], "entity": [{"what": people[1]}]},
        {"resourceType": "Linkage", "item": [{"resource": item} for item in people]},
    ):
        assert owner_in(node).reason is Reason.SEVERAL_PATIENTS
    again = [{"reference": "Patient/1"}, {"reference": f"{BASE}/Patient/1/_history/4"}]
    assert owner_in({"resourceType": "Provenance", "target": again}).person == f"{BASE}/Patient/1"
    mixed = [{"actor": {"reference": "Practitioner/1"}}, {"actor": people[0]}, {"actor": {"display": "a nurse"}}]
    assert owner_in({"resourceType": "Appointment", "participant": mixed}).person == f"{BASE}/Patient/1"
    # The second may be a patient too.
    mixed.append({"actor": {"reference": "urn:uuid:0"}})
    assert owner_in({"resourceType": "Appointment", "participant": mixed}).reason is Reason.UNRESOLVED


def test_only_what_is_known_to_be_of_no_patient_is_the_organisations() -> None:  # SPEC-FHIR-11
    assert owner_in({"resourceType": "Organization", "name": "x"}).reason is None
    keeper = {"reference": "Organization/1"}
    assert owner_in({"resourceType": "Location", "managingOrganization": keeper}).reason is None
    patients = {"reference": "Patient/7"}
    for more in (
        {"extension": [{"url": "u:u", "valueReference": patients}]},
        {"contained": [{"resourceType": "Observation", "subject": patients}]},
        {"contained": [{"resourceType": "Patient", "id": "p"}]},
        {"partOf": {"reference": "Observation/1"}},
        {"extension": [{"url": "u:u", "valueReference": {"type": "Patient", "identifier": {"value": "7"}}}]},
        {"extension": [{"url": "u:u", "valueReference": {"reference": "Patient?identifier=a|7"}}]},
    ):
        assert owner_in({"resourceType": "Organization", **more}).reason is Reason.HOLDS_PATIENT_DATA
    for name in ("Device", "Schedule", "Slot", "Subscription", "OperationOutcome", "EnrollmentResponse", "Basic"):
        assert owner_in({"resourceType": name}).reason is Reason.NAMES_NO_PATIENT


def test_people_of_two_sources_are_never_one() -> None:  # SPEC-FHIR-8
    """Whatever a source calls them: by id, by the other's full URL, by the other's absolute reference."""
    bases = (BASE, BASE + "/tenant", "https://north.example/fhir", "urn:x:lab", "urn:x:lab/a")
    sources = [Source.named(base) for base in bases]
    seen: dict[str, Source] = {}
    for source in sources:
        own: set[str] = set()
        for url in (None, *(f"{other.base}/Patient/7" for other in sources if other.base.startswith("http"))):
            own.add(owner_in({"resourceType": "Patient", "id": "7"}, url=url, source=source).person)
            text = url or "Patient/7"
            own.add(owner_in(observation(subject={"reference": text}), source=source).person)
        own.add(owner_in({"resourceType": "Patient"}, url="urn:uuid:7", source=source).person)
        for person in own:
            assert seen.setdefault(person, source) is source, person


def test_placeholders_live_in_their_bundle() -> None:  # SPEC-FHIR-10
    url = "urn:uuid:0b0c1d2e-0000-4000-8000-000000000001"
    node = observation(subject={"reference": url})
    mother = patient_entry(None, url)
    here = owner_in(node, mother).person
    assert here is not None
    other = Scope(SOURCE, [place_of(mother)], lambda: bytes(32))
    assert owner_of(node, Place("Observation", None, None), other).person != here
    assert owner_in(node).reason is Reason.UNRESOLVED
    twice = Scope(SOURCE, [place_of(mother), place_of(mother)], digest)
    assert owner_of(mother["resource"], place_of(mother), twice).reason is Reason.NAMES_NO_PATIENT


def test_an_entry_may_not_contradict_itself() -> None:  # SPEC-FHIR-12
    sound = Place("Patient", "7", f"{BASE}/Patient/7")
    assert entry_fault(sound, "PUT", "Patient/7") is None
    assert entry_fault(Place("Patient", "7", "urn:uuid:7"), "POST", "Patient") is None
    for place, method, url in (
        (Place("Patient", "8", f"{BASE}/Patient/7"), "POST", ""),
        (Place("Observation", "7", f"{BASE}/Patient/7"), "POST", ""),
        (Place("Patient", "7", f"{BASE}/Patient/7/_history/1"), "POST", ""),
        (sound, "PUT", "Patient/8"),
        (sound, "PUT", "Observation/7"),
    ):
        assert entry_fault(place, method, url) is not None


# Sources.


@pytest.mark.parametrize(
    ("text", "normal"),
    [
        ("https://Clinic.Example/fhir/", "https://clinic.example/fhir"),
        ("HTTPS://clinic.example:443/fhir", "https://clinic.example/fhir"),
        ("http://clinic.example:80", "http://clinic.example"),
        ("https://clinic.example:8443/a_b/~c", "https://clinic.example:8443/a_b/~c"),
        ("urn:uuid:0b0e4a4e-3f7a-4b5e-9a0d-8d3c2b1a0f9e", "urn:uuid:0b0e4a4e-3f7a-4b5e-9a0d-8d3c2b1a0f9e"),
        ("https://clinic.example/a/../fhir", None),
        ("https://clinic.example//fhir", None),
        ("https://clinic.example/fhir?x", None),
        ("https://clinic.example/fhir#x", None),
        ("https://user@clinic.example/fhir", None),
        ("https://\u212alinic.example/fhir", None),
        ("ftp://clinic.example", None),
        ("clinic.example/fhir", None),
        ("", None),
        ("https://clinic.example/fhir\n", None),
    ],
)
def test_a_base_has_one_form(text: str, normal: str | None) -> None:  # SPEC-FHIR-8
    assert normal_base(text) == normal
    if normal is None:
        with pytest.raises(InputError):
            Source.named(text)
    else:
        assert normal_base(normal) == normal


def test_lists_of_sources_are_read(tmp_path: Path) -> None:
    path = tmp_path / "sources.toml"
    path.write_text(
        '[[source]]\nbase = "https://A.example/fhir/"\npractitioners = ["http://npi|1"]\n'
        'identifier_systems = ["http://mrn"]\n[[source]]\nbase = "urn:x:lab"\n'
    )
    sources = read_sources(path)
    assert sources["https://a.example/fhir"].practitioners == {("http://npi", "1")}
    assert sources["urn:x:lab"].identifier_systems == frozenset()
    for bad in (
        "[[source]]\n",
        '[[source]]\nbase = "x"\n',
        '[[source]]\nbase = "urn:x:lab"\nstaff = 1\n',
        '[[source]]\nbase = "urn:x:lab"\n[[source]]\nbase = "urn:x:lab"\n',
        '[[source]]\nbase = "urn:x:lab"\npractitioners = ["1"]\n',
        "\xff",
    ):
        path.write_bytes(bad.encode("latin-1"))
        with pytest.raises(InputError):
            read_sources(path)
    with pytest.raises(InputError):
        read_sources(tmp_path / "absent.toml")


def test_restful_forms_are_exact() -> None:  # SPEC-FHIR-9
    assert restful("Patient/7") == (None, "Patient", "7")
    for text in (
        "Patient/7\n",
        "Patient/\u212a",
        "PATIENT/7",
        "Patient/7/_history/",
        "https:/h/Patient/7",
        "h/Patient/7",
    ):
        assert restful(text) is None, text

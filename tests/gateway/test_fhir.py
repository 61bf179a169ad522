"""The FHIR border: what is valid, what is refused and where, and that no problem tells a value."""

import json
import runpy
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fastledger.errors import Code, FhirError
from fastledger.gateway import fhir
from fastledger.gateway.fhir import Validated, describe, validate, validate_many
from fastledger.gateway.fhir_rules import certainly_after
from fastledger.limits import ISSUES_PER_RESOURCE_MAX, TOKENS_PER_RECORD_MAX
from fastledger.workload import generate

Node = dict[str, Any]
PLANTED = "QQPLANTEDQQ"

PATIENT: Node = {
    "resourceType": "Patient",
    "id": "p1",
    "name": [{"family": "Sampleton", "given": ["Alfina"]}],
    "gender": "female",
    "birthDate": "1980-02-28",
}
OBSERVATION: Node = {
    "resourceType": "Observation",
    "status": "final",
    "category": [{"coding": [{"system": "http://x.example", "code": "vital-signs"}]}],
    "code": {"coding": [{"system": "http://loinc.org", "code": "8867-4"}]},
    "subject": {"reference": "urn:uuid:0a"},
    "effectiveDateTime": "2024-05-06T07:08:09Z",
    "valueQuantity": {"value": 71, "unit": "/min", "system": "http://unitsofmeasure.org", "code": "/min"},
}


def encode(node: object) -> bytes:
    return json.dumps(node).encode()


def issues_of(raw: bytes) -> tuple[tuple[str, str], ...]:
    """The problems of one resource; none where it is valid."""
    (outcome,) = validate_many([raw])
    return outcome.issues if isinstance(outcome, FhirError) else ()


def samples() -> list[bytes]:
    """One resource of every type that the workload makes."""
    by_type: dict[str, bytes] = {}
    for bundle in generate(5, 2):
        for item in bundle.resources:
            by_type.setdefault(item.resource_type, item.raw)
    return list(by_type.values())


SAMPLES = samples()


# Reading.


def test_bytes_are_kept_as_they_came() -> None:  # SPEC-FHIR-2
    raw = encode(OBSERVATION).replace(b"71", b"71.00").replace(b'": ', b'" :  ')
    assert validate(raw).raw is raw


def test_one_bad_resource_does_not_disturb_the_others() -> None:  # SPEC-FHIR-1
    good = encode(PATIENT)
    bad = {
        b"": "is not JSON",
        b"{": "is not JSON",
        b"[]": "is not a JSON object",
        b'"Patient"': "is not a JSON object",
        b"{}": "has no resourceType of FHIR R4",
        b'{"resourceType":"Martian"}': "has no resourceType of FHIR R4",
        b'{"resourceType":["Patient"]}': "has no resourceType of FHIR R4",
        good.replace(b"Sampleton", b"\xff\xfe"): "is not",
        good.replace(b"Sampleton", b"\\ud800"): "is not",
        good + b"{}": "is not JSON from byte",
        b"[" * 100_000: "is nested too deeply",
        good.replace(b'"p1"', b"1e999"): "holds a number that is out of range",
    }
    batch = [item for raw in bad for item in (good, raw)] + [good]
    outcomes = validate_many(batch)
    assert [outcome.raw for outcome in outcomes[::2] if isinstance(outcome, Validated)] == [good] * (
        len(bad) + 1
    )
    for outcome, problem in zip(outcomes[1::2], bad.values(), strict=True):
        assert isinstance(outcome, FhirError)
        assert outcome.code is Code.BAD_RESOURCE
        assert outcome.issues[0][0] == "Resource"
        assert outcome.issues[0][1].startswith(problem)


def test_validate_raises_what_validate_many_returns() -> None:
    with pytest.raises(FhirError) as caught:
        validate(encode({**PATIENT, "gender": "martian"}))
    assert caught.value.issues == (("Patient.gender", "is not a code of the required value set"),)
    assert validate_many([]) == []


def test_oversized_is_refused_unread(monkeypatch: pytest.MonkeyPatch) -> None:
    raw = encode(PATIENT)
    monkeypatch.setattr(fhir, "RESOURCE_BYTES_MAX", len(raw) - 1)
    assert issues_of(raw) == (("Resource", f"has {len(raw)} bytes, at most {len(raw) - 1} are taken"),)


@pytest.mark.parametrize(("depth", "accepted"), [(29, True), (40, False), (5_000, False)])
def test_depth_is_bounded(depth: int, accepted: bool) -> None:
    raw = b'{"resourceType":"Patient",'
    raw += b'"extension":[{"url":"u:u",' * depth + b'"valueBoolean":true' + b"}]" * depth + b"}"
    assert bool(issues_of(raw)) is not accepted


def test_byte_order_mark_is_passed_over() -> None:
    raw = b"\xef\xbb\xbf" + encode(PATIENT)
    assert validate(raw).raw == raw
    assert describe(raw).resource_type == "Patient"


def test_issues_are_capped() -> None:
    for bad in ({"use": "martian"}, {"use": 1}):
        names = [{"family": "x", **bad} for _ in range(ISSUES_PER_RESOURCE_MAX + 20)]
        assert len(issues_of(encode({**PATIENT, "name": names}))) == ISSUES_PER_RESOURCE_MAX


def test_threads_change_nothing() -> None:
    batch = [*SAMPLES, encode({**PATIENT, "gender": "martian"}), b"{"] * 9
    one, many = validate_many(batch, threads=1), validate_many(batch, threads=4)
    assert [getattr(item, "issues", None) for item in one] == [getattr(item, "issues", None) for item in many]


# Rules: (resource, what is changed, path, rule).


def observation(**changes: Any) -> Node:
    node = {**OBSERVATION, **changes}
    return {key: value for key, value in node.items() if value is not None}


COMPONENT = {"code": {"coding": [{"system": "http://loinc.org", "code": "8867-4"}]}}
CONFIRMED = "http://terminology.hl7.org/CodeSystem/condition-ver-status"
CLINICAL = "http://terminology.hl7.org/CodeSystem/condition-clinical"


def condition(**changes: Any) -> Node:
    return {"resourceType": "Condition", "subject": {"reference": "Patient/1"}, **changes}


def concept(system: str, code: str) -> Node:
    return {"coding": [{"system": system, "code": code}]}


def bundle(kind: str, *entries: Node, **more: Any) -> Node:
    return {"resourceType": "Bundle", "type": kind, "entry": list(entries), **more}


def request(**entry: Any) -> Node:
    return {"request": {"method": "POST", "url": "Patient"}, **entry}


def medication(*contained: Node, reference: str = "#m", **more: Any) -> Node:
    return {
        "resourceType": "MedicationRequest",
        "status": "active",
        "intent": "order",
        "subject": {"reference": "Patient/1"},
        "contained": list(contained),
        "medicationReference": {"reference": reference},
        **more,
    }


DRUG = {"resourceType": "Medication", "id": "m", "code": {"text": "x"}}
BROKEN: list[tuple[Node, str, str]] = [
    ({**PATIENT, "maritalStatus": {}}, "Patient.maritalStatus", "ele-1"),
    ({**PATIENT, "extension": [{"url": "u:u"}]}, "Patient.extension[0]", "ext-1"),
    (
        {
            **PATIENT,
            "_gender": {"extension": [{"url": "u:u", "valueCode": "x", "extension": [{"url": "v"}]}]},
        },
        "Patient._gender.extension[0]",
        "ext-1",
    ),
    ({**PATIENT, "contact": [{"gender": "male"}]}, "Patient.contact[0]", "pat-1"),
    ({**PATIENT, "telecom": [{"value": "1"}]}, "Patient.telecom[0]", "cpt-2"),
    ({**PATIENT, "photo": [{"data": "AAAA"}]}, "Patient.photo[0]", "att-1"),
    ({**PATIENT, "id": "a_b"}, "Patient.id", "r4-id"),
    ({**PATIENT, "id": "a" * 65}, "Patient.id", "r4-id"),
    ({**PATIENT, "birthDate": "1981-02-29"}, "Patient.birthDate", "does not exist"),
    ({**PATIENT, "birthDate": "1981-04-31"}, "Patient.birthDate", "does not exist"),
    ({**PATIENT, "gender": "martian"}, "Patient.gender", "required value set"),
    ({**PATIENT, "fhir_comments": ["x"]}, "Patient", "unknown element"),
    (
        {**PATIENT, "link": [{"other": {"reference": "Patient/2"}, "type": "martian"}]},
        "Patient.link[0].type",
        "required value set",
    ),
    (
        {**PATIENT, "name": [{"family": "x", "id": "1"}, {"family": "y", "id": "1"}]},
        "Patient.name[1].id",
        "r4-element-id",
    ),
    (
        {**PATIENT, "name": [{"family": "x", "period": {"start": "2020-01-02", "end": "2020-01-01"}}]},
        "Patient.name[0].period",
        "per-1",
    ),
    (
        {**PATIENT, "text": {"status": "generated", "div": "<div><script>1</script></div>"}},
        "Patient.text.div",
        "txt-1",
    ),
    (
        {**PATIENT, "generalPractitioner": [{"reference": "#x"}]},
        "Patient.generalPractitioner[0].reference",
        "ref-1",
    ),
    (observation(dataAbsentReason={"text": "x"}), "Observation", "obs-6"),
    (observation(component=[COMPONENT]), "Observation", "obs-7"),
    (observation(referenceRange=[{"age": {"low": {"value": 1}}}]), "Observation.referenceRange[0]", "obs-3"),
    (observation(valueQuantity={"value": 1, "code": "mg"}), "Observation.valueQuantity", "qty-3"),
    (
        observation(valueQuantity=None, valueRatio={"numerator": {"value": 1}}),
        "Observation.valueRatio",
        "rat-1",
    ),
    (
        observation(valueQuantity=None, valueRange={"low": {"value": 2}, "high": {"value": 1}}),
        "Observation.valueRange",
        "rng-2",
    ),
    (condition(abatementDateTime="2020", clinicalStatus=concept(CLINICAL, "active")), "Condition", "con-4"),
    (
        condition(
            clinicalStatus=concept(CLINICAL, "active"),
            verificationStatus=concept(CONFIRMED, "entered-in-error"),
        ),
        "Condition",
        "con-5",
    ),
    (
        condition(clinicalStatus=concept(CLINICAL, "martian")),
        "Condition.clinicalStatus",
        "required value set",
    ),
    (
        condition(onsetAge={"value": -1, "code": "a", "system": "http://unitsofmeasure.org"}),
        "Condition.onsetAge",
        "age-1",
    ),
    (
        {"resourceType": "AllergyIntolerance", "patient": {"reference": "Patient/1"}},
        "AllergyIntolerance",
        "ait-1",
    ),
    ({"resourceType": "Organization", "active": True}, "Organization", "org-1"),
    (medication(DRUG, reference="#other"), "MedicationRequest.medicationReference.reference", "ref-1"),
    (medication(DRUG, {**DRUG, "id": "n"}), "MedicationRequest.contained[1]", "dom-3"),
    (medication({**DRUG, "meta": {"versionId": "1"}}), "MedicationRequest.contained[0]", "dom-4"),
    (
        medication({**DRUG, "meta": {"security": [{"code": "R"}]}}),
        "MedicationRequest.contained[0]",
        "dom-5",
    ),
    (
        medication(DRUG, dosageInstruction=[{"timing": {"repeat": {"period": 1}}}]),
        "MedicationRequest.dosageInstruction[0].timing.repeat",
        "tim-2",
    ),
    (bundle("transaction", {"resource": PATIENT}), "Bundle.entry[0]", "bdl-3"),
    (bundle("collection", {"resource": PATIENT}, total=1), "Bundle", "bdl-1"),
    (bundle("collection", {"resource": PATIENT, "search": {"mode": "match"}}), "Bundle.entry[0]", "bdl-2"),
    (bundle("collection", {"fullUrl": "http://x.example/Patient/1"}), "Bundle.entry[0]", "bdl-5"),
    (
        bundle(
            "transaction", request(fullUrl="u:1", resource=PATIENT), request(fullUrl="u:1", resource=PATIENT)
        ),
        "Bundle.entry[1].fullUrl",
        "bdl-7",
    ),
    (
        bundle("transaction", request(fullUrl="Patient/1", resource=PATIENT)),
        "Bundle.entry[0].fullUrl",
        "r4-full-url",
    ),
    (
        bundle("transaction", request(resource={**PATIENT, "gender": "martian"})),
        "Bundle.entry[0].resource.gender",
        "required value set",
    ),
    (
        bundle("searchset", {"resource": {"resourceType": "Patient", "active": True}}),
        "Bundle.entry[0].resource",
        "r4-search-id",
    ),
    (bundle("document", {"resource": PATIENT}), "Bundle", "bdl-9"),
]
SOUND: list[Node] = [
    PATIENT,
    OBSERVATION,
    {**PATIENT, "_gender": {"id": "g"}},
    {**PATIENT, "extension": [{"url": "u:u", "extension": [{"url": "v", "valueCode": "x"}]}]},
    {**PATIENT, "birthDate": "1980-02-29"},
    {**PATIENT, "name": [{"family": "1981-02-29"}]},
    {**PATIENT, "name": [{"family": "x", "period": {"start": "2020-01-02", "end": "2020-01"}}]},
    {**PATIENT, "text": {"status": "generated", "div": "<div><p>a <b>b</b> &#160; &amp;</p></div>"}},
    {**PATIENT, "telecom": [{"value": "1", "_system": {"extension": [{"url": "u:u", "valueCode": "x"}]}}]},
    medication(DRUG),
    condition(abatementDateTime="2020", clinicalStatus=concept(CLINICAL, "resolved")),
    observation(valueQuantity=None, component=[COMPONENT]),
    observation(valueQuantity={"value": 1, "unit": "mg"}),
    bundle(
        "transaction", request(fullUrl="urn:uuid:" + "0" * 8 + "-0000" * 3 + "-" + "0" * 12, resource=PATIENT)
    ),
]


@pytest.mark.parametrize(("node", "path", "rule"), BROKEN, ids=[rule for _, _, rule in BROKEN])
def test_broken_rule_is_named_where_it_breaks(node: Node, path: str, rule: str) -> None:  # SPEC-FHIR-4
    found = issues_of(encode(node))
    assert any(place == path and rule in problem for place, problem in found), found


@pytest.mark.parametrize("node", SOUND)
def test_sound_resources_pass(node: Node) -> None:
    assert issues_of(encode(node)) == ()


def test_hostile_sizes_cost_linear_time() -> None:
    """Each of these would take hours if a rule compared everything with everything."""
    many = 30_000
    contained = [{**DRUG, "id": f"m{number}"} for number in range(many)]
    assert len(issues_of(encode(medication(*contained, reference="#m0")))) == ISSUES_PER_RESOURCE_MAX
    codings = [{"system": "s:s", "code": f"c{number}"} for number in range(many)]
    parts = [{"code": {"coding": [{"system": "s:s", "code": f"d{number}"}]}} for number in range(many)]
    assert issues_of(encode(observation(code={"coding": codings}, component=parts))) == ()
    assert issues_of(encode({**PATIENT, "a" * 1_000_000: {"b": 1}})) == (
        ("Patient", "holds an unknown element"),
    )


def test_duplicate_keys_are_refused() -> None:
    raw = encode(PATIENT).replace(b'"gender"', b'"gender": "male", "gender"')
    assert ("Patient", "holds a key more than once") in issues_of(raw)


def test_a_day_cannot_hide_behind_an_escape() -> None:
    raw = encode(PATIENT).replace(b"1980-02-28", b"1980-02-\\u0033\\u0030")
    assert issues_of(raw) == (("Patient.birthDate", "is a day that does not exist"),)


@pytest.mark.parametrize(
    ("first", "second", "after"),
    [
        ("2020-01-02", "2020-01-01", True),
        ("2020-01-02", "2020-01", False),
        ("2020-01-02", "2020-01-01T23:00:00Z", False),  # within the width of the time zones
        ("2020-01-03", "2020-01-01T23:00:00Z", True),
        ("2020-01-01T10:00:00Z", "2020-01-01T09:00:00Z", True),
        ("2020-01-01T10:00:00+02:00", "2020-01-01T09:00:00Z", False),
        ("2020", "2020-05-05", False),
        ("2021", "2020-05-05", True),
        ("2020-13-01T00:00:00Z", "2019", False),
        ("nonsense", "2019", False),
    ],
)
def test_certainly_after(first: str, second: str, after: bool) -> None:
    assert certainly_after(first, second) is after


def view(*names: str) -> Node:
    return {"element": [{"id": name, "path": name} for name in names]}


def structure(**views: Node) -> bytes:
    """A StructureDefinition with views of its elements."""
    return encode(
        {
            "resourceType": "StructureDefinition",
            "url": "http://h.example/StructureDefinition/ward",
            "name": "Ward",
            "status": "draft",
            "kind": "complex-type",
            "abstract": False,
            "type": "Extension",
            **views,
        }
    )


def test_both_views_of_a_structure_name_the_same_elements() -> None:  # SPEC-FHIR-4
    both = {"snapshot": view("Extension", "Extension.url"), "differential": view("Extension")}
    assert issues_of(structure(**both)) == ()
    twice = issues_of(structure(snapshot=view("Extension", "Extension"), differential=view("Extension")))
    assert [path for path, _ in twice] == ["StructureDefinition.snapshot.element[1].id"]
    twice = issues_of(structure(snapshot=view("Extension"), differential=view("Extension", "x", "x")))
    assert [path for path, _ in twice] == ["StructureDefinition.differential.element[2].id"]


# Privacy.


def mutations(node: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The path of every value in a tree."""
    if path:
        yield path
    items = node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ()
    for key, value in items:
        yield from mutations(value, (*path, key))


def replaced(root: Any, path: tuple[Any, ...], change: Callable[[Any, Any], None]) -> Any:
    """A copy of the tree with ``change(container, key)`` applied at the path."""
    copy = json.loads(json.dumps(root))
    holder = copy
    for key in path[:-1]:
        holder = holder[key]
    change(holder, path[-1])
    return copy


def drop(holder: Any, key: Any) -> None:
    del holder[key]


def plant_key(holder: Any, key: Any) -> None:
    if isinstance(holder, dict):
        holder[f"{PLANTED}.x[0]"] = holder.pop(key)


def plant_value(value: Any) -> Callable[[Any, Any], None]:
    def change(holder: Any, key: Any) -> None:
        holder[key] = value

    return change


PLANTS = [
    plant_key,
    plant_value(PLANTED),
    plant_value(f'{PLANTED} "quoted" is not a valid date\n{PLANTED}'),
    plant_value({PLANTED: PLANTED}),
    plant_value([PLANTED, {PLANTED: [PLANTED]}]),
    plant_value({"resourceType": PLANTED, "id": PLANTED}),
]


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_no_problem_tells_a_value(data: st.DataObject) -> None:  # SPEC-FHIR-3
    root = json.loads(data.draw(st.sampled_from(SAMPLES)))
    path = data.draw(st.sampled_from(list(mutations(root))))
    mutated = replaced(root, path, data.draw(st.sampled_from(PLANTS)))
    (outcome,) = validate_many([encode(mutated)])
    told = f"{outcome} {outcome!r} {getattr(outcome, 'issues', '')}"
    assert PLANTED not in told


def test_invalid_json_tells_nothing() -> None:
    for raw in (PLANTED.encode(), f'{{"{PLANTED}": {PLANTED}'.encode(), b'"' + PLANTED.encode() + b"\xff"):
        (outcome,) = validate_many([raw])
        assert isinstance(outcome, FhirError)
        assert PLANTED not in f"{outcome} {outcome!r} {outcome.issues}"


JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=6,
)


@settings(max_examples=200, deadline=None)
@given(st.data(), JSON_VALUES)
def test_any_json_is_valid_or_refused(data: st.DataObject, value: Any) -> None:  # SPEC-FHIR-1
    root = json.loads(data.draw(st.sampled_from(SAMPLES)))
    path = data.draw(st.sampled_from(list(mutations(root))))
    raw = encode(replaced(root, path, plant_value(value)))
    (outcome,) = validate_many([raw])
    if isinstance(outcome, Validated):
        assert len(describe(outcome.resource).terms) <= TOKENS_PER_RECORD_MAX
    else:
        assert outcome.issues


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=200))
def test_any_bytes_are_valid_or_refused(raw: bytes) -> None:
    (outcome,) = validate_many([raw])
    assert isinstance(outcome, FhirError)


def test_repr_of_valid_resources_tells_nothing() -> None:
    valid = validate(encode(PATIENT))
    assert "Sampleton" not in repr(valid)
    assert "p1" not in repr(describe(valid.resource))


# Description.


def test_describe_an_observation() -> None:  # SPEC-FHIR-5
    info = describe(encode(OBSERVATION))
    assert info.resource_type == "Observation"
    assert info.category == "vitals"
    assert info.terms == ("type:Observation", "month:2024-05", "code:http://loinc.org|8867-4")


@pytest.mark.parametrize(
    ("node", "category"),
    [
        (PATIENT, "demographics"),
        (medication(DRUG), "medications"),
        ({"resourceType": "Organization", "name": "x"}, "administrative"),
        ({"resourceType": "Practitioner", "id": "x"}, "administrative"),
        ({"resourceType": "Location"}, "administrative"),
        ({"resourceType": "Device", "patient": {"reference": "Patient/2"}}, "devices"),
        ({"resourceType": "Appointment"}, "encounters"),
        ({"resourceType": "Group"}, "other"),
        ({"resourceType": "Subscription"}, "other"),
        (observation(category=[{"coding": [{"code": "laboratory"}]}]), "laboratory"),
        (observation(category=[{"coding": [{"code": "survey"}]}]), "observations"),
    ],
)
def test_categories(node: Node, category: str) -> None:
    assert describe(node).category == category


def test_terms_are_bounded_unique_and_of_sane_length() -> None:
    codings = [{"system": "s:s", "code": str(number // 2)} for number in range(100)]
    long = [{"code": "x" * 999}, {"code": "\U0001f49a" * 200}]
    info = describe(observation(code={"coding": [*long, *codings]}))
    assert len(info.terms) == len(set(info.terms)) == TOKENS_PER_RECORD_MAX
    assert info.terms[:3] == ("type:Observation", "month:2024-05", "code:s:s|0")


def test_a_contained_drug_gives_its_code() -> None:
    drug = {**DRUG, "code": concept("http://rxnorm.example", "42")}
    assert "code:http://rxnorm.example|42" in describe(medication(drug)).terms


@pytest.mark.parametrize("raw", [b"", b"[]", b"{}", b"\xff", b"[" * 100_000])
def test_describe_refuses_what_is_no_resource(raw: bytes) -> None:
    with pytest.raises(FhirError):
        describe(raw)


def test_unknown_messages_of_the_library_are_not_passed_on() -> None:
    assert fhir._problem(f'"{PLANTED}" something new') == ("is not valid", False)
    assert fhir._problem(f'"{PLANTED} is not a valid x{PLANTED}" is not a valid code') == (
        "is not a valid code",
        False,
    )


def test_benchmark_runs(capsys: pytest.CaptureFixture[str]) -> None:
    program = Path(__file__).parents[2] / "benchmarks" / "bench_fhir.py"
    runpy.run_path(str(program))["main"](["--tiny"])
    assert "validate_many, 1 thread" in capsys.readouterr().out


def test_decoded_form_is_msgspecs() -> None:
    raw = encode(PATIENT)
    assert validate(raw).resource == msgspec.json.decode(raw)

"""Builders of FHIR R4 resources: one function for each kind that the generated hospital writes.

They return JSON objects whose keys are in a fixed order. Ids are UUIDs in text form, times FHIR dateTimes in UTC.
"""

from datetime import date
from decimal import Decimal
from typing import Any

from fastledger.workload import tables as t
from fastledger.workload.ecg import MICROVOLTS_PER_UNIT, SAMPLE_PERIOD_MS

Node = dict[str, Any]


def decimal(units: int, places: int) -> Decimal:
    """Returns ``units`` of the last of ``places`` decimal places as a number: (372, 1) is 37.2, digits kept."""
    return Decimal(units).scaleb(-places)


def reference(resource_id: str) -> Node:
    """Builds a Reference to a resource of the same bundle."""
    return {"reference": f"urn:uuid:{resource_id}"}


def concept(coded: t.Coded) -> Node:
    """Builds a CodeableConcept of one coding."""
    return {
        "coding": [{"system": coded.system, "code": coded.code, "display": coded.display}],
        "text": coded.display,
    }


def status_concept(system: str, code: str) -> Node:
    """Builds a CodeableConcept of one of HL7's own systems; ``system`` is the last part of its URL."""
    return {"coding": [{"system": t.HL7 + system, "code": code}]}


def quantity(units: int, measure: t.Measure) -> Node:
    """Builds a Quantity in the unit of a measure; ``units`` counts its last decimal place."""
    return {
        "value": decimal(units, measure.places),
        "unit": measure.unit,
        "system": t.UCUM,
        "code": measure.unit,
    }


def money(cents: int) -> Node:
    """Builds a Money of so many US cents."""
    return {"value": decimal(cents, 2), "currency": "USD"}


def moment(day: date, minute: int) -> str:
    """Returns the dateTime of a minute of the day in UTC, to the second."""
    return f"{day.isoformat()}T{minute // 60:02d}:{minute % 60:02d}:00Z"


def _resource(resource_type: str, resource_id: str, **elements: Any) -> Node:
    return {"resourceType": resource_type, "id": resource_id, **elements}


def organization(resource_id: str, name: str, number: int) -> Node:
    """Builds an Organization: a hospital, a clinic or the insurer."""
    return _resource(
        "Organization",
        resource_id,
        identifier=[{"system": t.HOSPITAL + "organizations", "value": str(number)}],
        active=True,
        name=name,
        telecom=[{"system": "phone", "value": f"555-01{number:02d}", "use": "work"}],
    )


def practitioner(resource_id: str, family: str, given: str, number: int) -> Node:
    """Builds a Practitioner of the hospital's staff."""
    return _resource(
        "Practitioner",
        resource_id,
        identifier=[{"system": "http://hl7.org/fhir/sid/us-npi", "value": str(9_999_900_000 + number)}],
        active=True,
        name=[{"family": family, "given": [given], "prefix": ["Dr."]}],
    )


def patient(
    resource_id: str, record_number: int, family: str, given: str, gender: str, birth: date, address: Node
) -> Node:
    """Builds a Patient with a name, an address and identifiers that nobody has."""
    return _resource(
        "Patient",
        resource_id,
        identifier=[
            {
                "type": {
                    "coding": [
                        {"system": t.HL7 + "v2-0203", "code": "MR", "display": "Medical Record Number"}
                    ]
                },
                "system": t.HOSPITAL + "mrn",
                "value": f"MRN-{record_number:08d}",
            }
        ],
        active=True,
        name=[{"use": "official", "family": family, "given": [given]}],
        telecom=[{"system": "phone", "value": f"555-{record_number % 10_000:04d}", "use": "home"}],
        gender=gender,
        birthDate=birth.isoformat(),
        address=[address],
    )


def coverage(resource_id: str, patient_id: str, insurer_id: str) -> Node:
    """Builds the Coverage of a patient by an insurer."""
    return _resource(
        "Coverage",
        resource_id,
        status="active",
        beneficiary=reference(patient_id),
        payor=[reference(insurer_id)],
    )


def encounter(
    resource_id: str, patient_id: str, practitioner_id: str, visit: t.Coded, day: date, minute: int
) -> Node:
    """Builds the Encounter of a visit of half an hour."""
    return _resource(
        "Encounter",
        resource_id,
        status="finished",
        **{"class": {"system": t.HL7 + "v3-ActCode", "code": "AMB", "display": "ambulatory"}},
        type=[concept(visit)],
        subject=reference(patient_id),
        participant=[{"individual": reference(practitioner_id)}],
        period={"start": moment(day, minute), "end": moment(day, minute + 30)},
    )


def condition(
    resource_id: str, patient_id: str, encounter_id: str, disease: t.Disease, onset: str, abated: str | None
) -> Node:
    """Builds the Condition of a diagnosis, resolved where ``abated`` says when."""
    node = _resource(
        "Condition",
        resource_id,
        clinicalStatus=status_concept("condition-clinical", "resolved" if abated else "active"),
        verificationStatus=status_concept("condition-ver-status", "confirmed"),
        category=[status_concept("condition-category", "encounter-diagnosis")],
        code=concept(disease.condition),
        subject=reference(patient_id),
        encounter=reference(encounter_id),
        onsetDateTime=onset,
    )
    if abated:
        node["abatementDateTime"] = abated
    node["recordedDate"] = onset
    return node


def allergy(resource_id: str, patient_id: str, coded: t.Coded, recorded: str) -> Node:
    """Builds an AllergyIntolerance."""
    return _resource(
        "AllergyIntolerance",
        resource_id,
        clinicalStatus=status_concept("allergyintolerance-clinical", "active"),
        verificationStatus=status_concept("allergyintolerance-verification", "confirmed"),
        type="allergy",
        criticality="low",
        code=concept(coded),
        patient=reference(patient_id),
        recordedDate=recorded,
    )


def observation(resource_id: str, category: str, code: t.Coded, about: Node, at: str, **result: Any) -> Node:
    """Builds an Observation; ``about`` are its subject and encounter, ``result`` its value or components."""
    return _resource(
        "Observation",
        resource_id,
        status="final",
        category=[status_concept("observation-category", category)],
        code=concept(code),
        **about,
        effectiveDateTime=at,
        issued=at,
        **result,
    )


def measured(measure: t.Measure, units: int) -> Node:
    """Returns the result elements of an Observation, with the laboratory's range and verdict where there is one."""
    result: Node = {"valueQuantity": quantity(units, measure)}
    limits = t.REFERENCE_RANGES.get(measure.code)
    if limits:
        verdict = "L" if units < limits[0] else "H" if units > limits[1] else "N"
        result["interpretation"] = [status_concept("v3-ObservationInterpretation", verdict)]
        low, high = (quantity(limit, measure) for limit in limits)
        result["referenceRange"] = [{"low": low, "high": high}]
    return result


def component(measure: t.Measure, units: int) -> Node:
    """Builds one component of a compound Observation."""
    code = t.Coded(t.LOINC, measure.code, measure.display)
    return {"code": concept(code), "valueQuantity": quantity(units, measure)}


def ecg_component(lead: t.Coded, samples: list[int]) -> Node:
    """Builds the component of one ECG lead: SampledData in microvolts."""
    return {
        "code": concept(lead),
        "valueSampledData": {
            "origin": {"value": 0, "unit": "uV", "system": t.UCUM, "code": "uV"},
            "period": SAMPLE_PERIOD_MS,
            "factor": MICROVOLTS_PER_UNIT,
            "dimensions": 1,
            "data": " ".join(map(str, samples)),
        },
    }


def report(resource_id: str, code: t.Coded, about: Node, at: str, result_ids: list[str]) -> Node:
    """Builds a DiagnosticReport over observations."""
    return _resource(
        "DiagnosticReport",
        resource_id,
        status="final",
        category=[status_concept("v2-0074", "LAB")],
        code=concept(code),
        **about,
        effectiveDateTime=at,
        issued=at,
        result=[reference(result_id) for result_id in result_ids],
    )


def prescription(
    resource_id: str, about: Node, drug: t.Coded, authored: str, practitioner_id: str, active: bool
) -> Node:
    """Builds a MedicationRequest with its dosage."""
    return _resource(
        "MedicationRequest",
        resource_id,
        status="active" if active else "completed",
        intent="order",
        medicationCodeableConcept=concept(drug),
        **about,
        authoredOn=authored,
        requester=reference(practitioner_id),
        dosageInstruction=[
            {"sequence": 1, "timing": {"repeat": {"frequency": 1, "period": 1, "periodUnit": "d"}}}
        ],
    )


def immunization(resource_id: str, patient_id: str, encounter_id: str, vaccine: t.Coded, at: str) -> Node:
    """Builds the Immunization of a vaccine that was given."""
    return _resource(
        "Immunization",
        resource_id,
        status="completed",
        vaccineCode=concept(vaccine),
        patient=reference(patient_id),
        encounter=reference(encounter_id),
        occurrenceDateTime=at,
        primarySource=True,
    )


def procedure(resource_id: str, about: Node, coded: t.Coded, start: str, end: str) -> Node:
    """Builds the Procedure of something done at a visit."""
    return _resource(
        "Procedure",
        resource_id,
        status="completed",
        code=concept(coded),
        **about,
        performedPeriod={"start": start, "end": end},
    )


def goal(resource_id: str, patient_id: str, text: str, start: date) -> Node:
    """Builds the Goal that a care plan aims at."""
    return _resource(
        "Goal",
        resource_id,
        lifecycleStatus="active",
        description={"text": text},
        subject=reference(patient_id),
        startDate=start.isoformat(),
    )


def care_plan(resource_id: str, patient_id: str, goal_id: str, text: str, start: date) -> Node:
    """Builds the CarePlan of a diagnosis."""
    return _resource(
        "CarePlan",
        resource_id,
        status="active",
        intent="plan",
        title=text,
        subject=reference(patient_id),
        period={"start": start.isoformat()},
        goal=[reference(goal_id)],
    )


def claim(
    resource_id: str,
    patient_id: str,
    provider_id: str,
    coverage_id: str,
    encounter_id: str,
    service: t.Coded,
    cents: int,
    at: str,
) -> Node:
    """Builds the Claim for a visit."""
    return _resource(
        "Claim",
        resource_id,
        status="active",
        type=status_concept("claim-type", "professional"),
        use="claim",
        patient=reference(patient_id),
        created=at,
        provider=reference(provider_id),
        priority=status_concept("processpriority", "normal"),
        insurance=[{"sequence": 1, "focal": True, "coverage": reference(coverage_id)}],
        item=[
            {
                "sequence": 1,
                "productOrService": concept(service),
                "encounter": [reference(encounter_id)],
                "net": money(cents),
            }
        ],
        total=money(cents),
    )


def benefit(resource_id: str, claim_node: Node, insurer_id: str, paid_cents: int, at: str) -> Node:
    """Builds the ExplanationOfBenefit that answers a claim."""
    item = claim_node["item"][0]
    return _resource(
        "ExplanationOfBenefit",
        resource_id,
        status="active",
        type=claim_node["type"],
        use="claim",
        patient=claim_node["patient"],
        created=at,
        insurer=reference(insurer_id),
        provider=claim_node["provider"],
        claim=reference(claim_node["id"]),
        outcome="complete",
        insurance=[{"focal": True, "coverage": claim_node["insurance"][0]["coverage"]}],
        item=[
            {
                "sequence": 1,
                "productOrService": item["productOrService"],
                "net": item["net"],
                "adjudication": [
                    {"category": status_concept("adjudication", "submitted"), "amount": item["net"]},
                    {"category": status_concept("adjudication", "benefit"), "amount": money(paid_cents)},
                ],
            }
        ],
        total=[{"category": status_concept("adjudication", "submitted"), "amount": claim_node["total"]}],
        payment={"amount": money(paid_cents)},
    )

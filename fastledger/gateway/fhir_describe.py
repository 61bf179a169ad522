"""Description of a resource, for its folder and its blind index: category and search terms.

Whose it is, ``fhir_owner`` says.

Terms are the plaintext of index tokens; they stay with whoever holds the folder key. Each is one of
``type:Observation``, ``code:<system>|<code>`` and ``month:YYYY-MM`` (SPEC-FHIR-5).
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import msgspec

from fastledger.errors import FhirError
from fastledger.gateway.fhir_compartment import OF_NO_PATIENT
from fastledger.gateway.fhir_rules import dicts
from fastledger.limits import INDEX_TERM_BYTES_MAX, TOKENS_PER_RECORD_MAX

# A longer code is no code that anyone searches by.
TERM_CHARS_MAX = 256
OTHER = "other"

ADMINISTRATIVE = "administrative"


class _Subject(NamedTuple):
    """The elements of a resource type that hold the facts; of several keys the first that is given counts."""

    category: str
    codes: tuple[str, ...] = ()
    dates: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class ResourceInfo:
    """The facts of a resource that its ingest needs.

    ``terms`` are unique, at most ``TOKENS_PER_RECORD_MAX``, the most important first. ``category`` is
    ``administrative`` for organisations, practitioners, places, products.
    """

    resource_type: str
    category: str
    terms: tuple[str, ...] = field(repr=False)


_DATE = ("date",)
_SUBJECTS: dict[str, _Subject] = {
    "Patient": _Subject("demographics"),
    "RelatedPerson": _Subject("demographics", ("relationship",), ("period",)),
    "Person": _Subject("demographics"),
    "Encounter": _Subject("encounters", ("type", "reasonCode", "class"), ("period",)),
    "EpisodeOfCare": _Subject("encounters", ("type",), ("period",)),
    "Appointment": _Subject("encounters", ("serviceType", "reasonCode"), ("start", "created")),
    "AppointmentResponse": _Subject("encounters", (), ("start",)),
    "Condition": _Subject("conditions", ("code",), ("onsetDateTime", "onsetPeriod", "recordedDate")),
    "ClinicalImpression": _Subject("conditions", ("code",), ("effectiveDateTime", "effectivePeriod", "date")),
    "DetectedIssue": _Subject("conditions", ("code",), ("identifiedDateTime", "identifiedPeriod")),
    "AdverseEvent": _Subject("conditions", ("event",), ("date", "detected", "recordedDate")),
    "FamilyMemberHistory": _Subject("conditions", ("relationship",), _DATE),
    "RiskAssessment": _Subject("conditions", ("code",), ("occurrenceDateTime", "occurrencePeriod")),
    "Flag": _Subject("conditions", ("code",), ("period",)),
    "BodyStructure": _Subject("conditions", ("morphology", "location"), ()),
    "Observation": _Subject(
        "observations",
        ("code", "component"),
        ("effectiveDateTime", "effectivePeriod", "effectiveInstant", "issued"),
    ),
    "MolecularSequence": _Subject("laboratory", (), ()),
    "Specimen": _Subject("laboratory", ("type",), ("collection", "receivedTime")),
    "Media": _Subject("imaging", ("type", "modality"), ("createdDateTime", "createdPeriod", "issued")),
    "ImagingStudy": _Subject("imaging", ("procedureCode", "modality", "reasonCode"), ("started",)),
    "DiagnosticReport": _Subject(
        "diagnostics", ("code",), ("effectiveDateTime", "effectivePeriod", "issued")
    ),
    "ServiceRequest": _Subject("diagnostics", ("code",), ("occurrenceDateTime", "authoredOn")),
    "MedicationRequest": _Subject("medications", ("medicationCodeableConcept",), ("authoredOn",)),
    "MedicationStatement": _Subject(
        "medications",
        ("medicationCodeableConcept",),
        ("effectiveDateTime", "effectivePeriod", "dateAsserted"),
    ),
    "MedicationAdministration": _Subject(
        "medications", ("medicationCodeableConcept",), ("effectiveDateTime", "effectivePeriod")
    ),
    "MedicationDispense": _Subject(
        "medications", ("medicationCodeableConcept",), ("whenHandedOver", "whenPrepared")
    ),
    "Procedure": _Subject("procedures", ("code", "reasonCode"), ("performedDateTime", "performedPeriod")),
    "DeviceRequest": _Subject("devices", ("codeCodeableConcept",), ("occurrenceDateTime", "authoredOn")),
    "DeviceUseStatement": _Subject("devices", (), ("timingDateTime", "timingPeriod", "recordedOn")),
    "Device": _Subject("devices", ("type",), ("manufactureDate",)),
    "SupplyDelivery": _Subject("devices", ("type", "suppliedItem"), ("occurrenceDateTime",)),
    "Immunization": _Subject("immunizations", ("vaccineCode",), ("occurrenceDateTime", "recorded")),
    "ImmunizationEvaluation": _Subject("immunizations", ("targetDisease",), _DATE),
    "ImmunizationRecommendation": _Subject("immunizations", ("recommendation",), _DATE),
    "AllergyIntolerance": _Subject(
        "allergies", ("code",), ("onsetDateTime", "onsetPeriod", "recordedDate", "lastOccurrence")
    ),
    "CarePlan": _Subject("careplans", ("category",), ("period", "created")),
    "CareTeam": _Subject("careplans", ("category", "reasonCode"), ("period",)),
    "Goal": _Subject("careplans", ("description",), ("startDate", "statusDate")),
    "NutritionOrder": _Subject("careplans", ("foodPreferenceModifier",), ("dateTime",)),
    "RequestGroup": _Subject("careplans", ("code",), ("authoredOn",)),
    "Task": _Subject("careplans", ("code",), ("authoredOn", "lastModified")),
    "Claim": _Subject("claims", ("type", "item"), ("billablePeriod", "created")),
    "ClaimResponse": _Subject("claims", ("type",), ("created",)),
    "ExplanationOfBenefit": _Subject("claims", ("type", "item"), ("billablePeriod", "created")),
    "Coverage": _Subject("claims", ("type",), ("period",)),
    "CoverageEligibilityRequest": _Subject("claims", (), ("servicedDate", "created")),
    "CoverageEligibilityResponse": _Subject("claims", (), ("servicedDate", "created")),
    "Account": _Subject("claims", ("type",), ("servicePeriod",)),
    "ChargeItem": _Subject("claims", ("code",), ("occurrenceDateTime", "occurrencePeriod", "enteredDate")),
    "Invoice": _Subject("claims", ("type",), _DATE),
    "DocumentReference": _Subject("documents", ("type", "category"), ("date",)),
    "DocumentManifest": _Subject("documents", ("type",), ("created",)),
    "Composition": _Subject("documents", ("type",), _DATE),
    "QuestionnaireResponse": _Subject("documents", (), ("authored",)),
    "Consent": _Subject("documents", ("category", "scope"), ("dateTime",)),
    "Communication": _Subject("documents", ("category", "reasonCode"), ("sent", "received")),
    "CommunicationRequest": _Subject("documents", ("category",), ("occurrenceDateTime", "authoredOn")),
    "List": _Subject("documents", ("code",), _DATE),
    "VisionPrescription": _Subject("devices", (), ("dateWritten", "created")),
    "Provenance": _Subject("documents", ("activity",), ("occurredDateTime", "recorded")),
    "AuditEvent": _Subject("documents", ("type",), ("recorded",)),
    "Basic": _Subject("documents", ("code",), ("created",)),
    "Binary": _Subject("documents"),
    "Contract": _Subject("documents", ("type",), ("issued",)),
    "GuidanceResponse": _Subject("documents", ("reasonCode",), ("occurrenceDateTime",)),
    "MeasureReport": _Subject("documents", (), ("date", "period")),
    "MessageHeader": _Subject("documents"),
    "ResearchSubject": _Subject("research", (), ("period",)),
    "BiologicallyDerivedProduct": _Subject("devices", ("productCode",)),
    "SupplyRequest": _Subject("devices", ("itemCodeableConcept",), ("authoredOn",)),
    "Schedule": _Subject("encounters", ("serviceType",)),
    "EnrollmentRequest": _Subject("claims", (), ("created",)),
    "EnrollmentResponse": _Subject("claims", (), ("created",)),
    "PaymentNotice": _Subject("claims", (), ("created",)),
    "PaymentReconciliation": _Subject("claims", (), ("created",)),
}
# Kinds of things rather than of people: their codes are still worth a term.
_ADMINISTRATIVE = _Subject(ADMINISTRATIVE, ("code", "type", "specialty"), _DATE)
_OTHER = _Subject(OTHER, ("code", "type"), _DATE)

_OBSERVATION_CATEGORIES = {
    "vital-signs": "vitals",
    "laboratory": "laboratory",
    "imaging": "imaging",
    "procedure": "procedures",
}


def describe(resource: bytes | Mapping[str, Any]) -> ResourceInfo:
    """Returns the facts of a valid resource, given as text or as the decoded form of ``Validated.resource``.

    Deterministic. Raises ``FhirError`` where there is not even a resourceType.
    """
    node = _decoded(resource) if isinstance(resource, bytes) else resource
    resource_type = node.get("resourceType")
    if not isinstance(resource_type, str):
        raise FhirError("a resource needs a resourceType")
    subject = _SUBJECTS.get(resource_type, _ADMINISTRATIVE if resource_type in OF_NO_PATIENT else _OTHER)
    category = subject.category
    if resource_type == "Observation":
        category = _observation_category(node)
    terms = ["type:" + resource_type]
    month = _month(node, subject.dates)
    if month:
        terms.append("month:" + month)
    for key in subject.codes:
        value = node.get(key)
        if value is not None:
            _add_codes(value, terms)
    if "medicationReference" in node and "contained" in node:
        _add_contained_medication(node, terms)
    return ResourceInfo(resource_type, category, tuple(dict.fromkeys(terms))[:TOKENS_PER_RECORD_MAX])


def _decoded(raw: bytes) -> Mapping[str, Any]:
    try:
        node = msgspec.json.decode(raw.removeprefix(b"\xef\xbb\xbf"))
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        node = None
    if not isinstance(node, dict):
        raise FhirError("a resource is a JSON object")
    return node


def _observation_category(node: Mapping[str, Any]) -> str:
    """Returns the folder category of an Observation by its category codes; unknown ones give ``observations``."""
    for concept in dicts(node.get("category")):
        for coding in dicts(concept.get("coding")):
            category = _OBSERVATION_CATEGORIES.get(str(coding.get("code")))
            if category:
                return category
    return "observations"


def _month(node: Mapping[str, Any], keys: tuple[str, ...]) -> str | None:
    """Returns the month (YYYY-MM) of the first date that is given at least to the month, or None."""
    for key in keys:
        value = node.get(key)
        if isinstance(value, dict):
            value = value.get("start") or value.get("collectedDateTime")
        if isinstance(value, str) and len(value) >= 7 and value[4] == "-" and value[:4].isdigit():
            return value[:7]
    return None


def _add_codes(value: object, terms: list[str]) -> None:
    """Adds the terms of a Coding, a CodeableConcept, or an element that holds one as ``code`` or the like."""
    for concept in dicts(value):
        codings = concept.get("coding")
        if codings is None:
            if isinstance(concept.get("code"), str):
                codings = concept
            else:
                inner = concept.get("code") or concept.get("productOrService") or concept.get("vaccineCode")
                if inner is not None and inner is not value:
                    _add_codes(inner, terms)
                continue
        for coding in dicts(codings):
            code = coding.get("code")
            if isinstance(code, str):
                term = f"code:{coding.get('system', '')}|{code}"
                if len(term) <= TERM_CHARS_MAX and len(term.encode()) <= INDEX_TERM_BYTES_MAX:
                    terms.append(term)
        if len(terms) > 2 * TOKENS_PER_RECORD_MAX:
            return


def _add_contained_medication(node: Mapping[str, Any], terms: list[str]) -> None:
    reference = node["medicationReference"]
    name = reference.get("reference") if isinstance(reference, dict) else None
    for medication in dicts(node["contained"]):
        if isinstance(name, str) and name == f"#{medication.get('id')}":
            _add_codes(medication.get("code"), terms)

"""The invariants of FHIR R4 as a table: which object must satisfy which rule, joined with its closed codes.

An object is looked up by the key that holds it ("holder"; a resource's own holder is its type), which R4 uses
consistently enough to stand for its type. Rules carry the ids of the standard (``pat-1``); what R4 states in
prose only is named ``r4-…``. A predicate gets an object whose shape has been validated.
"""

import re
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from typing import Any, NamedTuple

from fastledger.gateway.fhir_codes import CODES, CODES_BY_TYPE

Node = dict[str, Any]
Predicate = Callable[[Node], bool]

UCUM = "http://unitsofmeasure.org"
_TERMINOLOGY = "http://terminology.hl7.org/CodeSystem/"
_CODING_KEYS = ("system", "version", "code", "display", "userSelected")
_OBSERVATION_VALUES = (
    "valueQuantity",
    "valueCodeableConcept",
    "valueString",
    "valueBoolean",
    "valueInteger",
    "valueRange",
    "valueRatio",
    "valueSampledData",
    "valueTime",
    "valueDateTime",
    "valuePeriod",
)

id_form = re.compile(r"[A-Za-z0-9\-.]{1,64}").fullmatch
absolute_form = re.compile(r"[A-Za-z][A-Za-z0-9+.\-]*:.+", re.DOTALL).fullmatch
uuid_form = re.compile(r"urn:uuid:[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}").fullmatch


class FhirRule(NamedTuple):
    """One rule: its id in the standard, what it asks, and whether an object breaks it."""

    id: str
    text: str
    broken: Predicate


# Ingredients of the rule table. An element given only by extension (``_key``) counts as given.


def has(node: Node, key: str) -> bool:
    """Whether the element is given, by value or by extension."""
    return key in node or "_" + key in node


def _needs(*keys: str) -> Predicate:
    return lambda node: not any(has(node, key) for key in keys)


def _at_most_one(*keys: str) -> Predicate:
    return lambda node: sum(has(node, key) for key in keys) > 1


def _exactly_one(*keys: str) -> Predicate:
    return lambda node: sum(has(node, key) for key in keys) != 1


def _implies(key: str, *others: str) -> Predicate:
    return lambda node: has(node, key) and not any(has(node, other) for other in others)


def _only_if(key: str, other: str, *values: str) -> Predicate:
    """Returns a predicate, true where ``key`` is given and ``other`` is a string outside ``values``."""
    allowed = frozenset(values)
    return lambda node: key in node and isinstance(node.get(other), str) and node[other] not in allowed


def concept_is(node: Node, key: str, system: str, *codes: str) -> bool:
    """Whether a CodeableConcept holds one of the codes of a system."""
    concept = node.get(key)
    codings = concept.get("coding", ()) if isinstance(concept, dict) else ()
    return any(coding.get("system") == system and coding.get("code") in codes for coding in dicts(codings))


def dicts(value: object) -> Iterator[Node]:
    """Yields the objects among an element's repetitions, or the element where it is one object."""
    if isinstance(value, dict):
        yield value
    elif isinstance(value, list):
        for item in value:
            if isinstance(item, dict):
                yield item


def number(value: object) -> float | None:
    """Returns the value where it is a number, None where it is not."""
    return value if isinstance(value, int | float) and not isinstance(value, bool) else None


# Dates.


def certainly_after(first: str, second: str) -> bool:
    """Whether a FHIR date or dateTime is after another, whatever their missing parts are.

    Unparsable values are never after anything: their form is another check's matter.
    """
    if len(first) <= 10 and len(second) <= 10:
        # Two dates are compared as far as both are given, as FHIRPath does.
        shared = min(len(first), len(second))
        return first[:shared] > second[:shared] and first[:4].isdigit() and second[:4].isdigit()
    try:
        earliest, latest = _instants(first)[0], _instants(second)[1]
    except (ValueError, OverflowError):
        return False
    return earliest > latest


def _instants(text: str) -> tuple[datetime, datetime]:
    """Returns the first and the last moment that a FHIR date or dateTime may mean.

    A date without a zone may lie up to 14 hours off UTC. Source: FHIR R4 datatypes, dateTime.
    """
    if len(text) > 10:
        moment = datetime.fromisoformat(text)
        if moment.tzinfo is None:
            raise ValueError("no zone")
        # A fraction may be cut to microseconds, and a second may be 60: allow one second.
        return moment, moment + timedelta(seconds=1)
    year, month, day = int(text[:4]), int(text[5:7] or 1), int(text[8:10] or 1)
    start = datetime(year, month, day, tzinfo=UTC)
    if len(text) == 10:
        end = start + timedelta(days=1)
    elif len(text) == 7:
        end = datetime(year + month // 12, month % 12 + 1, 1, tzinfo=UTC)
    else:
        end = datetime(year + 1, 1, 1, tzinfo=UTC)
    return start - timedelta(hours=14), end + timedelta(hours=14)


# Rules that need more than presence.


def _codings(node: Node) -> set[tuple[object, ...]]:
    """Returns the codings of an object's ``code``, each as a tuple of all its fields, for comparison."""
    code = node.get("code")
    codings = dicts(code.get("coding")) if isinstance(code, dict) else ()
    return {tuple(coding.get(key) for key in _CODING_KEYS) for coding in codings}


def _value_and_component_agree(node: Node) -> bool:
    if "component" not in node or not any(key in node for key in _OBSERVATION_VALUES):
        return False
    own = _codings(node)
    return any(not own.isdisjoint(_codings(component)) for component in dicts(node["component"]))


def _value_and_absence(node: Node) -> bool:
    return "dataAbsentReason" in node and any(has(node, key) for key in _OBSERVATION_VALUES)


def _abated_yet_active(node: Node) -> bool:
    given = any(key.startswith(("abatement", "_abatement")) for key in node)
    system = _TERMINOLOGY + "condition-clinical"
    return given and not concept_is(node, "clinicalStatus", system, "resolved", "remission", "inactive")


def _condition_in_error_with_status(node: Node) -> bool:
    system = _TERMINOLOGY + "condition-ver-status"
    return "clinicalStatus" in node and concept_is(node, "verificationStatus", system, "entered-in-error")


def _allergy_in_error(node: Node) -> bool:
    system = _TERMINOLOGY + "allergyintolerance-verification"
    return concept_is(node, "verificationStatus", system, "entered-in-error")


def _allergy_without_status(node: Node) -> bool:
    return "clinicalStatus" not in node and not _allergy_in_error(node)


def _allergy_in_error_with_status(node: Node) -> bool:
    return "clinicalStatus" in node and _allergy_in_error(node)


def _appointment_without_time(node: Node) -> bool:
    timed = has(node, "start") and has(node, "end")
    return not timed and node.get("status") not in ("proposed", "cancelled", "waitlist")


def _home_contact(node: Node) -> bool:
    return node.get("use") == "home"


def _range_reversed(node: Node) -> bool:
    low, high = node.get("low"), node.get("high")
    if not isinstance(low, dict) or not isinstance(high, dict):
        return False
    if low.get("unit") != high.get("unit") or low.get("code") != high.get("code"):
        return False
    low_value, high_value = number(low.get("value")), number(high.get("value"))
    return low_value is not None and high_value is not None and low_value > high_value


def _ratio_half(node: Node) -> bool:
    both = ("numerator" in node) == ("denominator" in node)
    return not both or ("numerator" not in node and "extension" not in node)


def _age_without_unit(node: Node) -> bool:
    value = number(node.get("value"))
    if value is None:
        return False
    return not has(node, "code") or node.get("system", UCUM) != UCUM or value <= 0


def _negative(key: str) -> Predicate:
    return lambda node: (number(node.get(key)) or 0) < 0


def _before(earlier: str, later: str) -> Predicate:
    """Returns a predicate, true where the date at ``later`` is certainly before the one at ``earlier``."""
    return lambda node: (
        isinstance(node.get(earlier), str)
        and isinstance(node.get(later), str)
        and certainly_after(node[earlier], node[later])
    )


def _extension_value(node: Node) -> bool:
    has_value = any(key.startswith(("value", "_value")) for key in node)
    return has_value == ("extension" in node)


def _group_and_display(node: Node) -> bool:
    kind = node.get("type")
    return (kind == "group" and "item" not in node) or (kind == "display" and "item" in node)


def _displayhas(*keys: str) -> Predicate:
    return lambda node: node.get("type") == "display" and any(has(node, key) for key in keys)


def _many_enable_when(node: Node) -> bool:
    conditions = node.get("enableWhen")
    return isinstance(conditions, list) and len(conditions) > 1 and not has(node, "enableBehavior")


def _exists_answer(node: Node) -> bool:
    if node.get("operator") != "exists":
        return False
    return any(key.startswith("answer") and key != "answerBoolean" for key in node)


def _probability(node: Node) -> bool:
    return (number(node.get("probabilityDecimal")) or 0) > 100


def _group_members(node: Node) -> bool:
    return "member" in node and node.get("actual") is False


def _relative_url(node: Node) -> bool:
    url = node.get("url")
    return isinstance(url, str) and not absolute_form(url)


def _malformed_uuid_url(node: Node) -> bool:
    url = node.get("url")
    return isinstance(url, str) and url.startswith("urn:uuid:") and not uuid_form(url)


# Holders, id, text, predicate. A holder "Type:key" stands for one resource type.
_ATTACHMENTS = (
    "attachment contentAttachment legallyBindingAttachment presentedForm sequenceAttachment sourceAttachment "
    "valueAttachment Patient:photo Person:photo Practitioner:photo RelatedPerson:photo Media:content"
)
_RANGES = (
    "abatementRange ageRange amountRange boundsRange deceasedRange detailRange doseRange onsetRange "
    "performedRange probabilityRange quantityRange rateRange timingRange valueRange whenRange"
)
_RATIOS = (
    "amountRatio concentration detailRatio maxDosePerPeriod quantityRatio rateRatio valueRatio "
    "Medication:amount ingredient:strength"
)
_CANONICALS = (
    "ActivityDefinition ChargeItemDefinition CodeSystem EffectEvidenceSynthesis EventDefinition Evidence "
    "EvidenceVariable Library Measure PlanDefinition Questionnaire ResearchDefinition "
    "ResearchElementDefinition RiskEvidenceSynthesis ValueSet"
)
_TABLE: tuple[tuple[str, str, str, Predicate], ...] = (
    ("extension modifierExtension", "ext-1", "has either a value or extensions", _extension_value),
    ("telecom valueContactPoint", "cpt-2", "a value needs a system", _implies("value", "system")),
    (_ATTACHMENTS, "att-1", "data needs a contentType", _implies("data", "contentType")),
    (_RANGES, "rng-2", "low is not above high", _range_reversed),
    (_RATIOS, "rat-1", "numerator and denominator come together", _ratio_half),
    (
        "abatementAge ageAge deceasedAge onsetAge performedAge timingAge valueAge",
        "age-1",
        "an age is positive, in a unit of UCUM",
        _age_without_unit,
    ),
    ("repeat", "tim-1", "duration needs durationUnit", _implies("duration", "durationUnit")),
    ("repeat", "tim-2", "period needs periodUnit", _implies("period", "periodUnit")),
    ("repeat", "tim-4", "duration is not negative", _negative("duration")),
    ("repeat", "tim-5", "period is not negative", _negative("period")),
    ("repeat", "tim-6", "periodMax needs period", _implies("periodMax", "period")),
    ("repeat", "tim-7", "durationMax needs duration", _implies("durationMax", "duration")),
    ("repeat", "tim-8", "countMax needs count", _implies("countMax", "count")),
    ("repeat", "tim-10", "timeOfDay and when exclude each other", _at_most_one("timeOfDay", "when")),
    ("Patient:contact", "pat-1", "has details", _needs("name", "telecom", "address", "organization")),
    ("Organization", "org-1", "has a name or an identifier", _needs("identifier", "name")),
    ("Organization:address", "org-2", "is never of use home", _home_contact),
    ("Organization:telecom", "org-3", "is never of use home", _home_contact),
    ("Observation", "obs-6", "dataAbsentReason excludes a value", _value_and_absence),
    ("Observation", "obs-7", "a component repeats the code beside a value", _value_and_component_agree),
    ("Observation:referenceRange", "obs-3", "has low, high or text", _needs("low", "high", "text")),
    ("Condition", "con-4", "an abated condition is not active", _abated_yet_active),
    ("Condition", "con-5", "entered-in-error excludes clinicalStatus", _condition_in_error_with_status),
    ("Condition:stage", "con-1", "has summary or assessment", _needs("summary", "assessment")),
    ("Condition:evidence", "con-2", "has code or detail", _needs("code", "detail")),
    ("AllergyIntolerance", "ait-1", "clinicalStatus is missing", _allergy_without_status),
    (
        "AllergyIntolerance",
        "ait-2",
        "entered-in-error excludes clinicalStatus",
        _allergy_in_error_with_status,
    ),
    ("Appointment", "app-3", "start and end are missing", _appointment_without_time),
    (
        "Appointment",
        "app-4",
        "only a cancelled appointment has a cancelation reason",
        _only_if("cancelationReason", "status", "noshow", "cancelled"),
    ),
    ("Appointment:participant", "app-1", "has type or actor", _needs("type", "actor")),
    ("AppointmentResponse", "apr-1", "has participantType or actor", _needs("participantType", "actor")),
    ("AuditEvent:entity", "sev-1", "name and query exclude each other", _at_most_one("name", "query")),
    ("CarePlan:activity", "cpl-3", "detail and reference exclude", _at_most_one("detail", "reference")),
    ("Composition:section", "cmp-1", "has text, entries or sections", _needs("text", "entry", "section")),
    ("Composition:section", "cmp-2", "emptyReason excludes entries", _at_most_one("emptyReason", "entry")),
    ("Consent", "ppc-1", "has policy or policyRule", _needs("policy", "policyRule")),
    (
        "FamilyMemberHistory",
        "fhs-2",
        "estimatedAge needs an age",
        _implies("estimatedAge", "ageAge", "ageRange", "ageString"),
    ),
    ("Group", "grp-1", "only an actual group has members", _group_members),
    ("Immunization:education", "imm-1", "lacks its content", _needs("documentType", "reference")),
    (
        "ImmunizationRecommendation:recommendation",
        "imr-1",
        "has vaccineCode or targetDisease",
        _needs("vaccineCode", "targetDisease"),
    ),
    ("List", "lst-1", "emptyReason excludes entries", _at_most_one("emptyReason", "entry")),
    (
        "MedicationAdministration:dosage",
        "mad-1",
        "has a dose or a rate",
        _needs("dose", "rateRatio", "rateQuantity"),
    ),
    (
        "MedicationDispense",
        "mdd-1",
        "is not handed over before it is prepared",
        _before("whenPrepared", "whenHandedOver"),
    ),
    ("Task", "inv-1", "is not modified before it is authored", _before("authoredOn", "lastModified")),
    ("ServiceRequest", "prr-1", "orderDetail needs a code", _implies("orderDetail", "code")),
    ("RiskAssessment:prediction", "ras-2", "a probability is at most 100", _probability),
    ("RequestGroup:action", "rqg-1", "has either resource or action", _exactly_one("resource", "action")),
    ("QuestionnaireResponse:item", "qrs-1", "answer and item exclude", _at_most_one("answer", "item")),
    ("Questionnaire:item", "que-1", "a group has items, a display has none", _group_and_display),
    ("Questionnaire:item", "que-3", "a display has no code", _displayhas("code")),
    ("Questionnaire:item", "que-4", "has one source", _at_most_one("answerOption", "answerValueSet")),
    ("Questionnaire:item", "que-6", "a display neither repeats", _displayhas("required", "repeats")),
    ("Questionnaire:item", "que-9", "a display has no readOnly", _displayhas("readOnly")),
    ("Questionnaire:item", "que-11", "options exclude initial", _at_most_one("answerOption", "initial")),
    ("Questionnaire:item", "que-12", "several enableWhen need enableBehavior", _many_enable_when),
    ("Questionnaire:enableWhen", "que-7", "exists asks for a Boolean answer", _exists_answer),
    ("ValueSet:include", "vsd-1", "has valueSet or system", _needs("valueSet", "system")),
    ("ValueSet:include", "vsd-3", "concept and filter exclude", _at_most_one("concept", "filter")),
    (_CANONICALS, "r4-canonical", "the url is absolute", _relative_url),
    (_CANONICALS, "r4-uuid", "a UUID is 32 lower-case digits", _malformed_uuid_url),
)

Checks = tuple[tuple[tuple[str, frozenset[str]], ...], tuple[FhirRule, ...]]


def _checks_by_holder() -> tuple[dict[str, Checks], dict[str, dict[str, Checks]]]:
    """Joins the tables of codes and of rules, for every type and for the types with rows of their own."""
    rules: dict[str, dict[str, list[FhirRule]]] = {"": {}}
    for holders, rule_id, text, broken in _TABLE:
        for holder in holders.split():
            resource_type, _, key = holder.rpartition(":")
            rules.setdefault(resource_type, {}).setdefault(key, []).append(FhirRule(rule_id, text, broken))
    general: dict[str, Checks] = {
        holder: (CODES.get(holder, ()), tuple(rules[""].get(holder, ()))) for holder in {*CODES, *rules[""]}
    }
    special: dict[str, dict[str, Checks]] = {}
    for resource_type in {*rules, *CODES_BY_TYPE} - {""}:
        own_rules, own_codes = rules.get(resource_type, {}), CODES_BY_TYPE.get(resource_type, {})
        table = special[resource_type] = dict(general)
        for holder in {*own_rules, *own_codes}:
            codes, shared = general.get(holder, ((), ()))
            table[holder] = (own_codes.get(holder, codes), (*shared, *own_rules.get(holder, ())))
    return general, special


CHECKS, CHECKS_BY_TYPE = _checks_by_holder()

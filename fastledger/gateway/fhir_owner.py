"""Whose record a resource is (SPEC-FHIR-11): one person's, an organisation's, or nobody's that can be told.

By FHIR R4's patient compartment, taken whole from its definition, and a few types that the compartment leaves out
although an element of theirs says whose they are. The element that says whom a resource is *about* decides where it is
given; others (author, performer, recipient) only where none is. Where that leaves no one person, or more than one,
the resource is nobody's and says why.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from fastledger.gateway.fhir_compartment import ABOUT, OF_NO_PATIENT, OTHERS
from fastledger.gateway.fhir_references import Place, Reason, Scope, Target
from fastledger.gateway.fhir_rules import dicts

Node = Mapping[str, Any]
_NOWHERE = Target(reason=Reason.UNRESOLVED)


@dataclass(frozen=True, slots=True)
class Owner:
    """Whose a resource is.

    ``person`` is set for a patient's own. Where it is None and ``reason`` too, the resource is of no patient and
    the organisation's. ``element`` is the path of the element that decided or failed, ``Observation.subject``.
    """

    person: str | None = field(default=None, repr=False)
    reason: Reason | None = None
    element: str = ""


def owner_of(resource: Node, place: Place, scope: Scope) -> Owner:
    """Whose a valid resource is, in the bundle that ``scope`` is of and at its ``place`` there."""
    resource_type = str(resource.get("resourceType"))
    if resource_type == "Patient":
        person = scope.name_of(place)
        return Owner(person, None if person else Reason.NAMES_NO_PATIENT, "Patient.id")
    if resource_type == "Parameters":
        return Owner(None, Reason.OPERATION_VALUES, "Parameters.parameter")
    if resource_type in OF_NO_PATIENT:
        return _of_no_patient(resource, resource_type, place, scope)
    about = ABOUT.get(resource_type, ())
    given = [path for path in about if path in resource]
    if given:
        return _about(resource, resource_type, given, place, scope)
    return _named_elsewhere(resource, resource_type, place, scope)


def _about(resource: Node, resource_type: str, paths: list[str], place: Place, scope: Scope) -> Owner:
    """By the elements that say whom the resource is about: all name one and the same Patient, or it is parked."""
    people: set[str] = set()
    element = f"{resource_type}.{paths[0]}"
    for path in paths:
        for reference in dicts(resource[path]):
            target = scope.resolve(reference, resource, place)
            if target.person is None:
                return Owner(None, target.reason or Reason.SUBJECT_IS_NO_PATIENT, f"{resource_type}.{path}")
            people.add(target.person)
    return _one_of(people, element)


def _named_elsewhere(resource: Node, resource_type: str, place: Place, scope: Scope) -> Owner:
    """By the further elements of the compartment, which may also name people who are no patients."""
    people: set[str] = set()
    element = resource_type
    for path in OTHERS.get(resource_type, ()):
        for reference in _at(resource, path):
            target = scope.resolve(reference, resource, place)
            if target.person is not None:
                people.add(target.person)
                element = f"{resource_type}.{path}"
            elif _may_be_a_patient(reference, target):
                return Owner(None, target.reason, f"{resource_type}.{path}")
    return _one_of(people, element)


def _may_be_a_patient(reference: Node, target: Target) -> bool:
    """Whether a reference that leads nowhere might be to a second patient: only a bare name or number is not."""
    if target.reason is None:
        return False
    return target.resource_type == "Patient" or (target.resource_type is None and "reference" in reference)


def _one_of(people: set[str], element: str) -> Owner:
    if len(people) == 1:
        return Owner(people.pop(), None, element)
    return Owner(None, Reason.SEVERAL_PATIENTS if people else Reason.NAMES_NO_PATIENT, element)


def _of_no_patient(resource: Node, resource_type: str, place: Place, scope: Scope) -> Owner:
    """The organisation's, unless something in it tells of a patient all the same (an extension, what it contains)."""
    for node in _nodes(resource):
        inner = node.get("resourceType")
        if inner is not None and node is not resource and inner not in OF_NO_PATIENT:
            return Owner(None, Reason.HOLDS_PATIENT_DATA, resource_type)
        if isinstance(node.get("reference"), str) or (node.get("type") == "Patient" and "identifier" in node):
            target = scope.resolve(node, resource, place)
            # An absolute URI that leads nowhere says nothing of anybody.
            if target.resource_type not in OF_NO_PATIENT and target != _NOWHERE:
                return Owner(None, Reason.HOLDS_PATIENT_DATA, resource_type)
    return Owner()


def _nodes(root: Node) -> Iterator[Node]:
    pending: list[object] = [root]
    while pending:
        item = pending.pop()
        if isinstance(item, dict):
            yield item
            pending.extend(value for value in item.values() if isinstance(value, dict | list))
        elif isinstance(item, list):
            pending.extend(value for value in item if isinstance(value, dict | list))


def _at(node: Node, path: str) -> Iterator[dict[str, Any]]:
    """The references at a path of element names, through every repetition on the way."""
    key, _, rest = path.partition(".")
    for item in dicts(node.get(key)):
        if rest:
            yield from _at(item, rest)
        else:
            yield item

"""References of FHIR R4 within their source and bundle (SPEC-FHIR-9, SPEC-FHIR-10).

A :class:`Scope` is made for one bundle of one source. It resolves a Reference as FHIR R4 says (references.html,
section 2.3.0; bundle.html, section 2.36.4.1; http.html on conditional references) to a :class:`Target`: what is
referred to, and, where it is one person, that person's name in the source. It never guesses: whatever does not name
exactly one thing has a ``reason`` instead. Placeholders (``urn:uuid:…``) mean something in their bundle alone.
"""

import hashlib
import re
from collections.abc import Callable, Iterator, Mapping
from enum import StrEnum
from typing import Any, NamedTuple
from urllib.parse import unquote

from fastledger.gateway.fhir_compartment import RESOURCE_TYPES
from fastledger.gateway.fhir_rules import dicts
from fastledger.gateway.fhir_source import Identifier, Source, normal_base

Node = Mapping[str, Any]
# Who a source's identifier (system, value) was matched to by the operator: the person's name, or None.
Matches = Callable[[Source, Identifier], str | None]


class Reason(StrEnum):
    """Why a resource is of no one person; the value is a stable code."""

    NAMES_NO_PATIENT = "names-no-patient"
    SUBJECT_IS_NO_PATIENT = "subject-is-no-patient"
    SEVERAL_PATIENTS = "several-patients"
    UNRESOLVED = "reference-unresolved"
    MALFORMED = "reference-malformed"
    CONDITIONAL_UNMATCHED = "conditional-unmatched"
    IDENTIFIER_UNMATCHED = "identifier-unmatched"
    CONTAINED_PATIENT = "contained-patient"
    AMBIGUOUS = "reference-ambiguous"
    CONTRADICTS = "reference-contradicts"
    HOLDS_PATIENT_DATA = "holds-patient-data"
    OPERATION_VALUES = "operation-values"


class Target(NamedTuple):
    """What a reference leads to.

    ``resource_type`` is None where it is not known; ``person`` is the name of a Patient in its source; ``reason``
    says why a reference leads to nothing that can be told.
    """

    resource_type: str | None = None
    person: str | None = None
    reason: Reason | None = None


class Place(NamedTuple):
    """A resource of a bundle as its entry presents it."""

    resource_type: str
    resource_id: str | None
    full_url: str | None
    identifiers: tuple[Identifier, ...] = ()


class Restful(NamedTuple):
    """The parts of a RESTful reference; ``base`` is None where it is relative."""

    base: str | None
    resource_type: str
    resource_id: str


_PROFILES = "http://hl7.org/fhir/StructureDefinition/"
_restful_form = re.compile(
    r"(?:(?P<base>https?://[^?#\s]*[^/?#\s])/)?(?P<type>[A-Za-z]+)/(?P<id>[A-Za-z0-9\-.]{1,64})"
    r"(?P<version>/_history/[A-Za-z0-9\-.]{1,64})?",
    re.IGNORECASE | re.ASCII,
).fullmatch
_conditional_form = re.compile(r"(?P<type>[A-Za-z]+)\?(?P<query>.+)", re.DOTALL).fullmatch
_absolute_form = re.compile(r"[A-Za-z][A-Za-z0-9+.\-]*:[^\s]+").fullmatch
id_form = re.compile(r"[A-Za-z0-9\-.]{1,64}").fullmatch


def restful(text: str) -> Restful | None:
    """The parts of ``[base/]Type/id[/_history/version]``, its base in normal form; None for anything else.

    The version is left out: every version of a Patient is the same person.
    """
    match = _restful_form(text)
    if match is None or match["type"] not in RESOURCE_TYPES:
        return None
    if match["base"] is None:
        return Restful(None, match["type"], match["id"])
    base = normal_base(match["base"])
    return None if base is None else Restful(base, match["type"], match["id"])


class Scope:
    """What the references of one bundle may lead to."""

    def __init__(
        self,
        source: Source,
        places: list[Place],
        digest: Callable[[], bytes],
        *,
        transaction: bool = False,
        matches: Matches = lambda source, identifier: None,
    ) -> None:
        """``places`` are the bundle's resources in order; ``digest`` gives the 32 bytes that tell the bundle from
        any other, and is called only where it has placeholders.

        ``transaction``: conditional references mean something. ``matches`` is the operator's list of matches.
        """
        self.source = source
        self._transaction = transaction
        self._matches = matches
        self._digest_of = digest
        self._digest = b""
        self._by_url: dict[str, Target] = {}
        self._by_identifier: dict[Identifier, set[str]] = {}
        counts: dict[str | None, int] = {}
        for url in map(place_url, places):
            counts[url] = counts.get(url, 0) + 1
        self._repeated = {url for url, count in counts.items() if count > 1}
        for place in places:
            self._add(place)

    def _add(self, place: Place) -> None:
        person = self.name_of(place) if place.resource_type == "Patient" else None
        unnamed = place.resource_type == "Patient" and person is None
        target = Target(place.resource_type, person, Reason.AMBIGUOUS if unnamed else None)
        url = place_url(place)
        if url is not None:
            known = self._by_url.setdefault(url, target)
            if known != target:
                self._by_url[url] = Target(reason=Reason.AMBIGUOUS)
        if person is not None:
            for identifier in place.identifiers:
                if identifier[0] in self.source.identifier_systems:
                    self._by_identifier.setdefault(identifier, set()).add(person)

    def name_of(self, place: Place) -> str | None:
        """What a resource of the bundle is called; None where its entry gives it no name of any kind.

        A RESTful full URL names it; else its id, in the source's own name space; else a placeholder, which is worth
        something in this bundle alone.
        """
        url = place.full_url
        parts = restful(url) if url is not None else None
        if parts is not None and parts.base is not None:
            return self.source.scoped(f"{parts.base}/{parts.resource_type}/{parts.resource_id}")
        if place.resource_id is not None:
            return self.source.scoped(f"{self.source.base}/{place.resource_type}/{place.resource_id}")
        if place_url(place) is None or url in self._repeated:
            return None
        if not self._digest:
            self._digest = self._digest_of()
        return f"{url} {self._digest.hex()[:32]} {self.source.base}"

    def resolve(self, reference: Node, holder: Node, place: Place) -> Target:
        """What ``reference`` leads to; ``holder`` is the outermost resource that holds it, ``place`` its entry."""
        text, stated = reference.get("reference"), reference.get("type")
        if isinstance(text, str):
            target = self._literal(text, holder, place)
        elif "identifier" in reference:
            target = self._logical(reference["identifier"])
        else:
            return Target(reason=Reason.UNRESOLVED)
        if isinstance(stated, str):
            stated = stated.removeprefix(_PROFILES)
            if target.resource_type is None:
                # Of what kind something is that cannot be found, the reference itself may say.
                return Target(stated, None, target.reason)
            if stated != target.resource_type:
                return Target(reason=Reason.CONTRADICTS)
        if isinstance(text, str) and target.person is not None and "identifier" in reference:
            said = self._logical(reference["identifier"])
            if said.person not in (None, target.person) or said.reason is Reason.AMBIGUOUS:
                return Target("Patient", None, Reason.CONTRADICTS)
        return target

    def _literal(self, text: str, holder: Node, place: Place) -> Target:
        if text.startswith("#"):
            return self._contained(text[1:], holder, place)
        parts = restful(text)
        if parts is not None:
            base = parts.base or self._root(place)
            url = f"{base}/{parts.resource_type}/{parts.resource_id}"
            if url in self._by_url:
                return self._by_url[url]
            person = self.source.scoped(url) if parts.resource_type == "Patient" else None
            return Target(parts.resource_type, person)
        conditional = _conditional_form(text)
        if conditional is not None and conditional["type"] in RESOURCE_TYPES:
            return self._conditional(conditional["type"], conditional["query"])
        if _absolute_form(text) is None:
            return Target(reason=Reason.MALFORMED)
        return self._by_url.get(text, Target(reason=Reason.UNRESOLVED))

    def _root(self, place: Place) -> str:
        """The base that relative references of an entry stand under: its own full URL's, else the source's."""
        parts = restful(place.full_url) if place.full_url is not None else None
        return self.source.base if parts is None or parts.base is None else parts.base

    def _contained(self, name: str, holder: Node, place: Place) -> Target:
        if not name:
            person = self.name_of(place) if place.resource_type == "Patient" else None
            return Target(place.resource_type, person, None if person else Reason.UNRESOLVED)
        found = [item for item in dicts(holder.get("contained")) if item.get("id") == name]
        if len(found) != 1:
            return Target(reason=Reason.AMBIGUOUS if found else Reason.UNRESOLVED)
        (inner,) = found
        resource_type = inner.get("resourceType")
        if resource_type != "Patient":
            return Target(resource_type if isinstance(resource_type, str) else None)
        return self._by_identifiers(identifiers_of(inner), Target("Patient", None, Reason.CONTAINED_PATIENT))

    def _conditional(self, resource_type: str, query: str) -> Target:
        if resource_type != "Patient":
            return Target(resource_type)
        unmatched = Target("Patient", None, Reason.CONDITIONAL_UNMATCHED)
        name, _, value = query.partition("=")
        system, bar, number = unquote(value, errors="replace").partition("|")
        # One identifier, exactly: commas mean "or", ampersands further conditions, a backslash an escape.
        if not self._transaction or name != "identifier" or not (bar and system and number):
            return unmatched
        if any(mark in value for mark in ",&\\#") or any(mark in number for mark in ",|\\"):
            return unmatched
        return self._by_identifiers([(system, number)], unmatched)

    def _logical(self, identifier: Any) -> Target:
        return self._by_identifiers(
            identifiers_of({"identifier": identifier}), Target(reason=Reason.IDENTIFIER_UNMATCHED)
        )

    def _by_identifiers(self, identifiers: list[Identifier], unmatched: Target) -> Target:
        """The one person whom all identifiers that are known at all belong to; ``unmatched`` where none is known."""
        people: set[str] = set()
        for identifier in identifiers:
            if identifier[0] in self.source.identifier_systems:
                people |= self._by_identifier.get(identifier, set())
            matched = self._matches(self.source, identifier)
            if matched is not None:
                people.add(matched)
        if len(people) == 1:
            return Target("Patient", people.pop())
        return Target("Patient", None, Reason.AMBIGUOUS) if people else unmatched


def place_url(place: Place) -> str | None:
    """An entry's full URL as references are compared with it; None for one that nothing can refer to."""
    url = place.full_url
    if url is None:
        return None
    parts = restful(url)
    if parts is not None:
        return f"{parts.base}/{parts.resource_type}/{parts.resource_id}" if parts.base is not None else None
    return url if _absolute_form(url) else None


def entry_fault(place: Place, method: str, request_url: str) -> tuple[str, str] | None:
    """What contradicts itself in an entry, as (element, problem); None where nothing does.

    The full URL is that of this resource and of no version (bundle.html, section 2.36.4), and what is put to
    ``Patient/7`` is Patient 7 (http.html, update).
    """
    parts = restful(place.full_url) if place.full_url is not None else None
    if place.full_url is not None and parts is not None and parts.base is not None:
        if "/_history/" in place.full_url:
            return "fullUrl", "is the URL of a version"
        if parts.resource_type != place.resource_type or place.resource_id not in (None, parts.resource_id):
            return "fullUrl", "names another resource than the entry holds"
    put = restful(request_url) if method == "PUT" else None
    if put is not None and (put.resource_type, put.resource_id) != (place.resource_type, place.resource_id):
        return "request.url", "names another resource than the entry holds"
    return None


def identifiers_of(node: Node) -> list[Identifier]:
    """The identifiers of a resource that have both a system and a value."""
    found = []
    for item in dicts(node.get("identifier")):
        system, value = item.get("system"), item.get("value")
        if isinstance(system, str) and isinstance(value, str) and system and value:
            found.append((system, value))
    return found


def bundle_digest(parts: Iterator[tuple[str | None, bytes]]) -> bytes:
    """SHA-256 (32 bytes) over the full URLs and texts of a bundle's resources, in order."""
    digest = hashlib.sha256(b"fastledger/bundle/v1")
    for url, raw in parts:
        name = b"" if url is None else url.encode("utf-8", "surrogatepass")
        digest.update(len(name).to_bytes(8, "big") + name + len(raw).to_bytes(8, "big"))
        digest.update(raw)
    return digest.digest()

"""Rules of FHIR R4 that go beyond the shape of a resource: invariants, closed codes, references, ids.

A check walks the decoded resource once, without building paths: every object is looked up by the key that
holds it in the tables of ``fhir_rules``. Only an object that breaks a rule is located, by identity, when the
problem is written down. Problems never quote a value.

Left to profiles and terminology servers: invariants of the resources that define the standard itself,
warnings, and whether a code exists in an external code system.
"""

import re
from collections.abc import Callable, Iterator, Mapping
from datetime import date
from typing import NamedTuple

from fastledger.gateway.fhir_codes import DATE_KEYS, REQUIRED_CONCEPTS
from fastledger.gateway.fhir_narrative import is_inert_xhtml
from fastledger.gateway.fhir_primitives import (
    check_base64,
    check_data,
    check_strings,
    is_impossible_date,
    may_hold_base64,
    may_hold_controls,
)
from fastledger.gateway.fhir_rules import (
    CHECKS,
    CHECKS_BY_TYPE,
    Checks,
    Node,
    absolute_form,
    certainly_after,
    concept_is,
    dicts,
    has,
    id_form,
    number,
    uuid_form,
)
from fastledger.gateway.lifting import Content
from fastledger.limits import ISSUES_PER_RESOURCE_MAX, JSON_DEPTH_MAX

Issue = tuple[str, str]
_NONE_LIFTED: Mapping[str, Content] = {}

_RESOURCE_HOLDERS = frozenset(("contained", "resource", "outcome"))
_CODING_KEYS = frozenset(("system", "version", "code", "display", "userSelected"))
_DATES = DATE_KEYS | {"start", "end", "event", "lockedDate", "when"}

_date_form = re.compile(r"(\d{4})-(\d{2})-(\d{2})(T.*)?", re.DOTALL).fullmatch
# Days that some or all months lack, and the escape that could hide one: where the text has none of them, no
# date has to be looked at.
_SUSPECT_DAYS = (b"-02-29", b"-02-3", b"-04-31", b"-06-31", b"-09-31", b"-11-31", b"\\u")


class _Report:
    """Collects problems up to the bound; they are located in the tree, all at once, at the end."""

    def __init__(self, root: Node) -> None:
        self._root = root
        self._found: list[tuple[Node, str, str]] = []

    @property
    def full(self) -> bool:
        return len(self._found) >= ISSUES_PER_RESOURCE_MAX

    def add(self, node: Node, problem: str, key: str = "") -> None:
        if not self.full:
            self._found.append((node, problem, key))

    def issues(self) -> list[Issue]:
        if not self._found:
            return []
        paths = paths_of(self._root, {id(node) for node, _, _ in self._found})
        return [
            (f"{paths[id(node)]}.{key}" if key else paths[id(node)], problem)
            for node, problem, key in self._found
        ]


class _Scope(NamedTuple):
    """One resource to check, and the objects in it that refer to contained resources (``#id``).

    A resource and those that it contains share one list of these objects.
    """

    node: Node
    depth: int
    contained: bool
    fragments: list[Node]


def check(resource: Node, raw: bytes, lifted: Mapping[str, Content] = _NONE_LIFTED) -> list[Issue]:
    """Returns every rule that a resource breaks, as (path, problem); ``raw`` is the text it was decoded from.

    ``lifted`` says what the base64 values are that were lifted out of that text.

    Expects an object with a ``resourceType`` whose shape is valid; contained and bundled resources are checked as
    well. At most ``ISSUES_PER_RESOURCE_MAX`` are returned.
    """
    report = _Report(resource)
    suspect = _is_suspect(raw)
    if b"fhir_comments" in raw:
        _check_comments(resource, report)
    checks_strings, checks_base64 = bool(lifted) or may_hold_controls(raw), may_hold_base64(raw)
    scopes = [_Scope(resource, 1, False, [])]
    for scope in scopes:
        _check_scope(scope, scopes, suspect, lifted, report)
        if checks_strings or checks_base64:
            _check_primitives(scope.node, checks_strings, checks_base64, lifted, report)
        if report.full:
            return report.issues()
    for scope in scopes:
        if not scope.contained and (scope.fragments or "contained" in scope.node):
            _check_contained(scope, report)
    return report.issues()


def _check_primitives(
    root: Node, strings: bool, base64: bool, lifted: Mapping[str, Content], report: _Report
) -> None:
    """Checks the values of one resource; those inside it are checked for themselves."""
    resource_type = str(root["resourceType"])
    for node in _objects(root, into_resources=False):
        if strings:
            check_strings(node, lifted, report.add)
        if base64:
            check_base64(node, resource_type, report.add)


def _is_suspect(raw: bytes) -> bool:
    # The same for years and zones that do not exist.
    if b'"0000' in raw or (b"14:" in raw and (b"+14:" in raw or b"-14:" in raw)):
        return True
    for day in _SUSPECT_DAYS:  # noqa: SIM110 - a generator would cost more than the searches
        if day in raw:
            return True
    return False


def _check_comments(resource: Node, report: _Report) -> None:
    """Refuses ``fhir_comments``, an element of earlier versions that the shape check passes over unvalidated."""
    for node in _objects(resource):
        if "fhir_comments" in node:
            report.add(node, "holds an unknown element")


def _check_scope(
    scope: _Scope, scopes: list[_Scope], suspect: bool, lifted: Mapping[str, Content], report: _Report
) -> None:
    """Checks one resource and queues the resources inside it."""
    root = scope.node
    resource_type = root["resourceType"]
    table = CHECKS_BY_TYPE.get(resource_type, CHECKS)
    element_ids = 0
    nodes: list[tuple[str, Node, int]] = [(resource_type, root, scope.depth)]
    for holder, node, level in nodes:
        if not node:
            report.add(node, "breaks ele-1: an object is never empty")
            continue
        if holder == "coding" and _CODING_KEYS.issuperset(node):
            continue  # a third of all objects, and no rule is for them
        if holder in _RESOURCE_HOLDERS and "resourceType" in node:
            inside = holder == "contained"
            scopes.append(_Scope(node, level, inside, scope.fragments if inside else []))
            continue
        if level > JSON_DEPTH_MAX:
            report.add(root, "is nested too deeply")
            break
        checks = table.get(holder)
        if checks is not None:
            _apply(checks, node, report)
        for key, value in node.items():
            kind = value.__class__
            if kind is dict:
                nodes.append((key, value, level + 1))
            elif kind is list:
                nodes.extend([(key, item, level + 2) for item in value if item.__class__ is dict])
        if "reference" in node:
            reference = node["reference"]
            if reference.__class__ is str and reference[:1] == "#":
                scope.fragments.append(node)
        if "start" in node and "end" in node and node is not root and _period_reversed(node):
            report.add(node, "breaks per-1: the end is before the start")
        if "value" in node and "code" in node and "system" not in node and _quantity_without_system(node):
            report.add(node, "breaks qty-3: a coded unit needs its system")
        if "data" in node:
            check_data(node, lifted, report.add)
        if "id" in node:
            element_ids += 1
        if suspect:
            _check_dates(node, report)
    if scope.contained and "contained" in root:
        report.add(root, "breaks dom-2: a contained resource contains no other")
    _check_resource(root, element_ids, report)


def _apply(checks: Checks, node: Node, report: _Report) -> None:
    codes, rules = checks
    for key, allowed in codes:
        value = node.get(key)
        if value is None:
            continue
        if value.__class__ is str:
            if value not in allowed:
                report.add(node, "is not a code of the required value set", key)
        elif value.__class__ is list and not allowed.issuperset(filter(None, value)):
            report.add(node, "is not a code of the required value set", key)
    for rule in rules:
        if rule.broken(node):
            report.add(node, f"breaks {rule.id}: {rule.text}")


def _quantity_without_system(node: Node) -> bool:
    return number(node["value"]) is not None and isinstance(node["code"], str) and "_system" not in node


def _period_reversed(node: Node) -> bool:
    start, end = node["start"], node["end"]
    if start.__class__ is not str or end.__class__ is not str:
        return False
    # Text of one zone, or without any, sorts by time.
    comparable = start[-6:] == end[-6:] or len(start) == len(end) == 10
    return not (comparable and start <= end) and certainly_after(start, end)


def _check_resource(root: Node, element_ids: int, report: _Report) -> None:
    """Checks the rules on a resource as a whole: its id, narrative, element ids, bundle."""
    resource_id = root.get("id")
    if resource_id is not None and not (isinstance(resource_id, str) and id_form(resource_id)):
        report.add(root, "breaks r4-id: 1 to 64 letters, digits, hyphens and dots", "id")
    text = root.get("text")
    if text.__class__ is dict and isinstance(text.get("div"), str) and not is_inert_xhtml(text["div"]):
        report.add(text, "breaks txt-1: a narrative is well-formed basic XHTML in one div", "div")
    if element_ids > 1 + (resource_id is not None):
        _check_element_ids(root, report)
    for key, system, codes in REQUIRED_CONCEPTS.get(root["resourceType"], ()):
        if key in root and not concept_is(root, key, system, *codes):
            report.add(root, "is not a code of the required value set", key)
    if root["resourceType"] == "Bundle":
        check_bundle(root, report.add)


def _check_contained(scope: _Scope, report: _Report) -> None:
    """Checks dom-3 to dom-5 of a container, and ref-1 of its fragment references."""
    inner = list(dicts(scope.node.get("contained")))
    ids = {resource.get("id") for resource in inner}
    used: set[str] = set()
    names: set[str] | None = None
    for node in scope.fragments:
        name = node["reference"][1:]
        used.add(name)
        if name and name not in ids:
            report.add(node, "breaks ref-1: no contained resource has this id", "reference")
    for resource in inner:
        if report.full:
            return
        meta = resource.get("meta")
        if isinstance(meta, dict) and ("versionId" in meta or "lastUpdated" in meta):
            report.add(resource, "breaks dom-4: a contained resource has no version")
        if isinstance(meta, dict) and "security" in meta:
            report.add(resource, "breaks dom-5: a contained resource has no security label")
        if resource.get("id") in used:
            continue
        # Canonicals and URIs may name a contained resource too, and one may name its container ("#") itself.
        if names is None:
            names = {text[1:] for text in _strings(scope.node) if text[:1] == "#"}
        if resource.get("id") not in names and "#" not in _strings(resource):
            report.add(resource, "breaks dom-3: nothing refers to this contained resource")


def _check_element_ids(scope: Node, report: _Report) -> None:
    """Checks that element ids are unique within a resource; those of resources inside it count for themselves.

    The two views of a StructureDefinition name the same elements by design: each counts for itself.
    """
    views = [scope[key] for key in ("snapshot", "differential") if isinstance(scope.get(key), dict)]
    if scope["resourceType"] != "StructureDefinition" or not views:
        _check_ids_of(scope, scope, report)
        return
    rest = {key: value for key, value in scope.items() if key not in ("snapshot", "differential")}
    for part in (rest, *views):
        _check_ids_of(part, scope, report)


def _check_ids_of(part: Node, scope: Node, report: _Report) -> None:
    seen: set[str] = set()
    for node in _objects(part, into_resources=False):
        name = node.get("id")
        if node is scope or (node is part and "resourceType" in part) or not isinstance(name, str):
            continue
        if name in seen:
            report.add(node, "breaks r4-element-id: the id stands twice in the resource", "id")
        seen.add(name)


def check_bundle(bundle: Node, add: Callable[..., None]) -> None:
    """Checks bdl-1 to bdl-12, and R4's prose on links, full URLs and search results; ``add`` takes each problem."""
    kind = bundle.get("type")
    if "total" in bundle and kind not in ("searchset", "history"):
        add(bundle, "breaks bdl-1: only a searchset or a history has a total")
    relations = [link.get("relation") for link in dicts(bundle.get("link"))]
    if len({relation for relation in relations if isinstance(relation, str)}) < len(relations):
        add(bundle, "breaks r4-link: a relation stands twice", "link")
    identifier = bundle.get("identifier")
    if kind == "document":
        if not (isinstance(identifier, dict) and has(identifier, "system") and has(identifier, "value")):
            add(bundle, "breaks bdl-9: a document has an identifier with system and value")
        if "timestamp" not in bundle:
            add(bundle, "breaks bdl-10: a document has a timestamp")
    entries = list(dicts(bundle.get("entry")))
    first = entries[0].get("resource") if entries else None
    first_type = first.get("resourceType") if isinstance(first, dict) else None
    if kind == "document" and first_type != "Composition":
        add(bundle, "breaks bdl-11: a document starts with a Composition")
    if kind == "message" and first_type != "MessageHeader":
        add(bundle, "breaks bdl-12: a message starts with a MessageHeader")
    urls: set[tuple[str, str]] = set()
    for entry in entries:
        _check_entry(entry, kind, urls, add)


def _is_nameless_match(resource: Node) -> bool:
    return "id" not in resource and resource.get("resourceType") != "OperationOutcome"


def _check_entry(entry: Node, kind: object, urls: set[tuple[str, str]], add: Callable[..., None]) -> None:
    resource = entry.get("resource")
    if "search" in entry and kind != "searchset":
        add(entry, "breaks bdl-2: only a searchset has search details")
    if ("request" in entry) != (kind in ("batch", "transaction", "history")):
        add(entry, "breaks bdl-3: requests belong to batches, transactions and histories, all entries")
    if ("response" in entry) != (kind in ("batch-response", "transaction-response", "history")):
        add(entry, "breaks bdl-4: responses belong to responses and histories, all entries")
    if not (resource or "request" in entry or "response" in entry):
        add(entry, "breaks bdl-5: an entry has a resource, a request or a response")
    if kind == "searchset" and isinstance(resource, dict) and _is_nameless_match(resource):
        add(resource, "breaks r4-search-id: a search result has an id")
    url = entry.get("fullUrl")
    if not isinstance(url, str):
        return
    if "/_history/" in url:
        add(entry, "breaks bdl-8: a full URL is not of a version", "fullUrl")
    if not absolute_form(url):
        add(entry, "breaks r4-full-url: it is absolute", "fullUrl")
    elif url.startswith("urn:uuid:") and not uuid_form(url):
        add(entry, "breaks r4-uuid: a UUID is 32 lower-case digits", "fullUrl")
    meta = resource.get("meta") if isinstance(resource, dict) else None
    version = meta.get("versionId") if isinstance(meta, dict) else None
    name = (url, version if isinstance(version, str) else "")
    if kind != "history" and name in urls:
        add(entry, "breaks bdl-7: the full URL stands twice", "fullUrl")
    urls.add(name)


# Dates.


def _check_dates(node: Node, report: _Report) -> None:
    """Refuses a day that its month does not have, and a year or zone that R4's regular expressions do not know."""
    for key, value in node.items():
        if key in _DATES and isinstance(value, str):
            match = _date_form(value)
            if is_impossible_date(value):
                report.add(node, "is a date that does not exist", key)
            elif match and not _is_day(*map(int, match.groups()[:3])):
                report.add(node, "is a day that does not exist", key)


def _is_day(year: int, month: int, day: int) -> bool:
    try:
        date(year, month, day)
    except ValueError:
        return False
    return True


# The tree.


def _objects(root: Node, *, into_resources: bool = True) -> Iterator[Node]:
    """Yields every object of a tree in the order of the text, parents first."""
    pending: list[object] = [root]
    while pending:
        item = pending.pop()
        if isinstance(item, dict):
            if item is not root and not into_resources and "resourceType" in item:
                continue
            yield item
            pending.extend(reversed([value for value in item.values() if isinstance(value, dict | list)]))
        elif isinstance(item, list):
            pending.extend(reversed([value for value in item if isinstance(value, dict | list)]))


def _strings(root: Node) -> Iterator[str]:
    for node in _objects(root):
        for value in node.values():
            if isinstance(value, str):
                yield value
            elif isinstance(value, list):
                yield from (item for item in value if isinstance(item, str))


def paths_of(root: Node, wanted: set[int]) -> dict[int, str]:
    """Returns the FHIR paths (``Patient.contact[0]``) of those objects of a tree whose ``id()`` is in ``wanted``."""
    paths: dict[int, str] = {}
    pending: list[tuple[str, object]] = [(str(root["resourceType"]), root)]
    while pending and len(paths) < len(wanted):
        path, item = pending.pop()
        if id(item) in wanted:
            paths[id(item)] = path
        if isinstance(item, dict):
            for key, value in item.items():
                if isinstance(value, dict | list):
                    pending.append((f"{path}.{key}", value))
        elif isinstance(item, list):
            for index, value in enumerate(item):
                if isinstance(value, dict | list):
                    pending.append((f"{path}[{index}]", value))
    return paths

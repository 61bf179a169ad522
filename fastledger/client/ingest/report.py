"""What an ingest tells: its counts, what it did not take and why, and where each resource stands (SPEC-ING-6)."""

from collections.abc import Callable
from dataclasses import dataclass, field

from fastledger.errors import Code, FhirError
from fastledger.gateway.fhir_owner import Owner
from fastledger.gateway.source_faults import SourceError
from fastledger.gateway.sources import SourceRequest, SourceResource

REFUSALS_KEPT = 20
INVALID = "not-valid"
ERASED = "erased"
MOVED = "moved"
DELETION = "deletion-not-applied"
REQUEST = "request-without-resource"

_PROBLEMS = {
    "names-no-patient": "names no patient whose record it could be",
    "subject-is-no-patient": "is about something that is not known to be a patient",
    "several-patients": "names several patients; whose record it is cannot be told",
    "reference-unresolved": "refers to what is not in the bundle and has no id",
    "reference-malformed": "a reference of no form that FHIR knows",
    "conditional-unmatched": "a search for a patient whom no match or identifier of the bundle tells",
    "identifier-unmatched": "an identifier that is matched to nobody",
    "contained-patient": "a patient known by its content alone",
    "reference-ambiguous": "a reference that leads to several things",
    "reference-contradicts": "a reference that contradicts itself",
    "holds-patient-data": "of a type that is of no patient, but tells of one",
    "operation-values": "parameters of an operation, whose resources were read as well",
    ERASED: "its record was erased, and stays so",
    MOVED: "its earlier record stands in another folder, where its owner may erase it",
    DELETION: "a source cannot have records erased; their owner can",
    REQUEST: "asks for something and brings no resource",
}


@dataclass(frozen=True, slots=True)
class Remark:
    """One line of the report file: what was not taken as it came, and why.

    ``code`` is stable. ``element`` is the path of the element concerned, of FHIR's own names. Nothing else of the
    source is in it but the resource's type and id: the report is for the operator, who has the source.
    """

    code: str
    origin: str
    resource_type: str = ""
    resource_id: str = field(default="", repr=False)
    element: str = ""
    problem: str = ""


@dataclass(frozen=True, slots=True)
class Kept:
    """Where a committed resource stands, for who wants to find it again.

    ``patient`` is the person's name in the source, None for what is the organisation's own or parked.
    """

    patient: str | None = field(repr=False)
    category: str
    record: bytes
    folder: bytes
    terms: tuple[str, ...] = field(repr=False)
    resource_type: str = ""
    resource_id: str = field(default="", repr=False)
    version: int = 1
    origin: str = ""


@dataclass(slots=True)
class IngestReport:
    """What an ingest did.

    Every resource of ``resources`` is one of: ``committed`` (its record, or a new version of it, is durable;
    ``amended`` of these are versions, ``moved`` went to another folder than before), ``parked`` (durable, in the
    organisation's own folder for what is nobody's), ``unchanged``, ``erased`` before, ``refused`` (not valid) or
    counted in ``failures``. What could not be read as a resource is ``unreadable``; ``deletions`` and ``requests``
    are entries that bring no resource. ``companions``, ``links`` and ``other_files`` were passed over.

    ``refusals`` hold (origin, path, problem) of the first that were refused, unreadable or parked, without values;
    ``on_remark`` hears of all.
    """

    bundles: int = 0
    patients: int = 0
    practitioners: int = 0
    resources: int = 0
    resource_bytes: int = 0
    refused: int = 0
    unreadable: int = 0
    committed: int = 0
    amended: int = 0
    moved: int = 0
    parked: int = 0
    unchanged: int = 0
    erased: int = 0
    deletions: int = 0
    requests: int = 0
    companions: int = 0
    links: int = 0
    other_files: int = 0
    transactions: int = 0
    refusals: list[tuple[str, str, str]] = field(default_factory=list)
    failures: dict[str, int] = field(default_factory=dict)

    @property
    def is_clean(self) -> bool:
        """Whether everything that the source holds was taken as it came."""
        return not (self.refused or self.unreadable or self.parked or self.failures)


class Telling:
    """Counts into a report and tells each remark once."""

    def __init__(self, report: IngestReport, on_remark: Callable[[Remark], None] | None) -> None:
        self.report = report
        self._on_remark = on_remark

    def refused(self, resource: SourceResource, error: FhirError, code: str = INVALID) -> None:
        """A resource that is not valid, or not fit to be a record."""
        self.report.refused += 1
        path, problem = error.issues[0] if error.issues else ("", error.args[0])
        self._keep(resource.origin, path, problem)
        self._tell(code, resource, path, problem)

    def misread(self, error: FhirError) -> None:
        """A source, or an entry of one, that could not be read; the message begins with its origin."""
        self.report.unreadable += 1
        origin, _, problem = error.args[0].partition(": ")
        self._keep(origin, "", problem)
        code, element = (error.fault, error.element) if isinstance(error, SourceError) else (INVALID, "")
        self._send(Remark(str(code), origin, element=element, problem=problem))

    def asked(self, request: SourceRequest, resource_type: str, resource_id: str) -> None:
        """An entry that brings no resource."""
        if request.method == "DELETE":
            self.report.deletions += 1
            code = DELETION
        else:
            self.report.requests += 1
            code = REQUEST
        self._send(Remark(code, request.origin, resource_type, resource_id, "request", _PROBLEMS[code]))

    def parked(self, resource: SourceResource, owner: Owner) -> None:
        """A resource that is nobody's; it is counted where it is durable."""
        if owner.reason is not None:
            problem = _PROBLEMS[owner.reason]
            self._keep(resource.origin, owner.element, problem)
            self._tell(str(owner.reason), resource, owner.element, problem)

    def noted(self, code: str, resource: SourceResource) -> None:
        """A resource that is erased or moved."""
        self._tell(code, resource, "", _PROBLEMS[code])

    def failed(self, code: Code, resource: SourceResource | None) -> None:
        """A transaction that did not become durable."""
        self.report.failures[code.slug] = self.report.failures.get(code.slug, 0) + 1
        if resource is not None:
            self._tell(code.slug, resource, "", code.text)

    def _tell(self, code: str, resource: SourceResource, element: str, problem: str) -> None:
        name = resource.resource_id or ""
        self._send(Remark(code, resource.origin, resource.resource_type, name, element, problem))

    def _send(self, remark: Remark) -> None:
        if self._on_remark is not None:
            self._on_remark(remark)

    def _keep(self, origin: str, path: str, problem: str) -> None:
        if len(self.report.refusals) < REFUSALS_KEPT:
            self.report.refusals.append((origin, path, problem))

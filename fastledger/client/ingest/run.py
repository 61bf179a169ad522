"""From FHIR sources to durable records: validate, tell whose it is, seal, sign, submit (SPEC-ING-1..7).

Every resource goes into a folder of the one person whose it is, by category; into the organisation's directory where
its type is known to be of no patient; and else, with the reason, into the organisation's folder for what is nobody's.
The same resource again adds nothing and a changed one amends its record, also after a crash at any point.
"""

from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import NamedTuple

from fastledger.client.api import LedgerApi
from fastledger.client.ingest.custodian import DIRECTORY, PARKED, Custodian
from fastledger.client.ingest.report import (
    ERASED,
    MOVED,
    IngestReport,
    Kept,
    Remark,
    Telling,
)
from fastledger.client.ingest.resource_map import Plan, ResourceMap
from fastledger.crypto.folders import FolderKey
from fastledger.errors import AccessRefused, FhirError, InputError, NotFoundError
from fastledger.gateway.fhir import ResourceInfo, Validated, describe, validate_each
from fastledger.gateway.fhir_owner import Owner, owner_of
from fastledger.gateway.fhir_places import is_placeholder, places_of, practitioner_of
from fastledger.gateway.fhir_references import Place, Scope, entry_fault, restful
from fastledger.gateway.fhir_source import Source
from fastledger.gateway.source_faults import Fault
from fastledger.gateway.sources import SourceBundle, SourceResource
from fastledger.limits import TOKENS_PER_RECORD_MAX
from fastledger.model.outcome import Outcome
from fastledger.model.transaction import Transaction
from fastledger.stage_times import StageTimes
from fastledger.subjects.consent import Purpose
from fastledger.subjects.record import RECORD_EXISTS, RECORDS
from fastledger.wallet.wallet import Wallet

BATCH_RECORDS = 1_000
BATCH_BLOB_BYTES = 64 * 1024 * 1024
_LEFTOVERS_AT_ONCE = 1_000


class _Judged(NamedTuple):
    """A valid resource, whose it is, and its tags in the map; ``person`` is the name that its owner is kept under."""

    resource: SourceResource
    resource_id: str
    info: ResourceInfo
    owner: Owner
    person: str | None
    key: bytes
    parked_key: bytes
    whole: bytes
    owned: bytes


class _Sealing(NamedTuple):
    """A resource on its way to a record; ``is_moved`` where it had one in another folder."""

    item: _Judged
    plan: Plan
    kept: Kept
    is_moved: bool


@dataclass(slots=True)
class _Pending:
    """Transactions and envelopes that wait for the next batch, with what each record is."""

    transactions: list[Transaction] = field(default_factory=list)
    blobs: list[bytes] = field(default_factory=list)
    blob_bytes: int = 0
    items: dict[bytes, _Sealing] = field(default_factory=dict)
    keys: set[bytes] = field(default_factory=set)


class Ingest:
    """Runs one source through one custodian into the ledger, a bounded batch at a time."""

    def __init__(
        self,
        ledger: LedgerApi,
        custodian: Custodian,
        *,
        source: Source,
        resources: ResourceMap | None = None,
        times: StageTimes | None = None,
        on_kept: Callable[[Kept], None] | None = None,
        on_remark: Callable[[Remark], None] | None = None,
        before_submit: Callable[[], None] | None = None,
        report: IngestReport | None = None,
    ) -> None:
        """``source`` is whose ids these are; ``resources`` the custodian's map (in memory alone where it is absent).

        ``on_kept`` hears of every record once it is durable, ``on_remark`` of everything that was not taken as it
        came. ``before_submit`` is the moment to save keys: a record whose key is lost can never be read (SPEC-ING-3).
        """
        self._ledger = ledger
        self._custodian = custodian
        self._source = source
        self._map = (
            resources if resources is not None else ResourceMap(None, custodian.map_secret, ledger.chain_id)
        )
        self._times = times or StageTimes()
        self._on_kept = on_kept
        self._before_submit = before_submit
        self._pending = _Pending()
        self.report = report or IngestReport()
        self._telling = Telling(self.report, on_remark)
        self._map.recover(self._stands)

    def run(self, bundles: Iterable[SourceBundle | FhirError]) -> IngestReport:
        """Ingests everything; bad resources are counted and the rest goes through."""
        for bundle in bundles:
            self.add(bundle)
        self.flush()
        return self.report

    def add(self, bundle: SourceBundle | FhirError) -> None:
        """Validates, seals and signs one bundle, submitting full batches on the way."""
        if isinstance(bundle, FhirError):
            self._telling.misread(bundle)
            return
        self.report.bundles += 1
        for problem in bundle.problems:
            self._telling.misread(problem)
        for request in bundle.requests:
            parts = restful(request.url)
            self._telling.asked(request, *(("", "") if parts is None else parts[1:]))
        with self._times.stage("whose"):
            places = places_of(bundle, self._source)
            scope = Scope(
                self._source,
                places,
                bundle.digest,
                transaction=bundle.kind == "transaction",
                matches=self._custodian.matched_identifier,
            )
        author = self._author(bundle)
        judged = [
            self._judge(resource, place, scope, verdict)
            for resource, place, verdict in self._validate(bundle, places)
        ]
        self._enrol(judged)
        for item in judged:
            try:
                self._take(item, author)
            except InputError as error:
                # One resource that cannot be sealed or enrolled ends nothing but itself.
                self._telling.refused(item.resource, FhirError(error.args[0]), error.code.slug)

    def _validate(
        self, bundle: SourceBundle, places: list[Place]
    ) -> Iterator[tuple[SourceResource, Place, Validated]]:
        verdicts = validate_each([resource.raw for resource in bundle.resources])
        for resource, place in zip(bundle.resources, places, strict=True):
            self.report.resources += 1
            self.report.resource_bytes += len(resource.raw)
            with self._times.stage("validate"):
                verdict = next(verdicts)
            fault = entry_fault(place, resource.method, resource.request_url)
            if isinstance(verdict, FhirError):
                self._telling.refused(resource, verdict)
            elif fault is not None:
                self._telling.refused(resource, FhirError("", issues=[fault]), Fault.ENTRY_CONTRADICTS)
            else:
                yield resource, place, verdict

    def _author(self, bundle: SourceBundle) -> Wallet:
        """Who signs: the bundle's one practitioner whom the operator listed for the source, else the organisation."""
        organisation = self._custodian.organisation
        if not self._source.practitioners:
            return organisation
        found = {
            identifier
            for resource in bundle.resources
            if resource.resource_type == "Practitioner"
            for identifier in practitioner_of(resource.raw) & self._source.practitioners
        }
        if len(found) != 1:
            return organisation
        known = len(self._custodian.staff)
        with self._times.stage("enrol"):
            wallet, transactions = self._custodian.practitioner(found.pop())
        self.report.practitioners += len(self._custodian.staff) - known
        self._queue(transactions)
        return wallet

    # One resource.

    def _judge(self, resource: SourceResource, place: Place, scope: Scope, verdict: Validated) -> _Judged:
        """What a valid resource is and whose, and by what the map knows it. The decoded form is let go of."""
        with self._times.stage("whose"):
            info, owner = describe(verdict.resource), owner_of(verdict.resource, place, scope)
            key, parked_key = self._keys(place, scope, verdict.raw, owner)
            whole = self._map.tag("whole", verdict.raw)
            owned = self._map.tag("owned", whole, _encoded(owner.person or ""))
        person = None if owner.person is None else self._custodian.known_as(owner.person)
        return _Judged(resource, place.resource_id or "", info, owner, person, key, parked_key, whole, owned)

    def _is_known(self, item: _Judged) -> bool:
        """Whether a record holds the content already, as that person's or, of what is nobody's, anywhere."""
        if item.owner.reason is None:
            return self._map.knows(item.key, item.owned)
        return self._map.knows(item.key, item.whole) or self._map.knows(item.parked_key, item.whole)

    def _enrol(self, judged: list[_Judged]) -> None:
        """Opens all the folders that a bundle needs, a person's at once."""
        wanted: dict[str, set[str]] = {}
        for item in judged:
            if item.person is not None and not self._is_known(item):
                wanted.setdefault(item.person, set()).add(item.info.category)
        for person, categories in wanted.items():
            with suppress(InputError):
                # Whatever forbids it is told of each resource.
                self._folders_of(person, sorted(categories))

    def _folders_of(self, person: str, categories: list[str]) -> Wallet:
        known = len(self._custodian.patients)
        with self._times.stage("enrol"):
            wallet, transactions = self._custodian.patient(person, categories)
        self.report.patients += len(self._custodian.patients) - known
        self._queue(transactions)
        return wallet

    def _take(self, item: _Judged, author: Wallet) -> None:
        """Puts a resource into the next batch, unless its record holds it already."""
        if item.key in self._pending.keys or item.parked_key in self._pending.keys:
            # What the batch holds of the same resource comes first.
            self.flush()
        is_parked = item.owner.reason is not None
        if is_parked:
            self._telling.parked(item.resource, item.owner)
        if self._is_known(item):
            self.report.unchanged += 1
            self._retire_parked(item)
            return
        category = PARKED if is_parked else item.info.category
        folder_key = self._folder(item.person, category)
        used = item.parked_key if is_parked else item.key
        known = self._map.find(used)
        terms = item.info.terms
        if is_parked:
            terms = (*terms[: TOKENS_PER_RECORD_MAX - 1], f"parked:{item.owner.reason}")
        version, record = 1, self._map.tag("record", used, folder_key.folder)
        if known is not None and known.folder == folder_key.folder:
            state = self._ledger.entity(RECORDS, known.record)
            if state.erased:
                self._erased_before(item, Plan(used, *known, state.version, item.whole, item.owned))
                return
            version, record = state.version + 1, known.record
        plan = Plan(used, record, folder_key.folder, version, item.whole, item.owned)
        sealing = _Sealing(
            item,
            plan,
            Kept(
                item.person,
                category,
                record,
                folder_key.folder,
                terms,
                item.info.resource_type,
                item.resource_id,
                version,
                item.resource.origin,
            ),
            known is not None and known.folder != folder_key.folder,
        )
        # What is of no patient stands in the organisation's own folders, which it alone writes.
        self._seal(sealing, folder_key, author if item.person is not None else self._custodian.organisation)

    def _erased_before(self, item: _Judged, plan: Plan) -> None:
        """Remembers what a source still says of a record that its owner had erased; it is not taken again."""
        self._map.settle([plan])
        self.report.erased += 1
        self._telling.noted(ERASED, item.resource)

    def _keys(self, place: Place, scope: Scope, raw: bytes, owner: Owner) -> tuple[bytes, bytes]:
        """Under which keys the map has the resource: as somebody's or of no patient, and as nobody's.

        A resource with a name of its own goes by it. One without goes by its content, and by the person where that is
        a placeholder of its bundle: the same words in another bundle are about somebody else.
        """
        name = scope.name_of(place)
        base = self._source.base.encode()
        if name is not None and not is_placeholder(name):
            parts = (base, b"name", place.resource_type.encode(), _encoded(name))
            return self._map.tag("key", *parts), self._map.tag("parked", *parts)
        parts = (base, b"content", _encoded(place.full_url or ""), raw)
        person = owner.person if owner.person is not None and is_placeholder(owner.person) else ""
        return self._map.tag("key", *parts, _encoded(person)), self._map.tag("parked", *parts)

    def _folder(self, person: str | None, category: str) -> FolderKey:
        """The key of the folder that a resource belongs in; what must be on the chain before it is queued."""
        if person is not None:
            return self._folders_of(person, [category]).folder_key(category)
        with self._times.stage("enrol"):
            folder_key, transactions = self._custodian.own_folder(PARKED if category == PARKED else DIRECTORY)
        self._queue(transactions)
        return folder_key

    def _queue(self, transactions: list[Transaction]) -> None:
        self._pending.transactions += transactions
        self._flush_if_full()

    def _seal(self, sealing: _Sealing, folder_key: FolderKey, author: Wallet) -> None:
        """Seals and signs a version of a record into the next batch: the first by its author, others by the keeper."""
        plan, raw = sealing.plan, sealing.item.resource.raw
        if plan.version == 1:
            with self._times.stage("encrypt"):
                body, blob = author.seal_record(folder_key, raw, sealing.kept.terms, record=plan.record)
            with self._times.stage("sign"):
                transaction = author.sign(body)
        else:
            with self._times.stage("encrypt"):
                organisation = self._custodian.organisation
                sealed = organisation.amend_record(
                    plan.folder, plan.record, plan.version, raw, sealing.kept.terms
                )
            transaction, blob = sealed.transaction, sealed.blob
        pending = self._pending
        pending.transactions.append(transaction)
        pending.blobs.append(blob)
        pending.blob_bytes += len(blob)
        pending.items[transaction.txid] = sealing
        pending.keys.add(plan.key)
        self._flush_if_full()

    # Batches.

    def _flush_if_full(self) -> None:
        pending = self._pending
        if len(pending.transactions) >= BATCH_RECORDS or pending.blob_bytes >= BATCH_BLOB_BYTES:
            self.flush()

    def flush(self) -> None:
        """Submits what is pending and waits until it is durable."""
        while self._pending.transactions:
            pending, self._pending = self._pending, _Pending()
            if self._before_submit is not None:
                self._before_submit()
            self._map.plan([item.plan for item in pending.items.values()])
            with self._times.stage("submit"):
                outcomes = self._ledger.submit(pending.transactions, pending.blobs)
            self._account(outcomes, pending.items)
        self._erase_leftovers()

    def _account(self, outcomes: list[Outcome], items: dict[bytes, _Sealing]) -> None:
        done: list[_Sealing] = []
        failed: list[_Sealing] = []
        unknown: list[_Sealing] = []
        for outcome in outcomes:
            self.report.transactions += 1
            item = items.get(outcome.txid)
            if outcome.ok:
                if item is not None:
                    done.append(item)
            elif item is not None and outcome.code == RECORD_EXISTS:
                unknown.append(item)
            else:
                if item is not None:
                    failed.append(item)
                self._telling.failed(outcome.code, None if item is None else item.item.resource)
        self._map.settle([item.plan for item in done])
        self._map.drop([item.plan for item in failed])
        for item in done:
            self._count(item)
        for item in unknown:
            try:
                self._learn(item)
            except (AccessRefused, InputError) as error:
                self._map.drop([item.plan])
                self._telling.failed(error.code, item.item.resource)

    def _retire_parked(self, item: _Judged) -> None:
        """What was parked before it was somebody's has its parked record erased, once its own is durable."""
        if item.owner.reason is None:
            self._map.retire(item.parked_key)

    def _count(self, item: _Sealing) -> None:
        self._retire_parked(item.item)
        if item.item.owner.reason is not None:
            self.report.parked += 1
        else:
            self.report.committed += 1
        self.report.amended += item.plan.version > 1
        if item.is_moved:
            self.report.moved += 1
            self._telling.noted(MOVED, item.item.resource)
        if self._on_kept is not None:
            self._on_kept(item.kept)

    def _learn(self, item: _Sealing) -> None:
        """A record that the chain has and the map has lost: its content says whether this is a new version."""
        plan = item.plan
        state = self._ledger.entity(RECORDS, plan.record)
        organisation = self._custodian.organisation
        if not state.erased:
            blob = self._ledger.read(organisation.access(plan.record, Purpose.OPERATIONS))
            content = organisation.open_record(
                blob, folder=state.folder, record=plan.record, version=state.version
            )
            if content != item.item.resource.raw:
                amended = plan._replace(version=state.version + 1)
                kept = item.kept
                self._map.drop([plan])
                self._seal(
                    item._replace(plan=amended, kept=replace(kept, version=amended.version)),
                    organisation.folder_key(plan.folder),
                    organisation,
                )
                return
        self._map.settle([plan])
        self._retire_parked(item.item)
        if state.erased:
            self.report.erased += 1
            self._telling.noted(ERASED, item.item.resource)
        else:
            self.report.unchanged += 1

    def _erase_leftovers(self) -> None:
        """Erases what was parked and has an owner's record by now."""
        while records := self._map.leftovers(_LEFTOVERS_AT_ONCE):
            organisation = self._custodian.organisation
            outcomes = self._ledger.submit([organisation.erase_record(record) for record in records])
            for outcome in outcomes:
                self.report.transactions += 1
                if not outcome.ok:
                    self._telling.failed(outcome.code, None)
            self._map.erased(records)

    def _stands(self, record: bytes, version: int) -> bool:
        try:
            return self._ledger.entity(RECORDS, record).version >= version
        except NotFoundError:
            return False


def _encoded(text: str) -> bytes:
    return text.encode("utf-8", "surrogatepass")

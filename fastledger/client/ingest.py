"""From FHIR sources to durable records: validate, seal, sign, submit (SPEC-ING-1..3).

A :class:`Custodian` is one hospital's key service: the organisation's wallet, its practitioners', and those of the
patients that it keeps in trust for them. It writes every resource into a folder of the patient (by category), or
into its own directory folder where the resource describes no patient.
"""

import hashlib
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

from fastledger.client.api import LedgerApi
from fastledger.crypto.folders import FolderKey
from fastledger.crypto.keystore import Keystore
from fastledger.errors import Code, FhirError, NotFoundError
from fastledger.gateway.fhir import ResourceInfo, Validated, describe, validate_many
from fastledger.gateway.sources import SourceBundle
from fastledger.model.outcome import Outcome
from fastledger.model.transaction import Transaction
from fastledger.stage_times import StageTimes
from fastledger.state.entity import EntityTable
from fastledger.subjects.consent import Purpose as PurposeOfUse
from fastledger.subjects.consent import Right
from fastledger.subjects.folder import FOLDERS
from fastledger.subjects.identity import IDENTITIES, Role
from fastledger.subjects.record import RecordPut
from fastledger.wallet.wallet import Wallet

DIRECTORY = "directory"
ORGANISATION_ENTRY = "organisation"
BATCH_RECORDS = 1_000
BATCH_BLOB_BYTES = 64 * 1024 * 1024
REFUSALS_KEPT = 20
_CUSTODY_PURPOSES = (PurposeOfUse.TREATMENT, PurposeOfUse.OPERATIONS, PurposeOfUse.PAYMENT)
_PATIENT_ENTRY = "patient:"
_STAFF_ENTRY = "staff:"
# With its prefix and at four bytes a character it is still an entry name of the keystore.
_STAFF_NAME_CHARS_MAX = 30


@dataclass(slots=True)
class IngestReport:
    """What an ingest did.

    Every resource is either ``refused``, not valid, or submitted; what could not even be read as a resource is
    ``unreadable``. ``refusals`` hold (origin, path, problem) of the first of both, without values.
    """

    bundles: int = 0
    patients: int = 0
    practitioners: int = 0
    resources: int = 0
    resource_bytes: int = 0
    refused: int = 0
    unreadable: int = 0
    committed: int = 0
    transactions: int = 0
    refusals: list[tuple[str, str, str]] = field(default_factory=list)
    failures: dict[str, int] = field(default_factory=dict)

    def refuse(self, origin: str, error: FhirError) -> None:
        """Counts a resource that is not valid FHIR."""
        self.refused += 1
        path, problem = error.issues[0] if error.issues else ("", error.args[0])
        self._keep(origin, path, problem)

    def misread(self, error: FhirError) -> None:
        """Counts a source, or an entry of one, that could not be read; the message begins with its origin."""
        self.unreadable += 1
        origin, _, problem = error.args[0].partition(": ")
        self._keep(origin, "", problem)

    def _keep(self, origin: str, path: str, problem: str) -> None:
        if len(self.refusals) < REFUSALS_KEPT:
            self.refusals.append((origin, path, problem))

    def fail(self, code: Code) -> None:
        """Counts a transaction that did not become durable."""
        self.failures[code.slug] = self.failures.get(code.slug, 0) + 1


@dataclass(frozen=True, slots=True)
class Kept:
    """Where a committed resource stands, for who wants to find it again."""

    patient: str | None
    category: str
    record: bytes
    folder: bytes
    terms: tuple[str, ...]


class Custodian:
    """One hospital's wallets over a ledger."""

    def __init__(
        self,
        ledger: LedgerApi,
        organisation: Wallet,
        *,
        new_wallet: Callable[[], Wallet],
        entry: str = ORGANISATION_ENTRY,
    ) -> None:
        """``organisation`` is registered and endorsed; ``new_wallet`` makes one for each patient and practitioner.

        ``entry`` is the organisation's name in the keystore.
        """
        self._ledger = ledger
        self.organisation = organisation
        self._entry = entry
        self._new_wallet = new_wallet
        # Folders and identities that are on the chain or on their way there.
        self._standing: set[bytes] = set()
        self.patients: dict[str, Wallet] = {}
        self.staff: dict[str, Wallet] = {}

    def patient(self, reference: str, categories: Iterable[str]) -> tuple[Wallet, list[Transaction]]:
        """A patient's wallet with a folder for each category, and the transactions that make what is new."""
        transactions: list[Transaction] = []
        wallet = self.patients.get(reference)
        if wallet is None or not self._stands(IDENTITIES, wallet.identity):
            wallet = self.patients[reference] = self._registered(transactions, Role.PATIENT)
        wanted = sorted(set(categories))
        fresh = [category for category in wanted if not self._is_open(wallet, category)]
        if fresh:
            transactions.append(wallet.open_folders(*fresh))
            self._standing.update(wallet.labels[category] for category in fresh)
        closed = [category for category in wanted if not self.organisation.holds_key(wallet.labels[category])]
        if closed:
            grant = wallet.grant(
                self.organisation.identity,
                self.organisation.kem_public,
                closed,
                purposes=_CUSTODY_PURPOSES,
                rights=Right.READ | Right.WRITE,
            )
            transactions.append(grant)
            # The organisation learns the keys as any grantee does: by opening what the chain carries.
            self.organisation.accept(grant)
        return wallet, transactions

    def practitioner(self, reference: str) -> tuple[Wallet, list[Transaction]]:
        """A practitioner's wallet, and the transactions that register and endorse it where it is new."""
        transactions: list[Transaction] = []
        wallet = self.staff.get(reference)
        if wallet is None or not self._stands(IDENTITIES, wallet.identity):
            wallet = self.staff[reference] = self._registered(transactions, Role.PRACTITIONER)
            transactions.append(self.organisation.endorse(wallet.identity, Role.PRACTITIONER))
        return wallet, transactions

    def directory(self) -> tuple[FolderKey, list[Transaction]]:
        """The key of the folder for what describes no patient, opened at its first use."""
        transactions = []
        if not self._is_open(self.organisation, DIRECTORY):
            transactions.append(self.organisation.open_folders(DIRECTORY))
            self._standing.add(self.organisation.labels[DIRECTORY])
        return self.organisation.folder_key(DIRECTORY), transactions

    def _registered(self, transactions: list[Transaction], role: Role) -> Wallet:
        """A new wallet, its registration queued."""
        wallet = self._new_wallet()
        transactions.append(wallet.register(role))
        self._standing.add(wallet.identity)
        return wallet

    def _is_open(self, wallet: Wallet, label: str) -> bool:
        return label in wallet.labels and self._stands(FOLDERS, wallet.labels[label])

    def _stands(self, table: EntityTable[Any], key: bytes) -> bool:
        """Whether what a loaded wallet knows of reached the chain: keys are saved first, and a crash may follow."""
        if key not in self._standing:
            try:
                self._ledger.entity(table, key)
            except NotFoundError:
                return False
            self._standing.add(key)
        return True

    def save(self, keystore: Keystore) -> None:
        """Puts every wallet into an open keystore; the references of patients are sealed with them."""
        self.organisation.save(keystore, self._entry)
        for reference, wallet in self.patients.items():
            wallet.save(keystore, _PATIENT_ENTRY + reference)
        for reference, wallet in self.staff.items():
            wallet.save(keystore, _STAFF_ENTRY + reference)

    def load(self, keystore: Keystore) -> None:
        """Takes the patients' and practitioners' wallets of an open keystore in."""
        for name in keystore.names():
            if name.startswith(_PATIENT_ENTRY):
                self.patients[name.removeprefix(_PATIENT_ENTRY)] = Wallet.load(keystore, name)
            elif name.startswith(_STAFF_ENTRY):
                self.staff[name.removeprefix(_STAFF_ENTRY)] = Wallet.load(keystore, name)


@dataclass(slots=True)
class _Pending:
    """Transactions and envelopes that wait for the next batch, with what each record is."""

    transactions: list[Transaction] = field(default_factory=list)
    blobs: list[bytes] = field(default_factory=list)
    blob_bytes: int = 0
    kept: dict[bytes, Kept] = field(default_factory=dict)


class Ingest:
    """Runs sources through one custodian into the ledger, a bounded batch at a time."""

    def __init__(
        self,
        ledger: LedgerApi,
        custodian: Custodian,
        *,
        times: StageTimes | None = None,
        on_kept: Callable[[Kept], None] | None = None,
        before_submit: Callable[[], None] | None = None,
        report: IngestReport | None = None,
    ) -> None:
        """``on_kept`` hears of every record once it is durable; ``before_submit`` is the moment to save keys:
        a record whose key is lost can never be read (SPEC-ING-3).
        """
        self._ledger = ledger
        self._custodian = custodian
        self._times = times or StageTimes()
        self._on_kept = on_kept
        self._before_submit = before_submit
        self._pending = _Pending()
        self.report = report or IngestReport()

    def run(self, bundles: Iterable[SourceBundle | FhirError]) -> IngestReport:
        """Ingests everything; bad resources are counted and the rest goes through."""
        for bundle in bundles:
            self.add(bundle)
        self.flush()
        return self.report

    def add(self, bundle: SourceBundle | FhirError) -> None:
        """Validates, seals and signs one bundle, submitting full batches on the way."""
        if isinstance(bundle, FhirError):
            self.report.misread(bundle)
            return
        self.report.bundles += 1
        for problem in bundle.problems:
            self.report.misread(problem)
        with self._times.stage("validate"):
            described = list(self._validate(bundle))
        sealed = self._seal(bundle, described)
        with self._times.stage("sign"):
            signed = [(author.sign(body), blob, kept) for author, body, blob, kept in sealed]
        for transaction, blob, kept in signed:
            self._pending.transactions.append(transaction)
            self._pending.blobs.append(blob)
            self._pending.blob_bytes += len(blob)
            self._pending.kept[transaction.txid] = kept
            self._flush_if_full()

    def _validate(self, bundle: SourceBundle) -> Iterator[tuple[Validated, ResourceInfo]]:
        verdicts = validate_many([resource.raw for resource in bundle.resources])
        for resource, verdict in zip(bundle.resources, verdicts, strict=True):
            self.report.resources += 1
            self.report.resource_bytes += len(resource.raw)
            if isinstance(verdict, FhirError):
                self.report.refuse(resource.origin, verdict)
                continue
            info = describe(verdict.resource)
            if info.patient_data and _patient_of(bundle, info) is None:
                problem = (info.resource_type, "names no patient whose record it could be")
                self.report.refuse(resource.origin, FhirError("not a patient's", issues=[problem]))
                continue
            yield verdict, info

    def _seal(
        self, bundle: SourceBundle, described: list[tuple[Validated, ResourceInfo]]
    ) -> list[tuple[Wallet, RecordPut, bytes, Kept]]:
        """The records of a bundle, sealed; what must be on the chain before them is queued."""
        with self._times.stage("enrol"):
            folders = self._enrol(bundle, described)
            author = self._author(bundle, described)
        sealed = []
        with self._times.stage("encrypt"):
            for verdict, info in described:
                patient = _patient_of(bundle, info)
                key = folders[(patient, info.category if patient is not None else DIRECTORY)]
                body, blob = author.seal_record(key, verdict.raw, info.terms)
                kept = Kept(patient, info.category, body.record, key.folder, info.terms)
                # What describes no patient stands in the organisation's own folder, which it alone writes.
                signer = author if patient is not None else self._custodian.organisation
                sealed.append((signer, body, blob, kept))
        return sealed

    def _enrol(
        self, bundle: SourceBundle, described: list[tuple[Validated, ResourceInfo]]
    ) -> dict[tuple[str | None, str], FolderKey]:
        """The folder key for every (patient, category) of the bundle."""
        wanted: dict[str | None, list[str]] = {}
        for _, info in described:
            patient = _patient_of(bundle, info)
            wanted.setdefault(patient, []).append(info.category)
        folders: dict[tuple[str | None, str], FolderKey] = {}
        for reference, categories in wanted.items():
            if reference is None:
                key, transactions = self._custodian.directory()
                folders[(None, DIRECTORY)] = key
            else:
                self.report.patients += reference not in self._custodian.patients
                wallet, transactions = self._custodian.patient(reference, categories)
                for category in dict.fromkeys(categories):
                    folders[(reference, category)] = wallet.folder_key(category)
            self._pending.transactions += transactions
            self._flush_if_full()
        return folders

    def _author(self, bundle: SourceBundle, described: list[tuple[Validated, ResourceInfo]]) -> Wallet:
        """Who signs: the first practitioner that the bundle brings, else the organisation."""
        organisation = self._custodian.organisation
        author = organisation
        for verdict, info in described:
            if info.resource_type != "Practitioner":
                continue
            reference = _practitioner_reference(verdict)
            if reference is None:
                continue
            self.report.practitioners += reference not in self._custodian.staff
            wallet, transactions = self._custodian.practitioner(reference)
            self._pending.transactions += transactions
            self._flush_if_full()
            author = wallet if author is organisation else author
        return author

    def _flush_if_full(self) -> None:
        pending = self._pending
        if len(pending.transactions) >= BATCH_RECORDS or pending.blob_bytes >= BATCH_BLOB_BYTES:
            self.flush()

    def flush(self) -> None:
        """Submits what is pending and waits until it is durable."""
        pending, self._pending = self._pending, _Pending()
        if not pending.transactions:
            return
        if self._before_submit is not None:
            self._before_submit()
        with self._times.stage("submit"):
            outcomes = self._ledger.submit(pending.transactions, pending.blobs)
        self._account(outcomes, pending.kept)

    def _account(self, outcomes: list[Outcome], kept: dict[bytes, Kept]) -> None:
        for outcome in outcomes:
            self.report.transactions += 1
            if not outcome.ok:
                self.report.fail(outcome.code)
            elif outcome.txid in kept:
                self.report.committed += 1
                if self._on_kept is not None:
                    self._on_kept(kept[outcome.txid])


def _patient_of(bundle: SourceBundle, info: ResourceInfo) -> str | None:
    """The patient whose folder a resource belongs in; None where it describes or names no patient.

    What names another patient than the bundle's is never put into that patient's folder.
    """
    if not info.patient_data:
        return None
    url_id = _reference_id(bundle.patient_url)
    own = bundle.patient_id or url_id
    named = _reference_id(info.subject_reference)
    return own if named in (None, bundle.patient_id, url_id) else named


def _reference_id(reference: str | None) -> str | None:
    """The id at the end of a literal reference (``Patient/7``, ``https://…/Patient/7/_history/2``, ``urn:uuid:…``).

    None for what names nobody beyond its own resource: ``#contained``, a search, free text.
    """
    if reference is None:
        return None
    name = reference.partition("/_history/")[0].rpartition("/")[2]
    name = name.removeprefix("urn:uuid:").removeprefix("urn:oid:")
    return name if _is_fhir_id(name) else None


_is_fhir_id = re.compile(r"[A-Za-z0-9.-]{1,64}").fullmatch


def _practitioner_reference(verdict: Validated) -> str | None:
    """What a practitioner is known by from one source to the next; None where there is nothing."""
    identifiers = verdict.resource.get("identifier") or [{}]
    name = str(identifiers[0].get("value") or verdict.resource.get("id") or "")
    if len(name) > _STAFF_NAME_CHARS_MAX:
        name = hashlib.sha256(name.encode()).hexdigest()
    return name or None

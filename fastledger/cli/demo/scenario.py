"""The demo's story: every step is checked, and a step that does not hold ends the demo with an error."""

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import msgspec

from fastledger.cli.demo.homes import Home
from fastledger.cli.output import Output, ProgressBar
from fastledger.client.ingest import Custodian, Ingest, IngestReport, Kept
from fastledger.crypto.keystore import Keystore
from fastledger.errors import AccessRefused, Code, FhirError, InputError
from fastledger.gateway.fhir import describe, validate
from fastledger.gateway.fhir_source import Source
from fastledger.gateway.sources import ReadingProgress, SourceBundle, read_bundles
from fastledger.model.genesis import Genesis
from fastledger.model.query import Entry
from fastledger.model.receipt import verify_statement
from fastledger.model.transaction import Transaction
from fastledger.stage_times import StageTimes
from fastledger.subjects.consent import CONSENT_MISSING, CONSENT_REVOKED, ConsentGrant, Purpose
from fastledger.subjects.identity import KEM_KEYS, Role
from fastledger.subjects.record import RECORD_ERASED, RECORDS, RecordPut
from fastledger.wallet.wallet import Wallet
from fastledger.workload import generate

HOSPITALS = ("A", "B")
# Whose ids the histories carry: one system's, whichever hospital takes them.
SOURCE = Source.named("https://histories.example/fhir")
KEPT_PER_PATIENT = 400
PASSWORD = "demonstration only"  # noqa: S105 - a demo's keystore holds nobody's keys
SHARED_CATEGORIES = ("vitals", "laboratory", "observations", "encounters")


class ScenarioError(Exception):
    """A step of the demo did not hold."""


def require(condition: bool, what: str) -> None:
    """Ends the demo with an error unless ``condition`` holds."""
    if not condition:
        raise ScenarioError(what)


class Scenario:
    """Two hospitals and everyone around them, over one ledger; the files that they keep go to ``folder``."""

    def __init__(self, home: Home, folder: Path, output: Output) -> None:
        self._home = home
        self._output = output
        self._keystore_path, self._receipt_path = folder / "wallets.keystore", folder / "erasure.receipt"
        self.places = {
            **({} if home.path is None else {"ledger": home.path}),
            "wallets (sealed, password in the source)": self._keystore_path,
            "receipt of the erasure": self._receipt_path,
        }
        self.times = StageTimes()
        self.ledger_seconds: dict[str, float] = {}
        self.report = IngestReport()
        self.steps: list[str] = []
        self.transactions = 0
        self.height = 0
        self._kept: dict[str, list[Kept]] = {}
        self._hospital_of: dict[str, str] = {}
        self._regulator = home.regulator
        self._ledger = home.ledger
        self._custodians: dict[str, Custodian] = {}

    def close(self) -> None:
        """Closes the ledger."""
        self._home.close()

    def _done(self, step: str) -> None:
        self.steps.append(step)
        self._output.say(f"  {len(self.steps):2}. {step}")

    def _submit(self, *transactions: Transaction) -> None:
        for outcome in self._ledger.submit(transactions):
            require(outcome.ok, f"transaction {outcome.txid.hex()} ended as {outcome.code.slug}")

    def _new_wallet(self) -> Wallet:
        return Wallet.create(self._ledger.chain_id)

    def _organisation(self) -> Wallet:
        wallet = self._new_wallet()
        self._submit(
            wallet.register(Role.ORGANISATION), self._regulator.endorse(wallet.identity, Role.ORGANISATION)
        )
        return wallet

    # The ingest.

    def ingest(self, sources: Sequence[Path], *, patients: int, seed: int, progress: ProgressBar) -> None:
        """Puts every history into one of the two hospitals, in turn."""
        for name in HOSPITALS:
            self._custodians[name] = Custodian(
                self._ledger, self._organisation(), new_wallet=self._new_wallet
            )
        runs = {
            name: Ingest(
                self._ledger,
                custodian,
                source=SOURCE,
                times=self.times,
                report=self.report,
                on_kept=self._remember,
            )
            for name, custodian in self._custodians.items()
        }
        for count, bundle in enumerate(self._bundles(sources, patients, seed, progress)):
            # The next hospital takes the next patient; what is nobody's history goes to the first.
            hospital = HOSPITALS[count % 2]
            if isinstance(bundle, SourceBundle) and bundle.patient_id is not None:
                hospital = self._hospital_of.setdefault(bundle.patient_id, hospital)
            runs[hospital].add(bundle)
        for run in runs.values():
            run.flush()
        self.ledger_seconds = self._home.stage_seconds()
        report = self.report
        require(report.committed > 0, "no resource was committed")
        require(not report.failures, f"transactions failed: {report.failures}")
        told = report.committed + report.parked + report.unchanged + report.refused
        require(told == report.resources, "resources were lost on the way")
        self._done(
            f"{report.committed:,} resources of {report.patients} patients validated, sealed, signed and durable"
        )

    def _bundles(
        self, sources: Sequence[Path], patients: int, seed: int, bar: ProgressBar
    ) -> Iterator[SourceBundle | FhirError]:
        progress = ReadingProgress()
        bundles: Iterable[SourceBundle | FhirError] = (
            read_bundles(sources, progress) if sources else generate(seed=seed, patients=patients)
        )
        iterator = iter(bundles)
        count = 0
        while True:
            with self.times.stage("read"):
                bundle = next(iterator, None)
            if bundle is None:
                return
            yield bundle
            count += 1
            if sources:
                bar.update(progress.bytes_read, progress.bytes_total)
            else:
                bar.update(count, patients)

    def _remember(self, kept: Kept) -> None:
        if kept.patient is not None:
            records = self._kept.setdefault(kept.patient, [])
            if len(records) < KEPT_PER_PATIENT:
                records.append(kept)

    # Consent, search, access, audit.

    def care(self) -> None:
        """Plays the care of one patient of hospital A: what hospital B may do and C may not."""
        patient, kept = self._find_patient()
        clinic, stranger = self._custodians["B"].organisation, self._organisation()
        grant = patient.grant(
            clinic.identity,
            self._ledger.entity(KEM_KEYS, clinic.identity).kem,
            [kept.folder],
            purposes=[Purpose.TREATMENT],
        )
        self._submit(grant)
        clinic.accept(self._ledger.get(grant.txid))
        self._done(f"the patient lets hospital B read one category ({kept.category}) for treatment")
        found = self._find_by_code(clinic, kept)
        self._done(f"hospital B finds {len(found)} records by their code, through blind tokens")
        record = self._read_and_audit(clinic, found)
        self._refuse(stranger, record, CONSENT_MISSING)
        self._done("hospital C has no consent: its read is refused, and the refusal stands in the audit")
        body = grant.body
        if not isinstance(body, ConsentGrant):
            raise ScenarioError("a grant has the body of a grant")
        self._submit(patient.revoke_consent(body.consent), patient.rotate_folder(kept.folder))
        self._refuse(clinic, record, CONSENT_REVOKED)
        self._done("the consent is revoked and the folder re-keyed: hospital B's next read is refused")
        self._amend(patient, kept, record)
        self._erase(patient, self._another(found, record, kept))

    def _find_patient(self) -> tuple[Wallet, Kept]:
        """Returns a patient of hospital A, with a coded record of theirs in a category that hospitals share."""
        for reference, records in self._kept.items():
            if reference not in self._custodians["A"].patients:
                continue
            for category in SHARED_CATEGORIES:
                coded = [
                    kept
                    for kept in records
                    if kept.category == category and any(term.startswith("code:") for term in kept.terms)
                ]
                if len(coded) > 1:
                    return self._custodians["A"].patients[reference], coded[0]
        raise ScenarioError("no patient has two coded records of one category to share")

    def _find_by_code(self, reader: Wallet, kept: Kept) -> list[Entry]:
        term = next(term for term in kept.terms if term.startswith("code:"))
        found: list[Entry] = []
        for token in reader.tokens(kept.folder, term):
            found += self._ledger.query(token=token, kind="record.put")
        records = [entry.transaction.body_map["record"] for entry in found]
        require(kept.record in records, "the search by code misses a record")
        return found

    def _read_and_audit(self, reader: Wallet, found: list[Entry]) -> bytes:
        body = found[0].transaction.body
        if not isinstance(body, RecordPut):
            raise ScenarioError("a token leads to a record")
        record = body.record
        access = reader.access(record, Purpose.TREATMENT)
        envelope = self._ledger.read(access)
        content = reader.open_record(envelope, folder=self._ledger.entity(RECORDS, record).folder, record=record)
        require(bool(describe(validate(content).resource).resource_type), "the content is not FHIR")
        audited = [entry.txid for entry in self._ledger.query(kind="access.read", record=record)]
        require(access.txid in audited, "the read is missing in the audit")
        self._done(f"hospital B fetches and decrypts {len(content):,} bytes; its read stands in the audit")
        return record

    def _refuse(self, reader: Wallet, record: bytes, code: Code) -> None:
        try:
            self._ledger.read(reader.access(record, Purpose.TREATMENT))
        except AccessRefused as refusal:
            require(refusal.code == code, f"refused as {refusal.code.slug}, not {code.slug}")
            audited = self._ledger.query(kind="access.read", record=record, code=code)
            require(refusal.txid in [entry.txid for entry in audited], "the refusal is missing in the audit")
            return
        raise ScenarioError("a read without consent was granted")

    # Amendment and erasure.

    def _amend(self, patient: Wallet, kept: Kept, record: bytes) -> None:
        envelope = self._ledger.read(patient.access(record, Purpose.PATIENT_REQUEST))
        original = patient.open_record(envelope, folder=kept.folder, record=record)
        resource: dict[str, Any] = msgspec.json.decode(original)
        if resource["resourceType"] == "Observation":
            resource["status"] = "amended"
        else:
            resource["language"] = "en"
        content = validate(msgspec.json.encode(resource)).raw
        sealed = patient.amend_record(kept.folder, record, 2, content, kept.terms)
        outcome = self._ledger.submit([sealed.transaction], [sealed.blob])[0]
        require(outcome.ok, f"the amendment ended as {outcome.code.slug}")
        newest = self._ledger.read(patient.access(record, Purpose.PATIENT_REQUEST))
        reread = patient.open_record(newest, folder=kept.folder, record=record, version=2)
        require(reread == content, "the amended record reads otherwise")
        self._done("the record is amended: version 2 supersedes, version 1 stays")

    def _another(self, found: list[Entry], record: bytes, kept: Kept) -> bytes:
        others = [entry.transaction.body_map["record"] for entry in found]
        others += [kept.record]
        return next((other for other in others if other != record), record)

    def _erase(self, patient: Wallet, record: bytes) -> None:
        version = self._ledger.record_version(record)
        erasure = patient.erase_record(record)
        self._submit(erasure)
        try:
            self._ledger.read(patient.access(record, Purpose.PATIENT_REQUEST))
        except AccessRefused as refusal:
            require(refusal.code == RECORD_ERASED, "an erased record is refused for another reason")
        else:
            raise ScenarioError("an erased record was read")
        self._receipt_path.write_bytes(self._ledger.prove(erasure.txid))
        self._done(
            f"one record is erased: its envelope ({version.size:,} bytes) and data key are gone, the receipt stays"
        )

    # Closing, reopening, verifying.

    def settle(self, progress: ProgressBar) -> None:
        """Seals the wallets, closes, reopens and verifies the ledger from disk, and checks the receipt offline."""
        keystore = Keystore.create(self._keystore_path, PASSWORD)
        self._regulator.save(keystore, "regulator")
        for name, custodian in self._custodians.items():
            custodian.organisation.save(keystore, f"hospital {name}")
        keystore.save()
        genesis = self._ledger.genesis
        tip = self._ledger.tip()
        self.transactions, self.height = tip.transaction_count, tip.height
        report = self._home.settle(lambda stage, done, total: progress.update(done, total, stage))
        require(report.ok, f"verify found {report.problems[:3]}")
        require(report.transactions == self.transactions, "transactions are missing on disk")
        self._done(
            f"{report.how}: {report.transactions:,} signatures, {report.blocks} "
            f"blocks, {report.blobs:,} envelopes, {report.log_bytes / 1e6:.0f} MB of log"
        )
        self._verify_receipt(genesis)

    def _verify_receipt(self, genesis: Genesis) -> None:
        statement = self._receipt_path.read_bytes()
        verified = verify_statement(statement, chain_id=genesis.chain_id, proposers=genesis.proposers)
        require(verified.transaction.kind == "record.erase", "the receipt is for something else")
        damaged = bytearray(statement)
        damaged[len(damaged) // 2] ^= 1
        try:
            verify_statement(bytes(damaged), chain_id=genesis.chain_id, proposers=genesis.proposers)
        except InputError:
            self._done(
                f"the receipt of the erasure verifies offline (height {verified.height}), a damaged one not"
            )
            return
        raise ScenarioError("a damaged receipt was accepted")

"""A hospital that ingests: its ledger, its keystore, and small FHIR resources to feed it."""

import json
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fastledger import KemSuite, Keystore, Ledger, Role, Wallet
from fastledger.client.ingest import Custodian, Ingest, IngestReport, Kept, Remark, ResourceMap, map_path
from fastledger.crypto.keystore import KdfParams
from fastledger.errors import FhirError
from fastledger.gateway.fhir_source import Source
from fastledger.gateway.sources import SourceBundle, read_bundles
from fastledger.model.outcome import Outcome

PASSWORD = "of a hospital in a test"
# The keystore has tests of its own; here its derivation need not cost anything.
CHEAP_KDF: dict[str, Any] = {"kdf_params": KdfParams(memory_kib=8, iterations=1), "allow_weak_kdf": True}

Resource = dict[str, Any]
BASE = "https://clinic.example/fhir"
SOURCE = Source.named(BASE)


@dataclass
class Hospital:
    """An open ledger with an endorsed organisation, whose keys are in a keystore on disk."""

    ledger: Ledger
    keystore: Path
    regulator: Wallet

    def organisation(self, entry: str) -> None:
        """A new organisation, registered, endorsed and kept under ``entry``."""
        wallet = self.new_wallet()
        self.submit(
            wallet.register(Role.ORGANISATION), self.regulator.endorse(wallet.identity, Role.ORGANISATION)
        )
        keystore = self.open_keystore()
        wallet.save(keystore, entry)
        keystore.save()

    def submit(self, *transactions: Any) -> list[Outcome]:
        outcomes = self.ledger.submit(transactions)
        for outcome in outcomes:
            outcome.raise_for_status()
        return outcomes

    def new_wallet(self) -> Wallet:
        return Wallet.create(self.ledger.chain_id, suite=KemSuite.X25519)

    def open_keystore(self) -> Keystore:
        return Keystore.open(self.keystore, PASSWORD)

    def custodian(self, entry: str = "organisation") -> tuple[Custodian, Keystore]:
        """The hospital as a new process would have it: everything from disk."""
        keystore = self.open_keystore()
        organisation = Wallet.load(keystore, entry)
        custodian = Custodian(self.ledger, organisation, new_wallet=self.new_wallet, entry=entry)
        custodian.load(keystore)
        return custodian, keystore

    def ingest(
        self,
        sources: Iterable[SourceBundle | FhirError | Path],
        *,
        entry: str = "organisation",
        source: Source = SOURCE,
    ) -> "Ingested":
        """Ingests as the command does, keys saved before each batch."""
        custodian, keystore = self.custodian(entry)
        kept: list[Kept] = []
        remarks: list[Remark] = []

        def save() -> None:
            custodian.save(keystore)
            keystore.save()

        path = map_path(self.keystore, entry)
        with ResourceMap(path, custodian.map_secret, self.ledger.chain_id) as resources:
            run = Ingest(
                self.ledger,
                custodian,
                source=source,
                resources=resources,
                before_submit=save,
                on_kept=kept.append,
                on_remark=remarks.append,
            )
            for item in sources:
                for bundle in read_bundles([item]) if isinstance(item, Path) else [item]:
                    run.add(bundle)
            run.flush()
        return Ingested(self, custodian, run.report, kept, remarks)


@dataclass
class Ingested:
    """What an ingest left."""

    hospital: Hospital
    custodian: Custodian
    report: IngestReport
    kept: list[Kept]
    remarks: list[Remark]

    def content(self, kept: Kept) -> bytes:
        """A version's content, opened with the organisation's keys."""
        organisation = self.custodian.organisation
        digest = self.hospital.ledger.record_version(kept.record, kept.version).digest
        blob = self.hospital.ledger._blobs.get(digest)
        return organisation.open_record(blob, folder=kept.folder, record=kept.record, version=kept.version)

    def contents_of(self, patient: str | None) -> list[Resource]:
        """Every resource that went into folders of a patient, given by id or whole name (None: of no patient)."""
        name = patient if patient is None or ":" in patient else person(patient)
        return [json.loads(self.content(kept)) for kept in self.kept if kept.patient == name]

    @property
    def patients(self) -> list[str]:
        """The names of all patients that the custodian keeps wallets for; of the source's own, their ids."""
        return [name.removeprefix(f"{BASE}/Patient/") for name in self.custodian.patients]


@contextmanager
def hospital(folder: Path) -> Iterator[Hospital]:
    """A hospital in ``folder``, its organisation under ``organisation``."""
    regulator = Wallet.create(suite=KemSuite.X25519)
    Keystore.create(folder / "wallets", PASSWORD, **CHEAP_KDF)
    with Ledger.create(folder / "ledger", authorities=[regulator.authority]) as ledger:
        made = Hospital(ledger, folder / "wallets", regulator.join(ledger.chain_id))
        made.organisation("organisation")
        yield made


# Resources.


def person(identity: str) -> str:
    """What a Patient of the source is called."""
    return f"{BASE}/Patient/{identity}"


def patient(identity: str | None = "p1", **more: Any) -> Resource:
    node: Resource = {"resourceType": "Patient", "name": [{"family": "Planted", "given": ["Wilhelmina"]}]}
    return node | ({} if identity is None else {"id": identity}) | more


def observation(subject: str | None = "Patient/p1", **more: Any) -> Resource:
    node: Resource = {
        "resourceType": "Observation",
        "status": "final",
        "category": [{"coding": [{"code": "vital-signs"}]}],
        "code": {"coding": [{"system": "http://loinc.org", "code": "8867-4"}]},
    }
    return node | ({} if subject is None else {"subject": {"reference": subject}}) | more


def practitioner(value: str | None = "9999999999", **more: Any) -> Resource:
    node: Resource = {"resourceType": "Practitioner"}
    return node | ({} if value is None else {"identifier": [{"value": value}]}) | more


def write_bundle(path: Path, *resources: Resource, urls: Iterable[str | None] = ()) -> Path:
    """A transaction bundle on disk; ``urls`` are the full URLs of its first entries."""
    given = [*urls, *[None] * len(resources)]
    entries = [
        {"resource": resource, "request": {"method": "POST", "url": str(resource.get("resourceType"))}}
        | ({} if url is None else {"fullUrl": url})
        for resource, url in zip(resources, given, strict=False)
    ]
    path.write_text(json.dumps({"resourceType": "Bundle", "type": "transaction", "entry": entries}))
    return path


def write_ndjson(path: Path, *resources: Resource | str) -> Path:
    lines = (item if isinstance(item, str) else json.dumps(item) for item in resources)
    path.write_text("".join(line + "\n" for line in lines))
    return path

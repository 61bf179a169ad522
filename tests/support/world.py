"""A small world for tests: a ledger with a regulator, two hospitals, a practitioner and a patient."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fastledger import Ledger, LedgerOptions, Outcome, Purpose, Right, Role, SealedRecord, Transaction, Wallet
from fastledger.crypto.hpke import KemSuite
from fastledger.subjects.identity import KEM_KEYS

START_MS = 1_800_000_000_000
VITALS = b'{"resourceType":"Observation","status":"final","code":{"text":"heart rate"}}'
TERM = "code:http://loinc.org|8867-4"


class Clock:
    """A clock that stands still until it is told to go on."""

    def __init__(self, now_ms: int = START_MS) -> None:
        self.now_ms = now_ms

    def __call__(self) -> int:
        return self.now_ms

    def advance(self, milliseconds: int) -> None:
        self.now_ms += milliseconds


@dataclass
class World:
    """The open ledger and everyone's wallets; every helper asserts that what it submits is durable."""

    path: Path
    clock: Clock
    ledger: Ledger
    regulator: Wallet
    hospital: Wallet
    clinic: Wallet
    doctor: Wallet
    patient: Wallet
    options: LedgerOptions = field(default_factory=LedgerOptions)

    @property
    def wallets(self) -> list[Wallet]:
        return [self.regulator, self.hospital, self.clinic, self.doctor, self.patient]

    def submit(self, *transactions: Transaction) -> list[Outcome]:
        outcomes = self.ledger.submit(transactions)
        for outcome in outcomes:
            outcome.raise_for_status()
        return outcomes

    def put(
        self, content: bytes = VITALS, folder: str = "vitals", terms: tuple[str, ...] = (TERM,)
    ) -> SealedRecord:
        sealed = self.patient.put_record(folder, content, terms)
        self.ledger.submit([sealed.transaction], [sealed.blob])[0].raise_for_status()
        return sealed

    def grant(self, grantee: Wallet, *folders: str, **conditions: Any) -> Transaction:
        conditions.setdefault("purposes", [Purpose.TREATMENT])
        conditions.setdefault("rights", Right.READ)
        kem = self.ledger.entity(KEM_KEYS, grantee.identity).kem
        transaction = self.patient.grant(grantee.identity, kem, folders or ("vitals",), **conditions)
        self.submit(transaction)
        self.accept(grantee, transaction)
        return transaction

    def accept(self, wallet: Wallet, transaction: Transaction, **options: Any) -> list[bytes]:
        """Has a wallet take in the keys of a transaction of the chain."""
        return wallet.accept(self.ledger.get(transaction.txid), **options)

    def reopen(self) -> Ledger:
        self.ledger.close()
        self.ledger = Ledger.open(self.path, options=self.options)
        return self.ledger

    def close(self) -> None:
        self.ledger.close()


def new_wallet(clock: Clock) -> Wallet:
    # X25519 alone: its keys are made quickly and the hybrid suite has tests of its own.
    return Wallet.create(suite=KemSuite.X25519, clock_ms=clock)


def make_world(path: Path, *, settled: bool = True, **options: Any) -> World:
    """A ledger in ``path``; with ``settled`` everyone is registered and endorsed and the patient has folders."""
    clock = Clock()
    settings = LedgerOptions(clock_ms=clock, **options)
    regulator, hospital, clinic, doctor, patient = (new_wallet(clock) for _ in range(5))
    ledger = Ledger.create(path, authorities=[regulator.authority], options=settings)
    world = World(path, clock, ledger, regulator, hospital, clinic, doctor, patient, settings)
    for wallet in world.wallets:
        wallet.join(ledger.chain_id)
    if settled:
        world.submit(
            hospital.register(Role.ORGANISATION),
            clinic.register(Role.ORGANISATION),
            doctor.register(Role.PRACTITIONER),
            patient.register(Role.PATIENT),
            regulator.endorse(hospital.identity, Role.ORGANISATION),
            regulator.endorse(clinic.identity, Role.ORGANISATION),
            hospital.endorse(doctor.identity, Role.PRACTITIONER),
            patient.open_folders("vitals", "laboratory"),
        )
    return world

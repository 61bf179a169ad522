"""A custodian: one hospital's key service, with the wallets that it keeps in trust (SPEC-ING-2, SPEC-ING-3).

The organisation's wallet, those of practitioners whom the operator listed, and those of patients, each known by the
name that one source gives them. Two names are one person only where the operator matched them.
"""

import hashlib
import secrets
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

from fastledger.client.api import LedgerApi
from fastledger.crypto.folders import FolderKey
from fastledger.crypto.keystore import Keystore
from fastledger.errors import InputError, KeystoreError, NotFoundError
from fastledger.gateway.fhir_source import Identifier, Source
from fastledger.limits import KEYSTORE_NAME_BYTES_MAX
from fastledger.model.codec import decode, encode
from fastledger.model.transaction import Transaction
from fastledger.state.entity import EntityTable
from fastledger.subjects.consent import Purpose as PurposeOfUse
from fastledger.subjects.consent import Right
from fastledger.subjects.folder import FOLDERS
from fastledger.subjects.identity import IDENTITIES, Role
from fastledger.wallet.wallet import Wallet

DIRECTORY = "directory"
PARKED = "parked"
ORGANISATION_ENTRY = "organisation"
_CUSTODY_PURPOSES = (PurposeOfUse.TREATMENT, PurposeOfUse.OPERATIONS, PurposeOfUse.PAYMENT)
_PATIENT_ENTRY = "patient:"
_STAFF_ENTRY = "staff:"
_SECRET_ENTRY = "ingest:"  # noqa: S105 - the name of an entry
_MATCHES_ENTRY = "matches:"
_SECRET_BYTES = 32


@dataclass(frozen=True, slots=True)
class Match:
    """That a name or an identifier of a source is a person known by another name, as somebody decided (SPEC-ING-8).

    ``what`` is the name of a person in its source, or ``system|value`` of an identifier; ``person`` the name that it
    is matched to. ``by`` says who decided, ``record`` where that stands on the chain, sealed.
    """

    source: str
    what: str = field(repr=False)
    person: str = field(repr=False)
    by: str = field(repr=False)
    time_ms: int
    record: bytes

    @property
    def is_identifier(self) -> bool:
        """Whether ``what`` is an identifier; the name of a person has no bar."""
        return "|" in self.what


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
        self.entry = entry
        self._new_wallet = new_wallet
        # Folders and identities that are on the chain or on their way there.
        self._standing: set[bytes] = set()
        self.patients: dict[str, Wallet] = {}
        self.staff: dict[str, Wallet] = {}
        self.matches: list[Match] = []
        self._same: dict[str, str] = {}
        self._identified: dict[tuple[str, str], str] = {}
        self._secret = secrets.token_bytes(_SECRET_BYTES)

    @property
    def map_secret(self) -> bytes:
        """The key of the organisation's map from resources to records, 32 bytes."""
        return self._secret

    def matched_identifier(self, source: Source, identifier: Identifier) -> str | None:
        """The person whom the operator matched an identifier of a source to, or None."""
        return self._identified.get((source.base, "|".join(identifier)))

    def known_as(self, name: str) -> str:
        """The name under which a person is kept: where matches lead to, or the person's own."""
        # Every match joins two that are not one yet, so that there are no circles.
        while (further := self._same.get(name, name)) != name:
            name = further
        return name

    def add_match(self, match: Match) -> None:
        """Takes a match in; the newest of a name counts."""
        self.matches.append(match)
        if match.is_identifier:
            self._identified[match.source, match.what] = match.person
        else:
            self._same[match.what] = match.person

    def patient(self, name: str, categories: Iterable[str]) -> tuple[Wallet, list[Transaction]]:
        """A patient's wallet with a folder for each category, and the transactions that make what is new."""
        transactions: list[Transaction] = []
        key = wallet_label(name)
        wallet = self.patients.get(key)
        if wallet is None or not self._stands(IDENTITIES, wallet.identity):
            wallet = self.patients[key] = self._registered(transactions, Role.PATIENT)
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
            # It made the folders itself; whoever else holds its key learns theirs from the chain.
            for category in closed:
                self.organisation.add_folder_key(wallet.folder_key(category))
        return wallet, transactions

    def practitioner(self, identifier: Identifier) -> tuple[Wallet, list[Transaction]]:
        """A listed practitioner's wallet, and the transactions that register and endorse it where it is new."""
        transactions: list[Transaction] = []
        key = wallet_label("|".join(identifier))
        wallet = self.staff.get(key)
        if wallet is None or not self._stands(IDENTITIES, wallet.identity):
            wallet = self.staff[key] = self._registered(transactions, Role.PRACTITIONER)
            transactions.append(self.organisation.endorse(wallet.identity, Role.PRACTITIONER))
        return wallet, transactions

    def own_folder(self, label: str) -> tuple[FolderKey, list[Transaction]]:
        """The key of a folder of the organisation's own, opened at its first use.

        ``DIRECTORY`` is for what is of no patient, ``PARKED`` for what nobody can tell whose it is.
        """
        transactions = []
        if not self._is_open(self.organisation, label):
            transactions.append(self.organisation.open_folders(label))
            self._standing.add(self.organisation.labels[label])
        return self.organisation.folder_key(label), transactions

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
        """Puts every wallet into an open keystore; the names of patients are sealed with them."""
        self.organisation.save(keystore, self.entry)
        keystore.put(_SECRET_ENTRY + self.entry, self._secret)
        for label, wallet in self.patients.items():
            wallet.save(keystore, _PATIENT_ENTRY + label)
        for label, wallet in self.staff.items():
            wallet.save(keystore, _STAFF_ENTRY + label)
        if self.matches:
            rows = [
                [item.source, item.what, item.person, item.by, item.time_ms, item.record]
                for item in self.matches
            ]
            keystore.put(_MATCHES_ENTRY + self.entry, encode({"matches": rows}))

    def load(self, keystore: Keystore) -> None:
        """Takes in what :meth:`save` put: wallets of patients and practitioners, the map's key, matches."""
        for name in keystore.names():
            if name.startswith(_PATIENT_ENTRY):
                self.patients[name.removeprefix(_PATIENT_ENTRY)] = Wallet.load(keystore, name)
            elif name.startswith(_STAFF_ENTRY):
                self.staff[name.removeprefix(_STAFF_ENTRY)] = Wallet.load(keystore, name)
            elif name == _SECRET_ENTRY + self.entry:
                self._secret = keystore.get(name)
        for match in load_matches(keystore, self.entry):
            self.add_match(match)


def load_matches(keystore: Keystore, entry: str) -> list[Match]:
    """The matches that a keystore holds for an organisation, the newest last.

    Raises ``KeystoreError`` where their entry is damaged.
    """
    name = _MATCHES_ENTRY + entry
    if name not in keystore.names():
        return []
    try:
        value: Any = decode(keystore.get(name), what="matches")
        return [
            Match(source, what, person, by, time_ms, record)
            for source, what, person, by, time_ms, record in value["matches"]
        ]
    except (InputError, TypeError, KeyError, ValueError):
        raise KeystoreError("the entry of matches is damaged") from None


def wallet_label(name: str) -> str:
    """The name of a wallet among its kind: the person's own, or its digest where a keystore has no room for it."""
    longest = max(len(_PATIENT_ENTRY), len(_STAFF_ENTRY))
    if len(name.encode("utf-8", "surrogatepass")) + longest <= KEYSTORE_NAME_BYTES_MAX and name.isprintable():
        return name
    return "sha256:" + hashlib.sha256(name.encode("utf-8", "surrogatepass")).hexdigest()

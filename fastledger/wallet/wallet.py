"""A wallet: the keys of one identity, and every signed transaction and envelope that they make.

Keys never leave it but sealed in a keystore. It touches no network and no ledger: it returns transactions for the
caller to submit, and opens what the caller fetched. Labels of folders ("vitals", "laboratory") live here alone; the
chain knows random ids.
"""

import hashlib
import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from hmac import compare_digest
from typing import Any, Self

from fastledger.clock import system_clock_ms
from fastledger.crypto.envelope import open_envelope, read_header, seal
from fastledger.crypto.folders import (
    FolderKey,
    WrappedFolderKeys,
    blind_token,
    blind_tokens,
    unwrap_folder_keys,
    wrap_folder_keys,
)
from fastledger.crypto.hpke import KemPrivateKey, KemSuite
from fastledger.crypto.keystore import Keystore
from fastledger.crypto.signing import SigningKey
from fastledger.errors import Code, EnvelopeError, InputError, KeystoreError
from fastledger.limits import TOKENS_PER_RECORD_MAX, VALIDITY_WINDOW_MS_MAX
from fastledger.model.body import Body
from fastledger.model.codec import decode, encode
from fastledger.model.fields import ID_BYTES
from fastledger.model.genesis import CHAIN_ID_BYTES, Authority
from fastledger.model.ids import identity_id, random_id, rotation_digest
from fastledger.model.query import Entry
from fastledger.model.transaction import Transaction
from fastledger.reprs import BriefRepr, short_hex
from fastledger.subjects.access import AccessRead
from fastledger.subjects.consent import CONSENTS, ConsentGrant, ConsentRekey, ConsentRevoke, Purpose, Right
from fastledger.subjects.folder import UNKNOWN_FOLDER, FolderOpen, FolderRotate
from fastledger.subjects.identity import (
    KEM_KEYS,
    IdentityEndorse,
    IdentityRegister,
    IdentityRevoke,
    IdentityRotate,
    Role,
)
from fastledger.subjects.record import RECORDS, RecordAmend, RecordErase, RecordPut
from fastledger.times import Time, time_ms
from fastledger.wallet.builders import Lookup, builds

WALLET_FORMAT_VERSION = 1
VALIDITY_MS = 60 * 60 * 1000
YEAR_MS = 365 * 24 * 60 * 60 * 1000
FIRST_EPOCH = 1
_ENTRY = "wallet"


@dataclass(frozen=True, slots=True, repr=False)
class SealedRecord(BriefRepr):
    """A record ready to be submitted: ``ledger.submit([sealed.transaction], [sealed.blob])``."""

    transaction: Transaction
    blob: bytes
    record: bytes
    folder: bytes
    version: int


class Wallet:
    """One identity's keys.

    What signs and seals without changing the wallet (records, accesses, bodies) may run on several threads at once, as
    asynchronous clients have it; what adds keys (folders, grants that are accepted) is for one thread at a time.
    """

    def __init__(
        self,
        signing_key: SigningKey,
        kem_key: KemPrivateKey,
        *,
        identity: bytes | None = None,
        chain_id: bytes | None = None,
        clock_ms: Callable[[], int] = system_clock_ms,
        validity_ms: int = VALIDITY_MS,
    ) -> None:
        """``identity`` is given where the signing key is not the first one of its identity."""
        if not 0 < validity_ms <= VALIDITY_WINDOW_MS_MAX:
            raise InputError(f"validity is 1 to {VALIDITY_WINDOW_MS_MAX} ms", code=Code.WINDOW_TOO_LONG)
        self.identity = identity or identity_id(signing_key.public_key)
        self._key = signing_key
        self._kem = kem_key
        self._chain_id: bytes | None = None
        if chain_id is not None:
            self.join(chain_id)
        self._clock_ms = clock_ms
        self._validity_ms = validity_ms
        self._folder_keys: dict[tuple[bytes, int], FolderKey] = {}
        self._newest: dict[bytes, int] = {}
        self.labels: dict[str, bytes] = {}

    @classmethod
    def create(
        cls,
        chain_id: bytes | None = None,
        *,
        suite: KemSuite = KemSuite.MLKEM768_X25519,
        clock_ms: Callable[[], int] = system_clock_ms,
    ) -> Self:
        """Fresh keys from the operating system's randomness; hybrid post-quantum key wrapping by default."""
        return cls(SigningKey.generate(), KemPrivateKey.generate(suite), chain_id=chain_id, clock_ms=clock_ms)

    def __repr__(self) -> str:
        chain = "of no chain" if self._chain_id is None else f"of chain {self._chain_id.hex()}"
        return f"<Wallet {short_hex(self.identity)} {chain}, {len(self._newest)} folders>"

    def join(self, chain_id: bytes) -> Self:
        """Binds the wallet to a chain: all it signs is for that chain alone."""
        if not isinstance(chain_id, bytes) or len(chain_id) != CHAIN_ID_BYTES:
            raise InputError(f"a chain's id is {CHAIN_ID_BYTES} bytes", code=Code.WRONG_CHAIN)
        self._chain_id = chain_id
        return self

    @property
    def chain_id(self) -> bytes:
        """The chain it signs for; raises ``InputError`` before :meth:`join`."""
        if self._chain_id is None:
            raise InputError("the wallet has joined no chain", code=Code.WRONG_CHAIN)
        return self._chain_id

    @property
    def public_key(self) -> bytes:
        """The 33-byte signing key of the identity."""
        return self._key.public_key

    @property
    def kem_public(self) -> bytes:
        """The public key that others wrap folder keys to."""
        return self._kem.public_bytes

    @property
    def authority(self) -> Authority:
        """The wallet's keys as a regulator for a genesis document."""
        return Authority(self.public_key, self.kem_public)

    # Signing.

    def sign(self, body: Body) -> Transaction:
        """Any body as a signed transaction, valid from now."""
        now_ms = self._clock_ms()
        return Transaction.sign(
            self._key,
            chain_id=self.chain_id,
            body=body,
            issued_ms=now_ms,
            expires_ms=now_ms + self._validity_ms,
            nonce=int.from_bytes(os.urandom(8), "big"),
        )

    @builds(IdentityRegister)
    def register(self, role: Role) -> Transaction:
        """Makes the wallet's key an identity."""
        return self.sign(IdentityRegister(role=role, kem=self.kem_public))

    def endorse(self, subject: bytes, role: Role, *, until: Time | None = None) -> Transaction:
        """Vouches for another identity's role, for a year unless told otherwise."""
        return self.sign(IdentityEndorse(subject=subject, role=role, until_ms=self._until_ms(until)))

    def _until_ms(self, until: Time | None) -> int:
        return self._clock_ms() + YEAR_MS if until is None else time_ms(until, "until")

    @builds(IdentityRotate, heir="successor")
    def rotate_to(self, successor: "Wallet") -> Transaction:
        """Hands the identity to the keys of ``successor``, which has to take over once it is durable."""
        digest = rotation_digest(self.chain_id, self.identity, successor.public_key)
        return self.sign(
            IdentityRotate(
                key=successor.public_key, kem=successor.kem_public, proof=successor._key.sign(digest)
            )
        )

    def take_over(self, predecessor: "Wallet") -> None:
        """Becomes the wallet of ``predecessor``'s identity, with its folder keys."""
        self.identity = predecessor.identity
        self._chain_id = predecessor.chain_id
        for key in predecessor._folder_keys.values():
            self.add_folder_key(key)
        self.labels.update(predecessor.labels)

    def revoke_identity(self, subject: bytes, *, reason: int = 0) -> Transaction:
        """Ends an identity (its own, one it endorsed, or any as a regulator)."""
        return self.sign(IdentityRevoke(subject=subject, reason=reason))

    # Folders.

    def folder(self, label_or_id: str | bytes) -> bytes:
        """The folder id behind a label of this wallet (ids pass through)."""
        if isinstance(label_or_id, bytes):
            return label_or_id
        try:
            return self.labels[label_or_id]
        except KeyError:
            raise InputError("the wallet has no folder of that label", code=UNKNOWN_FOLDER) from None

    def folder_key(self, folder: str | bytes, epoch: int | None = None) -> FolderKey:
        """The key of a folder, at its newest known epoch unless one is named."""
        folder_id = self.folder(folder)
        number = self._newest.get(folder_id) if epoch is None else epoch
        key = self._folder_keys.get((folder_id, number)) if number is not None else None
        if key is None:
            raise EnvelopeError(
                f"no key of folder {folder_id.hex()} at epoch {number}", code=Code.UNKNOWN_FOLDER_KEY
            )
        return key

    def add_folder_key(self, key: FolderKey) -> None:
        """Keeps a folder key; raises ``EnvelopeError`` where it would replace a different one."""
        held = self._folder_keys.get((key.folder, key.epoch))
        if held is not None and not compare_digest(held.key, key.key):
            raise EnvelopeError(f"another key of folder {key.folder.hex()} at epoch {key.epoch} is held")
        self._folder_keys[(key.folder, key.epoch)] = key
        self._newest[key.folder] = max(key.epoch, self._newest.get(key.folder, 0))

    @builds(FolderOpen)
    def open_folders(self, *labels: str) -> Transaction:
        """Fresh folders, one a label; their keys are kept here and, wrapped to this wallet, on the chain."""
        keys = [FolderKey.generate(epoch=FIRST_EPOCH) for _ in labels]
        wrapped = wrap_folder_keys(self.kem_public, keys, context=self._own_context())
        for label, key in zip(labels, keys, strict=True):
            self.labels[label] = key.folder
            self.add_folder_key(key)
        return self.sign(
            FolderOpen(folders=[key.folder for key in keys], keys=list(wrapped.keys), wrap=wrapped.wrap)
        )

    @builds(FolderRotate)
    def rotate_folder(self, folder: str | bytes) -> Transaction:
        """The folder's next epoch: what is written from here on, holders of older keys cannot read."""
        key = self.folder_key(folder).rotate()
        wrapped = wrap_folder_keys(self.kem_public, [key], context=self._own_context())
        self.add_folder_key(key)
        return self.sign(
            FolderRotate(epoch=key.epoch, folder=key.folder, keys=list(wrapped.keys), wrap=wrapped.wrap)
        )

    def _own_context(self) -> bytes:
        return encode(["fastledger/own/v1", self.chain_id, self.identity])

    def _consent_context(self, grantee: bytes, consent: bytes) -> bytes:
        return encode(["fastledger/consent/v1", self.chain_id, grantee, consent])

    # Records.

    @builds(RecordPut)
    def put_record(
        self, folder: str | bytes, content: bytes, terms: Iterable[str] = (), *, record: bytes | None = None
    ) -> SealedRecord:
        """Seals ``content`` as a new record that can be found by ``terms`` (``code:<system>|<code>`` and the like).

        Terms beyond ``TOKENS_PER_RECORD_MAX`` are refused, not cut.
        """
        body, blob = self.seal_record(self.folder_key(folder), content, terms, record=record)
        return SealedRecord(self.sign(body), blob, body.record, body.folder, 1)

    def seal_record(
        self, key: FolderKey, content: bytes, terms: Iterable[str] = (), *, record: bytes | None = None
    ) -> tuple[RecordPut, bytes]:
        """The first half of :meth:`put_record`: the unsigned body and the envelope, under a given folder key."""
        record_id = record or random_id()
        blob = seal(content, folder_key=key, record=record_id, version=1, chain_id=self.chain_id)
        body = RecordPut(
            digest=_digest(blob),
            epoch=key.epoch,
            folder=key.folder,
            record=record_id,
            size=len(blob),
            tokens=_tokens(key, terms),
        )
        return body, blob

    @builds(RecordAmend, folder=Lookup(RECORDS, "record", "folder"))
    def amend_record(
        self, folder: str | bytes, record: bytes, version: int, content: bytes, terms: Iterable[str] = ()
    ) -> SealedRecord:
        """Seals ``content`` as ``version`` (the present one plus 1) of a record."""
        key = self.folder_key(folder)
        blob = seal(content, folder_key=key, record=record, version=version, chain_id=self.chain_id)
        body = RecordAmend(
            digest=_digest(blob),
            epoch=key.epoch,
            record=record,
            size=len(blob),
            version=version,
            tokens=_tokens(key, terms),
        )
        return SealedRecord(self.sign(body), blob, record, key.folder, version)

    def erase_record(self, record: bytes, *, reason: int = 0) -> Transaction:
        """Has every version of a record of its own destroyed."""
        return self.sign(RecordErase(reason=reason, record=record))

    def access(self, record: bytes, purpose: Purpose, *, version: int = 0) -> Transaction:
        """Asks to read a record; submit it through ``ledger.read``."""
        return self.sign(AccessRead(purpose=purpose, record=record, version=version))

    def open_record(self, blob: bytes, *, folder: str | bytes, record: bytes, version: int = 1) -> bytes:
        """The content of a fetched envelope; ``folder``, ``record`` and ``version`` as the chain states them."""
        header = read_header(blob)
        key = self.folder_key(folder, header.epoch)
        return open_envelope(blob, folder_key=key, record=record, version=version, chain_id=self.chain_id)

    def tokens(self, folder: str | bytes, term: str) -> list[bytes]:
        """The blind tokens to query for a term in a folder: one for each epoch that the wallet holds, newest first."""
        folder_id = self.folder(folder)
        epochs = sorted((epoch for held, epoch in self._folder_keys if held == folder_id), reverse=True)
        return [blind_token(self._folder_keys[(folder_id, epoch)], term) for epoch in epochs]

    def holds_key(self, folder: bytes) -> bool:
        """Whether the wallet has any key of a folder."""
        return folder in self._newest

    @property
    def folders(self) -> list[bytes]:
        """Every folder that the wallet holds a key of, own or granted."""
        return list(self._newest)

    # Consent.

    @builds(ConsentGrant, grantee_kem=Lookup(KEM_KEYS, "grantee", "kem"))
    def grant(
        self,
        grantee: bytes,
        grantee_kem: bytes,
        folders: Sequence[str | bytes],
        *,
        purposes: Sequence[Purpose],
        rights: Right = Right.READ,
        until: Time | None = None,
        consent: bytes | None = None,
    ) -> Transaction:
        """Lets ``grantee`` use folders for ``purposes``; their keys travel inside, wrapped to ``grantee_kem``."""
        consent_id = consent or random_id()
        keys = [self.folder_key(folder) for folder in folders]
        wrapped = wrap_folder_keys(grantee_kem, keys, context=self._consent_context(grantee, consent_id))
        return self.sign(
            ConsentGrant(
                consent=consent_id,
                folders=[(key.folder, key.epoch) for key in keys],
                grantee=grantee,
                keys=list(wrapped.keys),
                purposes=list(purposes),
                rights=int(rights),
                until_ms=self._until_ms(until),
                wrap=wrapped.wrap,
            )
        )

    @builds(
        ConsentRekey,
        folders=Lookup(CONSENTS, "consent", "folders"),
        grantee=Lookup(CONSENTS, "consent", "grantee"),
        grantee_kem=Lookup(KEM_KEYS, "grantee", "kem"),
    )
    def rekey(
        self, consent: bytes, grantee: bytes, grantee_kem: bytes, folders: Sequence[str | bytes]
    ) -> Transaction:
        """Sends the grantee of a standing consent the newest keys of ``folders``."""
        keys = [self.folder_key(folder) for folder in folders]
        wrapped = wrap_folder_keys(grantee_kem, keys, context=self._consent_context(grantee, consent))
        return self.sign(
            ConsentRekey(
                consent=consent,
                folders=[(key.folder, key.epoch) for key in keys],
                keys=list(wrapped.keys),
                wrap=wrapped.wrap,
            )
        )

    def revoke_consent(self, consent: bytes) -> Transaction:
        """Ends a consent. Follow it with :meth:`rotate_folder`: keys once given cannot be taken back."""
        return self.sign(ConsentRevoke(consent=consent))

    def accept(self, entry: Entry, *, holder: bytes | None = None) -> list[bytes]:
        """Takes in the folder keys that an entry of the chain carries for this wallet; returns the folder ids.

        Understands ``consent.grant`` and ``consent.rekey`` addressed to ``holder`` (this identity, unless it acts
        for an organisation whose KEM key it holds) and its own ``folder.open`` and ``folder.rotate``. Only what the
        rules accepted counts: they hold that who signed it owns the folders (SPEC-CONS-7). Raises ``InputError`` for
        a refused transaction or one of another chain, ``EnvelopeError`` where the keys are for somebody else, or one
        differs from the key that is held.
        """
        transaction = entry.transaction
        if entry.code != Code.OK:
            raise InputError("the rules refused what carries the keys", code=entry.code)
        if transaction.chain_id != self.chain_id:
            raise InputError("the keys are of another chain", code=Code.WRONG_CHAIN)
        body = transaction.body
        grantee = holder or self.identity
        if isinstance(body, ConsentGrant | ConsentRekey):
            context = self._consent_context(grantee, body.consent)
            folders = body.folders
        elif isinstance(body, FolderOpen):
            context, folders = self._own_context(), [(folder, FIRST_EPOCH) for folder in body.folders]
        elif isinstance(body, FolderRotate):
            context, folders = self._own_context(), [(body.folder, body.epoch)]
        else:
            raise EnvelopeError(f"{transaction.kind} carries no folder keys", code=Code.BAD_BODY)
        wrapped = WrappedFolderKeys(body.wrap, tuple(body.keys))
        keys = unwrap_folder_keys(self._kem, wrapped, folders, context=context)
        for key in keys:
            self.add_folder_key(key)
        return [key.folder for key in keys]

    # Keeping.

    def save(self, keystore: Keystore, entry: str = _ENTRY) -> None:
        """Puts everything into an open keystore; the caller saves that."""
        keystore.put(
            entry,
            encode(
                {
                    "version": WALLET_FORMAT_VERSION,
                    "identity": self.identity,
                    "signing": self._key.secret_bytes(),
                    "kem": self._kem.to_bytes(),
                    "chain": self._chain_id or b"",
                    "folders": [key.to_bytes() for key in self._folder_keys.values()],
                    "labels": [[label.encode(), folder] for label, folder in self.labels.items()],
                }
            ),
        )

    @classmethod
    def load(
        cls,
        keystore: Keystore,
        entry: str = _ENTRY,
        *,
        clock_ms: Callable[[], int] = system_clock_ms,
    ) -> Self:
        """The wallet that :meth:`save` put; raises ``KeystoreError`` where the entry is something else."""
        secret = keystore.get(entry)
        try:
            value: Any = decode(secret, what="wallet")
            version = value["version"]
        except (InputError, TypeError, KeyError):
            raise KeystoreError("the entry is not a wallet") from None
        if type(version) is not int or version != WALLET_FORMAT_VERSION:
            raise KeystoreError(f"not a wallet of format {WALLET_FORMAT_VERSION}", code=Code.FORMAT_VERSION)
        try:
            wallet = cls(
                SigningKey.from_bytes(value["signing"]),
                KemPrivateKey.from_bytes(value["kem"]),
                identity=value["identity"],
                chain_id=value["chain"] or None,
                clock_ms=clock_ms,
            )
            if len(wallet.identity) != ID_BYTES or not isinstance(wallet.identity, bytes):
                raise ValueError("an identity is an id")
            for encoded in value["folders"]:
                wallet.add_folder_key(FolderKey.from_bytes(encoded))
            wallet.labels = {label.decode(): folder for label, folder in value["labels"]}
        except (InputError, TypeError, KeyError, ValueError, AttributeError):
            raise KeystoreError("the entry is a damaged wallet") from None
        return wallet


def _digest(blob: bytes) -> bytes:
    return hashlib.sha256(blob).digest()


def _tokens(key: FolderKey, terms: Iterable[str]) -> list[bytes]:
    tokens = blind_tokens(key, terms)
    if len(tokens) > TOKENS_PER_RECORD_MAX:
        raise InputError(f"{len(tokens)} terms, at most {TOKENS_PER_RECORD_MAX}", code=Code.OVERSIZED)
    return tokens

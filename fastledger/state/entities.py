"""The values of the state, one struct a subject, and the tables they stand in (SPEC-STATE-3).

========  =========================  ==========================================
prefix    key                        value
========  =========================  ==========================================
``K``     33-byte signing key        Pseudonym: the identity that the key signs for
``I``     identity id                Identity
``M``     identity id                KemKey
``F``     folder id                  Folder
``R``     record id                  Record, with its present version
``V``     record id, version u32 BE  RecordVersion: those that were superseded
``B``     envelope digest            BlobOwner
``C``     consent id                 Consent
``G``     folder id, grantee id      Grants: what the grantee may do in the folder
``A``     33-byte proposer's key     Account: the credits that its blocks earned
========  =========================  ==========================================
"""

from fastledger.model.bodies import Purpose, Role
from fastledger.state.view import Entity, Table


class Pseudonym(Entity, frozen=True):
    """Whom a key signs for."""

    identity: bytes


class Identity(Entity, frozen=True):
    """Who may sign and as what. ``endorsed_until_ms`` 0: nobody vouches for the role."""

    key: bytes
    role: Role
    endorser: bytes
    endorsed_until_ms: int
    revoked: bool


class KemKey(Entity, frozen=True):
    """The identity's key-encapsulation public key, self-describing."""

    kem: bytes


class Folder(Entity, frozen=True):
    """Records of one patient and one category (which only key holders know) at a key epoch."""

    owner: bytes
    epoch: int


class RecordVersion(Entity, frozen=True):
    """One version's envelope."""

    digest: bytes
    size: int
    epoch: int
    author: bytes
    time_ms: int


class Record(Entity, frozen=True):
    """A record and its present version, numbered from 1; an erased one keeps its place."""

    folder: bytes
    version: int
    erased: bool
    present: RecordVersion


class BlobOwner(Entity, frozen=True):
    """Which record an envelope belongs to: no envelope serves two."""

    record: bytes


class Consent(Entity, frozen=True):
    """A consent as granted."""

    owner: bytes
    grantee: bytes
    folders: tuple[bytes, ...]
    purposes: int
    rights: int
    until_ms: int
    revoked: bool


class Grant(Entity, frozen=True):
    """The part of a consent that an access check needs."""

    consent: bytes
    purposes: int
    rights: int
    until_ms: int
    revoked: bool


class Grants(Entity, frozen=True):
    """Every consent of one grantee in one folder, oldest first."""

    grants: tuple[Grant, ...]


class Account(Entity, frozen=True):
    """Credits, in whole units."""

    balance: int


KEYS = Table(b"K", Pseudonym)
IDENTITIES = Table(b"I", Identity)
KEM_KEYS = Table(b"M", KemKey)
FOLDERS = Table(b"F", Folder)
RECORDS = Table(b"R", Record)
VERSIONS = Table(b"V", RecordVersion)
BLOBS = Table(b"B", BlobOwner)
CONSENTS = Table(b"C", Consent)
GRANTS = Table(b"G", Grants)
ACCOUNTS = Table(b"A", Account)

# Bit i of a purposes mask is the i-th of these; new purposes are appended.
PURPOSE_BITS: dict[Purpose, int] = {
    Purpose.TREATMENT: 1,
    Purpose.EMERGENCY: 2,
    Purpose.PAYMENT: 4,
    Purpose.OPERATIONS: 8,
    Purpose.RESEARCH: 16,
    Purpose.TRIAL: 32,
    Purpose.PUBLIC_HEALTH: 64,
    Purpose.PATIENT_REQUEST: 128,
}


def version_key(record: bytes, version: int) -> bytes:
    """The key of one version in table ``V``."""
    return record + version.to_bytes(4, "big")

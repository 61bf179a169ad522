"""What stands in the body of each kind of transaction: one immutable struct a kind (SPEC-BODY-1).

Ids are 16 bytes. Record, folder and consent ids are drawn at random by the client; identity ids follow from the
first key of the identity. No field may hold clinical data, a name or any identifier from outside: categories,
codes and texts stay inside envelopes, and search happens over blind tokens (SPEC-PRIV-1).
"""

from enum import IntFlag, StrEnum
from typing import Annotated, Any, TypeAlias

import msgspec
from msgspec import Meta

from fastledger import limits
from fastledger.crypto.hpke import public_key_suite
from fastledger.errors import Code, EnvelopeError, InputError

Id16: TypeAlias = Annotated[bytes, Meta(min_length=16, max_length=16)]
Key33: TypeAlias = Annotated[bytes, Meta(min_length=33, max_length=33)]
Digest32: TypeAlias = Annotated[bytes, Meta(min_length=32, max_length=32)]
Signature64: TypeAlias = Annotated[bytes, Meta(min_length=64, max_length=64)]
Token16: TypeAlias = Annotated[bytes, Meta(min_length=16, max_length=16)]
UInt32: TypeAlias = Annotated[int, Meta(ge=0, le=2**32 - 1)]
TimeMs: TypeAlias = Annotated[int, Meta(ge=0, le=2**53 - 1)]
SizeBytes: TypeAlias = Annotated[int, Meta(ge=1, le=limits.BLOB_BYTES_MAX)]
KemPublicKey: TypeAlias = Annotated[bytes, Meta(min_length=33, max_length=limits.KEM_PUBLIC_KEY_BYTES_MAX)]
KeyWrap: TypeAlias = Annotated[bytes, Meta(min_length=48, max_length=limits.WRAPPED_KEY_BYTES_MAX)]
FolderWrap: TypeAlias = Annotated[bytes, Meta(min_length=40, max_length=64)]
Tokens: TypeAlias = Annotated[list[Token16], Meta(max_length=limits.TOKENS_PER_RECORD_MAX)]
FolderWraps: TypeAlias = Annotated[
    list[FolderWrap], Meta(min_length=1, max_length=limits.FOLDERS_PER_CONSENT_MAX)
]


class Role(StrEnum):
    """What an identity may be endorsed as."""

    PATIENT = "patient"
    PRACTITIONER = "practitioner"
    ORGANISATION = "organisation"
    DEVICE = "device"
    AUDITOR = "auditor"
    REGULATOR = "regulator"
    INSURER = "insurer"
    MANUFACTURER = "manufacturer"
    PHARMACY = "pharmacy"


class Purpose(StrEnum):
    """Purposes of use, as in HL7 v3 PurposeOfUse."""

    TREATMENT = "TREAT"
    EMERGENCY = "ETREAT"
    PAYMENT = "HPAYMT"
    OPERATIONS = "HOPERAT"
    RESEARCH = "HRESCH"
    TRIAL = "CLINTRCH"
    PUBLIC_HEALTH = "PUBHLTH"
    PATIENT_REQUEST = "PATRQT"


class Right(IntFlag):
    """What a consent allows in its folders."""

    READ = 1
    WRITE = 2


Purposes: TypeAlias = Annotated[list[Purpose], Meta(min_length=1, max_length=limits.PURPOSES_PER_CONSENT_MAX)]
Rights: TypeAlias = Annotated[int, Meta(ge=1, le=3)]


def _check_kem(kem: bytes) -> None:
    """``ValueError``, which a decoder turns into its own error, for what is no public key of a known suite."""
    try:
        public_key_suite(kem)
    except EnvelopeError as error:
        raise ValueError("not a KEM public key") from error


class Body(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True, gc=False):
    """Base of all bodies: unknown fields are refused, so that a signed field always means something."""


class IdentityRegister(Body, frozen=True):
    """The signer's key becomes an identity that holds no role until it is endorsed, save ``patient``."""

    role: Role
    kem: KemPublicKey

    def __post_init__(self) -> None:
        """Refuses what is no KEM key: nobody could ever grant this identity anything."""
        _check_kem(self.kem)


class IdentityEndorse(Body, frozen=True):
    """The signer vouches that ``subject`` holds ``role`` until ``until_ms``."""

    subject: Id16
    role: Role
    until_ms: TimeMs


class IdentityRotate(Body, frozen=True):
    """The identity goes over to the key ``key``; ``proof`` is that key's signature over the rotation."""

    key: Key33
    kem: KemPublicKey
    proof: Signature64

    def __post_init__(self) -> None:
        """Refuses what is no KEM key."""
        _check_kem(self.kem)


class IdentityRevoke(Body, frozen=True):
    """``subject`` signs nothing valid from here on; ``reason`` is a number of the network's own list."""

    subject: Id16
    reason: UInt32


class FolderOpen(Body, frozen=True):
    """The signer opens folders that it owns, at epoch 1, keeping their keys wrapped to itself."""

    folders: Annotated[list[Id16], Meta(min_length=1, max_length=limits.FOLDERS_PER_CONSENT_MAX)]
    keys: FolderWraps
    wrap: KeyWrap


class FolderRotate(Body, frozen=True):
    """The owner opens the next ``epoch`` of ``folder``: what is written from here on needs the new key."""

    epoch: UInt32
    folder: Id16
    keys: FolderWraps
    wrap: KeyWrap


class RecordPut(Body, frozen=True):
    """A new record: the digest and size of its envelope, and the blind tokens that find it."""

    digest: Digest32
    epoch: UInt32
    folder: Id16
    record: Id16
    size: SizeBytes
    tokens: Tokens = []


class RecordAmend(Body, frozen=True):
    """Version ``version`` of a record supersedes the one before; earlier versions stay readable."""

    digest: Digest32
    epoch: UInt32
    record: Id16
    size: SizeBytes
    version: UInt32
    tokens: Tokens = []


class RecordErase(Body, frozen=True):
    """Every version's envelope is destroyed, and with it the only copy of its data key."""

    reason: UInt32
    record: Id16


class ConsentGrant(Body, frozen=True):
    """The owner of ``folders`` lets ``grantee`` use them for ``purposes`` until ``until_ms``.

    ``folders`` holds (folder id, epoch); ``keys[i]`` wraps that folder key under the key inside ``wrap``.
    """

    consent: Id16
    folders: Annotated[
        list[tuple[Id16, UInt32]], Meta(min_length=1, max_length=limits.FOLDERS_PER_CONSENT_MAX)
    ]
    grantee: Id16
    keys: FolderWraps
    purposes: Purposes
    rights: Rights
    until_ms: TimeMs
    wrap: KeyWrap


class ConsentRekey(Body, frozen=True):
    """Gives the grantee of a standing consent the keys of folders' newer epochs."""

    consent: Id16
    folders: Annotated[
        list[tuple[Id16, UInt32]], Meta(min_length=1, max_length=limits.FOLDERS_PER_CONSENT_MAX)
    ]
    keys: FolderWraps
    wrap: KeyWrap


class ConsentRevoke(Body, frozen=True):
    """The consent ends with this block."""

    consent: Id16


class AccessRead(Body, frozen=True):
    """The signer asks to read ``record`` for ``purpose``; the verdict is the transaction's result."""

    purpose: Purpose
    record: Id16
    version: UInt32 = 0


BODIES: dict[str, type[Body]] = {
    "identity.register": IdentityRegister,
    "identity.endorse": IdentityEndorse,
    "identity.rotate": IdentityRotate,
    "identity.revoke": IdentityRevoke,
    "folder.open": FolderOpen,
    "folder.rotate": FolderRotate,
    "record.put": RecordPut,
    "record.amend": RecordAmend,
    "record.erase": RecordErase,
    "consent.grant": ConsentGrant,
    "consent.rekey": ConsentRekey,
    "consent.revoke": ConsentRevoke,
    "access.read": AccessRead,
}
KINDS: dict[type[Body], str] = {body: kind for kind, body in BODIES.items()}


_DECODERS = {kind: msgspec.msgpack.Decoder(body).decode for kind, body in BODIES.items()}


def decode_body(kind: str, encoded: bytes) -> Body:
    """Like :func:`parse_body`, from the MessagePack form that the native scan makes of a body."""
    decoder = _DECODERS.get(kind)
    if decoder is None:
        raise InputError("no such kind of transaction", code=Code.UNKNOWN_KIND)
    try:
        return decoder(encoded)
    except msgspec.DecodeError:
        raise InputError(f"the body does not fit {kind}", code=Code.BAD_BODY) from None


def parse_body(kind: str, value: Any) -> Body:
    """The typed body of a decoded map; raises ``InputError`` with ``UNKNOWN_KIND`` or ``BAD_BODY``.

    The message names the kind alone: what a validator says of a value could repeat the value.
    """
    body_type = BODIES.get(kind)
    if body_type is None:
        raise InputError("no such kind of transaction", code=Code.UNKNOWN_KIND)
    try:
        return msgspec.convert(value, body_type)
    except msgspec.ValidationError:
        raise InputError(f"the body does not fit {kind}", code=Code.BAD_BODY) from None


def body_map(body: Body) -> dict[str, Any]:
    """The body as the map that is encoded: fields at their default are left out."""
    value = msgspec.to_builtins(body, builtin_types=(bytes,))
    if not isinstance(value, dict):
        raise TypeError("a body encodes to a map")
    return value

"""Identities: pseudonyms, the keys that sign for them, and who vouches for their roles (SPEC-ID-4..9).

*Everybody* registers a key and is from then on known by a pseudonym, 16 bytes that follow from that first key. The
key can be replaced, the pseudonym stays. *Regulators* endorse organisations, *organisations* their staff and devices;
a patient needs nobody. Whoever is revoked signs nothing valid any more.
"""

from enum import StrEnum

from fastledger.crypto import verify_batch
from fastledger.crypto.hpke import public_key_suite
from fastledger.errors import EnvelopeError
from fastledger.model.body import Body
from fastledger.model.fields import (
    Id16,
    Identity16,
    KemPublicKey,
    Key33,
    OptionalIdentity,
    Signature64,
    TimeMs,
    UInt32,
)
from fastledger.model.genesis import Genesis
from fastledger.model.ids import identity_id, rotation_digest
from fastledger.model.terms import SIGNER, SUBJECT, unknown_signer_name
from fastledger.state.context import Context
from fastledger.state.entity import Entity
from fastledger.state.subject import Subject
from fastledger.state.view import Refusal, View

identities = Subject(
    "identity", number=11, summary="Pseudonyms, the keys that sign for them, and who vouches for their roles"
)

FOREVER_MS = 2**53 - 1


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


# Whose endorsement gives a role. A patient needs none: the role gives power over the patient's own folders only.
ENDORSERS: dict[Role, tuple[Role, ...]] = {
    Role.PATIENT: (Role.ORGANISATION, Role.PRACTITIONER),
    Role.PRACTITIONER: (Role.ORGANISATION, Role.PHARMACY),
    Role.DEVICE: (Role.ORGANISATION, Role.MANUFACTURER),
    Role.ORGANISATION: (Role.REGULATOR,),
    Role.AUDITOR: (Role.REGULATOR,),
    Role.REGULATOR: (Role.REGULATOR,),
    Role.INSURER: (Role.REGULATOR,),
    Role.MANUFACTURER: (Role.REGULATOR,),
    Role.PHARMACY: (Role.REGULATOR,),
}
# Members of an enum cost a call each time they are looked up.
_PATIENT, _REGULATOR = Role.PATIENT, Role.REGULATOR
# Roles that act for the organisation that endorsed them: what is granted to it is granted to them.
_PRACTITIONER, _DEVICE = Role.PRACTITIONER, Role.DEVICE

UNKNOWN_SIGNER = identities.refusal(1, "unknown-signer", "its key signs for no identity")
SIGNER_REVOKED = identities.refusal(2, "signer-revoked", "the identity was revoked")
ALREADY_REGISTERED = identities.refusal(3, "already-registered", "the key is registered already")
UNKNOWN_SUBJECT = identities.refusal(4, "unknown-subject", "no such identity")
ROLE_NOT_ENDORSED = identities.refusal(5, "role-not-endorsed", "nobody vouches for the role at this time")
NOT_AUTHORISED = identities.refusal(6, "not-authorised", "the signer's role does not allow it")
BAD_PROOF_OF_POSSESSION = identities.refusal(
    7, "bad-proof-of-possession", "the new key's holder did not sign the take-over"
)
KEY_IN_USE = identities.refusal(8, "key-in-use", "the new key signs for an identity already")


class Identity(Entity, frozen=True):
    """Who may sign and as what. ``endorsed_until_ms`` 0: nobody vouches for the role."""

    key: Key33
    role: Role
    endorser: OptionalIdentity
    endorsed_until_ms: TimeMs
    revoked: bool


class Pseudonym(Entity, frozen=True):
    """Which identity a key signs for."""

    identity: Id16


class KemKey(Entity, frozen=True):
    """The key-encapsulation public key under which folder keys are wrapped to an identity, self-describing."""

    kem: KemPublicKey


IDENTITIES = identities.table(1, "identity", Identity, term=SUBJECT, read_ahead=False)
KEYS = identities.table(2, "signing_key", Pseudonym, key={"key": Key33})
KEM_KEYS = identities.table(3, "kem_key", KemKey, key={"identity": Id16})


@identities.at_genesis()
def install_authorities(view: View, genesis: Genesis) -> None:
    """Genesis authorities are regulators that vouch for themselves."""
    for authority in genesis.authorities:
        identity = identity_id(authority.key)
        view.store(KEYS, authority.key, Pseudonym(identity))
        view.store(IDENTITIES, identity, Identity(authority.key, Role.REGULATOR, identity, FOREVER_MS, False))
        view.store(KEM_KEYS, identity, KemKey(authority.kem))


# What the rules of other subjects ask.


def actor(ctx: Context) -> tuple[bytes, Identity]:
    """The signer's 16-byte id and identity; refuses the unknown and the revoked."""
    pseudonym = ctx.view.load(KEYS, ctx.signer)
    if pseudonym is None:
        ctx.find_by(SIGNER, unknown_signer_name(ctx.signer))
        raise Refusal(UNKNOWN_SIGNER)
    actor_id = pseudonym.identity
    ctx.find_by(SIGNER, actor_id)
    identity = ctx.view.load(IDENTITIES, actor_id)
    if identity is None:
        raise Refusal(UNKNOWN_SIGNER)
    if identity.revoked:
        raise Refusal(SIGNER_REVOKED)
    return actor_id, identity


def in_role(ctx: Context, identity: Identity) -> bool:
    """Whether the identity's role is vouched for at this time, by someone not revoked since (SPEC-ID-6)."""
    if identity.role is _PATIENT:
        return True
    if identity.endorsed_until_ms <= ctx.time_ms:
        return False
    endorser = ctx.view.load(IDENTITIES, identity.endorser)
    return endorser is None or not endorser.revoked


def acts_for(actor_id: bytes, identity: Identity) -> tuple[bytes, ...]:
    """The ids whose consents an identity may use: its own and, for a member, its organisation's."""
    role = identity.role
    if role is _PRACTITIONER or role is _DEVICE:
        return (actor_id, identity.endorser)
    return (actor_id,)


# Kinds.


def _check_kem(kem: bytes) -> None:
    """``ValueError``, which a decoder turns into its own error, for what is no public key of a known suite."""
    try:
        public_key_suite(kem)
    except EnvelopeError as error:
        raise ValueError("not a KEM public key") from error


class IdentityRegister(Body, frozen=True):
    """The signer's key becomes an identity that holds no role until it is endorsed, save ``patient``."""

    role: Role
    kem: KemPublicKey

    def __post_init__(self) -> None:
        """Refuses what is no KEM key: nobody could ever grant this identity anything."""
        _check_kem(self.kem)


@identities.rule("register")
def register(ctx: Context, body: IdentityRegister) -> None:
    """A fresh key becomes an identity of the claimed role, endorsed by nobody."""
    identity = identity_id(ctx.signer)
    ctx.find_by(SIGNER, identity)
    ctx.find_by(SUBJECT, identity)
    if ctx.view.load(KEYS, ctx.signer) is not None or ctx.view.load(IDENTITIES, identity) is not None:
        raise Refusal(ALREADY_REGISTERED)
    ctx.view.store(KEYS, ctx.signer, Pseudonym(identity))
    ctx.view.store(IDENTITIES, identity, Identity(ctx.signer, body.role, b"", 0, False))
    ctx.view.store(KEM_KEYS, identity, KemKey(body.kem))


class IdentityEndorse(Body, frozen=True):
    """The signer vouches that ``subject`` holds ``role`` until ``until_ms``."""

    subject: Identity16
    role: Role
    until_ms: TimeMs


@identities.rule("endorse")
def endorse(ctx: Context, body: IdentityEndorse) -> None:
    """Someone whose own role allows it vouches for the role that the subject claimed."""
    actor_id, identity = actor(ctx)
    if identity.role not in ENDORSERS[body.role] or not in_role(ctx, identity):
        raise Refusal(NOT_AUTHORISED)
    subject = ctx.view.load(IDENTITIES, body.subject)
    if subject is None:
        raise Refusal(UNKNOWN_SUBJECT)
    if subject.revoked:
        raise Refusal(SIGNER_REVOKED)
    if subject.role != body.role or body.until_ms <= ctx.time_ms:
        raise Refusal(ROLE_NOT_ENDORSED)
    ctx.view.store(
        IDENTITIES, body.subject, Identity(subject.key, subject.role, actor_id, body.until_ms, False)
    )


class IdentityRotate(Body, frozen=True):
    """The identity goes over to the key ``key``; ``proof`` is that key's signature over the rotation."""

    key: Key33
    kem: KemPublicKey
    proof: Signature64

    def __post_init__(self) -> None:
        """Refuses what is no KEM key."""
        _check_kem(self.kem)


@identities.rule("rotate")
def rotate(ctx: Context, body: IdentityRotate) -> None:
    """The identity goes over to a new key whose holder signed the take-over; the old key signs no more."""
    actor_id, identity = actor(ctx)
    ctx.find_by(SUBJECT, actor_id)
    fresh = ctx.view.load(KEYS, body.key) is None and ctx.view.load(IDENTITIES, identity_id(body.key)) is None
    if not fresh:
        raise Refusal(KEY_IN_USE)
    digest = rotation_digest(ctx.chain_id, actor_id, body.key)
    if not verify_batch(digest, body.proof, body.key)[0]:
        raise Refusal(BAD_PROOF_OF_POSSESSION)
    ctx.view.remove(KEYS, ctx.signer)
    ctx.view.store(KEYS, body.key, Pseudonym(actor_id))
    ctx.view.store(
        IDENTITIES,
        actor_id,
        Identity(body.key, identity.role, identity.endorser, identity.endorsed_until_ms, False),
    )
    ctx.view.store(KEM_KEYS, actor_id, KemKey(body.kem))


class IdentityRevoke(Body, frozen=True):
    """``subject`` signs nothing valid from here on; ``reason`` is a number of the network's own list."""

    subject: Identity16
    reason: UInt32


@identities.rule("revoke", is_alert=True)
def revoke(ctx: Context, body: IdentityRevoke) -> None:
    """An identity is ended by itself, by who endorsed it, or by a regulator."""
    actor_id, identity = actor(ctx)
    subject = ctx.view.load(IDENTITIES, body.subject)
    if subject is None:
        raise Refusal(UNKNOWN_SUBJECT)
    if subject.revoked:
        raise Refusal(SIGNER_REVOKED)
    itself = actor_id == body.subject
    endorsed_it = actor_id == subject.endorser and in_role(ctx, identity)
    regulator = identity.role is _REGULATOR and in_role(ctx, identity)
    if not (itself or endorsed_it or regulator):
        raise Refusal(NOT_AUTHORISED)
    ctx.view.store(
        IDENTITIES,
        body.subject,
        Identity(subject.key, subject.role, subject.endorser, subject.endorsed_until_ms, True),
    )

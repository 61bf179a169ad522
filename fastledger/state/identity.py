"""Identities: register, endorse, rotate, revoke (SPEC-ID-4..9)."""

from fastledger.crypto import verify_batch
from fastledger.errors import Code
from fastledger.model.bodies import (
    IdentityEndorse,
    IdentityRegister,
    IdentityRevoke,
    IdentityRotate,
    Role,
)
from fastledger.model.genesis import Genesis
from fastledger.model.ids import identity_id, rotation_digest
from fastledger.state.context import ENDORSERS, Context
from fastledger.state.entities import IDENTITIES, KEM_KEYS, KEYS, Identity, KemKey, Pseudonym
from fastledger.state.terms import SIGNER, SUBJECT
from fastledger.state.view import Refusal, View

FOREVER_MS = 2**53 - 1


def install_authorities(view: View, genesis: Genesis) -> None:
    """Genesis authorities are regulators that vouch for themselves."""
    for authority in genesis.authorities:
        identity = identity_id(authority.key)
        view.store(KEYS, authority.key, Pseudonym(identity))
        view.store(IDENTITIES, identity, Identity(authority.key, Role.REGULATOR, identity, FOREVER_MS, False))
        view.store(KEM_KEYS, identity, KemKey(authority.kem))
    view.commit()


def register(ctx: Context, body: IdentityRegister) -> None:
    """A fresh key becomes an identity of the claimed role, endorsed by nobody."""
    identity = identity_id(ctx.signer)
    ctx.find_by(SIGNER, identity)
    ctx.find_by(SUBJECT, identity)
    if ctx.view.load(KEYS, ctx.signer) is not None or ctx.view.load(IDENTITIES, identity) is not None:
        raise Refusal(Code.ALREADY_REGISTERED)
    ctx.view.store(KEYS, ctx.signer, Pseudonym(identity))
    ctx.view.store(IDENTITIES, identity, Identity(ctx.signer, body.role, b"", 0, False))
    ctx.view.store(KEM_KEYS, identity, KemKey(body.kem))


def endorse(ctx: Context, body: IdentityEndorse) -> None:
    """Someone whose own role allows it vouches for the role that the subject claimed."""
    ctx.find_by(SUBJECT, body.subject)
    actor_id, actor = ctx.actor()
    if actor.role not in ENDORSERS[body.role] or not ctx.in_role(actor):
        raise Refusal(Code.NOT_AUTHORISED)
    subject = ctx.view.load(IDENTITIES, body.subject)
    if subject is None:
        raise Refusal(Code.UNKNOWN_SUBJECT)
    if subject.revoked:
        raise Refusal(Code.SIGNER_REVOKED)
    if subject.role != body.role or body.until_ms <= ctx.time_ms:
        raise Refusal(Code.ROLE_NOT_ENDORSED)
    ctx.view.store(
        IDENTITIES, body.subject, Identity(subject.key, subject.role, actor_id, body.until_ms, False)
    )


def rotate(ctx: Context, body: IdentityRotate) -> None:
    """The identity goes over to a new key whose holder signed the take-over; the old key signs no more."""
    actor_id, actor = ctx.actor()
    ctx.find_by(SUBJECT, actor_id)
    fresh = ctx.view.load(KEYS, body.key) is None and ctx.view.load(IDENTITIES, identity_id(body.key)) is None
    if not fresh:
        raise Refusal(Code.KEY_IN_USE)
    digest = rotation_digest(ctx.chain_id, actor_id, body.key)
    if not verify_batch(digest, body.proof, body.key)[0]:
        raise Refusal(Code.BAD_PROOF_OF_POSSESSION)
    ctx.view.remove(KEYS, ctx.signer)
    ctx.view.store(KEYS, body.key, Pseudonym(actor_id))
    ctx.view.store(
        IDENTITIES,
        actor_id,
        Identity(body.key, actor.role, actor.endorser, actor.endorsed_until_ms, False),
    )
    ctx.view.store(KEM_KEYS, actor_id, KemKey(body.kem))


def revoke(ctx: Context, body: IdentityRevoke) -> None:
    """An identity is ended by itself, by who endorsed it, or by a regulator."""
    ctx.find_by(SUBJECT, body.subject)
    actor_id, actor = ctx.actor()
    subject = ctx.view.load(IDENTITIES, body.subject)
    if subject is None:
        raise Refusal(Code.UNKNOWN_SUBJECT)
    if subject.revoked:
        raise Refusal(Code.SIGNER_REVOKED)
    itself = actor_id == body.subject
    endorsed_it = actor_id == subject.endorser and ctx.in_role(actor)
    regulator = actor.role == Role.REGULATOR and ctx.in_role(actor)
    if not (itself or endorsed_it or regulator):
        raise Refusal(Code.NOT_AUTHORISED)
    ctx.view.store(
        IDENTITIES,
        body.subject,
        Identity(subject.key, subject.role, subject.endorser, subject.endorsed_until_ms, True),
    )

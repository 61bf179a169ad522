"""Consent: an owner lets a grantee use folders for purposes until a time (SPEC-CONS-1..6)."""

from collections.abc import Sequence

from fastledger.errors import Code
from fastledger.limits import CONSENTS_PER_FOLDER_GRANTEE_MAX
from fastledger.model.bodies import ConsentGrant, ConsentRekey, ConsentRevoke, Right
from fastledger.state.context import Context
from fastledger.state.entities import (
    CONSENTS,
    FOLDERS,
    GRANTS,
    IDENTITIES,
    PURPOSE_BITS,
    Consent,
    Grant,
    Grants,
    Identity,
)
from fastledger.state.terms import CONSENT, FOLDER, SUBJECT
from fastledger.state.view import Refusal

# Plain integers: an enum's operators cost more than the whole check.
READ, WRITE = Right.READ.value, Right.WRITE.value


def permit(
    ctx: Context,
    actor_id: bytes,
    actor: Identity,
    folder: bytes,
    right_bit: int,
    purpose_bit: int = -1,
) -> None:
    """Refuses unless some consent gives the actor the right in ``folder`` (for the purpose, where one is named).

    The code tells what stood nearest to a permission: a consent for another purpose, without the right, expired,
    revoked, or none at all.
    """
    if not ctx.in_role(actor):
        raise Refusal(Code.ROLE_NOT_ENDORSED)
    revoked = expired = no_right = no_purpose = False
    for grantee in ctx.grantees(actor_id, actor):
        entry = ctx.view.load(GRANTS, folder + grantee)
        for grant in entry.grants if entry is not None else ():
            if grant.revoked:
                revoked = True
            elif grant.until_ms <= ctx.time_ms:
                expired = True
            elif not grant.rights & right_bit:
                no_right = True
            elif not grant.purposes & purpose_bit:
                no_purpose = True
            else:
                return
    if no_purpose:
        raise Refusal(Code.PURPOSE_NOT_ALLOWED)
    if no_right:
        raise Refusal(Code.RIGHT_NOT_GRANTED)
    if expired:
        raise Refusal(Code.CONSENT_EXPIRED)
    raise Refusal(Code.CONSENT_REVOKED if revoked else Code.CONSENT_MISSING)


def _check_folders(ctx: Context, owner: bytes, folders: Sequence[tuple[bytes, int]], key_count: int) -> None:
    """Every folder is the owner's, named once, at an epoch that exists, with a key."""
    if key_count != len(folders) or len({folder for folder, _ in folders}) != len(folders):
        raise Refusal(Code.COUNTS_DIFFER)
    for folder_id, epoch in folders:
        ctx.find_by(FOLDER, folder_id)
        folder = ctx.view.load(FOLDERS, folder_id)
        if folder is None:
            raise Refusal(Code.UNKNOWN_FOLDER)
        if folder.owner != owner:
            raise Refusal(Code.NOT_OWNER)
        if not 1 <= epoch <= folder.epoch:
            raise Refusal(Code.WRONG_EPOCH)


def grant(ctx: Context, body: ConsentGrant) -> None:
    """Records the consent, and in each folder what it lets the grantee do."""
    ctx.find_by(CONSENT, body.consent)
    ctx.find_by(SUBJECT, body.grantee)
    actor_id, _ = ctx.actor()
    if ctx.view.load(CONSENTS, body.consent) is not None:
        raise Refusal(Code.CONSENT_EXISTS)
    if body.until_ms <= ctx.time_ms:
        raise Refusal(Code.CONSENT_EXPIRED)
    grantee = ctx.view.load(IDENTITIES, body.grantee)
    if grantee is None:
        raise Refusal(Code.UNKNOWN_SUBJECT)
    if grantee.revoked:
        raise Refusal(Code.SIGNER_REVOKED)
    _check_folders(ctx, actor_id, body.folders, len(body.keys))
    purposes = 0
    for purpose in body.purposes:
        purposes |= PURPOSE_BITS[purpose]
    folders = tuple(folder for folder, _ in body.folders)
    ctx.view.store(
        CONSENTS,
        body.consent,
        Consent(actor_id, body.grantee, folders, purposes, body.rights, body.until_ms, False),
    )
    entry = Grant(body.consent, purposes, body.rights, body.until_ms, False)
    for folder in folders:
        _add_grant(ctx, folder + body.grantee, entry)


def _add_grant(ctx: Context, key: bytes, entry: Grant) -> None:
    """Appends a grant; what has ended is forgotten first where the bound is reached."""
    held = ctx.view.load(GRANTS, key)
    grants = held.grants if held is not None else ()
    if len(grants) >= CONSENTS_PER_FOLDER_GRANTEE_MAX:
        grants = tuple(item for item in grants if not item.revoked and item.until_ms > ctx.time_ms)
        if len(grants) >= CONSENTS_PER_FOLDER_GRANTEE_MAX:
            raise Refusal(Code.TOO_MANY_CONSENTS)
    ctx.view.store(GRANTS, key, Grants((*grants, entry)))


def _own_consent(ctx: Context, consent_id: bytes) -> Consent:
    """The signer's own standing consent."""
    ctx.find_by(CONSENT, consent_id)
    actor_id, _ = ctx.actor()
    consent = ctx.view.load(CONSENTS, consent_id)
    if consent is None:
        raise Refusal(Code.UNKNOWN_CONSENT)
    ctx.find_by(SUBJECT, consent.grantee)
    if consent.owner != actor_id:
        raise Refusal(Code.NOT_OWNER)
    if consent.revoked:
        raise Refusal(Code.CONSENT_REVOKED)
    return consent


def rekey(ctx: Context, body: ConsentRekey) -> None:
    """Carries wrapped keys to the grantee; what the consent allows stays as it was."""
    consent = _own_consent(ctx, body.consent)
    if consent.until_ms <= ctx.time_ms:
        raise Refusal(Code.CONSENT_EXPIRED)
    _check_folders(ctx, consent.owner, body.folders, len(body.keys))
    if any(folder not in consent.folders for folder, _ in body.folders):
        raise Refusal(Code.UNKNOWN_FOLDER)


def revoke(ctx: Context, body: ConsentRevoke) -> None:
    """Ends the consent in every folder."""
    consent = _own_consent(ctx, body.consent)
    ctx.view.store(
        CONSENTS,
        body.consent,
        Consent(
            consent.owner,
            consent.grantee,
            consent.folders,
            consent.purposes,
            consent.rights,
            consent.until_ms,
            True,
        ),
    )
    for folder in consent.folders:
        key = folder + consent.grantee
        held = ctx.view.load(GRANTS, key)
        if held is None:
            continue
        grants = tuple(
            Grant(item.consent, item.purposes, item.rights, item.until_ms, True)
            if item.consent == body.consent
            else item
            for item in held.grants
        )
        ctx.view.store(GRANTS, key, Grants(grants))

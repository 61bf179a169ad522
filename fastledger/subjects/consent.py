"""Consent: an owner lets a grantee use folders for purposes until a time (SPEC-CONS-1..6).

The *owner* of folders grants, renews keys and revokes. The *grantee* (a practitioner also through the organisation
that endorsed it) may then read or write there. The keys of the folders travel inside the grant, wrapped to the
grantee; a revocation cannot take them back, so the owner opens the folders' next epoch after it.
"""

from collections.abc import Sequence
from enum import IntFlag, StrEnum
from typing import Annotated, TypeAlias

from msgspec import Meta

from fastledger.limits import (
    CONSENTS_PER_FOLDER_GRANTEE_MAX,
    FOLDERS_PER_CONSENT_MAX,
    PURPOSES_PER_CONSENT_MAX,
)
from fastledger.model.body import Body
from fastledger.model.fields import FolderWraps, Id16, Identity16, KeyWrap, TimeMs, UInt32
from fastledger.model.terms import SUBJECT
from fastledger.state.context import Context
from fastledger.state.entity import Entity
from fastledger.state.subject import Subject
from fastledger.state.view import Refusal
from fastledger.subjects.folder import COUNTS_DIFFER, FOLDERS, NOT_OWNER, UNKNOWN_FOLDER, WRONG_EPOCH
from fastledger.subjects.identity import (
    IDENTITIES,
    ROLE_NOT_ENDORSED,
    SIGNER_REVOKED,
    UNKNOWN_SUBJECT,
    Identity,
    actor,
    acts_for,
    in_role,
)

consents = Subject("consent", number=14, summary="Who may use whose folders, for what, and until when")


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
# Plain integers: an enum's operators cost more than the whole check.
READ, WRITE = Right.READ.value, Right.WRITE.value

PurposeMask: TypeAlias = Annotated[int, Meta(ge=0, extra={"mask": PURPOSE_BITS})]
Rights: TypeAlias = Annotated[int, Meta(ge=1, le=3, extra={"mask": {"read": READ, "write": WRITE}})]

CONSENT_EXISTS = consents.refusal(1, "consent-exists", "the consent's id is taken")
UNKNOWN_CONSENT = consents.refusal(2, "unknown-consent", "no such consent")
CONSENT_MISSING = consents.refusal(3, "consent-missing", "no consent lets the signer use the folder")
CONSENT_EXPIRED = consents.refusal(4, "consent-expired", "the consent has ended")
CONSENT_REVOKED = consents.refusal(5, "consent-revoked", "the consent was revoked")
PURPOSE_NOT_ALLOWED = consents.refusal(6, "purpose-not-allowed", "the consent is for another purpose")
RIGHT_NOT_GRANTED = consents.refusal(7, "right-not-granted", "the consent does not give the right")
TOO_MANY_CONSENTS = consents.refusal(
    8, "too-many-consents", f"{CONSENTS_PER_FOLDER_GRANTEE_MAX} consents stand in the folder for the grantee"
)


class Consent(Entity, frozen=True):
    """A consent as granted."""

    owner: Identity16
    grantee: Identity16
    folders: tuple[Annotated[bytes, FOLDERS.key], ...]
    purposes: PurposeMask
    rights: Rights
    until_ms: TimeMs
    revoked: bool


class Grant(Entity, frozen=True):
    """The part of a consent that an access check needs."""

    consent: Id16
    purposes: PurposeMask
    rights: Rights
    until_ms: TimeMs
    revoked: bool


class Grants(Entity, frozen=True):
    """Every consent of one grantee in one folder, oldest first."""

    grants: tuple[Grant, ...]


CONSENTS = consents.table(1, "consent", Consent)
GRANTS = consents.table(2, "grants", Grants, key={"folder": Id16, "grantee": Id16})


def permit(
    ctx: Context,
    actor_id: bytes,
    identity: Identity,
    folder: bytes,
    right_bit: int,
    purpose_bit: int = -1,
) -> None:
    """Refuses unless some consent gives the actor the right in ``folder`` (for the purpose, where one is named).

    The code tells what stood nearest to a permission: a consent for another purpose, without the right, expired,
    revoked, or none at all.
    """
    if not in_role(ctx, identity):
        raise Refusal(ROLE_NOT_ENDORSED)
    revoked = expired = no_right = no_purpose = False
    for grantee in acts_for(actor_id, identity):
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
        raise Refusal(PURPOSE_NOT_ALLOWED)
    if no_right:
        raise Refusal(RIGHT_NOT_GRANTED)
    if expired:
        raise Refusal(CONSENT_EXPIRED)
    raise Refusal(CONSENT_REVOKED if revoked else CONSENT_MISSING)


FolderEpochs: TypeAlias = Annotated[
    list[tuple[Annotated[bytes, FOLDERS.key], UInt32]],
    Meta(min_length=1, max_length=FOLDERS_PER_CONSENT_MAX),
]


def _check_folders(ctx: Context, owner: bytes, folders: Sequence[tuple[bytes, int]], key_count: int) -> None:
    """Every folder is the owner's, named once, at an epoch that exists, with a key."""
    if key_count != len(folders) or len({folder for folder, _ in folders}) != len(folders):
        raise Refusal(COUNTS_DIFFER)
    for folder_id, epoch in folders:
        folder = ctx.view.load(FOLDERS, folder_id)
        if folder is None:
            raise Refusal(UNKNOWN_FOLDER)
        if folder.owner != owner:
            raise Refusal(NOT_OWNER)
        if not 1 <= epoch <= folder.epoch:
            raise Refusal(WRONG_EPOCH)


class ConsentGrant(Body, frozen=True):
    """The owner of ``folders`` lets ``grantee`` use them for ``purposes`` until ``until_ms``.

    ``folders`` holds (folder id, epoch); ``keys[i]`` wraps that folder key under the key inside ``wrap``.
    """

    consent: Annotated[bytes, CONSENTS.key]
    folders: FolderEpochs
    grantee: Identity16
    keys: FolderWraps
    purposes: Annotated[list[Purpose], Meta(min_length=1, max_length=PURPOSES_PER_CONSENT_MAX)]
    rights: Rights
    until_ms: TimeMs
    wrap: KeyWrap


@consents.rule("grant")
def grant(ctx: Context, body: ConsentGrant) -> None:
    """Records the consent, and in each folder what it lets the grantee do."""
    actor_id, _ = actor(ctx)
    if ctx.view.load(CONSENTS, body.consent) is not None:
        raise Refusal(CONSENT_EXISTS)
    if body.until_ms <= ctx.time_ms:
        raise Refusal(CONSENT_EXPIRED)
    grantee = ctx.view.load(IDENTITIES, body.grantee)
    if grantee is None:
        raise Refusal(UNKNOWN_SUBJECT)
    if grantee.revoked:
        raise Refusal(SIGNER_REVOKED)
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
            raise Refusal(TOO_MANY_CONSENTS)
    ctx.view.store(GRANTS, key, Grants((*grants, entry)))


class ConsentRekey(Body, frozen=True):
    """Gives the grantee of a standing consent the keys of folders' newer epochs."""

    consent: Annotated[bytes, CONSENTS.key]
    folders: FolderEpochs
    keys: FolderWraps
    wrap: KeyWrap


@consents.rule("rekey")
def rekey(ctx: Context, body: ConsentRekey) -> None:
    """Carries wrapped keys to the grantee; what the consent allows stays as it was."""
    consent = _own_consent(ctx, body.consent)
    if consent.until_ms <= ctx.time_ms:
        raise Refusal(CONSENT_EXPIRED)
    _check_folders(ctx, consent.owner, body.folders, len(body.keys))
    if any(folder not in consent.folders for folder, _ in body.folders):
        raise Refusal(UNKNOWN_FOLDER)


def _own_consent(ctx: Context, consent_id: bytes) -> Consent:
    """The signer's own standing consent."""
    actor_id, _ = actor(ctx)
    consent = ctx.view.load(CONSENTS, consent_id)
    if consent is None:
        raise Refusal(UNKNOWN_CONSENT)
    ctx.find_by(SUBJECT, consent.grantee)
    if consent.owner != actor_id:
        raise Refusal(NOT_OWNER)
    if consent.revoked:
        raise Refusal(CONSENT_REVOKED)
    return consent


class ConsentRevoke(Body, frozen=True):
    """The consent ends with this block."""

    consent: Annotated[bytes, CONSENTS.key]


@consents.rule("revoke")
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

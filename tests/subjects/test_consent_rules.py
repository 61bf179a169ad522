"""The rules of consent and access, bare: granting, using, renewing, revoking (SPEC-CONS, SPEC-ACC)."""

import itertools

import pytest
from rules import FOLDER_WRAP, KEY_WRAP, Person, State, grant

from fastledger import Code, Purpose, Right, Role
from fastledger.limits import CONSENTS_PER_FOLDER_GRANTEE_MAX
from fastledger.model.terms import SIGNER, SUBJECT
from fastledger.subjects.access import AccessRead
from fastledger.subjects.consent import (
    CONSENT_EXISTS,
    CONSENT_EXPIRED,
    CONSENT_MISSING,
    CONSENT_REVOKED,
    CONSENTS,
    GRANTS,
    PURPOSE_BITS,
    PURPOSE_NOT_ALLOWED,
    RIGHT_NOT_GRANTED,
    TOO_MANY_CONSENTS,
    UNKNOWN_CONSENT,
    ConsentRekey,
    ConsentRevoke,
)
from fastledger.subjects.folder import (
    COUNTS_DIFFER,
    FOLDERS,
    NOT_OWNER,
    UNKNOWN_FOLDER,
    WRONG_EPOCH,
    FolderRotate,
)
from fastledger.subjects.identity import (
    ROLE_NOT_ENDORSED,
    SIGNER_REVOKED,
    UNKNOWN_SIGNER,
    UNKNOWN_SUBJECT,
    IdentityRevoke,
)
from fastledger.subjects.record import RECORD_ERASED, RECORDS, UNKNOWN_RECORD, WRONG_VERSION, RecordErase


@pytest.fixture
def state() -> State:
    return State()


def read(record: bytes, purpose: Purpose = Purpose.TREATMENT, version: int = 0) -> AccessRead:
    return AccessRead(purpose=purpose, record=record, version=version)


def rekey(consent: bytes, *folders: tuple[bytes, int], keys: int | None = None) -> ConsentRekey:
    count = len(folders) if keys is None else keys
    return ConsentRekey(consent=consent, folders=list(folders), keys=[FOLDER_WRAP] * count, wrap=KEY_WRAP)


def settled(state: State) -> tuple[Person, Person, bytes, bytes]:
    """A patient, a clinic, a folder and a record in it."""
    patient, clinic = state.patient(), state.organisation()
    folder = state.folder(patient)
    return patient, clinic, folder, state.record(patient, folder)


# Granting.


def test_a_consent_stands_as_granted(state: State) -> None:  # SPEC-CONS-1
    patient, clinic, folder, _ = settled(state)
    other = state.folder(patient)
    purposes = (Purpose.RESEARCH, Purpose.TREATMENT)
    body = grant(state.draw(), clinic, folder, other, purposes=purposes, rights=Right(3))
    result = state.when(patient, body).is_accepted()
    result.is_found_by(CONSENTS.term, body.consent).is_found_by(FOLDERS.term, folder, other)
    result.is_found_by(SUBJECT, clinic.id).is_found_by(SIGNER, patient.id)
    entity = state.entity(CONSENTS, body.consent)
    assert (entity.owner, entity.grantee, entity.folders) == (patient.id, clinic.id, (folder, other))
    assert entity.purposes == PURPOSE_BITS[Purpose.RESEARCH] | PURPOSE_BITS[Purpose.TREATMENT]
    assert (entity.rights, entity.until_ms, entity.revoked) == (3, body.until_ms, False)
    for place in (folder, other):
        (entry,) = state.entity(GRANTS, place, clinic.id).grants
        assert (entry.consent, entry.rights, entry.revoked) == (body.consent, 3, False)


def test_only_owners_grant_and_only_what_is_theirs(state: State) -> None:  # SPEC-CONS-1
    patient, clinic, folder, _ = settled(state)
    state.when(clinic, grant(state.draw(), patient, folder)).is_refused(NOT_OWNER)
    foreign = state.folder(state.patient())
    state.when(patient, grant(state.draw(), clinic, folder, foreign)).is_refused(NOT_OWNER)
    state.when(patient, grant(state.draw(), clinic, state.draw())).is_refused(UNKNOWN_FOLDER)
    state.when(state.stranger(), grant(state.draw(), clinic, folder)).is_refused(UNKNOWN_SIGNER)
    state.when(patient, grant(state.draw(), state.stranger(), folder)).is_refused(UNKNOWN_SUBJECT)
    state.given(clinic, IdentityRevoke(subject=clinic.id, reason=0))
    state.when(patient, grant(state.draw(), clinic, folder)).is_refused(SIGNER_REVOKED)


def test_a_consent_has_its_own_id_and_lies_ahead(state: State) -> None:  # SPEC-CONS-1
    patient, clinic, folder, _ = settled(state)
    consent = state.consent(patient, clinic, folder)
    state.when(patient, grant(consent, clinic, folder)).is_refused(CONSENT_EXISTS)
    past = grant(state.draw(), clinic, folder, until_ms=state.now_ms)
    state.when(patient, past).is_refused(CONSENT_EXPIRED)
    state.when(patient, past, at_ms=state.now_ms - 1).is_accepted()


def test_folders_of_a_consent_come_once_at_an_epoch_that_exists(state: State) -> None:  # SPEC-CONS-1
    patient, clinic, folder, _ = settled(state)
    state.when(patient, grant(state.draw(), clinic, folder, folder)).is_refused(COUNTS_DIFFER)
    consent = state.consent(patient, clinic, folder)
    state.when(patient, rekey(consent, (folder, 1), keys=2)).is_refused(COUNTS_DIFFER)
    for epoch in (0, 2):
        state.when(patient, rekey(consent, (folder, epoch))).is_refused(WRONG_EPOCH)
    state.given(patient, FolderRotate(epoch=2, folder=folder, keys=[FOLDER_WRAP], wrap=KEY_WRAP))
    for epoch in (1, 2):
        state.when(patient, rekey(consent, (folder, epoch))).is_accepted()


def test_consents_of_one_grantee_are_bounded_and_ended_ones_make_room(state: State) -> None:  # SPEC-CONS-6
    patient, clinic, folder, _ = settled(state)
    consents = [state.consent(patient, clinic, folder) for _ in range(CONSENTS_PER_FOLDER_GRANTEE_MAX - 1)]
    end_ms = state.now_ms + 1000
    state.consent(patient, clinic, folder, until_ms=end_ms)
    more = grant(state.draw(), clinic, folder)
    state.when(patient, more).is_refused(TOO_MANY_CONSENTS)
    state.when(patient, grant(state.draw(), state.organisation(), folder)).is_accepted()
    state.when(patient, more, at_ms=end_ms).is_accepted()
    state.given(patient, ConsentRevoke(consent=consents[0]))
    state.when(patient, grant(state.draw(), clinic, folder), at_ms=end_ms).is_accepted()
    state.when(patient, grant(state.draw(), clinic, folder), at_ms=end_ms).is_refused(TOO_MANY_CONSENTS)


# Renewing and revoking.


def test_a_standing_consent_is_renewed_by_its_owner_alone(state: State) -> None:  # SPEC-CONS-5
    patient, clinic, folder, _ = settled(state)
    other = state.folder(patient)
    end_ms = state.now_ms + 1000
    consent = state.consent(patient, clinic, folder, until_ms=end_ms)
    before = state.entity(CONSENTS, consent)
    result = state.when(patient, rekey(consent, (folder, 1))).is_accepted()
    result.is_found_by(CONSENTS.term, consent).is_found_by(SUBJECT, clinic.id)
    assert not result.changed
    assert state.entity(CONSENTS, consent) == before
    state.when(patient, rekey(consent, (other, 1))).is_refused(UNKNOWN_FOLDER)
    state.when(clinic, rekey(consent, (folder, 1))).is_refused(NOT_OWNER)
    state.when(patient, rekey(state.draw(), (folder, 1))).is_refused(UNKNOWN_CONSENT)
    state.when(patient, rekey(consent, (folder, 1)), at_ms=end_ms).is_refused(CONSENT_EXPIRED)
    state.given(patient, ConsentRevoke(consent=consent))
    state.when(patient, rekey(consent, (folder, 1))).is_refused(CONSENT_REVOKED)


def test_revoking_ends_the_consent_in_every_folder_and_no_other(state: State) -> None:  # SPEC-CONS-4
    patient, clinic, folder, record = settled(state)
    other = state.folder(patient)
    there = state.record(patient, other)
    consent = state.consent(patient, clinic, folder, other)
    standing = state.consent(patient, clinic, other)
    state.when(clinic, ConsentRevoke(consent=consent)).is_refused(NOT_OWNER)
    state.when(patient, ConsentRevoke(consent=state.draw())).is_refused(UNKNOWN_CONSENT)
    state.when(patient, ConsentRevoke(consent=consent)).is_accepted().is_found_by(SUBJECT, clinic.id)
    state.when(patient, ConsentRevoke(consent=consent)).is_refused(CONSENT_REVOKED)
    assert state.entity(CONSENTS, consent).revoked
    assert not state.entity(CONSENTS, standing).revoked
    state.when(clinic, read(record)).is_refused(CONSENT_REVOKED)
    state.when(clinic, read(there)).is_accepted()


# Using.


def test_owner_and_grantee_read_and_every_read_is_found(state: State) -> None:  # SPEC-ACC-1, SPEC-ACC-2
    patient, clinic, folder, record = settled(state)
    state.consent(patient, clinic, folder)
    for reader in (patient, clinic):
        result = state.when(reader, read(record)).is_accepted()
        result.is_found_by(SIGNER, reader.id).is_found_by(SUBJECT, patient.id)
        result.is_found_by(RECORDS.term, record)
        assert not result.changed
    stranger = state.stranger()
    refused = state.when(stranger, read(record)).is_refused(UNKNOWN_SIGNER)
    refused.is_found_by(SUBJECT, patient.id).is_found_by(RECORDS.term, record)


@pytest.mark.parametrize(("granted", "asked"), list(itertools.product(Purpose, Purpose)))
def test_a_consent_is_for_its_purposes(state: State, granted: Purpose, asked: Purpose) -> None:  # SPEC-CONS-3
    patient, clinic, folder, record = settled(state)
    state.consent(patient, clinic, folder, purposes=[granted])
    result = state.when(clinic, read(record, asked))
    assert result.code is (Code.OK if granted is asked else PURPOSE_NOT_ALLOWED)


def test_a_consent_ends_to_the_millisecond(state: State) -> None:  # SPEC-CONS-3
    patient, clinic, folder, record = settled(state)
    end_ms = state.now_ms + 1000
    state.consent(patient, clinic, folder, until_ms=end_ms)
    state.when(clinic, read(record), at_ms=end_ms - 1).is_accepted()
    state.when(clinic, read(record), at_ms=end_ms).is_refused(CONSENT_EXPIRED)


# What stood nearest to a permission, nearest first.
NEAREST = (PURPOSE_NOT_ALLOWED, RIGHT_NOT_GRANTED, CONSENT_EXPIRED, CONSENT_REVOKED, CONSENT_MISSING)


@pytest.mark.parametrize("count", range(1, len(NEAREST)))
def test_the_code_tells_what_stood_nearest(state: State, count: int) -> None:  # SPEC-CONS-3
    patient, clinic, folder, record = settled(state)
    at_ms = state.now_ms + 1000
    for combination in itertools.permutations(NEAREST[:-1], count):
        reader = state.organisation()
        for code in combination:
            if code is PURPOSE_NOT_ALLOWED:
                state.consent(patient, reader, folder, purposes=[Purpose.RESEARCH])
            elif code is RIGHT_NOT_GRANTED:
                state.consent(patient, reader, folder, rights=Right.WRITE)
            elif code is CONSENT_EXPIRED:
                state.consent(patient, reader, folder, until_ms=at_ms)
            else:
                state.given(patient, ConsentRevoke(consent=state.consent(patient, reader, folder)))
        nearest = next(code for code in NEAREST if code in combination)
        state.when(reader, read(record), at_ms=at_ms).is_refused(nearest)
        state.given(patient, grant(state.draw(), reader, folder))
        state.when(reader, read(record), at_ms=at_ms).is_accepted()
    state.when(clinic, read(record)).is_refused(CONSENT_MISSING)


@pytest.mark.parametrize("role", [Role.PRACTITIONER, Role.DEVICE])
def test_members_act_under_their_organisation_s_consent_while_in_role(state: State, role: Role) -> None:
    # SPEC-CONS-2, SPEC-ID-6
    patient, clinic, folder, record = settled(state)
    end_ms = state.now_ms + 1000
    member = state.identity(role, by=clinic, until_ms=end_ms)
    outsider = state.identity(role, by=state.organisation())
    state.consent(patient, clinic, folder)
    state.when(member, read(record)).is_accepted()
    state.when(outsider, read(record)).is_refused(CONSENT_MISSING)
    state.when(state.identity(role), read(record)).is_refused(ROLE_NOT_ENDORSED)
    state.when(member, read(record), at_ms=end_ms).is_refused(ROLE_NOT_ENDORSED)
    state.given(clinic, IdentityRevoke(subject=clinic.id, reason=0))
    state.when(member, read(record)).is_refused(ROLE_NOT_ENDORSED)


def test_an_organisation_gains_nothing_by_its_member_s_consent(state: State) -> None:  # SPEC-CONS-2
    patient, clinic, folder, record = settled(state)
    member = state.identity(Role.PRACTITIONER, by=clinic)
    state.consent(patient, member, folder)
    state.when(member, read(record)).is_accepted()
    state.when(clinic, read(record)).is_refused(CONSENT_MISSING)


def test_patients_read_with_consent_and_need_no_endorsement(state: State) -> None:  # SPEC-ID-6, SPEC-ACC-1
    patient, _, folder, record = settled(state)
    relative = state.patient()
    state.when(relative, read(record)).is_refused(CONSENT_MISSING)
    state.consent(patient, relative, folder)
    state.when(relative, read(record)).is_accepted()


def test_only_records_and_versions_that_are_there_are_read(state: State) -> None:  # SPEC-ACC-1, SPEC-REC-6
    patient, _, _, record = settled(state)
    state.when(patient, read(state.draw())).is_refused(UNKNOWN_RECORD)
    state.when(patient, read(record, version=1)).is_accepted()
    state.when(patient, read(record, version=2)).is_refused(WRONG_VERSION)
    state.given(patient, RecordErase(reason=0, record=record))
    state.when(patient, read(record)).is_refused(RECORD_ERASED)


def test_who_may_not_read_does_not_learn_of_an_erasure(state: State) -> None:  # SPEC-ACC-1
    patient, clinic, _, record = settled(state)
    state.given(patient, RecordErase(reason=0, record=record))
    state.when(clinic, read(record)).is_refused(CONSENT_MISSING)

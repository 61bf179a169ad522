"""The rules of identities, bare: who registers, vouches, rotates and revokes, and what each leaves (SPEC-ID)."""

import itertools

import pytest
from rules import KEM, YEAR_MS, Person, State

from fastledger import Code, Role, SigningKey
from fastledger.model.ids import identity_id, rotation_digest
from fastledger.model.terms import SIGNER, SUBJECT, unknown_signer_name
from fastledger.subjects.folder import FolderOpen
from fastledger.subjects.identity import (
    ALREADY_REGISTERED,
    BAD_PROOF_OF_POSSESSION,
    FOREVER_MS,
    IDENTITIES,
    KEM_KEYS,
    KEY_IN_USE,
    KEYS,
    NOT_AUTHORISED,
    ROLE_NOT_ENDORSED,
    SIGNER_REVOKED,
    UNKNOWN_SIGNER,
    UNKNOWN_SUBJECT,
    IdentityEndorse,
    IdentityRegister,
    IdentityRevoke,
    IdentityRotate,
)

# SPEC-ID-5, written out once more: role -> the roles that vouch for it.
VOUCHERS = {
    Role.PATIENT: {Role.ORGANISATION, Role.PRACTITIONER},
    Role.PRACTITIONER: {Role.ORGANISATION, Role.PHARMACY},
    Role.DEVICE: {Role.ORGANISATION, Role.MANUFACTURER},
    Role.ORGANISATION: {Role.REGULATOR},
    Role.AUDITOR: {Role.REGULATOR},
    Role.REGULATOR: {Role.REGULATOR},
    Role.INSURER: {Role.REGULATOR},
    Role.MANUFACTURER: {Role.REGULATOR},
    Role.PHARMACY: {Role.REGULATOR},
}
# Who vouches for the voucher, so that it acts in its role.
ABOVE = dict.fromkeys(Role, Role.REGULATOR) | {
    Role.PATIENT: Role.ORGANISATION,
    Role.PRACTITIONER: Role.ORGANISATION,
    Role.DEVICE: Role.ORGANISATION,
}


@pytest.fixture
def state() -> State:
    return State()


def endorsed(state: State, role: Role) -> Person:
    """An identity that acts in its role."""
    above = state.regulator if ABOVE[role] is Role.REGULATOR else state.organisation()
    return state.identity(role, by=above)


def endorse(subject: Person, role: Role, until_ms: int) -> IdentityEndorse:
    return IdentityEndorse(subject=subject.id, role=role, until_ms=until_ms)


def revoke(subject: Person) -> IdentityRevoke:
    return IdentityRevoke(subject=subject.id, reason=0)


def rotation(state: State, identity: Person, key: SigningKey, chain_id: bytes | None = None) -> IdentityRotate:
    digest = rotation_digest(chain_id or state.chain_id, identity.id, key.public_key)
    return IdentityRotate(key=key.public_key, kem=KEM, proof=key.sign(digest))


def holder(number: int, identity: bytes | None = None) -> tuple[SigningKey, Person]:
    """A real key, and who signs with it."""
    key = SigningKey.from_bytes(number.to_bytes(32, "big"))
    return key, Person(key.public_key, identity or identity_id(key.public_key))


# Registering.


def test_genesis_authorities_are_regulators_for_good(state: State) -> None:  # SPEC-GEN-2
    entity = state.entity(IDENTITIES, state.regulator.id)
    assert (entity.role, entity.endorser) == (Role.REGULATOR, state.regulator.id)
    assert entity.endorsed_until_ms == FOREVER_MS


def test_registering_makes_a_pseudonym_from_the_key(state: State) -> None:  # SPEC-ID-1, SPEC-ID-4
    person = state.stranger()
    result = state.when(person, IdentityRegister(role=Role.AUDITOR, kem=KEM)).is_accepted()
    result.is_found_by(SIGNER, person.id).is_found_by(SUBJECT, person.id)
    entity = state.entity(IDENTITIES, person.id)
    assert (entity.key, entity.role, entity.endorser) == (person.key, Role.AUDITOR, b"")
    assert (entity.endorsed_until_ms, entity.revoked) == (0, False)
    assert state.entity(KEYS, person.key).identity == person.id
    assert state.entity(KEM_KEYS, person.id).kem == KEM


@pytest.mark.parametrize("role", [Role.PATIENT, Role.AUDITOR])
def test_a_key_registers_once(state: State, role: Role) -> None:  # SPEC-ID-4
    person = state.patient()
    state.when(person, IdentityRegister(role=role, kem=KEM)).is_refused(ALREADY_REGISTERED)


# Endorsing.


@pytest.mark.parametrize(("voucher", "role"), list(itertools.product(Role, Role)))
def test_who_may_vouch_for_whom(state: State, voucher: Role, role: Role) -> None:  # SPEC-ID-5
    by, subject = endorsed(state, voucher), state.identity(role)
    until_ms = state.now_ms + 1
    result = state.when(by, endorse(subject, role, until_ms))
    result.is_found_by(SIGNER, by.id).is_found_by(SUBJECT, subject.id)
    entity = state.entity(IDENTITIES, subject.id)
    if voucher in VOUCHERS[role]:
        result.is_accepted()
        assert (entity.endorser, entity.endorsed_until_ms) == (by.id, until_ms)
    else:
        result.is_refused(NOT_AUTHORISED)
        assert (entity.endorser, entity.endorsed_until_ms) == (b"", 0)


def test_who_is_not_endorsed_vouches_for_nobody(state: State) -> None:  # SPEC-ID-6
    upstart, staff = state.identity(Role.ORGANISATION), state.identity(Role.PRACTITIONER)
    body = endorse(staff, Role.PRACTITIONER, state.now_ms + 1)
    state.when(upstart, body).is_refused(NOT_AUTHORISED)


def test_an_endorsement_ends_to_the_millisecond(state: State) -> None:  # SPEC-ID-6
    end_ms = state.now_ms + 1000
    hospital = state.identity(Role.ORGANISATION, by=state.regulator, until_ms=end_ms)
    staff = state.identity(Role.PRACTITIONER)
    body = endorse(staff, Role.PRACTITIONER, end_ms + YEAR_MS)
    state.when(hospital, body, at_ms=end_ms).is_refused(NOT_AUTHORISED)
    state.when(hospital, body, at_ms=end_ms - 1).is_accepted()


def test_who_was_endorsed_by_a_revoked_one_vouches_for_nobody(state: State) -> None:  # SPEC-ID-6
    regulator = state.identity(Role.REGULATOR, by=state.regulator)
    hospital, staff = state.identity(Role.ORGANISATION, by=regulator), state.identity(Role.PRACTITIONER)
    state.given(state.regulator, revoke(regulator))
    body = endorse(staff, Role.PRACTITIONER, state.now_ms + 1)
    state.when(hospital, body).is_refused(NOT_AUTHORISED)


def test_an_endorsement_fits_the_claim_and_lies_ahead(state: State) -> None:  # SPEC-ID-5
    hospital, staff = state.organisation(), state.identity(Role.PRACTITIONER)
    ahead_ms = state.now_ms + 1
    state.when(hospital, endorse(staff, Role.DEVICE, ahead_ms)).is_refused(ROLE_NOT_ENDORSED)
    state.when(hospital, endorse(staff, Role.PRACTITIONER, state.now_ms)).is_refused(ROLE_NOT_ENDORSED)
    state.when(hospital, endorse(state.stranger(), Role.PRACTITIONER, ahead_ms)).is_refused(UNKNOWN_SUBJECT)
    state.given(staff, revoke(staff))
    state.when(hospital, endorse(staff, Role.PRACTITIONER, ahead_ms)).is_refused(SIGNER_REVOKED)


def test_a_later_endorsement_takes_the_place_of_the_earlier(state: State) -> None:  # SPEC-ID-5
    one, other = state.organisation(), state.organisation()
    staff = state.identity(Role.PRACTITIONER, by=one)
    state.when(other, endorse(staff, Role.PRACTITIONER, state.now_ms + 1)).is_accepted()
    entity = state.entity(IDENTITIES, staff.id)
    assert (entity.endorser, entity.endorsed_until_ms) == (other.id, state.now_ms + 1)


# Rotating.


def test_rotation_moves_the_identity_to_the_new_key(state: State) -> None:  # SPEC-ID-7
    hospital = state.organisation()
    staff = state.identity(Role.PRACTITIONER, by=hospital)
    before = state.entity(IDENTITIES, staff.id)
    key, _ = holder(1)
    state.when(staff, rotation(state, staff, key)).is_accepted().is_found_by(SUBJECT, staff.id)
    after = state.entity(IDENTITIES, staff.id)
    assert after.key == key.public_key
    assert (after.role, after.endorser) == (before.role, before.endorser)
    assert after.endorsed_until_ms == before.endorsed_until_ms
    assert state.find(KEYS, staff.key) is None
    assert state.entity(KEYS, key.public_key).identity == staff.id


def test_the_old_key_signs_no_more_and_its_id_stays_taken(state: State) -> None:  # SPEC-ID-7
    patient = state.patient()
    key, successor = holder(1, patient.id)
    state.given(patient, rotation(state, patient, key))
    state.when(patient, revoke(patient)).is_refused(UNKNOWN_SIGNER)
    state.when(patient, IdentityRegister(role=Role.PATIENT, kem=KEM)).is_refused(ALREADY_REGISTERED)
    state.when(successor, IdentityRegister(role=Role.PATIENT, kem=KEM)).is_refused(ALREADY_REGISTERED)
    assert state.folder(successor)


def test_nobody_rotates_to_a_key_in_use_or_back_to_an_old_one(state: State) -> None:  # SPEC-ID-7
    patient, (used, other) = state.patient(), holder(1)
    state.given(other, IdentityRegister(role=Role.PATIENT, kem=KEM))
    state.when(patient, rotation(state, patient, used)).is_refused(KEY_IN_USE)
    fresh, successor = holder(2, other.id)
    state.given(other, rotation(state, other, fresh))
    # Nobody signs with ``used`` any more, but the pseudonym that follows from it is taken.
    state.when(patient, rotation(state, patient, used)).is_refused(KEY_IN_USE)
    state.when(successor, rotation(state, successor, used)).is_refused(KEY_IN_USE)


def test_rotation_needs_the_proof_of_the_new_key_here_and_for_this_identity(state: State) -> None:  # SPEC-ID-3
    patient, other, (key, _) = state.patient(), state.patient(), holder(1)
    none = IdentityRotate(key=key.public_key, kem=KEM, proof=bytes(64))
    state.when(patient, none).is_refused(BAD_PROOF_OF_POSSESSION)
    elsewhere = rotation(state, patient, key, b"elsewher")
    state.when(patient, elsewhere).is_refused(BAD_PROOF_OF_POSSESSION)
    state.when(patient, rotation(state, other, key)).is_refused(BAD_PROOF_OF_POSSESSION)
    state.when(patient, rotation(state, patient, key)).is_accepted()


# Revoking.


@pytest.mark.parametrize(
    ("by", "code"),
    [
        ("itself", Code.OK),
        ("endorser", Code.OK),
        ("regulator", Code.OK),
        ("other regulator", Code.OK),
        ("other organisation", NOT_AUTHORISED),
        ("patient", NOT_AUTHORISED),
        ("regulator out of role", NOT_AUTHORISED),
        ("stranger", UNKNOWN_SIGNER),
    ],
)
def test_who_may_revoke(state: State, by: str, code: Code) -> None:  # SPEC-ID-8
    hospital = state.organisation()
    doctor = state.identity(Role.PRACTITIONER, by=hospital)
    signer = {
        "itself": doctor,
        "endorser": hospital,
        "regulator": state.regulator,
        "other regulator": state.identity(Role.REGULATOR, by=state.regulator),
        "other organisation": state.organisation(),
        "patient": state.patient(),
        "regulator out of role": state.identity(Role.REGULATOR),
        "stranger": state.stranger(),
    }[by]
    result = state.when(signer, revoke(doctor)).is_found_by(SUBJECT, doctor.id)
    assert result.code is code
    assert state.entity(IDENTITIES, doctor.id).revoked == (code is Code.OK)


def test_an_endorser_out_of_role_revokes_no_more(state: State) -> None:  # SPEC-ID-8
    end_ms = state.now_ms + 1000
    hospital = state.identity(Role.ORGANISATION, by=state.regulator, until_ms=end_ms)
    doctor = state.identity(Role.PRACTITIONER, by=hospital)
    state.when(hospital, revoke(doctor), at_ms=end_ms).is_refused(NOT_AUTHORISED)
    state.when(doctor, revoke(doctor), at_ms=end_ms).is_accepted()


def test_nobody_is_revoked_twice_and_strangers_never(state: State) -> None:  # SPEC-ID-8
    patient = state.patient()
    state.when(state.regulator, revoke(state.stranger())).is_refused(UNKNOWN_SUBJECT)
    state.given(state.regulator, revoke(patient))
    state.when(state.regulator, revoke(patient)).is_refused(SIGNER_REVOKED)


def test_the_revoked_and_the_unknown_are_refused_and_found(state: State) -> None:  # SPEC-ID-9
    patient, stranger = state.patient(), state.stranger()
    state.given(patient, revoke(patient))
    body = FolderOpen(folders=[state.draw()], keys=[bytes(40)], wrap=bytes(80))
    state.when(patient, body).is_refused(SIGNER_REVOKED).is_found_by(SIGNER, patient.id)
    refused = state.when(stranger, body).is_refused(UNKNOWN_SIGNER)
    refused.is_found_by(SIGNER, unknown_signer_name(stranger.key)).is_not_found_by(SIGNER, stranger.id)

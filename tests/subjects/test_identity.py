"""Identities and roles (SPEC-ID)."""

import pytest
from world import Clock, World, make_world, new_wallet

from fastledger import Code, Role, Wallet
from fastledger.errors import NotFoundError
from fastledger.model.ids import identity_id
from fastledger.subjects.folder import FOLDERS
from fastledger.subjects.identity import (
    ALREADY_REGISTERED,
    BAD_PROOF_OF_POSSESSION,
    IDENTITIES,
    KEM_KEYS,
    KEY_IN_USE,
    KEYS,
    NOT_AUTHORISED,
    ROLE_NOT_ENDORSED,
    SIGNER_REVOKED,
    UNKNOWN_SIGNER,
    UNKNOWN_SUBJECT,
    IdentityRotate,
)


def code_of(world: World, transaction) -> Code:
    return world.ledger.submit([transaction])[0].code


def test_registering_makes_a_pseudonym_from_the_key(world: World) -> None:  # SPEC-ID-1, SPEC-ID-4
    newcomer = new_wallet(world.clock).join(world.ledger.chain_id)
    with pytest.raises(NotFoundError):
        world.ledger.entity(KEYS, newcomer.public_key)
    world.submit(newcomer.register(Role.AUDITOR))
    assert world.ledger.entity(KEYS, newcomer.public_key).identity == identity_id(newcomer.public_key)
    entry = world.ledger.entity(IDENTITIES, newcomer.identity)
    assert (entry.role, entry.endorser, entry.endorsed_until_ms, entry.revoked) == (
        Role.AUDITOR,
        b"",
        0,
        False,
    )
    assert world.ledger.entity(KEM_KEYS, newcomer.identity).kem == newcomer.kem_public
    assert code_of(world, newcomer.register(Role.PATIENT)) == ALREADY_REGISTERED


@pytest.mark.parametrize(
    ("endorser", "role", "code"),
    [
        ("regulator", Role.ORGANISATION, Code.OK),
        ("regulator", Role.AUDITOR, Code.OK),
        ("regulator", Role.INSURER, Code.OK),
        ("regulator", Role.MANUFACTURER, Code.OK),
        ("regulator", Role.PHARMACY, Code.OK),
        ("regulator", Role.REGULATOR, Code.OK),
        ("hospital", Role.PRACTITIONER, Code.OK),
        ("hospital", Role.DEVICE, Code.OK),
        ("hospital", Role.PATIENT, Code.OK),
        ("hospital", Role.ORGANISATION, NOT_AUTHORISED),
        ("hospital", Role.REGULATOR, NOT_AUTHORISED),
        ("regulator", Role.PRACTITIONER, NOT_AUTHORISED),
        ("doctor", Role.PRACTITIONER, NOT_AUTHORISED),
        ("patient", Role.PATIENT, NOT_AUTHORISED),
    ],
)
def test_who_may_vouch_for_whom(world: World, endorser: str, role: Role, code: Code) -> None:  # SPEC-ID-5
    newcomer = new_wallet(world.clock).join(world.ledger.chain_id)
    world.submit(newcomer.register(role))
    assert code_of(world, getattr(world, endorser).endorse(newcomer.identity, role)) == code
    vouched = world.ledger.entity(IDENTITIES, newcomer.identity).endorsed_until_ms > world.clock()
    assert vouched == (code == Code.OK)


def test_an_unendorsed_organisation_vouches_for_nobody(world: World) -> None:  # SPEC-ID-6
    upstart, staff = (new_wallet(world.clock).join(world.ledger.chain_id) for _ in range(2))
    world.submit(upstart.register(Role.ORGANISATION), staff.register(Role.PRACTITIONER))
    assert code_of(world, upstart.endorse(staff.identity, Role.PRACTITIONER)) == NOT_AUTHORISED


def test_endorsement_must_fit_the_claim_and_the_time(world: World) -> None:  # SPEC-ID-5
    newcomer = new_wallet(world.clock).join(world.ledger.chain_id)
    world.submit(newcomer.register(Role.PRACTITIONER))
    wrong_role = world.hospital.endorse(newcomer.identity, Role.DEVICE)
    past = world.hospital.endorse(newcomer.identity, Role.PRACTITIONER, until_ms=world.clock())
    assert code_of(world, wrong_role) == ROLE_NOT_ENDORSED
    assert code_of(world, past) == ROLE_NOT_ENDORSED
    stranger = world.hospital.endorse(bytes(16), Role.PRACTITIONER)
    assert code_of(world, stranger) == UNKNOWN_SUBJECT


def test_a_practitioner_falls_with_its_organisation(world: World) -> None:  # SPEC-ID-6
    world.grant(world.hospital)
    sealed = world.put()
    from fastledger import Purpose

    assert code_of(world, world.doctor.access(sealed.record, Purpose.TREATMENT)) == Code.OK
    world.submit(world.regulator.revoke_identity(world.hospital.identity))
    assert code_of(world, world.doctor.access(sealed.record, Purpose.TREATMENT)) == ROLE_NOT_ENDORSED


def test_rotation_moves_the_identity_to_a_new_key(world: World) -> None:  # SPEC-ID-7
    successor = new_wallet(world.clock).join(world.ledger.chain_id)
    old_key = world.patient.public_key
    world.submit(world.patient.rotate_to(successor))
    successor.take_over(world.patient)
    assert world.ledger.entity(KEYS, successor.public_key).identity == world.patient.identity
    assert code_of(world, world.patient.open_folders("x")) == UNKNOWN_SIGNER
    world.submit(successor.open_folders("notes"))
    assert world.ledger.entity(FOLDERS, successor.labels["notes"]).owner == identity_id(old_key)
    # The old key's pseudonym is taken for good.
    assert code_of(world, world.patient.register(Role.PATIENT)) == ALREADY_REGISTERED


def test_rotation_needs_the_new_key_s_consent(world: World) -> None:  # SPEC-ID-7
    victim = new_wallet(world.clock).join(world.ledger.chain_id)
    forged = IdentityRotate(key=victim.public_key, kem=victim.kem_public, proof=bytes(64))
    assert code_of(world, world.patient.sign(forged)) == BAD_PROOF_OF_POSSESSION
    taken = world.patient.rotate_to(world.doctor)
    assert code_of(world, taken) == KEY_IN_USE


@pytest.mark.parametrize(
    ("by", "code"),
    [
        ("doctor", Code.OK),
        ("hospital", Code.OK),
        ("regulator", Code.OK),
        ("clinic", NOT_AUTHORISED),
        ("patient", NOT_AUTHORISED),
    ],
)
def test_who_may_revoke(world: World, by: str, code: Code) -> None:  # SPEC-ID-8
    revocation = getattr(world, by).revoke_identity(world.doctor.identity)
    assert code_of(world, revocation) == code
    after = code_of(world, world.doctor.open_folders("x"))
    assert after == (SIGNER_REVOKED if code == Code.OK else Code.OK)
    if code == Code.OK:
        assert code_of(world, world.regulator.revoke_identity(world.doctor.identity)) == SIGNER_REVOKED


def test_strangers_are_refused_and_stand_in_the_audit(world: World) -> None:  # SPEC-ID-9
    stranger = new_wallet(world.clock).join(world.ledger.chain_id)
    outcome = world.ledger.submit([stranger.open_folders("x")])[0]
    assert (outcome.status, outcome.code) == ("refused", UNKNOWN_SIGNER)
    assert world.ledger.get(outcome.txid).code == UNKNOWN_SIGNER


def test_genesis_authorities_are_regulators(tmp_path) -> None:  # SPEC-GEN-2
    world = make_world(tmp_path / "ledger", settled=False)
    entry = world.ledger.entity(IDENTITIES, world.regulator.identity)
    assert (entry.role, entry.endorser) == (Role.REGULATOR, world.regulator.identity)
    assert world.ledger.entity(KEYS, world.regulator.public_key).identity == world.regulator.identity
    world.close()


def test_wallets_of_either_suite_register(tmp_path) -> None:  # SPEC-ID-4
    world = make_world(tmp_path / "ledger", settled=False)
    hybrid = Wallet.create(world.ledger.chain_id, clock_ms=Clock())
    world.submit(hybrid.register(Role.PATIENT))
    assert world.ledger.entity(KEM_KEYS, hybrid.identity).kem == hybrid.kem_public
    assert len(hybrid.kem_public) > 1000
    world.close()

"""Identities and roles, end to end through a ledger (SPEC-ID); all of their rules: ``test_identity_rules.py``."""

import pytest
from world import Clock, World, make_world, new_wallet

from fastledger import Code, Role, Wallet
from fastledger.errors import NotFoundError
from fastledger.model.ids import identity_id
from fastledger.subjects.folder import FOLDERS
from fastledger.subjects.identity import (
    ALREADY_REGISTERED,
    IDENTITIES,
    KEM_KEYS,
    KEYS,
    ROLE_NOT_ENDORSED,
    UNKNOWN_SIGNER,
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

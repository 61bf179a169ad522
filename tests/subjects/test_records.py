"""Folders, records, consent and access, end to end through a ledger (SPEC-REC, SPEC-CONS, SPEC-ACC).

All of their rules: ``test_folder_rules.py``, ``test_record_rules.py``, ``test_consent_rules.py``.
"""

import hashlib

import pytest
from world import TERM, VITALS, World

from fastledger import Code, Purpose, Right, SealedRecord, Transaction
from fastledger.crypto.folders import FolderKey
from fastledger.errors import AccessRefused, EnvelopeError, InputError, NotFoundError, TransactionError
from fastledger.subjects.consent import (
    CONSENT_EXPIRED,
    CONSENT_MISSING,
    CONSENT_REVOKED,
    CONSENTS,
    PURPOSE_NOT_ALLOWED,
    RIGHT_NOT_GRANTED,
    UNKNOWN_CONSENT,
    ConsentGrant,
)
from fastledger.subjects.folder import (
    NOT_OWNER,
    UNKNOWN_FOLDER,
    WRONG_EPOCH,
    FolderRotate,
)
from fastledger.subjects.identity import KEM_KEYS
from fastledger.subjects.record import (
    RECORD_ERASED,
    RECORDS,
    UNKNOWN_RECORD,
    WRONG_VERSION,
    RecordAmend,
    RecordPut,
)


def code_of(world: World, transaction: Transaction) -> Code:
    return world.ledger.submit([transaction])[0].code


def put_code(world: World, sealed: SealedRecord) -> Code:
    return world.ledger.submit([sealed.transaction], [sealed.blob])[0].code


# Folders and records.


def test_a_record_is_put_found_and_read_by_its_owner(world: World) -> None:  # SPEC-REC-1, SPEC-REC-3
    sealed = world.put()
    version = world.ledger.record_version(sealed.record)
    assert version.digest == hashlib.sha256(sealed.blob).digest()
    assert (version.size, version.author) == (len(sealed.blob), world.patient.identity)
    (token,) = world.patient.tokens("vitals", TERM)
    assert [entry.txid for entry in world.ledger.query(token=token)] == [sealed.transaction.txid]
    blob = world.ledger.read(world.patient.access(sealed.record, Purpose.PATIENT_REQUEST))
    assert world.patient.open_record(blob, folder="vitals", record=sealed.record) == VITALS


def test_a_new_epoch_shuts_out_old_keys(world: World) -> None:  # SPEC-REC-2
    world.grant(world.hospital, rights=Right.READ | Right.WRITE)
    stale = world.hospital.put_record("vitals" if False else world.patient.labels["vitals"], VITALS)
    world.submit(world.patient.rotate_folder("vitals"))
    assert put_code(world, stale) == WRONG_EPOCH
    fresh = world.put()
    blob = world.ledger.read(world.hospital.access(fresh.record, Purpose.TREATMENT))
    with pytest.raises(EnvelopeError) as error:
        world.hospital.open_record(blob, folder=fresh.folder, record=fresh.record)
    assert error.value.code == Code.UNKNOWN_FOLDER_KEY
    # Old and new tokens of the owner find records of either epoch.
    assert len(world.patient.tokens("vitals", TERM)) == 2
    skipped = FolderRotate(epoch=9, folder=fresh.folder, keys=[bytes(40)], wrap=bytes(80))
    assert code_of(world, world.patient.sign(skipped)) == WRONG_EPOCH
    foreign = FolderRotate(epoch=3, folder=fresh.folder, keys=[bytes(40)], wrap=bytes(80))
    assert code_of(world, world.doctor.sign(foreign)) == NOT_OWNER


def test_an_envelope_must_be_stored_before_it_is_named(world: World) -> None:  # SPEC-ADM-2
    sealed = world.patient.put_record("vitals", VITALS)
    outcome = world.ledger.submit([sealed.transaction])[0]
    assert (outcome.status, outcome.code) == ("rejected", Code.BLOB_MISSING)
    with pytest.raises(NotFoundError):
        world.ledger.get(outcome.txid)
    assert put_code(world, sealed) == Code.OK


def test_writing_needs_the_right(world: World) -> None:  # SPEC-REC-3, SPEC-CONS-2
    folder = world.patient.labels["vitals"]
    world.hospital.add_folder_key(world.patient.folder_key("vitals"))
    world.doctor.add_folder_key(world.patient.folder_key("vitals"))
    assert put_code(world, world.hospital.put_record(folder, b"1")) == CONSENT_MISSING
    world.grant(world.hospital)
    assert put_code(world, world.hospital.put_record(folder, b"2")) == RIGHT_NOT_GRANTED
    world.grant(world.hospital, rights=Right.WRITE)
    assert put_code(world, world.hospital.put_record(folder, b"3")) == Code.OK
    # A practitioner acts under its organisation's consent.
    assert put_code(world, world.doctor.put_record(folder, b"4")) == Code.OK


def test_amending_supersedes_and_keeps(world: World) -> None:  # SPEC-REC-5
    sealed = world.put()
    amended = world.patient.amend_record("vitals", sealed.record, 2, b"corrected")
    assert put_code(world, amended) == Code.OK
    newest = world.ledger.read(world.patient.access(sealed.record, Purpose.PATIENT_REQUEST))
    first = world.ledger.read(world.patient.access(sealed.record, Purpose.PATIENT_REQUEST, version=1))
    opened = world.patient.open_record(newest, folder="vitals", record=sealed.record, version=2)
    assert opened == b"corrected"
    assert world.patient.open_record(first, folder="vitals", record=sealed.record, version=1) == VITALS
    assert put_code(world, world.patient.amend_record("vitals", sealed.record, 2, b"x")) == WRONG_VERSION
    assert put_code(world, world.patient.amend_record("vitals", sealed.record, 4, b"y")) == WRONG_VERSION
    unknown = RecordAmend(digest=bytes(32), epoch=1, record=bytes(16), size=1, version=2)
    blob_digest = hashlib.sha256(amended.blob).digest()
    unknown = RecordAmend(digest=blob_digest, epoch=1, record=bytes(16), size=1, version=2)
    assert code_of(world, world.patient.sign(unknown)) == UNKNOWN_RECORD


def test_erasing_destroys_every_version(world: World) -> None:  # SPEC-REC-6, SPEC-REC-7
    sealed = world.put()
    amended = world.patient.amend_record("vitals", sealed.record, 2, b"corrected")
    assert put_code(world, amended) == Code.OK
    assert code_of(world, world.doctor.erase_record(sealed.record)) == NOT_OWNER
    erasure = world.patient.erase_record(sealed.record)
    world.submit(erasure)
    assert world.ledger.entity(RECORDS, sealed.record).erased
    for path in world.path.rglob("*"):
        if path.is_file():
            content = path.read_bytes()
            assert sealed.blob[-64:] not in content
            assert amended.blob[-32:] not in content
    with pytest.raises(AccessRefused) as error:
        world.ledger.read(world.patient.access(sealed.record, Purpose.PATIENT_REQUEST))
    assert error.value.code == RECORD_ERASED
    assert code_of(world, world.patient.erase_record(sealed.record)) == RECORD_ERASED
    again = world.patient.amend_record("vitals", sealed.record, 3, b"z")
    assert put_code(world, again) == RECORD_ERASED
    assert world.ledger.prove(erasure.txid)
    assert world.ledger.verify().problems == []


# Consent and access.


def test_consent_lets_a_grantee_find_read_and_open(world: World) -> None:  # SPEC-CONS-1, SPEC-ACC-1
    sealed = world.put()
    world.grant(world.clinic)
    (token,) = world.clinic.tokens(sealed.folder, TERM)
    (entry,) = world.ledger.query(token=token)
    body = entry.transaction.body
    assert isinstance(body, RecordPut)
    blob = world.ledger.read(world.clinic.access(body.record, Purpose.TREATMENT))
    assert world.clinic.open_record(blob, folder=body.folder, record=body.record) == VITALS
    reads = world.ledger.query(kind="access.read", record=sealed.record)
    assert [read.transaction.signer for read in reads] == [world.clinic.public_key]


def refusal(world: World, access: Transaction) -> Code:
    with pytest.raises(AccessRefused) as error:
        world.ledger.read(access)
    audited = world.ledger.get(error.value.txid)
    assert audited.code == error.value.code
    found = world.ledger.query(subject=world.patient.identity, code=error.value.code)
    assert error.value.txid in [entry.txid for entry in found]
    return error.value.code


def test_every_refusal_has_its_reason_and_its_audit(world: World) -> None:  # SPEC-CONS-3, SPEC-ACC-2
    sealed = world.put()
    record = sealed.record
    assert refusal(world, world.clinic.access(record, Purpose.TREATMENT)) == CONSENT_MISSING
    world.grant(world.clinic, "laboratory")
    assert refusal(world, world.clinic.access(record, Purpose.TREATMENT)) == CONSENT_MISSING
    grant = world.grant(world.clinic, until=world.clock() + 1000)
    assert refusal(world, world.clinic.access(record, Purpose.RESEARCH)) == PURPOSE_NOT_ALLOWED
    assert world.ledger.read(world.clinic.access(record, Purpose.TREATMENT)) == sealed.blob
    world.clock.advance(1000)
    assert refusal(world, world.clinic.access(record, Purpose.TREATMENT)) == CONSENT_EXPIRED
    body = grant.body
    assert isinstance(body, ConsentGrant)
    world.submit(world.patient.revoke_consent(body.consent))
    assert refusal(world, world.clinic.access(record, Purpose.TREATMENT)) == CONSENT_REVOKED


def test_revoking_ends_access_at_once(world: World) -> None:  # SPEC-CONS-4
    sealed = world.put()
    grant = world.grant(world.clinic, "vitals", "laboratory")
    body = grant.body
    assert isinstance(body, ConsentGrant)
    assert world.ledger.read(world.clinic.access(sealed.record, Purpose.TREATMENT))
    assert code_of(world, world.clinic.revoke_consent(body.consent)) == NOT_OWNER
    world.submit(world.patient.revoke_consent(body.consent))
    assert refusal(world, world.clinic.access(sealed.record, Purpose.TREATMENT)) == CONSENT_REVOKED
    assert world.ledger.entity(CONSENTS, body.consent).revoked
    assert code_of(world, world.patient.revoke_consent(body.consent)) == CONSENT_REVOKED
    assert code_of(world, world.patient.revoke_consent(bytes(16))) == UNKNOWN_CONSENT


def test_rekeying_carries_new_keys_to_standing_grantees(world: World) -> None:  # SPEC-CONS-5
    grant = world.grant(world.clinic)
    body = grant.body
    assert isinstance(body, ConsentGrant)
    world.submit(world.patient.rotate_folder("vitals"))
    sealed = world.put()
    rekey = world.patient.rekey(body.consent, world.clinic.identity, world.clinic.kem_public, ["vitals"])
    world.submit(rekey)
    world.accept(world.clinic, rekey)
    blob = world.ledger.read(world.clinic.access(sealed.record, Purpose.TREATMENT))
    assert world.clinic.open_record(blob, folder=sealed.folder, record=sealed.record) == VITALS
    elsewhere = world.patient.rekey(
        body.consent, world.clinic.identity, world.clinic.kem_public, ["laboratory"]
    )
    assert code_of(world, elsewhere) == UNKNOWN_FOLDER


def test_a_used_access_opens_nothing_again(world: World) -> None:  # SPEC-ACC-3
    sealed = world.put()
    grant = world.grant(world.clinic)
    access = world.clinic.access(sealed.record, Purpose.TREATMENT)
    assert world.ledger.read(access) == sealed.blob
    assert isinstance(grant.body, ConsentGrant)
    world.submit(world.patient.revoke_consent(grant.body.consent))
    with pytest.raises(TransactionError) as error:
        world.ledger.read(access)
    assert error.value.code == Code.DUPLICATE


def test_keys_for_another_do_not_open(world: World) -> None:  # SPEC-CONS-1
    kem = world.ledger.entity(KEM_KEYS, world.clinic.identity).kem
    grant = world.patient.grant(world.clinic.identity, kem, ["vitals"], purposes=[Purpose.TREATMENT])
    world.submit(grant)
    with pytest.raises(EnvelopeError):
        world.accept(world.hospital, grant)
    opening = world.patient.open_folders("imaging")
    world.submit(opening)
    with pytest.raises(EnvelopeError):
        world.accept(world.hospital, opening)


def test_nothing_is_learnt_from_what_the_rules_refused(world: World) -> None:  # SPEC-CONS-7
    """A key that somebody plants for another's folder would be sealed under, and read by him."""
    folder = world.patient.labels["vitals"]
    thief = world.hospital
    planted = FolderKey.generate(folder, 1)
    thief.add_folder_key(planted)
    kem = world.ledger.entity(KEM_KEYS, world.clinic.identity).kem
    grant = thief.grant(world.clinic.identity, kem, [folder], purposes=[Purpose.TREATMENT])
    assert code_of(world, grant) == NOT_OWNER
    with pytest.raises(InputError) as error:
        world.accept(world.clinic, grant)
    assert error.value.code == NOT_OWNER
    assert not world.clinic.holds_key(folder)
    world.grant(world.clinic)
    with pytest.raises(EnvelopeError):
        world.clinic.add_folder_key(planted)
    assert world.clinic.folder_key(folder, 1) == world.patient.folder_key(folder, 1)


def test_an_owner_recovers_folder_keys_from_the_chain(world: World) -> None:  # SPEC-REC-8
    sealed = world.put()
    world.patient._folder_keys.clear()
    for kind in ("folder.open", "folder.rotate"):
        for entry in world.ledger.query(kind=kind, signed_by=world.patient.identity):
            world.patient.accept(entry)
    assert world.patient.open_record(sealed.blob, folder=sealed.folder, record=sealed.record) == VITALS

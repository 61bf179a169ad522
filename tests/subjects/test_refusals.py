"""Every reason for which a subject's rules refuse is met here, by the kinds that can meet it.

A subject that declares a refusal without a case here fails :func:`test_every_refusal_is_provoked`.
"""

import time
from collections.abc import Callable

import pytest
from rules import FOLDER_WRAP, KEM, KEY_WRAP, Result, State, grant

from fastledger import Code, Purpose, Right, Role
from fastledger.limits import CONSENTS_PER_FOLDER_GRANTEE_MAX
from fastledger.model.terms import KIND, kind_name
from fastledger.state.registry import NotInForce
from fastledger.subjects.access import AccessRead
from fastledger.subjects.catalogue import REGISTRY
from fastledger.subjects.chain import ChainActivate
from fastledger.subjects.consent import ConsentRekey, ConsentRevoke
from fastledger.subjects.folder import FolderOpen, FolderRotate
from fastledger.subjects.identity import IdentityEndorse, IdentityRegister, IdentityRevoke, IdentityRotate
from fastledger.subjects.record import RecordAmend, RecordErase, RecordPut

Case = Callable[[State], Result]
CASES: dict[str, list[Case]] = {}


def case(*slugs: str) -> Callable[[Case], Case]:
    """Enters a function as a case of the refusals with these slugs; it returns the refused result."""

    def enter(function: Case) -> Case:
        for slug in slugs:
            CASES.setdefault(slug, []).append(function)
        return function

    return enter


def folder_open(state: State, *folders: bytes, keys: int = 1) -> FolderOpen:
    return FolderOpen(folders=list(folders) or [state.draw()], keys=[FOLDER_WRAP] * keys, wrap=KEY_WRAP)


def folder_rotate(folder: bytes, epoch: int = 2) -> FolderRotate:
    return FolderRotate(epoch=epoch, folder=folder, keys=[FOLDER_WRAP], wrap=KEY_WRAP)


def read(record: bytes, version: int = 0) -> AccessRead:
    return AccessRead(purpose=Purpose.TREATMENT, record=record, version=version)


# Identities.


@case("unknown-signer")
def a_stranger_opens_a_folder(state: State) -> Result:
    return state.when(state.stranger(), folder_open(state))


@case("signer-revoked")
def a_revoked_patient_opens_a_folder(state: State) -> Result:
    patient = state.patient()
    state.given(patient, IdentityRevoke(subject=patient.id, reason=0))
    return state.when(patient, folder_open(state))


@case("already-registered")
def a_key_registers_twice(state: State) -> Result:
    return state.when(state.patient(), IdentityRegister(role=Role.PATIENT, kem=KEM))


@case("unknown-subject")
def a_stranger_is_endorsed(state: State) -> Result:
    body = IdentityEndorse(subject=state.draw(), role=Role.AUDITOR, until_ms=state.now_ms + 1)
    return state.when(state.regulator, body)


@case("role-not-endorsed")
def another_role_than_the_claimed_is_endorsed(state: State) -> Result:
    person = state.identity(Role.INSURER)
    body = IdentityEndorse(subject=person.id, role=Role.AUDITOR, until_ms=state.now_ms + 1)
    return state.when(state.regulator, body)


@case("not-authorised")
def a_patient_endorses(state: State) -> Result:
    person = state.identity(Role.AUDITOR)
    body = IdentityEndorse(subject=person.id, role=Role.AUDITOR, until_ms=state.now_ms + 1)
    return state.when(state.patient(), body)


@case("bad-proof-of-possession")
def a_key_is_taken_over_without_its_holder(state: State) -> Result:
    body = IdentityRotate(key=state.stranger().key, kem=KEM, proof=bytes(64))
    return state.when(state.patient(), body)


@case("key-in-use")
def the_key_of_another_is_taken_over(state: State) -> Result:
    body = IdentityRotate(key=state.patient().key, kem=KEM, proof=bytes(64))
    return state.when(state.patient(), body)


# Folders.


@case("folder-exists")
def a_folder_is_opened_twice(state: State) -> Result:
    patient = state.patient()
    return state.when(patient, folder_open(state, state.folder(patient)))


@case("unknown-folder")
def a_folder_is_rotated_that_is_not_there(state: State) -> Result:
    return state.when(state.patient(), folder_rotate(state.draw()))


@case("unknown-folder")
def a_record_is_put_in_no_folder(state: State) -> Result:
    body = RecordPut(digest=state.draw(32), epoch=1, folder=state.draw(), record=state.draw(), size=1)
    return state.when(state.patient(), body)


@case("wrong-epoch")
def an_epoch_is_left_out(state: State) -> Result:
    patient = state.patient()
    return state.when(patient, folder_rotate(state.folder(patient), 3))


@case("wrong-epoch")
def a_record_is_put_at_an_epoch_to_come(state: State) -> Result:
    patient = state.patient()
    folder = state.folder(patient)
    body = RecordPut(digest=state.draw(32), epoch=2, folder=folder, record=state.draw(), size=1)
    return state.when(patient, body)


@case("not-owner")
def another_rotates(state: State) -> Result:
    return state.when(state.patient(), folder_rotate(state.folder(state.patient())))


@case("counts-differ")
def a_key_is_missing(state: State) -> Result:
    return state.when(state.patient(), folder_open(state, state.draw(), state.draw()))


# Records.


@case("record-exists")
def a_record_is_put_twice(state: State) -> Result:
    patient = state.patient()
    folder = state.folder(patient)
    record = state.record(patient, folder)
    return state.when(patient, RecordPut(digest=state.draw(32), epoch=1, folder=folder, record=record, size=1))


@case("unknown-record")
def a_record_is_read_that_is_not_there(state: State) -> Result:
    return state.when(state.patient(), read(state.draw()))


@case("unknown-record")
def a_record_is_erased_that_is_not_there(state: State) -> Result:
    return state.when(state.patient(), RecordErase(reason=0, record=state.draw()))


@case("record-erased")
def a_record_is_erased_twice(state: State) -> Result:
    patient = state.patient()
    body = RecordErase(reason=0, record=state.record(patient, state.folder(patient)))
    state.given(patient, body)
    return state.when(patient, body)


@case("record-erased")
def an_erased_record_is_read(state: State) -> Result:
    patient = state.patient()
    record = state.record(patient, state.folder(patient))
    state.given(patient, RecordErase(reason=0, record=record))
    return state.when(patient, read(record))


@case("wrong-version")
def a_version_is_left_out(state: State) -> Result:
    patient = state.patient()
    record = state.record(patient, state.folder(patient))
    return state.when(patient, RecordAmend(digest=state.draw(32), epoch=1, record=record, size=1, version=3))


@case("wrong-version")
def a_version_is_read_that_is_not_there(state: State) -> Result:
    patient = state.patient()
    return state.when(patient, read(state.record(patient, state.folder(patient)), version=2))


@case("blob-in-use")
def an_envelope_serves_twice(state: State) -> Result:
    patient, digest = state.patient(), state.draw(32)
    folder = state.folder(patient)
    state.given(patient, RecordPut(digest=digest, epoch=1, folder=folder, record=state.draw(), size=1))
    return state.when(patient, RecordPut(digest=digest, epoch=1, folder=folder, record=state.draw(), size=1))


# Consents.


@case("consent-exists")
def a_consent_is_granted_twice(state: State) -> Result:
    patient, clinic = state.patient(), state.organisation()
    folder = state.folder(patient)
    return state.when(patient, grant(state.consent(patient, clinic, folder), clinic, folder))


@case("unknown-consent")
def a_consent_is_revoked_that_is_not_there(state: State) -> Result:
    return state.when(state.patient(), ConsentRevoke(consent=state.draw()))


@case("unknown-consent")
def a_consent_is_renewed_that_is_not_there(state: State) -> Result:
    body = ConsentRekey(
        consent=state.draw(), folders=[(state.draw(), 1)], keys=[FOLDER_WRAP], wrap=KEY_WRAP
    )
    return state.when(state.patient(), body)


@case("consent-missing")
def a_stranger_reads_without_consent(state: State) -> Result:
    patient = state.patient()
    return state.when(state.organisation(), read(state.record(patient, state.folder(patient))))


@case("consent-expired")
def a_consent_is_used_after_its_end(state: State) -> Result:
    patient, clinic = state.patient(), state.organisation()
    folder, end_ms = state.folder(patient), state.now_ms + 1
    state.consent(patient, clinic, folder, until_ms=end_ms)
    return state.when(clinic, read(state.record(patient, folder)), at_ms=end_ms)


@case("consent-revoked")
def a_revoked_consent_is_used(state: State) -> Result:
    patient, clinic = state.patient(), state.organisation()
    folder = state.folder(patient)
    state.given(patient, ConsentRevoke(consent=state.consent(patient, clinic, folder)))
    return state.when(clinic, read(state.record(patient, folder)))


@case("purpose-not-allowed")
def a_consent_for_research_is_used_for_treatment(state: State) -> Result:
    patient, clinic = state.patient(), state.organisation()
    folder = state.folder(patient)
    state.consent(patient, clinic, folder, purposes=[Purpose.RESEARCH])
    return state.when(clinic, read(state.record(patient, folder)))


@case("right-not-granted")
def a_consent_to_write_is_used_to_read(state: State) -> Result:
    patient, clinic = state.patient(), state.organisation()
    folder = state.folder(patient)
    state.consent(patient, clinic, folder, rights=Right.WRITE)
    return state.when(clinic, read(state.record(patient, folder)))


@case("too-many-consents")
def one_consent_more_than_there_is_room_for(state: State) -> Result:
    patient, clinic = state.patient(), state.organisation()
    folder = state.folder(patient)
    for _ in range(CONSENTS_PER_FOLDER_GRANTEE_MAX):
        state.consent(patient, clinic, folder)
    return state.when(patient, grant(state.draw(), clinic, folder))


# Rule sets.


@case("not-an-authority")
def a_patient_votes(state: State) -> Result:
    return state.when(state.patient(), ChainActivate(rule_set=2, height=100))


@case("rule-set-behind")
def an_authority_votes_for_what_is_in_force(state: State) -> Result:
    return state.when(state.regulator, ChainActivate(rule_set=1, height=100))


@case("activation-too-soon")
def an_authority_votes_for_the_next_block(state: State) -> Result:
    return state.when(state.regulator, ChainActivate(rule_set=2, height=state.height + 1))


ALL = [(slug, function) for slug, functions in CASES.items() for function in functions]


@pytest.mark.parametrize(("slug", "provoke"), ALL, ids=lambda value: getattr(value, "__name__", value))
def test_a_refusal_is_provoked(slug: str, provoke: Case) -> None:  # SPEC-STATE-4
    provoke(State()).is_refused(Code.named(slug))


def test_every_refusal_is_provoked() -> None:
    declared = {code.slug for subject in REGISTRY.subjects for code in subject.refusals}
    assert set(CASES) == declared
    assert len(declared) >= 26


def test_a_kind_that_no_rule_set_has_is_refused_by_name() -> None:  # SPEC-RULE-4
    state = State()
    result = state.when(state.patient(), NotInForce("nothing.such"))
    result.is_refused(Code.KIND_NOT_IN_FORCE).is_found_by(KIND, kind_name("nothing.such"))


def test_a_hundred_rules_take_less_than_a_second() -> None:
    begun_s = time.process_time()
    for number in range(100):
        slug, provoke = ALL[number % len(ALL)]
        provoke(State()).is_refused(Code.named(slug))
    assert time.process_time() - begun_s < 1.0

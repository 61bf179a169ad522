"""The rules of records, bare: putting, amending, erasing, and the envelopes that each claims (SPEC-REC-3 to 7)."""

import pytest
from rules import FOLDER_WRAP, KEY_WRAP, Person, State

from fastledger import Code, Right, Role
from fastledger.limits import VERSIONS_PER_RECORD_MAX
from fastledger.model.terms import SUBJECT, TOKEN
from fastledger.subjects.consent import CONSENT_MISSING, RIGHT_NOT_GRANTED
from fastledger.subjects.folder import FOLDERS, NOT_OWNER, UNKNOWN_FOLDER, WRONG_EPOCH, FolderRotate
from fastledger.subjects.identity import UNKNOWN_SIGNER
from fastledger.subjects.record import (
    BLOB_IN_USE,
    BLOBS,
    RECORD_ERASED,
    RECORD_EXISTS,
    RECORDS,
    UNKNOWN_RECORD,
    VERSIONS,
    WRONG_VERSION,
    Record,
    RecordAmend,
    RecordErase,
    RecordPut,
)


@pytest.fixture
def state() -> State:
    return State()


def put(state: State, folder: bytes, **fields: object) -> RecordPut:
    given = {"digest": state.draw(32), "epoch": 1, "folder": folder, "record": state.draw(), "size": 7}
    return RecordPut(**given | fields)


def amend(state: State, record: bytes, version: int, **fields: object) -> RecordAmend:
    given = {"digest": state.draw(32), "epoch": 1, "record": record, "size": 9, "version": version}
    return RecordAmend(**given | fields)


def erase(record: bytes) -> RecordErase:
    return RecordErase(reason=0, record=record)


def rotate(state: State, owner: Person, folder: bytes) -> None:
    state.given(owner, FolderRotate(epoch=2, folder=folder, keys=[FOLDER_WRAP], wrap=KEY_WRAP))


def test_a_record_is_put_and_found(state: State) -> None:  # SPEC-REC-3
    patient = state.patient()
    folder, token = state.folder(patient), state.draw()
    body = put(state, folder, tokens=[token])
    result = state.when(patient, body).is_accepted()
    result.is_found_by(RECORDS.term, body.record).is_found_by(FOLDERS.term, folder)
    result.is_found_by(SUBJECT, patient.id).is_found_by(TOKEN, token)
    record = state.entity(RECORDS, body.record)
    assert (record.folder, record.version, record.erased) == (folder, 1, False)
    present = record.present
    assert (present.digest, present.size, present.epoch) == (body.digest, 7, 1)
    assert (present.author, present.time_ms) == (patient.id, state.now_ms)
    assert state.entity(BLOBS, body.digest).record == body.record


def test_tokens_of_what_was_refused_find_nothing(state: State) -> None:  # SPEC-REC-3
    patient = state.patient()
    token = state.draw()
    refused = state.when(patient, put(state, state.draw(), tokens=[token])).is_refused(UNKNOWN_FOLDER)
    refused.is_not_found_by(TOKEN, token)


def test_record_ids_and_envelopes_serve_once(state: State) -> None:  # SPEC-REC-3, SPEC-REC-4
    patient, other = state.patient(), state.patient()
    folder, elsewhere = state.folder(patient), state.folder(other)
    body = put(state, folder)
    state.given(patient, body)
    state.when(patient, put(state, folder, record=body.record)).is_refused(RECORD_EXISTS)
    state.when(other, put(state, elsewhere, record=body.record)).is_refused(RECORD_EXISTS)
    state.when(patient, put(state, folder, digest=body.digest)).is_refused(BLOB_IN_USE)
    state.when(other, put(state, elsewhere, digest=body.digest)).is_refused(BLOB_IN_USE)
    state.when(patient, amend(state, body.record, 2, digest=body.digest)).is_refused(BLOB_IN_USE)


def test_records_are_written_at_the_present_epoch(state: State) -> None:  # SPEC-REC-2
    patient = state.patient()
    folder = state.folder(patient)
    record = state.record(patient, folder)
    rotate(state, patient, folder)
    for epoch in (0, 1, 3):
        state.when(patient, put(state, folder, epoch=epoch)).is_refused(WRONG_EPOCH)
        state.when(patient, amend(state, record, 2, epoch=epoch)).is_refused(WRONG_EPOCH)
    state.when(patient, put(state, folder, epoch=2)).is_accepted()
    state.when(patient, amend(state, record, 2, epoch=2)).is_accepted()


@pytest.mark.parametrize(
    ("rights", "code"),
    [(None, CONSENT_MISSING), (Right.READ, RIGHT_NOT_GRANTED), (Right.WRITE, Code.OK), (Right(3), Code.OK)],
)
@pytest.mark.parametrize("member", [False, True])
def test_writing_needs_the_right(state: State, rights: Right | None, code: Code, member: bool) -> None:
    # SPEC-REC-3, SPEC-REC-5, SPEC-CONS-2
    patient, hospital = state.patient(), state.organisation()
    folder = state.folder(patient)
    record = state.record(patient, folder)
    if rights is not None:
        state.consent(patient, hospital, folder, rights=rights)
    author = state.identity(Role.PRACTITIONER, by=hospital) if member else hospital
    for body in (put(state, folder), amend(state, record, 2)):
        result = state.when(author, body).is_found_by(SUBJECT, patient.id)
        assert result.code is code
    if code == Code.OK:
        assert state.entity(RECORDS, record).present.author == author.id


def test_amending_supersedes_and_keeps(state: State) -> None:  # SPEC-REC-5
    patient = state.patient()
    record = state.record(patient, state.folder(patient))
    first = state.entity(RECORDS, record).present
    for version in (0, 1, 3):
        state.when(patient, amend(state, record, version)).is_refused(WRONG_VERSION)
    token = state.draw()
    state.when(patient, amend(state, record, 2, tokens=[token])).is_accepted().is_found_by(TOKEN, token)
    state.given(patient, amend(state, record, 3))
    assert state.entity(RECORDS, record).version == 3
    assert state.entity(VERSIONS, record, 1) == first
    assert state.entity(VERSIONS, record, 2).size == 9
    assert state.find(VERSIONS, record, 3) is None


def test_versions_are_bounded(state: State) -> None:  # SPEC-REC-5
    patient = state.patient()
    record = state.record(patient, state.folder(patient))
    entity = state.entity(RECORDS, record)
    last = VERSIONS_PER_RECORD_MAX
    state.given_entity(RECORDS, record, Record(entity.folder, last - 1, False, entity.present))
    state.when(patient, amend(state, record, last)).is_accepted()
    state.when(patient, amend(state, record, last + 1)).is_refused(WRONG_VERSION)


def test_what_is_not_there_is_not_amended_or_erased(state: State) -> None:  # SPEC-REC-5, SPEC-REC-6
    patient = state.patient()
    state.when(patient, amend(state, state.draw(), 2)).is_refused(UNKNOWN_RECORD)
    state.when(patient, erase(state.draw())).is_refused(UNKNOWN_RECORD)
    state.when(state.stranger(), erase(state.draw())).is_refused(UNKNOWN_SIGNER)


def test_erasing_names_the_envelopes_of_every_version(state: State) -> None:  # SPEC-REC-6, SPEC-REC-7
    patient = state.patient()
    body = put(state, state.folder(patient))
    versions = [body, amend(state, body.record, 2), amend(state, body.record, 3)]
    for version in versions:
        assert state.given(patient, version).erased == ()
    result = state.when(patient, erase(body.record)).is_accepted()
    assert result.erased == tuple(version.digest for version in versions)
    result.is_found_by(RECORDS.term, body.record).is_found_by(SUBJECT, patient.id)
    assert state.entity(RECORDS, body.record).erased


def test_the_erased_stays_erased_and_its_envelopes_taken(state: State) -> None:  # SPEC-REC-4, SPEC-REC-6
    patient = state.patient()
    folder = state.folder(patient)
    body = put(state, folder)
    state.given(patient, body)
    state.given(patient, erase(body.record))
    state.when(patient, erase(body.record)).is_refused(RECORD_ERASED)
    state.when(patient, amend(state, body.record, 2)).is_refused(RECORD_ERASED)
    state.when(patient, put(state, folder, record=body.record)).is_refused(RECORD_EXISTS)
    state.when(patient, put(state, folder, digest=body.digest)).is_refused(BLOB_IN_USE)


def test_only_the_owner_erases(state: State) -> None:  # SPEC-REC-6
    patient, hospital = state.patient(), state.organisation()
    folder = state.folder(patient)
    state.consent(patient, hospital, folder, rights=Right.WRITE)
    own = state.record(hospital, folder)
    state.when(hospital, erase(own)).is_refused(NOT_OWNER)
    state.when(patient, erase(own)).is_accepted()

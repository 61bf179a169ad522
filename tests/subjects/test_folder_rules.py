"""The rules of folders, bare: who opens them and moves them to their next epoch (SPEC-REC-1, SPEC-REC-2)."""

import pytest
from rules import FOLDER_WRAP, KEY_WRAP, State

from fastledger.model.terms import SUBJECT
from fastledger.subjects.folder import (
    COUNTS_DIFFER,
    FOLDER_EXISTS,
    FOLDERS,
    NOT_OWNER,
    UNKNOWN_FOLDER,
    WRONG_EPOCH,
    FolderOpen,
    FolderRotate,
)
from fastledger.subjects.identity import UNKNOWN_SIGNER


@pytest.fixture
def state() -> State:
    return State()


def opening(*folders: bytes, keys: int | None = None) -> FolderOpen:
    count = len(folders) if keys is None else keys
    return FolderOpen(folders=list(folders), keys=[FOLDER_WRAP] * count, wrap=KEY_WRAP)


def rotation(folder: bytes, epoch: int, keys: int = 1) -> FolderRotate:
    return FolderRotate(epoch=epoch, folder=folder, keys=[FOLDER_WRAP] * keys, wrap=KEY_WRAP)


def test_folders_belong_to_who_opened_them(state: State) -> None:  # SPEC-REC-1
    patient, folders = state.patient(), (state.draw(), state.draw())
    result = state.when(patient, opening(*folders)).is_accepted()
    result.is_found_by(FOLDERS.term, *folders).is_found_by(SUBJECT, patient.id)
    for folder in folders:
        entity = state.entity(FOLDERS, folder)
        assert (entity.owner, entity.epoch) == (patient.id, 1)


def test_a_folder_is_opened_once_by_anybody(state: State) -> None:  # SPEC-REC-1
    patient, other = state.patient(), state.patient()
    folder = state.folder(patient)
    for signer in (patient, other):
        state.when(signer, opening(state.draw(), folder)).is_refused(FOLDER_EXISTS)
    assert state.entity(FOLDERS, folder).owner == patient.id


def test_folders_and_keys_are_one_to_one(state: State) -> None:  # SPEC-REC-1
    patient, one, two = state.patient(), state.draw(), state.draw()
    state.when(patient, opening(one, one)).is_refused(COUNTS_DIFFER)
    state.when(patient, opening(one, two, keys=1)).is_refused(COUNTS_DIFFER)
    state.when(patient, opening(one, keys=2)).is_refused(COUNTS_DIFFER)
    state.when(state.stranger(), opening(one)).is_refused(UNKNOWN_SIGNER)
    state.when(patient, opening(one, two)).is_accepted()


def test_epochs_follow_one_another(state: State) -> None:  # SPEC-REC-2
    patient = state.patient()
    folder = state.folder(patient)
    for epoch in (0, 1, 3, 2**32 - 1):
        state.when(patient, rotation(folder, epoch)).is_refused(WRONG_EPOCH)
    state.when(patient, rotation(folder, 2)).is_accepted().is_found_by(FOLDERS.term, folder)
    state.when(patient, rotation(folder, 2)).is_refused(WRONG_EPOCH)
    state.when(patient, rotation(folder, 3)).is_accepted()
    assert state.entity(FOLDERS, folder).epoch == 3


def test_only_the_owner_moves_a_folder_with_one_key(state: State) -> None:  # SPEC-REC-2
    patient, other = state.patient(), state.patient()
    folder = state.folder(patient)
    state.when(other, rotation(folder, 2)).is_refused(NOT_OWNER)
    state.when(patient, rotation(state.draw(), 2)).is_refused(UNKNOWN_FOLDER)
    state.when(patient, rotation(folder, 2, keys=2)).is_refused(COUNTS_DIFFER)

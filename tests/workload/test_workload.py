"""The generated hospital: the same bytes always, valid FHIR, connected, and unmistakably synthetic."""

import hashlib
import json
import os
import subprocess
import sys
from itertools import pairwise
from typing import Any

import pytest

from fastledger.errors import FhirError, InputError
from fastledger.gateway.fhir import validate, validate_many
from fastledger.gateway.fhir_owner import owner_of
from fastledger.gateway.fhir_places import places_of
from fastledger.gateway.fhir_references import Scope
from fastledger.gateway.fhir_source import Source
from fastledger.workload import generate, transaction_bundle
from fastledger.workload.ecg import three_leads
from fastledger.workload.prng import SplitMix64

# SHA-256 over the resources of generate(7, 3); made by this generator, pinned so that no platform, Python
# version or edit changes it unnoticed.
DIGEST = "d7ea489e6afbcd26b749af84fa1da1a9fb0fd3ff5d973d6205f34becc2c69945"


def digest(seed: int, patients: int) -> str:
    state = hashlib.sha256()
    for bundle in generate(seed, patients):
        for item in bundle.resources:
            state.update(item.raw + b"\n")
    return state.hexdigest()


def test_same_seed_same_bytes() -> None:  # SPEC-LOAD-1
    assert digest(7, 3) == DIGEST
    assert digest(8, 3) != DIGEST


@pytest.mark.parametrize("hash_seed", ["0", "4242"])
def test_bytes_do_not_hang_on_the_hash_seed(hash_seed: str) -> None:
    program = (
        f"import sys; sys.path[:0] = {sys.path!r}; from test_workload import digest; print(digest(7, 3))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program],
        env={**os.environ, "PYTHONHASHSEED": hash_seed},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.strip() == DIGEST


def test_splitmix64_reference_values() -> None:
    # First outputs of SplitMix64 from state 1234567, as published with the Rosetta Code task.
    random = SplitMix64(0)
    random._state = 1234567
    assert [random.next() for _ in range(3)] == [
        6457827717110365317,
        3203168211198807973,
        9817491932198370423,
    ]


def test_a_patient_is_the_same_in_any_crowd() -> None:
    few, many = list(generate(3, 2)), list(generate(3, 5))
    assert few == many[:3]


@pytest.mark.parametrize("seed", [0, 1, -1, 2**64 + 5])
def test_everything_is_valid_fhir(seed: int) -> None:
    for bundle in generate(seed, 6):
        for item, outcome in zip(
            bundle.resources, validate_many([item.raw for item in bundle.resources]), strict=True
        ):
            assert not isinstance(outcome, FhirError), (item.resource_type, outcome.issues)
            assert outcome.resource_type == item.resource_type


def test_one_bundle_a_patient_of_plausible_size() -> None:
    hospital, *histories = generate(1, 40)
    assert hospital.patient_id is None
    assert all(60 <= len(history.resources) <= 140 for history in histories)
    assert len({history.patient_id for history in histories}) == 40
    types = {item.resource_type for history in histories for item in history.resources}
    assert len(types) >= 14


def references(node: Any) -> set[str]:
    if isinstance(node, dict):
        own = {node["reference"]} if isinstance(node.get("reference"), str) else set()
        return own.union(*(references(value) for value in node.values()))
    if isinstance(node, list):
        return set().union(*(references(value) for value in node))
    return set()


def test_references_resolve() -> None:
    known: set[str | None] = set()
    for bundle in generate(11, 5):
        known.update(item.full_url for item in bundle.resources)
        for item in bundle.resources:
            assert references(json.loads(item.raw)) <= known


def test_every_clinical_record_is_its_patients() -> None:
    source = Source.named("urn:x:workload")
    for bundle in list(generate(12, 5))[1:]:
        places = places_of(bundle, source)
        scope = Scope(source, places, bundle.digest)
        for item, place in zip(bundle.resources, places, strict=True):
            owner = owner_of(json.loads(item.raw), place, scope)
            assert owner.person == f"{source.base}/Patient/{bundle.patient_id}"


def test_transaction_bundle_keeps_the_bytes() -> None:
    history = list(generate(2, 1))[1]
    document = transaction_bundle(history)
    assert validate(document).resource_type == "Bundle"
    assert all(item.raw in document for item in history.resources)


def test_negative_count_is_refused() -> None:
    with pytest.raises(InputError):
        list(generate(1, -1))
    assert len(list(generate(1, 0))) == 1


@pytest.mark.parametrize("rate", [40, 75, 180])
def test_ecg_beats_at_its_rate_and_obeys_einthoven(rate: int) -> None:
    lead_i, lead_ii, lead_iii = three_leads(SplitMix64(9), 2_500, rate)
    assert all(
        first + third == second for first, second, third in zip(lead_i, lead_ii, lead_iii, strict=True)
    )
    peaks = [index for index, value in enumerate(lead_ii) if value > 150]
    beats = 1 + sum(second - first > 20 for first, second in pairwise(peaks))
    assert abs(beats - rate // 6) <= 1  # ten seconds

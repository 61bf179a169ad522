"""What every subject has to meet, tested from its declaration alone: a new one passes without writing a test."""

import hashlib
import os
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from conformance import (
    KIND_CHECKS,
    SUBJECT_CHECKS,
    TABLE_CHECKS,
    Judge,
    check_a_transaction_is_found_by_what_it_names,
    drawn,
    sample,
)
from strategies import body_of
from world import World, make_world

from fastledger.crypto.signing import SigningKey
from fastledger.errors import Code
from fastledger.model.transaction import Transaction
from fastledger.state.entity import EntityTable
from fastledger.state.kind import Kind
from fastledger.state.registry import Declaration
from fastledger.subjects.catalogue import REGISTRY

KINDS = list(REGISTRY.kinds.values())
TABLES = list(REGISTRY.tables.values())

each_kind = pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)


def name_of(check: Callable[..., None]) -> str:
    return check.__name__.removeprefix("check_")


@pytest.mark.parametrize("check", SUBJECT_CHECKS, ids=name_of)
@pytest.mark.parametrize("subject", REGISTRY.subjects, ids=lambda subject: subject.name)
def test_subject(subject: Declaration, check: Callable[[Declaration], None]) -> None:
    check(subject)


@pytest.mark.parametrize("check", KIND_CHECKS, ids=name_of)
@each_kind
def test_kind(kind: Kind, check: Callable[[Kind], None]) -> None:
    check(kind)


@pytest.mark.parametrize("check", TABLE_CHECKS, ids=name_of)
@pytest.mark.parametrize("table", TABLES, ids=lambda table: table.name)
def test_table(table: EntityTable[Any], check: Callable[[EntityTable[Any]], None]) -> None:
    check(table)


@pytest.fixture(scope="module")
def ledger_world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    world = make_world(tmp_path_factory.mktemp("conformance") / "ledger", require_blobs=False)
    yield world
    assert world.ledger.verify().ok
    world.close()


@each_kind
def test_a_transaction_is_found_by_what_it_names(kind: Kind, ledger_world: World) -> None:
    check_a_transaction_is_found_by_what_it_names(kind, ledger_world)


# All of them together.


def test_nothing_is_declared_twice() -> None:  # SPEC-RULE-1
    named = Counter([*(table.prefix for table in TABLES), *(kind.body.__name__ for kind in KINDS)])
    assert named.most_common(1)[0][1] == 1
    codes = [code for subject in REGISTRY.subjects for code in subject.refusals]
    engine = {Code.KIND_NOT_IN_FORCE}
    assert {code for code in Code.all() if code.is_refusal} == {*codes, *engine}


def test_a_transaction_of_every_kind_is_signed_and_read() -> None:
    key = SigningKey.generate()
    for kind in KINDS:
        body = drawn(body_of(kind.name))
        made = Transaction.sign(key, chain_id=bytes(8), body=body, issued_ms=1, expires_ms=2, nonce=3)
        assert Transaction.decode(made.encoded).body == body


def verdicts(cases: list[tuple[str, int, bytes]]) -> str:
    """A digest of what the rules say and leave, case by case."""
    judge, digest = Judge(), hashlib.sha256()
    for name, signer, encoded in cases:
        kind = REGISTRY.kinds[name]
        code, terms, writes = judge.judge(kind, signer, kind.decode(encoded))
        digest.update(msgspec.msgpack.encode([int(code), terms, list(writes.items())]))
    return digest.hexdigest()


def test_the_hash_seed_reaches_no_rule() -> None:  # SPEC-STATE-1
    judge = Judge()
    cases = [
        (kind.name, signer, msgspec.msgpack.encode(body))
        for kind in KINDS
        for signer, body in sample(judge.signed_bodies(kind), 30)
    ]
    script = (
        "import sys, msgspec, test_conformance\n"
        "print(test_conformance.verdicts(msgspec.msgpack.decode(sys.stdin.buffer.read())))"
    )
    here = Path(__file__).parent
    found = {verdicts(cases)}
    for seed in ("1", "2"):
        paths = os.pathsep.join([str(here), str(here.parent / "support"), *sys.path])
        done = subprocess.run(
            [sys.executable, "-c", script],
            input=msgspec.msgpack.encode(cases),
            env={**os.environ, "PYTHONHASHSEED": seed, "PYTHONPATH": paths},
            capture_output=True,
            check=True,
        )
        found.add(done.stdout.decode().strip())
    assert len(found) == 1

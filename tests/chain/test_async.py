"""The façade for asyncio: one body of tests on two loops, asyncio's own and uvloop (see ``conftest.py``)."""

import asyncio
from collections.abc import AsyncIterator, Coroutine
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
import uvloop
from world import TERM, VITALS, World, make_world

from fastledger import AsyncLedger, Code, Ledger, LedgerOptions, Purpose, Role, Transaction, verify_statement
from fastledger.errors import (
    AccessRefused,
    InputError,
    LedgerBusyError,
    LedgerClosedError,
    LedgerLockedError,
    NotFoundError,
)
from fastledger.limits import PENDING_BATCHES_MAX
from fastledger.subjects.consent import CONSENT_MISSING


@pytest_asyncio.fixture
async def settled(tmp_path: Path) -> AsyncIterator[World]:
    world = await asyncio.to_thread(make_world, tmp_path / "ledger")
    yield world
    await asyncio.to_thread(world.close)


def endorsement(world: World) -> Transaction:
    return world.hospital.endorse(world.doctor.identity, Role.PRACTITIONER)


async def soon(work: Coroutine[Any, Any, Any]) -> Any:
    """What hangs fails the test."""
    return await asyncio.wait_for(work, timeout=30)


async def queued(world: World, count: int) -> None:
    """Returns once so many batches wait to be executed."""
    while world.ledger._pipeline.queue_depth < count:  # noqa: ASYNC110 - the ledger knows no events of a loop
        await asyncio.sleep(0.001)


async def test_the_loop_is_the_one_asked_for(request: pytest.FixtureRequest) -> None:
    assert isinstance(asyncio.get_running_loop(), uvloop.Loop) == ("uvloop" in request.node.name)


async def test_a_ledger_from_creation_to_reopening(tmp_path: Path) -> None:
    path = tmp_path / "ledger"
    world_clock = make_world(tmp_path / "other", settled=False)
    regulator = world_clock.regulator
    world_clock.close()
    options = LedgerOptions(clock_ms=world_clock.clock)
    async with await AsyncLedger.create(
        path, authorities=[regulator.authority], password="a sealed node key", options=options
    ) as ledger:
        regulator.join(ledger.chain_id)
        patient = world_clock.patient.join(ledger.chain_id)
        outcomes = await ledger.submit([patient.register(Role.PATIENT), patient.open_folders("vitals")])
        assert [outcome.status for outcome in outcomes] == ["durable"] * 2
        sealed = patient.put_record("vitals", VITALS, (TERM,))
        (outcome,) = await ledger.submit([sealed.transaction.encoded], [sealed.blob])
        assert outcome.ok
        with pytest.raises(LedgerLockedError):
            await AsyncLedger.open(path, password="a sealed node key")
    with pytest.raises(InputError) as error:
        await AsyncLedger.open(path, password="another password")
    assert error.value.code == Code.WRONG_PASSWORD
    async with await AsyncLedger.open(path, password="a sealed node key", options=options) as ledger:
        entry = await ledger.get(outcome.txid)
        assert entry.encoded == sealed.transaction.encoded
        (token,) = patient.tokens("vitals", TERM)
        assert [found.txid for found in await ledger.query(token=token)] == [outcome.txid]
        assert await ledger.read(patient.access(sealed.record, Purpose.PATIENT_REQUEST)) == sealed.blob
        statement = await ledger.prove(outcome.txid)
        genesis = ledger.genesis
        verified = verify_statement(statement, chain_id=genesis.chain_id, proposers=genesis.proposers)
        assert verified.transaction.txid == outcome.txid
        stages: list[str] = []
        report = await ledger.verify(lambda stage, _done, _total: stages.append(stage), online=False)
        assert report.ok
        assert {"log", "blocks", "blobs"} <= set(stages)


async def test_errors_arrive_as_they_are(settled: World) -> None:
    ledger = AsyncLedger(settled.ledger)
    sealed = settled.put()
    with pytest.raises(AccessRefused) as refusal:
        await ledger.read(settled.clinic.access(sealed.record, Purpose.TREATMENT))
    assert refusal.value.code == CONSENT_MISSING
    assert (await ledger.get(refusal.value.txid)).code == CONSENT_MISSING
    with pytest.raises(NotFoundError):
        await ledger.get(bytes(32))
    with pytest.raises(InputError):
        await ledger.query(kind="record.shred")
    assert [outcome.status for outcome in await ledger.submit([b"garbage"])] == ["rejected"]
    assert await ledger.submit([]) == []


async def test_concurrent_submissions_overlap(settled: World) -> None:  # SPEC-PIPE-3, SPEC-ADM-3
    """All are on their way before the first is answered, and the loop goes on turning meanwhile."""
    ledger = AsyncLedger(settled.ledger)
    height = settled.ledger.height
    batches = [[endorsement(settled) for _ in range(3)] for _ in range(12)]
    with settled.ledger._pipeline.paused():
        tasks = [asyncio.create_task(ledger.submit(batch)) for batch in batches]
        await queued(settled, len(batches))
        assert not any(task.done() for task in tasks)
    answers = await soon(asyncio.gather(*tasks))
    assert all(outcome.ok for answer in answers for outcome in answer)
    assert [[outcome.txid for outcome in answer] for answer in answers] == [
        [transaction.txid for transaction in batch] for batch in batches
    ]
    # What waited together stands in one block.
    assert settled.ledger.height == height + 1
    again = await ledger.submit(batches[0])
    assert all(outcome.duplicate for outcome in again)


async def test_a_full_queue_is_busy_and_nothing_is_lost(settled: World) -> None:  # SPEC-PIPE-3
    ledger = AsyncLedger(settled.ledger)
    batches = [[endorsement(settled)] for _ in range(PENDING_BATCHES_MAX)]
    with settled.ledger._pipeline.paused():
        tasks = [asyncio.create_task(ledger.submit(batch)) for batch in batches]
        await queued(settled, PENDING_BATCHES_MAX)
        late = endorsement(settled)
        with pytest.raises(LedgerBusyError) as busy:
            await ledger.submit_nowait([late])
        assert busy.value.retry_after_ms > 0
        waiting = asyncio.create_task(ledger.submit([late]))
        assert (await ledger.query(kind="identity.endorse")).entries  # readers are not held up
    answers = await soon(asyncio.gather(*tasks))
    assert all(outcome.ok for answer in answers for outcome in answer)
    (outcome,) = await soon(waiting)
    assert (outcome.ok, outcome.duplicate) == (True, False)


async def test_giving_up_waiting_harms_nobody(settled: World) -> None:  # SPEC-PIPE-4
    """A cancelled wait once broke the answer to everyone else and halted the ledger."""
    ledger = AsyncLedger(settled.ledger)
    abandoned, kept = endorsement(settled), endorsement(settled)
    with settled.ledger._pipeline.paused():
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.2):
                await ledger.submit([abandoned])
        task = asyncio.create_task(ledger.submit([kept]))
        await queued(settled, 2)
    (outcome,) = await soon(task)
    assert outcome.ok
    (again,) = await soon(ledger.submit([abandoned]))
    assert (again.ok, again.duplicate) == (True, True)


async def test_closing_answers_what_was_submitted(tmp_path: Path) -> None:  # SPEC-PIPE-4
    world = await asyncio.to_thread(make_world, tmp_path / "ledger")
    ledger = AsyncLedger(world.ledger)
    sent = [endorsement(world) for _ in range(20)]
    with world.ledger._pipeline.paused():
        tasks = [asyncio.create_task(ledger.submit([transaction])) for transaction in sent]
        await queued(world, len(sent))
        closing = asyncio.create_task(ledger.close())
        await asyncio.sleep(0.05)
        assert not closing.done()
    await soon(closing)
    assert all(outcome.ok for (outcome,) in await asyncio.gather(*tasks))
    await ledger.close()
    for work in (ledger.submit([endorsement(world)]), ledger.query(), ledger.get(bytes(32)), ledger.verify()):
        with pytest.raises(LedgerClosedError):
            await work
    with Ledger.open(world.path, options=world.options) as reopened:
        assert all(reopened.get(transaction.txid).code == Code.OK for transaction in sent)

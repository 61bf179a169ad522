"""The pipeline behind the façade: queues, closing, visibility, and the loop that goes on beside it (SPEC-PIPE)."""

import asyncio
from concurrent.futures import Future
from pathlib import Path

import pytest
import uvloop
from world import TERM, VITALS, Clock, new_wallet

from fastledger import AsyncLedger, Code, Ledger, LedgerOptions, Purpose, Role
from fastledger.chain.pipeline import Submission
from fastledger.errors import AccessRefused, LedgerBusyError, LedgerClosedError, LedgerHaltedError
from fastledger.limits import PENDING_BATCHES_MAX
from fastledger.model.outcome import Outcome

LOOPS = {"asyncio": asyncio.new_event_loop, "uvloop": uvloop.new_event_loop}


async def round_trip(path: Path) -> None:
    clock = Clock()
    regulator, hospital, patient = (new_wallet(clock) for _ in range(3))
    options = LedgerOptions(clock_ms=clock)
    async with await AsyncLedger.create(path, authorities=[regulator.authority], options=options) as ledger:
        for wallet in (regulator, hospital, patient):
            wallet.join(ledger.ledger.chain_id)
        enrolment = [
            hospital.register(Role.ORGANISATION),
            regulator.endorse(hospital.identity, Role.ORGANISATION),
            patient.register(Role.PATIENT),
            patient.open_folders("vitals"),
        ]
        assert all(outcome.ok for outcome in await ledger.submit(enrolment))
        sealed = [patient.put_record("vitals", VITALS, [TERM]) for _ in range(20)]
        answers = await asyncio.gather(*(ledger.submit([item.transaction], [item.blob]) for item in sealed))
        assert all(outcome.ok for (outcome,) in answers)
        found = await ledger.query(token=patient.tokens("vitals", TERM)[0])
        assert {entry.txid for entry in found} == {item.transaction.txid for item in sealed}
        entry = await ledger.get(sealed[0].transaction.txid)
        assert entry.code == Code.OK
        access = patient.access(sealed[0].record, Purpose.PATIENT_REQUEST)
        assert await ledger.read(access) == sealed[0].blob
        with pytest.raises(AccessRefused):
            await ledger.read(hospital.access(sealed[0].record, Purpose.TREATMENT))
        assert await ledger.prove(entry.txid)
        assert (await ledger.verify()).problems == []
    with pytest.raises(LedgerClosedError):
        await ledger.submit([patient.open_folders("late")])
    async with await AsyncLedger.open(path, options=options) as ledger:
        assert (await ledger.get(entry.txid)).height == entry.height


@pytest.mark.parametrize("loop", LOOPS)
def test_a_round_trip_on_either_loop(tmp_path: Path, loop: str) -> None:
    with asyncio.Runner(loop_factory=LOOPS[loop]) as runner:
        runner.run(round_trip(tmp_path / "ledger"))


@pytest.mark.parametrize("loop", LOOPS)
def test_a_full_queue_says_so_and_loses_nothing(tmp_path: Path, loop: str) -> None:  # SPEC-PIPE-3
    clock = Clock()

    async def flood(ledger: AsyncLedger) -> None:
        wallets = [new_wallet(clock).join(ledger.ledger.chain_id) for _ in range(PENDING_BATCHES_MAX + 1)]
        with ledger.ledger._pipeline.paused():
            futures = [
                ledger.ledger.submit_nowait([wallet.register(Role.PATIENT)]) for wallet in wallets[:-1]
            ]
            with pytest.raises(LedgerBusyError) as error:
                await ledger.submit_nowait([wallets[-1].register(Role.PATIENT)])
            assert error.value.retry_after_ms > 0
        answers = await asyncio.gather(*map(asyncio.wrap_future, futures))
        assert all(outcomes[0].ok for outcomes in answers)
        assert (await ledger.submit([wallets[-1].register(Role.PATIENT)]))[0].ok

    with (
        Ledger.create(tmp_path / "ledger", options=LedgerOptions(clock_ms=clock)) as ledger,
        asyncio.Runner(loop_factory=LOOPS[loop]) as runner,
    ):
        runner.run(flood(AsyncLedger(ledger)))


def test_the_loop_goes_on_while_a_batch_is_verified(tmp_path: Path) -> None:
    clock = Clock()

    async def work(ledger: AsyncLedger) -> int:
        wallets = [new_wallet(clock).join(ledger.ledger.chain_id) for _ in range(300)]
        batch = [wallet.register(Role.PATIENT) for wallet in wallets]
        task = asyncio.create_task(ledger.submit(batch))
        turns = 0
        while not task.done():
            await asyncio.sleep(0)
            turns += 1
        assert all(outcome.ok for outcome in task.result())
        return turns

    with Ledger.create(tmp_path / "ledger", options=LedgerOptions(clock_ms=clock)) as ledger:
        assert asyncio.run(work(AsyncLedger(ledger))) > 10


def test_closing_answers_what_was_submitted(tmp_path: Path) -> None:  # SPEC-PIPE-4
    clock = Clock()
    ledger = Ledger.create(tmp_path / "ledger", options=LedgerOptions(clock_ms=clock))
    wallets = [new_wallet(clock).join(ledger.chain_id) for _ in range(30)]
    futures = [ledger.submit_nowait([wallet.register(Role.PATIENT)]) for wallet in wallets]
    ledger.close()
    assert all(future.result(timeout=0)[0].ok for future in futures)


def test_readers_see_durable_blocks_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:  # SPEC-PIPE-5
    clock = Clock()
    ledger = Ledger.create(tmp_path / "ledger", options=LedgerOptions(clock_ms=clock))
    wallet = new_wallet(clock).join(ledger.chain_id)
    sync, seen = ledger._log.sync, []

    def watched() -> object:
        seen.append((ledger.height, ledger.transaction_count, len(ledger.query())))
        return sync()

    monkeypatch.setattr(ledger._log, "sync", watched)
    assert ledger.submit([wallet.register(Role.PATIENT)])[0].ok
    assert seen == [(0, 0, 0)]
    assert (ledger.height, ledger.transaction_count, len(ledger.query())) == (1, 1, 1)
    ledger.close()


class _AnsweredMeanwhile(Future[list[Outcome]]):
    """Answered by another thread between the look whether it is and the failure."""

    def done(self) -> bool:
        was = super().done()
        if not was:
            self.set_result([])
        return was


def test_a_failure_reaches_everyone_though_one_is_answered_meanwhile(tmp_path: Path) -> None:  # SPEC-PIPE-2
    with Ledger.create(tmp_path / "ledger") as ledger:
        admitted = ledger.begin([new_wallet(Clock()).join(ledger.chain_id).register(Role.PATIENT)]).batch
    submissions = [Submission(admitted, ordered=_AnsweredMeanwhile()), Submission(admitted)]
    for submission in submissions:
        submission.fail(LedgerHaltedError("sync failed"))
    for submission in submissions:
        with pytest.raises(LedgerHaltedError):
            submission.durable.result(0)

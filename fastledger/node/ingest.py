"""The gathering of single submissions into batches: a batch is the ledger's unit of work, a transaction a caller's.

A batch closes at once while fewer than two are on their way, and else when one comes back, when it is full, or when
its first transaction has waited long enough. So a lone submission never waits for company, and under load batches
grow to what arrives during a sync. Queues are bounded in transactions and bytes; beyond that the answer is "busy,
retry after" (SPEC-NODE-2).
"""

import asyncio
from collections.abc import Callable, Coroutine, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, TypeVar

from fastledger.chain.ledger import Ledger
from fastledger.chain.pipeline import Submission
from fastledger.errors import LedgerBusyError, LedgerClosedError
from fastledger.limits import (
    BATCH_BYTES_MAX,
)
from fastledger.model.outcome import Outcome, Wait
from fastledger.node.options import IngestOptions

T = TypeVar("T")
# One is being synced while the next is admitted.
_OVERLAPPING_BATCHES = 2


@dataclass(slots=True, eq=False)
class _Single:
    """One transaction that waits for its batch, and the future that gets its verdict."""

    encoded: bytes
    wait: Wait
    future: "asyncio.Future[Outcome]"


class Batcher:
    """Takes transactions on the event loop and gives them to the ledger in batches, from worker threads."""

    def __init__(self, ledger: Ledger, options: IngestOptions) -> None:
        """Must be called on the event loop that submits."""
        self._ledger = ledger
        self._options = options
        self._loop = asyncio.get_running_loop()
        self._workers = ThreadPoolExecutor(
            options.batches_in_flight, thread_name_prefix="fastledger-admission"
        )
        self._singles: list[_Single] = []
        self._in_flight = 0
        self._scheduled: asyncio.Handle | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._closing = False
        self._idle = asyncio.Event()
        self._idle.set()
        self.pending_transactions = 0
        self.pending_bytes = 0
        self.busy_answers = 0

    # What callers use.

    async def submit(self, encoded: bytes, *, wait: Wait = "durable") -> Outcome:
        """Submits one transaction, in a batch shared with others that are submitted now, and returns its verdict.

        ``wait`` is the stage at which the verdict is given. Raises ``LedgerBusyError`` where too much waits already.
        """
        self._take(1, len(encoded))
        single = _Single(encoded, wait, self._loop.create_future())
        self._singles.append(single)
        if self._scheduled is None:
            # Once the loop has run what is ready, and with it whoever else submits now.
            self._scheduled = self._loop.call_soon(self._close_batches)
        if self._timer is None:
            self._timer = self._loop.call_later(self._options.batch_age_ms / 1000, self._close_aged)
        return await single.future

    async def submit_batch(self, batch: Sequence[bytes], *, wait: Wait = "durable") -> list[Outcome]:
        """Submits the batch of one caller and returns the verdicts in its order. Raises as :meth:`submit`."""
        byte_count = sum(map(len, batch))
        return await self._begin(lambda: self._ledger.begin(batch), wait, len(batch), byte_count)

    async def submit_sequence(
        self, data: bytes, *, count_estimate: int = 1_000, wait: Wait = "durable"
    ) -> list[Outcome]:
        """Submits a CBOR sequence of transactions (RFC 8742) and returns the verdicts in its order.

        Raises ``InputError`` naming the byte where the sequence breaks; nothing of it is taken then.
        ``count_estimate`` is the number of transactions that it counts for in the queue.
        """
        return await self._begin(lambda: self._ledger.begin_sequence(data), wait, count_estimate, len(data))

    def _take(self, count: int, byte_count: int) -> None:
        """Counts transactions and bytes as pending until :meth:`_release`; raises where there is no room."""
        if self._closing:
            raise LedgerClosedError("the node is stopping")
        options = self._options
        # What is alone is always taken: a batch within the limits of a batch can never be too large to try.
        if self.pending_transactions and (
            self.pending_transactions + count > options.pending_transactions_max
            or self.pending_bytes + byte_count > options.pending_bytes_max
        ):
            self.busy_answers += 1
            raise LedgerBusyError(
                f"{self.pending_transactions} transactions are waiting",
                retry_after_ms=options.retry_after_ms,
            )
        self.pending_transactions += count
        self.pending_bytes += byte_count
        self._idle.clear()

    def _release(self, count: int, byte_count: int) -> None:
        """Ends the count of transactions and bytes that are durable, or will never be.

        Their callers may have been answered, or have gone, long before.
        """
        self.pending_transactions -= count
        self.pending_bytes -= byte_count
        if not self.pending_transactions:
            self._idle.set()

    # Batches.

    def _close_batches(self) -> None:
        """Sends off as many batches as may go now."""
        self._scheduled = None
        while self._singles and self._in_flight < self._options.batches_in_flight:
            if (
                self._in_flight >= _OVERLAPPING_BATCHES
                and len(self._singles) < self._options.batch_transactions
            ):
                return  # the next batch that comes back calls again
            self._close_batch()

    def _close_aged(self) -> None:
        """Sends off the batch whose first transaction has waited long enough."""
        self._timer = None
        if self._singles and self._in_flight < self._options.batches_in_flight:
            self._close_batch()

    def _close_batch(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        count, byte_count = 0, 0
        for single in self._singles[: self._options.batch_transactions]:
            byte_count += len(single.encoded)
            if count and byte_count > BATCH_BYTES_MAX:
                break
            count += 1
        singles, self._singles = self._singles[:count], self._singles[count:]
        self._in_flight += 1
        task = self._keep(self._run_singles(singles))
        task.add_done_callback(self._returned)

    def _returned(self, task: "asyncio.Task[None]") -> None:
        self._in_flight -= 1
        self._close_batches()

    def _keep(self, work: Coroutine[Any, Any, None]) -> "asyncio.Task[None]":
        task = self._loop.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    async def _run_singles(self, singles: list[_Single]) -> None:
        """Carries one batch through the ledger; answers each single at the stage that it asked for."""
        try:
            submission = await self._admit(lambda: self._ledger.begin([single.encoded for single in singles]))
            # Verdicts of the border are made only where somebody is to hear one.
            if any(single.wait == "accepted" for single in singles) or any(submission.batch.codes):
                _tell(singles, submission.accepted, ("accepted",))
            if any(single.wait == "ordered" for single in singles):
                _tell(singles, await _result(submission.ordered), ("ordered",))
            _tell(singles, await _result(submission.durable), ("accepted", "ordered", "durable"))
        except Exception as error:
            for single in singles:
                if not single.future.done():
                    single.future.set_exception(error)
        finally:
            self._release(len(singles), sum(len(single.encoded) for single in singles))

    def _begin(
        self, begin: Callable[[], Submission], wait: Wait, count: int, byte_count: int
    ) -> "asyncio.Future[list[Outcome]]":
        """Carries a caller's own batch through the ledger.

        The future returned is set at the stage that was asked for.
        """
        self._take(count, byte_count)
        told: asyncio.Future[list[Outcome]] = self._loop.create_future()

        async def carry() -> None:
            try:
                submission = await self._admit(begin)
                if wait == "accepted":
                    _answer(told, submission.accepted)
                elif wait == "ordered":
                    _answer(told, await _result(submission.ordered))
                _answer(told, await _result(submission.durable))
            except Exception as error:
                if not told.done():
                    told.set_exception(error)
            finally:
                self._release(count, byte_count)

        self._keep(carry())
        return told

    async def _admit(self, begin: Callable[[], Submission]) -> Submission:
        """Runs the admission of a batch on a worker thread."""
        return await self._loop.run_in_executor(self._workers, begin)

    async def close(self) -> None:
        """Takes nothing more, and returns once everything that was taken is answered."""
        self._closing = True
        await self._idle.wait()
        self._workers.shutdown(wait=False)


def _tell(singles: Sequence[_Single], outcomes: Sequence[Outcome], stages: Sequence[Wait]) -> None:
    """Answers those singles that wait for one of ``stages``; a rejection at the border is final and told at once."""
    for single, outcome in zip(singles, outcomes, strict=True):
        if not single.future.done() and (single.wait in stages or outcome.status == "rejected"):
            single.future.set_result(outcome)


def _answer(told: "asyncio.Future[list[Outcome]]", outcomes: list[Outcome]) -> None:
    """Sets the future's result, unless it was set before or its caller has gone."""
    if not told.done():
        told.set_result(outcomes)


async def _result(future: "Future[list[Outcome]]") -> list[Outcome]:
    return await asyncio.wrap_future(future)

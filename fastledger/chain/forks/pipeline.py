"""The threads behind an open ledger whose chain may reorganise: one for the chain, one for checkpoints (SPEC-FORK-12).

::

    submitter threads   admit: scan, contents, signatures (GIL released)        │ inbox, bounded by room in the pool
    chain thread        everything about the chain: pool, blocks, branches,     │
                        mining templates, what a network brings; one sync a turn, then events and verdicts
    checkpointer thread overlay to LMDB, now and then

Whoever else has to do with the chain, a miner or a network, brings jobs: :meth:`ForkPipeline.call` and
:meth:`ForkPipeline.post`. A turn of the chain thread is all jobs that wait, one sync of journal and log, and then the
news. A failure to write or sync halts it like the pipeline of an engine without forks.
"""

from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future, InvalidStateError
from contextlib import suppress
from typing import Any, TypeAlias, TypeVar

from fastledger.chain.admission import Batch
from fastledger.chain.execution.store import ChainStore, Layer
from fastledger.chain.forks.chain import ForkChain
from fastledger.chain.forks.events import BlocksFinal, ChainEvent
from fastledger.chain.forks.submissions import Answers, SubmissionTracker
from fastledger.chain.stages import BUSY_RETRY_MS, Stages, Submission
from fastledger.errors import Code, InputError, LedgerBusyError, LedgerClosedError, LedgerError
from fastledger.limits import FORK_JOBS_MAX, FORK_TICK_MS
from fastledger.model.outcome import Outcome
from fastledger.stage_times import StageTimes

T = TypeVar("T")
ChainJob: TypeAlias = Callable[[ForkChain], object]
Subscriber: TypeAlias = Callable[[Sequence[ChainEvent]], None]
# Retries of what is known get the verdict that it got.
_MAY_BE_KNOWN = frozenset((Code.DUPLICATE, Code.EXPIRED))


class ForkPipeline(Stages):
    """Runs a :class:`ForkChain` on a thread of its own.

    Otherwise it is as :class:`~fastledger.chain.pipeline.Pipeline`.
    """

    def __init__(
        self,
        *,
        chain: ForkChain,
        store: ChainStore,
        clock_ms: Callable[[], int],
        times: StageTimes,
        checkpoint_transactions: int,
        checkpoint_bytes: int,
        on_durable: Callable[[Sequence[Layer]], None],
    ) -> None:
        """``chain`` was started; from here on it belongs to the chain thread."""
        super().__init__(
            store=store,
            times=times,
            checkpoint_transactions=checkpoint_transactions,
            checkpoint_bytes=checkpoint_bytes,
        )
        self._chain = chain
        self._clock_ms = clock_ms
        self._on_durable = on_durable
        self._inbox: deque[ChainJob] = deque()
        self._calls: set[Future[Any]] = set()
        self._submitted: set[Submission] = set()
        self._tracker: SubmissionTracker[Submission] = SubmissionTracker()
        self._subscribers: tuple[Subscriber, ...] = ()
        # What was submitted and has not reached the pool yet.
        self._coming_count = 0
        self._coming_bytes = 0
        self._after_turn: list[Callable[[], None]] = []
        self._busy = False
        self._chain_ended = False
        self._ticked_ms = clock_ms()
        self._run({"chain": self._work_forever})

    # Everyone's side.

    def submit(self, batch: Batch, *, wait: bool) -> Submission:
        """Queues an admitted batch and returns its submission.

        Where the pool has no room it waits, or raises ``LedgerBusyError`` if ``wait`` is false.
        """
        submission = Submission(batch)
        if not submission.count:
            submission.ordered.set_result([])
            submission.durable.set_result([])
            return submission
        with self._changed:
            while not self._has_room(submission) and not self._ended():
                if not wait:
                    raise LedgerBusyError(
                        f"{len(self._chain.mempool)} transactions are waiting", retry_after_ms=BUSY_RETRY_MS
                    )
                self._changed.wait()
            self._raise_if_ended()
            self._coming_count += submission.count
            self._coming_bytes += batch.byte_count
            self._submitted.add(submission)
            self._inbox.append(lambda chain: self._take(chain, submission))
            self._changed.notify_all()
        return submission

    def _has_room(self, submission: Submission) -> bool:
        pool = self._chain.mempool
        count = len(pool) + self._coming_count + submission.count
        byte_count = pool.byte_count + self._coming_bytes + submission.batch.byte_count
        return count <= pool.transactions_max and byte_count <= pool.bytes_max

    @property
    def queue_depth(self) -> int:
        """How many batches are submitted and not yet answered."""
        return len(self._submitted)

    def post(self, job: Callable[[ForkChain], None]) -> None:
        """Has ``job`` run on the chain thread, in turn. An error that it lets out halts the ledger.

        Raises ``LedgerBusyError`` where too many jobs wait: their source has to slow down.
        """
        with self._changed:
            self._raise_if_ended()
            if len(self._inbox) >= FORK_JOBS_MAX:
                raise LedgerBusyError(f"{len(self._inbox)} jobs are waiting", retry_after_ms=BUSY_RETRY_MS)
            self._inbox.append(job)
            self._changed.notify_all()

    def call(self, job: Callable[[ForkChain], T]) -> "Future[T]":
        """Has ``job`` run on the chain thread, in turn; the future gets its result or its ``InputError``.

        The future resolves once everything that the job did is on the disk and reported. Another error halts the
        ledger.
        """
        future: Future[T] = Future()
        future.set_running_or_notify_cancel()

        def run(chain: ForkChain) -> None:
            try:
                result = job(chain)
            except InputError as error:
                refused = error
                self._after_turn.append(lambda: _fail(future, refused))
            else:
                self._after_turn.append(lambda: _resolve(future, result))
            self._after_turn.append(lambda: self._calls.discard(future))

        with self._changed:
            self._raise_if_ended()
            self._calls.add(future)
            self._inbox.append(run)
            self._changed.notify_all()
        return future

    def subscribe(self, subscriber: Subscriber) -> Callable[[], None]:
        """Calls ``subscriber`` on the chain thread with the events of each turn; returns the function that ends it.

        The subscriber must not wait or raise; it may use the chain.
        """
        self._subscribers = (*self._subscribers, subscriber)

        def remove() -> None:
            self._subscribers = tuple(other for other in self._subscribers if other is not subscriber)

        return remove

    # The chain's thread.

    def _work_forever(self) -> None:
        try:
            while self._turn():
                pass
        finally:
            with self._changed:
                self._chain_ended = True
                self._changed.notify_all()

    def _turn(self) -> bool:
        """Does all jobs that wait, syncs once, and reports the events; returns False where the thread ends."""
        with self._changed:
            if not self._may_work():
                self._changed.wait(FORK_TICK_MS / 1000)
            if self._ended():
                return False
            if self._paused:
                return True
            jobs = tuple(self._inbox)
            self._inbox.clear()
            self._busy = True
        try:
            self._store.renew()
            if jobs:
                with self._times.stage("execute"):
                    for job in jobs:
                        job(self._chain)
            self._tick()
            self._tell()
            self._refuse_if_outdated()
            for step in self._after_turn:
                step()
            self._after_turn.clear()
        finally:
            with self._changed:
                self._busy = False
                self._changed.notify_all()
        return True

    def _may_work(self) -> bool:
        return (bool(self._inbox) and not self._paused) or self._ended()

    def _tick(self) -> None:
        now_ms = self._clock_ms()
        if abs(now_ms - self._ticked_ms) >= FORK_TICK_MS:
            self._ticked_ms = now_ms
            self._chain.tick(now_ms)

    def _tell(self) -> None:
        """Reports events until there are none: a subscriber may have used the chain and caused more."""
        while self._chain.has_news:
            with self._times.stage("sync"):
                events = self._chain.take_events()
            self._answer(self._tracker.consume(events))
            final = [layer for event in events if isinstance(event, BlocksFinal) for layer in event.layers]
            if final:
                self._begin_checkpoint(self._checkpoint_transactions, self._checkpoint_bytes)
                self._on_durable(final)
            for subscriber in self._subscribers:
                subscriber(events)

    def _refuse_if_outdated(self) -> None:
        """Fails what is submitted and not final where this release cannot go on: nobody is to wait for an upgrade.

        As after closing, the transactions may be sent again, and may have entered the chain meanwhile.
        """
        needed = self._chain.release_needed if self._submitted else None
        if needed is not None:
            with self._changed:
                refused = list(self._submitted)
                self._submitted.clear()
            for submission in refused:
                submission.fail(needed)

    def _take(self, chain: ForkChain, submission: Submission) -> None:
        batch = submission.batch
        codes = chain.accept(batch)
        with self._changed:
            self._coming_count -= submission.count
            self._coming_bytes -= batch.byte_count
        asked = [txid for txid, code in zip(batch.txids, codes, strict=True) if code in _MAY_BE_KNOWN]
        known: dict[bytes, Outcome] = chain.verdicts(asked) if asked else {}
        expires = [
            0 if code not in (Code.OK, Code.DUPLICATE) else batch.scan.expires_ms(index)
            for index, code in enumerate(codes)
        ]
        self._answer(self._tracker.add(submission, batch.txids, codes, expires, known, chain.final.height))

    def _answer(self, answers: Answers[Submission]) -> None:
        for submission, outcomes in answers.ordered:
            _resolve(submission.ordered, outcomes)
        for submission, outcomes in answers.durable:
            _resolve(submission.ordered, outcomes)
            _resolve(submission.durable, outcomes)
            self._submitted.discard(submission)

    # Pausing and ending.

    def _building(self) -> bool:
        return self._busy or self._frozen is not None

    def _drained(self) -> bool:
        return self._failure is not None or self._chain_ended

    def _abandon(self, failure: LedgerError) -> list[Submission]:
        abandoned, calls = list(self._submitted), list(self._calls)
        self._submitted.clear()
        self._inbox.clear()
        for call in calls:
            with suppress(InvalidStateError):
                call.set_exception(failure)
        return abandoned

    def close(self) -> None:
        """Ends the threads and writes a last checkpoint of what is final.

        Submissions that are not final fail with ``LedgerClosedError``: their transactions may be sent again, and may
        have entered the chain meanwhile.
        """
        try:
            super().close()
        finally:
            failure = LedgerClosedError("the ledger was closed before the batch was final")
            with self._changed:
                abandoned = self._abandon(failure)
            for submission in abandoned:
                submission.fail(failure)


def _resolve(future: "Future[T]", result: T) -> None:
    with suppress(InvalidStateError):  # closing may have failed it at this very moment
        future.set_result(result)


def _fail(future: "Future[T]", error: BaseException) -> None:
    with suppress(InvalidStateError):
        future.set_exception(error)

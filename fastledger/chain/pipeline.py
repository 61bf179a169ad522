"""Batches in, durable outcomes out: admission, execution, sync and checkpoint of consecutive batches overlap.

::

    submitter threads   admit: scan, contents, signatures (GIL released)        │ bounded queue
    executor thread     one block of all that waits; rules, roots, log append   │ bounded queue
    syncer thread       one fdatasync for all that was appended; acknowledge    │
    checkpointer thread overlay to LMDB, now and then

A failure to write or sync halts the pipeline: everything not yet acknowledged fails, nothing is retried, and the
ledger has to be opened again (SPEC-PIPE-1..5).
"""

import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, InvalidStateError
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import TypeAlias

from fastledger.chain.admission import Admitted
from fastledger.chain.executor import Appended, Executor
from fastledger.chain.metrics import StageTimes
from fastledger.chain.outcome import Outcome
from fastledger.chain.store import ChainStore, Layer, Overlay
from fastledger.errors import Code, LedgerBusyError, LedgerClosedError, LedgerError, LedgerHaltedError
from fastledger.limits import BLOCK_BYTES_MAX, BLOCK_TRANSACTIONS_MAX, PENDING_BATCHES_MAX
from fastledger.storage.blobs import BlobStore
from fastledger.storage.log import SegmentLog

Outcomes: TypeAlias = list[Outcome]
BUSY_RETRY_MS = 50


@dataclass(slots=True, eq=False)
class Submission:
    """A batch on its way through the pool (now), into a block (``ordered``) and onto the disk (``durable``).

    Both futures resolve to the batch's verdicts; neither can be cancelled. An ordered verdict has its height and
    can still be lost with the node; a durable one cannot.
    """

    admitted: Admitted
    ordered: "Future[Outcomes]" = field(default_factory=Future)
    durable: "Future[Outcomes]" = field(default_factory=Future)
    verdicts: list[Outcome | None] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.verdicts = [None] * self.count
        # From here on it cannot be cancelled: the batch will be durable whether anyone waits or not.
        self.ordered.set_running_or_notify_cancel()
        self.durable.set_running_or_notify_cancel()

    @property
    def count(self) -> int:
        """How many transactions it brings."""
        return len(self.admitted.codes)

    @property
    def accepted(self) -> Outcomes:
        """The verdicts of the border: *accepted* into the pool or *rejected*."""
        return list(map(Outcome, self.admitted.txids, map(Code, self.admitted.codes)))

    def outcomes(self) -> Outcomes:
        """The verdicts, once it is ordered."""
        return [verdict for verdict in self.verdicts if verdict is not None]

    def fail(self, failure: BaseException) -> None:
        """Tells whoever still waits."""
        for future in (self.ordered, self.durable):
            # The executor may answer at this very moment; whoever else waits has to hear of it all the same.
            with suppress(InvalidStateError):
                future.set_exception(failure)


@dataclass(slots=True)
class Group:
    """What the executor hands to the syncer: a block (None where all were known) and whom it answers."""

    appended: Appended | None
    submissions: Sequence[Submission]


class Pipeline:
    """The threads behind one open ledger."""

    def __init__(
        self,
        *,
        executor: Executor,
        store: ChainStore,
        log: SegmentLog,
        blobs: BlobStore,
        clock_ms: Callable[[], int],
        times: StageTimes,
        checkpoint_transactions: int,
        checkpoint_bytes: int,
        on_durable: Callable[[Sequence[Layer]], None],
    ) -> None:
        self._executor = executor
        self._store = store
        self._log = log
        self._blobs = blobs
        self._clock_ms = clock_ms
        self._times = times
        self._checkpoint_transactions = checkpoint_transactions
        self._checkpoint_bytes = checkpoint_bytes
        self._on_durable = on_durable
        # One condition for all hand-overs: they happen once a batch, not once a transaction.
        self._changed = threading.Condition()
        self._waiting: deque[Submission] = deque()
        self._executing: list[Submission] = []
        self._groups: deque[Group] = deque()
        self._frozen: Overlay | None = None
        self._in_flight = 0
        self._paused = False
        self._pausing = threading.Lock()
        self._closing = False
        self._failure: BaseException | None = None
        self._threads = [
            threading.Thread(target=self._guard, args=(work,), name=f"fastledger-{name}", daemon=True)
            for name, work in (
                ("executor", self._execute_forever),
                ("syncer", self._sync_forever),
                ("checkpointer", self._checkpoint_forever),
            )
        ]
        for thread in self._threads:
            thread.start()

    # The submitters' side.

    def submit(self, admitted: Admitted, *, wait: bool) -> Submission:
        """Queues an admitted batch. A full queue blocks, or raises ``LedgerBusyError`` where ``wait`` is false."""
        submission = Submission(admitted)
        if not submission.count:
            submission.ordered.set_result([])
            submission.durable.set_result([])
            return submission
        with self._changed:
            while self._in_flight >= PENDING_BATCHES_MAX and not self._ended():
                if not wait:
                    raise LedgerBusyError(
                        f"{self._in_flight} batches are waiting", retry_after_ms=BUSY_RETRY_MS
                    )
                self._changed.wait()
            self._raise_if_ended()
            self._in_flight += 1
            self._waiting.append(submission)
            self._changed.notify_all()
        return submission

    def _ended(self) -> bool:
        return self._closing or self._failure is not None

    def _raise_if_ended(self) -> None:
        if self._failure is not None:
            raise LedgerHaltedError(f"reopen the ledger to go on: {self._failure}") from self._failure
        if self._closing:
            raise LedgerClosedError("the ledger is closed")

    def check_running(self) -> None:
        """Raises ``LedgerHaltedError`` or ``LedgerClosedError`` where nothing more can be submitted."""
        with self._changed:
            self._raise_if_ended()

    @property
    def halted(self) -> bool:
        """Whether a failure has ended it."""
        return self._failure is not None

    @property
    def queue_depth(self) -> int:
        """Batches submitted and not yet answered."""
        return self._in_flight

    # The executor's thread.

    def _execute_forever(self) -> None:
        while True:
            with self._changed:
                while not self._may_execute() and not self._drained():
                    self._changed.wait()
                if self._failure is not None or not self._waiting:
                    return
                submissions = self._executing = self._take_waiting()
            with self._times.stage("execute"):
                self._store.renew()
                appended = self._executor.build(
                    [submission.admitted for submission in submissions],
                    [submission.verdicts for submission in submissions],
                    self._clock_ms(),
                )
            with self._changed:
                if self._failure is not None:
                    return  # another thread failed meanwhile, and with it all who wait
                self._groups.append(Group(appended, submissions))
                self._executing = []
                self._changed.notify_all()
            for submission in submissions:
                submission.ordered.set_result(submission.outcomes())

    def _may_execute(self) -> bool:
        return bool(self._waiting) and not self._paused

    def _drained(self) -> bool:
        """Whether a thread may end: after a failure, or on closing once everything is answered."""
        return self._failure is not None or (self._closing and self._in_flight == 0)

    def _take_waiting(self) -> list[Submission]:
        """As many waiting batches as one block may hold, at least one."""
        submissions = [self._waiting.popleft()]
        count, byte_count = submissions[0].count, submissions[0].admitted.byte_count
        while self._waiting:
            following = self._waiting[0]
            count += following.count
            byte_count += following.admitted.byte_count
            if count > BLOCK_TRANSACTIONS_MAX or byte_count > BLOCK_BYTES_MAX:
                break
            submissions.append(self._waiting.popleft())
        return submissions

    # The syncer's thread.

    def _sync_forever(self) -> None:
        while True:
            with self._changed:
                while not self._groups and not self._drained():
                    self._changed.wait()
                if self._failure is not None or not self._groups:
                    return
                groups = tuple(self._groups)
            blocks = [group.appended for group in groups if group.appended is not None]
            if blocks:
                with self._times.stage("sync"):
                    self._log.sync()
            with self._times.stage("settle"):
                self._settle(blocks)
            self._answer(groups)
            if blocks:
                self._on_durable([appended.layer for appended in blocks])

    def _settle(self, blocks: Sequence[Appended]) -> None:
        """The blocks become visible; the envelopes that they erase go before anyone hears of it.

        In this order, so that whoever asks the state whether an envelope is erased, and then stores it, has stored
        it before it is erased. And before the checkpoint, behind which no replay would do it again.
        """
        self._store.settle(len(blocks))
        for appended in blocks:
            for digest in appended.erased:
                self._blobs.erase(digest)
        self._begin_checkpoint(self._checkpoint_transactions, self._checkpoint_bytes)

    def _begin_checkpoint(self, transactions_min: int, bytes_min: int) -> bool:
        frozen = self._store.freeze(transactions_min=transactions_min, bytes_min=bytes_min)
        if frozen is None:
            return False
        with self._changed:
            self._frozen = frozen
            self._changed.notify_all()
        return True

    def _answer(self, groups: Sequence[Group]) -> None:
        answered = [submission for group in groups for submission in group.submissions]
        with self._changed:
            if self._failure is not None:
                return  # the checkpointer failed meanwhile, and with it all who wait
            for _ in groups:
                self._groups.popleft()
            self._in_flight -= len(answered)
            self._changed.notify_all()
        for submission in answered:
            submission.durable.set_result(submission.outcomes())

    # The checkpointer's thread.

    def _checkpoint_forever(self) -> None:
        while True:
            with self._changed:
                while self._frozen is None and not self._drained():
                    self._changed.wait()
                if self._failure is not None or self._frozen is None:
                    return
                frozen = self._frozen
            with self._times.stage("checkpoint"):
                self._store.write_frozen(frozen)
            del frozen  # its memory is for the next one
            with self._changed:
                self._frozen = None
                self._changed.notify_all()

    # Pausing and ending.

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Holds execution while everything before is durable; submitted batches wait, and so do other pausers."""
        with self._pausing:
            try:
                with self._changed:
                    self._raise_if_ended()
                    self._paused = True
                    while self._building() and self._failure is None:
                        self._changed.wait()
                    self._raise_if_ended()
                yield
            finally:
                with self._changed:
                    self._paused = False
                    self._changed.notify_all()

    def _building(self) -> bool:
        """Whether a batch is between the waiting queue and its answer, or a checkpoint is being written."""
        return self._in_flight > len(self._waiting) or self._frozen is not None

    def checkpoint(self) -> None:
        """Writes everything durable to the index, now."""
        with self.paused():
            self.checkpoint_paused()

    def checkpoint_behind(self) -> None:
        """Writes what is durable now to the index while submissions go on, which wait only until it has begun."""
        with self.paused():
            self._store.renew()
            self._begin_checkpoint(0, 0)
        with self._changed:
            while self._frozen is not None and self._failure is None:
                self._changed.wait()
            self._raise_if_ended()

    def checkpoint_paused(self) -> None:
        """The same, for a caller that holds :meth:`paused`."""
        self._store.renew()
        while (frozen := self._store.freeze(transactions_min=0, bytes_min=0)) is not None:
            with self._times.stage("checkpoint"):
                self._store.write_frozen(frozen)
            self._store.renew()

    def close(self) -> None:
        """Answers everything submitted, writes a last checkpoint and ends the threads.

        Waits for who holds :meth:`paused`: what a verification reads must not be closed under it.
        """
        with self._pausing, self._changed:
            self._closing = True
            self._changed.notify_all()
        for thread in self._threads:
            thread.join()
        if self._failure is None:
            self.checkpoint_paused()

    def _guard(self, work: Callable[[], None]) -> None:
        """Runs a thread's work; whatever ends it halts the whole pipeline and fails all who wait."""
        try:
            work()
        except BaseException as error:
            failure = _failure_of(error)
            with self._changed:
                if self._failure is None:
                    self._failure = failure
                unanswered = [submission for group in self._groups for submission in group.submissions]
                unanswered += [*self._executing, *self._waiting]
                self._groups.clear()
                self._executing = []
                self._waiting.clear()
                self._in_flight -= len(unanswered)
                self._changed.notify_all()
            for submission in unanswered:
                submission.fail(failure)


def _failure_of(error: BaseException) -> LedgerError:
    """What submitters are told: an error of theirs it is not, so anything else becomes a halt with its cause."""
    if isinstance(error, LedgerError):
        return error
    failure = LedgerHaltedError(f"the ledger has halted ({type(error).__name__}); reopen it to go on")
    failure.__cause__ = error
    return failure

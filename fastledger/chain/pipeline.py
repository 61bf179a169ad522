"""Batches in, durable outcomes out: admission, execution, sync and checkpoint of consecutive batches overlap.

::

    submitter threads   admit: scan, contents, signatures, index (GIL released) │ bounded queue
    executor thread     one block of all that waits; rules, roots, log append   │ bounded queue
    syncer thread       one fdatasync for all that was appended; acknowledge    │
    checkpointer thread overlay to LMDB, now and then

A failure to write or sync halts the pipeline: everything not yet acknowledged fails, nothing is retried, and the
ledger has to be opened again (SPEC-PIPE-1..5).
"""

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from fastledger.chain.admission import Batch
from fastledger.chain.execution.executor import Appended, Executor
from fastledger.chain.execution.store import ChainStore, Layer
from fastledger.chain.stages import BUSY_RETRY_MS, Stages, Submission
from fastledger.errors import LedgerBusyError, LedgerError
from fastledger.limits import BLOCK_BYTES_MAX, BLOCK_TRANSACTIONS_MAX, PENDING_BATCHES_MAX
from fastledger.stage_times import StageTimes
from fastledger.storage.blobs.store import BlobStore
from fastledger.storage.log import SegmentLog

__all__ = ["BUSY_RETRY_MS", "Pipeline", "Submission"]


@dataclass(slots=True)
class Group:
    """A block from the executor to the syncer (None where all was known), and the batches that it answers."""

    appended: Appended | None
    submissions: Sequence[Submission]


class Pipeline(Stages):
    """The threads behind one open ledger whose blocks are final at once."""

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
        super().__init__(
            store=store,
            times=times,
            checkpoint_transactions=checkpoint_transactions,
            checkpoint_bytes=checkpoint_bytes,
        )
        self._executor = executor
        self._log = log
        self._blobs = blobs
        self._clock_ms = clock_ms
        self._on_durable = on_durable
        self._waiting: deque[Submission] = deque()
        self._executing: list[Submission] = []
        self._groups: deque[Group] = deque()
        self._in_flight = 0
        self._run({"executor": self._execute_forever, "syncer": self._sync_forever})

    # The submitters' side.

    def submit(self, batch: Batch, *, wait: bool) -> Submission:
        """Queues an admitted batch and returns its submission.

        A full queue blocks, or raises ``LedgerBusyError`` where ``wait`` is false.
        """
        submission = Submission(batch)
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

    @property
    def queue_depth(self) -> int:
        """How many batches are submitted and not yet answered."""
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
                needed = self._executor.in_force.release_needed
                appended = None if needed is not None else self._build(submissions)
            with self._changed:
                if self._failure is not None:
                    return  # another thread failed meanwhile, and with it all who wait
                if needed is None:
                    self._groups.append(Group(appended, submissions))
                else:
                    self._in_flight -= len(submissions)
                self._executing = []
                self._changed.notify_all()
            for submission in submissions:
                if needed is None:
                    submission.ordered.set_result(submission.outcomes())
                else:
                    submission.fail(needed)

    def _build(self, submissions: Sequence[Submission]) -> Appended | None:
        return self._executor.build(
            [submission.batch for submission in submissions],
            [submission.verdicts for submission in submissions],
            self._clock_ms(),
        )

    def _may_execute(self) -> bool:
        return bool(self._waiting) and not self._paused

    def _drained(self) -> bool:
        """Whether a thread may end: after a failure, or on closing once everything is answered."""
        return self._failure is not None or (self._closing and self._in_flight == 0)

    def _take_waiting(self) -> list[Submission]:
        """Takes as many waiting batches as one block may hold, at least one."""
        submissions = [self._waiting.popleft()]
        count, byte_count = submissions[0].count, submissions[0].batch.byte_count
        while self._waiting:
            following = self._waiting[0]
            count += following.count
            byte_count += following.batch.byte_count
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
            with self._times.stage("settle"), self._settling:
                if self._failure is not None:
                    return  # whoever waited was told so; the block is found again when the ledger is opened
                self._settle(blocks)
            self._answer(groups)
            if blocks:
                self._on_durable([appended.layer for appended in blocks])

    def _settle(self, blocks: Sequence[Appended]) -> None:
        """Makes blocks visible, then erases the envelopes that they erase, before anyone is told of the blocks.

        In this order, so that whoever asks the state whether an envelope is erased, and then stores it, has stored
        it before it is erased. And before the checkpoint, behind which no replay would do it again.
        """
        self._store.settle(len(blocks))
        for appended in blocks:
            for digest in appended.erased:
                self._blobs.erase(digest)
        self._begin_checkpoint(self._checkpoint_transactions, self._checkpoint_bytes)

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

    def _building(self) -> bool:
        """Whether a batch is between the waiting queue and its answer, or a checkpoint is being written."""
        return self._in_flight > len(self._waiting) or self._frozen is not None

    def _abandon(self, failure: LedgerError) -> list[Submission]:
        unanswered = [submission for group in self._groups for submission in group.submissions]
        unanswered += [*self._executing, *self._waiting]
        self._groups.clear()
        self._executing = []
        self._waiting.clear()
        self._in_flight -= len(unanswered)
        return unanswered

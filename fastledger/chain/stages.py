"""The common part of the pipelines: submissions, the checkpointer, pausing, halting (SPEC-PIPE-1..5)."""

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, InvalidStateError
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import TypeAlias, cast

from fastledger.chain.admission import Batch
from fastledger.chain.execution.store import ChainStore, Overlay
from fastledger.errors import Code, LedgerClosedError, LedgerError, LedgerHaltedError
from fastledger.model.outcome import Outcome
from fastledger.stage_times import StageTimes

Outcomes: TypeAlias = list[Outcome]
BUSY_RETRY_MS = 50


@dataclass(slots=True, eq=False)
class Submission:
    """A batch on its way: accepted at the border, then into a block (``ordered``), then onto the disk (``durable``).

    Both futures resolve to the batch's verdicts; neither can be cancelled. An ordered verdict has its height and can
    still be lost with the node; a durable one cannot.
    """

    batch: Batch
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
        """How many transactions the batch has."""
        return len(self.batch.codes)

    @property
    def accepted(self) -> Outcomes:
        """The verdicts of the border: *accepted* into the pool or *rejected*."""
        return list(map(Outcome, self.batch.txids, map(Code, self.batch.codes)))

    def outcomes(self) -> Outcomes:
        """Returns the verdicts of a batch that is ordered."""
        return cast("Outcomes", list(self.verdicts))

    def fail(self, failure: BaseException) -> None:
        """Ends both futures with ``failure``, as far as they are not resolved."""
        for future in (self.ordered, self.durable):
            # The executor may answer at this very moment; whoever else waits has to hear of it all the same.
            with suppress(InvalidStateError):
                future.set_exception(failure)


class Stages:
    """The base of the pipelines: all threads behind an open ledger but those that order transactions."""

    def __init__(
        self,
        *,
        store: ChainStore,
        times: StageTimes,
        checkpoint_transactions: int,
        checkpoint_bytes: int,
    ) -> None:
        self._store = store
        self._times = times
        self._checkpoint_transactions = checkpoint_transactions
        self._checkpoint_bytes = checkpoint_bytes
        # One condition for all hand-overs: they happen once a batch, not once a transaction.
        self._changed = threading.Condition()
        self._frozen: Overlay | None = None
        self._paused = False
        self._pausing = threading.Lock()
        self._closing = False
        self._failure: BaseException | None = None
        # Held while blocks become visible, and while a failure is noted: nothing becomes visible after one.
        self._settling = threading.Lock()
        self._threads: list[threading.Thread] = []

    def _run(self, works: dict[str, Callable[[], None]]) -> None:
        """Starts a thread for each of ``works``, and the checkpointer."""
        works = works | {"checkpointer": self._checkpoint_forever}
        self._threads = [
            threading.Thread(target=self._guard, args=(work,), name=f"fastledger-{name}", daemon=True)
            for name, work in works.items()
        ]
        for thread in self._threads:
            thread.start()

    # What a pipeline fills in.

    def _building(self) -> bool:
        """Whether anything is under way that a pause has to wait for; called with the lock."""
        return self._frozen is not None

    def _drained(self) -> bool:
        """Whether a thread may end: after a failure, or on closing once everything is answered."""
        return self._ended()

    def _abandon(self, failure: LedgerError) -> list[Submission]:
        """Forgets everything that is not answered, after a failure, and returns it; called with the lock."""
        return []

    # The submitters' side.

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
        """Whether a failure has ended the pipeline."""
        return self._failure is not None

    def _begin_checkpoint(self, transactions_min: int, bytes_min: int) -> bool:
        frozen = self._store.freeze(transactions_min=transactions_min, bytes_min=bytes_min)
        if frozen is None:
            return False
        with self._changed:
            self._frozen = frozen
            self._changed.notify_all()
        return True

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
        """Holds execution for the length of the block, once everything before is durable.

        Batches that are submitted meanwhile wait, and so do other pausers.
        """
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

    def checkpoint(self) -> None:
        """Writes everything durable to the index, while execution is held."""
        with self.paused():
            self.checkpoint_paused()

    def checkpoint_behind(self) -> None:
        """Writes what is durable now to the index; submissions wait only until that has begun."""
        with self.paused():
            self._store.renew()
            self._begin_checkpoint(0, 0)
        with self._changed:
            while self._frozen is not None and self._failure is None:
                self._changed.wait()
            self._raise_if_ended()

    def checkpoint_paused(self) -> None:
        """Writes everything durable to the index, for a caller that holds :meth:`paused`."""
        self._store.renew()
        while (frozen := self._store.freeze(transactions_min=0, bytes_min=0)) is not None:
            with self._times.stage("checkpoint"):
                self._store.write_frozen(frozen)
            self._store.renew()

    def close(self) -> None:
        """Ends the threads and writes a last checkpoint.

        It waits for holders of :meth:`paused`: what a verification reads must not be closed under it.
        """
        with self._pausing, self._changed:
            self._closing = True
            self._changed.notify_all()
        for thread in self._threads:
            thread.join()
        if self._failure is None:
            self.checkpoint_paused()

    def _guard(self, work: Callable[[], None]) -> None:
        """Runs a thread's work; whatever ends it halts the whole pipeline and fails every submission that waits."""
        try:
            work()
        except BaseException as error:
            failure = _failure_of(error)
            with self._settling, self._changed:
                if self._failure is None:
                    self._failure = failure
                unanswered = self._abandon(failure)
                self._changed.notify_all()
            for submission in unanswered:
                submission.fail(failure)


def _failure_of(error: BaseException) -> LedgerError:
    """Returns the error that submitters get: a ``LedgerError`` as it is, anything else as a halt with its cause."""
    if isinstance(error, LedgerError):
        return error
    failure = LedgerHaltedError(f"the ledger has halted ({type(error).__name__}); reopen it to go on")
    failure.__cause__ = error
    return failure

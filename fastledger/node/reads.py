"""Reads off the event loop: one job takes all that wait, so that only a read that is alone costs a hand-over."""

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext
from typing import Any, NamedTuple, TypeAlias, TypeVar

from fastledger.errors import LedgerBusyError, LedgerClosedError

T = TypeVar("T")
Together: TypeAlias = Callable[[], AbstractContextManager[None]]
BUSY_RETRY_MS = 20
JOB_READS_MAX = 256
"""The most short reads in one job, so that the first does not wait long for the last."""
JOB_PAGES_MAX = 8
"""The most pages in one job; their answers are held until the job is done."""


Tell: TypeAlias = Callable[[Any, BaseException | None], None]
"""A function that takes what a read returned or, where the second argument is not None, what it raised."""


class _Waiting(NamedTuple):
    work: Callable[[], Any]
    tell: Tell


class _Lane:
    """One thread, and the reads that wait for it."""

    def __init__(self, name: str, pending_max: int, job_max: int, together: Together) -> None:
        self._executor = ThreadPoolExecutor(1, thread_name_prefix=f"fastledger-{name}")
        self._loop = asyncio.get_running_loop()
        self._waiting: list[_Waiting] = []
        self._pending = 0
        self._pending_max = pending_max
        self._job_max = job_max
        self._together = together
        self._busy = False
        self._drained: asyncio.Future[None] | None = None
        self.closed = False

    @property
    def pending(self) -> int:
        return self._pending

    def begin(self, work: Callable[[], Any], tell: Tell) -> None:
        if self.closed:
            raise LedgerClosedError("the node is stopping")
        if self._pending >= self._pending_max:
            raise LedgerBusyError(f"{self._pending} reads are waiting", retry_after_ms=BUSY_RETRY_MS)
        self._pending += 1
        self._waiting.append(_Waiting(work, tell))
        if not self._busy:
            self._busy = True
            # Once everything that is ready on the loop has run, and with it whoever else wants to read.
            self._loop.call_soon(self._start)

    def _start(self) -> None:
        job, self._waiting = self._waiting[: self._job_max], self._waiting[self._job_max :]
        self._executor.submit(self._work, job)

    def _work(self, job: list[_Waiting]) -> None:
        """Runs a job's reads, on the lane's thread."""
        results: list[tuple[Any, BaseException | None]] = []
        try:
            with self._together():
                for waiting in job:
                    try:
                        results.append((waiting.work(), None))
                    except BaseException as error:
                        results.append((None, error))
        except BaseException as error:  # the ledger is closed, or its index cannot be read
            results += [(None, error)] * (len(job) - len(results))
        self._loop.call_soon_threadsafe(self._deliver, job, results)

    def _deliver(self, job: list[_Waiting], results: list[tuple[Any, BaseException | None]]) -> None:
        self._pending -= len(job)
        if self._waiting:
            self._start()
        else:
            self._busy = False
        for (_, tell), (result, error) in zip(job, results, strict=True):
            try:
                tell(result, error)
            except Exception as failure:  # one of them must not keep the others waiting
                self._loop.call_exception_handler({"message": "an answer failed", "exception": failure})
        if self._drained is not None and not self._pending and not self._drained.done():
            self._drained.set_result(None)

    async def close(self) -> None:
        self.closed = True
        if self._pending:
            self._drained = self._loop.create_future()
            await self._drained
        self._executor.shutdown(wait=False)


class Reads:
    """The node's readers: one thread for short reads and one for pages, so that neither waits for the other."""

    def __init__(self, *, pending_max: int, together: Together = nullcontext) -> None:
        """Must be called on the event loop that will read; ``pending_max`` bounds each lane's queue.

        Short reads of one job run inside ``together()``. Pages do not: each is long enough to see the newest moment.
        """
        self._short = _Lane("reader", pending_max, JOB_READS_MAX, together)
        self._heavy = _Lane("pager", pending_max, JOB_PAGES_MAX, nullcontext)

    @property
    def pending(self) -> int:
        """How many reads are not answered yet."""
        return self._short.pending + self._heavy.pending

    async def run(self, work: Callable[[], T], *, heavy: bool = False) -> T:
        """Runs ``work`` on a reader thread, and returns or raises what it does.

        Raises ``LedgerBusyError`` where too many reads wait, ``LedgerClosedError`` once closed.
        """
        future: asyncio.Future[T] = asyncio.get_running_loop().create_future()

        def tell(result: Any, error: BaseException | None) -> None:
            if future.done():
                return  # whoever asked has gone
            if error is None:
                future.set_result(result)
            else:
                future.set_exception(error)

        (self._heavy if heavy else self._short).begin(work, tell)
        return await future

    def begin(self, work: Callable[[], Any], tell: Tell) -> None:
        """Begins a short read without a task of its own; ``tell``, which must not raise, is called on the loop.

        Raises as :meth:`run` where the read is not taken.
        """
        self._short.begin(work, tell)

    async def close(self) -> None:
        """Answers the reads that wait, and takes no more."""
        for lane in (self._short, self._heavy):
            await lane.close()

"""Reads off the event loop: one job takes all that wait, so that a read costs a hand-over only when it is alone."""

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
"""At most so many in one job, so that the first does not wait long for the last."""


class _Waiting(NamedTuple):
    work: Callable[[], Any]
    future: "asyncio.Future[Any]"


class _Lane:
    """One thread and those who wait for it."""

    def __init__(self, name: str, pending_max: int, together: Together) -> None:
        self._executor = ThreadPoolExecutor(1, thread_name_prefix=f"fastledger-{name}")
        self._loop = asyncio.get_running_loop()
        self._waiting: list[_Waiting] = []
        self._pending = 0
        self._pending_max = pending_max
        self._together = together
        self._busy = False
        self.closed = False

    @property
    def pending(self) -> int:
        return self._pending

    def run(self, work: Callable[[], T]) -> "asyncio.Future[T]":
        if self.closed:
            raise LedgerClosedError("the node is stopping")
        if self._pending >= self._pending_max:
            raise LedgerBusyError(f"{self._pending} reads are waiting", retry_after_ms=BUSY_RETRY_MS)
        future: asyncio.Future[T] = self._loop.create_future()
        self._pending += 1
        self._waiting.append(_Waiting(work, future))
        if not self._busy:
            self._busy = True
            # Once everything that is ready on the loop has run, and with it whoever else wants to read.
            self._loop.call_soon(self._start)
        return future

    def _start(self) -> None:
        job, self._waiting = self._waiting[:JOB_READS_MAX], self._waiting[JOB_READS_MAX:]
        self._executor.submit(self._work, job)

    def _work(self, job: list[_Waiting]) -> None:
        """On the lane's thread."""
        results: list[tuple[bool, Any]] = []
        try:
            with self._together():
                for waiting in job:
                    try:
                        results.append((True, waiting.work()))
                    except BaseException as error:
                        results.append((False, error))
        except BaseException as error:  # the ledger is closed, or its index cannot be read
            results += [(False, error)] * (len(job) - len(results))
        self._loop.call_soon_threadsafe(self._deliver, job, results)

    def _deliver(self, job: list[_Waiting], results: list[tuple[bool, Any]]) -> None:
        self._pending -= len(job)
        for (_, future), (done, result) in zip(job, results, strict=True):
            if future.done():
                continue  # whoever asked has gone
            if done:
                future.set_result(result)
            else:
                future.set_exception(result)
        if self._waiting:
            self._start()
        else:
            self._busy = False

    async def close(self) -> None:
        self.closed = True
        while self._pending:
            await asyncio.gather(*(waiting.future for waiting in self._waiting), return_exceptions=True)
            await asyncio.sleep(0.001)
        self._executor.shutdown(wait=False)


class Reads:
    """The node's readers: one thread for short reads and one for pages, so that neither waits for the other."""

    def __init__(self, *, pending_max: int, together: Together = nullcontext) -> None:
        """To be made on the loop that will read; ``pending_max`` bounds each lane's queue.

        Short reads of one job run inside ``together()``. Pages do not: each is long enough to see the newest moment.
        """
        self._short = _Lane("reader", pending_max, together)
        self._heavy = _Lane("pager", pending_max, nullcontext)

    @property
    def pending(self) -> int:
        """Reads that are not answered yet."""
        return self._short.pending + self._heavy.pending

    async def run(self, work: Callable[[], T], *, heavy: bool = False) -> T:
        """What ``work`` returns or raises, on a reader thread.

        Raises ``LedgerBusyError`` where too many wait, ``LedgerClosedError`` once closed.
        """
        return await (self._heavy if heavy else self._short).run(work)

    async def close(self) -> None:
        """Answers those that wait and takes no more."""
        for lane in (self._short, self._heavy):
            await lane.close()

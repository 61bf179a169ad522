"""The façade for asyncio (uvloop or any other loop): no hashing, rule or disk access runs on the loop.

Most methods are those of :class:`Ledger` on another thread (``methods.py``, which is generated). Here are those that
wait for the chain: a thread each would be held for as long as they wait, so they wait on the loop.
"""

import asyncio
import threading
import time
from collections.abc import AsyncGenerator, AsyncIterable, AsyncIterator, Callable, Iterable, Sequence
from contextlib import aclosing, asynccontextmanager, suppress
from types import TracebackType
from typing import Self, TypeVar

from fastledger.chain.aio.methods import AsyncLedgerMethods
from fastledger.chain.reading.following import not_in_time
from fastledger.chain.stages import Submission
from fastledger.errors import LedgerBusyError, NotFoundError
from fastledger.model.following import FollowEvent, FollowPage
from fastledger.model.genesis import Genesis
from fastledger.model.outcome import Outcome, Wait, check_wait
from fastledger.model.query import Entry, Topic
from fastledger.model.receipt import Verified
from fastledger.model.transaction import Transaction
from fastledger.pace import Progress
from fastledger.streams import IN_FLIGHT, BatchCutter, outcomes_of

T = TypeVar("T")


class AsyncLedger(AsyncLedgerMethods):
    """An open ledger on an event loop; make one with :meth:`create` or :meth:`open`.

    The methods are those of :class:`Ledger` as coroutines, and concurrent ``submit`` calls overlap their stages. The
    ledger itself, with what nodes need of it, is ``ledger``.
    """

    def __repr__(self) -> str:
        return repr(self.ledger).replace("Ledger", type(self).__name__, 1)

    @property
    def genesis(self) -> Genesis:
        """The chain's genesis document: its engine, proposers and authorities."""
        return self.ledger.genesis

    @property
    def chain_id(self) -> bytes:
        """The 8 bytes that stand in every transaction of this chain."""
        return self.ledger.chain_id

    def verify_statement(self, statement: bytes, txid: bytes | None = None) -> Verified:
        """Checks a transparent statement against the genesis document, and returns what it proves.

        It needs neither disk nor network, so it is no coroutine. With ``txid`` the statement has to be that
        transaction's. Raises ``ReceiptError`` for a statement that does not verify or is another's.
        """
        return self.ledger.verify_statement(statement, txid)

    # Submitting.

    async def submit(
        self,
        batch: Sequence[bytes | Transaction],
        blobs: Sequence[bytes] = (),
        *,
        wait: Wait = "durable",
    ) -> list[Outcome]:
        """Returns the verdicts on a batch, in its order, once they are durable.

        ``blobs`` are the envelopes that its records name; they are stored, and synced, first. With ``wait`` *accepted*
        or *ordered* the verdicts come earlier and promise less. A bad transaction gets its own outcome and the rest
        goes through. A full queue is waited for. Raises ``StorageFullError`` or ``LedgerHaltedError`` where nothing
        can be promised: what was not acknowledged may be sent again, the same transaction enters once. Cancelling the
        task ends the wait alone: the batch may be durable all the same.
        """
        check_wait(wait)
        while True:
            try:
                submission = await self._begin(batch, blobs)
                break
            except LedgerBusyError as busy:
                await asyncio.sleep(busy.retry_after_ms / 1000)
        if wait == "accepted":
            return submission.accepted
        return await asyncio.wrap_future(submission.ordered if wait == "ordered" else submission.durable)

    async def submit_nowait(
        self, batch: Sequence[bytes | Transaction], blobs: Sequence[bytes] = ()
    ) -> "asyncio.Future[list[Outcome]]":
        """Submits a batch as :meth:`submit` does, and returns a future once the batch passed the border.

        Raises ``LedgerBusyError`` with ``retry_after_ms`` where the queue is full.
        """
        return asyncio.wrap_future((await self._begin(batch, blobs)).durable)

    async def _begin(self, batch: Sequence[bytes | Transaction], blobs: Sequence[bytes]) -> Submission:
        return await asyncio.to_thread(self.ledger.begin, batch, blobs)

    async def submit_stream(
        self,
        transactions: AsyncIterable[bytes | Transaction] | Iterable[bytes | Transaction],
        *,
        in_flight: int = IN_FLIGHT,
        wait: Wait = "durable",
    ) -> AsyncGenerator[Outcome, None]:
        """Yields the verdicts on a stream of transactions in its order; at most ``in_flight`` batches are under way.

        Batches that are under way together may enter the chain in either order: transactions that depend on others of
        the stream need ``in_flight=1``. Envelopes have to be stored before, with :meth:`store_blobs`. Raises what
        :meth:`submit` does, and ``InputError`` with ``BAD_QUERY`` where ``in_flight`` is less than 1.
        """
        outcomes = outcomes_of(
            lambda batch: self.submit(batch, wait=wait),
            transactions,
            in_flight=in_flight,
            cutter=BatchCutter(),
        )
        async with aclosing(outcomes):
            async for outcome in outcomes:
                yield outcome

    # Following.

    async def follow(
        self,
        topic: Topic = "transactions",
        *,
        cursor: int | None = None,
        kind: str | None = None,
        signed_by: bytes | None = None,
        subject: bytes | None = None,
    ) -> AsyncGenerator[FollowEvent, None]:
        """Yields durable events without end, each once and none left out, waiting where there are none yet.

        The topic is *transactions*, *blocks* or *alerts*; ``kind``, ``signed_by`` and ``subject`` (16-byte ids)
        are conditions on transactions. ``cursor`` resumes behind the event that had it; 0 is the beginning, None means
        from now on. Raises ``InputError`` with ``BAD_QUERY`` for conditions that make no sense, and
        ``LedgerClosedError`` where the ledger is closed meanwhile.
        """
        pages = self.follow_pages(topic, cursor=cursor, kind=kind, signed_by=signed_by, subject=subject)
        async with aclosing(pages):
            async for page in pages:
                for event in page.events:
                    yield event

    async def follow_pages(
        self,
        topic: Topic = "transactions",
        *,
        cursor: int | None = None,
        kind: str | None = None,
        signed_by: bytes | None = None,
        subject: bytes | None = None,
    ) -> AsyncGenerator[FollowPage, None]:
        """Yields what :meth:`follow` does by the page, with the cursor behind what the conditions passed over.

        The first page that has caught up with the chain comes even if it is empty. Raises what :meth:`follow` does.
        """
        async with self._waking() as woken:
            place = self.ledger.cursor_at(topic, cursor=cursor, kind=kind, signed_by=signed_by, subject=subject)
            while True:
                woken.clear()
                self.ledger.check_open()
                page = await asyncio.to_thread(place.read)
                if page is None:
                    await woken.wait()
                else:
                    yield page

    async def wait_for(self, txid: bytes, *, timeout_ms: int = 60_000) -> Entry:
        """Returns the transaction ``txid`` once it is durable, whoever submitted it.

        Raises ``NotFoundError`` where it is not durable after ``timeout_ms``, and ``LedgerClosedError`` where the
        ledger is closed meanwhile.
        """
        ends = time.monotonic() + timeout_ms / 1000
        async with self._waking() as woken:
            while True:
                woken.clear()
                self.ledger.check_open()
                with suppress(NotFoundError):
                    return await asyncio.to_thread(self.ledger.get, txid)
                try:
                    async with asyncio.timeout(max(0.0, ends - time.monotonic())):
                        await woken.wait()
                except TimeoutError:
                    raise not_in_time(txid, timeout_ms) from None

    @asynccontextmanager
    async def _waking(self) -> AsyncIterator[asyncio.Event]:
        """An event that is set when blocks become durable and when the ledger closes."""
        loop, woken = asyncio.get_running_loop(), asyncio.Event()

        def wake() -> None:
            with suppress(RuntimeError):  # the loop has ended, and its followers with it
                loop.call_soon_threadsafe(woken.set)

        with self.ledger.waking(wake):
            yield woken

    # Threads.

    async def _run(self, work: Callable[[], T]) -> T:
        return await asyncio.to_thread(work)

    async def _run_to_end(
        self, work: Callable[[Progress | None, threading.Event], T], progress: Progress | None
    ) -> T:
        """Runs long work on another thread, and has it end early where the wait is cancelled.

        ``progress`` is called on the loop; by raising it ends the work as well.
        """
        loop, cancel = asyncio.get_running_loop(), threading.Event()
        failures: list[BaseException] = []

        def relay(stage: str, done: int, total: int) -> None:
            if progress is None or failures:
                return
            try:
                progress(stage, done, total)
            except BaseException as error:
                failures.append(error)
                cancel.set()

        def told(stage: str, done: int, total: int) -> None:
            loop.call_soon_threadsafe(relay, stage, done, total)

        running = asyncio.ensure_future(
            asyncio.to_thread(work, None if progress is None else told, cancel)
        )
        try:
            await asyncio.wait({running})
        except asyncio.CancelledError:
            cancel.set()
            await asyncio.wait({running})  # it looks at the event before each step
            if not running.cancelled():
                running.exception()  # whatever it raised, nobody waits for it any more
            raise
        if failures:
            running.exception()
            raise failures[0]
        return running.result()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.close()

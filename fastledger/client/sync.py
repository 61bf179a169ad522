"""The client for threads: the same as :class:`AsyncClient`, each method waiting for its answer.

One background thread runs the event loop; any number of threads may call at once, and their calls overlap.
"""

import asyncio
import contextlib
import threading
from collections.abc import AsyncGenerator, Callable, Coroutine, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from functools import partial
from pathlib import PurePath
from types import TracebackType
from typing import Any, BinaryIO, Self, TypeVar

from fastledger.client.aio import IN_FLIGHT, AsyncClient, ClientOptions
from fastledger.client.export import export_ndjson
from fastledger.client.federation import SyncFederationCalls
from fastledger.client.follow import FollowEvent, FollowPage
from fastledger.client.http import ClientTls
from fastledger.client.operating import CALL_OFF_S
from fastledger.client.views import JobView, Tip
from fastledger.client.wallet import SealedRecord, Wallet
from fastledger.errors import LedgerClosedError
from fastledger.limits import QUERY_PAGE_DEFAULT
from fastledger.model.genesis import Genesis
from fastledger.model.outcome import Outcome, Wait
from fastledger.model.query import Entry, Page, Query, Topic
from fastledger.model.receipt import Verified
from fastledger.model.reports import BackupReport, ExportReport, PruneReport, SnapshotReport, VerifyReport
from fastledger.model.transaction import Transaction
from fastledger.pace import Progress
from fastledger.rpc.protocol import Filter
from fastledger.state.entity import EntityPage, EntityT, EntityTable, KeyValue
from fastledger.subjects.consent import Purpose
from fastledger.subjects.record import RecordVersion

T = TypeVar("T")


STOP_WAIT_S = 5.0
LISTEN_S = 0.5


class _LoopThread:
    """An event loop (uvloop's where it is installed) on a thread of its own."""

    def __init__(self) -> None:
        self._loop = _new_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="fastledger-client", daemon=True)
        self._thread.start()
        self._stopping = threading.Lock()
        self._stopped = False

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        """The result of a coroutine; an interrupted wait cancels it."""
        if self._stopped:
            work.close()
            raise LedgerClosedError("the client is closed")
        future = asyncio.run_coroutine_threadsafe(work, self._loop)
        try:
            return _listening(future)
        except BaseException:
            future.cancel()
            raise

    def run_to_end(self, work: Coroutine[Any, Any, T], wait_s: float) -> T:
        """As :meth:`run`; an interrupted wait has the work come to its own end, for so long at most."""
        ended = threading.Event()

        async def watched() -> T:
            try:
                return await work
            finally:
                ended.set()

        try:
            return self.run(watched())
        except LedgerClosedError:
            work.close()
            raise
        except BaseException:
            ended.wait(wait_s)
            raise

    def give_up(self, work: Coroutine[Any, Any, None]) -> None:
        """Runs the end of what was abandoned, soon. The collector finds that on any thread, also on a loop's own,
        where a wait for this loop might never end."""
        if not self._stopped:
            with contextlib.suppress(RuntimeError):  # it stops at this moment
                asyncio.run_coroutine_threadsafe(work, self._loop)
                return
        work.close()

    def stop(self, last: Callable[[], Coroutine[Any, Any, None]]) -> None:
        """Runs ``last``, cancels what is left and ends the thread; may be called twice."""
        with self._stopping:
            if self._stopped:
                return
            try:
                # Bounded: an interrupt may have come at a moment that leaves a task which never ends.
                ending = asyncio.run_coroutine_threadsafe(_finish(last), self._loop)
                with contextlib.suppress(TimeoutError):
                    ending.result(STOP_WAIT_S)
            finally:
                self._stopped = True
                self._loop.call_soon_threadsafe(self._loop.stop)
                self._thread.join(STOP_WAIT_S)
                if not self._thread.is_alive():
                    self._loop.close()


def _listening(future: "Future[T]") -> T:
    """The future's result, in a wait that hears an interrupt.

    A signal between Python's last look for one and the system's wait does not end that wait, and the handler runs after
    it only: one without end would be deaf to it.
    """
    while not future.done():
        with contextlib.suppress(TimeoutError):
            return future.result(LISTEN_S)
    return future.result()


async def _finish(last: Callable[[], Coroutine[Any, Any, None]]) -> None:
    await last()
    others = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
    for task in others:
        task.cancel()
    await asyncio.gather(*others, return_exceptions=True)


def _new_loop() -> asyncio.AbstractEventLoop:
    with contextlib.suppress(ImportError):
        import uvloop

        return uvloop.new_event_loop()
    return asyncio.new_event_loop()


class Client(SyncFederationCalls):
    """A node over the network, as a :class:`LedgerApi`; make one with :meth:`connect`. Safe from many threads."""

    _client: AsyncClient

    def __init__(self, loop: _LoopThread, client: AsyncClient) -> None:
        """Use :meth:`connect`."""
        self._loop = loop
        self._client = client

    @classmethod
    def connect(
        cls,
        url: str,
        *,
        token: str | None = None,
        tls: ClientTls | None = None,
        chain_id: bytes | None = None,
        options: ClientOptions | None = None,
    ) -> Self:
        """See :meth:`AsyncClient.connect`."""
        loop = _LoopThread()
        try:
            connect = AsyncClient.connect(url, token=token, tls=tls, chain_id=chain_id, options=options)
            return cls(loop, loop.run(connect))
        except BaseException:
            loop.stop(_nothing)
            raise

    def _run(self, work: Coroutine[Any, Any, T]) -> T:
        return self._loop.run(work)

    @property
    def url(self) -> str:
        """The node's address."""
        return self._client.url

    @property
    def genesis(self) -> Genesis:
        """What the chain is, as the node said when the client connected."""
        return self._client.genesis

    @property
    def chain_id(self) -> bytes:
        """8 bytes that stand in every transaction of the chain."""
        return self._client.chain_id

    @property
    def height(self) -> int:
        """The height of the newest durable block; asks the node."""
        return self.tip().height

    @property
    def head(self) -> bytes:
        """The 32-byte id of the newest durable block; asks the node."""
        return self.tip().head

    @property
    def transaction_count(self) -> int:
        """How many transactions are durable; asks the node."""
        return self.tip().transaction_count

    def tip(self) -> Tip:
        """See :meth:`AsyncClient.tip`: height, head and count that belong together."""
        return self._run(self._client.tip())

    # Submitting.

    def submit(
        self,
        batch: Sequence[bytes | Transaction],
        blobs: Sequence[bytes] = (),
        *,
        wait: Wait = "durable",
    ) -> list[Outcome]:
        """See :meth:`AsyncClient.submit`."""
        return self._run(self._client.submit(batch, blobs, wait=wait))

    def submit_stream(
        self,
        transactions: Iterable[bytes | Transaction],
        *,
        in_flight: int = IN_FLIGHT,
        wait: Wait = "durable",
    ) -> Iterator[Outcome]:
        """See :meth:`AsyncClient.submit_stream`; ``transactions`` is read on the client's thread."""
        return self._iterate(self._client.submit_stream(transactions, in_flight=in_flight, wait=wait))

    def store_blobs(self, blobs: Sequence[bytes]) -> list[bytes]:
        """See :meth:`AsyncClient.store_blobs`."""
        return self._run(self._client.store_blobs(blobs))

    def wait_for(self, txid: bytes, *, timeout_ms: int = 60_000) -> Entry:
        """See :meth:`AsyncClient.wait_for`."""
        return self._run(self._client.wait_for(txid, timeout_ms=timeout_ms))

    # Records.

    def read(self, access: bytes | Transaction) -> bytes:
        """See :meth:`AsyncClient.read`."""
        return self._run(self._client.read(access))

    def put_record(
        self, wallet: Wallet, folder: str | bytes, content: bytes, terms: Iterable[str] = ()
    ) -> SealedRecord:
        """See :meth:`AsyncClient.put_record`."""
        return self._run(self._client.put_record(wallet, folder, content, terms))

    def read_record(self, wallet: Wallet, record: bytes, purpose: Purpose, *, version: int = 0) -> bytes:
        """See :meth:`AsyncClient.read_record`."""
        return self._run(self._client.read_record(wallet, record, purpose, version=version))

    # Reading.

    def get(self, txid: bytes) -> Entry:
        """See :meth:`AsyncClient.get`."""
        return self._run(self._client.get(txid))

    def query(self, query: Query | None = None, **conditions: Any) -> Page:
        """See :meth:`AsyncClient.query`."""
        return self._run(self._client.query(query, **conditions))

    def prove(self, txid: bytes, *, verify: bool = False) -> bytes:
        """See :meth:`AsyncClient.prove`."""
        return self._run(self._client.prove(txid, verify=verify))

    def verify_statement(self, statement: bytes, txid: bytes | None = None) -> Verified:
        """See :meth:`AsyncClient.verify_statement`."""
        return self._client.verify_statement(statement, txid)

    def entity(self, table: EntityTable[EntityT], *key: KeyValue) -> EntityT:
        """See :meth:`AsyncClient.entity`."""
        return self._run(self._client.entity(table, *key))

    def entities(
        self,
        table: EntityTable[EntityT],
        *,
        by: Mapping[str, bytes] | None = None,
        cursor: int | None = None,
        limit: int = QUERY_PAGE_DEFAULT,
    ) -> EntityPage[EntityT]:
        """See :meth:`AsyncClient.entities`."""
        return self._run(self._client.entities(table, by=by, cursor=cursor, limit=limit))

    def record_version(self, record: bytes, version: int = 0) -> RecordVersion:
        """See :meth:`AsyncClient.record_version`."""
        return self._run(self._client.record_version(record, version))

    def status(self) -> dict[str, Any]:
        """See :meth:`AsyncClient.status`."""
        return self._run(self._client.status())

    # Operating; ``progress`` is called on the client's thread, and an interrupted wait calls the job off.

    def run_job(self, method: str, *, progress: Progress | None = None, **params: Any) -> dict[str, Any]:
        """See :meth:`AsyncClient.run_job`."""
        return self._job(self._client.run_job(method, progress=progress, **params))

    def verify(
        self,
        progress: Progress | None = None,
        *,
        online: bool = True,
        rate_bytes_per_second: int | None = None,
    ) -> VerifyReport:
        """See :meth:`AsyncClient.verify`."""
        work = self._client.verify(progress, online=online, rate_bytes_per_second=rate_bytes_per_second)
        return self._job(work)

    def backup(
        self,
        destination: str | PurePath,
        *,
        include_node_key: bool = False,
        include_snapshot: bool = False,
        recheck: bool = False,
        progress: Progress | None = None,
        rate_bytes_per_second: int | None = None,
    ) -> BackupReport:
        """See :meth:`AsyncClient.backup`."""
        return self._job(
            self._client.backup(
                destination,
                include_node_key=include_node_key,
                include_snapshot=include_snapshot,
                recheck=recheck,
                progress=progress,
                rate_bytes_per_second=rate_bytes_per_second,
            )
        )

    def prune(
        self,
        *,
        before_height: int | None = None,
        keep_blocks: int | None = None,
        progress: Progress | None = None,
        rate_bytes_per_second: int | None = None,
    ) -> PruneReport:
        """See :meth:`AsyncClient.prune`."""
        return self._job(
            self._client.prune(
                before_height=before_height,
                keep_blocks=keep_blocks,
                progress=progress,
                rate_bytes_per_second=rate_bytes_per_second,
            )
        )

    def snapshot(
        self,
        target: str | PurePath | None = None,
        *,
        progress: Progress | None = None,
        rate_bytes_per_second: int | None = None,
    ) -> SnapshotReport:
        """See :meth:`AsyncClient.snapshot`."""
        work = self._client.snapshot(target, progress=progress, rate_bytes_per_second=rate_bytes_per_second)
        return self._job(work)

    def _job(self, work: Coroutine[Any, Any, T]) -> T:
        return self._loop.run_to_end(work, 2 * CALL_OFF_S + 1)

    def jobs(self) -> list[JobView]:
        """See :meth:`AsyncClient.jobs`."""
        return self._run(self._client.jobs())

    def job(self, job: str) -> JobView:
        """See :meth:`AsyncClient.job`."""
        return self._run(self._client.job(job))

    def cancel_job(self, job: str) -> JobView:
        """See :meth:`AsyncClient.cancel_job`."""
        return self._run(self._client.cancel_job(job))

    def node_status(self) -> dict[str, Any]:
        """See :meth:`AsyncClient.node_status`."""
        return self._run(self._client.node_status())

    def checkpoint(self) -> int:
        """See :meth:`AsyncClient.checkpoint`."""
        return self._run(self._client.checkpoint())

    def reload(self) -> list[str]:
        """See :meth:`AsyncClient.reload`."""
        return self._run(self._client.reload())

    def stop(self) -> None:
        """See :meth:`AsyncClient.stop`: the node ends, not the client."""
        return self._run(self._client.stop())

    def export_ndjson(
        self,
        out: BinaryIO,
        *,
        from_height: int | None = None,
        to_height: int | None = None,
        progress: Progress | None = None,
        rate_bytes_per_second: int | None = None,
    ) -> ExportReport:
        """Writes the node's transactions as ``Ledger.export_ndjson`` does, on the caller's thread."""
        return export_ndjson(
            self,
            out,
            from_height=from_height,
            to_height=to_height,
            progress=progress,
            rate_bytes_per_second=rate_bytes_per_second,
        )

    # Following.

    def follow(
        self,
        topic: Topic = "transactions",
        *,
        cursor: int | None = None,
        filter: Filter | None = None,
    ) -> Iterator[FollowEvent]:
        """See :meth:`AsyncClient.follow`."""
        for page in self.follow_pages(topic, cursor=cursor, filter=filter):
            yield from page.events

    def follow_pages(
        self,
        topic: Topic = "transactions",
        *,
        cursor: int | None = None,
        filter: Filter | None = None,
    ) -> Iterator[FollowPage]:
        """See :meth:`AsyncClient.follow_pages`."""
        return self._iterate(self._client.follow_pages(topic, cursor=cursor, filter=filter))

    def _iterate(self, items: AsyncGenerator[T, None]) -> Iterator[T]:
        """An asynchronous generator from this thread; abandoning the iterator closes it."""
        done = object()
        step = partial(anext, items, done)
        try:
            while True:
                item = self._run(_awaited(step()))
                if item is done:
                    return
                yield item
        finally:
            self._loop.give_up(_awaited(items.aclose()))

    def close(self) -> None:
        """Closes the connections and ends the thread; may be called twice."""
        self._loop.stop(self._client.close)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()


async def _nothing() -> None:
    """What a loop that never got a client has to do last."""


async def _awaited(awaitable: Any) -> Any:
    """An awaitable as a coroutine."""
    return await awaitable

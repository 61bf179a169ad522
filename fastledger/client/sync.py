"""The client for threads: the methods of :class:`AsyncClient`, each of which waits for its answer.

One background thread runs the event loop; any number of threads may call at once, and their calls overlap.
"""

import asyncio
import contextlib
import threading
from collections.abc import AsyncGenerator, Callable, Coroutine, Iterator
from concurrent.futures import Future
from functools import partial
from types import TracebackType
from typing import Any, Self, TypeVar

from fastledger.client.aio import AsyncClient, ClientOptions
from fastledger.client.http import ClientTls
from fastledger.client.operating import CALL_OFF_S
from fastledger.client.sync_methods import ClientMethods
from fastledger.errors import LedgerClosedError, OperationCancelledError
from fastledger.model.genesis import Genesis

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

    def run(self, work: Coroutine[Any, Any, T], cancel: threading.Event | None = None) -> T:
        """Returns the result of a coroutine; an interrupt of the wait and the event ``cancel`` cancel it."""
        if self._stopped:
            work.close()
            raise LedgerClosedError("the client is closed")
        future = asyncio.run_coroutine_threadsafe(work, self._loop)
        try:
            return _listening(future, cancel)
        except BaseException:
            future.cancel()
            raise

    def run_to_end(
        self, work: Coroutine[Any, Any, T], wait_s: float, cancel: threading.Event | None = None
    ) -> T:
        """Runs a coroutine as :meth:`run` does, and gives it ``wait_s`` to come to its own end where it is cancelled.

        An interrupt of the wait cancels it, and so does the event ``cancel``, with ``OperationCancelledError``.
        """
        ended = threading.Event()

        async def watched() -> T:
            try:
                return await work
            finally:
                ended.set()

        try:
            return self.run(watched(), cancel)
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


def _listening(future: "Future[T]", cancel: threading.Event | None) -> T:
    """Returns the future's result, in a wait that hears an interrupt and ``cancel``.

    A signal between Python's last look for one and the system's wait does not end that wait, and the handler runs after
    it only: one without end would be deaf to it.
    """
    while not future.done():
        if cancel is not None and cancel.is_set():
            raise OperationCancelledError("the operation was called off")
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


class Client(ClientMethods):
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
        """Returns a client of the node at ``url`` (``https://host:port``), once the node has answered.

        ``token`` goes along as a bearer token; ``tls`` says whom to trust and holds a client's certificate.
        ``chain_id`` pins the chain: ``InputError`` with ``WRONG_CHAIN`` for a node of another. Raises
        ``UnreachableError`` where no node answers, or one of another protocol version (SPEC-CLI-2).
        """
        loop = _LoopThread()
        try:
            connect = AsyncClient.connect(url, token=token, tls=tls, chain_id=chain_id, options=options)
            return cls(loop, loop.run(connect))
        except BaseException:
            loop.stop(_nothing)
            raise

    def _run(self, work: Coroutine[Any, Any, T]) -> T:
        return self._loop.run(work)

    def __repr__(self) -> str:
        return repr(self._client).replace("AsyncClient", type(self).__name__, 1)

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

    def _job(self, work: Coroutine[Any, Any, T], cancel: threading.Event | None) -> T:
        return self._loop.run_to_end(work, 2 * CALL_OFF_S + 1, cancel)

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

"""Connections at their lowest level: how many there may be, and how long one may take over a request (SPEC-RPC-7).

The HTTP parser, pipelining and the order of answers are aiohttp's. This module bounds what aiohttp leaves open:
headers that never end, answers that nobody reads, too many connections, and errors that would repeat what a client
sent. Only names that aiohttp makes public are called or overridden; a test holds that.
"""

import asyncio
from collections import Counter
from collections.abc import Callable, Coroutine
from typing import Any, cast

from aiohttp import web

from fastledger.errors import BadRequestError, LedgerBusyError
from fastledger.rpc.http.access import Access
from fastledger.rpc.http.answers import drained, error_answer
from fastledger.rpc.http.heads import HEAD_BYTES_MAX, KnownHeads, whole_head
from fastledger.rpc.http.routes import Caller
from fastledger.rpc.options import RpcOptions

_BUSY_RETRY_MS = 1_000
_LINGERING_S = 1.0
# Idle connections are closed here, since only here all of their requests are seen: aiohttp's own timer is put off.
_NEVER_S = 1e8


class Connection(web.RequestHandler):
    """One client's connection: its caller, its deadlines, and its way between the fast path and aiohttp."""

    __slots__ = (
        "_answered",
        "_answering",
        "_at_request",
        "_busy",
        "_ending",
        "_first",
        "_head_since",
        "_held",
        "_idle_since",
        "_looked_at",
        "_received",
        "_unpaused",
        "_watch",
        "caller",
        "counters",
        "is_counted",
        "is_write_paused",
        "listener",
        "write_timeout_ms",
    )

    def __init__(self, listener: "Listener", **settings: Any) -> None:
        """Takes the listener that accepted the connection, and the settings that it gives to each."""
        super().__init__(listener, loop=listener.loop, **settings)
        self.listener = listener
        self.write_timeout_ms = listener.options.write_timeout_ms
        self.counters = listener.counters
        self.caller = Caller("", "", frozenset())
        self.is_counted = False
        # Times of the loop's clock: when the head that is being read began (0.0: none), and since when none is.
        self._head_since = 0.0
        self._idle_since = listener.loop.time()
        self._watch: asyncio.TimerHandle | None = None
        # Whether aiohttp works on a request, and whether the connection ends after the one that it works on.
        self._busy = False
        self._ending = False
        self.is_write_paused = False
        self._unpaused: asyncio.Future[None] | None = None
        # Where the parser stands. At the beginning of a request: known, since nothing came before, or since what
        # came was, byte for byte, the request that was answered. Else the beginning of what came since, and its length.
        self._at_request = True
        self._first: bytes | None = None
        self._received = 0
        # How much had come when a head was looked for, and the head.
        self._looked_at: tuple[int, bytes | None] = (0, None)
        # Of the fast path: whether an answer is under way, who waits for its end, what came meanwhile.
        self._answering = False
        self._answered: asyncio.Future[None] | None = None
        self._held = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Admits the connection, or answers that there are too many and closes it."""
        super().connection_made(transport)
        peer = transport.get_extra_info("peername")
        address = str(peer[0]) if isinstance(peer, tuple) and peer else "local"
        self.caller = self.listener.access.of_connection(address, transport.get_extra_info("ssl_object"))
        if self._is_revoked():
            # Since its handshake, which can have begun before a list was read again.
            self._end_revoked()
            return
        if not self.listener.admit(address):
            self.counters["connections_refused"] += 1
            busy = LedgerBusyError("too many connections", retry_after_ms=_BUSY_RETRY_MS)
            stream = cast(asyncio.Transport, transport)
            stream.write(error_answer(busy, keep_alive=False).encode(with_body=True))
            self.force_close()
            stream.close()
            return
        self.is_counted = True
        self._look_later(self.listener.options.header_timeout_ms / 1000)

    def recheck(self) -> None:
        """Ends the connection where its certificate was revoked, else renews its caller.

        For changed roles or lists.
        """
        if self.transport is None:
            return
        if self._is_revoked():
            self._end_revoked()
            return
        tls = self.transport.get_extra_info("ssl_object")
        self.caller = self.listener.access.of_connection(self.caller.address, tls)

    def _is_revoked(self) -> bool:
        tls = None if self.transport is None else self.transport.get_extra_info("ssl_object")
        certificate: bytes | None = None if tls is None else tls.getpeercert(binary_form=True)
        return certificate is not None and self.listener.is_revoked(certificate)

    def _end_revoked(self) -> None:
        self.counters["connections_revoked"] += 1
        if self.transport is not None:
            self.transport.abort()
        self.force_close()

    def connection_lost(self, exc: BaseException | None) -> None:
        """Ends timers and waiters, and makes room for another connection."""
        self._ending = True
        self._held = b""
        if self._watch is not None:
            self._watch.cancel()
            self._watch = None
        if self.is_counted:
            self.is_counted = False
            self.listener.release(self.caller.address)
        super().connection_lost(exc)
        self._wake_writer()

    def close(self) -> None:
        """Ends the connection after the request that is being worked on."""
        self._ending = True
        super().close()

    def force_close(self) -> None:
        """Ends the connection at once."""
        self._ending = True
        super().force_close()

    async def shutdown(self, timeout: float | None = 15.0) -> None:  # noqa: ASYNC109 - the framework's signature
        """Closes the connection once the answer under way is written, or ``timeout`` seconds have gone."""
        if self._answering:
            self._answered = self.listener.loop.create_future()
            await asyncio.wait((self._answered,), timeout=timeout)
        await super().shutdown(timeout)

    # What comes, and where in the stream of requests that is.

    def data_received(self, data: bytes) -> None:
        """Takes bytes from the client: a request under a known head takes the fast path, all else goes to aiohttp.

        aiohttp calls this without bytes where it goes on with those that it has.
        """
        if not data:
            super().data_received(data)
            return
        if self._answering:
            self._hold(data)
            return
        if self._at_request:
            if not (self._busy or self._ending) and self.listener.take_fast_path(self, data):
                self.listener.requests_count += 1
                return
            self._at_request = False
            self._first = data[:HEAD_BYTES_MAX]
            self._received = 0
            self._looked_at = (0, None)
        self._received += len(data)
        if not self._busy and not self._head_since:
            self._head_since = self.listener.loop.time()
        super().data_received(data)

    def request_began(self) -> None:
        """Marks the connection as busy: aiohttp has read a request's head and hands it to the server."""
        self._busy = True
        self._head_since = 0.0

    def request_head(self, request: web.BaseRequest) -> bytes | None:
        """Returns the bytes of the head of ``request``, or None where other bytes came with the request."""
        if self._first is None:
            return None
        if self._looked_at[0] == self._received:
            return self._looked_at[1]
        head = self._find_head(self._first, request)
        self._looked_at = (self._received, head)
        return head

    def _find_head(self, first: bytes, request: web.BaseRequest) -> bytes | None:
        known = self.listener.heads.find(first)
        head = whole_head(first, request) if known is None else known[0]
        if head is None or self._received != len(head) + (request.content_length or 0):
            return None
        return head

    def request_written(self, request: web.BaseRequest) -> None:
        """Notes that the answer to ``request`` was written, though the client may not have taken it."""
        self._at_request = self.request_head(request) is not None
        self._first = None

    def request_ended(self, *, keep_alive: bool) -> None:
        """Notes that the client has taken the answer.

        Without ``keep_alive`` the connection is about to be closed.
        """
        self._head_since = 0.0
        self._idle_since = self.listener.loop.time()
        self._busy = not keep_alive

    # Times.

    def _look_later(self, seconds: float) -> None:
        self._watch = self.listener.loop.call_later(seconds, self._look)

    def _look(self) -> None:
        """Ends the connection where a head takes too long, or nothing came for long; else looks again later."""
        self._watch = None
        if self._ending:
            return
        options = self.listener.options
        now, head_s, left = self.listener.loop.time(), options.header_timeout_ms / 1000, 0.0
        if self._busy or self._answering:
            left = head_s
        elif self._head_since:
            left = self._head_since + head_s - now
            if left <= 0:
                self._end_headers()
                return
        else:
            left = self._idle_since + options.idle_timeout_ms / 1000 - now
            if left <= 0:
                self.force_close()
                return
        self._look_later(min(left, head_s))

    def _end_headers(self) -> None:
        """Answers 408 and ends the connection, since the headers took too long."""
        self.counters["header_timeouts"] += 1
        if self.transport is not None:
            error = BadRequestError("the headers did not come in time", status=408)
            self.transport.write(error_answer(error, keep_alive=False).encode(with_body=True))
        self.force_close()

    # Answers that the client does not take.

    def pause_writing(self) -> None:
        """Notes that the client does not read what was written."""
        super().pause_writing()
        self.is_write_paused = True

    def resume_writing(self) -> None:
        """Notes that the client reads again, and wakes those who wait for it."""
        super().resume_writing()
        self.is_write_paused = False
        self._wake_writer()

    def _wake_writer(self) -> None:
        if self._unpaused is not None and not self._unpaused.done():
            self._unpaused.set_result(None)

    async def writable(self) -> None:
        """Returns once the client takes the bytes that were written.

        Raises ``ConnectionResetError`` where it has gone.
        """
        while self.is_write_paused and self.transport is not None:
            if self._unpaused is None or self._unpaused.done():
                self._unpaused = self.listener.loop.create_future()
            await asyncio.shield(self._unpaused)  # others may wait for it longer than this one
        if self.transport is None:
            raise ConnectionResetError

    # The fast path: aiohttp's part of the connection is idle while it is taken.

    def _hold(self, data: bytes) -> None:
        """Keeps bytes that came before the last answer was written, and stops reading: one request at a time."""
        self._held += data
        if self.transport is not None and not self.transport.is_closing():
            self.transport.pause_reading()

    def begin_answer(self) -> None:
        """Holds all input until :meth:`end_answer`."""
        self._answering = True

    def end_answer(self, encoded: bytes) -> None:
        """Writes a whole answer; goes on reading once the client takes it."""
        transport = self.transport
        if transport is not None and not transport.is_closing():
            transport.write(encoded)
            if self.is_write_paused:
                self.listener.keep(self._drain(transport, len(encoded)))
                return
        self._go_on()

    async def _drain(self, transport: asyncio.Transport, byte_count: int) -> None:
        try:
            await drained(self, transport, byte_count)
        except ConnectionError:
            self._held = b""
        finally:
            self._go_on()

    def _go_on(self) -> None:
        self._answering = False
        self._idle_since = self.listener.loop.time()
        if self._answered is not None and not self._answered.done():
            self._answered.set_result(None)
        if self._held:
            held, self._held = self._held, b""
            if self.transport is not None and not self.transport.is_closing():
                self.transport.resume_reading()
            self.data_received(held)

    def handle_error(
        self,
        request: web.BaseRequest,
        status: int = 500,
        exc: BaseException | None = None,
        message: str | None = None,
    ) -> web.StreamResponse:
        """Returns the answer to input that is not HTTP, or to too long a header.

        The answer repeats no word that was sent, and nothing is logged.
        """
        self.counters["http_errors"] += 1
        if status >= 500 and exc is not None:
            return error_answer(exc, keep_alive=False)
        error = BadRequestError("this is not an HTTP request that can be read", status=status)
        return error_answer(error, keep_alive=False)

    def log_exception(self, *args: Any, **kw: Any) -> None:
        """Counts the error. aiohttp would log its text, which may repeat the input."""
        self.counters["connection_errors"] += 1


class Listener(web.Server):
    """Makes connections and counts them, overall and by address."""

    def __init__(
        self,
        handler: Any,
        take_fast_path: "Callable[[Connection, bytes], bool]",
        heads: KnownHeads,
        access: Access,
        options: RpcOptions,
        counters: "Counter[str]",
    ) -> None:
        """``handler`` answers each request that does not go the fast path; to be made on the loop that serves."""
        super().__init__(handler)
        self.take_fast_path = take_fast_path
        self.heads = heads
        self.is_revoked: Callable[[bytes], bool] = lambda _certificate: False
        self._tasks: set[asyncio.Task[None]] = set()
        self.loop = asyncio.get_running_loop()
        self.access = access
        self.options = options
        self.counters = counters
        self.open_connections = 0
        self.unread_bytes = 0
        self._by_address: dict[str, int] = {}
        self._settings: dict[str, Any] = {
            "access_log": None,
            "auto_decompress": False,
            "keepalive_timeout": _NEVER_S,
            "lingering_time": _LINGERING_S,
            "max_line_size": options.header_bytes_max,
            "max_field_size": options.header_bytes_max,
            "max_headers": options.headers_max,
        }

    def __call__(self) -> web.RequestHandler:
        """Returns the protocol of a new connection."""
        return Connection(self, **self._settings)

    def recheck(self) -> None:
        """Ends the connections whose certificates were revoked, and renews the callers of the others."""
        for connection in list(self.connections):
            cast(Connection, connection).recheck()

    def keep(self, work: Coroutine[Any, Any, None]) -> None:
        """Runs ``work`` as a task that is not collected before its end."""
        task = self.loop.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def admit(self, address: str) -> bool:
        """Whether one more connection from ``address`` fits; counts it where it does."""
        of_address = self._by_address.get(address, 0)
        if (
            self.open_connections >= self.options.connections_max
            or of_address >= self.options.connections_per_address_max
        ):
            return False
        self.open_connections += 1
        self._by_address[address] = of_address + 1
        return True

    def release(self, address: str) -> None:
        """Uncounts a connection from ``address``, which has ended."""
        self.open_connections -= 1
        left = self._by_address[address] - 1
        if left:
            self._by_address[address] = left
        else:
            del self._by_address[address]

"""Connections at their lowest level: how many there may be, and how long one may take over a request (SPEC-RPC-7).

The HTTP parser, keep-alive and pipelining are aiohttp's. What it leaves open is bounded here: headers that never end,
answers that nobody reads, too many connections, and errors that would repeat what a client sent.
"""

import asyncio
from collections import Counter
from collections.abc import Callable, Coroutine
from typing import Any, cast

from aiohttp import web
from aiohttp.http import RawRequestMessage
from aiohttp.web_protocol import RequestHandler

from fastledger.errors import BadRequestError, LedgerBusyError
from fastledger.rpc.http.access import Access
from fastledger.rpc.http.answers import drained, error_answer
from fastledger.rpc.http.routes import Caller
from fastledger.rpc.http.short_way import ShortWay, whole_head
from fastledger.rpc.options import RpcOptions

_BUSY_RETRY_MS = 1_000
_LINGERING_S = 1.0


class Connection(RequestHandler):
    """One client's connection."""

    __slots__ = (
        "_answered",
        "_answering",
        "_header_timer",
        "_held",
        "_whole",
        "caller",
        "counters",
        "is_counted",
        "listener",
        "write_timeout_ms",
    )

    def __init__(self, listener: "Listener", **settings: Any) -> None:
        """Made by :class:`Listener` for every connection that is accepted."""
        super().__init__(listener, loop=listener.loop, **settings)
        self.listener = listener
        self._header_timer: asyncio.TimerHandle | None = None
        self.write_timeout_ms = listener.options.write_timeout_ms
        self.counters = listener.counters
        self.caller = Caller("", "", frozenset())
        self.is_counted = False
        # The request that came last, where it came as one piece: what comes next begins another.
        self._whole: tuple[RawRequestMessage, bytes] | None = None
        # Of the short way: whether an answer is under way, who waits for its end, what came meanwhile.
        self._answering = False
        self._answered: asyncio.Future[None] | None = None
        self._held = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Takes the connection, or tells it that there are too many and closes it."""
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

    def recheck(self) -> None:
        """After certificates or roles changed: ends the connection, or sees who is there now."""
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
        """Makes room for another one."""
        self._cancel_header_timer()
        self._held = b""
        if self.is_counted:
            self.is_counted = False
            self.listener.release(self.caller.address)
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Bytes from the client; the first ones of a request start the clock for the rest of its headers."""
        if self._answering:
            self._hold(data)
            return
        if self._whole is not None and self._is_idle() and self.listener.short_way.take(self, data):
            self.listener.requests_count += 1
            return
        before = self._request_count
        super().data_received(data)
        if data or self._request_count != before:
            self._whole = self._as_whole(data) if self._request_count == before + 1 else None
        if self._request_count != before:
            if self._header_timer is not None:
                self._cancel_header_timer()
        elif self._header_timer is None and self._is_between_requests():
            self._header_timer = self._loop.call_later(
                self.listener.options.header_timeout_ms / 1000, self._end_headers
            )

    # The short way: the framework's part of the connection is idle while it is taken.

    def _is_idle(self) -> bool:
        """Whether the framework waits for a request, and for nothing else."""
        waiter = self._waiter
        return waiter is not None and not (
            waiter.done() or self._messages or self._close or self._force_close or self._buffer_paused
        )

    def _as_whole(self, data: bytes) -> "tuple[RawRequestMessage, bytes] | None":
        """The request just parsed and its head, where ``data`` is all of it and nothing else."""
        if self._upgraded or self._buffer_paused or not self._messages:
            return None
        message, payload = self._messages[-1]
        if not isinstance(message, RawRequestMessage) or not payload.is_eof():
            return None
        head = whole_head(data, message)
        return None if head is None else (message, head)

    def head_of(self, message: RawRequestMessage) -> bytes | None:
        """The bytes of the head of the request that came last, where that is ``message`` and came as one piece."""
        return self._whole[1] if self._whole is not None and self._whole[0] is message else None

    def _hold(self, data: bytes) -> None:
        """One request at a time: what comes before the answer to the last waits here, and more in the socket."""
        if data:
            self._held += data
            self._pause_transport_reading()

    def begin_answer(self) -> None:
        """Nothing is read until :meth:`end_answer`."""
        self._answering = True

    def end_answer(self, encoded: bytes) -> None:
        """Writes a whole answer; goes on reading once the client takes it."""
        transport = self.transport
        if transport is not None and not transport.is_closing():
            transport.write(encoded)
            if self._paused:
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
        self._next_keepalive_close_time = self._loop.time() + self._keepalive_timeout
        if self._answered is not None and not self._answered.done():
            self._answered.set_result(None)
        if self._held:
            held, self._held = self._held, b""
            self._resume_transport_reading()
            self.data_received(held)

    def _process_keepalive(self) -> None:
        if self._answering:
            self._next_keepalive_close_time = self._loop.time() + self._keepalive_timeout
        super()._process_keepalive()

    async def shutdown(self, timeout: float | None = 15.0) -> None:  # noqa: ASYNC109 - the framework's signature
        """Closes the connection, once what is being answered is, or ``timeout`` seconds have gone."""
        if self._answering:
            self._answered = self._loop.create_future()
            await asyncio.wait((self._answered,), timeout=timeout)
        await super().shutdown(timeout)

    def _is_between_requests(self) -> bool:
        return not (self._request_in_progress or self._messages or self._upgraded or self._payload_parser)

    def _cancel_header_timer(self) -> None:
        if self._header_timer is not None:
            self._header_timer.cancel()
            self._header_timer = None

    def _end_headers(self) -> None:
        """The headers took too long."""
        self._header_timer = None
        transport = self.transport
        # No one waits for a request: what came is the rest of a body that is being thrown away.
        if transport is None or self._waiter is None:
            return
        self.counters["header_timeouts"] += 1
        error = BadRequestError("the headers did not come in time", status=408)
        transport.write(error_answer(error, keep_alive=False).encode(with_body=True))
        self.force_close()

    def handle_error(
        self,
        request: web.BaseRequest,
        status: int = 500,
        exc: BaseException | None = None,
        message: str | None = None,
    ) -> web.StreamResponse:
        """What is not HTTP, or too long a header: one answer without a word of what was sent, and nothing logged."""
        self.counters["http_errors"] += 1
        if status >= 500 and exc is not None:
            return error_answer(exc, keep_alive=False)
        error = BadRequestError("this is not an HTTP request that can be read", status=status)
        return error_answer(error, keep_alive=False)

    def log_exception(self, *args: Any, **kw: Any) -> None:
        """aiohttp would log the exception's text, which may repeat the input."""
        self.counters["connection_errors"] += 1


class Listener(web.Server):
    """Makes connections and counts them, overall and by address."""

    def __init__(
        self,
        handler: Any,
        short_way: ShortWay,
        access: Access,
        options: RpcOptions,
        counters: "Counter[str]",
    ) -> None:
        """``handler`` answers each request that does not go the short way; to be made on the loop that serves."""
        super().__init__(handler)
        self.short_way = short_way
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
            "keepalive_timeout": options.idle_timeout_ms / 1000,
            "lingering_time": _LINGERING_S,
            "max_line_size": options.header_bytes_max,
            "max_field_size": options.header_bytes_max,
            "max_headers": options.headers_max,
        }

    def __call__(self) -> RequestHandler:
        """A protocol for a new connection."""
        return Connection(self, **self._settings)

    def recheck(self) -> None:
        """Ends the connections whose certificates were revoked, and looks again at who the others are."""
        for connection in list(self.connections):
            cast(Connection, connection).recheck()

    def keep(self, work: Coroutine[Any, Any, None]) -> None:
        """Runs ``work`` as a task that is not collected before its end."""
        task = self.loop.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def admit(self, address: str) -> bool:
        """Whether one more connection fits; counts it where it does."""
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
        """The connection has gone."""
        self.open_connections -= 1
        left = self._by_address[address] - 1
        if left:
            self._by_address[address] = left
        else:
            del self._by_address[address]

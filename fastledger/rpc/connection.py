"""Connections at their lowest level: how many there may be, and how long one may take over a request (SPEC-RPC-7).

The HTTP parser, keep-alive and pipelining are aiohttp's. What it leaves open is bounded here: headers that never end,
answers that nobody reads, too many connections, and errors that would repeat what a client sent.
"""

import asyncio
from collections import Counter
from typing import Any, cast

from aiohttp import web
from aiohttp.web_protocol import RequestHandler

from fastledger.errors import BadRequestError, LedgerBusyError
from fastledger.rpc.access import Access
from fastledger.rpc.answers import error_answer
from fastledger.rpc.options import RpcOptions
from fastledger.rpc.routes import Caller

_BUSY_RETRY_MS = 1_000
_LINGERING_S = 1.0


class Connection(RequestHandler):
    """One client's connection."""

    __slots__ = ("_header_timer", "caller", "counters", "is_counted", "listener", "write_timeout_ms")

    def __init__(self, listener: "Listener", **settings: Any) -> None:
        """Made by :class:`Listener` for every connection that is accepted."""
        super().__init__(listener, loop=listener.loop, **settings)
        self.listener = listener
        self._header_timer: asyncio.TimerHandle | None = None
        self.write_timeout_ms = listener.options.write_timeout_ms
        self.counters = listener.counters
        self.caller = Caller("", "", frozenset())
        self.is_counted = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Takes the connection, or tells it that there are too many and closes it."""
        super().connection_made(transport)
        peer = transport.get_extra_info("peername")
        address = str(peer[0]) if isinstance(peer, tuple) and peer else "local"
        self.caller = self.listener.access.of_connection(address, transport.get_extra_info("ssl_object"))
        if not self.listener.admit(address):
            self.counters["connections_refused"] += 1
            busy = LedgerBusyError("too many connections", retry_after_ms=_BUSY_RETRY_MS)
            stream = cast(asyncio.Transport, transport)
            stream.write(error_answer(busy, keep_alive=False).encode(with_body=True))
            self.force_close()
            stream.close()
            return
        self.is_counted = True

    def connection_lost(self, exc: BaseException | None) -> None:
        """Makes room for another one."""
        self._cancel_header_timer()
        if self.is_counted:
            self.is_counted = False
            self.listener.release(self.caller.address)
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Bytes from the client; the first ones of a request start the clock for the rest of its headers."""
        before = self._request_count
        super().data_received(data)
        if self._request_count != before:
            if self._header_timer is not None:
                self._cancel_header_timer()
        elif self._header_timer is None and self._is_between_requests():
            self._header_timer = self._loop.call_later(
                self.listener.options.header_timeout_ms / 1000, self._end_headers
            )

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

    def __init__(self, handler: Any, access: Access, options: RpcOptions, counters: "Counter[str]") -> None:
        """``handler`` answers each request; to be made on the loop that serves."""
        super().__init__(handler)
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

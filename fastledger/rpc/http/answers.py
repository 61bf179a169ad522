"""Complete answers in one write, with a bound on how long and how many bytes of them may lie unread."""

import asyncio
from collections import Counter
from collections.abc import Mapping
from http import HTTPStatus
from typing import Any, Protocol, cast

import msgspec
from aiohttp import web
from aiohttp.abc import AbstractStreamWriter

from fastledger.rpc.errors import ErrorBody, http_headers, http_status, rpc_error
from fastledger.rpc.options import RpcOptions
from fastledger.rpc.protocol import JSON_TYPE, PROTOCOL_HEADER, PROTOCOL_VERSION

_STATUS_LINES = {
    status.value: f"HTTP/1.1 {status.value} {status.phrase}\r\n{PROTOCOL_HEADER}: {PROTOCOL_VERSION}\r\n".encode()
    for status in HTTPStatus
}
_encode = msgspec.json.encode


class Unread(Protocol):
    """The count of unread bytes over all connections of a listener, and the options that bound it."""

    unread_bytes: int
    options: RpcOptions


class Connected(Protocol):
    """The connection that an answer goes out over, as :mod:`fastledger.rpc.http.connection` implements it."""

    counters: "Counter[str]"
    is_write_paused: bool
    write_timeout_ms: int

    @property
    def listener(self) -> Unread:
        """The listener that accepted the connection."""

    def request_written(self, request: web.BaseRequest) -> None:
        """Tells the connection that the answer to ``request`` was written to the socket."""

    def request_ended(self, *, keep_alive: bool) -> None:
        """Tells the connection that the client has taken the answer, and whether another request may follow."""

    async def writable(self) -> None:
        """Returns once the client takes the bytes that were written."""


class Answer(web.StreamResponse):
    """A status, some headers and a body that is there already.

    The web framework's own response does much that such an answer does not need (a fifth of the time of a small
    request), and never waits for the socket: a client that sends and does not read would make it hold every answer.
    """

    def __init__(
        self,
        body: bytes,
        content_type: str = JSON_TYPE,
        *,
        status: int = 200,
        headers: Mapping[str, str] | None = None,
        keep_alive: bool = True,
    ) -> None:
        """The base class's state is not made: nothing of it is used."""
        self._answer_body = body
        self._answer_type = content_type
        self._answer_status = status
        self._answer_headers = headers
        self._answer_keep_alive = keep_alive
        self._answer_request: web.BaseRequest | None = None

    @property
    def status(self) -> int:
        """The HTTP status."""
        return self._answer_status

    @property
    def keep_alive(self) -> bool | None:
        """Whether the connection serves another request."""
        return self._answer_keep_alive

    async def prepare(self, request: web.BaseRequest) -> AbstractStreamWriter | None:
        """Takes the request whose answer this is; nothing is written yet."""
        self._answer_request = request
        # What was not read of a body stands before the next request: nothing more comes over this connection.
        whole = request.content.is_eof()
        self._answer_keep_alive = self._answer_keep_alive and request.keep_alive and whole
        return None

    def encode(self, *, with_body: bool) -> bytes:
        """Returns the bytes of the answer: head and, with ``with_body``, body."""
        body = self._answer_body
        parts = [_STATUS_LINES[self._answer_status]]
        if body:
            parts.append(b"Content-Type: %b\r\n" % self._answer_type.encode())
        for name, value in (self._answer_headers or {}).items():
            parts.append(f"{name}: {value}\r\n".encode("latin-1"))
        if not self._answer_keep_alive:
            parts.append(b"Connection: close\r\n")
        if self._answer_status == 204:
            parts.append(b"\r\n")
        else:
            parts.append(b"Content-Length: %d\r\n\r\n" % len(body))
        if with_body:
            parts.append(body)
        return b"".join(parts)

    async def write_eof(self, data: Any = b"") -> None:
        """Writes the answer; a client that does not read it in time is disconnected.

        Raises ``ConnectionResetError`` where the client has gone or was disconnected.
        """
        request = self._answer_request
        transport = None if request is None else request.transport
        if request is None or transport is None or transport.is_closing():
            raise ConnectionResetError
        encoded = self.encode(with_body=request.method != "HEAD")
        transport.write(encoded)
        connection = cast(Connected, request.protocol)
        connection.request_written(request)
        if connection.is_write_paused:
            await drained(connection, transport, len(encoded))
        connection.request_ended(keep_alive=self._answer_keep_alive)


class Streamed(web.StreamResponse):
    """An answer whose body is written piece by piece, for what is too long to hold."""

    async def prepare(self, request: web.BaseRequest) -> AbstractStreamWriter | None:
        """Sends the head. The connection ends after this answer where a part of the request's body was not read."""
        if not request.content.is_eof():
            self.force_close()
        self._answer_request = request
        return await super().prepare(request)

    async def write_eof(self, data: Any = b"") -> None:
        """Ends the body, all of which was written before, and tells the connection."""
        await super().write_eof(data)
        connection = cast(Connected, self._answer_request.protocol)
        connection.request_written(self._answer_request)
        connection.request_ended(keep_alive=bool(self.keep_alive))


async def drained(connection: Connected, transport: asyncio.Transport, byte_count: int) -> None:
    """Returns once the socket took the ``byte_count`` bytes that were written.

    Raises ``ConnectionResetError``, and disconnects the client, where that takes longer than ``write_timeout_ms``,
    or where more than ``answers_bytes_max`` lie unread on all connections together. A single unread answer may be
    longer.
    """
    listener = connection.listener
    unread = listener.unread_bytes
    listener.unread_bytes += byte_count
    try:
        if unread and unread + byte_count > listener.options.answers_bytes_max:
            raise TimeoutError
        async with asyncio.timeout(connection.write_timeout_ms / 1000):
            await connection.writable()
    except TimeoutError:
        connection.counters["connections_undrained"] += 1
        transport.abort()
        raise ConnectionResetError from None
    finally:
        listener.unread_bytes -= byte_count


def json_answer(value: Any, *, status: int = 200, headers: Mapping[str, str] | None = None) -> Answer:
    """Returns ``value`` as an answer in JSON."""
    return Answer(_encode(value), status=status, headers=headers)


def error_answer(error: BaseException, *, keep_alive: bool = True) -> Answer:
    """Returns the error answer of a path other than /v1/rpc: ``{"error": …}`` under the HTTP status of the error."""
    status = http_status(error)
    return Answer(
        _encode(ErrorBody(rpc_error(error))),
        status=status,
        headers=http_headers(error),
        keep_alive=keep_alive and status != 408,
    )

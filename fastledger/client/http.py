"""HTTP to one node: bounded answers, deadlines and typed errors, with no retry of its own (SPEC-CLI-2).

Nothing of a body is ever logged or put into an error. aiohttp takes as long to load as all of the client: it is loaded
for the first connection (:func:`load_http`), and functions that run under one import it by themselves.
"""

import asyncio
import os
import ssl
from collections.abc import AsyncIterable, AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from fastledger.client.faults import error_of_answer
from fastledger.errors import Code, InputError, NotFoundError, UnreachableError
from fastledger.rpc.protocol import PROTOCOL_HEADER, PROTOCOL_VERSION
from fastledger.version import VERSION

if TYPE_CHECKING:
    import aiohttp

ERROR_BYTES_MAX = 64 * 1024
FRAME_BYTES_MAX = 32 * 1024 * 1024
_WEBSOCKET_CLOSE_S = 2.0
_HEARTBEAT_S = 15.0

RequestBody = bytes | memoryview | AsyncIterable[bytes] | None


@dataclass(frozen=True, slots=True)
class ClientTls:
    """Whom the client trusts, and who it is where the node asks for a certificate; PEM files.

    Without ``ca`` the system's authorities are trusted. ``key`` may be in the file ``certificate``.
    """

    ca: str | Path | None = None
    certificate: str | Path | None = None
    key: str | Path | None = None

    def context(self) -> ssl.SSLContext:
        """TLS 1.2 or newer, the node's name checked. Raises ``InputError`` for a file that is none of those."""
        try:
            context = ssl.create_default_context(cafile=None if self.ca is None else str(self.ca))
            if self.certificate is not None:
                context.load_cert_chain(str(self.certificate), None if self.key is None else str(self.key))
        except (OSError, ssl.SSLError) as error:
            reason = getattr(error, "reason", None) or getattr(error, "strerror", None) or "not PEM"
            raise InputError(f"cannot use the TLS files: {reason}", code=Code.BAD_QUERY) from None
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        return context


@dataclass(frozen=True, slots=True)
class HttpAnswer:
    """A complete answer of success."""

    status: int
    headers: Mapping[str, str]
    body: bytes


async def load_http() -> None:
    """Loads aiohttp on a thread of its own, so that an event loop has nothing to wait for when it first connects."""

    def load() -> None:
        import aiohttp  # noqa: F401 - to have it loaded

    await asyncio.to_thread(load)


class HttpTransport:
    """Connections to the node at ``url``; belongs to the event loop that runs."""

    def __init__(
        self,
        url: str,
        *,
        token: str | None,
        context: ssl.SSLContext | None,
        connections_max: int,
        connect_timeout_ms: int,
        request_timeout_ms: int,
    ) -> None:
        """``context`` is what :func:`tls_context` made.

        ``request_timeout_ms`` bounds each exchange, and each wait for more bytes of a streamed one.
        """
        self.url = node_url(url)
        if token is not None and (not token.isascii() or not token.isprintable() or " " in token):
            raise InputError("a token is printable ASCII without spaces", code=Code.BAD_QUERY)
        headers = {PROTOCOL_HEADER: str(PROTOCOL_VERSION), "User-Agent": f"fastledger/{VERSION}"}
        if token is not None:
            headers["Authorization"] = f"Bearer {token}"
        import aiohttp

        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(
                limit=connections_max, ssl=context or True, keepalive_timeout=30, enable_cleanup_closed=True
            ),
            headers=headers,
            cookie_jar=aiohttp.DummyCookieJar(),
            auto_decompress=False,
            skip_auto_headers=("Accept-Encoding",),
            trust_env=False,
        )
        connect_s, request_s = connect_timeout_ms / 1000, request_timeout_ms / 1000
        self._timeout = aiohttp.ClientTimeout(total=request_s, connect=None, sock_connect=connect_s)
        self._patient = aiohttp.ClientTimeout(total=None, sock_connect=connect_s, sock_read=request_s)

    async def exchange(
        self,
        method: str,
        path: str,
        *,
        body: RequestBody = None,
        headers: Mapping[str, str] | None = None,
        answer_bytes_max: int = ERROR_BYTES_MAX,
        patient: bool = False,
    ) -> HttpAnswer:
        """One request and its whole answer.

        Raises the node's own error where it gives one and ``UnreachableError`` where there is no answer of at most
        ``answer_bytes_max`` bytes. ``patient`` bounds the pauses instead of the whole, for long bodies.
        """
        async with self.open(method, path, body=body, headers=headers, patient=patient) as response:
            content = await read_bounded(response, answer_bytes_max)
            return HttpAnswer(response.status, response.headers, content)

    @asynccontextmanager
    async def open(
        self,
        method: str,
        path: str,
        *,
        body: RequestBody = None,
        headers: Mapping[str, str] | None = None,
        patient: bool = True,
    ) -> "AsyncIterator[aiohttp.ClientResponse]":
        """An answer of success whose body is still to be read; what breaks inside is ``UnreachableError`` too."""
        import aiohttp

        try:
            async with self._session.request(
                method,
                self.url + path,
                data=body,
                headers=headers,
                timeout=self._patient if patient else self._timeout,
                allow_redirects=False,
            ) as response:
                check_protocol(response.headers)
                if method == "HEAD" and response.status == 404:
                    raise NotFoundError("the node has nothing there")  # no body could say more
                if not 200 <= response.status < 300:
                    problem = await read_bounded(response, ERROR_BYTES_MAX)
                    raise error_of_answer(response.status, response.headers, problem)
                yield response
        except (aiohttp.ClientError, ssl.SSLError, OSError, TimeoutError, ValueError) as error:
            raise unreachable(error) from None

    @asynccontextmanager
    async def websocket(self, path: str) -> "AsyncIterator[aiohttp.ClientWebSocketResponse]":
        """An open WebSocket; pings find out that the node has gone."""
        import aiohttp

        try:
            async with self._session.ws_connect(
                self.url + path,
                timeout=aiohttp.ClientWSTimeout(ws_close=_WEBSOCKET_CLOSE_S),
                heartbeat=_HEARTBEAT_S,
                max_msg_size=FRAME_BYTES_MAX,
                compress=0,
            ) as socket:
                yield socket
        except aiohttp.WSServerHandshakeError as error:
            raise error_of_answer(error.status, error.headers or {}, b"") from None
        except (aiohttp.ClientError, ssl.SSLError, OSError, TimeoutError, ValueError) as error:
            raise unreachable(error) from None

    async def close(self) -> None:
        """Closes every connection."""
        await self._session.close()


async def tls_context(url: str, tls: ClientTls | None) -> "ssl.SSLContext | None":
    """Returns what a connection to ``url`` is secured by, None for plain HTTP.

    Certificates are read and parsed on another thread than the event loop's. Raises what :meth:`ClientTls.context`
    does.
    """
    if not node_url(url).startswith("https:"):
        return None
    return await asyncio.to_thread((tls or ClientTls()).context)


async def read_bounded(response: "aiohttp.ClientResponse", bytes_max: int) -> bytes:
    """The whole body, which the node may not make longer than ``bytes_max``."""
    pieces: list[bytes] = []
    room = bytes_max - (response.content_length or 0)
    if room >= 0:
        room = bytes_max
        async for piece in response.content.iter_any():
            pieces.append(piece)
            room -= len(piece)
            if room < 0:
                break
    if room < 0:
        response.close()
        raise UnreachableError(f"the node's answer is longer than {bytes_max} bytes", transient=False)
    return b"".join(pieces)


def check_protocol(headers: Mapping[str, str]) -> None:
    """Raises ``UnreachableError`` where the node speaks another version of the protocol (SPEC-CLI-2)."""
    version = headers.get(PROTOCOL_HEADER)
    if version is not None and version != str(PROTOCOL_VERSION):
        raise wrong_version()


def wrong_version() -> UnreachableError:
    """The error for a node of another protocol version."""
    return UnreachableError(
        f"the node speaks another protocol version than {PROTOCOL_VERSION}", transient=False
    )


def unreachable(error: Exception) -> UnreachableError:
    """A failure of the connection as the one error that callers know; it names no host and no bytes."""
    import aiohttp

    if isinstance(error, TimeoutError):
        return UnreachableError("the node did not answer in time")
    if isinstance(error, aiohttp.ClientConnectorCertificateError | ssl.SSLCertVerificationError):
        return UnreachableError("the node's certificate is not trusted", transient=False)
    if isinstance(error, aiohttp.ClientSSLError | ssl.SSLError):
        return UnreachableError("no TLS session with the node", transient=False)
    if isinstance(error, aiohttp.ClientConnectorError):
        return UnreachableError(f"no connection to the node ({_strerror(error.os_error)})")
    if isinstance(error, aiohttp.ClientConnectionError | aiohttp.ClientPayloadError | OSError):
        return UnreachableError("the connection to the node broke")
    return UnreachableError("what answered does not speak HTTP as a node does", transient=False)


def _strerror(error: OSError) -> str:
    return os.strerror(error.errno) if error.errno else type(error).__name__


def node_url(url: str) -> str:
    """``http(s)://host[:port]`` without a trailing slash; raises ``InputError`` for anything else."""
    try:
        parts = urlsplit(url)
        port_is_right = parts.port is None or parts.port > 0
    except ValueError:
        raise InputError("a node's URL is http(s)://host:port", code=Code.BAD_QUERY) from None
    plain = not (parts.username or parts.password or parts.query or parts.fragment)
    if parts.scheme not in ("http", "https") or not parts.hostname or not plain or not port_is_right:
        raise InputError("a node's URL is http(s)://host:port", code=Code.BAD_QUERY)
    return url.rstrip("/")

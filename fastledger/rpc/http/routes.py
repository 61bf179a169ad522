"""The paths of the wire as one table, by which requests are dispatched, limited, checked for roles and described.

A handler is a coroutine over a :class:`Call` that returns an answer; what it raises becomes an error answer
(:mod:`fastledger.rpc.errors`). It reads the body through its call, which bounds bytes and time.
"""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias, get_args

from aiohttp import web

from fastledger.errors import BadRequestError, Code, InputError, LedgerBusyError
from fastledger.rpc.options import CallerRole

ROLES: tuple[CallerRole, ...] = get_args(CallerRole)
HttpMethod: TypeAlias = Literal["GET", "HEAD", "POST", "PATCH", "DELETE", "OPTIONS"]
_BUSY_RETRY_MS = 200
# Bodies up to here are not counted: connections, which are, bound them.
_SMALL_BYTES = 16 * 1024


@dataclass(slots=True, eq=False)
class Caller:
    """The client at the other end: ``name`` from the configuration or the address, and its roles."""

    name: str
    address: str
    roles: frozenset[CallerRole]
    authenticated: bool = False

    @property
    def key(self) -> str:
        """The key under which the caller's use is counted: the name that was proved, else the address."""
        return f"client:{self.name}" if self.authenticated else f"address:{self.address}"


class BodyRoom:
    """The memory for bodies that are being received and worked on, all connections together.

    It counts what arrived, not what was announced: a client that sends slowly holds little. One client may hold
    ``share_max`` at most, so that however many connections it has, others find room.
    """

    def __init__(self, bytes_max: int, share_max: int) -> None:
        """Takes the bounds in bytes; a body that is alone is let in whatever its length."""
        self.bytes_max = bytes_max
        self.share_max = share_max
        self.bytes = 0
        self._shares: dict[str, int] = {}

    def take(self, caller: Caller, count: int, held: int) -> None:
        """Takes ``count`` bytes for a body that holds ``held`` so far.

        Raises ``LedgerBusyError`` where the others, or the caller's other bodies, leave no room.
        """
        share = self._shares.get(caller.key, 0)
        if (self.bytes > held and self.bytes + count > self.bytes_max) or (
            share > held and share + count > self.share_max
        ):
            raise LedgerBusyError("too many long requests at a time", retry_after_ms=_BUSY_RETRY_MS)
        self.bytes += count
        self._shares[caller.key] = share + count

    def give_back(self, caller: Caller, count: int) -> None:
        """Gives back ``count`` bytes of a body that is gone."""
        self.bytes -= count
        share = self._shares.get(caller.key, 0) - count
        if share:
            self._shares[caller.key] = share
        else:
            self._shares.pop(caller.key, None)


class Call:
    """One request while its handler works on it."""

    __slots__ = ("_held", "_take_transactions", "caller", "parameters", "request", "room", "timeout_ms")

    def __init__(
        self,
        request: web.BaseRequest,
        caller: Caller,
        parameters: Mapping[str, str],
        timeout_ms: int,
        room: BodyRoom,
        take_transactions: Callable[[Caller, int], None],
    ) -> None:
        """Takes a request; ``parameters`` are the parts of its path that the route's template names."""
        self._take_transactions = take_transactions
        self.request = request
        self.caller = caller
        self.parameters = parameters
        self.timeout_ms = timeout_ms
        self.room = room
        self._held = 0

    def take_transactions(self, count: int) -> None:
        """Counts transactions of the caller; raises ``RateLimitedError`` where it sent too many."""
        self._take_transactions(self.caller, count)

    def release(self) -> None:
        """Gives back the memory of the body, which is not needed any more."""
        if self._held:
            self.room.give_back(self.caller, self._held)
            self._held = 0

    def _hold(self, count: int) -> None:
        self.room.take(self.caller, count, self._held)
        self._held += count

    async def body(self, bytes_max: int) -> bytes:
        """Returns the whole body.

        Raises ``InputError`` (``OVERSIZED``), and ``BadRequestError`` where it does not come in time.
        """
        self.check_announced(bytes_max)
        content = self.request.content
        if content.is_eof():
            # It came with the headers, as a small one does: nothing to wait for.
            data = content.read_nowait()
            if len(data) > bytes_max:
                raise _oversized(bytes_max)
            if len(data) > _SMALL_BYTES:
                self._hold(len(data))
            return data
        self.invite()
        pieces: list[bytes] = []
        room = bytes_max
        try:
            async with asyncio.timeout(self.timeout_ms / 1000):
                while piece := await content.readany():
                    room -= len(piece)
                    if room < 0:
                        raise _oversized(bytes_max)
                    self._hold(len(piece))
                    pieces.append(piece)
        except TimeoutError:
            raise body_too_slow() from None
        except ConnectionError:
            raise _gone() from None
        return b"".join(pieces)

    async def pieces(self, bytes_max: int) -> AsyncIterator[bytes]:
        """Yields the body in pieces as it comes, for one that is too long to hold. Raises as :meth:`body`.

        Each piece has to come within the time of a request.
        """
        self.check_announced(bytes_max)
        self.invite()
        room = bytes_max
        while True:
            try:
                async with asyncio.timeout(self.timeout_ms / 1000):
                    piece = await self.request.content.readany()
            except TimeoutError:
                raise body_too_slow() from None
            except ConnectionError:
                raise _gone() from None
            if not piece:
                return
            room -= len(piece)
            if room < 0:
                raise _oversized(bytes_max)
            yield piece

    def invite(self) -> None:
        """Answers ``Expect: 100-continue`` (RFC 9110 §10.1.1) once the body is wanted."""
        transport = self.request.transport
        if transport is not None and self.request.headers.get("Expect", "").lower() == "100-continue":
            transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")

    def check_announced(self, bytes_max: int) -> None:
        """Raises for a body that is announced as too long, or as compressed, before it is read."""
        headers = self.request.headers
        length = headers.get("Content-Length")
        if length is not None and int(length) > bytes_max:
            raise _oversized(bytes_max)
        if headers.get("Content-Encoding", "identity") != "identity":
            raise BadRequestError("a compressed body is not read", status=415)


def _oversized(bytes_max: int) -> InputError:
    return InputError(f"the body has more than {bytes_max} bytes", code=Code.OVERSIZED)


def _gone() -> BadRequestError:
    """Returns the error for a client that hung up within its request. Nobody hears it; the node is not at fault."""
    return BadRequestError("the connection ended within the body")


def body_too_slow() -> BadRequestError:
    """Returns the error for a body that does not come in time."""
    return BadRequestError("the body did not come in time", status=408)


Handler: TypeAlias = Callable[[Call], Awaitable[web.StreamResponse]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Content:
    """The description of a body: its media type and, for JSON, the msgspec type it is made of."""

    media_type: str
    schema: Any = None
    description: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Parameter:
    """The description of a parameter; ``schema`` is a type that msgspec can describe."""

    name: str
    place: Literal["path", "query", "header"]
    schema: Any = str
    required: bool = False
    description: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Route:
    """One method on one path. ``path`` may have ``{name}`` as a whole segment; ``role`` None: anyone.

    A ``probe`` is asked by monitoring and counted apart, so that a flood of other calls does not blind it.
    ``responses`` describe success, by status; ``errors`` are the route's own statuses beside the common ones.
    """

    method: HttpMethod
    path: str
    handler: Handler
    role: CallerRole | None
    summary: str
    request: Content | None = None
    responses: Mapping[int, Content | None] = field(default_factory=lambda: {200: None})
    parameters: Sequence[Parameter] = ()
    errors: Sequence[int] = ()
    probe: bool = False

    @property
    def word(self) -> str:
        """The route's name in the log, such as ``post.v1.transactions``; a path's parameters are not in it."""
        parts = [part for part in self.path.split("/") if part and not part.startswith("{")]
        return ".".join([self.method.lower(), *parts])

    @property
    def name(self) -> str:
        """The route's name in metrics, such as ``POST /v1/transactions``.

        "" for /v1/rpc, whose methods are counted each.
        """
        return "" if self.path == "/v1/rpc" else f"{self.method} {self.path}"


class RouteTable:
    """Finds the route of a request; paths without parameters take one look-up."""

    def __init__(self, routes: Sequence[Route]) -> None:
        """Takes the routes; raises ``ValueError`` where two have the same method and path."""
        self.routes = tuple(routes)
        self._fixed: dict[str, dict[str, Route]] = {}
        self._templates: list[tuple[list[str], dict[str, Route]]] = []
        for route in routes:
            methods = self._methods_of(route.path)
            if route.method in methods:
                raise ValueError(f"{route.method} {route.path} stands twice")
            methods[route.method] = route

    def _methods_of(self, path: str) -> dict[str, Route]:
        if "{" not in path:
            return self._fixed.setdefault(path, {})
        segments = path.split("/")
        for known, methods in self._templates:
            if known == segments:
                return methods
        self._templates.append((segments, {}))
        return self._templates[-1][1]

    def find(self, method: str, path: str) -> tuple[Route, Mapping[str, str]]:
        """Returns the route and its path's parameters; raises ``BadRequestError`` with status 404 or 405."""
        methods = self._fixed.get(path)
        if methods is not None:
            route = methods.get(method)
            if route is None:
                raise _not_allowed(methods)
            return route, {}
        segments = path.split("/")
        for template, methods in self._templates:
            parameters = _match(template, segments)
            if parameters is not None:
                route = methods.get(method)
                if route is None:
                    raise _not_allowed(methods)
                return route, parameters
        raise BadRequestError("there is nothing at this path", status=404)


def _not_allowed(methods: Mapping[str, Route]) -> BadRequestError:
    allowed = ", ".join(sorted(methods))
    return BadRequestError(f"this path takes {allowed}", status=405, headers={"Allow": allowed})


def _match(template: list[str], segments: list[str]) -> dict[str, str] | None:
    if len(template) != len(segments):
        return None
    found: dict[str, str] = {}
    for expected, given in zip(template, segments, strict=True):
        if expected.startswith("{"):
            found[expected[1:-1]] = given
        elif expected != given:
            return None
    return found

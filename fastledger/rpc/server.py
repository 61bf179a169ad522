"""The server: one dispatcher over the table of routes, and the sockets under it.

::

    Listener/Connection   connections, headers, timeouts                     connection.py
    RpcServer             route, caller, role, rate, then the handler        here
    JsonRpc               the methods                                        jsonrpc.py, methods.py
    Streams               subscriptions                                      stream.py
"""

import asyncio
import ssl
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, cast, get_args

from aiohttp import web
from msgspec import Meta

from fastledger.errors import BadRequestError, Code, FastLedgerError, UnauthenticatedError
from fastledger.model.outcome import Wait
from fastledger.node.logs import AccessLog
from fastledger.node.metrics import CONTENT_TYPE, NodeMetrics
from fastledger.node.service import NodeService
from fastledger.rpc.chain import CHAIN_METHODS
from fastledger.rpc.describe import AnswerBody, CallBody, openapi, openrpc
from fastledger.rpc.entities import entity_methods
from fastledger.rpc.fast_path import FastPath
from fastledger.rpc.http.access import Access, check_role
from fastledger.rpc.http.answers import Answer, error_answer, json_answer
from fastledger.rpc.http.connection import Connection, Listener
from fastledger.rpc.http.heads import KnownHeads
from fastledger.rpc.http.hosts import HostCheck
from fastledger.rpc.http.rate import RateLimits
from fastledger.rpc.http.routes import BodyRoom, Call, Content, Parameter, Route, RouteTable
from fastledger.rpc.jsonrpc import JsonRpc, refusal
from fastledger.rpc.methods import Method, RpcContext, method_table
from fastledger.rpc.options import AccessOptions, RpcOptions
from fastledger.rpc.protocol import (
    CBOR_SEQUENCE_TYPE,
    CBOR_TYPE,
    JSON_TYPE,
    PROTOCOL_HEADER,
    PROTOCOL_VERSION,
    decode_blobs,
    encode_outcomes,
)
from fastledger.rpc.signatures import low_s_sequence
from fastledger.rpc.stream import Streams
from fastledger.rpc.transactions import TRANSACTION_METHODS
from fastledger.rpc.views import StoredView
from fastledger.subjects.catalogue import REGISTRY

BLOBS_PER_REQUEST_MAX = 10_000
_WAITS: Mapping[str, Wait] = {word: word for word in get_args(Wait)}


@dataclass(frozen=True, slots=True, kw_only=True)
class Extras:
    """The methods, routes and hooks that other parts of a node add to its server."""

    methods: Sequence[Method] = ()
    routes: Sequence[Route] = ()
    render_metrics: Callable[[], bytes] | None = None
    metrics: NodeMetrics | None = None
    access_log: AccessLog | None = None
    is_revoked: Callable[[bytes], bool] | None = None


class RpcServer:
    """Serves one node; :meth:`start` on the node's loop, :meth:`stop` before the node's service stops."""

    def __init__(
        self,
        service: NodeService,
        options: RpcOptions | None = None,
        access: AccessOptions | None = None,
        *,
        extras: Extras | None = None,
        tls: ssl.SSLContext | None = None,
    ) -> None:
        """``tls`` None: plain HTTP, for loopback or behind a proxy that ends TLS.

        Without ``options`` it listens on a free port of this machine alone, which :attr:`url` tells: a program may
        have several beside a node.
        """
        extras = extras or Extras()
        self.service = service
        self.options = options or RpcOptions(port=0)
        self.access = Access(access or AccessOptions())
        self.counters: Counter[str] = Counter()
        self.rates = RateLimits(self.options.rate, asyncio.get_running_loop().time)
        self.context = RpcContext(service, self.options, self.rates, metrics=extras.metrics)
        self.methods = method_table((*CHAIN_METHODS, *entity_methods(), *TRANSACTION_METHODS, *extras.methods))
        self.streams = Streams(service, self.options, self.counters, self.rates)
        self._rpc = JsonRpc(self.context, self.methods, self.counters)
        self._render_metrics = extras.render_metrics
        self._metrics = extras.metrics
        self._access_log = extras.access_log
        self._room = BodyRoom(self.options.bodies_bytes_max, self.options.bodies_share_bytes_max)
        self.table = RouteTable((*self._routes(), *extras.routes))
        self._descriptions = {
            "/openrpc.json": openrpc(self.methods.values(), REGISTRY.kinds.values()),
            "/openapi.json": openapi(self.table.routes),
        }
        self._tls = tls
        self._hosts = HostCheck(self.options.host, self.options.allowed_hosts, plain=tls is None)
        self._stopping = False
        self._server: asyncio.Server | None = None
        self._heads = KnownHeads()
        fast_path = FastPath(
            self._rpc, self.access, self.rates, self.counters, self._access_log, self._heads
        )
        self.listener = Listener(
            self._handle, fast_path.take, self._heads, self.access, self.options, self.counters
        )
        if extras.is_revoked is not None:
            self.listener.is_revoked = extras.is_revoked

    # Sockets.

    async def start(self) -> None:
        """Begins to listen; raises ``OSError`` where the address is taken."""
        options = self.options
        loop = asyncio.get_running_loop()
        self._server = await loop.create_server(
            self.listener,
            options.host,
            options.port,
            ssl=self._tls,
            backlog=options.backlog,
            ssl_handshake_timeout=None if self._tls is None else options.header_timeout_ms / 1000,
        )

    @property
    def port(self) -> int:
        """The port on which the server listens; of use where the options say 0."""
        if self._server is None or not self._server.sockets:
            return self.options.port
        port: int = self._server.sockets[0].getsockname()[1]
        return port

    @property
    def url(self) -> str:
        """The URL under which clients on this machine reach the server."""
        host = f"[{self.options.host}]" if ":" in self.options.host else self.options.host
        return f"{'http' if self._tls is None else 'https'}://{host}:{self.port}"

    async def stop(self) -> None:
        """Takes no more connections, answers the requests that are being worked on, and closes what is left.

        The node's service has to be running still: what it took is answered.
        """
        if self._stopping:
            return
        self._stopping = True
        if self._server is not None:
            self._server.close()
        await self.streams.close()
        self.listener.pre_shutdown()
        await self.listener.shutdown(self.options.stop_timeout_ms / 1000)

    def figures(self) -> dict[str, int]:
        """Returns the counters since the start, and the numbers of connections, subscriptions and body bytes now."""
        return {
            **self.counters,
            "requests": self.listener.requests_count,
            "rate_limited": sum(self.rates.refused.values()),
            "connections": self.listener.open_connections,
            "stream_connections": self.streams.connection_count,
            "subscriptions": self.streams.subscription_count,
            "body_bytes": self._room.bytes,
        }

    # Dispatch.

    async def _handle(self, request: web.BaseRequest) -> web.StreamResponse:
        call: Call | None = None
        began = time.perf_counter()
        code = Code.OK
        name, word, status = "", "unknown", 0
        cast(Connection, request.protocol).request_began()
        try:
            path = request.raw_path.partition("?")[0]
            if not path.startswith("/"):
                path = request.path
            route, parameters = self.table.find(request.method, path)
            name, word = route.name, route.word
            call = self._admit(request, route, parameters)
            response = await route.handler(call)
            status = response.status
            return response
        except asyncio.CancelledError:
            raise
        except Exception as error:
            code = error.code if isinstance(error, FastLedgerError) else Code.STORAGE
            answer = error_answer(error)
            status = answer.status
            self.counters[f"http {status}"] += 1
            return answer
        finally:
            if call is not None:
                call.release()
            seconds = time.perf_counter() - began
            if name and self._metrics is not None:
                self._metrics.request(name, code, seconds)
            self._note(word, status, code, seconds, call)

    def _note(self, word: str, status: int, code: Code, seconds: float, call: Call | None) -> None:
        """Writes one answered request to the access log."""
        if self._access_log is not None:
            client = call.caller.name if call is not None and call.caller.authenticated else ""
            self._access_log.request(
                method=word, status=status, code=code, duration_us=int(seconds * 1e6), client=client
            )

    def _admit(self, request: web.BaseRequest, route: Route, parameters: Mapping[str, str]) -> Call:
        """Returns the call of a caller who is known, has a role that the route takes, and keeps within its rate.

        Raises the error for a caller who does not (SPEC-RPC-6, SPEC-RPC-7).
        """
        of_connection = cast(Connection, request.protocol).caller
        try:
            caller = self.access.caller(request.headers.get("Authorization"), of_connection)
        except UnauthenticatedError:
            self.rates.take_request(of_connection)
            raise
        if route.probe:
            self.rates.take_probe(caller)
        else:
            self.rates.take_request(caller)
        self._hosts.check(request.headers, authenticated=caller.authenticated)
        check_role(caller, route.role)
        version = request.headers.get(PROTOCOL_HEADER)
        if version is not None and version != str(PROTOCOL_VERSION):
            raise BadRequestError(f"this node speaks protocol version {PROTOCOL_VERSION}")
        return Call(
            request,
            caller,
            parameters,
            self.options.request_timeout_ms,
            self._room,
            self.rates.take_transactions,
        )

    # Handlers.

    async def _json_rpc(self, call: Call) -> Answer:
        check_type(call, JSON_TYPE)
        try:
            data = await call.body(self.options.json_bytes_max)
            self._learn(call.request)
            reply = await self._rpc.answer(data, call.caller)
        except Exception as error:
            reply = refusal(error)
        return Answer(reply.body or b"", status=reply.status, headers=reply.headers)

    def _learn(self, request: web.BaseRequest) -> None:
        """Makes the head of ``request`` known, so that the next request with this head may take the fast path."""
        head = cast(Connection, request.protocol).request_head(request)
        if head is not None:
            self._heads.learn(head, request)

    async def _transactions(self, call: Call) -> Answer:
        check_type(call, CBOR_SEQUENCE_TYPE)
        wait = _WAITS.get(call.request.query.get("wait", "durable"))
        if wait is None:
            raise BadRequestError("wait is accepted, ordered or durable")
        data = await call.body(self.options.batch_bytes_max)
        data, count = low_s_sequence(data)
        call.take_transactions(count)
        outcomes = await self.service.ingest.submit_sequence(data, count_estimate=count, wait=wait)
        self.context.count_verdicts(outcomes)
        if wait != "durable":
            self.context.pending.note(outcomes)
        self.counters["transactions"] += count
        return Answer(encode_outcomes(outcomes, wait=wait), CBOR_TYPE)

    async def _blobs(self, call: Call) -> Answer:
        check_type(call, CBOR_SEQUENCE_TYPE)
        data = await call.body(self.options.batch_bytes_max)
        blobs = decode_blobs(data, count_max=BLOBS_PER_REQUEST_MAX)
        digests = await asyncio.to_thread(self.service.ledger.store_blobs, blobs)
        return json_answer(StoredView([digest.hex() for digest in digests]))

    async def _live(self, call: Call) -> Answer:
        return Answer(b'{"status":"live"}')

    async def _ready(self, call: Call) -> Answer:
        state = "stopping" if self._stopping else self.service.state
        return json_answer({"status": state}, status=200 if state == "ready" else 503)

    async def _metrics_page(self, call: Call) -> Answer:
        if self._render_metrics is None:
            raise BadRequestError("this node has no metrics", status=404)
        return Answer(await asyncio.to_thread(self._render_metrics), CONTENT_TYPE)

    async def _description(self, call: Call) -> Answer:
        return Answer(self._descriptions[call.request.path])

    # The table.

    def _routes(self) -> Sequence[Route]:
        wait = Parameter(
            name="wait", place="query", schema=Wait, description="how far to wait; durable unless given"
        )
        sequence = Content(media_type=CBOR_SEQUENCE_TYPE, description="COSE_Sign1, one after another")
        envelopes = Content(media_type=CBOR_SEQUENCE_TYPE, description="byte strings, one envelope each")
        verdicts = Content(media_type=CBOR_TYPE, description="[1, wait, codes, heights, indexes, flags]")
        calls = Content(
            media_type=JSON_TYPE,
            schema=CallBody | Annotated[list[CallBody], Meta(min_length=1, max_length=100)],
        )
        answers = Content(media_type=JSON_TYPE, schema=AnswerBody | list[AnswerBody])
        state = Content(media_type=JSON_TYPE, schema=dict[str, str])
        return (
            Route(
                method="POST",
                path="/v1/rpc",
                handler=self._json_rpc,
                role=None,
                summary="JSON-RPC 2.0, a request or a batch",
                request=calls,
                responses={200: answers, 204: None},
                errors=(403, 408, 413, 415, 507),
            ),
            Route(
                method="POST",
                path="/v1/transactions",
                handler=self._transactions,
                role="submitter",
                summary="Submit a batch of transactions",
                request=sequence,
                responses={200: verdicts},
                parameters=(wait,),
                errors=(408, 413, 415, 507),
            ),
            Route(
                method="POST",
                path="/v1/blobs",
                handler=self._blobs,
                role="submitter",
                summary="Store envelopes ahead of the records that name them",
                request=envelopes,
                responses={200: Content(media_type=JSON_TYPE, schema=StoredView)},
                errors=(408, 413, 415, 507),
            ),
            Route(
                method="GET",
                path="/v1/subscribe",
                handler=self.streams.serve,
                role="reader",
                summary="WebSocket: subscriptions",
                responses={101: None},
                errors=(426,),
            ),
            *self._plain_routes(state),
        )

    def _plain_routes(self, state: Content) -> Sequence[Route]:
        page = Content(media_type=JSON_TYPE, schema=dict[str, Any])
        metrics = Content(media_type="text/plain", description="Prometheus text format")
        return (
            Route(
                method="GET",
                path="/health/live",
                handler=self._live,
                probe=True,
                role=None,
                summary="Whether the process serves",
                responses={200: state},
            ),
            Route(
                method="GET",
                path="/health/ready",
                handler=self._ready,
                probe=True,
                role=None,
                summary="Whether the node takes transactions",
                responses={200: state, 503: state},
            ),
            Route(
                method="GET",
                path="/metrics",
                handler=self._metrics_page,
                probe=True,
                role="reader",
                summary="Figures for Prometheus",
                responses={200: metrics},
                errors=(404,),
            ),
            *(
                Route(
                    method="GET",
                    path=path,
                    handler=self._description,
                    role=None,
                    summary=summary,
                    responses={200: page},
                )
                for path, summary in (
                    ("/openrpc.json", "The methods of /v1/rpc (OpenRPC)"),
                    ("/openapi.json", "The paths (OpenAPI)"),
                )
            ),
        )


def check_type(call: Call, expected: str) -> None:
    """Raises ``BadRequestError`` (415) for another media type: no page of another site can send these unasked."""
    given = call.request.headers.get("Content-Type", "")
    if given != expected and given.partition(";")[0].strip().lower() != expected:
        raise BadRequestError(f"the body has to be {expected}", status=415)

"""The short way of a short read: no second look at a head that was read before, and no task.

A client on a kept connection sends the same head with every request of a length. The HTTP parser has read it, and the
server has admitted what it says; the same bytes say the same again. So a request that comes in one piece, whose head
is known byte for byte, goes from the socket straight to the reader's thread, and its answer straight back. Whatever
is unlike that takes the long way, with the same result (SPEC-RPC-2, SPEC-RPC-6, SPEC-RPC-7 hold on both).
"""

import time
from collections import Counter
from typing import NamedTuple, Protocol

from aiohttp import web

from fastledger.errors import Code, RateLimitedError, UnauthenticatedError
from fastledger.node.logs import AccessLog
from fastledger.rpc.http.access import Access
from fastledger.rpc.http.answers import Answer, error_answer
from fastledger.rpc.http.rate import RateLimits
from fastledger.rpc.http.routes import Caller
from fastledger.rpc.jsonrpc import JsonRpc, Reply

HEADS_MAX = 512
HEAD_BYTES_MAX = 1_024
RPC_PATH = "/v1/rpc"
_REQUEST_LINE = f"POST {RPC_PATH} HTTP/1.1\r\n".encode()
_END = b"\r\n\r\n"
_WORD = "post.v1.rpc"


class Answering(Protocol):
    """A connection, as far as the short way needs it."""

    caller: Caller

    def begin_answer(self) -> None:
        """Nothing is read until the answer is written."""

    def end_answer(self, encoded: bytes) -> None:
        """Writes the answer, and reads on."""


class Head(NamedTuple):
    """What the short way has to know of a head: how long its body is and who says to send it."""

    body_bytes: int
    authorization: str | None


def whole_head(data: bytes, request: web.BaseRequest) -> bytes | None:
    """The head at the beginning of ``data``, where the parser made ``request`` of these very bytes.

    ``data`` begins where a request does. That the request, written out again, gives the bytes up to the first empty
    line shows that the parser took no others for its head, and that its length is what ``Content-Length`` says.
    """
    end = data.find(_END) + len(_END)
    if end < len(_END) or "Transfer-Encoding" in request.headers or "Upgrade" in request.headers:
        return None
    version = request.version
    line = f"{request.method} {request.raw_path} HTTP/{version.major}.{version.minor}\r\n"
    fields = b"".join([b"%b: %b\r\n" % field for field in request.raw_headers])
    return data[:end] if data[:end] == b"%b%b\r\n" % (line.encode(), fields) else None


class ShortWay:
    """The heads that are known, and the dispatch of the requests under them."""

    def __init__(
        self,
        rpc: JsonRpc,
        access: Access,
        rates: RateLimits,
        counters: "Counter[str]",
        access_log: AccessLog | None,
    ) -> None:
        """Works with the same parts as the server's dispatcher."""
        self._rpc = rpc
        self._access = access
        self._rates = rates
        self._counters = counters
        self._access_log = access_log
        self._heads: dict[bytes, Head] = {}

    def known(self, data: bytes) -> bytes | None:
        """The head at the beginning of ``data``, where it is one that was learned."""
        head = data[: data.find(_END) + len(_END)]
        return head if head in self._heads else None

    def learn(self, head: bytes, request: web.BaseRequest) -> None:
        """Remembers the head of a request that was admitted and whose body was read; see :func:`whole_head`."""
        headers = request.headers
        if head in self._heads or not head.startswith(_REQUEST_LINE) or "Expect" in headers:
            return
        if not request.keep_alive or request.content_length is None:
            return
        if len(self._heads) >= HEADS_MAX:
            self._heads.clear()
        self._heads[head] = Head(request.content_length, headers.get("Authorization"))

    def take(self, connection: Answering, data: bytes) -> bool:
        """Answers ``data``, soon, where it is a short read under a known head; False: it has to go the long way."""
        end = data.find(_END) + len(_END)
        head = self._heads.get(data[:end])
        if head is None or len(data) - end != head.body_bytes:
            return False
        body = data[end:]
        found = self._rpc.short_read(body)
        if found is None:
            return False
        try:
            caller = self._access.caller(head.authorization, connection.caller)
        except UnauthenticatedError:
            return False
        began = time.perf_counter()
        connection.begin_answer()
        self._counters["rpc short"] += 1
        try:
            self._rates.take_request(caller)
        except RateLimitedError as error:
            answer = error_answer(error)
            self._counters[f"http {answer.status}"] += 1
            self._note(answer.status, error.code, began, "")
            connection.end_answer(answer.encode(with_body=True))
            return True
        client = caller.name if caller.authenticated else ""

        def tell(reply: Reply) -> None:
            self._note(reply.status, Code.OK, began, client)
            answer = Answer(reply.body or b"", status=reply.status, headers=reply.headers)
            connection.end_answer(answer.encode(with_body=True))

        self._rpc.begin(*found, body, caller, tell)
        return True

    def _note(self, status: int, code: Code, began: float, client: str) -> None:
        if self._access_log is not None:
            duration_us = int((time.perf_counter() - began) * 1e6)
            self._access_log.request(
                method=_WORD, status=status, code=code, duration_us=duration_us, client=client
            )

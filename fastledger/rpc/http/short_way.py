"""The short way of a short read: no second look at a head that was read before, and no task.

A client on a kept connection sends the same head with every request of a length. The HTTP parser has read it, and the
server has admitted what it says; the same bytes say the same again. So a request that comes in one piece, whose head
is known byte for byte, goes from the socket straight to the reader's thread, and its answer straight back. Whatever
is unlike that takes the long way, with the same result (SPEC-RPC-2, SPEC-RPC-6, SPEC-RPC-7 hold on both).
"""

import time
from collections import Counter
from typing import TYPE_CHECKING, NamedTuple

from aiohttp.http import RawRequestMessage

from fastledger.errors import Code, RateLimitedError, UnauthenticatedError
from fastledger.node.logs import AccessLog
from fastledger.rpc.http.access import Access
from fastledger.rpc.http.answers import Answer, error_answer
from fastledger.rpc.http.rate import RateLimits
from fastledger.rpc.jsonrpc import JsonRpc, Reply

if TYPE_CHECKING:
    from fastledger.rpc.http.connection import Connection

HEADS_MAX = 512
HEAD_BYTES_MAX = 1_024
RPC_PATH = "/v1/rpc"
_REQUEST_LINE = f"POST {RPC_PATH} HTTP/1.1\r\n".encode()
_END = b"\r\n\r\n"
_WORD = "post.v1.rpc"


class Head(NamedTuple):
    """What the short way has to know of a head: how long its body is and who says to send it."""

    body_bytes: int
    authorization: str | None


def whole_head(data: bytes, message: RawRequestMessage) -> bytes | None:
    """The head of ``data``, where that is one POST to /v1/rpc and ``message`` is what the parser made of it.

    That the message, written out again, gives the very bytes shows that the parser took no others for it: neither
    some that came before, nor fewer than there are.
    """
    if not data.startswith(_REQUEST_LINE) or message.chunked or message.upgrade or message.should_close:
        return None
    fields = b"".join([b"%b: %b\r\n" % field for field in message.raw_headers])
    head = b"%b%b\r\n" % (_REQUEST_LINE, fields)
    length = message.headers.get("Content-Length", "")
    if not length.isdecimal() or not data.startswith(head) or len(data) - len(head) != int(length):
        return None
    return head


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

    def learn(self, head: bytes, message: RawRequestMessage) -> None:
        """Remembers a head that was admitted and whose body was read; see :func:`whole_head`."""
        headers = message.headers
        if len(head) > HEAD_BYTES_MAX or head in self._heads or "Expect" in headers:
            return
        if len(self._heads) >= HEADS_MAX:
            self._heads.clear()
        self._heads[head] = Head(int(headers["Content-Length"]), headers.get("Authorization"))

    def take(self, connection: "Connection", data: bytes) -> bool:
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

"""The fast path of a short read: no second look at a head that was read before, and no task.

A client on a kept connection sends the same head with every request of a length. The HTTP parser has read it, and the
server has admitted what it says; the same bytes say the same again. So a request that comes in one piece, whose head
is known byte for byte, goes from the socket straight to the reader's thread, and its answer straight back. Whatever
is unlike that takes the slow path, with the same result (SPEC-RPC-2, SPEC-RPC-6, SPEC-RPC-7 hold on both).
"""

import time
from collections import Counter
from typing import Protocol

from fastledger.errors import Code, RateLimitedError, UnauthenticatedError
from fastledger.node.logs import AccessLog
from fastledger.rpc.http.access import Access
from fastledger.rpc.http.answers import Answer, error_answer
from fastledger.rpc.http.heads import KnownHeads
from fastledger.rpc.http.rate import RateLimits
from fastledger.rpc.http.routes import Caller
from fastledger.rpc.jsonrpc import JsonRpc, Reply

_WORD = "post.v1.rpc"


class Answering(Protocol):
    """The part of a connection that the fast path uses."""

    caller: Caller

    def begin_answer(self) -> None:
        """Stops reading requests until :meth:`end_answer`."""

    def end_answer(self, encoded: bytes) -> None:
        """Writes the encoded answer and goes on reading."""


class FastPath:
    """The dispatch of short reads whose heads are known."""

    def __init__(
        self,
        rpc: JsonRpc,
        access: Access,
        rates: RateLimits,
        counters: "Counter[str]",
        access_log: AccessLog | None,
        heads: KnownHeads,
    ) -> None:
        """Works with the same parts as the server's dispatcher."""
        self._rpc = rpc
        self._access = access
        self._rates = rates
        self._counters = counters
        self._access_log = access_log
        self._heads = heads

    def take(self, connection: Answering, data: bytes) -> bool:
        """Answers ``data`` soon, through ``connection``, where it is a short read under a known head.

        Returns whether it is. Where it is not, nothing was done, and the request has to take the slow path.
        """
        known = self._heads.find(data)
        if known is None:
            return False
        body, head = data[len(known[0]) :], known[1]
        if len(body) != head.body_bytes:
            return False
        found = self._rpc.short_read(body)
        if found is None:
            return False
        try:
            caller = self._access.caller(head.authorization, connection.caller)
        except UnauthenticatedError:
            return False
        began = time.perf_counter()
        connection.begin_answer()
        self._counters["rpc fast"] += 1
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

"""Heads of requests that are known byte for byte: what was admitted once says the same again (SPEC-RPC-12)."""

from typing import NamedTuple

from aiohttp import web

from fastledger.rpc.protocol import RPC_PATH

HEADS_MAX = 512
HEAD_BYTES_MAX = 1_024
_REQUEST_LINE = f"POST {RPC_PATH} HTTP/1.1\r\n".encode()
_END = b"\r\n\r\n"


class Head(NamedTuple):
    """The facts of a head that the fast path needs: the body's length, and the ``Authorization`` that was sent."""

    body_bytes: int
    authorization: str | None


def whole_head(data: bytes, request: web.BaseRequest) -> bytes | None:
    """Returns the head at the beginning of ``data``, or None unless the parser made ``request`` of these very bytes.

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


class KnownHeads:
    """Heads of calls, at most :data:`HEADS_MAX` of at most :data:`HEAD_BYTES_MAX` bytes."""

    def __init__(self) -> None:
        self._heads: dict[bytes, Head] = {}

    def find(self, data: bytes) -> tuple[bytes, Head] | None:
        """Returns the head at the beginning of ``data`` and the facts in it, or None where it was not learned."""
        found = data[: data.find(_END) + len(_END)]
        head = self._heads.get(found)
        return None if head is None else (found, head)

    def learn(self, head: bytes, request: web.BaseRequest) -> None:
        """Stores the head of a request that was admitted and whose body was read.

        :func:`whole_head` shows that ``head`` is that of ``request``. Where the table is full, all others are
        dropped.
        """
        headers = request.headers
        if head in self._heads or not head.startswith(_REQUEST_LINE) or "Expect" in headers:
            return
        if not request.keep_alive or request.content_length is None:
            return
        if len(self._heads) >= HEADS_MAX:
            self._heads.clear()
        self._heads[head] = Head(request.content_length, headers.get("Authorization"))

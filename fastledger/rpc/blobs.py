"""Envelopes over the wire: resumable uploads (tus 1.0) and audited, resumable downloads (SPEC-UPL, SPEC-READ).

An envelope is never in memory whole. Bytes go between socket and disk by the chunk, the disk's part on threads of its
own; a peer that does not take or send the next chunk in time is cut off.
"""

import asyncio
import base64
import binascii
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Generator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, suppress
from email.utils import formatdate
from hashlib import sha256
from typing import TypeVar

from aiohttp import web

from fastledger.chain.envelopes import ReadGrant, access_body
from fastledger.chain.ledger import Ledger
from fastledger.errors import (
    AccessRefused,
    BadRequestError,
    Code,
    EnvelopeError,
    FastLedgerError,
    InputError,
    LedgerClosedError,
    NotFoundError,
    UploadConflict,
)
from fastledger.limits import TRANSACTION_BYTES_MAX
from fastledger.model.outcome import Outcome
from fastledger.model.reports import Collected
from fastledger.model.transaction import Transaction
from fastledger.rpc.http.answers import Streamed
from fastledger.rpc.http.ranges import ByteRange, parse_range
from fastledger.rpc.http.routes import Call, Content, Parameter, Route
from fastledger.rpc.options import BlobOptions
from fastledger.rpc.protocol import (
    DIGEST_HEADER,
    OCTETS_TYPE,
    TICKET_HEADER,
    TUS_TYPE,
    TUS_VERSION,
    TXID_HEADER,
)
from fastledger.rpc.read_tickets import ReadTickets
from fastledger.rpc.signatures import low_s
from fastledger.storage.blobs.uploads import Uploads, UploadState

T = TypeVar("T")
Submit = Callable[[bytes], Awaitable[Outcome]]

TUS_EXTENSIONS = "creation,expiration,termination"
WRITE_BYTES = 256 * 1024
_DIGEST_MISMATCH = 422
_PAUSE_SECONDS = 0.005
_UPLOAD_PATH = "/v1/uploads"
_READ_PATH = "/v1/reads"
_UNTRACEABLE = "anonymous"


class BlobService:
    """Uploads and downloads of one node; made on its event loop, closed before its ledger."""

    def __init__(
        self, ledger: Ledger, submit: Submit, uploads: Uploads, options: BlobOptions | None = None
    ) -> None:
        """Takes ``submit``, which submits a transaction and returns its durable verdict, and ``uploads``.

        ``uploads`` is closed with the service.
        """
        self._options = options = options or BlobOptions()
        self._ledger = ledger
        self._submit = submit
        self._uploads = uploads
        self._workers = ThreadPoolExecutor(options.threads, thread_name_prefix="fastledger-blobs")
        self._tidier = ThreadPoolExecutor(1, thread_name_prefix="fastledger-tidy")
        self._stopping = threading.Event()
        # Where envelopes come from that this node does not hold; whoever runs a federation sets it.
        self.fetch_missing: Callable[[Transaction], Awaitable[None]] | None = None
        self.tickets = ReadTickets(
            lifetime_ms=options.ticket_lifetime_ms,
            tickets_max=options.tickets_max,
            clock_ms=ledger.options.clock_ms,
        )

    @property
    def unfinished(self) -> int:
        """The number of uploads that are under way."""
        return self._uploads.pending[0]

    def _run(self, work: Callable[..., T], *arguments: object) -> "asyncio.Future[T]":
        return asyncio.get_running_loop().run_in_executor(self._workers, work, *arguments)

    # Keeping.

    async def tidy(self) -> Collected:
        """Drops expired uploads and collects envelopes that nobody names; to be called now and then."""
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._tidier, self._tidy)

    def _tidy(self) -> Collected:
        self._uploads.expire()
        return self._ledger.collect_orphans(self._options.orphan_age_ms, pause=self._pause)

    def _pause(self) -> None:
        # A walk over the whole store leaves most of the time to those who wait for an answer.
        if self._stopping.wait(_PAUSE_SECONDS):
            raise LedgerClosedError("the node is stopping")

    async def close(self) -> None:
        """Waits for the chunks that are on their way to the disk, and syncs them."""
        self._stopping.set()
        await asyncio.to_thread(self._close)

    def _close(self) -> None:
        self._tidier.shutdown()
        self._workers.shutdown()
        self._uploads.close()

    # Uploads.

    async def describe(self, call: Call) -> web.StreamResponse:
        """Answers OPTIONS with the node's version and extensions of tus and the longest upload in bytes."""
        return web.Response(
            status=204,
            headers={
                **_TUS,
                "Tus-Version": TUS_VERSION,
                "Tus-Extension": TUS_EXTENSIONS,
                "Tus-Max-Size": str(self._uploads.upload_bytes_max),
            },
        )

    async def create(self, call: Call) -> web.StreamResponse:
        """Answers POST: begins an upload of Upload-Length bytes that hash to the ``sha256`` of Upload-Metadata."""
        async with self._tus(call):
            size = _number(call, "Upload-Length")
            digest = _announced_digest(call.request.headers.get("Upload-Metadata", ""))
            state = await self._run(self._uploads.begin, size, digest, owner_of(call))
            headers = {**_state_headers(state), "Location": f"{_UPLOAD_PATH}/{state.id}"}
            return web.Response(status=201, headers=headers)

    async def head(self, call: Call) -> web.StreamResponse:
        """Answers HEAD with the offset at which the next byte belongs.

        An upload whose last byte arrived before a crash is finished first.
        """
        async with self._tus(call):
            upload_id, owner = call.parameters["id"], owner_of(call)
            state = self._uploads.state(upload_id, owner)
            if state.offset == state.size and not state.finished:
                state = await self._run(self._uploads.finish, upload_id, owner)
            digest = base64.b64encode(state.digest).decode("ascii")
            headers = {
                **_state_headers(state),
                "Upload-Length": str(state.size),
                "Upload-Metadata": f"sha256 {digest}",
                "Cache-Control": "no-store",
            }
            return web.Response(status=200, headers=headers)

    async def patch(self, call: Call) -> web.StreamResponse:
        """Answers PATCH: appends the body's bytes from Upload-Offset on.

        Those that arrived are kept, also of a body that breaks off.
        """
        async with self._tus(call):
            if call.request.content_type != TUS_TYPE:
                raise BadRequestError(f"the bytes of an upload come as {TUS_TYPE}", status=415)
            upload_id, owner = call.parameters["id"], owner_of(call)
            offset = _number(call, "Upload-Offset")
            state = self._uploads.state(upload_id, owner)
            if offset != state.offset or state.finished:
                raise UploadConflict(f"the next byte belongs at {state.offset}", offset=state.offset)
            try:
                async for piece in _gathered(call.pieces(state.size - offset)):
                    offset = await self._run(self._uploads.append, upload_id, offset, piece, owner)
            finally:
                with suppress(FastLedgerError):
                    state = await self._run(self._uploads.sync, upload_id, owner)
            if state.offset == state.size:
                state = await self._run(self._uploads.finish, upload_id, owner)
            headers = _state_headers(state)
            if state.finished:
                headers[DIGEST_HEADER] = state.digest.hex()
            return web.Response(status=204, headers=headers)

    async def abandon(self, call: Call) -> web.StreamResponse:
        """Answers DELETE: drops an upload and its bytes."""
        async with self._tus(call):
            await self._run(self._uploads.abandon, call.parameters["id"], owner_of(call))
            return web.Response(status=204, headers=_TUS)

    @asynccontextmanager
    async def _tus(self, call: Call) -> AsyncIterator[None]:
        """Checks the version of tus that the request speaks.

        Gives errors in the block tus's own statuses and headers.
        """
        if call.request.headers.get("Tus-Resumable") != TUS_VERSION:
            raise _answered(
                "the request speaks another version of tus",
                412,
                Code.BAD_REQUEST,
                {"Tus-Version": TUS_VERSION},
            )
        try:
            yield
        except UploadConflict as error:
            headers = {"Upload-Offset": str(error.offset)}
            raise _answered(f"the next byte belongs at {error.offset}", 409, error.code, headers) from None
        except EnvelopeError as error:
            message = "the bytes do not hash to the digest announced"
            raise _answered(message, _DIGEST_MISMATCH, error.code) from None
        except NotFoundError as error:
            raise _answered("there is no such upload", 404, error.code) from None
        except InputError as error:
            if error.code != Code.OVERSIZED:
                raise
            headers = {"Tus-Max-Size": str(self._uploads.upload_bytes_max)}
            raise _answered("the upload is too long", 413, error.code, headers) from None

    # Downloads.

    async def read(self, call: Call) -> web.StreamResponse:
        """Answers POST with the envelope that a signed ``access.read`` asks for, once the chain has the read."""
        encoded = low_s(await call.body(TRANSACTION_BYTES_MAX))
        transaction = Transaction.decode(encoded)
        access_body(transaction)
        call.take_transactions(1)
        outcome = await self._submit(encoded)
        grant = await self._grant(transaction, outcome)
        ticket = self.tickets.issue(grant, owner_of(call))
        return await self._send(call, grant, ByteRange(0, grant.size, grant.size), {TICKET_HEADER: ticket})

    async def _grant(self, transaction: Transaction, outcome: Outcome) -> ReadGrant:
        """Returns the grant; where the envelope lies with another organisation's node, it is fetched first."""
        try:
            return await self._run(self._ledger.grant_read, transaction, outcome)
        except NotFoundError:
            if self.fetch_missing is None:
                raise
        await self.fetch_missing(transaction)
        return await self._run(self._ledger.grant_read, transaction, outcome)

    async def resume(self, call: Call) -> web.StreamResponse:
        """Answers GET with the rest of an envelope, or all of it again, while the ticket and the permission last."""
        ticket = call.parameters["ticket"]
        grant = self.tickets.find(ticket, owner_of(call))
        try:
            await self._run(self._ledger.check_permitted, grant)
        except (AccessRefused, NotFoundError):
            self.tickets.end(ticket)
            raise
        headers = call.request.headers
        try:
            part = parse_range(
                headers.get("Range"), headers.get("If-Range"), size=grant.size, etag=_etag(grant)
            )
        except ValueError:
            answer = {"Content-Range": f"bytes */{grant.size}"}
            raise BadRequestError("no byte is in range", status=416, headers=answer) from None
        return await self._send(
            call, grant, part or ByteRange(0, grant.size, grant.size), {}, part is not None
        )

    async def _send(
        self, call: Call, grant: ReadGrant, part: ByteRange, extra: Mapping[str, str], partial: bool = False
    ) -> web.StreamResponse:
        response = Streamed(status=206 if partial else 200, headers=extra)
        response.content_type = OCTETS_TYPE
        response.content_length = part.end - part.start
        response.headers.update(
            {
                "ETag": _etag(grant),
                "Accept-Ranges": "bytes",
                "Cache-Control": "no-store",
                DIGEST_HEADER: grant.digest.hex(),
                TXID_HEADER: grant.txid.hex(),
            }
        )
        if partial:
            response.headers["Content-Range"] = part.content_range
        reader = self._ledger.blob_reader(grant.digest, part.start)
        # Before the head goes out, whatever is wrong can still be answered.
        first = await self._run(next, reader, b"")
        try:
            await response.prepare(call.request)
            await self._pump(call, response, reader, first, part.end - part.start)
        except (FastLedgerError, TimeoutError, ConnectionError):
            # Half an answer cannot be taken back: the peer, if it is there, learns from the length that it is half.
            _cut(call)
        return response

    async def _pump(
        self,
        call: Call,
        response: web.StreamResponse,
        reader: Generator[bytes, None, None],
        chunk: bytes,
        left: int,
    ) -> None:
        """Sends ``chunk`` and those that follow it, ``left`` bytes in all.

        Reads the next one while one is being sent.
        """
        ahead = self._run(next, reader, b"")
        try:
            while left:
                if len(chunk) >= left or not chunk:
                    # The last goes out only when the reader found that the whole matches the digest.
                    await ahead
                    if not chunk:
                        raise NotFoundError("the envelope is shorter than it was")
                async with asyncio.timeout(call.timeout_ms / 1000):
                    await response.write(chunk[:left])
                left -= min(left, len(chunk))
                if left:
                    chunk = await ahead
                    ahead = self._run(next, reader, b"")
        finally:
            with suppress(FastLedgerError):
                await ahead
            await self._run(reader.close)


def owner_of(call: Call) -> bytes:
    """Returns the owner of a caller's uploads and tickets, 32 bytes, made of the name that the caller proved.

    Callers without a proved name share one owner: an address may change between two attempts.
    """
    name = f"name:{call.caller.name}" if call.caller.authenticated else _UNTRACEABLE
    return sha256(name.encode("utf-8")).digest()


_TUS = {"Tus-Resumable": TUS_VERSION}


def _answered(
    message: str, status: int, code: Code, headers: Mapping[str, str] | None = None
) -> BadRequestError:
    error = BadRequestError(message, status=status, headers={**_TUS, **(headers or {})})
    error.code = code
    return error


def _number(call: Call, name: str) -> int:
    value = call.request.headers.get(name, "")
    if not (value.isascii() and value.isdigit() and len(value) < 16):
        raise BadRequestError(f"{name} has to be a number of bytes", headers=_TUS)
    return int(value)


def _announced_digest(metadata: str) -> bytes:
    for pair in metadata.split(","):
        key, _, value = pair.strip().partition(" ")
        if key == "sha256":
            with suppress(binascii.Error, ValueError):
                digest = base64.b64decode(value, validate=True)
                if len(digest) == sha256().digest_size:
                    return digest
    raise BadRequestError("Upload-Metadata has to have sha256 and the digest in base64", headers=_TUS)


def _state_headers(state: UploadState) -> dict[str, str]:
    return {
        **_TUS,
        "Upload-Offset": str(state.offset),
        "Upload-Expires": formatdate(state.expires_ms // 1000, usegmt=True),
    }


async def _gathered(pieces: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    """Joins the pieces from the socket to chunks worth a system call.

    The last chunk comes also where the peer breaks off, before the error is raised.
    """
    held: list[bytes] = []
    count = 0
    failure: Exception | None = None
    try:
        async for piece in pieces:
            held.append(piece)
            count += len(piece)
            if count >= WRITE_BYTES:
                yield b"".join(held)
                held, count = [], 0
    except Exception as error:  # whatever it was, it comes again below
        failure = error
    if held:
        yield b"".join(held)
    if failure is not None:
        raise failure


def _etag(grant: ReadGrant) -> str:
    return f'"{grant.digest.hex()}"'


def _cut(call: Call) -> None:
    transport = call.request.transport
    if transport is not None:
        transport.abort()


def blob_routes(service: BlobService) -> list[Route]:
    """Returns the routes of uploads and downloads."""
    tus = Parameter(name="Tus-Resumable", place="header", required=True, description=TUS_VERSION)
    upload_id = Parameter(name="id", place="path", required=True, description="32 hexadecimal digits")
    offset = Parameter(name="Upload-Offset", place="header", schema=int, required=True)
    ticket = Parameter(name="ticket", place="path", required=True, description="64 hexadecimal digits")
    length = Parameter(name="Upload-Length", place="header", schema=int, required=True)
    metadata = Parameter(
        name="Upload-Metadata", place="header", required=True, description="sha256 and the digest in base64"
    )
    envelope = Content(media_type=OCTETS_TYPE)
    one = f"{_UPLOAD_PATH}/{{id}}"
    return [
        Route(
            method="OPTIONS",
            path=_UPLOAD_PATH,
            handler=service.describe,
            role=None,
            summary="What of tus is spoken here",
            responses={204: None},
        ),
        Route(
            method="POST",
            path=_UPLOAD_PATH,
            handler=service.create,
            role="submitter",
            summary="Begin an upload of an envelope",
            responses={201: None},
            parameters=(tus, length, metadata),
            errors=(412, 413),
        ),
        Route(
            method="HEAD",
            path=one,
            handler=service.head,
            role="submitter",
            summary="Where the next byte of an upload belongs",
            parameters=(upload_id, tus),
            errors=(404, 412, _DIGEST_MISMATCH),
        ),
        Route(
            method="PATCH",
            path=one,
            handler=service.patch,
            role="submitter",
            summary="Send the next bytes of an upload",
            request=Content(media_type=TUS_TYPE),
            responses={204: None},
            parameters=(upload_id, tus, offset),
            errors=(404, 409, 412, 413, 415, _DIGEST_MISMATCH),
        ),
        Route(
            method="DELETE",
            path=one,
            handler=service.abandon,
            role="submitter",
            summary="Abandon an upload",
            responses={204: None},
            parameters=(upload_id, tus),
            errors=(404, 412),
        ),
        *_read_routes(service, envelope, ticket),
    ]


def _read_routes(service: BlobService, envelope: Content, ticket: Parameter) -> list[Route]:
    signed = Content(media_type=OCTETS_TYPE, description="a signed access.read, COSE_Sign1")
    ranges = (
        Parameter(name="Range", place="header", description="one range of bytes"),
        Parameter(name="If-Range", place="header", description="the ETag"),
    )
    return [
        Route(
            method="POST",
            path=_READ_PATH,
            handler=service.read,
            role="reader",
            summary="Read an envelope; the read is audited first",
            request=signed,
            responses={200: envelope},
            errors=(403, 404, 409),
        ),
        Route(
            method="GET",
            path=f"{_READ_PATH}/{{ticket}}",
            handler=service.resume,
            role="reader",
            summary="The rest of an envelope whose read was granted",
            responses={200: envelope, 206: envelope},
            parameters=(ticket, *ranges),
            errors=(403, 404, 416),
        ),
    ]

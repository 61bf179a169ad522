"""Envelopes on their way to a node and back, resumed where a connection broke (SPEC-CLI-5).

Small envelopes travel many in a request; a large one by itself, by the tus protocol (version 1.0.0: creation and core).
"""

import asyncio
import base64
import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import msgspec

from fastledger.client.calls import Calls
from fastledger.client.http import HttpTransport
from fastledger.client.retry import Retry
from fastledger.errors import (
    AccessRefused,
    Code,
    InputError,
    NotFoundError,
    TransactionError,
    UnreachableError,
)
from fastledger.limits import BLOB_BYTES_MAX, BLOB_PACKED_BYTES_MAX
from fastledger.model.transaction import Transaction
from fastledger.rpc.protocol import (
    CBOR_SEQUENCE_TYPE,
    DIGEST_HEADER,
    OCTETS_TYPE,
    TICKET_HEADER,
    TUS_TYPE,
    TUS_VERSION,
    encode_blobs,
)
from fastledger.subjects.identity import UNKNOWN_SIGNER

BLOBS_PATH = "/v1/blobs"
UPLOADS_PATH = "/v1/uploads"
READS_PATH = "/v1/reads"
BULK_BYTES_MAX = 8 * 1024 * 1024
BULK_BLOBS_MAX = 10_000
UPLOAD_PIECE_BYTES = 4 * 1024 * 1024
# Below this, sending an envelope costs less than asking whether the node has it.
ASK_BYTES_MIN = 256 * 1024
DIGESTS_PER_CALL_MAX = 1_000
# Above this many bytes a digest would hold the event loop up.
_INLINE_HASH_BYTES_MAX = 256 * 1024
_RESTARTS_MAX = 5


class _Missing(msgspec.Struct):
    missing: list[str]


class Transfers:
    """Stores and fetches envelopes through one transport."""

    def __init__(self, transport: HttpTransport, calls: Calls, retry: Retry) -> None:
        self._transport = transport
        self._calls = calls
        self._retry = retry

    # To the node.

    async def store(self, blobs: Sequence[bytes], *, ask: bool = True) -> list[bytes]:
        """Has the node keep ``blobs``; returns their digests once they are synced.

        Those that it has already are not sent again, where ``ask`` and it pays to find out.
        """
        digests = await _digests(blobs)
        wanted = dict(zip(digests, blobs, strict=True))
        if ask and sum(map(len, wanted.values())) >= ASK_BYTES_MIN:
            missing = await self.missing(list(wanted))
            wanted = {digest: wanted[digest] for digest in missing if digest in wanted}
        small = [blob for blob in wanted.values() if len(blob) <= BLOB_PACKED_BYTES_MAX]
        for bulk in _bulks(small):
            await self._store_bulk(bulk)
        for digest, blob in wanted.items():
            if len(blob) > BLOB_PACKED_BYTES_MAX:
                await self.upload(digest, blob)
        return digests

    async def missing(self, digests: Sequence[bytes]) -> list[bytes]:
        """Those of ``digests`` that the node does not have."""
        found: list[bytes] = []
        for start in range(0, len(digests), DIGESTS_PER_CALL_MAX):
            asked = [digest.hex() for digest in digests[start : start + DIGESTS_PER_CALL_MAX]]
            answer = await self._retry.run(
                lambda asked=asked: self._calls.point("blob.missing", {"digests": asked}, _Missing)  # type: ignore[misc]
            )
            known = set(asked)
            found += [bytes.fromhex(text) for text in answer.missing if text in known]
        return found

    async def _store_bulk(self, blobs: list[bytes]) -> None:
        body = b"".join(encode_blobs(blobs))
        await self._retry.run(
            lambda: self._transport.exchange(
                "POST",
                BLOBS_PATH,
                body=body,
                headers={"Content-Type": CBOR_SEQUENCE_TYPE},
                answer_bytes_max=128 * len(blobs) + 64 * 1024,
            )
        )

    async def upload(self, digest: bytes, blob: bytes) -> None:
        """One envelope by a resumable upload; each piece is tried again by itself, from where the node stands."""
        for _ in range(_RESTARTS_MAX):
            location = await self._retry.run(lambda: self._begin_upload(digest, len(blob)))
            try:
                await self._send_pieces(location, memoryview(blob))
                return
            except InputError as error:
                if error.code not in (Code.NOT_FOUND, Code.UNKNOWN_UPLOAD):
                    raise  # else the node gave the upload up: from the start
        raise UnreachableError("the node keeps losing the upload", transient=False)

    async def _begin_upload(self, digest: bytes, size: int) -> str:
        metadata = base64.b64encode(digest).decode()
        answer = await self._transport.exchange(
            "POST",
            UPLOADS_PATH,
            headers={
                "Tus-Resumable": TUS_VERSION,
                "Upload-Length": str(size),
                "Upload-Metadata": f"sha256 {metadata}",
            },
        )
        location = answer.headers.get("Location", "")
        name = location.rpartition("/")[2]
        if not name.isalnum() or len(name) > 128:
            raise UnreachableError("the node does not say where the upload goes", transient=False)
        return f"{UPLOADS_PATH}/{name}"

    async def _send_pieces(self, location: str, blob: memoryview) -> None:
        offset = 0
        while offset < len(blob):
            stands_at = offset

            async def send_piece() -> int:
                nonlocal stands_at
                if stands_at < 0:
                    stands_at = await self._upload_offset(location, len(blob))
                    if stands_at == len(blob):
                        return stands_at
                start, stands_at = stands_at, -1  # unknown until the answer is here
                try:
                    return await self._send_piece(location, blob, start)
                except InputError as error:
                    if error.code != Code.UPLOAD_CONFLICT:
                        raise
                    # What a broken connection brought was still being written when the offset was asked for.
                    raise UnreachableError("the node stands elsewhere in the upload") from None

            offset = await self._retry.run(send_piece)

    async def _send_piece(self, location: str, blob: memoryview, start: int) -> int:
        piece = blob[start : start + UPLOAD_PIECE_BYTES]
        answer = await self._transport.exchange(
            "PATCH",
            location,
            body=piece,
            headers={
                "Tus-Resumable": TUS_VERSION,
                "Upload-Offset": str(start),
                "Content-Type": TUS_TYPE,
            },
            patient=True,
        )
        return _upload_offset(answer.headers.get("Upload-Offset"), start + len(piece), start + len(piece))

    async def _upload_offset(self, location: str, size: int) -> int:
        answer = await self._transport.exchange("HEAD", location, headers={"Tus-Resumable": TUS_VERSION})
        return _upload_offset(answer.headers.get("Upload-Offset"), 0, size)

    # From the node.

    async def read(self, access: Transaction) -> bytes:
        """The envelope that a signed ``access.read`` asks for.

        The node opens nothing for a transaction that was used before, so what breaks after the answer began is
        resumed by the ticket that came with it. Raises ``AccessRefused`` and ``TransactionError`` as ``Ledger.read``;
        with code ``DUPLICATE`` also where the answer was lost before the ticket arrived, or the node forgot the ticket:
        the read stands in the audit, and another access has to be signed for another.
        """
        download = _Download(access)
        try:
            await self._retry.run(lambda: self._advance(download))
        except TransactionError as error:
            if error.code >= UNKNOWN_SIGNER:
                raise AccessRefused(error.args[0], code=error.code, txid=access.txid) from None
            raise
        except NotFoundError:
            if download.ticket is None:
                raise
            raise TransactionError(
                f"read {access.txid.hex()} was granted, and its ticket is over",
                code=Code.DUPLICATE,
                txid=access.txid,
            ) from None
        content = b"".join(download.pieces)
        if (await _digests([content]))[0] != download.digest:
            raise UnreachableError("the envelope is not what the node announced", transient=False)
        return content

    async def _advance(self, download: "_Download") -> None:
        """Fetches what is left of an envelope."""
        method, path = (
            ("POST", READS_PATH) if download.ticket is None else ("GET", f"{READS_PATH}/{download.ticket}")
        )
        headers = {"Content-Type": OCTETS_TYPE}
        if download.ticket is not None:
            headers = {"Range": f"bytes={download.received}-"} if download.received else {}
        body = download.access.encoded if download.ticket is None else None
        async with self._transport.open(method, path, body=body, headers=headers) as response:
            download.begin(
                response.headers.get(TICKET_HEADER),
                response.headers.get(DIGEST_HEADER),
                resumed=response.status == 206,
            )
            room = BLOB_BYTES_MAX - download.received
            if response.content_length is not None and response.content_length > room:
                raise UnreachableError(f"the node's answer is longer than {room} bytes", transient=False)
            async for piece in response.content.iter_any():
                download.add(piece)


@dataclass(slots=True)
class _Download:
    """What has come of an envelope."""

    access: Transaction
    ticket: str | None = None
    digest: bytes = b""
    received: int = 0
    pieces: list[bytes] = field(default_factory=list)

    def begin(self, ticket: str | None, digest: str | None, *, resumed: bool) -> None:
        """Takes the headers of an answer, which may start over."""
        if ticket is not None and ticket.isalnum() and len(ticket) <= 128:
            self.ticket = ticket
        try:
            announced = bytes.fromhex(digest or "")
        except ValueError:
            announced = b""
        if len(announced) != 32 or self.digest not in (b"", announced):
            raise UnreachableError("the node does not say which envelope it sends", transient=False)
        self.digest = announced
        if not resumed:
            self.pieces.clear()
            self.received = 0

    def add(self, piece: bytes) -> None:
        """Takes the next bytes."""
        self.pieces.append(piece)
        self.received += len(piece)
        if self.received > BLOB_BYTES_MAX:
            raise UnreachableError(f"the envelope is longer than {BLOB_BYTES_MAX} bytes", transient=False)


async def _digests(blobs: Sequence[bytes]) -> list[bytes]:
    """SHA-256 of each; off the loop where it takes long."""

    def run() -> list[bytes]:
        return [hashlib.sha256(blob).digest() for blob in blobs]

    return run() if sum(map(len, blobs)) <= _INLINE_HASH_BYTES_MAX else await asyncio.to_thread(run)


def _bulks(blobs: Sequence[bytes]) -> Iterator[list[bytes]]:
    """Runs of blobs that fit a request each."""
    bulk: list[bytes] = []
    size = 0
    for blob in blobs:
        if bulk and (size + len(blob) > BULK_BYTES_MAX or len(bulk) >= BULK_BLOBS_MAX):
            yield bulk
            bulk, size = [], 0
        bulk.append(blob)
        size += len(blob)
    if bulk:
        yield bulk


def _upload_offset(text: str | None, low: int, high: int) -> int:
    if text is None or not text.isascii() or not text.isdigit() or not low <= int(text[:20]) <= high:
        raise UnreachableError("the node says something impossible about an upload", transient=False)
    return int(text)

"""Envelopes between organisations: given against an access that the chain granted, fetched where a read needs one.

A node keeps the envelopes that came to it, while records are everywhere. Whoever reads a record at a node that does
not hold its envelope has signed an ``access.read``, which stands on the chain. The node shows that transaction to a
peer, which checks it by the same rule and on its own state, chunk by chunk (SPEC-FED-18..19).
"""

import asyncio
import tempfile
from concurrent.futures import Future
from pathlib import Path
from typing import IO

from fastledger.chain.envelopes import ReadGrant, access_body
from fastledger.chain.ledger import Ledger
from fastledger.errors import Code, FastLedgerError, InputError, LedgerError, NotFoundError
from fastledger.limits import BLOB_PACKED_BYTES_MAX
from fastledger.model.transaction import Transaction
from fastledger.node.federation.driver import Federation
from fastledger.peers.port import BlobAnswer, BlobSink
from fastledger.storage.blobs.uploads import Uploads

# As long as a download's ticket: who reads later signs another access.
PROOF_LIFETIME_MS = 15 * 60 * 1000
# A peer may see the access become final a moment after this node.
ATTEMPTS, PAUSE_S = 6, 0.5
MEMORY_BYTES_MAX = 8 * 1024 * 1024
COPY_BYTES = 1024 * 1024


class EnvelopeGate:
    """Gives this node's envelopes to peers (a :class:`~fastledger.peers.port.BlobPort`); on the chain's thread."""

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger

    def blob_for(
        self, organisation: str, digest: bytes, access_txid: bytes, offset: int, length: int
    ) -> BlobAnswer:
        """Returns a part of an envelope if the access would still be granted, else the code of the refusal."""
        try:
            grant = self._granted(access_txid, digest)
            if not 0 <= offset <= grant.size:
                return BlobAnswer(Code.NOT_FOUND)
            return BlobAnswer(
                Code.OK, self._read(digest, offset, min(length, grant.size - offset)), grant.size
            )
        except InputError as error:
            return BlobAnswer(error.code)
        except (LedgerError, OSError):
            # A pack that is damaged is this node's trouble, not its chain's.
            return BlobAnswer(Code.NOT_FOUND)

    def _granted(self, txid: bytes, digest: bytes) -> ReadGrant:
        """Returns the grant.

        Raises ``InputError`` unless the access was accepted, is recent, and is for this envelope.
        """
        ledger = self._ledger
        entry = ledger.get(txid)
        if entry.code != Code.OK:
            raise InputError(f"access {txid.hex()} was refused", code=entry.code)
        if entry.time_ms < ledger.options.clock_ms() - PROOF_LIFETIME_MS:
            raise InputError(f"access {txid.hex()} is too old to show", code=Code.EXPIRED)
        access = access_body(entry.transaction)
        named = ledger.record_version(access.record, access.version).digest
        if named != digest:
            raise NotFoundError("the access is for another envelope")
        grant = ReadGrant(
            txid,
            access.record,
            access.version,
            digest,
            ledger.blob_size(digest),
            entry.transaction.signer,
            access,
        )
        ledger.check_permitted(grant)
        return grant

    def _read(self, digest: bytes, offset: int, length: int) -> bytes:
        pieces: list[bytes] = []
        reader = self._ledger.blob_reader(digest, offset)
        try:
            while length:
                piece = next(reader, b"")[:length]
                if not piece:
                    raise NotFoundError("the envelope has gone")
                pieces.append(piece)
                length -= len(piece)
        finally:
            reader.close()
        return b"".join(pieces)


class _Spool(BlobSink):
    """Holds a fetched envelope: in memory while it is short, else in a file that has no name."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._file = self._new()
        self.done: Future[IO[bytes]] = Future()

    def _new(self) -> IO[bytes]:
        self._folder.mkdir(exist_ok=True)
        return tempfile.SpooledTemporaryFile(MEMORY_BYTES_MAX, dir=str(self._folder))

    def write(self, data: bytes) -> None:
        """Takes the next bytes; a full disk fails the fetch, not the chain."""
        try:
            self._file.write(data)
        except OSError as error:
            if not self.done.done():
                self.done.set_exception(error)

    def restart(self) -> None:
        """Drops the bytes so far: another peer sends the envelope from its first byte."""
        self._file.close()
        self._file = self._new()

    def finish(self) -> None:
        """Completes ``done`` with the file, which holds the whole envelope."""
        if not self.done.done():
            self.done.set_result(self._file)

    def fail(self, code: Code) -> None:
        """Fails ``done``: no peer gave the envelope."""
        self._file.close()
        if not self.done.done():
            self.done.set_exception(NotFoundError("no peer gave the envelope", code=code))


class EnvelopeFetcher:
    """Brings the envelope of a granted access into this node's own store."""

    def __init__(self, ledger: Ledger, federation: Federation, uploads: Uploads, folder: Path) -> None:
        """Takes ``folder`` for envelopes that are too long for memory."""
        self._ledger = ledger
        self._federation = federation
        self._uploads = uploads
        self._folder = folder
        self._under_way: dict[bytes, asyncio.Task[None]] = {}

    async def fetch(self, transaction: Transaction) -> None:
        """Fetches the envelope of an ``access.read`` that was granted; readers of the same envelope share one fetch.

        Raises ``NotFoundError`` where no peer gives it.
        """
        access = access_body(transaction)
        version = await asyncio.to_thread(self._ledger.record_version, access.record, access.version)
        task = self._under_way.get(version.digest)
        if task is None:
            task = asyncio.get_running_loop().create_task(self._bring(version.digest, transaction.txid))
            self._under_way[version.digest] = task
            task.add_done_callback(lambda ended: self._ended(version.digest, ended))
        await asyncio.shield(task)

    def _ended(self, digest: bytes, task: "asyncio.Task[None]") -> None:
        del self._under_way[digest]
        if not task.cancelled():
            task.exception()  # whoever waited hears it; where all went away, nobody has to

    async def _bring(self, digest: bytes, txid: bytes) -> None:
        for attempt in range(ATTEMPTS):
            spool = _Spool(self._folder)
            try:
                await self._federation.fetch_blob(digest, txid, spool)
                file = await asyncio.wrap_future(spool.done)
            except FastLedgerError:
                if attempt == ATTEMPTS - 1:
                    raise
                await asyncio.sleep(PAUSE_S)
                continue
            await asyncio.to_thread(self._store, file, digest)
            return

    def _store(self, file: IO[bytes], digest: bytes) -> None:
        """Stores a short envelope at once, and a long one as an upload of this node's own."""
        with file:
            size = file.seek(0, 2)
            file.seek(0)
            if size <= BLOB_PACKED_BYTES_MAX:
                self._ledger.store_blobs([file.read()])
                return
            upload = self._uploads.begin(size, digest)
            try:
                offset = 0
                while chunk := file.read(COPY_BYTES):
                    offset = self._uploads.append(upload.id, offset, chunk)
                self._uploads.finish(upload.id)
            except BaseException:
                self._uploads.abandon(upload.id)
                raise

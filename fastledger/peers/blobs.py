"""Envelopes by digest, from whichever peer holds them and may give them (SPEC-PEER-32..33).

The holder decides by the consent rules, shown the transaction of access; the asker trusts nothing before the SHA-256 of
the whole is the digest. Bytes go to the caller's sink as they come, so that memory does not depend on their number.
"""

import hashlib
from typing import Any

from fastledger.errors import Code, LedgerBusyError
from fastledger.limits import BLOB_BYTES_MAX, PEER_BLOBS_MAX, PEER_CHUNK_BYTES, PEER_PIECE_MS_MAX
from fastledger.peers.host import NEVER_MS, Host
from fastledger.peers.port import BlobSink
from fastledger.peers.scores import Offence
from fastledger.peers.session import Link
from fastledger.peers.wire import BlobChunk, GetBlob


class _Fetch:
    """One envelope on its way: from which peer it comes, how far it is, and which peers were asked before."""

    __slots__ = (
        "access_txid",
        "code",
        "deadline_ms",
        "digest",
        "hasher",
        "link",
        "offset",
        "sink",
        "size",
        "tried",
    )

    def __init__(self, digest: bytes, access_txid: bytes, sink: BlobSink) -> None:
        self.digest = digest
        self.access_txid = access_txid
        self.sink = sink
        self.tried: set[int] = set()
        self.code = Code.NOT_FOUND
        self.link = -1
        self.deadline_ms = NEVER_MS
        self.begin()

    def begin(self) -> None:
        """Goes back to the first byte."""
        self.offset = 0
        self.size: int | None = None
        self.hasher: Any = hashlib.sha256()


class BlobFetcher:
    """Fetches a bounded number of envelopes at a time, each from one peer after another."""

    def __init__(self, host: Host) -> None:
        self._host = host
        self._fetches: dict[bytes, _Fetch] = {}

    @property
    def next_ms(self) -> int:
        """When the next answer is late."""
        return min((fetch.deadline_ms for fetch in self._fetches.values()), default=NEVER_MS)

    def fetch(self, digest: bytes, access_txid: bytes, sink: BlobSink, now_ms: int) -> None:
        """Begins to fetch the envelope of SHA-256 ``digest`` into ``sink``, showing the transaction ``access_txid``.

        Raises LedgerBusyError where too many envelopes are being fetched, or this one is.
        """
        if len(self._fetches) >= PEER_BLOBS_MAX or digest in self._fetches:
            raise LedgerBusyError("envelopes are being fetched", retry_after_ms=PEER_PIECE_MS_MAX)
        fetch = self._fetches[digest] = _Fetch(digest, access_txid, sink)
        self._next_peer(fetch, now_ms)

    def gone(self, link: Link, now_ms: int) -> None:
        """Asks the next peer for the envelopes that came over a link that has ended."""
        for fetch in list(self._fetches.values()):
            if fetch.link == link.number:
                self._next_peer(fetch, now_ms)

    def tick(self, now_ms: int) -> None:
        """Charges peers whose answers are late, and asks the next ones."""
        for fetch in list(self._fetches.values()):
            if fetch.deadline_ms <= now_ms:
                link = self._host.link(fetch.link)
                if link is not None:
                    self._host.charge(link, Offence.STALLING)
                if fetch.deadline_ms <= now_ms:
                    self._next_peer(fetch, now_ms)

    def _next_peer(self, fetch: _Fetch, now_ms: int) -> None:
        """Asks the next peer from the first byte on. Where all were asked, the fetch ends and the sink is told."""
        if fetch.offset:
            fetch.sink.restart()
        fetch.begin()
        for link in self._host.ready_links():
            if link.number not in fetch.tried:
                fetch.tried.add(link.number)
                fetch.link = link.number
                self._ask(fetch, link, now_ms)
                return
        del self._fetches[fetch.digest]
        fetch.sink.fail(fetch.code)

    def _ask(self, fetch: _Fetch, link: Link, now_ms: int) -> None:
        fetch.deadline_ms = now_ms + PEER_PIECE_MS_MAX
        link.expect(GetBlob)
        self._host.send(link, GetBlob(fetch.digest, fetch.access_txid, fetch.offset, PEER_CHUNK_BYTES))

    def on_chunk(self, link: Link, message: BlobChunk, now_ms: int) -> None:
        """Takes the next part of an envelope, or goes to the next peer after a refusal."""
        link.settle(GetBlob)
        fetch = self._fetches.get(message.digest)
        if fetch is None or fetch.link != link.number or message.offset != fetch.offset:
            # It came after another peer had been asked.
            return
        if message.code != Code.OK:
            fetch.code = _code(message.code)
            self._next_peer(fetch, now_ms)
        elif not _fits(fetch, message):
            self._bad(fetch, link, now_ms)
        else:
            self._take(fetch, link, message, now_ms)

    def _take(self, fetch: _Fetch, link: Link, message: BlobChunk, now_ms: int) -> None:
        fetch.size = message.size
        fetch.hasher.update(message.data)
        fetch.sink.write(message.data)
        fetch.offset += len(message.data)
        if fetch.offset < message.size:
            self._ask(fetch, link, now_ms)
        elif fetch.hasher.digest() != fetch.digest:
            self._bad(fetch, link, now_ms)
        else:
            del self._fetches[fetch.digest]
            fetch.sink.finish()

    def _bad(self, fetch: _Fetch, link: Link, now_ms: int) -> None:
        self._host.charge(link, Offence.BAD_BLOB)
        # The charge may have ended the link, and with it have asked the next peer already.
        if fetch.link == link.number and self._fetches.get(fetch.digest) is fetch:
            self._next_peer(fetch, now_ms)


def _fits(fetch: _Fetch, message: BlobChunk) -> bool:
    if message.size > BLOB_BYTES_MAX or fetch.size not in (None, message.size):
        return False
    end = message.offset + len(message.data)
    return end <= message.size and (len(message.data) > 0 or message.size == 0)


def _code(number: int) -> Code:
    try:
        return Code(number)
    except ValueError:
        return Code.NOT_FOUND

"""The journal of orphans: stored blobs that no record named when the keeper last looked, and since when.

Header, 12 bytes, then entries of 44::

    0 magic 8 | 8 version 2 | 10 zero 2
    0 digest 32 | 32 since ms 8 | 40 checksum 4

An entry with time 0 takes back the entry of its digest. The journal is written whole after each look and appended to
in between. Losing it costs time alone: every blob in it then counts as seen for the first time again.
"""

import struct
from collections.abc import Collection, Mapping
from pathlib import Path
from zlib import crc32

from fastledger.storage.files import OsFiles
from fastledger.version import ORPHANS_FORMAT_VERSION

ORPHANS_MAGIC = b"FLORPHv\0"
_HEADER = struct.Struct(">8sH2x")
_ENTRY = struct.Struct(">32sQI")


def _encode(digest: bytes, since_ms: int) -> bytes:
    body = digest + since_ms.to_bytes(8, "big")
    return body + crc32(body).to_bytes(4, "big")


class OrphanJournal:
    """Maps the digest of a blob to the time (UTC ms) since which it has no owner. The caller serialises calls."""

    def __init__(self, path: Path, files: OsFiles | None = None) -> None:
        """Reads the journal up to the first damaged entry; one of another version counts as empty."""
        self._path = path
        self._files = files or OsFiles()
        self._end = 0
        self.since_ms: dict[bytes, int] = {}
        data = path.read_bytes() if path.exists() else b""
        if data[: _HEADER.size] != _HEADER.pack(ORPHANS_MAGIC, ORPHANS_FORMAT_VERSION):
            return
        self._end = _HEADER.size
        while self._end + _ENTRY.size <= len(data):
            entry = data[self._end : self._end + _ENTRY.size]
            digest, since_ms, checksum = _ENTRY.unpack(entry)
            if crc32(entry[:-4]) != checksum:
                break
            if since_ms:
                self.since_ms[digest] = since_ms
            else:
                self.since_ms.pop(digest, None)
            self._end += _ENTRY.size

    def remove(self, digests: Collection[bytes]) -> None:
        """Takes digests off the journal, durably; those that are not in it are passed over."""
        known = [digest for digest in digests if digest in self.since_ms]
        if not known:
            return
        file = self._files.open(self._path, writable=True)
        try:
            data = b"".join(_encode(digest, 0) for digest in known)
            self._files.write(file, [data], self._end)
            self._files.fdatasync(file)
        finally:
            self._files.close(file)
        self._end += len(data)
        for digest in known:
            del self.since_ms[digest]

    def replace(self, since_ms: Mapping[bytes, int]) -> None:
        """Writes the journal anew; after a crash there is the old one or the new one."""
        entries = b"".join(_encode(digest, since) for digest, since in since_ms.items())
        data = _HEADER.pack(ORPHANS_MAGIC, ORPHANS_FORMAT_VERSION) + entries
        self._files.create_whole(self._path, 0, data)
        self.since_ms = dict(since_ms)
        self._end = len(data)

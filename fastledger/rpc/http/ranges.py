"""Byte ranges of a representation whose bytes never change (RFC 9110 §14), for downloads that are resumed."""

import re
from typing import NamedTuple

_RANGE = re.compile(r"bytes=[ \t]*(\d{0,19})-(\d{0,19})[ \t]*", re.ASCII | re.IGNORECASE)


class ByteRange(NamedTuple):
    """The bytes [start, end) of a representation of ``size`` bytes."""

    start: int
    end: int
    size: int

    @property
    def content_range(self) -> str:
        """The value of Content-Range in a 206 answer."""
        return f"bytes {self.start}-{self.end - 1}/{self.size}"


def parse_range(header: str | None, if_range: str | None, *, size: int, etag: str) -> ByteRange | None:
    """Returns the one range that is asked for; None where the whole is to be sent.

    The whole is sent where there is no header, where it is malformed or in other units or of several ranges (a
    server may ignore those), or where its If-Range names other bytes. Raises ``ValueError`` where no byte is in
    range (416).
    """
    if header is None or (if_range is not None and if_range.strip() != etag):
        return None
    match = _RANGE.fullmatch(header.strip())
    if match is None or not (match[1] or match[2]):
        return None
    if not match[1]:
        suffix = int(match[2])
        start, end = max(0, size - suffix), size
    else:
        start = int(match[1])
        end = min(size, int(match[2]) + 1) if match[2] else size
        if match[2] and int(match[2]) < start:
            return None
    if start >= end:
        raise ValueError("no byte is in range")
    return ByteRange(start, end, size)

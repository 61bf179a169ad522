"""Long base64 values lifted out of a JSON text, so that validating a large resource costs little beside its text.

An attachment of a gigabyte is one string. Decoders would copy it several times to no end: all that is asked of it is
that it can be decoded, how large the content is, and its SHA-1. So it is looked at piece by piece where it lies, and a
short base64 value stands for it in the text that is decoded.
"""

import base64
import binascii
import hashlib
import re
import secrets
from typing import NamedTuple

# Below so many bytes a text is decoded as it is.
LIFT_TEXT_BYTES = 4 * 1024 * 1024
_long_value = re.compile(rb'"(?P<value>[A-Za-z0-9+/]{1048576,}+={0,2})"').finditer
_PIECE_BYTES = 4 * 1024 * 1024
_PLACEHOLDER_BYTES = 24


class Content(NamedTuple):
    """What a lifted value decodes to: its size in bytes and its SHA-1."""

    size: int
    sha1: bytes


def lift(text: bytes) -> tuple[bytes, dict[str, Content]]:
    """The text with every long base64 value replaced, and what each of these was, by what stands in its place.

    Nobody can know beforehand what will stand there. A value that cannot be decoded stays as it is.
    """
    if len(text) < LIFT_TEXT_BYTES:
        return text, {}
    lifted: dict[str, Content] = {}
    parts: list[bytes] = []
    done = 0
    for match in _long_value(text):
        start, end = match.span("value")
        content = _content(memoryview(text)[start:end])
        if content is not None:
            placeholder = base64.b64encode(secrets.token_bytes(_PLACEHOLDER_BYTES))
            lifted[placeholder.decode()] = content
            parts += (text[done:start], placeholder)
            done = end
    parts.append(text[done:])
    return (b"".join(parts), lifted) if lifted else (text, {})


def _content(value: memoryview) -> Content | None:
    if len(value) % 4:
        return None
    digest = hashlib.sha1(usedforsecurity=False)
    size = 0
    for start in range(0, len(value), _PIECE_BYTES):
        try:
            piece = binascii.a2b_base64(value[start : start + _PIECE_BYTES], strict_mode=True)
        except binascii.Error:
            return None
        digest.update(piece)
        size += len(piece)
    return Content(size, digest.digest())

"""Primitive values of FHIR R4 that the shape check lets pass: strings, dates, base64, attachments (SPEC-FHIR-16).

Source: FHIR R4, datatypes.html, section 2.24.0.1, and the regular expressions there. Each check is asked only where
the text could hold what it looks for.
"""

import binascii
import hashlib
import re
from collections.abc import Callable, Mapping
from typing import Any

from fastledger.gateway.lifting import Content

Node = dict[str, Any]
Add = Callable[..., None]

STRING_CHARS_MAX = 1024 * 1024
_control = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f]").search
_zone = re.compile(r"T.*[+-]14:(?!00\Z)", re.DOTALL).search
# R4's own expression, told not to go back over what it has matched.
_base64_form = re.compile(r"(?:\s*+[0-9a-zA-Z+/=]{4})++\s*+", re.ASCII).fullmatch
_BASE64_KEYS = frozenset(
    (
        "carrierAIDC",
        "valueBase64Binary",
        "fixedBase64Binary",
        "patternBase64Binary",
        "defaultValueBase64Binary",
    )
)
_ESCAPES = (b"\\u00", b"\\b", b"\\f")
_MARKS = (b"Base64Binary", b"carrierAIDC", b'"query"')


def may_hold_controls(raw: bytes) -> bool:
    """Whether a JSON text may hold a string with a control character, or a string that is too long."""
    if len(raw) > STRING_CHARS_MAX:
        return True
    return b"\\" in raw and (_ESCAPES[0] in raw or _ESCAPES[1] in raw or _ESCAPES[2] in raw)


def may_hold_base64(raw: bytes) -> bool:
    """Whether a JSON text may hold base64 in an element that is not called ``data``."""
    return _MARKS[0] in raw or _MARKS[1] in raw or _MARKS[2] in raw or (b"\\" in raw and b"\\u" in raw)


def check_strings(node: Node, lifted: Mapping[str, Content], add: Add) -> None:
    """Refuses control characters but tab, line feed and carriage return, and strings of over 1 Mi characters.

    What was lifted out of the text is that long.
    """
    for key, value in node.items():
        for text in value if isinstance(value, list) else (value,):
            if not isinstance(text, str):
                continue
            if _control(text):
                add(node, "holds a control character", key)
            elif (text in lifted or len(text) > STRING_CHARS_MAX) and not (
                key == "div" or _is_base64(node, key)
            ):
                add(node, f"has over {STRING_CHARS_MAX} characters", key)


def is_impossible_date(text: str) -> bool:
    """Whether a date, dateTime or instant is of the year 0, or in a time zone beyond 14 hours."""
    return text.startswith("0000") or _zone(text) is not None


def _is_base64(node: Node, key: str) -> bool:
    if key == "data":
        # SampledData has its samples in text under the same key.
        return "origin" not in node
    return key in _BASE64_KEYS


def check_base64(node: Node, resource_type: str, add: Add) -> None:
    """Refuses base64 that cannot be decoded, in elements that are not called ``data``."""
    for key in _BASE64_KEYS.intersection(node):
        if isinstance(node[key], str) and decoded(node[key]) is None:
            add(node, "is not base64", key)
    if (
        resource_type == "AuditEvent"
        and isinstance(node.get("query"), str)
        and decoded(node["query"]) is None
    ):
        add(node, "is not base64", "query")


def check_data(node: Node, lifted: Mapping[str, Content], add: Add) -> None:
    """Refuses data that cannot be decoded, and a size or hash beside it that is not that of the data.

    ``lifted`` says what the values are that were lifted out of the text.
    """
    data = node.get("data")
    if not isinstance(data, str) or "origin" in node:
        return
    content = lifted.get(data) or _content(data)
    if content is None:
        add(node, "is not base64", "data")
        return
    size, digest = node.get("size"), node.get("hash")
    if isinstance(size, int) and size != content.size:
        add(node, "is not the size of the data", "size")
    if isinstance(digest, str) and decoded(digest) != content.sha1:
        add(node, "is not the SHA-1 of the data", "hash")


def _content(text: str) -> Content | None:
    content = decoded(text)
    if content is None:
        return None
    # SHA-1 is what R4 says; it tells damage, and nobody relies on it for more.
    return Content(len(content), hashlib.sha1(content, usedforsecurity=False).digest())


def decoded(text: str) -> bytes | None:
    """The bytes of a base64Binary, in which blanks may stand between groups of four; None for what is none."""
    if _base64_form(text) is None:
        return None
    try:
        return binascii.a2b_base64("".join(text.split()), strict_mode=True)
    except (binascii.Error, ValueError):
        return None

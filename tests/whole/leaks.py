"""Looks for what may never be seen: identifying strings in files, as they are or as careless code would hide them.

A ledger is mostly ciphertext. What could be text in it is cut out once, in runs, and the strings are sought in these
few bytes; only strings beyond ASCII are sought in everything.
"""

import base64
import json
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fastledger.gateway.sources import SourceBundle

PART_CHARS_MIN = 4
# In ciphertext any 4 bytes occur by chance, in a few megabytes; so do any 5 and 6 in some hundreds.
PLAIN_BYTES_MIN = 5
BASE64_CHARS_MIN = 7

_ZEROS = re.compile(rb"\0{64,}")
_TEXT = re.compile(rb"[ -~]{%d,}" % PLAIN_BYTES_MIN)
_WIDE_TEXT = re.compile(rb"[ -~](?:\0[ -~]){%d,}" % (PART_CHARS_MIN - 1))


# What identifies a patient.


def strings_of(node: Any) -> Iterator[str]:
    """Every text below a node."""
    if isinstance(node, dict):
        node = list(node.values())
    if isinstance(node, list):
        for item in node:
            yield from strings_of(item)
    elif isinstance(node, str):
        yield node


def identifying(patient: dict[str, Any]) -> set[str]:
    """Name parts, address lines, cities, telephone numbers, identifiers, birth date and id of a Patient resource."""
    found = {patient.get("birthDate", ""), patient.get("id", "")}
    for name in patient.get("name", []):
        found.update([name.get("family", ""), *name.get("given", [])])
    for address in patient.get("address", []):
        found.update([*address.get("line", []), address.get("city", "")])
    for field in ("telecom", "identifier"):
        found.update(item.get("value", "") for item in patient.get(field, []))
    # A mother's maiden name among them.
    found.update(item["valueString"] for item in patient.get("extension", []) if "valueString" in item)
    return {text for text in found if len(text) >= PART_CHARS_MIN}


def identifying_strings(bundles: Iterable[Any]) -> set[str]:
    """Those of every Patient in the bundles."""
    found: set[str] = set()
    for bundle in bundles:
        for resource in bundle.resources if isinstance(bundle, SourceBundle) else ():
            if resource.resource_type == "Patient":
                found |= identifying(json.loads(resource.raw))
    return found


# What it would look like.


@dataclass(frozen=True)
class Forms:
    """The byte strings that would betray a text: in runs of text, in runs of 16-bit text, anywhere."""

    text: frozenset[bytes]
    wide: frozenset[bytes]
    anywhere: frozenset[bytes]


def forms_of(secret: str, plain_bytes_min: int = PLAIN_BYTES_MIN) -> Forms:
    """A secret as it is, quoted, in other cases, without punctuation; in hexadecimal, base64 at any offset, UTF-16."""
    spellings = {secret, secret.lower(), secret.upper()}
    if any(character.isdigit() for character in secret):
        spellings.add(re.sub(r"[^0-9A-Za-z]", "", secret))
    plain = {spelling.encode() for spelling in spellings}
    long_enough = {data for data in plain if len(data) >= plain_bytes_min}
    quoted = {b'"%b"' % data for data in plain - long_enough if len(data) + 2 >= plain_bytes_min}
    coded = {data.hex().encode() for data in plain} | {data.hex().upper().encode() for data in plain}
    coded |= {core for data in plain | quoted for core in base64_cores(data)}
    wide = {spelling.encode("utf-16-le")[:-1] for spelling in spellings if spelling.isascii()}
    foreign = {
        spelling.encode(coding)
        for spelling in spellings
        if not spelling.isascii()
        for coding in ("utf-16-le", "utf-16-be")
    }
    direct = long_enough | quoted
    ascii_only = {data for data in direct if data.isascii()}
    return Forms(frozenset(ascii_only | coded), frozenset(wide), frozenset(foreign | (direct - ascii_only)))


def base64_cores(data: bytes) -> Iterator[bytes]:
    """What stands in base64 wherever ``data`` begins in the coded bytes, without the characters it shares."""
    for offset in range(3):
        for altchars in (b"+/", b"-_"):
            coded = base64.b64encode(bytes(offset) + data, altchars).rstrip(b"=")
            first = (0, 2, 3)[offset]
            last = len(coded) - (1 if (offset + len(data)) % 3 else 0)
            if last - first >= BASE64_CHARS_MIN:
                yield coded[first:last]


# Where it would stand.


@dataclass(frozen=True)
class Haystack:
    """A file's name and content, cut down to what can be text."""

    name: str
    text: bytes
    wide: bytes
    whole: bytes

    @classmethod
    def of(cls, name: str, content: bytes) -> "Haystack":
        whole = name.encode() + b"\n" + _ZEROS.sub(bytes(64), content)
        return cls(name, b"\n".join(_TEXT.findall(whole)), b"\n".join(_WIDE_TEXT.findall(whole)), whole)

    def holds(self, forms: Forms) -> bool:
        return (
            any(form in self.text for form in forms.text)
            or any(form in self.wide for form in forms.wide)
            or any(form in self.whole for form in forms.anywhere)
        )


def leaks(
    folder: Path, secrets: Iterable[str], *, plain_bytes_min: int = PLAIN_BYTES_MIN
) -> list[tuple[str, str]]:
    """(file, string) for every secret that the name or content of a file under ``folder`` holds in any form."""
    needles = {secret: forms_of(secret, plain_bytes_min) for secret in secrets}
    found = []
    for path in sorted(folder.rglob("*")):
        content = path.read_bytes() if path.is_file() else b""
        haystack = Haystack.of(str(path.relative_to(folder)), content)
        found += [(haystack.name, secret) for secret, forms in needles.items() if haystack.holds(forms)]
    return found

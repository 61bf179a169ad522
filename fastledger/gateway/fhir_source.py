"""The identity of a source of FHIR: the base URL by which everything that it names is scoped (SPEC-FHIR-8).

``Patient/7`` of one server is somebody else than ``Patient/7`` of another. The operator, who knows where files come
from, names the source; what the files say of themselves never widens its scope. What a source may do beyond naming
its own resources is listed by the operator too: practitioners in whose name its records are signed, and systems of
identifiers by which it may refer to its own patients.
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

import msgspec

from fastledger.errors import Code, InputError
from fastledger.limits import SOURCE_BASE_CHARS_MAX, SOURCE_LISTED_MAX

Identifier = tuple[str, str]

_SEGMENT = r"[A-Za-z0-9_~:%$\-.]+"
_base_form = re.compile(
    rf"(?P<scheme>https?)://(?P<host>[A-Za-z0-9_\-.]+)(?::(?P<port>\d{{1,5}}))?(?P<path>(?:/{_SEGMENT})*)/?",
    re.IGNORECASE | re.ASCII,
).fullmatch
_urn_form = re.compile(r"urn:[a-z0-9][a-z0-9\-]{0,31}:[A-Za-z0-9_~$\-.:%/]*[A-Za-z0-9]").fullmatch
_DEFAULT_PORTS = {"http": "80", "https": "443"}


def normal_base(text: str) -> str | None:
    """Returns a base URL in its one normal form, or None where it is none.

    Scheme and host are in lower case, the scheme's own port and a slash at the end are left out. A path with ``.`` or
    ``..`` among its segments has no form of its own: nobody can say which server's name space it is.
    """
    if _urn_form(text):
        return text
    match = _base_form(text)
    if match is None:
        return None
    scheme, path = match["scheme"].lower(), match["path"]
    if any(segment in (".", "..") for segment in path.split("/")):
        return None
    port = match["port"]
    shown = "" if port is None or port == _DEFAULT_PORTS[scheme] else ":" + port
    return f"{scheme}://{match['host'].lower()}{shown}{path}"


@dataclass(frozen=True, slots=True)
class Source:
    """One source, as the operator names it.

    ``base`` is its base URL (``https://clinic.example/fhir``), or a ``urn:`` for a system that has none.
    ``practitioners`` are (system, value) of those in whose name its records may be signed; ``identifier_systems`` the
    systems whose identifiers it may refer to its own patients by. Both are empty unless the operator lists them.
    """

    base: str
    practitioners: frozenset[Identifier] = field(default=frozenset(), repr=False)
    identifier_systems: frozenset[str] = field(default=frozenset(), repr=False)

    @classmethod
    def named(
        cls,
        base: str,
        *,
        practitioners: Iterable[Identifier] = (),
        identifier_systems: Iterable[str] = (),
    ) -> Self:
        """A source by its base URL; raises ``InputError`` for what is no base URL, or lists that are too long."""
        normal = normal_base(base) if len(base) <= SOURCE_BASE_CHARS_MAX else None
        if normal is None:
            raise InputError(
                "a source is named by its base URL (https://clinic.example/fhir) or a urn:, without query or fragment",
                code=Code.MALFORMED,
            )
        listed = frozenset(practitioners), frozenset(identifier_systems)
        if max(map(len, listed)) > SOURCE_LISTED_MAX:
            raise InputError(f"a source lists at most {SOURCE_LISTED_MAX} of a kind", code=Code.OVERSIZED)
        return cls(normal, *listed)

    def scoped(self, url: str) -> str:
        """The name of what this source calls ``url``: no other source can give the same name to anything.

        What lies under the source's own base goes by its URL; what the source says of another server carries the
        source's name beside it, so that it is not what that server itself says.
        """
        return url if url.startswith(self.base + "/") and _is_direct(url, self.base) else f"{url} {self.base}"


def _is_direct(url: str, base: str) -> bool:
    """Whether ``url`` is ``base/Type/id``: one source's base may be the beginning of another's."""
    return url.count("/", len(base) + 1) == 1


class _Listed(msgspec.Struct, forbid_unknown_fields=True):
    """One source of a configuration file; practitioners are written ``system|value``."""

    base: str
    practitioners: list[str] = []
    identifier_systems: list[str] = []


class _Configuration(msgspec.Struct, forbid_unknown_fields=True):
    source: list[_Listed] = []


def read_sources(path: Path) -> Mapping[str, Source]:
    """The sources of a TOML file, by their base URLs.

    ::

        [[source]]
        base = "https://clinic.example/fhir"
        practitioners = ["http://hl7.org/fhir/sid/us-npi|9999999999"]
        identifier_systems = ["https://clinic.example/mrn"]

    Raises ``InputError`` where the file cannot be read, is something else, or names a source twice.
    """
    try:
        text = path.read_bytes()
    except OSError as error:
        raise InputError(
            f"the list of sources cannot be read (errno {error.errno})", code=Code.NOT_FOUND
        ) from None
    try:
        listed: Any = msgspec.toml.decode(text, type=_Configuration)
    except (msgspec.DecodeError, UnicodeDecodeError):
        raise InputError(
            "the list of sources is TOML of [[source]] tables with base, practitioners, identifier_systems",
            code=Code.MALFORMED,
        ) from None
    sources: dict[str, Source] = {}
    for item in listed.source:
        source = Source.named(
            item.base,
            practitioners=[split_identifier(text) for text in item.practitioners],
            identifier_systems=item.identifier_systems,
        )
        if source.base in sources:
            raise InputError("the list of sources names one of them twice", code=Code.MALFORMED)
        sources[source.base] = source
    return sources


def split_identifier(text: str) -> Identifier:
    """The parts of ``system|value``, neither of them empty; raises ``InputError`` for anything else."""
    system, bar, value = text.partition("|")
    if not (system and bar and value):
        raise InputError("an identifier is written system|value", code=Code.MALFORMED)
    return system, value

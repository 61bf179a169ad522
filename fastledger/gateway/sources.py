"""Sources of FHIR as hospitals keep it: bundles, resources, NDJSON exports, directories, tar files.

Everything is read lazily, one document or one group of lines at a time, in a fixed order. A resource keeps the exact
bytes of its source. What cannot be read becomes a ``SourceError`` in the stream and the reading goes on.

Compression (xz, gzip) is told by the first bytes, content by the name: ``.json``, ``.ndjson``, ``.jsonl``, ``.tar``,
each perhaps followed by ``.xz`` or ``.gz``; ``.tgz`` and ``.txz``. Nothing is ever unpacked to disk. A Bundle within
a Bundle, a Parameters and an array are read as their entries.

File names hold patients' names in common exports, so ``origin`` is an ordinal and the only label fit for logs and
ledgers; ``path`` is for the person at the keyboard.
"""

import tarfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

import msgspec

from fastledger.errors import FhirError
from fastledger.gateway.fhir_references import bundle_digest
from fastledger.gateway.inflate import CHUNK_BYTES, DAMAGE, InflationError, ReadingProgress, plain
from fastledger.gateway.json_bounds import has_more_items, has_more_values
from fastledger.gateway.source_faults import Fault, SourceError
from fastledger.gateway.source_files import FoundFile, Passed, find_files, is_companion, is_data, kind_of
from fastledger.limits import (
    BUNDLE_BYTES_MAX,
    BUNDLE_ENTRIES_MAX,
    BUNDLE_NESTING_MAX,
    BUNDLE_VALUES_MAX,
    RESOURCE_BYTES_MAX,
)

__all__ = [
    "Passed",
    "ReadingProgress",
    "SourceBundle",
    "SourceError",
    "SourceRequest",
    "SourceResource",
    "read_bundles",
    "read_resources",
]

# Lines of an NDJSON file that make one group.
NDJSON_GROUP_LINES = 500
NDJSON_GROUP_BYTES = 32 * 1024 * 1024
TAR_HEADER_BYTES_MAX = 64 * 1024
_BOM = b"\xef\xbb\xbf"
_PIECE_BYTES = 16 * 1024 * 1024
_WITH_RESOURCES = ("Bundle", "Parameters")
# What a parameter has that holds a resource and nothing else.
_OF_RESOURCES = frozenset(("name", "resource", "part"))


@dataclass(frozen=True, slots=True)
class SourceResource:
    """One resource as it stands in its source, not yet validated.

    ``raw`` are the exact bytes. ``origin`` names the place by ordinals and may be logged; ``path`` must not.
    Its ``repr`` shows ordinals only. Indexes count from 0; ``resource_type`` is empty where none is named.
    ``method`` and ``request_url`` are of the entry's request, empty where it has none.
    """

    raw: bytes = field(repr=False)
    origin: str
    bundle_index: int
    entry_index: int
    resource_type: str = ""
    full_url: str | None = field(default=None, repr=False)
    path: Path | None = field(default=None, repr=False)
    resource_id: str | None = field(default=None, repr=False)
    method: str = ""
    request_url: str = field(default="", repr=False)


@dataclass(frozen=True, slots=True)
class SourceRequest:
    """An entry that brings no resource but asks for something: to delete, to read."""

    origin: str
    method: str
    url: str = field(default="", repr=False)


@dataclass(frozen=True, slots=True)
class SourceBundle:
    """Resources that were found together: a bundle, a single resource, an array, or a run of NDJSON lines.

    ``kind`` is the Bundle's type, empty where it is no Bundle. ``problems`` are the entries that could not be read,
    ``requests`` those without a resource that ask for something. Where exactly one Patient is among the resources,
    ``patient_id`` and ``patient_url`` are that Patient's id and full URL: to tell histories apart, never to say whose
    a resource is.
    """

    resources: tuple[SourceResource, ...]
    origin: str
    bundle_index: int
    patient_id: str | None = field(default=None, repr=False)
    patient_url: str | None = field(default=None, repr=False)
    problems: tuple[SourceError, ...] = ()
    path: Path | None = field(default=None, repr=False)
    kind: str = ""
    requests: tuple[SourceRequest, ...] = ()

    def digest(self) -> bytes:
        """SHA-256 over the full URLs and texts of the resources: the same for the same bundle read again."""
        return bundle_digest((item.full_url, item.raw) for item in self.resources)


def read_resources(
    paths: Iterable[str | Path], progress: ReadingProgress | None = None
) -> Iterator[SourceResource | FhirError]:
    """Yields the resources of the sources one by one, and each ``FhirError`` of :func:`read_bundles`."""
    for bundle in read_bundles(paths, progress):
        if isinstance(bundle, FhirError):
            yield bundle
        else:
            yield from bundle.resources
            yield from bundle.problems


def read_bundles(
    paths: Iterable[str | Path], progress: ReadingProgress | None = None, passed: Passed | None = None
) -> Iterator[SourceBundle | SourceError]:
    """Yields every bundle of the sources in a fixed order; directories are read recursively, sorted by name.

    ``progress`` is kept up to date while reading, ``passed`` counts the files that are left out on purpose. Yields a
    ``SourceError`` for a source or tar member that cannot be read; never raises for what it reads.
    """
    passed = passed if passed is not None else Passed()
    files = find_files([Path(path) for path in paths], passed)
    progress = progress if progress is not None else ReadingProgress()
    progress.bytes_total += sum(file.size for file in files)
    reader = _Reader(progress, passed)
    for file in files:
        yield from reader.read(file)


class _Request(msgspec.Struct):
    method: str = ""
    url: str = ""


class _Entry(msgspec.Struct):
    """An entry of a bundle; its resource is kept as text."""

    resource: msgspec.Raw | msgspec.UnsetType = msgspec.UNSET
    fullUrl: str | None = None
    request: _Request | None = None


class _Outline(msgspec.Struct):
    """The parts of a document that tell whether it is a bundle, and of what."""

    resourceType: str = ""
    type: msgspec.Raw = msgspec.Raw(b'""')
    entry: list[msgspec.Raw] = []
    parameter: msgspec.Raw = msgspec.Raw(b"[]")


class _Header(msgspec.Struct):
    resourceType: str = ""
    id: msgspec.Raw = msgspec.Raw(b"null")


_decode_outline = msgspec.json.Decoder(_Outline).decode
_decode_entry = msgspec.json.Decoder(_Entry).decode
_decode_header = msgspec.json.Decoder(_Header).decode
_decode_parameters = msgspec.json.Decoder(list[dict[str, msgspec.Raw]]).decode
_decode_items = msgspec.json.Decoder(list[msgspec.Raw]).decode
_UNDECODABLE = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)


class _Gathering:
    """What is found in one document or group of lines, on its way to becoming a ``SourceBundle``."""

    def __init__(self, origin: str, path: Path, kind: str = "") -> None:
        self.origin, self.path, self.kind = origin, path, kind
        self.resources: list[SourceResource] = []
        self.problems: list[SourceError] = []
        self.requests: list[SourceRequest] = []
        self.held_bytes = 0

    @property
    def count(self) -> int:
        return len(self.resources) + len(self.problems) + len(self.requests)

    def bundle(self, index: int) -> SourceBundle:
        patients = [item for item in self.resources if item.resource_type == "Patient"]
        patient = patients[0] if len(patients) == 1 else None
        return SourceBundle(
            # A history lists the newest version first.
            tuple(reversed(self.resources) if self.kind == "history" else self.resources),
            self.origin,
            index,
            patient.resource_id if patient else None,
            patient.full_url if patient else None,
            tuple(self.problems),
            self.path,
            self.kind,
            tuple(self.requests),
        )


class _Reader:
    """Reads files one after another and numbers what it finds."""

    def __init__(self, progress: ReadingProgress, passed: Passed) -> None:
        self._progress = progress
        self._passed = passed
        self._bundle_count = 0
        self._source_count = 0

    def read(self, found: FoundFile) -> Iterator[SourceBundle | SourceError]:
        """Yields everything in one file."""
        self._source_count += 1
        origin = f"source {self._source_count}"
        kind = kind_of(found.path.name)
        before = self._progress.bytes_read
        try:
            if found.fault is not None:
                yield SourceError(origin, found.fault)
            elif not kind:
                yield SourceError(origin, Fault.NOT_FHIR)
            else:
                with found.opened(origin) as file, plain(file, self._progress) as stream:
                    yield from self._read_stream(stream, kind, origin, found.path)
        except SourceError as error:
            yield error
        except OSError as error:
            yield SourceError(origin, Fault.UNREADABLE, f"cannot be read (errno {error.errno})")
        except (*DAMAGE, tarfile.TarError) as error:
            yield SourceError(origin, _damage(error))
        # What was skipped at the end of a file counts as read.
        self._progress.bytes_read = before + max(found.size, self._progress.bytes_read - before)

    def _read_stream(
        self, stream: IO[bytes], kind: str, origin: str, path: Path
    ) -> Iterator[SourceBundle | SourceError]:
        if kind == "tar":
            yield from self._read_tar(stream, origin, path)
        elif kind == "ndjson":
            yield from self._read_ndjson(stream, origin, path)
        else:
            text = _document(stream)
            if len(text) > BUNDLE_BYTES_MAX:
                yield SourceError(origin, Fault.OVERSIZED, f"has more than {BUNDLE_BYTES_MAX} bytes")
            else:
                yield from self._read_document(text, origin, path)

    def _read_tar(self, stream: IO[bytes], origin: str, path: Path) -> Iterator[SourceBundle | SourceError]:
        """Yields what the FHIR files among a tar's members hold; their names serve only to tell the kind."""
        with tarfile.open(fileobj=stream, mode="r|", tarinfo=_BoundedHeader) as archive:
            for index, member in enumerate(archive, start=1):
                # A stream keeps every header it has passed; a long archive must not.
                archive.members = []  # type: ignore[attr-defined]
                place = f"{origin}, member {index}"
                fault = self._member_fault(member)
                if fault is not None:
                    yield SourceError(place, fault)
                content = archive.extractfile(member) if fault is None and member.isfile() else None
                if content is None or not is_data(member.name) or is_companion(member.name):
                    continue
                try:
                    with plain(content) as inner:
                        yield from self._read_stream(inner, kind_of(member.name), place, path)
                except DAMAGE as error:
                    yield SourceError(place, _damage(error))

    def _member_fault(self, member: tarfile.TarInfo) -> Fault | None:
        """What keeps a member that holds FHIR by its name from being read; counts what is passed over."""
        if member.isdir():
            return None
        if is_companion(member.name):
            self._passed.companions += 1
        elif not is_data(member.name):
            self._passed.other_files += 1
        elif not member.isfile():
            return Fault.ARCHIVED_LINK
        elif kind_of(member.name) == "tar":
            return Fault.NESTED_ARCHIVE
        return None

    def _read_ndjson(
        self, stream: IO[bytes], origin: str, path: Path
    ) -> Iterator[SourceBundle | SourceError]:
        """Yields groups of at most ``NDJSON_GROUP_LINES`` lines; an oversized line is reported and passed over."""
        group = _Gathering(origin, path)
        for number, line in enumerate(_lines(stream), start=1):
            place = f"{origin}, line {number}"
            if line is None:
                group.problems.append(
                    SourceError(place, Fault.OVERSIZED, f"has more than {RESOURCE_BYTES_MAX} bytes")
                )
            elif line:
                yield from self._take(line, group, place, len(group.resources), 1)
            if group.count >= NDJSON_GROUP_LINES or group.held_bytes >= NDJSON_GROUP_BYTES:
                yield self._bundle(group)
                group = _Gathering(origin, path)
        if group.count:
            yield self._bundle(group)

    def _read_document(
        self, text: bytes, origin: str, path: Path, level: int = 0
    ) -> Iterator[SourceBundle | SourceError]:
        """Yields a bundle's entries and those of the bundles within it, or the single resource that the text is."""
        plain_text = text.removeprefix(_BOM)
        fault = _document_fault(plain_text)
        if fault is None and level > BUNDLE_NESTING_MAX:
            fault = Fault.NESTED_TOO_DEEP
        if fault is not None:
            yield SourceError(origin, fault)
            return
        try:
            if plain_text.lstrip()[:1] == b"[":
                yield from self._read_items(
                    _decode_items(plain_text), "item", _Gathering(origin, path), level
                )
                return
            outline = _decode_outline(plain_text)
        except _UNDECODABLE:
            yield SourceError(origin, Fault.NOT_JSON)
            return
        if outline.resourceType == "Parameters":
            yield from self._read_parameters(text, outline.parameter, origin, path, level)
        elif outline.resourceType != "Bundle":
            group = _Gathering(origin, path)
            yield from self._take(text, group, origin, 0, level)
            yield self._bundle(group)
        else:
            group = _Gathering(origin, path, _text_of(outline.type))
            yield from self._read_items(outline.entry, "entry", group, level)

    def _read_items(
        self, items: list[msgspec.Raw], word: str, group: _Gathering, level: int
    ) -> Iterator[SourceBundle | SourceError]:
        """Yields a bundle's or an array's items, first those that are bundles themselves."""
        if len(items) > BUNDLE_ENTRIES_MAX:
            detail = f"has {len(items)} entries, at most {BUNDLE_ENTRIES_MAX}"
            yield SourceError(group.origin, Fault.TOO_MANY_ENTRIES, detail)
            return
        for index, raw in enumerate(items):
            place = f"{group.origin}, {word} {index + 1}"
            if word == "entry":
                yield from self._read_entry(raw, group, place, index, level)
            else:
                yield from self._take(bytes(raw), group, place, index, level)
        yield self._bundle(group)

    def _read_entry(
        self, raw: msgspec.Raw, group: _Gathering, place: str, index: int, level: int
    ) -> Iterator[SourceBundle | SourceError]:
        try:
            entry = _decode_entry(raw)
        except _UNDECODABLE:
            group.problems.append(SourceError(place, Fault.NOT_AN_ENTRY))
            return
        request = entry.request or _Request()
        if isinstance(entry.resource, msgspec.UnsetType):
            if request.method in ("DELETE", "GET", "HEAD"):
                group.requests.append(SourceRequest(place, request.method, request.url))
            else:
                group.problems.append(SourceError(place, Fault.NO_RESOURCE))
        elif request.method == "PATCH":
            group.problems.append(SourceError(place, Fault.PATCH, element="request.method"))
        else:
            text = bytes(entry.resource)
            yield from self._take(text, group, place, index, level, entry.fullUrl, request)

    def _take(
        self,
        raw: bytes,
        group: _Gathering,
        place: str,
        index: int,
        level: int,
        full_url: str | None = None,
        request: _Request | None = None,
    ) -> Iterator[SourceBundle | SourceError]:
        """Puts a resource into the group; yields what it holds instead where it is a Bundle or a Parameters."""
        if len(raw) > RESOURCE_BYTES_MAX:
            detail = f"has {len(raw)} bytes, at most {RESOURCE_BYTES_MAX}"
            group.problems.append(SourceError(place, Fault.OVERSIZED, detail))
            return
        # What kind of resource it is helps grouping; whether it is valid is for the validation to say.
        try:
            header = _decode_header(raw.removeprefix(_BOM))
        except _UNDECODABLE:
            group.problems.append(SourceError(place, Fault.NOT_A_RESOURCE))
            return
        if header.resourceType in _WITH_RESOURCES and (place != group.origin or level == 0):
            yield from self._read_document(raw, place, group.path, level + 1)
            return
        asked = request or _Request()
        group.held_bytes += len(raw)
        group.resources.append(
            SourceResource(
                raw,
                place,
                self._bundle_count,
                index,
                header.resourceType,
                full_url,
                group.path,
                _text_of(header.id) or None,
                asked.method,
                asked.url,
            )
        )

    def _read_parameters(
        self, text: bytes, parameters: msgspec.Raw, origin: str, path: Path, level: int
    ) -> Iterator[SourceBundle | SourceError]:
        """Yields the resources of a Parameters; where it holds anything else, it stays as a whole as well."""
        group = _Gathering(origin, path, "parameters")
        has_values = False
        pending = [parameters]
        count = 0
        while pending:
            try:
                found = _decode_parameters(pending.pop())
            except _UNDECODABLE:
                yield SourceError(origin, Fault.NOT_A_RESOURCE)
                return
            for parameter in found:
                has_values = has_values or not _OF_RESOURCES.issuperset(parameter)
                if "part" in parameter:
                    pending.append(parameter["part"])
                if "resource" in parameter:
                    count += 1
                    place = f"{origin}, parameter {count}"
                    yield from self._take(bytes(parameter["resource"]), group, place, count - 1, level)
        if has_values:
            group.resources.append(
                SourceResource(text, origin, self._bundle_count, count, "Parameters", None, path)
            )
        yield self._bundle(group)

    def _bundle(self, group: _Gathering) -> SourceBundle:
        index = self._bundle_count
        self._bundle_count += 1
        return group.bundle(index)


def _document(stream: IO[bytes]) -> bytes:
    """A document, or its first bytes where it has too many; read piece by piece, as large as it turns out to be."""
    pieces: list[bytes] = []
    size = 0
    while size <= BUNDLE_BYTES_MAX and (piece := stream.read(min(_PIECE_BYTES, BUNDLE_BYTES_MAX + 1 - size))):
        pieces.append(piece)
        size += len(piece)
    return pieces[0] if len(pieces) == 1 else b"".join(pieces)


def _damage(error: Exception) -> Fault:
    return Fault.INFLATES if isinstance(error, InflationError) else Fault.DAMAGED


def _document_fault(text: bytes) -> Fault | None:
    """What forbids decoding a document at all: more values or entries than memory is meant for."""
    if has_more_values(text, BUNDLE_VALUES_MAX):
        return Fault.TOO_MANY_VALUES
    return Fault.TOO_MANY_ENTRIES if has_more_items(text, BUNDLE_ENTRIES_MAX) else None


def _text_of(raw: msgspec.Raw) -> str:
    """A JSON string's text; empty for any other value."""
    try:
        return msgspec.json.decode(raw, type=str)
    except _UNDECODABLE:
        return ""


_EXTENDED_HEADERS = frozenset(
    (
        tarfile.XHDTYPE,
        tarfile.XGLTYPE,
        tarfile.SOLARIS_XHDTYPE,
        tarfile.GNUTYPE_LONGNAME,
        tarfile.GNUTYPE_LONGLINK,
    )
)


class _BoundedHeader(tarfile.TarInfo):
    """A tar header whose extensions (long names, PAX records) are read into memory only up to a bound."""

    def _proc_member(self, archive: tarfile.TarFile) -> tarfile.TarInfo:
        if self.type in _EXTENDED_HEADERS and self.size > TAR_HEADER_BYTES_MAX:
            raise tarfile.ReadError("extended header too large")
        member: tarfile.TarInfo = super()._proc_member(archive)  # type: ignore[misc]
        return member


def _lines(stream: IO[bytes]) -> Iterator[bytes | None]:
    """Yields the lines without their ends; None for one that is longer than a resource may be."""
    while line := stream.readline(RESOURCE_BYTES_MAX + 2):
        if line.endswith(b"\n") or len(line) < RESOURCE_BYTES_MAX + 2:
            yield line.strip()
            continue
        while line and not line.endswith(b"\n"):
            line = stream.readline(CHUNK_BYTES)
        yield None

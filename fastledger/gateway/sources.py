"""Sources of FHIR as hospitals keep it: bundles, resources, NDJSON exports, directories, tar files.

Everything is read lazily, one bundle or one group of lines at a time, in a fixed order. A resource keeps the exact
bytes of its source. What cannot be read becomes a ``FhirError`` in the stream and the reading goes on.

Compression (xz, gzip) is told by the first bytes, content by the name: ``.json``, ``.ndjson``, ``.tar``, each
perhaps followed by ``.xz`` or ``.gz``; ``.tgz`` and ``.txz``. Nothing is ever unpacked to disk.

File names hold patients' names in common exports, so ``origin`` is an ordinal and the only label fit for logs and
ledgers; ``path`` is for the person at the keyboard.
"""

import io
import lzma
import tarfile
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

import msgspec

from fastledger.errors import FhirError
from fastledger.limits import BUNDLE_BYTES_MAX, BUNDLE_ENTRIES_MAX, RESOURCE_BYTES_MAX

__all__ = ["ReadingProgress", "SourceBundle", "SourceResource", "read_bundles", "read_resources"]

# Lines of an NDJSON file that make one group.
NDJSON_GROUP_LINES = 500
NDJSON_GROUP_BYTES = 32 * 1024 * 1024
# Memory an xz stream may ask for its dictionary; real exports use up to 128 MiB.
XZ_MEMORY_BYTES_MAX = 256 * 1024 * 1024
TAR_HEADER_BYTES_MAX = 64 * 1024
_CHUNK_BYTES = 256 * 1024
_BOM = b"\xef\xbb\xbf"
# The export log that Bulk Data clients leave beside the data.
_NOT_DATA = frozenset(("log.ndjson",))


@dataclass(slots=True)
class ReadingProgress:
    """The progress of a reading in bytes of the files as they lie on disk, for progress bars."""

    bytes_read: int = 0
    bytes_total: int = 0


@dataclass(frozen=True, slots=True)
class SourceResource:
    """One resource as it stands in its source, not yet validated.

    ``raw`` are the exact bytes. ``origin`` names the place by ordinals and may be logged; ``path`` must not.
    Its ``repr`` shows ordinals only. Indexes count from 0; ``resource_type`` is empty where none is named.
    """

    raw: bytes = field(repr=False)
    origin: str
    bundle_index: int
    entry_index: int
    resource_type: str = ""
    full_url: str | None = field(default=None, repr=False)
    path: Path | None = field(default=None, repr=False)


@dataclass(frozen=True, slots=True)
class SourceBundle:
    """Resources that were found together: a bundle, a single resource, or a run of NDJSON lines.

    Where exactly one Patient is among them it is one patient's history: ``patient_id`` is that Patient's id
    and ``patient_url`` its full URL in the bundle. ``problems`` are the entries that could not be read.
    """

    resources: tuple[SourceResource, ...]
    origin: str
    bundle_index: int
    patient_id: str | None = field(default=None, repr=False)
    patient_url: str | None = field(default=None, repr=False)
    problems: tuple[FhirError, ...] = ()
    path: Path | None = field(default=None, repr=False)


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
    paths: Iterable[str | Path], progress: ReadingProgress | None = None
) -> Iterator[SourceBundle | FhirError]:
    """Yields every bundle of the sources in a fixed order; directories are read recursively, sorted by name.

    ``progress`` is kept up to date while reading. Yields a ``FhirError`` for a source or tar member that cannot be
    read; never raises for what it reads.
    """
    files = [file for path in paths for file in _files(Path(path))]
    progress = progress if progress is not None else ReadingProgress()
    progress.bytes_total += sum(_size(file) for file in files)
    reader = _Reader(progress)
    for file in files:
        yield from reader.read(file)


def _files(path: Path) -> list[Path]:
    """Returns the files of a source: ``path`` itself, or those of a directory that hold FHIR by their names."""
    if not path.is_dir():
        return [path]
    found = (item for item in path.rglob("*") if item.is_file() and item.name not in _NOT_DATA)
    return sorted(item for item in found if _kind(item.name))


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return 0


def _kind(name: str) -> str:
    """Returns ``json``, ``ndjson`` or ``tar`` by the ends of a file name; empty for anything else."""
    name = name.lower()
    if name.endswith((".tgz", ".txz")):
        return "tar"
    for suffix in (".xz", ".gz"):
        name = name.removesuffix(suffix)
    for kind in ("ndjson", "json", "tar"):
        if name.endswith("." + kind):
            return kind
    return ""


class _Entry(msgspec.Struct):
    """An entry of a bundle; its resource is kept as text."""

    resource: msgspec.Raw | msgspec.UnsetType = msgspec.UNSET
    fullUrl: str | None = None


class _Outline(msgspec.Struct):
    """The parts of a document that tell whether it is a bundle, and of what."""

    resourceType: str = ""
    id: str | None = None
    entry: list[msgspec.Raw] = []


class _Header(msgspec.Struct):
    resourceType: str = ""
    id: str | None = None


_decode_outline = msgspec.json.Decoder(_Outline).decode
_decode_entry = msgspec.json.Decoder(_Entry).decode
_decode_header = msgspec.json.Decoder(_Header).decode


class _Reader:
    """Reads files one after another and numbers what it finds."""

    def __init__(self, progress: ReadingProgress) -> None:
        self._progress = progress
        self._bundle_count = 0
        self._source_count = 0

    def read(self, path: Path) -> Iterator[SourceBundle | FhirError]:
        """Yields everything in one file."""
        self._source_count += 1
        origin = f"source {self._source_count}"
        kind = _kind(path.name)
        before = self._progress.bytes_read
        try:
            if not kind:
                yield FhirError(f"{origin}: not a kind of file that holds FHIR")
                return
            with path.open("rb") as file, _plain(file, self._progress) as stream:
                yield from self._read_stream(stream, kind, origin, path)
        except OSError as error:
            yield FhirError(f"{origin}: cannot be read ({error.__class__.__name__}, errno {error.errno})")
        except (lzma.LZMAError, zlib.error, EOFError, tarfile.TarError):
            yield FhirError(f"{origin}: damaged archive or compression")
        # What was skipped at the end of a file counts as read.
        self._progress.bytes_read = before + max(_size(path), self._progress.bytes_read - before)

    def _read_stream(
        self, stream: IO[bytes], kind: str, origin: str, path: Path
    ) -> Iterator[SourceBundle | FhirError]:
        if kind == "tar":
            yield from self._read_tar(stream, origin, path)
        elif kind == "ndjson":
            yield from self._read_ndjson(stream, origin, path)
        else:
            text = stream.read(BUNDLE_BYTES_MAX + 1)
            if len(text) > BUNDLE_BYTES_MAX:
                yield FhirError(f"{origin}: has more than {BUNDLE_BYTES_MAX} bytes")
            else:
                yield self._read_document(text, origin, path)

    def _read_tar(self, stream: IO[bytes], origin: str, path: Path) -> Iterator[SourceBundle | FhirError]:
        """Yields what the FHIR files among a tar's members hold; their names serve only to tell the kind."""
        with tarfile.open(fileobj=stream, mode="r|", tarinfo=_BoundedHeader) as archive:
            for index, member in enumerate(archive, start=1):
                # A stream keeps every header it has passed; a long archive must not.
                archive.members = []  # type: ignore[attr-defined]
                kind = _kind(member.name)
                content = archive.extractfile(member) if member.isfile() and kind not in ("", "tar") else None
                if content is None or Path(member.name).name in _NOT_DATA:
                    continue
                place = f"{origin}, member {index}"
                try:
                    with _plain(content) as inner:
                        yield from self._read_stream(inner, kind, place, path)
                except (lzma.LZMAError, zlib.error, EOFError):
                    yield FhirError(f"{place}: damaged compression")

    def _read_ndjson(self, stream: IO[bytes], origin: str, path: Path) -> Iterator[SourceBundle | FhirError]:
        """Yields groups of at most ``NDJSON_GROUP_LINES`` lines; an oversized line is reported and passed over."""
        group: list[SourceResource] = []
        problems: list[FhirError] = []
        held = 0
        for number, line in enumerate(_lines(stream), start=1):
            place = f"{origin}, line {number}"
            if line is None:
                problems.append(FhirError(f"{place}: has more than {RESOURCE_BYTES_MAX} bytes"))
            elif line:
                resource = self._resource(line, place, len(group), None, path)
                if isinstance(resource, FhirError):
                    problems.append(resource)
                else:
                    group.append(resource)
                    held += len(line)
            if len(group) + len(problems) >= NDJSON_GROUP_LINES or held >= NDJSON_GROUP_BYTES:
                yield self._bundle(group, problems, origin, path)
                group, problems, held = [], [], 0
        if group or problems:
            yield self._bundle(group, problems, origin, path)

    def _read_document(self, text: bytes, origin: str, path: Path) -> SourceBundle | FhirError:
        """Returns a bundle's entries, or the single resource that the text is."""
        try:
            outline = _decode_outline(text.removeprefix(_BOM))
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            return FhirError(f"{origin}: neither a FHIR bundle nor a resource in JSON")
        if outline.resourceType != "Bundle":
            resource = self._resource(text, origin, 0, None, path)
            if isinstance(resource, FhirError):
                return resource
            return self._bundle([resource], [], origin, path)
        if len(outline.entry) > BUNDLE_ENTRIES_MAX:
            return FhirError(f"{origin}: has {len(outline.entry)} entries, at most {BUNDLE_ENTRIES_MAX}")
        resources: list[SourceResource] = []
        problems: list[FhirError] = []
        for index, raw in enumerate(outline.entry):
            item = self._read_entry(raw, f"{origin}, entry {index + 1}", index, path)
            if isinstance(item, FhirError):
                problems.append(item)
            else:
                resources.append(item)
        return self._bundle(resources, problems, origin, path)

    def _read_entry(self, raw: msgspec.Raw, place: str, index: int, path: Path) -> SourceResource | FhirError:
        try:
            entry = _decode_entry(raw)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            return FhirError(f"{place}: not a bundle entry")
        if isinstance(entry.resource, msgspec.UnsetType):
            return FhirError(f"{place}: has no resource")
        return self._resource(bytes(entry.resource), place, index, entry.fullUrl, path)

    def _resource(
        self, raw: bytes, place: str, index: int, full_url: str | None, path: Path
    ) -> SourceResource | FhirError:
        if len(raw) > RESOURCE_BYTES_MAX:
            return FhirError(f"{place}: has {len(raw)} bytes, at most {RESOURCE_BYTES_MAX}")
        # What kind of resource it is helps grouping; whether it is valid is for the validation to say.
        try:
            resource_type = _decode_header(raw.removeprefix(_BOM)).resourceType
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            return FhirError(f"{place}: not a resource in JSON")
        return SourceResource(raw, place, self._bundle_count, index, resource_type, full_url, path)

    def _bundle(
        self, resources: list[SourceResource], problems: list[FhirError], origin: str, path: Path
    ) -> SourceBundle:
        patients = [item for item in resources if item.resource_type == "Patient"]
        patient = patients[0] if len(patients) == 1 else None
        index = self._bundle_count
        self._bundle_count += 1
        return SourceBundle(
            tuple(resources),
            origin,
            index,
            _decode_header(patient.raw.removeprefix(_BOM)).id if patient else None,
            patient.full_url if patient else None,
            tuple(problems),
            path,
        )


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
            line = stream.readline(_CHUNK_BYTES)
        yield None


class _Counted(io.RawIOBase):
    """A file that adds what is read of it to a ``ReadingProgress``."""

    def __init__(self, file: IO[bytes], progress: ReadingProgress | None) -> None:
        super().__init__()
        self._file = file
        self._progress = progress

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        data = self._file.read(len(buffer))
        buffer[: len(data)] = data
        if self._progress is not None:
            self._progress.bytes_read += len(data)
        return len(data)


class _Inflated(io.RawIOBase):
    """The plain bytes of an xz or gzip stream, produced only as fast as they are asked for.

    Concatenated streams are read as one, as the command-line tools do. A decompression bomb costs no memory: output
    is bounded per read, and the readers above bound documents and lines.
    """

    def __init__(self, file: IO[bytes], *, xz: bool) -> None:
        super().__init__()
        self._file = file
        self._xz = xz
        self._stage: Any = None
        self._input = b""

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        data = self._read(len(buffer)) if len(buffer) else b""
        buffer[: len(data)] = data
        return len(data)

    def _read(self, size: int) -> bytes:
        while True:
            if self._stage is None:
                if not self._next_input():
                    return b""
                self._stage = _decompressor(self._xz)
            if not self._input and self._stage_needs_input() and not self._next_input():
                raise EOFError("compressed stream ends early")
            data = self._decompress(size)
            if self._stage.eof:
                # xz pads streams with zeros; gzip may be followed by another member.
                self._input = self._stage.unused_data.lstrip(b"\0")
                self._stage = None
            if data:
                return data

    def _stage_needs_input(self) -> bool:
        return bool(self._stage.needs_input) if self._xz else True

    def _next_input(self) -> bool:
        if not self._input:
            self._input = self._file.read(_CHUNK_BYTES)
        return bool(self._input)

    def _decompress(self, size: int) -> bytes:
        data: bytes = self._stage.decompress(self._input, size)
        # zlib hands back what it did not use; lzma keeps it.
        self._input = b"" if self._xz else self._stage.unconsumed_tail
        return data


def _decompressor(xz: bool) -> Any:
    if xz:
        return lzma.LZMADecompressor(format=lzma.FORMAT_XZ, memlimit=XZ_MEMORY_BYTES_MAX)
    return zlib.decompressobj(wbits=31)


def _plain(file: IO[bytes], progress: ReadingProgress | None = None) -> io.BufferedReader:
    """Returns a buffered reader of the plain bytes, whatever compression the first bytes show."""
    counted: io.BufferedReader = io.BufferedReader(_Counted(file, progress), _CHUNK_BYTES)
    magic = counted.peek(6)[:6]
    if magic == b"\xfd7zXZ\0" or magic[:2] == b"\x1f\x8b":
        return io.BufferedReader(_Inflated(counted, xz=magic[:1] == b"\xfd"), _CHUNK_BYTES)
    return counted

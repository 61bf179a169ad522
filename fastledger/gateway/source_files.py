"""The files of a source: which are read, which are passed over, and that no link leads out of the tree (SPEC-FHIR-13).

A directory is walked in the order of its names. A link inside it is never followed: what it leads to inside the tree
is read where it lies, and what lies outside, or nowhere, is told. A file that is exchanged between the walk and its
opening is not read. A path that the operator names is taken as named, a link or not.
"""

import os
import stat
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

from fastledger.gateway.source_faults import Fault, SourceError

# The export log that Bulk Data clients leave beside the data.
_NOT_DATA = frozenset(("log.ndjson",))
_COMPANION_FOLDER = "__MACOSX"
_COMPANIONS = ("._", ".DS_Store")
_KINDS = {"ndjson": "ndjson", "jsonl": "ndjson", "json": "json", "tar": "tar"}


def kind_of(name: str) -> str:
    """Returns ``json``, ``ndjson`` or ``tar`` by the ends of a file name; empty for anything else."""
    name = name.lower()
    if name.endswith((".tgz", ".txz")):
        return "tar"
    for suffix in (".xz", ".gz"):
        name = name.removesuffix(suffix)
    return _KINDS.get(name.rpartition(".")[2], "") if "." in name else ""


def is_companion(path: str) -> bool:
    """Whether a path, with ``/`` between its parts, is one of the files that macOS leaves beside the real ones."""
    parts = path.split("/")
    return parts[-1].startswith(_COMPANIONS) or _COMPANION_FOLDER in parts


def is_data(path: str) -> bool:
    """Whether a path holds FHIR by its name."""
    return bool(kind_of(path)) and path.rpartition("/")[2] not in _NOT_DATA


@dataclass(slots=True)
class Passed:
    """What was passed over by its name or nature, counted: macOS companions, links within a tree, other files."""

    companions: int = 0
    links: int = 0
    other_files: int = 0


@dataclass(frozen=True, slots=True)
class FoundFile:
    """A file to read. ``identity`` is its device and inode at the time of the walk; None for a path as named."""

    path: Path = field(repr=False)
    identity: tuple[int, int] | None = None
    size: int = 0
    fault: Fault | None = None

    @contextmanager
    def opened(self, origin: str) -> Iterator[IO[bytes]]:
        """Opens the file that the walk saw; raises ``SourceError`` where another stands in its place."""
        if self.identity is None:
            with self.path.open("rb") as file:
                yield file
            return
        descriptor = os.open(self.path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        with os.fdopen(descriptor, "rb") as file:
            status = os.fstat(descriptor)
            if (status.st_dev, status.st_ino) != self.identity or not stat.S_ISREG(status.st_mode):
                raise SourceError(origin, Fault.CHANGED)
            yield file


def find_files(paths: Iterable[Path], passed: Passed) -> list[FoundFile]:
    """Returns the files of the sources in a fixed order; ``passed`` counts what is left out on purpose."""
    found: list[FoundFile] = []
    for path in paths:
        if path.is_dir():
            found += _walk(path, path.resolve(), passed)
        else:
            found.append(FoundFile(path, None, _size(path)))
    return found


def _walk(folder: Path, root: Path, passed: Passed) -> Iterator[FoundFile]:
    try:
        with os.scandir(folder) as entries:
            items = sorted(entries, key=lambda item: os.fsencode(item.name))
    except OSError:
        yield FoundFile(folder, None, 0, Fault.UNREADABLE)
        return
    for item in items:
        path = folder / item.name
        if is_companion(item.name):
            passed.companions += 1
        elif item.is_symlink():
            fault = _link_fault(path, root)
            if fault is None:
                passed.links += 1
            else:
                yield FoundFile(path, None, 0, fault)
        elif item.is_dir(follow_symlinks=False):
            yield from _walk(path, root, passed)
        elif is_data(item.name) and item.is_file(follow_symlinks=False):
            status = item.stat(follow_symlinks=False)
            yield FoundFile(path, (status.st_dev, status.st_ino), status.st_size)
        else:
            passed.other_files += 1


def _link_fault(path: Path, root: Path) -> Fault | None:
    """What is wrong with a link; None where it leads to something inside the tree, which is read where it lies."""
    try:
        target = path.resolve(strict=True)
    except (OSError, RuntimeError):
        return Fault.DANGLING
    return None if target.is_relative_to(root) else Fault.LINK_OUT


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return 0

"""Disks that fail on purpose, for the storage tests. ``OsFiles`` with the ``raw_`` seam replaced."""

import errno
import os
import random
from collections.abc import Callable, Sequence
from pathlib import Path

from fastledger.storage.files import Buffer, OpenFile, OsFiles

SECTOR_BYTES = 512


class SimulatedCrash(BaseException):
    """The process is dead: nothing it would have done after this happens (so not an Exception)."""


class CountingFiles(OsFiles):
    """Calls ``before(operation index, kind)`` ahead of every system call that changes the disk."""

    def __init__(self) -> None:
        self.operations = 0
        self.kinds: list[str] = []

    def before(self, index: int, kind: str) -> None:
        """The fault goes here."""

    def _step(self, kind: str) -> int:
        index = self.operations
        self.operations += 1
        self.kinds.append(kind)
        self.before(index, kind)
        return index

    def raw_pwritev(self, file: OpenFile, buffers: Sequence[Buffer], offset: int) -> int:
        self._step("write")
        return super().raw_pwritev(file, buffers, offset)

    def raw_fdatasync(self, file: OpenFile) -> None:
        self._step(
            "sync"
        )  # not passed on: the page cache outlives the simulated process, and tests stay fast

    def raw_fsync_dir(self, path: Path) -> None:
        self._step("sync-dir")

    def raw_allocate(self, file: OpenFile, size: int) -> None:
        self._step("allocate")
        super().raw_allocate(file, size)

    def raw_rename(self, source: Path, target: Path) -> None:
        self._step("rename")
        super().raw_rename(source, target)

    def raw_unlink(self, path: Path) -> None:
        self._step("unlink")
        super().raw_unlink(path)

    def raw_create(self, path: Path) -> int:
        self._step("create")
        return super().raw_create(path)


class CrashingFiles(CountingFiles):
    """Dies at the ``crash_at``-th operation; if that is a write, after ``torn`` (0..1) of its bytes."""

    def __init__(self, crash_at: int, torn: float = 0.0) -> None:
        super().__init__()
        self._crash_at = crash_at
        self._torn = torn

    def before(self, index: int, kind: str) -> None:
        if index > self._crash_at or (index == self._crash_at and kind != "write"):
            raise SimulatedCrash

    def raw_pwritev(self, file: OpenFile, buffers: Sequence[Buffer], offset: int) -> int:
        if self.operations == self._crash_at:
            data = b"".join(buffers)
            os.pwrite(file.fd, data[: int(len(data) * self._torn)], offset)
            self.operations += 1
            raise SimulatedCrash
        return super().raw_pwritev(file, buffers, offset)


class FailingFiles(CountingFiles):
    """Raises ``OSError(code)`` at each operation of ``kind`` that ``when(nth of that kind)`` picks."""

    def __init__(self, kind: str, code: int, when: Callable[[int], bool] = lambda nth: True) -> None:
        super().__init__()
        self.armed = False
        self._kind = kind
        self._code = code
        self._when = when
        self._seen = 0

    def before(self, index: int, kind: str) -> None:
        if self.armed and kind == self._kind:
            self._seen += 1
            if self._when(self._seen - 1):
                raise OSError(self._code, os.strerror(self._code))


class ShortWriteFiles(OsFiles):
    """Each write takes at most ``count`` bytes; with ``then_full``, the second piece finds no space."""

    def __init__(self, count: int) -> None:
        self.count = count
        self.full_after: int | None = None

    def raw_pwritev(self, file: OpenFile, buffers: Sequence[Buffer], offset: int) -> int:
        if self.full_after is not None:
            if self.full_after == 0:
                raise OSError(errno.ENOSPC, "no space")
            self.full_after -= 1
        data = b"".join(buffers)
        return os.pwrite(file.fd, data[: self.count], offset)


class PowerCutFiles(OsFiles):
    """Remembers what each write replaced; ``cut`` takes back random sectors of what no sync covered.

    File contents only: names appear with their rename, as on a journalling file system.
    """

    def __init__(self) -> None:
        self._pending: dict[Path, list[tuple[int, bytes, bytes]]] = {}

    def raw_pwritev(self, file: OpenFile, buffers: Sequence[Buffer], offset: int) -> int:
        data = b"".join(buffers)
        old = os.pread(file.fd, len(data), offset).ljust(len(data), b"\0")
        self._pending.setdefault(file.path, []).append((offset, old, data))
        return os.pwrite(file.fd, data, offset)

    def raw_fdatasync(self, file: OpenFile) -> None:
        self._pending.pop(file.path, None)

    def raw_rename(self, source: Path, target: Path) -> None:
        super().raw_rename(source, target)
        if source in self._pending:
            self._pending[target] = self._pending.pop(source)

    def cut(self, rng: random.Random) -> None:
        for path, writes in self._pending.items():
            with path.open("r+b") as file:
                kept: dict[int, bool] = {}
                for offset, old, _ in reversed(writes):
                    for at in range(offset - offset % SECTOR_BYTES, offset + len(old), SECTOR_BYTES):
                        if kept.setdefault(at, rng.random() < 0.5):
                            continue
                        start, end = max(at, offset), min(at + SECTOR_BYTES, offset + len(old))
                        file.seek(start)
                        file.write(old[start - offset : end - offset])


def flip(path: Path, offset: int, bit: int = 0) -> None:
    """Flips one bit of a file in place."""
    with path.open("r+b") as file:
        file.seek(offset)
        byte = file.read(1)[0]
        file.seek(offset)
        file.write(bytes([byte ^ (1 << bit)]))

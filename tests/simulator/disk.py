"""A disk in memory that tears, forgets, fails, flips and fills up: ``OsFiles`` without an operating system.

What a file holds is kept twice: ``cache`` is what reads see, ``disk`` what a power cut leaves. A sync copies what
is dirty; a power cut writes any subset of the dirty 512-byte sectors, then forgets the cache. A sync that fails
writes some of the sectors and counts all of them clean, as Linux does: who only syncs again promises what is not
so. Names (creations, renames, removals) are a journal of their own: a sync of a directory makes them durable, a
power cut leaves any number of the first of those that were not.
"""

import errno
import random
from collections.abc import Sequence
from pathlib import Path

from fastledger.storage.files import Buffer, OpenFile, OsFiles

SECTOR_BYTES = 512


class SimulatedCrash(BaseException):
    """The machine is dead: nothing it would have done after this happens (so not an Exception)."""


class Inode:
    """One file's contents."""

    __slots__ = ("cache", "dirty", "disk")

    def __init__(self) -> None:
        self.cache = bytearray()
        self.disk = bytearray()
        self.dirty: list[tuple[int, int]] = []

    def write(self, data: bytes, offset: int) -> None:
        end = offset + len(data)
        if end > len(self.cache):
            self.cache.extend(bytes(end - len(self.cache)))
        self.cache[offset:end] = data
        self.dirty.append((offset, end))

    def keep(self, start: int, end: int) -> None:
        """Writes a range of the cache to the disk."""
        if end > len(self.disk):
            self.disk.extend(bytes(end - len(self.disk)))
        self.disk[start:end] = self.cache[start:end]

    def keep_some(self, rng: random.Random) -> None:
        """Writes any subset of the dirty sectors; none of them is dirty any more."""
        spans = (range(start // SECTOR_BYTES, -(-end // SECTOR_BYTES)) for start, end in self.dirty)
        share = rng.choice((0.0, 0.5, 0.9, 1.0))
        for sector in sorted({sector for span in spans for sector in span}):
            if rng.random() < share:
                start = sector * SECTOR_BYTES
                self.keep(start, min(start + SECTOR_BYTES, len(self.cache)))
        self.dirty.clear()


# What a step of the journal of names does: each name's new file, or none. A step happens whole or not at all.
Change = tuple[tuple[str, Inode | None], ...]


class MemoryFiles(OsFiles):
    """The disk of one node; it outlives the node's processes. Faults are armed from outside."""

    def __init__(self, rng: random.Random) -> None:
        self._rng = rng
        self._names: dict[str, Inode] = {}
        self._durable_names: dict[str, Inode] = {}
        self._changes: list[Change] = []
        self._open: dict[int, Inode] = {}
        self._next_fd = 1_000
        self.operations = 0
        self.dead = False
        # Faults.
        self.crash_in: int | None = None  # operations until the machine dies
        self.sync_fails_in: int | None = None  # syncs until one fails
        self.full = False

    # Faults, from outside.

    def power_cut(self) -> None:
        """Forgets the cache; of what no sync covered, any part may have reached the disk."""
        kept = self._rng.randint(0, len(self._changes))
        for inode in dict.fromkeys(self._all_inodes()):
            if inode.dirty:
                inode.keep_some(self._rng)
            inode.cache = bytearray(inode.disk)
        for change in self._changes[:kept]:
            self._apply(self._durable_names, change)
        self._changes.clear()
        self._names = dict(self._durable_names)
        self.process_ended()

    def process_ended(self) -> None:
        """The process was killed: its descriptors are gone, the cache stays."""
        self._open.clear()
        self.crash_in = self.sync_fails_in = None
        self.full = self.dead = False

    def _all_inodes(self) -> list[Inode]:
        return [*self._names.values(), *self._durable_names.values()]

    def flip_bit(self, name: str, offset: int, bit: int) -> None:
        """Flips a bit of a file, on the disk and in the cache."""
        inode = self._names[name]
        for data in (inode.cache, inode.disk):
            if offset < len(data):
                data[offset] ^= 1 << bit

    def files_named(self, suffix: str) -> list[str]:
        """The names that end so, sorted."""
        return sorted(name for name in self._names if name.endswith(suffix))

    def contents(self, name: str) -> bytes:
        """What a reader sees of a file."""
        return bytes(self._names[name].cache)

    def wipe(self) -> None:
        """A new disk."""
        self._names.clear()
        self._durable_names.clear()
        self._changes.clear()
        self.process_ended()

    # The seam.

    def _step(self) -> bool:
        """Counts an operation that changes the disk; True for the one in which the machine dies."""
        if self.dead:
            raise SimulatedCrash
        self.operations += 1
        if self.crash_in is None:
            return False
        self.crash_in -= 1
        self.dead = self.crash_in <= 0
        return self.dead

    def _change(self, change: Change) -> None:
        if self._step():
            raise SimulatedCrash
        self._changes.append(change)
        self._apply(self._names, change)

    @staticmethod
    def _apply(names: dict[str, Inode], change: Change) -> None:
        for name, inode in change:
            if inode is None:
                names.pop(name, None)
            else:
                names[name] = inode

    def raw_pwritev(self, file: OpenFile, buffers: Sequence[Buffer], offset: int) -> int:
        data = b"".join(buffers)
        inode = self._open[file.fd]
        if self._step():
            # Torn: a part of it is on its way.
            inode.write(data[: self._rng.randint(0, len(data))], offset)
            raise SimulatedCrash
        if self.full and offset + len(data) > len(inode.cache):
            room = max(0, len(inode.cache) - offset)
            if room == 0 or self._rng.random() < 0.5:
                raise OSError(errno.ENOSPC, "no space")
            data = data[:room]
        inode.write(data, offset)
        return len(data)

    def raw_fdatasync(self, file: OpenFile) -> None:
        inode = self._open[file.fd]
        if self._step():
            raise SimulatedCrash
        if self.sync_fails_in is not None:
            self.sync_fails_in -= 1
            if self.sync_fails_in < 0:
                self.sync_fails_in = None
                inode.keep_some(self._rng)
                raise OSError(errno.EIO, "sync failed")
        for start, end in inode.dirty:
            inode.keep(start, end)
        inode.dirty.clear()

    def raw_fsync_dir(self, path: Path) -> None:
        if self._step():
            raise SimulatedCrash
        # A journal commits whole: everything before goes with it.
        for change in self._changes:
            self._apply(self._durable_names, change)
        self._changes.clear()

    def raw_allocate(self, file: OpenFile, size: int) -> None:
        if self._step():
            raise SimulatedCrash
        inode = self._open[file.fd]
        if self.full:
            raise OSError(errno.ENOSPC, "no space")
        if size > len(inode.cache):
            inode.dirty.append((len(inode.cache), size))
            inode.cache.extend(bytes(size - len(inode.cache)))

    def raw_rename(self, source: Path, target: Path) -> None:
        inode = self._names.get(str(source))
        if inode is None:
            raise FileNotFoundError(errno.ENOENT, "no such file", str(source))
        self._change(((str(target), inode), (str(source), None)))

    def raw_unlink(self, path: Path) -> None:
        if str(path) in self._names:
            self._change(((str(path), None),))

    def raw_create(self, path: Path) -> int:
        if str(path) in self._names:
            raise FileExistsError(errno.EEXIST, "exists", str(path))
        if self.full and self._rng.random() < 0.5:
            raise OSError(errno.ENOSPC, "no space")
        inode = Inode()
        self._change(((str(path), inode),))
        return self._descriptor(inode)

    def _descriptor(self, inode: Inode) -> int:
        self._next_fd += 1
        self._open[self._next_fd] = inode
        return self._next_fd

    # What else would ask the operating system.

    def open(self, path: Path, *, writable: bool = False) -> OpenFile:
        inode = self._names.get(str(path))
        if inode is None:
            raise FileNotFoundError(errno.ENOENT, "no such file", str(path))
        return OpenFile(self._descriptor(inode), path)

    def close(self, file: OpenFile) -> None:
        self._open.pop(file.fd, None)

    def size(self, file: OpenFile) -> int:
        return len(self._open[file.fd].cache)

    def read(self, file: OpenFile, length: int, offset: int) -> bytes:
        return bytes(self._open[file.fd].cache[offset : offset + length])

    def make_dir(self, path: Path) -> None:
        """Directories are names with a slash."""

    def names(self, path: Path) -> list[str]:
        head = f"{path}/"
        rest = (name[len(head) :] for name in self._names if name.startswith(head))
        return sorted({name.partition("/")[0] for name in rest})

    def punch_hole(self, file: OpenFile, offset: int, length: int) -> bool:
        return False

    def random_bytes(self, count: int) -> bytes:
        return self._rng.randbytes(count)

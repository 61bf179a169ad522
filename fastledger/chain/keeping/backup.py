"""Online, incremental backups of a ledger directory (SPEC-BAK-1..6).

::

    backup.json        what the backup is of, and every file: path, length, SHA-256; written last, atomically
    objects/ab/cdef…   the files' bytes, named by their SHA-256, without the zeros that a tail is preallocated with

Envelopes are copied before the height is pinned, the last of them while execution is held, the log after it: so the
backup has every envelope that its log names, and what an erasure meanwhile destroyed is erased again on restoring.
Interrupted, a run leaves the backup before it whole. What is unchanged since that one is not read again; objects that
nothing names any more are overwritten and unlinked, and with them the envelopes that were erased.
"""

import hashlib
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec

from fastledger.errors import CorruptionError, FormatVersionError, InputError, NotFoundError
from fastledger.limits import BACKUP_HELD_BYTES_MAX, BACKUP_MANIFEST_BYTES_MAX, COPY_CHUNK_BYTES
from fastledger.pace import Pace
from fastledger.storage.blobs.store import BlobStore
from fastledger.storage.files import ZEROS, OsFiles, storage_error
from fastledger.storage.log import LogPin, SegmentLog
from fastledger.version import BACKUP_FORMAT_VERSION

MANIFEST_NAME = "backup.json"
OBJECTS_NAME = "objects"
ROUNDS_MAX = 8
RETRIES_MAX = 3
# A file that changed so shortly before it was copied may change again without its time telling.
RACY_NS = 2_000_000_000


class BackupFile(msgspec.Struct, frozen=True):
    """One file of the ledger directory: ``data_bytes`` with ``sha256``, then zeros up to ``bytes``.

    ``source`` is [inode, change time in ns] of the file that was copied, where that tells of every later change.
    """

    path: str
    bytes: int
    data_bytes: int
    sha256: str
    source: list[int] | None = None


class BackupManifest(msgspec.Struct, frozen=True, kw_only=True):
    """The manifest of a backup. ``digest`` is the SHA-256 of this document with an empty one."""

    format: int
    release: str
    chain_id: str
    height: int
    block_id: str
    state_root: str
    transactions: int
    first_height: int
    snapshot_height: int | None
    created_ms: int
    files: list[BackupFile]
    digest: str = ""

    def sealed(self) -> "BackupManifest":
        """Returns the manifest with its digest filled in."""
        bare = msgspec.structs.replace(self, digest="")
        return msgspec.structs.replace(self, digest=hashlib.sha256(msgspec.json.encode(bare)).hexdigest())


class Pinned(msgspec.Struct, frozen=True, kw_only=True):
    """The state of the ledger at the moment that a backup is of."""

    log: LogPin
    height: int
    block_id: bytes
    state_root: bytes
    transactions: int


def read_manifest(source: Path) -> BackupManifest:
    """Returns the manifest of the backup ``source``. NotFoundError, CorruptionError or FormatVersionError."""
    path = source / MANIFEST_NAME
    try:
        with path.open("rb") as file:
            data = file.read(BACKUP_MANIFEST_BYTES_MAX + 1)
    except FileNotFoundError:
        raise NotFoundError("there is no backup") from None
    try:
        manifest = msgspec.json.decode(data, type=BackupManifest)
    except (msgspec.MsgspecError, UnicodeDecodeError):
        raise CorruptionError("the backup's manifest is damaged", path=str(path)) from None
    if manifest.format != BACKUP_FORMAT_VERSION:
        raise FormatVersionError(f"{path} has backup format {manifest.format}, not {BACKUP_FORMAT_VERSION}")
    if manifest.sealed().digest != manifest.digest:
        raise CorruptionError("the backup's manifest does not match its digest", path=str(path))
    return manifest


class Objects:
    """The content-addressed files of a backup."""

    def __init__(self, root: Path, files: OsFiles | None = None) -> None:
        self.path = root / OBJECTS_NAME
        self.files = files or OsFiles()
        self.copied_bytes = 0

    def prepare(self) -> None:
        """Makes the directory; drops what an interrupted run was writing."""
        self.files.make_dir(self.path)
        for left in self.path.glob("*.part"):
            self.files.unlink(left)

    def path_of(self, digest: str) -> Path:
        """Returns the path of an object by its SHA-256 in hex."""
        return self.path / digest[:2] / digest[2:]

    def has(self, file: BackupFile, *, recheck: bool) -> bool:
        """Whether the object of ``file`` is there with its length (and its digest, where that is asked for)."""
        path = self.path_of(file.sha256)
        try:
            if path.stat().st_size != file.data_bytes:
                return False
        except FileNotFoundError:
            return False
        return not recheck or digest_of(path) == file.sha256

    def put(self, data: bytes) -> str:
        """Stores a small object; returns its digest."""
        copy = FileCopy(self, None, "memory")
        copy.write(data)
        return copy.finish()

    def drop_others(self, named: set[str]) -> int:
        """Overwrites and unlinks the objects that are not ``named``; returns how many."""
        dropped = 0
        for path in sorted(self.path.glob("??/*")):
            if path.parent.name + path.name in named:
                continue
            file = self.files.open(path, writable=True)
            try:
                self.files.write_zeros(file, 0, self.files.size(file))
                self.files.fdatasync(file)
            finally:
                self.files.close(file)
            self.files.unlink(path)
            dropped += 1
        return dropped


def digest_of(path: Path) -> str:
    """Returns the SHA-256 of a file, in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


class FileCopy:
    """Copies a file into the objects, in one piece or several; ``offset`` is how far it has come."""

    def __init__(self, objects: Objects, source: Path | None, name: str) -> None:
        self._objects = objects
        self._source = None if source is None else objects.files.open(source)
        self._part = objects.files.create(objects.path / f"{os.urandom(8).hex()}.part")
        self._hasher = hashlib.sha256()
        self.name = name
        self.offset = 0
        self.fingerprint: list[int] | None = None
        self.size = 0
        if self._source is not None:
            status = os.fstat(self._source.fd)
            self.size = status.st_size
            settled = time.time_ns() - status.st_ctime_ns > RACY_NS
            self.fingerprint = [status.st_ino, status.st_ctime_ns] if settled else None

    def write(self, data: bytes) -> None:
        """Appends bytes; those that are all zero are left to a hole."""
        if data != ZEROS[: len(data)]:
            self._objects.files.write(self._part, [data], self.offset)
        self._hasher.update(data)
        self.offset += len(data)

    def extend(self, end: int, spend: Callable[[int], None]) -> None:
        """Copies on up to the offset ``end``.

        Calls ``spend`` with the bytes of each piece before it, to keep a rate.
        """
        if self._source is None:
            return
        while self.offset < end:
            count = min(COPY_CHUNK_BYTES, end - self.offset)
            spend(count)
            data = self._objects.files.read(self._source, count, self.offset)
            if len(data) < count:
                raise CorruptionError("the file is cut short", path=self.name, offset=self.offset + len(data))
            self.write(data)

    def extend_undisturbed(self, end: int, spend: Callable[[int], None], changes: Callable[[], int]) -> bool:
        """Copies on as :meth:`extend`, if ``changes()`` returns the same after it as before.

        Where it does not, the copy goes back to where it was and False is returned.
        """
        before = changes()
        offset, hasher = self.offset, self._hasher.copy()
        self.extend(end, spend)
        if changes() == before:
            return True
        self._objects.files.write_zeros(self._part, offset, self.offset - offset)
        self.offset, self._hasher = offset, hasher
        return False

    def finish(self) -> str:
        """Puts the object in its place, durably once its directory is synced; returns its digest in hex."""
        digest = self._hasher.hexdigest()
        files, place = self._objects.files, self._objects.path_of(digest)
        try:
            os.ftruncate(self._part.fd, self.offset)
            files.fdatasync(self._part)
            files.make_dir(place.parent)
            files.rename(self._part.path, place)
            files.fsync_dir(place.parent)
        except OSError as error:
            raise storage_error(error, "write", self._part.path) from error
        finally:
            self.close()
        self._objects.copied_bytes += self.offset
        return digest

    def close(self) -> None:
        """Closes both files; may be called twice."""
        source, self._source = self._source, None
        if source is not None:
            self._objects.files.close(source)
        if self._part.fd >= 0:
            self._objects.files.close(self._part)
            self._part = self._part._replace(fd=-1)

    def drop(self) -> None:
        """Closes the copy and unlinks what was copied."""
        self.close()
        self._objects.files.unlink(self._part.path)


class BackupRun:
    """One run of a backup into one destination."""

    def __init__(self, root: Path, destination: Path, chain_id: bytes, pace: Pace, *, recheck: bool) -> None:
        """Opens the destination; InputError where it holds something else, or another chain's backup."""
        self._root = root
        self._pace = pace
        self._recheck = recheck
        self.destination = destination
        self.objects = Objects(destination)
        self.objects.files.make_dir(destination)
        self._known = _known_files(destination, chain_id)
        self.objects.prepare()
        self.entries: list[BackupFile] = []
        self._packs: dict[int, FileCopy] = {}
        self._packs_done: dict[int, BackupFile] = {}

    def add_file(self, path: Path, *, data_bytes: int | None = None) -> None:
        """Adds a file that does not change; ``data_bytes`` is given where only its beginning counts."""
        name = str(path.relative_to(self._root))
        known = self._unchanged(path, name, data_bytes)
        if known is not None:
            self.entries.append(known)
            return
        copy = FileCopy(self.objects, path, name)
        try:
            end = copy.size if data_bytes is None else data_bytes
            copy.extend(end, self._pace.spend)
        except BaseException:
            copy.drop()
            raise
        source = copy.fingerprint if data_bytes is None else None
        self.entries.append(BackupFile(name, copy.size, end, copy.finish(), source))

    def add_bytes(self, name: str, data: bytes) -> None:
        """Adds a file with the contents ``data``, which only the backup has in this form."""
        self.entries.append(BackupFile(name, len(data), len(data), self.objects.put(data)))

    def _unchanged(self, path: Path, name: str, data_bytes: int | None) -> BackupFile | None:
        """Returns the earlier backup's entry of a file that has not changed and whose object is there, or None."""
        known = self._known.get(name)
        if known is None or known.source is None or data_bytes is not None:
            return None
        status = path.stat()
        same = [status.st_ino, status.st_ctime_ns] == known.source and status.st_size == known.bytes
        return known if same and self.objects.has(known, recheck=self._recheck) else None

    # Envelopes.

    def copy_envelopes(self, blobs: BlobStore) -> None:
        """Copies the envelopes that are stored now, at the run's rate; again, until little has come meanwhile."""
        for _ in range(ROUNDS_MAX):
            with blobs.held() as (last, end):
                pass
            todo = self._open_packs(blobs, last)
            for number, copy in todo:
                self._copy_pack(blobs, copy, end if number == last else copy.size)
                self._settle_pack(number, last)
            for digest, path in blobs.large_files():
                self._copy_large(digest, path)
            with blobs.held() as (now, now_end):
                if now == last and now_end - end <= BACKUP_HELD_BYTES_MAX:
                    return

    def copy_last_envelopes(self, blobs: BlobStore) -> None:
        """Copies the envelopes that are left, while execution, puts and erasures are held; completes their list."""
        with blobs.held() as (last, end):
            for number, copy in self._open_packs(blobs, last):
                copy.extend(end if number == last else copy.size, lambda _count: None)
                self._settle_pack(number, last)
            large = blobs.large_files()
            for digest, path in large:
                self._copy_large(digest, path, spend=lambda _count: None)
        for number, copy in self._packs.items():  # the last one, which is not full
            name = copy.name
            entry = BackupFile(name, copy.size, copy.offset, copy.finish())
            self._packs_done[number] = entry
        self._packs.clear()
        self.entries += [self._packs_done[number] for number in sorted(self._packs_done)]
        for digest, path in large:
            size = self.objects.path_of(digest.hex()).stat().st_size
            self.entries.append(BackupFile(str(path.relative_to(self._root)), size, size, digest.hex()))

    def _open_packs(self, blobs: BlobStore, last: int) -> Iterator[tuple[int, FileCopy]]:
        for number, path in blobs.pack_files():
            if number in self._packs_done or number > last:
                continue
            name = str(path.relative_to(self._root))
            if number not in self._packs:
                known = self._unchanged(path, name, None) if number < last else None
                if known is not None:
                    self._packs_done[number] = known
                    continue
                self._packs[number] = FileCopy(self.objects, path, name)
            yield number, self._packs[number]

    def _copy_pack(self, blobs: BlobStore, copy: FileCopy, end: int) -> None:
        for _ in range(RETRIES_MAX):
            if copy.extend_undisturbed(end, self._pace.spend, lambda: _settled_erasures(blobs)):
                return
        with blobs.held():
            copy.extend(end, lambda _count: None)

    def _settle_pack(self, number: int, last: int) -> None:
        if number < last:
            copy = self._packs.pop(number)
            self._packs_done[number] = BackupFile(
                copy.name, copy.size, copy.offset, copy.finish(), copy.fingerprint
            )

    def _copy_large(self, digest: bytes, path: Path, spend: Callable[[int], None] | None = None) -> None:
        """Copies a blob that has a file of its own; its object has the same name.

        One that is erased meanwhile is left out.
        """
        place = self.objects.path_of(digest.hex())
        try:
            size = path.stat().st_size
            if place.exists() and place.stat().st_size == size:
                return
            copy = FileCopy(self.objects, path, str(path.relative_to(self._root)))
        except FileNotFoundError:
            return
        try:
            copy.extend(size, spend or self._pace.spend)
            found = copy.finish()
        except BaseException:
            copy.drop()
            raise
        if found != digest.hex() and path.exists():
            raise CorruptionError(f"blob {digest.hex()} is damaged", path=str(path), offset=0)

    # The log, and the end.

    def copy_log(self, log: SegmentLog, pin: LogPin) -> None:
        """Copies every segment up to the pinned position, and adds the HEAD that says the same."""
        for done, number in enumerate(pin.segments, start=1):
            last = number == pin.end.segment
            self.add_file(log.path_of(number), data_bytes=pin.end.offset if last else None)
            self._pace.tell("log", done, len(pin.segments))
        self.add_bytes("HEAD", pin.head)

    def finish(self, manifest: BackupManifest) -> int:
        """Writes the manifest, which makes this the backup, durably; returns how many objects were dropped."""
        path = self.destination / MANIFEST_NAME
        files = self.objects.files
        files.fsync_dir(self.objects.path)
        data = msgspec.json.format(msgspec.json.encode(manifest.sealed()), indent=1)
        files.create_whole(path, 0, data)
        return self.objects.drop_others({file.sha256 for file in manifest.files})

    def close(self) -> None:
        """Drops the copies that are not whole."""
        for copy in self._packs.values():
            copy.drop()
        self._packs.clear()


def _settled_erasures(blobs: BlobStore) -> int:
    with blobs.held():
        return blobs.erasures


def _known_files(destination: Path, chain_id: bytes) -> dict[str, BackupFile]:
    names = {entry.name for entry in destination.iterdir()} - {OBJECTS_NAME, f"{MANIFEST_NAME}.tmp"}
    if names - {MANIFEST_NAME}:
        raise InputError("the destination holds something else than a backup")
    if not names:
        return {}
    manifest = read_manifest(destination)
    if manifest.chain_id != chain_id.hex():
        raise InputError("the destination holds the backup of another chain")
    return {file.path: file for file in manifest.files}

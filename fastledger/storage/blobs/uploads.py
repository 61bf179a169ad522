"""Blobs that come in pieces over hours and restarts: a directory of partial files (SPEC-UPL-1..6).

::

    <id>.part     the bytes so far
    <id>.upload   what is to come, written once, and behind it two marks, rewritten in place by turns

Upload file, 168 bytes::

    0 magic 8 | 8 version 2 | 10 zero 6 | 16 id 16 | 32 size 8 | 40 created ms 8 | 48 digest 32 | 80 owner 32
    112 checksum 4 | 116 zero 4 | 120 first mark 24 | 144 second mark 24

    0 offset 8 | 8 time ms 8 | 16 checksum 4 | 20 zero 4

A mark is an offset up to which the part was synced before the mark was written. An opening trusts the part up to
the higher one and no further, so that no crash leaves a hole in the middle: what lies behind is sent again. An upload
file whose mark is its size and whose part is gone is one that was finished.
"""

import re
import struct
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, Self
from zlib import crc32

from fastledger.errors import (
    Code,
    EnvelopeError,
    InputError,
    LedgerBusyError,
    LedgerClosedError,
    LedgerError,
    NotFoundError,
    UploadConflict,
)
from fastledger.limits import BLOB_BYTES_MAX
from fastledger.storage.blobs.options import UploadLimits
from fastledger.storage.blobs.packs import DIGEST_BYTES
from fastledger.storage.files import READ_CHUNK_BYTES, Buffer, OpenFile, OsFiles
from fastledger.version import UPLOAD_FORMAT_VERSION

if TYPE_CHECKING:
    from hashlib import _Hash

Adopt = Callable[[Path, bytes], None]
CheckRoom = Callable[[int, int], None]

UPLOAD_MAGIC = b"FLUPLDv\0"
UPLOAD_ID_BYTES = 16
OWNER_BYTES = 32
MARK_EVERY_BYTES = 16 * 1024 * 1024
BUSY_RETRY_MS = 5_000
_HEAD = struct.Struct(">8sH6x16sQQ32s32sI4x")
_MARK = struct.Struct(">QQI4x")
_MARK_AT = _HEAD.size
_CHECKED = _HEAD.size - 8
_NAME = re.compile(r"([0-9a-f]{32})\.(upload|part|upload\.tmp)")


class UploadState(NamedTuple):
    """The progress of an upload: its next byte belongs at ``offset``; with ``finished`` the blob is stored."""

    id: str
    size: int
    digest: bytes
    offset: int
    expires_ms: int
    finished: bool


@dataclass(slots=True, eq=False)
class _Upload:
    """An upload in memory.

    ``hasher`` has taken the first ``offset`` bytes; it is None after a restart and at the end.
    """

    id: str
    size: int
    digest: bytes
    owner: bytes
    created_ms: int
    touched_ms: int
    offset: int = 0
    marked: int = 0
    next_mark: int = 1
    hasher: "_Hash | None" = field(default_factory=sha256)
    finished: bool = False
    dropped: bool = False
    lock: threading.Lock = field(default_factory=threading.Lock)

    def encode(self) -> bytes:
        """Returns the bytes of the upload file, both of whose marks say offset 0."""
        fields = (
            UPLOAD_MAGIC,
            UPLOAD_FORMAT_VERSION,
            bytes.fromhex(self.id),
            self.size,
            self.created_ms,
            self.digest,
            self.owner,
        )
        checksum = crc32(_HEAD.pack(*fields, 0)[:_CHECKED])
        return _HEAD.pack(*fields, checksum) + 2 * _encode_mark(0, self.created_ms)


def _encode_mark(offset: int, time_ms: int) -> bytes:
    return _MARK.pack(offset, time_ms, crc32(b"%d %d" % (offset, time_ms)))


def _decode(data: bytes, name: str) -> _Upload | None:
    """Returns the upload in a file's bytes; None if it is damaged or of another version, and is to be sent again."""
    if len(data) != _HEAD.size + 2 * _MARK.size:
        return None
    magic, version, raw_id, size, created_ms, digest, owner, checksum = _HEAD.unpack(data[:_MARK_AT])
    if magic != UPLOAD_MAGIC or version != UPLOAD_FORMAT_VERSION or raw_id.hex() != name:
        return None
    if crc32(data[:_CHECKED]) != checksum:
        return None
    best = (0, created_ms, 0)
    for place in range(2):
        packed = data[_MARK_AT + place * _MARK.size :][: _MARK.size]
        mark, touched_ms, _ = _MARK.unpack(packed)
        if _encode_mark(mark, touched_ms) == packed and mark <= size:
            best = max(best, (mark, touched_ms, place))
    mark, touched_ms, place = best
    hasher = None if mark else sha256()
    return _Upload(name, size, digest, owner, created_ms, touched_ms, mark, mark, 1 - place, hasher)


class Uploads:
    """An open directory of uploads. Any thread may call; calls for one upload take turns.

    Every call that names an upload raises NotFoundError with UNKNOWN_UPLOAD for one that does not exist, has expired
    or belongs to another owner.
    """

    def __init__(
        self,
        path: Path,
        adopt: Adopt,
        check_room: CheckRoom,
        limits: UploadLimits,
        clock_ms: Callable[[], int],
        files: OsFiles,
    ) -> None:
        """Prepares the object without reading the directory; callers use :meth:`open`."""
        self._path = path
        self._adopt = adopt
        self._check_store = check_room
        self._limits = limits
        self._clock_ms = clock_ms
        self._files = files
        self._lock = threading.Lock()
        self._uploads: dict[str, _Upload] = {}
        self._closed = False

    @classmethod
    def open(
        cls,
        path: Path,
        adopt: Adopt,
        *,
        clock_ms: Callable[[], int],
        limits: UploadLimits | None = None,
        check_room: CheckRoom = lambda _count, _bytes: None,
        files: OsFiles | None = None,
    ) -> Self:
        """Resumes the uploads that an earlier process left, and drops those that cannot be resumed.

        ``adopt`` is given the path of a whole, synced file and its SHA-256: it stores the bytes durably and takes
        the file away. It may be called again with the same arguments. ``check_room`` is given a number of files and
        their bytes in all, and raises where the store has no room for them. ``path`` must be on the file system of
        the store.
        """
        files = files or OsFiles()
        uploads = cls(path, adopt, check_room, limits or UploadLimits(), clock_ms, files)
        files.make_dir(path)
        uploads._recover()
        return uploads

    def _recover(self) -> None:
        names = {
            match.groups() for match in map(_NAME.fullmatch, (p.name for p in self._path.iterdir())) if match
        }
        for upload_id, kind in sorted(names):
            if kind == "upload":
                self._take_up(upload_id, has_part=(upload_id, "part") in names)
            elif kind != "part" or (upload_id, "upload") not in names:
                self._files.unlink(self._path / f"{upload_id}.{kind}")
        with self._lock:
            self._expire()

    def _take_up(self, upload_id: str, *, has_part: bool) -> None:
        upload = _decode(self._head_path(upload_id).read_bytes(), upload_id)
        if upload is not None:
            upload.finished = not has_part and upload.offset == upload.size
        whole = has_part and upload is not None and self._part_path(upload_id).stat().st_size >= upload.offset
        if upload is None or not (upload.finished or whole):
            self._unlink(upload_id)
        else:
            self._uploads[upload_id] = upload

    def _head_path(self, upload_id: str) -> Path:
        return self._path / f"{upload_id}.upload"

    def _part_path(self, upload_id: str) -> Path:
        return self._path / f"{upload_id}.part"

    # What callers use.

    def begin(self, size: int, digest: bytes, owner: bytes = bytes(OWNER_BYTES)) -> UploadState:
        """Begins an upload of ``size`` bytes whose SHA-256 is ``digest``; a crash after the return does not lose it.

        Only ``owner`` (32 bytes) may go on with it. Raises InputError for sizes out of range, ``LedgerBusyError``
        where there are too many uploads or too many bytes announced.
        """
        if len(digest) != DIGEST_BYTES or len(owner) != OWNER_BYTES or size < 1:
            raise InputError(f"an upload of {size} bytes with a digest of {len(digest)}")
        if size > self.upload_bytes_max:
            raise InputError(f"upload of {size} bytes is too long", code=Code.OVERSIZED)
        upload_id = self._files.random_bytes(UPLOAD_ID_BYTES).hex()
        now_ms = self._clock_ms()
        upload = _Upload(upload_id, size, digest, owner, now_ms, now_ms)
        with upload.lock:
            with self._lock:
                self._check_open()
                self._expire()
                self._check_room(upload)
                self._uploads[upload_id] = upload
            try:
                # The part first: a head without one would count as finished or damaged.
                self._files.close(self._files.create(self._part_path(upload_id)))
                self._files.create_whole(self._head_path(upload_id), 0, upload.encode())
            except LedgerError:
                self._drop(upload)
                raise
        return self._state_of(upload)

    def _check_room(self, upload: _Upload) -> None:
        known = list(self._uploads.values())  # at once: others may go meanwhile
        pending = [other for other in known if not other.finished]
        own = sum(other.owner == upload.owner for other in pending)
        announced = sum(other.size for other in pending) + upload.size
        limits = self._limits
        if (
            len(pending) >= limits.uploads_max
            or own >= limits.owner_uploads_max
            or announced > limits.pending_bytes_max
        ):
            raise LedgerBusyError(f"{len(pending)} uploads are under way", retry_after_ms=BUSY_RETRY_MS)
        # With what is under way, all of which may end in the store.
        self._check_store(len(pending) + 1, announced)
        finished = [other for other in known if other.finished]
        # They are remembered for a lost answer's sake; the oldest make room.
        for other in finished[: max(0, len(finished) - limits.uploads_max)]:
            self._forget(other)

    def state(self, upload_id: str, owner: bytes = bytes(OWNER_BYTES)) -> UploadState:
        """Returns the progress of an upload."""
        return self._state_of(self._find(upload_id, owner))

    def append(self, upload_id: str, offset: int, chunk: Buffer, owner: bytes = bytes(OWNER_BYTES)) -> int:
        """Writes the next bytes of an upload and returns the offset behind them.

        ``UploadConflict`` where ``offset`` is not the present one, InputError with OVERSIZED beyond the announced
        end.
        """
        with self._turn(upload_id, owner) as upload:
            if upload.finished or offset != upload.offset:
                raise UploadConflict(f"the next byte belongs at {upload.offset}", offset=upload.offset)
            if offset + len(chunk) > upload.size:
                raise InputError(
                    f"upload is longer than the {upload.size} bytes announced", code=Code.OVERSIZED
                )
            with self._part(upload) as file:
                self._files.write(file, [chunk], offset)
                if upload.hasher is not None:
                    upload.hasher.update(chunk)
                upload.offset += len(chunk)
                upload.touched_ms = self._clock_ms()
                if upload.offset - upload.marked >= MARK_EVERY_BYTES:
                    self._mark(upload, file)
            return upload.offset

    def sync(self, upload_id: str, owner: bytes = bytes(OWNER_BYTES)) -> UploadState:
        """Makes the bytes that an upload has so far survive a power cut, and returns its progress."""
        with self._turn(upload_id, owner) as upload:
            if not upload.finished and upload.marked < upload.offset:
                with self._part(upload) as file:
                    self._mark(upload, file)
        return self._state_of(upload)

    def finish(self, upload_id: str, owner: bytes = bytes(OWNER_BYTES)) -> UploadState:
        """Verifies the whole and gives it to the store; the blob is durable on return. May be called again.

        ``UploadConflict`` while bytes are missing. Raises ``EnvelopeError`` where the bytes do not have the
        announced digest: the upload is then dropped.
        """
        with self._turn(upload_id, owner) as upload:
            if not upload.finished:
                self._finish(upload)
        return self._state_of(upload)

    def _finish(self, upload: _Upload) -> None:
        if upload.offset < upload.size:
            raise UploadConflict(f"the next byte belongs at {upload.offset}", offset=upload.offset)
        with self._part(upload) as file:
            digest = self._hash(file, upload.size) if upload.hasher is None else upload.hasher.digest()
            if digest == upload.digest:
                self._mark(upload, file)
        if digest != upload.digest:
            self._drop(upload)
            raise EnvelopeError(f"upload {upload.id} does not hash to the digest announced")
        self._adopt(self._part_path(upload.id), digest)
        upload.finished = True
        upload.hasher = None

    def _hash(self, file: OpenFile, size: int) -> bytes:
        hasher = sha256()
        for at in range(0, size, READ_CHUNK_BYTES):
            hasher.update(self._files.read(file, min(READ_CHUNK_BYTES, size - at), at))
        return hasher.digest()

    def abandon(self, upload_id: str, owner: bytes = bytes(OWNER_BYTES)) -> None:
        """Drops an upload and its bytes; a blob that it has stored stays stored."""
        with self._turn(upload_id, owner) as upload:
            self._drop(upload)

    def expire(self) -> int:
        """Drops the uploads whose time is over, and returns how many those were."""
        with self._lock:
            self._check_open()
            return self._expire()

    @property
    def upload_bytes_max(self) -> int:
        """The longest upload that is accepted, in bytes."""
        return min(self._limits.upload_bytes_max, BLOB_BYTES_MAX)

    @property
    def pending(self) -> tuple[int, int]:
        """How many uploads are unfinished, and how many bytes they announced together."""
        sizes = [upload.size for upload in list(self._uploads.values()) if not upload.finished]
        return len(sizes), sum(sizes)

    def close(self) -> None:
        """Waits for calls that are under way and makes durable what arrived. May be called twice."""
        with self._lock:
            if self._closed:
                return
            self._closed = True
        for upload in list(self._uploads.values()):
            with upload.lock:
                if upload.marked < upload.offset and not upload.dropped:
                    # Best effort: without it the bytes since the last mark are sent again.
                    with suppress(LedgerError), self._part(upload) as file:
                        self._mark(upload, file)

    # Inside.

    def _check_open(self) -> None:
        if self._closed:
            raise LedgerClosedError("the uploads are closed")

    def _find(self, upload_id: str, owner: bytes) -> _Upload:
        self._check_open()
        upload = self._uploads.get(upload_id)
        if (
            upload is None
            or upload.owner != owner
            or upload.touched_ms + self._limits.lifetime_ms <= self._clock_ms()
        ):
            raise NotFoundError("there is no such upload", code=Code.UNKNOWN_UPLOAD)
        return upload

    @contextmanager
    def _turn(self, upload_id: str, owner: bytes) -> Iterator[_Upload]:
        upload = self._find(upload_id, owner)
        with upload.lock:
            self._check_open()
            if upload.dropped:
                raise NotFoundError("there is no such upload", code=Code.UNKNOWN_UPLOAD)
            yield upload

    @contextmanager
    def _part(self, upload: _Upload) -> Iterator[OpenFile]:
        file = self._files.open(self._part_path(upload.id), writable=True)
        try:
            yield file
        finally:
            self._files.close(file)

    def _mark(self, upload: _Upload, part: OpenFile) -> None:
        """Syncs the part, then writes a mark that says so.

        The mark needs no sync: an older one costs sending again.
        """
        try:
            self._files.fdatasync(part)
        except LedgerError:
            # What the kernel has dropped it will not tell again: nothing of this file can be trusted.
            self._drop(upload)
            raise
        head = self._files.open(self._head_path(upload.id), writable=True)
        try:
            mark = _encode_mark(upload.offset, upload.touched_ms)
            self._files.write(head, [mark], _MARK_AT + upload.next_mark * _MARK.size)
        finally:
            self._files.close(head)
        upload.marked = upload.offset
        upload.next_mark = 1 - upload.next_mark

    def _state_of(self, upload: _Upload) -> UploadState:
        expires_ms = upload.touched_ms + self._limits.lifetime_ms
        return UploadState(upload.id, upload.size, upload.digest, upload.offset, expires_ms, upload.finished)

    def _expire(self) -> int:
        oldest = self._clock_ms() - self._limits.lifetime_ms
        expired = [upload for upload in list(self._uploads.values()) if upload.touched_ms <= oldest]
        return sum(self._forget(upload) for upload in expired)

    def _forget(self, upload: _Upload) -> bool:
        """Drops an upload that no call is working on; the next expiry finds the others."""
        if not upload.lock.acquire(blocking=False):
            return False
        try:
            self._drop(upload)
        finally:
            upload.lock.release()
        return True

    def _drop(self, upload: _Upload) -> None:
        upload.dropped = True
        self._uploads.pop(upload.id, None)
        self._unlink(upload.id)

    def _unlink(self, upload_id: str) -> None:
        # Head first: a part without one is dropped by the next opening.
        for path in (self._head_path(upload_id), self._part_path(upload_id)):
            with suppress(LedgerError):
                self._files.unlink(path)

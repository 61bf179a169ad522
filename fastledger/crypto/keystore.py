"""Keystore: a user's secret keys in one file, sealed by a password.

::

    offset  size  field
         0     8  magic "flkeys\\r\\n"
         8     2  format version                              1
        10     2  key derivation                              1: Argon2id (RFC 9106)
        12     4  Argon2id memory, KiB
        16     4  Argon2id iterations
        20     4  Argon2id lanes
        24    16  salt                                        new with every password
        40    12  nonce                                       new with every save
        52     4  sealed bytes, n
        56     n  sealed content: AES-256-GCM, tag last; associated data: the 56 bytes before
    56 + n    32  SHA-256 of all the bytes before

All integers are big-endian. The content is deterministic CBOR, ``{name: [kind, secret]}``.

AES-GCM cannot tell a wrong password from a damaged file; the plain digest at the end can, for damage by
accident. It protects nothing: who alters the file on purpose makes the digest fit, and is then caught by
AES-GCM and reported as a wrong password. Either way nothing is opened.
"""

import hashlib
import os
import unicodedata
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from enum import IntEnum, unique
from errno import EDQUOT, ENOSPC
from pathlib import Path
from secrets import token_bytes, token_hex
from struct import Struct
from types import MappingProxyType
from typing import Final, NamedTuple, NoReturn, Self

import cbor2
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.kdf.argon2 import Argon2id

from fastledger.errors import Code, KeystoreError, LedgerError, StorageFullError
from fastledger.limits import (
    KEYSTORE_BYTES_MAX,
    KEYSTORE_ENTRY_BYTES_MAX,
    KEYSTORE_NAME_BYTES_MAX,
    PASSWORD_BYTES_MAX,
)
from fastledger.version import KEYSTORE_FORMAT_VERSION

# What a file may ask of the reader before anything of it is authenticated.
MEMORY_KIB_MAX: Final = 1024 * 1024
ITERATIONS_MAX: Final = 64
LANES_MAX: Final = 16
PASS_KIB_MAX: Final = 4 * 1024 * 1024  # memory times iterations: some ten seconds of one core

# What a new file must at least cost its attacker.
MEMORY_KIB_FLOOR: Final = 32 * 1024
PASS_KIB_FLOOR: Final = 96 * 1024

_MAGIC: Final = b"flkeys\r\n"
_ARGON2ID: Final = 1
_HEADER: Final = Struct(">8sHHIII16s12sI")
_SALT_BYTES: Final = 16
_NONCE_BYTES: Final = 12
_TAG_BYTES: Final = 16
_DIGEST_BYTES: Final = 32
_FILE_BYTES_MIN: Final = _HEADER.size + _TAG_BYTES + _DIGEST_BYTES


@unique
class EntryKind(IntEnum):
    """The kind of secret that an entry holds."""

    OTHER = 0
    SIGNING_KEY = 1
    KEM_KEY = 2
    FOLDER_KEY = 3


@dataclass(frozen=True, slots=True)
class KeystoreEntry:
    """One secret: its kind, and its bytes, which ``repr`` leaves out."""

    kind: EntryKind
    secret: bytes = field(repr=False)


@dataclass(frozen=True, slots=True)
class KdfParams:
    """Costs of Argon2id (RFC 9106 §3.1); the default is §4's second recommendation with one lane.

    One lane, since a single password is derived at a time and an attacker has the cores to use lanes better.

    Attributes:
        memory_kib: memory, at least 8 KiB a lane.
        iterations: passes over the memory.
        lanes: degree of parallelism.

    Raises:
        KeystoreError: ``BAD_KEYSTORE``, outside the bounds that a reader accepts.
    """

    memory_kib: int = 64 * 1024
    iterations: int = 3
    lanes: int = 1

    def __post_init__(self) -> None:
        if not (
            1 <= self.lanes <= LANES_MAX
            and 8 * self.lanes <= self.memory_kib <= MEMORY_KIB_MAX
            and 1 <= self.iterations <= ITERATIONS_MAX
            and self.memory_kib * self.iterations <= PASS_KIB_MAX
        ):
            raise KeystoreError("key derivation costs out of bounds")

    @property
    def is_weak(self) -> bool:
        """Whether these costs are too low for a new keystore: below 32 MiB, or below 96 MiB over all passes."""
        return self.memory_kib < MEMORY_KIB_FLOOR or self.memory_kib * self.iterations < PASS_KIB_FLOOR

    def derive(self, password: str, salt: bytes) -> bytes:
        """Derive the 32-byte sealing key of a password.

        Passwords are compared as the Unicode text that people see: NFC, then UTF-8 (RFC 8265 §4.2).

        Raises:
            KeystoreError: ``MALFORMED``, the password is empty, too long or not encodable.
        """
        try:
            encoded = unicodedata.normalize("NFC", password).encode()
        except UnicodeEncodeError:
            raise KeystoreError("a password that is not Unicode text", code=Code.MALFORMED) from None
        if not 1 <= len(encoded) <= PASSWORD_BYTES_MAX:
            raise KeystoreError(f"a password must have 1 to {PASSWORD_BYTES_MAX} bytes", code=Code.MALFORMED)
        return Argon2id(
            salt=salt,
            length=32,
            iterations=self.iterations,
            lanes=self.lanes,
            memory_cost=self.memory_kib,
        ).derive(encoded)


DEFAULT_KDF: Final = KdfParams()


class _Lock(NamedTuple):
    """A derived sealing key with the salt and costs that it came from; never leaves this module."""

    params: KdfParams
    salt: bytes
    key: bytes

    def __repr__(self) -> str:
        return f"_Lock({self.params!r})"


class _Header(NamedTuple):
    params: KdfParams
    salt: bytes
    nonce: bytes
    sealed_bytes: int


class Keystore:
    """Named secrets in memory, and the sealed file that they come from; not safe for concurrent use.

    Changes reach the file with :meth:`save`, at once and whole: a crash leaves the old file or the new one.
    """

    def __init__(self, path: Path, lock: _Lock, entries: dict[str, KeystoreEntry], file_digest: bytes) -> None:
        """Take the parts of an open keystore; callers use :meth:`create` or :meth:`open`."""
        self._path = path
        self._lock = lock
        self._entries = entries
        self._file_digest = file_digest

    @classmethod
    def create(
        cls,
        path: str | os.PathLike[str],
        password: str,
        *,
        kdf_params: KdfParams = DEFAULT_KDF,
        allow_weak_kdf: bool = False,
    ) -> Self:
        """Make a new, empty keystore; never replaces a file.

        Args:
            path: the file, created with mode 0600.
            password: 1 to ``PASSWORD_BYTES_MAX`` bytes of UTF-8.
            kdf_params: costs of the key derivation.
            allow_weak_kdf: accept costs below the floor. For tests, whose keys protect nothing.

        Raises:
            KeystoreError: ``BAD_KEYSTORE``, a file is there already, or the costs are below the floor;
                ``MALFORMED``, an impossible password.
            LedgerError: the file cannot be written.
        """
        _check_strength(kdf_params, allow_weak_kdf)
        keystore = cls(Path(path), _new_lock(password, kdf_params), {}, b"")
        keystore._file_digest = _write_new(keystore._path, keystore._seal(keystore._lock))
        return keystore

    @classmethod
    def open(cls, path: str | os.PathLike[str], password: str) -> Self:
        """Open the keystore in a file.

        A file with weak derivation costs opens: the costs are authenticated, so that only its owner can have chosen
        them, and refusing would protect nobody. :attr:`kdf_params` shows them.

        Raises:
            KeystoreError: ``WRONG_PASSWORD``; ``BAD_KEYSTORE``, damaged or no keystore; ``FORMAT_VERSION``;
                ``NOT_FOUND``, no such file.
            LedgerError: the file cannot be read.
        """
        location = Path(path)
        blob = _read(location)
        header = _parse(blob)
        lock = _Lock(header.params, header.salt, header.params.derive(password, header.salt))
        try:
            content = AESGCM(lock.key).decrypt(
                header.nonce, blob[_HEADER.size : -_DIGEST_BYTES], blob[: _HEADER.size]
            )
        except InvalidTag:
            raise KeystoreError("the password does not open it", code=Code.WRONG_PASSWORD) from None
        return cls(location, lock, _decode_entries(content), blob[-_DIGEST_BYTES:])

    @property
    def entries(self) -> Mapping[str, KeystoreEntry]:
        """All entries by name; a live, read-only view."""
        return MappingProxyType(self._entries)

    @property
    def kdf_params(self) -> KdfParams:
        """The costs that the file is sealed with."""
        return self._lock.params

    def names(self, kind: EntryKind | None = None) -> list[str]:
        """The names of all entries, or of those of one kind, sorted."""
        return sorted(name for name, entry in self._entries.items() if kind in (None, entry.kind))

    def get(self, name: str, kind: EntryKind | None = None) -> bytes:
        """The secret under a name.

        Raises:
            KeystoreError: ``NOT_FOUND``, no such entry, or none of that kind.
        """
        entry = self._entries.get(name)
        if entry is None or kind not in (None, entry.kind):
            raise KeystoreError("no such entry", code=Code.NOT_FOUND)
        return entry.secret

    def put(self, name: str, secret: bytes, kind: EntryKind = EntryKind.OTHER) -> None:
        """Set the secret under a name, in memory; :meth:`save` makes it last.

        Raises:
            KeystoreError: ``MALFORMED``, a name or secret of impossible size.
        """
        _check_entry(name, secret)
        self._entries[name] = KeystoreEntry(kind, bytes(secret))

    def delete(self, name: str) -> None:
        """Drop an entry, in memory; :meth:`save` makes it last.

        Raises:
            KeystoreError: ``NOT_FOUND``, no such entry.
        """
        if self._entries.pop(name, None) is None:
            raise KeystoreError("no such entry", code=Code.NOT_FOUND)

    def save(self) -> None:
        """Write the entries to the file: sealed anew, synced, then put in the old file's place.

        Raises:
            KeystoreError: ``BAD_KEYSTORE``, the file was changed or removed since it was read, and saving
                would undo that; ``OVERSIZED``, the file would exceed ``KEYSTORE_BYTES_MAX``.
            LedgerError: the file cannot be written. The old one is untouched, or, if only the last sync
                failed, the new one is in its place: whole in either case. Open it again to go on.
        """
        self._save_under(self._lock)

    def change_password(
        self, password: str, *, kdf_params: KdfParams = DEFAULT_KDF, allow_weak_kdf: bool = False
    ) -> None:
        """Seal under a new password, with a new salt, and save.

        Whoever kept a copy of the old file still opens that copy with the old password.

        Raises:
            KeystoreError: as :meth:`create` and :meth:`save`; the old password stays in force.
            LedgerError: as :meth:`save`.
        """
        _check_strength(kdf_params, allow_weak_kdf)
        lock = _new_lock(password, kdf_params)
        self._save_under(lock)
        self._lock = lock

    def __repr__(self) -> str:
        return f"Keystore({len(self._entries)} entries)"

    def __reduce__(self) -> NoReturn:
        raise TypeError("a keystore is not picklable")

    def _save_under(self, lock: _Lock) -> None:
        sealed = self._seal(lock)
        if _read(self._path)[-_DIGEST_BYTES:] != self._file_digest:
            raise KeystoreError("changed on disk since it was read: open it again")
        self._file_digest = _replace(self._path, sealed)

    def _seal(self, lock: _Lock) -> bytes:
        content = cbor2.dumps(
            {name: [int(entry.kind), entry.secret] for name, entry in self._entries.items()}, canonical=True
        )
        sealed_bytes = len(content) + _TAG_BYTES
        if _HEADER.size + sealed_bytes + _DIGEST_BYTES > KEYSTORE_BYTES_MAX:
            raise KeystoreError(f"a keystore of over {KEYSTORE_BYTES_MAX} bytes", code=Code.OVERSIZED)
        nonce = token_bytes(_NONCE_BYTES)
        header = _HEADER.pack(
            _MAGIC,
            KEYSTORE_FORMAT_VERSION,
            _ARGON2ID,
            lock.params.memory_kib,
            lock.params.iterations,
            lock.params.lanes,
            lock.salt,
            nonce,
            sealed_bytes,
        )
        body = header + AESGCM(lock.key).encrypt(nonce, content, header)
        return body + hashlib.sha256(body).digest()


def _new_lock(password: str, params: KdfParams) -> _Lock:
    salt = token_bytes(_SALT_BYTES)
    return _Lock(params, salt, params.derive(password, salt))


def _check_strength(params: KdfParams, allow_weak: bool) -> None:
    if params.is_weak and not allow_weak:
        raise KeystoreError("key derivation costs below the floor for new keystores")


def _check_entry(name: str, secret: bytes) -> None:
    try:
        name_bytes = len(name.encode())
    except UnicodeEncodeError:
        raise KeystoreError("an entry name that is not Unicode text", code=Code.MALFORMED) from None
    if not 1 <= name_bytes <= KEYSTORE_NAME_BYTES_MAX:
        raise KeystoreError(f"an entry name of {name_bytes} bytes", code=Code.MALFORMED)
    if not 1 <= len(secret) <= KEYSTORE_ENTRY_BYTES_MAX:
        raise KeystoreError(f"an entry of {len(secret)} bytes", code=Code.MALFORMED)


def _parse(blob: bytes) -> _Header:
    """Check all of a file that can be checked without the password, and return its header."""
    if len(blob) < _FILE_BYTES_MIN or not blob.startswith(_MAGIC):
        raise KeystoreError(f"{len(blob)} bytes that are no keystore")
    _, version, kdf, memory_kib, iterations, lanes, salt, nonce, sealed_bytes = _HEADER.unpack_from(blob)
    if version != KEYSTORE_FORMAT_VERSION:
        raise KeystoreError(f"keystore format version {version}", code=Code.FORMAT_VERSION)
    body = memoryview(blob)[:-_DIGEST_BYTES]
    if hashlib.sha256(body).digest() != blob[-_DIGEST_BYTES:]:
        raise KeystoreError(f"a damaged keystore of {len(blob)} bytes")
    if kdf != _ARGON2ID or sealed_bytes != len(body) - _HEADER.size:
        raise KeystoreError("a keystore header that contradicts itself")
    return _Header(KdfParams(memory_kib, iterations, lanes), salt, nonce, sealed_bytes)


def _decode_entries(content: bytes) -> dict[str, KeystoreEntry]:
    """Read what :meth:`Keystore._seal` encoded. It was authenticated, and still is not trusted to be well-formed."""
    entries: dict[str, KeystoreEntry] = {}
    try:
        decoded = cbor2.loads(content)
        for name, (kind, secret) in decoded.items():
            _check_entry(name, secret)
            entries[name] = KeystoreEntry(EntryKind(kind), bytes(secret))
    except (cbor2.CBORDecodeError, AttributeError, TypeError, ValueError):
        raise KeystoreError("a keystore whose content is malformed") from None
    return entries


def _read(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            blob = file.read(KEYSTORE_BYTES_MAX + 1)
    except FileNotFoundError:
        raise KeystoreError("there is no keystore", code=Code.NOT_FOUND) from None
    except OSError as error:
        _refuse_io(error)
    if len(blob) > KEYSTORE_BYTES_MAX:
        raise KeystoreError(f"a file of over {KEYSTORE_BYTES_MAX} bytes is no keystore")
    return blob


def _write_new(path: Path, blob: bytes) -> bytes:
    """Write a file that must not exist yet; returns its digest."""
    try:
        temporary = _write_temporary(path, blob)
        try:
            # A link, unlike a rename, never replaces: the name is taken by one creator only.
            os.link(temporary, path)
        finally:
            temporary.unlink()
        _sync_directory(path.parent)
    except FileExistsError:
        raise KeystoreError("there is a file already") from None
    except OSError as error:
        _refuse_io(error)
    return blob[-_DIGEST_BYTES:]


def _replace(path: Path, blob: bytes) -> bytes:
    """Put a new file in the place of the old one, in one step; returns its digest."""
    try:
        temporary = _write_temporary(path, blob)
        try:
            temporary.replace(path)
        except OSError:
            temporary.unlink()
            raise
        _sync_directory(path.parent)
    except OSError as error:
        _refuse_io(error)
    return blob[-_DIGEST_BYTES:]


def _write_temporary(path: Path, blob: bytes) -> Path:
    """Write a file with mode 0600 beside ``path``, synced on return; unlink it again if it cannot be completed."""
    temporary = path.with_name(f".{path.name}.{token_hex(8)}")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(blob)
            file.flush()
            os.fsync(file.fileno())
    except OSError:
        with suppress(OSError):
            temporary.unlink()
        raise
    return temporary


def _sync_directory(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _refuse_io(error: OSError) -> NoReturn:
    if error.errno in (ENOSPC, EDQUOT):
        raise StorageFullError("no space for the keystore") from error
    raise LedgerError(f"the keystore cannot be read or written (errno {error.errno})") from error

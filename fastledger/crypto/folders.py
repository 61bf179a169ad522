"""Folder keys: one key per folder and epoch, handed to a reader in one bundle, and the index tokens it makes.

A folder (a patient's records of one category) is known by 16 random bytes. Its *epoch* counts its keys: to
revoke a reader is to start a new epoch, whose fresh key the others get. Each use has its own key, derived
from the folder key by HKDF-Expand (RFC 5869 §2.3, HMAC-SHA256; extraction is skipped as §3.3 allows, the
folder key being uniformly random) with the deterministic CBOR array ``[label, folder, epoch]`` as ``info``:

=========================  ====================================================
label                      use
=========================  ====================================================
``fastledger/wrap/v1``     AES-256 key that wraps record data keys (envelope.py)
``fastledger/index/v1``    HMAC-SHA256 key of the blind index tokens
=========================  ====================================================
"""

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from secrets import token_bytes
from typing import Final, NamedTuple, Self

from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDFExpand
from cryptography.hazmat.primitives.keywrap import InvalidUnwrap, aes_key_unwrap, aes_key_wrap

from fastledger.crypto.hpke import KEY_BYTES, KemPrivateKey, context_info, wrap
from fastledger.errors import Code, EnvelopeError
from fastledger.limits import FOLDERS_PER_CONSENT_MAX, INDEX_TERM_BYTES_MAX
from fastledger.reprs import BriefRepr

FOLDER_ID_BYTES: Final = 16
EPOCH_MAX: Final = 2**32 - 1
KEY_ID_BYTES: Final = FOLDER_ID_BYTES + 4
WRAPPED_KEY_BYTES: Final = KEY_BYTES + 8  # RFC 3394 adds one 64-bit block.
FOLDER_KEY_FORMAT: Final = 1
FOLDER_KEY_BYTES: Final = 1 + KEY_ID_BYTES + KEY_BYTES
TOKEN_BYTES: Final = 16

_WRAP_LABEL: Final = "fastledger/wrap/v1"
_INDEX_LABEL: Final = "fastledger/index/v1"
_BUNDLE_LABEL: Final = "fastledger/folder-keys/v1"
_BUNDLED_KEY_LABEL: Final = "fastledger/folder-key/v1"


@dataclass(frozen=True, repr=False)
class FolderKey(BriefRepr):
    """The key of one folder in one epoch; whoever holds it reads every record sealed under it.

    Attributes:
        folder: folder id, 16 random bytes.
        epoch: 0 … 2^32-1, one more with every change of the key.
        key: 32 random bytes, left out of ``repr``.

    Raises:
        EnvelopeError: ``MALFORMED``, a part has the wrong size.
    """

    folder: bytes
    epoch: int
    key: bytes = field(repr=False)

    def __post_init__(self) -> None:
        check_key_id(self.folder, self.epoch)
        if len(self.key) != KEY_BYTES:
            raise EnvelopeError(f"a key of {len(self.key)} bytes, not {KEY_BYTES}", code=Code.MALFORMED)

    @classmethod
    def generate(cls, folder: bytes | None = None, epoch: int = 0) -> Self:
        """Make a fresh random key, of a new folder unless ``folder`` names one."""
        folder_id = token_bytes(FOLDER_ID_BYTES) if folder is None else folder
        return cls(folder_id, epoch, token_bytes(KEY_BYTES))

    def rotate(self) -> Self:
        """Make a fresh random key for the folder's next epoch; neither key can be computed from the other."""
        return self.generate(self.folder, self.epoch + 1)

    @cached_property
    def key_id(self) -> bytes:
        """The COSE ``kid``: folder id, then the epoch as u32; 20 bytes."""
        return key_id(self.folder, self.epoch)

    @cached_property
    def wrap_key(self) -> bytes:
        """The AES-256 key under which data keys of this folder's records are wrapped."""
        return _expand(self.key, _WRAP_LABEL, self.folder, self.epoch)

    @cached_property
    def index_key(self) -> bytes:
        """The HMAC-SHA256 key of this folder's index tokens."""
        return _expand(self.key, _INDEX_LABEL, self.folder, self.epoch)

    @cached_property
    def index_mac(self) -> "tuple[hashlib._Hash, hashlib._Hash]":
        """HMAC's inner and outer hash with the key already taken in (RFC 2104 §4); copy before use.

        A record has a handful of tokens, and this makes each three times as fast as ``hmac.digest``.
        """
        block = self.index_key.ljust(hashlib.sha256().block_size, b"\0")
        inner, outer = (hashlib.sha256(bytes(byte ^ pad for byte in block)) for pad in (0x36, 0x5C))
        return inner, outer

    def __reduce__(self) -> tuple[type[Self], tuple[bytes, int, bytes]]:
        # Only what the key is made of crosses to a worker process; derived keys are made there again.
        return type(self), (self.folder, self.epoch, self.key)

    def to_bytes(self) -> bytes:
        """Format version, folder, epoch (u32), key: 53 bytes. Secret: it belongs in a keystore."""
        return bytes([FOLDER_KEY_FORMAT]) + self.key_id + self.key

    @classmethod
    def from_bytes(cls, encoded: bytes) -> Self:
        """Read what :meth:`to_bytes` wrote.

        Raises:
            EnvelopeError: ``MALFORMED``, another format version or size.
        """
        if len(encoded) != FOLDER_KEY_BYTES or encoded[0] != FOLDER_KEY_FORMAT:
            raise EnvelopeError("not a folder key of this format version", code=Code.MALFORMED)
        folder, epoch = split_key_id(encoded[1 : 1 + KEY_ID_BYTES])
        return cls(folder, epoch, encoded[1 + KEY_ID_BYTES :])


class WrappedFolderKeys(NamedTuple):
    """A grant bundle: many folder keys for one reader.

    Attributes:
        wrap: the bundle's key-encryption key, wrapped by HPKE to the reader; 1,168 bytes (hybrid) or 80.
        keys: the folder keys, 40 bytes each, in the order in which they were given.
    """

    wrap: bytes
    keys: tuple[bytes, ...]


def wrap_folder_keys(
    recipient_public: bytes, keys: Sequence[FolderKey], *, context: bytes
) -> WrappedFolderKeys:
    """Wrap folder keys for one reader with a single HPKE operation.

    A fresh 32-byte key-encryption key (KEK) goes to the reader by HPKE, with ``context`` in its ``info``.
    Each folder key is wrapped by AES-KW (RFC 3394) under a key of its own, HKDF-Expand(KEK, [label, folder,
    epoch]): AES-KW takes no associated data, and so a wrapped key still opens only as the folder and epoch
    that it was wrapped for.

    Args:
        recipient_public: the reader's ``KemPrivateKey.public_bytes``.
        keys: 1 to ``FOLDERS_PER_CONSENT_MAX`` folder keys.
        context: what the bundle belongs to (chain id, grantee id, consent id), encoded unambiguously by the
            caller; the same bytes are needed to open it.

    Raises:
        EnvelopeError: ``BAD_KEY``, the public key is not one; ``MALFORMED``, no keys or too many.
    """
    _check_count(len(keys))
    kek = token_bytes(KEY_BYTES)
    return WrappedFolderKeys(
        wrap(recipient_public, kek, context_info(_BUNDLE_LABEL, context)),
        tuple(aes_key_wrap(_bundled_key_kek(kek, key.folder, key.epoch), key.key) for key in keys),
    )


def unwrap_folder_keys(
    private_key: KemPrivateKey,
    wrapped: WrappedFolderKeys,
    folders: Sequence[tuple[bytes, int]],
    *,
    context: bytes,
) -> list[FolderKey]:
    """Open a grant bundle: all its keys, or an error and none.

    Args:
        private_key: the reader's key.
        wrapped: the bundle.
        folders: (folder id, epoch) of each wrapped key, in the bundle's order, as the chain states them.
        context: as given to :func:`wrap_folder_keys`.

    Raises:
        EnvelopeError: ``BAD_ENVELOPE``, a wrong key, context, folder, epoch or order, or damage;
            ``MALFORMED``, counts or sizes that cannot be right.
    """
    _check_count(len(wrapped.keys))
    if len(folders) != len(wrapped.keys):
        raise EnvelopeError(
            f"{len(wrapped.keys)} wrapped keys for {len(folders)} folders", code=Code.MALFORMED
        )
    for folder, epoch in folders:
        check_key_id(folder, epoch)
    kek = private_key.unwrap(wrapped.wrap, context_info(_BUNDLE_LABEL, context))
    return [
        FolderKey(folder, epoch, _unwrap_key(_bundled_key_kek(kek, folder, epoch), wrapped_key))
        for (folder, epoch), wrapped_key in zip(folders, wrapped.keys, strict=True)
    ]


def blind_token(folder_key: FolderKey, term: str) -> bytes:
    """The index token of a term in one folder and epoch: HMAC-SHA256(index key, UTF-8 term), first 16 bytes.

    A reader computes one token for every epoch that it holds; a reader whose grant was revoked can compute
    none for records of later epochs. Terms are compared as bytes: the caller normalises them.

    Args:
        folder_key: the key under which the record is, or was, sealed.
        term: such as ``code:http://loinc.org|8302-2``, ``type:Observation`` or ``month:2019-05``.

    Raises:
        EnvelopeError: ``MALFORMED``, the term is empty, longer than ``INDEX_TERM_BYTES_MAX`` or not encodable.
    """
    inner_keyed, outer_keyed = folder_key.index_mac
    inner = inner_keyed.copy()
    inner.update(_term_bytes(term))
    outer = outer_keyed.copy()
    outer.update(inner.digest())
    return outer.digest()[:TOKEN_BYTES]


def blind_tokens(folder_key: FolderKey, terms: Iterable[str]) -> list[bytes]:
    """The tokens of a record's terms, sorted and each once, so that their order tells nothing of the terms.

    Raises:
        EnvelopeError: as :func:`blind_token`.
    """
    return sorted({blind_token(folder_key, term) for term in terms})


def key_id(folder: bytes, epoch: int) -> bytes:
    """The key id of a folder's epoch: folder id (16 bytes), then the epoch as u32; 20 bytes."""
    return folder + epoch.to_bytes(4, "big")


def split_key_id(identifier: bytes) -> tuple[bytes, int]:
    """Folder id and epoch of a 20-byte key id.

    Raises:
        EnvelopeError: ``MALFORMED``, another length.
    """
    if len(identifier) != KEY_ID_BYTES:
        raise EnvelopeError(f"a key id of {len(identifier)} bytes, not {KEY_ID_BYTES}", code=Code.MALFORMED)
    return identifier[:FOLDER_ID_BYTES], int.from_bytes(identifier[FOLDER_ID_BYTES:], "big")


def check_key_id(folder: bytes, epoch: int) -> None:
    """Refuse a folder id or epoch that cannot be one.

    Raises:
        EnvelopeError: ``MALFORMED``.
    """
    if len(folder) != FOLDER_ID_BYTES:
        raise EnvelopeError(f"a folder id of {len(folder)} bytes, not {FOLDER_ID_BYTES}", code=Code.MALFORMED)
    if not 0 <= epoch <= EPOCH_MAX:
        raise EnvelopeError("an epoch outside 0 … 2^32-1", code=Code.MALFORMED)


def _unwrap_key(wrapping_key: bytes, wrapped_key: bytes) -> bytes:
    if len(wrapped_key) == WRAPPED_KEY_BYTES:
        try:
            return aes_key_unwrap(wrapping_key, wrapped_key)
        except InvalidUnwrap:
            pass
    raise EnvelopeError(f"a wrapped folder key of {len(wrapped_key)} bytes does not open")


def _bundled_key_kek(kek: bytes, folder: bytes, epoch: int) -> bytes:
    return _expand(kek, _BUNDLED_KEY_LABEL, folder, epoch)


def _expand(key: bytes, label: str, folder: bytes, epoch: int) -> bytes:
    return HKDFExpand(SHA256(), KEY_BYTES, context_info(label, folder, epoch)).derive(key)


def _check_count(count: int) -> None:
    if not 1 <= count <= FOLDERS_PER_CONSENT_MAX:
        raise EnvelopeError(f"{count} folder keys, not 1 to {FOLDERS_PER_CONSENT_MAX}", code=Code.MALFORMED)


def _term_bytes(term: str) -> bytes:
    try:
        encoded = term.encode()
    except UnicodeEncodeError:
        raise EnvelopeError("an index term that is not Unicode text", code=Code.MALFORMED) from None
    if not 1 <= len(encoded) <= INDEX_TERM_BYTES_MAX:
        raise EnvelopeError(
            f"an index term of {len(encoded)} bytes, not 1 to {INDEX_TERM_BYTES_MAX}", code=Code.MALFORMED
        )
    return encoded

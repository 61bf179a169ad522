"""Record encryption: one COSE_Encrypt (RFC 9052 §5.1) per record version, under a data key of its own.

The data key (32 random bytes) exists nowhere but inside the envelope, wrapped by AES-KW under the folder's
wrap key: destroying the envelope's bytes destroys the record. Each form has exactly one encoding,
deterministic CBOR with the sizes below; nothing else is read.

**Whole** (content of up to ``ENVELOPE_CHUNK_BYTES``), which any COSE library opens::

    96([h'a10103',                                  / protected {1: 3}, A256GCM          /
        {5: iv},                                    / 12 random bytes                    /
        ciphertext,                                 / content and 16-byte tag            /
        [[h'', {1: -5, 4: kid}, wrapped]]])         / A256KW, folder ‖ epoch u32, 40 bytes /

**Chunked** (longer content): the same array with a detached ciphertext, which follows it at once::

    96([h'a2013a000100003a000100001a........',      / {1: -65537, -65537: chunk_bytes}    /
        {5: prefix},                                / 7 random bytes                     /
        null, [[h'', {1: -5, 4: kid}, wrapped]]])   / and then the chunks                /

Each chunk is AES-256-GCM of ``chunk_bytes`` of content (the last: 1 to ``chunk_bytes``) with its tag, under
the nonce ``prefix ‖ u32 chunk index ‖ u8 last``: the STREAM construction (Hoang, Reyhanitabar, Rogaway,
Vizár, CRYPTO 2015), in which no chunk can be moved, repeated, dropped or added. Its algorithm and header
label are of COSE's private range, so that a library that does not know them refuses. A chunked envelope has
two chunks or more.

Both authenticate ``Enc_structure = ["Encrypt", protected, external_aad]`` (RFC 9052 §5.3), where
``external_aad`` is the deterministic CBOR of ``["fastledger/record/v1", chain_id, record, version, folder,
epoch]``: an envelope opens only as the version of the record, in the folder, epoch and chain it was made for.

Content is not padded: the envelope's size tells the content's, exactly.
"""

from collections.abc import Iterable, Iterator
from io import BytesIO
from itertools import chain
from os import urandom
from struct import Struct
from typing import Final, NamedTuple, NoReturn, Protocol

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.keywrap import InvalidUnwrap, aes_key_unwrap, aes_key_wrap

from fastledger.crypto.cbor_head import bstr_head, uint
from fastledger.crypto.folders import KEY_ID_BYTES, WRAPPED_KEY_BYTES, FolderKey, split_key_id
from fastledger.crypto.hpke import KEY_BYTES
from fastledger.errors import Code, EnvelopeError, LedgerError
from fastledger.limits import BLOB_BYTES_MAX, ENVELOPE_CHUNK_BYTES, ENVELOPE_HEADER_BYTES_MAX

CHAIN_ID_BYTES: Final = 8
RECORD_ID_BYTES: Final = 16
VERSION_MAX: Final = 2**32 - 1
CHUNK_BYTES_MIN: Final = 64 * 1024  # Below 2^16 its CBOR would be shorter and the header no longer fixed.

_TAG_BYTES: Final = 16
_IV_BYTES: Final = 12
_PREFIX_BYTES: Final = 7

# The fixed bytes around the variable ones, in the order of the module's diagrams.
_WHOLE_PROTECTED: Final = bytes.fromhex("43 a1 01 03")
_CHUNKED_PROTECTED: Final = bytes.fromhex("51 a2 01 3a 00010000 3a 00010000 1a")  # then u32 chunk_bytes
_ARRAY: Final = bytes.fromhex("d860 84")
_WHOLE_HEAD: Final = _ARRAY + _WHOLE_PROTECTED + bytes.fromhex("a1 05 4c")
_CHUNKED_HEAD: Final = _ARRAY + _CHUNKED_PROTECTED
_CHUNKED_IV: Final = bytes.fromhex("a1 05 47")
_DETACHED: Final = b"\xf6"
_RECIPIENTS: Final = bytes.fromhex("81 83 40 a2 01 24 04 54")
_WRAPPED: Final = bytes.fromhex("58 28")
_RECIPIENTS_BYTES: Final = len(_RECIPIENTS) + KEY_ID_BYTES + len(_WRAPPED) + WRAPPED_KEY_BYTES
_CHUNKED_HEADER_BYTES: Final = (
    len(_CHUNKED_HEAD) + 4 + len(_CHUNKED_IV) + _PREFIX_BYTES + len(_DETACHED) + _RECIPIENTS_BYTES
)
_BSTR_HEAD_BYTES_MAX: Final = 5
_WHOLE_BYTES_MIN: Final = len(_WHOLE_HEAD) + _IV_BYTES + 1 + _TAG_BYTES + _RECIPIENTS_BYTES
_WHOLE_BYTES_MAX: Final = _WHOLE_BYTES_MIN - 1 + _BSTR_HEAD_BYTES_MAX + ENVELOPE_CHUNK_BYTES

# Enc_structure: array(3), "Encrypt", then protected; external_aad: array(6), its label, then chain_id.
_ENC_STRUCTURE: Final = b"\x83\x67Encrypt"
_AAD_HEAD: Final = b"\x86\x74fastledger/record/v1" + bytes([0x40 | CHAIN_ID_BYTES])
_BSTR16: Final = b"\x50"

_NONCE_TAIL: Final = Struct(">IB")

if max(_CHUNKED_HEADER_BYTES, _WHOLE_BYTES_MAX - ENVELOPE_CHUNK_BYTES) > ENVELOPE_HEADER_BYTES_MAX:
    raise RuntimeError("an envelope's header exceeds its limit")


class Reader(Protocol):
    """A source of bytes; may return fewer than asked, and none only at the end."""

    def read(self, size: int, /) -> bytes: ...


class Writer(Protocol):
    """A sink that takes all bytes that it is given, as buffered files do, and says how many."""

    def write(self, data: bytes | memoryview, /) -> int: ...


class EnvelopeHeader(NamedTuple):
    """The header of an envelope, readable without any key and not authenticated.

    Attributes:
        folder: folder id, 16 bytes.
        epoch: the folder's epoch.
        chunk_bytes: content bytes in a chunk, or 0 for a whole envelope.
    """

    folder: bytes
    epoch: int
    chunk_bytes: int


class _Parts(NamedTuple):
    """The fields of an envelope's header.

    Of a chunked one ``iv`` is the nonce prefix, of a whole one ``chunk_bytes`` is 0.
    """

    protected: bytes
    iv: bytes
    key_id: bytes
    wrapped_key: bytes
    chunk_bytes: int


def seal(plaintext: bytes, *, folder_key: FolderKey, record: bytes, version: int, chain_id: bytes) -> bytes:
    """Encrypt one version of a record; the envelope that comes back is the blob to store.

    Args:
        plaintext: the content, byte for byte; may be empty.
        folder_key: the folder's key of the current epoch.
        record: record id, 16 bytes.
        version: 0 … 2^32-1.
        chain_id: 8 bytes.

    Raises:
        EnvelopeError: ``MALFORMED``, an id or version of the wrong size; ``OVERSIZED``, the envelope would
            exceed ``BLOB_BYTES_MAX``.
    """
    external_aad = _external_aad(folder_key, record, version, chain_id)
    if len(plaintext) <= ENVELOPE_CHUNK_BYTES:
        return _seal_whole(plaintext, folder_key, external_aad)
    sealed = BytesIO()
    _seal_chunks(
        _chunks(BytesIO(plaintext), ENVELOPE_CHUNK_BYTES),
        sealed,
        folder_key,
        external_aad,
        ENVELOPE_CHUNK_BYTES,
    )
    return sealed.getvalue()


def open_envelope(
    blob: bytes, *, folder_key: FolderKey, record: bytes, version: int, chain_id: bytes
) -> bytes:
    """Decrypt an envelope as that version of that record, or refuse it.

    The caller takes the folder key that the *chain* names for the record (:func:`read_header` tells what an
    envelope says of itself), so that an envelope moved to another folder is refused too.

    Raises:
        EnvelopeError: ``UNKNOWN_FOLDER_KEY``, it is sealed under another folder or epoch; ``BAD_ENVELOPE``,
            it is not an envelope, is damaged, or was made for another record, version or chain;
            ``MALFORMED``, an argument of the wrong size.
    """
    external_aad = _external_aad(folder_key, record, version, chain_id)
    if not blob.startswith(_CHUNKED_HEAD):
        return _open_whole(blob, folder_key, external_aad)
    sealed = BytesIO(blob)
    opened = BytesIO()
    _open_chunks(_read_exactly(sealed, _CHUNKED_HEADER_BYTES), sealed, opened, folder_key, external_aad)
    return opened.getvalue()


def seal_stream(
    reader: Reader,
    writer: Writer,
    *,
    folder_key: FolderKey,
    record: bytes,
    version: int,
    chain_id: bytes,
    chunk_bytes: int = ENVELOPE_CHUNK_BYTES,
) -> int:
    """Encrypt all that ``reader`` gives, in a few chunks' worth of memory; see :func:`seal`.

    Args:
        reader: the content; a whole envelope comes out where it ends within one chunk.
        writer: takes the envelope. Whatever it took is of no use if this raises.
        chunk_bytes: ``CHUNK_BYTES_MIN`` to ``ENVELOPE_CHUNK_BYTES``.

    Returns:
        The size of the envelope in bytes.

    Raises:
        EnvelopeError: as :func:`seal`.
        LedgerError: ``STORAGE``, the writer took less than it was given.
    """
    if not CHUNK_BYTES_MIN <= chunk_bytes <= ENVELOPE_CHUNK_BYTES:
        raise EnvelopeError(f"chunks of {chunk_bytes} bytes are out of bounds", code=Code.MALFORMED)
    external_aad = _external_aad(folder_key, record, version, chain_id)
    chunks = _chunks(reader, chunk_bytes)
    first, last = next(chunks, (b"", True))
    if last:
        blob = _seal_whole(first, folder_key, external_aad)
        _write_all(writer, blob)
        return len(blob)
    return _seal_chunks(chain([(first, last)], chunks), writer, folder_key, external_aad, chunk_bytes)


def open_stream(
    reader: Reader,
    writer: Writer,
    *,
    folder_key: FolderKey,
    record: bytes,
    version: int,
    chain_id: bytes,
) -> int:
    """Decrypt the envelope that ``reader`` gives, to its very end; see :func:`open_envelope`.

    Nothing is written of a chunk before that chunk is authenticated; but that the content is *complete* is
    known only at its end. What ``writer`` took must be thrown away if this raises.

    Returns:
        The size of the content in bytes.

    Raises:
        EnvelopeError: as :func:`open_envelope`.
        LedgerError: ``STORAGE``, the writer took less than it was given.
    """
    external_aad = _external_aad(folder_key, record, version, chain_id)
    header = _read_exactly(reader, _CHUNKED_HEADER_BYTES)
    if header.startswith(_CHUNKED_HEAD):
        return _open_chunks(header, reader, writer, folder_key, external_aad)
    # One byte more than can be right is enough to see that there is too much.
    blob = header + _read_exactly(reader, _WHOLE_BYTES_MAX + 1 - len(header))
    plaintext = _open_whole(blob, folder_key, external_aad)
    _write_all(writer, plaintext)
    return len(plaintext)


def read_header(blob: bytes) -> EnvelopeHeader:
    """Read the header of an envelope: the folder and epoch of its key, and whether it is in chunks.

    Nothing of it is authenticated before the envelope has been opened.

    Args:
        blob: an envelope; of a chunked one its first ``ENVELOPE_HEADER_BYTES_MAX`` bytes are enough.

    Raises:
        EnvelopeError: ``BAD_ENVELOPE``, it is not an envelope.
    """
    if blob.startswith(_CHUNKED_HEAD):
        parts = _split_chunked(blob[:_CHUNKED_HEADER_BYTES])
    else:
        parts, _ = _split_whole(blob)
    return EnvelopeHeader(*split_key_id(parts.key_id), parts.chunk_bytes)


def _seal_whole(plaintext: bytes, folder_key: FolderKey, external_aad: bytes) -> bytes:
    fresh = urandom(KEY_BYTES + _IV_BYTES)
    data_key = fresh[:KEY_BYTES]
    iv = fresh[KEY_BYTES:]
    ciphertext = AESGCM(data_key).encrypt(iv, plaintext, _enc_structure(_WHOLE_PROTECTED, external_aad))
    return b"".join(
        (_WHOLE_HEAD, iv, bstr_head(len(ciphertext)), ciphertext, *_recipients(folder_key, data_key))
    )


def _open_whole(blob: bytes, folder_key: FolderKey, external_aad: bytes) -> bytes:
    parts, ciphertext = _split_whole(blob)
    _check_key_id(parts, folder_key)
    try:
        data_key = aes_key_unwrap(folder_key.wrap_key, parts.wrapped_key)
        return AESGCM(data_key).decrypt(parts.iv, ciphertext, _enc_structure(parts.protected, external_aad))
    except (InvalidUnwrap, InvalidTag):
        raise EnvelopeError(f"an envelope of {len(blob)} bytes does not open") from None


def _seal_chunks(
    chunks: Iterable[tuple[bytes, bool]],
    writer: Writer,
    folder_key: FolderKey,
    external_aad: bytes,
    chunk_bytes: int,
) -> int:
    """Write a chunked envelope of at least two chunks; returns its size."""
    data_key = urandom(KEY_BYTES)
    prefix = urandom(_PREFIX_BYTES)
    protected = _CHUNKED_PROTECTED + chunk_bytes.to_bytes(4, "big")
    header = b"".join((_ARRAY, protected, _CHUNKED_IV, prefix, _DETACHED, *_recipients(folder_key, data_key)))
    _write_all(writer, header)
    envelope_bytes = len(header)
    cipher = AESGCM(data_key)
    enc_structure = _enc_structure(protected, external_aad)
    for index, (content, last) in enumerate(chunks):
        envelope_bytes += len(content) + _TAG_BYTES
        if envelope_bytes > BLOB_BYTES_MAX:
            raise EnvelopeError(f"an envelope of over {BLOB_BYTES_MAX} bytes", code=Code.OVERSIZED)
        _write_all(writer, cipher.encrypt(_nonce(prefix, index, last), content, enc_structure))
    return envelope_bytes


def _open_chunks(
    header: bytes, reader: Reader, writer: Writer, folder_key: FolderKey, external_aad: bytes
) -> int:
    """Open the chunks that follow ``header``; returns the size of the content."""
    parts = _split_chunked(header)
    _check_key_id(parts, folder_key)
    try:
        cipher = AESGCM(aes_key_unwrap(folder_key.wrap_key, parts.wrapped_key))
    except InvalidUnwrap:
        _refuse_chunk(0)
    enc_structure = _enc_structure(parts.protected, external_aad)
    envelope_bytes = len(header)
    content_bytes = 0
    for index, (sealed, last) in enumerate(_chunks(reader, parts.chunk_bytes + _TAG_BYTES)):
        envelope_bytes += len(sealed)
        # Content that fits one chunk is sealed whole, and the last of several chunks is never empty.
        if envelope_bytes > BLOB_BYTES_MAX or (last and index == 0) or len(sealed) <= _TAG_BYTES:
            _refuse_chunk(index)
        try:
            content = cipher.decrypt(_nonce(parts.iv, index, last), sealed, enc_structure)
        except InvalidTag:
            _refuse_chunk(index)
        _write_all(writer, content)
        content_bytes += len(content)
    if content_bytes == 0:
        _refuse_chunk(0)
    return content_bytes


def _recipients(folder_key: FolderKey, data_key: bytes) -> tuple[bytes, bytes, bytes, bytes]:
    """The pieces of the recipients array: one recipient, the folder's epoch."""
    return _RECIPIENTS, folder_key.key_id, _WRAPPED, aes_key_wrap(folder_key.wrap_key, data_key)


def _split_whole(blob: bytes) -> tuple[_Parts, bytes]:
    """Take a whole envelope apart; every byte is accounted for."""
    if not _WHOLE_BYTES_MIN <= len(blob) <= _WHOLE_BYTES_MAX or not blob.startswith(_WHOLE_HEAD):
        _refuse_form(blob)
    iv_end = len(_WHOLE_HEAD) + _IV_BYTES
    tail = len(blob) - _RECIPIENTS_BYTES
    # The ciphertext fills what is left, so its length is known and with it the one head that it may have.
    for head_bytes in (3, 2, 5, 1):
        start = iv_end + head_bytes
        if tail - start >= _TAG_BYTES and blob[iv_end:start] == bstr_head(tail - start):
            break
    else:
        _refuse_form(blob)
    key_id, wrapped_key = _split_recipients(blob, tail)
    return _Parts(_WHOLE_PROTECTED, blob[len(_WHOLE_HEAD) : iv_end], key_id, wrapped_key, 0), blob[start:tail]


def _split_chunked(header: bytes) -> _Parts:
    """Take apart the header of a chunked envelope, which is all of ``header``."""
    chunk_at = len(_CHUNKED_HEAD)
    iv_at = chunk_at + 4 + len(_CHUNKED_IV)
    tail = len(header) - _RECIPIENTS_BYTES
    if (
        len(header) != _CHUNKED_HEADER_BYTES
        or header[chunk_at + 4 : iv_at] != _CHUNKED_IV
        or header[tail - 1 : tail] != _DETACHED
    ):
        _refuse_form(header)
    chunk_bytes = int.from_bytes(header[chunk_at : chunk_at + 4], "big")
    if not CHUNK_BYTES_MIN <= chunk_bytes <= ENVELOPE_CHUNK_BYTES:
        _refuse_form(header)
    key_id, wrapped_key = _split_recipients(header, tail)
    protected = header[len(_ARRAY) : chunk_at + 4]
    return _Parts(protected, header[iv_at : iv_at + _PREFIX_BYTES], key_id, wrapped_key, chunk_bytes)


def _split_recipients(blob: bytes, start: int) -> tuple[bytes, bytes]:
    """Key id and wrapped key of the recipients array that runs from ``start`` to the end."""
    key_at = start + len(_RECIPIENTS)
    wrapped_at = key_at + KEY_ID_BYTES + len(_WRAPPED)
    if blob[start:key_at] != _RECIPIENTS or blob[key_at + KEY_ID_BYTES : wrapped_at] != _WRAPPED:
        _refuse_form(blob)
    return blob[key_at : key_at + KEY_ID_BYTES], blob[wrapped_at:]


def _check_key_id(parts: _Parts, folder_key: FolderKey) -> None:
    if parts.key_id != folder_key.key_id:
        raise EnvelopeError("sealed under another folder or epoch", code=Code.UNKNOWN_FOLDER_KEY)


def _external_aad(folder_key: FolderKey, record: bytes, version: int, chain_id: bytes) -> bytes:
    """The deterministic CBOR of the record, version, folder, epoch and chain that an envelope is bound to.

    78 to 86 bytes.
    """
    if len(record) != RECORD_ID_BYTES or len(chain_id) != CHAIN_ID_BYTES or not 0 <= version <= VERSION_MAX:
        raise EnvelopeError(
            f"a record id of {len(record)} bytes, a chain id of {len(chain_id)}, or a version out of bounds",
            code=Code.MALFORMED,
        )
    return b"".join(
        (
            _AAD_HEAD,
            chain_id,
            _BSTR16,
            record,
            uint(version),
            _BSTR16,
            folder_key.folder,
            uint(folder_key.epoch),
        )
    )


def _enc_structure(protected: bytes, external_aad: bytes) -> bytes:
    """The ``Enc_structure`` of RFC 9052 §5.3; ``protected`` comes with its byte string head, as in the envelope."""
    return b"%b%b\x58%c%b" % (_ENC_STRUCTURE, protected, len(external_aad), external_aad)


def _nonce(prefix: bytes, index: int, last: bool) -> bytes:
    """The nonce of one chunk in STREAM; the chunk count is bounded far below 2^32 by ``BLOB_BYTES_MAX``."""
    return prefix + _NONCE_TAIL.pack(index, last)


def _chunks(reader: Reader, size: int) -> Iterator[tuple[bytes, bool]]:
    """Pieces of ``size`` bytes, the last one maybe shorter, each with whether it is the last."""
    current = _read_exactly(reader, size)
    while current:
        following = _read_exactly(reader, size) if len(current) == size else b""
        yield current, not following
        current = following


def _read_exactly(reader: Reader, size: int) -> bytes:
    """``size`` bytes, or fewer where the reader ends before."""
    data = reader.read(size)
    if len(data) == size or not data:
        return data
    pieces = [data]
    missing = size - len(data)
    while missing and (data := reader.read(missing)):
        pieces.append(data)
        missing -= len(data)
    return b"".join(pieces)


def _write_all(writer: Writer, data: bytes) -> None:
    if writer.write(data) != len(data):
        raise LedgerError(f"a writer did not take all of {len(data)} bytes")


def _refuse_form(blob: bytes) -> NoReturn:
    raise EnvelopeError(f"{len(blob)} bytes that are no envelope")


def _refuse_chunk(index: int) -> NoReturn:
    raise EnvelopeError(f"chunk {index} of an envelope does not open") from None

"""Record envelopes: COSE conformance by an independent opener, bindings, damage, and the stream's edges."""

import json
import lzma
import tracemalloc
from io import BytesIO
from pathlib import Path

import cbor2
import pytest
from budget import examples
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.keywrap import aes_key_unwrap, aes_key_wrap
from hypothesis import given, settings
from hypothesis import strategies as st

from fastledger.crypto import envelope
from fastledger.crypto.envelope import (
    CHUNK_BYTES_MIN,
    VERSION_MAX,
    EnvelopeHeader,
    open_envelope,
    open_stream,
    read_header,
    seal,
    seal_stream,
)
from fastledger.crypto.folders import EPOCH_MAX, FolderKey
from fastledger.errors import Code, EnvelopeError, LedgerError
from fastledger.limits import ENVELOPE_CHUNK_BYTES, ENVELOPE_HEADER_BYTES_MAX

FOLDER_KEY = FolderKey(bytes(range(0x10, 0x20)), 3, bytes(range(32)))
RECORD = bytes(range(0x20, 0x30))
CHAIN = b"chain-id"
VERSION = 300
CONTENT = b'{"resourceType":"Basic"}'

HEADER_BYTES = 102
SEALED_CHUNK_BYTES = CHUNK_BYTES_MIN + 16


def seal_record(content: bytes = CONTENT) -> bytes:
    return seal(content, folder_key=FOLDER_KEY, record=RECORD, version=VERSION, chain_id=CHAIN)


def open_record(blob: bytes) -> bytes:
    return open_envelope(blob, folder_key=FOLDER_KEY, record=RECORD, version=VERSION, chain_id=CHAIN)


def stream_sealed(content: bytes, chunk_bytes: int = CHUNK_BYTES_MIN) -> bytes:
    sealed = BytesIO()
    size = seal_stream(
        BytesIO(content),
        sealed,
        folder_key=FOLDER_KEY,
        record=RECORD,
        version=VERSION,
        chain_id=CHAIN,
        chunk_bytes=chunk_bytes,
    )
    assert size == len(sealed.getvalue())
    return sealed.getvalue()


def stream_opened(blob: bytes) -> bytes:
    opened = BytesIO()
    size = open_stream(
        BytesIO(blob), opened, folder_key=FOLDER_KEY, record=RECORD, version=VERSION, chain_id=CHAIN
    )
    assert size == len(opened.getvalue())
    return opened.getvalue()


def external_aad() -> bytes:
    context = ["fastledger/record/v1", CHAIN, RECORD, VERSION, FOLDER_KEY.folder, FOLDER_KEY.epoch]
    return cbor2.dumps(context, canonical=True)


def cose_decrypt(blob: bytes, aad: bytes, *, direct: bytes = b"", kek: bytes = b"") -> bytes:
    """COSE_Encrypt with A256GCM and one recipient, direct or A256KW, straight from RFC 9052 §5.3."""
    message = cbor2.loads(blob)
    assert message.tag == 96
    protected, unprotected, ciphertext, ((recipient_protected, recipient, wrapped),) = message.value
    assert cbor2.loads(protected) == {1: 3}
    assert recipient_protected == b""
    if recipient[1] == -6:
        key = direct
    else:
        assert recipient[1] == -5
        key = aes_key_unwrap(kek, wrapped)
    enc_structure = cbor2.dumps(["Encrypt", protected, aad])
    return AESGCM(key).decrypt(unprotected[5], ciphertext, enc_structure)


# Conformance.


@pytest.mark.data
def test_oracle_agrees_with_the_cose_working_group(shared_data: Path) -> None:
    example = json.loads((shared_data / "cose/examples/aes-gcm-examples/aes-gcm-03.json").read_text())
    key = bytes.fromhex(example["intermediates"]["CEK_hex"])
    plaintext = cose_decrypt(bytes.fromhex(example["output"]["cbor"]), b"", direct=key)
    assert plaintext.decode() == example["input"]["plaintext"]


@pytest.mark.parametrize("size", [0, 1, 7, 8, 239, 240, 2048, 65519, 65520, ENVELOPE_CHUNK_BYTES])
def test_a_stranger_opens_a_whole_envelope(size: int) -> None:  # SPEC-ENV-1
    content = bytes(size)
    blob = seal_record(content)
    assert cose_decrypt(blob, external_aad(), kek=FOLDER_KEY.wrap_key) == content
    # Sizes around every change of the ciphertext's CBOR head, so this is also the deterministic encoding.
    assert cbor2.dumps(cbor2.loads(blob), canonical=True) == blob


def test_a_strangers_envelope_opens() -> None:  # SPEC-ENV-1
    data_key, iv = bytes(range(0x40, 0x60)), bytes(12)
    enc_structure = cbor2.dumps(["Encrypt", b"\xa1\x01\x03", external_aad()])
    recipient = [b"", {1: -5, 4: FOLDER_KEY.key_id}, aes_key_wrap(FOLDER_KEY.wrap_key, data_key)]
    ciphertext = AESGCM(data_key).encrypt(iv, CONTENT, enc_structure)
    blob = cbor2.dumps(cbor2.CBORTag(96, [b"\xa1\x01\x03", {5: iv}, ciphertext, [recipient]]), canonical=True)
    assert open_record(blob) == CONTENT


def test_a_chunked_envelope_is_as_specified() -> None:  # SPEC-ENV-2
    content = bytes(range(256)) * 600  # Two chunks and a part of one.
    blob = stream_sealed(content)
    reader = BytesIO(blob)
    protected, unprotected, detached, ((_, recipient, wrapped),) = cbor2.load(reader).value
    assert reader.tell() == HEADER_BYTES
    assert cbor2.loads(protected) == {1: -65537, -65537: CHUNK_BYTES_MIN}
    assert detached is None
    assert recipient == {1: -5, 4: FOLDER_KEY.key_id}
    cipher = AESGCM(aes_key_unwrap(FOLDER_KEY.wrap_key, wrapped))
    enc_structure = cbor2.dumps(["Encrypt", protected, external_aad()])
    opened = b""
    for index, last in enumerate((0, 0, 1)):
        nonce = unprotected[5] + index.to_bytes(4, "big") + bytes([last])
        opened += cipher.decrypt(nonce, reader.read(SEALED_CHUNK_BYTES), enc_structure)
    assert opened == content
    assert reader.read() == b""


def test_an_envelope_of_format_version_1_still_opens() -> None:
    """Frozen when the format was, and confirmed by the opener above."""
    blob = bytes.fromhex(
        "d8608443a10103a1054ceec74d3a36778a7843530d0f58281cd6fc85f498ac91b1df65e2ea5a1da8"
        "126b897a21a09a310320ce1b2fb4dad6942d01c9c543207f818340a2012404541011121314151617"
        "18191a1b1c1d1e1f0000000358287eb2bdf19315716492ecbc8415f5fe5fc0ce1353010973128105"
        "89e08149decf8b899b6dbae1a938"
    )
    assert open_record(blob) == CONTENT
    assert cose_decrypt(blob, external_aad(), kek=FOLDER_KEY.wrap_key) == CONTENT


@pytest.mark.data
def test_aes_gcm_passes_wycheproof(shared_data: Path) -> None:
    """The primitive as the engine uses it: 256-bit keys, 96-bit nonces, 128-bit tags."""
    suite = json.loads((shared_data / "wycheproof" / "aes_gcm_test.json").read_text())
    verdicts = {"valid": 0, "invalid": 0}
    for group in suite["testGroups"]:
        if (group["keySize"], group["ivSize"], group["tagSize"]) != (256, 96, 128):
            continue
        for case in group["tests"]:
            key, iv, aad, message, ciphertext, tag = (
                bytes.fromhex(case[name]) for name in ("key", "iv", "aad", "msg", "ct", "tag")
            )
            verdicts[case["result"]] += 1
            if case["result"] == "valid":
                assert AESGCM(key).encrypt(iv, message, aad) == ciphertext + tag, case["tcId"]
                assert AESGCM(key).decrypt(iv, ciphertext + tag, aad) == message, case["tcId"]
            else:
                with pytest.raises(InvalidTag):
                    AESGCM(key).decrypt(iv, ciphertext + tag, aad)
    assert min(verdicts.values()) > 10


@pytest.mark.data
def test_aes_gcm_passes_nist(shared_data: Path) -> None:
    """NIST CAVP gcmDecrypt256: the groups with 96-bit nonces and 128-bit tags."""
    text = lzma.decompress((shared_data / "nist-cavp" / "gcmDecrypt256.rsp.xz").read_bytes()).decode()
    opened = refused = 0
    for group in text.split("[Keylen = 256]")[1:]:
        if "[IVlen = 96]" not in group or "[Taglen = 128]" not in group:
            continue
        for case in group.split("Count = ")[1:]:
            lines = (line.partition(" = ") for line in case.splitlines()[1:] if line)
            fields = {name.rstrip(" ="): value for name, _, value in lines}
            key, iv, ciphertext, aad, tag = (
                bytes.fromhex(fields[name]) for name in ("Key", "IV", "CT", "AAD", "Tag")
            )
            if "FAIL" in fields:
                refused += 1
                with pytest.raises(InvalidTag):
                    AESGCM(key).decrypt(iv, ciphertext + tag, aad)
            else:
                opened += 1
                assert AESGCM(key).decrypt(iv, ciphertext + tag, aad).hex() == fields["PT"]
    assert opened > 100
    assert refused > 100


# Round trips.


@given(content=st.binary(max_size=600), version=st.integers(0, VERSION_MAX), epoch=st.integers(0, EPOCH_MAX))
@settings(deadline=None)
def test_what_is_sealed_opens(content: bytes, version: int, epoch: int) -> None:
    key = FolderKey(FOLDER_KEY.folder, epoch, FOLDER_KEY.key)
    blob = seal(content, folder_key=key, record=RECORD, version=version, chain_id=CHAIN)
    assert open_envelope(blob, folder_key=key, record=RECORD, version=version, chain_id=CHAIN) == content
    aad = cbor2.dumps(["fastledger/record/v1", CHAIN, RECORD, version, key.folder, epoch], canonical=True)
    assert cose_decrypt(blob, aad, kek=key.wrap_key) == content


@given(chunks=st.integers(0, 3), around=st.integers(-2, 2), kib64=st.integers(1, 2))
@settings(max_examples=examples(40), deadline=None)
def test_what_is_streamed_opens_around_chunk_edges(chunks: int, around: int, kib64: int) -> None:
    chunk_bytes = kib64 * CHUNK_BYTES_MIN
    content = bytes(max(0, chunks * chunk_bytes + around))
    blob = stream_sealed(content, chunk_bytes)
    assert stream_opened(blob) == open_record(blob) == content
    assert read_header(blob).chunk_bytes == (chunk_bytes if len(content) > chunk_bytes else 0)


@pytest.mark.parametrize("size", [ENVELOPE_CHUNK_BYTES - 1, ENVELOPE_CHUNK_BYTES, ENVELOPE_CHUNK_BYTES + 1])
def test_large_content_is_chunked_and_both_ways_agree(size: int) -> None:  # SPEC-ENV-2
    content = bytes(size)
    blob = seal_record(content)
    assert read_header(blob).chunk_bytes == (ENVELOPE_CHUNK_BYTES if size > ENVELOPE_CHUNK_BYTES else 0)
    assert stream_opened(blob) == open_record(blob) == content
    assert open_record(stream_sealed(content, ENVELOPE_CHUNK_BYTES)) == content


def test_sealing_twice_shares_no_bytes_that_matter() -> None:  # SPEC-ENV-3
    one, two = (cbor2.loads(seal_record()).value for _ in range(2))
    assert one[1][5] != two[1][5]
    assert one[2] != two[2]
    assert one[3][0][2] != two[3][0][2]


def test_the_header_is_readable_without_a_key() -> None:
    expected = EnvelopeHeader(FOLDER_KEY.folder, FOLDER_KEY.epoch, 0)
    assert read_header(seal_record()) == expected
    chunked = stream_sealed(bytes(CHUNK_BYTES_MIN + 1))
    assert read_header(chunked) == read_header(chunked[:ENVELOPE_HEADER_BYTES_MAX])
    assert read_header(chunked) == expected._replace(chunk_bytes=CHUNK_BYTES_MIN)


# Bindings.

OTHERS = {
    "record": ({"record": bytes(16)}, Code.BAD_ENVELOPE),
    "version": ({"version": VERSION + 1}, Code.BAD_ENVELOPE),
    "chain": ({"chain_id": b"chain-ie"}, Code.BAD_ENVELOPE),
    "key": ({"folder_key": FolderKey(FOLDER_KEY.folder, 3, bytes(32))}, Code.BAD_ENVELOPE),
    "epoch": ({"folder_key": FolderKey(FOLDER_KEY.folder, 4, FOLDER_KEY.key)}, Code.UNKNOWN_FOLDER_KEY),
    "folder": ({"folder_key": FolderKey(bytes(16), 3, FOLDER_KEY.key)}, Code.UNKNOWN_FOLDER_KEY),
}


@pytest.mark.parametrize(("other", "code"), OTHERS.values(), ids=OTHERS)
@pytest.mark.parametrize("size", [len(CONTENT), CHUNK_BYTES_MIN + 1], ids=["whole", "chunked"])
def test_an_envelope_opens_only_as_what_it_was_made_for(
    other: dict[str, object], code: Code, size: int
) -> None:  # SPEC-ENV-4
    blob = stream_sealed(bytes(size))
    context = {"folder_key": FOLDER_KEY, "record": RECORD, "version": VERSION, "chain_id": CHAIN, **other}
    opened = BytesIO()
    for call in (
        lambda: open_envelope(blob, **context),
        lambda: open_stream(BytesIO(blob), opened, **context),
    ):
        with pytest.raises(EnvelopeError) as refusal:
            call()
        assert refusal.value.code is code
    assert opened.getvalue() == b""


@pytest.mark.parametrize("size", [len(CONTENT), CHUNK_BYTES_MIN + 1], ids=["whole", "chunked"])
def test_relabelling_the_epoch_does_not_help(size: int) -> None:
    """A reader of epoch 4 that edits ``kid`` to its own epoch, where both epochs had the same key bytes."""
    theirs = FolderKey(FOLDER_KEY.folder, 4, FOLDER_KEY.key)
    blob = stream_sealed(bytes(size)).replace(FOLDER_KEY.key_id, theirs.key_id)
    with pytest.raises(EnvelopeError) as refusal:
        open_envelope(blob, folder_key=theirs, record=RECORD, version=VERSION, chain_id=CHAIN)
    assert refusal.value.code is Code.BAD_ENVELOPE


def test_the_context_is_authenticated_beyond_the_wrapped_key() -> None:
    """Who may wrap, a reader of the folder, still cannot pass one record's ciphertext off as another's."""
    victim = cbor2.loads(seal_record()).value
    data_key = aes_key_unwrap(FOLDER_KEY.wrap_key, victim[3][0][2])
    with pytest.raises(InvalidTag):
        AESGCM(data_key).decrypt(victim[1][5], victim[2], cbor2.dumps(["Encrypt", victim[0], b""]))


@pytest.mark.parametrize(
    "wrong",
    [
        {"record": bytes(15)},
        {"record": bytes(17)},
        {"chain_id": bytes(7)},
        {"version": -1},
        {"version": VERSION_MAX + 1},
    ],
)
def test_impossible_contexts_are_refused(wrong: dict[str, object]) -> None:
    blob = seal_record()
    context = {"folder_key": FOLDER_KEY, "record": RECORD, "version": VERSION, "chain_id": CHAIN, **wrong}
    for call in (
        lambda: seal(CONTENT, **context),
        lambda: open_envelope(blob, **context),
        lambda: seal_stream(BytesIO(CONTENT), BytesIO(), **context),
        lambda: open_stream(BytesIO(blob), BytesIO(), **context),
    ):
        with pytest.raises(EnvelopeError) as refusal:
            call()
        assert refusal.value.code is Code.MALFORMED


# Damage.


def test_every_flipped_bit_of_a_whole_envelope_is_refused() -> None:  # SPEC-ENV-5
    blob = seal_record()
    for position in range(len(blob)):
        for bit in range(8):
            damaged = blob[:position] + bytes([blob[position] ^ 1 << bit]) + blob[position + 1 :]
            with pytest.raises(EnvelopeError):
                open_record(damaged)


def test_every_flipped_bit_of_a_chunked_header_is_refused() -> None:  # SPEC-ENV-5
    blob = stream_sealed(bytes(CHUNK_BYTES_MIN + 1))
    for position in range(HEADER_BYTES):
        for bit in range(8):
            damaged = blob[:position] + bytes([blob[position] ^ 1 << bit]) + blob[position + 1 :]
            with pytest.raises(EnvelopeError):
                stream_opened(damaged)


def test_every_truncation_and_extension_is_refused() -> None:
    for blob in (seal_record(), stream_sealed(bytes(CHUNK_BYTES_MIN + 1))):
        sizes = {*range(min(len(blob), 300)), *range(len(blob) - 40, len(blob))}
        for damaged in (*(blob[:size] for size in sorted(sizes)), blob + b"\0", blob + blob):
            for call in (open_record, stream_opened):
                with pytest.raises(EnvelopeError):
                    call(damaged)


@given(st.binary(max_size=400))
def test_any_bytes_are_refused_with_one_kind_of_error(noise: bytes) -> None:
    for blob in (noise, b"\xd8\x60\x84\x43\xa1\x01\x03\xa1\x05\x4c" + noise, stream_sealed_header() + noise):
        for call in (open_record, stream_opened, read_header):
            try:
                call(blob)
            except EnvelopeError as refusal:
                assert refusal.code in (Code.BAD_ENVELOPE, Code.UNKNOWN_FOLDER_KEY)
            else:
                assert call is read_header


def stream_sealed_header() -> bytes:
    return bytes.fromhex("d8608451a2013a000100003a000100001a")


@pytest.mark.parametrize(
    ("what", "replacement"),
    [
        ("43a10103", "43a10101"),  # A128GCM
        ("43a10103", "44a1011803"),  # the same, not in its shortest form
        ("a1054c", "a1064c"),  # a partial IV
        ("a2012404", "a2012504"),  # direct key
        ("818340", "828340"),  # two recipients
        ("818340", "8183a0"),  # an empty map that is not an empty string
        ("d86084", "84"),  # no tag
    ],
)
def test_other_encodings_are_refused(what: str, replacement: str) -> None:  # SPEC-ENV-6
    blob = seal_record()
    changed = blob.replace(bytes.fromhex(what), bytes.fromhex(replacement), 1)
    assert changed != blob
    with pytest.raises(EnvelopeError) as refusal:
        open_record(changed)
    assert refusal.value.code is Code.BAD_ENVELOPE


def test_a_longer_head_than_needed_is_refused() -> None:  # SPEC-ENV-6
    blob = seal_record()
    head = bytes([0x58, len(CONTENT) + 16])
    changed = blob.replace(head, b"\x59\x00" + head[1:], 1)
    assert cose_decrypt(changed, external_aad(), kek=FOLDER_KEY.wrap_key) == CONTENT
    with pytest.raises(EnvelopeError):
        open_record(changed)


@pytest.mark.parametrize("chunk_bytes", [0, 1, CHUNK_BYTES_MIN - 1, ENVELOPE_CHUNK_BYTES + 1, 2**32 - 1])
def test_chunk_sizes_out_of_bounds_are_refused(chunk_bytes: int) -> None:  # SPEC-ENV-7
    blob = stream_sealed(bytes(CHUNK_BYTES_MIN + 1))
    changed = blob[:17] + chunk_bytes.to_bytes(4, "big") + blob[21:]
    for call in (open_record, stream_opened, read_header):
        with pytest.raises(EnvelopeError):
            call(changed)
    with pytest.raises(EnvelopeError) as refusal:
        stream_sealed(bytes(10), chunk_bytes)
    assert refusal.value.code is Code.MALFORMED


# The stream.


def pieces(blob: bytes) -> tuple[bytes, list[bytes]]:
    """Header and sealed chunks."""
    starts = range(HEADER_BYTES, len(blob), SEALED_CHUNK_BYTES)
    return blob[:HEADER_BYTES], [blob[start : start + SEALED_CHUNK_BYTES] for start in starts]


def surgeries() -> dict[str, bytes]:
    """A sealed stream of three full chunks, cut up in every way that leaves each chunk intact."""
    header, (one, two, three) = pieces(stream_sealed(bytes(3 * CHUNK_BYTES_MIN)))
    other_header, (foreign, *_) = pieces(stream_sealed(bytes(3 * CHUNK_BYTES_MIN)))
    cuts = {
        "no chunk": [],
        "first only": [one],
        "without last": [one, two],
        "without first": [two, three],
        "without middle": [one, three],
        "swapped": [two, one, three],
        "last moved": [one, three, two],
        "repeated": [one, one, two, three],
        "last repeated": [one, two, three, three],
        "last twice in place": [one, three, three],
        "appended byte": [one, two, three, b"\0"],
        "appended tag": [one, two, three, bytes(16)],
        "appended chunk": [one, two, three, foreign],
        "chunk of another envelope": [foreign, two, three],
        "last cut short": [one, two, three[:-1]],
        "only a tag left": [one, two, three[-16:]],
        "middle cut short": [one, two[:-1], three],
    }
    blobs = {name: header + b"".join(chunks) for name, chunks in cuts.items()}
    return blobs | {"header of another envelope": other_header + one + two + three}


@pytest.mark.parametrize("blob", surgeries().values(), ids=surgeries().keys())
def test_no_surgery_on_chunks_passes(blob: bytes) -> None:  # SPEC-ENV-8
    for call in (open_record, stream_opened):
        with pytest.raises(EnvelopeError):
            call(blob)


def test_nothing_of_an_unauthenticated_chunk_is_written() -> None:  # SPEC-ENV-9
    content = b"a" * CHUNK_BYTES_MIN + b"b" * CHUNK_BYTES_MIN + b"c"
    blob = bytearray(stream_sealed(content))
    blob[HEADER_BYTES + SEALED_CHUNK_BYTES + 5] ^= 1
    opened = BytesIO()
    with pytest.raises(EnvelopeError) as refusal:
        open_stream(
            BytesIO(blob), opened, folder_key=FOLDER_KEY, record=RECORD, version=VERSION, chain_id=CHAIN
        )
    assert opened.getvalue() == content[:CHUNK_BYTES_MIN]
    assert "chunk 1 " in str(refusal.value)


def forge(chunks: list[tuple[bytes, int]]) -> bytes:
    """A chunked envelope by one who has the folder key: each chunk as given, with its last flag."""
    data_key, prefix = bytes(32), bytes(7)
    protected = cbor2.dumps({1: -65537, -65537: CHUNK_BYTES_MIN})
    recipient = [b"", {1: -5, 4: FOLDER_KEY.key_id}, aes_key_wrap(FOLDER_KEY.wrap_key, data_key)]
    blob = cbor2.dumps(cbor2.CBORTag(96, [protected, {5: prefix}, None, [recipient]]))
    enc_structure = cbor2.dumps(["Encrypt", protected, external_aad()])
    for index, (content, last) in enumerate(chunks):
        nonce = prefix + index.to_bytes(4, "big") + bytes([last])
        blob += AESGCM(data_key).encrypt(nonce, content, enc_structure)
    return blob


def test_only_the_specified_division_into_chunks_opens() -> None:  # SPEC-ENV-2
    full = bytes(CHUNK_BYTES_MIN)
    assert stream_opened(forge([(full, 0), (b"x", 1)])) == full + b"x"
    for chunks in (
        [(b"x", 1)],
        [(full, 1)],
        [(full, 0), (b"", 1)],
        [(full, 0), (full, 0)],
        [(b"x", 0), (b"y", 1)],
    ):
        with pytest.raises(EnvelopeError):
            stream_opened(forge(chunks))


class Trickle:
    """A reader of ``size`` zero bytes that gives a few at a time and keeps none."""

    def __init__(self, size: int, piece: int) -> None:
        self.left, self.piece = size, piece

    def read(self, size: int, /) -> bytes:
        given = min(size, self.piece, self.left)
        self.left -= given
        return bytes(given)


class Count:
    """A writer that only counts."""

    size = 0

    def write(self, data: bytes | memoryview, /) -> int:
        self.size += len(data)
        return len(data)


def test_short_reads_are_gathered() -> None:
    sealed = BytesIO()
    context = {"folder_key": FOLDER_KEY, "record": RECORD, "version": VERSION, "chain_id": CHAIN}
    size = 2 * CHUNK_BYTES_MIN + 5
    seal_stream(Trickle(size, 1000), sealed, **context, chunk_bytes=CHUNK_BYTES_MIN)
    assert open_record(sealed.getvalue()) == bytes(size)


def test_memory_stays_within_a_few_chunks() -> None:  # SPEC-ENV-9
    context = {"folder_key": FOLDER_KEY, "record": RECORD, "version": VERSION, "chain_id": CHAIN}
    size = 24 * ENVELOPE_CHUNK_BYTES
    blob = seal_record(bytes(size))
    tracemalloc.start()
    try:
        seal_stream(Trickle(size, size), Count(), **context)
        counted = Count()
        open_stream(BytesIO(blob), counted, **context)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert counted.size == size
    assert peak < 6 * ENVELOPE_CHUNK_BYTES


def test_a_writer_that_takes_less_is_an_error() -> None:
    class Full:
        def write(self, data: bytes | memoryview, /) -> int:
            return len(data) - 1

    context = {"folder_key": FOLDER_KEY, "record": RECORD, "version": VERSION, "chain_id": CHAIN}
    for content in (CONTENT, bytes(CHUNK_BYTES_MIN + 1)):
        blob = stream_sealed(content)
        for call in (
            lambda content=content: seal_stream(
                BytesIO(content), Full(), **context, chunk_bytes=CHUNK_BYTES_MIN
            ),
            lambda blob=blob: open_stream(BytesIO(blob), Full(), **context),
        ):
            with pytest.raises(LedgerError) as refusal:
                call()
            assert refusal.value.code is Code.STORAGE


def test_no_blob_exceeds_the_store(monkeypatch: pytest.MonkeyPatch) -> None:  # SPEC-ENV-7
    blob = stream_sealed(bytes(3 * CHUNK_BYTES_MIN))
    monkeypatch.setattr(envelope, "BLOB_BYTES_MAX", len(blob))
    assert len(stream_sealed(bytes(3 * CHUNK_BYTES_MIN))) == len(blob)
    assert stream_opened(blob) == open_record(blob)
    monkeypatch.setattr(envelope, "BLOB_BYTES_MAX", len(blob) - 1)
    with pytest.raises(EnvelopeError) as refusal:
        stream_sealed(bytes(3 * CHUNK_BYTES_MIN))
    assert refusal.value.code is Code.OVERSIZED
    for call in (open_record, stream_opened):
        with pytest.raises(EnvelopeError):
            call(blob)

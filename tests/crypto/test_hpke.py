"""HPKE key wrapping, against RFC 9180's vectors through a slow implementation of the RFC kept here.

The vectors have associated data and the engine never does, so they cannot be put to it directly. They prove
the oracle below instead, and the oracle is then played against the engine in both directions.
"""

import hashlib
import hmac
import json
import pickle
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.mlkem import MLKEM768PrivateKey, MLKEM768PublicKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from hypothesis import given, settings
from hypothesis import strategies as st

from fastledger.crypto.hpke import (
    DEFAULT_SUITE,
    KemPrivateKey,
    KemSuite,
    context_info,
    public_key_suite,
    wrap,
    wrapped_bytes,
)
from fastledger.errors import Code, EnvelopeError
from fastledger.limits import KEM_PUBLIC_KEY_BYTES_MAX, WRAPPED_KEY_BYTES_MAX

KEY = bytes(range(32))
INFO = context_info("fastledger/test/v1", b"context", 7)
SUITES = list(KemSuite)
READERS = {suite: KemPrivateKey(suite, hashlib.sha256(suite.name.encode()).digest()) for suite in SUITES}
XWING_LABEL = bytes.fromhex("5c2e2f2f5e5c")
WRAPPED = {suite: wrap(READERS[suite].public_bytes, KEY, INFO) for suite in SUITES}


# The oracle: RFC 9180, base mode, KDF HKDF-SHA256.


def extract(salt: bytes, material: bytes) -> bytes:
    return hmac.digest(salt or bytes(32), material, "sha256")


def expand(key: bytes, info: bytes, size: int) -> bytes:
    okm = block = b""
    while len(okm) < size:
        block = hmac.digest(key, block + info + bytes([len(okm) // 32 + 1]), "sha256")
        okm += block
    return okm[:size]


def labeled_extract(suite_id: bytes, salt: bytes, label: bytes, material: bytes) -> bytes:
    return extract(salt, b"HPKE-v1" + suite_id + label + material)


def labeled_expand(suite_id: bytes, key: bytes, label: bytes, info: bytes, size: int) -> bytes:
    return expand(key, size.to_bytes(2, "big") + b"HPKE-v1" + suite_id + label + info, size)


def x25519(secret: bytes, public: bytes) -> bytes:
    return X25519PrivateKey.from_private_bytes(secret).exchange(X25519PublicKey.from_public_bytes(public))


def x25519_public(secret: bytes) -> bytes:
    return X25519PrivateKey.from_private_bytes(secret).public_key().public_bytes_raw()


def dhkem_shared_secret(dh: bytes, enc: bytes, recipient: bytes) -> bytes:
    """§4.1, ExtractAndExpand for DHKEM(X25519, HKDF-SHA256)."""
    kem_id = b"KEM" + (0x0020).to_bytes(2, "big")
    prk = labeled_extract(kem_id, b"", b"eae_prk", dh)
    return labeled_expand(kem_id, prk, b"shared_secret", enc + recipient, 32)


def key_schedule(kem: int, aead: int, shared_secret: bytes, info: bytes) -> tuple[bytes, bytes]:
    """§5.1 with mode_base: AEAD key and base nonce."""
    suite_id = b"HPKE" + kem.to_bytes(2, "big") + (1).to_bytes(2, "big") + aead.to_bytes(2, "big")
    context = b"\x00" + labeled_extract(suite_id, b"", b"psk_id_hash", b"")
    context += labeled_extract(suite_id, b"", b"info_hash", info)
    secret = labeled_extract(suite_id, shared_secret, b"secret", b"")
    key_bytes = {1: 16, 2: 32}[aead]
    key = labeled_expand(suite_id, secret, b"key", context, key_bytes)
    return key, labeled_expand(suite_id, secret, b"base_nonce", context, 12)


def xwing_shared_secret(mlkem: bytes, dh: bytes, enc_x: bytes, public_x: bytes) -> bytes:
    """draft-connolly-cfrg-xwing-kem §5.3, Combiner."""
    return hashlib.sha3_256(mlkem + dh + enc_x + public_x + XWING_LABEL).digest()


def xwing_expand(seed: bytes) -> tuple[MLKEM768PrivateKey, bytes]:
    expanded = hashlib.shake_256(seed).digest(96)
    return MLKEM768PrivateKey.from_seed_bytes(expanded[:64]), expanded[64:]


def oracle_seal(suite: KemSuite, public: bytes, key: bytes, info: bytes) -> bytes:
    """``enc ‖ ct`` for a raw public key."""
    ephemeral = X25519PrivateKey.generate().private_bytes_raw()
    enc = x25519_public(ephemeral)
    if suite is KemSuite.X25519:
        shared_secret = dhkem_shared_secret(x25519(ephemeral, public), enc, public)
    else:
        public_x = public[1184:]
        mlkem, enc_mlkem = MLKEM768PublicKey.from_public_bytes(public[:1184]).encapsulate()
        shared_secret = xwing_shared_secret(mlkem, x25519(ephemeral, public_x), enc, public_x)
        enc = enc_mlkem + enc
    aead_key, nonce = key_schedule(int(suite), 2, shared_secret, info)
    return enc + AESGCM(aead_key).encrypt(nonce, key, b"")


def oracle_open(suite: KemSuite, secret: bytes, wrapped: bytes, info: bytes) -> bytes:
    if suite is KemSuite.X25519:
        enc, ciphertext = wrapped[:32], wrapped[32:]
        shared_secret = dhkem_shared_secret(x25519(secret, enc), enc, x25519_public(secret))
    else:
        enc_mlkem, enc, ciphertext = wrapped[:1088], wrapped[1088:1120], wrapped[1120:]
        mlkem, scalar = xwing_expand(secret)
        shared_secret = xwing_shared_secret(
            mlkem.decapsulate(enc_mlkem), x25519(scalar, enc), enc, x25519_public(scalar)
        )
    aead_key, nonce = key_schedule(int(suite), 2, shared_secret, info)
    return AESGCM(aead_key).decrypt(nonce, ciphertext, b"")


@pytest.mark.data
def test_oracle_agrees_with_rfc_9180(shared_data: Path) -> None:
    vectors = json.loads((shared_data / "hpke" / "x25519-hkdfsha256.json").read_text())
    checked = 0
    for vector in vectors:
        if vector["mode"] != 0 or vector["aead_id"] not in (1, 2):
            continue
        fields = {name: bytes.fromhex(vector[name]) for name in ("skRm", "pkRm", "enc", "info")}
        assert x25519_public(fields["skRm"]) == fields["pkRm"]
        shared_secret = dhkem_shared_secret(
            x25519(fields["skRm"], fields["enc"]), fields["enc"], fields["pkRm"]
        )
        assert shared_secret.hex() == vector["shared_secret"]
        key, base_nonce = key_schedule(0x0020, vector["aead_id"], shared_secret, fields["info"])
        assert (key.hex(), base_nonce.hex()) == (vector["key"], vector["base_nonce"])
        for message in vector["encryptions"]:
            item = {name: bytes.fromhex(value) for name, value in message.items()}
            assert AESGCM(key).decrypt(item["nonce"], item["ct"], item["aad"]) == item["pt"]
            checked += 1
    assert checked > 10


@pytest.mark.data
def test_reads_the_rfc_9180_recipient_key(shared_data: Path) -> None:
    vector = json.loads((shared_data / "hpke" / "x25519-hkdfsha256.json").read_text())[0]
    reader = KemPrivateKey(KemSuite.X25519, bytes.fromhex(vector["skRm"]))
    assert reader.public_bytes.hex() == "0020" + vector["pkRm"]


def test_hybrid_key_is_that_of_the_xwing_draft() -> None:
    """First vector of draft-connolly-cfrg-xwing-kem-08, appendix C: ``sk``, and ``pk`` by its SHA-256."""
    seed = bytes.fromhex("7f9c2ba4e88f827d616045507605853ed73b8093f6efbc88eb1a6eacfa66ef26")
    raw_public = KemPrivateKey(KemSuite.MLKEM768_X25519, seed).public_bytes[2:]
    digest = "2e816deebcd76c5c80d0cd2d174478871658e8e2ff42bc9d4a6e486372e856bb"
    assert hashlib.sha256(raw_public).hexdigest() == digest


@pytest.mark.parametrize("suite", SUITES)
def test_oracle_opens_what_wrap_sealed(suite: KemSuite) -> None:  # SPEC-KEM-3
    reader = READERS[suite]
    secret = reader.to_bytes()[3:]
    assert oracle_open(suite, secret, wrap(reader.public_bytes, KEY, INFO), INFO) == KEY


@pytest.mark.parametrize("suite", SUITES)
def test_unwrap_opens_what_the_oracle_sealed(suite: KemSuite) -> None:  # SPEC-KEM-3
    reader = READERS[suite]
    assert reader.unwrap(oracle_seal(suite, reader.public_bytes[2:], KEY, INFO), INFO) == KEY


def test_an_older_wrapped_key_still_opens() -> None:
    """Frozen when the format was; made by ``wrap`` and confirmed by the oracle."""
    wrapped = bytes.fromhex(
        "7a9c8ab5f74c779f78fdf0772ed2596d7857907fde8f1ba25d0d34bffe9fe67e7548319fb52a382a"
        "24ac076440763153c4a1d051dd8a958b2aea73a23df6b63f49598f3d714b3bf46e58150ca051e96b"
    )
    secret = READERS[KemSuite.X25519].to_bytes()[3:]
    assert READERS[KemSuite.X25519].unwrap(wrapped, INFO) == KEY
    assert oracle_open(KemSuite.X25519, secret, wrapped, INFO) == KEY


@pytest.mark.parametrize("suite", SUITES)
def test_sizes_fit_the_chain_limits(suite: KemSuite) -> None:  # SPEC-KEM-1
    expected = {KemSuite.X25519: (34, 80), KemSuite.MLKEM768_X25519: (1218, 1168)}
    assert (len(READERS[suite].public_bytes), len(WRAPPED[suite])) == expected[suite]
    assert len(WRAPPED[suite]) == wrapped_bytes(suite) <= WRAPPED_KEY_BYTES_MAX
    assert len(READERS[suite].public_bytes) <= KEM_PUBLIC_KEY_BYTES_MAX


def test_default_is_the_hybrid() -> None:
    assert DEFAULT_SUITE is KemSuite.MLKEM768_X25519
    assert KemPrivateKey.generate().suite is DEFAULT_SUITE


def test_wrapping_twice_gives_two_ciphertexts() -> None:
    public = READERS[KemSuite.X25519].public_bytes
    assert wrap(public, KEY, INFO) != wrap(public, KEY, INFO)


@pytest.mark.parametrize("suite", SUITES)
def test_private_key_survives_its_encoding(suite: KemSuite) -> None:  # SPEC-KEM-2
    key = KemPrivateKey.generate(suite)
    again = KemPrivateKey.from_bytes(key.to_bytes())
    assert (again.suite, again.public_bytes, again.to_bytes()) == (suite, key.public_bytes, key.to_bytes())
    assert again.unwrap(wrap(key.public_bytes, KEY, INFO), INFO) == KEY


@pytest.mark.parametrize("suite", SUITES)
def test_wrong_context_or_reader_is_refused(suite: KemSuite) -> None:  # SPEC-KEM-4
    wrapped = WRAPPED[suite]
    for reader, info in (
        (READERS[suite], context_info("fastledger/test/v1", b"context", 8)),
        (READERS[suite], context_info("fastledger/test/v2", b"context", 7)),
        (READERS[suite], b""),
        (KemPrivateKey.generate(suite), INFO),
    ):
        with pytest.raises(EnvelopeError) as refusal:
            reader.unwrap(wrapped, info)
        assert refusal.value.code is Code.BAD_ENVELOPE


def test_the_other_suite_is_refused() -> None:
    for suite, other in ((SUITES[0], SUITES[1]), (SUITES[1], SUITES[0])):
        with pytest.raises(EnvelopeError):
            READERS[suite].unwrap(WRAPPED[other], INFO)


@pytest.mark.parametrize("suite", SUITES)
@given(data=st.data())
@settings(max_examples=150, deadline=None)
def test_every_damage_is_refused_alike(suite: KemSuite, data: st.DataObject) -> None:
    """ML-KEM rejects implicitly, so a flipped bit anywhere must show in the AEAD."""
    wrapped = bytearray(WRAPPED[suite])
    position = data.draw(st.integers(0, len(wrapped) - 1))
    bit = data.draw(st.integers(0, 7))
    # X25519 ignores the top bit of a point, but DHKEM and X-Wing both hash the bytes as they came.
    wrapped[position] ^= 1 << bit
    with pytest.raises(EnvelopeError) as refusal:
        READERS[suite].unwrap(bytes(wrapped), INFO)
    assert str(refusal.value) == f"bad-envelope: a wrapped key of {len(wrapped)} bytes does not open"


@pytest.mark.parametrize("suite", SUITES)
def test_wrapped_keys_of_other_lengths_are_refused(suite: KemSuite) -> None:
    wrapped = WRAPPED[suite]
    for blob in (
        b"",
        wrapped[:-1],
        wrapped + b"\0",
        wrapped[:31],
        oracle_seal(suite, READERS[suite].public_bytes[2:], KEY[:31], INFO),
    ):
        with pytest.raises(EnvelopeError):
            READERS[suite].unwrap(blob, INFO)


@pytest.mark.parametrize("suite", SUITES)
def test_public_keys_of_wrong_form_are_refused(suite: KemSuite) -> None:  # SPEC-KEM-1
    public = READERS[suite].public_bytes
    assert public_key_suite(public) is suite
    for bad in (b"", public[:1], public[:2], public[:-1], public + b"\0", b"\x00\x21" + public[2:]):
        for call in (lambda bad=bad: public_key_suite(bad), lambda bad=bad: wrap(bad, KEY, INFO)):
            with pytest.raises(EnvelopeError) as refusal:
                call()
            assert refusal.value.code is Code.BAD_KEY


def test_unusable_public_keys_are_refused() -> None:
    """Small-order X25519 points (RFC 9180 §7.1.4), and ML-KEM coefficients not below q (FIPS 203 §7.2)."""
    hybrid = READERS[KemSuite.MLKEM768_X25519].public_bytes
    for bad in (
        b"\x00\x20" + bytes(32),
        hybrid[:-32] + bytes(32),
        hybrid[:2] + b"\xff" * 1184 + hybrid[-32:],
    ):
        with pytest.raises(EnvelopeError) as refusal:
            wrap(bad, KEY, INFO)
        assert refusal.value.code is Code.BAD_KEY


def test_only_32_byte_keys_are_wrapped() -> None:
    for key in (b"", KEY[:16], KEY + b"\0"):
        with pytest.raises(EnvelopeError) as refusal:
            wrap(READERS[KemSuite.X25519].public_bytes, key, INFO)
        assert refusal.value.code is Code.MALFORMED


@given(st.binary(max_size=80))
def test_any_bytes_are_a_private_key_or_refused(encoded: bytes) -> None:
    try:
        key = KemPrivateKey.from_bytes(encoded)
    except EnvelopeError as refusal:
        assert refusal.code is Code.BAD_KEY
    else:
        assert key.to_bytes() == encoded


def test_private_keys_of_wrong_form_are_refused() -> None:  # SPEC-KEM-2
    encoded = READERS[KemSuite.X25519].to_bytes()
    for bad in (
        encoded[:-1],
        encoded + b"\0",
        b"\x02" + encoded[1:],
        encoded[:1] + b"\x00\x21" + encoded[3:],
    ):
        with pytest.raises(EnvelopeError):
            KemPrivateKey.from_bytes(bad)


def test_contexts_cannot_run_into_each_other() -> None:
    assert context_info("a", b"bc") != context_info("a", b"b", b"c") != context_info("ab", b"c")
    assert context_info("label", b"\x01\x02", 300).hex() == "83656c6162656c42010219012c"


def test_a_private_key_does_not_show_itself() -> None:
    key = KemPrivateKey.generate()
    assert key.to_bytes()[3:].hex() not in repr(key)
    assert repr(key) == "KemPrivateKey(MLKEM768_X25519)"
    with pytest.raises(TypeError):
        pickle.dumps(key)

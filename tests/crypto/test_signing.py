"""Signing keys and the verification of single signatures."""

import copy
import hashlib
import pickle

import pytest
from coincurve import PrivateKey, PublicKey
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import Prehashed, decode_dss_signature
from cryptography.hazmat.primitives.hashes import SHA256
from hypothesis import given, settings
from hypothesis import strategies as st

from fastledger.crypto.signing import LOW_S_MAX, ORDER, SigningKey, normalize_low_s, verify_batch, verify_one
from fastledger.errors import Code, InputError, TransactionError

digests = st.binary(min_size=32, max_size=32)
secrets = st.integers(1, ORDER - 1).map(lambda scalar: scalar.to_bytes(32, "big"))


def high_s(signature: bytes) -> bytes:
    return signature[:32] + (ORDER - int.from_bytes(signature[32:], "big")).to_bytes(32, "big")


@settings(max_examples=50)
@given(secrets, digests)
def test_what_is_signed_verifies_and_is_canonical(secret: bytes, digest: bytes) -> None:  # SPEC-SIG-3
    key = SigningKey.from_bytes(secret)
    signature = key.sign(digest)
    assert len(signature) == 64
    assert int.from_bytes(signature[32:], "big") <= LOW_S_MAX
    verify_one(digest, signature, key.public_key)
    assert normalize_low_s(signature) == signature
    assert normalize_low_s(high_s(signature)) == signature


# Published with RFC 6979 for this curve by several wallets: secret, message (hashed by SHA-256), r || s.
RFC6979_VECTORS = [
    (
        1,
        b"Satoshi Nakamoto",
        "934b1ea10a4b3c1757e2b0c017d0b6143ce3c9a7e6a4a49860d7a6ab210ee3d8"
        "2442ce9d2b916064108014783e923ec36b49743e2ffa1c4496f01a512aafd9e5",
    ),
    (
        1,
        b"All those moments will be lost in time, like tears in rain. Time to die...",
        "8600dbd41e348fe5c9465ab92d23e3db8b98b873beecd930736488696438cb6b"
        "547fe64427496db33bf66019dacbf0039c04199abb0122918601db38a72cfc21",
    ),
    (
        ORDER - 1,
        b"Satoshi Nakamoto",
        "fd567d121db66e382991534ada77a6bd3106f0a1098c231e47993447cd6af2d0"
        "6b39cd0eb1bc8603e159ef5c20a5c8ad685a45b06ce9bebed3f153d10d93bed5",
    ),
]


@pytest.mark.parametrize(("scalar", "message", "expected"), RFC6979_VECTORS)
def test_nonces_are_those_of_rfc6979(scalar: int, message: bytes, expected: str) -> None:
    key = SigningKey.from_bytes(scalar.to_bytes(32, "big"))
    assert key.sign(hashlib.sha256(message).digest()).hex() == expected


def test_another_implementation_agrees() -> None:
    ours = SigningKey.generate()
    theirs = ec.derive_private_key(int.from_bytes(ours.secret_bytes(), "big"), ec.SECP256K1())
    for index in range(20):
        digest = bytes([index]) * 32
        r, s = decode_dss_signature(theirs.sign(digest, ec.ECDSA(Prehashed(SHA256()))))
        foreign = r.to_bytes(32, "big") + s.to_bytes(32, "big")
        verify_one(digest, normalize_low_s(foreign), ours.public_key)


def test_generated_keys_differ_and_survive_their_secret() -> None:
    first, second = SigningKey.generate(), SigningKey.generate()
    assert first.public_key != second.public_key
    assert SigningKey.from_bytes(first.secret_bytes()).public_key == first.public_key
    assert len(first.public_key) == 33
    assert PublicKey(first.public_key) == PrivateKey(first.secret_bytes()).public_key


@pytest.mark.parametrize(
    "secret", [b"", bytes(31), bytes(32), bytes(33), ORDER.to_bytes(32, "big"), b"\xff" * 32, b"\x01"]
)
def test_secrets_out_of_range_are_refused(secret: bytes) -> None:
    with pytest.raises(InputError) as caught:
        SigningKey.from_bytes(secret)
    assert caught.value.code is Code.BAD_KEY
    assert caught.value.__cause__ is None


def test_the_secret_is_not_shown() -> None:
    key = SigningKey.generate()
    shown = f"{key!r} {key!s} {[key]}"
    assert key.public_key.hex() in shown
    secret = key.secret_bytes()
    assert secret.hex() not in shown
    assert repr(secret) not in shown
    for copier in (pickle.dumps, copy.deepcopy):
        with pytest.raises(TypeError):
            copier(key)


def test_sign_many_signs_each() -> None:
    key = SigningKey.generate()
    digests = bytes(range(96))
    signatures = key.sign_many(digests)
    assert signatures == b"".join(key.sign(digests[i : i + 32]) for i in (0, 32, 64))
    assert verify_batch(digests, signatures, key.public_key * 3) == b"\x01\x01\x01"
    assert key.sign_many(b"") == b""


def test_only_whole_digests_are_signed() -> None:
    key = SigningKey.generate()
    for size in (0, 31, 33, 64):
        with pytest.raises(ValueError, match="digest"):
            key.sign(bytes(size))
    with pytest.raises(ValueError, match="digests"):
        key.sign_many(bytes(33))


def test_verify_one_refuses() -> None:  # SPEC-SIG-3
    key = SigningKey.generate()
    digest = b"\x07" * 32
    signature = key.sign(digest)
    verify_one(digest, signature, key.public_key)
    refused = [
        (bytes(32), signature, key.public_key),
        (digest, high_s(signature), key.public_key),
        (digest, bytes(64), key.public_key),
        (digest, signature, SigningKey.generate().public_key),
        (digest, signature, bytes(33)),
        (digest[:31], signature, key.public_key),
        (digest, signature + b"\x00", key.public_key),
        (digest * 2, signature * 2, key.public_key * 2),
        (b"", b"", b""),
    ]
    for arguments in refused:
        with pytest.raises(TransactionError) as caught:
            verify_one(*arguments)
        assert caught.value.code is Code.BAD_SIGNATURE


def test_normalize_refuses_what_no_signature_is() -> None:  # SPEC-SIG-4
    one = (1).to_bytes(32, "big")
    order = ORDER.to_bytes(32, "big")
    for signature in (
        b"",
        bytes(63),
        bytes(65),
        bytes(64),
        one + bytes(32),
        bytes(32) + one,
        one + order,
        order + one,
    ):
        with pytest.raises(TransactionError) as caught:
            normalize_low_s(signature)
        assert caught.value.code is Code.BAD_SIGNATURE
    half = LOW_S_MAX.to_bytes(32, "big")
    beyond = (LOW_S_MAX + 1).to_bytes(32, "big")
    assert normalize_low_s(one + half) == one + half
    assert normalize_low_s(one + beyond) == one + half

"""Key wrapping to one reader: HPKE (RFC 9180) base mode, post-quantum hybrid by default.

Suite: KEM as chosen by the recipient's key, KDF HKDF-SHA256, AEAD AES-256-GCM, single-shot, empty AAD. All
context is bound through ``info``; build it with :func:`context_info`, so that two uses can never collide.

The hybrid KEM is X-Wing, HPKE's MLKEM768-X25519 (IANA HPKE KEM 0x647A; draft-connolly-cfrg-xwing-kem,
draft-ietf-hpke-pq): it stays secret while either ML-KEM-768 or X25519 stands. Keys are kept in the forms
that those documents give them, so any HPKE library can open what is wrapped here.

==============  ================================================  ======  ========
form            layout                                            X25519  hybrid
==============  ================================================  ======  ========
public key      u16 KEM id, raw public key                        34      1,218
private key     u8 format version, u16 KEM id, 32-byte secret     35      35
wrapped key     ``enc`` then ``ct``, as RFC 9180 §6.1 gives them  80      1,168
==============  ================================================  ======  ========
"""

import hashlib
from collections.abc import Callable
from enum import IntEnum, unique
from secrets import token_bytes
from typing import Final, NamedTuple, NoReturn

import cbor2
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.asymmetric.mlkem import MLKEM768PrivateKey, MLKEM768PublicKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.hpke import (
    AEAD,
    KDF,
    KEM,
    MLKEM768X25519PrivateKey,
    MLKEM768X25519PublicKey,
    Suite,
)

from fastledger.errors import Code, EnvelopeError

KEY_BYTES: Final = 32
"""Every symmetric key of the engine, and the only thing that is ever wrapped."""

PRIVATE_KEY_FORMAT: Final = 1

_MLKEM_SEED_BYTES: Final = 64
_MLKEM_PUBLIC_BYTES: Final = 1184
_TAG_BYTES: Final = 16

_PublicKey = X25519PublicKey | MLKEM768X25519PublicKey
_PrivateKey = X25519PrivateKey | MLKEM768X25519PrivateKey


@unique
class KemSuite(IntEnum):
    """Key encapsulation mechanisms by their IANA HPKE KEM identifier."""

    X25519 = 0x0020
    MLKEM768_X25519 = 0x647A


DEFAULT_SUITE: Final = KemSuite.MLKEM768_X25519


class _Mechanism(NamedTuple):
    """The parts in which the KEM suites differ."""

    suite: Suite
    public_bytes: int
    enc_bytes: int
    load_public: Callable[[bytes], _PublicKey]
    load_secret: Callable[[bytes], tuple[_PrivateKey, bytes]]


def _load_hybrid_public(raw: bytes) -> MLKEM768X25519PublicKey:
    return MLKEM768X25519PublicKey(
        MLKEM768PublicKey.from_public_bytes(raw[:_MLKEM_PUBLIC_BYTES]),
        X25519PublicKey.from_public_bytes(raw[_MLKEM_PUBLIC_BYTES:]),
    )


def _load_hybrid_secret(seed: bytes) -> tuple[MLKEM768X25519PrivateKey, bytes]:
    """Expand the 32-byte X-Wing seed by SHAKE256 to d ‖ z ‖ X25519 scalar, as its draft says in §5.2."""
    expanded = hashlib.shake_256(seed).digest(_MLKEM_SEED_BYTES + KEY_BYTES)
    mlkem = MLKEM768PrivateKey.from_seed_bytes(expanded[:_MLKEM_SEED_BYTES])
    x25519 = X25519PrivateKey.from_private_bytes(expanded[_MLKEM_SEED_BYTES:])
    public = mlkem.public_key().public_bytes_raw() + x25519.public_key().public_bytes_raw()
    return MLKEM768X25519PrivateKey(mlkem, x25519), public


def _load_x25519_secret(secret: bytes) -> tuple[X25519PrivateKey, bytes]:
    key = X25519PrivateKey.from_private_bytes(secret)
    return key, key.public_key().public_bytes_raw()


_MECHANISMS: Final[dict[KemSuite, _Mechanism]] = {
    KemSuite.X25519: _Mechanism(
        suite=Suite(KEM.X25519, KDF.HKDF_SHA256, AEAD.AES_256_GCM),
        public_bytes=32,
        enc_bytes=32,
        load_public=X25519PublicKey.from_public_bytes,
        load_secret=_load_x25519_secret,
    ),
    KemSuite.MLKEM768_X25519: _Mechanism(
        suite=Suite(KEM.MLKEM768_X25519, KDF.HKDF_SHA256, AEAD.AES_256_GCM),
        public_bytes=_MLKEM_PUBLIC_BYTES + 32,
        enc_bytes=1088 + 32,
        load_public=_load_hybrid_public,
        load_secret=_load_hybrid_secret,
    ),
}


def wrapped_bytes(suite: KemSuite) -> int:
    """The exact size of a 32-byte key wrapped under ``suite``: 80 or 1,168 bytes."""
    return _MECHANISMS[suite].enc_bytes + KEY_BYTES + _TAG_BYTES


def public_key_suite(public_bytes: bytes) -> KemSuite:
    """The suite that an encoded public key belongs to, judged by KEM id and length alone.

    Whether the key is a usable one shows only in :func:`wrap`; this much is cheap and every implementation
    agrees on it, so that rules of the chain may use it.

    Raises:
        EnvelopeError: ``BAD_KEY``, unknown KEM id or wrong length.
    """
    suite = _suite_of(public_bytes[:2])
    if len(public_bytes) != 2 + _MECHANISMS[suite].public_bytes:
        raise EnvelopeError(f"{len(public_bytes)} bytes are no public key of {suite.name}", code=Code.BAD_KEY)
    return suite


def context_info(label: str, *parts: bytes | int) -> bytes:
    """The HPKE ``info`` of one use: the deterministic CBOR array ``[label, *parts]`` (RFC 8949 §4.2.1)."""
    return cbor2.dumps([label, *parts], canonical=True)


def wrap(public_bytes: bytes, key: bytes, info: bytes) -> bytes:
    """Wrap a 32-byte key so that only the holder of one private key gets it back.

    HPKE base mode does not authenticate the sender: who wrapped a key is told by the signature of the
    transaction that carries it.

    Returns:
        ``enc ‖ ct``, :func:`wrapped_bytes` long.

    Raises:
        EnvelopeError: ``BAD_KEY``, the public key is not one; ``MALFORMED``, ``key`` is not 32 bytes.
    """
    _check_key(key)
    mechanism = _MECHANISMS[public_key_suite(public_bytes)]
    try:
        return mechanism.suite.encrypt(key, mechanism.load_public(public_bytes[2:]), info)
    except ValueError:  # An ML-KEM key out of range, or an X25519 point of small order (RFC 9180 §7.1.4).
        raise EnvelopeError("the recipient's public key is not a valid one", code=Code.BAD_KEY) from None


class KemPrivateKey:
    """A reader's private key; opens what :func:`wrap` made for its ``public_bytes``.

    Attributes:
        suite: the KEM.
        public_bytes: the encoded public key, 1,218 bytes (hybrid) or 34 (X25519).
    """

    __slots__ = ("_private", "_secret", "public_bytes", "suite")

    def __init__(self, suite: KemSuite, secret: bytes) -> None:
        """Take a key from its 32-byte secret: an X-Wing seed or an X25519 scalar.

        Raises:
            EnvelopeError: ``BAD_KEY``, ``secret`` is not 32 bytes.
        """
        if len(secret) != KEY_BYTES:
            raise EnvelopeError(f"a KEM secret of {len(secret)} bytes, not {KEY_BYTES}", code=Code.BAD_KEY)
        self.suite = suite
        self._secret = bytes(secret)
        self._private, raw_public = _MECHANISMS[suite].load_secret(self._secret)
        self.public_bytes = suite.to_bytes(2, "big") + raw_public

    @classmethod
    def generate(cls, suite: KemSuite = DEFAULT_SUITE) -> "KemPrivateKey":
        """Make a fresh random key."""
        return cls(suite, token_bytes(KEY_BYTES))

    @classmethod
    def from_bytes(cls, encoded: bytes) -> "KemPrivateKey":
        """Read what :meth:`to_bytes` wrote.

        Raises:
            EnvelopeError: ``BAD_KEY``, another format version, unknown KEM id or wrong length.
        """
        if encoded[:1] != bytes([PRIVATE_KEY_FORMAT]):
            raise EnvelopeError("a private key of unknown format version", code=Code.BAD_KEY)
        return cls(_suite_of(encoded[1:3]), encoded[3:])

    def to_bytes(self) -> bytes:
        """The encoded private key, 35 bytes. It is secret: it belongs in a keystore."""
        return bytes([PRIVATE_KEY_FORMAT]) + self.suite.to_bytes(2, "big") + self._secret

    def unwrap(self, wrapped: bytes, info: bytes) -> bytes:
        """Open a wrapped key; ``info`` must be what it was wrapped with.

        Raises:
            EnvelopeError: ``BAD_ENVELOPE`` for a wrong key, a wrong context or damage alike: whoever could not open it
                learns nothing about why.
        """
        if len(wrapped) != wrapped_bytes(self.suite):
            _refuse(wrapped)
        try:
            key = _MECHANISMS[self.suite].suite.decrypt(wrapped, self._private, info)
        except (InvalidTag, ValueError):
            _refuse(wrapped)
        return key

    def __repr__(self) -> str:
        return f"KemPrivateKey({self.suite.name})"

    def __reduce__(self) -> NoReturn:
        # Pickling would carry the secret out of the keystore by the back door.
        raise TypeError("a private key is not picklable")


def _suite_of(kem_id: bytes) -> KemSuite:
    try:
        return KemSuite(int.from_bytes(kem_id, "big"))
    except ValueError:
        raise EnvelopeError("a key of unknown KEM", code=Code.BAD_KEY) from None


def _check_key(key: bytes) -> None:
    if len(key) != KEY_BYTES:
        raise EnvelopeError(f"a key of {len(key)} bytes, not {KEY_BYTES}", code=Code.MALFORMED)


def _refuse(wrapped: bytes) -> NoReturn:
    raise EnvelopeError(f"a wrapped key of {len(wrapped)} bytes does not open") from None

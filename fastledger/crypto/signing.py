"""Signatures of transactions: ECDSA on secp256k1 (ES256K, RFC 8812) over 32-byte digests.

A signature is 64 bytes, r || s, big-endian, with s in the lower half of its range (BIP-146), so that no third
party can turn one valid signature into another. Secrets stay inside libsecp256k1, which is constant-time;
verification runs in batches (``verify_batch``), the rules being the same for one signature and for thousands.
"""

from typing import Self

from coincurve import PrivateKey

from fastledger._native.ecdsa import ecdsa_backend, resize_key_cache, set_table_memory, verify_batch
from fastledger.errors import Code, InputError, TransactionError

__all__ = [
    "DIGEST_BYTES",
    "PUBLIC_KEY_BYTES",
    "SECRET_BYTES",
    "SIGNATURE_BYTES",
    "SigningKey",
    "ecdsa_backend",
    "normalize_low_s",
    "resize_key_cache",
    "set_table_memory",
    "verify_batch",
    "verify_one",
]

DIGEST_BYTES = 32
PUBLIC_KEY_BYTES = 33
SECRET_BYTES = 32
SIGNATURE_BYTES = 64

# Order of the curve's group (SEC 2, section 2.4.1), and the largest s of a canonical signature.
ORDER = 0xFFFFFFFF_FFFFFFFF_FFFFFFFF_FFFFFFFE_BAAEDCE6_AF48A03B_BFD25E8C_D0364141
LOW_S_MAX = ORDER // 2


class SigningKey:
    """A private key; ``repr`` and errors never show the secret."""

    __slots__ = ("_private", "_public")

    def __init__(self, private: PrivateKey) -> None:
        self._private = private
        self._public: bytes = private.public_key.format(compressed=True)

    @classmethod
    def generate(cls) -> Self:
        """Makes a new key from the operating system's randomness."""
        return cls(PrivateKey())

    @classmethod
    def from_bytes(cls, secret: bytes) -> Self:
        """Returns the key of a 32-byte secret scalar; InputError (``BAD_KEY``) unless 1 <= scalar < group order."""
        if len(secret) != SECRET_BYTES:
            raise InputError(f"a secret has {SECRET_BYTES} bytes, not {len(secret)}", code=Code.BAD_KEY)
        try:
            return cls(PrivateKey(secret))
        except ValueError:
            raise InputError("the secret is zero or not below the group order", code=Code.BAD_KEY) from None

    @property
    def public_key(self) -> bytes:
        """The compressed public key, 33 bytes."""
        return self._public

    def secret_bytes(self) -> bytes:
        """Returns the 32-byte secret, which belongs in a keystore and nowhere else."""
        secret: bytes = self._private.secret
        return secret

    def sign(self, digest: bytes) -> bytes:
        """Signs a digest of 32 bytes: 64 bytes r || s, low s, the nonce derived as RFC 6979 says.

        Raises:
            ValueError: the digest has another length.
        """
        if len(digest) != DIGEST_BYTES:
            raise ValueError(f"digest: expected {DIGEST_BYTES} bytes, got {len(digest)}")
        recoverable: bytes = self._private.sign_recoverable(digest, hasher=None)
        return recoverable[:SIGNATURE_BYTES]

    def sign_many(self, digests: bytes) -> bytes:
        """Signs n digests (n x 32 bytes in one buffer); returns n x 64 bytes of signatures.

        This is for clients: it gives up the GIL at each signature.

        Raises:
            ValueError: the digests are not n x 32 bytes.
        """
        if len(digests) % DIGEST_BYTES:
            raise ValueError(f"digests: expected n x {DIGEST_BYTES} bytes, got {len(digests)}")
        starts = range(0, len(digests), DIGEST_BYTES)
        return b"".join([self.sign(digests[start : start + DIGEST_BYTES]) for start in starts])

    def __repr__(self) -> str:
        return f"SigningKey(public_key={self._public.hex()})"


def normalize_low_s(signature: bytes) -> bytes:
    """Returns the canonical form of a signature r || s made elsewhere: s or the order minus s, whichever is low.

    Both are valid for the same digest and key. Raises TransactionError (``BAD_SIGNATURE``) for another length, or
    for r or s outside 1 .. order - 1, which no signature has (SPEC-SIG-4).
    """
    if len(signature) != SIGNATURE_BYTES:
        raise TransactionError(
            f"a signature has {SIGNATURE_BYTES} bytes, not {len(signature)}", code=Code.BAD_SIGNATURE
        )
    r = int.from_bytes(signature[:32], "big")
    s = int.from_bytes(signature[32:], "big")
    if not 0 < r < ORDER or not 0 < s < ORDER:
        raise TransactionError("r or s is out of range", code=Code.BAD_SIGNATURE)
    if s <= LOW_S_MAX:
        return bytes(signature)
    return bytes(signature[:32]) + (ORDER - s).to_bytes(32, "big")


def verify_one(digest: bytes, signature: bytes, key: bytes) -> None:
    """Verifies one signature (digest 32, signature 64, key 33 bytes).

    Raises TransactionError (``BAD_SIGNATURE``) unless it is good.
    """
    sizes = (len(digest), len(signature), len(key))
    if sizes != (DIGEST_BYTES, SIGNATURE_BYTES, PUBLIC_KEY_BYTES):
        raise TransactionError(
            f"digest, signature and key have 32, 64 and 33 bytes, not {sizes[0]}, {sizes[1]} and {sizes[2]}",
            code=Code.BAD_SIGNATURE,
        )
    if verify_batch(digest, signature, key) != b"\x01":
        raise TransactionError("the signature does not verify", code=Code.BAD_SIGNATURE)

"""Ids and the digests that bind them (SPEC-ID-1..3)."""

import hashlib
import os

from fastledger.model.fields import ID_BYTES


def random_id() -> bytes:
    """Returns a fresh record, folder or consent id: 16 bytes from the operating system."""
    return os.urandom(ID_BYTES)


def identity_id(first_key: bytes) -> bytes:
    """Returns the pseudonym (16 bytes) of the identity registered with the 33-byte key ``first_key``.

    It is derived, so that nobody can register a pseudonym that another announced; it survives key rotation.
    """
    return hashlib.sha256(b"fastledger/identity/v1" + first_key).digest()[:ID_BYTES]


def rotation_digest(chain_id: bytes, identity: bytes, new_key: bytes) -> bytes:
    """Returns the 32 bytes that a new key signs to prove that its holder agreed to take over ``identity``."""
    return hashlib.sha256(b"fastledger/rotate/v1" + chain_id + identity + new_key).digest()

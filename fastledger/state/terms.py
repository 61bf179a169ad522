"""Under which terms a transaction can be found: one byte names the table, 16 bytes the term.

Terms are derived data, outside consensus. They are pseudonyms, random ids, kinds, codes and blind tokens: no term
can be told back to a person or a diagnosis without a folder key (SPEC-PRIV-3).
"""

import hashlib
from enum import IntEnum, unique

from fastledger.errors import Code
from fastledger.model.bodies import BODIES


@unique
class Term(IntEnum):
    """The tables; the number is the first byte of a posting's key and never changes its meaning."""

    SIGNER = 1
    SUBJECT = 2
    KIND = 3
    RECORD = 4
    FOLDER = 5
    CONSENT = 6
    TOKEN = 7
    CODE = 8


KIND_TERMS: dict[str, bytes] = {
    kind: hashlib.sha256(b"fastledger/kind/" + kind.encode()).digest()[:16] for kind in BODIES
}


def code_term(code: Code) -> bytes:
    """The term of a result code."""
    return int(code).to_bytes(16, "big")


def unknown_signer_term(key: bytes) -> bytes:
    """The term under which the transactions of an unregistered 33-byte key are found."""
    return key[1:17]

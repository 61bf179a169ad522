"""Under which terms a transaction can be found: 18 bytes, of which the first two name a term table.

A term is ``table 2 || name 16``. The engine's own tables have 0 as their first byte; a subject's entity table has
the subject's number there, so that a field which names an entity is found under that entity's table. Terms are
derived data, outside consensus. They are pseudonyms, random ids, kinds, codes and blind tokens: no term can be told
back to a person or a diagnosis without a folder key (SPEC-PRIV-3).
"""

import hashlib
from typing import Final

TABLE_BYTES: Final = 2
NAME_BYTES: Final = 16
TERM_BYTES: Final = TABLE_BYTES + NAME_BYTES

# Who signed; whom it concerns; of which kind it is; a blind token that it carries; the result, where not OK.
SIGNER: Final = b"\x00\x01"
SUBJECT: Final = b"\x00\x02"
KIND: Final = b"\x00\x03"
TOKEN: Final = b"\x00\x04"
CODE: Final = b"\x00\x05"


def kind_name(kind: str) -> bytes:
    """Returns the 16-byte name of a kind of transaction in the table KIND."""
    return hashlib.sha256(b"fastledger/kind/" + kind.encode()).digest()[:NAME_BYTES]


def kind_term(kind: str) -> bytes:
    """Returns the 18-byte term of a kind of transaction."""
    return KIND + kind_name(kind)


def code_name(code: int) -> bytes:
    """Returns the 16-byte name of a result code in the table CODE."""
    return code.to_bytes(NAME_BYTES, "big")


def code_term(code: int) -> bytes:
    """Returns the 18-byte term of a result code."""
    return CODE + code_name(code)


def unknown_signer_name(key: bytes) -> bytes:
    """The 16-byte name in the table SIGNER of a 33-byte key that signs for no identity."""
    return key[1 : 1 + NAME_BYTES]

"""Under which terms a transaction can be found: 17 bytes, of which the first names the table.

Terms are derived data, outside consensus. They are pseudonyms, random ids, kinds, codes and blind tokens: no term
can be told back to a person or a diagnosis without a folder key (SPEC-PRIV-3).
"""

import hashlib
from typing import Final

from fastledger.errors import Code
from fastledger.model.bodies import BODIES

# The tables; a term is a table and 16 bytes. Plain bytes, since a transaction has a dozen terms.
SIGNER: Final = b"\x01"
SUBJECT: Final = b"\x02"
KIND: Final = b"\x03"
RECORD: Final = b"\x04"
FOLDER: Final = b"\x05"
CONSENT: Final = b"\x06"
TOKEN: Final = b"\x07"
CODE: Final = b"\x08"

KIND_NAMES: dict[str, bytes] = {
    kind: hashlib.sha256(b"fastledger/kind/" + kind.encode()).digest()[:16] for kind in BODIES
}
KIND_TERMS: dict[str, bytes] = {kind: KIND + name for kind, name in KIND_NAMES.items()}


def code_name(code: Code) -> bytes:
    """What a result code is called in the table CODE."""
    return int(code).to_bytes(16, "big")


def code_term(code: Code) -> bytes:
    """The term of a result code."""
    return CODE + code_name(code)


def unknown_signer_name(key: bytes) -> bytes:
    """What the signer of an unregistered 33-byte key is called in the table SIGNER."""
    return key[1:17]

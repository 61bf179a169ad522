"""The one codec of everything that is signed, hashed or put on the wire: deterministic CBOR.

Encoding is RFC 8949 §4.2.1 (shortest heads, definite lengths, map keys in bytewise order). Decoding refuses every
other form, floats and tags included, so that one value has one encoding and one hash (SPEC-CBOR-1).
"""

from typing import Any

import cbor2

from fastledger._native.scan import check_cbor
from fastledger.errors import Code, InputError


def encode(value: Any) -> bytes:
    """Encodes ``value`` (ints, bytes, text, bools, lists and dicts of them) as deterministic CBOR.

    The keys of a map must be of one type and shorter than 24 bytes. The encoder orders keys by length first, while
    the rule is bytewise: for such keys the two orders agree.
    """
    return cbor2.dumps(value, canonical=True)


def decode(data: bytes, *, what: str = "CBOR item") -> Any:
    """Returns the value of ``data``, which is one deterministic CBOR item and nothing after it.

    Raises ``InputError`` with ``MALFORMED`` or ``NON_CANONICAL``, naming ``what`` and the offset.
    """
    status, offset = check_cbor(data)
    if status != Code.OK:
        raise InputError(f"{what} is not deterministic CBOR at byte {offset}", code=Code(status))
    return cbor2.loads(data)

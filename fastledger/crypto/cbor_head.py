"""Shortest CBOR heads (RFC 8949 §4.2.1) for the fixed layouts that are put together by hand on hot paths."""

import struct
from typing import Final

_U16: Final = struct.Struct(">BH")
_U32: Final = struct.Struct(">BI")
_UINT: Final = 0x00
_BYTES: Final = 0x40


def uint(value: int) -> bytes:
    """Returns the encoding of an unsigned integer below 2^32."""
    return _head(_UINT, value)


def bstr_head(size: int) -> bytes:
    """Returns the bytes that stand before the contents of a byte string of ``size`` bytes, below 2^32."""
    return _head(_BYTES, size)


def _head(major: int, argument: int) -> bytes:
    if argument < 24:
        return bytes((major | argument,))
    if argument < 0x100:
        return bytes((major | 24, argument))
    if argument < 0x10000:
        return _U16.pack(major | 25, argument)
    return _U32.pack(major | 26, argument)

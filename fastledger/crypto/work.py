"""Bitcoin's proof of work: compact targets, header hashes and the nonce search.

A header is 80 bytes: version, previous hash (32), Merkle root (32), time, bits, nonce, each integer four
bytes little-endian. Its hash is SHA256d of it; *internal order* is the order in which SHA-256 emits the
bytes, and as a number the hash is read little-endian.
"""

from hashlib import sha256
from typing import TYPE_CHECKING

from fastledger._native import work as _work

if TYPE_CHECKING:
    from typing_extensions import Buffer

HEADER_BYTES = 80

_BITS_OFFSET = 72
_MANTISSA_MASK = 0x007FFFFF
_SIGN_BIT = 0x00800000


def bits_to_target(bits: int) -> int:
    """The target that ``bits`` stands for: mantissa (low 23 bits) * 256**(exponent (high 8 bits) - 3).

    Any mantissa is accepted, also one that `target_to_bits` would have written otherwise: consensus compares
    bits.

    Raises:
        ValueError: not 32 bits, or a target that is negative, zero, or 2^256 or more.
    """
    if not 0 <= bits < 2**32:
        raise ValueError(f"bits: expected 0 <= bits < 2**32, got {bits:#x}")
    exponent, mantissa = bits >> 24, bits & _MANTISSA_MASK
    target = mantissa << 8 * (exponent - 3) if exponent >= 3 else mantissa >> 8 * (3 - exponent)
    if bits & _SIGN_BIT and mantissa:
        raise ValueError(f"bits: {bits:#010x} stands for a negative target")
    if not 0 < target < 2**256:
        raise ValueError(f"bits: {bits:#010x} stands for a target outside 1 .. 2**256 - 1")
    return target


def target_to_bits(target: int) -> int:
    """The canonical ``bits`` of the largest representable target that is at most ``target``.

    Raises:
        ValueError: the target is outside 1 .. 2**256 - 1.
    """
    if not 0 < target < 2**256:
        raise ValueError("target: expected 0 < target < 2**256")
    exponent = (target.bit_length() + 7) // 8
    mantissa = target << 8 * (3 - exponent) if exponent <= 3 else target >> 8 * (exponent - 3)
    if mantissa & _SIGN_BIT:
        mantissa >>= 8
        exponent += 1
    return exponent << 24 | mantissa


def block_work(bits: int) -> int:
    """Expected number of hashes that a block of this difficulty costs: floor(2^256 / (target + 1)).

    Raises:
        ValueError: as `bits_to_target`.
    """
    return 2**256 // (bits_to_target(bits) + 1)


def header_hash(header80: bytes) -> bytes:
    """SHA256d of one header, 32 bytes in internal order.

    Raises:
        ValueError: the header has another length.
    """
    if len(header80) != HEADER_BYTES:
        raise ValueError(f"header: expected 80 bytes, got {len(header80)}")
    return sha256(sha256(header80).digest()).digest()


def header_hashes(headers: "Buffer") -> bytes:
    """SHA256d of n headers in one contiguous buffer of n x 80 bytes, as n x 32 bytes in internal order.

    Raises:
        ValueError: another shape.
    """
    return _work.header_hashes(headers)


def check_work(header80: bytes) -> bool:
    """Whether the header's hash is at most the target that its own bits field claims.

    False also where those bits are no target at all. Whether they are the *right* bits, consensus says.

    Raises:
        ValueError: the header has another length.
    """
    digest = header_hash(header80)
    try:
        target = bits_to_target(int.from_bytes(header80[_BITS_OFFSET : _BITS_OFFSET + 4], "little"))
    except ValueError:
        return False
    return int.from_bytes(digest, "little") <= target


def search_nonce(header80: "Buffer", target: int, start: int, count: int) -> int | None:
    """The first nonce of start .. start + count - 1 whose header hash is at most ``target``, or None.

    The nonce stands little-endian in bytes 76 .. 80; the one that the header already has is ignored. The GIL
    is free during the search, which cannot be interrupted: choose ``count`` by how long you can wait (a
    million nonces are some 40 to 500 ms). Nonces do not wrap: change the header to go on past 2^32.

    Raises:
        ValueError: the header is not 80 contiguous bytes, the target is outside 0 .. 2**256 - 1, or the
            nonces are not all within 0 .. 2**32 - 1.
    """
    return _work.search_nonce(header80, target, start, count)

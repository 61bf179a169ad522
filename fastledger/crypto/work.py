"""Bitcoin's proof of work: compact targets, header hashes and the nonce search.

A header is 80 bytes: version, previous hash (32), Merkle root (32), time, bits, nonce, each integer four
bytes little-endian. Its hash is SHA256d of it; *internal order* is the order in which SHA-256 emits the
bytes, and as a number the hash is read little-endian.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from hashlib import sha256
from typing import TYPE_CHECKING

from fastledger._native import work as _work
from fastledger._native.work import SearchControl

if TYPE_CHECKING:
    from typing_extensions import Buffer

HEADER_BYTES = 80
NONCES = 2**32
EXTRA_NONCES = 2**64

_RANGE_NONCES = 2**22
_NONCE_OFFSET = 76
_BITS_OFFSET = 72
_MANTISSA_MASK = 0x007FFFFF
_SIGN_BIT = 0x00800000


def bits_to_target(bits: int) -> int:
    """Returns the target of ``bits``: mantissa (low 23 bits) * 256**(exponent (high 8 bits) - 3) (SPEC-WORK-2).

    Any mantissa is accepted, also one that `target_to_bits` would have written otherwise: consensus compares bits.

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
    """Returns the canonical ``bits`` of the largest representable target that is at most ``target``.

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
    """Returns the expected number of hashes that a block of this difficulty costs: floor(2^256 / (target + 1)).

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
    """Whether the header's hash is at most the target that its own bits field claims (SPEC-WORK-3).

    False also where those bits are no target at all. Whether they are the bits that are due, the engine checks.

    Raises:
        ValueError: the header has another length.
    """
    digest = header_hash(header80)
    try:
        target = bits_to_target(int.from_bytes(header80[_BITS_OFFSET : _BITS_OFFSET + 4], "little"))
    except ValueError:
        return False
    return int.from_bytes(digest, "little") <= target


def search_nonce(
    header80: "Buffer",
    target: int,
    start: int,
    count: int,
    *,
    threads: int | None = 1,
    control: SearchControl | None = None,
) -> int | None:
    """The first nonce of start .. start + count - 1 whose header hash is at most ``target``, or None.

    The nonce stands little-endian in bytes 76 .. 80; the one that the header already has is ignored. Nonces do
    not wrap: `NonceSearch` goes on past 2^32 with another header. The GIL is free during the search, which only
    ``control`` can end early: signals wait for it (a million nonces are some 40 to 700 ms a thread).

    Args:
        threads: how many search, at most 256; None for one for each CPU that this process may run on.
        control: its ``cancel()``, called in another thread, ends the search within milliseconds; None is
            returned then, unless a nonce was found before. Its ``hashes_done`` grows as the search goes on.

    Raises:
        ValueError: the header is not 80 contiguous bytes, the target is outside 0 .. 2**256 - 1, the nonces
            are not all within 0 .. 2**32 - 1, or the number of threads is out of bounds.
    """
    return _work.search_nonce(header80, target, start, count, threads, control)


@dataclass(frozen=True, slots=True)
class FoundWork:
    """The result of a `NonceSearch`: the header with its nonce in place, and the extra nonce that it commits to."""

    header: bytes
    nonce: int
    extra_nonce: int


class NonceSearch:
    """A search that goes on with another header when all nonces of one are used up.

    ``make_header(extra_nonce)`` gives the 80 bytes for extra nonces 0, 1, 2, ...: the caller writes the extra
    nonce into what the header's Merkle root commits to, and may bring time and transactions up to date. It is
    called in the thread of `run`, between two ranges of nonces, never while one is searched.
    """

    def __init__(
        self,
        make_header: "Callable[[int], Buffer]",
        target: int,
        *,
        threads: int | None = None,
        extra_nonces: Iterable[int] | None = None,
        nonces_per_header: int = NONCES,
    ) -> None:
        """Prepares the search; `run` begins it.

        Args:
            make_header: gives the 80 bytes for an extra nonce, as the class describes.
            target: as for `search_nonce`.
            threads: as for `search_nonce`; by default one for each CPU.
            extra_nonces: those to try, in this order; by default 0 .. 2**64 - 1.
            nonces_per_header: how many nonces of each header to try, for headers that should be renewed sooner.

        Raises:
            ValueError: ``nonces_per_header`` is not 1 .. 2**32.
        """
        if not 1 <= nonces_per_header <= NONCES:
            raise ValueError(f"nonces_per_header: expected 1 to 2**32, got {nonces_per_header}")
        self._make_header = make_header
        self._target = target
        self._threads = threads
        self._extra_nonces = range(EXTRA_NONCES) if extra_nonces is None else extra_nonces
        self._nonces_per_header = nonces_per_header
        self._control = SearchControl()

    @property
    def hashes_done(self) -> int:
        """Nonces tried so far, readable from any thread."""
        return self._control.hashes_done

    @property
    def cancelled(self) -> bool:
        """Whether `cancel` was called."""
        return self._control.cancelled

    def cancel(self) -> None:
        """Ends the search within milliseconds, for good; any thread may call it."""
        self._control.cancel()

    def run(self) -> FoundWork | None:
        """Searches until work is found; None when cancelled before, or when all extra nonces are used up.

        Signals such as Ctrl-C are heard several times a second.

        Raises:
            ValueError: a header, the target or the number of threads is out of bounds, as for `search_nonce`.
        """
        for extra_nonce in self._extra_nonces:
            if self.cancelled:
                return None
            header = bytes(self._make_header(extra_nonce))
            nonce = self._search_header(header)
            if nonce is not None:
                found = header[:_NONCE_OFFSET] + nonce.to_bytes(4, "little")
                return FoundWork(found, nonce, extra_nonce)
        return None

    def _search_header(self, header: bytes) -> int | None:
        """Returns the first good nonce of a header, or None.

        The ranges are short, for signals to be heard between them.
        """
        for start in range(0, self._nonces_per_header, _RANGE_NONCES):
            count = min(_RANGE_NONCES, self._nonces_per_header - start)
            nonce = search_nonce(
                header, self._target, start, count, threads=self._threads, control=self._control
            )
            if nonce is not None or self.cancelled:
                return nonce
        return None

"""SHA-256 of many messages at once. For a single message `hashlib.sha256` is as good."""

from collections.abc import Iterable
from typing import TYPE_CHECKING, TypedDict

from fastledger._native import hashing as _hashing

if TYPE_CHECKING:
    from typing_extensions import Buffer

HASH_BYTES = 32


class HashingBackend(TypedDict):
    """The report of `hashing_backend`."""

    sha256: str
    sha256_lanes: int
    sha256_streams: str
    usable: list[str]
    cpu: list[str]


def sha256_many(buffer: "Buffer", offsets: "Iterable[int] | Buffer") -> bytes:
    """SHA-256 (FIPS 180-4) of n messages that lie in one buffer, as n x 32 bytes.

    Args:
        buffer: any contiguous bytes-like object.
        offsets: n + 1 byte offsets that never decrease and end within the buffer, as integers or, faster,
            as a contiguous uint64 buffer such as ``array("Q")``; message i is
            ``buffer[offsets[i]:offsets[i + 1]]``.

    Raises:
        ValueError: another shape of either.

    The call gives up the GIL once, or not at all for a batch so small that getting it back could cost more.
    """
    return _hashing.sha256_many(buffer, offsets)


def hashing_backend() -> HashingBackend:
    """The native backend in use, those usable on this CPU (fastest first), and the CPU's features.

    ``sha256_lanes`` is how many messages it hashes side by side at most, ``sha256_streams`` which backend's code
    hashes those that are too few for its lanes. The environment variable ``FASTLEDGER_NATIVE`` forces a backend
    by name at import: ``portable``, ``avx2``, ``shani``, ``avx512`` or ``armv8``, as far as compiled in and usable.
    """
    return {
        "sha256": _hashing.backend(),
        "sha256_lanes": _hashing.backend_lanes(),
        "sha256_streams": _hashing.backend_streams(),
        "usable": _hashing.backends(),
        "cpu": _hashing.cpu_features(),
    }

"""SHA-256 of many messages at once. For a single message `hashlib.sha256` is as good."""

from collections.abc import Iterable
from typing import TYPE_CHECKING, TypedDict

from fastledger._native import hashing as _hashing

if TYPE_CHECKING:
    from typing_extensions import Buffer

HASH_BYTES = 32


class HashingBackend(TypedDict):
    """What `hashing_backend` reports."""

    sha256: str
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

    The environment variable ``FASTLEDGER_NATIVE`` forces one by name at import.
    """
    return {"sha256": _hashing.backend(), "usable": _hashing.backends(), "cpu": _hashing.cpu_features()}

from typing_extensions import Buffer

def header_hashes(headers: Buffer) -> bytes:
    """SHA256d of n headers of 80 bytes; see `fastledger.crypto.work.header_hashes`."""

def search_nonce(header80: Buffer, target: int, start: int, count: int) -> int | None:
    """First nonce that meets a target; see `fastledger.crypto.work.search_nonce`."""

def backend() -> str:
    """Name of the SHA-256 backend that this module uses."""

def force_backend(name: str | None) -> None:
    """For tests: use the named backend, or the best (None). No other thread may be inside this module.

    Raises:
        ValueError: the backend is unknown, or not usable on this CPU.
    """

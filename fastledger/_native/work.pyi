from typing_extensions import Buffer

def header_hashes(headers: Buffer) -> bytes:
    """SHA256d of n headers of 80 bytes; see `fastledger.crypto.work.header_hashes`."""

class SearchControl:
    """Cancels a search, and tells how far it is, from any thread."""

    def cancel(self) -> None:
        """Ask the search to end; it does within milliseconds. A control that was cancelled stays so."""

    @property
    def cancelled(self) -> bool:
        """Whether `cancel` was called."""

    @property
    def hashes_done(self) -> int:
        """Nonces tried so far, in all searches that used this control."""

def search_nonce(
    header80: Buffer, target: int, start: int, count: int, threads: int | None, control: SearchControl | None
) -> int | None:
    """First nonce that meets a target; see `fastledger.crypto.work.search_nonce`."""

def backend() -> str:
    """Name of the SHA-256 backend that this module uses."""

def force_backend(name: str | None) -> None:
    """For tests: use the named backend, or the best (None). No other thread may be inside this module.

    Raises:
        ValueError: the backend is unknown, or not usable on this CPU.
    """

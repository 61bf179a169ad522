from typing_extensions import Buffer

def header_hashes(headers: Buffer) -> bytes:
    """Returns the SHA256d of n headers of 80 bytes; the contract is `crypto.work.header_hashes`'s."""

class SearchControl:
    """A handle by which any thread can cancel a search and see how far it is."""

    def cancel(self) -> None:
        """Asks the search to end, which it does within milliseconds. A control that was cancelled stays cancelled."""

    @property
    def cancelled(self) -> bool:
        """Whether `cancel` was called."""

    @property
    def hashes_done(self) -> int:
        """How many nonces were tried so far, in all searches that used this control."""

def search_nonce(
    header80: Buffer, target: int, start: int, count: int, threads: int | None, control: SearchControl | None
) -> int | None:
    """Returns the first nonce that meets a target; the contract is `crypto.work.search_nonce`'s."""

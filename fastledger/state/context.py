"""What a rule judges by: the block's place in time, the transaction's signer, and what both leave besides state."""

from fastledger.state.view import TermList, View


class Context:
    """A run of transactions under judgement, one at a time.

    ``height`` and ``time_ms`` are the block's, not the machine's. ``signer`` is the 33-byte key that signed the present
    transaction. ``view`` is the state before it. ``terms`` and ``erased`` (digests of envelopes to destroy) gather what
    all of the transactions left.
    """

    __slots__ = ("chain_id", "erased", "find_by", "height", "signer", "terms", "time_ms", "view")

    def __init__(self, view: View, *, chain_id: bytes, height: int, time_ms: int) -> None:
        self.view = view
        self.chain_id = chain_id
        self.height = height
        self.time_ms = time_ms
        self.signer = b""
        self.terms = TermList()
        self.erased: list[bytes] = []
        # Lets the transaction be found under a 16-byte name in a term table, also when it is refused. The ids that
        # its body names are added by the engine; a rule adds whom it concerns besides.
        self.find_by = self.terms.add

    def copy(self, view: View) -> "Context":
        """One that goes on from here on its own, with ``view``."""
        other = Context(view, chain_id=self.chain_id, height=self.height, time_ms=self.time_ms)
        other.terms = self.terms.copy()
        other.find_by = other.terms.add
        other.erased = list(self.erased)
        return other

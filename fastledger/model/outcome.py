"""What became of a submitted transaction."""

from typing import Literal, TypeAlias

import msgspec

from fastledger.errors import Code, TransactionError

Wait: TypeAlias = Literal["accepted", "ordered", "durable"]
"""How far a transaction has to come before the reply: in the pool, in a block, synced."""


class Outcome(msgspec.Struct, frozen=True, gc=False):
    """One transaction's verdict, in one word.

    *durable*: executed and synced at ``height``. *refused*: the rules said no; the refusal is synced at ``height``
    under ``code``. *rejected*: the border said no; it stands nowhere (``height`` is None). ``duplicate`` tells that
    the transaction was in the chain before: the verdict is the first one's. Only who asked not to wait sees
    *accepted*: past the border, on its way into a block.
    """

    txid: bytes
    code: Code
    height: int | None = None
    index: int | None = None
    duplicate: bool = False

    @property
    def status(self) -> str:
        """``durable``, ``refused``, ``rejected`` or ``accepted``."""
        if self.height is None:
            return "accepted" if self.code == Code.OK else "rejected"
        return "durable" if self.code == Code.OK else "refused"

    @property
    def ok(self) -> bool:
        """Whether it was executed and is durable."""
        return self.height is not None and self.code == Code.OK

    def raise_for_status(self) -> "Outcome":
        """Itself where it is durable; raises ``TransactionError`` with the code otherwise."""
        if self.ok:
            return self
        raise TransactionError(f"transaction {self.txid.hex()}: {self.code.text}", code=self.code, txid=self.txid)

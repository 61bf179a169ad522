"""The outcome of a submitted transaction."""

from typing import Literal, TypeAlias, get_args

import msgspec

from fastledger.errors import Code, InputError, TransactionError
from fastledger.reprs import short_hex

Wait: TypeAlias = Literal["accepted", "ordered", "durable"]
"""How far a transaction has to come before the reply: in the pool, in a block, synced."""


def check_wait(wait: Wait) -> None:
    """Raises ``InputError`` with ``BAD_QUERY`` for what is no stage of a transaction's way."""
    if wait not in get_args(Wait):
        raise InputError("wait is one of " + ", ".join(get_args(Wait)), code=Code.BAD_QUERY)


class Outcome(msgspec.Struct, frozen=True, gc=False):
    """One transaction's verdict: its status, its result code and its place in the chain.

    The status is *durable* for a transaction that was executed and synced at ``height``. It is *refused* where the
    rules said no: the refusal is synced at ``height`` under ``code``. It is *rejected* where the border said no: the
    transaction is in no block, and ``height`` is None. A caller that asked not to wait may also see *accepted*: past
    the border, on its way into a block. ``duplicate`` tells that the transaction was in the chain before: the
    verdict is the first one's.
    """

    txid: bytes
    code: Code
    height: int | None = None
    index: int | None = None
    duplicate: bool = False

    def __repr__(self) -> str:
        why = "" if self.code == Code.OK else f" {self.code.slug}"
        place = "" if self.height is None else f" at {self.height}/{self.index}"
        return f"<Outcome {self.status}{why} {short_hex(self.txid)}{place}{' duplicate' if self.duplicate else ''}>"

    @property
    def status(self) -> str:
        """The verdict in one word: ``durable``, ``refused``, ``rejected`` or ``accepted``."""
        if self.height is None:
            return "accepted" if self.code == Code.OK else "rejected"
        return "durable" if self.code == Code.OK else "refused"

    @property
    def ok(self) -> bool:
        """Whether the transaction was executed and is durable."""
        return self.height is not None and self.code == Code.OK

    def raise_for_status(self) -> "Outcome":
        """Returns the outcome itself where it is durable; raises ``TransactionError`` with its code otherwise."""
        if self.ok:
            return self
        raise TransactionError(f"transaction {self.txid.hex()}: {self.code.text}", code=self.code, txid=self.txid)

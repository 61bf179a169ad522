"""The lines of an export, in JSON, and its range of blocks (SPEC-EXP-1), alike from a ledger and a node."""

import base64
from typing import NamedTuple

import msgspec

from fastledger.errors import Code, InputError, NotFoundError
from fastledger.model.query import Entry

_ENCODE = msgspec.json.Encoder().encode


class BlockRange(NamedTuple):
    """A range of heights, both ends included; an end of None is where the blocks begin or end."""

    from_height: int | None = None
    to_height: int | None = None

    def within(self, first_height: int, durable_height: int) -> tuple[int, int]:
        """Returns the first and last height of the range on a ledger that keeps blocks from ``first_height`` on.

        Raises NotFoundError (PRUNED) where its first block is not kept, InputError where it has no block.
        """
        first = first_height if self.from_height is None else self.from_height
        last = durable_height if self.to_height is None else min(self.to_height, durable_height)
        if 0 <= first < first_height:
            raise pruned(first)
        if not 0 <= first <= last:
            raise InputError(f"there are no blocks from height {first} to {last}", code=Code.BAD_QUERY)
        return first, last


def pruned(height: int) -> NotFoundError:
    """Returns the error that says that the block at ``height`` is not kept any more."""
    return NotFoundError(f"the block at height {height} was pruned", code=Code.PRUNED)


class ExportLine(msgspec.Struct, frozen=True):
    """A transaction as a line; ids in hex, ``encoded`` in base64: bodies are not taken apart."""

    seq: int
    height: int
    index: int
    time_ms: int
    txid: str
    kind: str
    signer: str
    code: int
    encoded: str

    @classmethod
    def of_entry(cls, entry: Entry) -> "ExportLine":
        """Returns the line of a transaction that a query found."""
        return cls(
            entry.seq,
            entry.height,
            entry.index,
            entry.time_ms,
            entry.txid.hex(),
            entry.transaction.kind,
            entry.transaction.signer.hex(),
            int(entry.code),
            base64.b64encode(entry.encoded).decode(),
        )

    def encode(self) -> bytes:
        """Returns the line in JSON with its end of line."""
        return _ENCODE(self) + b"\n"

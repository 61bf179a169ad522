"""Transactions as lines of JSON, and which blocks an export is of (SPEC-EXP-1): the same from a ledger and a node."""

import base64
from typing import NamedTuple

import msgspec

from fastledger.errors import Code, InputError, NotFoundError
from fastledger.model.query import Entry

_ENCODE = msgspec.json.Encoder().encode


class BlockRange(NamedTuple):
    """Heights, both ends included; None: as far as there are blocks."""

    from_height: int | None = None
    to_height: int | None = None

    def within(self, first_height: int, durable_height: int) -> tuple[int, int]:
        """The first and last of it on a ledger that keeps these; NotFoundError (PRUNED), or InputError for none."""
        first = first_height if self.from_height is None else self.from_height
        last = durable_height if self.to_height is None else min(self.to_height, durable_height)
        if 0 <= first < first_height:
            raise pruned(first)
        if not 0 <= first <= last:
            raise InputError(f"there are no blocks from height {first} to {last}", code=Code.BAD_QUERY)
        return first, last


def pruned(height: int) -> NotFoundError:
    """The block at ``height`` is not kept any more."""
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
        """The line of a transaction that a query found."""
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
        """With its end of line."""
        return _ENCODE(self) + b"\n"

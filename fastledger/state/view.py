"""What a rule sees of the state, and what it leaves behind.

State is a map from short byte keys to MessagePack-encoded structs. A :class:`View` stacks the writes of the running
transaction over those of the running block over everything before, so that a refused transaction leaves nothing
and a dropped block is a dropped dict. No rule can learn the wall clock: time is the block's (SPEC-STATE-1).
"""

import hashlib
from collections.abc import Callable, Mapping
from typing import TypeAlias

from fastledger._native.view import Stack, TermList, View, write_set_digest
from fastledger.errors import Code

__all__ = ["StateLookup", "Refusal", "Stack", "TermList", "View", "Writes", "next_state_root", "write_set_digest"]

Writes: TypeAlias = dict[bytes, bytes | None]
StateLookup: TypeAlias = Callable[[bytes], bytes | None]


class Refusal(Exception):
    """Raised by a rule; its code becomes the transaction's result."""

    def __init__(self, code: Code) -> None:
        super().__init__(code.slug)
        self.code = code


def next_state_root(previous: bytes, writes: Mapping[bytes, bytes | None]) -> bytes:
    """The state root after a block: SHA-256(previous root || digest of its write set) (SPEC-STATE-2)."""
    return hashlib.sha256(previous + write_set_digest(writes)).digest()

"""Blocks to be mined: executed beforehand, so that only the nonce is missing (SPEC-FORK-11)."""

import struct
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from fastledger._native.ecdsa import HINTS_FULL
from fastledger.chain.admission import Pending
from fastledger.chain.execution.executor import Draft
from fastledger.consensus.engine import EngineAction, SearchWork
from fastledger.errors import InputError
from fastledger.model.block import HEADER_BYTES, Block, Header, HeaderBody


@dataclass(frozen=True)
class Template:
    """A block on top of ``parent_id`` that lacks work: ``make_header`` gives the header to search a nonce for.

    It refers to nothing of the chain and can be handed to another thread.
    """

    parent_id: bytes
    body: HeaderBody
    bits: int
    target: int
    transactions: tuple[Pending, ...] = field(repr=False)
    draft: Draft = field(repr=False)

    @property
    def height(self) -> int:
        """The height that the block will have."""
        return self.body.height

    def body_with(self, extra_nonce: int) -> HeaderBody:
        """Returns the body that a header for ``extra_nonce`` commits to."""
        return replace(self.body, extra_nonce=extra_nonce)

    def make_header(self, extra_nonce: int) -> bytes:
        """Returns the 80 bytes of the header to search, with nonce 0."""
        body = self.body_with(extra_nonce)
        return Header(self.parent_id, body.commitment, body.time_ms // 1000, self.bits).encode()

    def header_of(self, header80: bytes, extra_nonce: int) -> tuple[Header, HeaderBody]:
        """Returns the header that was found and its body; raises ``InputError`` where it is not of this template."""
        if len(header80) != HEADER_BYTES or header80[:-4] != self.make_header(extra_nonce)[:-4]:
            raise InputError("the header is not of this template")
        return Header.decode(header80), self.body_with(extra_nonce)

    def block(self, header: Header, body: HeaderBody, seal: bytes) -> Block:
        """Returns the block with its work and seal."""
        encoded = [pending.encoded for pending in self.transactions]
        hints = b"".join(pending.hint for pending in self.transactions)
        return Block(
            header,
            body,
            seal,
            b"".join(encoded),
            struct.pack(f"<{len(encoded)}I", *map(len, encoded)),
            self.draft.execution.results,
            bytes((HINTS_FULL,)) + hints if encoded else b"",
        )


def target_of(actions: Sequence[EngineAction]) -> int:
    """Returns the target of the search that an engine asks for; raises ``RuntimeError`` where it asks for none."""
    search = next((action for action in actions if isinstance(action, SearchWork)), None)
    if search is None:
        raise RuntimeError("the engine does not mine")
    return search.target

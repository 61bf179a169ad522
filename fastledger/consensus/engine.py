"""The border between the chain and whatever orders it.

An engine is a pure state machine: events in, actions out. It reads no clock, opens no socket, starts no thread and
sees headers only, so that one simulator can drive any of them and the chain runs one code path for all
(SPEC-ENG-1).

::

    TransactionsPending ─► engine ─► BuildBlock          the chain executes pending transactions under these terms
    BlockBuilt          ─► engine ─► SealBlock, FinaliseBlock …
                                  ─► SearchWork          a miner looks for a nonce …
    WorkFound           ─► engine ─► SealBlock           … and has found one
    TipMoved            ─► engine ─► FinaliseBlock       what lies this deep stays
"""

import hashlib
from collections.abc import Sequence
from typing import NamedTuple, Protocol, TypeAlias

from fastledger.model.block import ZERO32, Header, HeaderBody


class Tip(NamedTuple):
    """The block that the next one builds on.

    ``bits`` and ``interval_ms`` (its time minus its parent's; of block 0 the spacing aimed at) are what the next
    block's target depends on, and 0 where an engine knows no work.
    """

    height: int
    block_id: bytes
    time_ms: int
    seal: bytes
    bits: int = 0
    interval_ms: int = 0


class TransactionsPending(NamedTuple):
    """There is something to order; ``now_ms`` is the node's clock reading."""

    tip: Tip
    now_ms: int


class BlockBuilt(NamedTuple):
    """The chain executed a block that this engine asked for."""

    header: Header
    body: HeaderBody


class WorkFound(NamedTuple):
    """A nonce was found: this is the header with it."""

    header: Header
    body: HeaderBody


class TipMoved(NamedTuple):
    """The best chain ends in this block now."""

    tip: Tip


class BuildBlock(NamedTuple):
    """Execute pending transactions at this block time on top of the tip."""

    time_ms: int
    bits: int


class SearchWork(NamedTuple):
    """Look for a nonce (and extra nonce) that brings the hash of the block at this height to ``target`` or below."""

    height: int
    target: int


class SealBlock(NamedTuple):
    """Sign the block at this height with the node's key and append it to the chain."""

    height: int


class FinaliseBlock(NamedTuple):
    """The block at this height will never be reorganised away: it may be acknowledged once it is synced."""

    height: int


Event: TypeAlias = TransactionsPending | BlockBuilt | WorkFound | TipMoved
Action: TypeAlias = BuildBlock | SearchWork | SealBlock | FinaliseBlock


class Engine(Protocol):
    """What the chain asks of a consensus engine.

    ``chains_seals``: whether a block refers to its parent's seal (SPEC-BLK-5). Where two seals of one block can be
    about, nodes would part over which one the child refers to, and ``seal_ref`` is zero (SPEC-ENG-4).
    ``empty_blocks``: whether blocks without transactions are made. ``finality_depth``: how many blocks above a block
    make it final.
    """

    name: str
    chains_seals: bool
    empty_blocks: bool
    finality_depth: int

    def handle(self, event: Event) -> Sequence[Action]:
        """The engine's answer to what happened."""

    def check(self, header: Header, body: HeaderBody, parent: Tip) -> None:
        """Raises ``InputError`` with ``BAD_BLOCK`` unless the block may follow ``parent`` by this engine's rules.

        That ``header`` commits to ``body`` and that both follow ``parent`` by id and height is checked elsewhere.
        """

    def work(self, header: Header) -> int:
        """By how much the block raises the weight of its chain, at least 1; the heaviest chain is the best."""

    def ready_ms(self, body: HeaderBody) -> int:
        """The earliest clock reading at which the block may be taken; until then it waits and is not wrong."""

    def tip(self, header: Header, body: HeaderBody, seal: bytes, parent: Tip | None) -> Tip:
        """The block as what the next one builds on; ``parent`` is None for block 0."""


def seal_ref(engine: Engine, parent: Tip) -> bytes:
    """What a block on top of ``parent`` says of its parent's seal."""
    return hashlib.sha256(parent.seal).digest() if engine.chains_seals else ZERO32

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


class EngineTip(NamedTuple):
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
    """Transactions wait to be ordered; ``now_ms`` is the node's clock reading."""

    tip: EngineTip
    now_ms: int


class BlockBuilt(NamedTuple):
    """The chain executed a block that this engine asked for."""

    header: Header
    body: HeaderBody


class WorkFound(NamedTuple):
    """A nonce was found; ``header`` has it in place."""

    header: Header
    body: HeaderBody


class TipMoved(NamedTuple):
    """The best chain ends in the block ``tip`` now."""

    tip: EngineTip


class BuildBlock(NamedTuple):
    """The chain is to execute pending transactions on top of the tip, in a block of this time and these bits."""

    time_ms: int
    bits: int


class SearchWork(NamedTuple):
    """The miner is to look for a nonce (and extra nonce) that brings the block's hash to ``target`` or below."""

    height: int
    target: int


class SealBlock(NamedTuple):
    """The chain is to sign the block at this height with the node's key and append it."""

    height: int


class FinaliseBlock(NamedTuple):
    """The block at this height will never be reorganised away: it may be acknowledged once it is synced."""

    height: int


EngineEvent: TypeAlias = TransactionsPending | BlockBuilt | WorkFound | TipMoved
EngineAction: TypeAlias = BuildBlock | SearchWork | SealBlock | FinaliseBlock


class Engine(Protocol):
    """The interface of a consensus engine, as the chain uses it.

    ``chains_seals``: whether a block refers to its parent's seal (SPEC-BLK-5). Where one block can have two seals,
    nodes would part over which one the child refers to; ``seal_ref`` is then zero (SPEC-ENG-4). ``empty_blocks``:
    whether blocks without transactions are made. ``finality_depth``: how many blocks above a block make it final.
    """

    name: str
    chains_seals: bool
    empty_blocks: bool
    finality_depth: int

    def handle(self, event: EngineEvent) -> Sequence[EngineAction]:
        """Takes an event and returns the actions that the chain is to carry out, in order."""

    def check(self, header: Header, body: HeaderBody, parent: EngineTip) -> None:
        """Raises ``InputError`` with ``BAD_BLOCK`` unless the block may follow ``parent`` by this engine's rules.

        The caller has checked that ``header`` commits to ``body`` and that both follow ``parent`` by id and height.
        """

    def work(self, header: Header) -> int:
        """Returns by how much the block raises the weight of its chain, at least 1.

        The heaviest chain is the best.
        """

    def ready_ms(self, body: HeaderBody) -> int:
        """Returns the earliest clock reading (UTC ms) at which the block may be taken.

        A block that is early is not wrong: it waits until then.
        """

    def tip(self, header: Header, body: HeaderBody, seal: bytes, parent: EngineTip | None) -> EngineTip:
        """Returns the block as the ``EngineTip`` that the next block builds on; ``parent`` is None for block 0."""


def seal_ref(engine: Engine, parent: EngineTip) -> bytes:
    """Returns the reference to its parent's seal (32 bytes) that a block on top of ``parent`` carries (SPEC-BLK-5).

    It is zero under an engine that chains no seals.
    """
    return hashlib.sha256(parent.seal).digest() if engine.chains_seals else ZERO32

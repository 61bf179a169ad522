"""The events that a :class:`~fastledger.chain.forks.chain.ForkChain` reports, in the order in which they happened.

Everything that an event speaks of is on the disk when the event is handed out (SPEC-FORK-9).
"""

from collections.abc import Sequence
from typing import NamedTuple, TypeAlias

from fastledger.chain.execution.store import Layer
from fastledger.consensus.engine import EngineTip
from fastledger.model.block import Block


class BlockStored(NamedTuple):
    """A good copy of a block is held, on the best chain or beside it."""

    block_id: bytes


class BlockConnected(NamedTuple):
    """The block is part of the best chain now: *ordered*, not yet final.

    Transaction ``txids[i]`` has ``codes[i]``.
    """

    block: Block
    height: int
    txids: Sequence[bytes]
    codes: Sequence[int]


class BlockDisconnected(NamedTuple):
    """The block left the best chain; those of its transactions that the new one lacks wait again."""

    block_id: bytes
    height: int
    txids: Sequence[bytes]


class Reorganised(NamedTuple):
    """``depth`` blocks left the best chain for a branch with more work.

    Their events, and the branch's, come before this one.
    """

    depth: int
    old_tip: EngineTip
    new_tip: EngineTip


class BlocksFinal(NamedTuple):
    """Blocks became final: they are *durable*, synced and visible, and the envelopes ``erased`` are gone."""

    layers: Sequence[Layer]
    erased: Sequence[bytes]


class TransactionsAccepted(NamedTuple):
    """Transactions that were new wait for a block now; ``source`` is the one that they were submitted with."""

    txids: Sequence[bytes]
    source: bytes


class WrongHints(NamedTuple):
    """A good block came with verification hints that do not belong to its signatures, which cost this node time."""

    block_id: bytes


class FinalityConflict(NamedTuple):
    """A branch with more work forks off below the block that is final here. It is never followed.

    Either the members were parted for longer than the finality depth, or someone rents more work than they have
    together: people have to decide. ``block_id`` and ``height`` are those of the branch's first block.
    """

    block_id: bytes
    height: int


ChainEvent: TypeAlias = (
    BlockStored
    | BlockConnected
    | BlockDisconnected
    | Reorganised
    | BlocksFinal
    | TransactionsAccepted
    | WrongHints
    | FinalityConflict
)

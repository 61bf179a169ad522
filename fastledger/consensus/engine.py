"""The border between the chain and whatever orders it.

An engine is a pure state machine: events in, actions out. It reads no clock, opens no socket, starts no thread and
sees headers only, so that one simulator can drive any of them and the chain runs one code path for all
(SPEC-ENG-1).

::

    TransactionsPending ─► engine ─► BuildBlock        the chain executes pending transactions under these terms
    BlockBuilt          ─► engine ─► SealBlock, FinaliseBlock …
"""

from collections.abc import Sequence
from typing import NamedTuple, Protocol, TypeAlias

from fastledger.model.block import Block, Header, HeaderBody


class Tip(NamedTuple):
    """The block that the next one builds on."""

    height: int
    block_id: bytes
    time_ms: int
    seal: bytes


class TransactionsPending(NamedTuple):
    """There is something to order; ``now_ms`` is the node's clock reading."""

    tip: Tip
    now_ms: int


class BlockBuilt(NamedTuple):
    """The chain executed a block that this engine asked for."""

    header: Header
    body: HeaderBody


class BuildBlock(NamedTuple):
    """Execute pending transactions at this block time on top of the tip."""

    time_ms: int
    bits: int


class SealBlock(NamedTuple):
    """Sign the block at this height with the node's key and append it to the log."""

    height: int


class FinaliseBlock(NamedTuple):
    """The block at this height will never be reorganised away: it may be acknowledged once it is synced."""

    height: int


Event: TypeAlias = TransactionsPending | BlockBuilt
Action: TypeAlias = BuildBlock | SealBlock | FinaliseBlock


class Engine(Protocol):
    """What the chain asks of a consensus engine."""

    name: str

    def handle(self, event: Event) -> Sequence[Action]:
        """The engine's answer to what happened."""

    def check(self, block: Block, parent: Tip) -> None:
        """Raises ``InputError`` with ``BAD_BLOCK`` unless ``block`` may follow ``parent`` by this engine's rules."""

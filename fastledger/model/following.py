"""What a follower of the chain is given: events with the cursors that resume behind them."""

from dataclasses import dataclass

from fastledger.model.block import Block
from fastledger.model.query import Entry
from fastledger.reprs import BriefRepr


@dataclass(frozen=True, slots=True, repr=False)
class Tip(BriefRepr):
    """The end of the durable chain: its newest block's height and 32-byte id, and the number of all transactions."""

    height: int
    head: bytes
    transaction_count: int


@dataclass(frozen=True, slots=True, repr=False)
class BlockSummary(BriefRepr):
    """A durable block without its transactions; ``first_seq`` is the number of its first one in the whole chain."""

    height: int
    block_id: bytes
    previous_id: bytes
    time_ms: int
    first_seq: int
    transaction_count: int

    @classmethod
    def of(cls, block: Block, first_seq: int) -> "BlockSummary":
        """Returns the summary of a block whose first transaction has the number ``first_seq``."""
        return cls(
            block.height,
            block.block_id,
            block.header.previous_id,
            block.body.time_ms,
            first_seq,
            block.count,
        )


@dataclass(frozen=True, slots=True, repr=False)
class FollowEvent(BriefRepr):
    """One event: a ``block`` under the topic *blocks*, a transaction (``entry``) under any other.

    Kept by the caller, ``cursor`` resumes behind the event: ``follow(topic, cursor=event.cursor)``.
    """

    cursor: int
    entry: Entry | None = None
    block: BlockSummary | None = None


@dataclass(frozen=True, slots=True)
class FollowPage:
    """Some events, oldest first; ``cursor`` resumes behind the page, also where conditions left nothing of it.

    ``caught_up`` says that nothing older than the newest durable block is left.
    """

    events: list[FollowEvent]
    cursor: int
    caught_up: bool

    def __repr__(self) -> str:
        state = ", caught up" if self.caught_up else ""
        return f"<FollowPage of {len(self.events)} events, cursor={self.cursor}{state}>"

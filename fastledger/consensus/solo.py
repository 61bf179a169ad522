"""The engine of a single organisation: every block is final as soon as it is sealed (SPEC-ENG-2)."""

from collections.abc import Collection, Sequence

from fastledger.consensus.engine import (
    Action,
    BlockBuilt,
    BuildBlock,
    Event,
    FinaliseBlock,
    SealBlock,
    Tip,
)
from fastledger.errors import Code, InputError
from fastledger.model.block import Block

NO_WORK_BITS = 0


class SoloEngine:
    """Builds whenever something is pending; block time runs with the clock and never backwards."""

    name = "solo"

    def __init__(self, proposers: Collection[bytes]) -> None:
        self._proposers = frozenset(proposers)

    def handle(self, event: Event) -> Sequence[Action]:
        """Pending transactions are built into a block; a built block is sealed and final."""
        if isinstance(event, BlockBuilt):
            return (SealBlock(event.body.height), FinaliseBlock(event.body.height))
        return (BuildBlock(max(event.now_ms, event.tip.time_ms + 1), NO_WORK_BITS),)

    def check(self, block: Block, parent: Tip) -> None:
        """A block of a proposer from the genesis document, later than its parent, without work."""
        if block.body.proposer not in self._proposers:
            raise InputError(
                f"the proposer of height {block.height} is not of this chain", code=Code.BAD_BLOCK
            )
        if block.body.time_ms <= parent.time_ms:
            raise InputError(f"the time of height {block.height} does not advance", code=Code.BAD_BLOCK)
        if block.header.bits != NO_WORK_BITS or block.header.nonce != 0:
            raise InputError(f"height {block.height} claims work under the solo engine", code=Code.BAD_BLOCK)

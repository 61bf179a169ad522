"""The engine of a single organisation: every block is final as soon as it is sealed (SPEC-ENG-2)."""

from collections.abc import Collection, Sequence

from fastledger.consensus.engine import (
    BlockBuilt,
    BuildBlock,
    EngineAction,
    EngineEvent,
    EngineTip,
    FinaliseBlock,
    SealBlock,
    TransactionsPending,
)
from fastledger.errors import Code, InputError
from fastledger.model.block import Header, HeaderBody

NO_WORK_BITS = 0


class SoloEngine:
    """The engine that builds whenever something is pending; block time runs with the clock and never backwards."""

    name = "solo"
    chains_seals = True
    empty_blocks = False
    finality_depth = 0

    def __init__(self, proposers: Collection[bytes]) -> None:
        self._proposers = frozenset(proposers)

    def handle(self, event: EngineEvent) -> Sequence[EngineAction]:
        """Answers an event: pending transactions are built into a block; a built block is sealed and final."""
        if isinstance(event, BlockBuilt):
            return (SealBlock(event.body.height), FinaliseBlock(event.body.height))
        if isinstance(event, TransactionsPending):
            return (BuildBlock(max(event.now_ms, event.tip.time_ms + 1), NO_WORK_BITS),)
        return ()

    def check(self, header: Header, body: HeaderBody, parent: EngineTip) -> None:
        """Raises ``InputError`` (``BAD_BLOCK``) unless the block may follow ``parent`` (SPEC-ENG-2).

        Its proposer must be named in the genesis document, its time later than its parent's, its bits and nonce
        zero.
        """
        if body.proposer not in self._proposers:
            raise InputError(
                f"the proposer of height {body.height} is not of this chain", code=Code.BAD_BLOCK
            )
        if body.time_ms <= parent.time_ms:
            raise InputError(f"the time of height {body.height} does not advance", code=Code.BAD_BLOCK)
        if header.bits != NO_WORK_BITS or header.nonce != 0:
            raise InputError(f"height {body.height} claims work under the solo engine", code=Code.BAD_BLOCK)

    def work(self, header: Header) -> int:
        """Returns 1: every block weighs as much as any other."""
        return 1

    def ready_ms(self, body: HeaderBody) -> int:
        """Returns 0: a block may be taken at once, since nobody else makes blocks."""
        return 0

    def tip(self, header: Header, body: HeaderBody, seal: bytes, parent: EngineTip | None) -> EngineTip:
        """Returns the tip without bits and interval, on which nothing depends here."""
        return EngineTip(body.height, header.block_id, body.time_ms, seal)

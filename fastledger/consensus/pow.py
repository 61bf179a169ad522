"""Proof of work: members of the chain compete, the chain with most work wins (SPEC-ENG-3..7).

The target follows the times between blocks, after every block (SPEC-WORK-8): a weighted exponential moving average
in integers. How far one interval may move it is bounded on both sides. As times only ever rise, the intervals of a
chain add up to the time that went by: whoever lies about the time of one block takes the difference from the next.
"""

from collections.abc import Sequence

from fastledger.consensus.engine import (
    BlockBuilt,
    BuildBlock,
    EngineAction,
    EngineEvent,
    EngineTip,
    FinaliseBlock,
    SealBlock,
    SearchWork,
    TransactionsPending,
    WorkFound,
)
from fastledger.crypto.work import bits_to_target, block_work, target_to_bits
from fastledger.errors import Code, InputError
from fastledger.limits import FUTURE_MS_MAX, WORK_CREDIT_SPACINGS_MAX
from fastledger.model.block import ZERO32, Header, HeaderBody
from fastledger.model.genesis import Genesis, WorkParameters


def next_target(target: int, interval_ms: int, parameters: WorkParameters) -> int:
    """Returns the target after a block of ``target`` that came ``interval_ms`` after its parent (SPEC-WORK-8).

    The interval counts up to ten spacings: after an outage the target rises by an eighth or so a block, and the
    blocks that were missed are not owed.
    """
    spacing = parameters.spacing_ms
    credit = min(interval_ms, WORK_CREDIT_SPACINGS_MAX * spacing)
    moved = target + target * (credit - spacing) // (parameters.window_blocks * spacing)
    return max(1, min(moved, bits_to_target(parameters.limit_bits)))


class PowEngine:
    """The engine of a chain whose genesis document says ``pow``."""

    name = "pow"
    chains_seals = False
    empty_blocks = True

    def __init__(self, genesis: Genesis) -> None:
        """Takes the parameters of ``genesis``; raises ``InputError`` (``BAD_GENESIS``) where it has none."""
        if genesis.work is None:
            raise InputError("the genesis document has no work parameters", code=Code.BAD_GENESIS)
        self.parameters = genesis.work
        self.finality_depth = genesis.work.finality_depth
        self._proposers = frozenset(genesis.proposers)

    def handle(self, event: EngineEvent) -> Sequence[EngineAction]:
        """Answers an event: a built block needs work, a worked block a seal.

        When the tip moves, the block ``finality_depth`` under it becomes final (SPEC-ENG-6).
        """
        if isinstance(event, TransactionsPending):
            return (BuildBlock(max(event.now_ms, event.tip.time_ms + 1), self.next_bits(event.tip)),)
        if isinstance(event, BlockBuilt):
            return (SearchWork(event.body.height, bits_to_target(event.header.bits)),)
        if isinstance(event, WorkFound):
            return (SealBlock(event.body.height),)
        final_height = event.tip.height - self.finality_depth
        return (FinaliseBlock(final_height),) if final_height >= 0 else ()

    def next_bits(self, parent: EngineTip) -> int:
        """Returns the bits that a block on top of ``parent`` must have."""
        return target_to_bits(next_target(bits_to_target(parent.bits), parent.interval_ms, self.parameters))

    def check(self, header: Header, body: HeaderBody, parent: EngineTip) -> None:
        """Raises ``InputError`` (``BAD_BLOCK``) unless the block may follow ``parent`` (SPEC-ENG-3, SPEC-ENG-4).

        Its proposer must be a member, its time later than its parent's, its ``seal_ref`` zero, and its work that
        which is due.
        """
        height = body.height
        if body.proposer not in self._proposers:
            raise _bad_block(f"the proposer of height {height} is not of this chain")
        if body.time_ms <= parent.time_ms:
            raise _bad_block(f"the time of height {height} does not advance")
        if body.seal_ref != ZERO32:
            raise _bad_block(f"height {height} refers to a seal under the pow engine")
        if header.bits != self.next_bits(parent):
            raise _bad_block(f"height {height} has other bits than are due")
        self.check_hash(header, height)

    def check_hash(self, header: Header, height: int) -> None:
        """Raises ``InputError`` (``BAD_BLOCK``) unless the header's hash meets its bits (SPEC-WORK-3)."""
        if int.from_bytes(header.block_id, "little") > bits_to_target(header.bits):
            raise _bad_block(f"height {height} lacks the work that it claims")

    def work(self, header: Header) -> int:
        """Returns the number of hashes that the block is expected to have cost (SPEC-WORK-4)."""
        return block_work(header.bits)

    def ready_ms(self, body: HeaderBody) -> int:
        """Returns the clock reading from which the block's time is at most ``FUTURE_MS_MAX`` ahead (SPEC-ENG-5)."""
        return body.time_ms - FUTURE_MS_MAX

    def tip(self, header: Header, body: HeaderBody, seal: bytes, parent: EngineTip | None) -> EngineTip:
        """Returns the tip with the bits and the interval that the next target depends on.

        Block 0 counts as on time.
        """
        interval_ms = self.parameters.spacing_ms if parent is None else body.time_ms - parent.time_ms
        return EngineTip(body.height, header.block_id, body.time_ms, seal, header.bits, interval_ms)


def _bad_block(message: str) -> InputError:
    return InputError(message, code=Code.BAD_BLOCK)

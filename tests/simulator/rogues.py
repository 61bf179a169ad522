"""Miners that cheat within the protocol: whole nodes that are not to be banned, and that must gain nothing."""

from typing import TYPE_CHECKING

from fastledger.crypto.signing import SigningKey
from fastledger.limits import FUTURE_MS_MAX
from fastledger.model.block import Block
from simulator.clock import NodeClock
from simulator.node import Node

if TYPE_CHECKING:
    from simulator.run import Run


class TimeWarper(Node):
    """Dates its blocks as far into the future as the others take, or as far back as the rules let it."""

    def template_ms(self) -> int:
        if self.rng.random() < 0.5:
            return self.clock() + FUTURE_MS_MAX - 1_000
        return 0  # the engine makes it the parent's time and a millisecond


class Withholder(Node):
    """Keeps the blocks that it finds until the others have caught up, then shows them: selfish mining."""

    def publish(self, block: Block) -> None:
        super().publish(block)


def make_rogue(run: "Run", number: int, key: SigningKey, clock: NodeClock) -> Node:
    """The cheating miner that the run's options name."""
    kinds = {"time-warping": TimeWarper, "withholding": Withholder}
    node = kinds[run.options.rogue](run, number, key, clock)
    node.honest = False
    return node

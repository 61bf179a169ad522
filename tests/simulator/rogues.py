"""Miners that cheat: whole nodes with hash power, whose blocks are late, misdated, or against the rules."""

from typing import TYPE_CHECKING

from fastledger.chain.admission import Pending
from fastledger.chain.forks.events import BlockStored, ChainEvent
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
    """Selfish mining: says nothing while it is ahead, and shows its blocks when a rival comes near, or in the end.

    It hides its tip by silence: nothing leaves it, while it hears everything. The links may die of that.
    """

    def __init__(self, run: "Run", number: int, key: SigningKey, clock: NodeClock) -> None:
        super().__init__(run, number, key, clock)
        self._silent = False

    def publish(self, block: Block) -> None:
        if not self._silent:
            self._silent = True
            for other in self.run.nodes:
                self.run.network.silence(self, other)
            longest_ms = 2 * self.run.options.spacing_ms
            self.run.schedule.after(self.rng.randint(1, longest_ms), self._show)
        super().publish(block)

    def _observe(self, event: ChainEvent) -> None:
        super()._observe(event)
        if isinstance(event, BlockStored) and self._silent:
            rival = self.chain.tree.get(event.block_id)
            foreign = rival is not None and rival.body.proposer != self.key.public_key
            if rival is not None and foreign and rival.height >= self.chain.tip.height - 1:
                self.run.schedule.after(1, self._show)

    def _show(self) -> None:
        if self._silent:
            self._silent = False
            self.run.trace(f"{self.name} shows what it has")
            for other in self.run.nodes:
                self.run.network.unsilence(self, other)


class DoubleExecutor(Node):
    """Knows of no transaction that it is on the chain already, and puts each into its blocks again and again."""

    def start(self) -> None:
        super().start()
        if self.running:
            self.process.store.seqs_of_txids = lambda txids, indexed=None: {}  # type: ignore[method-assign]

    def template_ms(self) -> int:
        signed = [
            wish.transaction for wish in self.run.wishes if wish.transaction is not None and not wish.forged
        ]
        again = self.rng.sample(signed, min(2, len(signed)))
        self.chain.submit([transaction.encoded for transaction in again], self.clock())
        return self.clock()


class Forger(Node):
    """Puts transactions into its pool, and so into its blocks, that nobody signed."""

    def template_ms(self) -> int:
        forged = [
            wish.transaction for wish in self.run.wishes if wish.transaction is not None and wish.forged
        ]
        for transaction in forged[-2:]:
            pending = Pending(
                transaction.txid,
                transaction.encoded,
                bytes(33),
                transaction.signer,
                transaction.body,
                transaction.issued_ms,
                transaction.expires_ms,
            )
            self.chain.mempool.add(pending)
        return self.clock()


def make_rogue(run: "Run", number: int, key: SigningKey, clock: NodeClock) -> Node:
    """The cheating miner that the run's options name."""
    kinds = {
        "time-warping": TimeWarper,
        "withholding": Withholder,
        "double-executing": DoubleExecutor,
        "forging": Forger,
    }
    node = kinds[run.options.rogue](run, number, key, clock)
    node.honest = False
    return node

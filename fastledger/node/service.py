"""The service of a node without a wire: submit, read, follow.

The RPC above it only parses, limits, calls and answers. ::

    RPC handlers (event loop) ── submit ──► Batcher ── batches ──► Ledger (its own threads)
                              ── read ────► Reads  ── one job for all that wait ──► reader thread
                              ── follow ──► Feed   ◄── durable blocks ── Ledger's syncer thread
"""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal, Self, TypeVar

from fastledger.chain.ledger import Ledger
from fastledger.errors import LedgerClosedError
from fastledger.node.feed import Feed
from fastledger.node.ingest import Batcher
from fastledger.node.options import IngestOptions
from fastledger.node.reads import Reads, Tell

T = TypeVar("T")
State = Literal["ready", "syncing", "outdated", "stopping", "halted", "stopped"]


@dataclass(frozen=True, slots=True, kw_only=True)
class ServiceOptions:
    """Bounds of the queues between the wire and the ledger."""

    ingest: IngestOptions = field(default_factory=IngestOptions)
    reads_pending_max: int = 10_000


class NodeService:
    """One open ledger as a service on the running event loop; make one with :meth:`start`."""

    def __init__(self, ledger: Ledger, options: ServiceOptions) -> None:
        """Makes the parts on the running loop; callers use :meth:`start`."""
        loop = asyncio.get_running_loop()
        self.ledger = ledger
        self.reads = Reads(pending_max=options.reads_pending_max, together=ledger.shared_snapshot)
        self.ingest = Batcher(ledger, options.ingest)
        self.feed = Feed(ledger, self.reads, loop)
        # Whether the node is far behind its peers; whoever runs a federation sets it.
        self.is_syncing: Callable[[], bool] = lambda: False
        self._stopping = False
        self._stopped = False

    @classmethod
    async def start(cls, ledger: Ledger, options: ServiceOptions | None = None) -> Self:
        """Takes over an open ledger, which :meth:`stop` closes."""
        return cls(ledger, options or ServiceOptions())

    @property
    def state(self) -> State:
        """The state of the node.

        A node that is *ready* takes transactions. One that is *syncing* takes them too, but is far behind its peers,
        so that its answers are old. One that is *outdated* stands before a rule set that its release does not know: it
        answers reads, and goes on when it is started with a newer release. One that is *halted* has failed to write: it
        still answers reads, and needs a restart to go on. In the states *stopping* and *stopped* it takes nothing more.
        """
        if self._stopped:
            return "stopped"
        if self._stopping:
            return "stopping"
        if self.ledger.halted:
            return "halted"
        if self.ledger.release_needed is not None:
            return "outdated"
        return "syncing" if self.is_syncing() else "ready"

    async def read(self, work: Callable[[Ledger], T], *, heavy: bool = False) -> T:
        """Runs a short read off the loop, together with all others that wait; ``heavy`` ones have their own thread.

        Raises whatever ``work`` raises, ``LedgerBusyError`` where too many reads wait.
        """
        if self._stopped:
            raise LedgerClosedError("the node has stopped")
        return await self.reads.run(lambda: work(self.ledger), heavy=heavy)

    def begin_read(self, work: Callable[[Ledger], Any], tell: Tell) -> None:
        """Begins a short read without a task of its own.

        ``tell`` is called on the loop with what it returned or raised. Raises as :meth:`read` where the read is not
        taken.
        """
        if self._stopped:
            raise LedgerClosedError("the node has stopped")
        self.reads.begin(lambda: work(self.ledger), tell)

    async def stop(self) -> None:
        """Answers everything that was taken, writes a checkpoint and closes the ledger. May be called twice."""
        if self._stopping:
            return
        self._stopping = True
        await self.ingest.close()
        self.feed.close()
        await self.reads.close()
        await asyncio.to_thread(self.ledger.close)
        self._stopped = True

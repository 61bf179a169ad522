"""The state of a federation's node as its driver reads it from the chain now and then, for metrics and RPC."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from fastledger.model.body import RULE_SET_FIRST
from fastledger.peers.scores import Ban
from fastledger.peers.settings import PeerInfo, SyncStatus
from fastledger.subjects.chain import RuleSetStep


@dataclass(frozen=True, slots=True)
class Figures:
    """The state of chain and network a moment ago; RPC and metrics read it without asking the chain's thread.

    ``rule_set`` is that of the next block, ``rule_set_known`` the newest that this release knows.
    """

    tip_height: int = 0
    tip_id: bytes = bytes(32)
    tip_time_ms: int = 0
    final_height: int = 0
    work: int = 0
    mempool: int = 0
    rule_set: int = RULE_SET_FIRST
    rule_set_known: int = RULE_SET_FIRST
    scheduled: RuleSetStep | None = None
    sync: SyncStatus = field(default_factory=lambda: SyncStatus(0, 0, 0, 0, False, 0, 0))
    peers: Sequence[PeerInfo] = ()
    bans: Sequence[Ban] = ()

    @property
    def left_behind(self) -> Sequence[str]:
        """The peers whose release lacks the rule set that is scheduled, or else in force: organisations, in order.

        A peer without a certificate goes by its address.
        """
        wanted = self.rule_set if self.scheduled is None else self.scheduled.rule_set
        behind = [peer for peer in self.peers if peer.ready and peer.rule_set < wanted]
        return sorted({peer.organisation or peer.address for peer in behind})

    @property
    def lag(self) -> int:
        """How many blocks have proven headers and were not executed by this node yet."""
        return max(0, self.sync.header_height - self.tip_height)

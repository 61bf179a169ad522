"""The state of a federation's node as its driver reads it from the chain now and then, for metrics and RPC."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from fastledger.peers.scores import Ban
from fastledger.peers.settings import PeerInfo, SyncStatus


@dataclass(frozen=True, slots=True)
class Figures:
    """The state of chain and network a moment ago; RPC and metrics read it without asking the chain's thread."""

    tip_height: int = 0
    tip_id: bytes = bytes(32)
    tip_time_ms: int = 0
    final_height: int = 0
    work: int = 0
    mempool: int = 0
    sync: SyncStatus = field(default_factory=lambda: SyncStatus(0, 0, 0, 0, False, 0, 0))
    peers: Sequence[PeerInfo] = ()
    bans: Sequence[Ban] = ()

    @property
    def lag(self) -> int:
        """How many blocks have proven headers and were not executed by this node yet."""
        return max(0, self.sync.header_height - self.tip_height)

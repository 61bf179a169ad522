"""Settings of an open ledger."""

from collections.abc import Callable
from dataclasses import dataclass

from fastledger.clock import system_clock_ms
from fastledger.limits import CHECKPOINT_BYTES, CHECKPOINT_TRANSACTIONS, ORPHANS_MAX, UNNAMED_BYTES_MAX


@dataclass(frozen=True, slots=True, kw_only=True)
class LedgerOptions:
    """Settings of an open ledger; none of them changes what the chain accepts.

    ``require_blobs``: a record enters only when its envelope is in this node's blob store; a node that keeps
    envelopes elsewhere turns it off. Checkpoints are begun at so many transactions or bytes of memory.
    At most ``unnamed_blobs_max`` envelopes of ``unnamed_bytes_max`` bytes wait for a record that names them.
    ``verify_threads`` (None: one for each CPU) verify signatures.
    """

    require_blobs: bool = True
    checkpoint_transactions: int = CHECKPOINT_TRANSACTIONS
    checkpoint_bytes: int = CHECKPOINT_BYTES
    unnamed_blobs_max: int = ORPHANS_MAX
    unnamed_bytes_max: int = UNNAMED_BYTES_MAX
    verify_threads: int | None = None
    clock_ms: Callable[[], int] = system_clock_ms

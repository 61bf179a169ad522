"""Settings of an open ledger."""

from collections.abc import Callable
from typing import Annotated

from msgspec import Meta, Struct

from fastledger.clock import system_clock_ms
from fastledger.limits import (
    CHECKPOINT_BYTES,
    CHECKPOINT_TRANSACTIONS,
    ORPHANS_MAX,
    UNREFERENCED_BYTES_MAX,
)
from fastledger.settings import GIB, MIB


class LedgerOptions(Struct, frozen=True, kw_only=True):
    """Settings of an open ledger; none of them changes what the chain accepts.

    A node that keeps envelopes elsewhere turns ``require_blobs`` off. ``verify_threads`` (0: one for each CPU) verify
    signatures. ``clock_ms`` gives UTC milliseconds.
    """

    require_blobs: Annotated[
        bool,
        Meta(description="A record enters only when its envelope is in this node's blob store."),
    ] = True
    checkpoint_transactions: Annotated[
        int,
        Meta(
            description="Transactions between index checkpoints; more: fewer writes, a longer replay after a crash.",
            ge=1_000,
            le=10_000_000,
        ),
    ] = CHECKPOINT_TRANSACTIONS
    checkpoint_bytes: Annotated[
        int,
        Meta(description="Memory of unwritten state that starts a checkpoint.", ge=MIB, le=16 * GIB),
    ] = CHECKPOINT_BYTES
    unreferenced_blobs_max: Annotated[
        int,
        Meta(description="Envelopes that may wait for a record that names them.", ge=1, le=ORPHANS_MAX),
    ] = ORPHANS_MAX
    unreferenced_bytes_max: Annotated[
        int,
        Meta(
            description="Their bytes; beyond either bound, who stores more hears busy.",
            ge=MIB,
            le=1024 * GIB,
        ),
    ] = UNREFERENCED_BYTES_MAX
    verify_threads: int = 0
    clock_ms: Callable[[], int] = system_clock_ms

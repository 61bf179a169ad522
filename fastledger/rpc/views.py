"""Parameters and results of the JSON-RPC methods, beside those of :mod:`fastledger.rpc.protocol`.

Parameters are objects by name; a field that is not known is refused, so that a misspelt condition never finds
everything. Ids and hashes are lower-case hexadecimal, byte strings base64, times integer UTC milliseconds.
"""

from typing import Annotated, Any, Literal, TypeAlias

import msgspec
from msgspec import Meta

from fastledger.errors import CODE_MAX
from fastledger.limits import QUERY_PAGE_DEFAULT, QUERY_PAGE_MAX, TRANSACTION_BYTES_MAX
from fastledger.model.block import Block
from fastledger.model.outcome import Wait
from fastledger.model.query import Entry, Topic
from fastledger.rpc.protocol import (
    BlockView,
    Count,
    EntryView,
    Filter,
    Hex8,
    Hex16,
    Hex32,
    Hex33,
    Status,
    Verdict,
)

Encoded: TypeAlias = Annotated[bytes, Meta(max_length=TRANSACTION_BYTES_MAX)]
PageSize: TypeAlias = Annotated[int, Meta(ge=1, le=QUERY_PAGE_MAX)]
Height: TypeAlias = Annotated[int, Meta(ge=0, le=2**53 - 1)]
KindName: TypeAlias = Annotated[str, Meta(max_length=32)]
Label: TypeAlias = Annotated[str, Meta(max_length=64)]
FilePath: TypeAlias = Annotated[str, Meta(min_length=1, max_length=4096)]


class Params(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Base of a method's parameters: an object by name, of which an unknown field is refused."""


class Nothing(Params, frozen=True):
    """The parameters of a method that takes none."""


# The ledger.


class InfoView(msgspec.Struct, frozen=True):
    """What a client has to know of a node before anything else."""

    protocol: Count
    version: str
    chain_id: Hex8
    genesis: bytes
    engine: str
    height: Count
    head: Hex32
    transactions: Count
    now_ms: Count


class RuleSetStepView(msgspec.Struct, frozen=True):
    """A rule set, the first height at which it is in force, and the first release that has it (empty: not told)."""

    rule_set: Count
    height: Count
    release: str


class RulesView(msgspec.Struct, frozen=True):
    """The rule set of the next block, the newest that this release knows, and what is scheduled.

    ``release_needed`` tells why the node takes nothing more, where it lacks the next block's rule set.
    """

    in_force: Count
    newest_known: Count
    scheduled: RuleSetStepView | None
    release_needed: str | None


class LedgerStatusView(msgspec.Struct, frozen=True):
    """Figures of the ledger and its queues."""

    state: Literal["ready", "syncing", "outdated", "stopping", "halted", "stopped"]
    chain_id: Hex8
    engine: str
    height: Count
    first_height: Count
    head: Hex32
    transactions: Count
    queue_depth: Count
    pending_transactions: Count
    pending_bytes: Count
    pending_reads: Count
    subscriptions: Count
    replayed_blocks: Count
    rules: RulesView
    index: dict[str, Any]
    blobs: dict[str, Any]


# Transactions.


class SubmitParams(Params, frozen=True):
    """One COSE_Sign1, and the stage at which its verdict is wanted."""

    transaction: Encoded
    wait: Wait = "durable"


class SubmitBatchParams(Params, frozen=True):
    """Transactions of one batch, in the order in which they are to be executed."""

    transactions: Annotated[list[Encoded], Meta(min_length=1, max_length=1_000)]
    wait: Wait = "durable"


class VerdictsView(msgspec.Struct, frozen=True):
    """The verdicts on a batch, in its order."""

    verdicts: list[Verdict]


class TxidParams(Params, frozen=True):
    """The id of a transaction, 32 bytes."""

    txid: Hex32


class TransactionStatusView(msgspec.Struct, frozen=True):
    """Where a transaction stands. *pending*: taken, but its block is not durable yet. *unknown*: no trace of it.

    ``code`` and ``reason`` are the result; place and time are null unless the transaction stands in a durable block.
    """

    txid: Hex32
    status: Literal["pending", "durable", "refused", "unknown"]
    code: Count = 0
    reason: str = "ok"
    height: Count | None = None
    index: Count | None = None
    time_ms: Count | None = None


class QueryParams(Params, frozen=True):
    """All conditions that are set must hold. ``signed_by`` and ``subject`` are identity ids.

    ``ids`` names entities by their tables: ``{"record": id}`` finds what names the record.
    ``status`` finds all that were executed or all that were refused, ``code`` those of one result. Heights and times
    bound a range, both ends included. ``cursor`` is the ``next_cursor`` of the page before.
    """

    kind: KindName | None = None
    signed_by: Hex16 | None = None
    subject: Hex16 | None = None
    ids: Annotated[dict[str, Hex16], Meta(max_length=8)] = {}
    token: Hex16 | None = None
    status: Literal["durable", "refused"] | None = None
    code: Annotated[int, Meta(ge=0, le=CODE_MAX)] | None = None
    alerts: bool = False
    from_height: Height | None = None
    to_height: Height | None = None
    from_time_ms: Height | None = None
    to_time_ms: Height | None = None
    newest_first: bool = False
    cursor: Count | None = None
    limit: PageSize = QUERY_PAGE_DEFAULT


class PageView(msgspec.Struct, frozen=True):
    """A page of what a query found: ``limit`` at most, fewer of long ones. The last one has no ``next_cursor``."""

    entries: list[EntryView]
    next_cursor: Count | None


class StatementView(msgspec.Struct, frozen=True):
    """A transparent statement: the transaction and its receipt in one, verifiable offline."""

    txid: Hex32
    statement: bytes


# Blocks.


class BlockParams(Params, frozen=True):
    """The block at ``height``, or the newest one where it is absent."""

    height: Height | None = None


class HeaderView(msgspec.Struct, frozen=True):
    """What a block commits to. ``header`` is the 80 bytes that are hashed, ``body`` what they commit to."""

    height: Count
    block_id: Hex32
    previous_id: Hex32
    time_ms: Count
    tx_root: Hex32
    result_root: Hex32
    state_root: Hex32
    history_root: Hex32
    proposer: Hex33
    header: bytes
    body: bytes
    seal: bytes


class BlockTransactionsParams(Params, frozen=True):
    """Transactions of the block at ``height`` from ``index`` on."""

    height: Height
    index: Count = 0
    limit: PageSize = QUERY_PAGE_DEFAULT


class BlockTransactionsView(msgspec.Struct, frozen=True):
    """Some transactions of a block; ``next_index`` is null behind the last one."""

    entries: list[EntryView]
    next_index: Count | None


# Envelopes.


class DigestsParams(Params, frozen=True):
    """The SHA-256 digests of the envelopes that are asked about."""

    digests: Annotated[list[Hex32], Meta(max_length=1_000)]


class MissingView(msgspec.Struct, frozen=True):
    """The digests of envelopes that the node lacks: it has to be sent these before a record can name them."""

    missing: list[Hex32]


class StoredView(msgspec.Struct, frozen=True):
    """Digests of the envelopes that a request brought, in its order; all are synced."""

    digests: list[Hex32]


# Subscriptions.


class OpenParams(Params, frozen=True):
    """What to follow, and from where: a height for blocks, else a transaction's number; absent: from now on."""

    topic: Topic
    cursor: Count | None = None
    filter: Filter | None = None


class OpenedView(msgspec.Struct, frozen=True):
    """A subscription and the cursor that it begins at."""

    subscription: str
    cursor: Count


class CloseParams(Params, frozen=True):
    """The subscription to end, one of this connection."""

    subscription: Label


class ClosedView(msgspec.Struct, frozen=True):
    """A subscription that ended, and the cursor behind everything that it sent: another one goes on from there."""

    subscription: str
    cursor: Count


# What views are made from.


def entry_view(entry: Entry) -> EntryView:
    """Returns a transaction of the chain in its JSON form. It hashes for the id, so it does not belong on the loop."""
    transaction = entry.transaction
    code = entry.code
    return EntryView(
        entry.seq,
        transaction.txid.hex(),
        entry.height,
        entry.index,
        entry.time_ms,
        transaction.kind,
        transaction.signer.hex(),
        int(code),
        code.slug,
        entry.encoded,
    )


def block_view(block: Block, first_seq: int) -> BlockView:
    """Returns a block's JSON form, without its transactions."""
    return BlockView(
        block.height,
        block.block_id.hex(),
        block.header.previous_id.hex(),
        block.body.time_ms,
        first_seq,
        block.count,
    )


def header_view(block: Block) -> HeaderView:
    """Returns the JSON form of a block's header and of what it commits to."""
    body = block.body
    return HeaderView(
        block.height,
        block.block_id.hex(),
        block.header.previous_id.hex(),
        body.time_ms,
        body.tx_root.hex(),
        body.result_root.hex(),
        body.state_root.hex(),
        body.history_root.hex(),
        body.proposer.hex(),
        block.header.encode(),
        body.encode(),
        block.seal,
    )


def wire_status(verdict_wait: Wait, status: str, height: int | None) -> Status:
    """Returns the word for an outcome whose submission waited until ``verdict_wait``.

    Nothing is called durable before it is: an outcome that was told earlier is *accepted* or *ordered*.
    """
    if status == "durable" and verdict_wait == "ordered":
        return "ordered"
    if status == "rejected" or height is not None:
        return status  # type: ignore[return-value]
    return "accepted"

"""JSON-RPC methods about the ledger, its blocks and its envelopes."""

from typing import Any

import msgspec

from fastledger.chain.ledger import Ledger
from fastledger.clock import system_clock_ms
from fastledger.errors import Code
from fastledger.model.query import Entry, cut_entries
from fastledger.rpc.http.routes import Caller
from fastledger.rpc.methods import Method, RpcContext, method, short_read
from fastledger.rpc.protocol import PROTOCOL_VERSION, BlockView
from fastledger.rpc.views import (
    BlockParams,
    BlockTransactionsParams,
    BlockTransactionsView,
    DigestsParams,
    HeaderView,
    InfoView,
    LedgerStatusView,
    MissingView,
    Nothing,
    RulesView,
    block_view,
    entry_view,
    header_view,
)
from fastledger.version import VERSION


@method("ledger.info", "reader", Nothing, InfoView)
async def info(context: RpcContext, caller: Caller, params: Nothing) -> InfoView:
    """Versions, chain, genesis document, where the chain ends and the node's clock."""
    ledger = context.service.ledger
    return InfoView(
        PROTOCOL_VERSION,
        VERSION,
        ledger.chain_id.hex(),
        ledger.genesis.encoded,
        ledger.genesis.engine,
        ledger.height,
        ledger.head.hex(),
        ledger.transaction_count,
        system_clock_ms(),
    )


@method("ledger.status", "reader", Nothing, LedgerStatusView)
async def status(context: RpcContext, caller: Caller, params: Nothing) -> LedgerStatusView:
    """Figures of the ledger and its queues."""
    figures = await context.service.read(lambda ledger: ledger.status())
    return status_view(context, figures)


def status_view(context: RpcContext, figures: dict[str, Any]) -> LedgerStatusView:
    """The ledger's own figures and the service's."""
    service = context.service
    return LedgerStatusView(
        service.state,
        figures["chain_id"],
        figures["engine"],
        figures["height"],
        figures["first_height"],
        figures["head"],
        figures["transactions"],
        figures["queue_depth"],
        service.ingest.pending_transactions,
        service.ingest.pending_bytes,
        service.reads.pending,
        service.feed.subscription_count,
        figures["replayed_blocks"],
        msgspec.convert(figures["rules"], RulesView),
        figures["index"],
        figures["blobs"],
    )


# Blocks.


def _height(ledger: Ledger, height: int | None) -> int:
    return ledger.height if height is None else height


@short_read("block.get", "reader", BlockParams, BlockView)
def block(ledger: Ledger, params: BlockParams) -> BlockView:
    """A block without its transactions; without a height the newest."""
    return block_view(*ledger.block_and_first_seq(_height(ledger, params.height)))


@short_read("block.header", "reader", BlockParams, HeaderView)
def header(ledger: Ledger, params: BlockParams) -> HeaderView:
    """The header of a block, its seal and the roots that it commits to."""
    return header_view(ledger.block(_height(ledger, params.height)))


@method("block.transactions", "reader", BlockTransactionsParams, BlockTransactionsView, heavy=True)
async def transactions(context: RpcContext, caller: Caller, params: BlockTransactionsParams) -> msgspec.Raw:
    """Some of a block's transactions, in their order."""
    bytes_max = context.options.page_bytes_max
    return await context.service.read(lambda ledger: _transactions(ledger, params, bytes_max), heavy=True)


def _transactions(ledger: Ledger, params: BlockTransactionsParams, bytes_max: int) -> msgspec.Raw:
    found, first_seq = ledger.block_and_first_seq(params.height)
    upto = min(params.index + params.limit, found.count)
    time_ms = found.body.time_ms
    entries = [
        Entry(
            first_seq + index,
            params.height,
            index,
            time_ms,
            Code(found.result(index)),
            found.transaction_bytes(index),
        )
        for index in range(params.index, upto)
    ]
    kept, following = cut_entries(entries, bytes_max)
    end = upto if following is None else following.index
    view = BlockTransactionsView([entry_view(entry) for entry in kept], end if end < found.count else None)
    return msgspec.Raw(msgspec.json.encode(view))


# Envelopes.


@method("blob.missing", "submitter", DigestsParams, MissingView)
async def missing_blobs(context: RpcContext, caller: Caller, params: DigestsParams) -> MissingView:
    """Which envelopes the node has to be sent before records can name them."""
    digests = [bytes.fromhex(digest) for digest in params.digests]
    missing = await context.service.read(lambda ledger: ledger.missing_blobs(digests))
    return MissingView([digest.hex() for digest in missing])


CHAIN_METHODS: tuple[Method, ...] = (info, status, block, header, transactions, missing_blobs)

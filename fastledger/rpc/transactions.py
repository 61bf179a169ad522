"""JSON-RPC methods about transactions: submit, find, prove."""

import msgspec

from fastledger.chain.ledger import Ledger
from fastledger.errors import Code, InputError, NotFoundError
from fastledger.model.outcome import Outcome, Wait
from fastledger.model.query import Query, cut_entries
from fastledger.rpc.http.routes import Caller
from fastledger.rpc.methods import Method, RpcContext, method, short_read
from fastledger.rpc.protocol import EntryView, Verdict
from fastledger.rpc.signatures import low_s
from fastledger.rpc.views import (
    PageView,
    QueryParams,
    StatementView,
    SubmitBatchParams,
    SubmitParams,
    TransactionStatusView,
    TxidParams,
    VerdictsView,
    entry_view,
    wire_status,
)

_IDS = ("signed_by", "subject", "token")
_PLAIN = (
    "kind",
    "from_height",
    "to_height",
    "newest_first",
    "cursor",
    "limit",
)


def verdict_of(outcome: Outcome, wait: Wait) -> Verdict:
    """Returns an outcome as the verdict for a submitter that waited as far as ``wait`` says."""
    return Verdict.of(outcome, wire_status(wait, outcome.status, outcome.height))


@method("transaction.submit", "submitter", SubmitParams, Verdict)
async def submit(context: RpcContext, caller: Caller, params: SubmitParams) -> Verdict:
    """Submits one transaction and returns its verdict once it stands as far as `wait` says."""
    context.rates.take_transactions(caller, 1)
    outcome = await context.service.ingest.submit(low_s(params.transaction), wait=params.wait)
    context.count_verdicts((outcome,))
    if params.wait != "durable":
        context.pending.note((outcome,))
    return verdict_of(outcome, params.wait)


@method("transaction.submit_batch", "submitter", SubmitBatchParams, VerdictsView)
async def submit_batch(context: RpcContext, caller: Caller, params: SubmitBatchParams) -> VerdictsView:
    """Submits transactions that are executed in their order, and returns the verdict on each."""
    context.rates.take_transactions(caller, len(params.transactions))
    batch = [low_s(encoded) for encoded in params.transactions]
    outcomes = await context.service.ingest.submit_batch(batch, wait=params.wait)
    context.count_verdicts(outcomes)
    if params.wait != "durable":
        context.pending.note(outcomes)
    return VerdictsView([verdict_of(outcome, params.wait) for outcome in outcomes])


@short_read("transaction.get", "reader", TxidParams, EntryView)
def get(ledger: Ledger, params: TxidParams) -> EntryView:
    """The transaction of an id, its place in the chain and its result."""
    return entry_view(ledger.get(bytes.fromhex(params.txid)))


@method("transaction.status", "reader", TxidParams, TransactionStatusView)
async def status(context: RpcContext, caller: Caller, params: TxidParams) -> TransactionStatusView:
    """Where a transaction stands: pending, durable, refused or unknown."""
    txid = bytes.fromhex(params.txid)
    try:
        entry = await context.service.read(lambda ledger: ledger.get(txid))
    except NotFoundError:
        is_pending = txid in context.pending and not context.service.ledger.halted
        return TransactionStatusView(params.txid, "pending" if is_pending else "unknown")
    context.pending.forget(txid)
    code = entry.code
    word = "durable" if code == Code.OK else "refused"
    return TransactionStatusView(
        params.txid,
        word,  # type: ignore[arg-type]
        int(code),
        code.slug,
        entry.height,
        entry.index,
        entry.time_ms,
    )


@method("transaction.query", "reader", QueryParams, PageView, heavy=True)
async def query(context: RpcContext, caller: Caller, params: QueryParams) -> msgspec.Raw:
    """A page of the transactions that meet all conditions."""
    conditions = query_of(params)
    bytes_max = context.options.page_bytes_max
    return await context.service.read(
        lambda ledger: _page(ledger, conditions, params.status == "refused", bytes_max), heavy=True
    )


def query_of(params: QueryParams) -> Query:
    """Returns the engine's query of the parameters.

    Raises ``InputError`` (``BAD_QUERY``) for senseless conditions.
    """
    values = {name: getattr(params, name) for name in _PLAIN}
    for name in _IDS:
        text = getattr(params, name)
        values[name] = None if text is None else bytes.fromhex(text)
    values["from_time"], values["to_time"] = params.from_time_ms, params.to_time_ms
    values["ids"] = {name: bytes.fromhex(text) for name, text in params.ids.items()}
    try:
        code = None if params.code is None else Code(params.code)
    except ValueError:
        raise InputError("no such result code", code=Code.BAD_QUERY) from None
    if params.status == "durable":
        if code not in (None, Code.OK):
            raise InputError("a durable transaction has code 0", code=Code.BAD_QUERY)
        code = Code.OK
    if params.status == "refused" and code == Code.OK:
        raise InputError("a refused transaction has a code other than 0", code=Code.BAD_QUERY)
    # Refusals are among the alerts; what else is there is left out of the page.
    refusals = params.status == "refused" and code is None
    return Query(code=code, alerts=params.alerts or refusals, **values)


def _page(ledger: Ledger, conditions: Query, refused_only: bool, bytes_max: int) -> msgspec.Raw:
    """Reads a page, cuts it at about ``bytes_max`` bytes of transactions, and encodes it; on a reader's thread."""
    page = ledger.query(conditions)
    entries, following = cut_entries(page.entries, bytes_max)
    views = [entry_view(entry) for entry in entries if not (refused_only and entry.code == Code.OK)]
    cursor = page.next_cursor if following is None else following.seq
    return msgspec.Raw(msgspec.json.encode(PageView(views, cursor)))


@method("transaction.prove", "reader", TxidParams, StatementView, heavy=True)
async def prove(context: RpcContext, caller: Caller, params: TxidParams) -> StatementView:
    """The transparent statement of a transaction: itself and its receipt, verifiable offline."""
    txid = bytes.fromhex(params.txid)
    statement = await context.service.read(lambda ledger: ledger.prove(txid), heavy=True)
    return StatementView(params.txid, statement)


TRANSACTION_METHODS: tuple[Method, ...] = (submit, submit_batch, get, status, query, prove)

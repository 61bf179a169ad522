"""The JSON-RPC methods as one table: name, role, types and the coroutine that answers.

Dispatch, role checks and /openrpc.json all read this table, so that they cannot differ (SPEC-RPC-2).
"""

from collections import Counter
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

import msgspec

from fastledger.chain.ledger import Ledger
from fastledger.errors import Code
from fastledger.model.outcome import Outcome
from fastledger.node.metrics import NodeMetrics
from fastledger.node.service import NodeService
from fastledger.rpc.http.rate import RateLimits
from fastledger.rpc.http.routes import Caller
from fastledger.rpc.options import CallerRole, RpcOptions
from fastledger.rpc.pending import PendingTransactions

ParamsT = TypeVar("ParamsT", bound=msgspec.Struct)
ResultT = TypeVar("ResultT")


@dataclass(slots=True, eq=False)
class RpcContext:
    """The parts of a node that handlers work with."""

    service: NodeService
    options: RpcOptions
    rates: RateLimits
    pending: PendingTransactions = field(default_factory=PendingTransactions)
    metrics: NodeMetrics | None = None

    def count_verdicts(self, outcomes: Sequence[Outcome]) -> None:
        """Counts the verdicts of a batch in the metrics."""
        if self.metrics is not None:
            codes = [outcome.code for outcome in outcomes]
            # Counting hashes each code, which for a member of an enum is a call; most batches have one code.
            self.metrics.verdicts(Counter(codes) if any(codes) else {Code.OK: len(codes)})


Run = Callable[[RpcContext, Caller, Any], Awaitable[Any]]
Read = Callable[[Ledger, Any], Any]


@dataclass(frozen=True, slots=True)
class Method:
    """One method. A request may hold only a few ``heavy`` ones. ``result`` is the type of the answer.

    A coroutine may return ``msgspec.Raw`` instead: its result, encoded where the work was done. ``read`` is set
    where all that ``run`` does is one short read: a server may then begin it without a task.
    """

    name: str
    role: CallerRole
    params: type[msgspec.Struct]
    result: Any
    run: Run
    summary: str
    heavy: bool = False
    read: Read | None = None
    decode: Callable[[bytes | msgspec.Raw], Any] = field(init=False)
    required: int = field(init=False)

    def __post_init__(self) -> None:
        """Makes the decoder of the parameters, once."""
        object.__setattr__(self, "decode", msgspec.json.Decoder(self.params).decode)
        fields = msgspec.structs.fields(self.params)
        object.__setattr__(self, "required", sum(item.required for item in fields))


def method(
    name: str,
    role: CallerRole,
    params: type[ParamsT],
    result: Any,
    *,
    heavy: bool = False,
) -> Callable[[Callable[[RpcContext, Caller, ParamsT], Awaitable[Any]]], Method]:
    """Makes a decorator that turns a coroutine into a row of the table.

    Its docstring's first line is the summary.
    """

    def make(run: Callable[[RpcContext, Caller, ParamsT], Awaitable[Any]]) -> Method:
        summary = (run.__doc__ or "").strip().partition("\n")[0]
        return Method(name, role, params, result, run, summary, heavy)

    return make


def short_read(
    name: str, role: CallerRole, params: type[ParamsT], result: Any
) -> Callable[[Callable[[Ledger, ParamsT], Any]], Method]:
    """Makes a decorator for a function that asks the ledger once: it becomes a row and runs on a reader's thread."""

    def make(read: Callable[[Ledger, ParamsT], Any]) -> Method:
        async def run(context: RpcContext, caller: Caller, params: ParamsT) -> Any:
            return await context.service.read(lambda ledger: read(ledger, params))

        summary = (read.__doc__ or "").strip().partition("\n")[0]
        return Method(name, role, params, result, run, summary, read=read)

    return make


def method_table(methods: Iterable[Method]) -> Mapping[str, Method]:
    """Returns the methods by name; raises ``ValueError`` where two have one name."""
    table: dict[str, Method] = {}
    for row in methods:
        if row.name in table:
            raise ValueError(f"two methods are named {row.name}")
        table[row.name] = row
    return table

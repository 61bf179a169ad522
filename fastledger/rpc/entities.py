"""JSON-RPC methods that read entities, derived from the subjects' tables: ``<table>.get`` and ``<table>.list``."""

from typing import Annotated, Any

import msgspec
from msgspec import Meta

from fastledger.chain.ledger import Ledger
from fastledger.limits import QUERY_PAGE_DEFAULT, QUERY_PAGE_MAX
from fastledger.rpc.http.routes import Caller
from fastledger.rpc.methods import Method, RpcContext, method, short_read
from fastledger.rpc.protocol import Hex16
from fastledger.state.entity import EntityTable
from fastledger.state.views import EntityView, view_of
from fastledger.subjects.catalogue import REGISTRY


def entity_methods() -> tuple[Method, ...]:
    """Returns the methods of every table that is declared by now."""
    found: list[Method] = []
    for table in REGISTRY.tables.values():
        view = view_of(table)
        found.append(_get(table, view))
        if table.is_indexed:
            found.append(_list(table, view))
    return tuple(found)


def _get(table: EntityTable[Any], view: EntityView) -> Method:
    def get(ledger: Ledger, params: msgspec.Struct) -> msgspec.Struct:
        key = view.parse_key(params)
        return view.show(key, ledger.entity(table, *key))

    get.__doc__ = table.summary
    return short_read(f"{table.name}.get", "reader", view.params, view.type)(get)


def _list(table: EntityTable[Any], view: EntityView) -> Method:
    conditions = list(table.listed_by)
    name = view.type.__name__.removesuffix("View")
    params = msgspec.defstruct(
        f"{name}ListParams",
        [
            *((condition, Hex16 | None, None) for condition in conditions),
            ("cursor", Annotated[int, Meta(ge=0, le=2**53 - 1)] | None, None),
            ("limit", Annotated[int, Meta(ge=1, le=QUERY_PAGE_MAX)], QUERY_PAGE_DEFAULT),
        ],
        frozen=True,
        forbid_unknown_fields=True,
        kw_only=True,
        namespace={"__doc__": f"Which entities of the table {table.name}: all conditions that are set must hold."},
        module=__name__,
    )
    page = msgspec.defstruct(
        f"{name}PageView",
        [("items", list[view.type]), ("next_cursor", int | None)],  # type: ignore[name-defined]
        frozen=True,
        namespace={"__doc__": "Some of the list; ``next_cursor`` is null on the last page."},
        module=__name__,
    )

    async def run(context: RpcContext, caller: Caller, params: Any) -> msgspec.Raw:
        by = {
            condition: bytes.fromhex(value)
            for condition in conditions
            if (value := getattr(params, condition)) is not None
        }

        def read(ledger: Ledger) -> msgspec.Raw:
            found = ledger.entities(table, by=by, cursor=params.cursor, limit=params.limit)
            items = [view.show(item.key, item.entity) for item in found.items]
            return msgspec.Raw(msgspec.json.encode(page(items, found.next_cursor)))

        return await context.service.read(read, heavy=True)

    run.__doc__ = f"List: {table.summary}"
    return method(f"{table.name}.list", "reader", params, page, heavy=True)(run)

"""What a node tells of its chain: one coroutine for each reading method of a ledger."""

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any, TypeVar, cast

import msgspec

from fastledger.client import views
from fastledger.client.calls import Calls
from fastledger.client.http import wrong_version
from fastledger.client.retry import Retry
from fastledger.client.views import bad_answer, entry_of, genesis_of, hex_bytes
from fastledger.errors import NotFoundError
from fastledger.limits import QUERY_PAGE_DEFAULT, TRANSACTION_BYTES_MAX
from fastledger.model.following import Tip
from fastledger.model.genesis import Genesis
from fastledger.model.query import Entry, Page, Query
from fastledger.model.receipt import STATEMENT_BYTES_MAX, Verified, verify_statement
from fastledger.rpc.protocol import PROTOCOL_VERSION, EntryView
from fastledger.state.entity import EntityItem, EntityPage, EntityT, EntityTable, KeyValue
from fastledger.state.views import EntityView, view_of
from fastledger.subjects.record import RECORDS, VERSIONS, RecordVersion

T = TypeVar("T")
INFO_BYTES_MAX = 1024 * 1024
# Base64 of a transaction and the fields around it.
ENTRY_BYTES_MAX = TRANSACTION_BYTES_MAX * 4 // 3 + 2048
# An entity of a few fields, hexadecimal.
ENTITY_BYTES_MAX = 16 * 1024


class _Page(msgspec.Struct):
    entries: list[EntryView]
    next_cursor: int | None = None
    end_seq: int | None = None


class _EntityPage(msgspec.Struct):
    items: list[msgspec.Raw]
    next_cursor: int | None = None


class _Statement(msgspec.Struct):
    statement: bytes


class NodeReader:
    """Reads of a node's chain; each is tried again until the deadline, since reading changes nothing."""

    genesis: Genesis

    def __init__(self, calls: Calls, retry: Retry) -> None:
        """``genesis`` is set once :meth:`fetch_genesis` has found it."""
        self._calls = calls
        self._retry = retry

    @property
    def chain_id(self) -> bytes:
        """8 bytes that stand in every transaction of the chain."""
        return self.genesis.chain_id

    async def _point(self, method: str, result: type[T], **params: Any) -> T:
        return await self._retry.run(lambda: self._calls.point(method, params, result))

    async def _call(self, method: str, result: type[T], answer_bytes_max: int, **params: Any) -> T:
        return await self._retry.run(
            lambda: self._calls.call(method, params, result, answer_bytes_max=answer_bytes_max)
        )

    async def fetch_genesis(self, chain_id: bytes | None = None) -> Genesis:
        """The node's genesis document, once it is clear that the node speaks this protocol.

        Raises ``InputError`` with ``WRONG_CHAIN`` where it is not that of ``chain_id``.
        """
        info = await self._call("ledger.info", views.NodeInfo, INFO_BYTES_MAX)
        if info.protocol != PROTOCOL_VERSION:
            raise wrong_version()
        return genesis_of(info.genesis, chain_id)

    async def tip(self) -> Tip:
        """Returns the end of the durable chain: height, head and count that belong together."""
        info = await self._point("ledger.info", views.NodeInfo)
        return Tip(info.height, hex_bytes(info.head, 32), info.transactions)

    async def status(self) -> dict[str, Any]:
        """Returns figures for people and metrics."""
        return await self._call("ledger.status", dict[str, Any], INFO_BYTES_MAX)

    async def get(self, txid: bytes) -> Entry:
        """Returns the transaction ``txid``.

        Raises ``NotFoundError``, with the code PRUNED where its block was pruned.
        """
        return entry_of(await self._point("transaction.get", EntryView, txid=txid.hex()), txid)

    async def query(self, query: Query | None = None, **conditions: Any) -> Page:
        """Returns a page of the transactions that meet ``query`` (or the conditions of one, as keywords).

        Raises ``InputError`` with ``BAD_QUERY`` or ``BAD_TIME`` for conditions that make no sense.
        """
        query = query or Query.of(**conditions)
        query.check()  # what makes no sense fails here as it does in a ledger
        params = {
            name: value.hex() if isinstance(value, bytes) else value
            for name, value in asdict(query).items()
            if value is not None
        }
        for name in ("from_time", "to_time"):
            if name in params:
                params[f"{name}_ms"] = params.pop(name)
        params["ids"] = {name: value.hex() for name, value in query.ids.items()}
        if query.code is not None:
            params["code"] = int(query.code)
        page = await self._call(
            "transaction.query", _Page, max(1, query.limit) * ENTRY_BYTES_MAX + 4096, **params
        )
        if len(page.entries) > query.limit:
            raise bad_answer("page")
        entries = [entry_of(view) for view in page.entries]
        behind = max((entry.seq + 1 for entry in entries), default=query.cursor or 0)
        return Page(entries, page.next_cursor, behind if page.end_seq is None else page.end_seq)

    async def prove(self, txid: bytes, *, verify: bool = False) -> bytes:
        """Returns the transparent statement of ``txid``: transaction and receipt in one, verifiable offline.

        With ``verify`` it is returned only if :meth:`verify_statement` accepts it. Raises ``NotFoundError`` where there
        is no such transaction, and ``ReceiptError`` for a statement that does not verify.
        """
        answer = await self._call(
            "transaction.prove", _Statement, STATEMENT_BYTES_MAX * 4 // 3 + 4096, txid=txid.hex()
        )
        statement = answer.statement
        if verify:
            self.verify_statement(statement, txid)
        return statement

    def verify_statement(self, statement: bytes, txid: bytes | None = None) -> Verified:
        """Checks a transparent statement against the genesis document, and returns what it proves.

        It needs neither disk nor network. With ``txid`` the statement has to be that transaction's. Raises
        ``ReceiptError`` for a statement that does not verify or is another's.
        """
        return verify_statement(
            statement, chain_id=self.chain_id, proposers=self.genesis.proposers, txid=txid
        )

    # Entities.

    async def entity(self, table: EntityTable[EntityT], *key: KeyValue) -> EntityT:
        """Returns the entity of ``table`` under ``key``, one value for each part, as of the newest durable block.

        Raises ``NotFoundError`` where there is none, ``InputError`` with ``BAD_QUERY`` for values that are no key.
        """
        view = view_of(table)
        params = view.show_key(table.checked(*key))
        answer = await self._point(f"{table.name}.get", view.type, **params)
        found, entity = parse_view(view, answer)
        if found != key:
            raise bad_answer(table.name)
        return cast(EntityT, entity)

    async def entities(
        self,
        table: EntityTable[EntityT],
        *,
        by: Mapping[str, bytes] | None = None,
        cursor: int | None = None,
        limit: int = QUERY_PAGE_DEFAULT,
    ) -> EntityPage[EntityT]:
        """Returns a page of the entities of ``table`` whose fields are as ``by`` says, in order of first naming.

        ``by`` maps fields that hold an identity or a key of another table to their values, and all must match.
        ``cursor`` is the ``next_cursor`` of the page before, ``limit`` at most ``QUERY_PAGE_MAX``. Raises
        ``InputError`` with ``BAD_QUERY`` for a table that has no list or a field that has no index.
        """
        view = view_of(table)
        params: dict[str, Any] = {name: value.hex() for name, value in table.checked_list(by or {}).items()}
        if cursor is not None:
            params["cursor"] = cursor
        answer = await self._call(
            f"{table.name}.list", _EntityPage, max(1, limit) * ENTITY_BYTES_MAX + 4096, limit=limit, **params
        )
        if len(answer.items) > limit:
            raise bad_answer("page")
        items = [parse_view(view, _decode_view(view, raw)) for raw in answer.items]
        return EntityPage([EntityItem(*item) for item in items], answer.next_cursor)

    async def record_version(self, record: bytes, version: int = 0) -> RecordVersion:
        """Returns digest, size and author of one version's envelope; 0 is the present version.

        Raises ``NotFoundError`` for a record or a version that does not exist.
        """
        found = await self.entity(RECORDS, record)
        if version in (0, found.version):
            return found.present
        if not 0 < version < found.version:
            raise NotFoundError(f"record {record.hex()} has no version {version}")
        return await self.entity(VERSIONS, record, version)


def parse_view(view: EntityView, answer: msgspec.Struct) -> tuple[tuple[KeyValue, ...], Any]:
    """The key and the entity of an answer; raises ``UnreachableError`` where they cannot be right."""
    try:
        return view.parse(answer)
    except (ValueError, KeyError):
        raise bad_answer(view.table.name) from None


def _decode_view(view: EntityView, raw: msgspec.Raw) -> msgspec.Struct:
    try:
        return msgspec.json.decode(raw, type=view.type)
    except msgspec.DecodeError:
        raise bad_answer(view.table.name) from None

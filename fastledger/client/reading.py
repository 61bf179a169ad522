"""What a node tells of its chain: one coroutine for each reading method of a ledger."""

from dataclasses import asdict
from typing import Any, TypeVar

import msgspec

from fastledger.chain.query import Entry, Page, Query
from fastledger.client.calls import POINT_ANSWER_BYTES_MAX, Calls
from fastledger.client.retry import Retry
from fastledger.client.views import Tip, entry_of, genesis_of, hex_bytes, strange
from fastledger.errors import InputError
from fastledger.limits import TRANSACTION_BYTES_MAX
from fastledger.model.bodies import Role
from fastledger.model.genesis import Genesis
from fastledger.model.receipt import STATEMENT_BYTES_MAX, Verified, verify_statement
from fastledger.rpc.protocol import EntryView
from fastledger.state.entities import Consent, Folder, Identity, Record, RecordVersion

T = TypeVar("T")
STATUS_BYTES_MAX = 1024 * 1024
# Base64 of a transaction and the fields around it.
ENTRY_BYTES_MAX = TRANSACTION_BYTES_MAX * 4 // 3 + 2048


class _Page(msgspec.Struct):
    entries: list[EntryView]
    next_cursor: int | None = None


class NodeReader:
    """Reads of a node's chain; each is tried again until the deadline, since reading changes nothing."""

    def __init__(self, calls: Calls, retry: Retry) -> None:
        """``genesis`` is what :meth:`AsyncClient.connect` found."""
        self._calls = calls
        self._retry = retry
        self.genesis: Genesis

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
        """The node's genesis document; ``InputError`` with ``WRONG_CHAIN`` where it is not that of ``chain_id``."""
        encoded = await self._call("chain.genesis", bytes, STATUS_BYTES_MAX)
        return genesis_of(encoded, chain_id)

    async def status(self) -> dict[str, Any]:
        """Figures for people and metrics."""
        return await self._call("chain.status", dict[str, Any], STATUS_BYTES_MAX)

    async def tip(self) -> Tip:
        """Where the chain ends now."""
        status = await self.status()
        try:
            return Tip(int(status["height"]), hex_bytes(status["head"], 32), int(status["transactions"]))
        except (KeyError, TypeError, ValueError):
            raise strange("status") from None

    async def get(self, txid: bytes) -> Entry:
        """The transaction ``txid``; raises ``NotFoundError``."""
        return entry_of(await self._point("transaction.get", EntryView, txid=txid.hex()), txid)

    async def query(self, query: Query | None = None, **conditions: Any) -> Page:
        """A page of the transactions that meet ``query`` (or the conditions of one, as keywords)."""
        query = query or Query(**conditions)
        query.terms()  # what makes no sense fails here as it does in a ledger
        params = {
            name: value.hex() if isinstance(value, bytes) else value
            for name, value in asdict(query).items()
            if value is not None
        }
        page = await self._call(
            "transaction.query", _Page, max(1, query.limit) * ENTRY_BYTES_MAX + 4096, **params
        )
        if len(page.entries) > query.limit:
            raise strange("page")
        return Page([entry_of(view) for view in page.entries], page.next_cursor)

    async def prove(self, txid: bytes, *, verify: bool = False) -> bytes:
        """The transparent statement of ``txid``; with ``verify`` only one that holds against the genesis document.

        Raises ``NotFoundError``, and ``ReceiptError`` for a statement that does not verify or is another's.
        """
        statement = await self._call(
            "transaction.prove", bytes, STATEMENT_BYTES_MAX * 4 // 3 + 4096, txid=txid.hex()
        )
        if verify:
            self.verify(statement, txid)
        return statement

    def verify(self, statement: bytes, txid: bytes | None = None) -> Verified:
        """Checks a statement against the chain and the proposers of the genesis document."""
        from fastledger.errors import ReceiptError

        verified = verify_statement(statement, chain_id=self.chain_id, proposers=self.genesis.proposers)
        if txid is not None and verified.transaction.txid != txid:
            raise ReceiptError("the receipt is another transaction's")
        return verified

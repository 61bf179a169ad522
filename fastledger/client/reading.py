"""What a node tells of its chain: one coroutine for each reading method of a ledger."""

from dataclasses import asdict
from typing import Any, TypeVar

import msgspec

from fastledger.client import views
from fastledger.client.calls import Calls
from fastledger.client.http import wrong_version
from fastledger.client.retry import Retry
from fastledger.client.views import Tip, entry_of, genesis_of, hex_bytes, strange
from fastledger.errors import ReceiptError
from fastledger.limits import TRANSACTION_BYTES_MAX
from fastledger.model.genesis import Genesis
from fastledger.model.ids import ID_BYTES
from fastledger.model.query import Entry, Page, Query
from fastledger.model.receipt import STATEMENT_BYTES_MAX, Verified, verify_statement
from fastledger.rpc.protocol import PROTOCOL_VERSION, EntryView
from fastledger.state.entities import Consent, Folder, Identity, Record, RecordVersion

T = TypeVar("T")
INFO_BYTES_MAX = 1024 * 1024
# Base64 of a transaction and the fields around it.
ENTRY_BYTES_MAX = TRANSACTION_BYTES_MAX * 4 // 3 + 2048


class _Page(msgspec.Struct):
    entries: list[EntryView]
    next_cursor: int | None = None
    end_seq: int | None = None


class _Statement(msgspec.Struct):
    statement: bytes


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
        """The node's genesis document, once it is clear that the node speaks this protocol.

        Raises ``InputError`` with ``WRONG_CHAIN`` where it is not that of ``chain_id``.
        """
        info = await self._call("ledger.info", views.InfoView, INFO_BYTES_MAX)
        if info.protocol != PROTOCOL_VERSION:
            raise wrong_version()
        return genesis_of(info.genesis, chain_id)

    async def tip(self) -> Tip:
        """Where the chain ends now."""
        info = await self._point("ledger.info", views.InfoView)
        return Tip(info.height, hex_bytes(info.head, 32), info.transactions)

    async def status(self) -> dict[str, Any]:
        """Figures for people and metrics."""
        return await self._call("ledger.status", dict[str, Any], INFO_BYTES_MAX)

    async def get(self, txid: bytes) -> Entry:
        """The transaction ``txid``; raises ``NotFoundError``."""
        return entry_of(await self._point("transaction.get", EntryView, txid=txid.hex()), txid)

    async def query(self, query: Query | None = None, **conditions: Any) -> Page:
        """A page of the transactions that meet ``query`` (or the conditions of one, as keywords)."""
        query = query or Query(**conditions)
        query.check()  # what makes no sense fails here as it does in a ledger
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
        entries = [entry_of(view) for view in page.entries]
        behind = max((entry.seq + 1 for entry in entries), default=query.cursor or 0)
        return Page(entries, page.next_cursor, behind if page.end_seq is None else page.end_seq)

    async def prove(self, txid: bytes, *, verify: bool = False) -> bytes:
        """The transparent statement of ``txid``; with ``verify`` only one that holds against the genesis document.

        Raises ``NotFoundError``, and ``ReceiptError`` for a statement that does not verify or is another's.
        """
        answer = await self._call(
            "transaction.prove", _Statement, STATEMENT_BYTES_MAX * 4 // 3 + 4096, txid=txid.hex()
        )
        statement = answer.statement
        if verify:
            self.verify_statement(statement, txid)
        return statement

    def verify_statement(self, statement: bytes, txid: bytes | None = None) -> Verified:
        """Checks a statement against the chain and the proposers of the genesis document."""
        verified = verify_statement(statement, chain_id=self.chain_id, proposers=self.genesis.proposers)
        if txid is not None and verified.transaction.txid != txid:
            raise ReceiptError("the receipt is another transaction's")
        return verified

    # The present state.

    async def identity_of(self, key: bytes) -> bytes:
        """The identity id that a 33-byte key signs for; raises ``NotFoundError``, as all below do."""
        view = await self._point("identity.of_key", views.IdentityOfKey, key=key.hex())
        return hex_bytes(view.identity, ID_BYTES)

    async def identity(self, identity: bytes) -> Identity:
        """Role, endorsement and key of an identity."""
        return (await self._point("identity.get", views.IdentityView, identity=identity.hex())).entity()

    async def kem_key(self, identity: bytes) -> bytes:
        """The public key under which keys are wrapped to an identity."""
        return (await self._point("identity.kem_key", views.KemKeyView, identity=identity.hex())).kem

    async def folder(self, folder: bytes) -> Folder:
        """Owner and key epoch of a folder."""
        return (await self._point("folder.get", views.FolderView, folder=folder.hex())).entity()

    async def record(self, record: bytes) -> Record:
        """Folder and version of a record, and whether it was erased."""
        return (await self._point("record.get", views.RecordView, record=record.hex())).entity()

    async def record_version(self, record: bytes, version: int = 0) -> RecordVersion:
        """Digest, size and author of one version's envelope; 0 is the present version."""
        view = await self._point(
            "record.version", views.RecordVersionView, record=record.hex(), version=version
        )
        return view.entity()

    async def consent(self, consent: bytes) -> Consent:
        """A consent and whether it was revoked."""
        return (await self._point("consent.get", views.ConsentView, consent=consent.hex())).entity()

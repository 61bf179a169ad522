"""What callers need of a ledger, whether it lies in a directory of theirs or behind a node."""

from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import Any, Protocol, Self

from fastledger.limits import QUERY_PAGE_DEFAULT
from fastledger.model.genesis import Genesis
from fastledger.model.outcome import Outcome
from fastledger.model.query import Entry, Page, Query
from fastledger.model.reports import VerifyReport
from fastledger.model.transaction import Transaction
from fastledger.pace import Progress
from fastledger.state.entity import EntityPage, EntityT, EntityTable, KeyValue
from fastledger.subjects.record import RecordVersion


class LedgerApi(Protocol):
    """Both :class:`fastledger.Ledger` and :class:`fastledger.Client` are one (SPEC-CLI-1).

    Each method does the same and raises the same errors on either; over a network, ``UnreachableError`` besides.
    """

    @property
    def genesis(self) -> Genesis:
        """What the chain is: its engine, proposers and authorities."""

    @property
    def chain_id(self) -> bytes:
        """8 bytes that stand in every transaction of this chain."""

    @property
    def height(self) -> int:
        """The height of the newest durable block."""

    @property
    def head(self) -> bytes:
        """The 32-byte id of the newest durable block."""

    @property
    def transaction_count(self) -> int:
        """How many transactions are durable."""

    def submit(self, batch: Sequence[bytes | Transaction], blobs: Sequence[bytes] = ()) -> list[Outcome]:
        """The verdicts on a batch, in its order, once durable; ``blobs`` are stored first."""

    def read(self, access: bytes | Transaction) -> bytes:
        """The envelope that a signed ``access.read`` asks for, once the read stands in the audit."""

    def get(self, txid: bytes) -> Entry:
        """The transaction ``txid``."""

    def query(self, query: Query | None = None, **conditions: Any) -> Page:
        """A page of the transactions that meet a query."""

    def prove(self, txid: bytes) -> bytes:
        """The transparent statement of ``txid``, verifiable offline."""

    def entity(self, table: EntityTable[EntityT], *key: KeyValue) -> EntityT:
        """The entity of ``table`` under ``key``, one value for each part of it."""

    def entities(
        self,
        table: EntityTable[EntityT],
        *,
        by: Mapping[str, bytes] | None = None,
        cursor: int | None = None,
        limit: int = QUERY_PAGE_DEFAULT,
    ) -> EntityPage[EntityT]:
        """A page of the entities of ``table`` whose fields are as ``by`` says."""

    def record_version(self, record: bytes, version: int = 0) -> RecordVersion:
        """Digest, size and author of one version's envelope; 0 is the present version."""

    def verify(self, progress: Progress | None = None) -> VerifyReport:
        """Re-checks every byte, signature and root from disk."""

    def status(self) -> dict[str, Any]:
        """Figures for people and metrics."""

    def close(self) -> None:
        """Lets go of the directory or the connections."""

    def __enter__(self) -> Self: ...

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None: ...

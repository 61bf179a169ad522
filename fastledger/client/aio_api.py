"""What callers need of a ledger on an event loop;
made by tests/structure/surface.py: change the source and run that, not this file.
"""

from collections.abc import AsyncGenerator, AsyncIterable, Iterable, Mapping, Sequence
from pathlib import PurePath
from types import TracebackType
from typing import Any, BinaryIO, Protocol, Self

from fastledger.limits import QUERY_PAGE_DEFAULT
from fastledger.model.following import FollowEvent, FollowPage, Tip
from fastledger.model.genesis import Genesis
from fastledger.model.outcome import Outcome, Wait
from fastledger.model.query import Entry, Page, Query, Topic
from fastledger.model.receipt import Verified
from fastledger.model.reports import BackupReport, ExportReport, PruneReport, SnapshotReport, VerifyReport
from fastledger.model.transaction import Transaction
from fastledger.pace import Progress
from fastledger.state.entity import EntityPage, EntityT, EntityTable, KeyValue
from fastledger.streams import IN_FLIGHT
from fastledger.subjects.consent import Purpose
from fastledger.subjects.record import RecordVersion
from fastledger.wallet.wallet import SealedRecord, Wallet


class AsyncLedgerApi(Protocol):
    """Both :class:`fastledger.AsyncLedger` and :class:`fastledger.AsyncClient` are one (SPEC-CLI-1).

    Each method does the same and raises the same errors on either; over a network, ``UnreachableError`` besides.
    """

    @property
    def genesis(self) -> Genesis:
        """The chain's genesis document, at hand without disk or network: its engine, proposers and authorities."""

    @property
    def chain_id(self) -> bytes:
        """The 8 bytes that stand in every transaction of this chain, at hand as :attr:`genesis` is."""

    async def tip(self) -> Tip:
        """Returns the end of the durable chain: height, head and count that belong together."""

    async def submit(
        self,
        batch: Sequence[bytes | Transaction],
        blobs: Sequence[bytes] = (),
        *,
        wait: Wait = "durable",
    ) -> list[Outcome]:
        """Returns the verdicts on a batch, in its order, once they are as far as ``wait`` says; ``blobs`` go first."""

    def submit_stream(
        self,
        transactions: AsyncIterable[bytes | Transaction] | Iterable[bytes | Transaction],
        *,
        in_flight: int = IN_FLIGHT,
        wait: Wait = "durable",
    ) -> AsyncGenerator[Outcome, None]:
        """Yields the verdicts on a stream in its order, with at most ``in_flight`` batches under way."""

    async def store_blobs(self, blobs: Sequence[bytes]) -> list[bytes]:
        """Stores envelopes ahead of the records that name them; returns their digests once they are synced."""

    async def missing_blobs(self, digests: Sequence[bytes]) -> list[bytes]:
        """Returns those of ``digests`` whose envelopes have to be stored before a record may name them."""

    async def read(self, access: bytes | Transaction) -> bytes:
        """Returns the whole envelope that a signed ``access.read`` asks for, once the read stands in the audit."""

    async def put_record(
        self, wallet: Wallet, folder: str | bytes, content: bytes, terms: Iterable[str] = ()
    ) -> SealedRecord:
        """Seals ``content`` with the wallet's key of a folder and has it durable; returns the sealed record."""

    async def read_record(
        self,
        wallet: Wallet,
        record: bytes,
        purpose: Purpose,
        *,
        version: int = 0,
    ) -> bytes:
        """Reads a record through the audit and returns its content, opened with the wallet's folder key."""

    async def get(self, txid: bytes) -> Entry:
        """Returns the transaction ``txid``; raises ``NotFoundError``."""

    async def wait_for(self, txid: bytes, *, timeout_ms: int = 60_000) -> Entry:
        """Returns the transaction ``txid`` once it is durable; raises ``NotFoundError`` where it is not in time."""

    async def query(self, query: Query | None = None, **conditions: Any) -> Page:
        """Returns a page of the transactions that meet a query, or the conditions of one as keywords."""

    async def prove(self, txid: bytes, *, verify: bool = False) -> bytes:
        """Returns the transparent statement of ``txid``, verifiable offline."""

    def verify_statement(self, statement: bytes, txid: bytes | None = None) -> Verified:
        """Checks a transparent statement against the genesis document, without disk or network."""

    async def entity(self, table: EntityTable[EntityT], *key: KeyValue) -> EntityT:
        """Returns the entity of ``table`` under ``key``, one value for each part of it."""

    async def entities(
        self,
        table: EntityTable[EntityT],
        *,
        by: Mapping[str, bytes] | None = None,
        cursor: int | None = None,
        limit: int = QUERY_PAGE_DEFAULT,
    ) -> EntityPage[EntityT]:
        """Returns a page of the entities of ``table`` whose fields are as ``by`` says."""

    async def record_version(self, record: bytes, version: int = 0) -> RecordVersion:
        """Returns digest, size and author of one version's envelope; 0 is the present version."""

    async def status(self) -> dict[str, Any]:
        """Returns figures for people and metrics."""

    def follow(
        self,
        topic: Topic = "transactions",
        *,
        cursor: int | None = None,
        kind: str | None = None,
        signed_by: bytes | None = None,
        subject: bytes | None = None,
    ) -> AsyncGenerator[FollowEvent, None]:
        """Yields durable events without end, each once and none left out, from ``cursor`` on."""

    def follow_pages(
        self,
        topic: Topic = "transactions",
        *,
        cursor: int | None = None,
        kind: str | None = None,
        signed_by: bytes | None = None,
        subject: bytes | None = None,
    ) -> AsyncGenerator[FollowPage, None]:
        """Yields what :meth:`follow` does by the page."""

    async def verify(
        self,
        progress: Progress | None = None,
        *,
        online: bool = True,
        rate_bytes_per_second: int | None = None,
    ) -> VerifyReport:
        """Re-checks every byte, signature and root from disk, and returns the findings."""

    async def backup(
        self,
        destination: str | PurePath,
        *,
        include_node_key: bool = False,
        include_snapshot: bool = False,
        recheck: bool = False,
        progress: Progress | None = None,
        rate_bytes_per_second: int | None = None,
    ) -> BackupReport:
        """Writes a consistent backup of this moment while submissions go on, where the ledger is."""

    async def snapshot(
        self,
        target: str | PurePath | None = None,
        *,
        progress: Progress | None = None,
        rate_bytes_per_second: int | None = None,
    ) -> SnapshotReport:
        """Writes the whole state at a height while submissions go on, where the ledger is."""

    async def prune(
        self,
        *,
        before_height: int | None = None,
        keep_blocks: int | None = None,
        progress: Progress | None = None,
        rate_bytes_per_second: int | None = None,
    ) -> PruneReport:
        """Gives back the segments of old blocks, behind a kept snapshot."""

    async def export_ndjson(
        self,
        out: BinaryIO,
        *,
        from_height: int | None = None,
        to_height: int | None = None,
        progress: Progress | None = None,
        rate_bytes_per_second: int | None = None,
    ) -> ExportReport:
        """Writes a line of JSON to ``out`` for every durable transaction of a range of heights."""

    async def checkpoint(self) -> int:
        """Writes everything durable to the index, so that the next opening replays nothing; returns the height."""

    async def close(self) -> None:
        """Lets go of the directory or the connections; may be called twice."""

    async def __aenter__(self) -> Self: ...

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None: ...

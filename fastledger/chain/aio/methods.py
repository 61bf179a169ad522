"""The coroutines of :class:`fastledger.AsyncLedger` over the methods of a ledger;
made by tests/structure/surface.py: change the source and run that, not this file.
"""

import asyncio
import threading
from abc import abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path, PurePath
from typing import Any, BinaryIO, Self, TypeVar

from fastledger.chain.envelopes import ReadGrant
from fastledger.chain.ledger import Ledger
from fastledger.chain.options import LedgerOptions
from fastledger.crypto.signing import SigningKey
from fastledger.limits import QUERY_PAGE_DEFAULT
from fastledger.model.block import Block
from fastledger.model.following import Tip
from fastledger.model.genesis import Authority, Genesis
from fastledger.model.query import Entry, Page, Query
from fastledger.model.reports import (
    BackupReport,
    Collected,
    ExportReport,
    PruneReport,
    SnapshotReport,
    VerifyReport,
)
from fastledger.model.transaction import Transaction
from fastledger.pace import Progress
from fastledger.state.entity import EntityPage, EntityT, EntityTable, KeyValue
from fastledger.subjects.consent import Purpose
from fastledger.subjects.record import RecordVersion
from fastledger.wallet.wallet import SealedRecord, Wallet

T = TypeVar("T")


class AsyncLedgerMethods:
    """One coroutine for each method of a :class:`Ledger`, which does its work on another thread than the loop's."""

    ledger: Ledger

    def __init__(self, ledger: Ledger) -> None:
        """Wraps an open ledger, which stays reachable as ``ledger``."""
        self.ledger = ledger

    @abstractmethod
    async def _run(self, work: Callable[[], T]) -> T:
        """Runs ``work`` on another thread."""

    @abstractmethod
    async def _run_to_end(
        self, work: Callable[[Progress | None, threading.Event], T], progress: Progress | None
    ) -> T:
        """Runs ``work(told, cancel)`` on another thread; a cancelled wait sets ``cancel`` and has it end."""

    @classmethod
    async def create(
        cls,
        path: str | Path,
        *,
        authorities: Sequence[Authority] = (),
        rule_set: int | None = None,
        node_key: SigningKey | None = None,
        password: str | None = None,
        options: LedgerOptions | None = None,
    ) -> Self:
        """Makes a new solo ledger in the directory ``path`` and opens it.

        ``authorities`` are regulators from the start; ``rule_set`` is the first, by default the newest of this release.
        The node's signing key is generated and kept in the directory, sealed under ``password`` where one is given;
        with ``node_key`` the caller keeps it and nothing is stored.
        """
        ledger = await asyncio.to_thread(
            lambda: Ledger.create(
                path,
                authorities=authorities,
                rule_set=rule_set,
                node_key=node_key,
                password=password,
                options=options,
            )
        )
        return cls(ledger)

    @classmethod
    async def join(
        cls,
        path: str | Path,
        genesis: Genesis | bytes,
        *,
        node_key: SigningKey | None = None,
        keep_key: bool = False,
        password: str | None = None,
        options: LedgerOptions | None = None,
    ) -> Self:
        """Makes the ledger of a chain that others have begun in the directory ``path``, and opens it.

        ``genesis`` is the chain's document, ``node_key`` this node's, one of the chain's proposers; ``keep_key``
        stores it in the directory, sealed under ``password``. Without a key the ledger is a replica.
        """
        ledger = await asyncio.to_thread(
            lambda: Ledger.join(
                path, genesis, node_key=node_key, keep_key=keep_key, password=password, options=options
            )
        )
        return cls(ledger)

    @classmethod
    async def open(
        cls,
        path: str | Path,
        *,
        node_key: SigningKey | None = None,
        password: str | None = None,
        replica: bool = False,
        options: LedgerOptions | None = None,
    ) -> Self:
        """Opens the ledger in ``path``: takes its lock, replays the log from the last checkpoint.

        A ``replica`` needs no node key: it answers everything and takes nothing in.
        Raises ``ReleaseNeededError`` where the log has blocks of a rule set that this release does not know,
        ``LedgerLockedError`` where it is open already, ``CorruptionError`` where bytes are not what was written,
        ``KeystoreError`` for a wrong ``password``, ``NotFoundError`` where there is no ledger.
        """
        ledger = await asyncio.to_thread(
            lambda: Ledger.open(path, node_key=node_key, password=password, replica=replica, options=options)
        )
        return cls(ledger)

    @classmethod
    async def reindex(
        cls,
        path: str | Path,
        *,
        node_key: SigningKey | None = None,
        password: str | None = None,
        replica: bool = False,
        options: LedgerOptions | None = None,
    ) -> Self:
        """Throws the indexes away, rebuilds them from log and packs, and returns the open ledger.

        A pruned log rebuilds them from the snapshot that pruning kept.
        """
        ledger = await asyncio.to_thread(
            lambda: Ledger.reindex(
                path, node_key=node_key, password=password, replica=replica, options=options
            )
        )
        return cls(ledger)

    async def close(self) -> None:
        """Answers everything submitted, writes a checkpoint and gives up the directory. May be called twice."""
        return await self._run(lambda: self.ledger.close())

    async def store_blobs(self, blobs: Sequence[bytes]) -> list[bytes]:
        """Stores envelopes ahead of the records that will name them, durably; returns their digests in order.

        One that no record comes to name is collected (:meth:`collect_orphans`); raises ``LedgerBusyError`` where too
        many wait.
        """
        return await self._run(lambda: self.ledger.store_blobs(blobs))

    async def missing_blobs(self, digests: Sequence[bytes]) -> list[bytes]:
        """Returns those of the envelopes that have to be stored before a record may name them."""
        return await self._run(lambda: self.ledger.missing_blobs(digests))

    async def authorise_read(self, access: bytes | Transaction) -> ReadGrant:
        """Submits a signed ``access.read``; returns the grant for :meth:`blob_reader`.

        The read is on record in the chain. Raises ``AccessRefused`` where the rules refuse (the refusal is on record
        too), ``TransactionError`` where the transaction is rejected or was used before: each read is a record of its
        own.
        """
        return await self._run(lambda: self.ledger.authorise_read(access))

    async def read(self, access: bytes | Transaction) -> bytes:
        """Returns the whole envelope that a signed ``access.read`` asks for. Raises as :meth:`authorise_read`."""
        return await self._run(lambda: self.ledger.read(access))

    async def collect_orphans(
        self,
        older_than_ms: int,
        *,
        pause: Callable[[], None] | None = None,
    ) -> Collected:
        """Destroys envelopes that no record has named for ``older_than_ms``; returns their number and bytes.

        The time counts from the first collection that saw an envelope so, or from the end of its last put where that
        is later: with 0 everything goes that no record names now. ``pause`` is called after each page of a walk over
        the whole store.
        """
        return await self._run(lambda: self.ledger.collect_orphans(older_than_ms, pause=pause))

    async def block(self, height: int) -> Block:
        """Returns the durable block at ``height``.

        Raises ``NotFoundError``, with the code PRUNED for one that was pruned.
        """
        return await self._run(lambda: self.ledger.block(height))

    async def get(self, txid: bytes) -> Entry:
        """Returns the transaction ``txid``; raises ``NotFoundError``, with PRUNED where its block was pruned."""
        return await self._run(lambda: self.ledger.get(txid))

    async def query(self, query: Query | None = None, **conditions: Any) -> Page:
        """Returns a page of the transactions that meet ``query`` (or the conditions of one, as keywords)."""
        return await self._run(lambda: self.ledger.query(query, **conditions))

    async def checkpoint(self) -> int:
        """Writes everything durable to the index, so that the next opening replays nothing; returns the height."""
        return await self._run(lambda: self.ledger.checkpoint())

    async def status(self) -> dict[str, Any]:
        """Returns figures for people and metrics."""
        return await self._run(lambda: self.ledger.status())

    async def put_record(
        self, wallet: Wallet, folder: str | bytes, content: bytes, terms: Iterable[str] = ()
    ) -> SealedRecord:
        """Seals ``content`` with the wallet's key of ``folder`` (a label or an id) and has it durable.

        ``terms`` are what it can be found by. Returns the sealed record with its ids. Raises ``TransactionError`` with
        the code where the record is rejected or refused, and ``EnvelopeError`` where the wallet has no such key.
        """
        return await self._run(lambda: self.ledger.put_record(wallet, folder, content, terms))

    async def read_record(
        self,
        wallet: Wallet,
        record: bytes,
        purpose: Purpose,
        *,
        version: int = 0,
    ) -> bytes:
        """Reads a record through the audit and returns its content, opened with the wallet's folder key.

        Version 0 is the present one. Raises what :meth:`read` does, and ``EnvelopeError`` where the wallet has no key
        that opens the envelope.
        """
        return await self._run(lambda: self.ledger.read_record(wallet, record, purpose, version=version))

    async def prove(self, txid: bytes, *, verify: bool = False) -> bytes:
        """Returns the transparent statement of ``txid``: transaction and receipt in one, verifiable offline.

        With ``verify`` it is returned only if :meth:`verify_statement` accepts it. Raises ``NotFoundError`` where there
        is no such transaction, and ``ReceiptError`` for a statement that does not verify.
        """
        return await self._run(lambda: self.ledger.prove(txid, verify=verify))

    async def entity(self, table: EntityTable[EntityT], *key: KeyValue) -> EntityT:
        """Returns the entity of ``table`` under ``key``, one value for each part, as of the newest durable block.

        Raises ``NotFoundError`` where there is none, ``InputError`` with ``BAD_QUERY`` for values that are no key.
        """
        return await self._run(lambda: self.ledger.entity(table, *key))

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
        return await self._run(lambda: self.ledger.entities(table, by=by, cursor=cursor, limit=limit))

    async def record_version(self, record: bytes, version: int = 0) -> RecordVersion:
        """Returns digest, size and author of one version's envelope; 0 is the present version.

        Raises ``NotFoundError``.
        """
        return await self._run(lambda: self.ledger.record_version(record, version))

    async def tip(self) -> Tip:
        """Returns the end of the durable chain: height, head and count that belong together."""
        return await self._run(lambda: self.ledger.tip())

    async def verify(
        self,
        progress: Progress | None = None,
        *,
        online: bool = True,
        rate_bytes_per_second: int | None = None,
    ) -> VerifyReport:
        """Re-checks every byte, signature and root from disk, and returns the findings.

        With ``online`` submissions go on meanwhile, and what is durable at the beginning is checked; without, they wait
        until it is over, and the end of the log is checked as well. ``rate_bytes_per_second`` bounds what it reads.
        ``progress`` is called with (stage, done, total). Cancelling the task that waits
        ends it.
        """
        return await self._run_to_end(
            lambda told, cancel: self.ledger.verify(
                online=online, rate_bytes_per_second=rate_bytes_per_second, progress=told, cancel=cancel
            ),
            progress,
        )

    async def snapshot(
        self,
        target: str | PurePath | None = None,
        *,
        progress: Progress | None = None,
        rate_bytes_per_second: int | None = None,
    ) -> SnapshotReport:
        """Writes the whole state at a height into the directory ``target``, while submissions go on.

        ``target`` is new or empty; None keeps the snapshot in the ledger's own directory. Returns the height, what the
        snapshot commits to and its size. Raises ``InputError`` where the directory is not empty.
        ``progress`` is called with (stage, done, total). Cancelling the task that waits
        ends it.
        """
        return await self._run_to_end(
            lambda told, cancel: self.ledger.snapshot(
                target, rate_bytes_per_second=rate_bytes_per_second, progress=told, cancel=cancel
            ),
            progress,
        )

    async def prune(
        self,
        *,
        before_height: int | None = None,
        keep_blocks: int | None = None,
        progress: Progress | None = None,
        rate_bytes_per_second: int | None = None,
    ) -> PruneReport:
        """Gives back the whole segments below a height (or all but the newest blocks), behind a kept snapshot.

        One of ``before_height`` and ``keep_blocks`` is given; ``InputError`` with ``BAD_QUERY`` otherwise. State,
        queries' terms, verdicts on retries and envelopes stay; the pruned blocks and their transactions do not, here
        (SPEC-PRUNE-1..5).
        ``progress`` is called with (stage, done, total). Cancelling the task that waits
        ends it.
        """
        return await self._run_to_end(
            lambda told, cancel: self.ledger.prune(
                before_height=before_height,
                keep_blocks=keep_blocks,
                rate_bytes_per_second=rate_bytes_per_second,
                progress=told,
                cancel=cancel,
            ),
            progress,
        )

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
        """Writes a consistent backup of this moment while submissions go on.

        Into an older backup it writes what is new. ``include_snapshot`` makes restoring faster and the backup
        larger; ``recheck`` reads again what the backup has already. Envelopes that were erased leave the backup with
        this run. ``restore_backup`` restores it.
        ``progress`` is called with (stage, done, total). Cancelling the task that waits
        ends it.
        """
        return await self._run_to_end(
            lambda told, cancel: self.ledger.backup(
                destination,
                include_node_key=include_node_key,
                include_snapshot=include_snapshot,
                recheck=recheck,
                rate_bytes_per_second=rate_bytes_per_second,
                progress=told,
                cancel=cancel,
            ),
            progress,
        )

    async def export_ndjson(
        self,
        out: BinaryIO,
        *,
        from_height: int | None = None,
        to_height: int | None = None,
        progress: Progress | None = None,
        rate_bytes_per_second: int | None = None,
    ) -> ExportReport:
        """Writes a line of JSON for every durable transaction of a range of heights, both ends included.

        Raises ``NotFoundError``, with the code PRUNED where the range begins before what is kept, and ``InputError``
        where it has no block.
        ``progress`` is called with (stage, done, total). Cancelling the task that waits
        ends it.
        """
        return await self._run_to_end(
            lambda told, cancel: self.ledger.export_ndjson(
                out,
                from_height=from_height,
                to_height=to_height,
                rate_bytes_per_second=rate_bytes_per_second,
                progress=told,
                cancel=cancel,
            ),
            progress,
        )

    async def export_blocks(
        self,
        out: BinaryIO,
        *,
        from_height: int | None = None,
        to_height: int | None = None,
        with_blobs: bool = False,
        progress: Progress | None = None,
        rate_bytes_per_second: int | None = None,
    ) -> ExportReport:
        """Writes a self-describing block file: genesis document, blocks, and (``with_blobs``) their envelopes.

        ``import_blocks`` reads it. Raises as :meth:`export_ndjson` does.
        ``progress`` is called with (stage, done, total). Cancelling the task that waits
        ends it.
        """
        return await self._run_to_end(
            lambda told, cancel: self.ledger.export_blocks(
                out,
                from_height=from_height,
                to_height=to_height,
                with_blobs=with_blobs,
                rate_bytes_per_second=rate_bytes_per_second,
                progress=told,
                cancel=cancel,
            ),
            progress,
        )

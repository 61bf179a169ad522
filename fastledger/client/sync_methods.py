"""The methods of :class:`fastledger.Client`, each waiting for one of ``AsyncClient``;
made by tests/structure/surface.py: change the source and run that, not this file.
"""

import threading
from abc import abstractmethod
from collections.abc import AsyncGenerator, Coroutine, Iterable, Iterator, Mapping, Sequence
from pathlib import PurePath
from typing import Any, BinaryIO, TypeVar

from fastledger.client.aio import AsyncClient
from fastledger.limits import QUERY_PAGE_DEFAULT
from fastledger.model.following import FollowEvent, FollowPage, Tip
from fastledger.model.outcome import Outcome, Wait
from fastledger.model.query import Entry, Page, Query, Topic
from fastledger.model.receipt import Verified
from fastledger.model.reports import BackupReport, ExportReport, PruneReport, SnapshotReport, VerifyReport
from fastledger.model.transaction import Transaction
from fastledger.pace import Progress
from fastledger.rpc.protocol import JobView
from fastledger.state.entity import EntityPage, EntityT, EntityTable, KeyValue
from fastledger.streams import IN_FLIGHT
from fastledger.subjects.consent import Purpose
from fastledger.subjects.record import RecordVersion
from fastledger.wallet.wallet import SealedRecord, Wallet

T = TypeVar("T")


class ClientMethods:
    """One method for each coroutine of an :class:`AsyncClient`; it waits on the caller's thread."""

    _client: AsyncClient

    @abstractmethod
    def _run(self, work: Coroutine[Any, Any, T]) -> T:
        """Waits for a coroutine on the client's loop."""

    @abstractmethod
    def _job(self, work: Coroutine[Any, Any, T], cancel: threading.Event | None) -> T:
        """Waits for long work, which an interrupt or the event ``cancel`` calls off."""

    @abstractmethod
    def _iterate(self, items: AsyncGenerator[T, None]) -> Iterator[T]:
        """Yields the items of an asynchronous generator."""

    def submit(
        self,
        batch: Sequence[bytes | Transaction],
        blobs: Sequence[bytes] = (),
        *,
        wait: Wait = "durable",
    ) -> list[Outcome]:
        """Returns the verdicts on a batch, in its order, once they are durable.

        ``blobs`` are the envelopes that its records name; they are stored, and synced, first. With ``wait`` *accepted*
        or *ordered* the verdicts come earlier and promise less. A bad transaction gets its own outcome and the rest
        goes through. The requests that a long batch takes go one after another, so what depends on earlier
        transactions of the batch finds them there. Where an answer was lost, the repetition finds the first verdict
        and says so by ``duplicate``.
        """
        return self._run(self._client.submit(batch, blobs, wait=wait))

    def submit_stream(
        self,
        transactions: Iterable[bytes | Transaction],
        *,
        in_flight: int = IN_FLIGHT,
        wait: Wait = "durable",
    ) -> Iterator[Outcome]:
        """Yields the verdicts on a stream of transactions in its order; at most ``in_flight`` batches are under way.

        Batches that are under way together may enter the chain in either order: transactions that depend on others of
        the stream need ``in_flight=1``. Envelopes have to be stored before, with :meth:`store_blobs`. Raises what
        :meth:`submit` does, and ``InputError`` with ``BAD_QUERY`` where ``in_flight`` is less than 1.
        """
        return self._iterate(self._client.submit_stream(transactions, in_flight=in_flight, wait=wait))

    def store_blobs(self, blobs: Sequence[bytes]) -> list[bytes]:
        """Has the node keep envelopes ahead of the records that name them; returns their digests once they are synced.

        Each is sent once, and those that the node has not at all. Raises ``LedgerBusyError`` where too many wait for a
        record already.
        """
        return self._run(self._client.store_blobs(blobs))

    def missing_blobs(self, digests: Sequence[bytes]) -> list[bytes]:
        """Returns those of ``digests`` whose envelopes have to be stored before a record may name them."""
        return self._run(self._client.missing_blobs(digests))

    def wait_for(self, txid: bytes, *, timeout_ms: int = 60_000) -> Entry:
        """Returns the transaction ``txid`` once it is durable, whoever submitted it.

        Raises ``NotFoundError`` where it is not durable after ``timeout_ms``.
        """
        return self._run(self._client.wait_for(txid, timeout_ms=timeout_ms))

    def read(self, access: bytes | Transaction) -> bytes:
        """Submits a signed ``access.read`` and returns the whole envelope, once the read stands in the audit.

        Raises ``AccessRefused`` where the rules refuse (the refusal is audited too), ``TransactionError`` where the
        transaction is rejected or was used before.
        """
        return self._run(self._client.read(access))

    def put_record(
        self, wallet: Wallet, folder: str | bytes, content: bytes, terms: Iterable[str] = ()
    ) -> SealedRecord:
        """Seals ``content`` with the wallet's key of ``folder`` (a label or an id) and has it durable.

        ``terms`` are what it can be found by. Returns the sealed record with its ids. Raises ``TransactionError`` with
        the code where the record is rejected or refused, and ``EnvelopeError`` where the wallet has no such key.
        """
        return self._run(self._client.put_record(wallet, folder, content, terms))

    def read_record(self, wallet: Wallet, record: bytes, purpose: Purpose, *, version: int = 0) -> bytes:
        """Reads a record through the audit and returns its content, opened with the wallet's folder key.

        Version 0 is the present one. Where the answer was lost for good another access is signed: the audit then has
        two. Raises what :meth:`read` does, and ``EnvelopeError`` where the wallet has no key that opens the envelope.
        """
        return self._run(self._client.read_record(wallet, record, purpose, version=version))

    def follow(
        self,
        topic: Topic = "transactions",
        *,
        cursor: int | None = None,
        kind: str | None = None,
        signed_by: bytes | None = None,
        subject: bytes | None = None,
    ) -> Iterator[FollowEvent]:
        """Yields durable events without end, each once and none left out, also across reconnects (SPEC-CLI-6).

        The topic is *transactions*, *blocks* or *alerts*; ``kind``, ``signed_by`` and ``subject`` (16-byte ids)
        are conditions on transactions. ``cursor`` resumes behind the event that had it; 0 is the beginning, None means
        from now on. Raises ``InputError`` with ``BAD_QUERY`` for conditions that make no sense, and the last error once
        the node was silent for the deadline of the retries.
        """
        return self._iterate(
            self._client.follow(topic, cursor=cursor, kind=kind, signed_by=signed_by, subject=subject)
        )

    def follow_pages(
        self,
        topic: Topic = "transactions",
        *,
        cursor: int | None = None,
        kind: str | None = None,
        signed_by: bytes | None = None,
        subject: bytes | None = None,
    ) -> Iterator[FollowPage]:
        """Yields what :meth:`follow` does by the page, with the cursor behind what the conditions passed over.

        The first page that has caught up with the chain comes even if it is empty. Raises what :meth:`follow` does.
        """
        return self._iterate(
            self._client.follow_pages(topic, cursor=cursor, kind=kind, signed_by=signed_by, subject=subject)
        )

    def tip(self) -> Tip:
        """Returns the end of the durable chain: height, head and count that belong together."""
        return self._run(self._client.tip())

    def status(self) -> dict[str, Any]:
        """Returns figures for people and metrics."""
        return self._run(self._client.status())

    def get(self, txid: bytes) -> Entry:
        """Returns the transaction ``txid``.

        Raises ``NotFoundError``, with the code PRUNED where its block was pruned.
        """
        return self._run(self._client.get(txid))

    def query(self, query: Query | None = None, **conditions: Any) -> Page:
        """Returns a page of the transactions that meet ``query`` (or the conditions of one, as keywords).

        Raises ``InputError`` with ``BAD_QUERY`` or ``BAD_TIME`` for conditions that make no sense.
        """
        return self._run(self._client.query(query, **conditions))

    def prove(self, txid: bytes, *, verify: bool = False) -> bytes:
        """Returns the transparent statement of ``txid``: transaction and receipt in one, verifiable offline.

        With ``verify`` it is returned only if :meth:`verify_statement` accepts it. Raises ``NotFoundError`` where there
        is no such transaction, and ``ReceiptError`` for a statement that does not verify.
        """
        return self._run(self._client.prove(txid, verify=verify))

    def verify_statement(self, statement: bytes, txid: bytes | None = None) -> Verified:
        """Checks a transparent statement against the genesis document, and returns what it proves.

        It needs neither disk nor network. With ``txid`` the statement has to be that transaction's. Raises
        ``ReceiptError`` for a statement that does not verify or is another's.
        """
        return self._client.verify_statement(statement, txid)

    def entity(self, table: EntityTable[EntityT], *key: KeyValue) -> EntityT:
        """Returns the entity of ``table`` under ``key``, one value for each part, as of the newest durable block.

        Raises ``NotFoundError`` where there is none, ``InputError`` with ``BAD_QUERY`` for values that are no key.
        """
        return self._run(self._client.entity(table, *key))

    def entities(
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
        return self._run(self._client.entities(table, by=by, cursor=cursor, limit=limit))

    def record_version(self, record: bytes, version: int = 0) -> RecordVersion:
        """Returns digest, size and author of one version's envelope; 0 is the present version.

        Raises ``NotFoundError`` for a record or a version that does not exist.
        """
        return self._run(self._client.record_version(record, version))

    def export_ndjson(
        self,
        out: BinaryIO,
        *,
        from_height: int | None = None,
        to_height: int | None = None,
        progress: Progress | None = None,
        rate_bytes_per_second: int | None = None,
        cancel: threading.Event | None = None,
    ) -> ExportReport:
        """Writes a line of JSON for every durable transaction of a range of heights, both ends included.

        The lines are written to ``out`` on another thread, a page at a time; what becomes durable meanwhile is left
        out. ``progress`` is called with (stage, done, total). Setting the event ``cancel`` ends it. Raises
        ``NotFoundError`` with PRUNED where the range begins before what the node keeps or is pruned under the export,
        ``InputError`` where it has no block.
        """
        return self._job(
            self._client.export_ndjson(
                out,
                from_height=from_height,
                to_height=to_height,
                progress=progress,
                rate_bytes_per_second=rate_bytes_per_second,
            ),
            cancel,
        )

    def federation_status(self) -> dict[str, Any]:
        """Returns tip, finality, synchronisation and mining.

        Raises ``NotFoundError`` on a chain of one organisation.
        """
        return self._run(self._client.federation_status())

    def peers(self) -> dict[str, Any]:
        """Returns every link to another organisation's node and every ban."""
        return self._run(self._client.peers())

    def add_peer(self, address: str) -> None:
        """Has the node call ``host:port`` from now on."""
        return self._run(self._client.add_peer(address))

    def ban(
        self,
        *,
        organisation: str | None = None,
        address: str | None = None,
        duration_ms: int | None = None,
    ) -> None:
        """Has the node shut out an organisation, or a host by its ``address``, for ``duration_ms``.

        Without a duration the node's own one holds.
        """
        return self._run(
            self._client.ban(organisation=organisation, address=address, duration_ms=duration_ms)
        )

    def unban(self, *, organisation: str | None = None, address: str | None = None) -> bool:
        """Has the node let an organisation or a host in again; returns whether it was shut out."""
        return self._run(self._client.unban(organisation=organisation, address=address))

    def mine(self, *, on: bool | None = None) -> dict[str, Any]:
        """Begins (``on=True``) or ends the node's search for blocks, and returns how it goes; None changes nothing."""
        return self._run(self._client.mine(on=on))

    def run_job(
        self,
        method: str,
        *,
        progress: Progress | None = None,
        cancel: threading.Event | None = None,
        **params: Any,
    ) -> dict[str, Any]:
        """Begins a job with the operator's method ``method``, and returns its report once it has ended.

        The job is begun once, however often the answer to that is lost: it is asked for under a random id. While
        another job runs, this waits as for any busy node. ``progress`` is called with (stage, done, total). Setting the
        event ``cancel`` calls the job off, and so does ``progress`` by raising. Raises the job's error, and
        ``LedgerError`` where the node ended before its job did.
        """
        return self._job(self._client.run_job(method, progress=progress, **params), cancel)

    def verify(
        self,
        progress: Progress | None = None,
        *,
        online: bool = True,
        rate_bytes_per_second: int | None = None,
        cancel: threading.Event | None = None,
    ) -> VerifyReport:
        """Has the node re-check every byte, signature and root from its disk, and returns the findings.

        With ``online`` submissions go on meanwhile, and what is durable at the beginning is checked; without, they wait
        until it is over, and the end of the log is checked as well. Without a rate the node's configured one holds.
        ``progress`` is called with (stage, done, total). Setting the event ``cancel`` calls the job off. Raises what
        :meth:`run_job` does.
        """
        return self._job(
            self._client.verify(progress, online=online, rate_bytes_per_second=rate_bytes_per_second), cancel
        )

    def backup(
        self,
        destination: str | PurePath,
        *,
        include_node_key: bool = False,
        include_snapshot: bool = False,
        recheck: bool = False,
        progress: Progress | None = None,
        rate_bytes_per_second: int | None = None,
        cancel: threading.Event | None = None,
    ) -> BackupReport:
        """Has the node write a consistent backup on its own machine while submissions go on.

        ``destination`` is an absolute path there, or a name in the backup directory where one is configured. Into an
        older backup it writes what is new. ``include_snapshot`` makes restoring faster and the backup larger;
        ``recheck`` reads again what the backup has already. Envelopes that were erased leave the backup with this run.
        ``progress`` is called with (stage, done, total). Setting the event ``cancel`` calls the job off. Raises what
        :meth:`run_job` does.
        """
        return self._job(
            self._client.backup(
                destination,
                include_node_key=include_node_key,
                include_snapshot=include_snapshot,
                recheck=recheck,
                progress=progress,
                rate_bytes_per_second=rate_bytes_per_second,
            ),
            cancel,
        )

    def prune(
        self,
        *,
        before_height: int | None = None,
        keep_blocks: int | None = None,
        progress: Progress | None = None,
        rate_bytes_per_second: int | None = None,
        cancel: threading.Event | None = None,
    ) -> PruneReport:
        """Has the node give back whole segments below a height, or all but the newest blocks, behind a kept snapshot.

        One of ``before_height`` and ``keep_blocks`` is given; ``InputError`` with ``BAD_QUERY`` otherwise. State,
        queries' terms, verdicts on retries and envelopes stay; the pruned blocks and their transactions do not, there
        (SPEC-PRUNE-1..5).
        ``progress`` is called with (stage, done, total). Setting the event ``cancel`` calls the job off. Raises what
        :meth:`run_job` does.
        """
        return self._job(
            self._client.prune(
                before_height=before_height,
                keep_blocks=keep_blocks,
                progress=progress,
                rate_bytes_per_second=rate_bytes_per_second,
            ),
            cancel,
        )

    def snapshot(
        self,
        target: str | PurePath | None = None,
        *,
        progress: Progress | None = None,
        rate_bytes_per_second: int | None = None,
        cancel: threading.Event | None = None,
    ) -> SnapshotReport:
        """Has the node write its whole state at a height on its own machine, while submissions go on.

        ``target`` is a new or empty directory, named as for :meth:`backup`; None has the node keep the snapshot itself.
        Returns the height, what the snapshot commits to and its size. Raises ``InputError`` where the directory is not
        empty.
        ``progress`` is called with (stage, done, total). Setting the event ``cancel`` calls the job off. Raises what
        :meth:`run_job` does.
        """
        return self._job(
            self._client.snapshot(target, progress=progress, rate_bytes_per_second=rate_bytes_per_second),
            cancel,
        )

    def jobs(self) -> list[JobView]:
        """Returns the node's newest jobs, the newest first."""
        return self._run(self._client.jobs())

    def job(self, job: str) -> JobView:
        """Returns a job's state, progress and report; raises ``NotFoundError`` where the node knows no such job."""
        return self._run(self._client.job(job))

    def cancel_job(self, job: str) -> JobView:
        """Asks a job to end early, and returns its state.

        Raises ``NotFoundError`` where the node knows no such job, and ``InputError`` where it has ended.
        """
        return self._run(self._client.cancel_job(job))

    def node_status(self) -> dict[str, Any]:
        """Returns the ledger's figures, the server's counters and the newest jobs."""
        return self._run(self._client.node_status())

    def checkpoint(self) -> int:
        """Has everything durable written to the index, so that the next start replays nothing; returns the height."""
        return self._run(self._client.checkpoint())

    def reload(self) -> list[str]:
        """Has the node read its certificates and open its log file again; returns the names of what it did so with."""
        return self._run(self._client.reload())

    def stop(self) -> None:
        """Ends the node, not the client, as SIGTERM does: what it took is answered first.

        It is asked once, since a stopped node does not answer.
        """
        return self._run(self._client.stop())

"""The façade for embedding: one object over one ledger directory.

    >>> with Ledger.create("clinic.ledger") as ledger:          # doctest: +SKIP
    ...     outcome = ledger.submit([transaction])[0]

Every method may be called from any thread. ``submit`` returns when the verdicts are durable; to overlap batches,
call it from several threads or use ``submit_nowait``. :class:`fastledger.AsyncLedger` is the same for asyncio.
"""

import threading
from collections.abc import Callable, Generator, Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import asdict
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self, TypeAlias

from fastledger.chain.admission import Batch, CpuShare, admit, cut_sequence, lay_out, look_ahead
from fastledger.chain.envelopes import Envelopes, Pins, ReadGrant, access_body, check_granted
from fastledger.chain.execution.block_cache import BlockCache
from fastledger.chain.execution.durable_rules import DurableRules
from fastledger.chain.execution.executor import Executor, Position
from fastledger.chain.execution.replay import begin_or_replay, checkpoint_position, damaged_block
from fastledger.chain.execution.store import NOWHERE, ChainStore, Durable, Layer
from fastledger.chain.keeping.facade import Keeping
from fastledger.chain.keeping.keeper import Keeper
from fastledger.chain.keeping.snapshots import erased_envelopes, open_index_and_log
from fastledger.chain.opening import Parts, make_pipeline
from fastledger.chain.options import LedgerOptions
from fastledger.chain.reading.entities import EntityReader
from fastledger.chain.reading.following import Following
from fastledger.chain.reading.query import load_entry, run_query
from fastledger.chain.reading.records import RecordCalls
from fastledger.chain.stages import Submission
from fastledger.chain.submitting import Submitting
from fastledger.consensus.engines import make_engine
from fastledger.crypto.node_key import load_node_key, save_node_key
from fastledger.crypto.signing import SigningKey
from fastledger.errors import Code, CorruptionError, InputError, NotFoundError, ReleaseNeededError
from fastledger.model.block import Block
from fastledger.model.genesis import Authority, Genesis
from fastledger.model.outcome import Outcome
from fastledger.model.query import Entry, Page, Query
from fastledger.model.reports import Collected
from fastledger.model.transaction import Transaction
from fastledger.stage_times import StageTimes
from fastledger.storage.blobs.options import UploadLimits
from fastledger.storage.blobs.store import BlobStore
from fastledger.storage.blobs.uploads import Uploads
from fastledger.storage.directory import LedgerDirectory
from fastledger.storage.index import Index
from fastledger.storage.log import FrameRef, SegmentLog
from fastledger.streams import encoded_of
from fastledger.subjects.record import RECORDS

if TYPE_CHECKING:
    from typing_extensions import Buffer

BlockListener: TypeAlias = Callable[[Sequence[Layer]], None]


class Ledger(Keeping, EntityReader, Following, Submitting, RecordCalls):
    """An open ledger; make one with :meth:`create` or :meth:`open`."""

    def __init__(
        self, directory: LedgerDirectory, genesis: Genesis, key: SigningKey | None, options: LedgerOptions
    ) -> None:
        """Takes over an open directory; callers use :meth:`create` or :meth:`open`."""
        self.genesis = genesis
        self.options = options
        self.is_replica = key is None
        self._now_ms = options.clock_ms
        self.times = StageTimes()
        self._directory = directory
        self._closed = False
        self._cpu_share = CpuShare(options.verify_threads, self.times)
        self._listeners: tuple[BlockListener, ...] = ()
        self._changing_wakers = threading.Lock()
        self._closing = threading.Lock()
        self._engine = make_engine(genesis)
        self._read_block = BlockCache(self._load_block)
        self._forget_blocks = self._read_block.clear
        with ExitStack() as undo:
            undo.callback(directory.close)
            directory.clear_tmp()
            self._index, self._log, restored = open_index_and_log(directory, genesis.chain_id)
            undo.callback(self._index.close)
            undo.callback(self._log.close)
            self._blobs = BlobStore.open(directory.blobs_path)
            undo.callback(self._blobs.close)
            self._store = ChainStore(self._index)
            undo.callback(self._store.close)
            self._executor = Executor(genesis=genesis, store=self._store, log=self._log, engine=self._engine, key=key)
            self._rules = DurableRules(self._store, self._executor)
            self._catch_up(checkpoint_position(self._index, directory.index_path), restored=restored)
            parts = Parts(
                directory, genesis, self._engine, self._executor, self._store, self._log, self._blobs, key
            )
            self._pipeline, self.forks = make_pipeline(
                parts, options, self.times, on_durable=self._tell_listeners, undo=undo
            )
            self._envelopes = Envelopes(
                try_out=self._executor.try_out,
                store=self._store,
                blobs=self._blobs,
                journal=directory.orphans_path,
                clock_ms=options.clock_ms,
                check_running=self._pipeline.check_running,
                unreferenced_max=options.unreferenced_blobs_max,
                unreferenced_bytes_max=options.unreferenced_bytes_max,
            )
            self._keeper = Keeper(
                directory=directory,
                genesis=genesis,
                engine=self._engine,
                log=self._log,
                index=self._index,
                blobs=self._blobs,
                store=self._store,
                pipeline=self._pipeline,
                envelopes=self._envelopes,
                rules_at=self._rules.at,
            )
            # What closes the parts, in reverse order, whether opening fails or the user closes.
            self._parts = undo.pop_all()

    def _catch_up(self, checkpoint: Position | None, *, restored: bool) -> None:
        """Replays the log from the checkpoint to its end."""
        if checkpoint is not None:
            # Restored from a snapshot alone, the log may hold nothing yet.
            if max(self._log.end.height, self._log.first_height - 1) < checkpoint.tip.height:
                raise CorruptionError(
                    f"ends at height {self._log.end.height}, the index at {checkpoint.tip.height}",
                    path=str(self._directory.log_path),
                )
            placed = checkpoint.ref != NOWHERE
            if placed and self._load_block(checkpoint.ref).block_id != checkpoint.tip.block_id:
                raise CorruptionError(
                    "holds another chain's checkpoint: reindex", path=str(self._directory.index_path)
                )
            self._executor.resume(checkpoint)
            tip = checkpoint.tip
            self._store.durable = Durable(tip.height, tip.block_id, checkpoint.next_seq)
            if restored:
                self.erase_again()
        self.replayed_blocks = begin_or_replay(
            self._executor, self._store, self._log, settled=lambda appended: self._erase(appended.erased)
        )

    def erase_again(self) -> None:
        """Erases the envelopes of every erased record, as a replay would, after envelopes came from elsewhere."""
        with self._index.snapshot(whole=True) as view:
            self._erase(list(erased_envelopes(view)))

    def _erase(self, digests: Sequence[bytes]) -> None:
        for digest in digests:
            self._blobs.erase(digest)

    # Making, opening, closing.

    @classmethod
    def create(
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
        options = options or LedgerOptions()
        key = node_key or SigningKey.generate()
        genesis = Genesis.create(
            created_ms=options.clock_ms(),
            proposers=(key.public_key,),
            authorities=tuple(authorities),
            rule_set=rule_set,
        )

        def fill(directory: LedgerDirectory) -> None:
            SegmentLog.create(directory.root, genesis.chain_id).close()
            # Left by an interrupted creation: the log has just shown that nothing was ever sealed with it.
            directory.node_key_path.unlink(missing_ok=True)
            if node_key is None:
                save_node_key(directory.node_key_path, key, password)

        return cls(LedgerDirectory.create(Path(path), genesis.encoded, fill=fill), genesis, key, options)

    @classmethod
    def join(
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
        document = genesis if isinstance(genesis, Genesis) else Genesis.decode(genesis)
        if node_key is not None and node_key.public_key not in document.proposers:
            raise InputError("the node's key is not a proposer of this chain", code=Code.NOT_A_PROPOSER)

        def fill(directory: LedgerDirectory) -> None:
            SegmentLog.create(directory.root, document.chain_id).close()
            directory.node_key_path.unlink(missing_ok=True)
            if node_key is not None and keep_key:
                save_node_key(directory.node_key_path, node_key, password)

        directory = LedgerDirectory.create(Path(path), document.encoded, fill=fill)
        return cls(directory, document, node_key, options or LedgerOptions())

    @classmethod
    def open(
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
        directory = LedgerDirectory.open(Path(path))
        try:
            genesis = Genesis.decode(directory.read_genesis())
            key = None if replica else node_key or load_node_key(directory.node_key_path, password)
            if key is not None and key.public_key not in genesis.proposers:
                raise InputError("the node's key is not a proposer of this chain", code=Code.NOT_A_PROPOSER)
        except BaseException:
            directory.close()
            raise
        return cls(directory, genesis, key, options or LedgerOptions())

    @classmethod
    def reindex(
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
        directory = LedgerDirectory.open(Path(path))
        try:
            # A chain that this release cannot read keeps what it has.
            Genesis.decode(directory.read_genesis())
            # In this order: whatever erasure the second forgets, the whole log, executed again, does again.
            Index.destroy(directory.index_path)
            BlobStore.destroy_index(directory.blobs_path)
        finally:
            directory.close()
        ledger = cls.open(path, node_key=node_key, password=password, replica=replica, options=options)
        ledger.checkpoint()
        return ledger

    def close(self) -> None:
        """Answers everything submitted, writes a checkpoint and gives up the directory. May be called twice."""
        with self._closing:
            if self._closed:
                return
            self._closed = True
            self._wake_all()
            self._keeper.close()
            try:
                self._pipeline.close()
            finally:
                with self._envelopes.quiet():  # a collection ends with its page
                    self._parts.close()

    def __repr__(self) -> str:
        state = "closed" if self._closed else f"height {self._store.durable.height}"
        return f"<{type(self).__name__} {str(self._directory.root)!r} chain {self.chain_id.hex()}, {state}>"

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    # Submitting.

    def begin(
        self, batch: Sequence[bytes | Transaction], blobs: Sequence[bytes] = (), *, wait: bool = False
    ) -> Submission:
        """Submits a batch and returns it as a :class:`Submission`, which tells every stage of its way.

        ``wait``: a full queue blocks instead of raising ``LedgerBusyError``.
        """
        self._check_takes()
        if blobs:
            with self.times.stage("blobs"):
                self._envelopes.put(blobs)
        return self._begin(*lay_out([encoded_of(item) for item in batch]), wait=wait)

    def begin_sequence(self, data: bytes, *, wait: bool = False) -> Submission:
        """Submits a CBOR sequence of transactions (RFC 8742) as :meth:`begin` does a batch; none becomes an object.

        Raises ``InputError`` naming the byte where the sequence breaks; nothing of it is taken then.
        """
        self._check_takes()
        return self._begin(data, cut_sequence(data), wait=wait)

    def _check_takes(self) -> None:
        self._pipeline.check_running()
        if self.is_replica:
            raise InputError("a replica takes nothing in", code=Code.READ_ONLY)

    def _begin(self, data: bytes, offsets: "Buffer", *, wait: bool) -> Submission:
        pins = Pins(self._envelopes)
        try:
            with self.times.stage("admit"):
                rules = self._executor.in_force.rules
                batch = admit(
                    Batch.submitted(data, offsets, self.options.clock_ms()),
                    rules,
                    chain_id=self.chain_id,
                    missing_blobs=pins.missing if self.options.require_blobs else pins.hold,
                    keep_hints=self.forks is not None,
                    cpu_share=self._cpu_share,
                )
                if self.forks is None:
                    look_ahead(batch, rules, self._store.read_ahead)
            submission = self._pipeline.submit(batch, wait=wait)
        except BaseException:
            pins.release()
            raise
        submission.durable.add_done_callback(lambda _: pins.release())
        return submission

    def add_listener(self, listener: BlockListener) -> Callable[[], None]:
        """Calls ``listener`` with the blocks that became durable, in order, soon after.

        Returns the function that ends it. It runs on the thread that syncs: it must not raise, wait, or call the
        ledger.
        """
        self._listeners = (*self._listeners, listener)

        def remove() -> None:
            self._listeners = tuple(other for other in self._listeners if other is not listener)

        return remove

    def _tell_listeners(self, layers: Sequence[Layer]) -> None:
        for listener in self._listeners:
            listener(layers)
        self._wake_all()

    # Envelopes.

    def store_blobs(self, blobs: Sequence[bytes]) -> list[bytes]:
        """Stores envelopes ahead of the records that will name them, durably; returns their digests in order.

        One that no record comes to name is collected (:meth:`collect_orphans`); raises ``LedgerBusyError`` where too
        many wait.
        """
        self._pipeline.check_running()
        with self.times.stage("blobs"):
            return self._envelopes.put_ahead(blobs)

    def open_uploads(self, limits: UploadLimits | None = None) -> Uploads:
        """Opens the directory of envelopes that come in pieces; the caller closes it before the ledger."""
        return Uploads.open(
            self._directory.uploads_path,
            self._envelopes.adopt,
            clock_ms=self.options.clock_ms,
            limits=limits,
            check_room=self._envelopes.unreferenced.check,
        )

    def missing_blobs(self, digests: Sequence[bytes]) -> list[bytes]:
        """Returns those of the envelopes that have to be stored before a record may name them."""
        return self._envelopes.missing(digests)

    def blob_size(self, digest: bytes) -> int:
        """Returns how many bytes a stored envelope has; raises ``NotFoundError``."""
        return self._blobs.size(digest)

    def blob_reader(self, digest: bytes, offset: int = 0) -> Generator[bytes, None, None]:
        """Yields a stored envelope in chunks, for whoever holds a grant.

        Raises NotFoundError also if it is erased on the way.
        """
        return self._envelopes.reader(digest, offset)

    def authorise_read(self, access: bytes | Transaction) -> ReadGrant:
        """Submits a signed ``access.read``; returns the grant for :meth:`blob_reader`.

        The read is on record in the chain. Raises ``AccessRefused`` where the rules refuse (the refusal is on record
        too), ``TransactionError`` where the transaction is rejected or was used before: each read is a record of its
        own.
        """
        transaction = access if isinstance(access, Transaction) else Transaction.decode(bytes(access))
        access_body(transaction)
        return self.grant_read(transaction, self.submit([transaction])[0])

    def grant_read(self, transaction: Transaction, outcome: Outcome) -> ReadGrant:
        """Returns the grant of an ``access.read`` that was submitted, by its durable outcome.

        Raises as :meth:`authorise_read`.
        """
        check_granted(transaction.txid, outcome)
        access = access_body(transaction)
        record = self.entity(RECORDS, access.record)
        number = access.version or record.version
        digest = self.record_version(access.record, number).digest
        size = self._blobs.size(digest)
        return ReadGrant(transaction.txid, access.record, number, digest, size, transaction.signer, access)

    def check_permitted(self, grant: ReadGrant) -> None:
        """Raises ``AccessRefused`` or ``NotFoundError`` where a read that was granted would be refused by now."""
        self._envelopes.check_permitted(grant)

    def read(self, access: bytes | Transaction) -> bytes:
        """Returns the whole envelope that a signed ``access.read`` asks for. Raises as :meth:`authorise_read`."""
        return self._blobs.get(self.authorise_read(access).digest)

    def collect_orphans(self, older_than_ms: int, *, pause: Callable[[], None] | None = None) -> Collected:
        """Destroys envelopes that no record has named for ``older_than_ms``; returns their number and bytes.

        The time counts from the first collection that saw an envelope so, or from the end of its last put where that
        is later: with 0 everything goes that no record names now. ``pause`` is called after each page of a walk over
        the whole store.
        """
        return self._envelopes.collect_orphans(older_than_ms, pause=pause or (lambda: None))

    # Reading.

    @property
    def chain_id(self) -> bytes:
        """The 8 bytes that stand in every transaction of this chain."""
        return self.genesis.chain_id

    @property
    def halted(self) -> bool:
        """Whether a failed write or sync ended submission; what was acknowledged is safe, reopen to go on."""
        return self._pipeline.halted

    @property
    def queue_depth(self) -> int:
        """How many batches are submitted and not yet answered."""
        return self._pipeline.queue_depth

    @property
    def height(self) -> int:
        """The height of the newest durable block."""
        return self._store.durable.height

    @property
    def head(self) -> bytes:
        """The 32-byte id of the newest durable block."""
        return self._store.durable.block_id

    @property
    def state_root(self) -> bytes:
        """The 32-byte state root after the newest durable block."""
        return self._keeper.state_root()

    @property
    def transaction_count(self) -> int:
        """How many transactions are durable."""
        return self._store.durable.next_seq

    @property
    def first_height(self) -> int:
        """The lowest height whose block is kept: more than 0 on a pruned ledger."""
        return self._log.first_height

    @property
    def release_needed(self) -> ReleaseNeededError | None:
        """Why this release takes nothing in any more: it lacks the next block's rule set; None where it has it."""
        return self._executor.in_force.release_needed

    def shared_snapshot(self) -> AbstractContextManager[None]:
        """Makes all reads of this thread see one moment for the length of the block, which should be short."""
        return self._store.shared_snapshot()

    def block(self, height: int) -> Block:
        """Returns the durable block at ``height``.

        Raises ``NotFoundError``, with the code PRUNED for one that was pruned.
        """
        return self.block_and_first_seq(height)[0]

    def block_and_first_seq(self, height: int) -> tuple[Block, int]:
        """Returns the block as :meth:`block` does, and the number of its first transaction in the chain, from 0."""
        entry = None
        if 0 <= height <= self.height:
            with self._store.snapshot() as snapshot:
                entry = snapshot.block_entry(height)
        if entry is None:
            raise NotFoundError(f"there is no block at height {height}")
        if height < self.first_height:
            raise NotFoundError(f"the block at height {height} was pruned", code=Code.PRUNED)
        return self._read_block(entry.ref), entry.first_seq

    def get(self, txid: bytes) -> Entry:
        """Returns the transaction ``txid``; raises ``NotFoundError``, with PRUNED where its block was pruned."""
        with self._store.snapshot() as snapshot:
            seq = snapshot.seq_of_txid(txid)
            if seq is None or seq >= snapshot.end_seq:
                raise NotFoundError(f"there is no transaction {txid.hex()}")
            return load_entry(snapshot, self._read_block, seq)

    def query(self, query: Query | None = None, **conditions: Any) -> Page:
        """Returns a page of the transactions that meet ``query`` (or the conditions of one, as keywords)."""
        query = query or Query.of(**conditions)
        with self._store.snapshot() as snapshot:
            return run_query(query, snapshot, self._read_block, first_height=self.first_height)

    def _load_block(self, ref: FrameRef) -> Block:
        if ref == NOWHERE:
            raise NotFoundError("the block was pruned", code=Code.PRUNED)
        try:
            payload = self._log.read(ref)
        except CorruptionError:
            if ref.segment >= self._log.first_segment:
                raise
            # Since its place was looked up.
            raise NotFoundError("the block was pruned", code=Code.PRUNED) from None
        try:
            return Block.decode(payload)
        except InputError as error:
            raise damaged_block(error, ref) from error

    # Keeping.

    def checkpoint(self) -> int:
        """Writes everything durable to the index, so that the next opening replays nothing; returns the height."""
        height = self.height
        self._pipeline.checkpoint()
        return height

    def status(self) -> dict[str, Any]:
        """Returns figures for people and metrics."""
        return {
            "chain_id": self.chain_id.hex(),
            "engine": self.genesis.engine,
            "height": self.height,
            "first_height": self.first_height,
            "head": self.head.hex(),
            "transactions": self.transaction_count,
            "queue_depth": self.queue_depth,
            "replayed_blocks": self.replayed_blocks,
            "rules": self._rules.status(self.height + 1),
            "index": self._index.stats(),
            "blobs": asdict(self._blobs.stats()),
        }

"""Verification of everything from disk, with submissions waiting or beside them (SPEC-REP-3 to SPEC-REP-5).

Beside submissions, what is checked is pinned: the log up to a durable height is executed again into a fresh index;
when that is done the few blocks that came meanwhile are too, and only the comparison of the two indexes keeps old
pages of the ledger's own. What an erasure changes in between is checked twice.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from fastledger.chain.admission import Batch, admit
from fastledger.chain.execution.executor import Executor
from fastledger.chain.execution.replay import damaged_block, replay_log
from fastledger.chain.execution.store import NOWHERE, BlockEntry, ChainStore
from fastledger.chain.keeping.snapshots import load_snapshot, starting_snapshot
from fastledger.consensus.engine import Engine, EngineTip, seal_ref
from fastledger.crypto.merkle import HistoryTree, leaf_hashes, merkle_root
from fastledger.errors import (
    Code,
    CorruptionError,
    InputError,
    LedgerClosedError,
    LedgerError,
    OperationCancelledError,
)
from fastledger.model.block import Block, result_entries
from fastledger.model.genesis import Genesis
from fastledger.model.receipt import check_seal
from fastledger.model.reports import VerifyReport
from fastledger.pace import Pace
from fastledger.state.registry import RulesAt
from fastledger.storage import keys
from fastledger.storage.blobs.store import BlobStore
from fastledger.storage.directory import LedgerDirectory
from fastledger.storage.index import WALK_KEYS, Index, IndexView, compare_views, unreachable_entries
from fastledger.storage.log import LogPin, SegmentLog
from fastledger.subjects.record import RECORDS, VERSIONS, Record


@dataclass
class Verification:
    """One verification of a ledger. ``record_now`` returns a record as it is at this moment, not when pinned."""

    directory: LedgerDirectory
    genesis: Genesis
    engine: Engine
    log: SegmentLog
    blobs: BlobStore
    pace: Pace
    record_now: Callable[[bytes], Record | None]
    rules_at: RulesAt
    report: VerifyReport = field(default_factory=VerifyReport)

    def check_log(self, pin: LogPin, *, online: bool) -> None:
        """Checks every byte of the log.

        With ``online``, while something may be appended, those of its sealed segments.
        """

        def told(done: int, total: int) -> None:
            self.pace.spend(done - self.report.log_bytes)
            self.report.log_bytes = done
            self.pace.tell("log", done, total)

        for error in self.log.verify_sealed(pin, told) if online else self.log.verify(told):
            self.report.note(str(error))

    def check_blobs(self) -> None:
        """Checks that stored envelopes are whole."""
        errors = self.blobs.verify(lambda done, total: self.pace.tell("blobs", done, total), self.pace.spend)
        for error in errors:
            self.report.note(str(error))

    @contextmanager
    def fresh_chain(self) -> Iterator["FreshChain"]:
        """Yields an empty chain in the ledger's ``tmp/`` to execute the log into.

        That of a pruned log begins at a snapshot.
        """
        with self.directory.workspace() as folder:
            path = folder / "index"
            position = None
            if self.log.first_height > 0:
                source = starting_snapshot(self.directory, self.genesis.chain_id, self.log)
                position = load_snapshot(source, path, self.genesis.chain_id, self.log, self.pace)
            index = Index.open(path, self.genesis.chain_id)
            store = ChainStore(index)
            try:
                executor = Executor(
                    genesis=self.genesis, store=store, log=self.log, engine=self.engine, key=None
                )
                if position is not None:
                    executor.resume(position)
                yield FreshChain(self, index, store, executor)
            finally:
                store.close()
                index.close()

    def check_records(self, view: IndexView) -> None:
        """Checks that the envelopes of live records are there, and those of erased records are gone.

        ``view`` is of the index built anew: what the ledger's own index says of records may be what is damaged.
        """
        total = view.count("state")
        for number, (key, value) in enumerate(view.iter_state(RECORDS.prefix)):
            if number % WALK_KEYS == 0:
                self.pace.tell("records", number, total)
            self._check_record(view, key[len(RECORDS.prefix) :], RECORDS.decode(value))

    def _check_record(self, view: IndexView, record_id: bytes, record: Record) -> None:
        for number in range(1, record.version + 1):
            version = record.present
            if number < record.version:
                raw = view.get_state(VERSIONS.prefix + VERSIONS.pack(record_id, number))
                if raw is None:
                    self.report.note(f"record {record_id.hex()} lacks version {number}")
                    continue
                version = VERSIONS.decode(raw)
            self.report.blobs += 1
            digest = version.digest
            if self.blobs.has(digest) != record.erased:
                continue
            if not record.erased and self.engine.finality_depth > 0:
                continue  # in a federation not every node holds every envelope
            if not record.erased:
                now = self.record_now(record_id)
                if now is not None and now.erased:
                    continue
            state = "still stored" if record.erased else "missing"
            self.report.note(f"record {record_id.hex()} version {number}: envelope {digest.hex()} {state}")


@dataclass
class FreshChain:
    """The chain that a verification builds from the log."""

    run: Verification
    index: Index
    store: ChainStore
    executor: Executor

    def check_chain(self, until_height: int) -> bool:
        """Executes the log up to a height with every signature, seal and root; False where a block is bad."""
        report, pace = self.run.report, self.run.pace
        report.first_height = self.run.log.first_height

        def told(height: int, block: Block) -> None:
            report.height = height
            report.blocks += 1
            report.transactions += block.count
            pace.spend(len(block.transactions))
            pace.tell("blocks", height, until_height)

        try:
            position = self.executor.position
            if position is not None and report.blocks == 0:
                self._check_kept_blocks(position.tip.height, told)
            replay_log(
                self.executor, self.store, self.run.log, verify=True, until_height=until_height, progress=told
            )
        except CorruptionError as error:
            report.note(str(error))
            return False
        return True

    def _check_kept_blocks(self, until_height: int, told: Callable[[int, Block], None]) -> None:
        """Checks the blocks that a pruned log still holds from before its snapshot, not the state they led to."""
        history = HistoryTree()
        parent: EngineTip | None = None
        before: EngineTip | None = None  # the parent, as far as the index knows it for the first block
        with self.index.snapshot() as view:
            for height in range(self.run.log.first_height):
                entry = BlockEntry.unpack(view.block_entry(height) or b"")
                history.append(entry.block_id)
                before = EngineTip(height, entry.block_id, entry.time_ms, b"")
        for ref, height, payload in self.run.log.frames():
            if height > until_height:
                return
            try:
                block = Block.decode(payload)
                self._check_kept_block(block, parent, history)
            except InputError as error:
                raise damaged_block(error, ref) from error
            history.append(block.block_id)
            parent = before = self.run.engine.tip(block.header, block.body, block.seal, before)
            told(height, block)

    def _check_kept_block(self, block: Block, parent: EngineTip | None, history: HistoryTree) -> None:
        genesis = self.run.genesis
        check_seal(block, genesis.chain_id)
        if parent is not None:
            self.run.engine.check(block.header, block.body, parent)
            links = (block.header.previous_id, block.body.seal_ref)
            if links != (parent.block_id, seal_ref(self.run.engine, parent)):
                raise _differs(block, "link to its parent")
        rules = self.run.rules_at(block.height)
        batch = admit(Batch.of_block(block), rules, chain_id=genesis.chain_id)
        if any(batch.codes):
            raise _differs(block, "transaction")
        txids = batch.scan.txids
        entries, offsets = result_entries(txids, block.results)
        results = merkle_root(leaf_hashes(entries, offsets), hashed=True)
        roots = (merkle_root(txids), results, history.root())
        if roots != (block.body.tx_root, block.body.result_root, block.body.history_root):
            raise _differs(block, "root")

    def compare(self, ours: IndexView) -> None:
        """Compares the ledger's index, as one checkpoint left it, with the one that was built."""
        report = self.run.report
        frozen = self.store.freeze(transactions_min=0, bytes_min=0)
        if frozen is not None:
            self.store.write_frozen(frozen)
        first_height = self.run.log.first_height

        def meaning(database: str, key: bytes, value: bytes) -> bytes:
            # Where a pruned block once lay is of no account.
            if database != "blocks" or keys.decode_height(key) >= first_height:
                return value
            entry = BlockEntry.unpack(value[keys.SEQ_BYTES :])._replace(ref=NOWHERE)
            return value[: keys.SEQ_BYTES] + entry.pack()

        try:
            with self.index.snapshot() as theirs:
                found = compare_views(ours, theirs, meaning=meaning, step=self.run.pace.check)
            for difference in found:
                report.note(f"index: {difference.database} differs at key {difference.key.hex()[:64]}")
            for database, key in unreachable_entries(ours):
                report.note(f"index: {database} does not find key {key.hex()[:64]}")
        except (LedgerClosedError, OperationCancelledError):
            raise
        except LedgerError as error:  # LMDB gave up
            report.note(f"index: {error}")


def _differs(block: Block, what: str) -> InputError:
    return InputError(f"the block at height {block.height} has a wrong {what}", code=Code.BAD_BLOCK)

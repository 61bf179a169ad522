"""From the log back to state: on opening, for reindexing, and to verify everything (SPEC-REP-1..4)."""

import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeAlias

from fastledger.chain.admission import admit_block
from fastledger.chain.executor import CHECKPOINT_KEY, Appended, Executor, Position
from fastledger.chain.store import ChainStore
from fastledger.consensus.engine import Engine
from fastledger.errors import CorruptionError, InputError, LedgerError
from fastledger.limits import CHECKPOINT_BYTES, CHECKPOINT_TRANSACTIONS
from fastledger.model.block import Block
from fastledger.model.genesis import Genesis
from fastledger.model.receipt import check_seal
from fastledger.state.entities import RECORDS, VERSIONS, version_key
from fastledger.storage.blobs import BlobStore
from fastledger.storage.index import Index
from fastledger.storage.log import FrameRef, SegmentLog

Progress: TypeAlias = Callable[[str, int, int], None]
PROBLEMS_MAX = 100


def replay_log(
    executor: Executor,
    store: ChainStore,
    log: SegmentLog,
    *,
    verify: bool = False,
    settled: Callable[[Appended], None] = lambda _appended: None,
    progress: Callable[[int, Block], None] = lambda _height, _block: None,
) -> int:
    """Executes every block after the executor's position (or from block 0); returns how many.

    With ``verify`` seals and signatures are checked too. Raises ``CorruptionError`` naming segment and offset of the
    first block that is not what its header says.
    """
    count = 0
    start: FrameRef | None = None if executor.position is None else executor.position.ref
    for ref, height, payload in log.frames(start):
        if executor.position is not None and height <= executor.position.tip.height:
            continue
        try:
            block = Block.decode(payload)
            appended = _replay_block(executor, block, ref, verify)
        except InputError as error:
            raise damaged_block(error, ref) from error
        settled(appended)
        store.settle(1)
        _checkpoint_if_due(store)
        progress(height, block)
        count += 1
    return count


def damaged_block(error: InputError, ref: FrameRef) -> CorruptionError:
    """What is wrong with the block in a whole frame, as an error that names the frame."""
    return CorruptionError(str(error), path=f"log segment {ref.segment}", offset=ref.offset)


def _replay_block(executor: Executor, block: Block, ref: FrameRef, verify: bool) -> Appended:
    if executor.position is None:
        return executor.start_from(block, ref)
    if verify:
        check_seal(block, executor.chain_id)
    batch = admit_block(block, chain_id=executor.chain_id, verify_signatures=verify)
    return executor.replay(block, ref, batch)


def _checkpoint_if_due(store: ChainStore) -> None:
    frozen = store.freeze(transactions_min=CHECKPOINT_TRANSACTIONS, bytes_min=CHECKPOINT_BYTES)
    if frozen is not None:
        store.write_frozen(frozen)
        store.renew()


def checkpoint_position(index: Index, path: Path) -> Position | None:
    """Where the index's checkpoint stands; None for an empty index. ``CorruptionError`` where it is damaged."""
    with index.snapshot() as view:
        value = view.get_meta(CHECKPOINT_KEY)
    if value is None:
        return None
    try:
        return Position.unpack(value)
    except InputError:
        raise CorruptionError("the checkpoint is damaged: reindex", path=str(path)) from None


@dataclass
class VerifyReport:
    """What :func:`verify_all` looked at, and everything that it found wrong."""

    blocks: int = 0
    transactions: int = 0
    log_bytes: int = 0
    blobs: int = 0
    problems: list[str] = field(default_factory=list)

    @property
    def ok(self) -> bool:
        """Whether nothing is wrong."""
        return not self.problems

    def note(self, problem: str) -> None:
        """Keeps a problem, up to a bound."""
        if len(self.problems) < PROBLEMS_MAX:
            self.problems.append(problem)


def verify_all(
    *,
    genesis: Genesis,
    engine: Engine,
    log: SegmentLog,
    index: Index,
    blobs: BlobStore,
    progress: Progress | None = None,
) -> VerifyReport:
    """Re-checks every byte, signature, root and seal from disk, and compares the index with one built anew.

    ``index`` must hold everything that the log holds. ``progress`` gets (stage, done, total).
    """
    report = VerifyReport()
    tell = progress or (lambda _stage, _done, _total: None)

    def log_progress(done: int, total: int) -> None:
        report.log_bytes = total
        tell("log", done, total)

    for error in log.verify(log_progress):
        report.note(str(error))
    with tempfile.TemporaryDirectory(prefix="fastledger-verify-") as folder:
        fresh = Index.open(Path(folder) / "index", genesis.chain_id)
        store = ChainStore(fresh)
        try:
            _verify_blobs(blobs, report, tell)
            # Beyond a bad block nothing is known that index or records could be held against.
            if _verify_chain(genesis, engine, log, store, report, tell):
                _compare_index(index, store, report)
                _verify_records(fresh, blobs, report)
        finally:
            store.close()
            fresh.close()
    return report


def _verify_chain(
    genesis: Genesis,
    engine: Engine,
    log: SegmentLog,
    store: ChainStore,
    report: VerifyReport,
    tell: Progress,
) -> bool:
    executor = Executor(genesis=genesis, store=store, log=log, engine=engine, key=None)
    newest = log.end.height

    def block_progress(height: int, block: Block) -> None:
        report.blocks += 1
        report.transactions += block.count
        tell("blocks", height, newest)

    try:
        replay_log(executor, store, log, verify=True, progress=block_progress)
    except CorruptionError as error:
        report.note(str(error))
        return False
    return True


def _compare_index(index: Index, store: ChainStore, report: VerifyReport) -> None:
    frozen = store.freeze(transactions_min=0, bytes_min=0)
    if frozen is not None:
        store.write_frozen(frozen)
    try:
        for difference in index.compare(store.index):
            report.note(f"index: {difference.database} differs at key {difference.key.hex()[:64]}")
        for database, key in index.unreachable():
            report.note(f"index: {database} does not find key {key.hex()[:64]}")
    except LedgerError as error:  # LMDB gave up
        report.note(f"index: {error}")


def _verify_blobs(blobs: BlobStore, report: VerifyReport, tell: Progress) -> None:
    """Stored envelopes are whole."""
    for error in blobs.verify(lambda done, total: tell("blobs", done, total)):
        report.note(str(error))


def _verify_records(index: Index, blobs: BlobStore, report: VerifyReport) -> None:
    """The envelopes of live records are there, those of erased records are gone.

    ``index`` is the one built anew: what the ledger's own says of records may be what is damaged.
    """
    with index.snapshot() as view:
        for key, value in view.iter_state(RECORDS.prefix):
            record_id, record = key[1:], RECORDS.decode(value)
            for number in range(1, record.version + 1):
                version = record.present
                if number < record.version:
                    raw = view.get_state(VERSIONS.prefix + version_key(record_id, number))
                    if raw is None:
                        report.note(f"record {record_id.hex()} lacks version {number}")
                        continue
                    version = VERSIONS.decode(raw)
                report.blobs += 1
                digest = version.digest
                if blobs.has(digest) == record.erased:
                    state = "still stored" if record.erased else "missing"
                    report.note(f"record {record_id.hex()} version {number}: envelope {digest.hex()} {state}")

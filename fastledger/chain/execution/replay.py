"""Replay of the log into state: on opening, for reindexing, and to verify everything (SPEC-REP-1, SPEC-REP-2)."""

from collections.abc import Callable
from pathlib import Path

from fastledger.chain.admission import NOTHING, OWN_LOG, Batch, admit
from fastledger.chain.execution.executor import CHECKPOINT_KEY, Appended, Executor, Position
from fastledger.chain.execution.store import NOWHERE, ChainStore
from fastledger.errors import CorruptionError, InputError
from fastledger.limits import CHECKPOINT_BYTES, CHECKPOINT_TRANSACTIONS
from fastledger.model.block import Block
from fastledger.model.receipt import check_seal
from fastledger.storage.index import Index
from fastledger.storage.log import FrameRef, SegmentLog


def begin_or_replay(
    executor: Executor,
    store: ChainStore,
    log: SegmentLog,
    *,
    settled: Callable[[Appended], None] = lambda _appended: None,
) -> int:
    """Brings a new executor to the end of the log: writes block 0 where there is nothing, else replays the log.

    Returns how many blocks were executed from the log; raises as :func:`replay_log`.
    """
    if executor.position is None and log.end.height < 0:
        executor.start()
        log.sync()
        store.settle(1)
    return replay_log(executor, store, log, settled=settled)


def replay_log(
    executor: Executor,
    store: ChainStore,
    log: SegmentLog,
    *,
    verify: bool = False,
    until_height: int | None = None,
    settled: Callable[[Appended], None] = lambda _appended: None,
    progress: Callable[[int, Block], None] = lambda _height, _block: None,
) -> int:
    """Executes every block after the executor's position (or from block 0) up to a height; returns how many.

    With ``verify`` seals and signatures are checked too. Raises ``CorruptionError`` naming segment and offset of the
    first block that is not what its header says.
    """
    count = 0
    start: FrameRef | None = None
    if executor.position is not None and executor.position.ref != NOWHERE:
        start = executor.position.ref
    for ref, height, payload in log.frames(start):
        if until_height is not None and height > until_height:
            break
        if executor.position is not None and height <= executor.position.tip.height:
            continue
        try:
            block = Block.decode(payload)
            appended = replay_block(executor, block, ref, verify)
        except InputError as error:
            raise damaged_block(error, ref) from error
        settled(appended)
        store.settle(1)
        checkpoint_if_due(store)
        progress(height, block)
        count += 1
    return count


def damaged_block(error: InputError, ref: FrameRef) -> CorruptionError:
    """Returns the error that names the frame of a block that is wrong in a whole frame."""
    return CorruptionError(str(error), path=f"log segment {ref.segment}", offset=ref.offset)


def replay_block(executor: Executor, block: Block, ref: FrameRef, verify: bool) -> Appended:
    """Executes one block, which lies at ``ref``; raises ``InputError`` where it is not what its header says."""
    if executor.position is None:
        return executor.start_from(block, ref)
    if verify:
        check_seal(block, executor.chain_id)
    trust = NOTHING if verify else OWN_LOG
    rules = executor.rules_at(block.height)
    batch = admit(Batch.of_block(block), rules, chain_id=executor.chain_id, trust=trust)
    return executor.replay(block, ref, batch)


def checkpoint_if_due(store: ChainStore) -> None:
    """Writes a checkpoint where enough has gathered, for a caller without a checkpointer thread."""
    if store.index.pending is not None:
        return  # there was no room for the one before
    frozen = store.freeze(transactions_min=CHECKPOINT_TRANSACTIONS, bytes_min=CHECKPOINT_BYTES)
    if frozen is not None:
        store.write_frozen(frozen)
        store.renew()


def checkpoint_position(index: Index, path: Path) -> Position | None:
    """Returns the position of the index's checkpoint; None for an empty index.

    Raises ``CorruptionError`` where it is damaged.
    """
    value = index.get_meta(CHECKPOINT_KEY)
    if value is None:
        return None
    try:
        return Position.unpack(value)
    except InputError:
        raise CorruptionError("the checkpoint is damaged: reindex", path=str(path)) from None

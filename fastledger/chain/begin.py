"""From an index and a log to an executor at the last durable block (SPEC-REP-1)."""

from collections.abc import Callable

from fastledger.chain.executor import Appended, Executor
from fastledger.chain.replay import replay_log
from fastledger.chain.store import ChainStore
from fastledger.storage.log import SegmentLog


def begin_or_replay(
    executor: Executor,
    store: ChainStore,
    log: SegmentLog,
    *,
    settled: Callable[[Appended], None] = lambda _appended: None,
) -> int:
    """Writes block 0 where the log is empty, else executes it from the executor's position; how many blocks."""
    if executor.position is None and log.end.height < 0:
        executor.start()
        log.sync()
        store.settle(1)
    return replay_log(executor, store, log, settled=settled)

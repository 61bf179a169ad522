"""The choice of the threads that run an open ledger, which follows from its engine."""

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from typing import NamedTuple, TypeAlias

from fastledger.chain.execution.executor import Executor
from fastledger.chain.execution.store import ChainStore, Layer
from fastledger.chain.forks.chain import ForkChain
from fastledger.chain.forks.pipeline import ForkPipeline
from fastledger.chain.options import LedgerOptions
from fastledger.chain.pipeline import Pipeline
from fastledger.consensus.engine import Engine
from fastledger.crypto.signing import SigningKey
from fastledger.model.genesis import Genesis
from fastledger.stage_times import StageTimes
from fastledger.storage.blobs.store import BlobStore
from fastledger.storage.directory import LedgerDirectory
from fastledger.storage.journal import ForkJournal
from fastledger.storage.log import SegmentLog

OnDurable: TypeAlias = Callable[[Sequence[Layer]], None]


class Parts(NamedTuple):
    """The parts of an open ledger whose log was replayed."""

    directory: LedgerDirectory
    genesis: Genesis
    engine: Engine
    executor: Executor
    store: ChainStore
    log: SegmentLog
    blobs: BlobStore
    key: SigningKey | None


def make_pipeline(
    parts: Parts, options: LedgerOptions, times: StageTimes, *, on_durable: OnDurable, undo: ExitStack
) -> tuple[Pipeline | ForkPipeline, ForkPipeline | None]:
    """Returns a ledger's pipeline, and it again as a ``ForkPipeline`` where the chain can reorganise, else None."""
    if parts.engine.finality_depth == 0:
        pipeline = Pipeline(
            executor=parts.executor,
            store=parts.store,
            log=parts.log,
            blobs=parts.blobs,
            clock_ms=options.clock_ms,
            times=times,
            checkpoint_transactions=options.checkpoint_transactions,
            checkpoint_bytes=options.checkpoint_bytes,
            on_durable=on_durable,
        )
        return pipeline, None
    forks = ForkPipeline(
        chain=_open_chain(parts, options, undo),
        store=parts.store,
        clock_ms=options.clock_ms,
        times=times,
        checkpoint_transactions=options.checkpoint_transactions,
        checkpoint_bytes=options.checkpoint_bytes,
        on_durable=on_durable,
    )
    return forks, forks


def _open_chain(parts: Parts, options: LedgerOptions, undo: ExitStack) -> ForkChain:
    journal = ForkJournal.open(parts.directory.root, parts.genesis.chain_id)
    undo.callback(journal.close)
    chain = ForkChain(
        genesis=parts.genesis,
        engine=parts.engine,
        executor=parts.executor,
        store=parts.store,
        log=parts.log,
        journal=journal,
        key=parts.key,
        erase=lambda digest: _erase(parts.blobs, digest),
        verify_threads=options.verify_threads or None,
    )
    chain.start(options.clock_ms())
    chain.take_events()
    return chain


def _erase(blobs: BlobStore, digest: bytes) -> None:
    blobs.erase(digest)

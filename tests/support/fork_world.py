"""Chains with forks in real directories, fed by hand: no threads, no clock but the test's."""

import random
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from world import START_MS, Clock, new_wallet

from fastledger import Genesis, Ledger, Role, SigningKey, Transaction, Wallet
from fastledger.chain.execution.executor import Executor
from fastledger.chain.execution.replay import begin_or_replay, checkpoint_position
from fastledger.chain.execution.store import ChainStore
from fastledger.chain.forks.chain import ForkChain
from fastledger.chain.forks.events import ChainEvent
from fastledger.chain.forks.mempool import Mempool
from fastledger.chain.forks.mining import mine_block
from fastledger.consensus.engines import make_engine
from fastledger.crypto.work import check_work
from fastledger.model.block import Block
from fastledger.model.genesis import WorkParameters
from fastledger.state.registry import Registry
from fastledger.storage.files import OsFiles
from fastledger.storage.index import Index
from fastledger.storage.journal import ForkJournal
from fastledger.storage.log import SegmentLog
from fastledger.subjects.catalogue import REGISTRY

SEGMENT_BYTES = 1 << 16
SPACING_MS = 1_000
EASY_BITS = 0x207FFFFF


def make_genesis(
    keys: Sequence[SigningKey],
    *,
    finality_depth: int = 4,
    regulators: Sequence[Wallet] = (),
    rule_set: int | None = None,
) -> Genesis:
    """A chain on which every other nonce is work enough."""
    return Genesis.create(
        created_ms=START_MS,
        proposers=tuple(key.public_key for key in keys),
        authorities=tuple(wallet.authority for wallet in regulators),
        engine="pow",
        work=WorkParameters(
            spacing_ms=SPACING_MS,
            initial_bits=EASY_BITS,
            limit_bits=EASY_BITS,
            finality_depth=finality_depth,
            rewards=((0, 5),),
        ),
        rule_set=rule_set,
    )


@dataclass
class Node:
    """One chain over one directory; :meth:`stop` and :meth:`start` are a restart."""

    root: Path
    genesis: Genesis
    key: SigningKey | None
    files: OsFiles = field(default_factory=OsFiles)
    events: list[ChainEvent] = field(default_factory=list)
    erased: list[bytes] = field(default_factory=list)
    mempool: Mempool | None = None
    now_ms: int = START_MS + SPACING_MS
    registry: Registry = REGISTRY

    def start(self) -> "Node":
        chain_id, engine = self.genesis.chain_id, make_engine(self.genesis)
        self.root.mkdir(parents=True, exist_ok=True)
        if not (self.root / "HEAD").exists():
            SegmentLog.create(self.root, chain_id, self.files, segment_bytes=SEGMENT_BYTES).close()
        self.log = SegmentLog.open(self.root, chain_id, self.files, segment_bytes=SEGMENT_BYTES)
        self.index = Index.open(self.root / "index", chain_id, map_bytes=1 << 24)
        self.store = ChainStore(self.index)
        executor = Executor(
            genesis=self.genesis,
            store=self.store,
            log=self.log,
            engine=engine,
            key=self.key,
            registry=self.registry,
        )
        position = checkpoint_position(self.index, self.root)
        if position is not None:
            executor.resume(position)
        self.replayed = begin_or_replay(executor, self.store, self.log)
        self.journal = ForkJournal.open(self.root, chain_id, self.files)
        self.chain = ForkChain(
            genesis=self.genesis,
            engine=engine,
            executor=executor,
            store=self.store,
            log=self.log,
            journal=self.journal,
            key=self.key,
            erase=self.erased.append,
            verify_threads=1,
            mempool=self.mempool,
            journal_dead_bytes_min=1 << 12,
        )
        self.chain.start(self.now_ms)
        self.drain()
        return self

    def stop(self) -> None:
        self.journal.close()
        self.store.close()
        self.index.close()
        self.log.close()

    def restart(self) -> None:
        self.stop()
        self.start()

    def drain(self) -> list[ChainEvent]:
        told = self.chain.take_events()
        self.events += told
        return told

    def mine(self, count: int = 1, *, after_ms: int = SPACING_MS) -> list[Block]:
        """Blocks on the tip, one spacing apart."""
        blocks = []
        for _ in range(count):
            self.now_ms = max(self.now_ms, self.chain.tip.time_ms + after_ms)
            blocks.append(mine_block(self.chain, self.now_ms))
            self.drain()
        return blocks

    def take(self, *blocks: Block) -> None:
        for block in blocks:
            self.now_ms = max(self.now_ms, block.body.time_ms)
            self.chain.add_block(block, self.now_ms)
            self.drain()

    def submit(self, *transactions: Transaction) -> list[int]:
        return list(self.chain.submit([item.encoded for item in transactions], self.now_ms))

    @property
    def branch(self) -> list[bytes]:
        """The ids of the best chain."""
        ids = [self.chain.block_id_at(height) for height in range(self.chain.tip.height + 1)]
        return [block_id for block_id in ids if block_id is not None]


def patients(genesis: Genesis, count: int, clock: Clock | None = None) -> list[Transaction]:
    """Registrations of so many new patients: each is valid on any branch."""
    clock = clock or Clock(START_MS + SPACING_MS)
    return [new_wallet(clock).join(genesis.chain_id).register(Role.PATIENT) for _ in range(count)]


def search(make_header: Callable[[int], bytes]) -> bytes:
    """A header with enough work, where little is asked for."""
    header = make_header(0)
    candidates = (header[:-4] + nonce.to_bytes(4, "little") for nonce in range(1 << 16))
    return next(filter(check_work, candidates))


def shuffled(blocks: Sequence[Block], seed: int) -> list[Block]:
    """In a random order."""
    found = list(blocks)
    random.Random(seed).shuffle(found)
    return found


def mine(ledger: Ledger, clock: Clock, count: int = 1) -> list[Block]:
    """Blocks a second apart, each on the tip of its moment."""
    assert ledger.forks is not None
    blocks = []
    for _ in range(count):
        clock.advance(1_000)
        blocks.append(ledger.forks.call(lambda chain: mine_block(chain, clock.now_ms)).result(10))
    return blocks


@contextmanager
def mining(ledger: Ledger, clock: Clock) -> Iterator[None]:
    """A miner beside the test."""
    done = threading.Event()

    def work() -> None:
        while not done.is_set():
            mine(ledger, clock)
            time.sleep(0.001)

    thread = threading.Thread(target=work)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()

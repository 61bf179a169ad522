"""A chain that can change its mind: the best of several branches, down to what is final (SPEC-FORK-1..12).

::

    copies of blocks ─► checked ─► journalled ─► tree: which branch is best ─► connected, in layers ─► final: log, index

One thread has it. It reads no clock and starts no thread: times come as arguments, and what happened is asked for with
:meth:`ForkChain.take_events`, which first makes it durable. The segment log and the index hold final blocks only; what
is above stands in the fork journal and, as layers, in memory, where a reorganisation drops it again.
"""

import struct
from collections.abc import Callable, Sequence
from contextlib import suppress
from itertools import chain

from fastledger.chain.admission import LOCAL, Batch, CpuShare, Pending, admit, lay_out
from fastledger.chain.execution.executor import Appended, Executor, Position
from fastledger.chain.execution.in_force import RulesInForce
from fastledger.chain.execution.store import NOWHERE, ChainStore
from fastledger.chain.forks.block_store import BlockStore
from fastledger.chain.forks.blocks import check_copy, pending_at, pendings_of, readmit
from fastledger.chain.forks.events import (
    BlockConnected,
    BlockDisconnected,
    BlocksFinal,
    BlockStored,
    ChainEvent,
    Reorganised,
    TransactionsAccepted,
    WrongHints,
)
from fastledger.chain.forks.header_intake import HeaderIntake
from fastledger.chain.forks.headers import HeaderChain, KnownById
from fastledger.chain.forks.mempool import Mempool
from fastledger.chain.forks.stopping import StoppingPlaces
from fastledger.chain.forks.templates import Template, TemplateMaker
from fastledger.consensus.engine import (
    Engine,
    EngineTip,
    FinaliseBlock,
    TipMoved,
)
from fastledger.consensus.tree import BlockTree, TreeEntry, TreeStatus
from fastledger.crypto.signing import SigningKey
from fastledger.errors import BlockFault, Code, CorruptionError, InputError, LedgerError, StorageFullError
from fastledger.limits import (
    CHECKED_BLOCKS_MAX,
    JOURNAL_DEAD_BYTES_MIN,
    UNSETTLED_BLOCKS_MAX,
)
from fastledger.model.block import Block, SealedHeader
from fastledger.model.genesis import Genesis
from fastledger.model.outcome import Outcome
from fastledger.storage.journal import ForkJournal
from fastledger.storage.log import SegmentLog


class ForkChain:
    """One node's view of the chain: headers, blocks, the best branch, and the transactions that wait for a block."""

    def __init__(
        self,
        *,
        genesis: Genesis,
        engine: Engine,
        executor: Executor,
        store: ChainStore,
        log: SegmentLog,
        journal: ForkJournal,
        key: SigningKey | None,
        erase: Callable[[bytes], None],
        verify_threads: int | None,
        mempool: Mempool | None = None,
        journal_dead_bytes_min: int = JOURNAL_DEAD_BYTES_MIN,
    ) -> None:
        """Takes over the parts of an open ledger whose log was replayed; call :meth:`start` before anything else.

        ``key`` seals this node's blocks (None: it mines none). ``erase`` destroys an envelope, by its digest.
        """
        self.genesis = genesis
        self.chain_id = genesis.chain_id
        self.mempool = Mempool() if mempool is None else mempool
        self._engine = engine
        self._executor = executor
        self._store = store
        self._log = log
        self._erase = erase
        self._verify_threads = verify_threads
        self._cpu_share = CpuShare(verify_threads)
        self._blocks = BlockStore(journal, dead_bytes_min=journal_dead_bytes_min)
        position = executor.tip_position
        self.tree = BlockTree(engine, position.tip, self._root_header(position), work=position.work)
        self._best = self.tree.root
        self._headers = HeaderChain(
            self.tree, store, log, chain_id=self.chain_id, verify_threads=verify_threads
        )
        self._events: list[ChainEvent] = []
        self._intake = HeaderIntake(self.tree, engine, self._headers, self.chain_id, verify_threads)
        # Of the connected blocks that are not final: what they appended, by id.
        self._connected: dict[bytes, Appended] = {}
        # Transactions of blocks that were checked and not connected yet.
        self._checked: dict[bytes, Batch] = {}
        self._templates = TemplateMaker(genesis, engine, executor, store, self.mempool, key)
        self._faults: dict[bytes, str] = {}
        self._final_height = position.tip.height
        # Where the chain goes on under a rule set that this release does not know.
        self._stops = StoppingPlaces(self.tree)

    def _root_header(self, position: Position) -> SealedHeader:
        """Returns the header of the last final block; where the log does not hold it, a stand-in."""
        if position.ref != NOWHERE:
            return Block.decode(self._log.read(position.ref)).sealed_header
        return KnownById.at(position.tip)

    def start(self, now_ms: int) -> None:
        """Takes the blocks of the journal and goes to the best branch; what became final meanwhile stays final."""
        order: list[bytes] = []
        headers: list[SealedHeader] = []
        for block in self._blocks.load():
            order.append(block.block_id)
            headers.append(block.sealed_header)
        for sealed in sorted(headers, key=lambda sealed: sealed.body.height):
            try:
                self.tree.add(sealed)
            except InputError:
                continue  # final by now, or of a branch that is dead
        for block_id in order:
            if block_id != self.tree.root.block_id and self.tree.get(block_id) is not None:
                self.tree.mark_stored(block_id)
        self._forget_strays()
        self._note_stop()
        self._activate()
        self.tick(now_ms)

    # Where it stands.

    @property
    def tip(self) -> EngineTip:
        """The last block of the best chain."""
        return self._best.tip

    @property
    def final(self) -> EngineTip:
        """The last final block."""
        return self.tree.root.tip

    @property
    def work(self) -> int:
        """The work of the whole chain up to the tip."""
        return self._best.work

    @property
    def state_root(self) -> bytes:
        """The state root (32 bytes) after the tip."""
        return self._executor.tip_position.state_root

    # Headers.

    def add_headers(self, headers: Sequence[SealedHeader], now_ms: int) -> int:
        """Takes headers in, parents first; returns how many were new. One from the future waits for its time.

        Raises ``BlockFault`` with the ``index`` of the first that cannot be taken; those before it are taken.
        """
        try:
            return self._intake.add(headers, now_ms)
        finally:
            self._events += self._intake.take_events(self._best)

    def locator(self) -> list[bytes]:
        """Returns ids of the best chain: dense near the tip, ever fewer down to genesis."""
        return self._headers.locator(self._best)

    def headers_after(self, locator: Sequence[bytes], limit: int) -> list[SealedHeader]:
        """Returns up to ``limit`` headers of the best executed chain behind what ``locator`` shares with it."""
        return self._headers.after(self._best, locator, limit)

    def wanted(self, limit: int) -> list[bytes]:
        """Returns ids of blocks on the way to the best header that are to be fetched, lowest first."""
        return [entry.block_id for entry in self.tree.missing(limit) if not self._stops.is_above(entry)]

    def block_id_at(self, height: int) -> bytes | None:
        """Returns the id of the best chain's block at a height, or None."""
        return self._headers.id_at(self._best, height)

    # Blocks.

    def has_block(self, block_id: bytes) -> bool:
        """Whether this node has a copy of the block, which :meth:`block` would return."""
        return block_id in self._blocks or self._headers.holds(block_id)

    def block(self, block_id: bytes) -> Block | None:
        """Returns a good copy of a block, final or not; None where this node has none."""
        try:
            block = self._blocks.get(block_id)
        except (CorruptionError, InputError):
            self._lose(block_id)
            return None
        return block or self._headers.final_block(block_id)

    def add_block(self, block: Block, now_ms: int) -> bool:
        """Takes a copy of a block in and goes to the best branch; returns whether the block was new.

        The header comes along where its parent is known. A block from the future waits for its time. Raises
        ``BlockFault``: where it ``condemns``, no copy of the block is good, else another one may be.
        """
        block_id = block.block_id
        entry = self.tree.get(block_id)
        if entry is None:
            if self._headers.is_final(block_id, block.height):
                return False
            if self._intake.hold_block(block, now_ms):
                return True
            self._check_own_header(block, now_ms)
            entry = self.tree.get(block_id)
            if entry is None:
                return False
        self._check_not_invalid(entry)
        if entry.has_data:
            return False
        if self._stops.is_above(entry):
            raise BlockFault("it is of an unknown rule set", code=Code.RELEASE_NEEDED, block_id=block_id)
        self._store_copy(entry, block)
        self._activate()
        self._check_not_invalid(entry)
        if self._final_height - self.tree.root.height >= UNSETTLED_BLOCKS_MAX:
            self._settle()
        return True

    def _check_own_header(self, block: Block, now_ms: int) -> None:
        """Adds the header that a block brings. A fault in its seal is the copy's fault."""
        try:
            self.add_headers([block.sealed_header], now_ms)
        except BlockFault as fault:
            raise BlockFault(
                fault.args[0], code=fault.code, block_id=block.block_id, condemns=fault.condemns
            ) from fault

    def _store_copy(self, entry: TreeEntry, block: Block) -> None:
        if not self._templates.is_own(block):
            checked = check_copy(
                block,
                chain_id=self.chain_id,
                pool=self.mempool,
                known_seal=entry.seal,
                verify_threads=self._verify_threads,
            )
            block = checked.block
            if len(self._checked) >= CHECKED_BLOCKS_MAX:
                del self._checked[next(iter(self._checked))]
            self._checked[entry.block_id] = checked.batch
            if checked.wrong_hints:
                self._events.append(WrongHints(entry.block_id))
        # The seal of this copy was checked; a header alone may have come with another.
        entry.seal, entry.count = block.seal, block.count
        self._blocks.put(block)
        self.tree.mark_stored(entry.block_id)
        self._events.append(BlockStored(entry.block_id))

    def _check_not_invalid(self, entry: TreeEntry) -> None:
        if entry.status == TreeStatus.INVALID:
            why = self._faults.get(entry.block_id, "it builds on one that is invalid")
            raise BlockFault(f"block {entry.block_id.hex()}: {why}", block_id=entry.block_id, condemns=True)

    # The best branch.

    def _activate(self) -> None:
        """Goes to the best branch whose blocks are all here; where one of them proves invalid, to the next best."""
        self._store.renew()
        before = self._best
        detached: dict[bytes, tuple[Appended, Position]] = {}
        while (best := self._stops.best()) is not self._best:
            drop, connect = self.tree.path(self._best, best)
            for entry in drop:
                appended = self._connected.pop(entry.block_id)
                detached[entry.block_id] = appended, self._executor.disconnect()
                self._best = _parent(entry)
            for entry in connect:
                if self._stops.is_above(entry) or not self._connect(entry, detached):
                    break
                self._best = entry
                self._note_stop()
        if self._best is not before:
            self._moved(before)

    def _connect(self, entry: TreeEntry, detached: dict[bytes, tuple[Appended, Position]]) -> bool:
        """Puts the next block on top; False where it turned out to be invalid, or its copy to be damaged."""
        block_id = entry.block_id
        if block_id in detached:
            appended, position = detached[block_id]
            self._executor.reconnect(appended, position)
            self._connected[block_id] = appended
            return True
        try:
            block = self._blocks.get(block_id)
            draft = None if block is None else self._templates.draft_of(block)
            batch = self._checked.pop(block_id, None)
            if block is not None and batch is None and draft is None:
                batch = readmit(block, self.chain_id)
        except (CorruptionError, InputError):
            block = None
        if block is None:
            self._lose(block_id)
            return False
        try:
            appended = self._executor.connect(block, batch, draft)
        except InputError as error:
            self._condemn(entry, str(error))
            return False
        self.tree.mark_valid(block_id)
        self._connected[block_id] = appended
        return True

    def _note_stop(self) -> None:
        """Where this release cannot judge what comes after the tip, gives up the copies that it has of that."""
        if self._executor.in_force.release_needed is not None:
            self._forget_copies(self._stops.add(self._best))

    @property
    def in_force(self) -> RulesInForce:
        """The rule sets of the best chain up to the next block, and what is decided on."""
        return self._executor.in_force

    @property
    def release_needed(self) -> LedgerError | None:
        """The ``ReleaseNeededError`` of a node that lacks the next block's rule set; None where it has it."""
        return self._executor.in_force.release_needed

    @property
    def newest_rule_set(self) -> int:
        """The number of the newest rule set that this release knows."""
        return self._executor.registry.newest_rule_set

    def _condemn(self, entry: TreeEntry, why: str) -> None:
        invalid = self.tree.mark_invalid(entry.block_id)
        self._faults[entry.block_id] = why
        self._forget_copies([other.block_id for other in invalid])

    def _forget_copies(self, block_ids: Sequence[bytes]) -> None:
        self._blocks.forget(block_ids)
        for block_id in block_ids:
            self._checked.pop(block_id, None)

    def _lose(self, block_id: bytes) -> None:
        """Forgets a copy that the journal gave back with other bytes, so that it is fetched again."""
        self._blocks.forget([block_id])
        entry = self.tree.get(block_id)
        if entry is not None and entry.has_data and block_id not in self._connected:
            self.tree.forget_data(block_id)

    def _moved(self, before: TreeEntry) -> None:
        """Reports the way from ``before`` to the present tip; transactions leave the pool, or come back."""
        drop, connect = self.tree.path(before, self._best)
        txids = [list(self._connected[entry.block_id].layer.txids) for entry in connect]
        if drop:
            self._put_back(drop, set(chain.from_iterable(txids)))
        for entry, ids in zip(connect, txids, strict=True):
            self.mempool.confirm(ids)
            block = self._block_of(entry)
            codes = struct.unpack(f">{len(ids)}H", block.results)
            self._events.append(BlockConnected(block, entry.height, ids, codes))
        if drop:
            self._events.append(Reorganised(len(drop), before.tip, self._best.tip))
        for action in self._engine.handle(TipMoved(self._best.tip)):
            if isinstance(action, FinaliseBlock):
                self._final_height = max(self._final_height, action.height)

    def _block_of(self, entry: TreeEntry) -> Block:
        block = self._blocks.get(entry.block_id)
        if block is None:
            raise RuntimeError(f"{entry!r} is connected and not here")
        return block

    def _put_back(self, drop: Sequence[TreeEntry], kept: set[bytes]) -> None:
        """Puts the transactions that only dropped blocks held back into the pool, in the order of the blocks."""
        returned: list[Pending] = []
        told: list[ChainEvent] = []
        for entry in reversed(drop):
            block = self._block_of(entry)
            batch = readmit(block, self.chain_id)
            returned += [item for item in pendings_of(block, batch, self.mempool) if item.txid not in kept]
            told.append(BlockDisconnected(entry.block_id, entry.height, batch.txids))
        self._events += reversed(told)
        self.mempool.put_back(returned)

    # Finality.

    @property
    def has_news(self) -> bool:
        """Whether :meth:`take_events` has events to return."""
        return bool(self._events) or self._due() is not self.tree.root

    def take_events(self) -> list[ChainEvent]:
        """Returns the events since the last call, in order; everything that they tell is on the disk.

        What has become final is moved to the log here. A write or sync that fails raises ``LedgerHaltedError`` or
        ``StorageFullError``: no event is returned then, and the ledger has to be opened again.
        """
        self._settle()
        events, self._events = self._events, []
        return events

    def _settle(self) -> None:
        """Syncs the journal, then makes blocks final: a power cut must not take the blocks above a final one."""
        self._blocks.sync()
        entry = self._due()
        if entry is not self.tree.root:
            self._finalise(entry)
            with suppress(StorageFullError):  # the old journal stays in use
                self._blocks.compact()

    def _due(self) -> TreeEntry:
        """Returns the highest block to become final: none off a heavier chain whose blocks are on their way."""
        target = min(self._final_height, self._best.height)
        return self.tree.agreed(target) if target > self.tree.root.height else self.tree.root

    def _finalise(self, root: TreeEntry) -> None:
        self._store.renew()
        _, entries = self.tree.path(self.tree.root, root)
        layers = self._executor.settle_final([self._block_of(entry) for entry in entries])
        appended = [self._connected.pop(entry.block_id) for entry in entries]
        # After the blocks are visible, so that whoever asks whether an envelope is erased, and then stores it, has
        # stored it before it is erased.
        erased = [digest for item in appended for digest in item.erased]
        for digest in erased:
            self._erase(digest)
        dead = self.tree.finalise(root)
        self._forget_copies([entry.block_id for entry in [*entries, *dead]])
        for entry in dead:
            self._faults.pop(entry.block_id, None)
        for layer in layers:
            self.mempool.drop(layer.txids)
        self.mempool.expire(root.tip.time_ms)
        self._events.append(BlocksFinal(layers, erased))

    def checkpoint(self) -> None:
        """Writes what is final to the index, for a caller that has no checkpointer thread."""
        self._store.renew()
        while (frozen := self._store.freeze(transactions_min=0, bytes_min=0)) is not None:
            self._store.write_frozen(frozen)
            self._store.renew()

    def tick(self, now_ms: int) -> None:
        """Takes in the headers and blocks whose time has come."""
        held = self._intake.ready(now_ms)
        for sealed in held.headers:
            with suppress(BlockFault):
                self.add_headers([sealed], now_ms)
        for block in held.blocks:
            with suppress(BlockFault):
                self.add_block(block, now_ms)

    def _forget_strays(self) -> None:
        """Forgets the blocks whose headers the tree has dropped."""
        self._blocks.forget([block_id for block_id in self._blocks.ids() if self.tree.get(block_id) is None])

    # Transactions.

    def submit(self, encoded: Sequence[bytes], now_ms: int, *, source: bytes = LOCAL) -> list[Code]:
        """Judges transactions at the border and takes the good ones into the pool.

        Where this release lacks the rule set of the next block it takes none: ``RELEASE_NEEDED``. Raises ``InputError``
        with ``OVERSIZED`` for a batch over the limits, as a whole.
        """
        if self.release_needed is not None:
            return [Code.RELEASE_NEEDED] * len(encoded)
        batch = Batch.submitted(*lay_out(encoded), now_ms)
        self._mark_known(batch)
        rules = self._executor.in_force.rules
        admit(batch, rules, chain_id=self.chain_id, keep_hints=True, cpu_share=self._cpu_share)
        return self._take(batch, source)

    def accept(self, batch: Batch, *, source: bytes = LOCAL) -> list[Code]:
        """Takes the good transactions of a batch that passed the border with its hints kept into the pool."""
        self._mark_known(batch)
        return self._take(batch, source)

    def _mark_known(self, batch: Batch) -> None:
        """Marks transactions that wait, or stand in the best chain, as DUPLICATE: they are not checked again."""
        self._store.renew()
        known = self._store.seqs_of_txids(batch.txids)
        for index, txid in enumerate(batch.txids):
            if not batch.codes[index] and (txid in known or txid in self.mempool):
                batch.codes[index] = Code.DUPLICATE

    def _take(self, batch: Batch, source: bytes) -> list[Code]:
        codes = [Code(code) for code in batch.codes]
        accepted: list[bytes] = []
        final_ms = self.final.time_ms
        for index, code in enumerate(codes):
            if code:
                continue
            if batch.scan.expires_ms(index) <= final_ms:
                codes[index] = Code.EXPIRED
                continue
            codes[index] = self.mempool.add(pending_at(batch, index, batch.hints, source))
            if codes[index] == Code.OK:
                accepted.append(batch.txids[index])
        if accepted:
            self._events.append(TransactionsAccepted(accepted, source))
        return codes

    def transaction(self, txid: bytes) -> bytes | None:
        """Returns the wire form of a transaction that waits, or stands in a block that is not final; else None."""
        pending = self.mempool.find(txid)
        return None if pending is None else pending.encoded

    def verdicts(self, txids: Sequence[bytes]) -> dict[bytes, Outcome]:
        """Returns the verdicts on those of ``txids`` that the best chain holds, final or not."""
        found: dict[bytes, Outcome] = {}
        for txid, seq in self._store.seqs_of_txids(txids).items():
            height, entry = self._store.entry_of_seq(seq)
            index = seq - entry.first_seq
            if height > self.tree.root.height:
                code = Code(self._block_of(self.tree.on_path(self._best, height)).result(index))
            else:
                code = self._executor.code_of(height, entry, seq)
            found[txid] = Outcome(txid, code, height, index, duplicate=True)
        return found

    # Mining.

    def template(self, now_ms: int) -> Template | None:
        """Returns the next block, executed and ready for its nonce; None where this node seals none, or not this one.

        Transactions stand in it in order of arrival. It is worthless once the tip has moved.
        """
        return self._templates.make(self.tip.block_id, now_ms)

    def complete(self, template: Template, header80: bytes, extra_nonce: int) -> Block:
        """Seals a template whose work was found; the block then goes through :meth:`add_block`.

        Raises ``InputError`` where the header is not of the template.
        """
        return self._templates.complete(template, header80, extra_nonce)


def _parent(entry: TreeEntry) -> TreeEntry:
    if entry.parent is None:
        raise RuntimeError(f"{entry!r} has no parent in the tree")
    return entry.parent

"""Executes transactions into blocks, and blocks again into state: one code path for both (SPEC-BLK-5..9).

The executor belongs to one thread. It knows the tip, the state root and the history tree; what it appends to the
log becomes a layer of the :class:`ChainStore` and is acknowledged by others, after the sync.
"""

import struct
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple
from zlib import crc32

from fastledger.chain.admission import Batch, Pending, fit_bodies
from fastledger.chain.execution.in_force import RulesInForce
from fastledger.chain.execution.store import NOWHERE, BlockEntry, ChainStore, Layer
from fastledger.consensus.engine import (
    BlockBuilt,
    BuildBlock,
    Engine,
    EngineTip,
    SealBlock,
    TransactionsPending,
    seal_ref,
)
from fastledger.crypto.merkle import HistoryTree, leaf_hashes, merkle_root
from fastledger.crypto.signing import SigningKey
from fastledger.errors import Code, InputError
from fastledger.limits import BLOCK_BYTES_MAX, BLOCK_TRANSACTIONS_MAX
from fastledger.model.block import Block, Header, HeaderBody, result_entries
from fastledger.model.codec import decode, encode
from fastledger.model.genesis import Genesis
from fastledger.model.outcome import Outcome
from fastledger.model.receipt import make_seal
from fastledger.state.context import Context
from fastledger.state.registry import BlockOpening, Registry, Rules
from fastledger.state.transition import all_valid, apply, validity_code
from fastledger.state.view import StateLookup, View, Writes, next_state_root
from fastledger.storage.keys import TermLog
from fastledger.storage.log import FrameRef, SegmentLog
from fastledger.subjects.catalogue import REGISTRY

CHECKPOINT_KEY = b"checkpoint"
# A retry gets the first verdict also when its window has closed meanwhile.
_ANSWERED_AGAIN = frozenset((Code.OK, Code.EXPIRED))
_CHECKSUM_BYTES = 4
# The work of a chain passes 64 bits: 2^256 for each block at most.
_WORK_BYTES = 40


class Position(NamedTuple):
    """The state of the chain after a block: all that is needed to go on from it, and what a checkpoint records."""

    tip: EngineTip
    ref: FrameRef
    next_seq: int
    state_root: bytes
    history: bytes
    work: int = 0

    def pack(self) -> bytes:
        """Returns the position as it is kept in the index's ``meta`` database, behind a CRC-32.

        LMDB has no checksums, and a wrong state root here would go into every block from here on. The fields that
        only an engine with work needs stand at the end, and are left out under others.
        """
        tip = self.tip
        fields = [tip.height, tip.block_id, tip.time_ms, tip.seal]
        fields += [self.ref.pack(), self.next_seq, self.state_root, self.history]
        if tip.bits:
            fields += [tip.bits, tip.interval_ms, self.work.to_bytes(_WORK_BYTES, "big")]
        data = encode(fields)
        return crc32(data).to_bytes(_CHECKSUM_BYTES, "big") + data

    @classmethod
    def unpack(cls, packed: bytes) -> "Position":
        """Returns the position that :meth:`pack` packed; raises ``InputError`` for bytes that it did not make."""
        checksum, data = packed[:_CHECKSUM_BYTES], packed[_CHECKSUM_BYTES:]
        if crc32(data) != int.from_bytes(checksum, "big"):
            raise InputError("the checkpoint does not match its checksum", code=Code.CORRUPT)
        fields = decode(data, what="checkpoint")
        height, block_id, time_ms, seal, ref, next_seq, state_root, history, *work = fields
        tip = EngineTip(height, block_id, time_ms, seal, *work[:2])
        total = int.from_bytes(work[2], "big") if work else 0
        return cls(tip, FrameRef.unpack(ref), next_seq, state_root, history, total)


@dataclass
class Execution:
    """The results of executing a run of transactions: ids, codes, writes and index terms."""

    context: Context
    rules: Rules
    first_seq: int
    txids: dict[bytes, int] = field(default_factory=dict)
    codes: list[Code] = field(default_factory=list)

    def run(self, txid: bytes, signer: bytes, body: Any) -> Code:
        """Executes the next transaction of the block and returns its code."""
        code = apply(self.context, self.rules, signer, body)
        self.txids[txid] = self.first_seq + len(self.codes)
        self.codes.append(code)
        return code

    def copy(self, lookup: StateLookup) -> "Execution":
        """Returns an execution that goes on from here on its own; ``lookup`` reads the state before the block."""
        context = self.context.copy(View(lookup, dict(self.writes)))
        return Execution(context, self.rules, self.first_seq, dict(self.txids), list(self.codes))

    @property
    def time_ms(self) -> int:
        """The block's time, UTC ms."""
        return self.context.time_ms

    @property
    def writes(self) -> Writes:
        """The state entries that were changed; None for one that was removed."""
        return self.context.view.writes

    @property
    def terms(self) -> TermLog:
        """The index terms under which the transactions are found."""
        return TermLog(self.context.terms.terms, self.context.terms.counts, self.first_seq)

    @property
    def results(self) -> bytes:
        """The result codes as n × u16 BE."""
        return struct.pack(f">{len(self.codes)}H", *self.codes)


class Appended(NamedTuple):
    """A block that was appended to the log and is not yet synced, and the envelopes that it erases."""

    layer: Layer
    erased: list[bytes]


class Roots(NamedTuple):
    """The four roots that a header body commits to."""

    transactions: bytes
    results: bytes
    state: bytes
    history: bytes


class Draft(NamedTuple):
    """The results of executing transactions on top of block ``parent_id``; the chain is unchanged.

    ``taken[i]`` tells whether ``offered[i]`` may stand in the block.
    """

    parent_id: bytes
    plan: BuildBlock
    offered: tuple[Pending, ...]
    taken: list[bool]
    execution: Execution
    roots: Roots


def genesis_writes(genesis: Genesis, registry: Registry = REGISTRY) -> Writes:
    """Returns the state that the genesis document itself installs."""
    view = View(lambda _key: None)
    registry.install_genesis(view, genesis)
    return view.writes


class Executor:
    """One chain's tip and everything that the next block depends on. It belongs to one thread."""

    def __init__(
        self,
        *,
        genesis: Genesis,
        store: ChainStore,
        log: SegmentLog,
        engine: Engine,
        key: SigningKey | None,
        registry: Registry = REGISTRY,
    ) -> None:
        """``registry`` has the rule sets that are known; raises ``ReleaseNeededError`` without that of genesis."""
        self.genesis = genesis
        self.registry = registry
        self.in_force = RulesInForce(registry, genesis)
        self.chain_id = genesis.chain_id
        self.store = store
        self._log = log
        self._engine = engine
        self._key = key
        self._history = HistoryTree()
        self.position: Position | None = None
        # Where the chain stood under each block that is connected and not final.
        self._below: list[Position] = []

    # Starting.

    def resume(self, position: Position) -> None:
        """Takes the position of a checkpoint, to go on from it."""
        self.position = position
        self._history = HistoryTree.from_bytes(position.history)
        self.in_force.load(self.store.lookup(), position.tip.height + 1)

    def start(self) -> Appended:
        """Writes block 0 of a new chain to the log."""
        writes = genesis_writes(self.genesis, self.registry)
        block = self.genesis.block(next_state_root(bytes(32), writes))
        return self._append(block, self._genesis_execution(writes))

    def start_from(self, block: Block, ref: FrameRef) -> Appended:
        """Takes block 0 from the log.

        Raises ``InputError`` where it is not the one that the genesis document gives.
        """
        writes = genesis_writes(self.genesis, self.registry)
        expected = self.genesis.block(next_state_root(bytes(32), writes))
        if block.encode() != expected.encode():
            raise InputError("block 0 is not that of the genesis document", code=Code.BAD_BLOCK)
        return self._settle_position(block, ref, self._genesis_execution(writes))

    def _genesis_execution(self, writes: Writes) -> Execution:
        view = View(lambda _key: None, writes)
        return Execution(self._context(view, 0, self.genesis.created_ms), self.rules_at(0), 0)

    @property
    def tip_position(self) -> Position:
        """The position after the last block."""
        if self.position is None:
            raise RuntimeError("the executor has not been started")
        return self.position

    # Building.

    def build(
        self, batches: Sequence[Batch], outcomes: Sequence[list[Outcome | None]], now_ms: int
    ) -> Appended | None:
        """Executes what may enter of ``batches`` into one block and appends it; None where nothing may.

        ``outcomes[b][i]`` receives the verdict on transaction i of batch b, to be told once the block is durable.
        """
        position = self.tip_position
        plan = self._plan(now_ms)
        proposer = self._signing_key().public_key
        execution = self._begin(plan.time_ms, proposer)
        transactions, lengths = self._execute_batches(batches, outcomes, execution)
        if not lengths and not self._engine.empty_blocks:
            return None
        txids = b"".join(execution.txids)
        roots = self._roots(txids, execution)
        tip = position.tip
        body = HeaderBody(
            height=tip.height + 1,
            time_ms=plan.time_ms,
            tx_root=roots.transactions,
            result_root=roots.results,
            state_root=roots.state,
            history_root=roots.history,
            proposer=proposer,
            seal_ref=seal_ref(self._engine, tip),
        )
        header = Header(tip.block_id, body.commitment, plan.time_ms // 1000, plan.bits)
        block = Block(
            header,
            body,
            self._seal(header, body, len(execution.codes)),
            transactions,
            lengths,
            execution.results,
        )
        return self._append(block, execution)

    def _begin(self, time_ms: int, proposer: bytes) -> Execution:
        """Returns an execution on top of the tip, with the proposer's reward paid."""
        position, rules = self.tip_position, self.in_force.rules
        view = View(self.store.lookup())
        height = position.tip.height + 1
        rules.open_block(view, BlockOpening(self.genesis, height, time_ms, proposer))
        return Execution(self._context(view, height, time_ms), rules, position.next_seq)

    def try_out(self, view: View, signer: bytes, body: Any, time_ms: int) -> Code:
        """Returns the code that the rules give a transaction in the next block, at ``time_ms``, over ``view``.

        Where this release does not know the next block's rule set, that of the tip is asked: reading goes on.
        """
        height = self.tip_position.tip.height + 1
        return apply(self._context(view, height, time_ms), self.in_force.next.latest_known, signer, body)

    def _context(self, view: View, height: int, time_ms: int) -> Context:
        return Context(view, chain_id=self.chain_id, height=height, time_ms=time_ms)

    def rules_at(self, height: int) -> Rules:
        """The rule set in force at a height up to the next block's, on the executor's thread.

        Raises ``ReleaseNeededError`` where this release does not know it.
        """
        return self.in_force.at(height)

    def _plan(self, now_ms: int) -> BuildBlock:
        actions = self._engine.handle(TransactionsPending(self.tip_position.tip, now_ms))
        plan = next((action for action in actions if isinstance(action, BuildBlock)), None)
        if plan is None:
            raise RuntimeError(f"engine {self._engine.name} does not build here")
        return plan

    def _signing_key(self) -> SigningKey:
        if self._key is None:
            raise RuntimeError("a ledger without a node key builds no blocks")
        return self._key

    def _seal(self, header: Header, body: HeaderBody, count: int) -> bytes:
        actions = self._engine.handle(BlockBuilt(header, body))
        if SealBlock(body.height) not in actions:
            raise RuntimeError(f"engine {self._engine.name} does not seal here")
        return make_seal(self._signing_key(), self.chain_id, header, body, count)

    def _execute_batches(
        self,
        batches: Sequence[Batch],
        outcomes: Sequence[list[Outcome | None]],
        execution: Execution,
    ) -> tuple[bytes, bytes]:
        """Runs every transaction that may enter; returns the bytes of those that did, in order, and their lengths."""
        for batch in batches:
            fit_bodies(batch, execution.rules)
        known = self._look_ahead(batches, execution.rules)
        parts = [
            batch.scan.gather(self._execute_batch(batch, verdicts, known, execution))
            for batch, verdicts in zip(batches, outcomes, strict=True)
        ]
        return b"".join(data for data, _ in parts), b"".join(lengths for _, lengths in parts)

    def _execute_batch(
        self, batch: Batch, verdicts: list[Outcome | None], known: dict[bytes, int], execution: Execution
    ) -> list[int]:
        """Fills in the verdicts of one batch; returns the places of the transactions that entered the block."""
        entered: list[int] = []
        height = self.tip_position.tip.height + 1
        may_have_expired = not all_valid(batch.windows, execution.time_ms)
        for index, (txid, code) in enumerate(zip(batch.txids, batch.codes, strict=True)):
            if may_have_expired and not code and batch.scan.expires_ms(index) < execution.time_ms:
                code = Code.EXPIRED
            if txid in known and code in _ANSWERED_AGAIN:
                verdicts[index] = self._known_outcome(txid, known[txid])
            elif code:
                verdicts[index] = Outcome(txid, Code(code))
            elif txid in execution.txids:
                place = execution.txids[txid] - execution.first_seq
                verdicts[index] = Outcome(txid, execution.codes[place], height, place, True)
            else:
                place = len(execution.codes)
                verdict = execution.run(txid, batch.signers[index], batch.bodies[index])
                verdicts[index] = Outcome(txid, verdict, height, place)
                entered.append(index)
        return entered

    def _look_ahead(self, batches: Sequence[Batch], rules: Rules) -> dict[bytes, int]:
        """Reads what the batches will need from the index; returns the transactions that the chain has already."""
        known: dict[bytes, int] = {}
        for batch in batches:
            if self.store.take_ahead(batch.ahead):
                known |= self.store.seqs_of_txids(batch.txids, batch.ahead and batch.ahead.seqs)
            else:
                self.store.prefetch(rules.keys_read(batch.bodies))
                known |= self.store.seqs_of_txids(batch.txids)
        return known

    def _known_outcome(self, txid: bytes, seq: int) -> Outcome:
        """Returns the verdict that a transaction got when it entered the chain."""
        height, entry = self.store.entry_of_seq(seq)
        return Outcome(txid, self.code_of(height, entry, seq), height, seq - entry.first_seq, duplicate=True)

    def code_of(self, height: int, entry: BlockEntry, seq: int) -> Code:
        """Returns the verdict on transaction number ``seq`` of a block that the log holds or held (pruned)."""
        if height < self._log.first_height:
            return self.store.code_of_seq(seq)
        return Code(Block.decode(self._log.read(entry.ref)).result(seq - entry.first_seq))

    def _roots(self, txids: bytes, execution: Execution) -> Roots:
        entries, offsets = result_entries(txids, execution.results)
        return Roots(
            merkle_root(txids),
            merkle_root(leaf_hashes(entries, offsets), hashed=True),
            next_state_root(self.tip_position.state_root, execution.writes),
            self._history.root(),
        )

    def _append(self, block: Block, execution: Execution) -> Appended:
        ref = self._log.append(block.height, block.encode(), block.block_id)
        return self._settle_position(block, ref, execution)

    def _settle_position(self, block: Block, ref: FrameRef, execution: Execution) -> Appended:
        """Moves the tip onto ``block`` and pushes its layer."""
        self._history.append(block.block_id)
        before = self.position
        tip = self._engine.tip(block.header, block.body, block.seal, before and before.tip)
        work = 0 if before is None else before.work + self._engine.work(block.header)
        self.position = Position(
            tip,
            ref,
            execution.first_seq + block.count,
            block.body.state_root,
            self._history.to_bytes(),
            work,
        )
        entry = BlockEntry(ref, block.block_id, tip.time_ms, execution.first_seq, block.count)
        layer = Layer(
            block.height,
            entry,
            execution.writes,
            execution.txids,
            execution.terms,
            {CHECKPOINT_KEY: self.position.pack()},
        )
        self.store.push(layer)
        self.in_force.moved(execution.writes, block.height + 1)
        return Appended(layer, execution.context.erased)

    # Replaying.

    def replay(self, block: Block, ref: FrameRef, batch: Batch) -> Appended:
        """Executes a block from the log and compares everything that its header commits to.

        ``batch`` are its transactions, scanned and parsed (and verified, where the caller wants that).
        Raises ``InputError`` with ``BAD_BLOCK`` naming what differs.
        """
        position = self.tip_position
        self._check_links(block, position)
        self._engine.check(block.header, block.body, position.tip)
        execution = self._execute_block(block, batch)
        txids = b"".join(execution.txids)
        roots = self._roots(txids, execution)
        body = block.body
        if execution.results != block.results:
            raise _differs(block, "results")
        found = Roots(body.tx_root, body.result_root, body.state_root, body.history_root)
        for name, ours, theirs in zip(Roots._fields, roots, found, strict=True):
            if ours != theirs:
                raise _differs(block, f"{name} root")
        return self._settle_position(block, ref, execution)

    def _check_links(self, block: Block, position: Position) -> None:
        tip = position.tip
        if block.height != tip.height + 1:
            raise _differs(block, f"height after {tip.height}")
        if block.header.previous_id != tip.block_id:
            raise _differs(block, "previous id")
        if block.body.seal_ref != seal_ref(self._engine, tip):
            raise _differs(block, "seal reference")
        count_min = 0 if self._engine.empty_blocks else 1
        fits = len(block.transactions) <= BLOCK_BYTES_MAX
        if not count_min <= block.count <= BLOCK_TRANSACTIONS_MAX or not fits:
            raise _differs(block, "number of transactions")

    def _execute_block(self, block: Block, batch: Batch) -> Execution:
        execution = self._begin(block.body.time_ms, block.body.proposer)
        fit_bodies(batch, execution.rules)
        known = self._look_ahead([batch], execution.rules)
        for index, (txid, code) in enumerate(zip(batch.txids, batch.codes, strict=True)):
            if code:
                raise _differs(block, f"transaction {index} ({Code(code).slug})")
            if txid in known or txid in execution.txids:
                raise _differs(block, f"transaction {index} ({Code.DUPLICATE.slug})")
            execution.run(txid, batch.signers[index], batch.bodies[index])
        return execution

    # Forks: blocks that may leave the chain again.

    def plan(self, now_ms: int) -> BuildBlock:
        """Returns the terms under which the engine wants the next block built."""
        return self._plan(now_ms)

    def draft(self, offered: tuple[Pending, ...], plan: BuildBlock, base: Draft | None = None) -> Draft:
        """Executes verified transactions on top of the tip and leaves the chain as it is.

        One that the chain holds, or that is not valid at the block's time, or whose body is not of the rule set in
        force, is left out. ``base`` is a draft of the same parent and plan for the first of ``offered``: those are
        not executed again.
        """
        taken = [] if base is None else list(base.taken)
        if base is None:
            execution = self._begin(plan.time_ms, self._signing_key().public_key)
        else:
            execution = base.execution.copy(self.store.lookup())
        more = offered[len(taken) :]
        self.store.prefetch(execution.rules.keys_read([pending.body for pending in more]))
        known = self.store.seqs_of_txids([pending.txid for pending in more])
        for pending in more:
            valid = type(pending.body) in execution.rules.by_body
            valid = valid and validity_code(pending.issued_ms, pending.expires_ms, plan.time_ms) == Code.OK
            taken.append(valid and pending.txid not in known and pending.txid not in execution.txids)
            if taken[-1]:
                execution.run(pending.txid, pending.signer, pending.body)
        roots = self._roots(b"".join(execution.txids), execution)
        return Draft(self.tip_position.tip.block_id, plan, offered, taken, execution, roots)

    def body_of(self, draft: Draft) -> HeaderBody:
        """Returns the header body that commits to a draft, with extra nonce 0."""
        tip, roots = self.tip_position.tip, draft.roots
        return HeaderBody(
            height=tip.height + 1,
            time_ms=draft.execution.time_ms,
            tx_root=roots.transactions,
            result_root=roots.results,
            state_root=roots.state,
            history_root=roots.history,
            proposer=self._signing_key().public_key,
            seal_ref=seal_ref(self._engine, tip),
        )

    def seal(self, header: Header, body: HeaderBody, count: int) -> bytes:
        """Makes this node's seal of a block of ``count`` transactions."""
        return make_seal(self._signing_key(), self.chain_id, header, body, count)

    def connect(self, block: Block, batch: Batch | None, draft: Draft | None = None) -> Appended:
        """Executes a checked block on top of the tip, which moves onto it; :meth:`disconnect` takes it back.

        ``batch`` are its transactions; with the ``draft`` that the block was made of they are not executed again.
        The block stands in no log yet. Raises ``InputError`` with ``BAD_BLOCK`` naming what differs.
        """
        position = self.tip_position
        self._check_links(block, position)
        if draft is not None:
            execution, state_root = draft.execution, draft.roots.state
        elif batch is not None:
            execution = self._execute_block(block, batch)
            state_root = next_state_root(position.state_root, execution.writes)
        else:
            raise RuntimeError("neither transactions nor what they came to")
        if execution.results != block.results:
            raise _differs(block, "results")
        if state_root != block.body.state_root:
            raise _differs(block, "state root")
        if self._history.root() != block.body.history_root:
            raise _differs(block, "history root")
        self._below.append(position)
        return self._settle_position(block, NOWHERE, execution)

    def reconnect(self, appended: Appended, position: Position) -> None:
        """Puts a layer back that :meth:`disconnect` took off this very tip."""
        self._below.append(self.tip_position)
        self.store.push(appended.layer)
        self.resume(position)

    def disconnect(self) -> Position:
        """Drops the top layer; returns the position that the chain had with it."""
        dropped = self.tip_position
        self.store.pop()
        self.resume(self._below.pop())
        return dropped

    def settle_final(self, blocks: Sequence[Block]) -> list[Layer]:
        """Appends the lowest connected blocks, which are final, to the log, syncs it, and makes them visible.

        Returns their layers, which name their places in the log. An error halts the log, and nothing becomes
        visible.
        """
        positions = [*self._below[1:], self.tip_position][: len(blocks)]
        placed: list[Layer] = []
        for at, (block, layer) in enumerate(zip(blocks, self.store.layers, strict=False)):
            ref = self._log.append(block.height, block.encode(), block.block_id)
            positions[at] = positions[at]._replace(ref=ref)
            meta = {CHECKPOINT_KEY: positions[at].pack()}
            placed.append(layer._replace(entry=layer.entry._replace(ref=ref), meta=meta))
        self._log.sync()
        self.store.settle_layers(placed)
        del self._below[: len(placed)]
        if self._below:
            self._below[0] = positions[-1]
        else:
            self.position = positions[-1]
        return placed


def _differs(block: Block, what: str) -> InputError:
    return InputError(f"the block at height {block.height} has a wrong {what}", code=Code.BAD_BLOCK)

"""A whole node: the real log, store, executor, fork chain and peer network, with a virtual miner and supervisor.

What outlives a process is its disk and its index; :class:`Process` opens them as the real node does. An error that
halts a real node (no space, a failed sync, damage) ends the process here, and its supervisor starts it again later;
any other error is a bug and ends the run.
"""

import random
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from fastledger.chain.execution.executor import Executor
from fastledger.chain.execution.replay import checkpoint_position, replay_log
from fastledger.chain.execution.store import NOWHERE, ChainStore, Durable
from fastledger.chain.forks.chain import ForkChain
from fastledger.chain.forks.events import (
    BlockConnected,
    BlocksFinal,
    ChainEvent,
    FinalityConflict,
    Reorganised,
    WrongHints,
)
from fastledger.chain.forks.templates import Template
from fastledger.consensus.pow import PowEngine
from fastledger.crypto.signing import SigningKey
from fastledger.crypto.work import block_work, search_nonce
from fastledger.errors import Code, CorruptionError, InputError, LedgerError
from fastledger.limits import PEER_FRAME_BYTES_MAX, PEER_UNSENT_BYTES_MAX
from fastledger.model.block import Block
from fastledger.peers.network import PeerNetwork
from fastledger.peers.options import PeerOptions
from fastledger.peers.scores import Ban
from fastledger.peers.settings import Banned, Close, Dial, NetworkAction, Send
from fastledger.storage.journal import ForkJournal
from fastledger.storage.log import SegmentLog
from simulator.clock import NodeClock
from simulator.disk import MemoryFiles, SimulatedCrash
from simulator.index import MemoryIndex

if TYPE_CHECKING:
    from simulator.run import Run

ROOT = Path("/ledger")
CHAIN_TICK_MS = 20_000
ARM_MS = 500
STALE_SHARE = 0.1
DIAL_PAUSE_MS = 15_000
REDIAL_MS_MAX = 60_000
NONCES = 1 << 32
NEVER_BYTES = 1 << 60
PORT = 9_000


class Process:
    """What a kill ends: everything that a node has open."""

    def __init__(self, node: "Node", run: "Run") -> None:
        """Opens the ledger on the node's disk, or makes it; raises what opening raises."""
        genesis, files = run.genesis, node.disk
        self.engine = PowEngine(genesis)
        index = node.index.as_index()
        self.store = ChainStore(index)
        segment_bytes = run.options.segment_bytes
        if "genesis.cbor" not in files.names(ROOT):
            SegmentLog.create(ROOT, genesis.chain_id, files, segment_bytes=segment_bytes).close()
            files.create_whole(ROOT / "genesis.cbor", 0, genesis.encoded)
        checkpoint = checkpoint_position(index, ROOT)
        placed = checkpoint is not None and checkpoint.ref != NOWHERE
        self.log = SegmentLog.open(
            ROOT,
            genesis.chain_id,
            files,
            scan_from=checkpoint.ref if checkpoint is not None and placed else None,
            segment_bytes=segment_bytes,
        )
        self.executor = Executor(
            genesis=genesis,
            store=self.store,
            log=self.log,
            engine=self.engine,
            key=node.key,
            registry=run.releases[node.release],
        )
        if checkpoint is not None:
            if self.log.end.height < checkpoint.tip.height:
                raise CorruptionError("the log ends before the checkpoint", path=str(ROOT))
            if Block.decode(self.log.read(checkpoint.ref)).block_id != checkpoint.tip.block_id:
                raise CorruptionError("the checkpoint is another chain's", path=str(ROOT))
            self.executor.resume(checkpoint)
            tip = checkpoint.tip
            self.store.durable = Durable(tip.height, tip.block_id, checkpoint.next_seq)
        elif self.log.end.height < 0:
            self.executor.start()
            self.log.sync()
            self.store.settle(1)
        replay_log(self.executor, self.store, self.log)
        self.chain = ForkChain(
            genesis=genesis,
            engine=self.engine,
            executor=self.executor,
            store=self.store,
            log=self.log,
            journal=ForkJournal.open(ROOT, genesis.chain_id, files),
            key=node.key,
            erase=lambda _digest: None,
            verify_threads=1,
        )
        self.chain.start(node.clock())
        settings = PeerOptions(
            advertise=node.address,
            agent=node.name,
            peers=node.known_peers,
            dial_pause_ms=DIAL_PAUSE_MS,
            redial_ms_max=REDIAL_MS_MAX,
            tick_ms_max=CHAIN_TICK_MS,
        )
        bans = tuple(node.bans.values())
        self.peers = PeerNetwork(self.chain, settings, rng=node.rng, now_ms=node.clock(), bans=bans)

    def checkpoint(self, transactions_min: int) -> None:
        """Writes what is final to the index, where there is enough of it."""
        frozen = self.store.freeze(transactions_min=transactions_min, bytes_min=NEVER_BYTES)
        if frozen is not None:
            self.store.write_frozen(frozen)
            self.store.renew()


class Node:
    """One machine, on or off; everything that happens to it goes through :meth:`_guard`."""

    def __init__(self, run: "Run", number: int, key: SigningKey, clock: NodeClock) -> None:
        self.run = run
        self.number = number
        self.key = key
        self.clock = clock
        self.name = f"n{number}"
        self.address = f"{self.name}:{PORT}"
        self.organisation = f"org-{number}"
        self.rng: random.Random = run.source(f"node-{number}")
        self.disk = MemoryFiles(run.source(f"disk-{number}"))
        self.index = MemoryIndex()
        self.known_peers: tuple[str, ...] = ()
        self.bans: dict[str, Ban] = {}
        self.hash_share = 0.0
        self.honest = True
        self.release = 2  # the newest rule set that it knows
        self.absent = False  # does not start again by itself
        self.flipped = False  # its disk was damaged: it may have lost what it said it keeps
        self.open_process: Process | None = None
        self.restarts = 0
        self.blocks_found = 0
        self.halts: list[str] = []
        self._links: set[int] = set()
        self._tick_at: int | None = None
        self._arming = False
        self._searching_on: bytes | None = None
        self._search = 0
        self._told_work = 0

    # State.

    @property
    def running(self) -> bool:
        return self.open_process is not None

    @property
    def listening(self) -> bool:
        return self.running

    @property
    def process(self) -> Process:
        if self.open_process is None:
            raise RuntimeError(f"{self.name} is off")
        return self.open_process

    @property
    def chain(self) -> ForkChain:
        return self.process.chain

    @property
    def peers(self) -> PeerNetwork:
        return self.process.peers

    def held_bytes(self) -> list[tuple[str, int, int]]:
        """What the links hold, and what they may: (what, bytes, limit)."""
        found = []
        for info in self.peers.peers():
            found.append((f"bytes not sent to {info.organisation}", info.unsent_bytes, PEER_UNSENT_BYTES_MAX))
        for link in self.peers.links():
            found.append((f"a frame of {link.organisation}", link.held_bytes, PEER_FRAME_BYTES_MAX))
        return found

    # Life and death.

    def start(self) -> None:
        """Opens the ledger; what keeps it from opening is tried again later."""
        if self.running:
            return
        try:
            self.open_process = Process(self, self.run)
        except SimulatedCrash:
            self._end("dies while it opens", power=True)
            return
        except CorruptionError as error:
            self.run.trace(f"{self.name} is damaged: {error.path}")
            self.run.damaged(self)
            self._later()
            return
        except LedgerError as error:
            self.halts.append(error.code.slug)
            self.run.trace(f"{self.name} does not open: {error.code.slug}")
            self.disk.process_ended()
            self._later()
            return
        self.restarts += 1
        self._tick_at = self._searching_on = None
        self._arming = False
        self.run.trace(f"{self.name} starts: {self._place()}")
        self.run.tell(lambda checker: checker.on_start(self))
        self._guard(lambda: None)

    def kill(self) -> None:
        """``kill -9``: what was written stays, synced or not."""
        if self.running:
            self._end("killed")

    def upgrade(self) -> None:
        """The node is stopped, and comes back as the newer release."""
        self.run.trace(f"{self.name} is upgraded")
        self.release = 2
        self.kill()

    def power_cut(self) -> None:
        """What was not synced is in part lost, whether the process runs or not."""
        if self.running:
            self._end("loses power", power=True)
        else:
            self._lose_cache()

    def _end(self, why: str, *, power: bool = False) -> None:
        self.run.trace(f"{self.name} {why}")
        self.open_process = None
        self._links.clear()
        self._search += 1
        if power:
            self._lose_cache()
        self.disk.process_ended()
        self.run.network.machine_gone(self)
        self._later()

    def _lose_cache(self) -> None:
        self.disk.power_cut()
        self.index.power_cut(self.rng)

    def _later(self) -> None:
        if not self.absent:
            self.run.schedule.after(self.run.down_ms(self), self.start)

    def _guard(self, act: Callable[[], None]) -> None:
        """Runs something in the process, then carries out what it asks for."""
        if not self.running:
            return
        try:
            act()
            self._pump()
        except SimulatedCrash:
            self._end("dies in a write", power=True)
        except LedgerError as error:
            self.halts.append(error.code.slug)
            self._end(f"halts: {error.code.slug}")

    # The loop.

    def _pump(self) -> None:
        process = self.process
        while True:
            events = process.chain.take_events()
            if events:
                for event in events:
                    self._observe(event)
                process.peers.chain_events(events, self.clock())
            actions = process.peers.take_actions()
            for action in actions:
                self._carry_out(action)
            if not events and not actions:
                break
        self._arm_tick()
        self._mine()

    def _observe(self, event: ChainEvent) -> None:
        run = self.run
        match event:
            case BlockConnected():
                run.trace(f"{self.name} connects {event.height} {_short(event.block.block_id)}")
                if self.honest:
                    run.tell(lambda checker: checker.on_work(self))
                run.reached(event.height)
                if self.chain.release_needed is not None and self.name not in run.left_behind:
                    run.left_behind.add(self.name)
                    run.trace(f"{self.name} is left behind at {event.height}")
            case Reorganised():
                run.reorganised(self, event.depth)
            case BlocksFinal():
                for layer in event.layers:
                    run.final(self, layer.height, layer.entry.block_id, list(layer.txids))
                self.process.checkpoint(run.options.checkpoint_transactions)
            case FinalityConflict():
                run.trace(f"{self.name} sees a conflict below final at {event.height}")
                run.finality_conflicts += 1
            case WrongHints():
                run.trace(f"{self.name} got wrong hints with {_short(event.block_id)}")

    def _carry_out(self, action: NetworkAction) -> None:
        network = self.run.network
        match action:
            case Send():
                gone = network.send(self, action.link, action.data)
                if gone:
                    self.peers.sent(action.link, gone, self.clock())
            case Close():
                self.run.trace(f"{self.name} closes {action.link}: {action.code.name} {action.why}")
                self._links.discard(action.link)
                network.close(self, action.link)
            case Dial():
                network.dial(self, action.address)
            case Banned():
                self.run.trace(f"{self.name} bans {action.subject.name}: {action.why}")
                self.bans = {ban.subject.name: ban for ban in self.peers.bans(self.clock())}
                if self.honest:
                    self.run.banned(self, action.subject.name)

    def _arm_tick(self) -> None:
        """Wakes the process when its peers or its chain are due; asked a moment later, for many events at once."""
        if not self._arming:
            self._arming = True
            self.run.schedule.after(ARM_MS, partial(self._arm, self.restarts))

    def _arm(self, incarnation: int) -> None:
        if incarnation != self.restarts or not self.running:
            return
        self._arming = False
        now_ms = self.run.schedule.now_ms
        due = min(self.clock.true_delay(self.peers.next_tick_ms), CHAIN_TICK_MS) + now_ms
        if self._tick_at is None or not now_ms < self._tick_at <= due:
            self._tick_at = due
            self.run.schedule.at(due, partial(self._tick, incarnation, due))

    def _tick(self, incarnation: int, due: int) -> None:
        if incarnation != self.restarts or due != self._tick_at:
            return
        self._tick_at = None
        self._guard(self._tick_all)

    def _tick_all(self) -> None:
        now_ms = self.clock()
        self.chain.tick(now_ms)
        self.peers.tick(now_ms)

    # The network.

    def link_opened(self, link: int, address: str, organisation: str, *, inbound: bool) -> None:
        if not self.running:
            return
        self._links.add(link)
        seen_as = f"{address.partition(':')[0]}:{20_000 + link % 40_000}" if inbound else address
        self._guard(
            lambda: self.peers.connected(
                link, seen_as, inbound=inbound, organisation=organisation, now_ms=self.clock()
            )
        )

    def link_failed(self, address: str) -> None:
        self._guard(lambda: self.peers.dial_failed(address, self.clock()))

    def link_received(self, link: int, data: bytes) -> None:
        if link in self._links:
            self._guard(lambda: self.peers.received(link, data, self.clock()))

    def link_sent(self, link: int, size: int) -> None:
        if link in self._links:
            self._guard(lambda: self.peers.sent(link, size, self.clock()))

    def link_closed(self, link: int) -> None:
        if link in self._links:
            self._links.discard(link)
            self._guard(lambda: self.peers.closed(link, self.clock()))

    # Users.

    def submit(self, encoded: bytes) -> Code | None:
        """A user's transaction; None where the node cannot take it now."""
        codes: list[Code] = []
        self._guard(lambda: codes.extend(self.chain.submit([encoded], self.clock())))
        return codes[0] if codes else None

    # The miner.

    def _mine(self) -> None:
        """Draws when this node finds a block on its tip: by its share of the power, and the target."""
        tip = self.chain.tip
        if tip.block_id == self._searching_on or not self.hash_share:
            return
        self._searching_on = tip.block_id
        self._draw_search()

    def _draw_search(self) -> None:
        self._search += 1
        hashes = block_work(self.process.engine.next_bits(self.chain.tip))
        rate = self.run.hashes_per_ms * self.hash_share
        delay_ms = int(self.rng.expovariate(rate / hashes)) + 1
        template = None
        if self.run.options.stale_templates and self.rng.random() < 0.5:
            template = self.chain.template(self.template_ms())
        self.run.schedule.after(delay_ms, partial(self._found, self._search, template, self.restarts))

    def template_ms(self) -> int:
        """The clock reading that goes into a block."""
        return self.clock()

    def power_changed(self) -> None:
        """The search goes on at another rate; an exponential draw may be made anew."""
        if self.running and self.hash_share:
            self._guard(self._draw_search)

    def _found(self, search: int, template: Template | None, incarnation: int) -> None:
        # A miner's thread may be done with a template when the tip has just moved on.
        stale = template is not None and incarnation == self.restarts and self.rng.random() < STALE_SHARE
        if search == self._search or stale:
            self._guard(lambda: self._complete(template))

    def _complete(self, template: Template | None) -> None:
        chosen = template or self.chain.template(self.template_ms())
        extra_nonce = self.rng.getrandbits(32)
        if chosen is None:
            return
        header = chosen.make_header(extra_nonce)
        nonce = search_nonce(header, chosen.target, 0, NONCES) or 0
        header80 = header[:-4] + nonce.to_bytes(4, "little")
        block = self.chain.complete(chosen, header80, extra_nonce)
        self.blocks_found += 1
        self.run.trace(f"{self.name} finds {block.height} {_short(block.block_id)} of {block.count}")
        stale = chosen.parent_id != self.chain.tip.block_id
        try:
            self.publish(block)
        except InputError as error:
            # The real miner's thread shrugs, too: the chain has gone on, and beyond what is final at times.
            if not stale:
                raise
            self.run.trace(f"{self.name} is late with {_short(block.block_id)}: {error.code.slug}")
        if self.chain.tip.block_id == self._searching_on and chosen.parent_id == self._searching_on:
            self._draw_search()  # it did not become the tip: go on

    def publish(self, block: Block) -> None:
        """What an honest miner does with a block."""
        self.chain.add_block(block, self.clock())

    def _place(self) -> str:
        chain = self.chain
        return f"tip {chain.tip.height} {_short(chain.tip.block_id)}, final {chain.final.height}"


def _short(block_id: bytes) -> str:
    return block_id[:4].hex()

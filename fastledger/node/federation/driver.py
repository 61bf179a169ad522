"""The driver of a federation: peers' bytes to the chain's thread, actions back, the miner, operators' requests.

::

    event loop        Transport ── bytes ──►│ inbox of the chain's thread │──► PeerNetwork ◄──► ForkChain
                          ▲                                                        │               │
                          └──────────── actions (call_soon_threadsafe) ────────────┘               ▼
    miner's thread    templates ◄─────────────────────────────────────────────────────────── chain events

The network and the chain are touched on the chain's thread only. What peers sent and nobody worked on yet is
bounded: beyond ``inbox_bytes_max`` no link is read (SPEC-FED-9).
"""

import asyncio
import random
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, TypeAlias, TypeVar

from msgspec import structs

from fastledger.chain.execution.in_force import RulesInForce
from fastledger.chain.forks.chain import ForkChain
from fastledger.chain.forks.events import (
    BlockConnected,
    BlockDisconnected,
    BlocksFinal,
    BlockStored,
    FinalityConflict,
    Reorganised,
    TransactionsAccepted,
    WrongHints,
)
from fastledger.chain.forks.pipeline import ForkPipeline
from fastledger.chain.forks.templates import Template
from fastledger.clock import system_clock_ms
from fastledger.errors import CertificateError, Code, FastLedgerError, InputError, LedgerBusyError
from fastledger.node.federation.figures import Figures
from fastledger.node.federation.metrics import FederationMetrics
from fastledger.node.federation.miner import Miner
from fastledger.node.federation.options import FederationOptions
from fastledger.node.federation.state import PeerState
from fastledger.node.federation.tls import PeerTls
from fastledger.node.federation.transport import Transport
from fastledger.node.logs import Log
from fastledger.peers.addresses import is_address
from fastledger.peers.network import PeerNetwork
from fastledger.peers.port import BlobPort, BlobSink, SnapshotPort
from fastledger.peers.scores import Ban, Party
from fastledger.peers.settings import (
    Banned,
    Close,
    CloseCode,
    Dial,
    NetworkAction,
    PeerInfo,
    Send,
)
from fastledger.peers.wire import MESSAGES
from fastledger.subjects.chain import RuleSetStep

T = TypeVar("T")
_KINDS = {tag: kind.__name__ for tag, kind in MESSAGES.items()}
_TOLD = (
    CloseCode.OFFENCE,
    CloseCode.TIMEOUT,
    CloseCode.NOT_READING,
    CloseCode.WRONG_CHAIN,
    CloseCode.WRONG_VERSION,
)
_TAG_AT = 6  # behind length, version and the array's head
# What is to be done on the chain's thread, given the time, and how many bytes of peers it stands for.
_Work: TypeAlias = tuple[Callable[[int], object], int]
# After so many bytes the chain's thread sees to its other jobs.
TURN_BYTES = 2 * 1024 * 1024
TICK_S = 0.05
FIGURES_S = 0.25
DRAIN_S = 0.005
# Mining stands still during a sync only while blocks come: headers alone must not stop it.
PROGRESS_S = 10.0
RENEW_MS_MIN, RENEW_MS_MAX = 100, 2_000


class Federation:
    """One node's part in its chain; made with :meth:`start` on the event loop that serves."""

    def __init__(
        self,
        chain: ForkPipeline,
        options: FederationOptions,
        directory: Path,
        *,
        spacing_ms: int,
        log: Log,
        metrics: FederationMetrics,
        blobs: BlobPort | None = None,
        snapshots: SnapshotPort | None = None,
        on_final: Callable[[int], None] = lambda _height: None,
        clock_ms: Callable[[], int] = system_clock_ms,
    ) -> None:
        """Use :meth:`start`."""
        self._chain = chain
        self._options = options
        self._log = log
        self._metrics = metrics
        self._blobs = blobs
        self._snapshots = snapshots
        self._on_final = on_final
        self._clock_ms = clock_ms
        self._loop = asyncio.get_running_loop()
        self._state = PeerState(directory)
        self._tls: PeerTls | None = None
        self._transport: Transport | None = None
        # Of the chain's thread.
        self._fork_chain: ForkChain
        self._network: PeerNetwork
        self._tasks: list[asyncio.Task[None]] = []
        self._inbox_bytes = 0
        self._mail: deque[_Work] = deque()
        self._mail_lock = threading.Lock()
        self._mail_posted = False
        self._ticking = False
        self._drain: asyncio.TimerHandle | None = None
        self._stopped = False
        self._figures_at = 0.0
        self._progress = (-1, 0.0)
        self._traffic: Counter[str] = Counter()
        self._warned: tuple[RuleSetStep, bool] | None = None
        self.figures = Figures()
        self.reorganisations = 0
        self.stale_blocks = 0
        self.port = 0
        self.miner = Miner(
            template=self._template,
            found=self._found,
            threads=options.mine_threads,
            percent=options.mine_percent,
            renew_ms=min(max(spacing_ms // 4, RENEW_MS_MIN), RENEW_MS_MAX),
            failed=lambda error: log.error("miner.failed", error=error),
        )

    @classmethod
    async def start(cls, *args: Any, **settings: Any) -> "Federation":
        """Listens, calls the configured peers, and mines where the configuration says so.

        Raises ``CertificateError``, and ``OSError`` where it cannot listen.
        """
        made = cls(*args, **settings)
        try:
            await made._start()
        except BaseException:
            await made.stop()
            raise
        return made

    async def _start(self) -> None:
        options = self._options
        if options.tls.certificate:
            self._tls = PeerTls(options.tls, on_reload=self._tls_reloaded)
            allowed = frozenset(options.organisations)
            self._transport = Transport(
                self._tls,
                self,
                options.limits,
                may_join=lambda organisation: not allowed or organisation in allowed,
            )
        await asyncio.wrap_future(self._chain.call(self._make_network))
        if self._transport is not None and options.listen:
            self.port = await self._transport.listen(options.listen)
        self._chain.subscribe(self._on_chain_events)
        self._begin(self._tick_forever())
        if self._tls is not None:
            self._begin(self._tls.watch())
        self.miner.switch(on=options.mine)

    def _begin(self, work: Any) -> None:
        self._tasks.append(self._loop.create_task(work))

    def _make_network(self, chain: ForkChain) -> None:
        configured = self._options.peers
        options = structs.replace(
            self._options, peers=tuple(dict.fromkeys((*configured, *self._state.peers)))
        )
        self._fork_chain = chain
        self._network = PeerNetwork(
            chain,
            options,
            rng=random.SystemRandom(),
            now_ms=self._clock_ms(),
            bans=self._state.bans,
            blobs=self._blobs,
            snapshots=self._snapshots,
        )

    async def stop(self) -> None:
        """Ends mining, links and ticks; the chain goes on. May be called twice."""
        if self._stopped:
            return
        self._stopped = True
        await asyncio.to_thread(self.miner.close)
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        if self._drain is not None:
            self._drain.cancel()
        if self._transport is not None:
            await self._transport.stop()

    # On the loop: what happens to links goes to the chain's thread.

    def connected(self, link: int, address: str, *, inbound: bool, organisation: str) -> None:
        """Passes a new link on to the network (a method of :class:`LinkEvents`)."""
        self._post(
            lambda now_ms: self._network.connected(
                link, address, inbound=inbound, organisation=organisation, now_ms=now_ms
            )
        )

    def received(self, link: int, data: bytes) -> None:
        """Passes a peer's bytes on to the network; where too many wait, no link is read."""
        self._inbox_bytes += len(data)
        if self._inbox_bytes > self._options.limits.inbox_bytes_max and self._transport is not None:
            self._transport.pause_reading()
        self._post(lambda now_ms: self._network.received(link, data, now_ms), len(data))

    def closed(self, link: int) -> None:
        """Passes the end of a link on to the network."""
        self._post(lambda now_ms: self._network.closed(link, now_ms))

    def dial_failed(self, address: str) -> None:
        """Tells the network that a call reached nobody."""
        self._post(lambda now_ms: self._network.dial_failed(address, now_ms))

    def _post(self, work: Callable[[int], object], byte_count: int = 0) -> None:
        """Has ``work`` done on the chain's thread, in order; many pieces travel as one job."""
        if self._stopped:
            return
        with self._mail_lock:
            self._mail.append((work, byte_count))
            if self._mail_posted:
                return
            self._mail_posted = True
        self._send_mail()

    def _send_mail(self) -> None:
        try:
            self._chain.post(self._work_mail)
        except LedgerBusyError as error:
            pause_s = error.retry_after_ms / 1000
            self._to_loop(lambda: self._loop.call_later(pause_s, self._send_mail))
        except FastLedgerError:
            # Halted or closing: its own alarm has rung, and nothing more can come of peers.
            self._to_loop(self._stopped_hearing)

    def _work_mail(self, _chain: ForkChain) -> None:
        """Does some of the work that waits, on the chain's thread; answers and syncs come in between."""
        done = 0
        try:
            for work, byte_count in self._take_mail():
                done += byte_count
                work(self._clock_ms())
        finally:
            self._hand_back(done)
        with self._mail_lock:
            self._mail_posted = bool(self._mail)
        if self._mail_posted:
            self._send_mail()

    def _take_mail(self) -> "list[_Work]":
        with self._mail_lock:
            taken: list[_Work] = []
            byte_count = 0
            while self._mail and byte_count < TURN_BYTES:
                taken.append(self._mail.popleft())
                byte_count += taken[-1][1]
            return taken

    def _stopped_hearing(self) -> None:
        if self._transport is not None:
            self._transport.pause_reading()

    def _hand_back(self, byte_count: int = 0) -> None:
        """Gives the network's actions to the loop; on the chain's thread."""
        actions = self._network.take_actions()
        if actions or byte_count:
            self._to_loop(partial(self._perform, actions, byte_count))

    def _to_loop(self, work: Callable[[], object]) -> None:
        if not self._loop.is_closed():
            self._loop.call_soon_threadsafe(work)

    def _perform(self, actions: Sequence[NetworkAction], byte_count: int) -> None:
        """Carries out the network's actions on the loop; the frames of one link go in one write."""
        transport = self._transport
        self._inbox_bytes -= byte_count
        if transport is None:
            return
        if self._inbox_bytes < self._options.limits.inbox_bytes_max // 2:
            transport.resume_reading()
        frames: dict[int, list[bytes]] = {}
        for action in actions:
            if isinstance(action, Send):
                self._traffic[_kind_of(action.data)] += len(action.data)
                frames.setdefault(action.link, []).append(action.data)
            elif isinstance(action, Close):
                transport.send(action.link, b"".join(frames.pop(action.link, ())))
                transport.close(action.link)
                # Whoever is shut out and calls on and on shall not fill the log.
                log = self._log.info if action.code in _TOLD else self._log.debug
                log("federation.closed", link=action.link, state=action.code.name.lower())
            elif isinstance(action, Dial):
                transport.dial(action.address)
            else:
                self._banned(action)
        for link, parts in frames.items():
            transport.send(link, parts[0] if len(parts) == 1 else b"".join(parts))
        if frames and self._drain is None:
            self._drain = self._loop.call_later(DRAIN_S, self._tell_gone)

    def _tell_gone(self) -> None:
        """Tells the network which bytes have been sent, which makes room for more."""
        self._drain = None
        if self._transport is None or self._stopped:
            return
        gone = self._transport.gone()
        if gone:

            def work(now_ms: int) -> None:
                for link, byte_count in gone:
                    self._network.sent(link, byte_count, now_ms)

            self._post(work)
        if self._transport.has_unsent:
            self._drain = self._loop.call_later(DRAIN_S, self._tell_gone)

    def _banned(self, ban: Banned) -> None:
        self._metrics.banned.inc()
        kind = ban.subject.kind.name.lower()
        self._log.warning("federation.banned", kind=kind, organisation=ban.subject.name, state=ban.why)
        self._remember_bans()

    def _remember_bans(self) -> None:
        def save(now_ms: int) -> None:
            bans = self._network.bans(now_ms)
            self._to_loop(lambda: self._begin_save(bans))

        self._post(save)

    def _begin_save(self, bans: list[Ban]) -> None:
        async def save() -> None:
            try:
                await asyncio.to_thread(self._state.set_bans, bans)
            except OSError as error:
                self._log.error("federation.state-not-saved", error=error)

        self._tasks = [task for task in self._tasks if not task.done()]
        self._begin(save())

    # Ticks.

    async def _tick_forever(self) -> None:
        while True:
            await asyncio.sleep(TICK_S)
            self.miner.tick()
            if self._ticking:
                continue  # the chain's thread is busy: one tick waits there, more would help nobody
            self._ticking = True
            self._post(self._tick)

    def _tick(self, now_ms: int) -> None:
        """Ticks the network where that is due; on the chain's thread."""
        self._ticking = False
        if now_ms >= self._network.next_tick_ms:
            self._network.tick(now_ms)
        if time.monotonic() - self._figures_at >= FIGURES_S:
            self._read_figures()

    def _read_figures(self) -> None:
        self._figures_at = time.monotonic()
        chain = self._fork_chain
        tip = chain.tip
        self.figures = Figures(
            tip_height=tip.height,
            tip_id=tip.block_id,
            tip_time_ms=tip.time_ms,
            final_height=chain.final.height,
            work=chain.work,
            mempool=len(chain.mempool),
            rule_set=chain.in_force.next.step.rule_set,
            rule_set_known=chain.newest_rule_set,
            scheduled=chain.in_force.scheduled,
            sync=self._network.sync_status(),
            peers=self._network.peers(),
            bans=self._network.bans(self._clock_ms()),
        )
        if tip.height > self._progress[0]:
            self._progress = (tip.height, self._figures_at)
        self._warn_of_rules(chain.in_force)

    def _warn_of_rules(self, in_force: RulesInForce) -> None:
        """Logs once what an operator has to install before a rule set begins, and that it was not done in time."""
        stopped = in_force.release_needed is not None
        step = in_force.next.step if stopped else in_force.scheduled
        if step is None or (step, stopped) == self._warned or step.rule_set <= self.figures.rule_set_known:
            return
        self._warned = step, stopped
        log = self._log.error if stopped else self._log.warning
        log("federation.release-needed", rule_set=step.rule_set, height=step.height, version=step.release or "newer")

    # What the chain tells, on its thread.

    def _on_chain_events(self, events: Sequence[Any]) -> None:
        self._network.chain_events(events, self._clock_ms())
        moved = False
        connected = {event.block.block_id for event in events if isinstance(event, BlockConnected)}
        for event in events:
            if isinstance(event, BlockConnected):
                moved = True
                self._log.debug("federation.tip", height=event.height, block_id=event.block.block_id)
            elif isinstance(event, TransactionsAccepted):
                self.miner.transactions_arrived()
            elif isinstance(event, BlockStored):
                self._metrics.forks.inc(event.block_id not in connected)
            else:
                self._note(event)
        if moved:
            self.miner.tip_moved()
        self._hand_back()

    def _note(self, event: object) -> None:
        """Counts and logs events that do not happen every day."""
        if isinstance(event, BlockDisconnected):
            self._metrics.stale.inc()
            self.stale_blocks += 1
        elif isinstance(event, BlocksFinal):
            self._on_final(self._fork_chain.final.height)
        elif isinstance(event, WrongHints):
            self._metrics.wrong_hints.inc()
        elif isinstance(event, Reorganised):
            self._metrics.reorganisations.inc()
            self.reorganisations += 1
            self._metrics.depth.observe(event.depth)
            self._log.warning(
                "federation.reorganised",
                depth=event.depth,
                height=event.new_tip.height,
                block_id=event.new_tip.block_id,
            )
        elif isinstance(event, FinalityConflict):
            self._metrics.conflicts.inc()
            self._log.error("federation.finality-conflict", height=event.height, block_id=event.block_id)

    # The miner's thread.

    def _template(self) -> Template | None:
        figures = self.figures
        moving = time.monotonic() - self._progress[1] < PROGRESS_S
        if figures.lag > self._options.ready_lag_blocks and moving:
            return None
        return self._chain.call(lambda chain: chain.template(self._clock_ms())).result()

    def _found(self, template: Any, header: bytes, extra_nonce: int) -> None:
        def take(chain: ForkChain) -> None:
            block = chain.complete(template, header, extra_nonce)
            chain.add_block(block, self._clock_ms())

        try:
            self._chain.call(take).result()
        except InputError as error:
            # Its parent is below what is final by now, or the tree is full: work that came too late.
            self._log.warning("federation.block-refused", slug=error.code.slug)

    # What others ask, on the loop.

    @property
    def organisation(self) -> str:
        """The organisation in this node's certificate; "" without one."""
        return self._tls.organisation if self._tls is not None else ""

    @property
    def mine_threads(self) -> int:
        """How many threads search while mining is on."""
        return self._options.mine_threads

    @property
    def mine_percent(self) -> int:
        """The share of each thread's time that the search takes."""
        return self._options.mine_percent

    @property
    def is_syncing(self) -> bool:
        """Whether this node is far behind what its peers have proven."""
        return self.figures.lag > self._options.ready_lag_blocks

    def update_metrics(self) -> None:
        """Sets the metrics that are read at a scrape."""
        miner = self.miner
        self._metrics.set_figures(self.figures, miner.hashes_per_second, miner.blocks_found)
        if self._transport is not None:
            counted = self._transport.figures
            self._metrics.set_links(dict(counted.refused), counted.bytes_in, dict(self._traffic))

    async def ask(self, question: Callable[[PeerNetwork, int], T]) -> T:
        """Returns what ``question`` does on the chain's thread, given the network.

        Raises its ``FastLedgerError``.
        """

        def job(_chain: ForkChain) -> "T | FastLedgerError":
            try:
                return question(self._network, self._clock_ms())
            except FastLedgerError as error:
                return error  # let out there, one that is no input's fault would halt the ledger
            finally:
                self._hand_back()

        answer = await asyncio.wrap_future(self._chain.call(job))
        if isinstance(answer, FastLedgerError):
            raise answer
        return answer

    async def fetch_blob(self, digest: bytes, access_txid: bytes, sink: BlobSink) -> None:
        """Begins to fetch an envelope; ``sink`` is called on the chain's thread. Raises ``LedgerBusyError``."""
        await self.ask(lambda network, now_ms: network.fetch_blob(digest, access_txid, sink, now_ms))

    async def peers(self) -> list[PeerInfo]:
        """Returns what is known of every link."""
        return await self.ask(lambda network, _now_ms: network.peers())

    async def bans(self) -> list[Ban]:
        """Returns the bans that hold."""
        return await self.ask(lambda network, now_ms: network.bans(now_ms))

    async def add_peer(self, address: str) -> None:
        """Calls ``address`` from now on, also after a restart; raises ``InputError`` where it is none."""
        if self._transport is None:
            raise InputError("this node has no certificate for peers: federation.tls", code=Code.BAD_QUERY)
        if not is_address(address):
            raise InputError("an address is host:port", code=Code.BAD_QUERY)
        await asyncio.to_thread(self._state.add_peer, address)
        await self.ask(lambda network, _now_ms: network.add_peer(address))

    async def ban(self, subject: Party, duration_ms: int) -> None:
        """Shuts an organisation or a host out for a time, also after a restart."""
        await self.ask(lambda network, now_ms: network.ban(subject, duration_ms, now_ms))

    async def unban(self, subject: Party) -> bool:
        """Lets an organisation or a host in again; False where it was not shut out."""
        found = await self.ask(lambda network, _now_ms: network.unban(subject))
        self._remember_bans()
        return found

    # Certificates.

    def reload(self) -> bool:
        """Reads the certificates again; returns whether they are good. Called off the loop."""
        return self._tls is not None and self._tls.reload()

    def _tls_reloaded(self, error: CertificateError | None) -> None:
        self._metrics.tls_reloads.labels("ok" if error is None else "failed").inc()
        if error is not None:
            self._log.error("federation.tls-reload-failed", error=error)
            return
        self._log.info("federation.tls-reloaded")
        if self._transport is not None:
            self._to_loop(self._transport.drop_revoked)


def _kind_of(frame: bytes) -> str:
    """Returns the name of the message in a frame that is about to be sent, for metrics."""
    return _KINDS.get(frame[_TAG_AT], "other")

"""One run: a seed's world from the first event to the last check."""

import hashlib
import random
import traceback
from collections import deque
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from functools import partial

from beacon import declared, release

from fastledger.crypto.work import target_to_bits
from fastledger.errors import Code
from fastledger.model.genesis import Genesis, WorkParameters
from fastledger.state.registry import Registry
from simulator.checkers import CHECKERS, Checker, Violation
from simulator.clock import START_MS, NodeClock, Schedule
from simulator.faults import Storm
from simulator.hostile import Liar, make_liars
from simulator.network import Conditions, Endpoint, Network
from simulator.node import Node
from simulator.options import MINUTE_MS, SECOND_MS, Options
from simulator.replay import Replay
from simulator.rogues import make_rogue
from simulator.workload import REGULATOR, Script, Wish, seeded_bytes, seeded_key

TRACE_LINES = 60
LIMIT_BITS = 0x207FFFFF
SAMPLE_MS = MINUTE_MS
RETRY_MS = (3 * MINUTE_MS, 10 * MINUTE_MS)
ROGUE_SHARE = 0.15
# What a node may answer to a good transaction: all of these are sent again.
PATIENT_CODES = frozenset((Code.OK, Code.DUPLICATE, Code.EXPIRED, Code.POOL_FULL, Code.RELEASE_NEEDED))


@dataclass
class Report:
    """What a run came to."""

    seed: int
    digest: str
    virtual_ms: int
    events: int
    heights: list[int]
    reorganisations: int
    deepest: int
    bytes_sent: int
    transactions: int
    struck: dict[str, int]
    bans: int
    finality_conflicts: int
    activated: int = 0  # whether the run's rule set came into force
    left_behind: int = 0  # how many nodes stood before it without knowing it
    failure: str = ""
    checker: str = ""
    options: list[str] = field(default_factory=list)
    trace: list[str] = field(default_factory=list)

    def text(self) -> str:
        """Everything that is needed to run it again and to begin to understand it."""
        lines = [f"seed {self.seed} failed: {self.failure}", *self.options, "last events:", *self.trace]
        return "\n".join(lines)


class Run:
    """A world of nodes. Everything random in it comes from sources that follow from the seed."""

    def __init__(self, options: Options, *, follow: Callable[[str], None] | None = None) -> None:
        self.options = options
        self.schedule = Schedule()
        self.network = Network(
            self.schedule,
            self.source("network"),
            Conditions(
                (1, options.delay_ms_max), options.piece_bytes_max, options.slow_share, options.slow_ms_max
            ),
        )
        self.calm = False
        self.settled = False
        self.reorganisations = self.deepest = self.finality_conflicts = self.bans = 0
        self._follow = follow
        self._digest = hashlib.sha256()
        self._lines: deque[str] = deque(maxlen=TRACE_LINES)
        count = options.nodes + bool(options.rogue)
        keys = [seeded_key("node", number) for number in range(count)]
        liar_keys = [seeded_key("liar", kind) for kind in options.hostile]
        self.hashes_per_ms = self.hashes_per_ms_mean = options.work_hashes / options.spacing_ms
        self.genesis = make_genesis(options, [key.public_key for key in (*keys, *liar_keys)])
        self.nodes: list[Node] = []
        self.rogues: list[Node] = []
        for number, key in enumerate(keys):
            clock = self._clock(number)
            if number < options.nodes:
                self.nodes.append(Node(self, number, key, clock))
            else:
                self.rogues.append(make_rogue(self, number, key, clock))
        self.honest = list(self.nodes)
        self.releases: dict[int, Registry] = {}
        self.left_behind: set[str] = set()
        older = self.source("releases")
        for node in older.sample(self.nodes, options.older):
            node.release = 1
            self.schedule.at(int(older.triangular(0.3, 1.0, 1.0) * options.faults_ms), node.upgrade)
        self.liars: list[Liar] = make_liars(self, liar_keys)
        self._share_power()
        self._introduce()
        self.checkers: list[Checker] = [checker(self) for checker in CHECKERS]
        self.wishes: list[Wish] = Script(options, self.source("users")).draw()
        self.final_heights: dict[bytes, int] = {}
        self.replay = Replay(self.genesis)
        self.storm = Storm(self)
        self._users = self.source("choice of nodes")
        self._supervisor = self.source("supervisor")

    def source(self, purpose: str) -> random.Random:
        """Chance for one purpose; what one part draws moves no other part."""
        return random.Random(f"{self.options.seed}/{purpose}")

    def _clock(self, number: int) -> NodeClock:
        rng, options = self.source(f"clock-{number}"), self.options
        return NodeClock(
            self.schedule,
            skew_ms=rng.randint(-options.skew_ms_max, options.skew_ms_max),
            drift_ppm=rng.randint(-options.drift_ppm_max, options.drift_ppm_max),
        )

    def _share_power(self) -> None:
        rng = self.source("power")
        parts = [rng.uniform(0.5, 2.0) for _ in self.nodes]
        left = 1.0 - ROGUE_SHARE * len(self.rogues)
        for node, part in zip(self.nodes, parts, strict=True):
            node.hash_share = left * part / sum(parts)
        for rogue in self.rogues:
            rogue.hash_share = ROGUE_SHARE

    def _introduce(self) -> None:
        """Each node is told of the next in a ring and of some others; they learn of the rest from one another."""
        rng = self.source("introductions")
        everyone = [*self.nodes, *self.rogues]
        strangers = [liar.address for liar in self.liars if liar.listening]
        for place, node in enumerate(everyone):
            others = [other.address for other in everyone if other is not node]
            known = {everyone[(place + 1) % len(everyone)].address, *rng.sample(others, 1)}
            node.known_peers = tuple(sorted(known | set(strangers)))
        endpoints: list[Endpoint] = [*everyone, *self.liars]
        for endpoint in endpoints:
            self.network.attach(endpoint)

    # Telling.

    def trace(self, line: str) -> None:
        """One event, into the digest and the last lines."""
        stamped = f"{self.schedule.now_ms:>9} {line}"
        self._digest.update(stamped.encode())
        self._lines.append(stamped)
        if self._follow is not None:
            self._follow(stamped)

    def tell(self, what: Callable[[Checker], None]) -> None:
        """Lets every checker hear of something."""
        for checker in self.checkers:
            what(checker)

    def final(self, node: Node, height: int, block_id: bytes, txids: list[bytes]) -> None:
        """A node holds a block final."""
        self.trace(f"{node.name} final {height} {block_id[:4].hex()}")
        if node.honest:
            self.tell(lambda checker: checker.on_final(node, height, block_id))
            self.acknowledged(node, height, txids)

    def reached(self, height: int) -> None:
        """A node has a block of this height: those who waited for it send what they have."""
        for wish in self.wishes:
            if 0 < wish.behind <= height:
                wish.behind = 0
                self.schedule.after(wish.at_ms, partial(self._try, wish))

    def acknowledged(self, node: Node, height: int, txids: list[bytes]) -> None:
        """A node told its users that these transactions are durable."""
        for txid in txids:
            self.final_heights.setdefault(txid, height)
        self.tell(lambda checker: checker.on_acknowledged(node, height, txids))

    def banned(self, node: Node, organisation: str) -> None:
        """A node shut an organisation out."""
        self.bans += 1
        self.tell(lambda checker: checker.on_banned(node, organisation))

    def reorganised(self, node: Node, depth: int) -> None:
        """A node went over to another branch."""
        self.trace(f"{node.name} reorganises {depth} deep")
        self.reorganisations += 1
        self.deepest = max(self.deepest, depth)

    def flipped(self, node: Node) -> None:
        """A bit of a node's disk flipped: it may lose what it held, and has to fetch it again."""
        node.flipped = True

    def damaged(self, node: Node) -> None:
        """A node found its log damaged: its operator gives it an empty disk, and it fetches everything again."""
        if not node.flipped:
            raise Violation("durability", f"{node.name} finds damage on a disk that was never damaged")
        self.flipped(node)
        node.disk.wipe()
        node.index.destroy()

    def down_ms(self, node: Node) -> int:
        """How long a supervisor leaves a node down."""
        longest = self.options.down_ms_max if not self.calm else 10 * SECOND_MS
        return self._supervisor.randint(SECOND_MS, max(longest, 2 * SECOND_MS))

    # Running.

    def execute(self) -> Report:
        """From the first event to the last check."""
        failure = checker = ""
        try:
            with declared() if self.options.activation_height else nullcontext():
                self.releases = {number: release(number) for number in (1, 2)}
                self._run()
        except Violation as violation:
            failure, checker = str(violation), violation.checker
        except Exception:  # whatever a node lets out is a bug, and the seed that shows it is worth the most
            failure, checker = traceback.format_exc(), "no-exceptions"
        return self._report(failure, checker)

    def _run(self) -> None:
        options = self.options
        late = self.source("latecomers")
        for node in (*self.nodes, *self.rogues):
            delay_ms = late.randint(0, 3 * SECOND_MS)
            if node.number >= options.nodes - options.latecomers and node.honest:
                delay_ms = late.randint(options.faults_ms * 3 // 10, options.faults_ms * 8 // 10)
            self.schedule.at(delay_ms, node.start)
        for liar in self.liars:
            liar.begin()
        for wish in self.wishes:
            if not wish.behind:
                self.schedule.at(wish.at_ms, partial(self._try, wish))
        self.storm.begin()
        self._sample()
        self.schedule.run_until(options.faults_ms)
        self.calm = True
        self.trace("the faults end")
        self.storm.end()
        self.network.conditions = replace(self.network.conditions, slow_share=0.0)
        self.hashes_per_ms = self.hashes_per_ms_mean * options.calm_power
        for node in (*self.nodes, *self.rogues):
            node.power_changed()
        self._settle()
        self.trace(f"at rest: {self.settled}")
        for checker in self.checkers:
            if self.settled or checker.name in ("agreement", "liveness"):
                checker.at_end()

    @property
    def calm_ms(self) -> int:
        """How long everything may take to come together: docs/simulator.md tells why.

        Everything sent has to be found by every node and be buried: the finality depth and some blocks more, half as
        slow again as they should come, after what restarts and redialling take.
        """
        if self.options.rest_ms:
            return self.options.rest_ms
        blocks = self.options.finality_depth + 10 + 4 * self.options.finality_depth**0.5
        blocks += self.options.activation_height  # those who are left behind find none
        return int(1.5 * blocks * self.options.spacing_ms) + 10 * MINUTE_MS

    def _settle(self) -> None:
        """Runs on until the network is at rest, or its time is over."""
        end_ms = self.schedule.now_ms + self.calm_ms
        step_ms = self.options.spacing_ms // 4
        while not self.settled and self.schedule.now_ms < end_ms:
            self.schedule.run_until(self.schedule.now_ms + step_ms)
            self.settled = self._at_rest()

    def _at_rest(self) -> bool:
        if not all(node.running for node in self.honest):
            return False
        tips = {node.chain.tip.block_id for node in self.honest}
        lowest = min(self.honest, key=lambda node: node.chain.final.height).chain.final
        for wish in self.wishes:
            if not wish.done:
                wish.done = self._is_done(wish, lowest.height, lowest.time_ms)
        through = lowest.height > self.options.activation_height or not self.options.activation_height
        return len(tips) == 1 and through and all(wish.done for wish in self.wishes)

    def _is_done(self, wish: Wish, height: int, time_ms: int) -> bool:
        transaction = wish.transaction
        if transaction is None:
            return False
        if wish.forged:
            return wish.tries > 0
        if wish.optional and transaction.txid not in self.final_heights:
            return True
        at = self.final_heights.get(transaction.txid)
        return at <= height if at is not None else transaction.expires_ms < time_ms

    def _sample(self) -> None:
        self.tell(lambda checker: checker.on_sample())
        self.schedule.after(SAMPLE_MS, self._sample)

    # Users.

    def _try(self, wish: Wish) -> None:
        """Hands a wish to some node, again and again until it is final."""
        number = self.wishes.index(wish) if wish.transaction is None else 0
        transaction = wish.sign(self.genesis.chain_id, self.schedule.now_ms, number)
        if wish.done or transaction.txid in self.final_heights or (wish.forged and wish.tries > 2):
            return
        running = [node for node in self.honest if node.running]
        if running:
            node = self._users.choice(running)
            code = node.submit(transaction.encoded)
            if code is not None:
                wish.tries += 1
                self._check_answer(node, wish, code)
                if code in (Code.OK, Code.DUPLICATE) and not self.options.retries:
                    return
        self.schedule.after(self._users.randint(*RETRY_MS), partial(self._try, wish))

    def _check_answer(self, node: Node, wish: Wish, code: Code) -> None:
        self.trace(f"{node.name} says {code.slug} to a {wish.claim[0]}")
        if wish.forged and code not in (Code.BAD_SIGNATURE, Code.EXPIRED, Code.RELEASE_NEEDED):
            raise Violation("signed", f"{node.name} took a forged transaction ({code.slug})")
        # The older release can make nothing of such a body, the newer one nothing yet.
        early = wish.optional and code in (Code.UNKNOWN_KIND, Code.BAD_BODY)
        if not wish.forged and not early and code not in PATIENT_CODES:
            raise Violation("liveness", f"{node.name} refuses a good transaction: {code.slug}")

    def _report(self, failure: str, checker: str) -> Report:
        self._digest.update(f"{self.schedule.executed} {self.network.bytes_sent}".encode())
        return Report(
            seed=self.options.seed,
            digest=self._digest.hexdigest()[:16],
            virtual_ms=self.schedule.now_ms,
            events=self.schedule.executed,
            heights=[node.chain.final.height for node in self.honest if node.running],
            reorganisations=self.reorganisations,
            deepest=self.deepest,
            bytes_sent=self.network.bytes_sent,
            transactions=len(self.replay.places),
            struck=self.storm.struck,
            bans=self.bans,
            finality_conflicts=self.finality_conflicts,
            activated=int(self.replay.rule_set_at(len(self.replay.ids)) > self.genesis.rule_set),
            left_behind=len(self.left_behind),
            failure=failure,
            checker=checker,
            options=self.options.lines(),
            trace=list(self._lines),
        )


def make_genesis(options: Options, proposers: list[bytes]) -> Genesis:
    """The chain of a run."""
    rewards = ((0, 50), (100, 25)) if options.rewards else ()
    work = WorkParameters(
        spacing_ms=options.spacing_ms,
        initial_bits=target_to_bits((1 << 256) // options.work_hashes - 1),
        limit_bits=LIMIT_BITS,
        window_blocks=options.window_blocks,
        finality_depth=options.finality_depth,
        rewards=rewards,
    )
    salt = seeded_bytes(16, "salt", options.seed)
    # Before every clock's reading, however far it is off.
    created_ms = START_MS - 10 * MINUTE_MS
    return Genesis(created_ms, tuple(proposers), (REGULATOR.authority,), "pow", salt, work).checked()


def run_seed(seed: int, *, follow: Callable[[str], None] | None = None, **changes: object) -> Report:
    """Runs a seed with its own options, or some of them changed."""
    return Run(Options.draw(seed).with_changes(**changes), follow=follow).execute()

"""What must hold in every run, whatever breaks. Each checker has a planted bug in ``test_simulator.py`` that it finds.

A checker hears what nodes report (``on_*``) and looks at all of them at the end (``at_end``). It raises
:class:`Violation`; the run adds the seed, the options and the last events of the trace.
"""

from collections import Counter
from typing import TYPE_CHECKING

import msgspec

from fastledger.errors import Code
from fastledger.limits import TREE_ENTRIES_MAX
from fastledger.model.block import Block
from fastledger.model.ids import identity_id
from fastledger.subjects.chain import RULE_SETS
from fastledger.subjects.consent import CONSENTS, Consent, ConsentGrant
from simulator.replay import Replay, ReplayError, signed

if TYPE_CHECKING:
    from simulator.node import Node
    from simulator.run import Run


class Violation(Exception):
    """What a checker found; ``checker`` is its name."""

    def __init__(self, checker: str, message: str) -> None:
        super().__init__(f"{checker}: {message}")
        self.checker = checker


class Checker:
    """Base: hears everything, minds nothing."""

    name = ""

    def __init__(self, run: "Run") -> None:
        self.run = run

    def fail(self, message: str) -> None:
        raise Violation(self.name, message)

    def on_start(self, node: "Node") -> None:
        """A node opened its ledger."""

    def on_final(self, node: "Node", height: int, block_id: bytes) -> None:
        """A node holds a block final."""

    def on_acknowledged(self, node: "Node", height: int, txids: list[bytes]) -> None:
        """A node told its users that transactions are durable at a height."""

    def on_work(self, node: "Node") -> None:
        """A node told others of a new tip."""

    def on_banned(self, node: "Node", organisation: str) -> None:
        """A node banned an organisation."""

    def on_sample(self) -> None:
        """Now and then."""

    def at_end(self) -> None:
        """The network is at rest."""


class Agreement(Checker):
    """No two honest nodes ever hold different blocks final at one height, nor one node two."""

    name = "agreement"

    def __init__(self, run: "Run") -> None:
        super().__init__(run)
        self.final: dict[int, tuple[bytes, str]] = {}

    def on_start(self, node: "Node") -> None:
        tip = node.chain.final
        self._compare(node, tip.height, tip.block_id)

    def on_final(self, node: "Node", height: int, block_id: bytes) -> None:
        self._compare(node, height, block_id)

    def _compare(self, node: "Node", height: int, block_id: bytes) -> None:
        known, first = self.final.setdefault(height, (block_id, node.name))
        if known != block_id:
            self.fail(
                f"height {height} is final as {_short(known)} at {first}, as {_short(block_id)} at {node.name}"
            )


class Durability(Checker):
    """What a node said it keeps, it has after every crash: final blocks, and the work of the tip that it told of."""

    name = "durability"

    def __init__(self, run: "Run") -> None:
        super().__init__(run)
        self.final: dict[str, int] = {}
        self.work: dict[str, int] = {}

    def on_start(self, node: "Node") -> None:
        if node.flipped:
            return
        height, work = self.final.get(node.name, -1), self.work.get(node.name, 0)
        if node.chain.final.height < height:
            self.fail(f"{node.name} held height {height} final and comes back with {node.chain.final.height}")
        if node.chain.work < work:
            self.fail(f"{node.name} told of work {work} and comes back with {node.chain.work}")

    def on_final(self, node: "Node", height: int, block_id: bytes) -> None:
        self.final[node.name] = height

    def on_work(self, node: "Node") -> None:
        self.work[node.name] = max(self.work.get(node.name, 0), node.chain.work)


class Acknowledged(Checker):
    """A transaction that one honest node called durable stands in everybody's final chain, at that place."""

    name = "acknowledged"

    def __init__(self, run: "Run") -> None:
        super().__init__(run)
        self.places: dict[bytes, int] = {}

    def on_acknowledged(self, node: "Node", height: int, txids: list[bytes]) -> None:
        for txid in txids:
            known = self.places.setdefault(txid, height)
            if known != height:
                self.fail(f"transaction {_short(txid)} is final at height {known} and at {height}")

    def at_end(self) -> None:
        found = self.run.replay.places
        for txid, height in self.places.items():
            if txid not in found or found[txid][0] != height:
                self.fail(
                    f"transaction {_short(txid)}, durable at height {height}, is not in the final chain there"
                )


class SameState(Checker):
    """Every honest node's final chain, executed again from nothing, comes to its state root and its state."""

    name = "same-state"

    def at_end(self) -> None:
        run = self.run
        replay = Replay(run.genesis)
        replay.begin()
        # Where a bit flipped, a block of the log may be unreadable: others have it, and state and ids still count.
        whole = [node for node in run.honest if not node.flipped]
        source = max(whole or run.honest, key=lambda node: node.chain.final.height)
        try:
            for node in sorted(run.honest, key=lambda node: node.chain.final.height):
                last = min(node.chain.final.height, source.chain.final.height)
                replay.run(self._blocks(source, len(replay.ids), last))
                if node.chain.final.height == last:
                    self._compare(node, replay)
        except ReplayError as error:
            self.fail(str(error))
        for node in whole:
            self._blocks(node, 0, node.chain.final.height)
        run.replay = replay

    def _blocks(self, node: "Node", start: int, last: int) -> list[Block]:
        blocks: list[Block] = []
        for height in range(max(start, 1), last + 1):
            block_id = node.chain.block_id_at(height)
            block = None if block_id is None else node.chain.block(block_id)
            if block is None:
                self.fail(f"{node.name} lacks block {height}, which it holds final")
            else:
                blocks.append(block)
        return blocks

    def _compare(self, node: "Node", replay: Replay) -> None:
        height = node.chain.final.height
        for at in (*range(0, height, 7), height):
            if node.chain.block_id_at(at) != replay.ids[at]:
                self.fail(f"{node.name} has another block {at}")
        with node.process.store.snapshot() as view:
            for key, value in replay.state.items():
                if view.get_state(key) != value:
                    self.fail(f"{node.name} has another value under {key.hex()} at height {height}")
            for txid, (at, index, _) in replay.places.items():
                seq = view.seq_of_txid(txid)
                place = None if seq is None else view.block_of_seq(seq)
                if seq is None or place is None or (place[0], seq - place[1].first_seq) != (at, index):
                    self.fail(f"{node.name} does not find transaction {_short(txid)} at {at, index}")


class Once(Checker):
    """No transaction stands twice in the chain, and no two got what only one can have."""

    name = "once"

    def at_end(self) -> None:
        for double in self.run.replay.doubles:
            self.fail(double)


class Signed(Checker):
    """Every consent of the final state goes back to a grant that the owner's key signed; nothing forged got in."""

    name = "signed"

    def at_end(self) -> None:
        replay = self.run.replay
        for key, value in replay.state.items():
            if key[:1] == CONSENTS.prefix:
                self._trace(key[1:], msgspec.msgpack.decode(value, type=Consent))
        for wish in self.run.wishes:
            if wish.forged and wish.transaction is not None and wish.transaction.txid in replay.places:
                self.fail(f"forged transaction {_short(wish.transaction.txid)} stands in the chain")

    def _trace(self, consent_id: bytes, consent: Consent) -> None:
        grant = self.run.replay.grants.get(consent_id)
        if grant is None or not isinstance(grant.body, ConsentGrant):
            self.fail(f"nobody granted consent {consent_id.hex()}")
            return
        if not signed(grant.txid, grant.encoded[-64:], grant.signer):
            self.fail(f"nobody signed consent {consent_id.hex()}")
        if identity_id(grant.signer) != consent.owner or grant.body.grantee != consent.grantee:
            self.fail(f"consent {consent_id.hex()} is another than was signed")


class Bounds(Checker):
    """No queue, tree or buffer outgrows its limit."""

    name = "bounds"

    def on_sample(self) -> None:
        for node in self.run.nodes:
            if not node.running:
                continue
            chain, pool = node.chain, node.chain.mempool
            if len(chain.tree) > TREE_ENTRIES_MAX:
                self.fail(f"{node.name} keeps {len(chain.tree)} headers")
            if len(pool) > pool.transactions_max or pool.byte_count > pool.bytes_max:
                self.fail(f"{node.name} keeps {len(pool)} transactions of {pool.byte_count} bytes")
            for what, held, limit in node.held_bytes():
                if held > limit:
                    self.fail(f"{node.name} holds {held} bytes of {what}, at most {limit}")


class Liveness(Checker):
    """Once faults stop, the honest nodes come to one tip and what users sent becomes final, in the time stated."""

    name = "liveness"

    def at_end(self) -> None:
        if not self.run.settled:
            tips = Counter(
                f"{node.chain.tip.height}/{_short(node.chain.tip.block_id)}" for node in self.run.honest
            )
            waiting = sum(not wish.done for wish in self.run.wishes)
            self.fail(
                f"{self.run.calm_ms // 1000} s after the last fault the tips are {dict(tips)},"
                f" final heights {[node.chain.final.height for node in self.run.honest]},"
                f" {waiting} of {len(self.run.wishes)} wishes wait"
            )


class Bans(Checker):
    """Nobody bans an honest organisation; whoever provably lied is banned by everyone whom he could reach."""

    name = "bans"

    def __init__(self, run: "Run") -> None:
        super().__init__(run)
        self.banned: set[tuple[str, str]] = set()

    def on_banned(self, node: "Node", organisation: str) -> None:
        self.banned.add((node.name, organisation))
        if organisation in {other.organisation for other in self.run.honest}:
            self.fail(f"{node.name} banned {organisation}, which is honest")

    def at_end(self) -> None:
        for liar in self.run.liars:
            for node in self.run.honest:
                if liar.caught_by(node.name) and (node.name, liar.organisation) not in self.banned:
                    self.fail(f"{node.name} never banned {liar.organisation} ({liar.kind}), which lied to it")


class Releases(Checker):
    """No node goes on under a rule set that its release lacks, and no block holds a kind that is not in force."""

    name = "releases"

    def __init__(self, run: "Run") -> None:
        super().__init__(run)
        self._key = RULE_SETS.prefix + run.genesis.chain_id

    def on_start(self, node: "Node") -> None:
        self._check(node)

    def on_work(self, node: "Node") -> None:
        self._check(node)

    def _check(self, node: "Node") -> None:
        value = node.process.store.lookup()(self._key)
        if value is None:
            return
        tip = node.chain.tip
        step = RULE_SETS.decode(value).at(tip.height)
        if step.rule_set > node.release:
            self.fail(
                f"{node.name} of release {node.release} stands at height {tip.height},"
                f" and rule set {step.rule_set} is in force since {step.height}"
            )

    def at_end(self) -> None:
        if self.run.options.rogue:
            return
        for txid, (height, _, code) in self.run.replay.places.items():
            if code == Code.KIND_NOT_IN_FORCE:
                self.fail(f"transaction {_short(txid)} at height {height} is of a kind that is not in force")


CHECKERS: tuple[type[Checker], ...] = (
    Agreement,
    Durability,
    SameState,  # first at the end: it makes the replay that others look at
    Acknowledged,
    Once,
    Signed,
    Bounds,
    Bans,
    Releases,
    Liveness,
)


def _short(block_id: bytes) -> str:
    return block_id[:4].hex()

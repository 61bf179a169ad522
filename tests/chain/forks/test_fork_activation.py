"""Activations on chains that may reorganise: the rule set follows the branch, and older releases stop below it."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from beacon import COUNTER, NOTICE, Beacons, Dim, Light, LightInColour, declared, release
from fork_world import Node, make_genesis
from world import START_MS, Clock, new_wallet

from fastledger import Code, Genesis, SigningKey, Transaction
from fastledger.chain.execution.in_force import RulesInForce
from fastledger.chain.forks.events import FinalityConflict, Reorganised
from fastledger.chain.forks.mempool import Mempool
from fastledger.errors import BlockFault, ReleaseNeededError
from fastledger.model.body import Body
from fastledger.state.context import Context
from fastledger.state.kind import Kind
from fastledger.state.registry import Registry, Rules
from fastledger.state.view import Refusal, View
from fastledger.subjects.chain import ChainActivate, ChainCancel

DEPTH = 4
HEIGHT = 1 + NOTICE + DEPTH
ID = bytes(range(16))


class Federation:
    """Nodes of several releases on one chain that began under rule set 1."""

    def __init__(self, path: Path, beacons: Beacons) -> None:
        self.path = path
        self.beacons = beacons
        self.clock = Clock(START_MS + 1_000)
        self.wallet = new_wallet(self.clock)
        self.keys = [SigningKey.generate() for _ in range(4)]
        self.genesis: Genesis = make_genesis(
            self.keys, finality_depth=DEPTH, regulators=[self.wallet], rule_set=1
        )
        self.wallet.join(self.genesis.chain_id)
        self.nodes: list[Node] = []

    def node(self, newest: int = 2) -> Node:
        number = len(self.nodes)
        node = Node(self.path / str(number), self.genesis, self.keys[number], registry=release(newest))
        self.nodes.append(node.start())
        return node

    def activation(self, height: int = HEIGHT) -> Transaction:
        return self.wallet.sign(ChainActivate(rule_set=2, height=height, release="9.1.0"))

    def cancellation(self) -> Transaction:
        return self.wallet.sign(ChainCancel(rule_set=2, height=HEIGHT))

    def light(self, level: int = 1, beacon: bytes = ID) -> Transaction:
        return self.wallet.sign(Light(beacon=beacon, level=level))

    def level(self, node: Node, beacon: bytes = ID) -> int | None:
        value = node.store.lookup()(self.beacons.table.prefix + beacon)
        return None if value is None else self.beacons.table.decode(value).level


@pytest.fixture
def federation(tmp_path: Path) -> Iterator[Federation]:
    with declared() as beacons:
        made = Federation(tmp_path, beacons)
        yield made
        for node in made.nodes:
            node.stop()


def scheduled_up_to(node: Node, federation: Federation, height: int) -> None:
    """Votes and mines up to a height."""
    assert node.submit(federation.activation()) == [Code.OK]
    node.mine(height - node.chain.tip.height)


def copy_blocks(source: Node, target: Node) -> None:
    """Brings every block of the best chain that the other does not have."""
    for height in range(1, source.chain.tip.height + 1):
        block_id = source.chain.block_id_at(height)
        assert block_id is not None
        block = source.chain.block(block_id)
        assert block is not None
        if not target.chain.has_block(block_id):
            target.take(block)


def same(*nodes: Node) -> None:
    assert len({(node.chain.tip.block_id, node.chain.state_root) for node in nodes}) == 1


def test_what_the_pool_held_is_decoded_by_the_rules_of_the_block(federation: Federation) -> None:  # SPEC-RULE-10
    """The trap: one node's pool has the body as rule set 1 read it, another's never saw the transaction."""
    miner, early, late = federation.node(), federation.node(), federation.node()
    scheduled_up_to(miner, federation, HEIGHT - 2)
    for node in (early, late):
        copy_blocks(miner, node)
    waiting = federation.light(7)
    assert miner.submit(waiting) == early.submit(waiting) == [Code.OK]
    # The last block under the old rules leaves it waiting.
    other = federation.node()
    copy_blocks(miner, other)
    other.mine(1)
    for node in (miner, early, late):
        copy_blocks(other, node)
    pooled = early.chain.mempool.get(waiting.txid)
    assert pooled is not None and type(pooled.body) is Light
    [block] = miner.mine(1)
    assert block.height == HEIGHT and block.count == 1
    for node in (early, late, other):
        node.take(block)
    same(miner, early, late, other)
    assert [federation.level(node) for node in federation.nodes] == [1_007] * 4


def test_the_pool_follows_the_rules_of_the_next_block(federation: Federation) -> None:  # SPEC-RULE-10
    """A template holds what the rule set in force has a body for; the rest keeps its place for another branch."""
    node = federation.node()
    scheduled_up_to(node, federation, HEIGHT - 1)
    dim, coloured = federation.wallet.sign(Dim(beacon=ID)), federation.wallet.sign(
        LightInColour(beacon=ID, level=1, colour=2)
    )
    assert node.submit(dim, coloured) == [Code.OK, Code.OK]
    template = node.chain.template(node.now_ms)
    assert template is not None and len(template.transactions) == 2
    pool = Mempool()
    pool.fit(node.registry.rules(2))
    for txid in (dim.txid, coloured.txid):
        pending = node.chain.mempool.get(txid)
        assert pending is not None
        pool.add(pending)
    assert [type(item.body) for item in pool.take(9, 1 << 20, 0)] == [Dim, LightInColour]
    pool.fit(node.registry.rules(1))
    assert pool.take(9, 1 << 20, 0) == [] and len(pool) == 2
    light = federation.light(3)
    assert node.submit(light) == [Code.OK]
    pending = node.chain.mempool.get(light.txid)
    assert pending is not None
    pool.add(pending)
    assert [type(item.body) for item in pool.take(9, 1 << 20, 0)] == [Light], "decoded anew on entering"
    pool.fit(node.registry.rules(2))
    assert [type(item.body) for item in pool.take(9, 1 << 20, 0)] == [Dim, LightInColour, LightInColour]
    pool.drop([dim.txid, coloured.txid, light.txid])
    pool.fit(node.registry.rules(1))
    assert not pool._unfit


def test_the_rule_set_follows_the_branch(federation: Federation) -> None:  # SPEC-RULE-9
    """On one branch the authorities took the activation back, on the other they did not."""
    goes_on, cancels, watcher = federation.node(), federation.node(), federation.node()
    scheduled_up_to(goes_on, federation, HEIGHT - 2)
    for node in (cancels, watcher):
        copy_blocks(goes_on, node)
    assert cancels.submit(federation.cancellation()) == [Code.OK]
    light = federation.light(7)
    cancels.mine(1)
    goes_on.mine(1)
    assert cancels.submit(light) == goes_on.submit(light) == [Code.OK]
    goes_on.mine(1)
    cancels.mine(2)
    assert (federation.level(goes_on), federation.level(cancels)) == (1_007, 7)
    copy_blocks(goes_on, watcher)
    assert (federation.level(watcher), federation.level(watcher, COUNTER)) == (1_007, 1)
    copy_blocks(cancels, watcher)
    assert any(isinstance(event, Reorganised) for event in watcher.events)
    same(cancels, watcher)
    assert (federation.level(watcher), federation.level(watcher, COUNTER)) == (7, None)
    assert watcher.submit(federation.wallet.sign(Dim(beacon=ID))) == [Code.UNKNOWN_KIND]
    # And back again, through blocks that were executed before.
    goes_on.mine(2)
    copy_blocks(goes_on, watcher)
    same(goes_on, watcher)
    assert (federation.level(watcher), federation.level(watcher, COUNTER)) == (1_007, 3)
    watcher.restart()
    same(goes_on, watcher)


def test_an_older_release_stops_below_the_height(federation: Federation) -> None:  # SPEC-RULE-11
    new, old = federation.node(), federation.node(newest=1)
    scheduled_up_to(new, federation, HEIGHT - 1)
    copy_blocks(new, old)
    same(new, old)
    needed = old.chain.release_needed
    assert needed is not None and (needed.rule_set, needed.height, needed.release) == (2, HEIGHT, "9.1.0")
    final = old.chain.final.height
    blocks = new.mine(5)
    # Headers are taken, for work is work; blocks are not, and condemn nobody.
    assert old.chain.add_headers([block.sealed_header for block in blocks], new.now_ms) == 5
    assert old.chain.wanted(100) == []
    for block in blocks:
        with pytest.raises(BlockFault) as error:
            old.take(block)
        assert error.value.code is Code.RELEASE_NEEDED and not error.value.condemns
        assert not old.chain.has_block(block.block_id)
    assert old.chain.tip.height == HEIGHT - 1
    assert old.chain.template(new.now_ms) is None
    with pytest.raises(ReleaseNeededError):
        old.mine(1)
    assert old.submit(federation.light(5), federation.light(6)) == [Code.RELEASE_NEEDED] * 2
    # Serving goes on; what is final may grow no further than what is buried below the height.
    assert old.chain.block(old.chain.tip.block_id) is not None
    assert old.chain.headers_after([], 100)
    assert final <= old.chain.final.height < HEIGHT
    old.restart()
    assert old.chain.tip.height == HEIGHT - 1 and old.chain.release_needed is not None
    # After the upgrade.
    old.stop()
    old.registry = release(2)
    old.start()
    assert old.chain.release_needed is None
    copy_blocks(new, old)
    same(new, old)


def test_blocks_that_came_early_are_given_up_and_fetched_again(federation: Federation) -> None:  # SPEC-RULE-11
    """A later block is stored before the one below it shows that it cannot be judged."""
    new, old = federation.node(), federation.node(newest=1)
    scheduled_up_to(new, federation, HEIGHT + 3)
    blocks = [new.chain.block(block_id) for block_id in new.branch[1:]]
    last = blocks[HEIGHT - 2]
    assert last is not None and last.height == HEIGHT - 1
    old.chain.add_headers([block.sealed_header for block in blocks if block is not None], new.now_ms)
    for block in blocks:
        if block is not None and block is not last:
            old.take(block)
    above = [block.block_id for block in blocks if block is not None and block.height >= HEIGHT]
    assert len(above) == 4 and all(old.chain.has_block(block_id) for block_id in above)
    old.take(last)
    assert old.chain.tip.block_id == last.block_id
    assert not any(old.chain.has_block(block_id) for block_id in above)
    old.stop()
    old.registry = release(2)
    old.start()
    # It asks for them by itself once it knows the headers again.
    old.chain.add_headers([block.sealed_header for block in blocks[HEIGHT - 1 :] if block is not None], new.now_ms)
    assert old.chain.wanted(100) == above
    copy_blocks(new, old)
    same(new, old)


def test_an_older_release_keeps_to_the_chain_that_it_cannot_follow(federation: Federation) -> None:  # SPEC-RULE-11
    """A branch with less work than the headers above the height does not lure it away, one with more does."""
    new, cancels, old = federation.node(), federation.node(), federation.node(newest=1)
    scheduled_up_to(new, federation, HEIGHT - 2)
    copy_blocks(new, cancels)
    copy_blocks(new, old)
    assert cancels.submit(federation.cancellation()) == [Code.OK]
    cancels.mine(2)
    blocks = new.mine(2)
    old.chain.add_headers([block.sealed_header for block in blocks], new.now_ms)
    old.take(blocks[0])
    assert old.chain.tip.block_id == blocks[0].block_id
    final = old.chain.final.height
    copy_blocks(cancels, old)
    assert old.chain.tip.block_id == blocks[0].block_id and old.chain.release_needed is not None
    assert old.chain.final.height == final
    cancels.mine(1)
    copy_blocks(cancels, old)
    same(cancels, old)
    assert old.chain.release_needed is None
    # Blocks of the abandoned branch are still none that it can judge.
    with pytest.raises(BlockFault) as error:
        old.take(blocks[1])
    assert error.value.code is Code.RELEASE_NEEDED
    old.mine(2)
    assert not any(isinstance(event, FinalityConflict) for event in old.events)


class LooseRules(Registry):
    """Of somebody who plays by rules of his own: what is given takes the place of the rules of every set."""

    def __init__(self, rules: Rules) -> None:
        super().__init__()
        self._loose = rules

    @property
    def newest_rule_set(self) -> int:
        return 2

    def rules(self, number: int) -> Rules:
        return Rules(number, self._loose.by_name, block_hooks=release(2).rules(1)._block_hooks)

    def install_genesis(self, view: View, genesis: Genesis) -> None:
        release(2).install_genesis(view, genesis)


def liar_in(federation: Federation, by_name: dict[str, Kind]) -> Node:
    """A node on the tip of the first one, which has the kinds of rule set 1 and those given in force already."""
    node = federation.nodes[0]
    liar = federation.node()
    copy_blocks(node, liar)
    executor = liar.chain._executor
    executor.registry = LooseRules(Rules(1, {**release(2).rules(1).by_name, **by_name}))
    executor.in_force = RulesInForce(executor.registry, federation.genesis)
    executor.in_force.load(liar.store.lookup(), liar.chain.tip.height + 1)
    return liar


@pytest.mark.parametrize(
    ("body", "what"), [(Dim(beacon=ID), "results"), (LightInColour(beacon=ID, level=1, colour=2), "bad-body")]
)
def test_who_executes_by_other_rules_is_found_out(federation: Federation, body: Body, what: str) -> None:
    """A kind that is not in force, and a body of another rule set, in a block that says all was well (SPEC-RULE-10)."""
    honest = federation.node()
    honest.mine(2)
    liar = liar_in(federation, dict(release(2).rules(2).by_name))
    transaction = federation.wallet.sign(body)
    assert honest.submit(transaction) == [Code.UNKNOWN_KIND]
    assert liar.submit(transaction) == [Code.OK]
    [block] = liar.mine(1)
    assert block.results == b"\0\0"
    for _ in range(2):
        with pytest.raises(BlockFault) as error:
            honest.take(block)
        assert error.value.condemns and what in str(error.value)
    assert honest.chain.tip.block_id == block.header.previous_id


def test_a_kind_that_is_not_in_force_is_refused_in_a_block(federation: Federation) -> None:  # SPEC-RULE-4
    """Somebody puts one in, and says the truth of it: the block is right, and the transaction has its code."""
    honest, old = federation.node(), federation.node(newest=1)
    honest.mine(2)
    copy_blocks(honest, old)

    def refuse(_ctx: Context, _body: Body) -> None:
        raise Refusal(Code.KIND_NOT_IN_FORCE)

    liar = liar_in(federation, {"beacon.dim": replace(release(2).rules(2).by_name["beacon.dim"], rule=refuse)})
    transaction = federation.wallet.sign(Dim(beacon=ID))
    assert liar.submit(transaction) == [Code.OK]
    [block] = liar.mine(1)
    for node in (honest, old):
        node.take(block)
        assert node.chain.verdicts([transaction.txid])[transaction.txid].code is Code.KIND_NOT_IN_FORCE
    same(honest, old, liar)

"""A chain with forks: branches, reorganisations, finality, whatever order blocks arrive in (SPEC-FORK)."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from fork_world import SPACING_MS, Node, make_genesis, patients, search, shuffled
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from world import START_MS, Clock, new_wallet

from fastledger import Code, Role, SigningKey
from fastledger.chain.execution.executor import Draft, Execution, Executor
from fastledger.chain.forks.events import (
    BlockConnected,
    BlockDisconnected,
    BlocksFinal,
    BlockStored,
    FinalityConflict,
    Reorganised,
    TransactionsAccepted,
)
from fastledger.chain.forks.mempool import Mempool
from fastledger.chain.forks.mining import mine_block
from fastledger.consensus.engine import EngineTip
from fastledger.consensus.engines import make_engine
from fastledger.errors import BlockFault, InputError
from fastledger.limits import FUTURE_MS_MAX, HELD_MS_MAX
from fastledger.model.block import Block
from fastledger.subjects.identity import ALREADY_REGISTERED, UNKNOWN_SIGNER
from fastledger.subjects.reward import ACCOUNTS

MakeNode = Callable[..., Node]


@pytest.fixture
def keys() -> list[SigningKey]:
    return [SigningKey.generate() for _ in range(3)]


@pytest.fixture
def nodes(tmp_path: Path, keys: list[SigningKey]) -> Iterator[MakeNode]:
    """Makes nodes of one chain: ``nodes(0)`` mines with the first key, ``nodes(None)`` mines nothing."""
    made: list[Node] = []
    genesis = make_genesis(keys)

    def make(key: int | None, *, finality_depth: int | None = None) -> Node:
        nonlocal genesis
        if finality_depth is not None:
            genesis = make_genesis(keys, finality_depth=finality_depth)
        node = Node(tmp_path / str(len(made)), genesis, None if key is None else keys[key]).start()
        made.append(node)
        return node

    yield make
    for node in made:
        node.stop()


def kinds(node: Node) -> list[str]:
    return [type(event).__name__ for event in node.events]


def assert_same(*found: Node) -> None:
    first = found[0]
    for other in found[1:]:
        assert other.branch == first.branch
        assert other.chain.state_root == first.chain.state_root
        assert other.chain.work == first.chain.work


def final_txids(node: Node) -> list[bytes]:
    return [
        txid
        for event in node.events
        if isinstance(event, BlocksFinal)
        for layer in event.layers
        for txid in layer.txids
    ]


# One branch.


def test_a_mined_block_pays_its_miner_and_reaches_others(nodes: MakeNode) -> None:
    ours, theirs = nodes(0), nodes(1)
    transactions = patients(ours.genesis, 5)
    assert ours.submit(*transactions) == [Code.OK] * 5
    (block,) = ours.mine()
    assert block.count == 5
    theirs.take(block)
    assert_same(ours, theirs)
    assert len(ours.chain.mempool) == 0
    account = ours.store.lookup()(ACCOUNTS.prefix + block.body.proposer)
    assert account is not None and ACCOUNTS.decode(account).balance == 5
    events = [event for event in theirs.events if isinstance(event, BlockConnected)]
    assert events[0].txids == [item.txid for item in transactions]
    assert events[0].codes == (0,) * 5


def test_empty_blocks_are_mined(nodes: MakeNode) -> None:
    ours, theirs = nodes(0), nodes(1)
    theirs.take(*ours.mine(3))
    assert theirs.chain.tip.height == 3
    assert all(theirs.chain.block(block_id) for block_id in theirs.branch)


def test_a_miner_executes_its_block_once(
    nodes: MakeNode, monkeypatch: pytest.MonkeyPatch
) -> None:  # SPEC-FORK-11
    ours = nodes(0)
    ours.submit(*patients(ours.genesis, 3))
    monkeypatch.setattr(Executor, "_execute_block", lambda *_: pytest.fail("executed again"))
    assert ours.mine()[0].count == 3


def test_a_draft_moves_nothing(nodes: MakeNode) -> None:  # SPEC-FORK-11
    ours = nodes(0)
    ours.mine(2)
    ours.submit(*patients(ours.genesis, 3))
    before = (ours.chain.tip, ours.chain.state_root, ours.store.layers)
    templates = [ours.chain.template(ours.now_ms + step) for step in (0, 1, 2)]
    assert (ours.chain.tip, ours.chain.state_root, ours.store.layers) == before
    assert all(template is not None and len(template.transactions) == 3 for template in templates)
    assert all(isinstance(template and template.draft, Draft) for template in templates)


def test_a_template_goes_on_from_the_last_one(
    nodes: MakeNode, monkeypatch: pytest.MonkeyPatch
) -> None:  # SPEC-FORK-11
    ours, theirs = nodes(0), nodes(1)
    transactions = patients(ours.genesis, 5)
    ours.submit(*transactions[:2])
    first = ours.chain.template(ours.now_ms)
    executed: list[bytes] = []
    run = Execution.run

    def counted(self: Execution, txid: bytes, signer: bytes, body: object) -> Code:
        executed.append(txid)
        return run(self, txid, signer, body)

    monkeypatch.setattr(Execution, "run", counted)
    ours.submit(*transactions[2:4])
    second = ours.chain.template(ours.now_ms + SPACING_MS // 2)
    third = ours.chain.template(ours.now_ms + SPACING_MS // 2)
    assert executed == [item.txid for item in transactions[2:4]]
    assert first is not None and second is not None and third is not None
    assert [len(template.transactions) for template in (first, second, third)] == [2, 4, 4]
    assert second.body == third.body
    # Later, or on another parent, everything is executed anew.
    late = ours.chain.template(ours.now_ms + 2 * SPACING_MS)
    assert late is not None and late.body.time_ms == ours.now_ms + 2 * SPACING_MS
    assert len(executed) == 6
    # Each can be completed, also the earlier ones, and others agree to what they say.
    for template in (first, second):
        block = ours.chain.complete(template, search(template.make_header), 0)
        theirs.take(block)
    assert ours.chain.add_block(block, ours.now_ms)
    theirs.take(*ours.mine())
    assert_same(ours, theirs)


def test_nothing_is_final_beside_a_heavier_chain_on_its_way(nodes: MakeNode) -> None:  # SPEC-FORK-7
    ours, theirs = nodes(0), nodes(1)
    ours.mine(4)
    heavier = theirs.mine(9)
    ours.chain.add_headers([block.sealed_header for block in heavier], theirs.now_ms)
    ours.mine(3)
    assert ours.chain.final.height == 0
    ours.take(*heavier)
    assert_same(ours, theirs)
    assert ours.chain.final.height == 5


def test_a_stale_template_can_still_be_completed(nodes: MakeNode) -> None:
    """A rival on the same parent: valid, and beside the best branch."""
    ours, theirs = nodes(0), nodes(1)
    first = mine_block(theirs.chain, theirs.now_ms)
    template = ours.chain.template(ours.now_ms)
    assert template is not None
    ours.take(first)
    header, extra = search(template.make_header), 0
    block = ours.chain.complete(template, header, extra)
    assert ours.chain.add_block(block, ours.now_ms)
    assert ours.chain.tip.block_id == first.block_id
    assert ours.chain.has_block(block.block_id)
    with pytest.raises(InputError):
        ours.chain.complete(template, header, extra + 1)


def test_a_node_without_a_key_mines_nothing(nodes: MakeNode) -> None:
    watcher = nodes(None)
    assert watcher.chain.template(watcher.now_ms) is None
    with pytest.raises(InputError):
        mine_block(watcher.chain, watcher.now_ms)


def test_the_pool_is_the_one_that_was_handed_in(nodes: MakeNode) -> None:  # SPEC-POOL-1
    ours = nodes(0)
    ours.stop()
    ours.mempool = Mempool(transactions_max=2, source_transactions_max=1)
    ours.start()
    encoded = [item.encoded for item in patients(ours.genesis, 4)]
    assert ours.chain.submit(encoded[:2], ours.now_ms, source=b"a") == [Code.OK, Code.POOL_FULL]
    assert ours.chain.submit(encoded, ours.now_ms) == [
        Code.DUPLICATE,
        Code.OK,
        Code.POOL_FULL,
        Code.POOL_FULL,
    ]
    assert ours.chain.transaction(next(iter(ours.chain.mempool))) == encoded[0]
    ours.mine()
    assert ours.chain.submit(encoded, ours.now_ms) == [Code.DUPLICATE] * 2 + [Code.OK] * 2


# Reorganisations.


@pytest.mark.parametrize("depth", [1, 2, 3, 4])
def test_the_branch_with_most_work_wins(nodes: MakeNode, depth: int) -> None:  # SPEC-FORK-8
    ours, theirs = nodes(0), nodes(1)
    mine, yours = patients(ours.genesis, 4), patients(ours.genesis, 4)
    shared = ours.mine(2)
    theirs.take(*shared)
    ours.submit(*mine[:2])
    theirs.submit(*yours[:2], *mine[2:])
    old = ours.mine(depth)
    ours.submit(*mine[2:])
    new = theirs.mine(depth + 1)
    ours.take(*new)
    assert_same(ours, theirs)
    reorganised = [event for event in ours.events if isinstance(event, Reorganised)]
    assert [event.depth for event in reorganised] == [depth]
    assert reorganised[0].old_tip.block_id == old[-1].block_id
    dropped = [event.block_id for event in ours.events if isinstance(event, BlockDisconnected)]
    assert dropped == [block.block_id for block in reversed(old)]
    # Ours came back; those that the new branch holds did not.
    assert set(ours.chain.mempool) == {item.txid for item in mine[:2]}
    ours.mine()
    assert len(ours.chain.mempool) == 0


def test_of_equals_the_first_seen_stays(nodes: MakeNode) -> None:  # SPEC-FORK-8
    ours, theirs = nodes(0), nodes(1)
    (first,), (second,) = ours.mine(), theirs.mine()
    ours.take(second)
    assert ours.chain.tip.block_id == first.block_id
    assert Reorganised.__name__ not in kinds(ours)
    ours.restart()
    assert ours.chain.tip.block_id == first.block_id


def test_transactions_of_a_dropped_block_keep_their_order(nodes: MakeNode) -> None:  # SPEC-POOL-4
    ours, theirs = nodes(0), nodes(1)
    transactions = patients(ours.genesis, 6)
    for item in transactions[:4]:
        ours.submit(item)
    ours.mine(1)
    ours.submit(*transactions[4:])
    ours.take(*theirs.mine(2))
    assert list(ours.chain.mempool) == [item.txid for item in transactions]


def test_a_double_registration_is_decided_by_the_branch(nodes: MakeNode) -> None:  # SPEC-FORK-8
    """Two transactions that exclude each other: the first in the winning chain counts, at every node."""
    ours, theirs = nodes(0), nodes(1)
    wallet = new_wallet(Clock(ours.now_ms)).join(ours.genesis.chain_id)
    one, other = wallet.register(Role.PATIENT), wallet.register(Role.ORGANISATION)
    assert ours.submit(one) == theirs.submit(other) == [Code.OK]
    ours.mine(1)
    theirs.mine(2)
    ours.take(*[theirs.chain.block(block_id) for block_id in theirs.branch[1:]])
    assert_same(ours, theirs)
    assert ours.chain.verdicts([other.txid])[other.txid].code == Code.OK
    # The loser waits again and is refused where it stands.
    theirs.take(*ours.mine())
    verdict = theirs.chain.verdicts([one.txid])[one.txid]
    assert verdict.code == ALREADY_REGISTERED
    assert_same(ours, theirs)


def test_a_refused_transaction_may_pass_in_the_new_branch(nodes: MakeNode) -> None:  # SPEC-POOL-4
    ours, theirs = nodes(0), nodes(1)
    wallet = new_wallet(Clock(ours.now_ms)).join(ours.genesis.chain_id)
    register, folder = wallet.register(Role.PATIENT), wallet.open_folders("vitals")
    ours.submit(folder)
    (block,) = ours.mine()
    assert block.result(0) == UNKNOWN_SIGNER
    theirs.submit(register)
    ours.take(*theirs.mine(2))
    (block,) = ours.mine()
    assert (block.count, block.result(0)) == (1, Code.OK)


def test_a_branch_with_an_invalid_block_is_left_for_the_old_one(nodes: MakeNode) -> None:  # SPEC-FORK-8
    ours, theirs = nodes(0), nodes(1)
    ours.submit(*patients(ours.genesis, 2))
    ours.mine(2)
    before, root = ours.branch, ours.chain.state_root
    good = theirs.mine(1)
    bad = _mine_invalid(theirs)
    after = _mine_on(theirs, bad, 2)
    # Children first, so that the invalid block is found in the middle of a reorganisation.
    headers = [block.sealed_header for block in (*good, bad, *after)]
    assert ours.chain.add_headers(headers, ours.now_ms + 60_000) == 4
    ours.take(*good, *after)
    with pytest.raises(BlockFault) as caught:
        ours.take(bad)
    assert caught.value.condemns
    assert (ours.branch, ours.chain.state_root) == (before, root)
    assert Reorganised.__name__ not in kinds(ours)
    with pytest.raises(BlockFault) as caught:
        ours.chain.add_headers([after[-1].sealed_header], ours.now_ms)
    assert caught.value.condemns
    ours.mine()
    assert len(ours.chain.mempool) == 0
    assert ours.chain.wanted(10) == []


def _mine_invalid(node: Node) -> Block:
    """A block on the node's tip, mined and sealed as it should be, whose state root is wrong."""
    node.now_ms = node.chain.tip.time_ms + SPACING_MS
    template = node.chain.template(node.now_ms)
    assert template is not None
    wrong = replace(template, body=replace(template.body, state_root=bytes(32)))
    return node.chain.complete(wrong, search(wrong.make_header), 0)


def _mine_on(node: Node, parent: Block, count: int) -> list[Block]:
    """Empty blocks on top of any block; their state roots are as wrong as its own."""
    engine = make_engine(node.genesis)
    blocks: list[Block] = []
    template = node.chain.template(node.now_ms)
    assert template is not None
    for _ in range(count):
        tip = EngineTip(parent.height, parent.block_id, parent.body.time_ms, b"", parent.header.bits, SPACING_MS)
        body = replace(template.body, height=parent.height + 1, time_ms=parent.body.time_ms + SPACING_MS)
        bits = engine.next_bits(tip)  # type: ignore[attr-defined]
        made = replace(template, parent_id=parent.block_id, body=body, bits=bits)
        parent = node.chain.complete(made, search(made.make_header), 0)
        blocks.append(parent)
    return blocks


# Order of arrival.


def test_headers_first_then_blocks_in_any_order(nodes: MakeNode) -> None:
    ours, theirs = nodes(0), nodes(None)
    ours.submit(*patients(ours.genesis, 3))
    blocks = ours.mine(8)
    theirs.now_ms = ours.now_ms
    assert theirs.chain.add_headers([block.sealed_header for block in blocks], ours.now_ms) == 8
    assert theirs.chain.add_headers([block.sealed_header for block in blocks], ours.now_ms) == 0
    assert theirs.chain.wanted(3) == [block.block_id for block in blocks[:3]]
    theirs.take(*reversed(blocks))
    assert_same(ours, theirs)
    assert theirs.chain.wanted(10) == []
    assert not theirs.chain.add_block(blocks[0], ours.now_ms)


def test_a_block_without_its_parent_is_not_taken(nodes: MakeNode) -> None:
    ours, theirs = nodes(0), nodes(1)
    blocks = ours.mine(2)
    with pytest.raises(BlockFault) as caught:
        theirs.chain.add_block(blocks[1], ours.now_ms)
    assert (caught.value.code, caught.value.condemns) == (Code.UNKNOWN_PARENT, False)
    theirs.take(*blocks)
    assert_same(ours, theirs)


def _random_blocks(nodes: list[Node], plan: list[tuple[int, int]]) -> list[Block]:
    """Blocks of a random tree: miner ``who`` first hears of everything that was mined up to ``seen``."""
    made: list[Block] = []
    for who, seen in plan:
        miner = nodes[who]
        for block in made[:seen]:
            try:
                miner.chain.add_block(block, START_MS + 10**6)
            except BlockFault as fault:
                assert fault.code in (Code.UNKNOWN_PARENT, Code.BELOW_FINAL)
        miner.submit(*patients(miner.genesis, 1))
        made += miner.mine()
    return made


@settings(max_examples=12, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    st.lists(st.tuples(st.integers(0, 2), st.integers(0, 9)), min_size=4, max_size=9),
    st.integers(0, 2**32),
)
def test_any_order_of_arrival_leads_to_the_same_state(
    tmp_path_factory: pytest.TempPathFactory, plan: list[tuple[int, int]], seed: int
) -> None:  # SPEC-FORK-8
    root = tmp_path_factory.mktemp("order")
    keys = [SigningKey.generate() for _ in range(3)]
    genesis = make_genesis(keys, finality_depth=12)
    miners = [Node(root / f"miner-{at}", genesis, key).start() for at, key in enumerate(keys)]
    made = _random_blocks(miners, plan)
    # One more block on the heaviest branch: of equals each keeps what it saw first.
    best = max(miners, key=lambda node: node.chain.work)
    made += best.mine()
    listeners = [Node(root / f"listener-{at}", genesis, None).start() for at in range(3)]
    for at, listener in enumerate(listeners):
        listener.now_ms = best.now_ms + 10**6
        headers = sorted((block.sealed_header for block in made), key=lambda item: item.body.height)
        listener.chain.add_headers(headers, listener.now_ms)
        listener.take(*shuffled(made, seed + at))
    replayed = Node(root / "replayed", genesis, None).start()
    replayed.now_ms = best.now_ms + 10**6
    for block_id in best.branch[1:]:
        block = best.chain.block(block_id)
        assert block is not None
        replayed.take(block)
    assert_same(replayed, best, *listeners)
    for listener in listeners:
        listener.restart()
    assert_same(replayed, *listeners)
    for node in (*miners, *listeners, replayed):
        node.stop()


# Time.


def test_a_block_from_the_future_waits(nodes: MakeNode) -> None:  # SPEC-FORK-6
    ours, theirs = nodes(0), nodes(1)
    (block,) = ours.mine(after_ms=FUTURE_MS_MAX + 10_000)
    early = block.body.time_ms - FUTURE_MS_MAX - 1
    assert theirs.chain.add_block(block, early)
    assert theirs.chain.tip.height == 0
    assert not theirs.chain.has_block(block.block_id)
    assert theirs.chain.add_headers([block.sealed_header], early) == 0
    theirs.chain.tick(early)
    assert theirs.chain.tip.height == 0
    theirs.chain.tick(early + 1)
    assert theirs.chain.tip.height == 1


def test_a_block_from_the_far_future_is_not_even_kept(nodes: MakeNode) -> None:  # SPEC-FORK-6
    ours, theirs = nodes(0), nodes(1)
    (block,) = ours.mine(after_ms=FUTURE_MS_MAX + HELD_MS_MAX + 10_000)
    with pytest.raises(BlockFault) as caught:
        theirs.chain.add_block(block, START_MS)
    assert (caught.value.code, caught.value.condemns) == (Code.NOT_YET_VALID, False)
    theirs.take(block)
    assert_same(ours, theirs)


# Finality.


def test_what_is_deep_enough_is_final_and_stays(nodes: MakeNode) -> None:  # SPEC-FORK-7, SPEC-FORK-9
    ours, theirs = nodes(0), nodes(1)
    transactions = patients(ours.genesis, 2)
    ours.submit(*transactions)
    ours.mine(4)
    assert (ours.chain.final.height, ours.log.end.height) == (0, 0)
    assert final_txids(ours) == []
    ours.mine(1)
    assert (ours.chain.final.height, ours.log.durable.height) == (1, 1)
    assert final_txids(ours) == [item.txid for item in transactions]
    assert ours.store.durable.height == 1
    # A branch with more work that parts below: told once, not followed.
    long = theirs.mine(9)
    headers = [block.sealed_header for block in long]
    for _ in range(2):
        with pytest.raises(BlockFault) as caught:
            ours.chain.add_headers(headers, theirs.now_ms)
        assert (caught.value.code, caught.value.condemns) == (Code.BELOW_FINAL, False)
    with pytest.raises(BlockFault):
        ours.chain.add_block(long[0], theirs.now_ms)
    ours.drain()
    conflicts = [event for event in ours.events if isinstance(event, FinalityConflict)]
    assert conflicts == [FinalityConflict(long[0].block_id, 1)]
    assert ours.chain.tip.height == 5


def test_a_lighter_branch_below_the_final_block_is_no_conflict(nodes: MakeNode) -> None:  # SPEC-FORK-7
    ours, theirs = nodes(0), nodes(1)
    ours.mine(8)
    with pytest.raises(BlockFault) as caught:
        ours.chain.add_headers([block.sealed_header for block in theirs.mine(7)], theirs.now_ms)
    assert caught.value.code == Code.BELOW_FINAL
    ours.drain()
    assert FinalityConflict.__name__ not in kinds(ours)


def test_events_come_in_order_and_after_the_disk(nodes: MakeNode) -> None:  # SPEC-FORK-9
    ours = nodes(0)
    ours.submit(*patients(ours.genesis, 1))
    ours.mine(5)
    seen = [kind for kind in kinds(ours) if kind != BlockStored.__name__]
    assert seen == [TransactionsAccepted.__name__, *[BlockConnected.__name__] * 5, BlocksFinal.__name__]
    assert not ours.journal.dirty


def test_headers_and_locators_reach_down_to_genesis(nodes: MakeNode) -> None:  # SPEC-FORK-10
    ours, theirs = nodes(0), nodes(None)
    blocks = ours.mine(30)
    locator = ours.chain.locator()
    assert (locator[0], locator[-1]) == (blocks[-1].block_id, ours.branch[0])
    assert len(locator) < 20
    headers = ours.chain.headers_after(theirs.chain.locator(), 1_000)
    assert [header.block_id for header in headers] == ours.branch[1:]
    assert headers == [block.sealed_header for block in blocks]
    for height in (0, 1, 7, 26, 29):
        found = ours.chain.headers_after([bytes(32), ours.branch[height]], 2)
        assert [header.body.height for header in found] == [*range(height + 1, min(31, height + 3))]
    assert ours.chain.headers_after([ours.branch[30]], 5) == []
    assert [ours.chain.block(block_id) for block_id in ours.branch[1:]] == blocks
    assert ours.chain.block(bytes(32)) is None
    assert not ours.chain.has_block(bytes(32))
    assert ours.chain.block_id_at(31) is None
    ours.restart()
    assert ours.chain.headers_after([], 1_000) == headers

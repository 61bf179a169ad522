"""The tree of headers: against a naive model, against Bitcoin's own chain, and at the size of its bound."""

from dataclasses import dataclass, field
from pathlib import Path
from random import Random

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule
from mining import HONEST, START_MS, UnhashedPow, header_on, make_genesis, make_tree

from fastledger.consensus.engine import EngineTip
from fastledger.consensus.solo import SoloEngine
from fastledger.consensus.tree import BlockTree, TreeEntry, TreeStatus
from fastledger.crypto.signing import SigningKey
from fastledger.crypto.work import bits_to_target, block_work, target_to_bits
from fastledger.errors import Code, InputError, NotFoundError, ReceiptError
from fastledger.model.block import ZERO32, Block, Header, HeaderBody, SealedHeader
from fastledger.model.receipt import check_seal, check_seals, make_seal


class Weighed(SoloEngine):
    """Blocks weigh what their bits say, so that forks of few blocks can be heavier than longer ones."""

    def check(self, header: Header, body: HeaderBody, parent: EngineTip) -> None:
        if header.bits == 0:
            raise InputError("no weight", code=Code.BAD_BLOCK)

    def work(self, header: Header) -> int:
        return header.bits


class TightTree(BlockTree):
    """Clears its heaps of stale items at every opportunity."""

    _heap_slack = 0


def new_tree(entries_max: int = 1_000) -> BlockTree:
    body = HeaderBody(0, START_MS, *[ZERO32] * 4, HONEST, ZERO32)
    sealed = SealedHeader(Header(ZERO32, ZERO32, 0), body, b"", 0)
    tip = EngineTip(0, sealed.block_id, START_MS, b"")
    return TightTree(Weighed([HONEST]), tip, sealed, entries_max=entries_max)


def child(parent: TreeEntry, number: int, weight: int = 1) -> SealedHeader:
    return header_on(parent.tip, parent.tip.time_ms + 1, weight, number=number)


def grow(tree: BlockTree, parent: TreeEntry, count: int, *, number: int = 0, stored: bool = True) -> list[TreeEntry]:
    """``count`` blocks of weight 1 on top of ``parent``."""
    entries = []
    for _ in range(count):
        parent = tree.add(child(parent, number))
        entries.append(parent)
        if stored:
            tree.mark_stored(parent.block_id)
    return entries


# The naive model: everything is looked through each time.


@dataclass
class Node:
    """What the model knows of a block."""

    entry: TreeEntry
    parent: "Node | None"
    weight: int
    order: int
    stored: bool = False
    invalid: bool = False
    children: "list[Node]" = field(default_factory=list)

    @property
    def line(self) -> "list[Node]":
        """From the root down to this block."""
        line, node = [self], self.parent
        while node is not None:
            line.append(node)
            node = node.parent
        return line[::-1]

    @property
    def work(self) -> int:
        return sum(node.weight for node in self.line)

    @property
    def complete(self) -> bool:
        return all(node.stored and not node.invalid for node in self.line)


class TreeMachine(RuleBasedStateMachine):
    """Adds in any parent-first order, stores, forgets, condemns and finalises; compares after each step."""

    def __init__(self) -> None:
        super().__init__()
        self.tree = new_tree()
        self.root = Node(self.tree.root, None, 0, 0, stored=True)
        self.nodes = [self.root]
        self.order = 0
        self.completed: list[Node] = [self.root]
        self.gone: list[SealedHeader] = []

    def pick(self, index: int) -> Node:
        return self.nodes[index % len(self.nodes)]

    @rule(index=st.integers(0, 10**6), weight=st.integers(0, 3))
    def add(self, index: int, weight: int) -> None:
        parent = self.pick(index)
        self.order += 1
        sealed = child(parent.entry, self.order, weight)
        if weight == 0 or parent.invalid:  # SPEC-TREE-1, SPEC-TREE-4
            with pytest.raises(InputError) as error:
                self.tree.add(sealed)
            assert error.value.code is Code.BAD_BLOCK
            return
        entry = self.tree.add(sealed)
        assert (entry.sealed, entry.status, entry.height) == (sealed, TreeStatus.HEADER, parent.entry.height + 1)
        node = Node(entry, parent, weight, self.order)
        parent.children.append(node)
        self.nodes.append(node)

    @rule(index=st.integers(0, 10**6))
    def add_again(self, index: int) -> None:
        node = self.pick(index)
        assert self.tree.add(node.entry.sealed) is node.entry

    @rule(index=st.integers(0, 10**6))
    def store(self, index: int) -> None:
        node = self.pick(index)
        assert self.tree.mark_stored(node.entry.block_id) is node.entry
        node.stored = node.stored or not node.invalid
        self.note_completions(node)

    def note_completions(self, node: Node) -> None:
        """What became complete by one copy counts parents first, in the order of arrival."""
        if node.complete and node not in self.completed:
            self.completed.append(node)
        for below in node.children if node.complete else ():
            self.note_completions(below)

    @rule(index=st.integers(0, 10**6))
    def forget(self, index: int) -> None:
        node = self.pick(index)
        if node is self.root:
            with pytest.raises(RuntimeError):
                self.tree.forget_data(node.entry.block_id)
            return
        self.tree.forget_data(node.entry.block_id)
        if not node.invalid:
            node.stored = False
            self.completed = [other for other in self.completed if other.complete]

    @rule(index=st.integers(0, 10**6))
    def execute(self, index: int) -> None:
        node = self.pick(index)
        if node.stored and not node.invalid:
            assert self.tree.mark_valid(node.entry.block_id).status is TreeStatus.VALID
        else:
            with pytest.raises(RuntimeError):
                self.tree.mark_valid(node.entry.block_id)

    @rule(index=st.integers(0, 10**6), seldom=st.integers(0, 3))
    def condemn(self, index: int, seldom: int) -> None:  # SPEC-TREE-4
        node = self.pick(index)
        if seldom or node is self.root:
            return
        expected = [other for other in self.nodes if node in other.line and not other.invalid]
        marked = self.tree.mark_invalid(node.entry.block_id)
        assert {entry.block_id for entry in marked} == {other.entry.block_id for other in expected}
        assert len(marked) == len(expected)
        for other in expected:
            other.invalid, other.stored = True, False
        self.completed = [other for other in self.completed if other.complete]

    @precondition(lambda self: len(self.nodes) > 4)
    @rule(index=st.integers(0, 10**6))
    def finalise(self, index: int) -> None:  # SPEC-TREE-6
        node = self.completed[index % len(self.completed)]
        dead = [other for other in self.nodes if node not in other.line and other not in node.line]
        dropped = self.tree.finalise(node.entry)
        assert {entry.block_id for entry in dropped} == {other.entry.block_id for other in dead}
        assert len(dropped) == len(dead)
        self.gone = [other.entry.sealed for other in self.nodes if node not in other.line]
        self.nodes = [other for other in self.nodes if node in other.line]
        self.completed = [other for other in self.completed if node in other.line]
        node.weight, node.parent = node.work, None
        self.root = node

    @invariant()
    def best(self) -> None:  # SPEC-TREE-2, SPEC-TREE-3
        best = max(
            (node for node in self.nodes if not node.invalid), key=lambda node: (node.work, -node.order)
        )
        assert self.tree.best_header() is best.entry
        assert best.entry.work == best.work
        ranked = enumerate(self.completed)
        stored = max(ranked, key=lambda item: (item[1].work, -item[0]))[1]
        assert self.tree.best_stored() is stored.entry
        assert self.tree.root is self.root.entry
        assert len(self.tree) == len(self.nodes)
        missing = [node.entry for node in best.line if not node.stored]
        assert self.tree.missing(3) == missing[:3]  # SPEC-TREE-5
        assert self.tree.missing(1_000) == missing

    @rule(height=st.integers(0, 12))
    def agree(self, height: int) -> None:  # SPEC-TREE-10
        best = max(
            (node for node in self.nodes if not node.invalid), key=lambda node: (node.work, -node.order)
        )
        held = next(node for node in self.completed if node.entry is self.tree.best_stored())
        shared = [node.entry for node in held.line if node in best.line and node.entry.height <= height]
        assert self.tree.agreed(height) is (shared[-1] if shared else self.tree.root)

    @rule(one=st.integers(0, 10**6), other=st.integers(0, 10**6))
    def ways(self, one: int, other: int) -> None:
        old, new = self.pick(one), self.pick(other)
        shared = [node for node in old.line if node in new.line]
        drop, connect = self.tree.path(old.entry, new.entry)
        assert drop == [node.entry for node in old.line[len(shared) :]][::-1]
        assert connect == [node.entry for node in new.line[len(shared) :]]
        for node in old.line:
            assert self.tree.on_path(old.entry, node.entry.height) is node.entry

    @rule()
    def refused_for_good(self) -> None:  # SPEC-TREE-1, SPEC-TREE-6
        for sealed in self.gone:
            if sealed.block_id == self.root.entry.block_id:
                continue
            assert self.tree.get(sealed.block_id) is None
            with pytest.raises(InputError) as error:
                self.tree.add(sealed)
            below = sealed.body.height <= self.root.entry.height
            assert error.value.code is (Code.BELOW_FINAL if below else Code.UNKNOWN_PARENT)


TestTreeAgainstModel = TreeMachine.TestCase
TestTreeAgainstModel.settings = settings(max_examples=60, stateful_step_count=60, deadline=None)


# Refusals and bounds.


def test_headers_without_their_place_are_refused() -> None:  # SPEC-TREE-1
    tree = new_tree()
    chain = grow(tree, tree.root, 3)
    orphan = header_on(EngineTip(7, bytes([9]) * 32, START_MS, b""), START_MS + 1, 1)
    sibling = header_on(tree.root.tip, START_MS + 1, 1, number=5)
    wrong_height = header_on(chain[0].tip._replace(height=4), START_MS + 1, 1)
    tree.finalise(chain[1])
    cases = ((orphan, Code.UNKNOWN_PARENT), (sibling, Code.BELOW_FINAL))
    for sealed, code in cases:
        with pytest.raises(InputError) as error:
            tree.add(sealed)
        assert error.value.code is code
    assert tree.add(chain[1].sealed) is tree.root
    wrong_height = header_on(chain[2].tip._replace(height=4), START_MS + 9, 1)
    with pytest.raises(InputError, match="height 5 follows 3") as error:
        tree.add(wrong_height)
    assert error.value.code is Code.BAD_BLOCK
    for act in (tree.mark_stored, tree.mark_valid, tree.mark_invalid, tree.forget_data):
        with pytest.raises(NotFoundError):
            act(orphan.block_id)
    for height in (1, 4):
        with pytest.raises(ValueError, match="expected 2 to 3"):
            tree.on_path(chain[2], height)


def test_what_is_not_complete_cannot_become_final() -> None:  # SPEC-TREE-6
    tree = new_tree()
    stored = grow(tree, tree.root, 1)[0]
    headers = grow(tree, stored, 2, stored=False)
    tree.mark_stored(headers[1].block_id)
    for entry in headers:
        with pytest.raises(RuntimeError, match="cannot become final"):
            tree.finalise(entry)
    tree.mark_stored(headers[0].block_id)
    assert tree.finalise(headers[1]) == []
    with pytest.raises(RuntimeError, match="final"):
        tree.mark_invalid(headers[1].block_id)
    with pytest.raises(RuntimeError, match="cannot become final"):
        tree.finalise(stored)


def test_a_full_tree_drops_the_lightest_leaf_that_is_not_held() -> None:  # SPEC-TREE-7
    tree = new_tree(entries_max=8)
    held = grow(tree, tree.root, 3)
    light = grow(tree, tree.root, 2, number=1, stored=False)
    heavy = tree.add(child(tree.root, 2, weight=5))
    invalid = tree.add(child(tree.root, 3, weight=2))
    tree.mark_invalid(invalid.block_id)
    assert len(tree) == 8
    with pytest.raises(InputError) as error:
        tree.add(child(tree.root, 4, weight=1))
    assert error.value.code is Code.TREE_FULL
    # Of two leaves of equal work the later one goes; a held leaf of little work stays.
    newcomer = tree.add(child(heavy, 5))
    assert tree.get(invalid.block_id) is None
    assert tree.get(light[1].block_id) is light[1]
    tree.add(child(newcomer, 6))
    tree.add(child(newcomer, 7))
    assert [tree.get(entry.block_id) for entry in light] == [None, None]
    assert [tree.get(entry.block_id) for entry in held] == held
    # Equal work makes no room, and the held leaf of less work is no candidate.
    with pytest.raises(InputError) as error:
        tree.add(child(newcomer, 8))
    assert error.value.code is Code.TREE_FULL
    assert tree.get(held[2].block_id) is held[2]
    assert len(tree) == 8
    # A parent never makes room for its child.
    line = new_tree(entries_max=4)
    top = grow(line, line.root, 3, stored=False)[-1]
    with pytest.raises(InputError) as error:
        line.add(child(top, 0))
    assert error.value.code is Code.TREE_FULL
    assert line.best_header() is top


def test_a_flood_of_light_headers_leaves_the_best_chain_alone() -> None:  # SPEC-TREE-7
    tree = new_tree(entries_max=500)
    best = grow(tree, tree.root, 100)[-1]
    random, refused = Random(1), 0
    forks = [tree.root]
    for number in range(5_000):
        parent = random.choice(forks[-50:])
        if tree.get(parent.block_id) is None or parent.height > 90:
            parent = tree.root
        try:
            forks.append(tree.add(child(parent, number + 1)))
        except InputError as error:
            assert error.code is Code.TREE_FULL
            refused += 1
    assert len(tree) <= 500
    assert refused > 0
    assert tree.best_header() is tree.best_stored() is best
    assert tree.on_path(best, 0) is tree.root


def test_a_hundred_thousand_headers_in_a_line() -> None:  # SPEC-TREE-5
    genesis = make_genesis()
    engine = UnhashedPow(genesis)
    tree = make_tree(engine, genesis, entries_max=200_000)
    entry = tree.root
    bits = engine.next_bits(entry.tip)
    for number in range(100_000):
        entry = tree.add(header_on(entry.tip, entry.tip.time_ms + 10_000, bits, number=number))
    assert entry.height == 100_000
    assert entry.work == 100_000 * block_work(bits)
    assert tree.best_header() is entry
    assert tree.on_path(entry, 50_000).height == 50_000
    low = tree.on_path(entry, 1)
    for height in range(1, 3_000):
        block = tree.missing(1)[0]
        assert block.height == height
        tree.mark_stored(block.block_id)
    assert tree.best_stored().height == 2_999
    assert [len(way) for way in tree.path(entry, tree.root)] == [100_000, 0]
    assert tree.finalise(tree.on_path(entry, 2_000)) == []
    assert tree.missing(1)[0].height == 3_000
    assert tree.get(low.block_id) is None
    fork = tree.add(header_on(tree.root.tip, tree.root.tip.time_ms + 1, engine.next_bits(tree.root.tip)))
    tree.mark_stored(fork.block_id)
    assert len(tree.mark_invalid(tree.missing(1)[0].block_id)) == 97_001
    assert tree.best_header() is tree.best_stored()
    assert len(tree.finalise(fork)) == 98_000
    assert len(tree) == 1


def test_a_reorganisation_there_and_back_keeps_first_seen() -> None:  # SPEC-TREE-3
    tree = new_tree()
    ours = grow(tree, tree.root, 5)
    theirs = grow(tree, tree.root, 5, number=1)
    assert tree.best_stored() is ours[-1]
    assert tree.best_header() is ours[-1]
    longer = grow(tree, theirs[-1], 1, number=1)[0]
    assert tree.best_stored() is longer
    drop, connect = tree.path(ours[-1], longer)
    assert (drop, connect) == (ours[::-1], [*theirs, longer])
    tree.forget_data(theirs[2].block_id)
    assert tree.best_stored() is ours[-1]
    assert tree.best_header() is longer
    assert tree.missing(10) == [theirs[2]]
    tree.mark_stored(theirs[2].block_id)
    assert tree.best_stored() is longer


# Bitcoin's own headers.


class Bitcoin(SoloEngine):
    """Bitcoin's rules for headers of the first retarget windows."""

    def __init__(self, bits: int = 0x1D00FFFF) -> None:
        super().__init__([HONEST])
        self.bits = bits

    def check(self, header: Header, body: HeaderBody, parent: EngineTip) -> None:
        if header.bits != self.bits or int.from_bytes(header.block_id, "little") > bits_to_target(
            header.bits
        ):
            raise InputError("no work", code=Code.BAD_BLOCK)

    def work(self, header: Header) -> int:
        return block_work(header.bits)


def bitcoin_header(raw: bytes, height: int) -> SealedHeader:
    header = Header.decode(raw)
    body = HeaderBody(height, header.time_s * 1_000, *[ZERO32] * 4, HONEST, ZERO32)
    return SealedHeader(header, body, b"", 0)


@pytest.mark.data
def test_bitcoins_first_headers_make_its_chain(shared_data: Path) -> None:  # SPEC-TREE-1, SPEC-WORK-4
    data = (shared_data / "bitcoin" / "headers-0-3999.bin").read_bytes()
    headers = [bitcoin_header(data[80 * i : 80 * i + 80], i) for i in range(len(data) // 80)]
    first = headers[0]
    root = EngineTip(0, first.block_id, first.body.time_ms, b"")
    tree = BlockTree(Bitcoin(), root, first, work=block_work(first.header.bits))
    later = headers[2_000:]
    with pytest.raises(InputError) as error:
        tree.add(later[0])
    assert error.value.code is Code.UNKNOWN_PARENT
    for sealed in headers[1:2_017]:
        tree.mark_stored(tree.add(sealed).block_id)
    # The chain work that bitcoinj publishes for height 2016 in its checkpoints.
    assert tree.best_stored().work == 0x7E107E107E1
    for sealed in later:
        tree.add(sealed)
    assert tree.best_header().work == 4_000 * 0x100010001
    assert (tree.best_header().height, tree.best_stored().height) == (3_999, 2_016)
    forged = headers[17]
    forged = SealedHeader(Header.decode(forged.header.encode()[:-1] + b"\x55"), forged.body, b"", 0)
    with pytest.raises(InputError, match="no work"):
        tree.add(forged)


# Published by bitcoinj (checkpoints of its main network): height -> chain work up to and with this block.
CHAIN_WORK = {
    2_016: 0x7E107E107E1,
    32_256: 0x7E01ACD42DD2,
    64_512: 0x452C0F8291BFD,
    110_880: 0x15498DE5C967852E,
}


@pytest.mark.data
def test_bitcoins_work_and_retargets(shared_data: Path) -> None:  # SPEC-WORK-2, SPEC-WORK-4
    records = (shared_data / "bitcoin" / "bitcoinx-mainnet-headers-2016").read_bytes()
    headers = {
        int.from_bytes(records[i : i + 4], "little"): Header.decode(records[i + 4 : i + 84])
        for i in range(0, len(records), 84)
    }
    limit, fortnight, work, changed = bits_to_target(0x1D00FFFF), 14 * 86_400, 0, 0
    for height in range(0, 201_600, 2_016):
        first, last = headers[height], headers[height + 2_015]
        assert first.bits == last.bits
        assert work + block_work(first.bits) == CHAIN_WORK.get(height, work + block_work(first.bits))
        work += 2_016 * block_work(first.bits)
        span = min(max(last.time_s - first.time_s, fortnight // 4), fortnight * 4)
        expected = target_to_bits(min(bits_to_target(last.bits) * span // fortnight, limit))
        if height + 2_016 in headers:
            assert headers[height + 2_016].bits == expected
            changed += expected != last.bits
    assert changed > 50
    assert all(height in headers for height in CHAIN_WORK)


# Seals in batches.


def test_seals_pass_in_a_batch_where_they_pass_alone() -> None:  # SPEC-TREE-8, SPEC-TREE-9
    keys, chain_id = [SigningKey.from_bytes(bytes([number]) * 32) for number in (1, 2)], b"chain id"
    headers = []
    for number in range(6):
        key = keys[number % 2]
        body = HeaderBody(number + 1, START_MS + number, *[bytes([number]) * 32] * 4, key.public_key, ZERO32)
        header = Header(ZERO32, body.commitment, body.time_ms // 1000)
        seal = make_seal(key, chain_id, header, body, 0)
        headers.append(Block(header, body, seal, b"", b"", b"").sealed_header)
    assert check_seals(headers, chain_id) == b"\1" * 6
    assert check_seals([], chain_id) == b""
    assert check_seals(headers, b"another!") == bytes(6)
    good = headers[0]
    parts = (good.header.encode(), good.body.encode())
    assert SealedHeader.decode(*parts, good.seal, 0) == good
    forged = [
        SealedHeader(good.header, good.body, b"", 0),
        SealedHeader(good.header, good.body, good.seal[:-1], 0),
        SealedHeader(good.header, good.body, good.seal + b"\0", 0),
        SealedHeader(good.header, good.body, good.seal[:-1] + bytes([good.seal[-1] ^ 1]), 0),
        SealedHeader(good.header, good.body, good.seal, 1),
        SealedHeader(good.header, good.body, headers[1].seal, 0),
        SealedHeader(good.header, good.body, make_seal(keys[1], chain_id, good.header, good.body, 0), 0),
        SealedHeader(good.header, good.body, b"\xd2" + bytes(300), 0),
        # A good signature in another form of the same object: there is one seal, not many.
        SealedHeader(good.header, good.body, good.seal[-64:], 0),
        SealedHeader(good.header, good.body, good.seal.replace(b"\xa0\xf6", b"\xa1\1\1\xf6"), 0),
    ]
    assert good.seal.count(b"\xa0\xf6") == 1
    assert check_seals([*forged, good, *forged], chain_id) == bytes(10) + b"\1" + bytes(10)
    for sealed in forged:
        whole = Block(sealed.header, sealed.body, sealed.seal, b"", bytes(4 * sealed.count), b"")
        with pytest.raises(ReceiptError):
            check_seal(whole, chain_id)

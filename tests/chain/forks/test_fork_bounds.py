"""Bounds of a chain that reorganises: what waits, what is looked up, what is handed over (SPEC-FORK)."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from fork_world import SPACING_MS, Node, make_genesis, patients, search
from hypothesis import given
from hypothesis import strategies as st
from world import START_MS, Clock

from fastledger import Code, Genesis, Ledger, LedgerOptions, SigningKey
from fastledger.chain.execution.store import NOWHERE, BlockEntry
from fastledger.chain.forks import chain as forks
from fastledger.chain.forks import header_intake
from fastledger.chain.forks import pipeline as fork_pipeline
from fastledger.chain.forks.headers import FinalIds, KnownById, read_sealed
from fastledger.chain.forks.mining import mine_block
from fastledger.consensus.engine import EngineTip
from fastledger.errors import BlockFault, FastLedgerError, InputError, LedgerBusyError
from fastledger.limits import FUTURE_MS_MAX, HEADERS_MAX, LOCATOR_IDS_MAX
from fastledger.model.block import Block


@pytest.fixture
def keys() -> list[SigningKey]:
    return [SigningKey.generate() for _ in range(2)]


@pytest.fixture
def genesis(keys: list[SigningKey]) -> Genesis:
    return make_genesis(keys)


@pytest.fixture
def pair(tmp_path: Path, genesis: Genesis, keys: list[SigningKey]) -> Iterator[tuple[Node, Node]]:
    found = [Node(tmp_path / str(at), genesis, key).start() for at, key in enumerate(keys)]
    yield found[0], found[1]
    for node in found:
        node.stop()


def early_blocks(node: Node, count: int) -> list[Block]:
    """Rivals on the present tip, all from the future."""
    blocks = []
    for number in range(count):
        template = node.chain.template(node.chain.tip.time_ms + FUTURE_MS_MAX + 20_000 + SPACING_MS * number)
        assert template is not None
        blocks.append(node.chain.complete(template, search(template.make_header), 0))
    return blocks


def test_what_waits_for_its_time_is_bounded(
    pair: tuple[Node, Node], monkeypatch: pytest.MonkeyPatch
) -> None:  # SPEC-FORK-6
    ours, theirs = pair
    ours.submit(*patients(ours.genesis, 2))
    blocks = early_blocks(ours, 5)
    monkeypatch.setattr(header_intake, "HELD_BLOCKS_MAX", 3)
    monkeypatch.setattr(header_intake, "HELD_HEADERS_MAX", 2)
    for block in blocks:
        assert theirs.chain.add_block(block, START_MS)
        assert theirs.chain.add_headers([block.sealed_header], START_MS) == 0
    theirs.chain.tick(blocks[-1].body.time_ms)
    assert sum(theirs.chain.has_block(block.block_id) for block in blocks) == 3
    assert len(theirs.chain.tree) == 4


def test_bytes_that_wait_are_bounded(
    pair: tuple[Node, Node], monkeypatch: pytest.MonkeyPatch
) -> None:  # SPEC-FORK-6
    ours, theirs = pair
    ours.submit(*patients(ours.genesis, 2))
    blocks = early_blocks(ours, 3)
    monkeypatch.setattr(header_intake, "HELD_BYTES_MAX", 2 * len(blocks[0].transactions))
    for _ in range(2):  # the same again takes no more room
        for block in blocks:
            assert theirs.chain.add_block(block, START_MS)
    theirs.chain.tick(blocks[-1].body.time_ms)
    assert sum(theirs.chain.has_block(block.block_id) for block in blocks) == 2
    assert theirs.chain._intake._held_bytes == 0


def test_what_could_not_be_taken_anyway_does_not_wait(pair: tuple[Node, Node]) -> None:  # SPEC-FORK-6
    ours, theirs = pair
    (block,) = early_blocks(ours, 1)
    spoiled = replace(block, seal=block.seal[:-1] + bytes([block.seal[-1] ^ 1]))
    with pytest.raises(BlockFault):
        theirs.chain.add_block(spoiled, START_MS)
    ours.take(block)
    (orphan,) = early_blocks(ours, 1)
    with pytest.raises(BlockFault) as caught:
        theirs.chain.add_block(orphan, START_MS)
    assert caught.value.code == Code.UNKNOWN_PARENT
    theirs.chain.tick(orphan.body.time_ms)
    assert theirs.chain.tip.height == 0


def test_more_headers_than_a_message_holds(pair: tuple[Node, Node]) -> None:  # SPEC-FORK-5
    ours, theirs = pair
    (block,) = ours.mine()
    with pytest.raises(BlockFault) as caught:
        theirs.chain.add_headers([block.sealed_header] * (HEADERS_MAX + 1), ours.now_ms)
    assert caught.value.code == Code.OVERSIZED


def test_blocks_become_final_also_when_nobody_asks(
    pair: tuple[Node, Node], monkeypatch: pytest.MonkeyPatch
) -> None:  # SPEC-FORK-9
    ours, theirs = pair
    monkeypatch.setattr(forks, "UNSETTLED_BLOCKS_MAX", 5)
    for block in ours.mine(20):
        theirs.chain.add_block(block, ours.now_ms)
    assert theirs.chain.final.height >= 10
    assert len(theirs.store.layers) < 10
    theirs.drain()
    assert theirs.chain.final.height == 16


def test_a_full_tree_keeps_the_blocks_that_it_has(pair: tuple[Node, Node]) -> None:
    ours, theirs = pair
    theirs.chain.tree._entries_max = 5
    (lone,) = theirs.mine()
    blocks = ours.mine(6)
    with pytest.raises(BlockFault) as caught:
        theirs.take(*blocks)
    assert (caught.value.code, caught.value.condemns) == (Code.TREE_FULL, False)
    assert theirs.chain.tip.block_id == blocks[2].block_id
    assert theirs.chain.has_block(lone.block_id)


# Look-ups.


class FewBlocks:
    """Final blocks by height, as the store tells of them."""

    def __init__(self, ids: list[bytes]) -> None:
        self.ids = ids
        self.asked = 0

    def entry_at(self, height: int) -> BlockEntry | None:
        self.asked += 1
        if height >= len(self.ids):
            return None
        return BlockEntry(NOWHERE, self.ids[height], 0, 0, 0)


def test_final_ids_with_equal_and_overlapping_beginnings() -> None:  # SPEC-FORK-10
    same = bytes(8)
    ids = [same + bytes([number]) * 24 for number in range(6)]
    ids += [b"\1" * 32, b"\0\1" * 16, b"\1\0" * 16]
    blocks = FewBlocks(ids)
    found = FinalIds(blocks)  # type: ignore[arg-type]
    assert blocks.asked == 0
    for height, block_id in enumerate(ids):
        assert found.height_of(block_id, len(ids)) == height
        assert found.height_of(block_id, height) is None
    assert found.height_of(same + b"\7" * 24, len(ids)) is None
    assert found.height_of(b"\0\0\1\1" * 8, len(ids)) is None


def test_locators_stay_short(pair: tuple[Node, Node]) -> None:  # SPEC-FORK-10
    ours, _ = pair
    ours.mine(40)
    long = [bytes([number]) * 32 for number in range(100)] + [ours.branch[39]]
    assert len(ours.chain.locator()) <= LOCATOR_IDS_MAX
    # Behind that many ids nobody looks: the answer begins at genesis.
    assert ours.chain.headers_after(long, 1)[0].body.height == 1
    assert ours.chain.headers_after(long[-20:], 1)[0].body.height == 40


@given(st.data())
def test_the_head_of_a_stored_block(data: st.DataObject) -> None:  # SPEC-FORK-10
    genesis = make_genesis([SigningKey.generate()])
    block = replace(genesis.block(bytes(32)), seal=data.draw(st.binary(max_size=400)))
    encoded = block.encode()
    sealed = read_sealed(encoded[:4_096], 7)
    assert (sealed.block_id, sealed.body, sealed.seal, sealed.count) == (
        block.block_id,
        block.body,
        block.seal,
        7,
    )
    cut = encoded[: data.draw(st.integers(0, len(encoded) - 1))]
    try:
        found = read_sealed(cut, 7)
    except InputError:
        return
    assert found == sealed


@given(st.binary(max_size=300))
def test_the_head_of_anything(data: bytes) -> None:
    with pytest.raises(FastLedgerError):
        read_sealed(data, 0)


def test_a_place_that_is_known_by_its_id_alone() -> None:
    tip = EngineTip(7, b"\5" * 32, START_MS, b"seal", 0x207FFFFF, SPACING_MS)
    known = KnownById.at(tip)
    assert (known.block_id, known.body.height, known.seal) == (tip.block_id, 7, b"seal")


# The chain's thread.


def test_jobs_that_wait_are_bounded(
    tmp_path: Path, genesis: Genesis, keys: list[SigningKey], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fork_pipeline, "FORK_JOBS_MAX", 3)
    clock = Clock()
    with Ledger.join(
        tmp_path / "ledger", genesis, node_key=keys[0], options=LedgerOptions(clock_ms=clock)
    ) as ledger:
        assert ledger.forks is not None
        done: list[int] = []

        def job(number: int) -> Callable[[object], None]:
            return lambda _: done.append(number)

        with ledger.forks.paused():
            for number in range(3):
                ledger.forks.post(job(number))
            with pytest.raises(LedgerBusyError) as caught:
                ledger.forks.post(job(3))
            assert caught.value.retry_after_ms > 0
        ledger.forks.call(lambda _: None).result(10)
        assert done == [0, 1, 2]


def test_a_subscriber_may_use_the_chain(tmp_path: Path, genesis: Genesis, keys: list[SigningKey]) -> None:
    """As a network does that is told of a block and asks for more: it hears of what it did, too."""
    clock = Clock()
    with Ledger.join(
        tmp_path / "ledger", genesis, node_key=keys[0], options=LedgerOptions(clock_ms=clock)
    ) as ledger:
        assert ledger.forks is not None
        chain, heights = ledger.forks._chain, []

        def mine_on(_events: object) -> None:
            heights.append(chain.tip.height)
            if chain.tip.height < 4:
                clock.advance(SPACING_MS)
                mine_block(chain, clock.now_ms)

        ledger.forks.subscribe(mine_on)
        clock.advance(SPACING_MS)
        ledger.forks.call(lambda chain: mine_block(chain, clock.now_ms)).result(10)
        assert heights == [1, 2, 3, 4]

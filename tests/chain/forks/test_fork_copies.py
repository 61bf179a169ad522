"""Copies of blocks: what is wrong with one never condemns the block (SPEC-FORK-1..5), and hints."""

import struct
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from fork_world import SPACING_MS, Node, make_genesis, patients, search
from world import START_MS

from fastledger import Code, SigningKey
from fastledger._native.ecdsa import parity_hints
from fastledger.chain import admission
from fastledger.chain.forks.events import WrongHints
from fastledger.chain.forks.mining import mine_block
from fastledger.crypto.signing import verify_batch
from fastledger.errors import BlockFault
from fastledger.model.block import Block, SealedHeader
from fastledger.model.receipt import make_seal


def flip(data: bytes, at: int) -> bytes:
    """One bit flipped."""
    return data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :]


@pytest.fixture
def pair(tmp_path: Path) -> Iterator[tuple[Node, Node]]:
    keys = [SigningKey.generate() for _ in range(2)]
    genesis = make_genesis(keys)
    found = tuple(Node(tmp_path / str(at), genesis, key).start() for at, key in enumerate(keys))
    yield found[0], found[1]
    for node in found:
        node.stop()


@pytest.fixture
def block(pair: tuple[Node, Node]) -> Block:
    pair[0].submit(*patients(pair[0].genesis, 4))
    return pair[0].mine()[0]


def bad_signature(block: Block) -> Block:
    return replace(block, transactions=flip(block.transactions, block.offsets[2] - 1))


def another_transaction(block: Block) -> Block:
    return replace(block, transactions=flip(block.transactions, block.offsets[2] - 100))


def missing_transaction(block: Block) -> Block:
    end = block.offsets[-2]
    return replace(
        block,
        transactions=block.transactions[:end],
        lengths=block.lengths[:-4],
        results=block.results[:-2],
        hints=b"",
    )


def repeated_transaction(block: Block) -> Block:
    last = block.transaction_bytes(block.count - 1)
    return replace(
        block,
        transactions=block.transactions + last,
        lengths=block.lengths + block.lengths[-4:],
        results=block.results + block.results[-2:],
        hints=b"",
    )


def swapped_transactions(block: Block) -> Block:
    parts = [block.transaction_bytes(index) for index in (1, 0, 2, 3)]
    return replace(
        block, transactions=b"".join(parts), lengths=struct.pack("<4I", *map(len, parts)), hints=b""
    )


def empty_transaction(block: Block) -> Block:
    return replace(block, lengths=block.lengths + bytes(4), results=block.results + bytes(2), hints=b"")


def other_lengths(block: Block) -> Block:
    lengths = list(struct.unpack("<4I", block.lengths))
    lengths[0], lengths[1] = lengths[0] - 1, lengths[1] + 1
    return replace(block, lengths=struct.pack("<4I", *lengths))


def length_beyond_the_bytes(block: Block) -> Block:
    lengths = list(struct.unpack("<4I", block.lengths))
    lengths[3] = 2**32 - 1
    return replace(block, lengths=struct.pack("<4I", *lengths))


def length_beyond_the_bytes_within(block: Block) -> Block:
    """The second transaction ends behind the bytes, and what follows comes back to them modulo 2^32."""
    lengths = list(struct.unpack("<4I", block.lengths))
    lengths[1], lengths[2] = lengths[1] + 2**31, lengths[2] + 2**31
    return replace(block, lengths=struct.pack("<4I", *lengths))


def cut_lengths(block: Block) -> Block:
    return replace(block, lengths=block.lengths[:-1])


def too_long(block: Block) -> Block:
    return replace(block, transactions=block.transactions + b"x")


def other_results(block: Block) -> Block:
    return replace(block, results=flip(block.results, 3))


def fewer_results(block: Block) -> Block:
    return replace(block, results=block.results[:-2])


def bad_seal(block: Block) -> Block:
    return replace(block, seal=flip(block.seal, len(block.seal) - 5))


def no_seal(block: Block) -> Block:
    return replace(block, seal=b"")


def other_body(block: Block) -> Block:
    return replace(block, body=replace(block.body, extra_nonce=block.body.extra_nonce + 1))


SPOILED = [
    bad_signature,
    another_transaction,
    missing_transaction,
    repeated_transaction,
    swapped_transactions,
    empty_transaction,
    other_lengths,
    length_beyond_the_bytes,
    length_beyond_the_bytes_within,
    cut_lengths,
    too_long,
    other_results,
    fewer_results,
    bad_seal,
    no_seal,
    other_body,
]


@pytest.mark.parametrize("spoil", SPOILED)
@pytest.mark.parametrize("header_first", [True, False])
@pytest.mark.parametrize("pooled", [True, False])
def test_a_spoiled_copy_does_not_condemn_the_block(
    pair: tuple[Node, Node],
    block: Block,
    spoil: Callable[[Block], Block],
    header_first: bool,
    pooled: bool,
) -> None:  # SPEC-FORK-1, SPEC-FORK-2, SPEC-FORK-3
    _, theirs = pair
    now_ms = block.body.time_ms
    if pooled:
        encoded = [block.transaction_bytes(index) for index in range(block.count)]
        assert theirs.chain.submit(encoded, now_ms) == [Code.OK] * block.count
    if header_first:
        assert theirs.chain.add_headers([block.sealed_header], now_ms) == 1
    spoiled = spoil(block)
    assert spoiled.block_id == block.block_id
    for _ in range(2):
        with pytest.raises(BlockFault) as caught:
            theirs.chain.add_block(spoiled, now_ms)
        assert not caught.value.condemns
        assert caught.value.block_id == block.block_id
    assert theirs.chain.tip.height == 0
    assert not theirs.chain.has_block(block.block_id)
    if header_first:
        assert theirs.chain.wanted(5) == [block.block_id]
    # A good copy from another peer, and what is served is that.
    assert theirs.chain.add_block(block, now_ms)
    assert theirs.chain.tip.block_id == block.block_id
    assert theirs.chain.block(block.block_id) == block
    theirs.restart()
    assert theirs.chain.block(block.block_id) == block


def test_the_header_of_a_block_may_come_with_another_good_seal(
    pair: tuple[Node, Node], block: Block
) -> None:  # SPEC-FORK-4
    """A proposer can sign two seals, of different counts: the one of the good copy is passed on."""
    ours, theirs = pair
    assert ours.key is not None
    other = make_seal(ours.key, ours.genesis.chain_id, block.header, block.body, block.count + 1)
    header = SealedHeader(block.header, block.body, other, block.count + 1)
    assert theirs.chain.add_headers([header], block.body.time_ms) == 1
    assert theirs.chain.add_block(block, block.body.time_ms)
    assert theirs.chain.headers_after([], 5) == [block.sealed_header]


def test_a_header_that_nobody_sealed_is_not_remembered(
    pair: tuple[Node, Node], block: Block
) -> None:  # SPEC-FORK-5
    _, theirs = pair
    bad = replace(block.sealed_header, seal=flip(block.seal, len(block.seal) - 1))
    with pytest.raises(BlockFault) as caught:
        theirs.chain.add_headers([bad], block.body.time_ms)
    assert (caught.value.condemns, caught.value.index) == (False, 0)
    assert len(theirs.chain.tree) == 1
    assert theirs.chain.add_headers([block.sealed_header], block.body.time_ms) == 1


def test_headers_before_the_bad_one_are_taken(pair: tuple[Node, Node]) -> None:  # SPEC-FORK-5
    ours, theirs = pair
    headers = [block.sealed_header for block in ours.mine(4)]
    headers[2] = replace(headers[2], seal=b"")
    with pytest.raises(BlockFault) as caught:
        theirs.chain.add_headers(headers, ours.now_ms)
    assert caught.value.index == 2
    assert len(theirs.chain.tree) == 3


def test_headers_before_one_that_is_known_to_be_invalid_are_taken(
    pair: tuple[Node, Node], block: Block
) -> None:  # SPEC-FORK-5
    ours, theirs = pair
    bad = rebuilt(ours, block, state_root=bytes(32))
    with pytest.raises(BlockFault):
        theirs.chain.add_block(bad, block.body.time_ms)
    with pytest.raises(BlockFault) as caught:
        theirs.chain.add_headers([block.sealed_header, bad.sealed_header], block.body.time_ms)
    assert (caught.value.index, caught.value.condemns) == (1, True)
    assert theirs.chain.wanted(5) == [block.block_id]


def rebuilt(node: Node, block: Block, **roots: object) -> Block:
    """Another block with the same transactions, mined and sealed, whose body differs."""
    template = node.chain.template(node.now_ms)
    assert template is not None
    body = replace(block.body, proposer=template.body.proposer, **roots)  # type: ignore[arg-type]
    made = replace(
        template, body=body, parent_id=block.header.previous_id, bits=block.header.bits, transactions=()
    )
    header80 = search(made.make_header)
    header, body = made.header_of(header80, 0)
    assert node.key is not None
    seal = make_seal(node.key, node.genesis.chain_id, header, body, block.count)
    return replace(block, header=header, body=body, seal=seal)


@pytest.mark.parametrize("root", ["state_root", "history_root"])
def test_a_wrong_root_condemns_the_block_for_good(
    pair: tuple[Node, Node], block: Block, root: str
) -> None:  # SPEC-FORK-3
    ours, theirs = pair
    bad = rebuilt(ours, block, **{root: bytes(32)})
    for _ in range(2):
        with pytest.raises(BlockFault) as caught:
            theirs.chain.add_block(bad, block.body.time_ms)
        assert caught.value.condemns
    assert theirs.chain.tip.height == 0
    assert not theirs.chain.has_block(bad.block_id)
    theirs.restart()
    assert theirs.chain.tip.height == 0
    theirs.take(block)
    assert theirs.chain.tip.block_id == block.block_id


@pytest.mark.parametrize("root", ["tx_root", "result_root"])
def test_a_root_that_no_copy_matches_is_a_fault_of_every_copy(
    pair: tuple[Node, Node], block: Block, root: str
) -> None:  # SPEC-FORK-3
    """Nobody can tell it from a spoiled copy; such a block is never stored, and so never built on."""
    ours, theirs = pair
    bad = rebuilt(ours, block, **{root: bytes(32)})
    with pytest.raises(BlockFault) as caught:
        theirs.chain.add_block(bad, block.body.time_ms)
    assert not caught.value.condemns
    theirs.take(block)
    assert theirs.chain.tip.block_id == block.block_id


def test_a_transaction_that_stood_before_condemns_the_block(
    pair: tuple[Node, Node], block: Block
) -> None:  # SPEC-FORK-3
    ours, theirs = pair
    theirs.take(block)
    ours.now_ms += SPACING_MS
    parent = ours.chain.tip
    bad = rebuilt(
        ours,
        replace(block, header=replace(block.header, previous_id=parent.block_id)),
        height=2,
        time_ms=parent.time_ms + SPACING_MS,
    )
    with pytest.raises(BlockFault) as caught:
        theirs.chain.add_block(bad, ours.now_ms)
    assert caught.value.condemns
    assert theirs.chain.tip.block_id == block.block_id


def test_an_expired_transaction_condemns_the_block(pair: tuple[Node, Node], block: Block) -> None:
    ours, theirs = pair
    late = START_MS + 48 * 60 * 60 * 1_000
    bad = rebuilt(ours, block, time_ms=late)
    with pytest.raises(BlockFault) as caught:
        theirs.chain.add_block(bad, late)
    assert caught.value.condemns


# Hints.


def wrong_hints_of(node: Node) -> list[WrongHints]:
    return [event for event in node.drain() if isinstance(event, WrongHints)]


def test_right_hints_and_none_are_both_fine(pair: tuple[Node, Node], block: Block) -> None:  # SPEC-FORK-4
    ours, theirs = pair
    assert len(block.hints) == 1 + 33 * block.count
    for given in (block.hints, b"", parity_hints(block.hints)):
        assert theirs.chain.add_block(replace(block, hints=given), block.body.time_ms)
        assert wrong_hints_of(theirs) == []
        assert theirs.chain.block(block.block_id) == block
        theirs.stop()
        theirs.root = theirs.root.with_name(theirs.root.name + "x")
        theirs.start()
    assert ours.chain.block(block.block_id) == block


@pytest.mark.parametrize(
    "spoil",
    [
        lambda hints: flip(hints, 2),
        lambda hints: flip(hints, len(hints) - 1),
        lambda hints: hints[:-1],
        lambda hints: flip(hints, 0),
        lambda hints: flip(parity_hints(hints), 3),
        lambda hints: b"junk",
    ],
)
def test_wrong_hints_are_told_and_replaced(
    pair: tuple[Node, Node], block: Block, spoil: Callable[[bytes], bytes]
) -> None:  # SPEC-FORK-4
    _, theirs = pair
    spoiled = replace(block, hints=spoil(block.hints))
    assert theirs.chain.add_block(spoiled, block.body.time_ms)
    assert wrong_hints_of(theirs) == [WrongHints(block.block_id)]
    assert theirs.chain.block(block.block_id) == block


def test_what_the_pool_holds_is_not_verified_again(
    pair: tuple[Node, Node], block: Block, monkeypatch: pytest.MonkeyPatch
) -> None:  # SPEC-POOL-3
    _, theirs = pair
    encoded = [block.transaction_bytes(index) for index in range(block.count)]
    theirs.chain.submit(encoded[:3], block.body.time_ms)
    counts: list[int] = []

    def counted(digests: bytes, *rest: object, **options: object) -> object:
        counts.append(len(digests) // 32)
        return verify_batch(digests, *rest, **options)  # type: ignore[call-overload]

    monkeypatch.setattr(admission, "verify_batch", counted)
    assert theirs.chain.add_block(block, block.body.time_ms)
    assert counts == [1]
    assert wrong_hints_of(theirs) == []
    assert theirs.chain.block(block.block_id) == block


def test_a_rival_block_with_the_same_transactions_is_not_verified_again(
    pair: tuple[Node, Node], monkeypatch: pytest.MonkeyPatch
) -> None:  # SPEC-POOL-3
    ours, theirs = pair
    transactions = patients(ours.genesis, 3)
    ours.submit(*transactions)
    theirs.submit(*transactions)
    first, second = mine_block(ours.chain, ours.now_ms), mine_block(theirs.chain, theirs.now_ms)
    monkeypatch.setattr(admission, "verify_batch", lambda *_, **__: pytest.fail("verified again"))
    assert ours.chain.add_block(second, ours.now_ms)
    assert theirs.chain.add_block(first, ours.now_ms)

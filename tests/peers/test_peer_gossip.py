"""Transactions by inventory, blocks in compact form, and what both cost on the wire (SPEC-PEER-18, 19, 28..31)."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from fork_world import make_genesis
from peer_net import Net
from world import START_MS

from fastledger import Genesis, SigningKey, Transaction
from fastledger.chain.forks.mining import mine_block
from fastledger.peers.wire import (
    BlockMessage,
    BlockTransactions,
    Compact,
    GetTransactions,
    Inventory,
    Transactions,
)
from fastledger.subjects.record import RecordPut


@pytest.fixture
def keys() -> list[SigningKey]:
    return [SigningKey.generate() for _ in range(4)]


@pytest.fixture
def genesis(keys: list[SigningKey]) -> Genesis:
    return make_genesis(keys, finality_depth=6)


@pytest.fixture
def net(tmp_path: Path, genesis: Genesis) -> Iterator[Net]:
    made = Net(tmp_path, genesis)
    yield made
    made.close()


def records(genesis: Genesis, count: int, *, first: int = 0) -> list[Transaction]:
    """Records as a hospital makes them, of the size of the common case: two index tokens."""
    key = SigningKey.generate()
    return [
        Transaction.sign(
            key,
            chain_id=genesis.chain_id,
            body=RecordPut(
                record=number.to_bytes(16, "big"),
                folder=bytes(16),
                epoch=0,
                digest=number.to_bytes(32, "big"),
                size=2_000,
                tokens=[bytes(15) + bytes([index]) for index in range(2)],
            ),
            issued_ms=START_MS,
            expires_ms=START_MS + 3_600_000,
            nonce=number,
        )
        for number in range(first, first + count)
    ]


def test_bytes_on_the_wire_per_transaction_and_node(
    net: Net, keys: list[SigningKey], genesis: Genesis
) -> None:  # SPEC-PEER-31
    members = net.mesh(keys)
    assert net.run(5_000, net.joined)
    net.bytes_by_tag.clear()
    total = size = 0
    for round_number in range(8):
        transactions = records(genesis, 250, first=1_000 * round_number)
        for index, member in enumerate(members):
            part = transactions[index::4]
            assert set(net.submit(member, part)) == {0}
        net.run(1_000)
        assert {len(member.chain.mempool) for member in members} == {250}
        block = net.mine(members[round_number % 4])
        assert block.count == 250
        net.run(1_000)
        assert net.agree()
        total += 250
        size += sum(len(item.encoded) for item in transactions)
    on_wire = sum(net.bytes_by_tag.values())
    ratio = on_wire / 4 / size
    print(
        f"\n{size / total:.0f} bytes a transaction, {on_wire / total / 4:.0f} on the wire a node: {ratio:.2f}"
    )
    for kind in (Transactions, GetTransactions, Inventory, Compact):
        print(kind.__name__, net.bytes_of(kind) / total / 4)
    # Each byte is counted once, at its sender; 0.75 of this is what three of four nodes must be sent at the least.
    assert ratio <= 1.5
    assert net.bytes_of(BlockMessage) == net.bytes_of(BlockTransactions) == 0


def test_nobody_is_told_what_he_told(
    net: Net, keys: list[SigningKey], genesis: Genesis
) -> None:  # SPEC-PEER-28
    one, other = net.mesh(keys[:2])
    net.run(5_000, net.joined)
    net.bytes_by_tag.clear()
    net.submit(one, records(genesis, 10))
    net.run(2_000)
    assert len(other.chain.mempool) == 10
    # One inventory from the one who had them, and none back.
    assert net.bytes_of(Inventory) == 7 + 3 + 320
    assert net.bytes_of(GetTransactions) == 7 + 3 + 320


def test_each_body_crosses_to_each_node_once(net: Net, keys: list[SigningKey], genesis: Genesis) -> None:
    # SPEC-PEER-30
    members = net.mesh(keys)
    net.run(5_000, net.joined)
    net.bytes_by_tag.clear()
    items = records(genesis, 40)
    net.submit(members[0], items)
    net.run(3_000)
    assert {len(member.chain.mempool) for member in members} == {40}
    bodies = sum(len(item.encoded) for item in items)
    assert 3 * bodies < net.bytes_of(Transactions) < 3 * bodies * 1.05


def test_a_new_link_is_told_what_waits(
    net: Net, keys: list[SigningKey], genesis: Genesis
) -> None:  # SPEC-PEER-28
    first = net.add("first", keys[0])
    net.submit(first, records(genesis, 30))
    later = net.add("later", keys[1], peers=["first"])
    assert net.run(5_000, lambda: len(later.chain.mempool) == 30)


def test_the_next_teller_is_asked_when_the_first_is_late(
    net: Net, keys: list[SigningKey], genesis: Genesis
) -> None:  # SPEC-PEER-30
    node = net.add("node", keys[0])
    item = records(genesis, 1)[0]
    mute = net.stranger(node, name="mute").greet()
    good = net.stranger(node, name="good").greet()
    gone = net.stranger(node, name="gone").greet()
    mute.say(Inventory(item.txid))
    gone.say(Inventory(item.txid))
    good.say(Inventory(item.txid))
    net.run(1_000)
    assert (len(mute.heard(GetTransactions)), gone.heard(GetTransactions)) == (1, [])
    node.network.closed(gone.victim_link, net.now_ms)
    net.run(10_000)
    assert good.heard(GetTransactions)
    good.say(Transactions([item.encoded], b""))
    assert item.txid in node.chain.mempool
    # What comes late is no offence.
    mute.say(Transactions([item.encoded], b""))
    net.run(100)
    assert mute.is_open


def test_a_link_that_ends_hands_its_requests_on(net: Net, keys: list[SigningKey], genesis: Genesis) -> None:
    # SPEC-PEER-30
    node = net.add("node", keys[0])
    item = records(genesis, 1)[0]
    first = net.stranger(node, name="first").greet()
    second = net.stranger(node, name="second").greet()
    for stranger in (first, second):
        stranger.say(Inventory(item.txid))
    net.run(50)
    node.network.closed(first.victim_link, net.now_ms)
    net.settle(node)
    net.run(50)
    assert second.heard(GetTransactions)


def test_known_and_decided_transactions_are_not_asked_for_again(
    net: Net, keys: list[SigningKey], genesis: Genesis
) -> None:  # SPEC-PEER-28
    node = net.add("node", keys[0])
    items = records(genesis, 3)
    net.submit(node, items[:2])
    net.mine(node)
    net.submit(node, items[2:])
    stranger = net.stranger(node, name="s").greet()
    stranger.say(Inventory(b"".join(item.txid for item in items)))
    net.run(1_000)
    assert stranger.heard(GetTransactions) == []


def test_what_was_asked_for_and_is_gone_is_said_to_be_missing(
    net: Net, keys: list[SigningKey], genesis: Genesis
) -> None:  # SPEC-PEER-30
    node = net.add("node", keys[0])
    item = records(genesis, 1)[0]
    net.submit(node, [item])
    stranger = net.stranger(node, name="s").greet()
    stranger.say(GetTransactions(item.txid + bytes(32)))
    net.run(50)
    answer = stranger.heard(Transactions)[0]
    assert (answer.bodies, answer.missing) == ([item.encoded], bytes(32))


def test_many_bodies_come_in_several_messages(
    net: Net, keys: list[SigningKey], genesis: Genesis, monkeypatch: pytest.MonkeyPatch
) -> None:  # SPEC-PEER-29
    monkeypatch.setattr("fastledger.peers.gossip.PEER_TRANSACTIONS_BYTES", 1_000)
    one, other = net.mesh(keys[:2])
    net.run(5_000, net.joined)
    net.submit(one, records(genesis, 20))
    assert net.run(5_000, lambda: len(other.chain.mempool) == 20)
    assert net.bytes_of(Transactions) > 20 * 302


def test_an_inventory_waits_for_a_peer_that_does_not_read(
    net: Net, keys: list[SigningKey], genesis: Genesis
) -> None:  # SPEC-PEER-11
    node = net.add("node", keys[0])
    stranger = net.stranger(node, name="s").greet()
    net.run(100)
    link = node.network.link(stranger.victim_link)
    assert link is not None
    link.unsent = 2**23
    net.submit(node, records(genesis, 5))
    net.run(1_000)
    assert stranger.heard(Inventory) == []
    node.network.sent(stranger.victim_link, 2**23, net.now_ms)
    net.settle(node)
    net.run(1_000)
    assert len(stranger.heard(Inventory)[0].txids) == 5 * 32


def test_a_block_crosses_each_link_once_and_small(
    net: Net, keys: list[SigningKey], genesis: Genesis
) -> None:  # SPEC-PEER-18
    members = net.mesh(keys)
    net.run(5_000, net.joined)
    net.submit(members[0], records(genesis, 100))
    net.run(3_000)
    net.bytes_by_tag.clear()
    net.mine(members[1])
    assert net.run(3_000, net.agree)
    net.run(3_000)
    one = 100 * 8 + 500
    # Three links from the miner, and at most one direction of the three others each twice.
    assert 3 * 100 * 8 < net.bytes_of(Compact) < 9 * one
    assert net.bytes_of(BlockMessage) == net.bytes_of(BlockTransactions) == 0
    # Told once: nothing more is said of it while nothing happens.
    net.bytes_by_tag.clear()
    net.run(20_000)
    assert net.bytes_of(Compact) == 0


def test_a_block_reaches_a_node_without_any_of_its_transactions(
    net: Net, keys: list[SigningKey], genesis: Genesis
) -> None:  # SPEC-PEER-18
    one, other = net.mesh(keys[:2])
    net.run(5_000, net.joined)
    one.chain.submit([item.encoded for item in records(genesis, 50)], net.now_ms)
    net.mine(one)
    assert net.run(2_000, net.agree)
    assert net.bytes_of(BlockTransactions) > 50 * 300
    assert other.chain.mempool.find(records(genesis, 1)[0].txid) is None


def test_what_a_reorganisation_puts_back_is_told_to_who_lacks_it(
    net: Net, keys: list[SigningKey], genesis: Genesis
) -> None:  # SPEC-PEER-28
    one, other = net.mesh(keys[:2])
    net.run(5_000, net.joined)
    items = records(genesis, 5)
    one.chain.submit([item.encoded for item in items], net.now_ms)
    # Both mine at once, so that neither block is worth fetching; the other's branch grows.
    ours = mine_block(one.chain, net.now_ms)
    mine_block(other.chain, net.now_ms)
    assert ours.count == 5
    net.settle(one)
    net.settle(other)
    net.run(2_000)
    assert not other.chain.has_block(ours.block_id)
    net.mine(other)
    assert net.run(5_000, net.agree)
    assert len(one.chain.mempool) == 5
    assert net.run(5_000, lambda: len(other.chain.mempool) == 5)

"""Transactions by inventory, blocks in compact form, and what both cost on the wire (SPEC-PEER-18, 19, 28..31)."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from fork_world import make_genesis
from peer_net import Net
from world import START_MS

from fastledger import Genesis, SigningKey, Transaction
from fastledger.model.bodies import RecordPut
from fastledger.peers.wire import (
    BlockMessage,
    BlockTransactions,
    Compact,
    GetTransactions,
    Inventory,
    Transactions,
)


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
    print(f"\n{size / total:.0f} bytes a transaction, {on_wire / total / 4:.0f} on the wire a node: {ratio:.2f}")
    for kind in (Transactions, GetTransactions, Inventory, Compact):
        print(kind.__name__, net.bytes_of(kind) / total / 4)
    # Each byte is counted once, at its sender; 0.75 of this is what three of four nodes must be sent at the least.
    assert ratio <= 1.5
    assert net.bytes_of(BlockMessage) == net.bytes_of(BlockTransactions) == 0

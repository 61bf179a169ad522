"""Headers first, blocks from several peers: late joiners, partitions, stalls (SPEC-PEER-13..17)."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from fork_world import make_genesis, patients
from peer_net import Net

from fastledger import SigningKey


@pytest.fixture
def keys() -> list[SigningKey]:
    return [SigningKey.generate() for _ in range(4)]


@pytest.fixture
def net(tmp_path: Path, keys: list[SigningKey]) -> Iterator[Net]:
    made = Net(tmp_path, make_genesis(keys, finality_depth=6))
    yield made
    made.close()


def test_four_nodes_join_and_follow_one_miner(net: Net, keys: list[SigningKey]) -> None:
    members = net.mesh(keys)
    assert net.run(5_000, net.joined)
    for round_number in range(6):
        net.mine(members[round_number % 4])
        net.run(2_000)
        assert net.agree()
    assert members[0].chain.tip.height == 6
    assert not any(member.banned for member in members)

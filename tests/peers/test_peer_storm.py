"""Whole networks under seeded weather: links that end, partitions, delays, networks that begin anew (SPEC-PEER-13)."""

import random
from pathlib import Path

import pytest
from fork_world import make_genesis, patients
from peer_net import Member, Net

from fastledger import SigningKey, Transaction
from fastledger.peers.network import PeerNetwork
from fastledger.peers.settings import CloseCode


class Storm:
    """One seeded run."""

    def __init__(self, root: Path, seed: int) -> None:
        self.rng = random.Random(seed)
        keys = [SigningKey.generate() for _ in range(self.rng.choice([3, 4, 5]))]
        longest = self.rng.choice([5, 60, 400])
        self.net = Net(root, make_genesis(keys, finality_depth=40), seed=seed, delay_ms=(1, longest))
        self.net.split = self.rng.random() < 0.5
        self.members = self.net.mesh(keys)
        self.txids: list[bytes] = []
        self.blocks = 0

    def step(self) -> None:
        draw = self.rng.random()
        member = self.rng.choice(self.members)
        if draw < 0.35 and self.blocks < 30:
            self.blocks += 1
            self.net.mine(member)
        elif draw < 0.65:
            items = patients(self.net.genesis, self.rng.randint(1, 4))
            assert set(self.net.submit(member, items)) == {0}
            self.txids += [item.txid for item in items]
        elif draw < 0.80:
            other = self.rng.choice(self.members)
            self.net.cut(member.name, other.name)
        elif draw < 0.86:
            some = [other.name for other in self.members if self.rng.random() < 0.5]
            rest = [other.name for other in self.members if other.name not in some]
            self.net.part(some, rest)
        elif draw < 0.94:
            self.net.heal()
        else:
            self.renew(member)
        self.net.run(self.rng.choice([0, 20, 300, 3_000]))

    def renew(self, member: Member) -> None:
        """A node's peer network begins anew over the chain that it has."""
        for info in member.network.peers():
            member.network.close(member.network._links[info.link], CloseCode.DONE)
        self.net.settle(member)
        rng = random.Random(self.rng.getrandbits(64))
        settings = member.network.settings
        member.network = PeerNetwork(member.node.chain, settings, rng=rng, now_ms=self.net.now_ms)
        self.net._wake.pop(member.name, None)
        self.net.settle(member)

    def calm(self) -> None:
        """The weather ends: everyone comes to one tip, and no transaction is lost."""
        net = self.net
        net.heal()
        assert net.run(900_000, net.joined), [member.network.peers() for member in self.members]
        for _ in range(2):
            net.mine(self.rng.choice(self.members))
            net.run(20_000)
        assert net.run(900_000, net.agree), [member.chain.tip.height for member in self.members]
        while any(len(member.chain.mempool) for member in self.members):
            net.run(20_000)
            net.mine(max(self.members, key=lambda member: len(member.chain.mempool)))
            assert net.run(60_000, net.agree)
        assert not any(member.banned for member in self.members)
        assert set(self.txids) == ordered(self.members[0])


def ordered(member: Member) -> set[bytes]:
    """The ids of all transactions in the best chain."""
    blocks = [member.chain.block(block_id) for block_id in member.node.branch]
    return {
        Transaction.decode(block.transaction_bytes(index)).txid
        for block in blocks
        for index in range(block.count)
    }


@pytest.mark.parametrize("seed", range(8))
def test_after_the_storm_all_agree_and_nothing_is_lost(tmp_path: Path, seed: int) -> None:
    # SPEC-PEER-13, SPEC-PEER-28
    storm = Storm(tmp_path, seed)
    try:
        for _ in range(60):
            storm.step()
        storm.calm()
    finally:
        storm.net.close()

"""Nodes of two releases among one another: what each knows, and that nobody pays for knowing more (SPEC-RULE-12)."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from beacon import NOTICE, Dim, Light, LightInColour, declared, release
from fork_world import make_genesis
from peer_net import Member, Net, Stranger
from world import START_MS, Clock, new_wallet

from fastledger import Code, SigningKey, Transaction, Wallet
from fastledger.model.body import Body
from fastledger.peers.wire import GetBlocks, GetBlockTransactions, GetTransactions, Inventory, Transactions
from fastledger.subjects.chain import ChainActivate

DEPTH = 4
HEIGHT = 1 + NOTICE + DEPTH
ID = bytes(16)


class Mixed:
    """Two members of the newer release and one of the older."""

    def __init__(self, path: Path) -> None:
        keys = [SigningKey.generate() for _ in range(3)]
        self.wallet: Wallet = new_wallet(Clock(START_MS + 1_000))
        self.genesis = make_genesis(keys, finality_depth=DEPTH, regulators=[self.wallet], rule_set=1)
        self.wallet.join(self.genesis.chain_id)
        self.net = Net(path, self.genesis)
        names = ["new", "other", "old"]
        self.new, self.other, self.old = (
            self.net.add(name, key, peers=names, registry=release(1 if name == "old" else 2))
            for name, key in zip(names, keys, strict=True)
        )
        self.net.run(5_000, self.net.joined)

    def mine(self, member: Member, count: int) -> None:
        for _ in range(count):
            self.net.run(1_000)
            self.net.mine(member)
        self.net.run(2_000)

    def sign(self, body: Body) -> Transaction:
        return self.wallet.sign(body)

    def nobody_is_charged(self) -> None:
        for member in self.net.members.values():
            assert member.banned == []
            assert all(info.points == 0 for info in member.network.peers()), member.name

    def hear(self, teller: Stranger, transaction: Transaction) -> None:
        """A stranger brings a transaction as a peer does."""
        teller.say(Inventory(transaction.txid))
        self.net.run(200)
        assert teller.heard(GetTransactions)
        teller.say(Transactions([transaction.encoded], b""))
        self.net.run(50)


@pytest.fixture
def mixed(tmp_path: Path) -> Iterator[Mixed]:
    with declared():
        made = Mixed(tmp_path)
        yield made
        made.net.close()


def test_peers_tell_which_rule_set_they_know(mixed: Mixed) -> None:
    assert mixed.net.run(5_000, lambda: all(info.ready for info in mixed.new.network.peers()))
    known = {info.organisation: info.rule_set for info in mixed.new.network.peers()}
    assert known == {"other": 2, "old": 1}
    stranger = mixed.net.stranger(mixed.new)
    assert next(info.rule_set for info in mixed.new.network.peers() if info.organisation == stranger.name) == 0


def test_the_older_release_stops_and_stays_a_good_peer(mixed: Mixed) -> None:  # SPEC-RULE-11
    new, old = mixed.new, mixed.old
    vote = mixed.sign(ChainActivate(rule_set=2, height=HEIGHT, release="9.1.0"))
    assert mixed.net.submit(old, [vote]) == [Code.OK]
    mixed.net.run(1_000)
    mixed.mine(old, 3)
    mixed.mine(new, HEIGHT - 4)
    assert {member.chain.tip.height for member in mixed.net.members.values()} == {HEIGHT - 1}
    # Of the new rule set, told by peers and asked for by the old one, which can make nothing of it.
    items = [mixed.sign(Dim(beacon=ID)), mixed.sign(LightInColour(beacon=ID, level=1, colour=1))]
    assert mixed.net.submit(new, items) == [Code.OK, Code.OK]
    mixed.net.run(2_000)
    assert [len(member.chain.mempool) for member in (new, mixed.other, old)] == [2, 2, 0]
    before = mixed.net.bytes_of(GetBlocks) + mixed.net.bytes_of(GetBlockTransactions)
    mixed.mine(new, 5)
    assert new.chain.tip.height == mixed.other.chain.tip.height == HEIGHT + 4
    assert old.chain.tip.height == HEIGHT - 1 and old.chain.release_needed is not None
    assert old.chain.tree.best_header().height == HEIGHT + 4
    # It asks for no block that it could not judge, but for those parts that were under way.
    asked = mixed.net.bytes_of(GetBlocks) + mixed.net.bytes_of(GetBlockTransactions) - before
    assert asked < 100
    mixed.nobody_is_charged()
    # A latecomer can have all that is below from the one that was left behind.
    late = mixed.net.add("late", None, peers=["old"], registry=release(2), discover=False)
    assert mixed.net.run(20_000, lambda: late.chain.tip.height == HEIGHT - 1)
    mixed.nobody_is_charged()


def test_a_kind_that_is_not_in_force_costs_nobody_anything(mixed: Mixed) -> None:
    bodies = [Dim(beacon=ID), LightInColour(beacon=ID, level=1, colour=1)]
    for member in (mixed.new, mixed.old):
        for number, body in enumerate(bodies):
            newer = mixed.net.stranger(member, name=f"newer{member.name}{number}").greet(rule_set=2)
            mixed.hear(newer, mixed.sign(body))
            assert newer.is_open
    assert all(not member.chain.mempool for member in mixed.net.members.values())
    mixed.nobody_is_charged()


def test_a_body_that_fits_nothing_is_charged_to_who_should_know(mixed: Mixed) -> None:
    """From a peer that knows no more than this node, and not from one that may know better."""
    wrong = mixed.wallet.sign(Light(beacon=ID, level=1))
    key = SigningKey.generate()
    body = Light(beacon=bytes(3), level=1)
    wrong = Transaction.sign(
        key,
        chain_id=mixed.genesis.chain_id,
        body=body,
        issued_ms=wrong.issued_ms,
        expires_ms=wrong.expires_ms,
        nonce=1,
    )
    points = {}
    for rule_set in (3, 2):
        name = f"knows{rule_set}"
        stranger = mixed.net.stranger(mixed.new, name=name).greet(rule_set=rule_set)
        mixed.hear(stranger, wrong)
        points[rule_set] = next(info.points for info in mixed.new.network.peers() if info.organisation == name)
        mixed.new.network._gossip._seen.clear()
    assert points[3] == 0 < points[2]

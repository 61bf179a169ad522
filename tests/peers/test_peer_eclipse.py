"""Whom a node is linked with, and who is shut out (SPEC-PEER-22..27)."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from fork_world import make_genesis
from peer_liars import MALLORY, goes_on, is_out
from peer_net import Member, Net

from fastledger import SigningKey
from fastledger.limits import PEER_ADDRESSES_PER_SOURCE_MAX, PEER_LINKS_MAX
from fastledger.peers.wire import GetPeers, Peers, Ping, Pong


@pytest.fixture
def keys() -> list[SigningKey]:
    return [SigningKey.generate() for _ in range(4)]


@pytest.fixture
def net(tmp_path: Path, keys: list[SigningKey]) -> Iterator[Net]:
    made = Net(tmp_path, make_genesis(keys, finality_depth=6))
    yield made
    made.close()


@pytest.fixture
def victim(net: Net, keys: list[SigningKey]) -> Member:
    """Linked with one honest miner."""
    net.add("honest", keys[0])
    victim = net.add("victim", keys[1], peers=["honest"])
    net.run(5_000, lambda: any(info.ready for info in victim.network.peers()))
    return victim


# Eclipse.


def test_inbound_links_are_bounded_for_each_organisation_and_in_all(
    net: Net, victim: Member
) -> None:  # SPEC-PEER-25
    same = [net.stranger(victim, name=f"host{number}", organisation="one") for number in range(10)]
    net.run(100)
    assert sum(stranger.is_open for stranger in same) == 4
    many = [net.stranger(victim, name=f"org{number}") for number in range(PEER_LINKS_MAX)]
    net.run(100)
    assert sum(stranger.is_open for stranger in (*same, *many)) <= 64
    # The link that this node chose itself is untouched.
    assert any(info.organisation == "honest" and info.ready for info in victim.network.peers())
    goes_on(net, victim)


def test_a_full_node_makes_room_by_closing_links_of_whoever_has_most(
    net: Net, keys: list[SigningKey]
) -> None:  # SPEC-PEER-25
    crowded = net.add("crowded", keys[0], links_max=4)
    crowd = [net.stranger(crowded, name=f"host{number}", organisation="crowd") for number in range(4)]
    newcomer = net.stranger(crowded, name="newcomer")
    net.run(100)
    assert newcomer.is_open
    assert sum(stranger.is_open for stranger in crowd) == 3


def test_learned_addresses_are_bounded_and_configured_ones_stay(net: Net, victim: Member) -> None:
    # SPEC-PEER-24
    book = victim.network._book
    for number in range(5):
        stranger = net.stranger(victim, name=f"liar{number}", organisation="liar", inbound=False)
        if not stranger.is_open:
            continue
        stranger.greet()
        net.run(50)
        if stranger.heard(GetPeers):
            stranger.say(Peers([f"fake{number}x{index}:1" for index in range(64)]))
    assert len(book) <= PEER_ADDRESSES_PER_SOURCE_MAX + 3
    assert "honest:1" in book
    goes_on(net, victim)


def test_chosen_links_go_to_distinct_organisations(net: Net, keys: list[SigningKey]) -> None:  # SPEC-PEER-26
    node = net.add("node", keys[0])
    first = net.stranger(node, name="a", organisation="one", inbound=False).greet()
    second = net.stranger(node, name="b", organisation="one", inbound=False)
    other = net.stranger(node, name="c", organisation="two", inbound=False).greet()
    net.run(100)
    assert (first.is_open, second.is_open, other.is_open) == (True, False, True)


def test_a_tip_that_stands_still_makes_a_node_look_elsewhere(
    net: Net, keys: list[SigningKey]
) -> None:  # SPEC-PEER-27
    net.add("far", keys[1])
    eclipsed = net.add("eclipsed", keys[0], outbound_links=1, stale_tip_ms=60_000)
    eclipsed.network._book.learn("far:1", "someone")
    for _ in range(3):
        net.mine(net.members["far"])
    liar = net.stranger(eclipsed, name="liar", inbound=False).greet()
    # The only place for a chosen link is taken by a peer that tells of nothing.
    net.run(1_000)
    assert liar.is_open
    assert eclipsed.chain.tip.height == 0

    def answer_pings() -> bool:
        for ping in liar.heard(Ping):
            liar.inbox.remove(ping)
            liar.say(Pong(ping.nonce, 0, bytes(32), bytes(32)))
        return net.agree()

    assert net.run(180_000, answer_pings)


# Bans.


def test_a_ban_is_on_the_organisation_and_not_on_its_neighbours(net: Net, victim: Member) -> None:
    # SPEC-PEER-22
    bad = net.stranger(victim, name="nat", organisation="bad").greet()
    good = net.stranger(victim, name="nat", organisation="good").greet()
    bad.say_bytes(b"\xff" * 8)
    net.run(100)
    assert (bad.is_open, good.is_open) == (False, True)
    assert net.stranger(victim, name="nat", organisation="good").is_open
    again = net.stranger(victim, name="elsewhere", organisation="bad")
    assert is_out(again)


def test_bans_end_and_survive_a_restart(
    net: Net, victim: Member, keys: list[SigningKey]
) -> None:  # SPEC-PEER-23
    victim.network.ban(MALLORY, 60_000, net.now_ms)
    bans = tuple(victim.network.bans(net.now_ms))
    assert [ban.subject for ban in bans] == [MALLORY]
    later = net.add("later", keys[3], bans=bans)
    assert is_out(net.stranger(later))
    net.run(61_000)
    assert net.stranger(later).is_open
    assert victim.network.bans(net.now_ms) == []
    victim.network.ban(MALLORY, 60_000, net.now_ms)
    assert victim.network.unban(MALLORY)
    assert net.stranger(victim).is_open

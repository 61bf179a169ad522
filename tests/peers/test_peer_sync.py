"""Headers first, blocks from several peers: late joiners, partitions, stalls (SPEC-PEER-13..17)."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from fork_world import make_genesis, patients
from peer_net import Member, Net, Stranger

from fastledger import SigningKey
from fastledger.errors import LedgerBusyError
from fastledger.limits import PEER_BLOCKS_SOUGHT_MAX
from fastledger.model.block import Block
from fastledger.peers.settings import CloseCode
from fastledger.peers.sync import close_header
from fastledger.peers.wire import BlockMessage, GetBlocks, GetHeaders, Headers


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


def test_a_late_joiner_takes_blocks_from_several_peers(
    net: Net, keys: list[SigningKey]
) -> None:  # SPEC-PEER-16
    members = net.mesh(keys[:3])
    net.run(5_000, net.joined)
    for _ in range(60):
        net.mine(members[0])
        net.run(1_000)
    assert net.agree()
    net.bytes_by_tag.clear()
    sources = {member.name: blocks_sent(member) for member in members}
    late = net.add("late", None, peers=["m0", "m1", "m2"])
    assert net.run(30_000, net.agree)
    assert late.chain.final.height == members[0].chain.final.height
    served = {member.name: blocks_sent(member) - sources[member.name] for member in members}
    assert sum(value > 0 for value in served.values()) >= 2, served
    assert not late.banned


def blocks_sent(member: Member) -> int:
    return sum(info.bytes_sent for info in member.network.peers())


def test_one_that_comes_back_takes_what_it_missed(net: Net, keys: list[SigningKey]) -> None:  # SPEC-PEER-13
    members = net.mesh(keys)
    net.run(5_000, net.joined)
    net.part(["m3"], ["m0", "m1", "m2"])
    for _ in range(25):
        net.mine(members[1])
        net.run(1_000)
    assert members[3].chain.tip.height == 0
    net.heal()
    assert net.run(600_000, net.agree)
    assert net.run(600_000, net.joined)


def test_two_halves_of_a_partition_end_on_the_branch_with_more_work(
    net: Net, keys: list[SigningKey]
) -> None:  # SPEC-PEER-13
    members = net.mesh(keys)
    net.run(5_000, net.joined)
    net.mine(members[0])
    net.run(2_000)
    net.part(["m0", "m1"], ["m2", "m3"])
    for _ in range(3):
        net.mine(members[0])
        net.run(1_000)
    for _ in range(4):
        net.mine(members[2])
        net.run(1_000)
    assert net.agree(members[0], members[1])
    assert net.agree(members[2], members[3])
    assert not net.agree()
    best = max(members, key=lambda member: member.chain.work)
    best_id = best.chain.tip.block_id
    net.heal()
    assert net.run(600_000, net.agree)
    assert members[0].chain.tip.block_id == best_id


def test_transactions_of_a_losing_half_are_told_again(
    net: Net, keys: list[SigningKey]
) -> None:  # SPEC-PEER-28
    members = net.mesh(keys)
    net.run(5_000, net.joined)
    net.part(["m0", "m1"], ["m2", "m3"])
    registrations = patients(net.genesis, 3)
    assert net.submit(members[0], registrations) == [0, 0, 0]
    net.mine(members[0])
    net.run(1_000)
    for _ in range(4):
        net.mine(members[2])
        net.run(1_000)
    net.heal()
    assert net.run(600_000, net.agree)
    assert net.run(60_000, lambda: all(len(member.chain.mempool) == 3 for member in members))
    block = net.mine(members[3])
    assert block.count == 3
    assert net.run(5_000, net.agree)


def mined(net: Net, member: Member, count: int) -> None:
    for _ in range(count):
        net.mine(member)
        net.run(1_000)


def test_a_peer_that_serves_no_blocks_holds_nobody_up(
    net: Net, keys: list[SigningKey]
) -> None:  # SPEC-PEER-17
    source = net.add("m0", keys[0])
    mined(net, source, 40)
    late = net.add("late", None)
    mute = net.stranger(late, name="mute")
    best = source.chain
    mute.greet(height=best.tip.height, work=best.work.to_bytes(32, "big"), tip=best.tip.block_id)
    request = mute_headers(mute, source)
    net.run(1_000)
    assert mute.heard(GetBlocks), request
    late.network.add_peer("m0:1")
    assert net.run(15_000, net.agree)
    net.run(120_000)
    assert (mute.victim_link, CloseCode.TIMEOUT) in [(link, code) for link, code, _ in late.closed]


def mute_headers(stranger: Stranger, source: Member) -> int:
    """Answers the GetHeaders that it has heard with the real headers."""
    stranger.net.run(500)
    requests = stranger.heard(GetHeaders)
    chain = source.chain
    headers = chain.headers_after([], 1_000)
    wires = [close_header(sealed) for sealed in headers]
    stranger.say(Headers(wires, chain.tip.height, chain.work.to_bytes(32, "big"), chain.tip.block_id))
    return len(requests)


def test_headers_come_in_batches_and_do_not_run_far_ahead_of_blocks(
    net: Net, keys: list[SigningKey], monkeypatch: pytest.MonkeyPatch
) -> None:  # SPEC-PEER-14
    monkeypatch.setattr("fastledger.peers.sync.PEER_HEADERS_MAX", 8)
    monkeypatch.setattr("fastledger.peers.sync.PEER_HEADERS_AHEAD_MAX", 16)
    source = net.add("m0", keys[0])
    mined(net, source, 70)
    late = net.add("late", None, peers=["m0"])
    ahead = 0

    def watch() -> bool:
        nonlocal ahead
        ahead = max(ahead, late.chain.tree.best_header().height - late.chain.tip.height)
        return net.agree()

    assert net.run(60_000, watch)
    assert 0 < ahead < 16 + 8
    assert net.bytes_of(GetHeaders) > 0


def test_blocks_in_flight_are_bounded_for_each_peer_and_in_bytes(
    net: Net, keys: list[SigningKey], monkeypatch: pytest.MonkeyPatch
) -> None:  # SPEC-PEER-16
    monkeypatch.setattr("fastledger.peers.fetch.PEER_BLOCKS_BYTES_IN_FLIGHT", 4 * 1024)
    source = net.add("m0", keys[0])
    mined(net, source, 30)
    late = net.add("late", None, peers=["m0"])
    most = 0

    def watch() -> bool:
        nonlocal most
        most = max(most, late.network.sync_status().blocks_in_flight)
        return net.agree()

    assert net.run(60_000, watch)
    assert 0 < most <= 4


def test_status_tells_how_far_behind_a_node_is(net: Net, keys: list[SigningKey]) -> None:  # SPEC-PEER-6
    source = net.add("m0", keys[0])
    mined(net, source, 5)
    late = net.add("late", None, peers=["m0"])
    assert late.network.sync_status().ready_peers == 0
    assert net.run(60_000, net.agree)
    status = late.network.sync_status()
    assert (status.height, status.header_height, status.claimed_height) == (5, 5, 5)
    assert not status.syncing
    info = late.network.peers()[0]
    assert (info.organisation, info.inbound, info.ready, info.height) == ("m0", False, True, 5)
    assert info.bytes_received > 0


def test_a_lost_block_is_sought_until_a_good_copy_comes(
    net: Net, keys: list[SigningKey]
) -> None:  # SPEC-PEER-37
    source = net.add("m0", keys[0])
    net.submit(source, patients(net.genesis, 3))
    mined(net, source, 12)
    lost = source.chain.block(source.chain.block_id_at(1))
    assert lost is not None
    assert source.chain.final.height > 1
    node = net.add("node", None)
    bad = net.stranger(node, name="bad").greet()
    copies: list[Block] = []

    def take(block: Block) -> bool:
        copies.append(block)
        return block.transactions == lost.transactions

    node.network.seek_block(lost.block_id, take, net.now_ms)
    net.settle(node)
    net.run(50)
    assert bad.heard(GetBlocks)[0].ids == lost.block_id
    bad.say(BlockMessage(replace(lost, transactions=bytes(len(lost.transactions))).encode()))
    node.network.add_peer("m0:1")
    assert net.run(60_000, lambda: len(copies) == 2)
    assert copies[1] == lost
    assert [info.points >= 50 for info in node.network.peers() if info.organisation == "bad"] in ([True], [])
    net.run(1_000)
    assert node.network.sync_status().blocks_in_flight == 0


def test_who_seeks_no_more_gets_no_more(net: Net, keys: list[SigningKey]) -> None:  # SPEC-PEER-37
    node = net.add("node", None)
    for number in range(PEER_BLOCKS_SOUGHT_MAX):
        node.network.seek_block(number.to_bytes(32, "big"), lambda block: True, net.now_ms)
    with pytest.raises(LedgerBusyError):
        node.network.seek_block(b"\1" * 32, lambda block: True, net.now_ms)
    for number in range(PEER_BLOCKS_SOUGHT_MAX):
        node.network.seek_no_more(number.to_bytes(32, "big"))
    stranger = net.stranger(node, name="s").greet()
    net.run(1_000)
    assert stranger.heard(GetBlocks) == []

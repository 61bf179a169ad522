"""What liars get: each ends in a ban or a drop, memory stays bounded, the honest tip goes on (SPEC-PEER-20..27)."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from fork_world import make_genesis, patients
from peer_net import Member, Net, Stranger

from fastledger import SigningKey
from fastledger.chain.mine import mine_block
from fastledger.limits import (
    FUTURE_MS_MAX,
    PEER_ADDRESSES_PER_SOURCE_MAX,
    PEER_FRAME_BYTES_MAX,
    PEER_LINKS_MAX,
)
from fastledger.model.block import Block
from fastledger.peers.compact import compact_form
from fastledger.peers.scores import Subject, SubjectKind
from fastledger.peers.settings import CloseCode
from fastledger.peers.sync import close_header
from fastledger.peers.wire import (
    BlockMessage,
    BlockTransactions,
    Compact,
    GetBlocks,
    GetBlockTransactions,
    GetHeaders,
    GetPeers,
    GetTransactions,
    Goodbye,
    Headers,
    Inventory,
    Peers,
    Ping,
    Transactions,
    WireHeader,
    encode_frame,
)

MALLORY = Subject(SubjectKind.ORGANISATION, "mallory")


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
    net.mine(net.members["honest"])
    net.run(2_000)
    return victim


@pytest.fixture
def forger(net: Net, keys: list[SigningKey], victim: Member) -> Member:
    """A member's own chain, on the victim's tip, from which lies are made."""
    other = net.add("forger", keys[2])
    for height in range(1, victim.chain.tip.height + 1):
        block_id = victim.chain.block_id_at(height)
        assert block_id is not None
        other.node.take(victim.chain.block(block_id))
    return other


def is_out(stranger: Stranger) -> bool:
    """Whether the link is closed."""
    stranger.net.run(200)
    return not stranger.is_open


def is_banned(victim: Member, net: Net, name: str = "mallory") -> bool:
    return any(ban.subject.name == name for ban in victim.network.bans(net.now_ms))


def goes_on(net: Net, victim: Member) -> None:
    """The honest tip still reaches the victim."""
    height = victim.chain.tip.height
    net.run(30_000, lambda: any(info.organisation == "honest" and info.ready for info in victim.network.peers()))
    while net.members["honest"].chain.tip.height <= height:
        net.mine(net.members["honest"])
    assert net.run(10_000, lambda: net.agree(victim, net.members["honest"]))


def forge(forger: Member, net: Net, count: int = 1) -> list[Block]:
    """Good blocks that nobody has seen."""
    blocks = []
    for _ in range(count):
        forger.node.now_ms = max(net.now_ms, forger.chain.tip.time_ms + 1)
        blocks.append(mine_block(forger.chain, forger.node.now_ms))
        forger.node.drain()
    return blocks


def announce(stranger: Stranger, block: Block, txids: list[bytes] | None = None) -> None:
    stranger.say(compact_form(block.sealed_header, block.results, txids or [], bytes(8)))


def tell_headers(stranger: Stranger, wires: list[WireHeader], height: int, work: int, tip: bytes) -> None:
    stranger.say(Headers(wires, height, work.to_bytes(32, "big"), tip))


def claim(net: Net, victim: Member, work: int = 2**64, height: int = 10_000) -> Stranger:
    """A stranger that claims a better chain and is asked for its headers."""
    stranger = net.stranger(victim).greet(height=height, work=work.to_bytes(32, "big"), tip=b"\1" * 32)
    net.run(100)
    assert stranger.heard(GetHeaders)
    return stranger


# Handshake.


def test_wrong_chain_and_wrong_genesis_are_dropped(net: Net, victim: Member) -> None:  # SPEC-PEER-7
    for changes in ({"chain_id": bytes(8)}, {"genesis_digest": bytes(32)}):
        stranger = net.stranger(victim).greet(**changes)
        assert is_out(stranger)
        assert stranger.heard(Goodbye)[0].code == CloseCode.WRONG_CHAIN
    goes_on(net, victim)


def test_a_node_does_not_stay_connected_to_itself(net: Net, victim: Member) -> None:  # SPEC-PEER-7
    victim.network.add_peer("victim:2")
    net.members["victim"] = victim
    net.run(60_000)
    assert not any(info.organisation == "victim" for info in victim.network.peers())
    assert [address for _, address in net.dialled].count("victim:2") == 1


def test_a_wrong_version_is_told_so(net: Net, victim: Member) -> None:  # SPEC-PEER-1
    stranger = net.stranger(victim)
    stranger.say_bytes((10).to_bytes(4, "big") + b"\x63" + bytes(9))
    assert is_out(stranger)
    assert not is_banned(victim, net)


def test_who_says_nothing_is_dropped(net: Net, victim: Member) -> None:  # SPEC-PEER-10
    stranger = net.stranger(victim)
    net.run(11_000)
    assert not stranger.is_open


def test_before_the_handshake_only_hello_may_come(net: Net, victim: Member) -> None:  # SPEC-PEER-3
    for number, frame in enumerate((encode_frame(Inventory(bytes(32))), (5_000).to_bytes(4, "big") + b"\1\x99\1")):
        stranger = net.stranger(victim, name=f"early{number}")
        stranger.say_bytes(frame)
        assert is_out(stranger)
        assert is_banned(victim, net, f"early{number}")


# Frames.


def test_a_huge_frame_is_refused_by_its_length(net: Net, victim: Member) -> None:  # SPEC-PEER-2
    stranger = net.stranger(victim).greet()
    stranger.say_bytes((PEER_FRAME_BYTES_MAX + 1).to_bytes(4, "big"))
    assert is_out(stranger)
    assert is_banned(victim, net)
    goes_on(net, victim)


def test_a_dribbled_frame_has_a_deadline(net: Net, victim: Member) -> None:  # SPEC-PEER-10
    stranger = net.stranger(victim).greet()
    frame = encode_frame(Inventory(bytes(32 * 100)))
    sent = 0
    while stranger.is_open and sent < len(frame):
        stranger.say_bytes(frame[sent : sent + 1])
        sent += 1
        net.run(1_000)
    assert 15 < sent < 60
    # Twice is a ban.
    again = net.stranger(victim).greet()
    again.say_bytes(frame[:7])
    net.run(60_000)
    assert is_out(again)
    assert is_banned(victim, net)
    goes_on(net, victim)


def test_garbage_is_a_ban(net: Net, victim: Member) -> None:  # SPEC-PEER-1
    stranger = net.stranger(victim).greet()
    stranger.say_bytes(b"GET / HTTP/1.1\r\n\r\n")
    assert is_out(stranger)
    assert is_banned(victim, net)
    late = net.stranger(victim)
    assert is_out(late)
    assert late.heard(Goodbye)[0].code == CloseCode.BANNED


def test_what_was_not_asked_for_is_an_offence(net: Net, victim: Member, forger: Member) -> None:  # SPEC-PEER-4
    block = forge(forger, net)[0]
    unasked = (
        BlockMessage(block.encode()),
        Headers([close_header(block.sealed_header)], 5, bytes(32), bytes(32)),
        Transactions([b"x"], b""),
        Peers(["a:1"]),
        BlockTransactions(bytes(32), []),
    )
    for number, message in enumerate(unasked):
        stranger = net.stranger(victim, name=f"pushy{number}").greet()
        stranger.say(message)
        assert is_out(stranger), message
        points = victim.network._scores.points(Subject(SubjectKind.ORGANISATION, f"pushy{number}"), net.now_ms)
        assert points > 40
    assert victim.chain.tree.get(block.block_id) is None


def test_a_flood_of_one_kind_is_dropped(net: Net, victim: Member) -> None:  # SPEC-PEER-9
    stranger = net.stranger(victim).greet()
    for _ in range(300):
        stranger.say(Ping(bytes(8), 0, bytes(32), bytes(32)))
    assert is_out(stranger)
    assert victim.network.next_tick_ms > net.now_ms


def test_who_does_not_read_is_dropped_and_bounded(
    net: Net, victim: Member, monkeypatch: pytest.MonkeyPatch
) -> None:  # SPEC-PEER-11
    monkeypatch.setattr("fastledger.peers.session.PEER_SERVE_UNSENT_BYTES", 64 * 1024)
    net.submit(victim, patients(net.genesis, 60))
    block = net.mine(victim)
    stranger = net.stranger(victim).greet()
    stranger.reads = False
    for _ in range(6):
        stranger.say(GetBlocks(block.block_id * 16))
        net.run(1_000)
    assert victim.unsent_max < 64 * 1024 + 2 * len(block.encode())
    net.run(40_000)
    assert not any(info.organisation == "mallory" for info in victim.network.peers())
    goes_on(net, victim)


def test_too_many_requests_at_once_are_a_flood(net: Net, victim: Member) -> None:  # SPEC-PEER-11
    stranger = net.stranger(victim).greet()
    stranger.reads = False
    victim.network._links[stranger.victim_link].unsent = 2**24
    for _ in range(200):
        stranger.say(GetBlocks(bytes(32)))
    assert not any(info.organisation == "mallory" for info in victim.network.peers())

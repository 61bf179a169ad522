"""What liars get: each ends in a ban or a drop, memory stays bounded, the honest tip goes on (SPEC-PEER-20..27)."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from fork_world import make_genesis, patients
from peer_liars import MALLORY, announce, claim, forge, goes_on, is_banned, is_out, remake, tell_headers
from peer_net import Member, Net, Stranger

from fastledger import SigningKey
from fastledger.chain.forks.mining import mine_block
from fastledger.limits import (
    FUTURE_MS_MAX,
    PEER_FRAME_BYTES_MAX,
)
from fastledger.model.block import Block
from fastledger.peers.scores import Party, PartyKind
from fastledger.peers.settings import CloseCode
from fastledger.peers.sync import close_header
from fastledger.peers.wire import (
    BlockMessage,
    BlockTransactions,
    GetBlocks,
    GetBlockTransactions,
    GetHeaders,
    GetTransactions,
    Goodbye,
    Headers,
    Inventory,
    Peers,
    Ping,
    Transactions,
    encode_frame,
)
from fastledger.version import PEER_PROTOCOL_VERSION


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
    for number, frame in enumerate(
        (encode_frame(Inventory(bytes(32))), (5_000).to_bytes(4, "big") + bytes((PEER_PROTOCOL_VERSION,)) + b"\x99\1")
    ):
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


def test_what_was_not_asked_for_is_an_offence(
    net: Net, victim: Member, forger: Member
) -> None:  # SPEC-PEER-4
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
        points = victim.network._scores.points(
            Party(PartyKind.ORGANISATION, f"pushy{number}"), net.now_ms
        )
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


# Headers.


def test_headers_that_break_the_rules_are_a_ban(
    net: Net, victim: Member, forger: Member, keys: list[SigningKey]
) -> None:  # SPEC-PEER-15
    good = forge(forger, net)[0]
    seal = good.seal[:-1] + bytes([good.seal[-1] ^ 1])
    liars = {
        "seal": replace(good, seal=seal),
        "work": remake(net, keys[2], good, work=False),
        "outsider": remake(net, SigningKey.generate(), good),
        "time": remake(net, keys[2], good, time_ms=good.body.time_ms - 10**6),
        "height": remake(net, keys[2], good, height=7),
    }
    for name, bad in liars.items():
        stranger = net.stranger(victim, name=name).greet()
        announce(stranger, bad)
        assert is_out(stranger), name
        assert is_banned(victim, net, name), name
        assert victim.chain.tree.get(bad.block_id) is None or name == "seal"
    goes_on(net, victim)


def test_a_header_from_the_future_waits_and_blames_nobody(
    net: Net, victim: Member, forger: Member, keys: list[SigningKey]
) -> None:  # SPEC-PEER-15
    good = forge(forger, net)[0]
    ahead = remake(net, keys[2], good, time_ms=net.now_ms + FUTURE_MS_MAX + 60_000)
    stranger = net.stranger(victim).greet()
    announce(stranger, ahead)
    net.run(1_000)
    assert stranger.is_open
    assert victim.chain.tree.get(ahead.block_id) is None
    goes_on(net, victim)


def test_work_that_is_claimed_and_not_shown_is_dropped(net: Net, victim: Member, forger: Member) -> None:
    # SPEC-PEER-14
    block = forge(forger, net)[0]
    wires = [close_header(block.sealed_header)]
    for answer in (wires, []):
        stranger = claim(net, victim)
        tell_headers(stranger, answer, 10_000, 2**64, b"\1" * 32)
        assert is_out(stranger)
    again = claim(net, victim)
    tell_headers(again, wires, 10_000, 2**64, b"\1" * 32)
    assert is_banned(victim, net)
    goes_on(net, victim)


def test_who_claims_work_and_stays_silent_is_passed_over(net: Net, victim: Member) -> None:  # SPEC-PEER-14
    stranger = claim(net, victim)
    honest = net.members["honest"]
    net.part(["honest"], ["victim"])
    for _ in range(3):
        net.mine(honest)
    net.heal()
    # Another peer that has more is asked although the liar was not given up yet.
    assert net.run(6_000, lambda: net.agree(victim, honest))
    net.run(20_000)
    assert victim.network._scores.points(MALLORY, net.now_ms) > 0
    net.run(200_000)
    assert not stranger.is_open


def test_endless_headers_end_in_a_ban(
    net: Net, victim: Member, forger: Member, monkeypatch: pytest.MonkeyPatch
) -> None:  # SPEC-PEER-15
    monkeypatch.setattr("fastledger.peers.sync.PEER_HEADERS_MAX", 4)
    monkeypatch.setattr("fastledger.peers.sync.PEER_HEADERS_LOW_WORK_MAX", 12)
    mined = [net.mine(net.members["honest"]) for _ in range(5)]
    net.run(2_000)
    assert victim.chain.tip.block_id == mined[-1].block_id
    stranger = claim(net, victim)
    branches = forge(forger, net, 4)
    wires = [close_header(block.sealed_header) for block in branches]
    for _ in range(5):
        tell_headers(stranger, wires, 10_000, 2**64, b"\1" * 32)
        net.run(200)
    assert not stranger.is_open
    assert is_banned(victim, net)
    assert len(victim.chain.tree) < 40
    goes_on(net, victim)


# Blocks.


def offer(net: Net, victim: Member, block: Block, name: str = "mallory") -> Stranger:
    """Shows the header of a better chain; the victim asks for the block."""
    work = victim.chain.work + 2
    stranger = net.stranger(victim, name=name).greet(
        height=block.height, work=work.to_bytes(32, "big"), tip=block.block_id
    )
    net.run(100)
    if stranger.heard(GetHeaders):
        tell_headers(stranger, [close_header(block.sealed_header)], block.height, work, block.block_id)
        net.run(100)
    assert stranger.heard(GetBlocks)
    return stranger


def test_a_block_with_a_wrong_root_bans_its_bringer(
    net: Net, victim: Member, forger: Member, keys: list[SigningKey]
) -> None:  # SPEC-PEER-21
    bad = remake(net, keys[2], forge(forger, net)[0], state_root=bytes(32))
    stranger = offer(net, victim, bad)
    stranger.say(BlockMessage(bad.encode()))
    assert is_out(stranger)
    assert is_banned(victim, net)
    assert victim.chain.tip.block_id != bad.block_id
    goes_on(net, victim)


def test_a_spoilt_copy_blames_its_sender_and_not_the_block(
    net: Net, victim: Member, forger: Member
) -> None:  # SPEC-PEER-21
    registrations = patients(net.genesis, 3)
    net.members["forger"].node.submit(*registrations)
    good = forge(forger, net)[0]
    spoilt = bytearray(good.transactions)
    spoilt[-1] ^= 1
    stranger = offer(net, victim, good)
    stranger.say(BlockMessage(replace(good, transactions=bytes(spoilt)).encode()))
    assert victim.network._scores.points(MALLORY, net.now_ms) >= 49
    assert not victim.chain.has_block(good.block_id)
    # Another peer's copy of the same block is as welcome as before.
    other = offer(net, victim, good, "other")
    other.say(BlockMessage(good.encode()))
    assert victim.chain.tip.block_id == good.block_id
    assert not is_banned(victim, net, "other")


def test_wrong_hints_are_charged_and_the_block_stands(
    net: Net, victim: Member, forger: Member
) -> None:  # SPEC-PEER-21
    net.members["forger"].node.submit(*patients(net.genesis, 3))
    good = forge(forger, net)[0]
    assert good.hints
    hints = good.hints[:1] + bytes(reversed(good.hints[1:]))
    stranger = offer(net, victim, good)
    stranger.say(BlockMessage(replace(good, hints=hints).encode()))
    assert victim.chain.tip.block_id == good.block_id
    assert victim.network._scores.points(MALLORY, net.now_ms) >= 24


def test_another_block_than_the_one_asked_for_is_an_offence(
    net: Net, victim: Member, forger: Member
) -> None:  # SPEC-PEER-4
    first, second = forge(forger, net, 2)
    stranger = offer(net, victim, first)
    stranger.say(BlockMessage(second.encode()))
    assert is_out(stranger)
    assert not victim.chain.has_block(second.block_id)


# Transactions.


def test_a_bad_signature_is_charged_and_the_good_one_is_still_welcome(
    net: Net, victim: Member
) -> None:  # SPEC-PEER-30
    item = patients(net.genesis, 1)[0]
    bad = item.encoded[:-1] + bytes([item.encoded[-1] ^ 1])
    for number in range(2):
        stranger = net.stranger(victim, name="mallory").greet()
        other = net.stranger(victim, name=f"other{number}").greet()
        stranger.say(Inventory(item.txid))
        other.say(Inventory(item.txid))
        net.run(100)
        assert stranger.heard(GetTransactions)
        stranger.say(Transactions([bad], b""))
        net.run(100)
        if number == 0:
            assert other.heard(GetTransactions)
            other.is_open = False
            victim.network.closed(other.victim_link, net.now_ms)
    assert is_banned(victim, net)
    other.say(Transactions([item.encoded], b""))
    assert item.txid in victim.chain.mempool
    goes_on(net, victim)


def test_an_inventory_of_nothing_is_found_out(net: Net, victim: Member) -> None:  # SPEC-PEER-30
    for round_number in range(3):
        stranger = net.stranger(victim).greet()
        if not stranger.is_open or is_banned(victim, net):
            break
        ids = b"".join((1_000 * round_number + index).to_bytes(32, "big") for index in range(200))
        stranger.say(Inventory(ids))
        net.run(100)
        assert stranger.heard(GetTransactions)
        stranger.say(Transactions([], ids))
    assert is_banned(victim, net)
    assert victim.network._gossip.wanted_count == 0
    goes_on(net, victim)


def test_an_inventory_that_is_never_delivered_is_asked_for_no_more(
    net: Net, victim: Member, monkeypatch: pytest.MonkeyPatch
) -> None:  # SPEC-PEER-30
    monkeypatch.setattr("fastledger.peers.gossip.PEER_TRANSACTIONS_PER_LINK_MAX", 100)
    stranger = net.stranger(victim).greet()
    for round_number in range(4):
        ids = b"".join((1_000 * round_number + index).to_bytes(32, "big") for index in range(90))
        stranger.say(Inventory(ids))
        net.run(11_000)
    assert sum(len(message.txids) for message in stranger.heard(GetTransactions)) == 32 * 100
    assert victim.network._scores.points(MALLORY, net.now_ms) > 0
    goes_on(net, victim)


def test_what_a_mute_peer_may_not_be_asked_for_is_asked_of_the_next(
    net: Net, victim: Member, monkeypatch: pytest.MonkeyPatch
) -> None:  # SPEC-PEER-30
    monkeypatch.setattr("fastledger.peers.gossip.PEER_TRANSACTIONS_PER_LINK_MAX", 100)
    mute, other = net.stranger(victim).greet(), net.stranger(victim, name="other").greet()
    item = patients(net.genesis, 1)[0]
    mute.say(Inventory(b"".join(index.to_bytes(32, "big") for index in range(100)) + item.txid))
    net.run(100)
    assert item.txid not in mute.heard(GetTransactions)[0].txids
    other.say(Inventory(item.txid))
    net.run(100)
    assert other.heard(GetTransactions)[0].txids == item.txid


def test_what_is_wanted_is_bounded(net: Net, victim: Member, monkeypatch: pytest.MonkeyPatch) -> None:
    # SPEC-PEER-29
    monkeypatch.setattr("fastledger.peers.gossip.PEER_WANTED_TRANSACTIONS_MAX", 500)
    monkeypatch.setattr("fastledger.peers.gossip.PEER_KNOWN_IDS_MAX", 300)
    stranger = net.stranger(victim).greet()
    for base in range(4):
        stranger.say(
            Inventory(b"".join((1_000 * base + index).to_bytes(32, "big") for index in range(1_000)))
        )
    assert victim.network._gossip.wanted_count == 500
    monkeypatch.setattr("fastledger.peers.gossip.PEER_WANTED_TRANSACTIONS_MAX", 10_000)
    monkeypatch.setattr("fastledger.peers.gossip.PEER_WANTED_PER_LINK_MAX", 600)
    stranger.say(Inventory(b"".join((9_000 + index).to_bytes(32, "big") for index in range(1_000))))
    assert victim.network._gossip.wanted_count == 600
    assert len(victim.network._gossip._sides[stranger.victim_link].known) <= 300


# Compact blocks.


def compact_of(forger: Member, net: Net, count: int) -> tuple[Block, list[bytes]]:
    registrations = patients(net.genesis, count)
    forger.node.submit(*registrations)
    return forge(forger, net)[0], [item.txid for item in registrations]


def test_missing_transactions_are_asked_for_by_index(
    net: Net, victim: Member, forger: Member
) -> None:  # SPEC-PEER-18
    block, txids = compact_of(forger, net, 4)
    bodies = [block.transaction_bytes(index) for index in range(4)]
    victim.chain.submit([bodies[0], bodies[2]], net.now_ms)
    stranger = net.stranger(victim).greet()
    announce(stranger, block, txids)
    net.run(100)
    assert stranger.heard(GetBlockTransactions)[0].indexes == b"\0\1\0\3"
    stranger.say(BlockTransactions(block.block_id, [bodies[1], bodies[3]]))
    assert victim.chain.tip.block_id == block.block_id
    assert not is_banned(victim, net)


def test_who_tells_a_block_and_withholds_it_delays_nobody(
    net: Net, victim: Member, forger: Member
) -> None:  # SPEC-PEER-18
    block, txids = compact_of(forger, net, 3)
    mute = net.stranger(victim, name="mute").greet()
    good = net.stranger(victim, name="good").greet()
    announce(mute, block, txids)
    announce(good, block, txids)
    net.run(50)
    assert mute.heard(GetBlockTransactions)
    assert good.heard(GetBlockTransactions)
    good.say(BlockTransactions(block.block_id, [block.transaction_bytes(index) for index in range(3)]))
    assert victim.chain.tip.block_id == block.block_id
    net.run(6_000)
    assert victim.network._compact._partials == {}


def test_other_transactions_than_asked_for_are_a_bad_copy(
    net: Net, victim: Member, forger: Member
) -> None:  # SPEC-PEER-19
    block, txids = compact_of(forger, net, 2)
    stranger = net.stranger(victim).greet()
    announce(stranger, block, txids)
    net.run(100)
    stranger.say(BlockTransactions(block.block_id, [block.transaction_bytes(1), block.transaction_bytes(0)]))
    assert victim.network._scores.points(MALLORY, net.now_ms) >= 49
    net.run(100)
    # The whole block is asked for: of this peer too, the only one that has it.
    assert stranger.heard(GetBlocks) or not stranger.is_open


def test_a_collision_of_short_ids_blames_nobody(
    net: Net, victim: Member, forger: Member, monkeypatch: pytest.MonkeyPatch
) -> None:  # SPEC-PEER-19
    block, txids = compact_of(forger, net, 2)
    others = patients(net.genesis, 2)
    net.submit(victim, others)
    net.run(500)
    real = dict(zip((item.txid for item in others), txids, strict=True))

    def colliding(block_id: bytes, salt: bytes, ids: list[bytes]) -> list[bytes]:
        return [real.get(txid, txid)[:6] for txid in ids]

    monkeypatch.setattr("fastledger.peers.compact.short_ids", colliding)
    stranger = net.stranger(victim).greet()
    announce(stranger, block, txids)
    net.run(100)
    assert stranger.heard(GetBlocks)[0].ids == block.block_id
    stranger.say(BlockMessage(block.encode()))
    assert victim.chain.tip.block_id == block.block_id
    assert victim.network._scores.points(MALLORY, net.now_ms) == 0


def test_a_compact_block_that_does_not_add_up_is_garbage(
    net: Net, victim: Member, forger: Member
) -> None:  # SPEC-PEER-18
    block, txids = compact_of(forger, net, 2)
    stranger = net.stranger(victim).greet()
    announce(stranger, block, txids[:1])
    assert is_out(stranger)
    assert is_banned(victim, net)


# What a liar costs the others.


def tip_latency_ms(net: Net, members: list[Member], liars: list[Stranger]) -> float:
    """The mean time from a block's finding to everyone's having it, transactions told by liars first."""
    total = 0
    for round_number in range(8):
        items = patients(net.genesis, 4)
        for liar in liars:
            if liar.is_open:
                liar.inbox.clear()
                liar.say(Inventory(b"".join(item.txid for item in items)))
        net.submit(members[round_number % 3], items)
        net.run(500)
        block = mine_block(members[round_number % 3].chain, net.now_ms)
        for liar in liars:
            if liar.is_open and liar.victim != members[round_number % 3].name:
                # Under short ids of transactions that nobody has.
                announce(liar, block, [bytes([index]) * 32 for index in range(block.count)])
        began = net.now_ms
        net.settle(members[round_number % 3])
        assert net.run(60_000, lambda: net.agree(*members))
        total += net.now_ms - began
        net.run(1_000)
    return total / 8


def test_one_that_withholds_all_it_tells_does_not_slow_the_others_down(
    net: Net, keys: list[SigningKey]
) -> None:  # SPEC-PEER-18, SPEC-PEER-30
    members = net.mesh(keys[:3])
    net.run(5_000, net.joined)
    honest_ms = tip_latency_ms(net, members, [])
    liars = [
        net.stranger(member).greet(height=10**6, work=(2**80).to_bytes(32, "big"), tip=b"\1" * 32)
        for member in members
    ]
    net.run(100)
    with_liars_ms = tip_latency_ms(net, members, liars)
    assert with_liars_ms <= 2 * honest_ms

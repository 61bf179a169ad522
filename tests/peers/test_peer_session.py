"""One link: handshake, budgets, deadlines, signs of life; and which links stay (SPEC-PEER-7..12)."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from fork_world import make_genesis
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from peer_liars import is_out
from peer_net import Member, Net

from fastledger import SigningKey
from fastledger.limits import PEER_HANDSHAKE_MS_MAX, PEER_PING_MS, PEER_PONG_MS_MAX
from fastledger.peers.scores import (
    BAN_POINTS,
    FADE_MS,
    Ban,
    Bucket,
    Offence,
    Party,
    PartyKind,
    ScoreBoard,
    host_of,
)
from fastledger.peers.session import Link
from fastledger.peers.settings import CloseCode
from fastledger.peers.wire import (
    GetBlocks,
    GetHeaders,
    Goodbye,
    Hello,
    Inventory,
    Ping,
    Pong,
    WireFault,
    encode_frame,
)
from fastledger.version import PEER_PROTOCOL_VERSION

NOW = 1_000_000
SOMEONE = Party(PartyKind.ORGANISATION, "someone")


@pytest.fixture
def keys() -> list[SigningKey]:
    return [SigningKey.generate() for _ in range(3)]


@pytest.fixture
def net(tmp_path: Path, keys: list[SigningKey]) -> Iterator[Net]:
    made = Net(tmp_path, make_genesis(keys))
    yield made
    made.close()


@pytest.fixture
def node(net: Net, keys: list[SigningKey]) -> Member:
    return net.add("node", keys[0])


def new_link() -> Link:
    link = Link(1, "host:1", "org", True, NOW)
    link.ready = True
    return link


# One link by itself.


def test_answers_are_counted_against_requests() -> None:  # SPEC-PEER-4
    link = new_link()
    link.expect(GetBlocks, 2)
    link.settle(GetBlocks)
    link.settle(GetBlocks)
    with pytest.raises(WireFault) as caught:
        link.settle(GetBlocks)
    assert caught.value.offence == Offence.UNREQUESTED


def test_a_silent_handshake_and_a_slow_frame_have_deadlines() -> None:  # SPEC-PEER-10
    link = Link(1, "host:1", "org", True, NOW)
    assert link.late(NOW + PEER_HANDSHAKE_MS_MAX - 1) is None
    assert link.late(NOW + PEER_HANDSHAKE_MS_MAX) == (CloseCode.TIMEOUT, None)
    link.ready = True
    frame = encode_frame(Inventory(bytes(3200)))
    assert list(link.messages(frame[:20], NOW)) == []
    assert link.next_ms < NOW + 60_000
    assert link.late(NOW + 15_000) is None
    assert link.late(NOW + 25_000) == (CloseCode.OFFENCE, Offence.DRIBBLED)
    assert len(list(link.messages(frame[20:], NOW + 15_000))) == 1
    assert link.late(NOW + 25_000) is None


def test_a_frame_that_follows_another_has_its_own_deadline() -> None:  # SPEC-PEER-10
    link = new_link()
    frame = encode_frame(Inventory(bytes(320)))
    list(link.messages(frame[:10], NOW))
    assert len(list(link.messages(frame[10:] + frame[:10], NOW + 19_000))) == 1
    assert link.late(NOW + 21_000) is None
    assert link.late(NOW + 45_000) == (CloseCode.OFFENCE, Offence.DRIBBLED)


def test_a_long_frame_may_take_longer() -> None:  # SPEC-PEER-10
    link = new_link()
    link.expect(GetBlocks)
    length = 16 * 1024 * 1024
    list(link.messages(length.to_bytes(4, "big") + bytes((PEER_PROTOCOL_VERSION,)) + b"\x92\x0d", NOW))
    assert link.late(NOW + 200_000) is None
    assert link.late(NOW + 300_000) is not None


def test_a_quiet_peer_is_asked_and_then_dropped() -> None:  # SPEC-PEER-12
    link = new_link()
    assert not link.ping_due(NOW + PEER_PING_MS - 1)
    assert link.ping_due(NOW + PEER_PING_MS)
    link.pinged(b"12345678", NOW + PEER_PING_MS)
    assert not link.ping_due(NOW + 2 * PEER_PING_MS)
    assert not link.ponged(b"87654321", NOW + PEER_PING_MS)
    assert link.late(NOW + PEER_PING_MS + PEER_PONG_MS_MAX) == (CloseCode.TIMEOUT, None)
    assert link.ponged(b"12345678", NOW + PEER_PING_MS + 35)
    assert link.rtt_ms == 35


def test_what_is_not_read_is_counted() -> None:  # SPEC-PEER-11
    link = new_link()
    assert link.put(5_000_000, NOW)
    assert not link.may_serve
    link.drained(4_000_000, NOW + 10_000)
    assert link.may_serve
    assert link.late(NOW + 39_000) is None
    assert link.late(NOW + 40_000) == (CloseCode.NOT_READING, Offence.NOT_READING)
    assert not link.put(200_000_000, NOW)


# Scores.


def test_points_fade_and_too_many_are_a_ban() -> None:  # SPEC-PEER-20
    board = ScoreBoard(ban_ms=1_000)
    assert board.charge(SOMEONE, Offence.BAD_COPY, NOW) is None
    assert board.points(SOMEONE, NOW + 10 * FADE_MS) == Offence.BAD_COPY.points - 10
    assert board.charge(SOMEONE, Offence.BAD_COPY, NOW + 10**7) is None
    ban = board.charge(SOMEONE, Offence.BAD_COPY, NOW + 10**7 + 60_000)
    assert ban == Ban(SOMEONE, NOW + 10**7 + 61_000, "bad-copy")
    assert board.is_banned(SOMEONE, NOW + 10**7 + 60_999)
    assert not board.is_banned(SOMEONE, NOW + 10**7 + 61_000)
    assert board.points(SOMEONE, NOW + 10**7 + 61_000) == 0


def test_one_of_the_worst_offences_is_a_ban_at_once() -> None:  # SPEC-PEER-20
    worst = {offence for offence in Offence if offence.points >= BAN_POINTS}
    assert {Offence.GARBAGE, Offence.BAD_HEADER, Offence.BAD_BLOCK, Offence.ENDLESS_HEADERS} <= worst
    for offence in Offence:
        board = ScoreBoard(ban_ms=1_000)
        assert (board.charge(SOMEONE, offence, NOW) is not None) == (offence in worst)


def test_scores_and_bans_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:  # SPEC-PEER-23
    monkeypatch.setattr("fastledger.peers.scores.PEER_SCORES_MAX", 10)
    monkeypatch.setattr("fastledger.peers.scores.PEER_BANS_MAX", 10)
    board = ScoreBoard(ban_ms=1_000)
    for number in range(40):
        subject = Party(PartyKind.ADDRESS, f"host{number}")
        board.charge(subject, Offence.STALLING, NOW)
        board.ban(subject, NOW + 1_000 + number, "operator")
    assert len(board._points) == 10
    assert [ban.subject.name for ban in board.bans(NOW)] == [f"host{number}" for number in range(30, 40)]


def test_a_bucket_fills_with_time() -> None:  # SPEC-PEER-9
    bucket = Bucket(10, 20, NOW)
    assert bucket.take(20, NOW)
    assert not bucket.take(1, NOW)
    assert bucket.take(5, NOW + 500)
    assert not bucket.take(1, NOW + 500)
    assert bucket.take(20, NOW + 10_000)
    # A clock that goes back gives nothing.
    assert not bucket.take(1, NOW)


def test_hosts_of_addresses() -> None:
    assert [host_of(text) for text in ("a:1", "[::1]:2", "plain")] == ["a", "[::1]", "plain"]


# Whole networks.


def test_hello_comes_first_and_once(net: Net, node: Member) -> None:  # SPEC-PEER-7
    stranger = net.stranger(node, name="s")
    net.run(50)
    assert [type(message) for message in stranger.inbox] == [Hello]
    hello = stranger.inbox[0]
    assert (hello.chain_id, hello.genesis_digest) == (net.genesis.chain_id, net.genesis.digest)
    stranger.greet()
    stranger.greet()
    assert is_out(stranger)


def test_pings_are_answered_and_clocks_compared(net: Net, node: Member) -> None:  # SPEC-PEER-12
    stranger = net.stranger(node, name="s").greet(time_ms=net.now_ms + 90_000)
    assert node.network.sync_status().clock_offset_ms == 90_000
    stranger.say(Ping(b"nonce 12", 0, bytes(32), bytes(32)))
    net.run(50)
    assert stranger.heard(Pong)[0].nonce == b"nonce 12"
    net.run(PEER_PING_MS + 100)
    asked = stranger.heard(Ping)[0]
    net.run(40)
    stranger.say(Pong(asked.nonce, 3, bytes(31) + b"\1", bytes(32)))
    assert node.network.peers()[0].rtt_ms is not None
    assert node.network.peers()[0].height == 3
    net.run(100)
    assert stranger.heard(GetHeaders)


def test_of_two_links_to_one_node_both_ends_keep_the_same(
    net: Net, keys: list[SigningKey]
) -> None:  # SPEC-PEER-8
    net.add("a", keys[0], peers=["b"])
    net.add("b", keys[1], peers=["a"])
    net.run(30_000)
    for name, other in (("a", "b"), ("b", "a")):
        infos = net.members[name].network.peers()
        assert [(info.organisation, info.ready) for info in infos] == [(other, True)]
    dials = len(net.dialled)
    net.run(60_000)
    assert len(net.dialled) == dials


def test_nobody_ends_anothers_link_by_repeating_its_nonce(net: Net, node: Member) -> None:  # SPEC-PEER-8
    good = net.stranger(node, name="good").greet(nonce=b"\xff" * 8)
    net.stranger(node, name="bad").greet(nonce=b"\xff" * 8)
    net.run(100)
    assert good.is_open


def test_goodbye_ends_a_link(net: Net, node: Member) -> None:
    stranger = net.stranger(node, name="s").greet()
    stranger.say(Goodbye(999))
    assert is_out(stranger)
    assert node.closed[-1][1:] == (CloseCode.PEER_CLOSED, "code 999")


def test_an_idle_network_is_woken_rarely(net: Net, keys: list[SigningKey]) -> None:  # SPEC-PEER-6
    members = net.mesh(keys)
    net.run(10_000, net.joined)
    net.run(10_000)
    ticks = 0
    for member in members:
        tick = member.network.tick

        def counted(now_ms: int, tick: object = tick) -> None:
            nonlocal ticks
            ticks += 1
            tick(now_ms)  # type: ignore[operator]

        member.network.tick = counted  # type: ignore[method-assign]
    net.run(60_000)
    assert ticks <= 60 * 3 * 3


@given(data=st.binary(max_size=400), cuts=st.integers(1, 80))
@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_bytes_on_a_ready_link_are_survived(net: Net, data: bytes, cuts: int) -> None:  # SPEC-PEER-1
    node = net.members.get("node") or net.add("node", None)
    node.network._scores._bans.clear()
    stranger = net.stranger(node, name="s").greet()
    for at in range(0, len(data), cuts):
        stranger.say_bytes(data[at : at + cuts])
    net.run(1_000)
    assert sum(link.held_bytes for link in node.network.links()) <= len(data)
    node.network.closed(stranger.victim_link, net.now_ms)
    assert node.network.peers() == []


def test_a_node_that_slept_judges_nobody_at_once(net: Net, node: Member) -> None:  # SPEC-PEER-11
    stranger = net.stranger(node, name="s").greet()
    frame = encode_frame(Inventory(bytes(320)))
    net.run(100)
    stranger.say_bytes(frame[:10])
    asleep_until = net.now_ms + 60_000
    node.network.tick(asleep_until)
    assert [info.organisation for info in node.network.peers()] == ["s"]
    node.network.received(stranger.victim_link, frame[10:], asleep_until + 1)
    node.network.sent(stranger.victim_link, 10_000, asleep_until + 1)
    for later in range(1_000, 8_000, 1_000):
        node.network.tick(asleep_until + later)
    # No more than the transactions that it did not bring afterwards.
    assert [info.points < 5 for info in node.network.peers()] == [True]


def test_without_discovery_only_configured_addresses_are_dialled(net: Net, keys: list[SigningKey]) -> None:
    # SPEC-PEER-24
    node = net.add("node", keys[0], discover=False)
    stranger = net.stranger(node, name="s").greet(listen="elsewhere:1")
    net.run(10_000)
    assert len(node.network._book) == 0
    assert net.dialled == []
    assert stranger.is_open


def test_budgets_are_shared_by_an_organisations_links_and_outlive_them(net: Net, node: Member) -> None:
    # SPEC-PEER-9
    link = net.stranger(node, name="s").greet()
    for _ in range(19):
        link.say(Ping(bytes(8), 0, bytes(32), bytes(32)))
    net.run(50)
    assert link.is_open
    other = net.stranger(node, name="elsewhere", organisation="s").greet()
    other.say(*[Ping(bytes(8), 0, bytes(32), bytes(32))] * 3)
    assert is_out(other)
    assert node.network.peers()[0].points >= 19
    neighbour = net.stranger(node, name="elsewhere", organisation="t").greet()
    neighbour.say(*[Ping(bytes(8), 0, bytes(32), bytes(32))] * 3)
    assert not is_out(neighbour)

"""Real and random traffic, spoilt: nothing that a peer sends raises, and nothing grows without bound (SPEC-PEER-5)."""

import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from fork_world import make_genesis, patients
from hypothesis import given, settings
from hypothesis import strategies as st
from peer_liars import forge
from peer_net import Member, Net

from fastledger import SigningKey
from fastledger.peers.compact import compact_form
from fastledger.peers.sync import close_header
from fastledger.peers.wire import (
    BlobChunk,
    BlockMessage,
    BlockTransactions,
    GetBlob,
    GetBlocks,
    GetBlockTransactions,
    GetHeaders,
    GetPeers,
    GetPiece,
    GetSnapshots,
    GetTransactions,
    Headers,
    Inventory,
    Message,
    NotFound,
    Peers,
    Piece,
    Ping,
    Pong,
    Snapshots,
    Transactions,
    encode_frame,
)


class Traffic:
    """A victim, an honest miner, and everything that a liar could have at hand."""

    def __init__(self, root: Path) -> None:
        keys = [SigningKey.generate() for _ in range(3)]
        self.net = Net(root, make_genesis(keys, finality_depth=4))
        self.honest = self.net.add("honest", keys[0])
        self.victim = self.net.add("victim", keys[1], peers=["honest"])
        self.net.run(5_000, self.net.joined)
        for _ in range(3):
            self.net.mine(self.honest)
            self.net.run(500)
        forger = self.net.add("forger", keys[2])
        for height in range(1, 4):
            forger.node.take(self.victim.chain.block(self.victim.chain.block_id_at(height)))
        self.transactions = patients(self.net.genesis, 4)
        forger.node.submit(*self.transactions[:2])
        self.blocks = [*forge(forger, self.net, 3)]
        self.blocks += [
            self.victim.chain.block(self.victim.chain.block_id_at(height)) for height in (1, 2, 3)
        ]
        self.messages = list(self._messages())
        self.count = 0

    def _messages(self) -> Iterator[Message]:
        txids = [item.txid for item in self.transactions]
        work = (10**6).to_bytes(32, "big")
        sealed = [close_header(block.sealed_header) for block in self.blocks]
        yield Headers(sealed[:3], 6, work, self.blocks[2].block_id)
        yield Headers([], 6, work, bytes(32))
        yield Headers(sealed[1:3], 6, bytes(32), bytes(32))
        for block in self.blocks:
            ids = [block.transaction_bytes(index) for index in range(block.count)]
            yield BlockMessage(block.encode())
            yield compact_form(block.sealed_header, block.results, txids[: block.count], bytes(8))
            yield BlockTransactions(block.block_id, ids)
            yield GetBlocks(block.block_id)
            yield GetBlockTransactions(block.block_id, b"\0\0")
            yield NotFound(block.block_id)
            yield GetHeaders(block.block_id, 10)
        for item in self.transactions:
            yield Inventory(item.txid)
            yield Transactions([item.encoded], b"")
            yield Transactions([], item.txid)
            yield GetTransactions(item.txid)
        yield Inventory(b"".join(txids) + bytes(range(32)))
        yield Ping(bytes(8), 9, work, self.blocks[2].block_id)
        yield Pong(bytes(8), 9, work, bytes(32))
        yield GetPeers()
        yield Peers(["a:1", "honest:1", "nonsense", "victim:1"])
        yield GetBlob(bytes(32), bytes(32), 0, 10)
        yield BlobChunk(bytes(32), 0, 10, 0, bytes(10))
        yield GetSnapshots()
        yield Snapshots([])
        yield GetPiece(bytes(32), 0)
        yield Piece(bytes(32), 0, 0, b"")


@pytest.fixture(scope="module")
def traffic() -> Iterator[Traffic]:
    with tempfile.TemporaryDirectory() as root:
        made = Traffic(Path(root))
        yield made
        made.net.close()


def sizes(victim: Member) -> list[int]:
    """How much the victim's network remembers of links, bodies, requests."""
    network: Any = victim.network
    return [
        len(network._links),
        len(network._gossip._sides),
        len(network._gossip._wants),
        len(network._fetch._loads),
        len(network._fetch._holder),
        len(network._compact._partials),
        len(network._fetch.reserved),
        len(network._sync._claims),
    ]


def play(traffic: Traffic, steps: list[tuple[int, int, int, int]]) -> None:
    """Each step is a message, and how it is spoilt: 0 not at all, else a byte of it, or its end."""
    net, victim = traffic.net, traffic.victim
    traffic.count += 1
    name = f"liar{traffic.count}"
    stranger = net.stranger(victim, name=name).greet(height=9, work=(10**6).to_bytes(32, "big"))
    for number, spoil, place, value in steps:
        data = bytearray(encode_frame(traffic.messages[number % len(traffic.messages)]))
        if spoil == 1:
            data[place % len(data)] = value
        elif spoil == 2:
            del data[place % len(data) :]
        stranger.say_bytes(bytes(data))
        net.run(value)
    net.run(12_000)
    victim.network.closed(stranger.victim_link, net.now_ms)
    net.settle(victim)


STEP = st.tuples(
    st.integers(0, 10**6), st.sampled_from([0, 0, 0, 1, 1, 2]), st.integers(0, 10**6), st.integers(0, 255)
)


@given(steps=st.lists(STEP, max_size=12))
@settings(max_examples=60, deadline=None)
def test_spoilt_traffic_is_survived_and_leaves_nothing_behind(
    traffic: Traffic, steps: list[tuple[int, int, int, int]]
) -> None:  # SPEC-PEER-5
    play(traffic, steps)
    links, sides, wants, loads, holders, partials, reserved, claims = sizes(traffic.victim)
    assert links == sides == loads <= 1
    assert (wants, holders, partials, reserved) == (0, 0, 0, 0)
    assert claims <= links


def test_after_all_of_it_the_honest_tip_still_arrives(traffic: Traffic) -> None:  # SPEC-PEER-5
    net = traffic.net
    play(traffic, [(number, 0, 0, 10) for number in range(len(traffic.messages))])
    net.run(600_000, lambda: net.agree(traffic.honest, traffic.victim))
    for _ in range(3):
        net.mine(traffic.honest)
        net.run(1_000)
    assert net.run(600_000, lambda: net.agree(traffic.honest, traffic.victim))
    assert not any(ban.subject.name == "honest" for ban in traffic.victim.network.bans(net.now_ms))

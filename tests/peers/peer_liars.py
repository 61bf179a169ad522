"""Lies that a peer may tell, and what to ask of the node that heard them."""

from dataclasses import replace

from peer_net import Member, Net, Stranger

from fastledger import SigningKey
from fastledger.chain.forks.mining import mine_block
from fastledger.crypto.work import bits_to_target
from fastledger.model.block import Block
from fastledger.model.receipt import make_seal
from fastledger.peers.compact import compact_form
from fastledger.peers.scores import Party, PartyKind
from fastledger.peers.wire import GetHeaders, Headers, WireHeader

MALLORY = Party(PartyKind.ORGANISATION, "mallory")


def is_out(stranger: Stranger) -> bool:
    """Whether the link is closed."""
    stranger.net.run(200)
    return not stranger.is_open


def is_banned(victim: Member, net: Net, name: str = "mallory") -> bool:
    return any(ban.subject.name == name for ban in victim.network.bans(net.now_ms))


def goes_on(net: Net, victim: Member) -> None:
    """The honest tip still reaches the victim."""
    height = victim.chain.tip.height
    net.run(
        30_000, lambda: any(info.organisation == "honest" and info.ready for info in victim.network.peers())
    )
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


def remake(net: Net, key: SigningKey, block: Block, *, work: bool = True, **changes: object) -> Block:
    """A member's lie: another body, with its own work (or without any) and its own seal."""
    body = replace(block.body, proposer=key.public_key, **changes)  # type: ignore[arg-type]
    header = replace(block.header, commitment=body.commitment, time_s=body.time_ms // 1000)
    target = bits_to_target(header.bits)
    nonce = 0
    while (int.from_bytes(replace(header, nonce=nonce).block_id, "little") <= target) != work:
        nonce += 1
    header = replace(header, nonce=nonce)
    seal = make_seal(key, net.genesis.chain_id, header, body, block.count)
    return replace(block, header=header, body=body, seal=seal)

"""What the simulator found, each as small as it can be told; docs/simulator.md has the seeds."""

from dataclasses import replace
from pathlib import Path

import pytest
from fork_world import Node, make_genesis, patients

from fastledger import SigningKey
from fastledger.crypto.work import search_nonce
from fastledger.errors import BlockFault
from fastledger.model.block import Block, Header
from fastledger.model.receipt import make_seal


def test_a_foreign_block_with_the_roots_of_an_own_template_is_not_taken_for_it(tmp_path: Path) -> None:
    """The reward changes the state with the proposer: a node that took its own template's execution for another's
    block parted from all others, and was banned for passing the block on."""
    mine, other = SigningKey.generate(), SigningKey.generate()
    node = Node(tmp_path, make_genesis([mine, other]), mine).start()
    (transaction,) = patients(node.genesis, 1)
    assert node.submit(transaction) == [0]
    template = node.chain.template(node.now_ms)
    assert template is not None
    body = replace(template.body, proposer=other.public_key)
    header = Header(template.parent_id, body.commitment, body.time_ms // 1000, template.bits)
    nonce = search_nonce(header.encode(), template.target, 0, 1 << 32)
    assert nonce is not None
    header = replace(header, nonce=nonce)
    seal = make_seal(other, node.genesis.chain_id, header, body, 1)
    size = len(transaction.encoded).to_bytes(4, "little")
    with pytest.raises(BlockFault) as caught:
        node.take(Block(header, body, seal, transaction.encoded, size, bytes(2)))
    assert caught.value.condemns
    assert node.chain.tip.height == 0
    node.stop()


def test_a_seal_that_rotted_on_the_disk_is_not_told_to_peers(tmp_path: Path) -> None:
    """Ids do not cover seals, and headers are read without their frame's checksum: a node whose disk had flipped a bit
    in one was banned by who it told."""
    key = SigningKey.generate()
    node = Node(tmp_path, make_genesis([key]), key).start()
    blocks = node.mine(10)  # final at a depth of four
    whole = node.chain.headers_after([], 1_000)
    assert [sealed.block_id for sealed in whole] == [block.block_id for block in blocks]
    (segment,) = (tmp_path / "log").glob("*.seg")
    data = bytearray(segment.read_bytes())
    at = data.find(blocks[3].seal)
    assert at > 0, "it is final"
    data[at + len(blocks[3].seal) - 1] ^= 1
    segment.write_bytes(data)
    assert node.chain.headers_after([], 1_000) == whole[:3]
    behind = [blocks[3].block_id]
    assert node.chain.headers_after(behind, 1_000) == whole[4:]
    node.stop()

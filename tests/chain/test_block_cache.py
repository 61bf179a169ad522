"""The cache of blocks: bounded in bytes, and the same block for every thread."""

import threading

import pytest
from world import World

from fastledger.chain.execution.block_cache import BlockCache
from fastledger.errors import NotFoundError
from fastledger.model.block import Block
from fastledger.storage.log import FrameRef


@pytest.fixture
def block(world: World) -> Block:
    return world.ledger.block(0)


def test_what_was_asked_for_longest_ago_goes_first(block: Block) -> None:
    loaded: list[FrameRef] = []

    def load(ref: FrameRef) -> Block:
        loaded.append(ref)
        return block

    measured = BlockCache(load)
    measured(FrameRef(0, 0, 1))
    cache = BlockCache(load, bytes_max=3 * measured.held_bytes)
    loaded.clear()
    a, b, c, d = (FrameRef(0, 64 * n, 1) for n in range(4))
    for ref in (a, b, c, a, d, a, c):
        assert cache(ref) is block
        assert cache.held_bytes <= 3 * measured.held_bytes
    assert loaded == [a, b, c, d]
    cache(b)
    assert loaded[4:] == [b]
    cache.clear()
    assert cache.held_bytes == 0
    cache(a)
    assert loaded[5:] == [a]


def test_a_block_beyond_the_bound_is_read_and_not_kept(block: Block) -> None:
    cache = BlockCache(lambda _: block, bytes_max=100)
    assert cache(FrameRef(0, 0, 1)) is block
    assert cache.held_bytes == 0


def test_an_error_is_not_remembered(block: Block) -> None:
    answers = [NotFoundError("gone"), None]

    def load(_: FrameRef) -> Block:
        if (answer := answers.pop(0)) is not None:
            raise answer
        return block

    cache = BlockCache(load)
    with pytest.raises(NotFoundError):
        cache(FrameRef(0, 0, 1))
    assert cache(FrameRef(0, 0, 1)) is block


def test_threads_that_load_one_block_at_once_count_it_once(block: Block) -> None:
    together = threading.Barrier(4)

    def load(_: FrameRef) -> Block:
        together.wait()
        return block

    cache = BlockCache(load)
    threads = [threading.Thread(target=cache, args=(FrameRef(0, 0, 1),)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    once = BlockCache(lambda _: block)
    once(FrameRef(0, 0, 1))
    assert cache.held_bytes == once.held_bytes > 0

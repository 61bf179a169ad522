"""A cache of blocks that were read lately, bounded by bytes: one block may have 32 MiB, most have a thousandth."""

import threading
from collections import OrderedDict
from collections.abc import Callable

from fastledger.limits import BLOCK_CACHE_BYTES_MAX
from fastledger.model.block import Block
from fastledger.storage.log import FrameRef

# Of a transaction in a decoded block besides its bytes: length, result, and its offset as a list has it.
_TRANSACTION_BYTES = 42
_BLOCK_BYTES = 1_024


class BlockCache:
    """Maps a place in the log to its block, for any thread.

    Blocks that were asked for longest ago are dropped first.
    """

    def __init__(self, load: Callable[[FrameRef], Block], *, bytes_max: int = BLOCK_CACHE_BYTES_MAX) -> None:
        self._load = load
        self._bytes_max = bytes_max
        self._lock = threading.Lock()
        self._blocks: OrderedDict[FrameRef, Block] = OrderedDict()
        self.held_bytes = 0

    def __call__(self, ref: FrameRef) -> Block:
        """Returns the block at ``ref``; raises what loading it raises."""
        with self._lock:
            block = self._blocks.get(ref)
            if block is not None:
                self._blocks.move_to_end(ref)
                return block
        # Without the lock: two threads may load one block, none waits for the other's disk.
        block = self._load(ref)
        with self._lock:
            if ref not in self._blocks:
                self._blocks[ref] = block
                self.held_bytes += _bytes_of(block)
            while self.held_bytes > self._bytes_max:
                _, dropped = self._blocks.popitem(last=False)
                self.held_bytes -= _bytes_of(dropped)
        return block

    def clear(self) -> None:
        """Drops every block."""
        with self._lock:
            self._blocks.clear()
            self.held_bytes = 0


def _bytes_of(block: Block) -> int:
    return len(block.transactions) + len(block.hints) + _TRANSACTION_BYTES * block.count + _BLOCK_BYTES

"""The store of blocks that are not final: all in the fork journal, those used last in memory too (SPEC-JRN-3)."""

from collections import OrderedDict
from collections.abc import Iterable, Iterator

from fastledger.errors import InputError
from fastledger.limits import BLOCKS_IN_MEMORY_BYTES_MAX, JOURNAL_DEAD_BYTES_MIN
from fastledger.model.block import Block
from fastledger.storage.journal import ForkJournal, JournalRef


class BlockStore:
    """Holds the blocks above the last final one, by id."""

    def __init__(
        self,
        journal: ForkJournal,
        *,
        memory_bytes_max: int = BLOCKS_IN_MEMORY_BYTES_MAX,
        dead_bytes_min: int = JOURNAL_DEAD_BYTES_MIN,
    ) -> None:
        """Takes an open journal.

        :meth:`compact` rewrites it once more than half of it, and more than ``dead_bytes_min``, is of forgotten
        blocks.
        """
        self._journal = journal
        self._memory_bytes_max = memory_bytes_max
        self._dead_bytes_min = dead_bytes_min
        self._places: dict[bytes, JournalRef] = {}
        self._live_bytes = 0
        self._memory: OrderedDict[bytes, Block] = OrderedDict()
        self._memory_bytes = 0

    def __contains__(self, block_id: object) -> bool:
        return block_id in self._places

    def __len__(self) -> int:
        return len(self._places)

    def ids(self) -> list[bytes]:
        """Returns the ids of all blocks that are held."""
        return list(self._places)

    def load(self) -> Iterator[Block]:
        """Yields every block of the journal, in the order in which they came.

        A block is held once it was yielded.
        """
        for ref, payload in self._journal.load():
            try:
                block = Block.decode(payload)
            except InputError:
                continue  # whole by its checksum, and no block: not ours to keep
            if block.block_id not in self._places:
                self._place(block.block_id, ref)
                self._remember(block)
                yield block

    def put(self, block: Block) -> None:
        """Appends a block to the journal; durable with the next :meth:`sync`."""
        self._place(block.block_id, self._journal.append(block.encode()))
        self._remember(block)

    def sync(self) -> None:
        """Makes every block that was put durable."""
        self._journal.sync()

    def get(self, block_id: bytes) -> Block | None:
        """Returns a block, None where it is not held.

        Raises CorruptionError or InputError where the journal is damaged.
        """
        block = self._memory.get(block_id)
        if block is not None:
            self._memory.move_to_end(block_id)
            return block
        ref = self._places.get(block_id)
        if ref is None:
            return None
        block = Block.decode(self._journal.read(ref))
        self._remember(block)
        return block

    def forget(self, block_ids: Iterable[bytes]) -> None:
        """Forgets blocks that are final or dead; :meth:`compact` later gives back their bytes."""
        for block_id in block_ids:
            ref = self._places.pop(block_id, None)
            if ref is not None:
                self._live_bytes -= ref.length
            block = self._memory.pop(block_id, None)
            if block is not None:
                self._memory_bytes -= len(block.transactions)

    def compact(self) -> None:
        """Rewrites the journal where more than half of it is of blocks that were forgotten."""
        dead = self._journal.byte_count - self._live_bytes
        if dead <= max(self._dead_bytes_min, self._live_bytes):
            return
        ids = sorted(self._places, key=self._places.__getitem__)
        places = self._journal.rewrite([self._places[block_id] for block_id in ids])
        self._places = dict(zip(ids, places, strict=True))

    def _place(self, block_id: bytes, ref: JournalRef) -> None:
        self._places[block_id] = ref
        self._live_bytes += ref.length

    def _remember(self, block: Block) -> None:
        self._memory[block.block_id] = block
        self._memory_bytes += len(block.transactions)
        while self._memory_bytes > self._memory_bytes_max and len(self._memory) > 1:
            _, oldest = self._memory.popitem(last=False)
            self._memory_bytes -= len(oldest.transactions)

"""Ids and headers of the best chain, final or not, as a node tells them to others (SPEC-FORK-10)."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from fastledger.chain.execution.store import NOWHERE, BlockEntry, ChainStore
from fastledger.consensus.engine import EngineTip
from fastledger.consensus.tree import BlockTree, TreeEntry
from fastledger.errors import InputError, LedgerError
from fastledger.limits import LOCATOR_IDS_MAX
from fastledger.model.block import HEADER_BYTES, ZERO32, Block, Header, HeaderBody, SealedHeader
from fastledger.model.codec import decode
from fastledger.model.receipt import check_seals
from fastledger.storage.log import FrameRef, SegmentLog

_PREFIX_BYTES = 8
_DENSE_IDS = 10
# Format, header, body and seal stand first in a stored block and take some 600 bytes.
_HEAD_BYTES = 4_096
_LONG_HEAD = 0x58  # CBOR byte string with one byte of length; 0x59: with two


@dataclass(frozen=True)
class KnownById(SealedHeader):
    """A stand-in for the header of a final block of which a restored snapshot has the id alone.

    It is never passed on.
    """

    known_id: bytes = b""

    @classmethod
    def at(cls, tip: EngineTip) -> "KnownById":
        """Returns the stand-in for the block ``tip``."""
        body = HeaderBody(tip.height, tip.time_ms, ZERO32, ZERO32, ZERO32, ZERO32, bytes(33), ZERO32)
        header = Header(ZERO32, ZERO32, tip.time_ms // 1000, tip.bits)
        return cls(header, body, tip.seal, 0, tip.block_id)

    @property
    def block_id(self) -> bytes:
        """The id from the snapshot, which the stand-in's own bytes do not give."""
        return self.known_id


class FinalIds:
    """Finds the height of a final block by its id, for a chain whose index knows blocks by height alone.

    It keeps eight bytes a block in one buffer: a search of a million blocks takes a millisecond or two, and only a
    node that comes back after days asks for one.
    """

    def __init__(self, store: ChainStore) -> None:
        """Takes the store, and reads nothing before it is asked."""
        self._store = store
        self._prefixes = bytearray()

    def height_of(self, block_id: bytes, below: int) -> int | None:
        """Returns the height of a final block below the height ``below``, None where none there has this id."""
        self._extend(below)
        prefix = block_id[:_PREFIX_BYTES]
        at = self._prefixes.find(prefix)
        while at >= 0:
            height, misplaced = divmod(at, _PREFIX_BYTES)
            if not misplaced and height < below:
                entry = self._store.entry_at(height)
                if entry is not None and entry.block_id == block_id:
                    return height
            at = self._prefixes.find(prefix, at + 1)
        return None

    def _extend(self, below: int) -> None:
        for height in range(len(self._prefixes) // _PREFIX_BYTES, below):
            entry = self._store.entry_at(height)
            if entry is None:
                return
            self._prefixes += entry.block_id[:_PREFIX_BYTES]


class HeaderChain:
    """The best chain from genesis to its tip, as ids and sealed headers."""

    def __init__(
        self,
        tree: BlockTree,
        store: ChainStore,
        log: SegmentLog,
        *,
        chain_id: bytes,
        verify_threads: int | None,
    ) -> None:
        self._tree = tree
        self._store = store
        self._log = log
        self._chain_id = chain_id
        self._verify_threads = verify_threads
        self._final_ids = FinalIds(store)

    def entry_at(self, height: int) -> BlockEntry | None:
        """Returns the index entry of the final block at a height; None where there is none."""
        return self._store.entry_at(height) if 0 <= height <= self._tree.root.height else None

    def id_at(self, tip: TreeEntry, height: int) -> bytes | None:
        """Returns the id of the block at ``height`` of the chain that ends in ``tip``; None where it has none."""
        if height > tip.height or height < 0:
            return None
        if height >= self._tree.root.height:
            return self._tree.on_path(tip, height).block_id
        entry = self.entry_at(height)
        return None if entry is None else entry.block_id

    def height_of(self, tip: TreeEntry, block_id: bytes) -> int | None:
        """Returns the height of a block of the chain that ends in ``tip``; None where it is not of that chain."""
        entry = self._tree.get(block_id)
        if entry is not None:
            on_chain = entry.height <= tip.height and self._tree.on_path(tip, entry.height) is entry
            return entry.height if on_chain else None
        return self._final_ids.height_of(block_id, self._tree.root.height)

    def is_final(self, block_id: bytes, height: int) -> bool:
        """Whether a block that claims ``height`` is final."""
        entry = self.entry_at(height)
        return entry is not None and entry.block_id == block_id

    def _place_of(self, block_id: bytes) -> FrameRef | None:
        """Returns the place of a final block in the log; None where the log does not hold it (any more)."""
        root = self._tree.root
        height = (
            root.height if block_id == root.block_id else self._final_ids.height_of(block_id, root.height)
        )
        entry = None if height is None else self.entry_at(height)
        if entry is None or height is None or entry.ref == NOWHERE or height < self._log.first_height:
            return None
        return entry.ref

    def holds(self, block_id: bytes) -> bool:
        """Whether the log holds a final block with this id."""
        return self._place_of(block_id) is not None

    def locator(self, tip: TreeEntry) -> list[bytes]:
        """Returns ids from ``tip`` down to genesis: ten in a row, then with gaps that double."""
        heights: list[int] = []
        height, gap = tip.height, 1
        while height > 0 and len(heights) < LOCATOR_IDS_MAX - 1:
            heights.append(height)
            gap = gap * 2 if len(heights) >= _DENSE_IDS else 1
            height -= gap
        ids = (self.id_at(tip, height) for height in (*heights, 0))
        return [block_id for block_id in ids if block_id is not None]

    def after(self, tip: TreeEntry, locator: Sequence[bytes], limit: int) -> list[SealedHeader]:
        """Returns up to ``limit`` headers behind the first id of ``locator`` in the chain, or behind genesis.

        It ends before a header whose seal, read from the disk, does not verify.
        """
        heights = (self.height_of(tip, block_id) for block_id in locator[:LOCATOR_IDS_MAX])
        start = next((height for height in heights if height is not None), 0)
        headers = list(self._headers(tip, range(start + 1, min(tip.height, start + limit) + 1)))
        # Ids do not cover seals: of those that come from the disk each is looked at, for a flipped bit told to a peer
        # would be this node's offence.
        stored = headers[: max(0, self._tree.root.height - start)]
        good = check_seals(stored, self._chain_id, threads=self._verify_threads)
        return headers[: good.index(0)] if 0 in good else headers

    def _headers(self, tip: TreeEntry, heights: range) -> Iterator[SealedHeader]:
        root = self._tree.root
        for height in heights:
            if height > root.height:
                yield self._tree.on_path(tip, height).sealed
                continue
            sealed = self.final_header(height)
            if sealed is None:
                return  # pruned, or lost to damage: others have it
            yield sealed

    def final_header(self, height: int) -> SealedHeader | None:
        """Returns the sealed header of a final block; None where this node does not have it any more."""
        entry = self.entry_at(height)
        if entry is None or entry.ref == NOWHERE or height < self._log.first_height:
            return None
        try:
            sealed = read_sealed(self._log.read_start(entry.ref, _HEAD_BYTES), entry.tx_count)
            return sealed if sealed.block_id == entry.block_id else None
        except (InputError, LedgerError):
            return None

    def final_block(self, block_id: bytes) -> Block | None:
        """Returns a final block by its id; None where this node does not have it (any more)."""
        ref = self._place_of(block_id)
        try:
            return None if ref is None else Block.decode(self._log.read(ref))
        except (InputError, LedgerError):
            return None


def read_sealed(start: bytes, count: int) -> SealedHeader:
    """Returns the sealed header in the first bytes of a stored block, whose transactions are not read.

    The frame's checksum is not looked at: the caller holds the header against the block's id, and the header commits
    to the body. Whoever passes the seal on has to check it. Raises ``InputError``.
    """
    offset = 2  # array of eight, format version
    parts: list[bytes] = []
    for _ in range(3):
        head = start[offset : offset + 3]
        if len(head) < 3:
            raise InputError("a stored block is cut short")
        size = 3 + int.from_bytes(head[1:], "big") if head[0] == _LONG_HEAD + 1 else 0
        if head[0] == _LONG_HEAD:
            size = 2 + head[1]
        elif not size:
            size = 1 + (head[0] & 0x1F)
        value = decode(start[offset : offset + size], what="part of a block")
        if not isinstance(value, bytes):
            raise InputError("the parts of a block are byte strings")
        parts.append(value)
        offset += size
    if len(parts[0]) != HEADER_BYTES:
        raise InputError(f"a header has {HEADER_BYTES} bytes, not {len(parts[0])}")
    return SealedHeader.decode(parts[0], parts[1], parts[2], count)

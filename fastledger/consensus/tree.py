"""The headers above the last final block, and which of their chains is the best (SPEC-TREE-1..7).

Bookkeeping only: the tree neither executes nor stores blocks; it is told what became of them. Its root is the last
final block, so that nothing in it can ever ask for final blocks to be undone. All walks are loops: a chain may be as
long as the tree is large.
"""

from collections.abc import Callable
from enum import IntEnum
from heapq import heapify, heappop, heappush
from typing import TypeAlias

from fastledger.consensus.engine import Engine, EngineTip
from fastledger.errors import Code, InputError, NotFoundError
from fastledger.limits import TREE_ENTRIES_MAX
from fastledger.model.block import Header, HeaderBody, SealedHeader


class TreeStatus(IntEnum):
    """The knowledge about a block, which is one of four.

    HEADER: its header alone is known. STORED: a whole copy is held. VALID: it was executed and is right. INVALID: it
    can never be right.
    """

    HEADER = 0
    STORED = 1
    VALID = 2
    INVALID = 3


class TreeEntry:
    """One block of the tree. ``work`` is that of its chain up to it; ``order`` counts the arrivals of headers."""

    __slots__ = (
        "block_id",
        "body",
        "children",
        "complete",
        "count",
        "header",
        "height",
        "order",
        "parent",
        "seal",
        "status",
        "tip",
        "work",
    )

    def __init__(
        self,
        sealed: SealedHeader,
        tip: EngineTip,
        parent: "TreeEntry | None",
        work: int,
        order: int,
        status: TreeStatus,
    ) -> None:
        self.header: Header = sealed.header
        self.body: HeaderBody = sealed.body
        self.seal = sealed.seal
        self.count = sealed.count
        self.tip = tip
        self.block_id = tip.block_id
        self.height = tip.height
        self.parent = parent
        self.children: list[TreeEntry] = []
        self.work = work
        self.order = order
        self.status = status
        # When the data from the root up to here became complete, as a running number; None while it is not.
        self.complete: int | None = None

    @property
    def sealed(self) -> SealedHeader:
        """The header, body, seal and transaction count that the tree was given."""
        return SealedHeader(self.header, self.body, self.seal, self.count)

    @property
    def has_data(self) -> bool:
        """Whether a whole copy of the block is held."""
        return self.status in (TreeStatus.STORED, TreeStatus.VALID)

    def __repr__(self) -> str:
        return f"TreeEntry(height={self.height}, block_id={self.block_id[::-1].hex()}, {self.status.name})"


# Heap item: a rank that is better the smaller it is, a number that tells stale items, and the block's id.
_Item: TypeAlias = tuple[int, int, bytes]


class BlockTree:
    """The headers above the last final block, ``root``. Not thread-safe: it belongs to the chain's thread.

    The best entries stand on heaps whose stale items are passed over when they come up, so that a look-up costs
    O(log n) amortised, also after blocks turned out to be invalid.
    """

    _heap_slack = 1_024

    def __init__(
        self,
        engine: Engine,
        root: EngineTip,
        sealed: SealedHeader,
        *,
        work: int = 0,
        entries_max: int = TREE_ENTRIES_MAX,
    ) -> None:
        """Takes the last final block, ``root``, its header, ``sealed``, and the work of the chain up to it."""
        if root.block_id != sealed.block_id:
            raise ValueError("root: another block's header")
        self._engine = engine
        self._entries_max = entries_max
        self._arrivals = 0
        self._completions = 0
        self._root = TreeEntry(sealed, root, None, work, 0, TreeStatus.VALID)
        self._root.complete = 0
        self._entries = {root.block_id: self._root}
        self._headers: list[_Item] = [(-work, 0, root.block_id)]
        self._stored: list[_Item] = [(-work, 0, root.block_id)]
        self._leaves: list[_Item] = []
        # The way from the root to the best header, and how many of its entries, from the root on, have their data.
        self._chain = [self._root]
        self._chain_stored = 1

    @property
    def root(self) -> TreeEntry:
        """The entry of the last final block."""
        return self._root

    def __len__(self) -> int:
        """How many entries there are, the root among them."""
        return len(self._entries)

    def get(self, block_id: bytes) -> TreeEntry | None:
        """Returns the entry of a block (id of 32 bytes), None where the tree does not have it."""
        return self._entries.get(block_id)

    def _of(self, block_id: bytes) -> TreeEntry:
        entry = self._entries.get(block_id)
        if entry is None:
            raise NotFoundError(f"block {block_id[::-1].hex()} is not in the tree")
        return entry

    # Growing.

    def add(self, sealed: SealedHeader) -> TreeEntry:
        """Returns the entry of this header, new or already there (SPEC-TREE-1). The caller has checked the seal.

        Raises ``InputError``: ``BAD_BLOCK`` where the engine's rules forbid it or its parent is invalid,
        ``UNKNOWN_PARENT``, ``BELOW_FINAL`` where it would fork off below the root, and ``TREE_FULL`` where no leaf
        of less work can make room.
        """
        block_id = sealed.block_id
        known = self._entries.get(block_id)
        if known is not None:
            return known
        parent = self._parent_for(sealed)
        self._engine.check(sealed.header, sealed.body, parent.tip)
        work = parent.work + self._engine.work(sealed.header)
        if len(self._entries) >= self._entries_max:
            self._make_room(parent, work)
        tip = self._engine.tip(sealed.header, sealed.body, sealed.seal, parent.tip)
        self._arrivals += 1
        entry = TreeEntry(sealed, tip, parent, work, self._arrivals, TreeStatus.HEADER)
        parent.children.append(entry)
        self._entries[block_id] = entry
        heappush(self._headers, (-work, entry.order, block_id))
        self._compact(self._headers, self._is_candidate)
        self._offer_leaf(entry)
        return entry

    def _parent_for(self, sealed: SealedHeader) -> TreeEntry:
        height = sealed.body.height
        parent = self._entries.get(sealed.header.previous_id)
        if parent is None and height <= self._root.height:
            raise InputError(f"height {height} is below the last final block", code=Code.BELOW_FINAL)
        if parent is None:
            raise InputError(f"the parent of height {height} is not known", code=Code.UNKNOWN_PARENT)
        if height != parent.height + 1:
            raise InputError(f"height {height} follows {parent.height}", code=Code.BAD_BLOCK)
        if parent.status == TreeStatus.INVALID:
            raise InputError(f"height {height} builds on an invalid block", code=Code.BAD_BLOCK)
        return parent

    def _offer_leaf(self, entry: TreeEntry) -> None:
        """Puts an entry among those that may be dropped, if it is a leaf without data."""
        if not entry.children and not entry.has_data and entry is not self._root:
            heappush(self._leaves, (entry.work, -entry.order, entry.block_id))
            self._compact(self._leaves, self._is_droppable)

    def _is_droppable(self, item: _Item) -> bool:
        entry = self._entries.get(item[2])
        return entry is not None and entry.order == -item[1] and not entry.children and not entry.has_data

    def _make_room(self, parent: TreeEntry, work: int) -> None:
        """Drops the leaf of least work for a newcomer of more; never ``parent`` nor one with data (SPEC-TREE-7)."""
        spared: list[_Item] = []
        found: TreeEntry | None = None
        while self._leaves and found is None and self._leaves[0][0] < work:
            item = heappop(self._leaves)
            if not self._is_droppable(item):
                continue
            if item[2] == parent.block_id:
                spared.append(item)
            else:
                found = self._entries.pop(item[2])
        for item in spared:
            heappush(self._leaves, item)
        if found is None:
            raise InputError(f"the tree holds {self._entries_max} headers of more work", code=Code.TREE_FULL)
        above = _parent_of(found)
        above.children.remove(found)
        self._offer_leaf(above)

    # What became of blocks.

    def mark_stored(self, block_id: bytes) -> TreeEntry:
        """Records that a whole and good copy of the block is held; NotFoundError where the tree does not have it."""
        entry = self._of(block_id)
        if entry.status == TreeStatus.HEADER:
            entry.status = TreeStatus.STORED
            self._complete(entry)
        return entry

    def _complete(self, first: TreeEntry) -> None:
        """Numbers ``first`` and its descendants as far as the data of all blocks from the root to them is held."""
        if _parent_of(first).complete is None:
            return
        waiting = [first]
        while waiting:
            entry = waiting.pop()
            if not entry.has_data:
                continue
            self._completions += 1
            entry.complete = self._completions
            heappush(self._stored, (-entry.work, entry.complete, entry.block_id))
            waiting += reversed(entry.children)
        self._compact(self._stored, self._is_stored)

    def mark_valid(self, block_id: bytes) -> TreeEntry:
        """Records that the block, a copy of which is held, was executed and is what its header says."""
        entry = self._of(block_id)
        if not entry.has_data:
            raise RuntimeError(f"{entry!r} cannot have been executed")
        entry.status = TreeStatus.VALID
        return entry

    def mark_invalid(self, block_id: bytes) -> list[TreeEntry]:
        """Records that the block and its descendants can never be right; returns the newly marked, parents first."""
        first = self._of(block_id)
        if first is self._root:
            raise RuntimeError("a final block cannot become invalid")
        marked: list[TreeEntry] = []
        waiting = [first]
        while waiting:
            entry = waiting.pop()
            if entry.status == TreeStatus.INVALID:
                continue
            entry.status = TreeStatus.INVALID
            entry.complete = None
            marked.append(entry)
            waiting += reversed(entry.children)
            self._offer_leaf(entry)
        return marked

    def forget_data(self, block_id: bytes) -> TreeEntry:
        """Records that the copy of the block was bad or is lost, so that it has to be fetched again."""
        first = self._of(block_id)
        if first is self._root:
            raise RuntimeError("the root keeps its data")
        if not first.has_data:
            return first
        first.status = TreeStatus.HEADER
        self._chain_stored = min(self._chain_stored, first.height - self._root.height)
        waiting = [first]
        while waiting:
            entry = waiting.pop()
            if entry.complete is not None:
                entry.complete = None
                waiting += entry.children
        self._offer_leaf(first)
        return first

    # What is best.

    def best_header(self) -> TreeEntry:
        """Returns the entry of most work that is not invalid; of several the one that came first (SPEC-TREE-2)."""
        return self._best(self._headers, self._is_candidate)

    def best_stored(self) -> TreeEntry:
        """Returns the entry of most work among those whose blocks from the root on are all held and none invalid.

        Of several it is the one whose data was complete first, so that a node keeps to what it saw first
        (SPEC-TREE-3).
        """
        return self._best(self._stored, self._is_stored)

    def _best(self, heap: list[_Item], is_fresh: "Callable[[_Item], bool]") -> TreeEntry:
        while not is_fresh(heap[0]):
            heappop(heap)
        return self._entries[heap[0][2]]

    def _is_candidate(self, item: _Item) -> bool:
        entry = self._entries.get(item[2])
        return entry is not None and entry.order == item[1] and entry.status != TreeStatus.INVALID

    def _is_stored(self, item: _Item) -> bool:
        entry = self._entries.get(item[2])
        return entry is not None and entry.complete == item[1]

    def _compact(self, heap: list[_Item], is_fresh: "Callable[[_Item], bool]") -> None:
        """Drops stale items where they outnumber the entries."""
        if len(heap) > 2 * len(self._entries) + self._heap_slack:
            heap[:] = dict.fromkeys(filter(is_fresh, heap))
            heapify(heap)

    # Ways.

    def path(self, old: TreeEntry, new: TreeEntry) -> tuple[list[TreeEntry], list[TreeEntry]]:
        """Returns the entries to drop, highest first, and to connect, lowest first, on the way from ``old`` to
        ``new``.
        """
        drop: list[TreeEntry] = []
        connect: list[TreeEntry] = []
        while old is not new:
            if old.height >= new.height:
                drop.append(old)
                old = _parent_of(old)
            else:
                connect.append(new)
                new = _parent_of(new)
        connect.reverse()
        return drop, connect

    def on_path(self, entry: TreeEntry, height: int) -> TreeEntry:
        """Returns the ancestor of ``entry``, or the entry itself, at ``height``.

        O(1) on the chain of the best header. Raises:     ValueError: the height is below the root's or above the
        entry's.
        """
        if not self._root.height <= height <= entry.height:
            raise ValueError(f"height: expected {self._root.height} to {entry.height}, got {height}")
        chain, base = self._best_chain(), self._root.height
        while entry.height > height:
            index = entry.height - base
            if index < len(chain) and chain[index] is entry:
                return chain[height - base]
            entry = _parent_of(entry)
        return entry

    def _best_chain(self) -> list[TreeEntry]:
        """Returns the entries from the root to the best header; renews the last answer from where that forks off."""
        entry, chain, base = self.best_header(), self._chain, self._root.height
        if chain[-1] is entry:
            return chain
        fresh: list[TreeEntry] = []
        while entry.height - base >= len(chain) or chain[entry.height - base] is not entry:
            fresh.append(entry)
            entry = _parent_of(entry)
        shared = entry.height - base + 1
        chain[shared:] = reversed(fresh)
        self._chain_stored = min(self._chain_stored, shared)
        return chain

    def missing(self, limit: int) -> list[TreeEntry]:
        """Returns up to ``limit`` entries without data on the best header's chain, lowest first (SPEC-TREE-5)."""
        chain = self._best_chain()
        while self._chain_stored < len(chain) and chain[self._chain_stored].has_data:
            self._chain_stored += 1
        found: list[TreeEntry] = []
        for index in range(self._chain_stored, len(chain)):
            if len(found) >= limit:
                break
            if not chain[index].has_data:
                found.append(chain[index])
        return found

    # Finality.

    def agreed(self, height_max: int) -> TreeEntry:
        """Returns the highest entry up to ``height_max`` on the chains of both the best header and the best stored
        block.

        What lies above it may yet be left for a chain of more work whose blocks are still on their way here, so that
        nothing above it should become final, however deep it lies (SPEC-TREE-10).
        """
        chain, base = self._best_chain(), self._root.height
        entry = self.best_stored()
        while entry.height - base >= len(chain) or chain[entry.height - base] is not entry:
            entry = _parent_of(entry)
        return chain[max(0, min(entry.height, height_max) - base)]

    def finalise(self, entry: TreeEntry) -> list[TreeEntry]:
        """Makes ``entry`` the root; returns what was dropped because it does not descend from it, parents first.

        The blocks between the old root and ``entry`` leave the tree too. They are final, not dead, and not returned.
        """
        if self._entries.get(entry.block_id) is not entry or entry.complete is None:
            raise RuntimeError(f"{entry!r} cannot become final")
        self._shorten_chain(entry)
        dead: list[TreeEntry] = []
        kept, above = entry, entry.parent
        while above is not None:
            waiting = [child for child in reversed(above.children) if child is not kept]
            while waiting:
                dropped = waiting.pop()
                dead.append(dropped)
                waiting += reversed(dropped.children)
            del self._entries[above.block_id]
            above.children = []
            kept.parent = None
            kept, above = above, above.parent
        for dropped in dead:
            del self._entries[dropped.block_id]
        self._root = entry
        return dead

    def _shorten_chain(self, root: TreeEntry) -> None:
        chain, index = self._best_chain(), root.height - self._root.height
        if index < len(chain) and chain[index] is root:
            del chain[:index]
            self._chain_stored = max(1, self._chain_stored - index)
        else:
            self._chain = [root]
            self._chain_stored = 1


def _parent_of(entry: TreeEntry) -> TreeEntry:
    if entry.parent is None:
        raise RuntimeError(f"{entry!r} has no parent in the tree")
    return entry.parent

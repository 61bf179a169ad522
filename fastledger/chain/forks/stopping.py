"""Where a node stops whose release lacks a rule set: below the first block of that set, on every branch (SPEC-RULE-11).

Headers above such a place count as work like all others, so that the node does not leave the chain that it cannot
follow for a lesser branch. Blocks above it are neither stored nor executed, and nobody is blamed for them: after an
upgrade they are fetched again.
"""

from fastledger.consensus.tree import BlockTree, TreeEntry


class StoppingPlaces:
    """The blocks of a tree behind which another rule set begins that this release does not know."""

    def __init__(self, tree: BlockTree) -> None:
        self._tree = tree
        self._ids: dict[bytes, None] = {}

    def add(self, entry: TreeEntry) -> list[bytes]:
        """Adds a block that was executed, and forgets the data of all that follow; returns the ids of those."""
        for block_id in list(self._ids):
            if self._tree.get(block_id) is None:
                del self._ids[block_id]  # final long since, or of a dead branch
        self._ids[entry.block_id] = None
        forgotten: list[bytes] = []
        waiting = list(entry.children)
        while waiting:
            above = waiting.pop()
            waiting += above.children
            if above.has_data:
                self._tree.forget_data(above.block_id)
                forgotten.append(above.block_id)
        return forgotten

    def below(self, entry: TreeEntry) -> TreeEntry | None:
        """The place that ``entry`` lies above; None where it lies above none."""
        for block_id in self._ids:
            place = self._tree.get(block_id)
            if place is None or place.height >= entry.height:
                continue
            if self._tree.on_path(entry, place.height) is place:
                return place
        return None

    def is_above(self, entry: TreeEntry) -> bool:
        """Whether this release can judge no copy of the block."""
        return bool(self._ids) and self.below(entry) is not None

    def best(self) -> TreeEntry:
        """The block to go to: that of most work among those that are held, or the place where the best chain stops."""
        if self._ids:
            place = self.below(self._tree.best_header())
            if place is not None and place.complete is not None:
                return place
        return self._tree.best_stored()

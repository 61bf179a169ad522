"""The intake of headers: seals, headers that come early, branches below the final block (SPEC-FORK-5..7).

Seals are checked first, in one batch: nobody but a member of the chain can make a node remember a header. A header
from the future is no fault and is not judged yet; it waits, within bounds, until its time has come.
"""

from collections.abc import Sequence
from typing import NamedTuple

from fastledger.chain.forks.events import ChainEvent, FinalityConflict
from fastledger.chain.forks.headers import HeaderChain
from fastledger.consensus.engine import Engine, EngineTip
from fastledger.consensus.tree import BlockTree, TreeEntry, TreeStatus
from fastledger.errors import BlockFault, Code, InputError
from fastledger.limits import HEADERS_MAX, HELD_BLOCKS_MAX, HELD_BYTES_MAX, HELD_HEADERS_MAX, HELD_MS_MAX
from fastledger.model.block import Block, SealedHeader
from fastledger.model.receipt import check_seals

_CONFLICTS_MAX = 64


class Held(NamedTuple):
    """The headers and blocks that waited for their time."""

    headers: list[SealedHeader]
    blocks: list[Block]


class HeaderIntake:
    """Judges headers and adds them to ``tree``."""

    def __init__(
        self,
        tree: BlockTree,
        engine: Engine,
        chain: HeaderChain,
        chain_id: bytes,
        verify_threads: int | None,
    ) -> None:
        self._tree = tree
        self._engine = engine
        self._chain = chain
        self._chain_id = chain_id
        self._verify_threads = verify_threads
        self._held_headers: dict[bytes, SealedHeader] = {}
        self._held_blocks: dict[bytes, Block] = {}
        self._held_bytes = 0
        self._conflicts: dict[bytes, tuple[SealedHeader, ...]] = {}
        self._told: dict[bytes, None] = {}

    def add(self, headers: Sequence[SealedHeader], now_ms: int) -> int:
        """Adds headers to the tree, parents first; returns how many were new.

        Raises ``BlockFault`` with the ``index`` of the first that cannot be taken; those before it are added.
        """
        if len(headers) > HEADERS_MAX:
            raise BlockFault(f"{len(headers)} headers at once, at most {HEADERS_MAX}", code=Code.OVERSIZED)
        fresh: list[tuple[int, SealedHeader, bytes]] = []
        fault: BlockFault | None = None
        for index, sealed in enumerate(headers):
            block_id = sealed.block_id
            entry = self._tree.get(block_id)
            if entry is not None and entry.status == TreeStatus.INVALID:
                fault = BlockFault("the block is invalid", block_id=block_id, condemns=True, index=index)
                break
            if entry is None and not self._chain.is_final(block_id, sealed.body.height):
                fresh.append((index, sealed, block_id))
        mask = check_seals([sealed for _, sealed, _ in fresh], self._chain_id, threads=self._verify_threads)
        added = 0
        for place, (index, sealed, block_id) in enumerate(fresh):
            if not mask[place]:
                raise BlockFault("a header's seal does not verify", block_id=block_id, index=index)
            if self._engine.ready_ms(sealed.body) > now_ms:
                self._hold_header(sealed, block_id, now_ms, index)
                return added  # later ones are from further in the future
            try:
                self._tree.add(sealed)
            except InputError as error:
                if error.code in (Code.BELOW_FINAL, Code.UNKNOWN_PARENT):
                    self._note_conflict([item for _, item, _ in fresh[place:]])
                raise _header_fault(error, block_id, index) from error
            added += 1
        if fault is not None:
            raise fault
        return added

    # From the future.

    def _check_early(self, sealed: SealedHeader, block_id: bytes, now_ms: int, index: int) -> None:
        """Raises ``BlockFault`` for an early header that could not be taken at its time either."""
        parent = self._tree.get(sealed.header.previous_id)
        if parent is None or parent.status == TreeStatus.INVALID or sealed.body.height != parent.height + 1:
            raise BlockFault(
                "a header from the future on no known parent",
                code=Code.UNKNOWN_PARENT,
                block_id=block_id,
                index=index,
            )
        if self._engine.ready_ms(sealed.body) - now_ms > HELD_MS_MAX:
            raise BlockFault(
                "a header from too far in the future", code=Code.NOT_YET_VALID, block_id=block_id, index=index
            )
        try:
            self._engine.check(sealed.header, sealed.body, parent.tip)
        except InputError as error:
            raise _header_fault(error, block_id, index) from error

    def _hold_header(self, sealed: SealedHeader, block_id: bytes, now_ms: int, index: int) -> None:
        self._check_early(sealed, block_id, now_ms, index)
        if len(self._held_headers) < HELD_HEADERS_MAX:
            self._held_headers[block_id] = sealed

    def hold_block(self, block: Block, now_ms: int) -> bool:
        """Keeps a block from the future until its time, if there is room; returns False where its time has come.

        Raises ``BlockFault`` where its seal does not verify or its parent is not known.
        """
        if self._engine.ready_ms(block.body) <= now_ms:
            return False
        block_id = block.block_id
        if not check_seals([block.sealed_header], self._chain_id, threads=1)[0]:
            raise BlockFault("a block's seal does not verify", block_id=block_id)
        self._check_early(block.sealed_header, block_id, now_ms, 0)
        size = len(block.transactions)
        room = len(self._held_blocks) < HELD_BLOCKS_MAX and self._held_bytes + size <= HELD_BYTES_MAX
        if room and block_id not in self._held_blocks:
            self._held_blocks[block_id] = block
            self._held_bytes += size
        return True

    def ready(self, now_ms: int) -> Held:
        """Returns, and no longer holds, the headers and blocks whose time has come, earliest first."""
        if not self._held_headers and not self._held_blocks:
            return Held([], [])
        headers = [
            sealed for sealed in self._held_headers.values() if self._engine.ready_ms(sealed.body) <= now_ms
        ]
        blocks = [
            block for block in self._held_blocks.values() if self._engine.ready_ms(block.body) <= now_ms
        ]
        for sealed in headers:
            del self._held_headers[sealed.block_id]
        for block in blocks:
            del self._held_blocks[block.block_id]
            self._held_bytes -= len(block.transactions)
        headers.sort(key=lambda sealed: sealed.body.height)
        blocks.sort(key=lambda block: block.height)
        return Held(headers, blocks)

    # Below what is final.

    def _note_conflict(self, branch: Sequence[SealedHeader]) -> None:
        """Remembers a branch that forks off the final chain, to be weighed if it may be the heavier one."""
        first, root = branch[0], self._tree.root
        height = first.body.height
        parent = self._chain.entry_at(height - 1)
        parts_here = 0 < height <= root.height and parent is not None
        if not parts_here or parent is None or parent.block_id != first.header.previous_id:
            return
        if branch[-1].body.height > root.height and first.block_id not in self._told:
            self._conflicts[first.block_id] = tuple(branch)

    def take_events(self, best: TreeEntry) -> list[ChainEvent]:
        """Returns a conflict for each branch off the final chain that has more work than ``best``, each once."""
        if not self._conflicts:
            return []
        found: list[ChainEvent] = []
        for block_id, branch in self._conflicts.items():
            if self._outweighs(branch, best):
                found.append(FinalityConflict(block_id, branch[0].body.height))
                self._told[block_id] = None
        self._conflicts.clear()
        for old in list(self._told)[:-_CONFLICTS_MAX]:
            del self._told[old]
        return found

    def _outweighs(self, branch: Sequence[SealedHeader], best: TreeEntry) -> bool:
        """Whether a branch off the final chain keeps the engine's rules and more work than ours after the fork."""
        start, root = branch[0].body.height, self._tree.root
        if root.height - start > HEADERS_MAX:
            return False
        tips: list[EngineTip] = []
        for height in range(max(0, start - 2), start):
            sealed = self._chain.final_header(height)
            if sealed is None:
                return False
            parent = tips[-1] if tips else None
            tips.append(self._engine.tip(sealed.header, sealed.body, sealed.seal, parent))
        ours = best.work - root.work
        for height in range(start, root.height + 1):
            sealed = self._chain.final_header(height)
            if sealed is None:
                return False
            ours += self._engine.work(sealed.header)
        theirs, tip = 0, tips[-1]
        for sealed in branch:
            try:
                if sealed.header.previous_id != tip.block_id or sealed.body.height != tip.height + 1:
                    return False
                self._engine.check(sealed.header, sealed.body, tip)
            except InputError:
                return False
            tip = self._engine.tip(sealed.header, sealed.body, sealed.seal, tip)
            theirs += self._engine.work(sealed.header)
        return theirs > ours


def _header_fault(error: InputError, block_id: bytes, index: int) -> BlockFault:
    condemns = error.code == Code.BAD_BLOCK
    return BlockFault(str(error.args[0]), code=error.code, block_id=block_id, condemns=condemns, index=index)

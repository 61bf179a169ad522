"""Blocks to be mined: executed beforehand, so that only the nonce is missing (SPEC-FORK-11)."""

import struct
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from fastledger._native.ecdsa import HINTS_FULL
from fastledger.chain.admission import Pending
from fastledger.chain.execution.executor import Draft, Executor
from fastledger.chain.execution.store import ChainStore
from fastledger.chain.forks.mempool import Mempool
from fastledger.consensus.engine import (
    BlockBuilt,
    Engine,
    EngineAction,
    SealBlock,
    SearchWork,
    WorkFound,
)
from fastledger.crypto.signing import SigningKey
from fastledger.errors import InputError
from fastledger.limits import BLOCK_BYTES_MAX, BLOCK_TRANSACTIONS_MAX, DRAFT_AGE_MS_MAX
from fastledger.model.block import HEADER_BYTES, Block, Header, HeaderBody
from fastledger.model.genesis import Genesis

_DRAFTS_MAX = 2


@dataclass(frozen=True)
class Template:
    """A block on top of ``parent_id`` that lacks work: ``make_header`` gives the header to search a nonce for.

    It refers to nothing of the chain and can be handed to another thread.
    """

    parent_id: bytes
    body: HeaderBody
    bits: int
    target: int
    transactions: tuple[Pending, ...] = field(repr=False)
    draft: Draft = field(repr=False)

    @property
    def height(self) -> int:
        """The height that the block will have."""
        return self.body.height

    def body_with(self, extra_nonce: int) -> HeaderBody:
        """Returns the body that a header for ``extra_nonce`` commits to."""
        return replace(self.body, extra_nonce=extra_nonce)

    def make_header(self, extra_nonce: int) -> bytes:
        """Returns the 80 bytes of the header to search, with nonce 0."""
        body = self.body_with(extra_nonce)
        return Header(self.parent_id, body.commitment, body.time_ms // 1000, self.bits).encode()

    def header_of(self, header80: bytes, extra_nonce: int) -> tuple[Header, HeaderBody]:
        """Returns the header that was found and its body; raises ``InputError`` where it is not of this template."""
        if len(header80) != HEADER_BYTES or header80[:-4] != self.make_header(extra_nonce)[:-4]:
            raise InputError("the header is not of this template")
        return Header.decode(header80), self.body_with(extra_nonce)

    def block(self, header: Header, body: HeaderBody, seal: bytes) -> Block:
        """Returns the block with its work and seal."""
        encoded = [pending.encoded for pending in self.transactions]
        hints = b"".join(pending.hint for pending in self.transactions)
        return Block(
            header,
            body,
            seal,
            b"".join(encoded),
            struct.pack(f"<{len(encoded)}I", *map(len, encoded)),
            self.draft.execution.results,
            bytes((HINTS_FULL,)) + hints if encoded else b"",
        )


class TemplateMaker:
    """Makes templates of what waits, and knows again the blocks that come of them."""

    def __init__(
        self,
        genesis: Genesis,
        engine: Engine,
        executor: Executor,
        store: ChainStore,
        mempool: Mempool,
        key: SigningKey | None,
    ) -> None:
        """``key`` seals this node's blocks; None: it makes no templates."""
        self._engine = engine
        self._executor = executor
        self._store = store
        self._mempool = mempool
        self._key = key
        # The newest drafts, by their parents' ids and the roots of transactions and state, and the newest own blocks.
        self._drafts: dict[tuple[bytes, bytes, bytes], Draft] = {}
        self._own: dict[bytes, Block] = {}
        self._last_draft: Draft | None = None
        spacing_ms = genesis.work.spacing_ms if genesis.work is not None else 0
        self._draft_age_ms_max = min(DRAFT_AGE_MS_MAX, spacing_ms // 2)

    def make(self, tip_id: bytes, now_ms: int) -> Template | None:
        """Returns the block after the tip ``tip_id``, executed; None where this node seals none, or not this one."""
        if self._key is None or self._executor.in_force.release_needed is not None:
            return None
        self._store.renew()
        draft = self._draft(tip_id, now_ms)
        plan = draft.plan
        body = self._executor.body_of(draft)
        chosen = tuple(pending for pending, taken in zip(draft.offered, draft.taken, strict=True) if taken)
        header = Header(draft.parent_id, body.commitment, plan.time_ms // 1000, plan.bits)
        target = target_of(self._engine.handle(BlockBuilt(header, body)))
        while len(self._drafts) >= _DRAFTS_MAX:
            del self._drafts[next(iter(self._drafts))]
        self._drafts[draft.parent_id, body.tx_root, body.state_root] = draft
        return Template(draft.parent_id, body, plan.bits, target, chosen, draft)

    def _draft(self, tip_id: bytes, now_ms: int) -> Draft:
        """Executes the transactions that wait.

        Where little has changed since the last draft, it executes only those that came since.
        """
        plan, last = self._executor.plan(now_ms), self._last_draft
        base = None
        if last is not None and last.parent_id == tip_id:
            fresh = abs(plan.time_ms - last.plan.time_ms) <= self._draft_age_ms_max
            goes_on = fresh and self._offered(last.plan.time_ms)[: len(last.offered)] == last.offered
            base = last if goes_on else None
        if base is not None:
            plan = base.plan
        offered = self._offered(plan.time_ms)
        if base is None or offered != base.offered:
            base = self._executor.draft(offered, plan, base)
        self._last_draft = base
        return base

    def _offered(self, time_ms: int) -> tuple[Pending, ...]:
        self._mempool.fit(self._executor.in_force.rules)
        return tuple(self._mempool.take(BLOCK_TRANSACTIONS_MAX, BLOCK_BYTES_MAX, time_ms))

    def complete(self, template: Template, header80: bytes, extra_nonce: int) -> Block:
        """Seals a template whose work was found.

        Raises ``InputError`` where the header is not of the template.
        """
        header, body = template.header_of(header80, extra_nonce)
        if SealBlock(body.height) not in self._engine.handle(WorkFound(header, body)):
            raise InputError(f"engine {self._engine.name} does not seal height {body.height}")
        seal = self._executor.seal(header, body, len(template.transactions))
        block = template.block(header, body, seal)
        while len(self._own) >= _DRAFTS_MAX:
            del self._own[next(iter(self._own))]
        self._own[block.block_id] = block
        return block

    def draft_of(self, block: Block) -> Draft | None:
        """Returns the draft of this node's own template for this very block, or None.

        Only where it is this node's: the reward goes to the proposer, and another who copies the roots lies.
        """
        body = block.body
        if self._key is None or body.proposer != self._key.public_key:
            return None
        draft = self._drafts.get((block.header.previous_id, body.tx_root, body.state_root))
        return draft if draft is not None and draft.execution.time_ms == body.time_ms else None

    def is_own(self, block: Block) -> bool:
        """Whether the block is the very one that :meth:`complete` returned; asked once for each."""
        return self._own.pop(block.block_id, None) is block


def target_of(actions: Sequence[EngineAction]) -> int:
    """Returns the target of the search that an engine asks for; raises ``RuntimeError`` where it asks for none."""
    search = next((action for action in actions if isinstance(action, SearchWork)), None)
    if search is None:
        raise RuntimeError("the engine does not mine")
    return search.target

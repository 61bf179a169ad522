"""Rewards by the genesis schedule, alone and in blocks with real work that the executor runs."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from mining import START_MS
from rules import State

from fastledger.chain.admission import Batch, admit
from fastledger.chain.execution.executor import Executor, genesis_writes
from fastledger.chain.execution.store import ChainStore
from fastledger.consensus.engine import EngineTip
from fastledger.consensus.engines import make_engine
from fastledger.consensus.pow import PowEngine
from fastledger.crypto.merkle import HistoryTree
from fastledger.crypto.signing import SigningKey
from fastledger.crypto.work import bits_to_target, search_nonce
from fastledger.errors import Code, InputError
from fastledger.model.block import ZERO32, Block, Header, HeaderBody
from fastledger.model.genesis import EMPTY_ROOT, Genesis, WorkParameters
from fastledger.model.receipt import check_seal, make_seal
from fastledger.state.view import next_state_root
from fastledger.storage.index import Index
from fastledger.storage.log import FrameRef, SegmentLog
from fastledger.subjects.catalogue import REGISTRY
from fastledger.subjects.reward import ACCOUNTS, reward_at

SCHEDULE = ((0, 50), (3, 25), (5, 0), (6, 1))
MINER = bytes([2]) + bytes(32)
STEPS = st.lists(st.tuples(st.integers(1, 50), st.integers(0, 9)), max_size=6, unique_by=lambda step: step[0])


def test_steps_begin_at_their_height() -> None:  # SPEC-RWD-1
    paid = [reward_at(SCHEDULE, height) for height in range(9)]
    assert paid == [50, 50, 50, 25, 25, 0, 1, 1, 1]
    assert reward_at((), 7) == 0
    assert reward_at(SCHEDULE, 2**63) == 1


@given(STEPS, st.integers(0, 60))
def test_a_reward_is_that_of_the_last_step(steps: list[tuple[int, int]], height: int) -> None:  # SPEC-RWD-1
    schedule = ((0, 7), *sorted(steps))
    assert reward_at(schedule, height) == [credits for start, credits in schedule if start <= height][-1]


def test_credits_add_up_and_no_refusal_takes_them_back() -> None:  # SPEC-RWD-2
    state = State(work=WorkParameters(rewards=SCHEDULE))
    miner, other = state.stranger(), state.stranger()
    for height in range(1, 9):
        changed = state.when_block(miner, height=height)
        assert changed == ({ACCOUNTS.prefix + miner.key} if height != 5 else set())
        state.view.rollback()
    assert state.entity(ACCOUNTS, miner.key).balance == 50 + 50 + 25 + 25 + 0 + 1 + 1 + 1
    assert state.view.writes[bytes((16, 1)) + miner.key] == msgspec.msgpack.encode([153])
    assert state.find(ACCOUNTS, other.key) is None
    assert not State(work=WorkParameters()).when_block(miner, height=5)
    assert not State().when_block(miner, height=1)


# In blocks.


@contextmanager
def executor_for(genesis: Genesis, folder: Path) -> Iterator[Executor]:
    index = Index.open(folder / "index", genesis.chain_id)
    store = ChainStore(index)
    log = SegmentLog.create(folder, genesis.chain_id)
    try:
        executor = Executor(genesis=genesis, store=store, log=log, engine=make_engine(genesis), key=None)
        executor.start()
        yield executor
    finally:
        log.close()
        store.close()
        index.close()


def empty_block(
    key: SigningKey, genesis: Genesis, parent: EngineTip, time_ms: int, state_root: bytes, history_root: bytes
) -> Block:
    """A block without transactions, with its work and seal."""
    body = HeaderBody(
        parent.height + 1,
        time_ms,
        EMPTY_ROOT,
        EMPTY_ROOT,
        state_root,
        history_root,
        key.public_key,
        ZERO32,
    )
    bits = PowEngine(genesis).next_bits(parent)
    header = Header(parent.block_id, body.commitment, time_ms // 1000, bits)
    nonce = search_nonce(header.encode(), bits_to_target(bits), 0, 2**20)
    assert nonce is not None
    header = replace(header, nonce=nonce)
    return Block(header, body, make_seal(key, genesis.chain_id, header, body, 0), b"", b"", b"")


def replay(executor: Executor, block: Block) -> None:
    decoded = Block.decode(block.encode())
    check_seal(decoded, executor.chain_id)
    batch = admit(Batch.of_block(decoded), REGISTRY.rules(1), chain_id=executor.chain_id)
    executor.replay(decoded, FrameRef(0, 0, 0), batch)


@pytest.mark.parametrize("schedule", [SCHEDULE, ()])
def test_blocks_pay_their_proposers(tmp_path: Path, schedule: tuple[tuple[int, int], ...]) -> None:
    # SPEC-RWD-1, SPEC-RWD-2, SPEC-ENG-3, SPEC-ENG-4
    keys = [SigningKey.generate() for _ in range(2)]
    work = WorkParameters(initial_bits=0x207FFFFF, rewards=schedule)
    proposers = tuple(key.public_key for key in keys)
    genesis = Genesis.create(created_ms=START_MS, proposers=proposers, engine="pow", work=work)
    balances = dict.fromkeys(proposers, 0)
    history = HistoryTree()
    with executor_for(genesis, tmp_path) as executor:
        root = next_state_root(bytes(32), genesis_writes(genesis))
        for height in range(1, 9):
            history.append(executor.tip_position.tip.block_id)
            key, tip = keys[height % 3 == 0], executor.tip_position.tip
            paid = [credits for start, credits in schedule if start <= height][-1:] or [0]
            balances[key.public_key] += paid[0]
            account = {ACCOUNTS.prefix + key.public_key: msgspec.msgpack.encode([balances[key.public_key]])}
            root = next_state_root(root, account if paid[0] else {})
            place = (genesis, tip, START_MS + 4_000 * height)
            with pytest.raises(InputError, match="state root") as error:
                replay(executor, empty_block(key, *place, bytes(32), history.root()))
            assert error.value.code is Code.BAD_BLOCK
            replay(executor, empty_block(key, *place, root, history.root()))
            assert executor.tip_position.state_root == root
            assert executor.tip_position.tip.interval_ms == 4_000
        for proposer, balance in balances.items():
            stored = executor.store.lookup()(ACCOUNTS.prefix + proposer)
            assert stored == (msgspec.msgpack.encode([balance]) if balance else None)


def test_another_engine_pays_nothing(tmp_path: Path) -> None:  # SPEC-RWD-3
    genesis = Genesis.create(created_ms=START_MS, proposers=(MINER,))
    with executor_for(genesis, tmp_path) as executor:
        assert executor._begin(START_MS + 1, MINER).writes == {}

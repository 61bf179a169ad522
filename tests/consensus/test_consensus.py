"""The pow engine: its genesis parameters, its rules, and a target that neither outages nor liars lead astray."""

import math
from collections.abc import Callable
from dataclasses import replace
from random import Random
from typing import Any

import cbor2
import pytest
from hypothesis import given
from hypothesis import strategies as st
from mining import (
    HONEST,
    PARAMETERS,
    START_MS,
    UnhashedPow,
    header_on,
    make_genesis,
)

from fastledger.chain.execution.executor import Position
from fastledger.consensus.engine import (
    BlockBuilt,
    BuildBlock,
    EngineTip,
    FinaliseBlock,
    SealBlock,
    SearchWork,
    TipMoved,
    TransactionsPending,
    WorkFound,
    seal_ref,
)
from fastledger.consensus.engines import make_engine
from fastledger.consensus.pow import PowEngine, next_target
from fastledger.consensus.solo import SoloEngine
from fastledger.crypto.work import bits_to_target, block_work, search_nonce, target_to_bits
from fastledger.errors import Code, InputError
from fastledger.limits import FUTURE_MS_MAX
from fastledger.model.block import ZERO32, Header, SealedHeader
from fastledger.model.codec import encode
from fastledger.model.genesis import Genesis, WorkParameters
from fastledger.storage.log import FrameRef

EASY = WorkParameters(initial_bits=0x207FFFFF, finality_depth=2, rewards=((0, 50), (10, 25)))

# The genesis document.


def test_work_parameters_stand_in_the_genesis_document() -> None:  # SPEC-WORK-9
    genesis = make_genesis(EASY)
    document = cbor2.loads(genesis.encoded)
    assert document["engine"] == "pow"
    assert document["work"]["rewards"] == [[0, 50], [10, 25]]
    assert Genesis.decode(genesis.encoded) == genesis
    assert genesis.block(ZERO32).header.bits == EASY.initial_bits
    assert isinstance(make_engine(genesis), PowEngine)
    assert make_genesis(replace(EASY, window_blocks=71)).chain_id != genesis.chain_id


def test_a_solo_document_is_what_it_was() -> None:  # SPEC-WORK-9
    genesis = Genesis.create(created_ms=START_MS, proposers=(HONEST,))
    assert set(cbor2.loads(genesis.encoded)) == {
        *("version", "created_ms", "engine", "proposers", "authorities", "salt", "rule_set", "activation_quorum")
    }
    assert genesis.block(ZERO32).header.bits == 0
    assert isinstance(make_engine(genesis), SoloEngine)
    with pytest.raises(InputError, match="no work parameters") as error:
        PowEngine(genesis)
    assert error.value.code is Code.BAD_GENESIS


@pytest.mark.parametrize(
    "changes",
    [
        {"spacing_ms": 0},
        {"spacing_ms": 3_600_001},
        {"spacing_ms": True},
        {"spacing_ms": "10"},
        {"initial_bits": 0},
        {"initial_bits": 0x1D00FFFF + 2**32},
        {"initial_bits": 0x04923456},
        {"initial_bits": 0x05009234, "limit_bits": 0x22000100},
        {"initial_bits": 0x01123456},
        {"limit_bits": 0x220000FF},
        {"initial_bits": 0x1D010000, "limit_bits": 0x1D00FFFF},
        {"window_blocks": 3},
        {"window_blocks": 1_025},
        {"finality_depth": 0},
        {"finality_depth": 1_001},
        {"rewards": [[1, 50]]},
        {"rewards": [[0, 50], [0, 25]]},
        {"rewards": [[0, 50], [9, 25], [8, 1]]},
        {"rewards": [[0, -1]]},
        {"rewards": [[0, 1_000_000_001]]},
        {"rewards": [[0, 1, 2]]},
        {"rewards": [[False, 1]]},
        {"rewards": [0, 1]},
        {"rewards": [[height, 1] for height in range(65)]},
        {"rewards": {}},
        {"more": 1},
    ],
    ids=str,
)
def test_wrong_work_parameters_are_refused(changes: dict[str, Any]) -> None:  # SPEC-WORK-9
    document = cbor2.loads(make_genesis(EASY).encoded)
    document["work"] |= changes
    with pytest.raises(InputError) as error:
        Genesis.decode(encode(document))
    assert error.value.code is Code.BAD_GENESIS


def test_work_goes_with_pow_alone() -> None:  # SPEC-WORK-9
    for engine, work in (("solo", EASY), ("pow", None)):
        with pytest.raises(InputError, match="work parameters go with") as error:
            Genesis.create(created_ms=START_MS, proposers=(HONEST,), engine=engine, work=work)
        assert error.value.code is Code.BAD_GENESIS
    document = cbor2.loads(make_genesis(EASY).encoded)
    for work_map in (None, [], {}):
        with pytest.raises(InputError):
            Genesis.decode(encode(document | {"work": work_map}))


# The engine as a state machine.


def first_tip(engine: PowEngine, genesis: Genesis) -> EngineTip:
    sealed = genesis.block(ZERO32).sealed_header
    return engine.tip(sealed.header, sealed.body, sealed.seal, None)


def mined(parent: EngineTip, time_ms: int, engine: PowEngine) -> SealedHeader:
    """A header with real work."""
    sealed = header_on(parent, time_ms, engine.next_bits(parent))
    target = bits_to_target(sealed.header.bits)
    nonce = search_nonce(sealed.header.encode(), target, 0, 2**20)
    assert nonce is not None
    return replace(sealed, header=replace(sealed.header, nonce=nonce))


def test_pow_builds_searches_seals_and_finalises() -> None:  # SPEC-ENG-6, SPEC-ENG-7
    genesis = make_genesis(EASY)
    engine = PowEngine(genesis)
    tip = first_tip(engine, genesis)
    assert (tip.bits, tip.interval_ms) == (EASY.initial_bits, EASY.spacing_ms)
    assert engine.handle(TransactionsPending(tip, START_MS + 9)) == (
        BuildBlock(START_MS + 9, EASY.initial_bits),
    )
    assert engine.handle(TransactionsPending(tip, START_MS - 9)) == (
        BuildBlock(START_MS + 1, EASY.initial_bits),
    )
    sealed = mined(tip, START_MS + 9, engine)
    target = bits_to_target(EASY.initial_bits)
    assert engine.handle(BlockBuilt(sealed.header, sealed.body)) == (SearchWork(1, target),)
    assert engine.handle(WorkFound(sealed.header, sealed.body)) == (SealBlock(1),)
    following = engine.tip(sealed.header, sealed.body, b"seal", tip)
    assert following == EngineTip(1, sealed.block_id, START_MS + 9, b"seal", EASY.initial_bits, 9)
    assert engine.handle(TipMoved(following)) == ()
    assert engine.handle(TipMoved(following._replace(height=2))) == (FinaliseBlock(0),)
    assert engine.handle(TipMoved(following._replace(height=12))) == (FinaliseBlock(10),)
    assert SoloEngine([HONEST]).handle(TipMoved(following)) == ()


def test_pow_judges_headers() -> None:  # SPEC-ENG-3, SPEC-ENG-4
    genesis = make_genesis(EASY)
    engine = PowEngine(genesis)
    tip = first_tip(engine, genesis)
    good = mined(tip, START_MS + 1, engine)
    engine.check(good.header, good.body, tip)
    assert engine.work(good.header) == block_work(EASY.initial_bits) == 2
    wrong = [
        ("proposer", good.header, replace(good.body, proposer=bytes([4]) + bytes(32))),
        ("does not advance", good.header, replace(good.body, time_ms=START_MS)),
        ("refers to a seal", good.header, replace(good.body, seal_ref=bytes([1]) * 32)),
        ("other bits", replace(good.header, bits=0x207FFFFE), good.body),
        ("other bits", replace(good.header, bits=0), good.body),
        ("other bits", replace(good.header, bits=0xFFFFFFFF), good.body),
    ]
    for nonce in range(20):
        header = replace(good.header, nonce=nonce)
        if int.from_bytes(header.block_id, "little") > bits_to_target(header.bits):
            wrong.append(("lacks the work", header, good.body))
    assert len(wrong) > 6
    for problem, header, body in wrong:
        with pytest.raises(InputError, match=problem) as error:
            engine.check(header, body, tip)
        assert error.value.code is Code.BAD_BLOCK


def test_seals_are_chained_where_one_node_makes_them_alone() -> None:  # SPEC-ENG-4, SPEC-BLK-5
    tip = EngineTip(4, bytes(32), 5_000, b"")
    assert seal_ref(PowEngine(make_genesis(EASY)), tip) == ZERO32
    empty = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
    assert seal_ref(SoloEngine([HONEST]), tip).hex() == empty


def test_a_block_from_the_future_waits() -> None:  # SPEC-ENG-5
    engine = PowEngine(make_genesis(EASY))
    tip = first_tip(engine, make_genesis(EASY))
    sealed = mined(tip, START_MS + 10**9, engine)
    engine.check(sealed.header, sealed.body, tip)
    assert engine.ready_ms(sealed.body) == START_MS + 10**9 - FUTURE_MS_MAX


@pytest.mark.parametrize(
    ("tip", "parts"),
    [
        (EngineTip(4, bytes(32), 5_000, b"seal"), 8),
        (EngineTip(4, bytes(32), 5_000, b"seal", 0x207FFFFF, 17), 11),
    ],
)
def test_a_checkpoint_keeps_what_the_next_target_needs(tip: EngineTip, parts: int) -> None:  # SPEC-WORK-8
    position = Position(tip, FrameRef(1, 2, 3), 9, bytes(32), b"history")
    packed = position.pack()
    assert Position.unpack(packed) == position
    assert len(cbor2.loads(packed[4:])) == parts


# The target.

TARGETS = st.integers(1, bits_to_target(PARAMETERS.limit_bits))
INTERVALS = st.one_of(st.integers(1, 200_000), st.integers(1, 10**9))
SETTINGS = st.builds(
    WorkParameters,
    spacing_ms=st.integers(1, 3_600_000),
    window_blocks=st.integers(4, 1_024),
    limit_bits=st.sampled_from([0x207FFFFF, 0x1D00FFFF, 0x1F00FFFF]),
)


@given(TARGETS, INTERVALS, SETTINGS)
def test_the_target_stays_in_its_limits_and_moves_little(
    target: int, interval_ms: int, parameters: WorkParameters
) -> None:  # SPEC-WORK-8
    limit = bits_to_target(parameters.limit_bits)
    target = min(target, limit)
    moved = next_target(target, interval_ms, parameters)
    window = parameters.window_blocks
    assert 1 <= moved <= limit
    assert moved * window <= target * (window + 9)
    assert moved * window >= min(target * (window - 1) - window, window)
    assert next_target(target, parameters.spacing_ms, parameters) == target


@given(TARGETS, INTERVALS, INTERVALS, SETTINGS)
def test_a_longer_interval_never_makes_the_next_block_harder(
    target: int, one: int, other: int, parameters: WorkParameters
) -> None:  # SPEC-WORK-8
    low, high = sorted((one, other))
    assert next_target(target, low, parameters) <= next_target(target, high, parameters)


@given(st.lists(INTERVALS, max_size=300), st.sampled_from([0x1D00FFFF, 0x1B00FFFF, 0x1C7FFFFF]))
def test_no_times_bring_more_blocks_than_work_pays_for(intervals: list[int], bits: int) -> None:
    # SPEC-WORK-10: whatever intervals a chain claims
    first, spacing = bits_to_target(bits), PARAMETERS.spacing_ms
    for interval_ms in intervals:
        bits = target_to_bits(next_target(bits_to_target(bits), interval_ms, PARAMETERS))
    gained = PARAMETERS.window_blocks * math.log(first / bits_to_target(bits))
    assert len(intervals) <= sum(intervals) / spacing + gained + 1e-6


@given(st.lists(st.integers(-20_000, 60_000), min_size=1, max_size=40))
def test_intervals_add_up_to_the_time_that_went_by(steps: list[int]) -> None:  # SPEC-ENG-3, SPEC-WORK-10
    genesis = make_genesis()
    engine = UnhashedPow(genesis)
    first = tip = first_tip(engine, genesis)
    credited = 0
    for step in steps:
        sealed = header_on(tip, tip.time_ms + step, engine.next_bits(tip))
        if step <= 0:
            with pytest.raises(InputError, match="does not advance"):
                engine.check(sealed.header, sealed.body, tip)
            continue
        engine.check(sealed.header, sealed.body, tip)
        tip = engine.tip(sealed.header, sealed.body, b"", tip)
        credited += tip.interval_ms
    assert credited == tip.time_ms - first.time_ms


def test_a_target_that_reached_one_stays_a_target() -> None:  # SPEC-WORK-8
    assert next_target(1, 1, PARAMETERS) == 1
    assert next_target(1, 10**6, PARAMETERS) == 1
    limit = bits_to_target(PARAMETERS.limit_bits)
    assert next_target(limit, 10**6, PARAMETERS) == limit


def test_bits_follow_the_parent_in_compact_steps() -> None:  # SPEC-WORK-8
    engine = PowEngine(make_genesis())
    tip = EngineTip(7, bytes(32), START_MS, b"", 0x1D00FFFF, PARAMETERS.spacing_ms)
    assert engine.next_bits(tip) == 0x1D00FFFF
    # 72 blocks' window: one spacing late is 1/72 easier, one early (by all of it) 1/72 harder, rounded down.
    assert engine.next_bits(tip._replace(interval_ms=20_000)) == target_to_bits((0xFFFF << 208) * 73 // 72)
    assert engine.next_bits(tip._replace(interval_ms=0)) == target_to_bits(
        (0xFFFF << 208) - -(-(0xFFFF << 208) // 72)
    )
    assert engine.next_bits(tip._replace(interval_ms=10**9)) == target_to_bits((0xFFFF << 208) * 81 // 72)


# Hash rates that come and go, at header level.


def mean_spacing(rate: Callable[[int], float], blocks: int, seed: int = 1, skip: int = 0) -> float:
    """Simulated honest miners of ``rate(block)`` hashes a millisecond; the mean interval in spacings."""
    random, now, last = Random(seed), 0.0, 0
    bits = target_to_bits(int(2**256 / rate(0)) // PARAMETERS.spacing_ms)
    interval = PARAMETERS.spacing_ms
    counted = 0
    for number in range(blocks):
        target = next_target(bits_to_target(bits), interval, PARAMETERS)
        bits = target_to_bits(target)
        now += random.expovariate(rate(number) * target / 2**256)
        time_ms = max(int(now), last + 1)
        interval, last = time_ms - last, time_ms
        counted += interval if number >= skip else 0
    return counted / (blocks - skip) / PARAMETERS.spacing_ms


@pytest.mark.parametrize("seed", range(4))
def test_a_constant_hash_rate_gives_the_spacing(seed: int) -> None:  # SPEC-WORK-8
    assert mean_spacing(lambda _block: 5_000.0, 2_000, seed) == pytest.approx(1, abs=0.03)


@pytest.mark.parametrize("factor", [0.1, 0.5, 4.0, 100.0])
def test_a_stepped_hash_rate_is_followed_within_a_few_windows(factor: float) -> None:  # SPEC-WORK-8
    def stepped(block: int) -> float:
        return 5_000.0 * (factor if block >= 100 else 1.0)

    assert mean_spacing(stepped, 2_600, skip=600) == pytest.approx(1, abs=0.04)


def test_a_halving_hash_rate_costs_no_more_than_its_lag() -> None:  # SPEC-WORK-8
    # Each halving in 1,000 blocks lengthens the mean by window x ln 2 blocks' worth: 5 % here.
    assert 1.02 < mean_spacing(lambda block: 5e6 / 2 ** (block // 1_000), 8_000) < 1.08


@pytest.mark.parametrize("outage_hours", [1, 24, 24 * 30])
def test_no_storm_of_blocks_follows_an_outage(outage_hours: int) -> None:  # SPEC-WORK-8, SPEC-WORK-10
    """All miners stop and come back: at most nine blocks more than the schedule has, whatever was missed."""
    random, rate, spacing = Random(outage_hours), 5_000.0, PARAMETERS.spacing_ms
    extra = []
    for _run in range(40):
        now, last, interval = 0.0, 0, spacing
        bits = target_to_bits(int(2**256 / rate) // spacing)
        for number in range(144):
            target = next_target(bits_to_target(bits), interval, PARAMETERS)
            bits = target_to_bits(target)
            now += random.expovariate(rate * target / 2**256) + (
                outage_hours * 3_600_000 if not number else 0
            )
            interval, last = int(now) - last, int(now)
            if not number:
                back = now
        extra.append(143 - (now - back) / spacing)
    # The first block after it counts ten spacings at most, so the schedule owes nine blocks and no more.
    assert 4 < sum(extra) / len(extra) < 9


def test_header_times_are_whole_seconds_of_body_times() -> None:  # SPEC-TREE-8
    sealed = header_on(EngineTip(0, bytes(32), START_MS, b""), START_MS + 1_999, 0x207FFFFF)
    good = replace(sealed.header, commitment=sealed.body.commitment)
    parts = (good.encode(), sealed.body.encode())
    assert SealedHeader.decode(*parts, b"seal", 3).count == 3
    for header, count in (
        (replace(good, time_s=good.time_s + 1), 0),
        (replace(good, version=2), 0),
        (Header(good.previous_id, bytes(32), good.time_s, good.bits), 0),
        (good, -1),
        (good, 10_001),
    ):
        with pytest.raises(InputError) as error:
            SealedHeader.decode(header.encode(), parts[1], b"", count)
        assert error.value.code is Code.BAD_BLOCK

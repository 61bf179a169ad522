"""Hostile miners against the pow engine's rules and the tree, thousands of blocks a run (tests/support/mining.py)."""

from collections.abc import Callable
from functools import cache

import pytest
from mining import Race, ahead, behind, in_time, in_turns

from fastledger.consensus.engine import EngineTip

BLOCKS = 4_000


@cache
def honest_race(share: float) -> Race:
    """A race at the chances of a liar with this share of the hashes, in which nobody lies."""
    race = Race(share)
    race.run(BLOCKS)
    return race


# Hostile times: what a liar of 25 % or 40 % of the hashes gains at either end of what the rules allow.


@pytest.mark.parametrize("share", [0.25, 0.4])
@pytest.mark.parametrize("stamp", [ahead, behind, in_turns])
def test_a_liar_about_time_gains_neither_blocks_nor_speed(
    share: float, stamp: Callable[[int, EngineTip], int]
) -> None:  # SPEC-WORK-8, SPEC-WORK-10
    liar, honest = Race(share, stamp=stamp), honest_race(share)
    liar.run(BLOCKS)
    assert sum(liar.counts.values()) == BLOCKS
    # Targets depend on parents' times alone: the same chances give the same blocks to the same miners.
    assert liar.counts == honest.counts
    assert liar.hostile_part == pytest.approx(share, abs=0.02)
    # Lies make intervals vary more, which costs a little speed and never brings any.
    assert 0.995 < liar.spacing < 1.04


# Withheld blocks, against honest miners that keep to the first of equals.


def expected_part(share: float) -> float:
    """What withholding brings when no honest miner ever takes the withheld block of two equals.

    Eyal and Sirer, Majority Is Not Enough (2014), equation 8 with gamma = 0.
    """
    gained = share * (1 - share) ** 2 * 4 * share - share**3
    return gained / (1 - share * (1 + (2 - share) * share))


@pytest.mark.parametrize("share", [0.2, 0.25, 0.3])
@pytest.mark.parametrize("stamp", [in_time, ahead])
def test_withholding_does_not_pay_below_a_third(
    share: float, stamp: Callable[[int, EngineTip], int]
) -> None:  # SPEC-TREE-2, SPEC-TREE-3
    race = Race(share, withholds=True, stamp=stamp)
    race.run(2 * BLOCKS)
    # Times ahead of the clock make a withheld chain cheaper by up to FUTURE_MS_MAX / (window x spacing).
    assert race.hostile_part == pytest.approx(expected_part(share), abs=0.025 if stamp is in_time else 0.035)
    assert race.hostile_part < share


def test_withholding_pays_above_a_third() -> None:
    """The known limit of proof of work: the simulation must find it, or it finds nothing."""
    race = Race(0.4, withholds=True)
    race.run(2 * BLOCKS)
    assert race.hostile_part > 0.43

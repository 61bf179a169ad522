"""What the proposer of a block earns: credits by the schedule of the genesis document (SPEC-RWD-1..3)."""

from bisect import bisect_right
from collections.abc import Sequence

from fastledger.state.entities import ACCOUNTS, Account
from fastledger.state.view import View


def reward_at(schedule: Sequence[tuple[int, int]], height: int) -> int:
    """The credits of the block at ``height``; ``schedule`` holds ascending pairs of a height and the reward from it."""
    step = bisect_right(schedule, height, key=lambda pair: pair[0])
    return schedule[step - 1][1] if step else 0


def pay_reward(view: View, proposer: bytes, height: int, schedule: Sequence[tuple[int, int]]) -> None:
    """Adds the reward of the block at ``height`` to its proposer's account, before the block's first transaction."""
    credits = reward_at(schedule, height)
    if not credits:
        return
    account = view.load(ACCOUNTS, proposer)
    balance = account.balance if account is not None else 0
    view.store(ACCOUNTS, proposer, Account(balance + credits))
    view.commit()

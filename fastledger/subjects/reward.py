"""What the proposer of a block earns: credits by the schedule of the genesis document (SPEC-RWD-1..3)."""

from bisect import bisect_right
from collections.abc import Sequence
from typing import Annotated

from msgspec import Meta

from fastledger.model.fields import Key33
from fastledger.state.entity import Entity
from fastledger.state.registry import BlockOpening
from fastledger.state.subject import Subject
from fastledger.state.view import View

rewards = Subject("reward", number=16, summary="Credits that the proposers of blocks earn")


class Account(Entity, frozen=True):
    """Credits, in whole units."""

    balance: Annotated[int, Meta(ge=0)]


ACCOUNTS = rewards.table(1, "account", Account, key={"proposer": Key33})


def reward_at(schedule: Sequence[tuple[int, int]], height: int) -> int:
    """The credits of the block at ``height``; ``schedule`` holds ascending pairs of a height and the reward from it."""
    step = bisect_right(schedule, height, key=lambda pair: pair[0])
    return schedule[step - 1][1] if step else 0


@rewards.at_block()
def pay_reward(view: View, opening: BlockOpening) -> None:
    """Adds the reward of the block to its proposer's account, before the block's first transaction."""
    work = opening.genesis.work
    credits = reward_at(work.rewards, opening.height) if work is not None else 0
    if not credits:
        return
    account = view.load(ACCOUNTS, opening.proposer)
    balance = account.balance if account is not None else 0
    view.store(ACCOUNTS, opening.proposer, Account(balance + credits))

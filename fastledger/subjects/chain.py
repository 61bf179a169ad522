"""Chain: which rule set is in force from which height, decided by the authorities of genesis (SPEC-RULE-5..8).

The *authorities* are those that the genesis document names, by their identity, so that a key may be rotated and the
vote stays. No later regulator votes. Each has one vote at a time: a newer one takes its place, so that the state does
not grow with votes, and nobody counts twice. As many equal votes as the document's quorum decide.
"""

from typing import Annotated, TypeAlias

from msgspec import Meta

from fastledger.limits import RULE_SET_MAX
from fastledger.model.body import Body
from fastledger.model.fields import Id16, OptionalRelease, UInt32
from fastledger.model.genesis import CHAIN_ID_BYTES, Genesis
from fastledger.model.ids import identity_id
from fastledger.state.context import Context
from fastledger.state.entity import Entity
from fastledger.state.subject import Subject
from fastledger.state.view import Refusal, View
from fastledger.subjects.identity import IDENTITIES, actor

chains = Subject("chain", number=10, summary="Which rule set is in force from which height")

NOT_AN_AUTHORITY = chains.refusal(1, "not-an-authority", "the signer is no authority that genesis names")
RULE_SET_BEHIND = chains.refusal(2, "rule-set-behind", "that rule set, or a newer one, is in force already")
ACTIVATION_TOO_SOON = chains.refusal(3, "activation-too-soon", "the height leaves too little time to get ready")

ChainId8: TypeAlias = Annotated[bytes, Meta(min_length=CHAIN_ID_BYTES, max_length=CHAIN_ID_BYTES)]
RuleSetNumber: TypeAlias = Annotated[int, Meta(ge=1, le=RULE_SET_MAX)]
Height: TypeAlias = Annotated[int, Meta(ge=0, le=2**53 - 1)]


class RuleSetStep(Entity, frozen=True):
    """A rule set, the first height at which it is in force, and the first release that has it, where that was told."""

    rule_set: RuleSetNumber
    height: Height
    release: OptionalRelease


class RuleSets(Entity, frozen=True):
    """All rule sets of a chain in ascending order, from block 0 to one that may be scheduled."""

    steps: tuple[RuleSetStep, ...]

    def at(self, height: int) -> RuleSetStep:
        """The step whose rule set is in force at ``height``, as far as is decided by now."""
        found = self.steps[0]
        for step in self.steps:
            if step.height <= height:
                found = step
        return found

    def begun(self, height: int) -> tuple[RuleSetStep, ...]:
        """The steps up to the one in force at ``height``."""
        return tuple(step for step in self.steps if step.height <= height)

    def scheduled(self, height: int) -> RuleSetStep | None:
        """The step that begins after ``height``; None where none is decided."""
        last = self.steps[-1]
        return last if last.height > height else None


class ActivationQuorum(Entity, frozen=True):
    """Who votes on the chain's rule sets: how many equal votes decide, and how many blocks ahead of the height."""

    authorities: tuple[Id16, ...]
    needed: UInt32
    notice_blocks: UInt32


class ActivationVote(Entity, frozen=True):
    """What an authority wants: the activation (``wanted``), or that it does not take place."""

    rule_set: RuleSetNumber
    height: Height
    release: OptionalRelease
    wanted: bool


RULE_SETS = chains.table(1, "rule_sets", RuleSets, key={"chain": ChainId8}, read_ahead=False)
QUORUMS = chains.table(2, "activation_quorum", ActivationQuorum, key={"chain": ChainId8}, read_ahead=False)
VOTES = chains.table(3, "activation_vote", ActivationVote, key={"authority": Id16}, read_ahead=False)


def rule_sets_of(genesis: Genesis) -> RuleSets:
    """What a chain's rule sets are before its first block."""
    return RuleSets((RuleSetStep(genesis.rule_set, 0, ""),))


@chains.at_genesis()
def install_rule_sets(view: View, genesis: Genesis) -> None:
    """The genesis document names the first rule set, and who decides on the next."""
    view.store(RULE_SETS, genesis.chain_id, rule_sets_of(genesis))
    if genesis.authorities:
        voters = tuple(identity_id(authority.key) for authority in genesis.authorities)
        quorum = ActivationQuorum(voters, genesis.activation_quorum, genesis.activation_notice_blocks)
        view.store(QUORUMS, genesis.chain_id, quorum)


def _vote(ctx: Context, vote: ActivationVote, notice: bool) -> RuleSets | None:
    """Records the signer's vote; the chain's rule sets where it completes a quorum, None where it does not."""
    voter, _ = actor(ctx)
    quorum = ctx.view.load(QUORUMS, ctx.chain_id)
    sets = ctx.view.load(RULE_SETS, ctx.chain_id)
    if quorum is None or sets is None or voter not in quorum.authorities:
        raise Refusal(NOT_AN_AUTHORITY)
    if vote.rule_set <= sets.at(ctx.height).rule_set:
        raise Refusal(RULE_SET_BEHIND)
    if notice and vote.height < ctx.height + quorum.notice_blocks:
        raise Refusal(ACTIVATION_TOO_SOON)
    ctx.view.store(VOTES, voter, vote)
    agreed = 0
    for authority in quorum.authorities:
        if ctx.view.load(VOTES, authority) == vote:
            identity = ctx.view.load(IDENTITIES, authority)
            agreed += identity is not None and not identity.revoked
    return sets if agreed >= quorum.needed else None


class ChainActivate(Body, frozen=True):
    """The signer votes for the rule set ``rule_set`` from block ``height`` on; ``release`` is the first that has it.

    It takes the place of the signer's vote before it.
    """

    rule_set: RuleSetNumber
    height: Height
    release: OptionalRelease = ""


@chains.rule("activate", is_alert=True)
def activate(ctx: Context, body: ChainActivate) -> None:
    """Schedules the activation, in the place of one that has not begun, where this vote completes the quorum."""
    vote = ActivationVote(body.rule_set, body.height, body.release, True)
    sets = _vote(ctx, vote, notice=True)
    if sets is not None:
        step = RuleSetStep(body.rule_set, body.height, body.release)
        ctx.view.store(RULE_SETS, ctx.chain_id, RuleSets((*sets.begun(ctx.height), step)))


class ChainCancel(Body, frozen=True):
    """The signer votes that the rule set ``rule_set`` shall not come into force at ``height``.

    It takes the place of the signer's vote before it.
    """

    rule_set: RuleSetNumber
    height: Height


@chains.rule("cancel", is_alert=True)
def cancel(ctx: Context, body: ChainCancel) -> None:
    """Takes back a scheduled activation that has not begun, where this vote completes the quorum."""
    sets = _vote(ctx, ActivationVote(body.rule_set, body.height, "", False), notice=False)
    if sets is None:
        return
    scheduled = sets.scheduled(ctx.height)
    if scheduled is not None and (scheduled.rule_set, scheduled.height) == (body.rule_set, body.height):
        ctx.view.store(RULE_SETS, ctx.chain_id, RuleSets(sets.begun(ctx.height)))

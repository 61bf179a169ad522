"""Who decides on a chain's rule sets, when, and how a decision is taken back (SPEC-RULE-5..8)."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rules import KEM, Person, State

from fastledger import Code, Role
from fastledger.errors import InputError
from fastledger.limits import ACTIVATION_NOTICE_BLOCKS_MIN, RULE_SET_MAX
from fastledger.model.genesis import MAJORITY, Authority, Genesis, WorkParameters
from fastledger.subjects.chain import (
    ACTIVATION_TOO_SOON,
    NOT_AN_AUTHORITY,
    QUORUMS,
    RULE_SET_BEHIND,
    RULE_SETS,
    VOTES,
    ChainActivate,
    ChainCancel,
    RuleSetStep,
)
from fastledger.subjects.identity import SIGNER_REVOKED, IdentityEndorse, IdentityRevoke, IdentityRotate

NOTICE = ACTIVATION_NOTICE_BLOCKS_MIN
FIRST = RuleSetStep(1, 0, "")


def activate(rule_set: int = 2, height: int = 100, release: str = "0.2.0") -> ChainActivate:
    return ChainActivate(rule_set=rule_set, height=height, release=release)


def cancel(rule_set: int = 2, height: int = 100) -> ChainCancel:
    return ChainCancel(rule_set=rule_set, height=height)


def steps(state: State) -> tuple[RuleSetStep, ...]:
    sets = state.view.load(RULE_SETS, state.chain_id)
    assert sets is not None
    return sets.steps


def scheduled(state: State) -> RuleSetStep | None:
    sets = state.view.load(RULE_SETS, state.chain_id)
    assert sets is not None
    return sets.scheduled(state.height)


def decided(state: State, *voters: Person, **vote: int) -> None:
    for voter in voters:
        state.given(voter, activate(**vote))


def test_the_vote_that_completes_the_quorum_schedules() -> None:  # SPEC-RULE-5, SPEC-RULE-6
    state = State(authorities=5)
    one, two, three, _, _ = state.authorities
    decided(state, one, two)
    assert scheduled(state) is None
    state.given(three, activate())
    assert steps(state) == (FIRST, RuleSetStep(2, 100, "0.2.0"))


def test_an_authority_counts_once_and_has_one_vote() -> None:  # SPEC-RULE-6
    state = State(authorities=5)
    one, two, three, four, _ = state.authorities
    decided(state, one, one, one, two)
    assert scheduled(state) is None
    # Another height, set or release is another proposal, and takes the vote with it.
    decided(state, two, height=101)
    state.given(three, activate(release="0.2.1"))
    state.given(four, activate())
    assert scheduled(state) is None
    assert len([key for key in state.view.writes if key.startswith(VOTES.prefix)]) == 4
    decided(state, two)
    assert scheduled(state) == RuleSetStep(2, 100, "0.2.0")


def test_nobody_votes_but_who_genesis_names() -> None:  # SPEC-RULE-6
    state = State(authorities=1)
    later = state.identity(Role.REGULATOR, by=state.regulator)
    for person in (later, state.organisation(), state.patient()):
        state.when(person, activate()).is_refused(NOT_AN_AUTHORITY)
        state.when(person, cancel()).is_refused(NOT_AN_AUTHORITY)
    assert scheduled(state) is None
    # The role may run out, by another regulator's endorsement: the vote is genesis', not the role's.
    state.given(later, IdentityEndorse(subject=state.regulator.id, role=Role.REGULATOR, until_ms=state.now_ms + 1))
    state.now_ms += 2
    state.given(state.regulator, activate())
    assert scheduled(state) is not None


def test_a_chain_without_authorities_keeps_its_rules() -> None:  # SPEC-RULE-5
    state = State(authorities=1)
    state.view.remove(QUORUMS, state.chain_id)
    state.when(state.regulator, activate()).is_refused(NOT_AN_AUTHORITY)


def test_a_revoked_authority_does_not_count() -> None:  # SPEC-RULE-6
    state = State(authorities=3)
    one, two, three = state.authorities
    decided(state, one)
    state.given(two, IdentityRevoke(subject=one.id, reason=0))
    state.when(one, activate()).is_refused(SIGNER_REVOKED)
    decided(state, two)
    assert scheduled(state) is None, "one of the two votes is of a revoked authority"
    decided(state, three)
    assert scheduled(state) is not None


def test_a_rotated_key_keeps_the_vote(monkeypatch: pytest.MonkeyPatch) -> None:  # SPEC-RULE-6
    monkeypatch.setattr("fastledger.subjects.identity.verify_batch", lambda *_: b"\1")
    state = State(authorities=2)
    one, two = state.authorities
    fresh = state.stranger()
    decided(state, one)
    state.given(one, IdentityRotate(key=fresh.key, kem=KEM, proof=bytes(64)))
    rotated = Person(fresh.key, one.id)
    decided(state, rotated)
    assert scheduled(state) is None, "the old key's vote and the new key's are one"
    decided(state, two)
    assert scheduled(state) is not None


def test_rule_sets_go_forward_only() -> None:  # SPEC-RULE-7
    state = State()
    state.when(state.regulator, activate(1)).is_refused(RULE_SET_BEHIND)
    state.when(state.regulator, cancel(1)).is_refused(RULE_SET_BEHIND)
    decided(state, state.regulator, rule_set=3)
    state.height = 100
    for number in (1, 2, 3):
        state.when(state.regulator, activate(number, 200)).is_refused(RULE_SET_BEHIND)
    state.when(state.regulator, cancel(3)).is_refused(RULE_SET_BEHIND)
    decided(state, state.regulator, rule_set=4, height=200)
    assert [step.rule_set for step in steps(state)] == [1, 3, 4], "what was in force stays known"


@pytest.mark.parametrize("work", [None, WorkParameters(finality_depth=7)], ids=["final at once", "depth 7"])
def test_the_deciding_vote_comes_in_time(work: WorkParameters | None) -> None:  # SPEC-RULE-7
    state = State(authorities=2, work=work)
    one, two = state.authorities
    notice = NOTICE + (7 if work is not None else 0)
    assert state.genesis.activation_notice_blocks == notice
    decided(state, one, height=1 + notice)
    state.height = 2
    state.when(two, activate(height=1 + notice)).is_refused(ACTIVATION_TOO_SOON)
    state.height = 1
    state.given(two, activate(height=1 + notice))
    assert scheduled(state) is not None


def test_only_the_quorum_takes_a_decision_back() -> None:  # SPEC-RULE-8
    state = State(authorities=3)
    one, two, three = state.authorities
    decided(state, one, two)
    state.given(three, cancel())
    assert scheduled(state) is not None
    state.height = 99
    state.given(two, cancel(height=98))
    state.given(one, cancel(3))
    assert scheduled(state) is not None, "they named something else"
    state.given(two, cancel())
    assert scheduled(state) is None
    assert steps(state) == (FIRST,)


def test_what_has_begun_is_not_taken_back() -> None:  # SPEC-RULE-8
    state = State()
    decided(state, state.regulator)
    state.height = 100
    state.when(state.regulator, cancel()).is_refused(RULE_SET_BEHIND)
    assert steps(state) == (FIRST, RuleSetStep(2, 100, "0.2.0"))


def test_the_quorum_puts_another_activation_in_the_place_of_one() -> None:  # SPEC-RULE-8
    state = State()
    decided(state, state.regulator)
    decided(state, state.regulator, height=300)
    assert steps(state) == (FIRST, RuleSetStep(2, 300, "0.2.0"))
    decided(state, state.regulator, rule_set=3, height=40)
    assert steps(state) == (FIRST, RuleSetStep(3, 40, "0.2.0"))


Move = tuple[int, bool, int, int, int]
MOVES = st.lists(
    st.tuples(st.integers(0, 3), st.booleans(), st.integers(1, 4), st.integers(9, 40), st.integers(0, 6)), max_size=40
)


@settings(max_examples=150, deadline=None)
@given(MOVES, st.integers(1, 4))
def test_no_minority_changes_anything(moves: list[Move], quorum: int) -> None:  # SPEC-RULE-6..8
    """Against a plain oracle: each authority's last vote, and what is equal in as many as the quorum."""
    state = State(authorities=4, activation_quorum=quorum)
    votes: dict[int, tuple[int, int, bool]] = {}
    history = [(1, 0)]
    for voter, wanted, number, height, blocks in moves:
        state.height += blocks
        present = [step for step in history if step[1] <= state.height]
        result = state.when(state.authorities[voter], activate(number, height) if wanted else cancel(number, height))
        if number <= present[-1][0] or (wanted and height < state.height + NOTICE):
            assert result.code.is_refusal
            continue
        result.is_accepted()
        votes[voter] = (number, height, wanted)
        if list(votes.values()).count(votes[voter]) >= quorum:
            if wanted:
                history = [*present, (number, height)]
            elif history[-1] == (number, height):
                history = present
        assert [(step.rule_set, step.height) for step in steps(state)] == history
        assert [step[0] for step in history] == sorted({step[0] for step in history})


def test_the_genesis_document_names_rules_and_quorum() -> None:  # SPEC-GEN-3
    keys = tuple(b"\2" + bytes([number]) * 32 for number in range(4))
    authorities = tuple(Authority(key, KEM) for key in keys)

    def made(**fields: int) -> Genesis:
        return Genesis(0, keys[:1], authorities, salt=bytes(16), **fields).checked()

    assert made().activation_quorum == 3, "more than half"
    assert Genesis(0, keys[:1], salt=bytes(16)).checked().activation_quorum == 0
    document = made(rule_set=7, activation_quorum=2)
    assert Genesis.decode(document.encoded) == document
    for fields in ({"rule_set": 0}, {"rule_set": RULE_SET_MAX + 1}, {"activation_quorum": 0}, {"activation_quorum": 5}):
        with pytest.raises(InputError) as error:
            made(**fields)
        assert error.value.code == Code.BAD_GENESIS
    assert made(activation_quorum=MAJORITY) == made()

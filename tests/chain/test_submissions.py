"""From chain events to verdicts (SPEC-FORK-12), without a chain."""

from array import array

from fastledger import Code
from fastledger.chain.execution.store import NOWHERE, BlockEntry, Layer
from fastledger.chain.forks.events import BlockConnected, BlockDisconnected, BlocksFinal, ChainEvent
from fastledger.chain.forks.submissions import Answers, SubmissionTracker
from fastledger.model.block import Block, Header, HeaderBody
from fastledger.model.outcome import Outcome
from fastledger.storage.keys import TermLog
from fastledger.subjects.folder import NOT_OWNER
from fastledger.subjects.identity import UNKNOWN_SIGNER

A, B, C = (bytes([number]) * 32 for number in range(3))
BLOCK = Block(
    Header(bytes(32), bytes(32), 0),
    HeaderBody(1, 0, *[bytes(32)] * 4, bytes(33), bytes(32)),
    b"",
    b"",
    b"",
    b"",
)


def connected(height: int, *txids: bytes, code: Code = Code.OK) -> BlockConnected:
    return BlockConnected(BLOCK, height, txids, [code] * len(txids))


def final(height: int, *txids: bytes, time_ms: int = 0) -> BlocksFinal:
    entry = BlockEntry(NOWHERE, bytes(32), time_ms, 0, len(txids))
    seqs = {txid: number for number, txid in enumerate(txids)}
    return BlocksFinal([Layer(height, entry, {}, seqs, TermLog(b"", array("I"), 0), {})], [])


def waiting(*txids: bytes, expires_ms: int = 100) -> SubmissionTracker[str]:
    tracker: SubmissionTracker[str] = SubmissionTracker()
    answers = tracker.add("first", txids, [Code.OK] * len(txids), [expires_ms] * len(txids), {}, 0)
    assert answers == Answers([], [])
    return tracker


def stages(tracker: SubmissionTracker[str], *events: ChainEvent) -> tuple[list[str], list[str]]:
    answers = tracker.consume(events)
    return [found.ticket for found in answers.ordered], [found.ticket for found in answers.durable]


def test_a_batch_is_ordered_and_durable_as_a_whole() -> None:
    tracker = waiting(A, B)
    assert stages(tracker, connected(1, A)) == ([], [])
    assert stages(tracker, connected(2, C, B)) == (["first"], [])
    assert stages(tracker, final(1, A)) == ([], [])
    (found,) = tracker.consume([final(2, C, B)]).durable
    assert found.outcomes == [Outcome(A, Code.OK, 1, 0), Outcome(B, Code.OK, 2, 1)]
    assert len(tracker) == 0 and tracker.tickets == []


def test_a_reorganisation_changes_the_verdict_until_it_is_final() -> None:
    tracker = waiting(A)
    assert stages(tracker, connected(1, A)) == (["first"], [])
    moved = (BlockDisconnected(bytes(32), 1, [A]), connected(2, B, A, code=UNKNOWN_SIGNER))
    assert stages(tracker, *moved) == ([], [])
    (found,) = tracker.consume([final(2, B, A)]).durable
    assert found.outcomes == [Outcome(A, UNKNOWN_SIGNER, 2, 1)]


def test_expiry_is_certain_only_by_a_final_time() -> None:  # SPEC-POOL-5
    tracker = waiting(A, expires_ms=100)
    assert stages(tracker, connected(1, B), final(1, B, time_ms=99)) == ([], [])
    answers = tracker.consume([final(2, time_ms=100)])
    assert [found.outcomes for found in answers.ordered] == [[Outcome(A, Code.EXPIRED)]]
    assert [found.outcomes for found in answers.durable] == [[Outcome(A, Code.EXPIRED)]]


def test_what_became_final_with_the_block_that_ends_the_window_is_not_expired() -> None:
    tracker = waiting(A, expires_ms=100)
    (found,) = tracker.consume([connected(1, A), final(1, A, time_ms=100)]).durable
    assert found.outcomes == [Outcome(A, Code.OK, 1, 0)]


def test_known_ones_are_answered_at_once_or_with_the_others() -> None:
    tracker: SubmissionTracker[str] = SubmissionTracker()
    known = {A: Outcome(A, Code.OK, 3, 0, True), B: Outcome(B, NOT_OWNER, 9, 1, True)}
    codes = [Code.EXPIRED, Code.BAD_SIGNATURE]
    answers = tracker.add("final", [A, C], codes, [0, 0], known, 5)
    assert [found.outcomes for found in answers.durable] == [[known[A], Outcome(C, Code.BAD_SIGNATURE)]]
    answers = tracker.add("ordered", [A, B], [Code.DUPLICATE] * 2, [50, 50], known, 5)
    assert [found.ticket for found in answers.ordered] == ["ordered"]
    assert answers.durable == []
    (found,) = tracker.consume([final(9, C, B)]).durable
    assert found.outcomes == [known[A], known[B]]


def test_several_wait_for_the_same() -> None:
    tracker = waiting(A)
    tracker.add("second", [A, A], [Code.DUPLICATE] * 2, [100, 100], {}, 0)
    answers = tracker.consume([connected(1, A), final(1, A)])
    assert [(found.ticket, [item.duplicate for item in found.outcomes]) for found in answers.durable] == [
        ("first", [False]),
        ("second", [True, True]),
    ]


def test_an_empty_batch_waits_for_nothing() -> None:
    tracker: SubmissionTracker[str] = SubmissionTracker()
    answers = tracker.add("empty", [], [], [], {}, 0)
    assert [found.ticket for found in answers.durable] == ["empty"]

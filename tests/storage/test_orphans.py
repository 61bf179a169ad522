"""Envelopes that no record came to name are collected, and never one that a record names or is about to."""

import os
import threading
from collections.abc import Callable, Sequence
from contextlib import closing
from hashlib import sha256
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from storage_faults import CrashingFiles, SimulatedCrash
from world import World, make_world

from fastledger import SealedRecord
from fastledger.chain.envelopes import Pins
from fastledger.errors import (
    Code,
    FastLedgerError,
    LedgerBusyError,
    LedgerClosedError,
    LedgerHaltedError,
    OperationCancelledError,
)
from fastledger.storage.blobs.orphans import OrphanJournal
from fastledger.subjects.record import RECORDS

AGE_MS = 1_000
LARGE = os.urandom(1_100_000)


def seal(world: World, content: bytes | None = None) -> SealedRecord:
    return world.patient.put_record("vitals", content or os.urandom(40), ())


def digest_of(sealed: SealedRecord) -> bytes:
    return sha256(sealed.blob).digest()


def collect(world: World, age_ms: int = AGE_MS) -> tuple[int, int]:
    return tuple(world.ledger.collect_orphans(age_ms))  # type: ignore[return-value]


def stored(world: World, sealed: SealedRecord) -> bool:
    return world.ledger._blobs.has(digest_of(sealed))


@pytest.mark.parametrize("content", [None, LARGE], ids=["packed", "large"])
def test_what_nobody_names_goes_when_it_is_old(world: World, content: bytes | None) -> None:  # SPEC-ORPH-1
    named, orphan = world.put(), seal(world, content)
    assert world.ledger.missing_blobs([digest_of(orphan)]) == [digest_of(orphan)]
    assert world.ledger.store_blobs([orphan.blob]) == [digest_of(orphan)]
    assert world.ledger.missing_blobs([digest_of(orphan), digest_of(named)]) == []
    assert collect(world) == (0, 0)
    world.clock.advance(AGE_MS - 1)
    assert collect(world) == (0, 0)
    world.clock.advance(1)
    assert collect(world) == (1, len(orphan.blob))
    assert stored(world, named)
    assert not stored(world, orphan)
    assert world.ledger.submit([orphan.transaction])[0].code == Code.BLOB_MISSING
    # Told so, the client sends it again.
    world.ledger.submit([orphan.transaction], [orphan.blob])[0].raise_for_status()
    world.clock.advance(2 * AGE_MS)
    assert collect(world, 0) == (0, 0)
    assert world.ledger.verify().ok


def test_age_survives_a_restart_and_a_put_begins_it_anew(world: World) -> None:  # SPEC-ORPH-2
    again, orphan = seal(world), seal(world)
    world.ledger.store_blobs([again.blob, orphan.blob])
    collect(world)
    world.clock.advance(AGE_MS - 1)
    world.ledger.store_blobs([again.blob])
    world.reopen()
    world.clock.advance(1)
    assert collect(world) == (1, len(orphan.blob))
    world.clock.advance(AGE_MS - 1)
    assert collect(world) == (0, 0)
    world.clock.advance(1)
    assert collect(world) == (1, len(again.blob))
    assert not world.ledger._envelopes._journal.since_ms


def test_a_clock_that_was_ahead_only_begins_the_age_anew(world: World) -> None:  # SPEC-ORPH-2
    orphan = seal(world)
    world.ledger.store_blobs([orphan.blob])
    world.clock.advance(10 * AGE_MS)
    collect(world)
    world.clock.advance(-10 * AGE_MS)
    assert collect(world) == (0, 0)
    world.clock.advance(AGE_MS)
    assert collect(world)[0] == 1


def test_an_erased_record_is_no_orphan(world: World) -> None:  # SPEC-ORPH-1
    first = world.put()
    second = world.patient.put_record("vitals", b"other", ())
    world.ledger.submit([second.transaction], [second.blob])[0].raise_for_status()
    orphan = seal(world)
    world.ledger.store_blobs([orphan.blob])
    world.submit(world.patient.erase_record(first.record))
    assert collect(world, 0) == (1, len(orphan.blob))
    assert stored(world, second)
    assert world.ledger.submit([first.transaction], [first.blob])[0].duplicate
    assert not stored(world, first)


def test_pins_hold_a_collection_off(world: World) -> None:  # SPEC-ORPH-3
    orphan = seal(world)
    world.ledger.store_blobs([orphan.blob])
    one, two = Pins(world.ledger._envelopes), Pins(world.ledger._envelopes)
    assert one.missing([digest_of(orphan)] * 2) == []
    assert two.hold([digest_of(orphan)]) == []
    for pins in (one, two):
        assert collect(world, 0) == (0, 0)
        pins.release()
        pins.release()
    assert collect(world, 0)[0] == 1


def test_what_was_answered_or_never_queued_is_pinned_no_more(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:  # SPEC-ORPH-3
    world.put()
    orphan = seal(world)
    world.ledger.store_blobs([orphan.blob])

    def fail(*_: object, **__: object) -> None:
        raise LedgerHaltedError("queue")

    with monkeypatch.context() as patch:
        patch.setattr(world.ledger._pipeline, "submit", fail)
        with pytest.raises(LedgerHaltedError):
            world.ledger.submit([orphan.transaction])
    assert not world.ledger._envelopes._pins
    assert collect(world, 0)[0] == 1


def test_a_halted_ledger_collects_nothing(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:  # SPEC-ORPH-3
    orphan = seal(world)
    world.ledger.store_blobs([orphan.blob])
    # The sync fails when the record is in the log already: the next opening may find it there.
    monkeypatch.setattr(world.ledger._log, "sync", _raise_halt)
    with pytest.raises(LedgerHaltedError):
        world.ledger.submit([orphan.transaction])
    with pytest.raises(LedgerHaltedError):
        collect(world, 0)
    assert stored(world, orphan)
    monkeypatch.undo()
    world.reopen()
    assert world.ledger.entity(RECORDS, orphan.record).version == 1
    assert collect(world, 0) == (0, 0)


def _raise_halt() -> None:
    raise LedgerHaltedError("sync failed")


def test_an_operation_that_waits_for_a_collection_can_be_called_off(world: World, tmp_path: Path) -> None:
    world.ledger.store_blobs([seal(world).blob])
    cancel, walking, go_on = threading.Event(), threading.Event(), threading.Event()
    failures: list[type[BaseException]] = []

    def pause() -> None:
        walking.set()
        go_on.wait(20)

    def back_up() -> None:
        try:
            world.ledger.backup(tmp_path / "backup", cancel=cancel)
        except OperationCancelledError as error:
            failures.append(type(error))

    collector = threading.Thread(target=lambda: world.ledger.collect_orphans(AGE_MS, pause=pause))
    operation = threading.Thread(target=back_up)
    collector.start()
    assert walking.wait(20)
    operation.start()
    cancel.set()
    operation.join(10)
    called_off = not operation.is_alive()
    go_on.set()
    collector.join()
    operation.join()
    assert called_off
    assert failures == [OperationCancelledError]


def test_closing_waits_for_a_collection(world: World) -> None:  # SPEC-ORPH-3
    world.ledger.store_blobs([seal(world).blob])
    walking, go_on, closed = threading.Event(), threading.Event(), threading.Event()
    results: list[object] = []

    def pause() -> None:
        walking.set()
        go_on.wait(20)

    def collect_all() -> None:
        try:
            results.append(world.ledger.collect_orphans(AGE_MS, pause=pause))
        except LedgerClosedError as error:
            results.append(error)

    def close() -> None:
        world.ledger.close()
        closed.set()

    collector = threading.Thread(target=collect_all)
    closer = threading.Thread(target=close)
    collector.start()
    assert walking.wait(20)
    closer.start()
    # Long enough for a close that does not wait.
    assert not closed.wait(0.5)
    go_on.set()
    collector.join()
    closer.join()
    assert len(results) == 1
    with pytest.raises(LedgerClosedError):
        world.ledger.collect_orphans(AGE_MS)


# Interleavings: while a collection stands at some step, others go on as far as they can.

POINTS = ("_check_running", "_unowned", "_collect", "_note")


class Interleaved:
    """Runs each action beside the collector when that reaches the point planned for it."""

    def __init__(self, world: World, plan: dict[tuple[str, int], list[Callable[[], None]]]) -> None:
        self._envelopes = world.ledger._envelopes
        self._plan = plan
        self._counts = dict.fromkeys(POINTS, 0)
        self._collector = threading.get_ident()
        self._threads: list[threading.Thread] = []
        self._originals = {name: getattr(self._envelopes, name) for name in POINTS}
        for name, original in self._originals.items():
            setattr(self._envelopes, name, self._wrap(name, original))

    def _wrap(self, name: str, original: Callable[..., object]) -> Callable[..., object]:
        def reached(*arguments: object) -> object:
            if threading.get_ident() == self._collector:
                self._counts[name] += 1
                self._run((name, self._counts[name]))
                result = original(*arguments)
                self._run((f"{name} done", self._counts[name]))
                return result
            return original(*arguments)

        return reached

    def _run(self, point: tuple[str, int]) -> None:
        for action in self._plan.pop(point, []):
            thread = threading.Thread(target=action)
            thread.start()
            self._threads.append(thread)
            thread.join(0.05)  # one that waits for the collector's lock goes on later

    def finish(self) -> None:
        for actions in list(self._plan.values()):
            for action in actions:
                action()
        for thread in self._threads:
            thread.join()
        for name, original in self._originals.items():
            setattr(self._envelopes, name, original)


@pytest.fixture(scope="module")
def shared_world(tmp_path_factory: pytest.TempPathFactory) -> World:
    return make_world(tmp_path_factory.mktemp("orphans") / "ledger")


@settings(max_examples=60, deadline=None)
@given(
    st.lists(
        st.tuples(
            st.sampled_from([f"{name}{when}" for name in POINTS for when in ("", " done")]),
            st.integers(1, 3),
            st.sampled_from(["put", "submit", "submit with blob"]),
        ),
        min_size=1,
        max_size=4,
    ),
    st.booleans(),
)
@example([("_check_running", 2, "submit")], False)
@example([("_unowned", 2, "put")], False)
@example([("_collect", 1, "put")], False)
@example([("_collect", 1, "put")], True)
@example([("_collect", 1, "submit")], False)
@example([("_unowned done", 2, "submit")], False)
@example([("_unowned done", 2, "submit")], True)
@example([("_unowned done", 1, "put")], False)
@example([("_unowned done", 1, "put")], True)
@example([("_unowned done", 1, "submit")], False)
def test_no_interleaving_takes_what_is_named_or_just_stored(
    shared_world: World, steps: list[tuple[str, int, str]], large: bool
) -> None:  # SPEC-ORPH-3
    world = shared_world
    sealed = seal(world, os.urandom(1_100_000) if large else None)
    ledger, accepted, errors = world.ledger, [], []
    ledger.store_blobs([sealed.blob])
    collect(world)
    world.clock.advance(AGE_MS)
    blobs = {"put": None, "submit": [], "submit with blob": [sealed.blob]}

    def act(kind: str) -> None:
        try:
            given_blobs = blobs[kind]
            if given_blobs is None:
                ledger.store_blobs([sealed.blob])
                accepted.append("put")
                return
            outcome = ledger.submit([sealed.transaction], given_blobs)[0]
            if outcome.code == Code.OK:
                accepted.append("record")
            elif given_blobs or outcome.code != Code.BLOB_MISSING:
                errors.append(outcome)
        except FastLedgerError as error:
            errors.append(error)

    plan: dict[tuple[str, int], list[Callable[[], None]]] = {}
    for name, nth, kind in steps:
        plan.setdefault((name, nth), []).append(lambda kind=kind: act(kind))
    interleaved = Interleaved(world, plan)
    collect(world)
    interleaved.finish()
    assert not errors
    assert not ledger._envelopes._pins
    assert not ledger._envelopes._condemned
    assert stored(world, sealed) or not accepted
    if "record" in accepted:
        assert ledger.entity(RECORDS, sealed.record).version == 1
    world.clock.advance(AGE_MS)
    collect(world, 0)
    assert stored(world, sealed) == ("record" in accepted)


# The journal.


def test_the_journal_at_any_crash(tmp_path: Path) -> None:  # SPEC-ORPH-4
    first = {bytes([i]) * 32: 1_000 + i for i in range(20)}
    gone = [bytes([i]) * 32 for i in range(0, 20, 3)]
    for torn in (0.0, 0.3, 0.9):
        for crash_at in range(40):
            path = tmp_path / f"{torn}-{crash_at}"
            OrphanJournal(path).replace(first)
            files = CrashingFiles(crash_at, torn)
            removed = 0
            try:
                journal = OrphanJournal(path, files)
                for digest in gone:
                    journal.remove([digest, b"x" * 32])
                    removed += 1
                journal.replace({bytes(32): 5})
            except SimulatedCrash:
                found = OrphanJournal(path).since_ms
                assert found.items() <= first.items() or found == {bytes(32): 5}
                assert not set(gone[:removed]) & set(found) or found == {bytes(32): 5}
                assert len(found) >= len(first) - removed - 1 or found == {bytes(32): 5}
            else:
                assert OrphanJournal(path).since_ms == {bytes(32): 5}


def test_a_damaged_journal_costs_time_alone(tmp_path: Path) -> None:  # SPEC-ORPH-4
    path = tmp_path / "orphans"
    entries = {bytes([i]) * 32: 1_000 + i for i in range(4)}
    OrphanJournal(path).replace(entries)
    data = path.read_bytes()
    for at in range(len(data)):
        path.write_bytes(data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :])
        journal = OrphanJournal(path)
        assert journal.since_ms.items() <= entries.items()
        journal.replace(entries)
        assert OrphanJournal(path).since_ms == entries


# How much may wait for a record.


def bounded(tmp_path: Path, **bounds: int) -> World:
    return make_world(tmp_path / "bounded", **bounds)


def test_what_waits_for_a_record_is_bounded(tmp_path: Path) -> None:  # SPEC-ORPH-5
    world = bounded(tmp_path, unreferenced_blobs_max=3)
    try:
        first, *others = [seal(world) for _ in range(4)]
        world.ledger.store_blobs([first.blob, others[0].blob, others[1].blob])
        with pytest.raises(LedgerBusyError) as caught:
            world.ledger.store_blobs([others[2].blob])
        assert caught.value.retry_after_ms > 0
        assert not stored(world, others[2])
        # A record that names its envelope makes room; its batch may bring the envelope itself at any time.
        world.ledger.submit([first.transaction])[0].raise_for_status()
        world.put()
        look_again(world)
        world.ledger.store_blobs([others[2].blob])
        assert world.ledger._envelopes.unreferenced.counted[0] == 3
        # So does a collection.
        collect(world, 0)
        assert world.ledger._envelopes.unreferenced.counted == (0, 0)
    finally:
        world.close()


def look_again(world: World) -> None:
    """Has the moment pass within which the store does not look again."""
    world.ledger._envelopes.unreferenced._looked_at = float("-inf")


def test_bytes_that_wait_are_bounded_and_survive_a_restart(tmp_path: Path) -> None:  # SPEC-ORPH-5
    world = bounded(tmp_path, unreferenced_bytes_max=len(LARGE) + 5_000)
    try:
        large, small, large_too = seal(world, LARGE), seal(world), seal(world, LARGE)
        world.ledger.store_blobs([large.blob])
        world.ledger.store_blobs([small.blob])
        for _ in range(2):
            with pytest.raises(LedgerBusyError):
                world.ledger.store_blobs([large_too.blob])
            collect(world)
            world.reopen()
        with closing(world.ledger.open_uploads()) as uploads, pytest.raises(LedgerBusyError):
            uploads.begin(len(large_too.blob), digest_of(large_too))
        collect(world, 0)
        with closing(world.ledger.open_uploads()) as uploads:
            uploads.begin(len(large_too.blob), digest_of(large_too))
        world.ledger.store_blobs([large_too.blob])
    finally:
        world.close()


def test_an_upload_is_counted_when_it_ends(tmp_path: Path) -> None:  # SPEC-ORPH-5
    world = bounded(tmp_path, unreferenced_blobs_max=1)
    try:
        sealed = seal(world, LARGE)
        with closing(world.ledger.open_uploads()) as uploads:
            upload = uploads.begin(len(sealed.blob), digest_of(sealed))
            uploads.append(upload.id, 0, sealed.blob)
            uploads.finish(upload.id)
            assert world.ledger._envelopes.unreferenced.counted == (1, len(sealed.blob))
            with pytest.raises(LedgerBusyError):
                uploads.begin(10, bytes(32))
    finally:
        world.close()


def test_who_goes_on_asking_does_not_have_everything_looked_at(tmp_path: Path) -> None:  # SPEC-ORPH-5
    world = bounded(tmp_path, unreferenced_blobs_max=1)
    try:
        looks = 0
        unnamed = world.ledger._envelopes.unreferenced
        before = unnamed._unowned

        def unowned(digests: Sequence[bytes]) -> list[bytes]:
            nonlocal looks
            looks += 1
            return before(digests)

        unnamed._unowned = unowned
        world.ledger.store_blobs([seal(world).blob])
        for _ in range(20):
            with pytest.raises(LedgerBusyError):
                world.ledger.store_blobs([seal(world).blob])
        assert looks <= 2
    finally:
        world.close()

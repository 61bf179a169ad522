"""Envelopes that nobody names: collected when they are old, never under a batch that is on its way."""

import os
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from feeds import check_all, fill, small_files, submit_next
from test_backup import Load
from world import World, make_world

from fastledger import Code
from fastledger.chain.orphans import Gate
from fastledger.chain.pace import Pace
from fastledger.errors import InputError, OperationCancelledError

HOUR_MS = 3_600_000


@pytest.fixture
def small_world(tmp_path: Path) -> Iterator[World]:
    with small_files():
        world = make_world(tmp_path / "ledger")
        yield world
        world.close()


def age(world: World, seconds: int) -> None:
    """As if nothing had been written for so long."""
    then = time.time() - seconds
    for path in [*world.path.glob("blobs/packs/*"), *world.path.glob("blobs/files/??/*")]:
        os.utime(path, (then, then))


def test_old_envelopes_of_refused_records_go(small_world: World) -> None:  # SPEC-ORPH-1
    world = small_world
    kept = [world.put(b"kept %d" % n) for n in range(3)]
    # Refused: the clinic may not write there. Uploaded and never submitted: the second one.
    refused = world.patient.amend_record("vitals", kept[0].record, 9, b"of a wrong version")
    assert world.ledger.submit([refused.transaction], [refused.blob])[0].code is Code.WRONG_VERSION
    digests = world.ledger._blobs.put_many([b"never submitted", bytes(20_000)])
    erased = world.put(b"erased later")
    world.submit(world.patient.erase_record(erased.record))
    assert world.ledger.collect_orphans(HOUR_MS).examined == 0
    age(world, 7_200)
    report = world.ledger.collect_orphans(HOUR_MS)
    assert (report.examined, report.collected) == (6, 3)
    assert report.freed_bytes == len(refused.blob) + len(b"never submitted") + 20_000
    assert world.ledger._blobs.missing(digests) == digests
    for sealed in kept:
        version = world.ledger.record_version(sealed.record)
        assert world.ledger._blobs.get(version.digest) == sealed.blob
    assert world.ledger.verify().problems == []
    age(world, 7_200)
    assert world.ledger.collect_orphans(HOUR_MS).collected == 0
    # What comes again is stored again.
    again = world.patient.amend_record("vitals", kept[0].record, 2, b"of the right version")
    world.ledger.submit([again.transaction], [refused.blob, again.blob])[0].raise_for_status()
    with pytest.raises(InputError):
        world.ledger.collect_orphans(-1)


def test_nothing_on_its_way_is_collected(small_world: World) -> None:  # SPEC-ORPH-1
    world = small_world
    feeds, history = fill(world, 10)
    world.ledger._blobs.put_many([b"orphan %d" % n for n in range(200)])
    collected = 0
    with Load(world.ledger, feeds) as load:
        while any(len(each.batches) < 30 for each in load.histories):
            with suppress(FileNotFoundError):
                age(world, 10)
            # Of age 0: whatever is stored may go unless it is named, or about to be.
            collected += world.ledger.collect_orphans(0).collected
    assert collected >= 200
    for each in load.histories:
        each.check(world.ledger, everything=True)
    submit_next(world.ledger, feeds[0], history)
    check_all(world.ledger, history)


def test_a_gate_lets_many_in_or_nobody() -> None:
    gate, pace, order = Gate(), Pace(), []

    def enter(name: str, wait: threading.Event) -> None:
        with gate.entered():
            order.append(name)
            wait.wait()

    go = threading.Event()
    first = [threading.Thread(target=enter, args=(name, go)) for name in "ab"]
    for thread in first:
        thread.start()
    while len(order) < 2:
        time.sleep(0.001)
    cancel = threading.Event()
    cancel.set()
    with pytest.raises(OperationCancelledError), gate.shut(Pace(cancel=cancel)):
        order.append("never")
    go.set()
    with gate.shut(pace):
        late = threading.Thread(target=enter, args=("c", go))
        late.start()
        time.sleep(0.02)
        order.append("shut")
    late.join()
    assert order == ["a", "b", "shut", "c"] or order == ["b", "a", "shut", "c"]

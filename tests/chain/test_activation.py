"""A ledger whose blocks are final at once goes over to another rule set at a height, or stops before it."""

from collections.abc import Iterator
from io import BytesIO
from pathlib import Path

import pytest
from beacon import COUNTER, NOTICE, Beacon, Beacons, Dim, Light, LightInColour, declared
from world import Clock, new_wallet

from fastledger import Code, Ledger, LedgerOptions, Transaction, import_blocks, restore_snapshot
from fastledger.errors import ReleaseNeededError
from fastledger.subjects.chain import RULE_SETS, ChainActivate, ChainCancel

ID = bytes(range(16))
HEIGHT = 1 + NOTICE


@pytest.fixture
def beacons() -> Iterator[Beacons]:
    with declared() as found:
        yield found


class Solo:
    """A ledger that began under rule set 1, and its authority's wallet."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.clock = Clock()
        self.options = LedgerOptions(clock_ms=self.clock)
        self.wallet = new_wallet(self.clock)
        self.ledger = Ledger.create(
            path, authorities=[self.wallet.authority], rule_set=1, options=self.options
        )
        self.wallet.join(self.ledger.chain_id)

    def vote(self, height: int = HEIGHT) -> None:
        body = ChainActivate(rule_set=2, height=height, release="9.1.0")
        self.ledger.submit([self.wallet.sign(body)])[0].raise_for_status()

    def light(self, level: int = 1, beacon: bytes = ID) -> Transaction:
        return self.wallet.sign(Light(beacon=beacon, level=level))

    def build_up_to(self, height: int) -> None:
        while self.ledger.height < height:
            self.clock.advance(1)
            self.ledger.submit([self.light()])[0].raise_for_status()

    def reopen(self) -> Ledger:
        self.ledger.close()
        self.ledger = Ledger.open(self.path, options=self.options)
        return self.ledger


@pytest.fixture
def solo(tmp_path: Path, beacons: Beacons) -> Iterator[Solo]:
    made = Solo(tmp_path / "ledger")
    yield made
    made.ledger.close()


def test_a_rule_set_begins_at_its_height(solo: Solo, beacons: Beacons) -> None:  # SPEC-RULE-5, SPEC-RULE-9
    ledger, wallet = solo.ledger, solo.wallet
    dim, coloured = wallet.sign(Dim(beacon=ID)), wallet.sign(LightInColour(beacon=ID, level=2, colour=3))
    solo.vote()
    assert ledger.status()["rules"] == {
        "in_force": 1,
        "newest_known": 2,
        "scheduled": {"rule_set": 2, "height": HEIGHT, "release": "9.1.0"},
        "release_needed": None,
    }
    solo.build_up_to(HEIGHT - 2)
    # At the border a kind that is not in force is unknown, and so is a body of another rule set.
    assert [item.code for item in ledger.submit([dim, coloured])] == [Code.UNKNOWN_KIND] * 2
    assert ledger.submit([solo.light(101)])[0].code is beacons.too_bright
    assert (ledger.height, ledger.entity(beacons.table, ID)) == (HEIGHT - 1, Beacon(1))
    assert [item.code for item in ledger.submit([solo.light(101), coloured])] == [Code.OK, Code.OK]
    assert (ledger.height, ledger.entity(beacons.table, ID)) == (HEIGHT, Beacon(4_002))
    assert ledger.submit([dim])[0].code is Code.OK
    assert ledger.entity(beacons.table, COUNTER) == Beacon(2), "two blocks under the rule set"
    assert ledger.status()["rules"]["in_force"] == 2
    assert ledger.status()["rules"]["scheduled"] is None


def test_everything_that_reads_old_blocks_asks_the_rules_of_their_height(
    solo: Solo, tmp_path: Path, beacons: Beacons
) -> None:  # SPEC-RULE-9
    solo.vote()
    solo.build_up_to(HEIGHT + 3)
    before = (solo.ledger.head, solo.ledger.state_root)
    solo.ledger.checkpoint()
    solo.build_up_to(HEIGHT + 5)
    after = (solo.ledger.head, solo.ledger.state_root)
    assert solo.ledger.verify().problems == []
    chain = BytesIO()
    assert solo.ledger.export_blocks(chain, with_blobs=True).blocks == HEIGHT + 6
    assert import_blocks(BytesIO(chain.getvalue()), tmp_path / "imported").state_root == after[1]
    before_activation = BytesIO()
    solo.ledger.export_blocks(before_activation, to_height=HEIGHT - 1)
    assert (solo.reopen().head, solo.ledger.state_root) == after != before
    solo.ledger.close()
    solo.ledger = Ledger.reindex(solo.path, options=solo.options)
    assert (solo.ledger.head, solo.ledger.state_root) == after
    # Pruned, the chain begins at a snapshot, whose state knows of all rule sets.
    snapshot = tmp_path / "snapshot"
    solo.ledger.snapshot(snapshot)
    restored = restore_snapshot(snapshot, tmp_path / "restored", solo.ledger.genesis.encoded)
    assert restored.state_root == after[1]
    steps = solo.ledger.entity(RULE_SETS, solo.ledger.chain_id).steps
    assert [(step.rule_set, step.height) for step in steps] == [(1, 0), (2, HEIGHT)]


def test_a_batch_that_waits_over_the_activation_is_decoded_again(
    solo: Solo, beacons: Beacons
) -> None:  # SPEC-RULE-10
    """Admitted under rule set 1, executed under 2: what the border made of it does not count."""
    solo.vote()
    solo.build_up_to(HEIGHT - 1)
    ledger = solo.ledger
    executor = ledger._executor
    now = executor.in_force.next
    executor.in_force.next = now._replace(rules=executor.registry.rules(1))
    try:
        submission = ledger.begin([solo.light(7)])
    finally:
        executor.in_force.next = now
    assert [outcome.code for outcome in submission.durable.result()] == [Code.OK]
    assert ledger.entity(beacons.table, ID) == Beacon(1_007)
    assert solo.reopen().entity(beacons.table, ID) == Beacon(1_007)


def test_a_cancelled_activation_does_not_take_place(solo: Solo, beacons: Beacons) -> None:  # SPEC-RULE-8
    solo.vote()
    solo.build_up_to(HEIGHT - 2)
    solo.ledger.submit([solo.wallet.sign(ChainCancel(rule_set=2, height=HEIGHT))])[0].raise_for_status()
    solo.build_up_to(HEIGHT + 1)
    assert solo.ledger.entity(beacons.table, ID) == Beacon(1)
    assert solo.ledger.status()["rules"]["in_force"] == 1


# A release that lacks the rule set.


@pytest.fixture
def outdated(tmp_path: Path) -> Iterator[Solo]:
    """A ledger of a release that knows rule set 1 alone, which goes over to rule set 2 after the tip."""
    with declared(1):
        made = Solo(tmp_path / "ledger")
        made.vote()
        made.build_up_to(HEIGHT - 2)
        yield made
        made.ledger.close()


def test_it_stops_before_the_height(outdated: Solo) -> None:  # SPEC-RULE-11
    ledger = outdated.ledger
    last = outdated.light(5)
    assert ledger.submit([last])[0].code is Code.OK
    for submit in (ledger.submit, ledger.submit_nowait, ledger.begin):
        with pytest.raises(ReleaseNeededError) as error:
            submit([outdated.light(6)])
        assert error.value.code is Code.RELEASE_NEEDED
        assert (error.value.rule_set, error.value.height, error.value.release) == (2, HEIGHT, "9.1.0")
        assert "install release 9.1.0 or newer" in str(error.value)
    assert ledger.height == HEIGHT - 1 and not ledger.halted
    assert "install release 9.1.0" in ledger.status()["rules"]["release_needed"]
    # It reads, keeps and opens on.
    assert ledger.get(last.txid).code == Code.OK and ledger.verify().problems == []
    assert outdated.reopen().get(last.txid).code == Code.OK
    with pytest.raises(ReleaseNeededError):
        outdated.ledger.submit([outdated.light(6)])
    assert outdated.ledger.height == HEIGHT - 1


def test_what_waits_is_refused_and_nothing_halts(outdated: Solo) -> None:  # SPEC-RULE-11
    """A batch that passed the border before the block that ended the old rules was built."""
    outdated.build_up_to(HEIGHT - 1)
    executor = outdated.ledger._executor
    now = executor.in_force.next
    executor.in_force.next = now._replace(rules=now.latest_known)
    data = outdated.light(5).encoded
    with outdated.ledger._pipeline.paused():
        submission = outdated.ledger.begin([data])
        executor.in_force.next = now
    with pytest.raises(ReleaseNeededError):
        submission.durable.result()
    with pytest.raises(ReleaseNeededError):
        submission.ordered.result()
    assert outdated.ledger.queue_depth == 0 and not outdated.ledger.halted


def test_it_goes_on_after_the_upgrade(tmp_path: Path) -> None:  # SPEC-RULE-11
    with declared(1):
        solo = Solo(tmp_path / "ledger")
        solo.vote()
        solo.build_up_to(HEIGHT - 1)
        solo.ledger.close()
    with declared(2) as beacons:
        solo.ledger = Ledger.open(solo.path, options=solo.options)
        solo.build_up_to(HEIGHT + 1)
        assert solo.ledger.entity(beacons.table, ID) == Beacon(1_001)
        assert solo.ledger.verify().problems == []
        solo.ledger.close()
    # Back to the older release: what it cannot judge it does not judge.
    with declared(1):
        ledger = Ledger.open(solo.path, options=solo.options)
        assert ledger.height == HEIGHT + 1 and ledger.release_needed is not None
        with pytest.raises(ReleaseNeededError):
            ledger.verify()
        ledger.close()
        with pytest.raises(ReleaseNeededError):
            Ledger.reindex(solo.path, options=solo.options)
    with declared(2), Ledger.reindex(solo.path, options=solo.options) as ledger:
        assert ledger.height == HEIGHT + 1 and ledger.verify().problems == []


def test_a_chain_that_begins_with_an_unknown_rule_set_is_not_opened(tmp_path: Path) -> None:  # SPEC-RULE-11
    with pytest.raises(ReleaseNeededError):
        Ledger.create(tmp_path / "ledger", rule_set=7)


def test_an_older_release_takes_no_part_of_what_it_cannot_judge(tmp_path: Path) -> None:  # SPEC-RULE-11
    chain, begun = BytesIO(), BytesIO()
    with declared(2):
        solo = Solo(tmp_path / "ledger")
        solo.vote()
        solo.build_up_to(HEIGHT + 1)
        solo.ledger.export_blocks(chain)
        solo.ledger.export_blocks(begun, to_height=HEIGHT - 1)
        solo.ledger.snapshot(tmp_path / "snapshot")
        solo.ledger.close()
    with declared(1):
        with pytest.raises(ReleaseNeededError):
            import_blocks(BytesIO(chain.getvalue()), tmp_path / "imported")
        assert import_blocks(BytesIO(begun.getvalue()), tmp_path / "begun").height == HEIGHT - 1
        # A snapshot has the state without the way to it: it is read, and goes on with a newer release.
        restored = restore_snapshot(tmp_path / "snapshot", tmp_path / "restored", solo.ledger.genesis.encoded)
        assert restored.height == HEIGHT + 1
        with Ledger.open(tmp_path / "restored", replica=True, options=solo.options) as ledger:
            assert ledger.release_needed is not None and ledger.status()["rules"]["in_force"] == 2

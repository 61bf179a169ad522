"""Queries against a naive filter over everything that was submitted (SPEC-QRY)."""

import itertools
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from world import TERM, VITALS, World, make_world

from fastledger import Code, Ledger, Purpose, Query, Right, Role, SealedRecord, Transaction
from fastledger.chain.execution.store import Overlay, Snapshot
from fastledger.chain.reading import query
from fastledger.errors import InputError
from fastledger.limits import QUERY_PAGE_MAX
from fastledger.subjects.consent import CONSENT_MISSING, PURPOSE_NOT_ALLOWED
from fastledger.subjects.identity import KEM_KEYS
from fastledger.subjects.record import RECORD_ERASED, UNKNOWN_RECORD

NOBODY = bytes(16)
HEART, GLUCOSE = TERM, "code:http://loinc.org|2339-0"
NAMES = ("kind", "signed_by", "subject", "record", "folder", "consent", "token", "code")


@dataclass
class Fact:
    """A transaction and, said by who made it, under what it must be found."""

    txid: bytes
    kind: str
    code: Code
    height: int
    time_ms: int
    terms: dict[str, set[Any]]

    def meets(self, conditions: dict[str, Any]) -> bool:
        ranges = {
            "from_height": self.height >= conditions.get("from_height", self.height),
            "to_height": self.height <= conditions.get("to_height", self.height),
            "from_time": self.time_ms >= conditions.get("from_time", self.time_ms),
            "to_time": self.time_ms <= conditions.get("to_time", self.time_ms),
        }
        named = (conditions[name] in self.terms.get(name, ()) for name in NAMES if name in conditions)
        return all(ranges.values()) and all(named)


@dataclass
class History:
    """A world that writes down what it submits."""

    world: World
    facts: list[Fact] = field(default_factory=list)

    def add(self, *planned: tuple[Transaction, Code, dict[str, Any]], blobs: tuple[bytes, ...] = ()) -> None:
        """Submits one block; each transaction with its code and the terms it is to be found under."""
        self.world.clock.advance(1_000)
        outcomes = self.world.ledger.submit([transaction for transaction, _, _ in planned], blobs)
        for (transaction, code, terms), outcome in zip(planned, outcomes, strict=True):
            assert outcome.code == code
            assert outcome.height is not None
            owned = {name: value if isinstance(value, set) else {value} for name, value in terms.items()}
            owned |= {"kind": {transaction.kind}, "code": {code}}
            time_ms = self.world.clock()
            self.facts.append(Fact(transaction.txid, transaction.kind, code, outcome.height, time_ms, owned))

    def put(self, *sealed: SealedRecord, tokens: tuple[str, ...]) -> None:
        """One block of new records of the patient's."""
        patient = self.world.patient
        planned = []
        for item in sealed:
            names = {"signed_by": patient.identity, "subject": patient.identity, "record": item.record}
            found = {token for term in tokens for token in patient.tokens(item.folder, term)[:1]}
            planned.append((item.transaction, Code.OK, names | {"folder": item.folder, "token": found}))
        self.add(*planned, blobs=tuple(item.blob for item in sealed))

    def matching(self, conditions: dict[str, Any], *, newest_first: bool = False) -> list[bytes]:
        found = [fact.txid for fact in self.facts if fact.meets(conditions)]
        return found[::-1] if newest_first else found


def settle(history: History) -> None:
    """The first blocks: who there is."""
    world = history.world
    names = {wallet: {"signed_by": wallet.identity, "subject": wallet.identity} for wallet in world.wallets}
    regulator = {"signed_by": world.regulator.identity}
    history.add(
        (world.hospital.register(Role.ORGANISATION), Code.OK, names[world.hospital]),
        (world.clinic.register(Role.ORGANISATION), Code.OK, names[world.clinic]),
        (world.patient.register(Role.PATIENT), Code.OK, names[world.patient]),
    )
    history.add(
        (
            world.regulator.endorse(world.hospital.identity, Role.ORGANISATION),
            Code.OK,
            regulator | {"subject": world.hospital.identity},
        ),
        (
            world.regulator.endorse(world.clinic.identity, Role.ORGANISATION),
            Code.OK,
            regulator | {"subject": world.clinic.identity},
        ),
    )
    opening = world.patient.open_folders("vitals", "laboratory")
    folders = set(world.patient.labels.values())
    history.add((opening, Code.OK, names[world.patient] | {"folder": folders}))


def care(history: History) -> None:
    """Records, consents, reads granted and refused, an amendment, a rotation and an erasure."""
    world, patient, clinic = history.world, history.world.patient, history.world.clinic
    owner = {"signed_by": patient.identity}
    vitals = patient.labels["vitals"]
    records = [patient.put_record("vitals", VITALS, (HEART,)) for _ in range(3)]
    history.put(*records, tokens=(HEART,))
    history.put(patient.put_record("laboratory", VITALS, (GLUCOSE, HEART)), tokens=(GLUCOSE, HEART))
    first = records[0].record
    reader = {"signed_by": clinic.identity, "subject": patient.identity, "record": first}
    history.add((clinic.access(first, Purpose.TREATMENT), CONSENT_MISSING, reader))
    consent = bytes(range(16))
    kem = world.ledger.entity(KEM_KEYS, clinic.identity).kem
    grant = patient.grant(
        clinic.identity, kem, ["vitals"], purposes=[Purpose.TREATMENT], rights=Right.READ, consent=consent
    )
    granted = owner | {"subject": clinic.identity, "consent": consent}
    history.add((grant, Code.OK, granted | {"folder": vitals}))
    history.add(
        (clinic.access(first, Purpose.TREATMENT), Code.OK, reader),
        (clinic.access(first, Purpose.RESEARCH), PURPOSE_NOT_ALLOWED, reader),
        (
            clinic.access(NOBODY, Purpose.TREATMENT),
            UNKNOWN_RECORD,
            {"signed_by": clinic.identity, "record": NOBODY},
        ),
    )
    history.add((patient.revoke_consent(consent), Code.OK, granted))
    rotation = owner | {"subject": patient.identity, "folder": vitals}
    history.add((patient.rotate_folder("vitals"), Code.OK, rotation))
    amended = patient.amend_record("vitals", first, 2, b"corrected", (HEART,))
    found = rotation | {"record": first, "token": set(patient.tokens(vitals, HEART)[:1])}
    history.add((amended.transaction, Code.OK, found), blobs=(amended.blob,))
    erased = owner | {"subject": patient.identity, "record": records[1].record}
    history.add(
        (patient.erase_record(records[1].record), Code.OK, erased),
        (patient.erase_record(records[1].record), RECORD_ERASED, erased),
    )


def make_history(path: Path, **options: Any) -> History:
    history = History(make_world(path, settled=False, **options))
    settle(history)
    care(history)
    return history


PLACES = ("memory", "index", "boundary", "reopened", "reindexed")


@pytest.fixture(scope="module", params=PLACES)
def history(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[History]:
    """The same history with its blocks in memory, in the index, across both, and after a restart."""
    path = tmp_path_factory.mktemp("query") / "ledger"
    options = {"checkpoint_transactions": 3} if request.param == "boundary" else {}
    made = make_history(path, **options)
    if request.param == "index":
        made.world.ledger.checkpoint()
    elif request.param == "reopened":
        made.world.reopen()
    elif request.param == "reindexed":
        made.world.ledger.close()
        made.world.ledger = Ledger.reindex(path)
    yield made
    made.world.close()


def pages(ledger: Ledger, limit: int, **conditions: Any) -> list[bytes]:
    """Every page of a query, one after another."""
    found: list[bytes] = []
    cursor = None
    while True:
        page = ledger.query(limit=limit, cursor=cursor, **conditions)
        assert len(page) <= limit
        found += [entry.txid for entry in page]
        if page.next_cursor is None:
            return found
        assert len(page) == limit, "only the last page may be short"
        cursor = page.next_cursor


# Against the oracle.


def test_everything_is_found_in_order(history: History) -> None:  # SPEC-QRY-1
    entries = history.world.ledger.query().entries
    assert [entry.txid for entry in entries] == [fact.txid for fact in history.facts]
    assert [entry.seq for entry in entries] == list(range(len(history.facts)))
    assert [entry.code for entry in entries] == [fact.code for fact in history.facts]
    assert [(entry.height, entry.time_ms) for entry in entries] == [
        (fact.height, fact.time_ms) for fact in history.facts
    ]
    assert [entry.transaction.kind for entry in entries] == [fact.kind for fact in history.facts]
    for entry in entries:
        assert history.world.ledger.get(entry.txid) == entry


def test_every_combination_of_a_transactions_terms_finds_it(history: History) -> None:  # SPEC-QRY-1
    """All subsets of all terms of all transactions, one value each, forwards and backwards."""
    ledger = history.world.ledger
    seen: set[tuple[Any, ...]] = set()
    for fact in history.facts:
        for names in itertools.chain.from_iterable(
            itertools.combinations(fact.terms, size) for size in range(len(fact.terms) + 1)
        ):
            conditions = {name: min(fact.terms[name]) for name in names if fact.terms[name]}
            key = tuple(sorted(conditions.items(), key=lambda item: item[0]))
            if key in seen:
                continue
            seen.add(key)
            found = [entry.txid for entry in ledger.query(**conditions)]
            assert found == history.matching(conditions), conditions
            backwards = [entry.txid for entry in ledger.query(newest_first=True, **conditions)]
            assert backwards == found[::-1], conditions
    assert len(seen) > 200


@settings(max_examples=100, deadline=None)
@given(data=st.data())
def test_any_query_is_the_naive_filter(
    history: History, data: st.DataObject
) -> None:  # SPEC-QRY-1, SPEC-QRY-2
    conditions = data.draw(conditions_of(history))
    newest_first = data.draw(st.booleans())
    expected = history.matching(conditions, newest_first=newest_first)
    limit = data.draw(st.integers(1, 6))
    assert pages(history.world.ledger, limit, newest_first=newest_first, **conditions) == expected


def conditions_of(history: History) -> st.SearchStrategy[dict[str, Any]]:
    """Some conditions: terms mostly of one transaction, so that they often meet, and ranges around the blocks."""
    heights = st.integers(-2, history.world.ledger.height + 3)
    times = [fact.time_ms for fact in history.facts]
    moments = st.integers(min(times) - 1_500, max(times) + 1_500) | st.sampled_from(times)
    ranges = st.fixed_dictionaries(
        {},
        optional={
            "from_height": heights,
            "to_height": heights,
            "from_time": moments,
            "to_time": moments,
        },
    )

    def terms_of(fact: Fact) -> st.SearchStrategy[dict[str, Any]]:
        choices = {name: st.sampled_from(sorted(values)) for name, values in fact.terms.items() if values}
        strangers = {name: st.just(NOBODY) for name in ("signed_by", "subject", "folder", "consent", "token")}
        own = st.fixed_dictionaries({}, optional=choices)
        return own | st.builds(lambda a, b: a | b, own, st.fixed_dictionaries({}, optional=strangers))

    return st.builds(
        lambda terms, bounds: terms | bounds, st.sampled_from(history.facts).flatmap(terms_of), ranges
    )


def test_ranges_hold_both_ends(history: History) -> None:  # SPEC-QRY-2
    ledger = history.world.ledger
    for fact in history.facts:
        for conditions in (
            {"from_height": fact.height, "to_height": fact.height},
            {"from_time": fact.time_ms, "to_time": fact.time_ms},
        ):
            found = [entry.txid for entry in ledger.query(**conditions)]
            assert found == history.matching(conditions)
            assert fact.txid in found
        assert not ledger.query(from_height=fact.height + 1, to_height=fact.height).entries


def test_a_query_object_is_the_same(history: History) -> None:
    ledger, patient = history.world.ledger, history.world.patient
    query = Query(kind="record.put", subject=patient.identity, limit=2)
    assert ledger.query(query) == ledger.query(kind="record.put", subject=patient.identity, limit=2)


# Cursors.


def test_a_cursor_stands_while_the_chain_grows(world: World) -> None:  # SPEC-QRY-1
    submit = world.hospital.endorse
    first = [submit(world.doctor.identity, Role.PRACTITIONER) for _ in range(5)]
    world.submit(*first)
    conditions = {"kind": "identity.endorse", "signed_by": world.hospital.identity}
    page = world.ledger.query(limit=3, **conditions)
    newest = world.ledger.query(limit=3, newest_first=True, **conditions)
    more = [submit(world.doctor.identity, Role.PRACTITIONER) for _ in range(4)]
    world.submit(*more)
    world.ledger.checkpoint()
    rest = world.ledger.query(cursor=page.next_cursor, **conditions)
    everything = [entry.txid for entry in (*page, *rest)]
    assert everything[-9:] == [transaction.txid for transaction in (*first, *more)]
    older = world.ledger.query(cursor=newest.next_cursor, newest_first=True, **conditions)
    backwards = [entry.txid for entry in (*newest, *older)]
    assert backwards[:5] == [transaction.txid for transaction in first[::-1]]


@pytest.mark.parametrize("newest_first", [False, True])
def test_a_page_looks_at_so_many_and_no_more(
    history: History, monkeypatch: pytest.MonkeyPatch, newest_first: bool
) -> None:  # SPEC-QRY-4
    ledger = history.world.ledger
    looked = 0
    has_posting = Snapshot.has_posting

    def counting(self: Snapshot, term: bytes, seq: int) -> bool:
        nonlocal looked
        looked += 1
        return has_posting(self, term, seq)

    monkeypatch.setattr(Snapshot, "has_posting", counting)
    monkeypatch.setattr(query, "QUERY_CANDIDATES_MAX", 3)
    signer = history.world.patient.identity
    conditions: dict[str, Any]
    for conditions in ({"signed_by": signer, "kind": "record.put"}, {"kind": "identity.register"}, {}):
        found: list[bytes] = []
        cursor = None
        while True:
            looked = 0
            page = ledger.query(cursor=cursor, newest_first=newest_first, **conditions)
            assert looked <= 4
            assert len(page) <= 3
            found += [entry.txid for entry in page]
            if (cursor := page.next_cursor) is None:
                break
        assert found == history.matching(conditions, newest_first=newest_first)


def test_pages_end_exactly(world: World) -> None:  # SPEC-QRY-1
    """A page that holds the last answer says so, also where refusals are filtered out of it."""
    for code in (None, Code.OK):
        count = len(world.ledger.query(code=code))
        page = world.ledger.query(code=code, limit=count)
        assert (len(page), page.next_cursor) == (count, None)
        assert world.ledger.query(code=code, limit=count - 1).next_cursor is not None
    world.ledger.submit([world.doctor.revoke_identity(NOBODY)])
    assert world.ledger.query(code=Code.OK, limit=count).next_cursor is None


def test_no_search_ends_in_the_middle_of_its_postings(world: World) -> None:  # SPEC-QRY-1
    """More transactions under one term than a page holds: the answer once ended at the 1,000th."""
    count = 2 * QUERY_PAGE_MAX + 300
    doctor = world.doctor
    batch = [doctor.revoke_identity(NOBODY) for _ in range(count)]
    expected = [transaction.txid for transaction in batch]
    world.ledger.submit(batch)
    last = doctor.sign(doctor.erase_record(NOBODY).body)
    world.ledger.submit([last])
    for _ in range(2):
        refused = {"signed_by": doctor.identity, "kind": "identity.revoke"}
        assert pages(world.ledger, QUERY_PAGE_MAX, **refused) == expected
        assert pages(world.ledger, QUERY_PAGE_MAX, newest_first=True, **refused) == expected[::-1]
        # The one that meets both conditions stands behind all the others of its first.
        page = world.ledger.query(signed_by=doctor.identity, kind="record.erase")
        assert [entry.txid for entry in page] == [last.txid]
        world.ledger.checkpoint()


# Where a block changes from memory to the index.


class HeldCheckpoint:
    """Stops checkpoints before they write."""

    def __init__(self, ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
        self._begun, self._go = threading.Event(), threading.Event()
        self._write = ledger._store.write_frozen
        self._pipeline = ledger._pipeline
        monkeypatch.setattr(ledger._store, "write_frozen", self.write)

    def write(self, frozen: Overlay) -> None:
        self._begun.set()
        assert self._go.wait(30)
        self._write(frozen)

    def wait(self) -> None:
        assert self._begun.wait(30)

    def release(self) -> None:
        """Lets the checkpoint write, and returns once it has; the executor still holds on to what was written."""
        self._go.set()
        while self._pipeline._frozen is not None:
            time.sleep(0.001)


def test_queries_see_every_block_once_at_every_moment_of_a_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:  # SPEC-QRY-1, SPEC-PIPE-5
    history = History(make_world(tmp_path / "ledger", settled=False))
    ledger = history.world.ledger
    settle(history)
    ledger.checkpoint()
    held = HeldCheckpoint(ledger, monkeypatch)
    # What stands in memory now is frozen, and stays so; what follows goes on top of it.
    ledger._pipeline._checkpoint_transactions = 1
    patient = history.world.patient
    history.put(patient.put_record("vitals", VITALS, (HEART,)), tokens=(HEART,))
    held.wait()
    care(history)
    moments = [held.release, lambda: care_more(history), ledger.checkpoint]
    for step in ("held", *moments):
        if callable(step):
            step()
        assert pages(ledger, 3) == history.matching({})
        assert pages(ledger, 3, newest_first=True) == history.matching({}, newest_first=True)
        for conditions in (
            {"kind": "record.put"},
            {"signed_by": patient.identity},
            {"subject": patient.identity, "code": Code.OK},
            {"folder": patient.labels["vitals"], "kind": "record.put"},
            {"from_height": 3, "to_height": 6},
        ):
            for newest_first in (False, True):
                found = pages(ledger, 2, newest_first=newest_first, **conditions)
                assert found == history.matching(conditions, newest_first=newest_first), conditions
    history.world.close()


def care_more(history: History) -> None:
    patient = history.world.patient
    history.put(patient.put_record("laboratory", VITALS, (HEART,)), tokens=(HEART,))


def test_readers_beside_a_writer_see_a_prefix(world: World) -> None:  # SPEC-QRY-1, SPEC-PIPE-5
    """While blocks come in and checkpoints go on, each answer is a beginning of the final one."""
    world.ledger._pipeline._checkpoint_transactions = 7
    answers: list[list[bytes]] = []
    done = threading.Event()

    def read() -> None:
        while not done.is_set():
            answers.append(pages(world.ledger, 9, signed_by=world.hospital.identity))

    thread = threading.Thread(target=read)
    thread.start()
    try:
        for _ in range(40):
            world.submit(
                *(world.hospital.endorse(world.doctor.identity, Role.PRACTITIONER) for _ in range(3))
            )
    finally:
        done.set()
        thread.join()
    final = pages(world.ledger, 50, signed_by=world.hospital.identity)
    assert len(final) >= 120
    assert len(answers) > 3
    for before, after in itertools.pairwise([*answers, final]):
        assert after[: len(before)] == before


# Queries that make no sense, and those that find nothing.


@pytest.mark.parametrize(
    "conditions",
    [
        {"kind": "record.shred"},
        {"kind": ""},
        {"signed_by": bytes(15)},
        {"subject": bytes(17)},
        {"record": b""},
        {"folder": bytes(32)},
        {"consent": "0123456789abcdef"},
        {"token": bytes(8)},
        {"code": 7},
        {"code": -1},
        {"code": 2**70},
        {"limit": 0},
        {"limit": -1},
        {"limit": QUERY_PAGE_MAX + 1},
    ],
    ids=str,
)
def test_bad_queries_are_refused(world: World, conditions: dict[str, Any]) -> None:  # SPEC-QRY-3
    with pytest.raises(InputError) as error:
        world.ledger.query(**conditions)
    assert error.value.code == Code.BAD_QUERY


@pytest.mark.parametrize("number", [2**48, 2**63, 2**70, -1, -(2**70)])
@pytest.mark.parametrize("newest_first", [False, True])
def test_bounds_beyond_the_chain_are_no_error(world: World, number: int, newest_first: bool) -> None:
    # SPEC-QRY-2
    for signer in (None, world.hospital.identity):
        query = {"newest_first": newest_first, "signed_by": signer}
        everything = world.ledger.query(**query).entries
        assert everything
        below, above = ([], everything) if number < 0 else (everything, [])
        assert world.ledger.query(from_height=number, **query).entries == above
        assert world.ledger.query(to_height=number, **query).entries == below
        assert world.ledger.query(from_time=number, **query).entries == above
        assert world.ledger.query(to_time=number, **query).entries == below
        assert world.ledger.query(cursor=number, **query).entries == (below if newest_first else above)


def test_an_empty_chain_answers(tmp_path: Path) -> None:  # SPEC-QRY-1
    with Ledger.create(tmp_path / "ledger") as ledger:
        for conditions in (
            {},
            {"from_time": 5},
            {"to_time": 5},
            {"from_height": 0},
            {"signed_by": NOBODY},
        ):
            for newest_first in (False, True):
                page = ledger.query(newest_first=newest_first, **conditions)
                assert (page.entries, page.next_cursor) == ([], None)

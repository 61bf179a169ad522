"""What rules see of the state: views over stacked maps, and the lists of terms that they leave."""

from array import array
from operator import itemgetter
from pathlib import Path
from typing import Any

import pytest

from fastledger.state.view import Stack, TermList, View
from fastledger.subjects.folder import FOLDERS, Folder
from fastledger.subjects.reward import ACCOUNTS, Account

NAME = bytes(range(16))


def packed(balance: int) -> bytes:
    view = View(lambda _key: None)
    view.store(ACCOUNTS, b"", Account(balance))
    view.commit()
    value = view.writes[ACCOUNTS.prefix]
    assert value is not None
    return value


def test_a_stack_answers_from_the_first_map_that_has_the_key() -> None:
    asked: list[bytes] = []

    def below(key: bytes) -> bytes | None:
        asked.append(key)
        return None if key == b"none" else b"below"

    upper: dict[bytes, bytes | None] = {b"a": b"1", b"gone": None}
    lower: dict[bytes, bytes | None] = {b"a": b"2", b"gone": b"2", b"b": b"2"}
    cache: dict[bytes, bytes | None] = {b"b": b"3", b"c": b"3"}
    stack = Stack([upper, lower], cache, below)
    assert [stack(key) for key in (b"a", b"gone", b"b", b"c")] == [b"1", None, b"2", b"3"]
    assert asked == []
    for _ in range(2):
        assert (stack(b"d"), stack(b"none")) == (b"below", None)
    assert asked == [b"d", b"none"]  # once a key, also where there is nothing
    assert cache[b"d"] == b"below"
    upper[b"d"] = b"4"
    assert stack(b"d") == b"4"


def test_a_stack_takes_dicts_of_bytes_alone() -> None:
    for maps in (None, [None], [[]], [()]):
        with pytest.raises(TypeError):
            Stack(maps, {}, lambda _key: None)  # type: ignore[arg-type]
    with pytest.raises(TypeError):
        Stack([], {}, lambda _key: None)("a")  # type: ignore[arg-type]

    def broken(key: bytes) -> bytes | None:
        raise OSError(key)

    with pytest.raises(OSError, match="k"):
        View(Stack([], {}, broken)).load(ACCOUNTS, b"k")


@pytest.mark.parametrize("stacked", [False, True])
def test_a_view_shows_its_own_writes_and_keeps_what_was_committed(stacked: bool) -> None:  # SPEC-STATE-1
    held: dict[bytes, bytes | None] = {ACCOUNTS.prefix + b"old": packed(1)}
    view = View(Stack([held], {}, lambda _key: None) if stacked else held.get)
    assert view.load(ACCOUNTS, b"old") == Account(1)
    assert view.load(ACCOUNTS, b"new") is None
    view.store(ACCOUNTS, b"old", Account(2))
    view.store(ACCOUNTS, b"new", Account(3))
    assert (view.load(ACCOUNTS, b"old"), view.load(ACCOUNTS, b"new")) == (Account(2), Account(3))
    view.rollback()
    assert (view.load(ACCOUNTS, b"old"), view.load(ACCOUNTS, b"new"), view.writes) == (Account(1), None, {})
    view.store(ACCOUNTS, b"new", Account(4))
    view.remove(ACCOUNTS, b"old")
    assert view.load(ACCOUNTS, b"old") is None
    view.commit()
    view.rollback()
    assert (view.load(ACCOUNTS, b"old"), view.load(ACCOUNTS, b"new")) == (None, Account(4))
    assert view.writes == {ACCOUNTS.prefix + b"new": packed(4), ACCOUNTS.prefix + b"old": None}
    assert view.load(FOLDERS, b"new") is None
    view.store(FOLDERS, b"new", Folder(NAME, 1))
    view.commit()
    assert len(view.writes) == 3
    assert held == {ACCOUNTS.prefix + b"old": packed(1)}


def test_terms_belong_to_the_transaction_that_ends_next() -> None:
    terms = TermList()
    assert (terms.terms, terms.counts, len(terms)) == (b"", array("I"), 0)
    terms.add(b"\x00\x01", NAME)
    terms.add_all(b"\x00\x07", [NAME, bytes(16)])
    terms.end()
    terms.end()
    other = terms.copy()
    for number in range(300):  # beyond what was reserved
        terms.add(b"\x00\x02", number.to_bytes(16, "big"))
    terms.end()
    expected = b"\x00\x01" + NAME + b"\x00\x07" + NAME + b"\x00\x07" + bytes(16)
    assert (other.terms, other.counts) == (expected, array("I", [3, 0]))
    assert terms.terms == expected + b"".join(b"\x00\x02" + number.to_bytes(16, "big") for number in range(300))
    assert terms.counts == array("I", [3, 0, 300])
    other.add(b"\x00\x03", NAME)
    other.end()
    assert other.counts == array("I", [3, 0, 1])
    terms.counts.append(7)  # a copy
    assert len(terms.counts) == 3


@pytest.mark.parametrize("name", [b"", bytes(15), bytes(17), None, "x" * 16, 7])
def test_a_term_has_eighteen_bytes(name: object) -> None:
    terms = TermList()
    terms.add(b"\x00\x01", NAME)
    with pytest.raises((ValueError, TypeError)):
        terms.add(b"\x00\x01", name)  # type: ignore[arg-type]
    with pytest.raises((ValueError, TypeError)):
        terms.add_all(b"\x00\x01", [NAME, name])  # type: ignore[list-item]
    for table in (b"", b"1", b"123"):
        with pytest.raises(ValueError, match="2 bytes of table"):
            terms.add(table, NAME)
    assert terms.terms == b"\x00\x01" + NAME  # all or none


def test_terms_that_sources_find_are_those_added_by_hand() -> None:
    found, by_hand = TermList(), TermList()
    sources = (
        (b"\x00\x01", itemgetter("one"), False),
        (b"\x00\x02", itemgetter("none"), False),
        (b"\x00\x03", itemgetter("several"), True),
    )
    body = {"one": NAME, "none": None, "several": [NAME, bytes(16)]}
    found.add_found(sources, body)
    by_hand.add(b"\x00\x01", NAME)
    by_hand.add_all(b"\x00\x03", [NAME, bytes(16)])
    assert found.terms == by_hand.terms
    found.add_found((), body)
    assert len(found) == 3


@pytest.mark.parametrize(
    "source",
    [
        (b"\x00\x01", itemgetter("short"), False),
        (b"\x00\x01", itemgetter("mixed"), True),
        (b"\x00\x01", itemgetter("none"), True),
        (b"1", itemgetter("one"), False),
        (None, itemgetter("one"), False),
        (b"\x00\x01", None, False),
        (b"\x00\x01", itemgetter("one")),
        None,
    ],
)
def test_a_source_that_finds_no_term_adds_none(source: Any) -> None:
    terms = TermList()
    body = {"one": NAME, "none": None, "short": bytes(15), "mixed": [NAME, bytes(17)]}
    with pytest.raises((ValueError, TypeError)):
        terms.add_found((source,), body)
    assert terms.terms == b""


def resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096


def test_term_lists_leave_nothing_behind() -> None:
    before = resident_bytes()
    for _ in range(1_000):
        terms = TermList()
        terms.add_all(b"\x00\x01", [NAME] * 10_000)
        terms.end()
        terms.copy()
    assert resident_bytes() - before < 50_000_000  # 340 MB, were they kept

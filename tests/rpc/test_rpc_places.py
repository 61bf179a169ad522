"""Where an operator may have a node write."""

import posixpath

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastledger.errors import Code, InputError
from fastledger.rpc.operator import _place

ROOT = "/srv/backups"


@pytest.mark.parametrize(
    ("path", "place"),
    [
        ("nightly", f"{ROOT}/nightly"),
        ("./nightly", f"{ROOT}/nightly"),
        ("a/b", f"{ROOT}/a/b"),
        (f"{ROOT}/nightly", f"{ROOT}/nightly"),
        (f"{ROOT}//nightly/", f"{ROOT}/nightly"),
        ("..hidden", f"{ROOT}/..hidden"),
    ],
)
def test_places_inside(path: str, place: str) -> None:
    assert _place(path, ROOT) == place


@pytest.mark.parametrize(
    "path",
    [
        "..",
        "../other",
        "a/../../other",
        "a/..",  # inside, and still refused: a link on the way would lead elsewhere
        f"{ROOT}/../other",
        "/etc",
        "/",
        "/srv",
        "/srv/backups-of-another/x",
        ROOT,
        f"{ROOT}/",
        ".",
        "./.",
        "a\0b",
        f"{ROOT}/a\0",
    ],
    ids=repr,
)
def test_places_outside(path: str) -> None:
    with pytest.raises(InputError) as caught:
        _place(path, ROOT)
    assert caught.value.code is Code.BAD_QUERY
    named = path.strip("./\0")
    assert len(named) < 3 or named not in str(caught.value)


@pytest.mark.parametrize("path", ["relative", "./a", "../a", ".", "/a\0b"], ids=repr)
def test_without_a_backup_directory_a_place_is_absolute(path: str) -> None:
    assert _place("/anywhere/else", None) == "/anywhere/else"
    with pytest.raises(InputError) as caught:
        _place(path, None)
    assert caught.value.code is Code.BAD_QUERY


@given(st.lists(st.sampled_from(["..", ".", "", "a", "b", "srv", "backups"]), min_size=1).map("/".join))
def test_no_spelling_leads_out(path: str) -> None:
    try:
        place = _place(path, ROOT)
    except InputError:
        return
    assert posixpath.normpath(place).startswith(f"{ROOT}/")
    assert ".." not in place.split("/")

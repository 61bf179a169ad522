"""Ledgers and clients have one surface: the same methods with the same parameters, and reasons for all others."""

import inspect
import re
from typing import Any, get_type_hints

import pytest
import surface
from surface import TWINS, Twin

from fastledger import AsyncClient, AsyncLedger, AsyncLedgerApi, Client, Ledger, LedgerApi

SYNC, ASYNC = (Ledger, Client), (AsyncLedger, AsyncClient)
CLASSES = (*SYNC, *ASYNC)
# What generated classes may have besides, and types of the two worlds that stand for each other.
ITERATORS = re.compile(r"\b(AsyncGenerator|Generator|Iterator|AsyncIterator)\[(.*?)(?:, None)*\]$")
STREAM = "Iterable[bytes | fastledger.model.transaction.Transaction]"


def public(cls: type) -> set[str]:
    """Methods, properties, and what the class declares that its objects have."""
    declared = {name for each in cls.__mro__ for name in vars(each).get("__annotations__", {})}
    found = {name for name in dir(cls) if callable(getattr(cls, name)) or isinstance(_raw(cls, name), property)}
    return {name for name in declared | found if not name.startswith("_")}


def _raw(cls: type, name: str) -> Any:
    return inspect.getattr_static(cls, name)


def api() -> set[str]:
    return {name for name in vars(LedgerApi) if not name.startswith("_")}


def allowed(cls: type) -> dict[str, str]:
    """What a class may have that is not on the surface, with the reasons."""
    pair = surface.LEDGER_PAIR if cls in (Ledger, AsyncLedger) else surface.CLIENT_PAIR
    own = {Ledger: surface.LEDGER, AsyncLedger: surface.ASYNC_LEDGER, AsyncClient: surface.ASYNC_CLIENT}
    return {**pair, **own.get(cls, {})}


def parameters(cls: type, name: str) -> list[tuple[str, Any, Any, str]]:
    """Name, kind, default and type of every parameter, as far as sync and async agree."""
    found = []
    for each in inspect.signature(getattr(cls, name)).parameters.values():
        hint = each.annotation if isinstance(each.annotation, str) else _text(each.annotation)
        found.append((each.name, each.kind, each.default, hint.replace(f"collections.abc.Async{STREAM} | ", "")))
    return [item for item in found if item[0] not in ("self", "cancel")]


def _text(hint: Any) -> str:
    return str(hint) if not isinstance(hint, type) or hasattr(hint, "__args__") else hint.__qualname__


def returned(cls: type, name: str) -> str:
    hint = _text(get_type_hints(getattr(cls, name))["return"])
    iterated = ITERATORS.search(hint)
    return f"each {iterated.group(2)}" if iterated else hint


@pytest.mark.parametrize("twin", TWINS, ids=lambda twin: twin.target)
def test_a_generated_module_is_what_its_source_says(twin: Twin) -> None:
    made = surface.make(twin)
    assert (surface.ROOT / twin.target).read_text() == made.text, "run python tests/structure/surface.py"
    assert made.unused == [], "substitutions that nothing needs"


@pytest.mark.parametrize("cls", CLASSES, ids=lambda cls: cls.__name__)
def test_every_public_method_is_on_the_surface_or_has_a_reason(cls: type) -> None:
    beside = public(cls) - api()
    assert beside <= allowed(cls).keys(), f"on {cls.__name__} alone, without a reason"
    assert api() <= public(cls)


def test_no_reason_is_given_for_what_is_not_there() -> None:
    pairs = ((surface.LEDGER_PAIR, (Ledger, AsyncLedger)), (surface.CLIENT_PAIR, (Client, AsyncClient)))
    for reasons, classes in pairs:
        for cls in classes:
            assert reasons.keys() <= public(cls), cls.__name__
    assert surface.LEDGER.keys() <= public(Ledger)
    assert surface.ASYNC_CLIENT.keys() <= public(AsyncClient)
    assert public(AsyncLedger) >= surface.BY_HAND
    listed = (surface.LEDGER_PAIR, surface.LEDGER, surface.CLIENT_PAIR, surface.ASYNC_CLIENT)
    names = [name for reasons in listed for name in reasons]
    assert len(names) == len(set(names))
    assert not set(names) & api()
    assert all(len(reason) > 5 for reasons in listed for reason in reasons.values())


def methods() -> list[str]:
    return sorted(name for name in api() if not isinstance(_raw(LedgerApi, name), property))


@pytest.mark.parametrize("name", methods())
def test_a_method_has_the_same_parameters_everywhere(name: str) -> None:  # SPEC-CLI-1
    expected = parameters(LedgerApi, name)
    for cls in (*CLASSES, AsyncLedgerApi):
        assert parameters(cls, name) == expected, cls.__name__


@pytest.mark.parametrize("name", methods())
def test_a_method_returns_the_same_everywhere(name: str) -> None:
    expected = returned(LedgerApi, name)
    for cls in (*CLASSES, AsyncLedgerApi):
        assert returned(cls, name) == expected, cls.__name__


@pytest.mark.parametrize("name", methods())
def test_whoever_blocks_can_be_called_off_and_whoever_awaits_is_cancelled(name: str) -> None:
    can = {"cancel" in inspect.signature(getattr(cls, name)).parameters for cls in (*SYNC, LedgerApi)}
    has_progress = "progress" in inspect.signature(getattr(LedgerApi, name)).parameters
    assert can == {has_progress}
    assert not any("cancel" in inspect.signature(getattr(cls, name)).parameters for cls in (*ASYNC, AsyncLedgerApi))


@pytest.mark.parametrize("name", methods())
def test_a_method_is_a_coroutine_on_the_asynchronous_side_unless_it_is_at_hand(name: str) -> None:
    for cls in ASYNC:
        method = getattr(cls, name)
        waits = inspect.iscoroutinefunction(method) or inspect.isasyncgenfunction(method)
        assert waits == (name not in surface.AT_HAND), cls.__name__
    for cls in SYNC:
        method = getattr(cls, name)
        assert not inspect.iscoroutinefunction(method)
        assert not inspect.isasyncgenfunction(method)


def test_pairs_have_the_same_parameters_beside_the_surface_too() -> None:
    for reasons, (one, other) in (
        (surface.LEDGER_PAIR, (Ledger, AsyncLedger)),
        (surface.CLIENT_PAIR, (Client, AsyncClient)),
    ):
        for name in reasons:
            if not isinstance(_raw(one, name), property):
                assert parameters(one, name) == parameters(other, name), name


@pytest.mark.parametrize("cls", (*CLASSES, LedgerApi, AsyncLedgerApi), ids=lambda cls: cls.__name__)
def test_every_docstring_is_sentences_and_none_sends_the_reader_elsewhere(cls: type) -> None:
    for name in public(cls) & set(dir(cls)):
        text = _raw(cls, name)
        text = (text.fget if isinstance(text, property) else getattr(cls, name)).__doc__
        assert text, f"{cls.__name__}.{name}"
        assert text.strip().endswith((".", ").")), f"{cls.__name__}.{name}"
        assert not text.startswith("See "), f"{cls.__name__}.{name}"


def test_properties_of_the_surface_are_at_hand() -> None:
    for name in api() - set(methods()):
        assert name in surface.AT_HAND
        for cls in CLASSES:
            assert not inspect.iscoroutinefunction(getattr(cls, name, None))

"""The conformance checks find what is planted: one mistake of a subject's author each."""

from collections.abc import Callable, Iterator
from typing import Annotated, Any

import pytest
from conformance import (
    check_a_body_holds_no_texts_and_fits_a_transaction,
    check_a_body_is_declared_as_all_are,
    check_a_table_s_name_is_free_everywhere,
    check_an_entity_has_one_encoding,
    check_terms_and_hints_name_tables_that_there_are,
    check_what_a_rule_says_and_leaves,
)
from msgspec import Meta

from fastledger.model.body import Body
from fastledger.model.fields import Id16, Identity16, UInt32
from fastledger.state.context import Context
from fastledger.state.entity import Entity, EntityTable
from fastledger.state.kind import Kind
from fastledger.state.subject import Subject
from fastledger.state.view import Refusal
from fastledger.subjects.identity import actor


class Lamp(Entity, frozen=True):
    """A lamp."""

    keeper: Identity16
    level: UInt32


class Light(Body, frozen=True):
    """Lights a lamp."""

    lamp: Id16
    levels: Annotated[list[UInt32], Meta(max_length=4)]


@pytest.fixture
def lamps() -> Iterator[Subject]:
    subject = Subject("lamp", number=200, summary="Lamps")
    yield subject
    subject.withdraw()


Rule = Callable[[Context, Any, EntityTable[Lamp]], None]


def kind_with(subject: Subject, rule: Rule, body: type[Body] = Light) -> Kind:
    table = subject.table(1, "lamp", Lamp)

    def run(ctx: Context, body: Body) -> None:
        """Judges."""
        rule(ctx, body, table)

    run.__annotations__["body"] = body
    subject.rule("light")(run)
    return subject.kinds[0]


def sound(ctx: Context, body: Light, table: EntityTable[Lamp]) -> None:
    """Makes no mistake, though it writes before it refuses: the engine takes that back."""
    actor_id, _ = actor(ctx)
    ctx.view.store(table, body.lamp, Lamp(actor_id, len(body.levels)))
    if not body.levels:
        raise Refusal(table_refusal)


table_refusal: Any = None


def strange(ctx: Context, body: Light, table: EntityTable[Lamp]) -> None:
    ctx.view.store(table, body.lamp, Lamp(bytes(16), 1))


def changing(ctx: Context, body: Light, table: EntityTable[Lamp]) -> None:
    actor(ctx)
    body.levels.append(1)


def negative(ctx: Context, body: Light, table: EntityTable[Lamp]) -> None:
    actor_id, _ = actor(ctx)
    ctx.view.store(table, body.lamp, Lamp(actor_id, -1))


def cut_key(ctx: Context, body: Light, table: EntityTable[Lamp]) -> None:
    actor_id, _ = actor(ctx)
    ctx.view.store(table, body.lamp[:8], Lamp(actor_id, 1))


def forgetful(ctx: Context, body: Light, table: EntityTable[Lamp]) -> None:
    actor_id, _ = actor(ctx)
    remembered.append(actor_id)
    ctx.view.store(table, body.lamp, Lamp(actor_id, len(remembered)))


remembered: list[bytes] = []


def test_a_sound_rule_passes(lamps: Subject, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(globals(), "table_refusal", lamps.refusal(1, "too-dark", "it is too dark"))
    check_what_a_rule_says_and_leaves(kind_with(lamps, sound))


@pytest.mark.parametrize("rule", [strange, changing, negative, cut_key, forgetful], ids=lambda rule: rule.__name__)
def test_a_rule_that_is_not(lamps: Subject, rule: Rule) -> None:
    kind = kind_with(lamps, rule)
    with pytest.raises((AssertionError, ExceptionGroup, ValueError)):
        check_what_a_rule_says_and_leaves(kind)


class Text(Body, frozen=True):
    """Holds a text."""

    note: Annotated[str, Meta(max_length=10)]


class Endless(Body, frozen=True):
    """Holds a list without end."""

    lamps: list[Id16]


class Bulky(Body, frozen=True):
    """Is longer than a transaction may be."""

    lamps: Annotated[list[Id16], Meta(max_length=4096)]


class Unbounded(Body, frozen=True):
    """Holds a number without a bound."""

    level: int


@pytest.mark.parametrize("body", [Text, Endless, Bulky, Unbounded], ids=lambda body: body.__name__)
def test_a_body_that_could_hold_anything(lamps: Subject, body: type[Body]) -> None:
    kind = kind_with(lamps, sound, body)
    with pytest.raises(AssertionError):
        check_a_body_holds_no_texts_and_fits_a_transaction(kind)


class Lax(Body, frozen=True, forbid_unknown_fields=False):
    """Takes what it does not know."""

    lamp: Id16


class Wordy(Body, frozen=True, omit_defaults=False):
    """Writes defaults out."""

    lamp: Id16


class Renamed(Body, frozen=True, rename="camel"):
    """Calls its field otherwise outside."""

    the_lamp: Id16


class Tagged(Body, frozen=True, tag=True):
    """Carries its name."""

    lamp: Id16


@pytest.mark.parametrize("body", [Lax, Wordy, Renamed, Tagged], ids=lambda body: body.__name__)
def test_a_body_that_switches_something_off(lamps: Subject, body: type[Body]) -> None:
    kind = kind_with(lamps, sound, body)
    with pytest.raises(AssertionError):
        check_a_body_is_declared_as_all_are(kind)


def test_terms_of_a_table_that_nobody_declares(lamps: Subject) -> None:
    class Point(Body, frozen=True):
        """Names what there is not."""

        lamp: Annotated[bytes, Meta(min_length=16, max_length=16, extra={"term": b"\xff\xff"})]

    kind = kind_with(lamps, sound, Point)
    with pytest.raises(AssertionError):
        check_terms_and_hints_name_tables_that_there_are(kind)


class Dim(Entity, frozen=True):
    """Has a default."""

    keeper: Identity16
    level: UInt32 = 0


def test_tables_that_get_in_the_way(lamps: Subject) -> None:
    for number, name in enumerate(("signed_by", "block", "transaction", "Lamp"), 1):
        table = lamps.table(number, name, Lamp)
        with pytest.raises(AssertionError):
            check_a_table_s_name_is_free_everywhere(table)
    check_an_entity_has_one_encoding(lamps.table(10, "lamp", Lamp))
    with pytest.raises(AssertionError):
        check_an_entity_has_one_encoding(lamps.table(11, "dim", Dim))

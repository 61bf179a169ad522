"""Declaring subjects, rule sets by number, and kinds that are not in force."""

from collections.abc import Iterator
from typing import Annotated

import msgspec
import pytest

from fastledger.errors import Code, InputError
from fastledger.model.body import Body, parse_body
from fastledger.model.fields import Identity16
from fastledger.state.context import Context
from fastledger.state.entity import Entity
from fastledger.state.registry import NotInForce, Registry
from fastledger.state.subject import Subject
from fastledger.state.transition import apply
from fastledger.state.view import Refusal, View


class Lamp(Entity, frozen=True):
    """A lamp."""

    keeper: Identity16
    lit: bool


class LampLight(Body, frozen=True):
    """Lights a lamp."""

    keeper: Identity16


class LampDim(Body, frozen=True):
    """Dims a lamp."""

    keeper: Identity16


@pytest.fixture
def registry() -> Registry:
    return Registry()


@pytest.fixture
def lamps(registry: Registry) -> Iterator[Subject]:
    subject = Subject("lamp", number=200, summary="Lamps", registry=registry)
    yield subject
    subject.withdraw()


def ran(registry: Registry, number: int, body: object) -> tuple[Code, dict[bytes, bytes | None]]:
    context = Context(View(lambda _key: None), chain_id=bytes(8), height=1, time_ms=1)
    return apply(context, registry.rules(number), b"\2" + bytes(32), body), context.view.writes


def test_numbers_and_names_are_taken_once(registry: Registry, lamps: Subject) -> None:  # SPEC-RULE-1
    for name, number in (("other", 200), ("lamp", 201), ("other", 9), ("other", 256)):
        with pytest.raises(ValueError, match="number"):
            Subject(name, number=number, summary="", registry=registry)
    lamps.table(1, "lamp", Lamp)
    for number, name in ((1, "second"), (2, "lamp"), (0, "third"), (256, "fourth")):
        with pytest.raises(ValueError, match="table"):
            lamps.table(number, name, Lamp)
    dark = lamps.refusal(1, "too-dark", "it is too dark")
    assert (int(dark), dark.is_refusal, Code.named("too-dark") is dark) == (20_001, True, True)
    for number, slug in ((1, "darker"), (2, "too-dark"), (0, "dusk"), (100, "night")):
        with pytest.raises(ValueError, match=r"taken|number"):
            lamps.refusal(number, slug, "")


def test_a_rule_set_has_the_newest_rule_up_to_its_number(registry: Registry, lamps: Subject) -> None:
    # SPEC-RULE-2
    table = lamps.table(1, "lamp", Lamp)

    @lamps.rule("light")
    def light(ctx: Context, body: LampLight) -> None:
        ctx.view.store(table, bytes(16), Lamp(body.keeper, True))

    @lamps.rule("light", since=3)
    def light_later(ctx: Context, body: LampLight) -> None:
        ctx.view.store(table, bytes(16), Lamp(body.keeper, False))

    @lamps.rule("dim", since=2)
    def dim(ctx: Context, body: LampDim) -> None:
        raise Refusal(Code.KIND_NOT_IN_FORCE)

    assert registry.newest_rule_set == 3
    assert [sorted(registry.rules(number).by_name) for number in (1, 2, 3)] == [
        ["lamp.light"],
        ["lamp.dim", "lamp.light"],
        ["lamp.dim", "lamp.light"],
    ]
    lit = [table.decode(next(iter(ran(registry, number, LampLight(bytes(16)))[1].values()))) for number in (2, 3)]
    assert [lamp.lit for lamp in lit] == [True, False]
    for number in (0, 4):
        with pytest.raises(ValueError, match="knows no rule set"):
            registry.rules(number)
    with pytest.raises(ValueError, match="two rules"):
        lamps.rule("dim", since=2)(dim)


def test_a_kind_that_is_not_in_force_is_refused_and_no_fault_of_a_block(
    registry: Registry, lamps: Subject
) -> None:  # SPEC-RULE-4
    @lamps.rule("light")
    def light(ctx: Context, body: LampLight) -> None: ...

    @lamps.rule("dim", since=2)
    def dim(ctx: Context, body: LampDim) -> None: ...

    body = LampDim(bytes(16))
    encoded = msgspec.msgpack.encode(body)
    assert registry.rules(2).decode_body("lamp.dim", encoded) == body
    with pytest.raises(InputError) as caught:
        registry.rules(1).decode_body("lamp.dim", encoded)
    assert caught.value.code is Code.UNKNOWN_KIND
    stands = registry.rules(1).decode_in_block("lamp.dim", encoded)
    assert stands == NotInForce("lamp.dim")
    assert registry.rules(2).decode_in_block("lamp.dim", encoded) == body
    # Whether a release knows the kind makes no difference.
    for held in (stands, body, registry.rules(1).decode_in_block("lamp.unheard_of", b"")):
        assert ran(registry, 1, held) == (Code.KIND_NOT_IN_FORCE, {})
    assert ran(registry, 2, body) == (Code.OK, {})


def test_terms_and_hints_follow_from_the_types(registry: Registry, lamps: Subject) -> None:  # SPEC-RULE-3
    table = lamps.table(1, "lamp", Lamp)

    class LampMove(Body, frozen=True):
        """Moves a lamp."""

        lamp: Annotated[bytes, table.key]
        keeper: Identity16
        others: list[Annotated[bytes, table.key]]
        pairs: list[tuple[int, Annotated[bytes, table.key]]]

    globals()["LampMove"] = LampMove

    @lamps.rule("move")
    def move(ctx: Context, body: "LampMove") -> None: ...

    ids = [bytes([number]) * 16 for number in range(5)]
    body = LampMove(ids[0], ids[1], [ids[2]], [(7, ids[3]), (8, ids[4])])
    context = Context(View(lambda _key: None), chain_id=bytes(8), height=1, time_ms=1)
    rules = registry.rules(1)
    apply(context, rules, bytes(33), body)
    found = [context.terms.terms[at : at + 18] for at in range(0, len(context.terms.terms), 18)]
    assert found[1:] == [
        table.term + ids[0],
        b"\x00\x02" + ids[1],
        *(table.term + each for each in ids[2:]),
    ]
    assert rules.keys_read([body]) == [table.prefix + ids[0]]


def test_a_subject_that_is_withdrawn_leaves_nothing(registry: Registry) -> None:
    subject = Subject("lamp", number=200, summary="Lamps", registry=registry)
    subject.table(1, "lamp", Lamp)
    subject.refusal(1, "too-dark", "it is too dark")

    @subject.rule("light")
    def light(ctx: Context, body: LampLight) -> None: ...

    assert parse_body("lamp.light", {"keeper": bytes(16)}) == LampLight(bytes(16))
    subject.withdraw()
    assert (registry.subjects, dict(registry.tables), dict(registry.kinds)) == ((), {}, {})
    with pytest.raises(ValueError, match="no code"):
        Code.named("too-dark")
    with pytest.raises(InputError):
        parse_body("lamp.light", {"keeper": bytes(16)})

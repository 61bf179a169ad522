"""What every subject has to meet, tested from its declaration alone: a new one passes without writing a test."""

from typing import Any

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from strategies import body_of, of_type, struct_of

from fastledger.errors import Code, InputError
from fastledger.model.body import Body, body_map, kind_of, parse_body
from fastledger.model.codec import decode, encode
from fastledger.model.shape import fields_of
from fastledger.model.terms import TERM_BYTES
from fastledger.model.transaction import Transaction
from fastledger.state.context import Context
from fastledger.state.entity import EntityTable
from fastledger.state.kind import Kind
from fastledger.state.transition import apply
from fastledger.state.view import View
from fastledger.state.views import view_of
from fastledger.subjects.catalogue import REGISTRY

KINDS = list(REGISTRY.kinds.values())
TABLES = list(REGISTRY.tables.values())
RULES = REGISTRY.rules(REGISTRY.newest_rule_set)
QUICK = settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow])

each_kind = pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
each_table = pytest.mark.parametrize("table", TABLES, ids=lambda table: table.name)


def drawn(strategy: st.SearchStrategy[Any]) -> Any:
    """One value: enough where the shape is what counts."""
    found: list[Any] = []

    @settings(max_examples=1, database=None, derandomize=True)
    @given(strategy)
    def draw(value: Any) -> None:
        found.append(value)

    draw()
    return found[0]


def test_numbers_and_names_belong_to_one_subject() -> None:  # SPEC-RULE-1
    for subject in REGISTRY.subjects:
        assert 10 <= subject.number <= 255
        assert all(kind.name.partition(".")[0] == subject.name for kind in subject.kinds)
        assert all(table.prefix[0] == subject.number for table in subject.tables.values())
        for code in subject.refusals:
            assert code.is_refusal
            assert int(code) // 100 == subject.number
            assert code.text
    prefixes = [table.prefix for table in TABLES]
    assert len(set(prefixes)) == len(prefixes)
    codes = [code for subject in REGISTRY.subjects for code in subject.refusals]
    engine = {Code.KIND_NOT_IN_FORCE}
    assert {code for code in Code.all() if code.is_refusal} == {*codes, *engine}


@each_kind
def test_a_body_goes_round_and_says_what_it_is(kind: Kind) -> None:  # SPEC-BODY-1
    @QUICK
    @given(body_of(kind.name))
    def check(body: Body) -> None:
        assert kind_of(type(body)) == kind.name
        value = decode(encode(body_map(body)))
        assert parse_body(kind.name, value) == body
        assert RULES.decode_body(kind.name, msgspec.msgpack.encode(value)) == body

    check()


@each_kind
def test_a_body_that_does_not_fit_is_refused_without_a_word_of_it(kind: Kind) -> None:  # SPEC-BODY-1, SPEC-PRIV-2
    value = body_map(drawn(body_of(kind.name)))
    wrong: list[dict[str, Any]] = [{**value, "zebra": 1}]
    for field in fields_of(kind.body):
        wrong.append({**value, field.name: 1.5})
        if field.required:
            wrong.append({name: item for name, item in value.items() if name != field.name})
        size = field.shape.fixed_bytes
        if size is not None:
            wrong += [{**value, field.name: bytes(size - 1)}, {**value, field.name: bytes(size + 1)}]
    for bad in wrong:
        with pytest.raises(InputError) as caught:
            parse_body(kind.name, bad)
        assert (caught.value.code, "zebra" in str(caught.value)) == (Code.BAD_BODY, False)
        with pytest.raises(InputError) as caught:
            RULES.decode_body(kind.name, msgspec.msgpack.encode(bad))
        assert caught.value.code is Code.BAD_BODY


def judged(kind: Kind, body: Body, order: Any = lambda items: items) -> tuple[Code, bytes, dict[bytes, Any]]:
    """What an empty chain says of a body: its code, terms and writes."""
    state: dict[bytes, bytes] = {}
    context = Context(View(lambda key: state.get(key)), chain_id=bytes(8), height=1, time_ms=1_000)
    code = apply(context, RULES, b"\2" + bytes(32), body)
    return code, context.terms.terms, context.view.writes


@each_kind
def test_a_stranger_changes_nothing_and_the_verdict_is_the_same_twice(kind: Kind) -> None:
    # SPEC-STATE-1, SPEC-STATE-4, SPEC-RULE-3
    @QUICK
    @given(body_of(kind.name))
    def check(body: Body) -> None:
        first = judged(kind, body)
        assert first == judged(kind, body)
        code, terms, writes = first
        found = {terms[at : at + TERM_BYTES] for at in range(0, len(terms), TERM_BYTES)}
        assert b"\x00\x03" + kind.term_name in found
        for table, get, many in kind.terms:
            assert {table + name for name in (get(body) if many else [get(body)])} <= found
        if code:
            assert not writes
            assert code.is_refusal

    check()


@each_kind
def test_a_kind_is_described(kind: Kind) -> None:
    assert kind.summary
    assert kind.rule.__doc__
    assert len(kind.name) <= 32


@each_table
def test_an_entity_goes_round_in_state_and_in_json(table: EntityTable[Any]) -> None:  # SPEC-STATE-3, SPEC-RPC-13
    view = view_of(table)
    keys = st.tuples(*(of_type(part.type) for part in table.parts))

    @QUICK
    @given(keys, struct_of(table.entity))
    def check(key: Any, entity: Any) -> None:
        packed = table.pack(*key)
        assert table.unpack(packed) == key
        assert table.decode(msgspec.msgpack.encode(entity)) == entity
        text = msgspec.json.encode(view.show(key, entity))
        assert view.parse(msgspec.json.decode(text, type=view.type)) == (key, entity)
        params = msgspec.convert(view.show_key(key), view.params)
        assert view.parse_key(params) == key

    check()


@each_table
def test_what_is_no_key_is_a_bad_query(table: EntityTable[Any]) -> None:
    for key in ((), (b"",) * len(table.parts), (None,) * len(table.parts), (-1,) * len(table.parts)):
        with pytest.raises(InputError) as caught:
            table.checked(*key)  # type: ignore[arg-type]
        assert caught.value.code is Code.BAD_QUERY


def test_a_transaction_of_every_kind_is_signed_and_read() -> None:
    from fastledger.crypto.signing import SigningKey

    key = SigningKey.generate()
    for kind in KINDS:
        body = drawn(body_of(kind.name))
        made = Transaction.sign(key, chain_id=bytes(8), body=body, issued_ms=1, expires_ms=2, nonce=3)
        assert Transaction.decode(made.encoded).body == body

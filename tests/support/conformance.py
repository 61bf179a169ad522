"""What every subject has to meet, as checks of one subject, kind or table that read its declaration and nothing else.

``tests/subjects/test_conformance.py`` runs them over the subjects of this release. Who writes a subject elsewhere runs
:func:`check_subject` over it.
"""

import json
import re
from collections.abc import Callable, Iterator
from dataclasses import fields
from typing import Any

import msgspec
import pytest
from click.testing import CliRunner
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from jsonschema import Draft202012Validator
from msgspec import inspect
from rules import State
from strategies import body_of, of_type, struct_of
from world import World

from fastledger.cli.derived.fields import flag_of
from fastledger.cli.derived.pages import subjects_page
from fastledger.cli.main import main
from fastledger.errors import Code, InputError
from fastledger.limits import TRANSACTION_BYTES_MAX
from fastledger.model.body import Body, body_map, kind_of, parse_body
from fastledger.model.codec import decode, encode
from fastledger.model.fields import ID_BYTES, RELEASE_PATTERN
from fastledger.model.query import Query
from fastledger.model.shape import Shape, fields_of
from fastledger.model.terms import CODE, KIND, SIGNER, SUBJECT, TERM_BYTES, TOKEN
from fastledger.rpc.chain import CHAIN_METHODS
from fastledger.rpc.describe import openrpc
from fastledger.rpc.federation import federation_methods
from fastledger.rpc.transactions import TRANSACTION_METHODS
from fastledger.state.context import Context
from fastledger.state.entity import EntityTable
from fastledger.state.kind import Kind
from fastledger.state.registry import Declaration
from fastledger.state.transition import apply
from fastledger.state.view import View
from fastledger.state.views import struct_form, view_of
from fastledger.subjects.catalogue import REGISTRY
from fastledger.subjects.identity import KEYS
from fastledger.wallet.builders import BUILDERS

QUICK = settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow])
ENGINE_TERMS = (SIGNER, SUBJECT, KIND, TOKEN, CODE)
# What a transaction has around its body.
FRAME_BYTES = 512


def rules() -> Any:
    """The newest rule set, with whatever subjects there are now."""
    return REGISTRY.rules(REGISTRY.newest_rule_set)


def drawn(strategy: st.SearchStrategy[Any]) -> Any:
    """One value: enough where the shape is what counts."""
    return sample(strategy, 1)[0]


def sample(strategy: st.SearchStrategy[Any], count: int) -> list[Any]:
    """Some values, the same ones in every run."""
    found: list[Any] = []

    @settings(max_examples=count, database=None, derandomize=True, deadline=None)
    @given(strategy)
    def draw(value: Any) -> None:
        found.append(value)

    draw()
    return found


# Subjects.


def check_numbers_and_names_belong_to_the_subject(subject: Declaration) -> None:  # SPEC-RULE-1
    assert 10 <= subject.number <= 255
    assert re.fullmatch(r"[a-z][a-z0-9]*", subject.name)
    assert subject.summary
    assert all(kind.name.partition(".")[0] == subject.name for kind in subject.kinds)
    assert all(table.prefix[0] == subject.number for table in subject.tables.values())
    for code in subject.refusals:
        assert code.is_refusal
        assert int(code) // 100 == subject.number
        assert re.fullmatch(r"[a-z]+(-[a-z0-9]+)*", code.slug)
        assert code.text


def check_the_subject_is_documented(subject: Declaration) -> None:
    page = subjects_page()
    assert f"| {subject.number} | [{subject.name}](#{subject.name}) |" in page
    for code in subject.refusals:
        assert f"| {int(code)} | `{code.slug}` |" in page


# Kinds.


def check_a_body_goes_round_and_says_what_it_is(kind: Kind) -> None:  # SPEC-BODY-1
    form = struct_form(kind.body)

    @QUICK
    @given(body_of(kind.name))
    def check(body: Body) -> None:
        assert kind_of(type(body)) == kind.name
        value = decode(encode(body_map(body)))
        assert parse_body(kind.name, value) == body
        assert rules().decode_body(kind.name, msgspec.msgpack.encode(value)) == body
        text = msgspec.json.encode(form.show(body))
        assert form.parse(msgspec.json.decode(text, type=form.type)) == body

    check()


def misfits(kind: Kind) -> Iterator[dict[str, Any]]:
    """Bodies that do not fit: each wrong in one field."""
    value = body_map(drawn(body_of(kind.name)))
    yield {**value, "zebra": 1}
    for field in fields_of(kind.body):
        yield {**value, field.name: 1.5}
        if field.required:
            yield {name: item for name, item in value.items() if name != field.name}
        for bad in out_of_bounds(field.shape):
            yield {**value, field.name: bad}


def out_of_bounds(shape: Shape) -> Iterator[Any]:
    """Values of the right type, just outside of its bounds."""
    found = shape.type
    if isinstance(found, inspect.BytesType):
        yield from (bytes(size) for size in ((found.min_length or 0) - 1, found.max_length + 1) if size >= 0)
    elif isinstance(found, inspect.IntType):
        yield -1
        if found.le is not None:
            yield found.le + 1
    elif isinstance(found, inspect.ListType) and shape.item is not None:
        items = sample(of_shape(shape.item), 1)
        yield items * (found.max_length + 1)
        if found.min_length:
            yield []


def of_shape(shape: Shape) -> st.SearchStrategy[Any]:
    """Encodable values near enough to a type for a list of them to be too long."""
    found = shape.type
    if isinstance(found, inspect.BytesType):
        return st.just(bytes(found.min_length or 0))
    if isinstance(found, inspect.EnumType):
        return st.just(next(iter(found.cls)).value)
    if shape.members:
        return st.tuples(*map(of_shape, shape.members)).map(list)
    return st.just(getattr(found, "ge", None) or 0)


def check_a_body_that_does_not_fit_is_refused_without_a_word_of_it(kind: Kind) -> None:  # SPEC-BODY-1, SPEC-PRIV-2
    for bad in misfits(kind):
        with pytest.raises(InputError) as caught:
            parse_body(kind.name, bad)
        assert (caught.value.code, "zebra" in str(caught.value)) == (Code.BAD_BODY, False)
        with pytest.raises(InputError) as caught:
            rules().decode_body(kind.name, msgspec.msgpack.encode(bad))
        assert caught.value.code is Code.BAD_BODY


def check_a_body_is_declared_as_all_are(kind: Kind) -> None:  # SPEC-BODY-1
    """What a subclass could switch off again, so that a signed field means nothing, or two bytes the same."""
    config = kind.body.__struct_config__
    assert config.frozen
    assert config.forbid_unknown_fields
    assert config.omit_defaults
    assert not config.array_like
    assert config.tag is None
    assert kind.body.__struct_encode_fields__ == kind.body.__struct_fields__
    for field in fields_of(kind.body):
        assert re.fullmatch(r"[a-z][a-z0-9_]*", field.name)


def check_a_body_holds_no_texts_and_fits_a_transaction(kind: Kind) -> None:  # SPEC-PRIV-1
    size = sum(len(field.name) + 3 + size_max(field.shape, kind.name) for field in fields_of(kind.body))
    assert size + FRAME_BYTES <= TRANSACTION_BYTES_MAX


def size_max(shape: Shape, where: str) -> int:
    """How many bytes of CBOR a value takes at most; fails for a type that is unbounded or could hold a text."""
    found = shape.type
    if isinstance(found, inspect.BytesType):
        assert found.max_length is not None, f"{where}: bytes without a bound"
        return found.max_length + 5
    if isinstance(found, inspect.IntType):
        assert found.le is not None, f"{where}: a number without a bound"
        return 9
    if isinstance(found, inspect.BoolType):
        return 1
    if isinstance(found, inspect.StrType):
        assert found.pattern == RELEASE_PATTERN and found.max_length is not None, f"{where}: a text"
        return found.max_length + 3
    if isinstance(found, inspect.EnumType):
        return max(len(str(member.value)) for member in found.cls) + 3
    if isinstance(found, inspect.ListType) and shape.item is not None:
        assert found.max_length is not None, f"{where}: a list without a bound"
        return found.max_length * size_max(shape.item, where) + 5
    assert shape.members, f"{where}: {type(found).__name__} may not stand in a body"
    return sum(size_max(member, where) for member in shape.members) + 3


def check_terms_and_hints_name_tables_that_there_are(kind: Kind) -> None:  # SPEC-RULE-3
    tables = {table.prefix: table for table in REGISTRY.tables.values()}
    terms = {*ENGINE_TERMS, *(table.term for table in tables.values())}
    assert {source.table for source in (*kind.terms, *kind.late_terms)} <= terms
    for body in sample(body_of(kind.name), 3):
        for key in rules().keys_read([body]):
            assert tables[key[:2]].pack(*tables[key[:2]].unpack(key[2:])) == key[2:]
    if kind.envelope is not None:
        assert len(kind.envelope(drawn(body_of(kind.name)))) == 32


def check_a_kind_is_described(kind: Kind) -> None:
    assert kind.summary
    assert kind.rule.__doc__
    assert re.fullmatch(r"[a-z0-9]+\.[a-z][a-z0-9-]*", kind.name)
    assert len(kind.name) <= 32
    assert f"### `{kind.name}`\n" in subjects_page()
    components = json.loads(openrpc([], REGISTRY.kinds.values()))["components"]["schemas"]
    (schema,) = [schema for schema in components.values() if schema.get("x-kind") == kind.name]
    assert list(schema["properties"]) == list(kind.body.__struct_fields__)
    assert schema["additionalProperties"] is False
    validator = Draft202012Validator({**schema, "components": {"schemas": components}})
    for body in sample(body_of(kind.name), 3):
        validator.validate(json.loads(msgspec.json.encode(struct_form(kind.body).show(body))))


def check_a_kind_has_a_command(kind: Kind) -> None:
    told = help_of("tx", *kind.name.split("."))
    if kind.body not in BUILDERS:  # else the options are the wallet's method's
        for field in fields_of(kind.body):
            assert re.search(rf"--([a-z]+-)?{flag_of(field.name).removeprefix('--')}\b", told), field.name


def help_of(*command: str) -> str:
    """What a command says of itself."""
    result = CliRunner().invoke(main, [*command, "--help"])
    assert result.exit_code == 0, result.output
    return result.output


# Rules.


class Judge:
    """A state with somebody of every sort in it, and a fresh look at it for every transaction."""

    def __init__(self) -> None:
        self.state = State()
        patient, hospital = self.state.patient(), self.state.organisation()
        folder = self.state.folder(patient)
        self.state.consent(patient, hospital, folder)
        self.state.record(patient, folder)
        self.signers = (self.state.stranger(), self.state.regulator, patient, hospital)
        self.known: dict[bytes, list[bytes]] = {}
        for key in sorted(self.state.view.writes):
            self.known.setdefault(key[:2], []).append(key[2:])

    def judge(self, kind: Kind, signer: int, body: Body) -> tuple[Code, bytes, dict[bytes, bytes | None]]:
        """A body's code, terms and writes."""
        stands = dict(self.state.view.writes)
        context = Context(View(stands.get), chain_id=bytes(8), height=9, time_ms=self.state.now_ms)
        before = msgspec.msgpack.encode(body)
        code = apply(context, rules(), self.signers[signer].key, body)
        assert msgspec.msgpack.encode(body) == before, f"{kind.name}: the rule changed the body"
        return code, context.terms.terms, dict(context.view.writes)

    def signed_bodies(self, kind: Kind) -> st.SearchStrategy[tuple[int, Body]]:
        """Pairs of a signer and a body, whose ids are often those of what stands."""
        return st.tuples(st.sampled_from(range(len(self.signers))), struct_of(kind.body, self.known))


def check_what_a_rule_says_and_leaves(kind: Kind) -> None:  # SPEC-STATE-1, SPEC-STATE-3, SPEC-STATE-4, SPEC-RULE-3
    judge = Judge()
    tables = {table.prefix: table for table in REGISTRY.tables.values()}

    @settings(QUICK, max_examples=100)
    @given(judge.signed_bodies(kind))
    def check(signed: tuple[int, Body]) -> None:
        signer, body = signed
        first = judge.judge(kind, signer, body)
        assert first == judge.judge(kind, signer, body)
        code, terms, writes = first
        found = {terms[at : at + TERM_BYTES] for at in range(0, len(terms), TERM_BYTES)}
        assert KIND + kind.term_name in found
        for table, get, many in kind.terms:
            names = get(body) if many else [get(body)]
            assert {table + name for name in names if name is not None} <= found
        if code:
            assert not writes
            assert code.is_refusal
        for key, value in writes.items():
            table = tables[key[:2]]
            assert table.pack(*table.unpack(key[2:])) == key[2:]
            if value is not None:
                assert msgspec.msgpack.encode(table.decode(value)) == value, f"{kind.name} wrote no {table.name}"
        if signer == 0 and not code:
            known = KEYS.prefix + judge.signers[0].key
            assert known in writes, f"{kind.name}: a key that nobody knows may sign it"

    check()


def check_a_transaction_is_found_by_what_it_names(kind: Kind, world: World) -> None:  # SPEC-RULE-3, SPEC-QRY-1
    """In a real ledger, which takes envelopes unseen: by kind, and by each id of the body, though it was refused."""
    by_term = {table.term: table.name for table in REGISTRY.tables.values() if table.is_indexed}
    for body in sample(body_of(kind.name), 4):
        transaction = world.patient.sign(body)
        (outcome,) = world.ledger.submit([transaction])
        assert outcome.height is not None, f"{kind.name} is rejected: {outcome.code.slug}"
        queries = [Query(kind=kind.name, newest_first=True)]
        for table, get, many in kind.terms:
            names = get(body) if many else [get(body)]
            for name in names:
                by = {"subject": name} if table == SUBJECT else {"ids": {by_term[table]: name}}
                queries.append(Query(**by, newest_first=True))
        if outcome.code:
            queries.append(Query(code=outcome.code, newest_first=True))
        for query in queries:
            assert transaction.txid in [entry.txid for entry in world.ledger.query(query)], query


# Tables.


def check_an_entity_goes_round_in_state_and_in_json(table: EntityTable[Any]) -> None:  # SPEC-STATE-3, SPEC-RPC-13
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


def check_an_entity_has_one_encoding(table: EntityTable[Any]) -> None:  # SPEC-STATE-2, SPEC-STATE-3
    """A default would let a shorter array mean the same state, whose root is another."""
    config = table.entity.__struct_config__
    assert config.frozen
    assert config.array_like
    assert config.tag is None
    assert not config.omit_defaults
    assert all(field.required for field in fields_of(table.entity))
    whole = msgspec.msgpack.decode(msgspec.msgpack.encode(drawn(struct_of(table.entity))))
    with pytest.raises(msgspec.ValidationError):
        table.decode(msgspec.msgpack.encode(whole[:-1]))


def check_what_is_no_key_is_a_bad_query(table: EntityTable[Any]) -> None:
    for key in ((), (b"",) * len(table.parts), (None,) * len(table.parts), (-1,) * len(table.parts)):
        with pytest.raises(InputError) as caught:
            table.checked(*key)
        assert caught.value.code is Code.BAD_QUERY


def check_a_table_s_name_is_free_everywhere(table: EntityTable[Any]) -> None:
    """Its name is a keyword of queries, the namespace of two methods, a command and a heading."""
    assert re.fullmatch(r"[a-z][a-z0-9_]*", table.name)
    if table.is_indexed:
        assert table.name not in {each.name for each in fields(Query)}, "Query(...) has a condition of that name"
        assert table.parts[0].size_bytes == ID_BYTES
    methods = (*CHAIN_METHODS, *TRANSACTION_METHODS, *federation_methods(None))
    assert table.name not in {method.name.partition(".")[0] for method in methods}
    assert f"### Table `{table.name}`\n" in subjects_page()
    assert table.summary
    assert ("--by FIELD=ID" in help_of("show", table.name)) == (table.is_indexed and bool(table.listed_by))


SUBJECT_CHECKS: tuple[Callable[[Declaration], None], ...] = (
    check_numbers_and_names_belong_to_the_subject,
    check_the_subject_is_documented,
)
KIND_CHECKS: tuple[Callable[[Kind], None], ...] = (
    check_a_body_goes_round_and_says_what_it_is,
    check_a_body_that_does_not_fit_is_refused_without_a_word_of_it,
    check_a_body_is_declared_as_all_are,
    check_a_body_holds_no_texts_and_fits_a_transaction,
    check_terms_and_hints_name_tables_that_there_are,
    check_a_kind_is_described,
    check_a_kind_has_a_command,
    check_what_a_rule_says_and_leaves,
)
TABLE_CHECKS: tuple[Callable[[EntityTable[Any]], None], ...] = (
    check_an_entity_goes_round_in_state_and_in_json,
    check_an_entity_has_one_encoding,
    check_what_is_no_key_is_a_bad_query,
    check_a_table_s_name_is_free_everywhere,
)


def check_subject(subject: Declaration, world: World) -> None:
    """Every check of a subject that is declared now."""
    for check in SUBJECT_CHECKS:
        check(subject)
    for kind in subject.kinds:
        for check_kind in KIND_CHECKS:
            check_kind(kind)
        check_a_transaction_is_found_by_what_it_names(kind, world)
    for table in subject.tables.values():
        for check_table in TABLE_CHECKS:
            check_table(table)

"""Kinds of transactions are listed once, by the subjects that declare them (docs/decisions.md, D702)."""

from pathlib import Path

import pytest
from kind_lists import Kinds, imported_bodies, second_lists, second_lists_of_native
from source_graph import PACKAGE, ROOT, Source, read_sources

from fastledger.subjects.catalogue import REGISTRY

# A demonstration plays a story, in which kinds occur. It decides nothing by them.
STORIES = f"{PACKAGE}/cli/demo/"
# Builders that carry keys live with the wallet; what it takes keys out of, it has to tell apart.
BUILDERS = f"{PACKAGE}.wallet.wallet"
CARRIES_KEYS = "consent.grant, consent.rekey in one "

KINDS = Kinds(
    {name: kind.body.__module__ for name, kind in REGISTRY.kinds.items()},
    {kind.body.__name__: name for name, kind in REGISTRY.kinds.items()},
)
SOURCES = read_sources()
NATIVE = sorted((ROOT / "native").rglob("*.[ch]"))


def test_the_registry_has_kinds() -> None:
    assert len(KINDS.modules) == len(KINDS.bodies) >= 13


@pytest.mark.parametrize("source", SOURCES, ids=lambda source: source.path)
def test_no_file_has_a_second_list_of_kinds(source: Source) -> None:
    if source.suffix != ".py":
        assert list(second_lists_of_native(source.text, KINDS)) == []
        return
    found = [item.partition(": ")[2] for item in second_lists(source.text, source.module, KINDS)]
    if source.module == BUILDERS:
        assert all(item.startswith(CARRIES_KEYS) for item in found)
    elif source.path.startswith(STORIES):
        assert all(item.startswith("names ") for item in found)
    else:
        assert found == []
        assert len(imported_bodies(source.text, source.module, KINDS)) <= 2


@pytest.mark.parametrize("path", NATIVE, ids=lambda path: str(path.relative_to(ROOT)))
def test_native_code_knows_no_kinds(path: Path) -> None:
    assert list(second_lists_of_native(path.read_text(), KINDS)) == []


PLANTED = {
    "tuple": 'ALERTS = ("identity.revoke", "record.erase")',
    "set": 'ALERTS = {"identity.revoke", "record.erase"}',
    "list-of-bodies": "ABOUT = [RecordPut, RecordAmend]",
    "dict-of-names": 'RULES = {"record.put": put, "consent.grant": grant}',
    "dict-of-bodies": "RULES = {RecordPut: put, ConsentGrant: grant}",
    "dict-of-values": 'RULES = {1: "record.put", 2: "consent.grant"}',
    "pairs": 'RULES = [("record.put", put), ("consent.grant", grant)]',
    "union": "ABOUT = RecordPut | RecordAmend | AccessRead",
    "isinstance": "isinstance(body, (RecordPut, RecordAmend))",
    "isinstance-of-a-module": "isinstance(body, (record.RecordPut, record.RecordAmend))",
    "either": 'x = kind == "record.put" or kind == "record.amend"\ny = kind == "access.read"',
    "call": 'register("record.put", "consent.grant")',
    "keywords": "register(put=RecordPut, amend=RecordAmend)",
    "text": 'KINDS = "record.put consent.grant".split()',
    "match": 'match kind:\n    case "record.put":\n        pass\n    case "record.amend":\n        pass',
    "match-bodies": "match body:\n    case RecordPut():\n        pass\n    case RecordAmend():\n        pass",
    "ifs": 'if k == "record.put":\n    pass\nif k == "record.amend":\n    pass\nif k == "access.read":\n    pass',
}
HARMLESS = {
    "one": 'ALERTS = ("record.erase",)\nELSE = RecordPut',
    "two-apart": 'query(kind="record.put")\nquery(kind="access.read")',
    "documentation": '"""Finds record.put, record.amend and consent.grant."""',
    "a-part": 'x = ("record.putter", "a.record.put", "record")',
}


@pytest.mark.parametrize("text", PLANTED.values(), ids=PLANTED)
def test_a_second_list_is_found(text: str) -> None:
    assert list(second_lists(text, "fastledger.chain.planted", KINDS))
    home = KINDS.modules["record.put"]
    assert all("record.put" not in item for item in second_lists(text, home, KINDS))


@pytest.mark.parametrize("text", HARMLESS.values(), ids=HARMLESS)
def test_what_is_no_list_is_let_through(text: str) -> None:
    assert list(second_lists(text, "fastledger.chain.planted", KINDS)) == []


def test_a_kind_in_native_code_is_found() -> None:
    assert list(second_lists_of_native('if (memcmp(kind, "record.put", 10))', KINDS))
    assert imported_bodies("from fastledger.subjects.record import RecordPut", "x", KINDS) == {"record.put"}

"""What all nodes must agree on hangs on no clock, chance, float, address or set order; and the check of it sees all."""

from dataclasses import dataclass
from pathlib import Path

import pytest
from agreed_layers import ALLOWANCES, EXCEPTIONS, impurities
from rule_purity import check_text
from source_graph import PACKAGE, ROOT

FOUND = impurities()


@pytest.mark.parametrize("name", FOUND)
def test_what_nodes_agree_on_is_pure(name: str) -> None:  # SPEC-STATE-1, SPEC-ENG-1
    assert FOUND[name] == []


def test_every_exception_is_needed_and_excuses_no_more(monkeypatch: pytest.MonkeyPatch) -> None:
    excused = dict(EXCEPTIONS)
    monkeypatch.setattr("agreed_layers.EXCEPTIONS", {})
    bare = impurities()
    without_lines = {
        name: {item.partition(": ")[2] for item in found} for name, found in bare.items() if found
    }
    assert without_lines == excused


@dataclass(frozen=True)
class Plant:
    """A line that a rule must not have, the words that the finding has, and lines that it needs before it."""

    line: str
    words: str
    before: str = ""


RULE = "def rule(ctx, body):\n    {}\n"
PLANTED = [
    # Modules.
    Plant("import os", "module os is not on the list"),
    Plant("from os import urandom", "module os is not on the list"),
    Plant("import time", "module time is not on the list"),
    Plant("from datetime import datetime", "module datetime is not on the list"),
    Plant("import random", "module random is not on the list"),
    Plant("import secrets", "module secrets is not on the list"),
    Plant("import math", "module math is not on the list"),
    Plant("import sys", "module sys is not on the list"),
    Plant("import builtins", "module builtins is not on the list"),
    Plant("from importlib import import_module", "module importlib is not on the list"),
    Plant("from fastledger.chain.store import Store", "module fastledger.chain.store is not on the list"),
    Plant("from fastledger import Ledger", "module fastledger is not on the list"),
    Plant("from fastledger.model.ids import random_id", "random_id is not on the list"),
    Plant("from fastledger.crypto import SigningKey", "SigningKey is not on the list"),
    Plant("from . import identity", "relative import"),
    Plant("typing.sys.version", ".sys may be the interpreter", "import typing\n"),
    Plant("Genesis.create()", ".create draws by chance", "from fastledger.model.genesis import Genesis\n"),
    # Builtins.
    Plant("x = float(body.size)", "builtin float is not on the list"),
    Plant("x: float = body.size", "builtin float is not on the list"),
    Plant("x = complex(1)", "builtin complex is not on the list"),
    Plant("x = round(body.size)", "builtin round is not on the list"),
    Plant("x = pow(2, body.size)", "builtin pow is not on the list"),
    Plant("x = hash(body.record)", "builtin hash is not on the list"),
    Plant("x = sorted(body.folders, key=hash)", "builtin hash is not on the list"),
    Plant("x = id(body)", "builtin id is not on the list"),
    Plant("x = repr(body)", "builtin repr is not on the list"),
    Plant("x = f'{body!r}'", "repr may show an address"),
    Plant("open('x')", "builtin open is not on the list"),
    Plant("input()", "builtin input is not on the list"),
    Plant("print(body)", "builtin print is not on the list"),
    Plant("eval('1')", "builtin eval is not on the list"),
    Plant("exec('1')", "builtin exec is not on the list"),
    Plant("compile('1', '', 'eval')", "builtin compile is not on the list"),
    Plant("globals()", "builtin globals is not on the list"),
    Plant("locals()", "builtin locals is not on the list"),
    Plant("vars(body)", "builtin vars is not on the list"),
    Plant("dir(body)", "builtin dir is not on the list"),
    Plant("breakpoint()", "builtin breakpoint is not on the list"),
    Plant("__import__('os')", "builtin __import__ is not on the list"),
    Plant("__builtins__['open']", "builtin __builtins__ is not on the list"),
    Plant("x = __file__", "__file__ tells of the interpreter"),
    Plant("x = __debug__", "builtin __debug__ is not on the list"),
    Plant("x = OSError()", "builtin OSError is not on the list"),
    Plant("getattr(body, ctx.name)", "getattr by a computed name"),
    Plant("getattr(body, '__' + 'class__')", "getattr by a computed name"),
    Plant("setattr(body, *ctx.pair)", "setattr by a computed name"),
    Plant("getattr(body, '__globals__')", "__globals__ is not on the list"),
    Plant("list(map(getattr, [body], ctx.names))", "getattr is handed on"),
    Plant("rule.__globals__", "__globals__ is not on the list"),
    Plant("(1).__truediv__(2)", "__truediv__ is not on the list"),
    Plant("body.__hash__()", "__hash__ is not on the list"),
    Plant("sorted = list", "sorted is given another meaning"),
    Plant("from fastledger.limits import BLOB_BYTES_MAX as len", "len is given another meaning"),
    # Floats.
    Plant("x = body.size * 0.5", "a float"),
    Plant("x = 1e3", "a float"),
    Plant("x = 2j", "a float"),
    Plant("x = body.size / 2", "true division makes a float"),
    Plant("ctx.x /= 2", "true division makes a float"),
    Plant("x = 10 ** -body.size", "a power by what may be negative makes a float"),
    Plant("x = body.size.as_integer_ratio()", "as_integer_ratio makes a float"),
    # What hangs on how Python was started, on what ran before, or on when.
    Plant("assert body.size", "assert does nothing under python -O"),
    Plant("global CACHE", "state beside the state"),
    Plant("try:\n        pass\n    except:\n        pass", "catches everything"),
    # The order of sets.
    Plant("for x in {1, 2}: pass", "iterates a set"),
    Plant("for x in set(body.folders): pass", "iterates a set"),
    Plant("for x in frozenset(body.folders): pass", "iterates a set"),
    Plant("for x in {f for f in body.folders}: pass", "iterates a set"),
    Plant("s = set(body.folders)\n    for x in s: pass", "iterates a set"),
    Plant("s = t = set(body.folders)\n    for x in t: pass", "iterates a set"),
    Plant("s, n = set(), 1\n    for x in s: pass", "iterates a set"),
    Plant("if (s := set(body.folders)):\n        x = [f for f in s]", "iterates a set"),
    Plant("s = set()\n    x = [f for f in s | {1}]", "iterates a set"),
    Plant("x = [f for f in ctx.a.keys() & ctx.b.keys()]", "iterates a set"),
    Plant("x = [f for f in ctx.a.keys() - [1]]", "iterates a set"),
    Plant("s = set()\n    x = {f: 1 for f in s.union(body.folders)}", "iterates a set"),
    Plant("s = set()\n    x = any(f(g) for g in s)", "iterates a set"),
    Plant("s = body.folders and set(body.folders)\n    for x in s: pass", "iterates a set"),
    Plant("s = set() if body.size else []\n    for x in s: pass", "iterates a set"),
    Plant("s = {1}\n    def inner():\n        for x in s: pass", "iterates a set"),
    Plant("for x in KNOWN: pass", "iterates a set", "KNOWN = frozenset((1, 2))\n"),
    Plant("for x in body.ids: pass", "iterates a set", "class B:\n    ids: frozenset[bytes]\n"),
    Plant("for x in body.ids: pass", "iterates a set", "class B:\n    ids: 'frozenset[bytes] | None'\n"),
    Plant(
        "for x in body.ids: pass",
        "iterates a set",
        "class B:\n    def __init__(self):\n        self.ids = set()\n",
    ),
    Plant("for x in seen(): pass", "iterates a set", "def seen() -> set[bytes]: return set()\n"),
    Plant("for x in seen(): pass", "iterates a set", "def seen():\n    return {1}\n"),
    Plant(
        "for x in body.seen: pass",
        "iterates a set",
        "class B:\n    @property\n    def seen(self) -> set[int]: return {1}\n",
    ),
    Plant(
        "for x in ids: pass",
        "iterates a set",
        "from typing import Annotated\nIds = Annotated[frozenset[bytes], 1]\nids: Ids\n",
    ),
    Plant("for x in Bag(): pass", "iterates a set", "Bag = set\n"),
    Plant("m: dict[bytes, set[bytes]] = {}\n    for x in m[b'']: pass", "iterates a set"),
    Plant(
        "m: dict[bytes, set[bytes]] = {}\n    for s in m.values():\n        x = list(s)",
        "hands a set to list",
    ),
    Plant("m = {}\n    m[1] = {2}\n    for x in m[1]: pass", "iterates a set"),
    Plant("m = [{1}]\n    for s in m:\n        for x in s: pass", "iterates a set"),
    Plant("m = defaultdict(set)\n    for x in m[1]: pass", "iterates a set"),
    Plant("s = set()\n    x = list(s)", "hands a set to list"),
    Plant("s = set()\n    x = tuple(s)", "hands a set to tuple"),
    Plant("s = set()\n    x = [*s]", "unpacks a set"),
    Plant("s = set()\n    x, y = s", "unpacks a set"),
    Plant("s = set()\n    rule(*s)", "unpacks a set"),
    Plant("s = set()\n    x = b''.join(s)", "hands a set to join"),
    Plant("s = set()\n    x = dict.fromkeys(s)", "hands a set to fromkeys"),
    Plant("s = set()\n    x = next(iter(s))", "hands a set to iter"),
    Plant("s = set()\n    x = enumerate(s)", "hands a set to enumerate"),
    Plant("s = set()\n    x = zip(s, s)", "hands a set to zip"),
    Plant("s = set()\n    x = map(len, s)", "hands a set to map"),
    Plant("s = set()\n    x = ctx.erased.extend(s)", "hands a set to extend"),
    Plant("s = set()\n    x = max(s, key=len)", "max of a set by a key"),
    Plant("s = set()\n    x = sorted(s, key=len)", "sorted of a set by a key"),
    Plant("s = set()\n    x = s.pop()", ".pop of a set"),
    Plant("s = set()\n    x = f'{s}'", "a set in a text"),
    Plant("s = set()\n    x = str(s)", "hands a set to str"),
    Plant("s = set()\n    yield from s", "gives a set to whoever asks"),
    Plant("s = set()\n    ctx.erased += list(s)", "hands a set to list"),
    Plant("s = set()\n    ctx.store(entry=s)", "hands a set to store"),
    Plant("for x in given: pass", "iterates a set", "def given(ids: set[bytes]):\n    for x in ids: pass\n"),
    Plant("pass", "iterates a set", "def given(ids=frozenset()):\n    for x in ids: pass\n"),
    Plant("pass", "returns a set as something else", "def given() -> list[bytes]:\n    return {1}\n"),
    Plant("pass", "a class derived from a set", "class Bag(set): pass\n"),
    Plant(
        "pass", "field ids is a set and would be encoded", "class Grant(Entity):\n    ids: frozenset[bytes]\n"
    ),
]
HARMLESS = [
    "for x in sorted(set(body.folders)): pass",
    "if len(set(body.folders)) != len(body.folders): pass",
    "if len({folder for folder, _ in body.folders}) != len(body.folders): pass",
    "s = set(body.folders)\n    s.add(1)\n    s |= {2}\n    x = 1 in s and s <= {3} and not s",
    "s = {1}\n    x = min(s) + max(s) + sum(s) + len(s)",
    "s = {1}\n    t = s.union({2}) - s\n    x = [f for f in sorted(t)]",
    "for x in body.folders: pass",
    "for key, value in ctx.map.items(): pass",
    "m: dict[bytes, set[bytes]] = {}\n    for key in sorted(m):\n        x = b'' in m[key]",
    "x = body.size // 2 + 2**53 - 1 << 3",
    "x = body.size % 7 | 1 & 3 ^ 5",
    "x = ctx.time_ms + 1000",
    "x = getattr(body, 'size')",
    "x = body.id + body.hash",
    "x = tuple(item for item in body.folders if not item.revoked)",
    "x = isinstance(body, bytes) and any(f for f in body.folders)",
    "x = f'{body.size}'",
    "raise ValueError('no')",
    "try:\n        pass\n    except KeyError:\n        pass",
]


@pytest.mark.parametrize("plant", PLANTED, ids=lambda plant: f"{plant.before}{plant.line}")
def test_what_is_planted_is_found(plant: Plant) -> None:
    text = plant.before + RULE.format(plant.line)
    found = check_text(text, ALLOWANCES["subjects"])
    assert any(plant.words in item for item in found), found


@pytest.mark.parametrize("line", HARMLESS)
def test_what_is_harmless_is_let_through(line: str) -> None:
    assert check_text(RULE.format(line), ALLOWANCES["subjects"]) == []


@pytest.mark.parametrize("layer", ALLOWANCES)
def test_every_file_of_the_layers_is_looked_at(layer: str, tmp_path: Path) -> None:
    """A file is planted in each layer and in a folder of it, and its constant iterated from another layer's file."""
    for folder in (layer, f"{layer}/deeper"):
        place = tmp_path / PACKAGE / folder
        place.mkdir(parents=True)
        (place / "planted.py").write_text("import time\nKNOWN: frozenset[bytes] = frozenset()\n")
    other = tmp_path / PACKAGE / ("state" if layer != "state" else "subjects")
    other.mkdir(exist_ok=True)
    text = f"from fastledger.{layer}.planted import KNOWN as OTHERS\nfor one in OTHERS: pass\n"
    (other / "user.py").write_text(text)
    found = impurities(tmp_path)
    assert found[f"{layer}/planted.py"] == found[f"{layer}/deeper/planted.py"]
    assert found[f"{layer}/planted.py"] == ["1: module time is not on the list"]
    assert "2: iterates a set" in found[f"{other.name}/user.py"]


def test_every_layer_with_an_allowance_has_files() -> None:
    for layer in ALLOWANCES:
        assert any(name.startswith(f"{layer}/") for name in FOUND) == (ROOT / PACKAGE / layer).is_dir()

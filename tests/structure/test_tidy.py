"""The habits of the code base, checked mechanically: layers, determinism, sizes, rules and citations."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = ROOT / "fastledger"
SOURCES = sorted(PACKAGE.rglob("*.py"))
NATIVE = sorted([*(ROOT / "native").rglob("*.[ch]"), *PACKAGE.rglob("*.pyx"), *PACKAGE.rglob("*.pxd")])
TESTS = sorted((ROOT / "tests").rglob("*.py"))

# Layer -> the layers that it may import besides itself and the base. docs/decisions.md tells why.
BASE = {"errors", "limits", "version"}
# Single modules over nothing but the base, for those layers that may see a clock.
TIMED = {"clock", "pace", "stage_times"}
LAYERS: dict[str, set[str]] = {
    "_native": set(),
    "crypto": {"_native"},
    "model": {"_native", "crypto"},
    "storage": {"_native"},
    "state": {"_native", "crypto", "model"},
    "consensus": {"crypto", "model"},
    "chain": {"_native", "crypto", "model", "storage", "state", "consensus", *TIMED},
    "peers": {"_native", "crypto", "model", "storage", "consensus", "chain"},
    "gateway": set(),
    "workload": {"gateway"},
    "node": {"_native", "crypto", "model", "storage", "state", "consensus", "chain", "peers", *TIMED},
    "rpc": {"crypto", "model", "storage", "state", "chain", "peers", "node", *TIMED},
    "daemon": {"crypto", "model", "storage", "chain", "node", "rpc", *TIMED},
    "client": {"_native", "crypto", "model", "state", "gateway", "rpc", *TIMED},
    "bench": {"_native", "crypto"},
    "cli": {
        *("crypto", "model", "storage", "state", "chain", "node", "rpc", "daemon"),
        *TIMED,
        *("gateway", "client", "workload", "bench"),
    },
}
# Layer -> the only modules that it may import of another: a client shares the node's wire forms, not its server.
ONLY = {("client", "rpc"): {"fastledger.rpc.protocol"}}
# Modules that would let a clock, chance or a socket into what all nodes must agree on.
PURE_LAYERS = ("model", "state", "consensus")
BANNED = {"time", "datetime", "random", "secrets", "asyncio", "socket", "threading", "uuid", "json"}
# Drawing ids and salts is a client's act, before anything is signed; no rule calls it.
RANDOMNESS_ALLOWED = {"model/ids.py", "model/genesis.py"}

FUNCTION_LINES_MAX = 70
FILE_LINES_MAX = 600


def layer_of(path: Path) -> str:
    relative = path.relative_to(PACKAGE)
    if len(relative.parts) > 1:
        return relative.parts[0]
    return "cli" if relative.stem == "__main__" else relative.stem


def imports_of(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            yield str(node.module)


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_run_one_way(path: Path) -> None:
    layer = layer_of(path)
    if layer in {"__init__", *BASE, *TIMED}:
        allowed = {"*"} if layer == "__init__" else BASE
    else:
        assert layer in LAYERS, f"{layer} is not a layer: give it its place in LAYERS"
        allowed = LAYERS[layer] | BASE | {layer}
    for name in imports_of(path):
        if name.startswith("fastledger.") and "*" not in allowed:
            imported = name.split(".")[1]
            assert imported in allowed, f"{path} may not import {name}"
            assert name in ONLY.get((layer, imported), {name}), f"{path} may not import {name}"


def test_layers_are_all_there() -> None:
    folders = {path.name for path in PACKAGE.iterdir() if path.is_dir() and path.name != "__pycache__"}
    assert folders == set(LAYERS)


@pytest.mark.parametrize("layer", PURE_LAYERS)
def test_pure_layers_see_no_clock_and_no_chance(layer: str) -> None:  # SPEC-STATE-1, SPEC-ENG-1
    for path in (PACKAGE / layer).rglob("*.py"):
        names = set(imports_of(path))
        assert not {name.split(".")[0] for name in names} & BANNED, path
        if "os" in names:
            assert str(path.relative_to(PACKAGE)) in RANDOMNESS_ALLOWED, path


def _is_set(node: ast.expr) -> bool:
    if isinstance(node, ast.Set | ast.SetComp):
        return True
    return (
        isinstance(node, ast.Call)
        and isinstance(node.func, ast.Name)
        and node.func.id in {"set", "frozenset"}
    )


AGREED = sorted([*(PACKAGE / "state").rglob("*.py"), *(PACKAGE / "consensus").rglob("*.py")])


@pytest.mark.parametrize("path", AGREED, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_rules_use_no_float_and_no_set_order(path: Path) -> None:  # SPEC-STATE-1, SPEC-ENG-1
    for node in ast.walk(ast.parse(path.read_text())):
        assert not (isinstance(node, ast.Constant) and isinstance(node.value, float)), path
        assert not (isinstance(node, ast.BinOp) and isinstance(node.op, ast.Div)), path
        if isinstance(node, ast.For | ast.comprehension):
            assert not _is_set(node.iter), f"{path}: iterates a set"


@pytest.mark.parametrize("path", SOURCES + TESTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_functions_and_files_stay_small(path: Path) -> None:
    text = path.read_text()
    assert text.count("\n") <= FILE_LINES_MAX, f"{path} is longer than {FILE_LINES_MAX} lines"
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            length = (node.end_lineno or 0) - node.lineno + 1
            assert length <= FUNCTION_LINES_MAX, f"{path}:{node.name} has {length} lines"


@pytest.mark.parametrize("path", NATIVE, ids=lambda path: str(path.relative_to(ROOT)))
def test_native_files_stay_small_and_pure(path: Path) -> None:
    text = path.read_text()
    assert text.count("\n") <= FILE_LINES_MAX
    if path.suffix in {".c", ".h"}:
        assert "Python.h" not in text
        assert "printf" not in text


@pytest.mark.parametrize("path", SOURCES + NATIVE + TESTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_nothing_is_left_for_later(path: Path) -> None:
    if path == Path(__file__):
        return
    assert not re.search(r"\b(TODO|FIXME|XXX|NotImplementedError)\b", path.read_text())


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_public_names_are_documented(path: Path) -> None:
    tree = ast.parse(path.read_text())
    if path.name != "__init__.py" or path.read_text().strip():
        assert ast.get_docstring(tree), f"{path} has no docstring"
    for node in tree.body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef) and not node.name.startswith("_"):
            assert ast.get_docstring(node), f"{path}: {node.name} has no docstring"


def rules_in(text: str) -> set[str]:
    return set(re.findall(r"SPEC-[A-Z]+-\d+", text))


def test_every_rule_is_cited_by_a_test_and_every_citation_exists() -> None:
    specification = (ROOT / "docs" / "SPEC.md").read_text()
    defined = set(re.findall(r"^\*\*(SPEC-[A-Z]+-\d+)\*\*", specification, re.MULTILINE))
    cited_by_tests: set[str] = set()
    for path in TESTS:
        cited_by_tests |= rules_in(path.read_text())
    assert defined - cited_by_tests == set(), "rules that no test cites"
    cited = set(cited_by_tests)
    for path in [*SOURCES, *NATIVE]:
        for span in re.finditer(r"(SPEC-[A-Z]+)-(\d+)(?:\.\.(\d+))?", path.read_text()):
            name, first, last = span.group(1), int(span.group(2)), int(span.group(3) or span.group(2))
            cited |= {f"{name}-{number}" for number in range(first, last + 1)}
    assert cited - defined == set(), "citations of rules that the specification does not have"

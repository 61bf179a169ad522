"""A plain installation has a ledger, wallets and clients; whoever needs more is told which extra to install."""

import ast
import json
import os
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

from fastledger.errors import Code, FastLedgerError, InstallationError
from fastledger.extras import EXTRAS, require

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = ROOT / "fastledger"
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
# Distributions whose modules have another name.
MODULES = {"fhirkit-rs": "fhirkit", "prometheus-client": "prometheus_client"}
ALL_EXTRAS = sorted({name for names in EXTRAS.values() for name in names})
# Modules that do without a library where it is missing, as they say themselves.
OPTIONAL = {("client/sync.py", "uvloop"), ("bench/hashing.py", "pymerkle")}


def modules_of(requirements: list[str]) -> set[str]:
    """The modules of the distributions in a list of requirements, other than this one's own extras."""
    names = {str(re.match(r"[\w-]+", line)[0]) for line in requirements}  # type: ignore[index]
    return {MODULES.get(name, name) for name in names - {"fastledger"}}


CORE = modules_of(PROJECT["dependencies"])


def run(program: str, *, without: list[str], cwd: Path) -> subprocess.CompletedProcess[str]:
    """A fresh interpreter's run of ``program``, to which some libraries are not installed."""
    environment = {**os.environ, "FASTLEDGER_PASSWORD": "correct horse battery staple"}
    absent = f"import sys; sys.path.insert(0, {str(ROOT)!r}); sys.modules.update(dict.fromkeys({without!r}))\n"
    command = [sys.executable, "-c", absent + program]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=60, check=False, env=environment)


def command_line(*words: str, without: list[str], cwd: Path) -> subprocess.CompletedProcess[str]:
    program = f"sys.argv[1:] = {list(words)!r}\nfrom fastledger.__main__ import main\nmain()"
    return run(program, without=without, cwd=cwd)


# ---- The tables ----


def test_the_two_tables_of_extras_are_one() -> None:
    extras = PROJECT["optional-dependencies"]
    # The server asks for a younger aiohttp than the client does.
    assert {name: modules_of(extras[name]) - CORE for name in EXTRAS} == {n: set(m) for n, m in EXTRAS.items()}
    assert set(extras) == {*EXTRAS, "demo", "dev"}
    assert extras["demo"] == ["fastledger[node,fhir]"]
    assert set(re.findall(r"\w+", extras["dev"][0])) == {"fastledger", *EXTRAS, "demo"}


def test_nothing_of_an_extra_is_needed_by_a_plain_installation() -> None:
    assert {"aiohttp", "cbor2", "coincurve", "cryptography", "lmdb", "msgspec"} == CORE
    assert CORE.isdisjoint(ALL_EXTRAS)


def test_what_a_plain_installation_needs_has_a_range() -> None:
    """An embedding program has libraries of its own: one release alone would be in its way."""
    for line in PROJECT["dependencies"]:
        assert re.fullmatch(r"[\w-]+>=[\d.]+(,<\d+(\.\d+)?)?(,!=[\d.]+)*", line), line


def is_for_type_checkers(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING"


def nodes_that_run(node: ast.AST) -> Iterator[ast.AST]:
    """A tree's nodes without what only type checkers read."""
    yield node
    for child in ast.iter_child_nodes(node):
        if not is_for_type_checkers(child):
            yield from nodes_that_run(child)


def foreign_imports(path: Path) -> set[str]:
    """The libraries that a module imports, at its beginning or inside a function."""
    found = set()
    for node in nodes_that_run(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found.add(str(node.module).split(".")[0])
    return found - set(sys.stdlib_module_names) - {"fastledger"}


def required_in(path: Path) -> set[str]:
    """The libraries of the extras that a module asks for with ``require("…")``."""
    extras = re.findall(r'\brequire\("(\w+)"\)', path.read_text())
    return {name for extra in extras for name in EXTRAS[extra]}


def test_every_library_is_core_or_asked_for() -> None:
    found: set[str] = set()
    for path in PACKAGE.rglob("*.py"):
        relative = path.relative_to(PACKAGE)
        layer = PACKAGE / relative.parts[0] / "__init__.py"
        allowed = CORE | required_in(path) | (required_in(layer) if layer.exists() else set())
        allowed |= {name for place, name in OPTIONAL if place == str(relative)}
        names = foreign_imports(path)
        assert names <= allowed, f"{relative} imports {names - allowed} without asking for an extra"
        found |= names
    assert found == {*CORE, *ALL_EXTRAS}, "a library that is installed and not used"


# ---- Without the extras ----


def test_the_readme_runs_on_a_plain_installation(tmp_path: Path) -> None:
    (example,) = re.findall(r"^```python\n(.*?)^```", (ROOT / "README.md").read_text(), re.DOTALL | re.MULTILINE)
    done = run(example, without=ALL_EXTRAS, cwd=tmp_path)
    assert done.returncode == 0, done.stderr


def test_every_public_name_is_there_on_a_plain_installation(tmp_path: Path) -> None:
    program = "import fastledger\nfor name in fastledger.__all__: getattr(fastledger, name)"
    done = run(program, without=ALL_EXTRAS, cwd=tmp_path)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("module", "extra"),
    [
        ("fastledger.cli.main", "cli"),
        ("fastledger.daemon.process", "node"),
        ("fastledger.node.service", "node"),
        ("fastledger.gateway.fhir", "fhir"),
        ("fastledger.client.ingest", "fhir"),
    ],
)
def test_a_module_of_an_extra_says_which(tmp_path: Path, module: str, extra: str) -> None:
    program = f"""
from fastledger.errors import InstallationError
try:
    import {module}
except InstallationError as error:
    print(error.extra, error)
"""
    done = run(program, without=ALL_EXTRAS, cwd=tmp_path)
    name, message = done.stdout.split(maxsplit=1)
    assert name == extra, done.stderr
    assert f"pip install 'fastledger[{extra}]'" in message
    assert all(library in message for library in EXTRAS[extra])


def test_the_error_is_one_of_ours_and_an_import_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "click", None)
    with pytest.raises(InstallationError, match="installation: this needs click: pip install") as caught:
        require("cli")
    assert isinstance(caught.value, FastLedgerError)
    assert isinstance(caught.value, ImportError)
    assert (caught.value.code, caught.value.extra) == (Code.INSTALLATION, "cli")


@pytest.mark.parametrize(
    ("words", "missing", "extra"),
    [
        (["--version"], "click", "cli"),
        (["node", "start", "--config", "node.toml"], "uvloop", "node"),
        (["top", "http://127.0.0.1:1"], "prometheus_client", "node"),
        (["ingest", "clinic.ledger", ".", "--source", "urn:x:y", "--keystore", "k"], "fhirkit", "fhir"),
        (["demo"], "fhirkit", "fhir"),
        (["bench", "--quick", "--chart", "chart.svg"], "matplotlib", "bench"),
    ],
)
def test_a_command_says_what_it_lacks(tmp_path: Path, words: list[str], missing: str, extra: str) -> None:
    (tmp_path / "node.toml").touch()
    done = command_line(*words, without=[missing], cwd=tmp_path)
    assert done.returncode == 5, done.stderr
    assert re.search(rf"this needs [\w, ]*{missing}[\w, ]*: pip install 'fastledger\[{extra}\]'", done.stderr)
    assert "Traceback" not in done.stderr


def test_a_command_says_in_json_what_it_lacks(tmp_path: Path) -> None:
    words = ("ingest", "clinic.ledger", ".", "--source", "urn:x:y", "--keystore", "k", "--json")
    done = command_line(*words, without=["fhirkit"], cwd=tmp_path)
    report = json.loads(done.stderr)
    assert (done.returncode, report["error"], report["code"]) == (5, "installation", 909)


def test_commands_on_a_ledger_need_the_command_line_alone(tmp_path: Path) -> None:
    others = [name for name in ALL_EXTRAS if name not in EXTRAS["cli"]]
    for words in (
        ("init", "clinic.ledger", "--keystore", "wallets.keystore"),
        ("status", "clinic.ledger", "--json"),
        ("query", "clinic.ledger"),
        ("verify", "clinic.ledger"),
        ("backup", "clinic.ledger", "saved"),
    ):
        done = command_line(*words, without=others, cwd=tmp_path)
        assert done.returncode == 0, (words, done.stderr)


# ---- Libraries of the wrong release ----


def test_another_lmdb_is_refused_before_it_is_used(tmp_path: Path) -> None:
    for change, problem in (
        ("lmdb.__version__ = '4.0.0'", "lmdb 4.0.0 is not of the releases 3.0.x"),
        ("sys.modules['lmdb.cpython'] = None", "lmdb is installed without its C extension"),
        ("ctypes.PyDLL = lambda path: ctypes.CDLL(None)", "has no lmdb_api_v09"),
    ):
        program = f"""
import ctypes, lmdb
{change}
from fastledger import InstallationError
try:
    from fastledger import Ledger
except InstallationError as error:
    print(error)
"""
        done = run(program, without=[], cwd=tmp_path)
        assert problem in done.stdout, done.stderr
        assert "pip install --only-binary lmdb" in done.stdout


def test_another_coincurve_is_refused_before_it_is_used(tmp_path: Path) -> None:
    program = """
import coincurve
import coincurve._libsecp256k1 as binding
{change}
try:
    import fastledger._native.ecdsa
except ImportError as error:
    print(type(error).__name__, error)
"""
    for change, problem in (
        ("sys.modules['coincurve._libsecp256k1'] = None", "import of coincurve._libsecp256k1 halted"),
        (
            "binding.ffi = type('F', (), {'addressof': lambda *_: binding.lib.absent, 'cast': None})",
            "has no secp256k1_ec_pubkey_parse",
        ),
    ):
        done = run(program.format(change=change), without=[], cwd=tmp_path)
        assert done.stdout.startswith("InstallationError"), done.stderr
        assert problem in done.stdout
        assert "pip install --only-binary coincurve" in done.stdout

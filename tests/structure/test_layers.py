"""Imports run one way, without cycles, and the test of it sees every way to import (docs/decisions.md)."""

import subprocess
import sys
from pathlib import Path

import pytest
import report
from layers import LAYERS, layer_faults
from source_graph import PACKAGE, ROOT, Graph, Source, cycles, make_graph, read_sources, room_edges

GRAPH = make_graph(read_sources())


def test_imports_run_one_way() -> None:
    assert list(layer_faults(GRAPH)) == []


def test_every_import_can_be_seen() -> None:
    assert [str(fault) for fault in GRAPH.faults] == []


def test_modules_and_rooms_import_one_another_in_no_cycle() -> None:
    assert {frozenset(cycle) for cycle in report.all_cycles(GRAPH)} == report.PENDING_CYCLES


def test_no_room_is_too_full() -> None:
    assert report.full_rooms(report.watched_files()) == []


def test_layers_are_all_there_and_stand_on_one_another() -> None:
    folders = {
        path.name for path in (ROOT / PACKAGE).iterdir() if path.is_dir() and path.name != "__pycache__"
    }
    assert folders == set(LAYERS)
    assert cycles({name: below & set(LAYERS) for name, below in LAYERS.items()}) == []
    order = list(LAYERS)
    for name, below in LAYERS.items():
        assert all(order.index(other) < order.index(name) for other in below & set(LAYERS)), name


def test_the_report_finds_nothing_and_says_so() -> None:
    done = subprocess.run(
        [sys.executable, report.__file__], capture_output=True, text=True, check=False, timeout=60
    )
    assert done.returncode == 0, done.stdout
    assert done.stdout.count(": none\n") == 5
    assert all(f"\n  {layer}" in done.stdout for layer in LAYERS)


# What is planted: a package of a few modules, in which one line imports what its layer may not have.


def graph_of(**texts: str) -> Graph:
    """A package from its files' texts; ``chain__forks__x`` is ``chain/forks/x.py``, ``_pyx`` at the end a suffix."""
    sources = []
    folders = {f"{PACKAGE}"}
    for name, text in texts.items():
        stem, _, suffix = name.rpartition("___")
        stem, suffix = (stem, f".{suffix}") if stem else (name, ".py")
        module = f"{PACKAGE}." + stem.replace("__", ".") if stem != "facade" else PACKAGE
        is_package = stem == "facade" or module.endswith(".init")
        module = module.removesuffix(".init")
        folders.add(module if is_package else module.rpartition(".")[0])
        sources.append(Source(module, is_package, suffix, text, name))
    known = {source.module for source in sources}
    sources += [Source(folder, True, ".py", "", folder) for folder in sorted(folders - known)]
    return make_graph(sources)


STORE = {"chain__store": "class Store: ...\n", "storage__log": "", "chain__init": ""}
UPWARD = {
    "import": "import fastledger.chain.store",
    "import-as": "import fastledger.chain.store as s",
    "import-second": "import os, fastledger.chain.store",
    "from-module": "from fastledger.chain.store import Store",
    "from-package": "from fastledger.chain import store",
    "from-top": "from fastledger import chain",
    "from-top-as": "from fastledger import chain as c",
    "from-star": "from fastledger.chain.store import *",
    "relative": "from ..chain.store import Store",
    "relative-package": "from ..chain import store",
    "relative-top": "from .. import chain",
    "in-function": "def f():\n    from fastledger.chain.store import Store",
    "in-method": "class A:\n    async def f(self):\n        import fastledger.chain.store",
    "for-types": "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from fastledger.chain.store import Store",
    "in-try": "try:\n    import fastledger.chain.store\nexcept ImportError:\n    pass",
    "import-module": "from importlib import import_module\nimport_module('fastledger.chain.store')",
    "import-module-as": "from importlib import import_module as load\nload('fastledger.chain.store')",
    "importlib": "import importlib\nimportlib.import_module('fastledger.chain.store').Store",
    "import-module-relative": "import importlib\nimportlib.import_module('.store', 'fastledger.chain')",
    "dunder-import": "__import__('fastledger.chain.store')",
    "computed": "from importlib import import_module\nHOMES = {'Store': 'chain.store'}\n"
    "def __getattr__(name):\n    return import_module(f'fastledger.{HOMES[name]}')",
    "computed-full": "from importlib import import_module\nHOMES = ['fastledger.chain.store']\nimport_module(HOMES[0])",
}


@pytest.mark.parametrize("line", UPWARD.values(), ids=UPWARD)
def test_an_import_upwards_is_seen(line: str) -> None:
    found = list(layer_faults(graph_of(**STORE, model__planted=line)))
    assert any("model.planted" in fault and "chain" in fault for fault in found), found
    assert list(layer_faults(graph_of(**STORE, peers__planted=line))) == []


CIMPORTS = {
    "cimport": "cimport fastledger.chain.kernel",
    "from-cimport": "from fastledger.chain.kernel cimport f",
    "from-cimport-lines": "from fastledger.chain.kernel cimport (\n    f,\n    g,\n)",
    "from-package-cimport": "from fastledger.chain cimport kernel",
    "from-star": "from fastledger.chain.kernel cimport *",
    "import": "import fastledger.chain.kernel",
    "from-import": "from fastledger.chain.kernel import f",
    "from-import-as": "from fastledger.chain import kernel as k",
    "in-function": "cdef int f():\n    from fastledger.chain.kernel import f",
    "continued": "from fastledger.chain.kernel cimport \\\n    f",
}


@pytest.mark.parametrize("suffix", ["pyx", "pxd"])
@pytest.mark.parametrize("line", CIMPORTS.values(), ids=CIMPORTS)
def test_a_cython_import_upwards_is_seen(line: str, suffix: str) -> None:
    kernel = {"chain__kernel___pxd": "cdef int f()", "chain__init": ""}
    found = list(layer_faults(graph_of(**kernel, **{f"_native__planted___{suffix}": line})))
    assert any("_native.planted" in fault and "chain" in fault for fault in found), found
    comment = line.replace("\n", "\n# ")
    quiet = f'"""{line}"""\n# {comment}\ntext = "from fastledger.chain import kernel"\n'
    assert list(layer_faults(graph_of(**kernel, **{f"_native__planted___{suffix}": quiet}))) == []


def test_a_stub_counts_as_its_module() -> None:
    found = list(layer_faults(graph_of(**STORE, _native__planted___pyi=UPWARD["from-module"])))
    assert len(found) == 2


def test_names_of_the_package_lead_to_their_homes_and_are_for_others() -> None:
    lazy = "from importlib import import_module\n_HOMES = {'Store': 'chain.store'}\n"
    lazy += "def __getattr__(name):\n    return import_module(f'fastledger.{_HOMES[name]}')\n"
    eager = "from fastledger.chain.store import Store\n"
    for facade in (lazy, eager):
        graph = graph_of(**STORE, facade=facade, peers__planted="from fastledger import Store\n")
        targets = {item.target for item in graph.imports if item.importer == "fastledger.peers.planted"}
        assert {"fastledger", "fastledger.chain.store"} <= targets
        assert [fault for fault in layer_faults(graph) if "for others" in fault]


def test_a_name_that_a_package_passes_on_leads_to_its_home() -> None:
    passes = {
        "crypto__init": "from fastledger.crypto.signing import sign\n",
        "crypto__signing": "def sign(): ...\n",
    }
    graph = graph_of(**passes, crypto__other="from fastledger.crypto import sign\n")
    assert "fastledger.crypto.signing" in graph.edges()["fastledger.crypto.other"]


OPAQUE = {
    "unknown-name": "from importlib import import_module\ndef f(name):\n    return import_module(name)",
    "handed-on": "from importlib import import_module\nload = import_module",
    "handed-to": "import importlib\nx = list(map(importlib.import_module, ['a']))",
    "pkgutil": "import pkgutil",
    "runpy": "from runpy import run_module",
    "sys-modules": "import sys\nsys.modules['fastledger.chain']",
    "exec": "exec('import fastledger.chain')",
    "eval": "eval('__import__')",
    "relative": "from . import thing",
}


@pytest.mark.parametrize("line", OPAQUE.values(), ids=OPAQUE)
def test_an_import_that_cannot_be_seen_through_is_a_fault(line: str) -> None:
    assert graph_of(model__planted=line, model__thing="").faults
    assert graph_of(**{"_native__planted___pyx": "x = __import__('fastledger.chain')"}).faults


CYCLES = {
    "two": {"model__a": "import fastledger.model.b", "model__b": "import fastledger.model.a"},
    "three": {
        "model__a": "import fastledger.model.b",
        "model__b": "import fastledger.model.c",
        "model__c": "import fastledger.model.a",
    },
    "in-a-function": {
        "model__a": "import fastledger.model.b",
        "model__b": "def f():\n    import fastledger.model.a",
    },
    "for-types": {
        "model__a": "import fastledger.model.b",
        "model__b": "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from fastledger.model.a import A",
    },
    "through-a-package": {
        "crypto__init": "from fastledger.crypto.a import sign",
        "crypto__a": "from fastledger.crypto import verify",
    },
    "through-a-parent": {
        "chain__x": "import fastledger.chain.forks.y",
        "chain__forks__init": "from fastledger.chain.x import f",
        "chain__forks__y": "",
    },
    "between-folders": {
        "chain__forks__x": "import fastledger.chain.keeping.y",
        "chain__keeping__y": "import fastledger.chain.forks.x",
    },
    "between-layers": {"model__a": "import fastledger.state.b", "state__b": "import fastledger.model.a"},
    "computed": {
        "model__a": "import fastledger.model.b",
        "model__b": "from importlib import import_module\nimport_module('fastledger.model.a')",
    },
}


@pytest.mark.parametrize("texts", CYCLES.values(), ids=CYCLES)
def test_a_cycle_is_seen(texts: dict[str, str]) -> None:
    found = cycles(graph_of(**texts).edges())
    assert len(found) == 1
    assert found[0][0] == found[0][-1]
    cut = graph_of(**texts | {next(iter(texts)): ""})
    assert cycles(cut.edges()) == []


def test_a_cycle_between_rooms_is_seen_where_no_module_is_in_one() -> None:
    graph = graph_of(
        chain__forks__x="import fastledger.chain.ledger",
        chain__forks__y="",
        chain__ledger="import fastledger.chain.forks.y",
    )
    assert cycles(graph.edges()) == []
    assert len(cycles(room_edges(graph.edges(), "fastledger.chain"))) == 1
    assert len(report.all_cycles(graph)) == 1


def test_long_files_and_full_rooms_are_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(report, "ROOT", tmp_path)
    room = tmp_path / PACKAGE / "room"
    room.mkdir(parents=True)
    for number in range(report.ROOM_FILES_MAX):
        (room / f"m{number}.py").write_text("\n" * (report.FILE_LINES_MAX + (number == 7)))
    (room / "__init__.py").touch()
    (room / "m1.pyi").touch()
    files = report.watched_files(tmp_path)
    assert report.long_files(files) == [f"{PACKAGE}/room/m7.py: {report.FILE_LINES_MAX + 1}"]
    assert report.full_rooms(files) == []
    (room / "one_more.pyx").touch()
    assert report.full_rooms(report.watched_files(tmp_path)) == [
        f"{PACKAGE}/room: {report.ROOM_FILES_MAX + 1}"
    ]

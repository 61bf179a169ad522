"""The shared object that holds every native module: what is found in it, and that its state is one for all."""

import ast
import os
import shutil
import subprocess
import sys
from importlib import import_module
from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path

import pytest

import fastledger._native

FOLDER = Path(fastledger._native.__file__).parent
MODULES = {path.stem for path in FOLDER.glob("*.pyi")}


def run(program: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """A fresh interpreter's run of ``program``."""
    command = [sys.executable, "-P", "-c", program]  # -P: the working directory goes before no other
    return subprocess.run(command, capture_output=True, text=True, check=False, env={**os.environ, **environment})


def test_every_source_has_a_module_and_a_description() -> None:
    assert {path.stem for path in FOLDER.glob("*.py")} - {"__init__"} == MODULES
    if sources := list(FOLDER.glob("*.pyx")):  # an installed package has none
        assert {path.stem for path in sources} == MODULES


def is_typed_dict(node: ast.ClassDef) -> bool:
    """Whether a description has a class for type checkers only."""
    return any(isinstance(base, ast.Name) and base.id == "TypedDict" for base in node.bases)


@pytest.mark.parametrize("name", sorted(MODULES))
def test_a_module_has_the_names_that_are_described_and_no_library_of_its_own(name: str) -> None:
    module = import_module(f"fastledger._native.{name}")
    description = ast.parse((FOLDER / f"{name}.pyi").read_text())
    names = [node.name for node in description.body if isinstance(node, ast.FunctionDef)]
    names += [node.name for node in description.body if isinstance(node, ast.ClassDef) if not is_typed_dict(node)]
    assert names
    for described in names:
        assert getattr(module, described).__module__ == f"fastledger._native.{name}"
    (library,) = [path for path in FOLDER.iterdir() if path.name.endswith(tuple(EXTENSION_SUFFIXES))]
    assert library.name.startswith("_library."), "built by an older release of the sources: remove it"


def test_other_names_are_not_modules() -> None:
    for name in ("scam", "scan.scan"):
        with pytest.raises(ModuleNotFoundError):
            import_module(f"fastledger._native.{name}")


def test_a_package_without_its_library_says_what_to_do(tmp_path: Path) -> None:
    without = shutil.ignore_patterns("__pycache__", "_library.*")
    shutil.copytree(FOLDER.parent, tmp_path / "fastledger", ignore=without)
    done = run("import fastledger._native.scan", PYTHONPATH=str(tmp_path))
    assert done.returncode == 1
    assert "ImportError: the native library of fastledger was not built for this Python" in done.stderr


def test_the_backend_is_chosen_once_for_all_modules() -> None:
    program = """
from fastledger._native import hashing
hashing.force_backend("portable")
from fastledger._native import work, scan, view, ecdsa, lmdb_batch
print(hashing.backend())
"""
    done = run(program, FASTLEDGER_NATIVE="")
    assert done.stdout.split() == ["portable"], done.stderr


def test_threads_may_import_modules_at_the_same_time() -> None:
    program = f"""
import sys, threading
from importlib import import_module
names = {sorted(MODULES)!r}
sys.setswitchinterval(1e-6)
start, got = threading.Barrier(6), []
def load(turn):
    start.wait()
    order = names[turn:] + names[:turn]
    got.append({{name: id(import_module("fastledger._native." + name)) for name in order}})
threads = [threading.Thread(target=load, args=(turn,)) for turn in range(6)]
for thread in threads: thread.start()
for thread in threads: thread.join()
assert len(got) == 6 and all(one == got[0] for one in got), got
"""
    done = run(program)
    assert done.returncode == 0, done.stderr

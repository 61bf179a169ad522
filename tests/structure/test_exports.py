"""The names of ``import fastledger``: complete, the same for programs and type checkers, loaded at first use."""

import ast
import json
import subprocess
import sys
from pathlib import Path

import pytest

import fastledger

INIT = Path(fastledger.__file__)
# What the package and its dependencies would bring along, were a name loaded before it is used.
HEAVY = ("typing", "asyncio", "ssl", "aiohttp", "cbor2", "coincurve", "cryptography", "lmdb", "msgspec", "click")


def run(program: str) -> str:
    """What a fresh interpreter prints for ``program``; what it raises fails the test."""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def names_for_type_checkers() -> dict[str, str]:
    """Name -> module, as the imports under ``TYPE_CHECKING`` say; each is an explicit re-export (``X as X``)."""
    block = next(node for node in ast.parse(INIT.read_text()).body if isinstance(node, ast.If))
    found = {}
    for node in block.body:
        assert isinstance(node, ast.ImportFrom)
        for alias in node.names:
            assert alias.asname == alias.name, f"{alias.name} must be imported as itself to be an export"
            found[alias.name] = str(node.module)
    return found


def test_type_checkers_see_the_names_that_programs_get() -> None:
    assert names_for_type_checkers() == fastledger._HOMES


def test_every_export_is_of_the_module_that_is_named_for_it() -> None:
    for name in fastledger.__all__:
        value = getattr(fastledger, name)
        assert value is not None
        if name != "__version__":
            assert value.__module__ == fastledger._HOMES[name], f"{name} is defined in {value.__module__}"
    assert set(fastledger.__all__) <= set(dir(fastledger))
    assert len(set(fastledger.__all__)) == len(fastledger.__all__)


def test_names_that_do_not_exist_are_refused_as_for_any_module() -> None:
    with pytest.raises(AttributeError, match=r"module 'fastledger' has no attribute 'Leger'"):
        _ = fastledger.Leger
    with pytest.raises(ImportError):
        from fastledger import Leger  # noqa: F401


def test_import_loads_only_what_has_no_weight() -> None:
    program = "import sys; before = {*sys.modules}; import fastledger; print(*sorted({*sys.modules} - before))"
    loaded = run(program).split()
    assert [name for name in loaded if name.split(".")[0] in HEAVY] == []
    assert [name for name in loaded if name.startswith("fastledger")] == ["fastledger", "fastledger.version"]


def test_a_ledger_a_wallet_and_a_client_load_nothing_that_only_a_server_needs() -> None:
    """Nor what only a connection needs: aiohttp takes as long to load as all of the client."""
    names = "Ledger, Client, Wallet, AsyncLedger, AsyncClient"
    loaded = run(f"import sys; from fastledger import {names}; print(*sorted(sys.modules))").split()
    absent = ("aiohttp", "click", "rich", "structlog", "prometheus_client", "uvloop", "fhirkit")
    assert [name for name in loaded if name.split(".")[0] in absent] == []
    above = tuple(f"fastledger.{layer}." for layer in ("cli", "daemon", "node", "peers", "gateway"))
    assert [name for name in loaded if name.startswith(above)] == []


def test_the_check_sees_what_it_looks_for() -> None:
    program = "import sys, json, fastledger; fastledger.Ledger; print(json.dumps(sorted(sys.modules)))"
    loaded = {name.split(".")[0] for name in json.loads(run(program))}
    assert {"lmdb", "cryptography", "coincurve", "msgspec", "cbor2"} <= loaded


def test_a_star_import_gives_every_export() -> None:
    assert run("from fastledger import *; print(Ledger.__name__, Client.__name__, __version__)").split() == [
        *("Ledger", "Client"),
        fastledger.__version__,
    ]


def test_threads_that_ask_at_the_same_time_get_the_same_objects() -> None:
    program = """
import fastledger, sys, threading
names = [name for name in fastledger.__all__ if name != "__version__"]
sys.setswitchinterval(1e-6)
start, got = threading.Barrier(8), []
def ask(turn):
    start.wait()
    order = names[turn:] + names[:turn]
    got.append({name: id(getattr(fastledger, name)) for name in order})
threads = [threading.Thread(target=ask, args=(turn * 4,)) for turn in range(8)]
for thread in threads: thread.start()
for thread in threads: thread.join()
assert len(got) == 8 and all(one == got[0] for one in got), got
"""
    run(program)

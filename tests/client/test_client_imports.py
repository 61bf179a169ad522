"""What a program that only talks to a node has to load: values, keys and the wire, not the engine."""

import json
import subprocess
import sys

import pytest

PROGRAM = """
import json, pkgutil, sys
from importlib import import_module
for package in {packages!r}:
    for module in pkgutil.walk_packages(import_module(package).__path__, package + "."):
        import_module(module.name)
import fastledger
for name in {names!r}:
    getattr(fastledger, name)
print(json.dumps(sorted(sys.modules)))
"""
# The engine's own, and what only it or the command line needs of others.
ENGINE = ("fastledger.chain", "fastledger.storage", "fastledger.node", "fastledger.consensus", "fastledger.peers")
SERVER = ("fastledger.daemon", "fastledger.rpc.http", "fastledger.rpc.server", "fastledger.cli", "aiohttp.web")
OTHERS = ("lmdb", "uvloop", "structlog", "prometheus_client", "click", "rich")


def loaded(*, packages: tuple[str, ...] = (), names: tuple[str, ...] = ()) -> set[str]:
    """The modules that a fresh interpreter has after such imports."""
    program = PROGRAM.format(packages=packages, names=names)
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    return set(json.loads(done.stdout))


def beneath(found: set[str], roots: tuple[str, ...]) -> set[str]:
    return {name for name in found if name.startswith(tuple(f"{root}." for root in roots)) or name in roots}


def test_a_client_loads_no_engine_and_no_server() -> None:
    found = loaded(packages=("fastledger.client",), names=("Client", "AsyncClient", "Wallet", "Query", "Outcome"))
    assert {"fastledger.client.sync", "fastledger.wallet.wallet", "fastledger.model.query"} <= found
    assert beneath(found, (*ENGINE, *SERVER, *OTHERS)) == set()


@pytest.mark.parametrize("name", ["Outcome", "Query", "Page", "VerifyReport", "RestoreReport"])
def test_values_load_nothing_but_the_model(name: str) -> None:
    found = loaded(names=(name,))
    assert beneath(found, ("fastledger.model",))
    assert beneath(found, (*ENGINE, *SERVER, *OTHERS, "fastledger.client", "fastledger.state")) == set()


def test_the_check_sees_what_it_looks_for() -> None:
    found = loaded(names=("Ledger",))
    assert {"lmdb", "fastledger.chain.execution.executor"} <= beneath(found, (*ENGINE, *OTHERS))

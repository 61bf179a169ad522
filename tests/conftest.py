"""Fixtures shared by every test: where the conformance data lies, and a ledger directory."""

import asyncio
import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import uvloop
from hypothesis import settings
from world import World, make_world

# `make fuzz` asks for this profile: the same properties, a hundred times the examples.
settings.register_profile("fuzz", max_examples=10_000, deadline=None)
if os.environ.get("HYPOTHESIS_PROFILE"):
    settings.load_profile(os.environ["HYPOTHESIS_PROFILE"])

# A shell starts what runs in its background with Ctrl-C ignored, and that is inherited: here interrupts are tested.
signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_asyncio_loop_factories(
    config: pytest.Config, item: pytest.Item
) -> dict[str, Callable[[], asyncio.AbstractEventLoop]]:
    """Every coroutine among the tests runs on both loops."""
    return {"asyncio": asyncio.new_event_loop, "uvloop": uvloop.new_event_loop}


# Whole networks of processes, which wait as much as they work: begun first, so that none is left at the end.
LONGEST = ("test_federation", "test_client_cli", "test_node_crash", "test_demo")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: not item.path.name.startswith(LONGEST))


PROJECT_ROOT = Path(__file__).resolve().parent.parent
DATA_REQUIRED = os.environ.get("FASTLEDGER_REQUIRE_DATA") == "1"


def data_folder() -> Path:
    """``FASTLEDGER_DATA``, or ``../shared/data`` beside the checkout."""
    return Path(os.environ.get("FASTLEDGER_DATA", PROJECT_ROOT.parent / "shared" / "data"))


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of third-party vectors; a test that asks for it is skipped where it is absent.

    CI sets ``FASTLEDGER_REQUIRE_DATA=1``, which turns the skip into a failure.
    """
    folder = data_folder()
    if not folder.is_dir():
        message = f"conformance data not found at {folder}: set FASTLEDGER_DATA"
        if DATA_REQUIRED:
            pytest.fail(message)
        pytest.skip(message)
    return folder


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    """A settled world on a ledger of its own, closed at the end."""
    made = make_world(tmp_path / "ledger")
    yield made
    made.close()

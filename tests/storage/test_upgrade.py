"""Ledger directories that earlier releases wrote, and state values that LMDB misreads."""

import json
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from feeds import fill
from storage_faults import flip
from world import World, make_world

from fastledger import Code, Ledger
from fastledger.errors import CorruptionError, FormatVersionError
from fastledger.storage import keys
from fastledger.storage.checkpoint import CheckpointBatch
from fastledger.storage.index import Index, IndexOutdatedError
from fastledger.subjects.record import RECORDS
from fastledger.version import INDEX_FORMAT_VERSION

VECTOR = Path(__file__).parents[1] / "vectors" / "ledger-v1.tar.xz"


@pytest.fixture
def old(tmp_path: Path) -> Iterator[tuple[Path, dict[str, Any]]]:
    """The directory as release 0.1.0 left it at a kill, and what is in it."""
    with tarfile.open(VECTOR) as tar:
        tar.extractall(tmp_path, filter="data")
    yield tmp_path / "ledger", json.loads((tmp_path / "expected.json").read_text())


def test_a_ledger_of_formats_before_subjects_is_refused_and_left_alone(
    old: tuple[Path, dict[str, Any]],
) -> None:  # SPEC-UPG-2
    path, expected = old
    with pytest.raises(IndexOutdatedError):
        Index.open(path / "index", bytes.fromhex(expected["chain_id"]))
    before = {file: file.read_bytes() for file in path.rglob("*") if file.is_file() and file.name != "LOCK"}
    for attempt in (Ledger.open, Ledger.reindex):
        with pytest.raises(FormatVersionError, match="genesis document of format 1"):
            attempt(path)
    after = {file: file.read_bytes() for file in path.rglob("*") if file.is_file()}
    assert {name: data for name, data in after.items() if name in before} == before


def test_a_newer_index_is_left_alone(tmp_path: Path) -> None:  # SPEC-UPG-1
    world = make_world(tmp_path / "ledger")
    number = (INDEX_FORMAT_VERSION + 1).to_bytes(2, "big")
    world.ledger._index.write_checkpoint(CheckpointBatch(meta={keys.META_FORMAT: number}))
    world.close()
    before = (tmp_path / "ledger" / "index" / "data.mdb").read_bytes()
    with pytest.raises(FormatVersionError):
        Ledger.open(tmp_path / "ledger")
    assert (tmp_path / "ledger" / "index" / "data.mdb").read_bytes() == before


# Checksums of state values.


def test_a_flipped_state_value_is_not_read(tmp_path: Path) -> None:  # SPEC-IDX-6
    index = Index.open(tmp_path / "index", b"testnet\0")
    values = {b"a": b"value of a", b"b": b"value of a", b"c": b""}
    index.write_checkpoint(CheckpointBatch(state=values))
    with index.snapshot() as view:
        assert view.get_states(values) == values and dict(view.iter_state()) == values
        stored = dict(view.iter_raw("state"))
    for bit in range(8 * len(stored[b"a"])):
        changed = bytearray(stored[b"a"])
        changed[bit // 8] ^= 1 << bit % 8
        index.put_raw("state", [b"a"], [bytes(changed)])
        with index.snapshot() as view:
            for read in (
                lambda: view.get_state(b"a"),
                lambda: view.get_states([b"c", b"a"]),
                lambda: [*view.iter_state()],
            ):
                with pytest.raises(CorruptionError):
                    read()
    # Nor one that stands under another key, nor one cut short.
    for wrong in (stored[b"b"], b"", b"abc"):
        index.put_raw("state", [b"a"], [wrong])
        with index.snapshot() as view, pytest.raises(CorruptionError):
            view.get_state(b"a")
    index.close()


def test_a_misread_state_value_enters_no_block(world: World) -> None:  # SPEC-IDX-6, SPEC-PIPE-2
    fill(world, 3)
    sealed = world.put(b"before")
    height, root = world.ledger.height, world.ledger.state_root
    world.close()
    data = world.path / "index" / "data.mdb"
    content = data.read_bytes()
    place = content.index(RECORDS.prefix + sealed.record) + 18 + keys.CHECKSUM_BYTES + 2
    flip(data, place)
    world.ledger = Ledger.open(world.path, options=world.options)
    assert (world.ledger.height, world.ledger.state_root) == (height, root)
    amend = world.patient.amend_record("vitals", sealed.record, 2, b"after")
    with pytest.raises(CorruptionError) as caught:
        world.ledger.submit([amend.transaction], [amend.blob])
    assert caught.value.code is Code.CORRUPT
    world.close()
    world.ledger = Ledger.reindex(world.path, options=world.options)
    assert (world.ledger.height, world.ledger.state_root) == (height, root)
    world.ledger.submit([amend.transaction], [amend.blob])[0].raise_for_status()

"""Exports and imports: lines that say what the blocks say, files that another ledger is made of, and forged ones."""

import base64
import hashlib
import io
import json
import shutil
import struct
import threading
from collections.abc import Iterator
from pathlib import Path
from zlib import crc32

import pytest
from feeds import Feed, History, fill, small_files, submit_next
from hypothesis import given
from hypothesis import strategies as st
from world import World, make_world

from fastledger import Code, Ledger, Transaction, import_blocks
from fastledger.chain.keeping.export import BLOCK, END, ENVELOPE, PIECE, BlockFileReader
from fastledger.errors import (
    CorruptionError,
    FastLedgerError,
    FormatVersionError,
    InputError,
    NotFoundError,
    OperationCancelledError,
)
from fastledger.model.block import Block

Filled = tuple[World, list[Feed], History]


@pytest.fixture(scope="module")
def filled(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Filled]:
    with small_files():
        world = make_world(tmp_path_factory.mktemp("export") / "ledger", checkpoint_transactions=40)
        feeds, history = fill(world, 40)
        yield world, feeds, history
        world.close()


def block_file(world: World, **options: object) -> bytes:
    out = io.BytesIO()
    report = world.ledger.export_blocks(out, **options)  # type: ignore[arg-type]
    assert report.byte_count == len(out.getvalue())
    return out.getvalue()


def item(kind: int, payload: bytes) -> bytes:
    checksum = crc32(payload, crc32(struct.pack(">BI", kind, len(payload))))
    return struct.pack(">B3xII", kind, len(payload), checksum) + payload


def rewritten(data: bytes, items: list[tuple[int, bytes]]) -> bytes:
    """The head of a block file with other items, and an end that fits them."""
    length = 16 + int.from_bytes(data[12:16], "big")
    body = data[:length] + b"".join(item(*each) for each in items)
    blocks = sum(kind == BLOCK for kind, _ in items)
    return body + item(END, struct.pack(">Q", blocks) + hashlib.sha256(body).digest())


def items_of(data: bytes) -> list[tuple[int, bytes]]:
    return [(each.kind, each.payload) for each in BlockFileReader(io.BytesIO(data), "file").items()]


def test_lines_say_what_the_blocks_say(filled: Filled) -> None:  # SPEC-EXP-1
    world, _, _ = filled
    out = io.BytesIO()
    report = world.ledger.export_ndjson(out)
    lines = [json.loads(line) for line in out.getvalue().splitlines()]
    assert len(lines) == report.transactions == world.ledger.transaction_count
    assert [line["seq"] for line in lines] == list(range(len(lines)))
    for line in lines:
        entry = world.ledger.get(bytes.fromhex(line["txid"]))
        transaction = Transaction.decode(base64.b64decode(line["encoded"]))
        assert (transaction.txid.hex(), transaction.encoded) == (line["txid"], entry.encoded)
        assert (line["height"], line["index"], line["time_ms"]) == (entry.height, entry.index, entry.time_ms)
        assert (line["kind"], line["signer"]) == (transaction.kind, transaction.signer.hex())
        assert (line["code"], line["seq"]) == (entry.code, entry.seq)
    assert set(lines[0]) == {
        *("seq", "height", "index", "time_ms", "txid", "kind", "signer", "code", "encoded"),
    }


def test_ranges_of_heights(filled: Filled) -> None:  # SPEC-EXP-2
    world, _, _ = filled
    out = io.BytesIO()
    report = world.ledger.export_ndjson(out, from_height=5, to_height=9)
    lines = [json.loads(line) for line in out.getvalue().splitlines()]
    assert {line["height"] for line in lines} == set(range(5, 10)) and report.blocks == 5
    assert [world.ledger.get(bytes.fromhex(line["txid"])).seq for line in lines] == [
        line["seq"] for line in lines
    ]
    heights = [
        Block.decode(payload).height for _, payload in items_of(block_file(world, from_height=3, to_height=4))
    ]
    assert heights == [3, 4]
    assert (
        world.ledger.export_ndjson(io.BytesIO(), from_height=3, to_height=10**9).to_height
        == world.ledger.height
    )
    for bounds in (
        {"from_height": 9, "to_height": 8},
        {"from_height": world.ledger.height + 1},
        {"from_height": -1},
    ):
        with pytest.raises(InputError):
            world.ledger.export_ndjson(io.BytesIO(), **bounds)
    cancel = threading.Event()
    cancel.set()
    with pytest.raises(OperationCancelledError):
        world.ledger.export_ndjson(io.BytesIO(), cancel=cancel)


def test_a_ledger_is_made_of_a_block_file(filled: Filled, tmp_path: Path) -> None:  # SPEC-EXP-3, SPEC-EXP-5
    world, feeds, history = filled
    ledger = world.ledger
    key = ledger._executor._key
    for name, node_key in (("replica", None), ("node", key)):
        data = block_file(world, with_blobs=True)
        report = import_blocks(io.BytesIO(data), tmp_path / name, node_key=node_key)
        assert (report.block_id, report.state_root) == (ledger.head, ledger.state_root)
        assert report.has_node_key == (node_key is not None)
    with Ledger.open(tmp_path / "replica", replica=True) as replica:
        assert replica.verify().problems == []
        history.check(replica, everything=True)
        history._checked = 0
        with pytest.raises(InputError):
            replica.submit([history.batches[0].transactions[0]])
        out = io.BytesIO()
        replica.export_blocks(out, with_blobs=True)
        assert out.getvalue() == data
    with Ledger.open(tmp_path / "node", options=world.options) as node:
        submit_next(node, feeds[0], History())
    with pytest.raises(InputError):
        import_blocks(io.BytesIO(data), tmp_path / "node")


def test_without_envelopes_the_chain_is_the_same(filled: Filled, tmp_path: Path) -> None:  # SPEC-EXP-3
    world, _, _ = filled
    data = block_file(world)
    assert {kind for kind, _ in items_of(data)} == {BLOCK}
    report = import_blocks(io.BytesIO(data), tmp_path / "bare")
    assert report.state_root == world.ledger.state_root
    with Ledger.open(tmp_path / "bare", replica=True) as bare:
        assert all("missing" in problem for problem in bare.verify().problems)


def test_every_damaged_byte_is_found(filled: Filled) -> None:  # SPEC-EXP-4
    world, _, _ = filled
    data = block_file(world, to_height=2)
    for offset in range(0, len(data), 7):
        changed = bytearray(data)
        changed[offset] ^= 1 << offset % 8
        with pytest.raises((CorruptionError, FormatVersionError)):
            items_of(bytes(changed))
    for short in range(0, len(data), 211):
        with pytest.raises(CorruptionError):
            items_of(data[:short])
    with pytest.raises(CorruptionError):
        items_of(data + b"\0")


@given(st.binary(max_size=400))
def test_any_bytes_are_a_file_or_a_typed_error(data: bytes) -> None:  # SPEC-EXP-4
    for head in (b"", b"FLBLOCKS\0\1\0\0\0\0\0\2ab"):
        try:
            items_of(head + data)
        except FastLedgerError:
            continue
        assert head


def test_forged_files_are_refused_and_leave_nothing(filled: Filled, tmp_path: Path) -> None:  # SPEC-EXP-5
    world, _, _ = filled
    data = block_file(world, with_blobs=True)
    items = items_of(data)
    blocks = [each for each in items if each[0] == BLOCK]
    first_piece = next(n for n, each in enumerate(items) if each[0] == PIECE)
    first_envelope = next(n for n, each in enumerate(items) if each[0] == ENVELOPE)
    victim = Block.decode(blocks[5][1])
    forged = bytearray(blocks[5][1])
    at = forged.index(victim.transactions) + len(victim.transactions) - 1
    forged[at] ^= 1  # the last byte of a signature
    piece = items[first_piece][1]
    cases = {
        "a forged signature": [*blocks[:5], (BLOCK, bytes(forged)), *blocks[6:]],
        "a block left out": [*blocks[:5], *blocks[6:]],
        "blocks exchanged": [*blocks[:5], blocks[6], blocks[5]],
        "not from the beginning": blocks[3:],
        "nothing": [],
        "no block at all": [(BLOCK, b"\x80")],
        "another envelope": [*items[:first_piece], (PIECE, piece[:-1] + b"\0"), *items[first_piece + 1 :]],
        "an envelope without pieces": [*items[:first_piece], *items[first_piece + 1 :]],
        "pieces without an envelope": [*items[:first_envelope], *items[first_envelope + 1 :]],
        "an envelope nobody names": [(PIECE, b"x"), (ENVELOPE, hashlib.sha256(b"x").digest()), *blocks],
        "an envelope at the end": [*blocks, (PIECE, b"x"), (ENVELOPE, hashlib.sha256(b"x").digest())],
    }
    for name, changed in cases.items():
        with pytest.raises(InputError):
            import_blocks(io.BytesIO(rewritten(data, changed)), tmp_path / "made")
        assert list(tmp_path.iterdir()) == [], name
    assert import_blocks(io.BytesIO(rewritten(data, blocks)), tmp_path / "made").height == world.ledger.height


def test_a_pruned_ledger_exports_what_it_keeps(tmp_path: Path) -> None:  # SPEC-EXP-2
    with small_files():
        world = make_world(tmp_path / "ledger")
        fill(world, 50)
        world.ledger.prune(keep_blocks=1)
        first = world.ledger.first_height
        assert world.ledger.export_ndjson(io.BytesIO()).from_height == first
        with pytest.raises(NotFoundError) as caught:
            world.ledger.export_blocks(io.BytesIO(), from_height=first - 1)
        assert caught.value.code is Code.PRUNED
        with pytest.raises(InputError):
            import_blocks(io.BytesIO(block_file(world)), tmp_path / "made")
        world.close()
        shutil.rmtree(tmp_path / "ledger")

"""Blocks and state, checked from outside with hashlib and cbor2 alone (SPEC-BLK, SPEC-STATE, SPEC-GEN, SPEC-REP)."""

import hashlib
import shutil
import struct
from pathlib import Path

import cbor2
import msgspec
import pytest
from world import World, make_world

from fastledger import Code, Ledger
from fastledger.chain.admission import Batch, admit
from fastledger.chain.execution.executor import Executor, genesis_writes
from fastledger.chain.execution.store import ChainStore
from fastledger.consensus.engine import (
    BlockBuilt,
    BuildBlock,
    EngineTip,
    FinaliseBlock,
    SealBlock,
    TransactionsPending,
)
from fastledger.consensus.solo import SoloEngine
from fastledger.crypto.signing import SigningKey
from fastledger.errors import InputError
from fastledger.limits import CLOCK_SKEW_MS_MAX, VALIDITY_WINDOW_MS_MAX
from fastledger.model.block import Block, Header, HeaderBody
from fastledger.model.body import parse_body
from fastledger.model.ids import identity_id, random_id, rotation_digest
from fastledger.model.receipt import make_seal
from fastledger.state.transition import all_valid, validity_code
from fastledger.state.view import View, write_set_digest
from fastledger.storage.index import Index
from fastledger.storage.log import FrameRef
from fastledger.subjects.catalogue import REGISTRY
from fastledger.subjects.folder import FOLDER_EXISTS, FOLDERS, Folder
from fastledger.subjects.record import RECORDS, UNKNOWN_RECORD

BODIES = {name: kind.body for name, kind in REGISTRY.kinds.items()}


def sha256(data: bytes) -> bytes:
    return hashlib.sha256(data).digest()


def tree_root(entries: list[bytes]) -> bytes:
    """RFC 9162 §2.1.1, as it reads."""
    if not entries:
        return sha256(b"")
    if len(entries) == 1:
        return sha256(b"\0" + entries[0])
    split = 1 << (len(entries) - 1).bit_length() - 1
    return sha256(b"\1" + tree_root(entries[:split]) + tree_root(entries[split:]))


def txid_of(transaction: bytes) -> bytes:
    protected, _, payload, _ = cbor2.loads(transaction).value
    return sha256(cbor2.dumps(["Signature1", protected, b"", payload]))


def blocks_of(ledger: Ledger) -> list[Block]:
    return [ledger.block(height) for height in range(ledger.height + 1)]


def test_blocks_commit_to_everything(world: World) -> None:  # SPEC-BLK-4, SPEC-BLK-5, SPEC-BLK-8
    world.put()
    world.ledger.submit([world.clinic.open_folders("x"), world.clinic.erase_record(bytes(16))])
    blocks = blocks_of(world.ledger)
    ids: list[bytes] = []
    for block in blocks:
        transactions = [block.transaction_bytes(index) for index in range(block.count)]
        txids = [txid_of(transaction) for transaction in transactions]
        results = [txid + struct.pack(">H", block.result(i)) for i, txid in enumerate(txids)]
        assert block.body.tx_root == tree_root(txids)
        assert block.body.result_root == tree_root(results)
        assert block.body.history_root == tree_root(ids)
        header = block.header.encode()
        assert block.block_id == sha256(sha256(header))
        assert header[36:68] == sha256(block.body.encode())
        if ids:
            assert header[4:36] == ids[-1]
            assert block.body.seal_ref == sha256(blocks[block.height - 1].seal)
            assert block.body.time_ms > blocks[block.height - 1].body.time_ms
        ids.append(block.block_id)
    assert [blocks[-1].result(i) for i in range(2)] == [Code.OK, UNKNOWN_RECORD]


def test_genesis_is_block_zero(world: World) -> None:  # SPEC-GEN-1
    genesis = world.ledger.genesis
    block = world.ledger.block(0)
    assert genesis.chain_id == sha256((world.path / "genesis.cbor").read_bytes())[:8]
    assert (block.count, block.seal, block.body.seal_ref) == (0, b"", genesis.digest)
    writes = genesis_writes(genesis)
    assert block.body.state_root == sha256(bytes(32) + write_set_digest(writes))


def test_the_state_root_chains_write_sets() -> None:  # SPEC-STATE-2
    writes: dict[bytes, bytes | None] = {b"b": b"value", b"a": None}
    plain = struct.pack(">I", 1) + b"a" + struct.pack(">I", 0)
    plain += struct.pack(">I", 1) + b"b" + struct.pack(">I", 6) + b"value"
    assert write_set_digest(writes) == sha256(plain)


def test_state_values_are_arrays_in_shortest_form(world: World) -> None:  # SPEC-STATE-3
    folder = world.patient.labels["vitals"]
    with world.ledger._store.snapshot() as snapshot:
        raw = snapshot.get_state(FOLDERS.prefix + folder)
    assert raw == b"\x92\xc4\x10" + world.patient.identity + b"\x01"


def test_a_refused_transaction_writes_nothing(world: World) -> None:  # SPEC-STATE-4
    # The second folder id exists, the first would be new: neither may stay.
    held = world.patient.labels["vitals"]
    fresh = random_id()
    body = BODIES["folder.open"](folders=[fresh, held], keys=[bytes(40)] * 2, wrap=bytes(80))  # type: ignore[call-arg]
    outcome = world.ledger.submit([world.doctor.sign(body)])[0]
    assert outcome.code == FOLDER_EXISTS
    with world.ledger._store.snapshot() as snapshot:
        assert snapshot.get_state(FOLDERS.prefix + fresh) is None


def test_ids_follow_from_keys_and_chance(world: World) -> None:  # SPEC-ID-1, SPEC-ID-2, SPEC-ID-3
    key = world.patient.public_key
    assert identity_id(key) == sha256(b"fastledger/identity/v1" + key)[:16]
    assert len({random_id() for _ in range(100)}) == 100
    digest = rotation_digest(bytes(8), bytes(16), key)
    assert digest == sha256(b"fastledger/rotate/v1" + bytes(24) + key)


@pytest.mark.parametrize(
    ("issued", "expires", "code"),
    [
        (0, 1000, Code.OK),
        (1000, 1000, Code.WINDOW_TOO_LONG),
        (1001, 1000, Code.WINDOW_TOO_LONG),
        (1000 - VALIDITY_WINDOW_MS_MAX, 1000, Code.OK),
        (999 - VALIDITY_WINDOW_MS_MAX, 1000, Code.WINDOW_TOO_LONG),
        (0, 999, Code.EXPIRED),
        (1000 + CLOCK_SKEW_MS_MAX, 200_000, Code.OK),
        (1001 + CLOCK_SKEW_MS_MAX, 200_000, Code.NOT_YET_VALID),
    ],
)
def test_validity_windows(issued: int, expires: int, code: Code) -> None:  # SPEC-TX-9
    assert validity_code(issued, expires, 1000) == code
    for others in ([], [(0, 2000), (900, 1100)]):  # the extremes of a batch say the same of all
        windows = [(issued, expires), *others]
        spans = [max(end - start, 0) for start, end in windows]
        extremes = (
            max(start for start, _ in windows),
            min(end for _, end in windows),
            min(spans),
            max(spans),
        )
        assert all_valid(extremes, 1000) == (code == Code.OK)


def test_a_late_retry_gets_the_first_verdict(world: World) -> None:  # SPEC-ADM-3
    accepted, refused = world.doctor.open_folders("x"), world.doctor.erase_record(bytes(16))
    first = world.ledger.submit([accepted, refused])
    world.clock.advance(VALIDITY_WINDOW_MS_MAX)
    late = world.doctor.open_folders("y")
    world.clock.advance(VALIDITY_WINDOW_MS_MAX)
    again = world.ledger.submit([accepted, late, refused])
    assert [outcome.code for outcome in again] == [Code.OK, Code.EXPIRED, UNKNOWN_RECORD]
    assert [outcome.duplicate for outcome in again] == [True, False, True]
    assert (again[0].height, again[2].index) == (first[0].height, first[1].index)


def test_both_ways_to_a_body_agree(world: World) -> None:  # SPEC-BODY-1
    world.put()
    world.grant(world.clinic)
    world.submit(world.regulator.revoke_identity(world.clinic.identity, reason=2**32 - 1))
    block_kinds = set()
    for block in blocks_of(world.ledger)[1:]:
        batch = admit(Batch.of_block(block), REGISTRY.rules(1), chain_id=world.ledger.chain_id)
        assert set(batch.codes) == {0}
        for index in range(block.count):
            kind, body = batch.scan.kind(index), batch.scan.body(index)
            typed = REGISTRY.rules(1).decode_body(kind, batch.scan.body_as_msgpack(index))
            assert typed == parse_body(kind, cbor2.loads(body)) == batch.bodies[index]
            block_kinds.add(kind)
    assert {"identity.register", "record.put", "consent.grant", "identity.revoke"} <= block_kinds


# The engine.


def test_solo_builds_seals_and_finalises() -> None:  # SPEC-ENG-1, SPEC-ENG-2, SPEC-BLK-6
    key = SigningKey.generate()
    engine = SoloEngine([key.public_key])
    tip = EngineTip(4, bytes(32), 5_000, b"")
    assert engine.handle(TransactionsPending(tip, 9_000)) == (BuildBlock(9_000, 0),)
    assert engine.handle(TransactionsPending(tip, 4_000)) == (BuildBlock(5_001, 0),)
    body = HeaderBody(5, 5_001, *[bytes(32)] * 4, key.public_key, bytes(32))
    header = Header(tip.block_id, body.commitment, 5)
    assert engine.handle(BlockBuilt(header, body)) == (SealBlock(5), FinaliseBlock(5))
    engine.check(header, body, tip)
    with pytest.raises(InputError, match="does not advance"):
        engine.check(header, body, EngineTip(4, bytes(32), 5_001, b""))
    with pytest.raises(InputError, match="proposer"):
        SoloEngine([SigningKey.generate().public_key]).check(header, body, tip)
    with pytest.raises(InputError, match="work"):
        engine.check(Header(tip.block_id, body.commitment, 5, bits=1), body, tip)


# Replay.


def fresh_executor(world: World, folder: Path) -> tuple[Executor, ChainStore, Index]:
    index = Index.open(folder, world.ledger.chain_id)
    store = ChainStore(index)
    ledger = world.ledger
    engine = SoloEngine(ledger.genesis.proposers)
    return (
        Executor(genesis=ledger.genesis, store=store, log=ledger._log, engine=engine, key=None),
        store,
        index,
    )


def forged(block: Block, key: SigningKey, chain_id: bytes, **changes: object) -> Block:
    """The block with other contents and everything above them made to fit, as its proposer could."""
    body_fields = {name: changes.pop(name) for name in list(changes) if hasattr(block.body, name)}
    fields = {name: getattr(block.body, name) for name in HeaderBody.__dataclass_fields__} | body_fields
    body = HeaderBody(**fields)
    header = Header(block.header.previous_id, body.commitment, body.time_ms // 1000)
    parts = {name: getattr(block, name) for name in ("transactions", "lengths", "results")} | changes
    seal = make_seal(key, chain_id, header, body, len(parts["lengths"]) // 4)
    return Block(header, body, seal, **parts)


@pytest.mark.parametrize(
    ("what", "changes"),
    [
        ("transactions root", {"tx_root": bytes(32)}),
        ("results root", {"result_root": bytes(32)}),
        ("state root", {"state_root": bytes(32)}),
        ("history root", {"history_root": bytes(32)}),
        ("seal reference", {"seal_ref": bytes(32)}),
        ("results", {"results": b"\0\xc8"}),
        ("height after", {"height": 9}),
        ("number of transactions", {"transactions": b"", "lengths": b"", "results": b""}),
    ],
)
def test_a_block_that_differs_is_refused(
    tmp_path: Path, what: str, changes: dict[str, object]
) -> None:  # SPEC-BLK-5, SPEC-BLK-9
    key = SigningKey.generate()
    world = make_world(tmp_path / "ledger", settled=False)
    world.close()
    shutil.rmtree(tmp_path / "ledger")
    world.ledger = Ledger.create(
        tmp_path / "ledger", authorities=[world.regulator.authority], node_key=key, options=world.options
    )
    for wallet in world.wallets:
        wallet.join(world.ledger.chain_id)
    world.ledger.submit([world.patient.register("patient")])  # type: ignore[arg-type]
    executor, store, index = fresh_executor(world, tmp_path / "index")
    reference = FrameRef(0, 0, 0)
    executor.start_from(world.ledger.block(0), reference)
    block = forged(world.ledger.block(1), key, world.ledger.chain_id, **changes)
    batch = admit(Batch.of_block(block), REGISTRY.rules(1), chain_id=world.ledger.chain_id)
    with pytest.raises(InputError, match=what) as error:
        executor.replay(block, reference, batch)
    assert error.value.code == Code.BAD_BLOCK
    good = world.ledger.block(1)
    batch = admit(Batch.of_block(good), REGISTRY.rules(1), chain_id=world.ledger.chain_id)
    executor.replay(good, reference, batch)
    # SPEC-BLK-7: the same transactions again, on top, are in the chain already.
    twice = forged(
        good,
        key,
        world.ledger.chain_id,
        height=2,
        time_ms=good.body.time_ms + 1,
        seal_ref=sha256(good.seal),
    )
    header = Header(good.block_id, twice.body.commitment, twice.header.time_s)
    seal = make_seal(key, world.ledger.chain_id, header, twice.body, 1)
    twice = Block(header, twice.body, seal, twice.transactions, twice.lengths, twice.results)
    with pytest.raises(InputError, match="duplicate"):
        executor.replay(twice, reference, batch)
    store.close()
    index.close()
    world.close()


def test_a_crash_replays_and_a_lost_index_is_rebuilt(
    tmp_path: Path,
) -> None:  # SPEC-REP-1, SPEC-REP-2, SPEC-IDX-1
    world = make_world(tmp_path / "ledger")
    sealed = world.put()
    copy = tmp_path / "copy"
    # The directory as a crash would leave it: no checkpoint since the beginning.
    shutil.copytree(tmp_path / "ledger", copy)
    root = world.ledger.block(world.ledger.height).body.state_root
    world.close()
    for lose_index in (False, True):
        if lose_index:
            shutil.rmtree(copy / "index")
        with Ledger.open(copy, options=world.options) as ledger:
            assert ledger.replayed_blocks > 0
            assert ledger.entity(RECORDS, sealed.record).version == 1
            assert ledger.block(ledger.height).body.state_root == root
            assert ledger.verify().problems == []
    with Ledger.open(copy, options=world.options) as ledger:
        assert ledger.replayed_blocks == 0
    with Ledger.reindex(copy) as ledger:
        assert ledger.replayed_blocks == ledger.height + 1
        assert ledger.verify().ok


OWNER, HEIR = b"o" * 16, b"h" * 16


def test_a_view_keeps_what_is_committed_and_forgets_what_is_not() -> None:  # SPEC-STATE-4
    base = {FOLDERS.prefix + b"a": msgspec.msgpack.encode(Folder(OWNER, 1))}
    view = View(base.get)
    assert view.load(FOLDERS, b"a") == Folder(OWNER, 1)
    view.store(FOLDERS, b"a", Folder(HEIR, 2))
    view.store(FOLDERS, b"b", Folder(HEIR, 1))
    assert view.load(FOLDERS, b"a") == Folder(HEIR, 2)
    view.rollback()
    assert (view.load(FOLDERS, b"a"), view.load(FOLDERS, b"b")) == (Folder(OWNER, 1), None)
    view.store(FOLDERS, b"a", Folder(HEIR, 3))
    view.commit()
    assert view.load(FOLDERS, b"a") == Folder(HEIR, 3)
    view.remove(FOLDERS, b"a")
    assert view.load(FOLDERS, b"a") is None
    view.commit()
    assert view.load(FOLDERS, b"a") is None
    assert view.writes == {FOLDERS.prefix + b"a": None}

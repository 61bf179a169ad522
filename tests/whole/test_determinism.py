"""The same transactions give the same chain: on any machine, hash seed, clock, grouping and checkpoint rhythm."""

import hashlib
import json
import os
import random
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest
from conformance import sample
from feeds import fill, small_files
from strategies import body_of
from world import START_MS, Clock, World, make_world, new_wallet

from fastledger import Genesis, Ledger, LedgerOptions, Purpose, Right, SigningKey, Transaction
from fastledger.crypto.node_key import load_node_key
from fastledger.errors import AccessRefused
from fastledger.model.block import Block
from fastledger.storage.directory import LedgerDirectory
from fastledger.storage.index import DATABASES
from fastledger.storage.log import SegmentLog
from fastledger.subjects.catalogue import REGISTRY
from fastledger.subjects.consent import ConsentGrant
from fastledger.subjects.identity import UNKNOWN_SIGNER

BODIES = {name: kind.body for name, kind in REGISTRY.kinds.items()}

SUPPORT = Path(__file__).resolve().parents[1] / "support"

Grouping = Callable[[Sequence[bytes]], list[list[bytes]]]


@dataclass
class Chain:
    """A chain as its blocks have it, and what an honest node makes of it."""

    path: Path
    genesis: Genesis
    key: SigningKey
    blocks: list[Block]
    index: str


def index_digest(ledger: Ledger) -> str:
    """SHA-256 over every entry of the index."""
    ledger.checkpoint()
    digest = hashlib.sha256()
    with ledger._index.snapshot() as view:
        for database in DATABASES[1:]:
            for key, value in view.iter_all(database):
                digest.update(b"".join((database.encode(), b"\0", key, b"\0", value, b"\0")))
    return digest.hexdigest()


def do_everything(world: World) -> None:
    """Transactions of every kind, granted and refused."""
    patient, clinic, doctor = world.patient, world.clinic, world.doctor
    sealed, kept = world.put(), world.put(b"another")
    grant = world.grant(clinic)
    assert isinstance(grant.body, ConsentGrant)
    world.ledger.read(clinic.access(kept.record, Purpose.TREATMENT))
    with pytest.raises(AccessRefused):
        world.ledger.read(clinic.access(kept.record, Purpose.RESEARCH))
    amended = patient.amend_record("vitals", kept.record, 2, b"corrected")
    world.ledger.submit([amended.transaction], [amended.blob])[0].raise_for_status()
    world.submit(patient.rotate_folder("vitals"))
    world.submit(patient.rekey(grant.body.consent, clinic.identity, clinic.kem_public, ["vitals"]))
    world.grant(world.hospital, "laboratory", rights=Right.READ | Right.WRITE)
    world.submit(patient.erase_record(sealed.record), patient.revoke_consent(grant.body.consent))
    successor = new_wallet(world.clock)
    world.submit(doctor.rotate_to(successor))
    world.clock.advance(5_000)
    world.submit(world.hospital.revoke_identity(doctor.identity))
    assert world.ledger.submit([doctor.erase_record(bytes(16))])[0].code == UNKNOWN_SIGNER
    # Of subjects that the story leaves out at least what their rules say to a patient.
    told = {entry.transaction.kind for entry in world.ledger.query(limit=1_000)}
    for kind in set(BODIES) - told:
        world.ledger.submit([patient.sign(body) for body in sample(body_of(kind), 5)])


@pytest.fixture(scope="module")
def chain(tmp_path_factory: pytest.TempPathFactory) -> Chain:
    path = tmp_path_factory.mktemp("chain") / "ledger"
    with small_files(128 * 1024):
        world = make_world(path, checkpoint_transactions=25)
        do_everything(world)
        fill(world, 20)
        ledger = world.ledger
        blocks = [ledger.block(height) for height in range(ledger.height + 1)]
        made = Chain(
            path, ledger.genesis, load_node_key(path / "node.key", None), blocks, index_digest(ledger)
        )
        world.close()
    encoded = [block.transaction_bytes(at) for block in blocks for at in range(block.count)]
    assert {Transaction.decode(each).kind for each in encoded} == set(BODIES)
    assert len(blocks) > 30
    return made


def whole(transactions: Sequence[bytes]) -> list[list[bytes]]:
    return [list(transactions)]


def singly(transactions: Sequence[bytes]) -> list[list[bytes]]:
    return [[each] for each in transactions]


def with_noise(transactions: Sequence[bytes]) -> list[list[bytes]]:
    """Forgeries before each transaction, the same ones again behind it."""
    return [[b"", each[:-1] + bytes([each[-1] ^ 1]), each, b"noise", each] for each in transactions]


def at_random(transactions: Sequence[bytes]) -> list[list[bytes]]:
    rng = random.Random(len(transactions))
    groups: list[list[bytes]] = [[]]
    for each in transactions:
        if groups[-1] and rng.random() < 0.5:
            groups.append([])
        groups[-1].append(each)
    return groups


def build_again(
    chain: Chain, path: Path, grouping: Grouping, *, checkpoint_transactions: int = 10**9
) -> Ledger:
    """A second ledger of the same genesis, given the same transactions block by block."""
    LedgerDirectory.create(
        path,
        chain.genesis.encoded,
        fill=lambda directory: SegmentLog.create(directory.root, chain.genesis.chain_id).close(),
    ).close()
    clock = Clock()
    options = LedgerOptions(
        clock_ms=clock, require_blobs=False, checkpoint_transactions=checkpoint_transactions
    )
    ledger = Ledger.open(path, node_key=chain.key, options=options)
    for block in chain.blocks[1:]:
        clock.now_ms = block.body.time_ms
        transactions = [block.transaction_bytes(at) for at in range(block.count)]
        # While execution is paused the groups queue up, and become one block.
        with ledger._pipeline.paused():
            futures = [ledger.submit_nowait(group) for group in grouping(transactions)]
        for future in futures:
            future.result()
    return ledger


@pytest.mark.parametrize(
    "grouping", [whole, singly, with_noise, at_random], ids=lambda grouping: grouping.__name__
)
def test_grouping_does_not_matter(chain: Chain, tmp_path: Path, grouping: Grouping) -> None:  # SPEC-STATE-1
    with small_files(128 * 1024), build_again(chain, tmp_path / "again", grouping) as ledger:
        assert [ledger.block(height).block_id for height in range(ledger.height + 1)] == [
            block.block_id for block in chain.blocks
        ]
        assert ledger.block(ledger.height).body.state_root == chain.blocks[-1].body.state_root


@pytest.mark.parametrize("checkpoint_transactions", [1, 7])
def test_checkpoints_do_not_matter(
    chain: Chain, tmp_path: Path, checkpoint_transactions: int
) -> None:  # SPEC-IDX-4
    path = tmp_path / "again"
    with small_files(128 * 1024):
        with build_again(chain, path, whole, checkpoint_transactions=checkpoint_transactions) as ledger:
            assert ledger.head == chain.blocks[-1].block_id
        with Ledger.open(path, node_key=chain.key) as ledger:
            assert ledger.replayed_blocks == 0
            # The places of blocks are the same, too: seals are deterministic, and so every byte of the log.
            assert index_digest(ledger) == chain.index


@pytest.mark.parametrize("now_ms", [0, START_MS, 2**52])
def test_the_clock_does_not_matter_to_a_replay(
    chain: Chain, tmp_path: Path, now_ms: int
) -> None:  # SPEC-STATE-1
    shutil.copytree(chain.path, tmp_path / "copy")
    shutil.rmtree(tmp_path / "copy" / "index")
    options = LedgerOptions(clock_ms=Clock(now_ms))
    with small_files(128 * 1024), Ledger.open(tmp_path / "copy", options=options) as ledger:
        assert ledger.replayed_blocks == len(chain.blocks)
        assert ledger.head == chain.blocks[-1].block_id
        assert index_digest(ledger) == chain.index
        assert ledger.verify().problems == []


REPLAY = """
import json, sys
from pathlib import Path
sys.path[:0] = sys.argv[2:]
from feeds import small_files
from test_determinism import index_digest
from fastledger import Ledger
with small_files(128 * 1024), Ledger.open(Path(sys.argv[1])) as ledger:
    roots = [ledger.block(height).body.state_root.hex() for height in range(ledger.height + 1)]
    replayed = ledger._executor.tip_position.state_root.hex()
    print(json.dumps([ledger.replayed_blocks, replayed, roots, index_digest(ledger), hash(b"seeded")]))
"""


def test_the_hash_seed_does_not_matter(chain: Chain, tmp_path: Path) -> None:  # SPEC-STATE-1, SPEC-REP-2
    roots = [block.body.state_root.hex() for block in chain.blocks]
    hashes = set()
    for seed in ("0", "1", "4242"):
        copy = tmp_path / seed
        shutil.copytree(chain.path, copy)
        shutil.rmtree(copy / "index")
        done = subprocess.run(
            [sys.executable, "-c", REPLAY, str(copy), str(Path(__file__).parent), str(SUPPORT)],
            capture_output=True,
            text=True,
            check=True,
            timeout=60,
            env={**os.environ, "PYTHONHASHSEED": seed},
        )
        *found, seeded = json.loads(done.stdout)
        assert found == [len(chain.blocks), roots[-1], roots, chain.index]
        hashes.add(seeded)
    assert len(hashes) == 3

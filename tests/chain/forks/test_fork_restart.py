"""Restarts of a chain with forks at every step: crashes, power cuts, kill -9 (SPEC-FORK-9, SPEC-JRN)."""

import errno
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from fork_miner import exchange
from fork_world import Node, make_genesis, patients
from storage_faults import CountingFiles, CrashingFiles, FailingFiles, PowerCutFiles, SimulatedCrash, flip
from world import START_MS, Clock

from fastledger import Genesis, Ledger, LedgerOptions, SigningKey
from fastledger.chain.forks.events import BlockConnected, BlocksFinal, Reorganised
from fastledger.errors import LedgerError, LedgerHaltedError
from fastledger.model.block import Block


@pytest.fixture(scope="module")
def story(tmp_path_factory: pytest.TempPathFactory) -> tuple[Genesis, list[Block]]:
    """Blocks in which a node that takes them in order reorganises twice and finalises some."""
    root = tmp_path_factory.mktemp("story")
    keys = [SigningKey.generate() for _ in range(2)]
    genesis = make_genesis(keys)
    one, two = (Node(root / str(at), genesis, key).start() for at, key in enumerate(keys))
    told: list[Block] = []
    for first, second, ours, theirs in ((2, 3, one, two), (2, 4, two, one), (6, 0, one, two)):
        ours.submit(*patients(genesis, 8))
        told += (mine := ours.mine(first))
        told += (rival := theirs.mine(second))
        ours.take(*rival)
        if not rival:
            theirs.take(*mine)
    assert one.branch == two.branch
    for node in (one, two):
        node.stop()
    return genesis, told


def deliver(node: Node, blocks: list[Block]) -> None:
    for block in blocks:
        node.now_ms = max(node.now_ms, block.body.time_ms)
        node.chain.add_block(block, node.now_ms)
        node.drain()


def reference(root: Path, story: tuple[Genesis, list[Block]]) -> tuple[list[bytes], bytes, int]:
    node = Node(root / "reference", story[0], None).start()
    deliver(node, story[1])
    assert any(isinstance(event, Reorganised) for event in node.events)
    found = node.branch, node.chain.state_root, node.chain.final.height
    assert found[2] > 4
    node.stop()
    return found


def close_crashed(node: Node) -> None:
    """The process is gone: nothing more is written, and what it held open is closed."""
    for name in ("journal", "store", "index", "log"):
        part = getattr(node, name, None)
        if part is not None:
            part.close()


def check_and_finish(crashed: Node, story: tuple[Genesis, list[Block]], expected: object) -> None:
    """What was told before the crash is there; with the same blocks once more it ends like any other."""
    final = [layer for event in crashed.events if isinstance(event, BlocksFinal) for layer in event.layers]
    told = [event.block.block_id for event in crashed.events if isinstance(event, BlockConnected)]
    node = Node(crashed.root, story[0], None, now_ms=crashed.now_ms).start()
    for layer in final:
        assert node.chain.block_id_at(layer.height) == layer.entry.block_id
    assert node.chain.final.height >= max((layer.height for layer in final), default=0)
    if told:
        assert node.chain.has_block(told[-1])
        assert node.chain.tip.height >= next(
            event.height for event in reversed(crashed.events) if isinstance(event, BlockConnected)
        )
    deliver_rest(node, story[1])
    assert (node.branch, node.chain.state_root, node.chain.final.height) == expected
    node.restart()
    assert (node.branch, node.chain.state_root, node.chain.final.height) == expected
    node.stop()


def deliver_rest(node: Node, blocks: list[Block]) -> None:
    """As a peer would: what is final or dead by now is not asked for."""
    node.now_ms = blocks[-1].body.time_ms
    for block in blocks:
        if node.chain.tree.get(block.header.previous_id) is not None:
            node.take(block)


def test_a_crash_at_any_operation_loses_nothing_told(
    tmp_path: Path, story: tuple[Genesis, list[Block]]
) -> None:  # SPEC-FORK-9
    expected = reference(tmp_path, story)
    counting = CountingFiles()
    node = Node(tmp_path / "counted", story[0], None, counting).start()
    first = counting.operations
    deliver(node, story[1])
    node.stop()
    total = counting.operations
    assert total - first > 60
    assert "rename" in counting.kinds[first:]  # the journal was rewritten
    for crash_at in range(first, total, 2):
        torn = (0.0, 0.5, 1.0)[crash_at % 3]
        node = Node(tmp_path / f"crash-{crash_at}", story[0], None, CrashingFiles(crash_at, torn))
        with pytest.raises(SimulatedCrash):
            node.start()
            deliver(node, story[1])
        close_crashed(node)
        check_and_finish(node, story, expected)


def test_a_power_cut_takes_nothing_final(
    tmp_path: Path, story: tuple[Genesis, list[Block]]
) -> None:  # SPEC-JRN-1
    expected = reference(tmp_path, story)
    for seed in range(12):
        rng, files = random.Random(seed), PowerCutFiles()
        node = Node(tmp_path / f"cut-{seed}", story[0], None, files).start()
        deliver(node, story[1][: rng.randrange(1, len(story[1]))])
        files.cut(rng)
        close_crashed(node)
        check_and_finish(node, story, expected)


@pytest.mark.parametrize(
    ("kind", "code"), [("write", errno.ENOSPC), ("write", errno.EIO), ("sync", errno.EIO)]
)
def test_a_failing_disk_halts_and_nothing_is_told(
    tmp_path: Path, story: tuple[Genesis, list[Block]], kind: str, code: int
) -> None:  # SPEC-JRN-4
    expected = reference(tmp_path, story)
    for nth in range(0, 24, 3):
        files = FailingFiles(kind, code, lambda seen, nth=nth: seen >= nth)
        node = Node(tmp_path / f"{kind}-{nth}", story[0], None, files).start()
        files.armed = True
        told = 0
        with pytest.raises(LedgerError):
            for block in story[1]:
                deliver(node, [block])
                told = len(node.events)
        files.armed = False
        assert len(node.events) == told
        with pytest.raises(LedgerHaltedError):
            node.chain.take_events()
        close_crashed(node)
        check_and_finish(node, story, expected)


def test_a_journal_of_blocks_that_are_final_already(
    tmp_path: Path, story: tuple[Genesis, list[Block]]
) -> None:  # SPEC-JRN-3
    """The journal of an earlier day beside the log of today: each block is taken once."""
    expected = reference(tmp_path, story)
    node = Node(tmp_path / "node", story[0], None).start()
    deliver(node, story[1][:6])
    old = (tmp_path / "node" / "forks" / "journal").read_bytes()
    deliver(node, story[1][6:])
    node.stop()
    (tmp_path / "node" / "forks" / "journal").write_bytes(old)
    node.start()
    assert node.chain.final.height == expected[2]
    assert node.chain.work >= 2 * expected[2]
    deliver_rest(node, story[1])
    assert (node.branch, node.chain.state_root, node.chain.final.height) == expected
    node.stop()


def test_without_its_journal_a_node_falls_back_to_what_is_final(
    tmp_path: Path, story: tuple[Genesis, list[Block]]
) -> None:
    expected = reference(tmp_path, story)
    node = Node(tmp_path / "node", story[0], None).start()
    deliver(node, story[1])
    node.chain.checkpoint()
    node.stop()
    (tmp_path / "node" / "forks" / "journal").unlink()
    node.start()
    assert node.chain.tip == node.chain.final
    assert node.replayed == 0
    deliver_rest(node, story[1])
    assert (node.branch, node.chain.state_root, node.chain.final.height) == expected
    node.stop()


def test_a_damaged_journal_costs_a_download(
    tmp_path: Path, story: tuple[Genesis, list[Block]]
) -> None:  # SPEC-JRN-2
    expected = reference(tmp_path, story)
    node = Node(tmp_path / "node", story[0], None).start()
    path = tmp_path / "node" / "forks" / "journal"
    for seed in range(10):
        deliver_rest(node, story[1])
        assert (node.branch, node.chain.state_root, node.chain.final.height) == expected
        node.stop()
        flip(path, random.Random(seed).randrange(path.stat().st_size))
        node.start()
        assert node.chain.final.height >= expected[2]
    node.stop()


def test_damage_while_running_is_fetched_again(tmp_path: Path) -> None:  # SPEC-JRN-2
    """A block beside the best branch whose bytes rot is forgotten, and asked for when it matters."""
    keys = [SigningKey.generate() for _ in range(2)]
    genesis = make_genesis(keys)
    ours, theirs = (Node(tmp_path / str(at), genesis, key).start() for at, key in enumerate(keys))
    ours.submit(*patients(genesis, 1))
    ours.mine(2)
    rival = theirs.mine(3)
    ours.take(rival[0])
    ours.chain._blocks._memory.clear()
    path = tmp_path / "0" / "forks" / "journal"
    flip(path, path.stat().st_size - 1)
    assert ours.chain.block(rival[0].block_id) is None
    assert not ours.chain.has_block(rival[0].block_id)
    ours.take(*rival[1:])
    assert ours.chain.tip.height == 2
    assert ours.chain.wanted(9) == [rival[0].block_id]
    ours.take(rival[0])
    assert ours.branch == theirs.branch
    for node in (ours, theirs):
        node.stop()


# kill -9.


@pytest.fixture
def pair(tmp_path: Path) -> Iterator[tuple[list[Path], Clock]]:
    clock = Clock(START_MS)
    keys = [SigningKey.generate() for _ in range(2)]
    genesis = make_genesis(keys, finality_depth=6)
    paths = [tmp_path / "one", tmp_path / "two"]
    options = LedgerOptions(clock_ms=clock)
    for path, key in zip(paths, keys, strict=True):
        Ledger.join(path, genesis, node_key=key, keep_key=True, options=options).close()
    yield paths, clock


@pytest.mark.slow
def test_kill_minus_nine_again_and_again(pair: tuple[list[Path], Clock]) -> None:  # SPEC-FORK-9
    paths, clock = pair
    rng = random.Random(5)
    final: list[dict[int, str]] = [{}, {}]
    for _ in range(3):
        process = subprocess.Popen(
            [
                sys.executable,
                str(Path(__file__).with_name("fork_miner.py")),
                *map(str, paths),
                str(clock.now_ms),
            ],
            stdout=subprocess.PIPE,
            text=True,
            env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
        )
        assert process.stdout is not None
        lines = [process.stdout.readline() for _ in range(8)]
        time.sleep(rng.random())
        process.send_signal(signal.SIGKILL)
        lines += process.stdout.readlines()
        process.wait()
        process.stdout.close()
        last: dict[int, str] = {}
        for line in lines:
            words = line.split()
            if words[:1] == ["final"] and len(words) == 4 and len(words[3]) == 64:
                final[int(words[1])][int(words[2])] = words[3]
            elif words[:1] == ["mined"] and len(words) == 4:
                last[int(words[1])] = words[2]
                clock.now_ms = max(clock.now_ms, int(words[3]))
        ledgers = [Ledger.open(path, options=LedgerOptions(clock_ms=clock)) for path in paths]
        for at, ledger in enumerate(ledgers):
            assert ledger.height >= max(final[at], default=0)
            for height, block_id in final[at].items():
                assert ledger.block(height).block_id.hex() == block_id
            assert ledger.forks is not None
            if at in last:
                mined = bytes.fromhex(last[at])
                assert ledger.forks.call(lambda chain, item=mined: chain.has_block(item)).result(10)
        exchange(ledgers, clock.now_ms)
        for ledger in ledgers:
            assert ledger.verify().ok
            ledger.close()
    assert max(final[0]) > 5
    assert {height: final[1][height] for height in final[0].keys() & final[1].keys()} == {
        height: final[0][height] for height in final[0].keys() & final[1].keys()
    }

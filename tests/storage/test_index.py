"""The LMDB index: snapshots, ordered queries, and checkpoints that are there wholly or not at all."""

import os
import random
import subprocess
import sys
import textwrap
import threading
from array import array
from contextlib import closing
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fastledger._native.lmdb_batch import find_postings
from fastledger.errors import (
    CorruptionError,
    FormatVersionError,
    InputError,
    LedgerClosedError,
    LedgerLockedError,
    StorageFullError,
)
from fastledger.storage import keys
from fastledger.storage.checkpoint import CheckpointBatch
from fastledger.storage.index import Difference, Index
from fastledger.storage.lmdb_engine import Environment

CHAIN = b"testnet\0"
TERM = bytes(range(18))


def open_index(path: Path, **options: object) -> Index:
    return Index.open(path, CHAIN, map_bytes=64 * 1024 * 1024, **options)  # type: ignore[arg-type]


def term_log(first_seq: int, terms: list[list[bytes]]) -> keys.TermLog:
    """The terms of consecutive transactions."""
    return keys.TermLog(b"".join(map(b"".join, terms)), array("I", map(len, terms)), first_seq)


def logs_of(postings: dict[bytes, set[int]]) -> list[keys.TermLog]:
    """One log a transaction, in order."""
    by_seq: dict[int, list[bytes]] = {}
    for term, seqs in postings.items():
        for seq in seqs:
            by_seq.setdefault(seq, []).append(term)
    return [term_log(seq, [by_seq[seq]]) for seq in sorted(by_seq)]


def batch_of(seed: int, count: int = 50) -> CheckpointBatch:
    rng = random.Random(seed)
    first = seed * count
    return CheckpointBatch(
        state={rng.randbytes(rng.randrange(1, 60)): rng.randbytes(rng.randrange(300)) for _ in range(count)},
        txids={rng.randbytes(32): first + n for n in range(count)},
        blocks=[(seed, first, b"entry %d" % seed)],
        postings=[term_log(first, [[bytes([n % 3]) + TERM[1:]] for n in range(count)])],
        meta={b"height": str(seed).encode()},
    )


def test_a_checkpoint_comes_back(tmp_path: Path) -> None:  # SPEC-IDX-1
    index = open_index(tmp_path)
    batch = batch_of(1)
    index.write_checkpoint(batch)
    with index.snapshot() as view:
        assert isinstance(batch.txids, dict)
        for key, value in batch.state.items():
            assert view.get_state(key) == value
        assert view.get_states(batch.state) == batch.state
        assert view.seqs_of_txids([*batch.txids, bytes(32)]) == batch.txids
        txid, seq = next(iter(batch.txids.items()))
        assert (view.seq_of_txid(txid), view.has_txid(txid)) == (seq, True)
        assert (view.seq_of_txid(bytes(32)), view.has_txid(bytes(32))) == (None, False)
        assert view.get_state(b"absent") is view.get_state(b"") is None
        assert (view.block_entry(1), view.block_entry(2)) == (b"entry 1", None)
        assert view.last_block() == (1, 50, b"entry 1")
        assert (view.get_meta(b"height"), view.get_meta(b"none")) == (b"1", None)
        assert dict(view.iter_state()) == batch.state
        assert [key for key, _ in view.iter_state()] == sorted(batch.state)
    assert index.stats() == {"meta": 3, "state": 50, "txids": 50, "blocks": 1, "seqs": 1, "postings": 3}
    index.close()
    again = open_index(tmp_path, readonly=True)
    with again.snapshot() as view:
        assert view.get_states(batch.state) == batch.state
    again.close()


def test_none_deletes_and_absent_deletions_are_harmless(tmp_path: Path) -> None:
    index = open_index(tmp_path)
    index.write_checkpoint(CheckpointBatch(state={b"a": b"1", b"b": b"", b"c": b"3"}))
    index.write_checkpoint(CheckpointBatch(state={b"a": None, b"never": None, b"c": b"4"}))
    with index.snapshot() as view:
        assert dict(view.iter_state()) == {b"b": b"", b"c": b"4"}


def test_the_block_of_a_seq_skips_empty_blocks(tmp_path: Path) -> None:
    index = open_index(tmp_path)
    # Heights 1 and 3 have no transactions.
    index.write_checkpoint(
        CheckpointBatch(blocks=[(h, s, b"%d" % h) for h, s in ((0, 0), (1, 10), (2, 10), (3, 15), (4, 15))])
    )
    with index.snapshot() as view:
        found = {seq: view.block_of_seq(seq) for seq in (0, 9, 10, 14, 15, 999)}
    assert {seq: block and block[:2] for seq, block in found.items()} == {
        0: (0, 0),
        9: (0, 0),
        10: (2, 10),
        14: (2, 10),
        15: (4, 15),
        999: (4, 15),
    }
    assert found[10] == (2, 10, b"2")


NEIGHBOURS = [b"\4" + TERM[1:], b"\6" + TERM[1:], b"\5" + bytes(17), b"\5" + b"\xff" * 17]


@given(
    base=st.sampled_from((0, 1000, keys.SEQ_MAX - 2000)),
    checkpoints=st.lists(st.sets(st.integers(0, 600), max_size=400), max_size=3),
    start=st.none() | st.integers(0, 1_900),
    reverse=st.booleans(),
)
@settings(max_examples=60, deadline=None)
def test_postings_read_like_a_sorted_list(
    tmp_path_factory: pytest.TempPathFactory,
    base: int,
    checkpoints: list[set[int]],
    start: int | None,
    reverse: bool,
) -> None:
    index = open_index(tmp_path_factory.mktemp("index"))
    term = b"\5" + TERM[1:]
    wanted: list[int] = []
    # Each checkpoint's numbers lie beyond those of the one before; more than 256 make more than one run.
    for number, offsets in enumerate(checkpoints):
        seqs = {base + 601 * number + offset for offset in offsets}
        postings = {term: seqs} | {near: {base + 601 * number} for near in NEIGHBOURS}
        index.write_checkpoint(CheckpointBatch(postings=logs_of(postings)))
        wanted += sorted(seqs)
    first = None if start is None else base + start
    with index.snapshot() as view:
        found = list(view.iter_postings(term, start_seq=first, reverse=reverse))
        everything = [key for key, _ in view.iter_all("postings") if key.startswith(term)]
    index.close()
    if reverse:
        wanted.reverse()
    assert everything == [term + keys.encode_seq(seq) for seq in sorted(wanted)]
    assert found == [seq for seq in wanted if first is None or (seq <= first if reverse else seq >= first)]


def test_a_term_named_twice_by_a_transaction_counts_once(tmp_path: Path) -> None:
    index = open_index(tmp_path)
    index.write_checkpoint(CheckpointBatch(postings=[term_log(3, [[TERM, TERM], [], [TERM]])]))
    with index.snapshot() as view:
        assert list(view.iter_postings(TERM)) == [3, 5]


def test_postings_do_not_depend_on_where_checkpoints_were(tmp_path: Path) -> None:  # SPEC-IDX-4
    ours, theirs = open_index(tmp_path / "a"), open_index(tmp_path / "b")
    logs = [term_log(n, [[TERM], [TERM, b"\1" + TERM[1:]]]) for n in range(0, 600, 2)]
    ours.write_checkpoint(CheckpointBatch(postings=logs))
    for n in range(0, 300, 7):
        theirs.write_checkpoint(CheckpointBatch(postings=logs[n : n + 7]))
    assert ours.compare(theirs) == []
    theirs.write_checkpoint(CheckpointBatch(postings=[term_log(700, [[TERM]])]))
    assert [item.key for item in ours.compare(theirs)] == [TERM + keys.encode_seq(700)]


@pytest.mark.parametrize(
    "log",
    [
        (b"short", array("I", [1]), 0),
        (TERM, array("I", [2]), 0),
        (TERM, array("I", [1]), keys.SEQ_MAX + 1),
        (b"", array("I", []), 1 << 63),
    ],
)
def test_broken_term_logs_are_refused(tmp_path: Path, log: tuple[bytes, "array[int]", int]) -> None:
    index = open_index(tmp_path)
    with pytest.raises(ValueError, match=r"log|numbers"):
        index.write_checkpoint(CheckpointBatch(postings=[keys.TermLog(*log)]))
    far = [term_log(0, [[TERM]]), term_log(1 << 33, [[TERM]])]
    with pytest.raises(ValueError, match="span"):
        index.write_checkpoint(CheckpointBatch(postings=far))
    assert index.stats()["postings"] == 0


def test_terms_are_found_in_logs_before_they_are_indexed() -> None:
    logs = [term_log(10, [[TERM], [b"\7" + TERM[1:]], [TERM, TERM]]), term_log(90, [[TERM]])]
    assert find_postings(logs, TERM) == [10, 12, 90]
    assert find_postings([], TERM) == []
    with pytest.raises(ValueError, match="18 bytes"):
        find_postings(logs, b"short")


def test_state_ranges_by_prefix(tmp_path: Path) -> None:
    index = open_index(tmp_path)
    state = {bytes([a, b]): bytes([b]) for a in (1, 2, 255) for b in range(5)}
    index.write_checkpoint(CheckpointBatch(state=state))
    with index.snapshot() as view:
        assert [key[1] for key, _ in view.iter_state(b"\x02")] == [0, 1, 2, 3, 4]
        assert [key[1] for key, _ in view.iter_state(b"\xff", start=b"\xff\x03")] == [3, 4]
        assert list(view.iter_state(b"\x03")) == []


def test_a_reader_sees_its_checkpoint_until_it_is_renewed(tmp_path: Path) -> None:  # SPEC-IDX-3
    index = open_index(tmp_path)
    index.write_checkpoint(CheckpointBatch(state={b"k": b"old"}))
    reader = index.reader()
    assert reader.get_state(b"k") == b"old"
    index.write_checkpoint(CheckpointBatch(state={b"k": b"new"}))
    assert reader.get_state(b"k") == b"old"
    reader.renew()
    assert reader.get_state(b"k") == b"new"
    reader.close()
    for call in (lambda: reader.get_state(b"k"), reader.renew, lambda: list(reader.iter_state())):
        with pytest.raises(LedgerClosedError):
            call()


def test_closing_the_index_ends_readers_and_iterators_in_use(tmp_path: Path) -> None:
    index = open_index(tmp_path)
    index.write_checkpoint(batch_of(1))
    reader = index.reader()
    iterator = reader.iter_state()
    next(iterator)
    index.close()
    index.close()
    with pytest.raises(LedgerClosedError):
        next(iterator)
    with pytest.raises(LedgerClosedError):
        reader.get_state(b"k")
    with pytest.raises(LedgerClosedError):
        index.stats()
    with pytest.raises(LedgerClosedError):
        index.write_checkpoint(CheckpointBatch())
    open_index(tmp_path).close()


def test_what_is_out_of_bounds_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    index = open_index(tmp_path)
    for batch in (
        CheckpointBatch(state={b"ok": b"1", b"": b"1"}),
        CheckpointBatch(state={bytes(keys.STATE_KEY_BYTES_MAX + 1): b"1"}),
        CheckpointBatch(txids=[(bytes(31), 1)]),
        CheckpointBatch(txids=[(bytes(32), keys.SEQ_MAX + 1)]),
        CheckpointBatch(blocks=[(-1, 0, b"")]),
    ):
        with pytest.raises(InputError):
            index.write_checkpoint(batch)
    assert index.stats()["state"] == 0
    for call in (lambda: keys.encode_seq(-1),):
        with pytest.raises(InputError):
            call()
    index.write_checkpoint(CheckpointBatch(state={bytes(keys.STATE_KEY_BYTES_MAX): bytes(10_000)}))


def test_identity_is_checked(tmp_path: Path) -> None:
    index = open_index(tmp_path / "a")
    with pytest.raises(LedgerLockedError):
        open_index(tmp_path / "b" / ".." / "a")
    index.write_checkpoint(CheckpointBatch(meta={keys.META_FORMAT: b"\0\x63"}))
    index.close()
    with pytest.raises(FormatVersionError, match="format 99"):
        open_index(tmp_path / "a")
    Index.destroy(tmp_path / "a")
    open_index(tmp_path / "a").close()
    with pytest.raises(CorruptionError):
        Index.open(tmp_path / "a", b"another\0")
    (tmp_path / "a" / "data.mdb").write_bytes(b"not a database" * 1000)
    with pytest.raises(CorruptionError):
        open_index(tmp_path / "a")


def test_a_full_map_keeps_the_checkpoint_before_and_grows_when_reopened(tmp_path: Path) -> None:  # SPEC-IDX-5
    index = Index.open(tmp_path, CHAIN, map_bytes=256 * 1024)
    index.write_checkpoint(CheckpointBatch(state={b"k": b"old"}))
    large = CheckpointBatch(state={b"k": b"new", b"large": bytes(300 * 1024)})
    with pytest.raises(StorageFullError):
        index.write_checkpoint(large)
    with index.snapshot() as view:
        assert dict(view.iter_state()) == {b"k": b"old"}
    count = 0
    with pytest.raises(StorageFullError):
        for count in range(20):
            index.write_checkpoint(CheckpointBatch(state={b"%d" % count: bytes(40_000)}))
    index.close()
    index = Index.open(tmp_path, CHAIN, map_bytes=256 * 1024)
    index.write_checkpoint(CheckpointBatch(state={b"%d" % count: bytes(40_000)}))
    assert index.stats()["state"] == count + 2


def test_a_length_that_leads_beyond_the_file_is_damage_not_death(tmp_path: Path) -> None:  # SPEC-IDX-9
    key = b"Ra key of its own"
    long = keys.seal_value(key, bytes(10_000))  # on pages of its own, of which the leaf names the first
    with closing(open_index(tmp_path)) as index:
        index.write_checkpoint(CheckpointBatch(state={key: bytes(10_000), b"Rother": b"value"}))
    data = tmp_path / "data.mdb"
    whole = data.read_bytes()
    # A leaf's node: length of the value u32, flags u16, length of the key u16, key, value.
    places = [at for at in range(len(whole)) if whole.startswith(len(long).to_bytes(4, "little"), at)]
    places = [at for at in places if whole.startswith(key, at + 8)]
    assert places
    for length in (len(whole), 1 << 30, 0xFFFFFFFF):
        spoilt = bytearray(whole)
        for at in places:
            spoilt[at : at + 4] = length.to_bytes(4, "little")
        data.write_bytes(spoilt)
        for read in (
            lambda view: view.get_state(key),
            lambda view: view.get_states([b"Rother", key]),
            lambda view: list(view.iter_all("state")),
        ):
            with closing(open_index(tmp_path)) as index, index.snapshot() as view:
                assert view.get_state(b"Rother") == b"value"
                with pytest.raises(CorruptionError):
                    read(view)


def test_compare_names_what_differs(tmp_path: Path) -> None:
    ours, theirs = open_index(tmp_path / "ours"), open_index(tmp_path / "theirs")
    for index in (ours, theirs):
        index.write_checkpoint(batch_of(1))
    assert ours.compare(theirs) == []
    txid = random.Random(7).randbytes(32)
    ours.write_checkpoint(CheckpointBatch(state={b"\0a": b"1", b"\0b": b"1"}, meta={b"x": b"y"}))
    theirs.write_checkpoint(CheckpointBatch(state={b"\0b": b"2", b"\0c": b"3"}, txids={txid: 9}))
    differences = [
        Difference("state", b"\0a", keys.seal_value(b"\0a", b"1"), None),
        Difference("state", b"\0b", keys.seal_value(b"\0b", b"1"), keys.seal_value(b"\0b", b"2")),
        Difference("state", b"\0c", None, keys.seal_value(b"\0c", b"3")),
        Difference("txids", txid, None, keys.encode_seq(9)),
    ]
    assert ours.compare(theirs) == differences
    assert ours.compare(theirs, limit=2) == differences[:2]
    assert ours.compare(theirs, databases=("meta",)) == [Difference("meta", b"x", b"y", None)]


def test_readers_in_threads_see_whole_checkpoints(tmp_path: Path) -> None:
    index = open_index(tmp_path)
    names = [b"%d" % n for n in range(20)]
    index.write_checkpoint(CheckpointBatch(state=dict.fromkeys(names, b"0")))
    stop = threading.Event()
    mixed: list[set[bytes]] = []
    reads: list[int] = []

    def read() -> None:
        count = 0
        while not stop.is_set():
            with index.snapshot() as view:
                values = {value for _, value in view.iter_state()}
            count += 1
            if len(values) != 1:
                mixed.append(values)
        reads.append(count)

    threads = [threading.Thread(target=read) for _ in range(3)]
    for thread in threads:
        thread.start()
    for n in range(1, 40):
        index.write_checkpoint(CheckpointBatch(state=dict.fromkeys(names, b"%d" % n)))
    stop.set()
    for thread in threads:
        thread.join()
    assert mixed == []
    assert all(reads)


CRASHING_WRITER = textwrap.dedent(
    """
    import sys
    from pathlib import Path
    from fastledger.storage.checkpoint import CheckpointBatch
    from fastledger.storage.index import Index
    index = Index.open(Path(sys.argv[1]), b"testnet\\0", map_bytes=64 << 20)
    with index.snapshot() as view:
        n = int(view.get_meta(b"n") or b"0")
    while True:
        n += 1
        value = b"%d" % n
        state = {b"%d" % k: value for k in range(2000)}
        index.write_checkpoint(CheckpointBatch(state=state, meta={b"n": value}))
        print(n, flush=True)
    """
)


def test_after_kill_9_there_is_one_whole_checkpoint(tmp_path: Path) -> None:
    # SPEC-IDX-2. Killed at a random moment of a loop that writes without pause.
    rng = random.Random(3)
    for _ in range(6):
        process = subprocess.Popen(
            [sys.executable, "-c", CRASHING_WRITER, str(tmp_path)],
            stdout=subprocess.PIPE,
            env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
        )
        assert process.stdout is not None
        written = [int(process.stdout.readline()) for _ in range(rng.randrange(1, 5))]
        threading.Event().wait(rng.random() * 0.02)
        process.kill()
        written += [int(line) for line in process.stdout.read().splitlines()]
        process.wait()
        index = open_index(tmp_path)
        with index.snapshot() as view:
            n = view.get_meta(b"n")
            assert {value for _, value in view.iter_state()} == {n}
            assert n is not None and int(n) >= written[-1]
        index.close()


def test_the_engine_is_the_one_that_the_files_are_written_for(tmp_path: Path) -> None:
    with Environment(tmp_path, ("x",), map_bytes=1 << 20, readers_max=4, readonly=False) as environment:
        assert set(environment.databases) == {"x"}
    # LMDB 0.9 meta page: magic, data version 1. The 1.0 engine writes 3.
    assert (tmp_path / "data.mdb").read_bytes()[16:24] == bytes.fromhex("dec0efbe01000000")

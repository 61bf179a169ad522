"""Proof of work against Bitcoin's own chain, on every backend that this CPU has."""

import threading
import time
from collections.abc import Iterator
from hashlib import sha256
from itertools import pairwise
from pathlib import Path
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastledger._native import hashing as native_hashing
from fastledger.crypto.work import (
    NonceSearch,
    SearchControl,
    bits_to_target,
    block_work,
    check_work,
    header_hash,
    header_hashes,
    search_nonce,
    target_to_bits,
)

# Bitcoin's first block: public chain data.
GENESIS_HEADER = bytes.fromhex(
    "01000000" + "00" * 32 + "3ba3edfd7a7b12b27ac72c3e67768f617fc81bc3888a51323a9fb8aa4b1e5e4a"
    "29ab5f49" + "ffff001d" + "1dac2b7c"
)
GENESIS_HASH = "000000000019d6689c085ae165831e934ff763ae46a2a6c172b3f1b60a8ce26f"  # as displayed, reversed
GENESIS_NONCE = 2083236893
DIFFICULTY_1_BITS = 0x1D00FFFF


@pytest.fixture(scope="module", params=native_hashing.backends(), autouse=True)
def backend(request: pytest.FixtureRequest) -> Iterator[str]:
    native_hashing.force_backend(request.param)
    yield request.param
    native_hashing.force_backend(None)


def with_nonce(header: bytes, nonce: int) -> bytes:
    return header[:76] + nonce.to_bytes(4, "little")


def hash_number(header: bytes) -> int:
    return int.from_bytes(sha256(sha256(header).digest()).digest(), "little")


def oracle_search(header: bytes, target: int, start: int, count: int) -> int | None:
    nonces = range(start, start + count)
    return next((nonce for nonce in nonces if hash_number(with_nonce(header, nonce)) <= target), None)


# ---- Headers ----


def test_genesis_hash_and_work(backend: str) -> None:
    # SPEC-WORK-1, SPEC-WORK-3
    assert native_hashing.backend() == backend
    assert header_hash(GENESIS_HEADER)[::-1].hex() == GENESIS_HASH
    assert header_hashes(GENESIS_HEADER) == header_hash(GENESIS_HEADER)
    assert check_work(GENESIS_HEADER)
    assert not check_work(with_nonce(GENESIS_HEADER, GENESIS_NONCE + 1))
    assert not check_work(GENESIS_HEADER[:72] + bytes(4) + GENESIS_HEADER[76:])  # bits that are no target


def test_header_batches_equal_hashlib() -> None:
    headers = Random(1).randbytes(80 * 1000)
    expected = [header_hash(headers[i : i + 80]) for i in range(0, len(headers), 80)]
    assert header_hashes(headers) == b"".join(expected)
    assert header_hashes(memoryview(b"x" + headers)[1:161]) == b"".join(expected[:2])
    assert header_hashes(b"") == b""


@pytest.mark.data
def test_first_4000_bitcoin_headers(shared_data: Path) -> None:
    headers = (shared_data / "bitcoin" / "headers-0-3999.bin").read_bytes()
    chain = [headers[i : i + 80] for i in range(0, len(headers), 80)]
    ids = header_hashes(headers)
    assert len(chain) == 4000
    assert all(check_work(header) for header in chain)
    assert all(block[4:36] == ids[32 * i : 32 * i + 32] for i, block in enumerate(chain[1:]))


@pytest.mark.data
def test_bitcoin_headers_of_changing_difficulty(shared_data: Path) -> None:
    records = (shared_data / "bitcoin" / "bitcoinx-mainnet-headers-2016").read_bytes()
    headers = [records[i + 4 : i + 84] for i in range(0, len(records), 84)]
    difficulties = {int.from_bytes(header[72:76], "little") for header in headers}
    assert len(headers) == 200
    assert len(difficulties) > 50
    assert all(check_work(header) for header in headers)
    for bits in difficulties:
        assert target_to_bits(bits_to_target(bits)) == bits


def test_wrong_header_shapes_are_named() -> None:
    for size in (0, 79, 81):
        with pytest.raises(ValueError, match=f"expected 80 bytes, got {size}"):
            header_hash(bytes(size))
        with pytest.raises(ValueError, match=f"expected 80 bytes, got {size}"):
            check_work(bytes(size))
        with pytest.raises(ValueError, match=f"expected 80 bytes, got {size}"):
            search_nonce(bytes(size), 0, 0, 1)
    with pytest.raises(ValueError, match="expected n x 80 bytes, got 81"):
        header_hashes(bytes(81))
    with pytest.raises(ValueError, match="expected a contiguous bytes-like object, got str"):
        header_hashes("0" * 80)  # type: ignore[arg-type]


# ---- Compact targets: the cases of Bitcoin Core's arith_uint256 tests, as facts about the format ----


@pytest.mark.parametrize(
    ("bits", "target", "canonical"),
    [
        (0x01123456, 0x12, 0x01120000),
        (0x02123456, 0x1234, 0x02123400),
        (0x03123456, 0x123456, 0x03123456),
        (0x04123456, 0x12345600, 0x04123456),
        (0x05009234, 0x92340000, 0x05009234),
        (0x20123456, 0x123456 << 232, 0x20123456),
        (DIFFICULTY_1_BITS, 0xFFFF << 208, DIFFICULTY_1_BITS),
        (0x207FFFFF, 0x7FFFFF << 232, 0x207FFFFF),
        (0x220000FF, 0xFF << 248, 0x2100FF00),
        (0x2100FFFF, 0xFFFF << 240, 0x2100FFFF),
    ],
)
def test_compact_targets(bits: int, target: int, canonical: int) -> None:
    assert bits_to_target(bits) == target
    assert target_to_bits(target) == canonical
    assert bits_to_target(canonical) == target


@pytest.mark.parametrize(
    ("bits", "problem"),
    [
        (0x04923456, "negative"),
        (0x01FEDCBA, "negative"),
        (0xFF123456, "outside"),
        (0x23000001, "outside"),
        (0x22000100, "outside"),
        (0x2200FF00, "outside"),
        (0x21010000, "outside"),
        (0, "outside"),
        (0x00123456, "outside"),
        (0x01003456, "outside"),
        (0x03000000, "outside"),
        (0x04800000, "outside"),
        (-1, "0 <= bits"),
        (2**32, "0 <= bits"),
    ],
)
def test_bits_that_are_no_target(bits: int, problem: str) -> None:
    for function in (bits_to_target, block_work):
        with pytest.raises(ValueError, match=problem):
            function(bits)


# SPEC-WORK-2
@given(st.integers(1, 2**256 - 1))
def test_compact_form_rounds_down_and_is_stable(target: int) -> None:
    bits = target_to_bits(target)
    rounded = bits_to_target(bits)
    assert rounded <= target
    assert target - rounded < max(1, target >> 15)
    assert target_to_bits(rounded) == bits


@pytest.mark.parametrize("target", [0, -1, 2**256])
def test_targets_without_bits(target: int) -> None:
    with pytest.raises(ValueError, match="expected 0 < target"):
        target_to_bits(target)


def test_block_work() -> None:
    # SPEC-WORK-4
    assert block_work(DIFFICULTY_1_BITS) == 0x100010001
    assert block_work(0x207FFFFF) == 2
    works = [block_work(size << 24 | 0xFFFF) for size in range(33, 2, -1)]
    assert all(easier < harder for easier, harder in pairwise(works))


# ---- Search ----


def test_search_finds_the_genesis_nonce() -> None:
    target = bits_to_target(DIFFICULTY_1_BITS)
    blank = with_nonce(GENESIS_HEADER, 0)
    for start in (GENESIS_NONCE - 20_001, GENESIS_NONCE - 20_000, GENESIS_NONCE):
        assert search_nonce(blank, target, start, 20_002) == GENESIS_NONCE
    assert search_nonce(blank, target, GENESIS_NONCE - 1000, 1000) is None
    assert search_nonce(blank, target, GENESIS_NONCE - 1001, 1001) is None
    assert search_nonce(blank, target, GENESIS_NONCE + 1, 1000) is None


def test_search_compares_all_256_bits() -> None:
    # SPEC-WORK-5
    number = hash_number(GENESIS_HEADER)
    for start in (GENESIS_NONCE, GENESIS_NONCE - 1):
        assert search_nonce(GENESIS_HEADER, number, start, 2) == GENESIS_NONCE
        assert search_nonce(GENESIS_HEADER, number - 1, start, 2) is None
        assert search_nonce(GENESIS_HEADER, number & ~(2**64 - 1), start, 2) is None


@given(
    st.binary(min_size=80, max_size=80), st.integers(0, 2**32 - 1), st.integers(0, 40), st.integers(240, 256)
)
def test_search_finds_the_first_nonce(header: bytes, start: int, count: int, target_bits: int) -> None:
    count = min(count, 2**32 - start)
    target = 2**target_bits - 1
    assert search_nonce(header, target, start, count) == oracle_search(header, target, start, count)


def test_search_ends_at_the_last_nonce() -> None:
    # SPEC-WORK-5
    header = Random(7).randbytes(80)
    last = 2**32 - 1
    assert search_nonce(header, 2**256 - 1, last, 1) == last
    assert search_nonce(header, 0, last - 6, 7) is None
    assert search_nonce(header, hash_number(with_nonce(header, last)), last, 1) == last
    assert search_nonce(header, 2**256 - 1, 2**32, 0) is None


@pytest.mark.parametrize(
    ("target", "start", "count"),
    [
        (-1, 0, 1),
        (2**256, 0, 1),
        (1.0, 0, 1),
        (0, -1, 1),
        (0, 0, -1),
        (0, 2**32, 1),
        (0, 2**32 - 1, 2),
        (0, 0, 2**32 + 1),
        (0, 0, 2**70),
        (0, 0.5, 1),
        (0, 0, None),
    ],
)
def test_search_outside_its_bounds_is_refused(target: int, start: int, count: int) -> None:
    with pytest.raises(ValueError, match="expected"):
        search_nonce(GENESIS_HEADER, target, start, count)


@pytest.mark.parametrize("threads", [1, 2, 5, None])
def test_threads_find_the_first_nonce(threads: int | None) -> None:
    # SPEC-WORK-6
    header, count = Random(8).randbytes(80), 200_000
    for bits in (236, 240, 243):
        target = 2**bits - 1
        control = SearchControl()
        expected = search_nonce(header, target, 5, count)
        assert search_nonce(header, target, 5, count, threads=threads, control=control) == expected
        assert not control.cancelled
        tried = count if expected is None else expected - 4
        assert tried <= control.hashes_done <= count


def test_progress_counts_every_nonce() -> None:
    control = SearchControl()
    for done in (100_001, 200_002):
        assert search_nonce(GENESIS_HEADER, 0, 0, 100_001, threads=3, control=control) is None
        assert control.hashes_done == done


def test_another_thread_cancels_a_search() -> None:
    control, finished = SearchControl(), threading.Event()

    def search() -> None:
        assert search_nonce(GENESIS_HEADER, 0, 0, 2**32, threads=2, control=control) is None
        finished.set()

    worker = threading.Thread(target=search)
    worker.start()
    while control.hashes_done < 50_000:
        time.sleep(0.001)
    assert not finished.is_set()
    control.cancel()
    worker.join(timeout=60)
    assert finished.is_set()
    assert control.cancelled
    # The whole range takes minutes: had cancelling no effect, this would be 2**32.
    assert control.hashes_done < 2**31


def test_a_cancelled_control_starts_nothing() -> None:
    # SPEC-WORK-6
    control = SearchControl()
    control.cancel()
    assert search_nonce(GENESIS_HEADER, 2**256 - 1, 0, 10, control=control) is None
    assert control.hashes_done == 0


@pytest.mark.parametrize("threads", [0, 257, 2.5])
def test_search_with_wrong_threads_is_refused(threads: int) -> None:
    with pytest.raises(ValueError, match="threads: expected 1 to 256"):
        search_nonce(GENESIS_HEADER, 0, 0, 1, threads=threads)


def extra_nonce_header(extra_nonce: int) -> bytes:
    """A header whose root commits to an extra nonce."""
    root = sha256(extra_nonce.to_bytes(8, "little")).digest()
    return GENESIS_HEADER[:36] + root + GENESIS_HEADER[68:]


def test_extra_nonces_roll_over() -> None:
    # SPEC-WORK-7
    asked = []

    def make_header(extra_nonce: int) -> bytes:
        asked.append(extra_nonce)
        return extra_nonce_header(extra_nonce)

    target, nonces = 2**247 - 1, 40
    search = NonceSearch(make_header, target, threads=2, nonces_per_header=nonces)
    found = search.run()
    expected = next(
        (extra, nonce)
        for extra in range(10_000)
        if (nonce := oracle_search(extra_nonce_header(extra), target, 0, nonces)) is not None
    )
    assert found is not None
    assert (found.extra_nonce, found.nonce) == expected
    assert asked == list(range(found.extra_nonce + 1))
    assert len(asked) > 1
    assert found.header == with_nonce(extra_nonce_header(found.extra_nonce), found.nonce)
    assert hash_number(found.header) <= target
    assert search.hashes_done == found.extra_nonce * nonces + found.nonce + 1


def test_search_ends_with_its_extra_nonces_or_when_cancelled() -> None:
    search = NonceSearch(extra_nonce_header, 0, extra_nonces=range(3), nonces_per_header=1000)
    assert search.run() is None
    assert search.hashes_done == 3000

    endless = NonceSearch(extra_nonce_header, 0, threads=2)
    results: list[object] = []
    worker = threading.Thread(target=lambda: results.append(endless.run()))
    worker.start()
    while endless.hashes_done < 50_000:
        time.sleep(0.001)
    endless.cancel()
    worker.join(timeout=60)
    assert results == [None]
    assert endless.cancelled
    assert endless.run() is None
    for nonces in (0, 2**32 + 1):
        with pytest.raises(ValueError, match="nonces_per_header"):
            NonceSearch(extra_nonce_header, 0, nonces_per_header=nonces)

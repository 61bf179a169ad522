"""Native hashing beside the best plain Python can do with hashlib: batches, Merkle roots, proof of work.

Each ``measure_*`` runs ours and the peer alternately, so that both meet the same neighbours and clock rate,
checks that they computed the same, and returns one `Measure`. Inputs come from a seeded generator and are
built outside the timed part; the result objects are built inside it.

``python benchmarks/bench_hashing.py`` prints the table; ``pytest benchmarks/bench_hashing.py`` runs it tiny.
"""

import platform
from array import array
from collections.abc import Callable
from hashlib import sha256
from random import Random
from statistics import median
from time import perf_counter
from typing import TypedDict

import pytest

from fastledger.bench.hashing import hashlib_bitcoin_root, hashlib_root, hashlib_search
from fastledger.bench.measure import SEED
from fastledger.crypto.hashing import hashing_backend, sha256_many
from fastledger.crypto.merkle import merkle_root
from fastledger.crypto.work import search_nonce


class Spread(TypedDict):
    """Rates over the rounds of one measurement."""

    min: float
    median: float
    max: float


class Measure(TypedDict):
    """One row of the table; ``ratio`` is the median rate of ours over the peer's."""

    name: str
    unit: str
    ours: Spread
    peer: Spread
    peer_name: str
    ratio: float
    bar: float | None
    rounds: int
    result: str


def compare(
    ours: Callable[[], bytes], peer: Callable[[], bytes], rounds: int
) -> tuple[list[float], list[float], bytes]:
    """Seconds of each round of both, alternately, and their common result.

    Raises:
        RuntimeError: the results differ.
    """
    seconds: tuple[list[float], list[float]] = ([], [])
    expected = peer()
    for _ in range(rounds):
        for run, spent in zip((ours, peer), seconds, strict=True):
            start = perf_counter()
            result = run()
            spent.append(perf_counter() - start)
            if result != expected:
                raise RuntimeError("ours and the peer disagree")
    return *seconds, expected


def spread(items: int, seconds: list[float]) -> Spread:
    """Millions of items a second."""
    rates = [items / spent / 1e6 for spent in seconds]
    return {"min": min(rates), "median": median(rates), "max": max(rates)}


def measure(
    name: str,
    unit: str,
    items: int,
    ours: Callable[[], bytes],
    peer: Callable[[], bytes],
    *,
    peer_items: int | None = None,
    rounds: int,
    bar: float | None = None,
) -> Measure:
    our_seconds, peer_seconds, result = compare(ours, peer, rounds)
    our_rate = spread(items, our_seconds)
    peer_rate = spread(items if peer_items is None else peer_items, peer_seconds)
    return {
        "name": name,
        "unit": unit,
        "ours": our_rate,
        "peer": peer_rate,
        "peer_name": "hashlib loop",
        "ratio": our_rate["median"] / peer_rate["median"],
        "bar": bar,
        "rounds": rounds,
        "result": sha256(result).hexdigest()[:16],
    }


def measure_merkle_root(leaf_count: int = 2**20, rounds: int = 5) -> Measure:
    """RFC 9162 root over one contiguous buffer of 32-byte entries; the bar is ten times hashlib."""
    leaves = Random(SEED).randbytes(32 * leaf_count)
    return measure(
        f"RFC 9162 root, {leaf_count:,} leaves",
        "M leaves/s",
        leaf_count,
        lambda: merkle_root(leaves, threads=1),
        lambda: hashlib_root(leaves),
        rounds=rounds,
        bar=10,
    )


def measure_bitcoin_root(leaf_count: int = 2**20, rounds: int = 5) -> Measure:
    """Bitcoin's root over one contiguous buffer of transaction ids."""
    txids = Random(SEED + 1).randbytes(32 * leaf_count)
    return measure(
        f"Bitcoin root, {leaf_count:,} txids",
        "M txids/s",
        leaf_count,
        lambda: merkle_root(txids, "bitcoin", threads=1),
        lambda: hashlib_bitcoin_root(txids),
        rounds=rounds,
    )


def measure_sha256_many(message_count: int = 100_000, message_bytes: int = 300, rounds: int = 7) -> Measure:
    """A batch of messages; the peer hashes a list of ready ``bytes``. The bar is for 100,000 of 300 bytes."""
    messages = [Random(SEED + i).randbytes(message_bytes) for i in range(message_count)]
    buffer = b"".join(messages)
    offsets = array("Q", range(0, len(buffer) + 1, message_bytes))
    return measure(
        f"SHA-256 of {message_count:,} x {message_bytes} bytes",
        "M messages/s",
        message_count,
        lambda: sha256_many(buffer, offsets),
        lambda: b"".join([sha256(message).digest() for message in messages]),
        rounds=rounds,
        bar=2 if (message_count, message_bytes) == (100_000, 300) else None,
    )


def found_bytes(nonce: int | None) -> bytes:
    return b"none" if nonce is None else nonce.to_bytes(4, "little")


def late_nonce(target: int, at_least: int) -> tuple[bytes, int]:
    """A header whose first nonce to meet the target is not among the first ``at_least``, and that nonce."""
    random = Random(SEED)
    while True:
        header = random.randbytes(80)
        nonce = search_nonce(header, target, 0, 2**32)
        if nonce is not None and nonce >= at_least:
            return header, nonce


def measure_search_nonce(nonce_count: int = 2**22, rounds: int = 5) -> Measure:
    """Proof of work that is found at the last nonce; the peer searches the last 1/16 of the same nonces."""
    target = 2**256 // (2 * nonce_count)
    header, last = late_nonce(target, nonce_count)
    peer_count = max(1, nonce_count // 16)
    return measure(
        f"nonce search, {nonce_count:,} nonces",
        "MH/s",
        nonce_count,
        lambda: found_bytes(search_nonce(header, target, last + 1 - nonce_count, nonce_count)),
        lambda: found_bytes(hashlib_search(header, target, last + 1 - peer_count, peer_count)),
        peer_items=peer_count,
        rounds=rounds,
    )


def measure_all() -> list[Measure]:
    """The rows of the table, at full size, and the batch sizes at which a call pays."""
    batches = [measure_sha256_many(count, rounds=25) for count in (1, 8, 64, 1000)]
    return [
        measure_merkle_root(),
        measure_bitcoin_root(),
        measure_sha256_many(),
        *batches,
        measure_search_nonce(),
    ]


def print_table(rows: list[Measure]) -> None:
    backend = hashing_backend()
    print(f"{platform.platform()}, Python {platform.python_version()}")
    print(f"backend {backend['sha256']}, CPU {' '.join(backend['cpu'])}; one thread; rates min/median/max")
    for row in rows:
        ours, peer = row["ours"], row["peer"]
        bar = "" if row["bar"] is None else f" (bar {row['bar']:g}x)"
        print(
            f"{row['name']:<34} {row['unit']:<13}"
            f" {ours['min']:8.3f}/{ours['median']:8.3f}/{ours['max']:8.3f}"
            f"   {row['peer_name']} {peer['min']:7.3f}/{peer['median']:7.3f}/{peer['max']:7.3f}"
            f"   {row['ratio']:5.1f}x{bar}   {row['result']}"
        )


# ---- pytest: the measurements themselves, tiny, and pytest-benchmark figures of ours ----


@pytest.mark.parametrize(
    "run",
    [
        lambda: measure_merkle_root(2**6, rounds=1),
        lambda: measure_bitcoin_root(2**6, rounds=1),
        lambda: measure_sha256_many(10, 300, rounds=1),
        lambda: measure_search_nonce(2**8, rounds=1),
    ],
)
def test_measurement_runs_and_agrees(run: Callable[[], Measure]) -> None:
    row = run()
    assert row["ours"]["min"] > 0
    assert len(row["result"]) == 16


@pytest.mark.parametrize("leaf_count", [1, 2**10, 2**16])
def test_merkle_root(benchmark: Callable[..., bytes], leaf_count: int) -> None:
    leaves = Random(SEED).randbytes(32 * leaf_count)
    assert benchmark(merkle_root, leaves) == hashlib_root(leaves)


@pytest.mark.parametrize("message_count", [1, 1000])
def test_sha256_many(benchmark: Callable[..., bytes], message_count: int) -> None:
    buffer = Random(SEED).randbytes(300 * message_count)
    offsets = array("Q", range(0, len(buffer) + 1, 300))
    assert benchmark(sha256_many, buffer, offsets)[:32] == sha256(buffer[:300]).digest()


if __name__ == "__main__":
    print_table(measure_all())

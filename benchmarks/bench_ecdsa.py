"""Signatures and scan, the two kernels that every transaction passes: time per item, checked results.

``python benchmarks/bench_ecdsa.py`` prints the table; ``pytest benchmarks/bench_ecdsa.py --benchmark-enable``
runs the same under pytest-benchmark. Excluded: making keys, signatures and transactions, and the first parse
of each key except where a row says so. Inputs are seeded, 100 signers. A thread-scaling figure stands beside
what two independent processes reach at the same time, the ceiling of the machine at that moment.
"""

import random
import statistics
import time
from array import array
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from typing import Any

import cbor2
import pytest
from coincurve import PublicKey
from coincurve.ecdsa import cdata_to_der, deserialize_compact

from fastledger._native.ecdsa import parity_hints
from fastledger._native.scan import scan_many
from fastledger.crypto.signing import ORDER, SigningKey, ecdsa_backend, resize_key_cache, verify_batch

SIGNERS = 100
BODY_BYTES = 300


@dataclass(frozen=True)
class Batch:
    """Columns of n signatures, and the same as a Python loop needs them."""

    count: int
    digests: bytes
    signatures: bytes
    keys: bytes

    def verify(self, threads: int | None) -> None:
        if verify_batch(self.digests, self.signatures, self.keys, threads=threads) != b"\x01" * self.count:
            raise RuntimeError("a good signature was refused")


def make_batch(count: int, seed: int = 1) -> Batch:
    source = random.Random(seed)
    signers = [SigningKey.from_bytes(source.randrange(1, ORDER).to_bytes(32, "big")) for _ in range(SIGNERS)]
    digests = [source.randbytes(32) for _ in range(count)]
    signatures = [signers[i % SIGNERS].sign(digest) for i, digest in enumerate(digests)]
    keys = [signers[i % SIGNERS].public_key for i in range(count)]
    return Batch(count, b"".join(digests), b"".join(signatures), b"".join(keys))


def make_transactions(count: int, seed: int = 1) -> tuple[bytes, memoryview]:
    """A buffer of transactions with bodies of some 300 bytes, and its offsets; the signatures are noise."""
    source = random.Random(seed)
    parts, offsets = [], array("Q", [0])
    for nonce in range(count):
        body = {
            "data": source.randbytes(BODY_BYTES - 60),
            "folder": source.randbytes(16),
            "record": source.randbytes(16),
        }
        payload = cbor2.dumps([bytes(8), "record.put", 1_700_000_000_000, 1_700_000_600_000, nonce, body])
        protected = cbor2.dumps({1: -47, 4: b"\x02" + source.randbytes(32)})
        parts.append(cbor2.dumps(cbor2.CBORTag(18, [protected, {}, payload, source.randbytes(64)])))
        offsets.append(offsets[-1] + len(parts[-1]))
    return b"".join(parts), memoryview(offsets)


def spread(run: Callable[[], object], items: int, repeats: int) -> dict[str, float]:
    """Microseconds an item over repeated runs: least, median, most."""
    samples = []
    for _ in range(repeats):
        begin = time.perf_counter()
        run()
        samples.append((time.perf_counter() - begin) * 1e6 / items)
    return {"min": min(samples), "median": statistics.median(samples), "max": max(samples)}


def measure_verify(count: int = 1_000, threads: int | None = 1, repeats: int = 7) -> dict[str, Any]:
    """``verify_batch`` with its table of keys warm."""
    batch = make_batch(count)
    batch.verify(threads)
    row = spread(lambda: batch.verify(threads), count, repeats)
    return {"name": f"verify_batch, n={count}, threads={threads}", "unit": "us/signature", **row}


def measure_verify_unknown_keys(count: int = 1_000, repeats: int = 7) -> dict[str, Any]:
    """``verify_batch`` on one thread without a table of keys: every key is parsed every time."""
    batch = make_batch(count)
    resize_key_cache(0)
    try:
        row = spread(lambda: batch.verify(1), count, repeats)
    finally:
        resize_key_cache()
    return {"name": f"verify_batch, n={count}, threads=1, unknown keys", "unit": "us/signature", **row}


def measure_hints(count: int = 1_024, full: bool = True, repeats: int = 7) -> dict[str, Any]:
    """Verifying again with hints, on one thread: y(R), or its parity alone."""
    batch = make_batch(count)
    _, hints = verify_batch(batch.digests, batch.signatures, batch.keys, return_hints=True)
    column = hints if full else parity_hints(hints)
    row = spread(
        lambda: verify_batch(batch.digests, batch.signatures, batch.keys, hints=column, threads=1),
        count,
        repeats,
    )
    kind = "y(R)" if full else "parity"
    return {"name": f"verify_batch, n={count}, threads=1, hints {kind}", "unit": "us/signature", **row}


def measure_coincurve_loop(count: int = 1_000, repeats: int = 7) -> dict[str, Any]:
    """The peer: coincurve called for each signature, its keys and signatures made ready beforehand."""
    calls = coincurve_calls(make_batch(count))
    row = spread(lambda: run_calls(calls), count, repeats)
    return {"name": f"coincurve loop, n={count}", "unit": "us/signature", **row}


def coincurve_calls(batch: Batch) -> list[tuple[PublicKey, bytes, bytes]]:
    parsed: dict[bytes, PublicKey] = {}
    calls = []
    for i in range(batch.count):
        key = batch.keys[33 * i : 33 * i + 33]
        signature = cdata_to_der(deserialize_compact(batch.signatures[64 * i : 64 * i + 64]))
        parsed.setdefault(key, PublicKey(key))
        calls.append((parsed[key], signature, batch.digests[32 * i : 32 * i + 32]))
    return calls


def run_calls(calls: list[tuple[PublicKey, bytes, bytes]]) -> None:
    if not all(key.verify(signature, digest, hasher=None) for key, signature, digest in calls):
        raise RuntimeError("a good signature was refused")


def seconds_alone(count: int) -> float:
    """One process's time for a batch on one thread, for `measure_process_ceiling`."""
    batch = make_batch(count)
    batch.verify(1)
    begin = time.perf_counter()
    for _ in range(5):
        batch.verify(1)
    return (time.perf_counter() - begin) / 5


def measure_process_ceiling(count: int = 1_000) -> dict[str, Any]:
    """How much faster two processes are than one, which bounds what two threads can gain."""
    with ProcessPoolExecutor(2, mp_context=get_context("spawn")) as pool:
        one = pool.submit(seconds_alone, count).result()
        both = [pool.submit(seconds_alone, count) for _ in range(2)]
        ratio = 2 * one / max(each.result() for each in both)
    return {"name": "two processes over one", "unit": "x", "min": ratio, "median": ratio, "max": ratio}


def measure_scan(count: int = 1_000, repeats: int = 25) -> dict[str, Any]:
    """``scan_many``: outline, encoding, shape and transaction id of each."""
    data, offsets = make_transactions(count)
    row = spread(lambda: check_scan(data, offsets), count, repeats)
    size = len(data) // count
    return {"name": f"scan_many, n={count}, {size} bytes each", "unit": "us/transaction", **row}


def check_scan(data: bytes, offsets: memoryview) -> None:
    if not scan_many(data, offsets).all_ok:
        raise RuntimeError("a transaction in form was refused")


@pytest.mark.parametrize("threads", [1, 2])
def test_verify_batch(benchmark: Any, threads: int) -> None:
    batch = make_batch(200)
    benchmark(batch.verify, threads)


def test_coincurve_loop(benchmark: Any) -> None:
    benchmark(run_calls, coincurve_calls(make_batch(200)))


def test_scan_many(benchmark: Any) -> None:
    benchmark(check_scan, *make_transactions(200))


def main() -> None:
    print(ecdsa_backend())
    rows = [
        measure_coincurve_loop(),
        measure_verify(threads=1),
        measure_verify_unknown_keys(),
        measure_verify(threads=2),
        measure_hints(full=True),
        measure_hints(full=False),
        measure_process_ceiling(),
        measure_verify(count=1, repeats=200),
        measure_scan(),
        measure_scan(count=10_000),
    ]
    for row in rows:
        print(f"{row['name']:48} {row['min']:9.3f} {row['median']:9.3f} {row['max']:9.3f}  {row['unit']}")


if __name__ == "__main__":
    main()

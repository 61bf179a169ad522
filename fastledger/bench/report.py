"""The report: one run of all benchmarks as one document, and the document as lines for people."""

import platform
import time
from collections.abc import Iterator
from threading import Thread
from typing import Any

from fastledger.bench import hashing, signatures, tuning
from fastledger.bench.measure import SEED, Row, Spread, clock_ghz, cpu_name, spread
from fastledger.crypto import backend
from fastledger.crypto.work import NonceSearch
from fastledger.version import VERSION

FORMAT_VERSION = 1

# What others reach on x86-64 servers with SHA extensions and AVX-512: quoted, not measured in the run.
PUBLISHED: tuple[dict[str, str], ...] = (
    {"what": "Merkle root, SHA-NI in two streams", "figure": "104 ns a leaf", "source": "Bitcoin Core"},
    {"what": "Merkle node, one hash of 64 bytes, AVX-512", "figure": "30 ns", "source": "hashtree"},
    {"what": "proof of work, AVX-512", "figure": "29.6 MH/s", "source": "cpuminer-opt"},
    {"what": "proof of work, SHA-NI", "figure": "14.4 MH/s", "source": "cpuminer-opt"},
    {"what": "ECDSA verification", "figure": "34.7 us", "source": "libsecp256k1"},
)


def cancel_latency_ms(repeats: int) -> Spread:
    """Measures the time from `NonceSearch.cancel` to the end of `run`, in milliseconds, for a search on all CPUs."""
    header = SEED.to_bytes(80, "little")
    taken = []
    for _ in range(repeats):
        search = NonceSearch(lambda _: header, 0)
        worker = Thread(target=search.run)
        worker.start()
        while search.hashes_done == 0 and worker.is_alive():
            time.sleep(0.001)
        begin = time.perf_counter()
        search.cancel()
        worker.join()
        taken.append((time.perf_counter() - begin) * 1e3)
    return spread(taken)


def run(quick: bool = False) -> dict[str, Any]:
    """Measures everything and returns the document; ``quick`` only proves that the benchmarks work.

    Raises:
        RuntimeError: a variant and a peer computed different results.
    """
    rows = [*hashing.rows(quick), *signatures.rows(quick)]
    return {
        "format_version": FORMAT_VERSION,
        "version": VERSION,
        "cpu": cpu_name(),
        "clock_ghz": clock_ghz(),
        "python": platform.python_version(),
        "backend": backend(),
        "quick": quick,
        "time_ms": time.time_ns() // 1_000_000,
        "rows": rows,
        "cancel_latency_ms": cancel_latency_ms(2 if quick else 20),
        "published": list(PUBLISHED),
        "tuning": tuning.advise(rows),
    }


def _row_line(row: Row) -> str:
    ns = row["ns"]
    return (
        f"  {row['contestant']:<24}{ns['median']:>12,.1f}{ns['min']:>12,.1f}{ns['max']:>12,.1f}"
        f"{row['cycles']:>12,.0f}{row['ratio']:>9.2f}x"
    )


def lines(report: dict[str, Any]) -> Iterator[str]:
    """Yields the report as lines for people, tuning advice last."""
    sha256 = report["backend"]
    yield f"fastledger {report['version']}, Python {report['python']}, {report['cpu']}"
    yield (
        f"{report['clock_ghz']:.2f} GHz by a chain of multiplications; sha256 backend {sha256['sha256']}, "
        f"usable: {' '.join(sha256['usable'])}"
    )
    if report["quick"]:
        yield "a quick run: it shows that the benchmarks work, not how fast anything is"
    task = ""
    for row in report["rows"]:
        if row["task"] != task:
            task = row["task"]
            yield ""
            yield f"{task} ({row['rounds']} rounds, result {row['checked']})"
            columns = f"{'ns/' + row['unit']:>12}{'min':>12}{'max':>12}{'cycles':>12}{'ratio':>10}"
            yield f"  {'':<24}{columns}"
        yield _row_line(row)
    latency = report["cancel_latency_ms"]
    yield ""
    yield f"a cancelled nonce search ends after {latency['median']:.2f} ms (at most {latency['max']:.2f})"
    yield "published by others on servers of this class, not measured here:"
    for quote in report["published"]:
        yield f"  {quote['what']}: {quote['figure']} ({quote['source']})"
    yield ""
    yield tuning.toml(report["tuning"], report["cpu"])

"""``make bench``: every benchmark in one run, one table, and the figures as JSON in ``bench-results/``.

Figures are medians (min–max) of repeated rounds in which ours and the peer take turns; what counts are the
ratios, since machines differ and are shared. ``--quick`` runs everything small: that the benchmarks work, not how
fast they are.
"""

import argparse
import json
import platform
import sys
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent))

import bench_ecdsa
import bench_hashing
import bench_ledger

from fastledger.bench.measure import cpu_name
from fastledger.crypto import backend
from fastledger.version import VERSION

ROOT = Path(__file__).resolve().parent.parent
LINE = "{:<52} {:>10} {:>19} {:>6}"


def hashing_rows(quick: bool) -> list[dict[str, Any]]:
    """Ratios over a hashlib loop."""
    leaves, messages, nonces, rounds = (2**12, 1_000, 2**14, 2) if quick else (2**20, 100_000, 2**22, 5)
    measures = [
        bench_hashing.measure_merkle_root(leaves, rounds),
        bench_hashing.measure_bitcoin_root(leaves, rounds),
        bench_hashing.measure_sha256_many(messages, rounds=rounds),
        bench_hashing.measure_search_nonce(nonces, rounds),
    ]
    rows = []
    for measure in measures:
        ours, peer = measure["ours"], measure["peer"]
        rows.append(
            {
                **measure,
                "ratio": {
                    "min": ours["min"] / peer["max"],
                    "median": measure["ratio"],
                    "max": ours["max"] / peer["min"],
                },
                "unit": "x hashlib",
            }
        )
    return rows


def ecdsa_rows(quick: bool) -> list[dict[str, Any]]:
    """Ratios over coincurve called in a loop on one core."""
    count, repeats = (64, 2) if quick else (1_000, 9)
    rows = []
    for threads in (1, 2):
        peer = bench_ecdsa.measure_coincurve_loop(count, repeats)
        ours = bench_ecdsa.measure_verify(count, threads, repeats)
        rows.append(
            {
                "name": ours["name"],
                "ratio": {
                    "min": peer["min"] / ours["max"],
                    "median": peer["median"] / ours["median"],
                    "max": peer["max"] / ours["min"],
                },
                "unit": "x coincurve",
                "bar": None,
                "us_per_signature": ours,
                "peer_us_per_signature": peer,
            }
        )
    return rows


def ceiling_row() -> dict[str, Any]:
    """What two busy processes do over one on this machine, now: no pair of threads can do more."""
    row = bench_ecdsa.measure_process_ceiling()
    ratio = {name: row[name] for name in ("min", "median", "max")}
    return {"name": "two busy processes", "unit": "x one", "bar": None, "ratio": ratio}


def ledger_row(quick: bool) -> dict[str, Any]:
    """Durable transactions over coincurve verifications."""
    row = bench_ledger.measure_ledger(batches=2, rounds=1) if quick else bench_ledger.measure_ledger()
    return {**row, "unit": "x coincurve"}


def run(quick: bool) -> dict[str, Any]:
    """Everything, as one document."""
    ceiling = [] if quick else [ceiling_row()]
    rows = [*hashing_rows(quick), *ecdsa_rows(quick), *ceiling, ledger_row(quick)]
    return {
        "version": VERSION,
        "cpu": cpu_name(),
        "python": platform.python_version(),
        "backend": backend(),
        "quick": quick,
        "time_ms": time.time_ns() // 1_000_000,
        "rows": rows,
    }


def print_table(report: dict[str, Any]) -> None:
    """One line a row; ``bar`` is what the project asks for."""
    print(f"{report['cpu']}, Python {report['python']}, sha256 backend {report['backend']['sha256']}")
    print(LINE.format("what", "median", "min - max", "bar"))
    for row in report["rows"]:
        ratio = row["ratio"]
        bar = "" if row["bar"] is None else f"{row['bar']:g}x"
        unit = row["unit"].removeprefix("x ")
        print(
            LINE.format(
                f"{row['name']} / {unit}",
                f"{ratio['median']:.2f}x",
                f"{ratio['min']:.2f} - {ratio['max']:.2f}",
                bar,
            )
        )
    ledger = report["rows"][-1]
    rates = " ".join(f"{rate:,.0f}" for rate in ledger["durable_per_s"])
    print(f"durable transactions/s by round: {rates}; fdatasync probe {ledger['fdatasync_ms']:.2f} ms")


def main() -> None:
    """Runs, prints and saves."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="run everything small")
    parser.add_argument("--out", type=Path, default=ROOT / "bench-results")
    arguments = parser.parse_args()
    report = run(arguments.quick)
    print_table(report)
    arguments.out.mkdir(parents=True, exist_ok=True)
    path = arguments.out / f"bench-{report['time_ms']}.json"
    path.write_text(json.dumps(report, indent=1))
    print(f"saved as {path}")


if __name__ == "__main__":
    main()

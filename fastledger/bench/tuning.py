"""Advice from measured figures: how many threads, how large batches, how much memory for key tables."""

import os
from collections.abc import Iterable
from pathlib import Path
from typing import TypedDict

from fastledger.bench.measure import Row
from fastledger.bench.signatures import cpu_count

THREADS_WORTH_MIN = 1.15  # how much faster all CPUs must be than one for threads to be advised
BATCH_LOSS_MAX = 1.05  # how much more than the best an item may cost in the batch that is advised
MIB = 1 << 20
TABLE_BYTES_MIN = 16 * MIB
TABLE_MEMORY_PART = 64  # at most this part of the machine's memory


class Advice(TypedDict):
    """The advice of `advise`, under the names of a node's configuration."""

    verify_threads: int
    batch_transactions: int
    table_memory_bytes: int
    transactions_per_second_max: int


def _verify_rows(rows: Iterable[Row], ending: str) -> list[Row]:
    return [row for row in rows if row["unit"] == "signature" and row["contestant"].endswith(ending)]


def last_level_cache_bytes() -> int:
    """Returns the size of the largest cache of CPU 0 as Linux tells it; 0 where it does not."""
    sizes = [0]
    for path in Path("/sys/devices/system/cpu/cpu0/cache").glob("index*/size"):
        text = path.read_text().strip()
        factor = {"K": 1 << 10, "M": MIB, "G": 1 << 30}.get(text[-1:], 1)
        digits = text.rstrip("KMG")
        sizes.append(int(digits) * factor if digits.isdigit() else 0)
    return max(sizes)


def memory_bytes() -> int:
    """Returns the size of the machine's memory in bytes; 0 where the system does not tell."""
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, OSError, ValueError):
        return 0


def advise(rows: list[Row]) -> Advice:
    """Derives advice from the rows of one run.

    It goes by the least times, which other work on the machine disturbs least. Threads pay where the largest batch
    is clearly faster on all CPUs; the batch is the smallest that costs hardly more an item than the best. Tables of
    known keys help while they stay in the last-level cache. The rate is what verification and scan allow: rules,
    index and disk come on top.
    """
    one, several = _verify_rows(rows, "1 thread"), _verify_rows(rows, "all CPUs")
    use_all = one[-1]["ns"]["min"] / several[-1]["ns"]["min"] >= THREADS_WORTH_MIN
    chosen = several if use_all else one
    best = min(row["ns"]["min"] for row in chosen)
    batch = min(row["items"] for row in chosen if row["ns"]["min"] <= BATCH_LOSS_MAX * best)
    scan = min(row["ns"]["min"] for row in rows if row["contestant"] == "scan_many")
    table = max(TABLE_BYTES_MIN, last_level_cache_bytes())
    if memory_bytes():
        table = min(table, max(MIB, memory_bytes() // TABLE_MEMORY_PART))
    return {
        "verify_threads": cpu_count() if use_all else 1,
        "batch_transactions": batch,
        "table_memory_bytes": table,
        "transactions_per_second_max": int(1e9 / (best + scan)),
    }


def toml(advice: Advice, cpu: str) -> str:
    """Returns the advice as TOML tables to paste into a node's configuration."""
    rate = advice["transactions_per_second_max"]
    return "\n".join(
        (
            f"# Measured on {cpu}: verification and scan allow some {rate:,} transactions/s;",
            "# rules, index and disk come on top (make bench measures the whole).",
            "[ingest]",
            f"batch_transactions = {advice['batch_transactions']}",
            "",
            "[tuning]",
            f"verify_threads = {advice['verify_threads']}",
            f"table_memory_bytes = {advice['table_memory_bytes']}",
        )
    )

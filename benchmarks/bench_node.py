"""A node under load from another process on the same cores, beside single-core libsecp256k1 in the same run.

Binary batches of 1,000 pre-signed records with bodies of about 300 bytes, JSON-RPC single submits, reads by id, and
the latency of a durable single submit at a tenth of the peak, beside an fdatasync probe of the same disk. The node
is the real process (``fastledger node start``) over loopback HTTP, the load ``load.py``.
"""

import itertools
import json
import os
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from bench_ledger import coincurve_verifications_per_second, fdatasync_ms, open_world, signed_batches
from load import read_batches, write_batches

from fastledger import Transaction
from fastledger.cli.demo.organisations import free_port

HERE = Path(__file__).resolve().parent
CONFIG = """
[ledger]
path = "ledger"
require_blobs = false

[rpc]
host = "127.0.0.1"
port = {port}

[rpc.access]
anonymous_roles = ["reader", "submitter", "operator"]

[rpc.rate]
requests_per_second = 1000000
requests_burst = 1000000
transactions_per_second = 10000000
transactions_burst = 10000000

[log]
level = "warning"
"""


@contextmanager
def running_node(folder: Path) -> Iterator[tuple[str, int]]:
    """A node process on the ledger in ``folder``; its URL and process id."""
    port = free_port()
    config = folder / "node.toml"
    config.write_text(CONFIG.format(port=port))
    node = subprocess.Popen([sys.executable, "-m", "fastledger", "node", "start", "--config", str(config)])
    url = f"http://127.0.0.1:{port}"
    try:
        wait_until_ready(url, node)
        yield url, node.pid
    finally:
        node.send_signal(signal.SIGTERM)
        if node.wait(60) != 0:
            raise RuntimeError(f"the node ended with {node.returncode}")


def wait_until_ready(url: str, node: "subprocess.Popen[bytes]") -> None:
    """Returns once the node takes transactions."""
    for _ in range(600):
        if node.poll() is not None:
            raise RuntimeError(f"the node ended with {node.returncode}")
        try:
            with urllib.request.urlopen(f"{url}/health/ready", timeout=5):
                return
        except (urllib.error.URLError, ConnectionError):
            time.sleep(0.05)
    raise RuntimeError("the node did not become ready")


def load(scenario: str, url: str, file: Path, **options: float) -> dict[str, float]:
    """Runs a scenario in a process of its own."""
    command = [sys.executable, str(HERE / "load.py"), scenario, url, str(file)]
    for name, value in options.items():
        command += [f"--{name.replace('_', '-')}", str(value)]
    result: dict[str, float] = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout)
    return result


def cpu_seconds(pid: int) -> float:
    """User and system time that a process has used."""
    fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def resident_mib(pid: int) -> float:
    """Resident memory of a process that is its own; the index's pages, which are the page cache's, are left out."""
    status = Path(f"/proc/{pid}/status").read_text()
    line = next(line for line in status.splitlines() if line.startswith("RssAnon:"))
    return int(line.split()[1]) / 1024


def row(name: str, ratios: list[float], bar: float, **figures: Any) -> dict[str, Any]:
    """One line of the report."""
    ratio = {"min": min(ratios), "median": statistics.median(ratios), "max": max(ratios)}
    return {"name": name, "ratio": ratio, "bar": bar, **figures}


# Enough that the node always has a batch to admit while others are executed and synced.
CONNECTIONS = 8


def beside_peer(scenario: str, url: str, file: Path, connections: int) -> tuple[dict[str, float], float]:
    """The scenario's figures, and the peer's verifications a second around it."""
    before = coincurve_verifications_per_second()
    figures = load(scenario, url, file, connections=connections)
    return figures, (before + coincurve_verifications_per_second()) / 2


def measure_node(
    *, batches: int = 60, rounds: int = 5, singles: int = 10, reads: int = 20
) -> list[dict[str, Any]]:
    """Rows of the report; sizes in thousands of transactions a round."""
    folder = Path(tempfile.mkdtemp(prefix="fastledger-bench-"))
    try:
        ledger, patient, staff = open_world(folder)
        ledger.close()
        probe_ms = fdatasync_ms(folder)
        with running_node(folder) as (url, pid):
            numbers = itertools.count()

            def prepare(count: int) -> Path:
                path = folder / f"load-{next(numbers)}"
                write_batches(path, signed_batches(patient, staff, count))
                return path

            bulk = []
            for _ in range(rounds):
                file, cpu = prepare(batches), cpu_seconds(pid)
                figures, peer = beside_peer("batches", url, file, CONNECTIONS)
                bulk.append((figures["per_s"], peer, (cpu_seconds(pid) - cpu) / figures["count"] * 1e6))
            peak = statistics.median(per_s for per_s, _, _ in bulk)
            rows = [
                row(
                    f"binary batches of 1,000, {batches * rounds},000 records",
                    [per_s / peer for per_s, peer, _ in bulk],
                    0.8,
                    durable_per_s=[per_s for per_s, _, _ in bulk],
                    coincurve_per_s=[peer for _, peer, _ in bulk],
                    node_cpu_us=statistics.median(cpu for _, _, cpu in bulk),
                    fdatasync_ms=probe_ms,
                    resident_mib=resident_mib(pid),
                )
            ]
            txids = [[Transaction.decode(tx).txid for tx in batch] for batch in read_batches(file)]
            alone = [beside_peer("singles", url, prepare(singles), 64) for _ in range(min(rounds, 3))]
            rows.append(
                row(
                    "JSON-RPC single submits, 64 connections",
                    [figures["per_s"] / peer for figures, peer in alone],
                    0.1,
                    per_s=[figures["per_s"] for figures, _ in alone],
                    p99_ms=[figures["p99_ms"] for figures, _ in alone],
                )
            )
            ids = folder / "ids"
            write_batches(ids, [txids[i % len(txids)] for i in range(reads)])
            for scenario, what, connections in (
                ("reads", "one a request, 64 connections", 64),
                ("reads-together", "32 a request, 8 connections", 8),
            ):
                found = [beside_peer(scenario, url, ids, connections) for _ in range(min(rounds, 3))]
                rows.append(
                    row(
                        f"JSON-RPC reads by txid, {what}",
                        [figures["per_s"] / peer for figures, peer in found],
                        0.35,
                        per_s=[figures["per_s"] for figures, _ in found],
                        p99_ms=[figures["p99_ms"] for figures, _ in found],
                    )
                )
            paced = load("latency", url, prepare(max(batches // 3, 2)), per_s=peak / 10)
            rows.append(
                {
                    "name": "durable single submit at a tenth of peak",
                    "bar": "p99 < 50 ms",
                    **paced,
                    "fdatasync_ms": probe_ms,
                }
            )
        return rows
    finally:
        shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    for line in measure_node():
        print(json.dumps(line))

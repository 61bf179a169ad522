"""The node's metrics for Prometheus, in a registry of their own (SPEC-NODE-141..143).

What happens per request or batch is counted as it happens; what the ledger knows anyway is read at a scrape. No
label has a value from outside: methods, codes and stages are closed sets, clients are those of the configuration.
"""

import os
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Protocol

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.core import GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.registry import Collector

from fastledger.clock import system_clock_ms
from fastledger.errors import Code, FastLedgerError
from fastledger.stage_times import STAGE_BUCKETS_S, StageTimes
from fastledger.version import VERSION

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
STAGES = ("admit", "verify", "execute", "sync", "settle", "checkpoint", "blobs")
REQUEST_BUCKETS_S = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0)
# Walking the blob directories costs a stat a file.
SIZES_AGE_S = 15.0


class LedgerFigures(Protocol):
    """The part of an open ledger that metrics read."""

    times: StageTimes

    def status(self) -> dict[str, Any]:
        """Returns height, transactions, queue depth and sizes."""


class NodeMetrics:
    """All metrics of a node. Every method may be called from any thread."""

    def __init__(self, *, backend: str = "", clock_ms: Callable[[], int] = system_clock_ms) -> None:
        """``backend`` names the native kernels in use."""
        self.registry = CollectorRegistry()
        self._clock_ms = clock_ms
        self._backup_ms = 0
        self._make_rpc()
        self._make_ingest()
        self._make_service()
        info = self._gauge("build_info", "Release and native backend; always 1.", ("version", "backend"))
        info.labels(VERSION, backend).set(1)

    def _gauge(self, name: str, text: str, labels: tuple[str, ...] = ()) -> Gauge:
        return Gauge(f"fastledger_{name}", text, labels, registry=self.registry)

    def _counter(self, name: str, text: str, labels: tuple[str, ...] = ()) -> Counter:
        return Counter(f"fastledger_{name}", text, labels, registry=self.registry)

    def _make_rpc(self) -> None:
        self._requests = self._counter("rpc_requests", "Requests answered.", ("method", "code"))
        self._latency = Histogram(
            "fastledger_rpc_request_seconds",
            "From a request's head to its answer.",
            ("method",),
            buckets=REQUEST_BUCKETS_S,
            registry=self.registry,
        )
        self.connections = self._gauge("rpc_connections", "Open connections.")
        self.connections_rejected = self._counter(
            "rpc_connections_rejected", "Connections refused at their opening.", ("reason",)
        )
        self.rate_limited = self._counter(
            "rpc_rate_limited", "Requests refused by a rate limit.", ("client",)
        )
        self.subscribers = self._gauge("subscribers", "WebSocket subscriptions.")
        self.subscriber_lag = self._gauge(
            "subscriber_lag_blocks", "Blocks that the slowest subscriber is behind."
        )
        self.subscribers_dropped = self._counter(
            "subscribers_dropped", "Subscriptions ended because their reader was too slow."
        )

    def _make_ingest(self) -> None:
        self._verdicts = self._counter("verdicts", "Transactions by the code of their verdict.", ("code",))
        self.ingest_pending = self._gauge(
            "ingest_pending_transactions", "Transactions that wait for a batch."
        )
        self.ingest_batches = self._gauge("ingest_batches_in_flight", "Batches between admission and sync.")
        self.ingest_busy = self._counter("ingest_busy", "Submissions told to come back later.")
        self.uploads = self._gauge("uploads", "Unfinished uploads.")
        self.checkpoint_end = self._gauge("checkpoint_timestamp_seconds", "When the last checkpoint ended.")

    def _make_service(self) -> None:
        # Finding a labelled metric costs more than counting in it.
        self._of_request: dict[tuple[str, Code], tuple[Counter, Histogram]] = {}
        self.ready = self._gauge("ready", "1 while the node serves, 0 while it starts, drains or has halted.")
        self.halted = self._gauge("halted", "1 once a write or sync failed; nothing more is accepted.")
        self.certificate_end = self._gauge(
            "certificate_not_after_seconds", "When the node's certificate ends; 0 without TLS."
        )
        self.tls_reloads = self._counter("tls_reloads", "Certificate reloads.", ("result",))
        for result in ("ok", "failed"):
            self.tls_reloads.labels(result)
        self.log_lines_dropped = self._gauge("log_lines_dropped", "Log lines that could not be written.")
        age = self._gauge("backup_age_seconds", "Since the last backup ended; -1: none is known.")
        age.set_function(self._backup_age_s)
        left = self._gauge("certificate_expiry_seconds", "Until the node's certificate ends; -1 without TLS.")
        left.set_function(self._certificate_left_s)
        self._not_after_ms = 0

    # What happens.

    def request(self, method: str, code: Code, seconds: float) -> None:
        """Counts one answered request; ``method`` is one that the node has."""
        key = (method, code)
        found = self._of_request.get(key)
        if found is None:
            found = self._of_request[key] = (
                self._requests.labels(method, code.slug),
                self._latency.labels(method),
            )
        found[0].inc()
        found[1].observe(seconds)

    def verdicts(self, counts: Mapping[Code, int]) -> None:
        """Counts the verdicts of a batch; called once a batch."""
        for code, count in counts.items():
            self._verdicts.labels(code.slug).inc(count)

    def tls(self, error: FastLedgerError | None, not_after_ms: int) -> None:
        """Counts a load of certificates, and notes when the certificate ends (UTC ms)."""
        self.tls_reloads.labels("ok" if error is None else "failed").inc()
        self._not_after_ms = not_after_ms
        self.certificate_end.set(not_after_ms / 1000)

    def backup(self, ended_ms: int) -> None:
        """Notes when the last backup ended (UTC ms)."""
        self._backup_ms = ended_ms

    def _backup_age_s(self) -> float:
        return (self._clock_ms() - self._backup_ms) / 1000 if self._backup_ms else -1.0

    def _certificate_left_s(self) -> float:
        return (self._not_after_ms - self._clock_ms()) / 1000 if self._not_after_ms else -1.0

    # What is read at a scrape.

    def attach(self, ledger: LedgerFigures, directory: Path) -> None:
        """From now on reads at each scrape what an open ledger reports and the sizes of its directory."""
        self.registry.register(_LedgerCollector(ledger, directory))

    def render(self) -> bytes:
        """Returns the text of ``/metrics``. It looks at files, so it is called off the event loop."""
        return generate_latest(self.registry)


class _LedgerCollector(Collector):
    def __init__(self, ledger: LedgerFigures, directory: Path) -> None:
        self._ledger = ledger
        self._directory = directory
        self._lock = threading.Lock()
        self._sizes: dict[str, int] = {}
        self._sizes_at = 0.0

    def describe(self) -> list[Any]:
        """Returns nothing: the families need not be known at registration."""
        return []

    def collect(self) -> Iterator[Any]:
        """Yields the families of one scrape; of a closed or halted ledger those that can still be read."""
        try:
            status = self._ledger.status()
        except FastLedgerError:
            status = {}
        for name, text in (
            ("height", "Height of the newest durable block."),
            ("transactions", "Durable transactions."),
            ("queue_depth", "Batches submitted to the ledger and not yet answered."),
            ("replayed_blocks", "Blocks executed again when the ledger was opened."),
        ):
            if name in status:
                yield GaugeMetricFamily(f"fastledger_{name}", text, value=status[name])
        yield from self._rules(status.get("rules", {}))
        yield from self._entries(status)
        yield from self._stages()
        yield from self._disk()

    def _rules(self, rules: Mapping[str, Any]) -> Iterator[Any]:
        family = GaugeMetricFamily(
            "fastledger_rule_set",
            "Rule sets: of the next block, the newest that this release knows, one that is scheduled (0: none).",
            labels=["which"],
        )
        scheduled = rules.get("scheduled") or {}
        family.add_metric(["in force"], rules.get("in_force", 0))
        family.add_metric(["known"], rules.get("newest_known", 0))
        family.add_metric(["scheduled"], scheduled.get("rule_set", 0))
        yield family
        text = "Height at which the scheduled rule set begins; 0 where none is scheduled."
        yield GaugeMetricFamily("fastledger_rule_set_height", text, value=scheduled.get("height", 0))

    def _entries(self, status: Mapping[str, Any]) -> Iterator[Any]:
        family = GaugeMetricFamily("fastledger_index_entries", "Entries of the index.", labels=["database"])
        for name, count in status.get("index", {}).items():
            family.add_metric([name], count)
        yield family
        blobs = status.get("blobs", {})
        counts = GaugeMetricFamily("fastledger_blobs", "Envelopes stored.", labels=["form"])
        sizes = GaugeMetricFamily("fastledger_blob_bytes", "Bytes of their files.", labels=["form"])
        for form, count, size in (("packed", "packed", "pack_bytes"), ("large", "large", "large_bytes")):
            counts.add_metric([form], blobs.get(count, 0))
            sizes.add_metric([form], blobs.get(size, 0))
        yield counts
        yield sizes

    def _stages(self) -> Iterator[Any]:
        family = HistogramMetricFamily(
            "fastledger_stage_seconds", "Time of a stage, one observation a batch.", labels=["stage"]
        )
        fsync = HistogramMetricFamily("fastledger_fsync_seconds", "Time of a sync of the log.")
        found = self._ledger.times.histograms()
        empty = ((0,) * (len(STAGE_BUCKETS_S) + 1), 0.0)
        for stage in sorted({*STAGES, *found}):
            counts, seconds = found.get(stage, empty)
            buckets, total = [], 0
            for end, count in zip((*map(str, STAGE_BUCKETS_S), "+Inf"), counts, strict=True):
                total += count
                buckets.append((end, float(total)))
            family.add_metric([stage], buckets, seconds)
            if stage == "sync":
                fsync.add_metric([], buckets, seconds)
        yield family
        yield fsync

    def _disk(self) -> Iterator[Any]:
        sizes = self._measured()
        for name, text in (
            ("log_bytes", "Bytes of the segment log on disk, preallocation included."),
            ("index_bytes", "Bytes of the LMDB file that are on disk."),
            ("disk_free_bytes", "Bytes free to the node on the ledger's disk."),
            ("disk_bytes", "Size of that disk."),
        ):
            yield GaugeMetricFamily(f"fastledger_{name}", text, value=sizes[name])

    def _measured(self) -> dict[str, int]:
        with self._lock:
            if not self._sizes or time.monotonic() - self._sizes_at > SIZES_AGE_S:
                self._sizes = measure(self._directory)
                self._sizes_at = time.monotonic()
            return self._sizes


def measure(directory: Path) -> dict[str, int]:
    """Returns the sizes of a ledger directory and the room on its disk, in bytes.

    A file that goes meanwhile counts 0.
    """

    def allocated(path: Path) -> int:
        try:
            return path.stat().st_blocks * 512
        except OSError:
            return 0

    disk = os.statvfs(directory)
    return {
        "log_bytes": sum(allocated(path) for path in (directory / "log").glob("*")),
        "index_bytes": sum(allocated(path) for path in (directory / "index").glob("*")),
        "disk_free_bytes": disk.f_bavail * disk.f_frsize,
        "disk_bytes": disk.f_blocks * disk.f_frsize,
    }


def metrics_table(registry: CollectorRegistry) -> str:
    """Returns every metric as a Markdown table, for docs/operating.md."""
    rows = ["| metric | type | what |", "|---|---|---|"]
    for family in sorted(registry.collect(), key=lambda family: family.name):
        suffix = "_total" if family.type == "counter" else ""
        rows.append(f"| `{family.name}{suffix}` | {family.type} | {family.documentation} |")
    return "\n".join(rows)

"""``fastledger top``: a live view of a node, made of its /metrics and /health."""

import time
import urllib.error
import urllib.request
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from ssl import SSLContext
from typing import TYPE_CHECKING, Any

import click

from fastledger.cli.options import command_options
from fastledger.cli.output import Output
from fastledger.errors import InputError, LedgerError
from fastledger.extras import require

if TYPE_CHECKING:
    from rich.console import RenderableType

BODY_BYTES_MAX = 16 << 20
SCHEDULED_ROWS = ((("next rule set", "rule_set_scheduled"), ("from height", "rule_set_height")),)
FEDERATION_ROWS = (
    (("tip", "tip_height"), ("final", "final_height")),
    (("peers", "peers"), ("bans", "bans")),
    (("to fetch, blocks", "sync_lag_blocks"), ("in the pool", "mempool")),
    (("reorganisations", "reorganisations"), ("hashes/s", "hashes_per_second")),
    (("left behind, peers", "peers_left_behind"), ("", "")),
)
Labels = tuple[tuple[str, str], ...]


@dataclass
class Sample:
    """One scrape: values by metric and labels, whether the node is ready, and its time (monotonic seconds)."""

    values: dict[str, dict[Labels, float]] = field(default_factory=dict)
    ready: bool = False
    at: float = 0.0

    def total(self, name: str, **labels: str) -> float:
        """Returns the sum over all label sets that contain ``labels``."""
        wanted = set(labels.items())
        return sum(value for found, value in self.values.get(name, {}).items() if wanted <= set(found))

    def label_values(self, name: str, label: str) -> list[str]:
        """Returns the values that a label takes, sorted."""
        return sorted({dict(found).get(label, "") for found in self.values.get(name, {})} - {""})


def fetch(
    url: str,
    context: SSLContext | None = None,
    *,
    timeout_s: float = 5.0,
    data: bytes | None = None,
    token: str = "",
) -> tuple[int, bytes]:
    """Returns status and body of a GET, or of a POST of JSON ``data``.

    Raises ``LedgerError`` where nobody answers.
    """
    if not url.startswith(("http://", "https://")):
        raise LedgerError("a node's address starts with http:// or https://")
    headers = {"Content-Type": "application/json"} | ({"Authorization": f"Bearer {token}"} if token else {})
    request = urllib.request.Request(url, data, headers)  # noqa: S310 - checked above
    try:
        with urllib.request.urlopen(request, timeout=timeout_s, context=context) as answer:  # noqa: S310 - checked above
            return answer.status, answer.read(BODY_BYTES_MAX)
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read(BODY_BYTES_MAX)
    except (OSError, ValueError) as error:
        raise LedgerError(f"no node answers at that address ({type(error).__name__})") from None


def scrape(address: str, context: SSLContext | None = None, token: str = "") -> Sample:
    """Takes one sample of the node at ``address``; raises ``LedgerError``."""
    require("node")
    from prometheus_client.parser import text_string_to_metric_families

    status, body = fetch(f"{address}/metrics", context, token=token)
    if status != 200:
        raise LedgerError(f"the node answers /metrics with HTTP {status}")
    sample = Sample(at=time.monotonic())
    try:
        for family in text_string_to_metric_families(body.decode()):
            for entry in family.samples:
                key = tuple(sorted(entry.labels.items()))
                sample.values.setdefault(entry.name, {})[key] = entry.value
    except ValueError:
        raise LedgerError("what answers there is not a node: its /metrics cannot be read") from None
    sample.ready = fetch(f"{address}/health/ready", context)[0] == 200
    return sample


def rate(before: Sample, now: Sample, name: str, **labels: str) -> float:
    """Returns the change of a counter per second between two samples; 0 where the counter began anew."""
    seconds = now.at - before.at
    change = now.total(name, **labels) - before.total(name, **labels)
    return change / seconds if seconds > 0 and change > 0 else 0.0


def quantile(before: Sample, now: Sample, name: str, q: float, **labels: str) -> float | None:
    """Returns the upper end, in seconds, of the histogram's bucket that holds quantile ``q``.

    Only what was observed between the two samples counts; None where that is nothing.
    """
    ends = sorted(now.label_values(f"{name}_bucket", "le"), key=float)
    counts = [
        now.total(f"{name}_bucket", le=end, **labels) - before.total(f"{name}_bucket", le=end, **labels)
        for end in ends
    ]
    if not counts or counts[-1] <= 0:
        return None
    return next(float(end) for end, count in zip(ends, counts, strict=True) if count >= q * counts[-1])


def figures(before: Sample, now: Sample) -> dict[str, Any]:
    """Returns the values that a frame shows; times in ms, sizes in bytes."""
    stages = {
        stage: rate(before, now, "fastledger_stage_seconds_sum", stage=stage)
        for stage in now.label_values("fastledger_stage_seconds_sum", "stage")
    }
    busy = sum(stages.values())
    return {
        "ready": now.ready,
        "height": int(now.total("fastledger_height")),
        "transactions": int(now.total("fastledger_transactions")),
        "transactions_per_second": round(rate(before, now, "fastledger_transactions"), 1),
        "requests_per_second": round(rate(before, now, "fastledger_rpc_requests_total"), 1),
        "request_p50_ms": _ms(quantile(before, now, "fastledger_rpc_request_seconds", 0.5)),
        "request_p99_ms": _ms(quantile(before, now, "fastledger_rpc_request_seconds", 0.99)),
        "fsync_p99_ms": _ms(quantile(before, now, "fastledger_fsync_seconds", 0.99)),
        "pending": int(now.total("fastledger_ingest_pending_transactions")),
        "queue_depth": int(now.total("fastledger_queue_depth")),
        "connections": int(now.total("fastledger_rpc_connections")),
        "subscribers": int(now.total("fastledger_subscribers")),
        "subscriber_lag_blocks": int(now.total("fastledger_subscriber_lag_blocks")),
        "rule_set": int(now.total("fastledger_rule_set", which="in force")),
        "rule_set_scheduled": int(now.total("fastledger_rule_set", which="scheduled")),
        "rule_set_height": int(now.total("fastledger_rule_set_height")),
        "disk_free_bytes": int(now.total("fastledger_disk_free_bytes")),
        **_federation_figures(now),
        "stage_shares": {name: round(spent / busy, 3) if busy else 0.0 for name, spent in stages.items()},
    }


def _federation_figures(now: Sample) -> dict[str, Any]:
    """Returns the node's figures among its peers; nothing for a chain of one organisation."""
    name = "fastledger_federation"
    if f"{name}_tip_height" not in now.values:
        return {}
    return {
        "tip_height": int(now.total(f"{name}_tip_height")),
        "final_height": int(now.total(f"{name}_final_height")),
        "peers": int(now.total(f"{name}_peers")),
        "bans": int(now.total(f"{name}_bans")),
        "sync_lag_blocks": int(now.total(f"{name}_sync_lag_blocks")),
        "mempool": int(now.total(f"{name}_mempool_transactions")),
        "reorganisations": int(now.total(f"{name}_reorganisations_total")),
        "peers_left_behind": int(now.total(f"{name}_peers_left_behind")),
        "hashes_per_second": int(now.total(f"{name}_hash_rate")),
    }


def _ms(seconds: float | None) -> float | None:
    return None if seconds is None or seconds == float("inf") else round(seconds * 1000, 2)


def frame(address: str, shown: Mapping[str, Any]) -> "RenderableType":
    """Returns a frame for the terminal."""
    from rich.console import Group
    from rich.panel import Panel
    from rich.progress_bar import ProgressBar
    from rich.table import Table

    table = Table.grid(padding=(0, 3))
    rows = (
        (("height", "height"), ("transactions", "transactions")),
        (("tx/s", "transactions_per_second"), ("requests/s", "requests_per_second")),
        (("request p50 ms ≤", "request_p50_ms"), ("request p99 ms ≤", "request_p99_ms")),
        (("fsync p99 ms ≤", "fsync_p99_ms"), ("disk free GiB", "disk_free_bytes")),
        (("pending", "pending"), ("queue", "queue_depth")),
        (("connections", "connections"), ("subscribers", "subscribers")),
        (("behind, blocks", "subscriber_lag_blocks"), ("rule set", "rule_set")),
        *(SCHEDULED_ROWS if shown["rule_set_scheduled"] else ()),
        *(FEDERATION_ROWS if "tip_height" in shown else ()),
    )
    for row in rows:
        table.add_row(*(cell for label, name in row for cell in (label, _cell(name, shown.get(name, "")))))
    stages = Table.grid(padding=(0, 2))
    for name, share in sorted(shown["stage_shares"].items(), key=lambda item: -item[1]):
        stages.add_row(name, f"{share:6.1%}", ProgressBar(total=1, completed=share, width=40))
    title = f"{address} · {'ready' if shown['ready'] else 'NOT READY'}"
    return Group(Panel(table, title=title, width=78), Panel(stages, title="stages", width=78))


def _cell(name: str, value: Any) -> str:
    if value is None:
        return "-"
    if name == "disk_free_bytes":
        return f"{value / (1 << 30):,.1f}"
    return f"{value:,}" if isinstance(value, int | float) else str(value)


def read_token(path: Path | None) -> str:
    """Returns the bearer token in a file's first line; "" where there is no file to read."""
    if path is None:
        return ""
    try:
        token = path.read_text(encoding="ascii").split("\n")[0].strip()
    except (OSError, UnicodeDecodeError):
        raise InputError("the token file cannot be read") from None
    return token


token_option = click.option(
    "--token-file",
    type=click.Path(path_type=Path, dir_okay=False),
    envvar="FASTLEDGER_TOKEN_FILE",
    help="File whose first line is the bearer token to show.",
)


@click.command()
@click.argument("address", envvar="FASTLEDGER_NODE", default="http://127.0.0.1:8470")
@click.option("--interval", type=click.FloatRange(0.2, 60), default=1.0, show_default=True, help="Seconds.")
@click.option("--once", is_flag=True, help="Show one frame and end.")
@click.option("--ca", type=click.Path(path_type=Path), help="Authorities that sign the node's certificate.")
@click.option("--cert", "certificate", default="", help="PEM file to show to the node.")
@click.option("--key", default="", help="Its private key.")
@token_option
@command_options
def top(
    output: Output,
    address: str,
    interval: float,
    once: bool,
    ca: Path | None,
    certificate: str,
    key: str,
    token_file: Path | None,
) -> None:
    """Watch the node at ADDRESS: throughput, latency, queues, height; ends with Ctrl-C."""
    from rich.console import Console
    from rich.live import Live

    from fastledger.node.tls import client_context

    address = address.rstrip("/")
    token = read_token(token_file)
    context = client_context(ca=ca, certificate=certificate, key=key) if address.startswith("https") else None
    before = scrape(address, context, token)
    time.sleep(interval)
    now = scrape(address, context, token)
    if output.as_json:
        output.answer(figures(before, now))
        return
    if once:
        Console(width=80).print(frame(address, figures(before, now)))
        return
    with Live(frame(address, figures(before, now)), screen=True, auto_refresh=False) as live:
        while True:
            time.sleep(interval)
            before, now = now, scrape(address, context, token)
            live.update(frame(address, figures(before, now)), refresh=True)

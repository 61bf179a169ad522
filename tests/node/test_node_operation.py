"""What an operator runs: metrics, alerts, top, node and config commands, the unit."""

import http.server
import os
import re
import shutil
import signal
import stat
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from commands import PASSWORD, Cli
from prometheus_client import CollectorRegistry
from prometheus_client.parser import text_string_to_metric_families

from fastledger import Ledger
from fastledger.daemon.config.text import load_config
from fastledger.daemon.pidfile import process_start, remove_pid, running, running_pid, write_pid
from fastledger.errors import CertificateError, Code
from fastledger.node.federation.metrics import FederationMetrics
from fastledger.node.metrics import NodeMetrics, metrics_table
from fastledger.stage_times import STAGE_BUCKETS_S, StageTimes

ROOT = Path(__file__).resolve().parents[2]
NOW_MS = 1_700_000_000_000


@pytest.fixture
def metrics(tmp_path: Path) -> Iterator[NodeMetrics]:
    made = NodeMetrics(backend="portable", clock_ms=lambda: NOW_MS)
    with Ledger.create(tmp_path / "ledger") as ledger:
        made.attach(ledger, tmp_path / "ledger")
        yield made


def samples(metrics: NodeMetrics) -> dict[str, float]:
    found = {}
    for family in text_string_to_metric_families(metrics.render().decode()):
        for sample in family.samples:
            labels = ",".join(f"{key}={value}" for key, value in sorted(sample.labels.items()))
            found[f"{sample.name}{{{labels}}}"] = sample.value
    return found


def test_stage_times_keep_how_calls_spread() -> None:  # SPEC-NODE-142
    times = StageTimes()
    for seconds in (0.0001, 0.00011, 0.3, 99.0):
        times.add("sync", seconds)
    counts, total = times.histograms()["sync"]
    assert len(counts) == len(STAGE_BUCKETS_S) + 1
    assert (counts[0], counts[1], counts[STAGE_BUCKETS_S.index(0.5)], counts[-1]) == (1, 1, 1, 1)
    assert (sum(counts), total) == (4, times.snapshot()["sync"][0])


def test_what_is_counted_is_told(metrics: NodeMetrics) -> None:  # SPEC-NODE-141
    before = samples(metrics)
    assert (
        before["fastledger_backup_age_seconds{}"] == before["fastledger_certificate_expiry_seconds{}"] == -1
    )
    metrics.request("ledger.status", Code.OK, 0.003)
    metrics.request("ledger.status", Code.BUSY, 0.003)
    metrics.verdicts({Code.OK: 10, Code.BAD_SIGNATURE: 2})
    metrics.tls(None, NOW_MS + 5_000)
    metrics.tls(CertificateError("x"), NOW_MS + 5_000)
    metrics.backup(NOW_MS - 7_000)
    found = samples(metrics)
    for name, value in {
        "rpc_requests_total{code=busy,method=ledger.status}": 1,
        "rpc_request_seconds_bucket{le=0.005,method=ledger.status}": 2,
        "rpc_request_seconds_bucket{le=0.0025,method=ledger.status}": 0,
        "verdicts_total{code=ok}": 10,
        "verdicts_total{code=bad-signature}": 2,
        "tls_reloads_total{result=failed}": 1,
        "certificate_expiry_seconds{}": 5,
        "backup_age_seconds{}": 7,
    }.items():
        assert found[f"fastledger_{name}"] == value, name


def test_the_ledger_is_read_at_a_scrape(tmp_path: Path) -> None:  # SPEC-NODE-142
    made = NodeMetrics()
    with Ledger.create(tmp_path / "ledger") as ledger:
        made.attach(ledger, tmp_path / "ledger")
        ledger.times.add("sync", 0.002)
        found = samples(made)
        assert found["fastledger_height{}"] == ledger.height
        assert (
            found["fastledger_stage_seconds_count{stage=sync}"]
            == found["fastledger_fsync_seconds_count{}"]
            == 1
        )
        assert found["fastledger_fsync_seconds_bucket{le=0.0025}"] == 1
        assert found["fastledger_stage_seconds_count{stage=verify}"] == 0
        assert found["fastledger_log_bytes{}"] > 0
        assert found["fastledger_index_bytes{}"] > 0
        assert 0 < found["fastledger_disk_free_bytes{}"] <= found["fastledger_disk_bytes{}"]


def test_alerts_name_metrics_that_exist(metrics: NodeMetrics) -> None:  # SPEC-NODE-143
    rules = yaml.safe_load((ROOT / "packaging" / "prometheus" / "alerts.yml").read_text())
    alerts = [rule for group in rules["groups"] for rule in group["rules"]]
    documentation = (ROOT / "docs" / "operating.md").read_text()
    FederationMetrics(metrics.registry)
    families = {family.name: family.type for family in metrics.registry.collect()}
    known = set(families) | {f"{name}_total" for name, kind in families.items() if kind == "counter"}
    known |= {f"{name}_bucket" for name, kind in families.items() if kind == "histogram"}
    known -= {name for name, kind in families.items() if kind in ("counter", "histogram")}
    slugs = {code.slug for code in Code.all()}
    assert len({rule["alert"] for rule in alerts}) == len(alerts) > 10
    for rule in alerts:
        named = set(re.findall(r"fastledger_[a-z0-9_]+", rule["expr"]))
        assert named <= known, rule["alert"]
        assert named or rule["expr"].startswith("up{"), rule["alert"]
        assert rule["labels"]["severity"] in {"page", "ticket"}
        assert rule["annotations"]["summary"]
        assert f"`{rule['alert']}`" in documentation
        for pattern in re.findall(r'code=~?"([^"]+)"', rule["expr"]):
            assert set(pattern.split("|")) <= slugs


def test_every_metric_is_documented(metrics: NodeMetrics) -> None:  # SPEC-NODE-143, SPEC-FED-14
    text = (ROOT / "docs" / "operating.md").read_text()
    assert metrics_table(metrics.registry) in text
    of_federation = CollectorRegistry()
    FederationMetrics(of_federation)
    assert metrics_table(of_federation) in text


@pytest.fixture
def fake_node(metrics: NodeMetrics) -> Iterator[tuple[str, NodeMetrics]]:
    """Real Prometheus text over HTTP; each scrape finds more work done."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            if self.path == "/metrics":
                metrics.request("tx.submit", Code.OK, 0.004)
            body = metrics.render() if self.path == "/metrics" else b"{}"
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_arguments: Any) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_address[1]}", metrics
    server.shutdown()
    server.server_close()
    thread.join()


def test_top(fake_node: tuple[str, NodeMetrics], tmp_path: Path) -> None:  # SPEC-NODE-144
    address, metrics = fake_node
    metrics.ingest_pending.set(1_234)
    shown = Cli(tmp_path).json("top", address, "--interval", "0.2", "--once")
    assert shown["ready"] is True
    assert shown["requests_per_second"] > 0
    assert (shown["pending"], shown["request_p99_ms"], shown["fsync_p99_ms"]) == (1_234, 5.0, None)
    assert set(shown["stage_shares"]) >= {"verify", "sync"}
    text = Cli(tmp_path).run("top", address, "--interval", "0.2", "--once").output
    for word in ("1,234", "ready", "tx/s", "verify", "subscribers"):
        assert word in text
    assert max(map(len, text.splitlines())) <= 80


@pytest.mark.parametrize("address", ["http://127.0.0.1:1", "file:///etc/passwd", "nonsense"])
def test_top_without_a_node(tmp_path: Path, address: str) -> None:  # SPEC-NODE-144
    assert Cli(tmp_path).error("top", address, code=5)["error"] == "storage"


def test_a_local_node_is_made(tmp_path: Path) -> None:  # SPEC-NODE-151
    cli = Cli(tmp_path)
    answer = cli.json("node", "init", tmp_path / "node")
    config = load_config(answer["config"], {})
    assert config.ledger.path == str(tmp_path / "node" / "ledger")
    assert stat.S_IMODE((tmp_path / "node" / "operator.token").stat().st_mode) == 0o600
    token = (tmp_path / "node" / "operator.token").read_text().strip()
    assert token not in (tmp_path / "node" / "node.toml").read_text()
    assert config.rpc.access.clients[0].roles == {"reader", "submitter", "operator"}
    assert cli.json("config", "check", answer["config"]) == {"ok": True, "address": "http://127.0.0.1:8470"}
    with Ledger.open(config.ledger.path) as ledger:
        assert ledger.chain_id.hex() == answer["chain_id"]
    assert cli.error("node", "init", tmp_path / "node")["error"] == "malformed"
    assert cli.error("node", "stop", "--config", answer["config"])["error"] == "not-found"
    assert cli.error("node", "status", "--config", answer["config"], code=5)["error"] == "storage"


def test_a_node_with_tls_is_made(tmp_path: Path) -> None:  # SPEC-NODE-151
    cli = Cli(tmp_path)
    answer = cli.json("node", "init", tmp_path / "node", "--tls", "--host", "node.hospital.example")
    checked = cli.json("config", "check", answer["config"])
    assert checked["address"] == "https://127.0.0.1:8470"
    shown = cli.json("certs", "show", tmp_path / "node" / "certs")
    assert [entry["name"] for entry in shown["issued"]] == ["node", "operator"]
    assert checked["certificate_not_after_ms"] == shown["issued"][0]["not_after_ms"]
    assert load_config(answer["config"], {}).rpc.access.anonymous_roles == frozenset()
    (tmp_path / "node" / "certs" / "node.key").chmod(0o644)
    assert cli.error("config", "check", answer["config"])["error"] == "bad-certificate"


def test_config_commands(tmp_path: Path) -> None:  # SPEC-NODE-102
    (tmp_path / "bad.toml").write_text("[ledger]\npath = 1\n[rpc]\nport = 0.5\n")
    failure = Cli(tmp_path).error("config", "check", tmp_path / "bad.toml")
    assert (failure["error"], failure["message"].count("bad.toml:")) == ("bad-config", 2)
    found = Cli(tmp_path).json("config", "describe", "rpc.port")["settings"]
    assert found == [
        {
            "name": "rpc.port",
            "takes": "an integer 0..65535",
            "default": 8470,
            "text": "TCP port; 0: any free one.",
        }
    ]
    assert "rpc.tls.key" in Cli(tmp_path).run("config", "describe").output


def test_certs_commands(tmp_path: Path) -> None:  # SPEC-NODE-116
    cli, folder = Cli(tmp_path), tmp_path / "ca"
    cli.json("certs", "init", folder, "--within", "hospital.example")
    assert Path(cli.json("certs", "issue", folder, "lab")["key"]).exists()
    cli.json("certs", "renew", folder, "lab", "--days", "5")
    assert cli.json("certs", "revoke", folder, "lab")["revoked"] == 2
    assert cli.json("certs", "rollover", folder)["trusted"] == [1, 2]
    assert cli.json("certs", "rollover", folder, "--finish")["trusted"] == [2]
    assert cli.error("certs", "issue", folder, "lab")["error"] == "bad-certificate"


def test_a_stale_pid_is_no_node(tmp_path: Path) -> None:  # SPEC-NODE-132
    assert running_pid(tmp_path) is None
    write_pid(tmp_path, "http://127.0.0.1:1")
    assert running(tmp_path) == (os.getpid(), "http://127.0.0.1:1")
    start = int(process_start(os.getpid()))
    for text in (f"{os.getpid()} {start + 1}\n", "999999999 1\n", "x y\n", "", f"{os.getpid()}\n", "-1 5\n"):
        (tmp_path / "node.pid").write_text(text)
        assert running_pid(tmp_path) is None
        remove_pid(tmp_path)
        assert (tmp_path / "node.pid").exists()
    write_pid(tmp_path, "")
    remove_pid(tmp_path)
    assert not (tmp_path / "node.pid").exists()


@pytest.mark.parametrize("obeys", [True, False])
def test_stop_signals_and_waits(tmp_path: Path, obeys: bool) -> None:  # SPEC-NODE-132
    ledger = tmp_path / "ledger"
    ledger.mkdir()
    (tmp_path / "node.toml").write_text('[ledger]\npath = "ledger"\n')
    program = (
        "import signal, sys; from pathlib import Path; from fastledger.daemon.pidfile import write_pid\n"
        f"signal.signal(signal.SIGTERM, {'lambda *_: sys.exit(0)' if obeys else 'signal.SIG_IGN'})\n"
        f"write_pid(Path({str(ledger)!r}), ''); print(flush=True)\n"
        "while True: signal.pause()\n"
    )
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, cwd=ROOT) as process:
        assert process.stdout is not None
        process.stdout.readline()
        command = ("node", "stop", "--config", tmp_path / "node.toml", "--timeout")
        if obeys:
            assert Cli(tmp_path).json(*command, 60) == {"stopped": process.pid}
        else:
            assert Cli(tmp_path).error(*command, 0, code=4)["error"] == "busy"
            process.send_signal(signal.SIGKILL)


def test_the_unit(tmp_path: Path) -> None:  # SPEC-NODE-131
    text = (ROOT / "packaging" / "systemd" / "fastledger-node.service").read_text()
    for line in (
        "Type=notify",
        "ProtectSystem=strict",
        "NoNewPrivileges=yes",
        "TimeoutStopSec=5min",
        "LimitNOFILE=65536",
    ):
        assert f"\n{line}\n" in text
    analyze = shutil.which("systemd-analyze")
    if analyze is None:
        pytest.skip("systemd-analyze is not here")
    unit = tmp_path / "fastledger-node.service"
    unit.write_text(text.replace("/usr/bin/fastledger", sys.executable))
    told = subprocess.run([analyze, "verify", str(unit)], capture_output=True, text=True, check=False)
    assert "fastledger-node.service" not in told.stderr + told.stdout


def test_the_password_is_in_no_file_of_a_node(tmp_path: Path) -> None:  # SPEC-NODE-151
    Cli(tmp_path).json("node", "init", tmp_path / "node")
    for path in (tmp_path / "node").rglob("*"):
        assert path.is_dir() or PASSWORD.encode() not in path.read_bytes()

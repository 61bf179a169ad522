"""What a node tells of itself: metrics that are fed, and an access log that names no one's data."""

import json
import time
import urllib.error
import urllib.request
from pathlib import Path

from node_process import CONFIG, NodeProcess

from fastledger import Client, Ledger, Role, Wallet
from fastledger.crypto.hpke import KemSuite

LIMITED = """
[rpc.rate]
requests_per_second = 50
requests_burst = 60
"""


def figures(node: NodeProcess) -> dict[str, float]:
    """Every sample of /metrics by its name and labels."""
    for _ in range(100):
        try:
            with urllib.request.urlopen(f"{node.url}/metrics", timeout=10) as answer:
                lines = answer.read().decode().splitlines()
            break
        except urllib.error.HTTPError as error:
            # Whoever asked before it, from the same address, may have used the rate up.
            assert error.code == 429
            time.sleep(0.05)
    else:
        raise AssertionError("the rate never recovers")
    pairs = (line.rsplit(" ", 1) for line in lines if line and not line.startswith("#"))
    return {name: float(value) for name, value in pairs}


def made(tmp_path: Path) -> tuple[Path, bytes]:
    regulator = Wallet.create(suite=KemSuite.X25519)
    with Ledger.create(tmp_path / "ledger", authorities=[regulator.authority]) as ledger:
        return tmp_path / "ledger", ledger.chain_id


def test_what_happens_is_counted(tmp_path: Path) -> None:  # SPEC-NODE-142
    path, chain_id = made(tmp_path)
    config = CONFIG.replace('level = "warning"', 'level = "info"') + LIMITED
    with NodeProcess(tmp_path, path, config) as node:
        node.start()
        before = figures(node)
        assert before["fastledger_backup_age_seconds"] == -1
        assert before["fastledger_checkpoint_timestamp_seconds"] == 0
        with Client.connect(node.url) as client:
            wallets = [Wallet.create(suite=KemSuite.X25519).join(chain_id) for _ in range(5)]
            client.submit([wallet.register(Role.PATIENT) for wallet in wallets])
            client.backup(str(tmp_path / "backup"))
            client.checkpoint()
            for _ in range(100):  # more than the burst: the client waits and asks again
                client.status()
        after = figures(node)
        assert node.stop() == 0
    assert after["fastledger_transactions"] == 5
    assert after['fastledger_verdicts_total{code="ok"}'] == 5
    assert 0 <= after["fastledger_backup_age_seconds"] < 60
    assert abs(after["fastledger_checkpoint_timestamp_seconds"] - time.time()) < 60
    assert after['fastledger_rpc_requests_total{code="ok",method="ledger.status"}'] == 100
    assert after['fastledger_rpc_rate_limited_total{client="anonymous"}'] > 0
    assert after["fastledger_ready"] == 1
    lines = [json.loads(line) for line in (tmp_path / "node.log").read_text().splitlines()]
    told = [line for line in lines if line["event"].startswith("access")]
    assert told and all({"method", "status"} <= line.keys() for line in told if line["event"] == "access")
    assert sum(line.get("requests", 1) for line in told) > 100
    text = (tmp_path / "node.log").read_text()
    assert not any(wallet.public_key.hex() in text for wallet in wallets)

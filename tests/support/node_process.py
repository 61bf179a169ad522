"""A node as a process of its own, which tests may kill."""

import os
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from dataclasses import dataclass, field
from pathlib import Path

from fastledger.cli.demo.organisations import free_port

CONFIG = """
[ledger]
path = "{ledger}"
require_blobs = false

[rpc]
host = "127.0.0.1"
port = {port}

[rpc.access]
anonymous_roles = ["reader", "submitter", "operator"]

[log]
level = "warning"
"""


@dataclass
class NodeProcess:
    """``fastledger node start`` on a ledger; started, killed and started again on the same port."""

    folder: Path
    ledger: Path
    config: str = CONFIG
    port: int = field(default_factory=free_port)
    process: "subprocess.Popen[bytes] | None" = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def pid(self) -> int:
        assert self.process is not None
        return self.process.pid

    def start(self, *, ready: bool = True) -> "NodeProcess":
        config = self.folder / "node.toml"
        config.write_text(self.config.format(ledger=self.ledger, port=self.port))
        with (self.folder / "node.log").open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "fastledger", "node", "start", "--config", str(config)],
                stdout=log,
                stderr=log,
                env={**os.environ, "PYTHONUNBUFFERED": "1"},
            )
        if ready:
            self.wait_until_ready()
        return self

    def wait_until_ready(self, timeout_s: float = 60.0) -> None:
        deadline = time.monotonic() + timeout_s
        while time.monotonic() < deadline:
            assert self.process is not None
            assert self.process.poll() is None, (self.folder / "node.log").read_text()[-2_000:]
            try:
                with urllib.request.urlopen(f"{self.url}/health/ready", timeout=5):
                    return
            except (urllib.error.URLError, OSError):
                time.sleep(0.02)
        raise AssertionError("the node did not become ready")

    def kill(self) -> None:
        """Kills the process as a power cut would."""
        assert self.process is not None
        self.process.kill()
        self.process.wait(30)

    def stop(self) -> int:
        """Stops the process as an operator would; returns its exit code."""
        assert self.process is not None
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        return self.process.wait(60)

    def __enter__(self) -> "NodeProcess":
        return self

    def __exit__(self, *_: object) -> None:
        if self.process is not None and self.process.poll() is None:
            self.process.kill()
            self.process.wait(30)

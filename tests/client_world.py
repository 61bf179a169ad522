"""A node in a process of its own, everyone's wallets, and clients of it."""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fastledger import Client, ClientOptions, Ledger, Role, Wallet
from fastledger.client.retry import Retry
from fastledger.crypto.hpke import KemSuite
from fastledger.errors import UnreachableError

PATIENT_RETRY = ClientOptions(retry=Retry(base_ms=5, wait_ms_max=200, deadline_ms=30_000))
ONE_TRY = ClientOptions(retry=Retry(deadline_ms=0))


def free_port() -> int:
    """A port that nobody listens on now."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        port: int = server.getsockname()[1]
    return port


@dataclass
class NodeProcess:
    """A node on a port that stays the same when it is killed and started again."""

    path: Path
    port: int = field(default_factory=free_port)
    process: "subprocess.Popen[bytes] | None" = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def start(self) -> None:
        """Returns once the node answers."""
        self.process = subprocess.Popen(
            [sys.executable, "/tmp/h-client/devnode.py", str(self.path), str(self.port)], env=os.environ
        )
        for _ in range(200):
            assert self.process.poll() is None, f"the node ended with {self.process.returncode}"
            try:
                Client.connect(self.url, options=ONE_TRY).close()
                return
            except UnreachableError:
                time.sleep(0.05)
        raise AssertionError("the node did not answer")

    def kill(self) -> None:
        """As the power does."""
        self._end(signal.SIGKILL)

    def stop(self) -> None:
        """As an operator does."""
        assert self._end(signal.SIGTERM) == 0

    def _end(self, with_signal: signal.Signals) -> int | None:
        process, self.process = self.process, None
        if process is None:
            return 0
        process.send_signal(with_signal)
        return process.wait(60)


@dataclass
class NodeWorld:
    """A settled ledger under a running node."""

    node: NodeProcess
    chain_id: bytes
    regulator: Wallet
    hospital: Wallet
    clinic: Wallet
    patient: Wallet
    stack: list[Callable[[], Any]] = field(default_factory=list)

    def connect(self, url: str | None = None, options: ClientOptions = PATIENT_RETRY, **more: Any) -> Client:
        """A client that is closed with the world."""
        client = Client.connect(url or self.node.url, chain_id=self.chain_id, options=options, **more)
        self.stack.append(client.close)
        return client

    def keep(self, closable: Any) -> Any:
        """Closes something with the world."""
        self.stack.append(closable.close)
        return closable

    def close(self) -> None:
        while self.stack:
            self.stack.pop()()
        self.node.kill()


def wallet(chain_id: bytes | None = None) -> Wallet:
    """Keys that are quickly made."""
    return Wallet.create(chain_id, suite=KemSuite.X25519)


def make_node_world(folder: Path) -> NodeWorld:
    """A ledger with a regulator, two hospitals and a patient with folders, under a node."""
    regulator = wallet()
    path = folder / "ledger"
    with Ledger.create(path, authorities=[regulator.authority]) as ledger:
        regulator.join(ledger.chain_id)
        hospital, clinic, patient = (wallet(ledger.chain_id) for _ in range(3))
        outcomes = ledger.submit(
            [
                hospital.register(Role.ORGANISATION),
                clinic.register(Role.ORGANISATION),
                patient.register(Role.PATIENT),
                regulator.endorse(hospital.identity, Role.ORGANISATION),
                regulator.endorse(clinic.identity, Role.ORGANISATION),
                patient.open_folders("vitals", "laboratory"),
            ]
        )
        assert all(outcome.ok for outcome in outcomes)
    node = NodeProcess(path)
    node.start()
    return NodeWorld(node, regulator.chain_id, regulator, hospital, clinic, patient)

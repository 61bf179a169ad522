"""A node in a process of its own, everyone's wallets, and clients of it."""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from node_process import CONFIG, NodeProcess

from fastledger import Client, ClientOptions, Ledger, Role, Wallet
from fastledger.client.retry import Retry
from fastledger.crypto.hpke import KemSuite

WITH_BLOBS = CONFIG.replace("require_blobs = false", "require_blobs = true")

PATIENT_RETRY = ClientOptions(retry=Retry(base_ms=5, wait_ms_max=200, deadline_ms=30_000))
ONE_TRY = ClientOptions(retry=Retry(deadline_ms=0))


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
        self.node.__exit__()


def wallet(chain_id: bytes | None = None) -> Wallet:
    """Keys that are quickly made."""
    return Wallet.create(chain_id, suite=KemSuite.X25519)


def make_node_world(folder: Path, config: str = WITH_BLOBS) -> NodeWorld:
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
    node = NodeProcess(folder, path, config).start()
    return NodeWorld(node, regulator.chain_id, regulator, hospital, clinic, patient)

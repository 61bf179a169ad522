"""The places where a demo's ledger can live: a directory of this process, or a node."""

import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import msgspec

from fastledger.chain.ledger import Ledger
from fastledger.cli.demo.waits import LOOPBACK, START_S, STOP_S
from fastledger.client.api import LedgerApi
from fastledger.errors import LedgerError, UnreachableError
from fastledger.model.reports import VerifyReport
from fastledger.pace import Progress
from fastledger.wallet.wallet import Wallet

if TYPE_CHECKING:
    from fastledger.client.sync import Client


@dataclass(frozen=True, slots=True)
class Settled:
    """The findings of a verification from disk of a demo's ledger."""

    how: str
    ok: bool
    problems: list[str]
    transactions: int
    blocks: int
    blobs: int
    log_bytes: int


class Home(Protocol):
    """A ledger with a regulator of the demo's own; ``regulator`` has joined its chain."""

    regulator: Wallet

    @property
    def path(self) -> Path | None:
        """The ledger's directory, where this process can see it; else None."""

    @property
    def ledger(self) -> LedgerApi:
        """The open ledger."""

    def stage_seconds(self) -> dict[str, float]:
        """Returns the seconds that each stage of the ledger took so far, as far as this process sees them."""

    def settle(self, progress: Progress) -> Settled:
        """Closes the ledger where that can be done, and verifies all of it."""

    def close(self) -> None:
        """Closes the ledger or the connections to it; may be called twice."""


class DirectoryHome:
    """A home that is a new ledger directory."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.regulator = Wallet.create()
        self.ledger = Ledger.create(path, authorities=[self.regulator.authority])
        self.regulator.join(self.ledger.chain_id)

    def stage_seconds(self) -> dict[str, float]:
        """Returns the seconds of every stage of the pipeline."""
        seconds = {name: total for name, (total, _) in self.ledger.times.snapshot().items()}
        seconds["border"] = seconds.get("admit", 0.0) - seconds.get("verify", 0.0)
        return seconds

    def settle(self, progress: Progress) -> Settled:
        """Closes the ledger, opens it again and verifies it."""
        self.ledger.close()
        self.ledger = Ledger.open(self.path)
        return verified(self.ledger, "closed, reopened and verified from disk", progress)

    def close(self) -> None:
        """Closes the ledger."""
        self.ledger.close()


def verified(ledger: Ledger, how: str, progress: Progress) -> Settled:
    """Verifies an open ledger and returns the findings; blocks to replay after a clean close are a problem too."""
    problems = ["a clean close left blocks to replay"] if ledger.replayed_blocks else []
    return settled(ledger.verify(progress), how, problems)


def settled(report: VerifyReport, how: str, problems: Sequence[str] = ()) -> Settled:
    """Returns the findings of a report, with problems that were found beside it."""
    return Settled(
        how,
        report.ok and not problems,
        [*report.problems, *problems],
        report.transactions,
        report.blocks,
        report.blobs,
        report.log_bytes,
    )


class NodeHome:
    """A home behind a node that runs already; the caller holds its regulator's wallet."""

    path: Path | None = None

    def __init__(self, client: "Client", regulator: Wallet) -> None:
        self.ledger: LedgerApi = client
        self._client = client
        self.regulator = regulator.join(client.chain_id)

    def stage_seconds(self) -> dict[str, float]:
        """Returns nothing: the stages are the node's own."""
        return {}

    def settle(self, progress: Progress) -> Settled:
        """Has the node verify its ledger, while it goes on; that takes the operator's role."""
        return settled(self._client.verify(progress), "verified from disk by the node")

    def close(self) -> None:
        """Closes the connections."""
        self._client.close()


class ChildNodeHome:
    """A home under a node that this process starts, and stops at the end."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / "ledger"
        self.regulator = Wallet.create()
        with Ledger.create(self.path, authorities=[self.regulator.authority]) as ledger:
            self.regulator.join(ledger.chain_id)
        self._node = ChildNode(folder, self.path)
        try:
            self._client = self._node.connect()
        except BaseException:
            self._node.kill()
            raise
        self.ledger: LedgerApi = self._client
        self._opened: Ledger | None = None

    def stage_seconds(self) -> dict[str, float]:
        """Returns nothing: the stages are the node's own."""
        return {}

    def settle(self, progress: Progress) -> Settled:
        """Stops the node, opens its ledger in this process and verifies it."""
        self._client.close()
        self._node.stop()
        self._opened = Ledger.open(self.path)
        return verified(self._opened, "node stopped, ledger opened and verified from disk", progress)

    def close(self) -> None:
        """Ends the node's process, and closes what this process opened."""
        self._client.close()
        self._node.kill()
        if self._opened is not None:
            self._opened.close()


class ChildNode:
    """The process ``fastledger node start`` on a loopback port, a child of this one."""

    def __init__(self, folder: Path, ledger: Path) -> None:
        with socket.create_server((LOOPBACK, 0)) as server:
            port = server.getsockname()[1]
        self.url = f"http://{LOOPBACK}:{port}"
        config = folder / "node.toml"
        place = msgspec.json.encode(str(ledger)).decode()  # a JSON string is a TOML one
        config.write_text(f'[ledger]\npath = {place}\n\n[rpc]\nhost = "{LOOPBACK}"\nport = {port}\n')
        self._log = folder / "node.log"
        with self._log.open("wb") as log:
            command = [sys.executable, "-m", "fastledger", "node", "start", "--config", str(config)]
            self._process = subprocess.Popen(command, stdout=log, stderr=log, stdin=subprocess.DEVNULL)  # noqa: S603

    def connect(self) -> "Client":
        """Returns a client, once the node answers; ``LedgerError`` where it does not start."""
        from fastledger.client.sync import Client

        begun = time.monotonic()
        while True:
            try:
                return Client.connect(self.url)
            except UnreachableError:
                if self._process.poll() is not None or time.monotonic() - begun > START_S:
                    raise LedgerError(f"the node did not start: see {self._log.name}") from None

    def stop(self) -> None:
        """Asks the node to stop, and waits until it has; ``LedgerError`` where it does not."""
        self._process.send_signal(signal.SIGTERM)
        try:
            code = self._process.wait(STOP_S)
        except subprocess.TimeoutExpired:
            raise LedgerError("the node does not stop") from None
        if code != 0:
            raise LedgerError(f"the node ended with {code}: see {self._log.name}")

    def kill(self) -> None:
        """Kills the process if it still runs."""
        if self._process.poll() is None:
            self._process.kill()
            self._process.wait()

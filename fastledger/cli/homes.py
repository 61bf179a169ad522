"""Where a demo's ledger lives: in a directory of this process, or with a node."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from fastledger.chain.ledger import Ledger
from fastledger.client.api import LedgerApi
from fastledger.client.wallet import Wallet

Progress = Callable[[str, int, int], None]


@dataclass(frozen=True, slots=True)
class Settled:
    """What a ledger turned out to be when it was verified from disk."""

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
        """Its directory, where this process can see it."""

    @property
    def ledger(self) -> LedgerApi:
        """The open ledger."""

    def stage_seconds(self) -> dict[str, float]:
        """Where the ledger's own time went so far, as far as this process sees it."""

    def settle(self, progress: Progress) -> Settled:
        """Closes the ledger where that can be done, and verifies all of it."""

    def close(self) -> None:
        """Lets go of it; may be called twice."""


class DirectoryHome:
    """A new ledger directory."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.regulator = Wallet.create()
        self.ledger = Ledger.create(path, authorities=[self.regulator.authority])
        self.regulator.join(self.ledger.chain_id)

    def stage_seconds(self) -> dict[str, float]:
        """Every stage of the pipeline."""
        seconds = {name: total for name, (total, _) in self.ledger.times.snapshot().items()}
        seconds["border"] = seconds.get("admit", 0.0) - seconds.get("verify", 0.0)
        return seconds

    def settle(self, progress: Progress) -> Settled:
        """Closed, opened again, verified."""
        self.ledger.close()
        self.ledger = Ledger.open(self.path)
        return verified(self.ledger, "closed, reopened and verified from disk", progress)

    def close(self) -> None:
        """Closes the ledger."""
        self.ledger.close()


def verified(ledger: Ledger, how: str, progress: Progress) -> Settled:
    """The report of an open ledger; blocks to replay after a clean close are a problem too."""
    report = ledger.verify(progress)
    problems = list(report.problems)
    if ledger.replayed_blocks:
        problems.append("a clean close left blocks to replay")
    return Settled(
        how,
        report.ok and not problems,
        problems,
        report.transactions,
        report.blocks,
        report.blobs,
        report.log_bytes,
    )

"""kill -9 of a node under load: what it called durable stands, who follows misses nothing, who retries enters once."""

import os
import random
import threading
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from node_process import NodeProcess

from fastledger import Client, Ledger, Outcome, Role, Transaction, Wallet
from fastledger.client.aio import ClientOptions
from fastledger.client.retry import Retry
from fastledger.crypto.hpke import KemSuite
from fastledger.errors import FastLedgerError
from fastledger.limits import QUERY_PAGE_MAX

ROUNDS = int(os.environ.get("FASTLEDGER_NODE_CRASH_ROUNDS", "3"))
SUBMITTERS = 3
BATCH = 40
PATIENT = ClientOptions(retry=Retry(deadline_ms=120_000))


@dataclass
class Load:
    """Clients that submit without end, and one that follows, across whatever happens to the node."""

    url: str
    chain_id: bytes
    outcomes: dict[bytes, Outcome] = field(default_factory=dict)
    submitted: set[bytes] = field(default_factory=set)
    followed: list[tuple[int, bytes]] = field(default_factory=list)
    failures: list[BaseException] = field(default_factory=list)
    ending: threading.Event = field(default_factory=threading.Event)
    first_cursor: int = 0

    def __post_init__(self) -> None:
        self._threads = [threading.Thread(target=self._submit, args=(seed,)) for seed in range(SUBMITTERS)]
        self._follower = threading.Thread(target=self._follow, daemon=True)

    def start(self) -> None:
        for thread in (*self._threads, self._follower):
            thread.start()

    def end(self) -> None:
        """Every submission has its verdict when this returns."""
        self.ending.set()
        for thread in self._threads:
            thread.join(150)
            assert not thread.is_alive()

    def _transactions(self) -> list[Transaction]:
        wallets = [Wallet.create(suite=KemSuite.X25519).join(self.chain_id) for _ in range(BATCH)]
        return [wallet.register(Role.PATIENT) for wallet in wallets]

    def _submit(self, seed: int) -> None:
        try:
            with Client.connect(self.url, options=PATIENT) as client:
                while not self.ending.is_set():
                    batch = self._transactions()
                    self.submitted.update(transaction.txid for transaction in batch)
                    for outcome in client.submit(batch):
                        self.outcomes[outcome.txid] = outcome
        except BaseException as error:
            self.failures.append(error)

    def _follow(self) -> None:
        try:
            with Client.connect(self.url, options=PATIENT) as client:
                for event in client.follow("transactions", cursor=self.first_cursor):
                    assert event.entry is not None
                    self.followed.append((event.entry.seq, event.entry.txid))
        except FastLedgerError as error:
            if not self.ending.is_set():
                self.failures.append(error)

    def wait_until_followed(self, count: int) -> None:
        deadline = time.monotonic() + 60
        while len(self.followed) < count and time.monotonic() < deadline:
            time.sleep(0.02)


def chain_of(ledger: Ledger) -> list[tuple[int, bytes]]:
    """(seq, txid) of every transaction."""
    found, cursor = [], 0
    while True:
        page = ledger.query(cursor=cursor, limit=QUERY_PAGE_MAX)
        found += [(entry.seq, entry.txid) for entry in page]
        if page.next_cursor is None:
            return found
        cursor = page.next_cursor


@dataclass
class Made:
    """A ledger that began now: the node's clock is the real one."""

    path: Path
    chain_id: bytes


@pytest.fixture
def made(tmp_path: Path) -> Made:
    regulator = Wallet.create(suite=KemSuite.X25519)
    with Ledger.create(tmp_path / "ledger", authorities=[regulator.authority]) as ledger:
        return Made(tmp_path / "ledger", ledger.chain_id)


def test_kill_9_under_load(tmp_path: Path, made: Made) -> None:  # SPEC-NODE-5
    rng = random.Random(20261121)
    with NodeProcess(tmp_path, made.path) as node:
        node.start()
        load = Load(node.url, made.chain_id)
        load.start()
        for _ in range(ROUNDS):
            time.sleep(rng.uniform(0.1, 0.9))
            node.kill()
            node.start()
        time.sleep(0.3)
        load.end()
        assert not load.failures
        with Client.connect(node.url) as client:
            load.wait_until_followed(client.tip().transaction_count)
        assert node.stop() == 0
    with Ledger.open(made.path) as ledger:
        chain = chain_of(ledger)
        assert ledger.verify().ok
        durable = [outcome for outcome in load.outcomes.values() if outcome.ok]
        for outcome in durable:
            entry = ledger.get(outcome.txid)
            assert (entry.height, entry.index) == (outcome.height, outcome.index)
    assert len(durable) == len(load.submitted) > 0
    # Each exactly once, though they were sent again and again.
    times = Counter(txid for _, txid in chain)
    assert all(times[txid] == 1 for txid in load.submitted)
    assert max(times.values()) == 1
    # Followed from the first to the last, without gap or double.
    assert load.followed == chain


def test_sigterm_under_load(tmp_path: Path, made: Made) -> None:  # SPEC-NODE-4
    with NodeProcess(tmp_path, made.path) as node:
        node.start()
        load = Load(node.url, made.chain_id)
        load.start()
        for _ in range(2):
            time.sleep(0.5)
            assert node.stop() == 0
            node.start()
        load.end()
        assert not load.failures
        assert node.stop() == 0
    with Ledger.open(made.path) as ledger:
        assert ledger.replayed_blocks == 0  # the checkpoint was written
        for outcome in load.outcomes.values():
            assert ledger.get(outcome.txid).height == outcome.height
    assert load.submitted == set(load.outcomes)

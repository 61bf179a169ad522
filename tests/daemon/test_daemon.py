"""The node as a process: ready, reloaded, stopped under load with every answer given, and one to a directory."""

import asyncio
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import aiohttp
import msgspec
import pytest
from node_world import raw_client, until
from world import new_wallet

from fastledger import Ledger, Role
from fastledger.clock import system_clock_ms
from fastledger.daemon import process as daemon
from fastledger.daemon.config.settings import LedgerConfig, NodeConfig
from fastledger.daemon.pidfile import running
from fastledger.node.options import LogOptions
from fastledger.rpc.protocol import CBOR_SEQUENCE_TYPE, decode_outcomes

SCRIPT = """
import sys
from fastledger.errors import FastLedgerError
from fastledger.daemon.config.settings import *
from fastledger.node.options import LogOptions
from fastledger.rpc.options import AccessOptions
from fastledger.daemon.process import run
access = AccessOptions(anonymous_roles=frozenset({"reader", "submitter", "operator"}))
config = NodeConfig(
    ledger=LedgerConfig(path=sys.argv[1]),
    rpc=RpcConfig(port=0, access=access),
    log=LogOptions(path=sys.argv[2]),
)
try:
    sys.exit(run(config))
except FastLedgerError as error:
    print(error, file=sys.stderr)
    sys.exit(3)
"""


class Process:
    """A node in a process of its own."""

    def __init__(self, folder: Path) -> None:
        self.ledger = folder / "ledger"
        self.log = folder / "node.log"
        with Ledger.create(self.ledger) as ledger:
            self.chain_id = ledger.chain_id
        self.process = self.spawn()

    def spawn(self) -> "subprocess.Popen[str]":
        arguments = [sys.executable, "-c", SCRIPT, str(self.ledger), str(self.log)]
        return subprocess.Popen(arguments, stderr=subprocess.PIPE, text=True)

    async def url(self) -> str:
        async with asyncio.timeout(60):
            while (found := running(self.ledger)) is None:
                assert self.process.poll() is None, self.process.communicate()
                await asyncio.sleep(0.02)
        assert found[0] == self.process.pid
        return found[1]

    def events(self) -> list[str]:
        return [msgspec.json.decode(line)["event"] for line in self.log.read_text().splitlines()]


@pytest.fixture
def process(tmp_path: Path) -> Iterator[Process]:
    made = Process(tmp_path)
    yield made
    if made.process.poll() is None:
        made.process.kill()
    made.process.communicate(timeout=30)


async def test_it_stops_under_load_with_every_answer_given(
    process: Process,
) -> None:  # SPEC-NODE-4, SPEC-RPC-10
    url = await process.url()
    wallets = [new_wallet(system_clock_ms).join(process.chain_id) for _ in range(300)]  # type: ignore[arg-type]
    transactions = [wallet.register(Role.PATIENT) for wallet in wallets]
    answered: list[bytes] = []

    async def submit(start: int) -> None:
        chunk = transactions[start : start + 10]
        async with raw_client(url) as client:
            try:
                status, body = await client.post(
                    "/v1/transactions", b"".join(tx.encoded for tx in chunk), CBOR_SEQUENCE_TYPE
                )
            except aiohttp.ClientError:
                return  # it came too late to be taken
            if status == 200:
                outcomes = decode_outcomes(body, [tx.txid for tx in chunk])[1]
                answered.extend(outcome.txid for outcome in outcomes if outcome.ok)

    tasks = [asyncio.create_task(submit(start)) for start in range(0, 300, 10)]
    await asyncio.sleep(0.05)
    process.process.send_signal(signal.SIGTERM)
    await asyncio.gather(*tasks)
    assert await asyncio.to_thread(process.process.wait, 60) == 0
    assert running(process.ledger) is None
    with Ledger.open(process.ledger) as ledger:
        assert ledger.replayed_blocks == 0, "the last thing it did was a checkpoint"
        for txid in answered:
            assert ledger.get(txid).code == 0
    told = [event for event in process.events() if not event.startswith("access")]
    assert told[-2:] == ["node.stopping", "node.stopped"]


async def test_one_node_to_a_directory(process: Process) -> None:
    url = await process.url()
    second = process.spawn()
    _, error = await asyncio.to_thread(second.communicate, None, 60)
    assert second.returncode == 3
    assert error.startswith("locked: ")
    async with raw_client(url) as client:
        assert (await client.call("ledger.info"))["chain_id"] == process.chain_id.hex()
        assert (await client.call("node.status"))["ledger"]["state"] == "ready"
        assert b"fastledger_height 0" in (await client.get("/metrics"))[1]


async def test_it_reloads_and_can_be_told_to_stop(process: Process) -> None:
    url = await process.url()
    process.log.rename(process.log.with_suffix(".1"))
    process.process.send_signal(signal.SIGHUP)
    await until(lambda: process.log.exists() and "node.reloaded" in process.events())
    async with raw_client(url) as client:
        assert (await client.call("node.reload"))["reloaded"] == ["log"]
        await client.call("node.stop")
    assert await asyncio.to_thread(process.process.wait, 60) == 0


async def test_tidying_goes_on_whatever_failed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rounds = 0

    class Blobs:
        async def tidy(self) -> None:
            nonlocal rounds
            rounds += 1
            raise OSError

    monkeypatch.setattr(daemon, "_TIDY_INTERVAL_S", 0.001)
    node = daemon.Daemon(
        NodeConfig(ledger=LedgerConfig(path=str(tmp_path)), log=LogOptions(path=str(tmp_path / "log")))
    )
    tidying = asyncio.create_task(node._tidy(Blobs()))  # type: ignore[arg-type]
    await until(lambda: rounds > 2 or tidying.done())
    assert not tidying.done()
    tidying.cancel()
    assert "blobs.tidy-failed" in (tmp_path / "log").read_text()

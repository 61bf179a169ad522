"""A node over a long run: memory while a million transactions enter, and what idle and slow subscribers cost.

``python benchmarks/soak_node.py [--thousands 1000]`` prints one JSON document; `make soak` runs it.
"""

import argparse
import asyncio
import json
import shutil
import tempfile
from pathlib import Path
from typing import Any

import aiohttp
from bench_ledger import open_world, signed_batches
from bench_node import cpu_seconds, load, resident_mib, running_node
from load import write_batches

STEP = 50
IDLE_SUBSCRIBERS = 1_000


def open_subscription(number: int) -> dict[str, Any]:
    """A JSON-RPC call that follows the chain from now on."""
    return {
        "jsonrpc": "2.0",
        "id": number,
        "method": "subscription.open",
        "params": {"topic": "transactions", "filter": {"kind": "identity.revoke"}},
    }


async def idle_subscribers_mib(url: str, pid: int, count: int) -> float:
    """What so many subscribers add to the node's memory while nothing that they ask for happens."""
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as session:
        before = resident_mib(pid)
        sockets = []
        for number in range(count):
            socket = await session.ws_connect(f"{url}/v1/subscribe", max_msg_size=1 << 20)
            await socket.send_json(open_subscription(number))
            await socket.receive_json()
            sockets.append(socket)
        await asyncio.sleep(1)
        taken = resident_mib(pid) - before
        for socket in sockets:
            await socket.close()
        return taken


async def stalled_subscribers(url: str, count: int, ended: asyncio.Event) -> None:
    """Subscribers from the chain's beginning that never read what they are sent."""
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as session:
        for number in range(count):
            socket = await session.ws_connect(f"{url}/v1/subscribe")
            call = {"jsonrpc": "2.0", "id": number, "method": "subscription.open"}
            await socket.send_json({**call, "params": {"topic": "transactions", "cursor": 0}})
            # From here on its receive buffers fill up and stay full.
            socket._response.connection.transport.pause_reading()  # type: ignore[union-attr]
        await ended.wait()


async def until_idle(pid: int) -> None:
    """Returns once the node has sent all that the subscribers' sockets take."""
    for _ in range(60):
        before = cpu_seconds(pid)
        await asyncio.sleep(1)
        if cpu_seconds(pid) - before < 0.05:
            return


async def beside_stalled(url: str, pid: int, file: Path, count: int) -> float:
    """Durable transactions a second while so many subscribers do not read."""
    ended = asyncio.Event()
    stalled = asyncio.create_task(stalled_subscribers(url, count, ended))
    await until_idle(pid)
    figures = await asyncio.to_thread(load, "batches", url, file, connections=4)
    ended.set()
    await stalled
    return figures["per_s"]


def measure(thousands: int) -> dict[str, Any]:
    """The whole run."""
    folder = Path(tempfile.mkdtemp(prefix="fastledger-soak-"))
    try:
        ledger, patient, staff = open_world(folder)
        ledger.close()
        file = folder / "load"
        resident: list[float] = []
        with running_node(folder) as (url, pid):
            for _ in range(0, thousands, STEP):
                write_batches(file, signed_batches(patient, staff, min(STEP, thousands)))
                load("batches", url, file, connections=4)
                resident.append(round(resident_mib(pid), 1))
            idle_mib = asyncio.run(idle_subscribers_mib(url, pid, IDLE_SUBSCRIBERS))
            speeds = []
            for stalled in (0, 50, 0, 50):
                write_batches(file, signed_batches(patient, staff, min(20, thousands)))
                speeds.append((stalled, round(asyncio.run(beside_stalled(url, pid, file, stalled)))))
            after = round(resident_mib(pid), 1)
        # The first half warms caches up to their bounds.
        settled = resident[len(resident) // 2 :]
        return {
            "transactions": thousands * 1_000,
            "resident_mib": resident,
            "flat_percent": round((max(settled) / min(settled) - 1) * 100, 1),
            f"{IDLE_SUBSCRIBERS}_idle_subscribers_mib": round(idle_mib, 1),
            "durable_per_s_beside_stalled_subscribers": speeds,
            "resident_mib_after": after,
        }
    finally:
        shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--thousands", type=int, default=1_000)
    print(json.dumps(measure(parser.parse_args().thousands)))

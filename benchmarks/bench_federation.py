"""Four organisations' nodes as processes on this machine: a late joiner, the cost of gossip, a hostile member.

*Initial sync*: transactions are committed at one node that mines (a second between blocks, six to be final); then a
second one begins from nothing, in the same run. The start of its process, until it answers, is told apart. *Gossip*:
bytes between the nodes, TLS included, for each transaction and each node that did not have it, beside its size. *Tip
latency*: from the first node that has a block to the last, by their logs, without and with a member that
attacks one of them with all it has. ``python benchmarks/bench_federation.py [--quick]`` prints one JSON document.
"""

import argparse
import contextlib
import json
import os
import shutil
import statistics
import sys
import tempfile
import threading
import time
from collections import defaultdict
from pathlib import Path
from typing import Any

from bench_ledger import signed_batches, world_transactions
from bench_node import cpu_seconds, resident_mib

from fastledger.cli.demo.organisations import Member, NetOptions, NetWorld
from fastledger.cli.top import scrape
from fastledger.peers.wire import BlockMessage, Headers, Ping, WireHeader

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests" / "support"))
from hostile_peer import HostilePeer

SYNC_WAIT_S = 600.0
ATTACKER = "127.0.0.66"


def begin(world: NetWorld, member: Member, count: int) -> list[list[bytes]]:
    """A hospital in the chain, and ``count`` signed batches of its records."""
    transactions, patient, staff = world_transactions(world.genesis.chain_id, world.regulator)
    for outcome in member.connect().submit([item.encoded for item in transactions], wait="durable"):
        outcome.raise_for_status()
    return signed_batches(patient, staff, count)


def submit(member: Member, batches: list[list[bytes]]) -> None:
    """Hands the batches in as fast as the node takes them."""
    client = member.connect()
    for batch in batches:
        client.submit(batch, wait="accepted")


def measure_sync(folder: Path, thousands: int) -> dict[str, Any]:
    """Seconds to commit so many transactions at one node, and for another to have them final from nothing."""
    options = NetOptions(
        names=("first", "late"), miners=("first",), spacing_ms=1_000, finality_depth=6, percent=10
    )
    with NetWorld(folder, options) as world:
        first, late = world["first"], world["late"]
        world.start("first")
        batches = begin(world, first, thousands)
        before = first.connect().tip().transaction_count
        began = time.perf_counter()
        submit(first, batches)
        expected = before + sum(map(len, batches))
        wait_for_count(world, first, expected)
        committed_s = time.perf_counter() - began
        began = time.perf_counter()
        late.start()
        late.connect()
        started_s = time.perf_counter() - began
        wait_for_count(world, late, expected)
        synced_s = time.perf_counter() - began - started_s
        return {
            "transactions": thousands * 1_000,
            "committed_s": round(committed_s, 2),
            "synced_s": round(synced_s, 2),
            "process_start_s": round(started_s, 2),
            "ratio": round(committed_s / synced_s, 2),
            "synced_per_s": round(thousands * 1_000 / synced_s),
        }


def wait_for_count(world: NetWorld, member: Member, count: int) -> None:
    """Until the node holds so many final transactions."""
    client = member.connect()
    world.wait_for(lambda: client.tip().transaction_count >= count, "the transactions", timeout_s=SYNC_WAIT_S)


def measure_gossip(folder: Path, thousands: int) -> dict[str, Any]:
    """Bytes on the wires for each transaction and each node that has to be sent it, beside its size."""
    with NetWorld(folder, NetOptions(spacing_ms=1_000, finality_depth=6)) as world:
        world.start()
        world.wait_until_linked(3)
        members = list(world.members.values())
        batches = begin(world, members[0], thousands)
        world.wait_for(
            lambda: len({member.connect().tip().transaction_count for member in members}) == 1, "one beginning"
        )
        kinds_before = sent_by_kind(members)
        count_before, bytes_before = members[0].connect().tip().transaction_count, world.wires.byte_count
        threads = [
            threading.Thread(target=submit, args=(member, batches[place :: len(members)]))
            for place, member in enumerate(members)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        for member in members:
            wait_for_count(world, member, count_before + thousands * 1_000)
        carried = world.wires.byte_count - bytes_before
        size = statistics.mean(len(item) for batch in batches for item in batch)
        per_node = carried / (thousands * 1_000) / (len(members) - 1)
        return {
            "transactions": thousands * 1_000,
            "transaction_bytes": round(size, 1),
            "bytes_per_transaction_and_node": round(per_node, 1),
            "ratio": round(per_node / size, 3),
            "kinds": {
                kind: round((count - kinds_before.get(kind, 0)) / carried, 3)
                for kind, count in sorted(sent_by_kind(members).items())
                if count - kinds_before.get(kind, 0) > carried / 1_000
            },
        }


def sent_by_kind(members: list[Member]) -> dict[str, float]:
    """Bytes that all nodes gave to be sent so far, by kind of message."""
    total: dict[str, float] = defaultdict(float)
    for member in members:
        for labels, value in (
            scrape(member.url).values.get("fastledger_federation_sent_bytes_total", {}).items()
        ):
            total[dict(labels)["kind"]] += value
    return total


class Attacker:
    """A member's certificate in bad hands: attack after attack on one node, as fast as it is let."""

    def __init__(self, world: NetWorld, name: str, victim: Member) -> None:
        self._world = world
        self._name = name
        self._victim = victim
        self._stop = threading.Event()
        self.attempts = 0
        self._threads = [threading.Thread(target=self._run, daemon=True) for _ in range(2)]

    def __enter__(self) -> "Attacker":
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()

    def _run(self) -> None:
        junk = WireHeader(os.urandom(80), os.urandom(150), os.urandom(64), 1)
        attacks = [
            lambda peer: peer.send(os.urandom(1 << 16)),
            lambda peer: peer.greet().send((2**31).to_bytes(4, "big") + b"\x01" + bytes(1 << 22)),
            lambda peer: peer.greet().say(*[Headers([junk] * 100, 9, bytes(32), bytes(32))] * 20),
            lambda peer: peer.greet().say(*[BlockMessage(os.urandom(1 << 20))] * 4),
            lambda peer: peer.greet().say(
                *[Ping(os.urandom(8), 0, bytes(32), bytes(32)) for _ in range(20_000)]
            ),
        ]
        while not self._stop.is_set():
            with contextlib.suppress(OSError):
                place = self._world.folder / "authority"
                with HostilePeer(
                    place, self._name, self._victim.peer_port, self._world.genesis, source=ATTACKER
                ) as peer:
                    attacks[self.attempts % len(attacks)](peer)
                    peer.listen(0.5)
            self.attempts += 1
            time.sleep(0.01)


def tip_spreads_ms(members: list[Member], since_ms: int) -> list[int]:
    """For each block that all nodes connected since then: first to last, by their logs."""
    seen: dict[str, list[int]] = defaultdict(list)
    for member in members:
        for line in member.log.read_text().splitlines():
            entry = json.loads(line) if line.startswith("{") else {}
            if entry.get("event") == "federation.tip" and entry["time_ms"] >= since_ms:
                seen[entry["block_id"]].append(entry["time_ms"])
    return [max(times) - min(times) for times in seen.values() if len(times) == len(members)]


def measure_hostile(folder: Path, seconds: float) -> dict[str, Any]:
    """Tip latency of three honest nodes without and with the fourth attacking one, and what that costs its victim."""
    options = NetOptions(
        spacing_ms=500, finality_depth=12, percent=3, settings={"FASTLEDGER_NODE__LOG__LEVEL": "debug"}
    )
    with NetWorld(folder, options) as world:
        *honest_names, rogue = world.members
        world.start(*honest_names)
        world.wait_until_linked(2)
        honest = [world[name] for name in honest_names]
        victim = honest[0]
        figures: dict[str, Any] = {}
        for name, attacker in (("alone", None), ("attacked", Attacker(world, rogue, victim))):
            pid = victim.process.pid if victim.process is not None else 0
            since_ms, cpu, memory = int(time.time() * 1000), cpu_seconds(pid), resident_mib(pid)
            with attacker or contextlib.nullcontext():
                time.sleep(seconds)
            spreads = tip_spreads_ms(honest, since_ms)
            figures[name] = {
                "blocks": len(spreads),
                "tip_latency_ms_median": statistics.median(spreads),
                "tip_latency_ms_p95": sorted(spreads)[int(0.95 * (len(spreads) - 1))],
                "victim_cpu_share": round((cpu_seconds(pid) - cpu) / seconds, 3),
                "victim_grown_mib": round(resident_mib(pid) - memory, 1),
            }
            if attacker is not None:
                figures[name]["attempts"] = attacker.attempts
        figures["banned"] = [ban["name"] for ban in victim.connect().peers()["bans"]] == [rogue]
        alone, attacked = (figures[name]["tip_latency_ms_median"] for name in ("alone", "attacked"))
        figures["ratio"] = round(attacked / max(1, alone), 2)
        return figures


def measure(quick: bool) -> dict[str, Any]:
    """All three."""
    folder = Path(tempfile.mkdtemp(prefix="fastledger-bench-"))
    try:
        return {
            "initial_sync": measure_sync(folder / "sync", 2 if quick else 100),
            "gossip": measure_gossip(folder / "gossip", 2 if quick else 20),
            "hostile": measure_hostile(folder / "hostile", 4 if quick else 40),
        }
    finally:
        shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--quick", action="store_true")
    print(json.dumps(measure(parser.parse_args().quick), indent=2))

"""The load on a node, from a process of its own: as little work a transaction as a client can do.

Transactions are signed beforehand and read from a file, requests are bytes made beforehand, connections are kept.
``python benchmarks/load.py SCENARIO URL FILE …`` prints one JSON document; ``bench_node.py`` runs it.
"""

import argparse
import asyncio
import base64
import json
import struct
import sys
import time
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import cast
from urllib.parse import urlsplit

import cbor2
import uvloop

_LENGTH = struct.Struct("<I")
READS_TOGETHER = 32


def write_batches(path: Path, batches: list[list[bytes]]) -> None:
    """Batches of transactions in a file: count, then length and bytes of each."""
    with path.open("wb") as file:
        for batch in batches:
            file.write(_LENGTH.pack(len(batch)))
            for transaction in batch:
                file.write(_LENGTH.pack(len(transaction)) + transaction)


def read_batches(path: Path) -> Iterator[list[bytes]]:
    """The inverse."""
    data = path.read_bytes()
    position = 0

    def number() -> int:
        nonlocal position
        value: int = _LENGTH.unpack_from(data, position)[0]
        position += _LENGTH.size
        return value

    while position < len(data):
        batch = []
        for _ in range(number()):
            size = number()
            batch.append(data[position : position + size])
            position += size
        yield batch


class Connection(asyncio.Protocol):
    """One kept HTTP/1.1 connection: a request's bytes out, the answer's status and body in."""

    def __init__(self) -> None:
        self._transport: asyncio.Transport
        self._buffer = bytearray()
        self._answer: asyncio.Future[tuple[int, bytes]]

    @classmethod
    async def open(cls, host: str, port: int) -> "Connection":
        """Connects."""
        _, connection = await asyncio.get_running_loop().create_connection(cls, host, port)
        return connection

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Kept for writing."""
        self._transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        """Answers carry their length: the node sends none in chunks."""
        self._buffer += data
        head_end = self._buffer.find(b"\r\n\r\n")
        if head_end < 0:
            return
        head = bytes(self._buffer[:head_end]).lower()
        at = head.index(b"content-length:") + 15
        size = int(head[at:].split(b"\r\n", 1)[0])
        if len(self._buffer) < head_end + 4 + size:
            return
        body = bytes(self._buffer[head_end + 4 : head_end + 4 + size])
        del self._buffer[: head_end + 4 + size]
        self._answer.set_result((int(head[9:12]), body))

    def connection_lost(self, exc: Exception | None) -> None:
        """Whoever waits hears of it."""
        if hasattr(self, "_answer") and not self._answer.done():
            self._answer.set_exception(ConnectionError("the node hung up"))

    def ask(self, request: bytes) -> "asyncio.Future[tuple[int, bytes]]":
        """Sends a request; one at a time."""
        self._answer = asyncio.get_running_loop().create_future()
        self._transport.write(request)
        return self._answer


def post(path: str, content_type: str, body: bytes) -> bytes:
    """An HTTP request."""
    fields = f"Host: localhost\r\nContent-Type: {content_type}\r\nContent-Length: {len(body)}\r\n"
    return f"POST {path} HTTP/1.1\r\n{fields}\r\n".encode() + body


def call(method: str, **params: object) -> bytes:
    """A JSON-RPC request."""
    document = {"jsonrpc": "2.0", "id": 1, "method": method, "params": params}
    return post("/v1/rpc", "application/json", json.dumps(document).encode())


def calls(method: str, params: list[dict[str, object]]) -> bytes:
    """A JSON-RPC batch, as the client sends what waits together."""
    documents = [
        {"jsonrpc": "2.0", "id": number, "method": method, "params": given}
        for number, given in enumerate(params)
    ]
    return post("/v1/rpc", "application/json", json.dumps(documents).encode())


def batch_requests(path: Path) -> list[bytes]:
    """A request for the binary endpoint a batch."""
    return [post("/v1/transactions", "application/cbor-seq", b"".join(batch)) for batch in read_batches(path)]


def check_batch(status: int, body: bytes) -> None:
    """Raises unless every verdict is a success."""
    if status != 200 or any(cbor2.loads(body)[2].value):
        raise RuntimeError(f"status {status}: {body[:200]!r}")


def check_call(status: int, body: bytes) -> None:
    """Raises unless it is a result and, of a submission, a success."""
    if status != 200 or b'"result"' not in body or (b'"status"' in body and b'"durable"' not in body):
        raise RuntimeError(f"status {status}: {body[:200]!r}")


Check = Callable[[int, bytes], None]


async def drive(
    host: str, port: int, requests: list[bytes], connections: int, check: Check
) -> tuple[float, list[float]]:
    """All requests over so many connections, each one request at a time; seconds in all and of each."""
    waiting = list(reversed(requests))
    latencies: list[float] = []

    async def work() -> None:
        connection = await Connection.open(host, port)
        while waiting:
            request = waiting.pop()
            begin = time.perf_counter()
            status, body = await connection.ask(request)
            latencies.append(time.perf_counter() - begin)
            check(status, body)

    begin = time.perf_counter()
    await asyncio.gather(*(work() for _ in range(connections)))
    return time.perf_counter() - begin, latencies


async def pace(host: str, port: int, requests: list[bytes], interval_s: float, check: Check) -> list[float]:
    """One request each interval, on as many connections as are busy at a time; seconds of each."""
    idle: list[Connection] = []
    latencies: list[float] = []

    async def one(request: bytes) -> None:
        connection = idle.pop() if idle else await Connection.open(host, port)
        begin = time.perf_counter()
        status, body = await connection.ask(request)
        latencies.append(time.perf_counter() - begin)
        check(status, body)
        idle.append(connection)

    begin = time.perf_counter()
    tasks = []
    for number, request in enumerate(requests):
        await asyncio.sleep(max(0.0, begin + number * interval_s - time.perf_counter()))
        tasks.append(asyncio.create_task(one(request)))
    await asyncio.gather(*tasks)
    return latencies


def percentile(values: list[float], share: float) -> float:
    """The value below which that share of ``values`` lies."""
    return sorted(values)[min(int(len(values) * share), len(values) - 1)]


async def batches(host: str, port: int, path: Path, connections: int) -> dict[str, float]:
    """Peak of the binary endpoint."""
    requests = batch_requests(path)
    count = sum(len(batch) for batch in read_batches(path))
    seconds, latencies = await drive(host, port, requests, connections, check_batch)
    return {"per_s": count / seconds, "count": count, "p50_ms": percentile(latencies, 0.5) * 1e3}


async def singles(host: str, port: int, path: Path, connections: int) -> dict[str, float]:
    """Peak of JSON-RPC submits, a transaction each."""
    requests = [
        call("transaction.submit", transaction=base64.b64encode(transaction).decode())
        for batch in read_batches(path)
        for transaction in batch
    ]
    seconds, latencies = await drive(host, port, requests, connections, check_call)
    return {
        "per_s": len(requests) / seconds,
        "count": len(requests),
        "p99_ms": percentile(latencies, 0.99) * 1e3,
    }


async def reads(host: str, port: int, path: Path, connections: int) -> dict[str, float]:
    """Peak of JSON-RPC reads by txid; the file holds txids."""
    requests = [call("transaction.get", txid=txid.hex()) for batch in read_batches(path) for txid in batch]
    seconds, latencies = await drive(host, port, requests, connections, check_call)
    return {
        "per_s": len(requests) / seconds,
        "count": len(requests),
        "p99_ms": percentile(latencies, 0.99) * 1e3,
    }


async def reads_together(host: str, port: int, path: Path, connections: int) -> dict[str, float]:
    """Reads every transaction by its id, so many in a request as :class:`fastledger.Client` sends where many wait."""
    txids = [txid for batch in read_batches(path) for txid in batch]
    groups = [txids[i : i + READS_TOGETHER] for i in range(0, len(txids), READS_TOGETHER)]
    requests = [calls("transaction.get", [{"txid": txid.hex()} for txid in group]) for group in groups]

    def check(status: int, body: bytes) -> None:
        check_call(status, body)
        if b'"error"' in body:
            raise RuntimeError(f"not all were found: {body[:200]!r}")

    seconds, latencies = await drive(host, port, requests, connections, check)
    return {"per_s": len(txids) / seconds, "count": len(txids), "p99_ms": percentile(latencies, 0.99) * 1e3}


async def latency(host: str, port: int, path: Path, per_s: float, single_share: float) -> dict[str, float]:
    """Latency of durable single submits while the whole load is ``per_s`` transactions a second.

    The last batch of the file is submitted one by one, paced over the run; the others as small batches around it.
    """
    *background, alone = read_batches(path)
    small = [batch[i : i + 100] for batch in background for i in range(0, len(batch), 100)]
    around = [post("/v1/transactions", "application/cbor-seq", b"".join(batch)) for batch in small]
    submits = [call("transaction.submit", transaction=base64.b64encode(tx).decode()) for tx in alone]
    seconds = len(around) * 100 / (per_s * (1 - single_share))
    begin = time.perf_counter()
    _, latencies = await asyncio.gather(
        pace(host, port, around, seconds / len(around), check_batch),
        pace(host, port, submits, seconds / len(submits), check_call),
    )
    taken = time.perf_counter() - begin
    return {
        "per_s": (len(around) * 100 + len(submits)) / taken,
        "count": len(latencies),
        "p50_ms": percentile(latencies, 0.5) * 1e3,
        "p99_ms": percentile(latencies, 0.99) * 1e3,
        "max_ms": max(latencies) * 1e3,
    }


def main() -> None:
    """The command line; see the module's docstring."""
    parser = argparse.ArgumentParser()
    parser.add_argument("scenario", choices=("batches", "singles", "reads", "reads-together", "latency"))
    parser.add_argument("url")
    parser.add_argument("file", type=Path)
    parser.add_argument("--connections", type=int, default=4)
    parser.add_argument("--per-s", type=float, default=1_000.0)
    arguments = parser.parse_args()
    address = urlsplit(arguments.url)
    host, port, path = address.hostname or "127.0.0.1", address.port or 80, arguments.file
    work: Awaitable[dict[str, float]]
    if arguments.scenario == "latency":
        work = latency(host, port, path, arguments.per_s, 0.1)
    else:
        scenarios = {"batches": batches, "singles": singles, "reads": reads, "reads-together": reads_together}
        scenario = scenarios[arguments.scenario]
        work = scenario(host, port, path, arguments.connections)

    async def run() -> dict[str, float]:
        return await work

    json.dump(uvloop.run(run()), sys.stdout)


if __name__ == "__main__":
    main()

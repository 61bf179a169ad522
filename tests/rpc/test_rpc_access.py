"""Who may do what and how often, and what operators do: roles, rates, jobs."""

import asyncio
import hashlib
from collections.abc import AsyncIterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import msgspec
import pytest
import pytest_asyncio
from node_world import NodeWorld, RawClient, raw_client, serve_world, until
from test_rpc import ALL_ROLES, SEQUENCE, failure, registrations, text

from fastledger import Code
from fastledger.errors import BadRequestError, RateLimitedError
from fastledger.rpc.http.hosts import HostCheck
from fastledger.rpc.http.rate import Bucket, RateLimits
from fastledger.rpc.http.routes import Caller
from fastledger.rpc.jobs import Jobs, report_of
from fastledger.rpc.operator import Hooks, operator_methods
from fastledger.rpc.options import AccessOptions, ClientRule, RateOptions, RpcOptions
from fastledger.rpc.server import Extras

# Who may do what.


TOKEN = "t" * 40
RULES = AccessOptions(
    anonymous_roles=frozenset({"reader"}),
    clients=(
        ClientRule(
            name="ward",
            roles=frozenset({"submitter"}),
            token_sha256=hashlib.sha256(TOKEN.encode()).hexdigest(),
        ),
    ),
)


async def test_roles_open_what_they_open_and_nothing_else(tmp_path: Path) -> None:  # SPEC-RPC-6
    async with serve_world(tmp_path / "ledger", access=RULES) as node:
        submission = {"transaction": text(registrations(node.world, 1)[0].encoded)}
        async with raw_client(node.url) as anyone:
            await anyone.call("ledger.info")
            error = await failure(anyone, "transaction.submit", **submission)
            assert (error.status, error.code) == (401, Code.UNAUTHENTICATED)
            assert (await anyone.post("/v1/transactions", b"", SEQUENCE))[0] == 401
        async with raw_client(node.url, Authorization=f"Bearer {TOKEN}") as ward:
            assert (await ward.call("transaction.submit", **submission))["status"] == "durable"
            error = await failure(ward, "ledger.info")
            assert (error.status, error.code) == (403, Code.FORBIDDEN)
            assert (await ward.get("/v1/subscribe"))[0] == 403
        for wrong in (f"Bearer {TOKEN}x", "Bearer ", "Basic eDp5", "Bearer " + "x" * 1_000):
            async with raw_client(node.url, Authorization=wrong) as thief:
                assert (await thief.get("/health/live"))[0] == 401
        node.server.access.replace(AccessOptions(anonymous_roles=frozenset()))
        async with raw_client(node.url) as anyone:
            assert (await failure(anyone, "ledger.info")).status == 401


async def test_rates_are_limited_by_client(tmp_path: Path) -> None:  # SPEC-RPC-7
    rate = RateOptions(
        requests_per_second=0.001,
        requests_burst=5,
        transactions_per_second=0.001,
        transactions_burst=3,
        probes_per_second=0.001,
        probes_burst=5,
    )
    options = RpcOptions(rate=rate)
    async with serve_world(tmp_path / "ledger", options=options, access=RULES) as node:
        transactions = registrations(node.world, 4)
        async with raw_client(node.url, Authorization=f"Bearer {TOKEN}") as ward:
            batch = b"".join(tx.encoded for tx in transactions[:2])
            assert (await ward.post("/v1/transactions", batch, SEQUENCE))[0] == 200
            headers = {"Content-Type": SEQUENCE, **ward.headers}
            async with ward.session.post(
                f"{node.url}/v1/transactions", data=batch, headers=headers
            ) as response:
                assert response.status == 429
                assert int(response.headers["Retry-After"]) > 100
                assert (await response.json())["error"]["code"] == Code.RATE_LIMITED
        async with raw_client(node.url) as anyone:
            calls = [{"jsonrpc": "2.0", "id": 1, "method": "ledger.info"}] * 3
            statuses = [(await anyone.post("/v1/rpc", msgspec.json.encode(calls)))[0] for _ in range(3)]
            assert statuses == [200, 429, 429]
            # Who watches the node is counted apart, and bounded too.
            statuses = [(await anyone.get("/health/live"))[0] for _ in range(6)]
            assert statuses == [200] * 5 + [429]


def test_buckets_fill_and_the_table_is_bounded() -> None:  # SPEC-RPC-7
    bucket = Bucket(10, 5, 0)
    assert [bucket.take(1, 0) for _ in range(5)] == [0.0] * 5
    assert bucket.take(1, 0) == pytest.approx(0.1)
    assert bucket.take(1, 0.1) == 0.0
    assert bucket.take(100, 10) == 0.0  # a full bucket lets more than a burst through, on credit
    assert bucket.take(1, 10) == pytest.approx(9.6)
    now = [0.0]
    limits = RateLimits(RateOptions(requests_per_second=1, requests_burst=2, clients_max=10), lambda: now[0])
    for number in range(100):
        limits.take_request(Caller(f"c{number}", f"10.0.0.{number}", frozenset()))
    assert len(limits._requests) == 10
    caller = Caller("c99", "10.0.0.99", frozenset())
    limits.take_request(caller)
    with pytest.raises(RateLimitedError) as caught:
        limits.take_request(caller)
    assert 0 < caught.value.retry_after_ms <= 1_001
    now[0] = 100.0
    limits.take_request(Caller("new", "10.0.1.1", frozenset()))
    assert len(limits._requests) <= 2, "full buckets are forgotten"


# Whom a request is for.


async def status_for(node: NodeWorld, *headers: str, path: str = "/health/live") -> int:
    """The status of a GET with these headers, by hand: a client library would set its own host."""
    reader, writer = await asyncio.open_connection("127.0.0.1", node.server.port)
    writer.write("\r\n".join((f"GET {path} HTTP/1.1", *headers, "Connection: close", "", "")).encode())
    async with asyncio.timeout(30):
        answer = await reader.read()
    writer.close()
    if b" 421 " in answer[:20] or b" 403 " in answer[:20]:
        assert msgspec.json.decode(answer.partition(b"\r\n\r\n")[2])["error"]["code"] == Code.BAD_REQUEST
    return int(answer.split()[1])


UPGRADE = (
    "Connection: Upgrade",
    "Upgrade: websocket",
    "Sec-WebSocket-Version: 13",
    "Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==",
)


async def test_a_host_that_is_not_the_nodes_is_refused(tmp_path: Path) -> None:  # SPEC-RPC-11
    options = RpcOptions(allowed_hosts=("ledger.ward.example",))
    async with serve_world(tmp_path / "ledger", options=options, access=RULES) as node:
        own = ["localhost", "LOCALHOST:8470", "localhost.", "127.0.0.1:1", "127.1.2.3", "[::1]:8470", "[::1]"]
        for host in (*own, "ledger.ward.example:80", "Ledger.Ward.Example."):
            assert await status_for(node, f"Host: {host}") == 200, host
        others = [
            "rebound.example",
            "rebound.example:8470",
            "localhost.rebound.example",
            "10.0.0.5",
            "0.0.0.0",
            "",
        ]
        for host in (
            *others,
            "127.0.0.1.rebound.example",
            "ledger.ward.example.rebound.example",
            "x" * 2_000,
        ):
            assert await status_for(node, f"Host: {host}") == 421, host
            # Who has a token is no page.
            assert await status_for(node, f"Host: {host}", f"Authorization: Bearer {TOKEN}") == 200
        assert await status_for(node) == 400
        assert await status_for(node, "Host: rebound.example", *UPGRADE, path="/v1/subscribe") == 421
        async with raw_client(node.url, Host="rebound.example") as page:
            for _ in range(2):
                assert (await page.post("/v1/rpc", b'{"jsonrpc":"2.0","id":1,"method":"block.get"}'))[
                    0
                ] == 421


async def test_the_origin_of_another_site_is_refused(tmp_path: Path) -> None:  # SPEC-RPC-11
    options = RpcOptions(allowed_hosts=("ledger.ward.example",))
    async with serve_world(tmp_path / "ledger", options=options) as node:
        port = node.server.port
        host = f"Host: 127.0.0.1:{port}"
        for origin in (f"http://127.0.0.1:{port}", "https://ledger.ward.example"):
            assert await status_for(node, host, f"Origin: {origin}") == 200, origin
        for origin in (
            "http://rebound.example",
            "http://localhost:3000",
            "null",
            "",
            f"http://127.0.0.1:{port}.rebound.example",
            "file://",
        ):
            assert await status_for(node, host, f"Origin: {origin}") == 403, origin
            assert await status_for(node, host, f"Origin: {origin}", *UPGRADE, path="/v1/subscribe") == 403


@pytest.mark.parametrize(
    ("listening", "host", "own"),
    [
        ("127.0.0.1", "192.0.2.7", False),
        ("0.0.0.0", "192.0.2.7:8470", True),
        ("::", "[2001:db8::1]:8470", True),
        ("0.0.0.0", "rebound.example", False),
        ("node.ward.example", "node.ward.example", True),
        ("node.ward.example", "192.0.2.7", True),
    ],
)
def test_beyond_loopback_every_address_is_the_nodes_and_no_name(
    listening: str, host: str, own: bool
) -> None:  # SPEC-RPC-11
    check = HostCheck(listening, (), plain=True)
    with nullcontext() if own else pytest.raises(BadRequestError):
        check.check({"Host": host}, authenticated=False)
    # TLS has a certificate for the name.
    HostCheck(listening, (), plain=False).check({"Host": host}, authenticated=False)


# Operators.


@pytest_asyncio.fixture
async def operated(tmp_path: Path) -> AsyncIterator[tuple[NodeWorld, RawClient, Jobs, list[str]]]:
    done: list[str] = []

    def reload() -> list[str]:
        done.append("reload")
        return ["log"]

    jobs = Jobs()
    hooks = Hooks(figures=lambda: {"requests": 1}, reload=reload, stop=lambda: done.append("stop"))
    extras = Extras(methods=operator_methods(jobs, hooks))
    async with serve_world(tmp_path / "ledger", access=ALL_ROLES, extras=extras) as node:
        async with raw_client(node.url) as client:
            yield node, client, jobs, done
        await jobs.close()


async def wait_for_job(client: RawClient, name: str) -> dict[str, Any]:
    async with asyncio.timeout(20):
        while True:
            job: dict[str, Any] = await client.call("node.job", job=name)
            if job["state"] != "running":
                return job
            await asyncio.sleep(0.01)


async def test_an_operator_sees_and_steers_the_node(
    operated: tuple[NodeWorld, RawClient, Jobs, list[str]],
) -> None:
    node, client, _, done = operated
    status = await client.call("node.status")
    assert (status["ledger"]["height"], status["counters"]) == (node.world.ledger.height, {"requests": 1})
    assert (await client.call("node.checkpoint"))["height"] == node.world.ledger.height
    assert (await client.call("node.reload"))["reloaded"] == ["log"]
    assert (await client.call("node.stop"))["stopping"] is True
    await until(lambda: done == ["reload", "stop"])


async def test_long_work_is_a_job(operated: tuple[NodeWorld, RawClient, Jobs, list[str]]) -> None:
    node, client, _jobs, _ = operated
    seen: dict[str, Any] = {}

    def backup(**settings: Any) -> dict[str, Any]:
        seen.update(settings)
        settings["progress"]("copying", 3, 10)
        if settings["include_node_key"]:
            settings["cancel"].wait(20)
            raise RuntimeError("called off")
        return {"files": 3, "block_id": b"\x01"}

    node.world.ledger.backup = backup  # type: ignore[attr-defined, method-assign, assignment, unused-ignore]
    begun = await client.call("node.backup", destination="/backups/one")
    ended = await wait_for_job(client, begun["job"])
    assert (ended["operation"], ended["state"], ended["error"]) == ("backup", "done", None)
    assert ended["result"] == {"files": 3, "block_id": "01"}
    assert ended["progress"] == {"stage": "copying", "done": 3, "total": 10}
    assert seen["destination"] == "/backups/one"
    begun = await client.call("node.backup", destination="/backups/one", include_node_key=True)
    error = await failure(client, "node.snapshot")
    assert (error.code, error.status) == (Code.BUSY, 503)
    assert (await client.call("node.cancel", job=begun["job"]))["state"] == "running"
    assert (await wait_for_job(client, begun["job"]))["state"] == "cancelled"
    assert (await failure(client, "node.cancel", job=begun["job"])).code == Code.MALFORMED
    assert (await failure(client, "node.job", job="j99")).code == Code.NOT_FOUND
    assert [job["job"] for job in (await client.call("node.jobs"))["jobs"]] == ["j2", "j1"]
    assert (await failure(client, "node.backup", destination="relative")).code == Code.BAD_QUERY
    assert (await failure(client, "node.prune")).code == Code.BAD_QUERY
    assert (await failure(client, "node.prune", keep_blocks=1, before_height=1)).code == Code.BAD_QUERY


def test_reports_become_plain_json() -> None:
    assert report_of(None) == {}
    assert report_of(7) == {"value": 7}
    assert report_of({"a": (b"\x02", [1, None])}) == {"a": ["02", [1, None]]}

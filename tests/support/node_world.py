"""A node on a loopback port for tests: in the test's own loop, or on a thread for clients that are not async."""

import asyncio
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

import aiohttp
import msgspec
import uvloop
from msgspec import structs
from world import World, make_world

from fastledger.node.service import NodeService, ServiceOptions
from fastledger.rpc.options import AccessOptions, RpcOptions
from fastledger.rpc.server import Extras, RpcServer


async def until(condition: Callable[[], bool]) -> None:
    """Returns once ``condition`` holds, which it has to within a generous time."""
    async with asyncio.timeout(30):
        while not condition():  # noqa: ASYNC110 - what is waited for knows no events of a loop
            await asyncio.sleep(0.01)


@dataclass
class NodeWorld:
    """A world whose ledger is served at ``url``."""

    world: World
    service: NodeService
    server: RpcServer

    @property
    def url(self) -> str:
        return self.server.url


@asynccontextmanager
async def serve_world(
    path: Path,
    *,
    options: RpcOptions | None = None,
    access: AccessOptions | None = None,
    extras: Extras | None = None,
    tls: Any = None,
    service_options: ServiceOptions | None = None,
    **ledger_options: Any,
) -> AsyncIterator[NodeWorld]:
    """A settled world in ``path``, served on the running loop."""
    world = await asyncio.to_thread(make_world, path, **ledger_options)
    service = await NodeService.start(world.ledger, service_options)
    server = RpcServer(service, structs.replace(options or RpcOptions(), port=0), access, extras=extras, tls=tls)
    try:
        await server.start()
        yield NodeWorld(world, service, server)
    finally:
        await server.stop()
        await service.stop()


class NodeThread:
    """A node on a loop and a thread of its own: for clients that block."""

    def __init__(self, path: Path, **settings: Any) -> None:
        self._path = path
        self._settings = settings
        self._ready = threading.Event()
        self._failure: BaseException | None = None
        self._thread = threading.Thread(target=self._run, daemon=True)
        self.node: NodeWorld

    def _run(self) -> None:
        try:
            with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
                runner.run(self._serve())
        except BaseException as error:
            self._failure = error
        finally:
            self._ready.set()

    async def _serve(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._stop = asyncio.Event()
        async with serve_world(self._path, **self._settings) as node:
            self.node = node
            self._ready.set()
            await self._stop.wait()

    def __enter__(self) -> Self:
        self._thread.start()
        self._ready.wait(60)
        if self._failure is not None:
            raise self._failure
        return self

    def __exit__(self, *_: object) -> None:
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join(60)
        if self._failure is not None:
            raise self._failure

    @property
    def url(self) -> str:
        return self.node.url

    @property
    def world(self) -> World:
        return self.node.world


@dataclass
class RpcFailure(Exception):
    """A JSON-RPC error as it came."""

    status: int
    error: dict[str, Any]

    @property
    def code(self) -> int:
        return int(self.error["code"])


@dataclass
class RawClient:
    """The plainest client there can be: what goes over the wire is what a test says."""

    url: str
    session: aiohttp.ClientSession
    headers: dict[str, str] = field(default_factory=dict)

    async def post(
        self, path: str, body: bytes, content_type: str = "application/json", **headers: str
    ) -> tuple[int, bytes]:
        given = {"Content-Type": content_type, **self.headers, **headers}
        async with self.session.post(self.url + path, data=body, headers=given) as response:
            return response.status, await response.read()

    async def get(self, path: str) -> tuple[int, bytes]:
        async with self.session.get(self.url + path, headers=self.headers) as response:
            return response.status, await response.read()

    async def call(self, method: str, **params: Any) -> Any:
        """A method's result; raises ``RpcFailure``."""
        request = {"jsonrpc": "2.0", "id": 1, "method": method, "params": params}
        status, body = await self.post("/v1/rpc", msgspec.json.encode(request))
        answer = msgspec.json.decode(body)
        if "error" in answer:
            raise RpcFailure(status, answer["error"])
        assert (status, answer["jsonrpc"], answer["id"]) == (200, "2.0", 1)
        return answer["result"]


@asynccontextmanager
async def raw_client(url: str, **headers: str) -> AsyncIterator[RawClient]:
    async with aiohttp.ClientSession() as session:
        yield RawClient(url, session, headers)

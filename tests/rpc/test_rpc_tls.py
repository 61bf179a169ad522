"""Certificates over a node's life: a revocation ends what is open, and nothing else."""

import asyncio
import contextlib
import ssl
from collections.abc import AsyncIterator
from pathlib import Path

import aiohttp
import pytest_asyncio
from node_world import until

from fastledger import Ledger
from fastledger.daemon.config.settings import LedgerConfig, NodeConfig, RpcConfig
from fastledger.daemon.process import Daemon
from fastledger.node.authority import CertificateAuthority
from fastledger.node.options import LogOptions, ServerTlsOptions
from fastledger.node.tls import ServerTls, client_context
from fastledger.rpc.options import AccessOptions, ClientRule
from fastledger.rpc.server import RpcServer

CLIENTS = ("lab", "ward")


class Site:
    """A node with mutual TLS and two clients' certificates."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder / "ca"
        self.authority = CertificateAuthority.create(self.folder)
        self.authority.issue("node", "node", names=["127.0.0.1"])
        for name in CLIENTS:
            self.authority.issue(name, "client")
        Ledger.create(folder / "ledger").close()
        config = NodeConfig(
            ledger=LedgerConfig(path=str(folder / "ledger")),
            rpc=RpcConfig(
                port=0,
                tls=ServerTlsOptions(
                    certificate=str(self.folder / "node.pem"),
                    key=str(self.folder / "node.key"),
                    authorities=str(self.folder / "bundle.pem"),
                    revoked=str(self.folder / "revoked.pem"),
                    client_certificates="required",
                    reload_interval_ms=100,
                ),
                access=AccessOptions(
                    anonymous_roles=frozenset(),
                    clients=tuple(
                        ClientRule(name=name, roles=frozenset({"reader"}), certificate_name=name) for name in CLIENTS
                    ),
                ),
            ),
            log=LogOptions(path=str(folder / "node.log")),
        )
        self.daemon = Daemon(config)

    @property
    def server(self) -> RpcServer:
        assert self.daemon._server is not None
        return self.daemon._server

    def context(self, name: str) -> ssl.SSLContext:
        pair = str(self.folder / f"{name}.pem"), str(self.folder / f"{name}.key")
        return client_context(ca=self.folder / "bundle.pem", certificate=pair[0], key=pair[1])


@pytest_asyncio.fixture
async def site(tmp_path: Path) -> AsyncIterator[Site]:
    made = await asyncio.to_thread(Site, tmp_path)
    serving = asyncio.create_task(made.daemon.serve())
    await until(lambda: serving.done() or (made.daemon._server is not None and made.server.port > 0))
    assert not serving.done(), serving.exception()
    yield made
    made.daemon._stop.set()
    assert await serving == 0


async def ask(session: aiohttp.ClientSession, url: str) -> int:
    call = {"jsonrpc": "2.0", "id": 1, "method": "block.get"}
    async with session.post(f"{url}/v1/rpc", json=call) as answer:
        return answer.status


async def test_a_revocation_ends_open_connections_and_no_others(site: Site) -> None:  # SPEC-NODE-114
    url = site.server.url
    async with contextlib.AsyncExitStack() as stack:
        sessions, streams = {}, {}
        for name in CLIENTS:
            connector = aiohttp.TCPConnector(ssl=site.context(name), limit=2)
            sessions[name] = await stack.enter_async_context(aiohttp.ClientSession(connector=connector))
            streams[name] = await stack.enter_async_context(sessions[name].ws_connect(f"{url}/v1/subscribe"))
            assert await ask(sessions[name], url) == await ask(sessions[name], url) == 200
        assert site.server.listener.open_connections == 4
        await asyncio.to_thread(site.authority.revoke, "lab")
        # Both of its connections, at the next look at the files; it cannot make another.
        async with asyncio.timeout(30):
            message = await streams["lab"].receive()
        assert message.type in (aiohttp.WSMsgType.CLOSED, aiohttp.WSMsgType.CLOSE, aiohttp.WSMsgType.ERROR)
        await until(lambda: site.server.listener.open_connections == 2)
        assert site.server.counters["connections_revoked"] == 2
        with contextlib.suppress(aiohttp.ClientError):
            assert await ask(sessions["lab"], url) != 200
        before = site.server.listener.open_connections
        assert await ask(sessions["ward"], url) == 200
        assert site.server.listener.open_connections == before, "on the connection that it had"
        assert not streams["ward"].closed


async def test_a_connection_whose_handshake_overtook_the_list_is_ended(site: Site) -> None:  # SPEC-NODE-114
    """The handshake was begun under the old list, and the connection is made under the new one."""
    site.server.listener.is_revoked = lambda _certificate: True
    connector = aiohttp.TCPConnector(ssl=site.context("lab"))
    async with aiohttp.ClientSession(connector=connector) as session:
        with contextlib.suppress(aiohttp.ClientError):
            assert await ask(session, site.server.url) != 200
    assert site.server.counters["connections_revoked"] >= 1
    assert site.server.listener.open_connections == 0


def test_only_the_certificate_on_the_list_is_revoked(tmp_path: Path) -> None:  # SPEC-NODE-114
    from cryptography.hazmat.primitives.serialization import Encoding
    from cryptography.x509 import load_pem_x509_certificate

    authority = CertificateAuthority.create(tmp_path)
    authority.issue("node", "node", names=["127.0.0.1"])
    for name in CLIENTS:
        authority.issue(name, "client")
    tls = ServerTls(
        ServerTlsOptions(
            certificate=str(tmp_path / "node.pem"),
            key=str(tmp_path / "node.key"),
            authorities=str(tmp_path / "bundle.pem"),
            revoked=str(tmp_path / "revoked.pem"),
            client_certificates="required",
        )
    )
    lab, ward = (
        load_pem_x509_certificate((tmp_path / f"{name}.pem").read_bytes()).public_bytes(Encoding.DER)
        for name in CLIENTS
    )
    assert not tls.is_revoked(lab)
    authority.rollover()
    authority.revoke("lab")
    assert not tls.is_revoked(lab), "as the files were when they were read"
    assert tls.poll()
    assert tls.is_revoked(lab)
    assert not tls.is_revoked(ward)

"""Links between organisations over real sockets: who may be a peer, what a link may cost, calls that come back."""

import asyncio
import contextlib
import ssl
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from node_world import until

from fastledger.errors import CertificateError
from fastledger.node.authority import CertificateAuthority
from fastledger.node.federation.tls import PeerTls
from fastledger.node.federation.transport import CALLERS_MAX, HANDSHAKES_BURST, CallRates, Transport
from fastledger.node.options import TlsOptions
from fastledger.peers.options import PeerLimits

LOOPBACK = "127.0.0.1:0"


@dataclass
class Heard:
    """What a transport told of its links."""

    open: dict[int, str] = field(default_factory=dict)
    data: dict[int, bytes] = field(default_factory=dict)
    failed: list[str] = field(default_factory=list)
    closed_count: int = 0

    def connected(self, link: int, address: str, *, inbound: bool, organisation: str) -> None:
        self.open[link] = organisation

    def received(self, link: int, data: bytes) -> None:
        self.data[link] = self.data.get(link, b"") + data

    def closed(self, link: int) -> None:
        del self.open[link]
        self.closed_count += 1

    def dial_failed(self, address: str) -> None:
        self.failed.append(address)


@dataclass
class End:
    """One organisation's transport."""

    heard: Heard
    tls: PeerTls
    transport: Transport
    address: str


class Site:
    """A federation's authority and what it certified."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.authority = CertificateAuthority.create(folder)
        for name in ("clinic", "hospital", "lab"):
            self.authority.issue(name, "node")
        self.authority.issue("visitor", "client")

    def config(self, name: str) -> TlsOptions:
        return TlsOptions(
            certificate=str(self.folder / f"{name}.pem"),
            key=str(self.folder / f"{name}.key"),
            authorities=str(self.folder / "bundle.pem"),
            revoked=str(self.folder / "revoked.pem"),
            reload_interval_ms=100,
        )

    def client_context(self, name: str = "") -> ssl.SSLContext:
        """What somebody without our code would use."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
        if name:
            context.load_cert_chain(self.folder / f"{name}.pem", self.folder / f"{name}.key")
        return context

    @contextlib.asynccontextmanager
    async def end(
        self, name: str, *, listens: bool = True, members: str = "", **limits: int
    ) -> AsyncIterator[End]:
        heard, tls = Heard(), PeerTls(self.config(name))
        allowed = set(members.split())
        transport = Transport(
            tls, heard, PeerLimits(**limits), may_join=lambda name: not allowed or name in allowed
        )
        port = await transport.listen(LOOPBACK) if listens else 0
        try:
            yield End(heard, tls, transport, f"127.0.0.1:{port}")
        finally:
            await transport.stop()


@pytest.fixture
def site(tmp_path: Path) -> Site:
    return Site(tmp_path / "ca")


async def test_two_organisations_meet_and_talk(site: Site) -> None:  # SPEC-FED-3, SPEC-FED-5
    async with site.end("clinic") as clinic, site.end("hospital", listens=False) as hospital:
        assert clinic.tls.organisation == "clinic"
        hospital.transport.dial(clinic.address)
        hospital.transport.dial(clinic.address)
        await until(lambda: bool(clinic.heard.open and hospital.heard.open))
        assert clinic.heard.open == {1: "hospital"}
        assert hospital.heard.open == {1: "clinic"}
        hospital.transport.send(1, b"x" * 3_000_000)
        clinic.transport.send(1, b"back")
        await until(lambda: len(clinic.heard.data.get(1, b"")) == 3_000_000)
        await until(lambda: hospital.heard.data.get(1) == b"back")
        clinic.transport.send(1, b"last")
        clinic.transport.close(1)
        await until(lambda: not hospital.heard.open and not clinic.heard.open)
        assert hospital.heard.data[1] == b"backlast"
        assert clinic.transport.figures.bytes_in == 3_000_000


async def test_only_nodes_of_certified_organisations_get_in(
    site: Site, tmp_path: Path
) -> None:  # SPEC-FED-3, SPEC-FED-5
    stranger = CertificateAuthority.create(tmp_path / "other")
    stranger.issue("clinic", "node")
    async with site.end("hospital", members="lab") as hospital:
        host, _, port = hospital.address.rpartition(":")
        contexts = {
            "none": site.client_context(),
            "client": site.client_context("visitor"),
            "not a member": site.client_context("clinic"),
            "stranger": Site.client_context(type("Other", (), {"folder": tmp_path / "other"})(), "clinic"),
        }
        for name, context in contexts.items():
            with contextlib.suppress(OSError):
                reader, writer = await asyncio.open_connection(host, int(port), ssl=context)
                writer.write(b"let me in")
                with contextlib.suppress(OSError):
                    assert await asyncio.wait_for(reader.read(100), 10) == b"", name
                writer.transport.abort()
        assert hospital.heard.open == {} == hospital.heard.data
        refused = hospital.transport.figures.refused
        await until(lambda: refused["handshake"] == 2)
        assert (refused["certificate"], refused["organisation"]) == (1, 1)


async def test_nothing_is_said_to_a_listener_that_is_no_peer(
    site: Site, tmp_path: Path
) -> None:  # SPEC-FED-3, SPEC-FED-5
    stranger = Site(tmp_path / "other")
    async with stranger.end("clinic") as foreign, site.end("hospital", listens=False) as hospital:
        hospital.transport.dial(foreign.address)
        await until(lambda: hospital.heard.failed == [foreign.address])
        assert foreign.heard.open == {}


async def test_a_revoked_organisation_is_out_at_the_reload(site: Site) -> None:  # SPEC-FED-4
    async with site.end("clinic") as clinic, site.end("lab", listens=False) as lab:
        lab.transport.dial(clinic.address)
        await until(lambda: clinic.heard.open == {1: "lab"})
        site.authority.revoke("lab")
        assert clinic.tls.reload()
        assert clinic.transport.drop_revoked() == 1
        await until(lambda: clinic.heard.closed_count == 1 and not lab.heard.open)
        lab.transport.dial(clinic.address)
        await until(lambda: clinic.transport.figures.refused["handshake"] == 1)
        assert clinic.heard.open == {}


async def test_renewed_certificates_are_used_without_a_restart(site: Site) -> None:  # SPEC-FED-4
    async with site.end("clinic") as clinic, site.end("lab", listens=False) as lab:
        (site.folder / "bundle.pem").rename(site.folder / "away.pem")
        assert not lab.tls.reload()
        (site.folder / "away.pem").rename(site.folder / "bundle.pem")
        site.authority.renew("lab")
        site.authority.renew("clinic")
        assert lab.tls.reload() and clinic.tls.reload()
        lab.transport.dial(clinic.address)
        await until(lambda: clinic.heard.open == {1: "lab"})


def test_files_that_cannot_be_used_stop_a_start(site: Site) -> None:  # SPEC-FED-4
    (site.folder / "clinic.key").chmod(0o644)
    with pytest.raises(CertificateError):
        PeerTls(site.config("clinic"))
    (site.folder / "revoked.pem").write_text("-----BEGIN X509 CRL-----\nnone\n-----END X509 CRL-----\n")
    with pytest.raises(CertificateError):
        PeerTls(site.config("hospital"))


async def test_links_are_bounded(site: Site) -> None:  # SPEC-FED-6
    async with (
        site.end("clinic", links_per_organisation_max=2, links_max=3) as clinic,
        site.end("lab", listens=False) as lab,
        site.end("hospital", listens=False) as hospital,
    ):
        second, third = (Transport(lab.tls, Heard(), PeerLimits()) for _ in range(2))
        lab.transport.dial(clinic.address)
        second.dial(clinic.address)
        await until(lambda: sorted(clinic.heard.open.values()) == ["lab", "lab"])
        third.dial(clinic.address)
        await until(lambda: clinic.transport.figures.refused["limit"] == 1)
        hospital.transport.dial(clinic.address)
        await until(lambda: len(clinic.heard.open) == 3)
        await second.stop()
        await third.stop()


def test_an_address_calls_so_often_and_no_more() -> None:  # SPEC-FED-6
    rates = CallRates()
    assert [rates.admit("a", 0.0) for _ in range(HANDSHAKES_BURST + 2)] == [True] * HANDSHAKES_BURST + [
        False
    ] * 2
    assert rates.admit("b", 0.0)
    assert rates.admit("a", 0.5)
    assert not rates.admit("a", 0.5)
    for number in range(2 * CALLERS_MAX):
        rates.admit(str(number), 1.0)
    assert len(rates._buckets) == CALLERS_MAX


async def test_what_nobody_reads_ends_the_link(site: Site) -> None:  # SPEC-FED-7
    async with (
        site.end("clinic", send_buffer_bytes_max=1 << 20) as clinic,
        site.end("lab", listens=False) as lab,
    ):
        lab.transport.dial(clinic.address)
        await until(lambda: bool(clinic.heard.open and lab.heard.open))
        lab.transport.pause_reading()
        for _ in range(200):
            clinic.transport.send(1, b"y" * 500_000)
            await asyncio.sleep(0)
        assert clinic.transport.figures.bytes_out < 50_000_000
        await until(lambda: not clinic.heard.open)


async def test_reading_stops_and_goes_on(site: Site) -> None:  # SPEC-FED-7
    async with site.end("clinic") as clinic, site.end("lab", listens=False) as lab:
        clinic.transport.pause_reading()
        lab.transport.dial(clinic.address)
        await until(lambda: bool(clinic.heard.open and lab.heard.open))
        lab.transport.send(1, b"z" * 20_000_000)
        await asyncio.sleep(0.2)
        held = len(clinic.heard.data.get(1, b""))
        assert held < 20_000_000
        clinic.transport.resume_reading()
        await until(lambda: len(clinic.heard.data.get(1, b"")) == 20_000_000)


async def test_a_call_that_fails_can_be_made_again(site: Site) -> None:  # SPEC-FED-8
    async with site.end("lab", listens=False) as lab:
        async with site.end("clinic") as clinic:
            address = clinic.address
        for _ in range(3):
            lab.transport.dial(address)
            before = len(lab.heard.failed)
            await until(lambda seen=before: len(lab.heard.failed) > seen)  # type: ignore[misc]
        heard = Heard()
        again = Transport(PeerTls(site.config("clinic")), heard, PeerLimits())
        await again.listen(address)
        lab.transport.dial(address)
        await until(lambda: heard.open == {1: "lab"})
        await again.stop()

"""TLS over real sockets: mutual, reloaded under open connections, revoked, rolled over."""

import asyncio
import contextlib
import ssl
import stat
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.x509.oid import ExtendedKeyUsageOID

from fastledger.errors import CertificateError, Code
from fastledger.node.authority import CertificateAuthority
from fastledger.node.options import ServerTlsOptions
from fastledger.node.tls import PeerIdentity, ServerTls, client_context, peer_identity

DAY_MS = 86_400_000


@dataclass
class Site:
    """An authority, a node's certificate and two clients'."""

    folder: Path

    @property
    def authority(self) -> CertificateAuthority:
        return CertificateAuthority.open(self.folder)

    def config(self, mode: str = "required") -> ServerTlsOptions:
        return ServerTlsOptions(
            certificate=str(self.folder / "node-1.pem"),
            key=str(self.folder / "node-1.key"),
            authorities=str(self.folder / "bundle.pem"),
            revoked=str(self.folder / "revoked.pem"),
            client_certificates=mode,  # type: ignore[arg-type]
            reload_interval_ms=100,
        )

    def client(self, name: str = "") -> ssl.SSLContext:
        pair = (str(self.folder / f"{name}.pem"), str(self.folder / f"{name}.key")) if name else ("", "")
        return client_context(ca=self.folder / "bundle.pem", certificate=pair[0], key=pair[1])


@pytest.fixture
def site(tmp_path: Path) -> Site:
    authority = CertificateAuthority.create(tmp_path / "ca", names=["hospital.example", "127.0.0.0/8"])
    authority.issue("node-1", "node", names=["node.hospital.example", "127.0.0.1"])
    authority.issue("lab", "client")
    authority.issue("ward", "client")
    return Site(tmp_path / "ca")


@contextlib.asynccontextmanager
async def serving(tls: ServerTls) -> AsyncIterator[int]:
    """Answers each line with who sent it."""

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        peer = peer_identity(writer.get_extra_info("ssl_object"))
        with contextlib.suppress(OSError):
            while await reader.readline():
                writer.write(f"{peer.common_name if peer else '-'} {peer.sha256 if peer else '-'}\n".encode())
                await writer.drain()
            writer.close()

    server = await asyncio.start_server(answer, "127.0.0.1", 0, ssl=tls.context)
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        server.close()


class Line:
    """One open connection."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer

    @classmethod
    async def open(cls, port: int, context: ssl.SSLContext, name: str = "127.0.0.1") -> "Line":
        return cls(*await asyncio.open_connection("127.0.0.1", port, ssl=context, server_hostname=name))

    async def ask(self) -> str:
        self.writer.write(b"who\n")
        answer = await asyncio.wait_for(self.reader.readline(), 20)
        if not answer:
            raise ConnectionResetError
        return answer.decode().split()[0]

    @property
    def server_serial(self) -> int:
        der = self.writer.get_extra_info("ssl_object").getpeercert(binary_form=True)
        return x509.load_der_x509_certificate(der).serial_number

    def close(self) -> None:
        self.writer.transport.abort()


async def who(port: int, context: ssl.SSLContext, name: str = "127.0.0.1") -> str:
    line = await Line.open(port, context, name)
    try:
        return await line.ask()
    finally:
        line.close()


# What a refused client sees: in TLS 1.3 the alert comes with its first read.
REFUSED = (ssl.SSLError, ConnectionError)


async def test_who_may_connect(site: Site) -> None:  # SPEC-NODE-111
    async with serving(ServerTls(site.config())) as port:
        assert await who(port, site.client("lab")) == "lab"
        assert await who(port, site.client("node-1")) == "node-1"
        assert await who(port, site.client("lab"), "node.hospital.example") == "lab"
        with pytest.raises(REFUSED):
            await who(port, site.client())
        with pytest.raises(ssl.SSLCertVerificationError):
            await who(port, site.client("lab"), "other.hospital.example")
        old = site.client("lab")
        old.maximum_version = ssl.TLSVersion.TLSv1_2
        with pytest.raises(REFUSED):
            await who(port, old)
    async with serving(ServerTls(site.config("optional"))) as port:
        assert await who(port, site.client()) == "-"
        assert await who(port, site.client("lab")) == "lab"


async def test_without_client_certificates_tls_1_2_is_the_least(site: Site) -> None:  # SPEC-NODE-111
    config = site.config("none")
    plain = ServerTlsOptions(certificate=config.certificate, key=config.key)
    async with serving(ServerTls(plain)) as port:
        context = site.client()
        context.maximum_version = ssl.TLSVersion.TLSv1_2
        assert await who(port, context) == "-"
    assert ServerTls(plain).context.minimum_version == ssl.TLSVersion.TLSv1_2


async def test_a_foreign_authority_and_a_client_as_server_are_refused(
    site: Site, tmp_path: Path
) -> None:  # SPEC-NODE-111, SPEC-NODE-116
    other = CertificateAuthority.create(tmp_path / "other")
    other.issue("lab", "client")
    stranger = client_context(
        ca=site.folder / "bundle.pem",
        certificate=str(tmp_path / "other" / "lab.pem"),
        key=str(tmp_path / "other" / "lab.key"),
    )
    async with serving(ServerTls(site.config())) as port:
        with pytest.raises(REFUSED):
            await who(port, stranger)
    config = ServerTlsOptions(certificate=str(site.folder / "lab.pem"), key=str(site.folder / "lab.key"))
    async with serving(ServerTls(config)) as port:
        with pytest.raises(ssl.SSLCertVerificationError):
            await who(port, site.client(), "lab.fastledger.internal")


async def test_a_renewed_certificate_is_shown_and_open_connections_stay(site: Site) -> None:  # SPEC-NODE-112
    reloaded = asyncio.Event()
    loop = asyncio.get_running_loop()

    def note(error: CertificateError | None) -> None:  # in the thread that reads the files
        if error is None:
            loop.call_soon_threadsafe(reloaded.set)

    tls = ServerTls(site.config(), on_reload=note)
    async with serving(tls) as port:
        before = await Line.open(port, site.client("lab"))
        assert not tls.poll()
        site.authority.renew("node-1", days=30)
        watcher = asyncio.create_task(tls.watch())
        await asyncio.wait_for(reloaded.wait(), 20)
        watcher.cancel()
        after = await Line.open(port, site.client("lab"))
        assert before.server_serial != after.server_serial == int(site.authority.issued[-1].serial, 16)
        assert await before.ask() == await after.ask() == "lab"
        assert not tls.poll()
        before.close()
        after.close()


async def test_bad_files_keep_the_old_ones(site: Site) -> None:  # SPEC-NODE-113
    heard: list[CertificateError | None] = []
    tls = ServerTls(site.config(), on_reload=heard.append)
    bundle = (site.folder / "bundle.pem").read_bytes()
    async with serving(tls) as port:
        for name, data in (
            ("node-1.pem", b"garbage"),
            ("node-1.key", (site.folder / "lab.key").read_bytes()),
            ("bundle.pem", b""),
        ):
            good = (site.folder / name).read_bytes()
            (site.folder / name).write_bytes(data)
            assert not tls.poll()
            assert isinstance(heard[-1], CertificateError)
            assert str(site.folder) not in str(heard[-1])
            (site.folder / name).write_bytes(good)
            assert await who(port, client_context(ca=_copy(site, bundle), **_pair(site, "lab"))) == "lab"
        (site.folder / "node-1.key").chmod(0o640)
        assert not tls.reload()
        (site.folder / "node-1.key").chmod(0o600)
        assert tls.failures == 4
        assert tls.reload()
        assert heard[-1] is None


def _copy(site: Site, bundle: bytes) -> Path:
    path = site.folder.parent / "trusted.pem"
    path.write_bytes(bundle)
    return path


def _pair(site: Site, name: str) -> dict[str, str]:
    return {"certificate": str(site.folder / f"{name}.pem"), "key": str(site.folder / f"{name}.key")}


async def test_a_revoked_client_is_refused_after_the_reload(site: Site) -> None:  # SPEC-NODE-114
    tls = ServerTls(site.config())
    async with serving(tls) as port:
        context = site.client("lab")  # one context, so that it would resume its session if it could
        assert await who(port, context) == "lab"
        assert site.authority.revoke("lab") == 1
        assert tls.poll()
        with pytest.raises(REFUSED):
            await who(port, context)
        assert await who(port, site.client("ward")) == "ward"
    with pytest.raises(CertificateError):
        site.authority.renew("lab")


async def test_no_ticket_lets_a_session_resume(site: Site) -> None:  # SPEC-NODE-114
    async with serving(ServerTls(site.config())) as port:
        line = await Line.open(port, site.client("lab"))
        await line.ask()
        session = line.writer.get_extra_info("ssl_object").session
        assert session is None or not session.has_ticket
        line.close()


async def test_rollover(site: Site) -> None:  # SPEC-NODE-118
    tls = ServerTls(site.config())
    old_client = site.client("lab")
    async with serving(tls) as port:
        assert site.authority.rollover() == 2
        with pytest.raises(CertificateError, match=r"not renewed yet: lab, node-1, ward"):
            site.authority.retire()
        assert tls.poll()
        site.authority.renew("ward")
        # Both kinds of client get in, whichever authority signed.
        assert await who(port, old_client) == "lab"
        assert await who(port, site.client("ward")) == "ward"
        # The node moves too; a client that has the bundle of both trusts it.
        site.authority.renew("node-1")
        site.authority.renew("lab")
        assert tls.poll()
        assert await who(port, site.client("ward")) == "ward"
        with pytest.raises(ssl.SSLCertVerificationError):
            await who(port, old_client)
        assert site.authority.retire() == 1
        assert tls.poll()
        assert await who(port, site.client("lab")) == "lab"
        with pytest.raises(REFUSED):
            # The first authority's certificate, from a client that trusts the second.
            await who(port, _mixed(site, old_client))


def _mixed(site: Site, context: ssl.SSLContext) -> ssl.SSLContext:
    context.load_verify_locations(cafile=str(site.folder / "bundle.pem"))
    return context


@pytest.mark.parametrize("shift_ms", [-DAY_MS, 91 * DAY_MS])
def test_a_node_does_not_start_on_a_certificate_that_is_not_valid(  # SPEC-NODE-113
    site: Site, shift_ms: int
) -> None:
    now_ms = site.authority.issued[0].not_after_ms - 90 * DAY_MS
    with pytest.raises(CertificateError) as raised:
        ServerTls(site.config(), clock_ms=lambda: now_ms + shift_ms)
    assert raised.value.code is Code.BAD_CERTIFICATE
    assert ServerTls(site.config(), clock_ms=lambda: now_ms + DAY_MS).not_after_ms == now_ms + 90 * DAY_MS


def test_what_is_issued(site: Site) -> None:  # SPEC-NODE-116
    certificates = {
        name: x509.load_pem_x509_certificate((site.folder / f"{name}.pem").read_bytes())
        for name in ("authority-1", "node-1", "lab")
    }
    for name, usages in (("node-1", 2), ("lab", 1)):
        extensions = certificates[name].extensions
        assert len(extensions.get_extension_for_class(x509.ExtendedKeyUsage).value) == usages
        assert not extensions.get_extension_for_class(x509.BasicConstraints).value.ca
        assert stat.S_IMODE((site.folder / f"{name}.key").stat().st_mode) == 0o600
    usage = certificates["lab"].extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
    assert list(usage) == [ExtendedKeyUsageOID.CLIENT_AUTH]
    authority = certificates["authority-1"].extensions
    assert authority.get_extension_for_class(x509.BasicConstraints).value.path_length == 0
    assert authority.get_extension_for_class(x509.NameConstraints).critical
    assert len({certificate.serial_number for certificate in certificates.values()}) == 3
    assert stat.S_IMODE((site.folder / "authority-1.key").stat().st_mode) == 0o600
    assert not list(site.folder.glob(".*"))


async def test_an_authority_is_bound_to_its_names(site: Site) -> None:  # SPEC-NODE-117
    site.authority.issue("evil", "node", names=["bank.example", "127.0.0.1"])
    config = ServerTlsOptions(certificate=str(site.folder / "evil.pem"), key=str(site.folder / "evil.key"))
    async with serving(ServerTls(config)) as port:
        with pytest.raises(ssl.SSLCertVerificationError, match="permitted subtree"):
            await who(port, site.client())


@pytest.mark.parametrize(
    "name", ["", "A", "a b", "../x", "bundle", "revoked", "authority-1", "a" * 64, "lab"]
)
def test_names_that_are_not_issued(site: Site, name: str) -> None:  # SPEC-NODE-116
    files = sorted(path.name for path in site.folder.iterdir())
    with pytest.raises(CertificateError):
        site.authority.issue(name, "client")
    assert sorted(path.name for path in site.folder.iterdir()) == files


def test_an_identity_without_a_certificate_is_none() -> None:  # SPEC-NODE-115
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    end = context.wrap_bio(ssl.MemoryBIO(), ssl.MemoryBIO(), server_hostname="x")
    assert PeerIdentity("a", "b").common_name == "a"
    with pytest.raises(ValueError, match="handshake"):
        peer_identity(end)


async def test_the_identity_is_the_certificates(site: Site) -> None:  # SPEC-NODE-115
    import hashlib

    der = ssl.PEM_cert_to_DER_cert((site.folder / "lab.pem").read_text())
    async with serving(ServerTls(site.config())) as port:
        line = await Line.open(port, site.client("lab"))
        line.writer.write(b"who\n")
        name, fingerprint = (await line.reader.readline()).decode().split()
        assert (name, fingerprint) == ("lab", hashlib.sha256(der).hexdigest())
        line.close()


def test_a_damaged_authority_is_a_typed_error(site: Site) -> None:  # SPEC-NODE-116
    with pytest.raises(CertificateError, match="already"):
        CertificateAuthority.create(site.folder)
    (site.folder / "issued.json").write_text("{")
    with pytest.raises(CertificateError, match="damaged"):
        CertificateAuthority.open(site.folder)
    with pytest.raises(CertificateError, match="certs init"):
        CertificateAuthority.open(site.folder / "none")

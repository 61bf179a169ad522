"""Mutual TLS 1.3 between organisations' nodes (SPEC-FED-3..5).

Both ends show a *node* certificate of the federation's authorities. What is authenticated is the organisation, not
the host: addresses of peers are learnt from other peers, so a name in a certificate would prove nothing that matters.
"""

import hashlib
import re
import ssl
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from cryptography import x509
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID
from msgspec import structs

from fastledger.clock import system_clock_ms
from fastledger.errors import CertificateError
from fastledger.node.options import ServerTlsOptions, TlsOptions
from fastledger.node.tls import PEM_BYTES_MAX, ServerTls, SslEnd

PEER_PROTOCOL = "fastledger-peer/1"
ORGANISATION_CHARACTERS_MAX = 64
_PEM_LIST = re.compile(rb"-----BEGIN X509 CRL-----.*?-----END X509 CRL-----", re.DOTALL)


class PeerCertificate(NamedTuple):
    """The certificate at the other end: organisation, SHA-256 of the DER in hex, issuer and serial number."""

    organisation: str
    sha256: str
    issuer: bytes
    serial: int


def peer_certificate(end: SslEnd | None) -> PeerCertificate:
    """Returns the verified certificate of the other side.

    Raises ``CertificateError`` where it is no organisation's node. The organisation is the subject's organisation
    name, or its common name where it has none.
    """
    der = end.getpeercert(binary_form=True) if end is not None else None
    if not der:
        raise CertificateError("a peer shows a certificate")
    try:
        certificate = x509.load_der_x509_certificate(der)
        usages = certificate.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
        names = (
            *certificate.subject.get_attributes_for_oid(NameOID.ORGANIZATION_NAME),
            *certificate.subject.get_attributes_for_oid(NameOID.COMMON_NAME),
        )
    except (ValueError, x509.ExtensionNotFound):
        raise CertificateError("the peer's certificate cannot be read") from None
    # A client's certificate is for those who submit and ask; it must not make its holder a peer.
    if ExtendedKeyUsageOID.SERVER_AUTH not in usages:
        raise CertificateError("the peer's certificate is not a node's")
    organisation = str(names[0].value) if names else ""
    if not 0 < len(organisation) <= ORGANISATION_CHARACTERS_MAX or not organisation.isprintable():
        raise CertificateError("the peer's certificate names no organisation")
    return PeerCertificate(
        organisation,
        hashlib.sha256(der).hexdigest(),
        certificate.issuer.public_bytes(),
        certificate.serial_number,
    )


class PeerTls:
    """The TLS contexts of both directions, loaded again when the files change."""

    def __init__(
        self,
        config: TlsOptions,
        *,
        clock_ms: Callable[[], int] = system_clock_ms,
        on_reload: Callable[[CertificateError | None], None] = lambda _error: None,
    ) -> None:
        """Loads the files; raises ``CertificateError`` where they cannot be used now.

        ``on_reload`` is as for ``ServerTls``.
        """
        self._config = config
        self._on_reload = on_reload
        self.client_context = self._load_client_context()
        self.revoked = self._load_revoked()
        self.organisation = own_organisation(config)
        as_server = ServerTlsOptions(client_certificates="required", **structs.asdict(config))
        self.server = ServerTls(
            as_server, clock_ms=clock_ms, on_reload=self._reloaded, protocol=PEER_PROTOCOL
        )

    @property
    def server_context(self) -> ssl.SSLContext:
        """The listener's context; its handshakes use the newest good files."""
        return self.server.context

    def reload(self) -> bool:
        """Loads the files again; False where they are not good, and the old ones stay in use."""
        return self.server.reload()

    async def watch(self) -> None:
        """Loads the files again whenever one changes; runs for ever."""
        await self.server.watch()

    def _reloaded(self, error: CertificateError | None) -> None:
        if error is None:
            try:
                fresh = self._load_client_context(), self._load_revoked()
            except CertificateError as found:
                error = found
            else:
                self.client_context, self.revoked = fresh
        self._on_reload(error)

    def _load_client_context(self) -> ssl.SSLContext:
        config = self._config
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.minimum_version = ssl.TLSVersion.TLSv1_3
        context.check_hostname = False
        context.verify_mode = ssl.CERT_REQUIRED
        context.options |= ssl.OP_NO_TICKET
        context.set_alpn_protocols([PEER_PROTOCOL])
        try:
            context.load_cert_chain(config.certificate, config.key, password=_no_password)
            context.load_verify_locations(cafile=config.authorities)
            if config.revoked:
                context.load_verify_locations(cafile=config.revoked)
                context.verify_flags |= ssl.VERIFY_CRL_CHECK_LEAF
        except (OSError, ValueError):
            raise CertificateError("the federation's TLS files cannot be used") from None
        return context

    def _load_revoked(self) -> frozenset[tuple[bytes, int]]:
        """Returns (issuer, serial) of every revoked certificate, so that links that are open already end too."""
        if not self._config.revoked:
            return frozenset()
        try:
            text = _read(self._config.revoked)
            lists = [x509.load_pem_x509_crl(block) for block in _PEM_LIST.findall(text)]
        except (OSError, ValueError):
            raise CertificateError("federation.tls.revoked cannot be used") from None
        return frozenset((crl.issuer.public_bytes(), entry.serial_number) for crl in lists for entry in crl)

    def is_revoked(self, peer: PeerCertificate) -> bool:
        """Whether a revocation list names the certificate by now."""
        return (peer.issuer, peer.serial) in self.revoked


def own_organisation(config: TlsOptions) -> str:
    """Returns the organisation that the node's own certificate names; raises ``CertificateError``."""
    try:
        leaf = x509.load_pem_x509_certificates(_read(config.certificate))[0]
    except (OSError, ValueError, IndexError):
        raise CertificateError("federation.tls.certificate cannot be used") from None
    names = (
        *leaf.subject.get_attributes_for_oid(NameOID.ORGANIZATION_NAME),
        *leaf.subject.get_attributes_for_oid(NameOID.COMMON_NAME),
    )
    return str(names[0].value) if names else ""


def _read(path: str) -> bytes:
    with Path(path).open("rb") as file:
        return file.read(PEM_BYTES_MAX)


def _no_password() -> str:
    # Without this, OpenSSL would ask on the terminal of a service that has none.
    raise ValueError("the key is sealed")

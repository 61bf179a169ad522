"""TLS whose certificates, keys and trusted authorities change while the node runs (SPEC-NODE-111..115).

A listener keeps one context for its life. Each handshake is moved to the newest good context by the callback that
OpenSSL makes at the client's hello, so a reload disturbs no open connection and none is ever without a certificate.
:meth:`ServerTls.is_revoked` tells whether the certificate of an open connection was revoked since.
"""

import asyncio
import contextlib
import hashlib
import re
import ssl
import stat
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple, TypeAlias

from cryptography import x509
from cryptography.x509.oid import NameOID

from fastledger.clock import system_clock_ms
from fastledger.errors import CertificateError
from fastledger.node.options import ServerTlsOptions

PEM_BYTES_MAX = 1 << 20
_LIST = re.compile(rb"-----BEGIN X509 CRL-----.*?-----END X509 CRL-----", re.DOTALL)
_VERIFY_MODES = {"none": ssl.CERT_NONE, "optional": ssl.CERT_OPTIONAL, "required": ssl.CERT_REQUIRED}

SslEnd: TypeAlias = ssl.SSLObject | ssl.SSLSocket
FileState: TypeAlias = tuple[tuple[int, int, int], ...]


class PeerIdentity(NamedTuple):
    """The owner of a certificate: subject common name ("" where it has none), and the SHA-256 of its DER in hex."""

    common_name: str
    sha256: str


def peer_identity(end: SslEnd) -> PeerIdentity | None:
    """Returns the identity in the verified certificate of the other side; None where it showed none."""
    der = end.getpeercert(binary_form=True)
    if not der:
        return None
    names = x509.load_der_x509_certificate(der).subject.get_attributes_for_oid(NameOID.COMMON_NAME)
    return PeerIdentity(str(names[0].value) if names else "", hashlib.sha256(der).hexdigest())


class ServerTls:
    """The server's contexts, loaded from a configuration and loaded again when its files change."""

    def __init__(
        self,
        config: ServerTlsOptions,
        *,
        clock_ms: Callable[[], int] = system_clock_ms,
        on_reload: Callable[[CertificateError | None], None] = lambda _error: None,
        protocol: str = "http/1.1",
    ) -> None:
        """Loads the files; raises ``CertificateError`` where they cannot be used now: a node does not start on them.

        ``on_reload`` is called after every later load, with the error of one that failed. ``protocol`` is that
        spoken inside (ALPN, RFC 7301).
        """
        self._config = config
        self._protocol = protocol
        self._clock_ms = clock_ms
        self._on_reload = on_reload
        self.reloads = 0
        self.failures = 0
        self._seen = self._file_state()
        self._current, self.not_after_ms, self._lists = self._load()
        self.context = self._bare_context()
        self.context.load_cert_chain(config.certificate, config.key)
        self.context.sni_callback = self._move_to_current

    def reload(self) -> bool:
        """Loads the files again; False where they are not good, and the old ones stay in use."""
        self._seen = self._file_state()
        try:
            self._current, self.not_after_ms, self._lists = self._load()
        except CertificateError as error:
            self.failures += 1
            self._on_reload(error)
            return False
        self.reloads += 1
        self._on_reload(None)
        return True

    def is_revoked(self, der: bytes) -> bool:
        """Whether a client's certificate (DER), good when its connection was made, is on a revocation list by now.
        """
        lists = self._lists
        if not lists:
            return False
        certificate = x509.load_der_x509_certificate(der)
        return any(
            found.issuer == certificate.issuer
            and found.get_revoked_certificate_by_serial_number(certificate.serial_number) is not None
            for found in lists
        )

    def poll(self) -> bool:
        """Reloads where a file has changed since the last look; returns whether a reload succeeded."""
        return self._file_state() != self._seen and self.reload()

    async def watch(self) -> None:
        """Polls for ever; the files are read off the loop."""
        while True:
            await asyncio.sleep(self._config.reload_interval_ms / 1000)
            await asyncio.to_thread(self.poll)

    def _move_to_current(self, end: SslEnd, _name: str | None, _first: ssl.SSLContext) -> None:
        end.context = self._current

    def _file_state(self) -> FileState:
        """Returns times, sizes and inodes of the files, which change with them.

        A missing file counts as a state of its own.
        """
        states = []
        for path in (
            self._config.certificate,
            self._config.key,
            self._config.authorities,
            self._config.revoked,
        ):
            states.append((0, 0, 0))
            with contextlib.suppress(OSError):
                status = Path(path).stat()
                states[-1] = (status.st_mtime_ns, status.st_size, status.st_ino)
        return tuple(states)

    def _bare_context(self) -> ssl.SSLContext:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        mutual = self._config.client_certificates != "none"
        # A resumed session skips the client's certificate, and with it a revocation. TLS 1.3 without tickets
        # cannot resume; 1.2 could by session id, so that it is for servers that ask for no certificate.
        context.minimum_version = ssl.TLSVersion.TLSv1_3 if mutual else ssl.TLSVersion.TLSv1_2
        context.options |= ssl.OP_NO_RENEGOTIATION | ssl.OP_NO_COMPRESSION
        if mutual:
            context.options |= ssl.OP_NO_TICKET
            context.num_tickets = 0
        context.set_alpn_protocols([self._protocol])
        context.verify_mode = _VERIFY_MODES[self._config.client_certificates]
        if self._config.revoked:
            context.verify_flags |= ssl.VERIFY_CRL_CHECK_LEAF
        return context

    def _load(self) -> tuple[ssl.SSLContext, int, list[x509.CertificateRevocationList]]:
        """Returns a new context from the files, when its certificate ends (UTC ms), and the revocation lists."""
        config = self._config
        not_after_ms = _check_certificate(Path(config.certificate), self._clock_ms())
        _check_private(Path(config.key))
        context = self._bare_context()
        try:
            context.load_cert_chain(config.certificate, config.key, password=_no_password)
        except (OSError, ValueError) as error:
            raise CertificateError(f"certificate and key do not go together: {_reason(error)}") from None
        for what, path in (("authorities", config.authorities), ("revoked", config.revoked)):
            if path:
                _load_trusted(context, what, path)
        return context, not_after_ms, _load_lists(config.revoked)


def client_context(*, ca: str | Path | None = None, certificate: str = "", key: str = "") -> ssl.SSLContext:
    """Returns a client's context that trusts ``ca`` alone (None: what the system trusts).

    It shows ``certificate`` where one is given, and checks the server's name. Raises ``CertificateError``.
    """
    try:
        context = ssl.create_default_context(cafile=None if ca is None else str(ca))
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        if certificate:
            context.load_cert_chain(certificate, key or None, password=_no_password)
    except (OSError, ValueError) as error:
        raise CertificateError(f"the client's TLS files cannot be used: {_reason(error)}") from None
    return context


def _no_password() -> str:
    # Without this, OpenSSL would ask on the terminal of a service that has none.
    raise ValueError("the key is sealed")


def _reason(error: BaseException) -> str:
    """Returns why OpenSSL or the system refuses, without file names."""
    if isinstance(error, ssl.SSLError):
        return error.reason or "SSL error"
    if isinstance(error, OSError):
        return error.strerror or "cannot be read"
    return str(error)


def _check_certificate(path: Path, now_ms: int) -> int:
    """Returns when the certificate ends (UTC ms); raises ``CertificateError`` where it is none or not valid now."""
    try:
        with path.open("rb") as file:
            leaf = x509.load_pem_x509_certificates(file.read(PEM_BYTES_MAX))[0]
    except OSError as error:
        raise CertificateError(f"the certificate cannot be read: {error.strerror}") from None
    except ValueError:
        raise CertificateError("the certificate file holds no PEM certificate") from None
    not_before_ms = int(leaf.not_valid_before_utc.timestamp() * 1000)
    not_after_ms = int(leaf.not_valid_after_utc.timestamp() * 1000)
    if not not_before_ms <= now_ms < not_after_ms:
        raise CertificateError(f"the certificate is valid from {not_before_ms} to {not_after_ms}, not now")
    return not_after_ms


def _check_private(path: Path) -> None:
    """Raises ``CertificateError`` where others than its owner may read the key."""
    try:
        mode = stat.S_IMODE(path.stat().st_mode)
    except OSError as error:
        raise CertificateError(f"the key cannot be read: {error.strerror}") from None
    if mode & 0o077:
        raise CertificateError(f"the key has mode {mode:04o}: others may read it, set 0600")


def _load_lists(path: str) -> list[x509.CertificateRevocationList]:
    """Returns the revocation lists of a PEM file; raises ``CertificateError`` where one cannot be read."""
    if not path:
        return []
    try:
        data = Path(path).read_bytes()
        return [x509.load_pem_x509_crl(found[0]) for found in _LIST.finditer(data)]
    except (OSError, ValueError) as error:
        raise CertificateError(f"revoked cannot be used: {_reason(error)}") from None


def _load_trusted(context: ssl.SSLContext, what: str, path: str) -> None:
    try:
        context.load_verify_locations(cafile=path)
    except (OSError, ValueError) as error:
        raise CertificateError(f"{what} cannot be used: {_reason(error)}") from None

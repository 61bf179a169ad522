"""A small certificate authority for the mutual TLS of one network (SPEC-NODE-116..118).

::

    authority-N.pem  authority-N.key    the Nth authority; the highest N issues
    bundle.pem                          every authority still trusted: ``authorities`` of nodes, ``ca`` of clients
    revoked.pem                         a revocation list of each: ``revoked`` of nodes
    issued.json                         what was issued: name, kind, serial, end, whether revoked
    NAME.pem  NAME.key                  what was issued, with its key (mode 0600)

ECDSA P-256, random serials, extended key usage. An authority is bound to the DNS names and addresses that it was made
for, and to ``fastledger.internal``, under which every certificate has a name of its own.
"""

import contextlib
import datetime
import ipaddress
import os
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Literal, Self

import msgspec
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from fastledger.clock import system_clock_ms
from fastledger.errors import CertificateError

INTERNAL_DOMAIN = "fastledger.internal"
DAYS_DEFAULT = 90
AUTHORITY_DAYS_DEFAULT = 1_825
_DAY_MS = 86_400_000
_SKEW_MS = 5 * 60_000
_NAME = re.compile(r"[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?")
_DNS = re.compile(r"(?:[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?\.)*[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?")
_OWN_FILE = re.compile(r"authority-[0-9]+|bundle|revoked")

CertificateKind = Literal["node", "client"]


class Issued(msgspec.Struct, kw_only=True):
    """One certificate: serial in hex, validity in UTC ms; ``revoked_ms`` 0 while it is not revoked."""

    name: str
    kind: CertificateKind
    names: list[str]
    authority: int
    serial: str
    not_after_ms: int
    revoked_ms: int = 0


class _Book(msgspec.Struct, kw_only=True):
    version: Literal[1] = 1
    authorities: list[int]
    names: list[str]
    issued: list[Issued]


class CertificateAuthority:
    """The certificate authority that is kept in one directory."""

    def __init__(self, folder: Path, book: _Book, clock_ms: Callable[[], int]) -> None:
        """Takes the contents of an authority's directory; callers use :meth:`create` or :meth:`open`."""
        self.folder = folder
        self._book = book
        self._clock_ms = clock_ms

    @classmethod
    def create(
        cls,
        folder: Path,
        *,
        names: Sequence[str] = (),
        days: int = AUTHORITY_DAYS_DEFAULT,
        clock_ms: Callable[[], int] = system_clock_ms,
    ) -> Self:
        """Makes an authority that is bound to DNS ``names`` and networks, valid for ``days``.

        Raises ``CertificateError`` where the directory holds one already.
        """
        if (folder / "issued.json").exists():
            raise CertificateError("the directory holds an authority already")
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        for name in names:
            _constraint(name)
        made = cls(folder, _Book(authorities=[], names=list(names), issued=[]), clock_ms)
        made._add_authority(days)
        return made

    @classmethod
    def open(cls, folder: Path, *, clock_ms: Callable[[], int] = system_clock_ms) -> Self:
        """Opens the authority in ``folder``; raises ``CertificateError`` where there is none or it is damaged."""
        try:
            book = msgspec.json.decode((folder / "issued.json").read_bytes(), type=_Book)
        except FileNotFoundError:
            raise CertificateError("the directory holds no authority: fastledger certs init") from None
        except (msgspec.MsgspecError, UnicodeDecodeError):
            raise CertificateError("issued.json is damaged") from None
        return cls(folder, book, clock_ms)

    @property
    def issued(self) -> Sequence[Issued]:
        """Every certificate that was issued, oldest first."""
        return tuple(self._book.issued)

    @property
    def authorities(self) -> Sequence[int]:
        """The numbers of the authorities that are trusted, oldest first."""
        return tuple(self._book.authorities)

    # Issuing.

    def issue(self, name: str, kind: CertificateKind, *, names: Sequence[str] = (), days: int = DAYS_DEFAULT) -> Issued:
        """Writes ``NAME.key`` and ``NAME.pem``, valid for ``days`` and for the DNS names or addresses ``names``.

        Raises ``CertificateError`` for a name of another form or one that was issued before.
        """
        if not _NAME.fullmatch(name) or _OWN_FILE.fullmatch(name):
            raise CertificateError("a name has 1 to 63 characters of a-z, 0-9 and - inside")
        if any(entry.name == name for entry in self._book.issued):
            raise CertificateError("a certificate of that name was issued: renew it")
        return self._issue(name, kind, list(names), days)

    def renew(self, name: str, *, days: int = DAYS_DEFAULT) -> Issued:
        """Issues a new key and certificate for the same names; the old one stays valid until it ends or is revoked.

        Raises ``CertificateError`` where the name was never issued or is revoked.
        """
        latest = self._latest(name)
        if latest.revoked_ms:
            raise CertificateError("the certificate is revoked: issue one under another name")
        return self._issue(name, latest.kind, latest.names, days)

    def revoke(self, name: str) -> int:
        """Revokes every certificate of ``name``, writes the revocation lists, and returns how many it revoked."""
        self._latest(name)
        now_ms = self._clock_ms()
        found = [entry for entry in self._book.issued if entry.name == name and not entry.revoked_ms]
        for entry in found:
            entry.revoked_ms = now_ms
        self._save()
        return len(found)

    def rollover(self, *, days: int = AUTHORITY_DAYS_DEFAULT) -> int:
        """Makes a new authority, which issues from now on, and returns its number.

        The older ones stay trusted until :meth:`retire`.
        """
        return self._add_authority(days)

    def retire(self) -> int:
        """Trusts the newest authority alone from now on, and returns how many were retired.

        Raises ``CertificateError`` where certificates of the older ones are still valid and not renewed.
        """
        newest = self._book.authorities[-1]
        now_ms = self._clock_ms()
        superseded = {entry.name for entry in self._book.issued if entry.authority == newest}
        left = sorted(
            entry.name
            for entry in self._book.issued
            if entry.authority != newest
            and entry.not_after_ms > now_ms
            and not entry.revoked_ms
            and entry.name not in superseded
        )
        if left:
            raise CertificateError(f"not renewed yet: {', '.join(left)}")
        retired = len(self._book.authorities) - 1
        self._book.authorities = [newest]
        self._save()
        return retired

    def _latest(self, name: str) -> Issued:
        found = [entry for entry in self._book.issued if entry.name == name]
        if not found:
            raise CertificateError("no certificate of that name was issued")
        return found[-1]

    def _issue(self, name: str, kind: CertificateKind, names: list[str], days: int) -> Issued:
        number = self._book.authorities[-1]
        signer, signer_key = self._authority(number)
        key = ec.generate_private_key(ec.SECP256R1())
        sans = [_general_name(item) for item in (f"{name}.{INTERNAL_DOMAIN}", *names)]
        usages = [ExtendedKeyUsageOID.CLIENT_AUTH]
        if kind == "node":  # a node also calls other nodes
            usages.append(ExtendedKeyUsageOID.SERVER_AUTH)
        not_after = min(self._after(days), signer.not_valid_after_utc)
        builder = (
            self._builder(name, key, not_after)
            .issuer_name(signer.subject)
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(_key_usage(digital_signature=True), critical=True)
            .add_extension(x509.ExtendedKeyUsage(usages), critical=False)
            .add_extension(x509.SubjectAlternativeName(sans), critical=False)
            .add_extension(
                x509.AuthorityKeyIdentifier.from_issuer_public_key(signer_key.public_key()), critical=False
            )
        )
        certificate = builder.sign(signer_key, hashes.SHA256())
        entry = Issued(
            name=name,
            kind=kind,
            names=names,
            authority=number,
            serial=f"{certificate.serial_number:x}",
            not_after_ms=int(not_after.timestamp() * 1000),
        )
        # Booked first: a certificate that nobody can revoke must not exist.
        self._book.issued.append(entry)
        self._save()
        # A node that looks between these two finds a pair that does not match, and keeps what it has.
        _write(self.folder / f"{name}.key", _private_pem(key), 0o600)
        _write(self.folder / f"{name}.pem", _pem(certificate), 0o644)
        return entry

    # Authorities and lists.

    def _add_authority(self, days: int) -> int:
        number = max(self._book.authorities, default=0) + 1
        # A name of its own, or two authorities in one bundle could be taken for one another.
        name = f"FastLedger network authority {number} {os.urandom(8).hex()}"
        key = ec.generate_private_key(ec.SECP256R1())
        builder = (
            self._builder(name, key, self._after(days))
            .issuer_name(_subject(name))
            .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
            .add_extension(_key_usage(key_cert_sign=True, crl_sign=True), critical=True)
        )
        if self._book.names:
            permitted = [_constraint(name) for name in (INTERNAL_DOMAIN, *self._book.names)]
            builder = builder.add_extension(x509.NameConstraints(permitted, None), critical=True)
        certificate = builder.sign(key, hashes.SHA256())
        _write(self.folder / f"authority-{number}.key", _private_pem(key), 0o600)
        _write(self.folder / f"authority-{number}.pem", _pem(certificate), 0o644)
        self._book.authorities.append(number)
        self._save()
        return number

    def _builder(
        self, name: str, key: ec.EllipticCurvePrivateKey, not_after: datetime.datetime
    ) -> x509.CertificateBuilder:
        return (
            x509.CertificateBuilder()
            .subject_name(_subject(name))
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(_time(self._clock_ms() - _SKEW_MS))
            .not_valid_after(not_after)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        )

    def _after(self, days: int) -> datetime.datetime:
        if not 1 <= days <= 36_500:
            raise CertificateError("a lifetime has 1 to 36500 days")
        return _time(self._clock_ms() + days * _DAY_MS)

    def _authority(self, number: int) -> tuple[x509.Certificate, ec.EllipticCurvePrivateKey]:
        try:
            pem = (self.folder / f"authority-{number}.pem").read_bytes()
            secret = (self.folder / f"authority-{number}.key").read_bytes()
            key = serialization.load_pem_private_key(secret, None)
            certificate = x509.load_pem_x509_certificate(pem)
        except (OSError, ValueError, TypeError):
            raise CertificateError(f"authority {number} has no usable certificate and key") from None
        if not isinstance(key, ec.EllipticCurvePrivateKey):
            raise CertificateError(f"the key of authority {number} is not an ECDSA key")
        return certificate, key

    def _revocation_list(self, number: int) -> bytes:
        """Returns the revocation list of one authority, in PEM.

        It is valid as long as its authority: a list that ran out would lock everybody out.
        """
        certificate, key = self._authority(number)
        now = _time(self._clock_ms())
        builder = x509.CertificateRevocationListBuilder(
            issuer_name=certificate.subject, last_update=now, next_update=certificate.not_valid_after_utc
        ).add_extension(x509.CRLNumber(self._clock_ms()), critical=False)
        for entry in self._book.issued:
            if entry.authority == number and entry.revoked_ms:
                revoked = x509.RevokedCertificateBuilder(
                    serial_number=int(entry.serial, 16), revocation_date=_time(entry.revoked_ms)
                ).build()
                builder = builder.add_revoked_certificate(revoked)
        return builder.sign(key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)

    def _save(self) -> None:
        """Writes the book, the revocation lists and the bundle, each of them wholly or not at all."""
        numbers = self._book.authorities
        # Before the rest: what is revoked in the book is listed again by whoever saves next.
        _write(self.folder / "issued.json", msgspec.json.format(msgspec.json.encode(self._book)), 0o600)
        lists = b"".join(self._revocation_list(number) for number in numbers)
        bundle = b"".join((self.folder / f"authority-{number}.pem").read_bytes() for number in numbers)
        _write(self.folder / "revoked.pem", lists, 0o644)
        _write(self.folder / "bundle.pem", bundle, 0o644)


def _time(time_ms: int) -> datetime.datetime:
    return datetime.datetime.fromtimestamp(time_ms // 1000, datetime.UTC)


def _subject(name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])


def _general_name(text: str) -> x509.GeneralName:
    """Returns the X.509 name of a DNS name or an address; raises ``CertificateError`` for other text."""
    with contextlib.suppress(ValueError):
        return x509.IPAddress(ipaddress.ip_address(text))
    if not _DNS.fullmatch(text) or len(text) > 253:
        raise CertificateError("neither an address nor a DNS name in lower case")
    return x509.DNSName(text)


def _constraint(text: str) -> x509.GeneralName:
    """Returns the X.509 name of a DNS domain or a network that an authority is to be bound to."""
    with contextlib.suppress(ValueError):
        return x509.IPAddress(ipaddress.ip_network(text, strict=False))
    return _general_name(text)


def _key_usage(
    *, digital_signature: bool = False, key_cert_sign: bool = False, crl_sign: bool = False
) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=digital_signature,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=key_cert_sign,
        crl_sign=crl_sign,
        encipher_only=False,
        decipher_only=False,
    )


def _pem(certificate: x509.Certificate) -> bytes:
    return certificate.public_bytes(serialization.Encoding.PEM)


def _private_pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )


def _write(path: Path, data: bytes, mode: int) -> None:
    """Replaces a file by one that is synced first; its mode holds from its first byte on."""
    fresh = path.with_name(f".{path.name}.new")
    fresh.unlink(missing_ok=True)
    descriptor = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode)
    with os.fdopen(descriptor, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    fresh.replace(path)

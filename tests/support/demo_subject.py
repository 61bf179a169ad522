"""Certificates: what an *issuer* certifies to a *holder* until a time, and may take back."""

from typing import Annotated

from fastledger.model.fields import Digest32, Identity16, TimeMs
from fastledger.subjects import Body, Context, Entity, Refusal, Subject
from fastledger.subjects.identity import actor

certificates = Subject("certificate", number=250, summary="What an issuer certifies to a holder, and until when")
CERTIFICATE_EXISTS = certificates.refusal(1, "certificate-exists", "the certificate's id is taken")
NOT_THE_ISSUER = certificates.refusal(2, "not-the-issuer", "the signer issued no such certificate")


class Certificate(Entity, frozen=True):
    """A certificate as issued; ``digest`` is that of what is certified."""

    issuer: Identity16
    holder: Identity16
    digest: Digest32
    until_ms: TimeMs


CERTIFICATES = certificates.table(1, "certificate", Certificate)


class CertificateIssue(Body, frozen=True):
    """The signer certifies to ``holder``, until ``until_ms``, what has the ``digest``."""

    certificate: Annotated[bytes, CERTIFICATES.key]
    digest: Digest32
    holder: Identity16
    until_ms: TimeMs


@certificates.rule("issue")
def issue(ctx: Context, body: CertificateIssue) -> None:
    """Whoever is registered issues, under an id that nobody took before."""
    issuer, _ = actor(ctx)
    if ctx.view.load(CERTIFICATES, body.certificate) is not None:
        raise Refusal(CERTIFICATE_EXISTS)
    ctx.view.store(CERTIFICATES, body.certificate, Certificate(issuer, body.holder, body.digest, body.until_ms))


class CertificateRevoke(Body, frozen=True):
    """The certificate ends now."""

    certificate: Annotated[bytes, CERTIFICATES.key]


@certificates.rule("revoke", is_alert=True)
def revoke(ctx: Context, body: CertificateRevoke) -> None:
    """Its issuer alone takes it back."""
    issuer, _ = actor(ctx)
    certificate = ctx.view.load(CERTIFICATES, body.certificate)
    if certificate is None or certificate.issuer != issuer:
        raise Refusal(NOT_THE_ISSUER)
    ctx.view.remove(CERTIFICATES, body.certificate)

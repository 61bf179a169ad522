"""Settings of a node's parts: queues, log, transport security."""

from typing import Annotated, Literal, TypeAlias

from msgspec import Meta, Struct

from fastledger.limits import BATCH_TRANSACTIONS_MAX, BLOCK_TRANSACTIONS_MAX, PENDING_BATCHES_MAX
from fastledger.settings import DAY_MS, MIB, PATH, SECOND_MS

ClientCertificates: TypeAlias = Literal["none", "optional", "required"]


class IngestOptions(Struct, frozen=True, kw_only=True):
    """How single submissions become batches, and when the node says that it is busy.

    Each of ``batches_in_flight`` is admitted on a thread of its own.
    """

    batch_transactions: Annotated[
        int,
        Meta(
            description="A batch is closed at so many transactions.",
            ge=1,
            le=min(BATCH_TRANSACTIONS_MAX, BLOCK_TRANSACTIONS_MAX),
        ),
    ] = 2_000
    batch_age_ms: Annotated[
        int,
        Meta(description="A batch is closed at this age; 0: as soon as a worker is free.", ge=0, le=10_000),
    ] = 2
    batches_in_flight: Annotated[
        int, Meta(description="Batches between admission and their sync.", ge=1, le=PENDING_BATCHES_MAX)
    ] = 8
    pending_transactions_max: Annotated[
        int,
        Meta(description="Transactions that may wait; beyond, submitters hear busy.", ge=1, le=10_000_000),
    ] = 100_000
    pending_bytes_max: int = 256 * MIB
    retry_after_ms: int = 100


class LogOptions(Struct, frozen=True, kw_only=True):
    """JSON lines, one event each."""

    level: Annotated[
        Literal["debug", "info", "warning", "error"], Meta(description="The least level that is written.")
    ] = "info"
    path: Annotated[
        str, Meta(description="Log file, opened again on SIGHUP; empty: standard error.", extra=PATH)
    ] = ""


class TlsOptions(Struct, frozen=True, kw_only=True):
    """Transport security; files are read again on SIGHUP and when they change, connections stay."""

    certificate: Annotated[
        str,
        Meta(
            description="PEM file with the node's certificate and its chain; empty: no TLS, and no peers.",
            extra=PATH,
        ),
    ] = ""
    key: Annotated[
        str,
        Meta(
            description="PEM file with the certificate's private key, readable by its owner only.", extra=PATH
        ),
    ] = ""
    authorities: Annotated[
        str,
        Meta(
            description="PEM bundle of the authorities whose certificates the other side may show.", extra=PATH
        ),
    ] = ""
    revoked: Annotated[
        str,
        Meta(
            description="PEM file of revocation lists of those authorities; empty: none is checked.",
            extra=PATH,
        ),
    ] = ""
    reload_interval_ms: Annotated[
        int, Meta(description="How often the files are looked at for changes.", ge=100, le=DAY_MS)
    ] = 10 * SECOND_MS


class ServerTlsOptions(TlsOptions, frozen=True, kw_only=True):
    """Transport security; files are read again on SIGHUP and when they change, connections stay."""

    client_certificates: Annotated[
        ClientCertificates,
        Meta(description="Whether clients show a certificate of their own (mutual TLS)."),
    ] = "none"

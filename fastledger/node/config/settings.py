"""The node's configuration: one TOML file, every setting documented and bounded here (SPEC-NODE-101..106).

The text beside a setting is the only one there is: the template that ``fastledger node init`` writes, the table in
``docs/operating.md`` and ``fastledger config describe`` are made of it. Sizes are bytes, times milliseconds.
"""

import ipaddress
from typing import Annotated, Literal

from msgspec import Meta, Struct, field

from fastledger.limits import (
    BATCH_BYTES_MAX,
    BATCH_TRANSACTIONS_MAX,
    BLOB_BYTES_MAX,
    BLOCK_TRANSACTIONS_MAX,
    CHECKPOINT_BYTES,
    CHECKPOINT_TRANSACTIONS,
    ORPHANS_MAX,
    PENDING_BATCHES_MAX,
    UNNAMED_BYTES_MAX,
    VERIFY_THREADS_MAX,
)
from fastledger.node.config.federation import FederationConfig, federation_problems

Role = Literal["reader", "submitter", "operator"]
# Marks a setting as a path: where it is relative, it is relative to the configuration file.
PATH = {"path": True}
_KIB, _MIB, _GIB = 1 << 10, 1 << 20, 1 << 30
_SECOND, _HOUR, _DAY = 1_000, 3_600_000, 86_400_000

# A client has exactly one of these.
CREDENTIALS = ("certificate_sha256", "certificate_name", "token_sha256")

HostName = Annotated[str, Meta(pattern=r"^[A-Za-z0-9.:\[\]-]{1,253}$")]
Sha256Hex = Annotated[str, Meta(pattern="^([0-9a-f]{64})?$")]


class LedgerConfig(Struct, frozen=True, kw_only=True):
    """The ledger directory and how it is kept."""

    path: Annotated[
        str, Meta(description="Ledger directory; one node at a time opens it.", min_length=1, extra=PATH)
    ]
    password_file: Annotated[
        str,
        Meta(
            description="File whose first line opens a sealed node key; empty: the key is not sealed.",
            extra=PATH,
        ),
    ] = ""
    require_blobs: Annotated[
        bool,
        Meta(description="A record enters only when its envelope is in this node's blob store."),
    ] = True
    checkpoint_transactions: Annotated[
        int,
        Meta(
            description="Transactions between index checkpoints; more: fewer writes, a longer replay after a crash.",
            ge=1_000,
            le=10_000_000,
        ),
    ] = CHECKPOINT_TRANSACTIONS
    checkpoint_bytes: Annotated[
        int,
        Meta(description="Memory of unwritten state that starts a checkpoint.", ge=_MIB, le=16 * _GIB),
    ] = CHECKPOINT_BYTES


class TlsConfig(Struct, frozen=True, kw_only=True):
    """Transport security; files are read again on SIGHUP and when they change, connections stay."""

    certificate: Annotated[
        str,
        Meta(description="PEM file with the node's certificate and its chain; empty: no TLS.", extra=PATH),
    ] = ""
    key: Annotated[
        str,
        Meta(
            description="PEM file with the certificate's private key, readable by its owner only.", extra=PATH
        ),
    ] = ""
    client_ca: Annotated[
        str,
        Meta(description="PEM bundle of the authorities whose client certificates are trusted.", extra=PATH),
    ] = ""
    client_certificates: Annotated[
        Literal["none", "optional", "required"],
        Meta(description="Whether clients show a certificate of their own (mutual TLS)."),
    ] = "none"
    revoked: Annotated[
        str,
        Meta(
            description="PEM file of revocation lists of those authorities; empty: none is checked.",
            extra=PATH,
        ),
    ] = ""
    reload_interval_ms: Annotated[
        int, Meta(description="How often the files are looked at for changes.", ge=100, le=_DAY)
    ] = 10 * _SECOND


class AccessClient(Struct, frozen=True, kw_only=True):
    """A client that has roles of its own, known by exactly one credential."""

    name: Annotated[str, Meta(description="Name in logs and metrics.", pattern="^[A-Za-z0-9._-]{1,64}$")]
    roles: Annotated[list[Role], Meta(description="What the client may do.", min_length=1, max_length=3)]
    certificate_sha256: Annotated[
        Sha256Hex, Meta(description="SHA-256 of the client's DER certificate, 64 lower-case hex digits.")
    ] = ""
    certificate_name: Annotated[
        str, Meta(description="Subject common name of the client's certificate.", max_length=64)
    ] = ""
    token_sha256: Annotated[
        Sha256Hex, Meta(description="SHA-256 of the client's bearer token, 64 lower-case hex digits.")
    ] = ""


class AccessConfig(Struct, frozen=True, kw_only=True):
    """Who may call what: readers query, submitters submit and upload, operators run the node."""

    anonymous_roles: Annotated[
        list[Role],
        Meta(description="Roles of a client that shows no credential.", max_length=3),
    ] = field(default_factory=lambda: ["reader", "submitter"])
    client: Annotated[
        list[AccessClient], Meta(description="Clients with roles of their own.", max_length=10_000)
    ] = field(default_factory=list)


class RateConfig(Struct, frozen=True, kw_only=True):
    """Limits per client (its name, or its address where it has none); a second's worth and a burst, 0: no limit."""

    requests_per_second: Annotated[
        int, Meta(description="Requests a client may make a second, on average.", ge=0, le=10_000_000)
    ] = 0
    requests_burst: Annotated[int, Meta(description="Requests it may make at once.", ge=1, le=10_000_000)] = (
        1_000
    )
    transactions_per_second: Annotated[
        int, Meta(description="Transactions a client may submit a second, on average.", ge=0, le=100_000_000)
    ] = 0
    transactions_burst: Annotated[
        int, Meta(description="Transactions it may submit at once.", ge=1, le=100_000_000)
    ] = 50_000


class RpcConfig(Struct, frozen=True, kw_only=True):
    """The listening socket and its bounds."""

    host: Annotated[str, Meta(description="Address to listen on.", min_length=1, max_length=255)] = (
        "127.0.0.1"
    )
    port: Annotated[int, Meta(description="TCP port; 0: any free one.", ge=0, le=65_535)] = 8470
    insecure: Annotated[
        bool,
        Meta(
            description="Allows an address beyond this machine without TLS, or with anonymous readers or operators."
        ),
    ] = False
    allowed_hosts: Annotated[
        list[HostName],
        Meta(
            description="Names that requests in plain HTTP may be for (Host, Origin), beside loopback's and rpc.host.",
            max_length=100,
        ),
    ] = field(default_factory=list)
    connections_max: Annotated[
        int, Meta(description="Open connections; more are refused.", ge=1, le=1_000_000)
    ] = 4_096
    connections_per_address_max: Annotated[
        int, Meta(description="Open connections from one address.", ge=1, le=1_000_000)
    ] = 1_024
    request_timeout_ms: Annotated[
        int, Meta(description="Time for a whole request, its body included.", ge=100, le=_HOUR)
    ] = 60 * _SECOND
    header_timeout_ms: Annotated[
        int, Meta(description="Time for the TLS handshake and a request's head.", ge=100, le=_HOUR)
    ] = 10 * _SECOND
    idle_timeout_ms: Annotated[
        int, Meta(description="How long a connection without a request stays open.", ge=100, le=_DAY)
    ] = 75 * _SECOND
    json_bytes_max: Annotated[int, Meta(description="A JSON-RPC request's body.", ge=_KIB, le=64 * _MIB)] = (
        4 * _MIB
    )
    batch_bytes_max: Annotated[
        int, Meta(description="A binary batch's body.", ge=64 * _KIB, le=BATCH_BYTES_MAX)
    ] = BATCH_BYTES_MAX
    subscriptions_max: Annotated[
        int, Meta(description="Subscriptions of all WebSocket connections.", ge=0, le=1_000_000)
    ] = 10_000
    subscriptions_per_connection_max: Annotated[
        int, Meta(description="Subscriptions of one WebSocket connection.", ge=0, le=10_000)
    ] = 64
    tls: Annotated[TlsConfig, Meta(description="Transport security.")] = field(default_factory=TlsConfig)
    access: Annotated[AccessConfig, Meta(description="Roles.")] = field(default_factory=AccessConfig)
    rate: Annotated[RateConfig, Meta(description="Rate limits.")] = field(default_factory=RateConfig)


class IngestConfig(Struct, frozen=True, kw_only=True):
    """How single submissions become batches, and when the node says that it is busy."""

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


class BlobsConfig(Struct, frozen=True, kw_only=True):
    """Uploads and downloads of envelopes."""

    upload_bytes_max: Annotated[
        int, Meta(description="The largest envelope taken.", ge=_KIB, le=BLOB_BYTES_MAX)
    ] = BLOB_BYTES_MAX
    uploads_max: Annotated[int, Meta(description="Unfinished uploads at a time.", ge=1, le=100_000)] = 1_024
    upload_lifetime_ms: Annotated[
        int, Meta(description="An upload that got no byte for so long is dropped.", ge=_SECOND, le=30 * _DAY)
    ] = _HOUR
    read_ticket_lifetime_ms: Annotated[
        int, Meta(description="How long an audited read may be downloaded and resumed.", ge=_SECOND, le=_DAY)
    ] = 15 * 60 * _SECOND
    orphan_age_ms: Annotated[
        int,
        Meta(
            description="An envelope that no record has named for so long is deleted.",
            ge=60 * _SECOND,
            le=365 * _DAY,
        ),
    ] = 7 * _DAY
    unnamed_max: Annotated[
        int,
        Meta(description="Envelopes that may wait for a record that names them.", ge=1, le=ORPHANS_MAX),
    ] = ORPHANS_MAX
    unnamed_bytes_max: Annotated[
        int,
        Meta(
            description="Their bytes; beyond either bound, who stores more hears busy.",
            ge=_MIB,
            le=1024 * _GIB,
        ),
    ] = UNNAMED_BYTES_MAX


class VerifyConfig(Struct, frozen=True, kw_only=True):
    """Verification while the node runs."""

    rate_bytes_per_second: Annotated[
        int, Meta(description="Disk bytes a second that it reads; 0: as fast as it can.", ge=0, le=100 * _GIB)
    ] = 32 * _MIB


class BackupConfig(Struct, frozen=True, kw_only=True):
    """Online backups."""

    directory: Annotated[
        str, Meta(description="Where backups go; empty: each backup names its own place.", extra=PATH)
    ] = ""


class LogConfig(Struct, frozen=True, kw_only=True):
    """JSON lines, one event each."""

    level: Annotated[
        Literal["debug", "info", "warning", "error"], Meta(description="The least level that is written.")
    ] = "info"
    path: Annotated[
        str, Meta(description="Log file, opened again on SIGHUP; empty: standard error.", extra=PATH)
    ] = ""


class TuningConfig(Struct, frozen=True, kw_only=True):
    """What to change only with a measurement (`fastledger bench`)."""

    verify_threads: Annotated[
        int,
        Meta(description="Threads that verify signatures; 0: one a CPU.", ge=0, le=VERIFY_THREADS_MAX),
    ] = 0
    table_memory_bytes: Annotated[
        int, Meta(description="Memory for tables of frequent signers' keys.", ge=0, le=4 * _GIB)
    ] = 64 * _MIB
    native: Annotated[
        Literal["", "portable", "shani", "avx2", "avx512"],
        Meta(description="Forces a native backend; empty: the best that the CPU has."),
    ] = ""


class NodeConfig(Struct, frozen=True, kw_only=True):
    """Everything that a node is told."""

    ledger: Annotated[LedgerConfig, Meta(description="The ledger.")]
    rpc: Annotated[RpcConfig, Meta(description="The listener.")] = field(default_factory=RpcConfig)
    ingest: Annotated[IngestConfig, Meta(description="Ingest.")] = field(default_factory=IngestConfig)
    blobs: Annotated[BlobsConfig, Meta(description="Blobs.")] = field(default_factory=BlobsConfig)
    federation: Annotated[FederationConfig, Meta(description="The other organisations' nodes.")] = field(
        default_factory=FederationConfig
    )
    verify: Annotated[VerifyConfig, Meta(description="Verification.")] = field(default_factory=VerifyConfig)
    backup: Annotated[BackupConfig, Meta(description="Backups.")] = field(default_factory=BackupConfig)
    log: Annotated[LogConfig, Meta(description="Logs.")] = field(default_factory=LogConfig)
    tuning: Annotated[TuningConfig, Meta(description="Tuning.")] = field(default_factory=TuningConfig)


def is_loopback(host: str) -> bool:
    """Whether nobody beyond this machine can reach ``host``; a name other than localhost counts as reachable."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


def relation_problems(config: NodeConfig) -> list[tuple[str, str]]:
    """What contradicts itself or is unsafe, as (setting, problem) (SPEC-NODE-104, SPEC-NODE-105)."""
    return [
        *_transport_problems(config.rpc),
        *_client_problems(config.rpc),
        *federation_problems(config.federation),
        *_size_problems(config),
    ]


def _transport_problems(rpc: RpcConfig) -> list[tuple[str, str]]:
    tls, found = rpc.tls, []
    if bool(tls.certificate) != bool(tls.key):
        missing = "rpc.tls.key" if tls.certificate else "rpc.tls.certificate"
        found.append((missing, "certificate and key go together"))
    if tls.client_certificates != "none" and not (tls.client_ca and tls.certificate):
        found.append(("rpc.tls.client_certificates", "needs rpc.tls.client_ca, certificate and key"))
    if tls.revoked and not tls.client_ca:
        found.append(("rpc.tls.revoked", "needs rpc.tls.client_ca"))
    if is_loopback(rpc.host) or rpc.insecure:
        return found
    if not tls.certificate:
        found.append(
            (
                "rpc.host",
                "is reachable from other machines: set rpc.tls, or rpc.insecure = true to go without",
            )
        )
    return found + [
        (
            "rpc.access.anonymous_roles",
            f"gives {role} to anyone on the network: take it out, or set rpc.insecure = true",
        )
        for role in ("reader", "operator")
        if role in rpc.access.anonymous_roles
    ]


def _client_problems(rpc: RpcConfig) -> list[tuple[str, str]]:
    found: list[tuple[str, str]] = []
    seen: set[tuple[str, str]] = set()
    for number, client in enumerate(rpc.access.client):
        place = f"rpc.access.client.{number}"
        given = [name for name in CREDENTIALS if getattr(client, name)]
        if len(given) != 1:
            found.append((place, f"needs exactly one of {', '.join(CREDENTIALS)}"))
        elif given[0] != "token_sha256" and rpc.tls.client_certificates == "none":
            found.append((f"{place}.{given[0]}", "needs rpc.tls.client_certificates optional or required"))
        for name in ("name", *given):
            identity = (name, getattr(client, name))
            if identity in seen:
                found.append((f"{place}.{name}", "another client has the same"))
            seen.add(identity)
    return found


# Smaller setting, larger setting.
_ORDERED = (
    ("rpc.connections_per_address_max", "rpc.connections_max"),
    ("rpc.header_timeout_ms", "rpc.request_timeout_ms"),
    ("rpc.subscriptions_per_connection_max", "rpc.subscriptions_max"),
    ("ingest.batch_transactions", "ingest.pending_transactions_max"),
    # Else an envelope could be swept away between its upload and the record that names it.
    ("blobs.upload_lifetime_ms", "blobs.orphan_age_ms"),
)


def _size_problems(config: NodeConfig) -> list[tuple[str, str]]:
    found = [
        (smaller, f"must not exceed {larger}")
        for smaller, larger in _ORDERED
        if setting(config, smaller) > setting(config, larger)
    ]
    rate = config.rpc.rate
    if rate.transactions_per_second and rate.transactions_burst < config.ingest.batch_transactions:
        found.append(
            (
                "rpc.rate.transactions_burst",
                "must not be below ingest.batch_transactions: a full batch never passes",
            )
        )
    return found


def setting(config: Struct, name: str) -> int:
    """The integer setting under a dotted name."""
    value: object = config
    for part in name.split("."):
        value = getattr(value, part)
    if not isinstance(value, int):
        raise TypeError(f"{name} is not an integer")
    return value

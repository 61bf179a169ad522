"""Settings of the wire: the server's address and bounds, who may call what, and how often (SPEC-RPC-6, SPEC-RPC-7)."""

from typing import Annotated, Literal, TypeAlias

from msgspec import Meta, Struct, field

from fastledger.limits import BATCH_BYTES_MAX
from fastledger.settings import DAY_MS, HOUR_MS, KIB, MIB, SECOND_MS
from fastledger.storage.blobs.options import UploadLimits

CallerRole: TypeAlias = Literal["reader", "submitter", "operator"]
HostName = Annotated[str, Meta(pattern=r"^[A-Za-z0-9.:\[\]-]{1,253}$")]
Sha256Hex = Annotated[str, Meta(pattern="^([0-9a-f]{64})?$")]


class ClientRule(Struct, frozen=True, kw_only=True):
    """A client that has roles of its own, known by exactly one credential."""

    name: Annotated[str, Meta(description="Name in logs and metrics.", pattern="^[A-Za-z0-9._-]{1,64}$")]
    roles: Annotated[frozenset[CallerRole], Meta(description="What the client may do.", min_length=1, max_length=3)]
    certificate_sha256: Annotated[
        Sha256Hex, Meta(description="SHA-256 of the client's DER certificate, 64 lower-case hex digits.")
    ] = ""
    certificate_name: Annotated[
        str, Meta(description="Subject common name of the client's certificate.", max_length=64)
    ] = ""
    token_sha256: Annotated[
        Sha256Hex, Meta(description="SHA-256 of the client's bearer token, 64 lower-case hex digits.")
    ] = ""


class AccessOptions(Struct, frozen=True, kw_only=True):
    """Who may call what: readers query, submitters submit and upload, operators run the node."""

    anonymous_roles: Annotated[
        frozenset[CallerRole],
        Meta(description="Roles of a client that shows no credential.", max_length=3),
    ] = frozenset({"reader", "submitter"})
    clients: Annotated[
        tuple[ClientRule, ...], Meta(description="Clients with roles of their own.", max_length=10_000)
    ] = field(default=(), name="client")


class RateOptions(Struct, frozen=True, kw_only=True):
    """Limits per client (its name, or its address where it has none); a second's worth and a burst, 0: no limit.

    A burst is the number that may come at once. Past ``clients_max`` clients the one that was heard of longest ago is
    forgotten.
    """

    requests_per_second: Annotated[
        float, Meta(description="Requests a client may make a second, on average.", ge=0, le=10_000_000)
    ] = 0.0
    requests_burst: Annotated[int, Meta(description="Requests it may make at once.", ge=1, le=10_000_000)] = (
        1_000
    )
    transactions_per_second: Annotated[
        float, Meta(description="Transactions a client may submit a second, on average.", ge=0, le=100_000_000)
    ] = 0.0
    transactions_burst: Annotated[
        int, Meta(description="Transactions it may submit at once.", ge=1, le=100_000_000)
    ] = 50_000
    probes_per_second: float = 10.0
    probes_burst: int = 20
    clients_max: int = 10_000


class RpcOptions(Struct, frozen=True, kw_only=True):
    """The listening socket and its bounds.

    ``write_timeout_ms`` bounds how long an answer may lie unread, and ``answers_bytes_max`` how many bytes of answers
    may on all connections together. ``bodies_bytes_max`` bounds the request bodies in memory, of which one client may
    fill ``bodies_share_bytes_max``.
    """

    host: Annotated[str, Meta(description="Address to listen on.", min_length=1, max_length=255)] = (
        "127.0.0.1"
    )
    port: Annotated[int, Meta(description="TCP port; 0: any free one.", ge=0, le=65_535)] = 8470
    allowed_hosts: Annotated[
        tuple[HostName, ...],
        Meta(
            description="Names that requests in plain HTTP may be for (Host, Origin), beside loopback's and rpc.host.",
            max_length=100,
        ),
    ] = ()
    connections_max: Annotated[
        int, Meta(description="Open connections; more are refused.", ge=1, le=1_000_000)
    ] = 4_096
    connections_per_address_max: Annotated[
        int, Meta(description="Open connections from one address.", ge=1, le=1_000_000)
    ] = 1_024
    request_timeout_ms: Annotated[
        int, Meta(description="Time for a whole request, its body included.", ge=100, le=HOUR_MS)
    ] = 60 * SECOND_MS
    header_timeout_ms: Annotated[
        int, Meta(description="Time for the TLS handshake and a request's head.", ge=100, le=HOUR_MS)
    ] = 10 * SECOND_MS
    idle_timeout_ms: Annotated[
        int, Meta(description="How long a connection without a request stays open.", ge=100, le=DAY_MS)
    ] = 75 * SECOND_MS
    json_bytes_max: Annotated[int, Meta(description="A JSON-RPC request's body.", ge=KIB, le=64 * MIB)] = (
        4 * MIB
    )
    batch_bytes_max: Annotated[
        int, Meta(description="A binary batch's body.", ge=64 * KIB, le=BATCH_BYTES_MAX)
    ] = BATCH_BYTES_MAX
    subscriptions_max: Annotated[
        int, Meta(description="Subscriptions of all WebSocket connections.", ge=0, le=1_000_000)
    ] = 10_000
    subscriptions_per_connection_max: Annotated[
        int, Meta(description="Subscriptions of one WebSocket connection.", ge=0, le=10_000)
    ] = 64
    rate: Annotated[RateOptions, Meta(description="Rate limits.")] = RateOptions()
    backlog: int = 1_024
    write_timeout_ms: int = 20 * SECOND_MS
    header_bytes_max: int = 8_190
    headers_max: int = 64
    bodies_bytes_max: int = 256 * MIB
    bodies_share_bytes_max: int = 128 * MIB
    answers_bytes_max: int = 256 * MIB
    calls_per_request_max: int = 100
    heavy_calls_per_request_max: int = 4
    page_bytes_max: int = 4 * MIB
    frame_bytes_max: int = 64 * KIB
    ping_interval_ms: int = 20 * SECOND_MS
    stop_timeout_ms: int = 30 * SECOND_MS


class BlobOptions(Struct, frozen=True, kw_only=True):
    """Uploads and downloads of envelopes; ``threads`` read and write the disk."""

    ticket_lifetime_ms: Annotated[
        int,
        Meta(
            description="How long an audited read may be downloaded and resumed.", ge=SECOND_MS, le=DAY_MS
        ),
    ] = 15 * 60 * SECOND_MS
    orphan_age_ms: Annotated[
        int,
        Meta(
            description="An envelope that no record has named for so long is deleted.",
            ge=60 * SECOND_MS,
            le=365 * DAY_MS,
        ),
    ] = 7 * DAY_MS
    uploads: Annotated[UploadLimits, Meta(description="Uploads.")] = UploadLimits()
    tickets_max: int = 10_000
    threads: int = 4

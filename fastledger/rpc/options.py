"""Bounds and settings of the wire, with the values that a node has unless its configuration says otherwise."""

from dataclasses import dataclass, field

from fastledger.limits import BATCH_BYTES_MAX


@dataclass(frozen=True, slots=True, kw_only=True)
class RateOptions:
    """The bounds on what one client may send, where None sets none. A burst is the number that may come at once.

    Past ``clients_max`` clients the one that was heard of longest ago is forgotten.
    """

    requests_per_second: float | None = None
    requests_burst: int = 1_000
    probes_per_second: float = 10.0
    probes_burst: int = 20
    transactions_per_second: float | None = None
    transactions_burst: int = 20_000
    clients_max: int = 10_000


@dataclass(frozen=True, slots=True, kw_only=True)
class RpcOptions:
    """The server's address and its bounds (SPEC-RPC-7). Times are milliseconds.

    ``header_timeout_ms`` bounds the headers of a request from their first byte, and ``request_timeout_ms`` its body
    or each pause of an upload. ``write_timeout_ms`` bounds how long an answer may lie unread, and
    ``answers_bytes_max`` how many bytes of answers may on all connections together. An idle connection is closed
    after ``idle_timeout_ms``. ``allowed_hosts`` are names that requests may be for, beside loopback's and ``host``
    (SPEC-RPC-11). ``bodies_bytes_max`` bounds the request bodies in memory, of which one client may fill
    ``bodies_share_bytes_max``.
    """

    host: str = "127.0.0.1"
    allowed_hosts: tuple[str, ...] = ()
    port: int = 0
    backlog: int = 1_024
    connections_max: int = 4_096
    connections_per_address_max: int = 2_048
    header_timeout_ms: int = 10_000
    request_timeout_ms: int = 30_000
    idle_timeout_ms: int = 75_000
    write_timeout_ms: int = 20_000
    handshake_timeout_ms: int = 10_000
    header_bytes_max: int = 8_190
    headers_max: int = 64
    json_bytes_max: int = 2 * 1024 * 1024
    batch_bytes_max: int = BATCH_BYTES_MAX
    bodies_bytes_max: int = 256 * 1024 * 1024
    bodies_share_bytes_max: int = 128 * 1024 * 1024
    answers_bytes_max: int = 256 * 1024 * 1024
    calls_per_request_max: int = 100
    heavy_calls_per_request_max: int = 4
    page_bytes_max: int = 4 * 1024 * 1024
    subscriptions_max: int = 10_000
    subscriptions_per_connection_max: int = 16
    frame_bytes_max: int = 64 * 1024
    ping_interval_ms: int = 20_000
    stop_timeout_ms: int = 30_000
    rate: RateOptions = field(default_factory=RateOptions)

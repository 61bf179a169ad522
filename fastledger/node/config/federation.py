"""The ``[federation]`` table: how a node of a chain of several organisations meets the others (SPEC-FED-1..2)."""

from typing import Annotated

from msgspec import Meta, Struct, field

from fastledger.limits import VERIFY_THREADS_MAX

_PATH = {"path": True}
_KIB, _MIB = 1 << 10, 1 << 20
_SECOND, _DAY = 1_000, 86_400_000

Address = Annotated[str, Meta(pattern=r"^\S{1,255}:[0-9]{1,5}$")]
AddressOrNone = Annotated[str, Meta(pattern=r"^(\S{1,255}:[0-9]{1,5})?$")]
Organisation = Annotated[str, Meta(min_length=1, max_length=64)]


class FederationTlsConfig(Struct, frozen=True, kw_only=True):
    """Certificates between organisations; the files are read again on SIGHUP and when they change."""

    certificate: Annotated[
        str,
        Meta(
            description="PEM file with this organisation's node certificate and its chain; empty: no peers.",
            extra=_PATH,
        ),
    ] = ""
    key: Annotated[
        str,
        Meta(
            description="PEM file with the certificate's private key, readable by its owner only.",
            extra=_PATH,
        ),
    ] = ""
    authorities: Annotated[
        str,
        Meta(
            description="PEM bundle of the authorities whose node certificates are organisations' own.",
            extra=_PATH,
        ),
    ] = ""
    revoked: Annotated[
        str,
        Meta(
            description="PEM file of revocation lists of those authorities; empty: none is checked.",
            extra=_PATH,
        ),
    ] = ""
    reload_interval_ms: Annotated[
        int, Meta(description="How often the files are looked at for changes.", ge=100, le=_DAY)
    ] = 10 * _SECOND


class FederationLimits(Struct, frozen=True, kw_only=True):
    """What peers may take of this node."""

    links_max: Annotated[int, Meta(description="Open links to peers, both ways.", ge=1, le=1_024)] = 64
    links_per_organisation_max: Annotated[
        int, Meta(description="Open links to nodes of one organisation.", ge=1, le=1_024)
    ] = 4
    outbound_links: Annotated[
        int, Meta(description="Links that the node opens itself, spread over organisations.", ge=1, le=256)
    ] = 8
    dial_timeout_ms: Annotated[
        int, Meta(description="Time to reach a peer, TLS included.", ge=100, le=600 * _SECOND)
    ] = 10 * _SECOND
    send_buffer_bytes_max: Annotated[
        int,
        Meta(
            description="Bytes that may wait to be sent over a link; it ends beyond.",
            ge=64 * _KIB,
            le=1_024 * _MIB,
        ),
    ] = 64 * _MIB
    inbox_bytes_max: Annotated[
        int,
        Meta(
            description="Bytes from all peers that may wait to be worked on; no link is read beyond.",
            ge=64 * _KIB,
            le=1_024 * _MIB,
        ),
    ] = 32 * _MIB
    ban_ms: Annotated[
        int, Meta(description="How long a peer that broke the rules is kept out.", ge=_SECOND, le=365 * _DAY)
    ] = _DAY


class FederationConfig(Struct, frozen=True, kw_only=True):
    """The other organisations' nodes, and mining; for chains whose engine is proof of work."""

    listen: Annotated[
        AddressOrNone,
        Meta(
            description="Address and port for other organisations' nodes, as 0.0.0.0:8471; empty: none call."
        ),
    ] = ""
    advertise: Annotated[
        AddressOrNone,
        Meta(description="Address and port under which others reach this node; empty: they are not told."),
    ] = ""
    peers: Annotated[list[Address], Meta(description="Nodes to call, as address:port.", max_length=1_000)] = (
        field(default_factory=list)
    )
    discover: Annotated[
        bool, Meta(description="Whether nodes that peers tell of are called too, not those of `peers` alone.")
    ] = True
    organisations: Annotated[
        list[Organisation],
        Meta(
            description="Organisations that may be peers; empty: all that the authorities certified.",
            max_length=1_000,
        ),
    ] = field(default_factory=list)
    mine: Annotated[bool, Meta(description="Whether the node searches blocks from its start on.")] = False
    mine_threads: Annotated[int, Meta(description="Threads that search.", ge=1, le=VERIFY_THREADS_MAX)] = 1
    mine_percent: Annotated[
        int, Meta(description="Share of each of those threads that the search takes.", ge=1, le=100)
    ] = 100
    ready_lag_blocks: Annotated[
        int,
        Meta(
            description="The node is not ready while it is so many blocks behind its peers.",
            ge=1,
            le=1_000_000,
        ),
    ] = 16
    snapshot_blocks: Annotated[
        int,
        Meta(
            description="A snapshot for members that join is kept at every so many final blocks; 0: none. All alike.",
            ge=0,
            le=100_000_000,
        ),
    ] = 50_000
    tls: Annotated[FederationTlsConfig, Meta(description="Certificates.")] = field(
        default_factory=FederationTlsConfig
    )
    limits: Annotated[FederationLimits, Meta(description="Bounds.")] = field(default_factory=FederationLimits)


def federation_problems(federation: FederationConfig) -> list[tuple[str, str]]:
    """What contradicts itself, as (setting, problem): no byte goes between organisations without mutual TLS."""
    tls, found = federation.tls, []
    files = {"certificate": tls.certificate, "key": tls.key, "authorities": tls.authorities}
    missing = [name for name, path in files.items() if not path]
    if missing and len(missing) < len(files):
        found.append((f"federation.tls.{missing[0]}", "certificate, key and authorities go together"))
    if tls.revoked and not tls.authorities:
        found.append(("federation.tls.revoked", "needs federation.tls.authorities"))
    found += [
        (f"federation.{name}", "needs federation.tls: certificate, key and authorities")
        for name in ("listen", "peers")
        if getattr(federation, name) and missing
    ]
    if federation.advertise and not federation.listen:
        found.append(("federation.advertise", "needs federation.listen"))
    addresses = {
        "listen": [federation.listen],
        "advertise": [federation.advertise],
        "peers": federation.peers,
    }
    for name, given in addresses.items():
        if any(address and int(address.rpartition(":")[2]) > 65_535 for address in given):
            found.append((f"federation.{name}", "a port is at most 65535"))
    limits = federation.limits
    return found + [
        (f"federation.limits.{smaller}", "must not exceed federation.limits.links_max")
        for smaller in ("links_per_organisation_max", "outbound_links")
        if getattr(limits, smaller) > limits.links_max
    ]


def split_address(address: str) -> tuple[str, int]:
    """Host, without brackets, and port."""
    host, _, port = address.rpartition(":")
    return host.strip("[]"), int(port)

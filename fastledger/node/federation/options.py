"""The ``[federation]`` table: how a node of a chain of several organisations meets the others (SPEC-FED-1..2)."""

from typing import Annotated

from msgspec import Meta

from fastledger.limits import VERIFY_THREADS_MAX
from fastledger.node.options import TlsOptions
from fastledger.peers.options import AddressOrNone, PeerOptions

Organisation = Annotated[str, Meta(min_length=1, max_length=64)]


class FederationOptions(PeerOptions, frozen=True, kw_only=True):
    """The other organisations' nodes, and mining; for chains whose engine is proof of work."""

    listen: Annotated[
        AddressOrNone,
        Meta(
            description="Address and port for other organisations' nodes, as 0.0.0.0:8471; empty: none call."
        ),
    ] = ""
    organisations: Annotated[
        tuple[Organisation, ...],
        Meta(
            description="Organisations that may be peers; empty: all that the authorities certified.",
            max_length=1_000,
        ),
    ] = ()
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
    tls: Annotated[TlsOptions, Meta(description="Certificates.")] = TlsOptions()


def federation_problems(federation: FederationOptions) -> list[tuple[str, str]]:
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

"""The node's configuration: one TOML file, made of the settings of its parts (SPEC-NODE-101..106).

A part's section is the struct that the part takes, or one that adds what only a file can say. The text beside a
setting is the only one there is: the template that ``fastledger node init`` writes, the table in ``docs/operating.md``
and ``fastledger config describe`` are made of it. Sizes are bytes, times milliseconds.
"""

import ipaddress
from typing import Annotated, Literal

from msgspec import Meta, Struct

from fastledger.chain.options import LedgerOptions
from fastledger.limits import VERIFY_THREADS_MAX
from fastledger.node.federation.options import FederationOptions, federation_problems
from fastledger.node.options import IngestOptions, LogOptions, ServerTlsOptions
from fastledger.rpc.options import AccessOptions, BlobOptions, RpcOptions
from fastledger.settings import GIB, MIB, PATH

# A client has exactly one of these.
CREDENTIALS = ("certificate_sha256", "certificate_name", "token_sha256")


class LedgerConfig(LedgerOptions, frozen=True, kw_only=True):
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


class RpcConfig(RpcOptions, frozen=True, kw_only=True):
    """The listening socket and its bounds."""

    insecure: Annotated[
        bool,
        Meta(
            description="Allows an address beyond this machine without TLS, or with anonymous readers or operators."
        ),
    ] = False
    tls: Annotated[ServerTlsOptions, Meta(description="Transport security.")] = ServerTlsOptions()
    access: Annotated[AccessOptions, Meta(description="Roles.")] = AccessOptions()


class VerifyOptions(Struct, frozen=True, kw_only=True):
    """Verification while the node runs."""

    rate_bytes_per_second: Annotated[
        int, Meta(description="Disk bytes a second that it reads; 0: as fast as it can.", ge=0, le=100 * GIB)
    ] = 32 * MIB


class BackupOptions(Struct, frozen=True, kw_only=True):
    """Online backups."""

    directory: Annotated[
        str, Meta(description="Where backups go; empty: each backup names its own place.", extra=PATH)
    ] = ""


class TuningOptions(Struct, frozen=True, kw_only=True):
    """What to change only with a measurement (`fastledger bench`)."""

    verify_threads: Annotated[
        int,
        Meta(description="Threads that verify signatures; 0: one a CPU.", ge=0, le=VERIFY_THREADS_MAX),
    ] = 0
    table_memory_bytes: Annotated[
        int, Meta(description="Memory for tables of frequent signers' keys.", ge=0, le=4 * GIB)
    ] = 64 * MIB
    native: Annotated[
        Literal["", "portable", "shani", "avx2", "avx512"],
        Meta(description="Forces a native backend; empty: the best that the CPU has."),
    ] = ""


class NodeConfig(Struct, frozen=True, kw_only=True):
    """Everything that a node is told."""

    ledger: Annotated[LedgerConfig, Meta(description="The ledger.")]
    rpc: Annotated[RpcConfig, Meta(description="The listener.")] = RpcConfig()
    ingest: Annotated[IngestOptions, Meta(description="Ingest.")] = IngestOptions()
    blobs: Annotated[BlobOptions, Meta(description="Blobs.")] = BlobOptions()
    federation: Annotated[FederationOptions, Meta(description="The other organisations' nodes.")] = FederationOptions()
    verify: Annotated[VerifyOptions, Meta(description="Verification.")] = VerifyOptions()
    backup: Annotated[BackupOptions, Meta(description="Backups.")] = BackupOptions()
    log: Annotated[LogOptions, Meta(description="Logs.")] = LogOptions()
    tuning: Annotated[TuningOptions, Meta(description="Tuning.")] = TuningOptions()


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
    if tls.client_certificates != "none" and not (tls.authorities and tls.certificate):
        found.append(("rpc.tls.client_certificates", "needs rpc.tls.authorities, certificate and key"))
    if tls.revoked and not tls.authorities:
        found.append(("rpc.tls.revoked", "needs rpc.tls.authorities"))
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
    for number, client in enumerate(rpc.access.clients):
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
    ("blobs.uploads.lifetime_ms", "blobs.orphan_age_ms"),
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

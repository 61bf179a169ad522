"""The commands ``fastledger node`` and ``fastledger config``: run and ask a node, check and explain settings."""

import hashlib
import os
import secrets
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

import click
import msgspec

from fastledger.cli.options import (
    LedgerCommand,
    LedgerTarget,
    command_options,
    ledger_options,
    password_option,
    read_password,
)
from fastledger.cli.output import Exit, Output
from fastledger.cli.top import fetch, read_token, token_option
from fastledger.errors import Code, InputError, LedgerBusyError, LedgerError, NotFoundError

if TYPE_CHECKING:
    from ssl import SSLContext

    from fastledger.daemon.config.settings import NodeConfig, RpcConfig
    from fastledger.rpc.protocol import JobView

STOP_POLL_S = 0.1
STOP_TIMEOUT_S = 300

config_option = click.option(
    "--config",
    "config_path",
    type=click.Path(path_type=Path),
    default="node.toml",
    show_default=True,
    envvar="FASTLEDGER_CONFIG",
    help="The node's configuration.",
)


@click.group()
def node() -> None:
    """Make, start, stop and ask a node."""


@node.command("init")
@click.argument("folder", metavar="DIRECTORY", type=click.Path(path_type=Path))
@click.option("--tls", is_flag=True, help="Make an authority and certificates, and serve mutual TLS.")
@click.option("--host", "hosts", multiple=True, help="DNS name or address of the node, for its certificate.")
@click.option(
    "--genesis",
    "genesis_path",
    type=click.Path(path_type=Path, exists=True, dir_okay=False),
    help="Join the chain of this document instead of making one; its key is DIRECTORY/node.key.",
)
@password_option
@command_options
def init_node(
    output: Output,
    folder: Path,
    tls: bool,
    hosts: tuple[str, ...],
    genesis_path: Path | None,
    password_file: Path | None,
) -> None:
    """Make a ledger, its wallets, an operator's token and a configuration in DIRECTORY."""
    from fastledger.daemon.config.text import render_config

    if (folder / "node.toml").exists():
        raise InputError("the directory holds a node's configuration already")
    if hosts and not tls:
        raise InputError("--host names the node in its certificate: give --tls too")
    make = (
        _new_chain(folder, read_password(password_file, confirm=True))
        if genesis_path is None
        else _joined_chain(folder, genesis_path, password_file)
    )
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    # Certificates first: a wrong name must not leave half a node behind.
    rpc = _secure_rpc(folder, hosts) if tls else _local_rpc(folder)
    answer = make()
    (folder / "node.toml").write_text(render_config(_config(folder, rpc)), encoding="utf-8")
    output.answer({**answer, "config": str(folder / "node.toml")}, "A new node")


def _new_chain(folder: Path, password: str) -> Callable[[], dict[str, str]]:
    """Returns what makes the ledger of a chain of one organisation's own."""
    from fastledger.cli.ledger import make_ledger

    return lambda: make_ledger(folder / "ledger", folder / "wallets.keystore", password)


def _joined_chain(
    folder: Path, genesis_path: Path, password_file: Path | None
) -> Callable[[], dict[str, str]]:
    """Returns what makes the ledger of a chain that organisations agreed on.

    The node's key was made before, so that it stands in the genesis document.
    """
    from fastledger.chain.ledger import Ledger
    from fastledger.cli.genesis import load_genesis
    from fastledger.crypto.node_key import is_sealed, load_node_key

    document = load_genesis(genesis_path)
    path = folder / "node.key"
    if not path.exists():
        raise NotFoundError(f"{path} is missing: `fastledger node key` makes it, before the genesis document")
    password = read_password(password_file) if is_sealed(path) else None
    key = load_node_key(path, password)
    if key.public_key not in document.proposers:
        raise InputError("the node's key is not among the document's proposers", code=Code.NOT_A_PROPOSER)

    def join() -> dict[str, str]:
        Ledger.join(folder / "ledger", document, node_key=key, keep_key=True, password=password).close()
        path.unlink()  # one copy of a secret is enough
        return {"chain_id": document.chain_id.hex(), "ledger": str(folder / "ledger")}

    return join


@node.command("key")
@click.argument("folder", metavar="DIRECTORY", type=click.Path(path_type=Path))
@click.option("--sealed", is_flag=True, help="Seal it under a password; the node needs ledger.password_file.")
@password_option
@command_options
def node_key(output: Output, folder: Path, sealed: bool, password_file: Path | None) -> None:
    """Make a node's signing key in DIRECTORY and show its public half, for the genesis document."""
    from fastledger.crypto.node_key import save_node_key
    from fastledger.crypto.signing import SigningKey

    path = folder / "node.key"
    if path.exists():
        raise InputError("the directory holds a node's key already")
    password = read_password(password_file, confirm=True) if sealed else None
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    key = SigningKey.generate()
    save_node_key(path, key, password)
    output.answer({"key": str(path), "public_key": key.public_key.hex()})


def _config(folder: Path, rpc: "RpcConfig") -> "NodeConfig":
    from fastledger.daemon.config.settings import LedgerConfig, NodeConfig

    return NodeConfig(ledger=LedgerConfig(path=str((folder / "ledger").absolute())), rpc=rpc)


def _local_rpc(folder: Path) -> "RpcConfig":
    """Returns RPC settings for this machine only, where the operator shows a token; writes the token's file."""
    from fastledger.daemon.config.settings import RpcConfig
    from fastledger.rpc.options import AccessOptions, CallerRole, ClientRule

    token = secrets.token_hex(32)
    path = folder / "operator.token"
    path.unlink(missing_ok=True)  # of an initialisation that did not end
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "w") as file:
        file.write(token + "\n")
    digest = hashlib.sha256(token.encode()).hexdigest()
    operator = ClientRule(name="operator", roles=frozenset(get_args(CallerRole)), token_sha256=digest)
    return RpcConfig(access=AccessOptions(clients=(operator,)))


def _secure_rpc(folder: Path, hosts: tuple[str, ...]) -> "RpcConfig":
    """Returns RPC settings with mutual TLS under a fresh authority.

    The operator shows a certificate; nobody is anonymous.
    """
    from fastledger.daemon.config.settings import RpcConfig
    from fastledger.node.authority import CertificateAuthority
    from fastledger.node.options import ServerTlsOptions
    from fastledger.rpc.options import AccessOptions, CallerRole, ClientRule

    place = (folder / "certs").absolute()
    authority = CertificateAuthority.create(place)
    authority.issue("node", "node", names=list(dict.fromkeys(("localhost", "127.0.0.1", *hosts))))
    authority.issue("operator", "client")
    tls = ServerTlsOptions(
        certificate=str(place / "node.pem"),
        key=str(place / "node.key"),
        authorities=str(place / "bundle.pem"),
        revoked=str(place / "revoked.pem"),
        client_certificates="required",
    )
    roles = frozenset(get_args(CallerRole))
    operator = ClientRule(name="operator", roles=roles, certificate_name="operator")
    return RpcConfig(tls=tls, access=AccessOptions(anonymous_roles=frozenset(), clients=(operator,)))


@node.command()
@config_option
@command_options
def start(output: Output, config_path: Path) -> None:
    """Serve until SIGTERM; SIGHUP reloads certificates and opens the log again."""
    import importlib

    from fastledger.daemon.config.text import load_config

    loaded = load_config(config_path)
    if loaded.tuning.native:
        os.environ["FASTLEDGER_NATIVE"] = loaded.tuning.native  # read once, when the kernels are imported
    code = importlib.import_module("fastledger.daemon.process").run(loaded)
    if code:
        raise click.exceptions.Exit(code)


@node.command()
@config_option
@command_options
def repair(output: Output, config_path: Path) -> None:
    """Rebuild a damaged log of a stopped node with the blocks of its peers; the damaged one is kept."""
    from dataclasses import asdict

    from fastledger.chain.keeping.repair import repair_log
    from fastledger.chain.ledger import Ledger
    from fastledger.cli.genesis import load_genesis
    from fastledger.daemon.config.text import load_config
    from fastledger.node.federation.source import PeerSource

    loaded = load_config(config_path)
    path = Path(loaded.ledger.path)
    source = PeerSource(loaded.federation, load_genesis(path / "genesis.cbor"))
    try:
        with output.progress("repair") as bar:
            report = repair_log(
                path, source, progress=lambda stage, done, total: bar.update(done, total, stage)
            )
    finally:
        source.close()
    if report.replaced:
        Ledger.reindex(path, replica=True).close()
    output.answer(asdict(report))


@node.command("fetch-snapshot")
@config_option
@command_options
def fetch_snapshot(output: Output, config_path: Path) -> None:
    """Begin the ledger of a node that has no blocks yet with a snapshot that most proposers attest."""
    import shutil

    from fastledger.chain.ledger import Ledger
    from fastledger.chain.restore import restore_snapshot
    from fastledger.cli.genesis import load_genesis
    from fastledger.crypto.node_key import load_node_key
    from fastledger.daemon.config.text import load_config
    from fastledger.daemon.process import read_password_file
    from fastledger.node.federation.snapshots import fetch_snapshot as fetch_attested

    loaded = load_config(config_path)
    path = Path(loaded.ledger.path)
    password = read_password_file(loaded.ledger.password_file)
    document = load_genesis(path / "genesis.cbor")
    with Ledger.open(path, replica=True) as ledger:
        if ledger.height > 0:
            raise InputError("the ledger has blocks: the node synchronises the rest by itself")
    fetched, fresh = path.with_name(path.name + ".snapshot"), path.with_name(path.name + ".fresh")
    for left in (fetched, fresh):
        shutil.rmtree(left, ignore_errors=True)
    manifest = fetch_attested(loaded.federation, document, fetched)
    key = load_node_key(path / "node.key", password)
    restore_snapshot(fetched, fresh, document.encoded, node_key=key, password=password)
    # The key stands in both; whichever of the two directories is there after a power cut is whole.
    path.rename(path.with_name(path.name + ".empty"))
    fresh.rename(path)
    for left in (fetched, path.with_name(path.name + ".empty")):
        shutil.rmtree(left, ignore_errors=True)
    output.answer(
        {"height": manifest.height, "block_id": manifest.block_id.hex(), "root": manifest.root.hex()}
    )


@node.command()
@config_option
@click.option("--timeout", type=click.IntRange(0, 3_600), default=STOP_TIMEOUT_S, help="Seconds to wait.")
@command_options
def stop(output: Output, config_path: Path, timeout: int) -> None:
    """Stop the node: it answers what was submitted, writes a checkpoint and ends."""
    from fastledger.daemon.config.text import load_config
    from fastledger.daemon.pidfile import running_pid

    directory = Path(load_config(config_path).ledger.path)
    pid = running_pid(directory)
    if pid is None:
        raise NotFoundError("no node runs on that ledger")
    os.kill(pid, signal.SIGTERM)
    deadline = time.monotonic() + timeout
    while running_pid(directory) == pid:
        if time.monotonic() >= deadline:
            raise LedgerBusyError(f"process {pid} still drains", retry_after_ms=1_000)
        time.sleep(STOP_POLL_S)
    output.answer({"stopped": pid})


@node.command()
@config_option
@click.option("--cert", "certificate", default="", help="PEM file to show to the node.")
@click.option("--key", default="", help="Its private key.")
@token_option
@command_options
def status(output: Output, config_path: Path, certificate: str, key: str, token_file: Path | None) -> None:
    """Ask the node whether it is ready, and its ledger's figures; exit 1 where it is not ready."""
    from fastledger.daemon.config.text import load_config
    from fastledger.daemon.pidfile import running
    from fastledger.node.tls import client_context

    loaded = load_config(config_path)
    tls = loaded.rpc.tls
    context = None
    if tls.certificate:
        context = client_context(ca=tls.authorities or None, certificate=certificate, key=key)
    pid, url = running(Path(loaded.ledger.path)) or (None, "")
    address = url or node_address(loaded.rpc)  # the port of a configured 0 stands in the file alone
    code, _ = fetch(f"{address}/health/ready", context)
    ready = code == 200
    token = read_token(token_file)
    # A node that is far behind its peers is not ready, and tells how far.
    figures = _ask(address, "ledger.status", context, token) if ready or code == 503 else {}
    if figures.get("engine", "solo") != "solo":
        figures["federation"] = _ask(address, "federation.status", context, token)
    output.answer({"ready": ready, "address": address, "pid": pid, **figures})
    if not ready:
        raise click.exceptions.Exit(int(Exit.WRONG))


def _ask(address: str, name: str, context: "SSLContext | None", token: str) -> dict[str, Any]:
    """Calls a JSON-RPC method and returns its result; an empty one where it is refused."""
    call = msgspec.json.encode({"jsonrpc": "2.0", "id": 1, "method": name, "params": {}})
    _, body = fetch(f"{address}/v1/rpc", context, data=call, token=token)
    try:
        result = msgspec.json.decode(body, type=dict[str, Any]).get("result", {})
    except (msgspec.MsgspecError, UnicodeDecodeError):
        raise LedgerError("what answers at that address is not a node") from None
    return result if isinstance(result, dict) else {}


@node.command(cls=LedgerCommand)
@ledger_options
@command_options
def checkpoint(output: Output, target: LedgerTarget) -> None:
    """Have the node at the URL LEDGER write everything durable to its index: its next start replays nothing."""
    with target.connect() as client:
        output.answer({"height": client.checkpoint()})


@node.command(cls=LedgerCommand)
@ledger_options
@command_options
def reload(output: Output, target: LedgerTarget) -> None:
    """Have the node at the URL LEDGER read its certificates and open its log file again."""
    with target.connect() as client:
        output.answer({"reloaded": client.reload()})


@node.command(cls=LedgerCommand)
@ledger_options
@command_options
def jobs(output: Output, target: LedgerTarget) -> None:
    """List the newest jobs of the node at the URL LEDGER, the newest first."""
    with target.connect() as client:
        output.answer({"jobs": [_job(job) for job in client.jobs()]})


@node.command(cls=LedgerCommand)
@ledger_options
@click.argument("job")
@command_options
def cancel(output: Output, target: LedgerTarget, job: str) -> None:
    """Ask JOB of the node at the URL LEDGER to end early; it leaves nothing half done behind."""
    with target.connect() as client:
        output.answer(_job(client.cancel_job(job)))


def _job(job: "JobView") -> dict[str, Any]:
    """Returns a job without its report, which the command that began the job has shown."""
    progress = job.progress
    return {
        "job": job.job,
        "operation": job.operation,
        "state": job.state,
        "started_ms": job.started_ms,
        "stage": None if progress is None else progress.stage,
        "done": 0 if progress is None else progress.done,
        "total": 0 if progress is None else progress.total,
        "error": None if job.error is None else job.error.message,
    }


def node_address(rpc: "RpcConfig") -> str:
    """Returns the URL at which a node of that configuration is asked from its own machine."""
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(rpc.host, rpc.host).strip("[]")  # noqa: S104 - compared, not bound
    scheme = "https" if rpc.tls.certificate else "http"
    return f"{scheme}://{f'[{host}]' if ':' in host else host}:{rpc.port}"


@click.group()
def config() -> None:
    """Check and explain a node's configuration."""


@config.command()
@click.argument("file", type=click.Path(path_type=Path))
@command_options
def check(output: Output, file: Path) -> None:
    """Check FILE with the environment over it, and the certificates that it names."""
    from fastledger.daemon.config.text import load_config
    from fastledger.node.tls import ServerTls

    loaded = load_config(file)
    answer: dict[str, Any] = {"ok": True, "address": node_address(loaded.rpc)}
    if loaded.rpc.tls.certificate:
        answer["certificate_not_after_ms"] = ServerTls(loaded.rpc.tls).not_after_ms
    if loaded.federation.tls.certificate:
        from fastledger.node.federation.tls import PeerTls

        peers = PeerTls(loaded.federation.tls)
        answer["organisation"] = peers.organisation
        answer["federation_certificate_not_after_ms"] = peers.server.not_after_ms
    output.answer(answer)


@config.command()
@click.argument("prefix", default="")
@command_options
def describe(output: Output, prefix: str) -> None:
    """List the settings whose names begin with PREFIX, what each takes, and its default."""
    from fastledger.daemon.config.text import settings

    found = [item for item in settings() if item.name.startswith(prefix)]
    if not found:
        raise InputError("no setting's name begins so")
    if not output.as_json:
        for item in found:
            click.secho(item.name, bold=True)
            click.echo(f"  {item.text}\n  Takes {item.values}. Default: {item.default!r}.")
        return
    output.answer(
        {
            "settings": [
                {"name": item.name, "takes": item.values, "default": item.default, "text": item.text}
                for item in found
            ]
        }
    )

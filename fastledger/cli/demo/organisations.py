"""Four organisations on this machine: an authority, a genesis document, a node each as a process, and their network."""

import os
import random
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import msgspec

from fastledger.cli.demo.proxies import Wires
from fastledger.cli.demo.waits import LOOPBACK, START_S, STOP_S
from fastledger.cli.top import fetch, scrape
from fastledger.errors import LedgerError, UnreachableError

if TYPE_CHECKING:
    from fastledger.client.sync import Client
    from fastledger.model.genesis import Genesis

NAMES = ("aachen", "bergen", "cadiz", "dublin")
PROBE_NONCES = 1 << 20
SETTLED_S = 0.8


@dataclass(frozen=True, slots=True, kw_only=True)
class NetOptions:
    """The settings of a small network. ``percent`` is each miner's share of a thread.

    ``settings`` are environment variables of every node; ``miners`` names those that mine, None: all.
    """

    names: Sequence[str] = NAMES
    spacing_ms: int = 500
    finality_depth: int = 16
    window_blocks: int = 72
    percent: int = 4
    miners: Sequence[str] | None = None
    settings: dict[str, str] = field(default_factory=dict)


# Below those that systems hand out for outgoing connections.
_OWN_PORTS = (10_000, 32_000)


def free_port() -> int:
    """Returns a port that nobody listens on now, and that the system gives to nobody meanwhile.

    The ports that a system gives to whoever connects begin at 32,768 on Linux and higher elsewhere.
    """
    while True:
        port = random.SystemRandom().randrange(
            *_OWN_PORTS
        )  # whoever seeds the other one would get its ports twice
        with suppress(OSError), socket.create_server((LOOPBACK, port)):
            return port


def measured_hash_rate() -> float:
    """Measures how many hashes a second one thread of this machine makes."""
    from fastledger.crypto.work import search_nonce

    began = time.perf_counter()
    search_nonce(bytes(80), 0, 0, PROBE_NONCES)
    return PROBE_NONCES / (time.perf_counter() - began)


class Member:
    """One organisation: its node's directory, ports and process."""

    def __init__(self, name: str, folder: Path) -> None:
        self.name = name
        self.folder = folder
        self.rpc_port = free_port()
        self.peer_port = free_port()
        self.process: subprocess.Popen[bytes] | None = None
        self.environment: dict[str, str] = {}
        self.program: Sequence[str] = ("-m", "fastledger")
        self._client: Client | None = None

    @property
    def url(self) -> str:
        """The URL at which the member's node answers."""
        return f"http://{LOOPBACK}:{self.rpc_port}"

    @property
    def ledger(self) -> Path:
        """The directory of the member's ledger."""
        return self.folder / "ledger"

    @property
    def log(self) -> Path:
        """The file that the member's node logs to."""
        return self.folder / "node.log"

    @property
    def runs(self) -> bool:
        """Whether the node's process runs."""
        return self.process is not None and self.process.poll() is None

    def start(self) -> Self:
        """Starts the node's process; :meth:`connect` waits until it answers."""
        command = [
            sys.executable,
            *self.program,
            "node",
            "start",
            "--config",
            str(self.folder / "node.toml"),
        ]
        environment = {**os.environ, **self.environment}
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(  # noqa: S603 - our own interpreter and program
                command, stdout=log, stderr=log, stdin=subprocess.DEVNULL, env=environment
            )
        return self

    def connect(self, *, timeout_s: float = START_S) -> "Client":
        """Returns a client, once the node answers; ``LedgerError`` where it does not start."""
        from fastledger.client.sync import Client

        if self._client is not None:
            return self._client
        deadline = time.monotonic() + timeout_s
        while True:
            try:
                self._client = Client.connect(self.url)
            except UnreachableError:
                if not self.runs or time.monotonic() > deadline:
                    raise LedgerError(f"the node did not start: see {self.log}") from None
                time.sleep(0.02)
            else:
                return self._client

    def call(self, method: str, **params: Any) -> Any:
        """Calls a JSON-RPC method and returns its result; ``LedgerError`` where the answer is an error."""
        body = msgspec.json.encode({"jsonrpc": "2.0", "id": 1, "method": method, "params": params})
        answer = msgspec.json.decode(fetch(f"{self.url}/v1/rpc", data=body)[1])
        if "result" not in answer:
            raise LedgerError(f"{self.name} answers {method} with code {answer['error']['code']}")
        return answer["result"]

    def metric(self, name: str) -> float:
        """Returns the sum of a metric over its labels."""
        return scrape(self.url).total(name)

    def state_root(self, height: int | None = None) -> str:
        """Returns the state root (hex) after the final block at ``height``, or after the newest one."""
        given = {} if height is None else {"height": height}
        root: str = self.call("block.header", **given)["state_root"]
        return root

    def status(self) -> dict[str, Any]:
        """Returns the node's state among its peers, as ``federation.status`` answers it."""
        return self.connect().federation_status()

    def kill(self) -> None:
        """Kills the process, which is for it what a power cut would be."""
        self._forget_client()
        if self.process is not None and self.process.poll() is None:
            self.process.kill()
            self.process.wait()

    def stop(self) -> int:
        """Stops the node by SIGTERM, as an operator would; returns the exit code."""
        self._forget_client()
        if self.process is None:
            return 0
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        try:
            return self.process.wait(STOP_S)
        except subprocess.TimeoutExpired:
            raise LedgerError("the node does not stop") from None

    def _forget_client(self) -> None:
        if self._client is not None:
            self._client.close()
            self._client = None


class NetWorld:
    """The organisations and the wires between them; ``regulator`` is an authority of the chain."""

    def __init__(self, folder: Path, options: NetOptions | None = None) -> None:
        """Makes keys, certificates, genesis document and ledgers, and starts nothing."""
        from fastledger.node.authority import CertificateAuthority
        from fastledger.wallet.wallet import Wallet

        self.folder = folder
        self.options = options or NetOptions()
        self.wires = Wires()
        self.regulator = Wallet.create()
        self.members = {name: Member(name, folder / name) for name in self.options.names}
        self.authority = CertificateAuthority.create(folder / "authority")
        for name in self.members:
            self.authority.issue(name, "node")
        self.genesis = self._found()
        self.regulator.join(self.genesis.chain_id)
        for member in self.members.values():
            self._configure(member)

    def _found(self) -> "Genesis":
        """Makes the nodes' keys, then the genesis document, then a ledger for each member."""
        from fastledger.chain.ledger import Ledger
        from fastledger.clock import system_clock_ms
        from fastledger.crypto.signing import SigningKey
        from fastledger.crypto.work import target_to_bits
        from fastledger.model.genesis import Genesis, WorkParameters

        options = self.options
        keys = {name: SigningKey.generate() for name in self.members}
        miners = len(self.members if options.miners is None else options.miners)
        rate = measured_hash_rate() * options.percent / 100 * max(1, miners)
        hashes = max(2, int(rate * options.spacing_ms / 1000))
        work = WorkParameters(
            spacing_ms=options.spacing_ms,
            finality_depth=options.finality_depth,
            window_blocks=options.window_blocks,
            initial_bits=target_to_bits(min(2**256 // hashes, 0x7FFFFF << 232)),
            rewards=((0, 50),),
        )
        genesis = Genesis.create(
            created_ms=system_clock_ms(),
            proposers=tuple(key.public_key for key in keys.values()),
            authorities=(self.regulator.authority,),
            engine="pow",
            work=work,
        )
        for name, member in self.members.items():
            member.folder.mkdir(parents=True)
            Ledger.join(member.ledger, genesis, node_key=keys[name], keep_key=True).close()
        return genesis

    def _configure(self, member: Member) -> None:
        from fastledger.daemon.config.settings import LedgerConfig, NodeConfig, RpcConfig
        from fastledger.daemon.config.text import render_config
        from fastledger.node.federation.options import FederationOptions
        from fastledger.node.options import LogOptions, TlsOptions
        from fastledger.rpc.options import AccessOptions

        place = self.folder / "authority"
        peers = tuple(
            f"{LOOPBACK}:{self.wires.between(member.name, other.name, other.peer_port)}"
            for other in self.members.values()
            if other is not member
        )
        miners = self.options.miners
        config = NodeConfig(
            ledger=LedgerConfig(path=str(member.ledger), require_blobs=False),
            rpc=RpcConfig(
                host=LOOPBACK,
                port=member.rpc_port,
                access=AccessOptions(anonymous_roles=frozenset({"reader", "submitter", "operator"})),
            ),
            federation=FederationOptions(
                listen=f"{LOOPBACK}:{member.peer_port}",
                peers=peers,
                discover=False,  # a proxy that is another's would lead around a cut
                mine=miners is None or member.name in miners,
                mine_percent=self.options.percent,
                tls=TlsOptions(
                    certificate=str(place / f"{member.name}.pem"),
                    key=str(place / f"{member.name}.key"),
                    authorities=str(place / "bundle.pem"),
                    revoked=str(place / "revoked.pem"),
                    reload_interval_ms=500,
                ),
            ),
            log=LogOptions(level="info"),
        )
        (member.folder / "node.toml").write_text(render_config(config), encoding="utf-8")
        member.environment = dict(self.options.settings)

    def __getitem__(self, name: str) -> Member:
        return self.members[name]

    def start(self, *names: str) -> Self:
        """Starts the nodes of these members, or of all, and waits until they answer."""
        chosen = [self.members[name] for name in names or self.members]
        for member in chosen:
            member.start()
        for member in chosen:
            member.connect()
        return self

    def running(self) -> list[Member]:
        """Returns the members whose nodes run."""
        return [member for member in self.members.values() if member.runs]

    def wait_for(self, condition: Callable[[], bool], what: str, *, timeout_s: float = 60.0) -> None:
        """Waits until ``condition`` holds; raises ``LedgerError`` with ``what`` where it does not in time."""
        deadline = time.monotonic() + timeout_s
        while True:
            try:
                if condition():
                    return
            except UnreachableError:  # one that is just being started
                pass
            if time.monotonic() > deadline:
                raise LedgerError(f"{what} did not come within {timeout_s:.0f} s: see {self.folder}")
            time.sleep(0.05)

    def wait_until_linked(self, links_min: int, *, timeout_s: float = 60.0) -> None:
        """Waits until every running node has at least ``links_min`` peers."""
        self.wait_for(
            lambda: all(member.status()["peers"] >= links_min for member in self.running()),
            f"{links_min} peers of each",
            timeout_s=timeout_s,
        )

    def agree(self) -> bool:
        """Whether all running nodes have one tip, and have the same one a moment later.

        A node's answer is a moment old, so that one look would not do.
        """
        before = {member.status()["tip"] for member in self.running()}
        if len(before) > 1:
            return False
        time.sleep(SETTLED_S)
        return {member.status()["tip"] for member in self.running()} == before

    def end_mining(self, *, timeout_s: float = 60.0) -> None:
        """Ends the search for blocks on all running nodes, and waits until they stand at one tip.

        Two branches of equal work would stay two for ever once nobody mines (SPEC-TREE-3). So one node goes on
        alone until its branch is longer than any was. Raises ``LedgerError`` if they do not meet in ``timeout_s``.
        """
        breaker, *others = self.running()
        breaker.connect().mine(on=True)
        for member in others:
            member.connect().mine(on=False)
        highest = max(member.status()["tip_height"] for member in self.running())
        self.wait_for(
            lambda: breaker.status()["tip_height"] > highest, "a block above all tips", timeout_s=timeout_s
        )
        breaker.connect().mine(on=False)
        self.wait_for(self.agree, "one tip", timeout_s=timeout_s)

    def close(self) -> None:
        """Ends all processes and the proxies between them."""
        for member in self.members.values():
            member.kill()
        self.wires.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

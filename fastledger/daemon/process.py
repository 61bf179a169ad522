"""The node as a process: opens the ledger, serves it, and answers everything that it took before it ends.

::

    SIGTERM, SIGINT   no more connections; answers what it took; checkpoint; exit 0
    SIGHUP            certificates and the log file are opened again

``node.pid`` in the ledger directory tells which process serves it, and where (SPEC-NODE-132).
"""

import asyncio
import contextlib
import logging
import os
import signal
import time
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import msgspec
import uvloop
from msgspec import structs

from fastledger.chain.ledger import Ledger
from fastledger.clock import system_clock_ms
from fastledger.crypto.node_key import load_node_key
from fastledger.crypto.signing import SigningKey, ecdsa_backend, set_table_memory
from fastledger.daemon.config.settings import NodeConfig
from fastledger.daemon.notify import Notifier
from fastledger.daemon.pidfile import remove_pid, write_pid
from fastledger.errors import CertificateError, ConfigError, FastLedgerError
from fastledger.node.federation.blobs import EnvelopeFetcher, EnvelopeGate
from fastledger.node.federation.driver import Federation
from fastledger.node.federation.metrics import FederationMetrics
from fastledger.node.federation.snapshots import SnapshotGate, SnapshotKeeper
from fastledger.node.logs import AccessLog, Log
from fastledger.node.metrics import NodeMetrics
from fastledger.node.service import NodeService, ServiceOptions
from fastledger.node.tls import ServerTls
from fastledger.rpc.blobs import BlobService, blob_routes
from fastledger.rpc.errors import INCIDENT_LOGGER
from fastledger.rpc.federation import federation_methods
from fastledger.rpc.jobs import Jobs
from fastledger.rpc.operator import Hooks, operator_methods
from fastledger.rpc.server import Extras, RpcServer

_STATUS_INTERVAL_S = 10.0
_TIDY_INTERVAL_S = 600.0


def run(config: NodeConfig) -> int:
    """Serves until the process is told to stop; returns the exit code.

    Raises ``FastLedgerError`` where it cannot start: ``LedgerLockedError`` where another node has the directory,
    ``ConfigError`` where it cannot listen, ``CertificateError``, and whatever opening the ledger raises.
    """
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(Daemon(config).serve())


class Daemon:
    """One node from its start to its end."""

    def __init__(self, config: NodeConfig) -> None:
        """Opens the log; everything else is opened by :meth:`serve`."""
        self.config = config
        self.log = Log(config.log)
        self._access_log = AccessLog(self.log)
        self._notifier = Notifier()
        self.metrics = NodeMetrics(backend=ecdsa_backend()["kernel"] or "libsecp256k1")
        self._tls: ServerTls | None = None
        self._server: RpcServer | None = None
        self._federation: Federation | None = None
        self._stop = asyncio.Event()
        self._tasks: set[asyncio.Task[None]] = set()
        self._scraped: dict[str, int] = {}

    async def serve(self) -> int:
        """Starts the node, waits until it is told to stop, and ends it; returns the exit code."""
        self._loop = asyncio.get_running_loop()
        handler = _IncidentHandler(self.log)
        INCIDENT_LOGGER.addHandler(handler)
        try:
            async with contextlib.AsyncExitStack() as undo:
                await self._start(undo)
                await self._stop.wait()
                self._notifier.stopping()
                self.log.info("node.stopping")
            self.log.info("node.stopped")
            return 0
        except FastLedgerError as error:
            self.log.error("node.failed", error=error)
            raise
        finally:
            INCIDENT_LOGGER.removeHandler(handler)
            self.log.file.close()

    # Starting, in an order whose reverse is the order of ending.

    async def _start(self, undo: contextlib.AsyncExitStack) -> None:
        tls = self.config.rpc.tls
        if tls.certificate:
            self._tls = ServerTls(tls, on_reload=self._tls_reloaded)
            self.metrics.tls(None, self._tls.not_after_ms)
        self._handle_signals(undo)
        service = await NodeService.start(await self._open_ledger(), ServiceOptions(ingest=self.config.ingest))
        undo.push_async_callback(service.stop)
        await self._join_federation(service, undo)
        blobs = await self._open_blobs(service)
        undo.push_async_callback(blobs.close)
        jobs = Jobs()
        undo.push_async_callback(jobs.close)
        server = self._make_server(service, jobs, blobs)
        undo.push_async_callback(server.stop)
        self._server = server
        await self._listen(server)
        directory = Path(self.config.ledger.path)
        await asyncio.to_thread(write_pid, directory, server.url)
        undo.callback(remove_pid, directory)
        self.metrics.attach(service.ledger, directory)
        undo.push_async_callback(self._end_tasks)
        if self._tls is not None:
            self._begin(self._tls.watch())
        self._begin(self._report(server))
        self._begin(self._tidy(blobs))
        self._begin(self._flush_access_log())
        undo.callback(self._access_log.flush)
        self._notifier.ready()
        self.log.info("node.ready", port=server.port, pid=os.getpid(), height=service.ledger.height)

    async def _open_ledger(self) -> Ledger:
        settings = self.config.ledger
        options = structs.replace(settings, verify_threads=self.config.tuning.verify_threads)
        set_table_memory(self.config.tuning.table_memory_bytes)
        self.log.info("ledger.opening")
        self._notifier.status("opening the ledger")
        began = time.monotonic()
        ledger = await asyncio.to_thread(
            lambda: Ledger.open(
                settings.path, password=read_password_file(settings.password_file), options=options
            )
        )
        self.log.info(
            "ledger.opened",
            chain_id=ledger.chain_id,
            height=ledger.height,
            replayed_blocks=ledger.replayed_blocks,
            duration_ms=int((time.monotonic() - began) * 1000),
        )
        return ledger

    def _load_key(self, path: Path) -> SigningKey:
        return load_node_key(path, read_password_file(self.config.ledger.password_file))

    async def _join_federation(self, service: NodeService, undo: contextlib.AsyncExitStack) -> None:
        """Starts the federation with the other organisations' nodes, where the chain has any."""
        config, ledger = self.config.federation, service.ledger
        if ledger.forks is None or ledger.genesis.work is None:
            if config.listen or config.peers or config.mine:
                raise ConfigError(
                    ["federation: the ledger's chain is one organisation's, and needs no peers"]
                )
            return
        directory = Path(self.config.ledger.path)
        key_path, kept = directory / "node.key", directory / "snapshots"
        # A sealed key takes a quarter of a second to open, in which the loop serves others.
        key = await asyncio.to_thread(self._load_key, key_path) if key_path.exists() else None
        keeper = SnapshotKeeper(
            ledger,
            kept,
            config.snapshot_blocks,
            lambda error: self.log.error("federation.snapshot-failed", error=error),
        )
        try:
            federation = self._federation = await Federation.start(
                ledger.forks,
                config,
                directory,
                spacing_ms=ledger.genesis.work.spacing_ms,
                log=self.log,
                metrics=FederationMetrics(self.metrics.registry),
                blobs=EnvelopeGate(ledger),
                snapshots=SnapshotGate(kept, ledger.genesis, key),
                on_final=keeper.final_height,
            )
        except OSError as error:
            why = error.strerror or "no such address"
            raise ConfigError([f"federation.listen: cannot listen on {config.listen}: {why}"]) from None
        undo.push_async_callback(federation.stop)
        service.is_syncing = lambda: federation.is_syncing
        self.log.info("federation.joined", port=federation.port, chain_id=ledger.chain_id)

    async def _open_blobs(self, service: NodeService) -> BlobService:
        options = self.config.blobs
        uploads = await asyncio.to_thread(service.ledger.open_uploads, options.uploads)
        blobs = BlobService(service.ledger, service.ingest.submit, uploads, options)
        if self._federation is not None:
            folder = Path(self.config.ledger.path) / "tmp"
            fetcher = EnvelopeFetcher(service.ledger, self._federation, uploads, folder)
            blobs.fetch_missing = fetcher.fetch
        return blobs

    def _make_server(self, service: NodeService, jobs: Jobs, blobs: BlobService) -> RpcServer:
        hooks = Hooks(
            figures=lambda: server.figures(),
            reload=self.reload,
            stop=self._stop.set,
            backed_up=lambda: self.metrics.backup(system_clock_ms()),
            backups=self.config.backup.directory or None,
            verify_bytes_per_second=self.config.verify.rate_bytes_per_second or None,
        )
        server = RpcServer(
            service,
            self.config.rpc,
            self.config.rpc.access,
            extras=Extras(
                methods=(*operator_methods(jobs, hooks), *federation_methods(self._federation)),
                routes=blob_routes(blobs),
                render_metrics=lambda: self._render_metrics(server, blobs),
                metrics=self.metrics,
                access_log=self._access_log,
                is_revoked=None if self._tls is None else self._tls.is_revoked,
            ),
            tls=None if self._tls is None else self._tls.context,
        )
        return server

    def _render_metrics(self, server: RpcServer, blobs: BlobService) -> bytes:
        """Returns the text of ``/metrics``, reading at the scrape what is counted elsewhere; on a thread."""
        service, metrics = server.service, self.metrics
        if self._federation is not None:
            self._federation.update_metrics()
        metrics.connections.set(server.listener.open_connections)
        metrics.subscribers.set(server.streams.subscription_count)
        metrics.ingest_pending.set(service.ingest.pending_transactions)
        metrics.ingest_batches.set(service.ledger.queue_depth)
        metrics.subscriber_lag.set(service.feed.blocks_behind())
        metrics.uploads.set(blobs.unfinished)
        metrics.checkpoint_end.set(service.ledger.times.ended("checkpoint"))
        metrics.ready.set(service.state == "ready")
        metrics.halted.set(service.ledger.halted)
        metrics.log_lines_dropped.set(self.log.file.dropped)
        counted_there = server.counters
        counts = [
            ("refused", counted_there["connections_refused"], metrics.connections_rejected.labels("limit")),
            ("stream slow", counted_there["stream slow"], metrics.subscribers_dropped),
            ("busy", service.ingest.busy_answers, metrics.ingest_busy),
        ]
        for client, refused in list(server.rates.refused.items()):
            counts.append((f"limited {client}", refused, metrics.rate_limited.labels(client)))
        for name, counted, counter in counts:
            counter.inc(counted - self._scraped.get(name, 0))
            self._scraped[name] = counted
        return metrics.render()

    async def _listen(self, server: RpcServer) -> None:
        try:
            await server.start()
        except OSError as error:
            place = f"{self.config.rpc.host} port {self.config.rpc.port}"
            raise ConfigError([f"cannot listen on {place}: {error.strerror or 'no such address'}"]) from None

    # While it serves.

    def _handle_signals(self, undo: contextlib.AsyncExitStack) -> None:
        loop = asyncio.get_running_loop()
        actions: dict[int, Callable[[], Any]] = {
            signal.SIGTERM: self._stop.set,
            signal.SIGINT: self._stop.set,
            signal.SIGHUP: lambda: self._begin(self._reload_soon()),
        }
        for number, action in actions.items():
            try:
                loop.add_signal_handler(number, action)
            except (ValueError, RuntimeError):
                return  # not in the main thread: whoever embeds the node has the signals
            undo.callback(loop.remove_signal_handler, number)

    async def _reload_soon(self) -> None:
        await asyncio.to_thread(self.reload)

    def reload(self) -> list[str]:
        """Opens the log file and the certificates again; returns the names of those that could be opened."""
        self.log.reopen()
        done = ["log"]
        if self._tls is not None and self._tls.reload():
            done.append("certificates")
        if self._federation is not None and self._federation.reload():
            done.append("federation certificates")
        self.log.info("node.reloaded", count=len(done))
        return done

    def _tls_reloaded(self, error: CertificateError | None) -> None:
        if self._tls is not None:
            self.metrics.tls(error, self._tls.not_after_ms)
        if error is None:
            self.log.info("tls.reloaded")
            # In the thread that read the files.
            with contextlib.suppress(RuntimeError):  # the loop has ended
                self._loop.call_soon_threadsafe(self._recheck)
        else:
            self.log.error("tls.reload-failed", error=error)

    def _recheck(self) -> None:
        if self._server is not None:
            self._server.listener.recheck()

    def _begin(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _end_tasks(self) -> None:
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _flush_access_log(self) -> None:
        """Writes the access log's sum of each second, even where no request follows it."""
        while True:
            await asyncio.sleep(1)
            self._access_log.flush()

    async def _tidy(self, blobs: BlobService) -> None:
        """Drops uploads that ended nowhere, and envelopes that no record came to name."""
        while True:
            await asyncio.sleep(_TIDY_INTERVAL_S)
            try:
                await blobs.tidy()
            except Exception as error:  # whatever it was, the next round has to come
                self.log.error("blobs.tidy-failed", error=error)

    async def _report(self, server: RpcServer) -> None:
        """Keeps the service manager's watchdog quiet and its status line true, and tells a halt once."""
        interval_s = (self._notifier.watchdog_interval_ms / 1000) or _STATUS_INTERVAL_S
        halted = False
        while True:
            self._notifier.watchdog()
            ledger = server.service.ledger
            self._notifier.status(
                f"{server.service.state}, height {ledger.height}, {server.listener.open_connections} connections"
            )
            if ledger.halted and not halted:
                halted = True
                self.log.error("ledger.halted", height=ledger.height)
            await asyncio.sleep(interval_s)


class _IncidentHandler(logging.Handler):
    """Writes unexpected errors as lines of the node's own log: incident, type and place, never a message."""

    def __init__(self, log: Log) -> None:
        super().__init__(logging.ERROR)
        self._log = log

    def emit(self, record: logging.LogRecord) -> None:
        """Writes the line."""
        incident, detail, places = record.args if isinstance(record.args, tuple) else ("", "", "")
        line = {
            "time_ms": int(record.created * 1000),
            "level": "error",
            "event": "rpc.incident",
            "incident": incident,
            "type": detail,
            "places": places,
        }
        self._log.file.write_line(msgspec.json.encode(line).decode())


def read_password_file(path: str) -> str | None:
    """Returns the first line of the file; None where none is configured. Raises ``ConfigError``."""
    if not path:
        return None
    try:
        with Path(path).open(encoding="utf-8") as file:
            return file.readline(4096).rstrip("\r\n")
    except (OSError, UnicodeDecodeError):
        raise ConfigError(["ledger.password_file: cannot be read"]) from None

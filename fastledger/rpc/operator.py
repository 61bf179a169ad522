"""JSON-RPC methods that run the node: its state, its jobs, reload and stop."""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import PurePath
from typing import Annotated, Any

import msgspec
from msgspec import Meta

from fastledger.errors import Code, InputError
from fastledger.rpc.chain import status_view
from fastledger.rpc.http.routes import Caller
from fastledger.rpc.jobs import JobId, Jobs
from fastledger.rpc.methods import Method, RpcContext, method
from fastledger.rpc.protocol import Count, Hex16, JobsView, JobView
from fastledger.rpc.views import FilePath, Height, LedgerStatusView, Nothing, Params
from fastledger.version import VERSION

Rate = Annotated[int, Meta(ge=1)]


@dataclass(frozen=True, slots=True, kw_only=True)
class Hooks:
    """The acts of a node that only the process around the server can do.

    ``reload`` returns the names of what was read again. ``backed_up`` is called when a backup is whole. ``backups``
    is the only directory that backups and snapshots are written into; with None the operator may name any.
    ``verify_bytes_per_second`` is the rate of a verification that names none.
    """

    figures: Callable[[], dict[str, int]]
    reload: Callable[[], list[str]]
    stop: Callable[[], None]
    backed_up: Callable[[], None] = lambda: None
    backups: str | None = None
    verify_bytes_per_second: int | None = None


class NodeStatusView(msgspec.Struct, frozen=True):
    """The ledger's figures, the server's counters and the newest jobs."""

    version: str
    ledger: LedgerStatusView
    counters: dict[str, int]
    jobs: list[JobView]


class CheckpointView(msgspec.Struct, frozen=True):
    """The height up to which everything stands in the index."""

    height: Count


class WorkParams(Params, frozen=True, kw_only=True):
    """The parameters of all long work.

    ``request`` is a random id: a second call with it gets the job that the first began.
    """

    request: Hex16 | None = None


class VerifyParams(WorkParams, frozen=True):
    """A verification. ``online``: submissions go on meanwhile. ``rate_bytes_per_second`` spares the disk."""

    online: bool = True
    rate_bytes_per_second: Rate | None = None


class BackupParams(WorkParams, frozen=True):
    """A backup. ``destination`` is a path on the node's machine: new, empty, or an older backup of this chain.

    It is absolute, or a name in the backup directory where one is configured.
    """

    destination: FilePath
    include_node_key: bool = False
    include_snapshot: bool = False
    recheck: bool = False
    rate_bytes_per_second: Rate | None = None


class PruneParams(WorkParams, frozen=True):
    """Exactly one of the height below which blocks may go, and how many blocks have to stay."""

    before_height: Height | None = None
    keep_blocks: Annotated[int, Meta(ge=1)] | None = None
    rate_bytes_per_second: Rate | None = None


class SnapshotParams(WorkParams, frozen=True):
    """A snapshot. ``target`` is a path as a backup's destination; without one the node keeps the snapshot itself."""

    target: FilePath | None = None
    rate_bytes_per_second: Rate | None = None


class JobParams(Params, frozen=True):
    """The id of a job."""

    job: JobId


class ReloadView(msgspec.Struct, frozen=True):
    """The names of what was read again."""

    reloaded: list[str]


class StopView(msgspec.Struct, frozen=True):
    """Whether the node stops: it answers what it took and ends."""

    stopping: bool


def operator_methods(jobs: Jobs, hooks: Hooks) -> tuple[Method, ...]:
    """Returns the operator's methods over these jobs and hooks."""
    return (*_work_methods(jobs, hooks), *_job_methods(jobs), *_process_methods(jobs, hooks))


def _place(path: str, backups: str | None) -> str:
    """Returns where the operator may write: inside the backup directory, where one is configured."""
    if "\0" in path:
        raise InputError("the path has a zero byte", code=Code.BAD_QUERY)
    if backups is None:
        if not PurePath(path).is_absolute():
            raise InputError("the path has to be absolute", code=Code.BAD_QUERY)
        return path
    place = PurePath(backups, path)
    if ".." in place.parts or not place.is_relative_to(backups) or place == PurePath(backups):
        raise InputError("the path has to lie in the backup directory", code=Code.BAD_QUERY)
    return str(place)


def _work_methods(jobs: Jobs, hooks: Hooks) -> tuple[Method, ...]:
    def start(context: RpcContext, operation: str, request: str | None, **settings: Any) -> JobView:
        """A job that calls the ledger's method of that name."""
        ledger: Any = context.service.ledger

        def work(progress: Any, cancel: Any) -> Any:
            report = getattr(ledger, operation)(progress=progress, cancel=cancel, **settings)
            if operation == "backup":
                hooks.backed_up()
            return report

        return jobs.start(operation, work, request)

    @method("node.verify", "operator", VerifyParams, JobView)
    async def verify(context: RpcContext, caller: Caller, params: VerifyParams) -> JobView:
        """Begins a job that re-checks every byte, signature and root from disk."""
        rate = params.rate_bytes_per_second or hooks.verify_bytes_per_second
        return start(context, "verify", params.request, online=params.online, rate_bytes_per_second=rate)

    @method("node.backup", "operator", BackupParams, JobView)
    async def backup(context: RpcContext, caller: Caller, params: BackupParams) -> JobView:
        """Begins a job that writes a consistent backup while the node serves; into an older one, what is new."""
        return start(
            context,
            "backup",
            params.request,
            destination=_place(params.destination, hooks.backups),
            include_node_key=params.include_node_key,
            include_snapshot=params.include_snapshot,
            recheck=params.recheck,
            rate_bytes_per_second=params.rate_bytes_per_second,
        )

    @method("node.prune", "operator", PruneParams, JobView)
    async def prune(context: RpcContext, caller: Caller, params: PruneParams) -> JobView:
        """Begins a job that gives back the segments of old blocks."""
        if (params.before_height is None) == (params.keep_blocks is None):
            raise InputError("say before_height or keep_blocks", code=Code.BAD_QUERY)
        return start(
            context,
            "prune",
            params.request,
            before_height=params.before_height,
            keep_blocks=params.keep_blocks,
            rate_bytes_per_second=params.rate_bytes_per_second,
        )

    @method("node.snapshot", "operator", SnapshotParams, JobView)
    async def snapshot(context: RpcContext, caller: Caller, params: SnapshotParams) -> JobView:
        """Begins a job that writes the whole state at a height."""
        target = None if params.target is None else _place(params.target, hooks.backups)
        rate = params.rate_bytes_per_second
        return start(context, "snapshot", params.request, target=target, rate_bytes_per_second=rate)

    return (verify, backup, prune, snapshot)


def _job_methods(jobs: Jobs) -> tuple[Method, ...]:
    @method("node.jobs", "operator", Nothing, JobsView)
    async def all_jobs(context: RpcContext, caller: Caller, params: Nothing) -> JobsView:
        """The newest jobs, the newest first."""
        return JobsView(jobs.all())

    @method("node.job", "operator", JobParams, JobView)
    async def job(context: RpcContext, caller: Caller, params: JobParams) -> JobView:
        """A job's state, progress and result."""
        return jobs.get(params.job).view()

    @method("node.cancel", "operator", JobParams, JobView)
    async def cancel(context: RpcContext, caller: Caller, params: JobParams) -> JobView:
        """Asks a job to end early; it leaves nothing half done behind."""
        return jobs.cancel(params.job)

    return (all_jobs, job, cancel)


def _process_methods(jobs: Jobs, hooks: Hooks) -> tuple[Method, ...]:
    @method("node.status", "operator", Nothing, NodeStatusView)
    async def status(context: RpcContext, caller: Caller, params: Nothing) -> NodeStatusView:
        """The ledger's figures, the server's counters and the newest jobs."""
        figures = await context.service.read(lambda ledger: ledger.status())
        return NodeStatusView(VERSION, status_view(context, figures), hooks.figures(), jobs.all())

    @method("node.checkpoint", "operator", Nothing, CheckpointView)
    async def checkpoint(context: RpcContext, caller: Caller, params: Nothing) -> CheckpointView:
        """Writes everything durable to the index, so that the next start replays nothing."""
        return CheckpointView(await asyncio.to_thread(context.service.ledger.checkpoint))

    @method("node.reload", "operator", Nothing, ReloadView)
    async def reload(context: RpcContext, caller: Caller, params: Nothing) -> ReloadView:
        """Reads certificates again and opens the log file again, as on SIGHUP."""
        return ReloadView(await asyncio.to_thread(hooks.reload))

    @method("node.stop", "operator", Nothing, StopView)
    async def stop(context: RpcContext, caller: Caller, params: Nothing) -> StopView:
        """Ends the node as on SIGTERM: what was taken is answered first."""
        # After this answer has left.
        asyncio.get_running_loop().call_later(0.05, hooks.stop)
        return StopView(stopping=True)

    return (status, checkpoint, reload, stop)

"""What an operator has a node do: long work as jobs that are waited for, and the process itself (SPEC-CLI-9)."""

import asyncio
import secrets
from contextlib import suppress
from pathlib import PurePath
from typing import Any, TypeVar, get_type_hints

import msgspec

from fastledger.client.faults import error_of
from fastledger.client.federation import FederationCalls
from fastledger.client.reading import INFO_BYTES_MAX
from fastledger.client.views import bad_answer
from fastledger.errors import FastLedgerError, LedgerError, NotFoundError, UnreachableError
from fastledger.model.reports import BackupReport, PruneReport, SnapshotReport, VerifyReport
from fastledger.pace import Progress
from fastledger.rpc.protocol import JobsView, JobView

T = TypeVar("T")
JOB_WAIT_S, JOB_WAIT_S_MAX = 0.02, 1.0
REQUEST_BYTES = 16
# How long an interrupted wait goes on for each of the two requests that call its job off.
CALL_OFF_S = 3.0


class _Checkpoint(msgspec.Struct):
    height: int


class _Reloaded(msgspec.Struct):
    reloaded: list[str]


class _Stopping(msgspec.Struct):
    stopping: bool


class NodeOperator(FederationCalls):
    """The operator's methods; all take that role."""

    async def run_job(
        self, method: str, *, progress: Progress | None = None, **params: Any
    ) -> dict[str, Any]:
        """Begins a job with the operator's method ``method``, and returns its report once it has ended.

        The job is begun once, however often the answer to that is lost: it is asked for under a random id. While
        another job runs, this waits as for any busy node. ``progress`` is called with (stage, done, total). Cancelling
        the task that waits calls the job off, and so does ``progress`` by raising. Raises the job's error, and
        ``LedgerError`` where the node ended before its job did.
        """
        params["request"] = secrets.token_hex(REQUEST_BYTES)
        given = {name: value for name, value in params.items() if value is not None}
        starting = asyncio.ensure_future(self._call(method, JobView, INFO_BYTES_MAX, **given))
        try:
            job = await self._ended(await asyncio.shield(starting), progress)
        except UnreachableError:
            raise  # nobody is there to be asked
        except BaseException:
            await self._call_off(starting)
            raise
        if job.error is not None:
            raise error_of(job.error)
        return job.result or {}

    async def _ended(self, job: JobView, progress: Progress | None) -> JobView:
        begun, wait_s = job, JOB_WAIT_S
        while job.state == "running":
            await asyncio.sleep(wait_s)
            wait_s = min(2 * wait_s, JOB_WAIT_S_MAX)
            try:
                job = await self.job(begun.job)
            except NotFoundError:
                raise _given_up() from None
            # A node that was started anew counts its jobs from the beginning.
            if (job.operation, job.started_ms) != (begun.operation, begun.started_ms):
                raise _given_up()
            if progress is not None and job.progress is not None:
                progress(job.progress.stage, job.progress.done, job.progress.total)
        return job

    async def _call_off(self, starting: "asyncio.Future[JobView]") -> None:
        """Cancels the job that was begun, or is being begun: its request may have reached the node."""
        await asyncio.wait({starting}, timeout=CALL_OFF_S)
        if not starting.done():  # it still waits for another job to end
            starting.cancel()
            return
        if starting.cancelled() or starting.exception() is not None:
            return
        with suppress(FastLedgerError, TimeoutError):  # the job has ended, or the node is away
            async with asyncio.timeout(CALL_OFF_S):
                await self.cancel_job(starting.result().job)

    async def verify(
        self,
        progress: Progress | None = None,
        *,
        online: bool = True,
        rate_bytes_per_second: int | None = None,
    ) -> VerifyReport:
        """Has the node re-check every byte, signature and root from its disk, and returns the findings.

        With ``online`` submissions go on meanwhile, and what is durable at the beginning is checked; without, they wait
        until it is over, and the end of the log is checked as well. Without a rate the node's configured one holds.
        ``progress`` is called with (stage, done, total). Cancelling the task that waits calls the job off. Raises what
        :meth:`run_job` does.
        """
        report = await self.run_job(
            "node.verify", progress=progress, online=online, rate_bytes_per_second=rate_bytes_per_second
        )
        return report_as(VerifyReport, report)

    async def backup(
        self,
        destination: str | PurePath,
        *,
        include_node_key: bool = False,
        include_snapshot: bool = False,
        recheck: bool = False,
        progress: Progress | None = None,
        rate_bytes_per_second: int | None = None,
    ) -> BackupReport:
        """Has the node write a consistent backup on its own machine while submissions go on.

        ``destination`` is an absolute path there, or a name in the backup directory where one is configured. Into an
        older backup it writes what is new. ``include_snapshot`` makes restoring faster and the backup larger;
        ``recheck`` reads again what the backup has already. Envelopes that were erased leave the backup with this run.
        ``progress`` is called with (stage, done, total). Cancelling the task that waits calls the job off. Raises what
        :meth:`run_job` does.
        """
        report = await self.run_job(
            "node.backup",
            progress=progress,
            destination=str(destination),
            include_node_key=include_node_key,
            include_snapshot=include_snapshot,
            recheck=recheck,
            rate_bytes_per_second=rate_bytes_per_second,
        )
        return report_as(BackupReport, report)

    async def prune(
        self,
        *,
        before_height: int | None = None,
        keep_blocks: int | None = None,
        progress: Progress | None = None,
        rate_bytes_per_second: int | None = None,
    ) -> PruneReport:
        """Has the node give back whole segments below a height, or all but the newest blocks, behind a kept snapshot.

        One of ``before_height`` and ``keep_blocks`` is given; ``InputError`` with ``BAD_QUERY`` otherwise. State,
        queries' terms, verdicts on retries and envelopes stay; the pruned blocks and their transactions do not, there
        (SPEC-PRUNE-1..5).
        ``progress`` is called with (stage, done, total). Cancelling the task that waits calls the job off. Raises what
        :meth:`run_job` does.
        """
        report = await self.run_job(
            "node.prune",
            progress=progress,
            before_height=before_height,
            keep_blocks=keep_blocks,
            rate_bytes_per_second=rate_bytes_per_second,
        )
        return report_as(PruneReport, report)

    async def snapshot(
        self,
        target: str | PurePath | None = None,
        *,
        progress: Progress | None = None,
        rate_bytes_per_second: int | None = None,
    ) -> SnapshotReport:
        """Has the node write its whole state at a height on its own machine, while submissions go on.

        ``target`` is a new or empty directory, named as for :meth:`backup`; None has the node keep the snapshot itself.
        Returns the height, what the snapshot commits to and its size. Raises ``InputError`` where the directory is not
        empty.
        ``progress`` is called with (stage, done, total). Cancelling the task that waits calls the job off. Raises what
        :meth:`run_job` does.
        """
        report = await self.run_job(
            "node.snapshot",
            progress=progress,
            target=None if target is None else str(target),
            rate_bytes_per_second=rate_bytes_per_second,
        )
        return report_as(SnapshotReport, report)

    # Jobs.

    async def jobs(self) -> list[JobView]:
        """Returns the node's newest jobs, the newest first."""
        return (await self._call("node.jobs", JobsView, INFO_BYTES_MAX)).jobs

    async def job(self, job: str) -> JobView:
        """Returns a job's state, progress and report; raises ``NotFoundError`` where the node knows no such job."""
        return await self._call("node.job", JobView, INFO_BYTES_MAX, job=job)

    async def cancel_job(self, job: str) -> JobView:
        """Asks a job to end early, and returns its state.

        Raises ``NotFoundError`` where the node knows no such job, and ``InputError`` where it has ended.
        """
        return await self._call("node.cancel", JobView, INFO_BYTES_MAX, job=job)

    # The process.

    async def node_status(self) -> dict[str, Any]:
        """Returns the ledger's figures, the server's counters and the newest jobs."""
        return await self._call("node.status", dict[str, Any], INFO_BYTES_MAX)

    async def checkpoint(self) -> int:
        """Has everything durable written to the index, so that the next start replays nothing; returns the height."""
        return (await self._call("node.checkpoint", _Checkpoint, INFO_BYTES_MAX)).height

    async def reload(self) -> list[str]:
        """Has the node read its certificates and open its log file again; returns the names of what it did so with."""
        return (await self._call("node.reload", _Reloaded, INFO_BYTES_MAX)).reloaded

    async def stop(self) -> None:
        """Ends the node, not the client, as SIGTERM does: what it took is answered first.

        It is asked once, since a stopped node does not answer.
        """
        await self._calls.call("node.stop", {}, _Stopping, answer_bytes_max=INFO_BYTES_MAX)


def _given_up() -> LedgerError:
    return LedgerError("the node was started anew before its job had ended")


def report_as(kind: type[T], report: dict[str, Any]) -> T:
    """A job's report as the ledger returns it: bytes travel as hexadecimal."""
    try:
        ready = {
            name: bytes.fromhex(report[name]) if hint is bytes else report[name]
            for name, hint in get_type_hints(kind).items()
            if name in report
        }
        return msgspec.convert(ready, kind)
    except (msgspec.ValidationError, TypeError, ValueError):
        raise bad_answer("report") from None

"""Jobs: long work that an operator starts, one at a time, with progress and a cancellation.

A job runs on a thread beside the node's work. It is told to stop through an event that it looks at itself, so that
it always leaves whole files behind.
"""

import asyncio
import threading
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import asdict, is_dataclass
from typing import Annotated, Any, TypeAlias

import msgspec

from fastledger.clock import system_clock_ms
from fastledger.errors import InputError, LedgerBusyError, NotFoundError
from fastledger.pace import Progress
from fastledger.rpc.errors import rpc_error
from fastledger.rpc.protocol import JobState, JobView, ProgressView, RpcError

JOBS_KEPT = 32
_BUSY_RETRY_MS = 5_000
JobWork: TypeAlias = Callable[[Progress, threading.Event], Any]
"""What a job does on its thread: reports (stage, done, total), ends early where the event is set, returns a report."""


JobId = Annotated[str, msgspec.Meta(max_length=32)]


class Job:
    """One piece of long work: its state, its progress and the event that cancels it."""

    def __init__(self, name: str, operation: str, started_ms: int, request: str | None = None) -> None:
        self.name = name
        self.operation = operation
        self.request = request
        self.started_ms = started_ms
        self.ended_ms: int | None = None
        self.state: JobState = "running"
        self.progress: ProgressView | None = None
        self.result: dict[str, Any] | None = None
        self.error: RpcError | None = None
        self.cancel = threading.Event()

    def report(self, stage: str, done: int, total: int) -> None:
        """Notes the progress of a stage; the work calls it, on its own thread.

        Readers see it whole or not at all.
        """
        self.progress = ProgressView(stage, done, total)

    def view(self) -> JobView:
        """Returns the job in its wire form."""
        return JobView(
            self.name,
            self.operation,
            self.state,
            self.started_ms,
            self.ended_ms,
            self.progress,
            self.result,
            self.error,
        )


class Jobs:
    """The jobs of a node. They are used on the node's event loop."""

    def __init__(self, clock_ms: Callable[[], int] = system_clock_ms) -> None:
        """Takes the clock that tells when jobs begin and end."""
        self._clock_ms = clock_ms
        self._jobs: OrderedDict[str, Job] = OrderedDict()
        self._task: asyncio.Task[None] | None = None
        self._running: Job | None = None

    def start(self, operation: str, work: JobWork, request: str | None = None) -> JobView:
        """Begins a job, or returns the one that the same ``request`` began.

        ``LedgerBusyError`` while another runs.
        """
        for known in self._jobs.values():
            if request is not None and (known.operation, known.request) == (operation, request):
                return known.view()
        if self._running is not None:
            raise LedgerBusyError(
                f"job {self._running.name} ({self._running.operation}) is running",
                retry_after_ms=_BUSY_RETRY_MS,
            )
        number = 1 + int(next(reversed(self._jobs), "j0")[1:])
        job = self._running = Job(f"j{number}", operation, self._clock_ms(), request)
        self._jobs[job.name] = job
        while len(self._jobs) > JOBS_KEPT:
            self._jobs.popitem(last=False)
        self._task = asyncio.get_running_loop().create_task(self._run(job, work))
        return job.view()

    async def _run(self, job: Job, work: JobWork) -> None:
        try:
            job.result = report_of(await asyncio.to_thread(work, job.report, job.cancel))
            job.state = "done"
        except Exception as error:
            job.state = "cancelled" if job.cancel.is_set() else "failed"
            job.error = rpc_error(error)
        finally:
            job.ended_ms = self._clock_ms()
            self._running = None

    def get(self, name: str) -> Job:
        """Returns a job by its id; raises ``NotFoundError``."""
        job = self._jobs.get(name)
        if job is None:
            raise NotFoundError("there is no such job")
        return job

    def all(self) -> list[JobView]:
        """Returns the newest jobs, newest first."""
        return [job.view() for job in reversed(self._jobs.values())]

    def cancel(self, name: str) -> JobView:
        """Asks a job to end; raises ``NotFoundError``, and ``InputError`` where it has ended."""
        job = self.get(name)
        if job.state != "running":
            raise InputError(f"the job is {job.state}")
        job.cancel.set()
        return job.view()

    async def close(self) -> None:
        """Asks the running job to end and waits for it."""
        if self._running is not None and self._task is not None:
            self._running.cancel.set()
            await asyncio.wait([self._task])


def report_of(value: Any) -> dict[str, Any]:
    """Returns a job's result as plain JSON: dataclasses and structs as objects, bytes as hexadecimal."""
    if value is None:
        return {}
    if is_dataclass(value) and not isinstance(value, type):
        value = asdict(value)
    elif isinstance(value, msgspec.Struct):
        value = msgspec.structs.asdict(value)
    plain = _plain(value)
    return dict(plain) if isinstance(plain, dict) else {"value": plain}


def _plain(value: Any) -> Any:
    if isinstance(value, bytes):
        return value.hex()
    if isinstance(value, Mapping):
        return {str(name): _plain(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return value if isinstance(value, str | int | float | bool | None) else str(value)

"""Logs as JSON lines: ids, lengths, codes and durations, and nothing that came in a payload (SPEC-NODE-121..124).

A line has ``time_ms``, ``level``, ``event`` and fields of the list below. A field that is not on the list, or whose
value is of another form than its field's, is left out and counted in ``fields_dropped``: whoever adds a
field decides here, once, that it can hold nothing clinical.
"""

import contextvars
import os
import re
import secrets
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, TextIO, cast

import msgspec
import structlog

from fastledger.clock import system_clock_ms
from fastledger.errors import Code, FastLedgerError
from fastledger.node.options import LogOptions

_LEVELS = {"debug": 10, "info": 20, "warning": 30, "error": 40}
LINE_FIELDS_MAX = 32

_EVENT = re.compile(r"[a-z]+(?:[.-][a-z]+){0,5}")
_WORD = re.compile(r"[A-Za-z][A-Za-z0-9._-]{0,63}")
_HEX = re.compile(r"[0-9a-f]+")
_ADDRESS = re.compile(r"[0-9a-f.:]{2,45}|unix")
_INTEGERS = (
    *("height", "index", "count", "transactions", "blocks", "bytes", "length", "offset", "limit", "line"),
    *("duration_us", "duration_ms", "age_ms", "retry_after_ms", "not_after_ms", "interval_ms", "lag"),
    *("depth", "peers", "link", "rule_set"),
    *("queue_depth", "connections", "subscribers", "subscription", "status", "code", "port", "pid", "signal"),
    *(
        "requests",
        "errors",
        "rejected",
        "limited",
        "sampled_one_in",
        "replayed_blocks",
        "generation",
        "cursor",
    ),
)
# Words that the program itself chose. Who calls appears by the name that the operator gave, never by a claim.
_VOCABULARY = frozenset(
    {
        *("component", "method", "client", "role", "slug", "stage", "backend", "kind", "state", "version"),
        "organisation",
    }
)
# Bytes of each id; a text or a payload is seldom that long, and never hexadecimal.
_IDS = {
    **dict.fromkeys(("txid", "block_id", "sha256"), 32),
    **dict.fromkeys(("upload_id", "subscription_id"), 16),
    **dict.fromkeys(("chain_id", "request_id"), 8),
}

_request_id: contextvars.ContextVar[str] = contextvars.ContextVar("request_id", default="")


def new_request_id() -> str:
    """Returns a fresh random id of 16 hex digits."""
    return secrets.token_hex(8)


@contextmanager
def request_context(request_id: str) -> Iterator[str]:
    """Puts ``request_id`` into every line written inside the block and yields it.

    One that has not the form of an id is replaced by a fresh one.
    """
    given = request_id if _may_stand("request_id", request_id) else new_request_id()
    token = _request_id.set(given)
    try:
        yield given
    finally:
        _request_id.reset(token)


def _may_stand(name: str, value: Any) -> bool:
    """Whether a field may be written: its name is known and its value has the name's form."""
    if name in _INTEGERS:
        return type(value) is int
    if not isinstance(value, str):
        return False
    if name == "slug":
        return value in Code.slugs()
    if name in _VOCABULARY:
        return _WORD.fullmatch(value) is not None
    if name in _IDS:
        return len(value) == 2 * _IDS[name] and _HEX.fullmatch(value) is not None
    if name == "address":
        return _ADDRESS.fullmatch(value) is not None
    return name == "error_type" and value.isidentifier() and len(value) <= 64


def allowed_fields(fields: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the fields that may be written, and in ``fields_dropped`` how many may not."""
    kept: dict[str, Any] = {}
    for name, value in fields.items():
        plain = value.hex() if isinstance(value, bytes) and name in _IDS else value
        if len(kept) < LINE_FIELDS_MAX and _may_stand(name, plain):
            kept[name] = plain
    if len(kept) < len(fields):
        kept["fields_dropped"] = len(fields) - len(kept)
    return kept


class LogFile:
    """The destination of lines: a file that can be opened again under its name, or standard error."""

    def __init__(self, path: str) -> None:
        """Opens ``path`` for appending; an empty path stands for standard error."""
        self._path = path
        self.dropped = 0
        self._lock = threading.Lock()
        self._file: TextIO = self._open()

    def _open(self) -> TextIO:
        if not self._path:
            return sys.stderr
        descriptor = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o640)
        return os.fdopen(descriptor, "a", encoding="utf-8", buffering=1)

    def reopen(self) -> None:
        """Opens the file's name again, as after a rotation.

        Raises ``OSError`` where that fails; the old file then stays in use.
        """
        if not self._path:
            return
        fresh = self._open()
        with self._lock:
            self._file, old = fresh, self._file
        old.close()

    def write_line(self, line: str) -> None:
        """Writes one whole line. Where the disk is full the line is dropped: that must not stop the node."""
        with self._lock:
            try:
                self._file.write(line + "\n")
                self._file.flush()
            except (OSError, ValueError):
                self.dropped += 1

    def close(self) -> None:
        """Closes the file, but never standard error."""
        if self._path:
            with self._lock:
                self._file.close()


class _Writer:
    """The logger that structlog wraps: every level writes the rendered line."""

    def __init__(self, file: LogFile) -> None:
        self._file = file

    def msg(self, line: str) -> None:
        self._file.write_line(line)

    debug = info = warning = error = msg


class Log:
    """The node's log. ``event`` is a fixed word of the program; never format anything into it."""

    def __init__(self, config: LogOptions, *, clock_ms: Callable[[], int] = system_clock_ms) -> None:
        """Opens the log's file; raises ``OSError`` where that fails."""
        self.file = LogFile(config.path)
        self._clock_ms = clock_ms
        self._logger = structlog.wrap_logger(
            _Writer(self.file),
            processors=[self._compose, self._render],
            wrapper_class=structlog.make_filtering_bound_logger(_LEVELS[config.level]),
            cache_logger_on_first_use=True,
        )

    def _compose(self, _logger: Any, level: str, event: structlog.typing.EventDict) -> dict[str, Any]:
        name = event.pop("event", "")
        error = event.pop("error", None)
        line: dict[str, Any] = {
            "time_ms": self._clock_ms(),
            "level": level,
            "event": name if isinstance(name, str) and _EVENT.fullmatch(name) else "unnamed",
        }
        if request_id := _request_id.get():
            line["request_id"] = request_id
        if isinstance(error, FastLedgerError):
            line["slug"] = error.code.slug
        if isinstance(error, BaseException):
            # Not its message: one of another library could quote what it was given.
            line["error_type"] = type(error).__name__
        return line | allowed_fields(event)

    @staticmethod
    def _render(_logger: Any, _level: str, event: structlog.typing.EventDict) -> str:
        return msgspec.json.encode(event).decode()

    def debug(self, event: str, /, **fields: Any) -> None:
        """Writes a line for developers."""
        cast(Any, self._logger).debug(event, **fields)

    def info(self, event: str, /, **fields: Any) -> None:
        """Writes a line that an operator may want to find later."""
        cast(Any, self._logger).info(event, **fields)

    def warning(self, event: str, /, **fields: Any) -> None:
        """Writes a line that an operator should look at this week."""
        cast(Any, self._logger).warning(event, **fields)

    def error(self, event: str, /, error: BaseException | None = None, **fields: Any) -> None:
        """Writes a line that an operator should look at now; ``error`` gives its code and type."""
        cast(Any, self._logger).error(event, error=error, **fields)

    def reopen(self) -> None:
        """Opens the file again, as on SIGHUP after a rotation; where that fails, logs it in the old file."""
        try:
            self.file.reopen()
        except OSError as error:
            self.error("log.reopen-failed", error=error)


class AccessLog:
    """Writes requests to the log: the first few of each second one by one, the rest as a sum (SPEC-NODE-124)."""

    def __init__(
        self, log: Log, *, lines_per_second_max: int = 20, clock_ms: Callable[[], int] = system_clock_ms
    ) -> None:
        """Takes the bound: ``lines_per_second_max`` lines a second, and one more for the rest."""
        self._log = log
        self._max = lines_per_second_max
        self._clock_ms = clock_ms
        self._lock = threading.Lock()
        self._second = -1
        self._written = 0
        self._rest: dict[str, int] = {}

    def request(
        self, *, method: str, status: int, code: Code, duration_us: int, client: str = "", length: int = 0
    ) -> None:
        """Logs one answered request; ``method`` is one that the node has, never what a client sent."""
        with self._lock:
            rest = self._turn(self._clock_ms() // 1000)
            alone = self._written < self._max
            self._written += alone
            if not alone:
                self._rest = self._rest or {"requests": 0, "errors": 0, "bytes": 0, "duration_us": 0}
                self._rest["requests"] += 1
                self._rest["errors"] += code != Code.OK
                self._rest["bytes"] += length
                self._rest["duration_us"] += duration_us
        if rest:
            self._log.info("access.rest", **rest)
        if alone:
            named = {"client": client} if client else {}
            self._log.info(
                "access",
                method=method,
                status=status,
                slug=code.slug,
                duration_us=duration_us,
                length=length,
                **named,
            )

    def flush(self) -> None:
        """Writes the sum of the requests that have no line yet; called once a second and at the end."""
        with self._lock:
            rest = self._turn(-1)
        if rest:
            self._log.info("access.rest", **rest)

    def _turn(self, second: int) -> dict[str, int]:
        """Returns the sum of the second that ended where ``second`` is another one, else nothing."""
        if second == self._second:
            return {}
        rest, self._rest, self._second, self._written = self._rest, {}, second, 0
        return rest

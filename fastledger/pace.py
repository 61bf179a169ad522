"""The pace of long operations beside a busy ledger: their rate, their progress, and their cancellation."""

import threading
import time
from collections.abc import Callable
from typing import TypeAlias

from fastledger.errors import Code, InputError, LedgerClosedError, OperationCancelledError

Progress: TypeAlias = Callable[[str, int, int], None]
_WAIT_SECONDS_MAX = 0.1
_BURST_SECONDS = 1.0


class Pace:
    """The limits of one operation; for one thread.

    ``cancel`` ends it with ``OperationCancelledError``, ``closing`` (the ledger's) with ``LedgerClosedError``.
    ``progress`` is called with (stage, done, total).
    """

    def __init__(
        self,
        *,
        progress: Progress | None = None,
        cancel: threading.Event | None = None,
        closing: threading.Event | None = None,
        rate_bytes_per_second: int | None = None,
    ) -> None:
        if rate_bytes_per_second is not None and rate_bytes_per_second < 1:
            raise InputError("a rate is at least one byte a second", code=Code.BAD_QUERY)
        self._progress = progress
        self._cancel = cancel
        self._closing = closing
        self._rate = rate_bytes_per_second
        self._due = time.monotonic()

    def check(self) -> None:
        """Raises ``OperationCancelledError`` or ``LedgerClosedError`` where the operation has to end."""
        if self._cancel is not None and self._cancel.is_set():
            raise OperationCancelledError("the operation was called off")
        if self._closing is not None and self._closing.is_set():
            raise LedgerClosedError("the ledger is being closed")

    def spend(self, byte_count: int) -> None:
        """Waits until ``byte_count`` bytes more may be read or written; raises where the operation has to end."""
        self.check()
        if self._rate is None:
            return
        # What was not used for a while does not pile up into a burst.
        self._due = max(self._due, time.monotonic() - _BURST_SECONDS) + byte_count / self._rate
        while (left := self._due - time.monotonic()) > 0:
            time.sleep(min(left, _WAIT_SECONDS_MAX))
            self.check()

    def tell(self, stage: str, done: int, total: int) -> None:
        """Reports that ``done`` of ``total`` of a stage are done; raises where the operation has to end."""
        self.check()
        if self._progress is not None:
            self._progress(stage, done, total)
            self.check()  # it may have called the operation off

"""Trying again: exponential back-off with full jitter, bounded by a deadline (SPEC-CLI-3)."""

import asyncio
import random
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from itertools import count
from typing import TypeVar

from fastledger.errors import FastLedgerError, LedgerClosedError, UnreachableError

T = TypeVar("T")
# uvloop returns at once from shorter sleeps.
_WAIT_MS_MIN = 1
_DOUBLINGS_MAX = 20


def is_transient(error: FastLedgerError) -> bool:
    """Whether the same request may succeed later: a node that is away, stopping, or has no room just now."""
    if isinstance(error, UnreachableError):
        return error.transient
    return isinstance(error, LedgerClosedError) or _retry_after_ms(error) is not None


def _retry_after_ms(error: FastLedgerError) -> int | None:
    """Busy and rate-limited errors say when to come back."""
    wait: int | None = getattr(error, "retry_after_ms", None)
    return wait


@dataclass(frozen=True, slots=True, kw_only=True)
class Retry:
    """How long and how often. The n-th wait is drawn from 0 to ``base_ms`` × 2^n, at most ``wait_ms_max``.

    What a busy node asks for is added to the draw, so that its clients do not all return at once. ``deadline_ms``
    counts from the first attempt; 0 means a single attempt.
    """

    base_ms: int = 50
    wait_ms_max: int = 5_000
    deadline_ms: int = 60_000

    def wait_ms(self, attempt: int, error: FastLedgerError | None = None) -> float:
        """Milliseconds to wait after the ``attempt``-th failure, counted from 0."""
        ceiling = min(self.wait_ms_max, self.base_ms << min(attempt, _DOUBLINGS_MAX))
        asked = 0 if error is None else _retry_after_ms(error) or 0
        return max(_WAIT_MS_MIN, asked + random.uniform(0, ceiling))

    async def run(self, attempt: Callable[[], Awaitable[T]]) -> T:
        """What ``attempt`` returns once it succeeds; its last error where none does before the deadline."""
        begun = time.monotonic()
        for number in count():
            try:
                return await attempt()
            except FastLedgerError as error:
                wait_ms = self.wait_ms(number, error)
                spent_ms = (time.monotonic() - begun) * 1000
                if not is_transient(error) or spent_ms + wait_ms > self.deadline_ms:
                    raise
            await self.pause(wait_ms)
        raise AssertionError("count() ends nowhere")

    async def pause(self, wait_ms: float) -> None:
        """Waits so long."""
        await asyncio.sleep(wait_ms / 1000)

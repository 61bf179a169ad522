"""The miner: one thread that has templates searched, renews them, and can be stopped within milliseconds.

::

    template() ─► search nonces, extra nonce by extra nonce ─► found(template, header, extra nonce) ─► again
                        ▲ a new tip: at once
                        ▲ transactions arrived, or the template's time is old: not before ``renew_ms``

A template costs the chain an execution of the transactions that wait, so that a flood of them must not renew it for
each: the pause grows with the cost of the last template (SPEC-FED-11, SPEC-FED-12).
"""

import threading
import time
from collections import deque
from collections.abc import Callable
from typing import Protocol

from fastledger.crypto.work import NonceSearch
from fastledger.errors import FastLedgerError

# One header's nonces: some tens of milliseconds of a thread, or about one where a share of it is to rest in between.
NONCES_PER_HEADER = 1 << 18
NONCES_PER_HEADER_SHARED = 1 << 14
# No template (nothing to build on, or no room to build): asked again after this.
IDLE_S = 0.5
# A template may cost at most this share of the time that it is searched for.
TEMPLATE_COST_FACTOR = 4
RATE_WINDOW_S = 10.0


class SearchTemplate(Protocol):
    """The part of a block without work that the miner needs."""

    @property
    def target(self) -> int:
        """The greatest hash, as a little-endian number, that is work enough."""

    def make_header(self, extra_nonce: int) -> bytes:
        """Returns the 80 bytes of the header to search, for one extra nonce."""


class Miner:
    """Searches work while it is on. All methods may be called from any thread."""

    def __init__(
        self,
        *,
        template: Callable[[], SearchTemplate | None],
        found: Callable[[SearchTemplate, bytes, int], None],
        threads: int = 1,
        percent: int = 100,
        renew_ms: int = 1_000,
        failed: Callable[[BaseException], None] = lambda _error: None,
    ) -> None:
        """``template`` and ``found`` are called on the miner's own thread and may take their time.

        ``percent`` is the share of the threads' time that the search takes; ``failed`` hears what ended the thread.
        """
        self._template = template
        self._found = found
        self._failed = failed
        self._threads = threads
        self._percent = percent
        self._renew_s = renew_ms / 1000
        self._changed = threading.Condition()
        self._on = False
        self._closing = False
        self._stale = False
        self._moves = 0
        self._search: NonceSearch | None = None
        self._renew_at = 0.0
        self._hashes = 0
        self._samples: deque[tuple[float, int]] = deque()
        self.blocks_found = 0
        self._thread: threading.Thread | None = None

    # Switching.

    @property
    def is_on(self) -> bool:
        """Whether mining is on."""
        return self._on

    def switch(self, *, on: bool) -> None:
        """Turns mining on or off; off ends a search within milliseconds."""
        with self._changed:
            self._on = on and not self._closing
            if self._on and self._thread is None:
                self._thread = threading.Thread(target=self._run, name="fastledger-miner", daemon=True)
                self._thread.start()
            self._cancel()

    def close(self) -> None:
        """Ends the miner's thread."""
        with self._changed:
            self._closing = True
            self._on = False
            self._cancel()
        if self._thread is not None:
            self._thread.join()

    def _cancel(self) -> None:
        """Ends a search or a pause that is under way; the caller holds the lock."""
        if self._search is not None:
            self._search.cancel()
        self._changed.notify_all()

    # Renewing.

    def tip_moved(self) -> None:
        """Ends the search: the block that is searched can no longer be the next one."""
        with self._changed:
            self._moves += 1
            self._cancel()

    def transactions_arrived(self) -> None:
        """Notes that there are new transactions, which the next renewal puts into the template."""
        self._stale = True

    def tick(self) -> None:
        """Ends the search of a template that is due for renewal; called several times a second.

        Where transactions came it is due after its pause (at least ``renew_ms``), else ``renew_ms`` later.
        """
        with self._changed:
            now = time.monotonic()
            if (
                self._search is not None
                and now >= self._renew_at
                and (self._stale or now >= self._renew_at + self._renew_s)
            ):
                self._cancel()

    # The thread.

    def _run(self) -> None:
        try:
            while self._wait_until_on():
                self._mine_once()
        except FastLedgerError as error:
            # The chain has halted or closed; its own alarm has rung.
            self._end(error)
        except BaseException as error:
            self._end(error)
            raise

    def _end(self, error: BaseException) -> None:
        with self._changed:
            self._on = False
            self._closing = True
        self._failed(error)

    def _wait_until_on(self) -> bool:
        with self._changed:
            while not self._on and not self._closing:
                self._changed.wait()
            return not self._closing

    def _mine_once(self) -> None:
        self._stale = False
        moves = self._moves
        began = time.monotonic()
        template = self._template()
        now = time.monotonic()
        if template is None:
            with self._changed:
                if self._moves == moves and not self._closing:
                    self._changed.wait(IDLE_S)
            return
        with self._changed:
            if not self._on or self._moves != moves:
                return
            search = self._search = NonceSearch(
                self._paced(template),
                template.target,
                threads=self._threads,
                nonces_per_header=NONCES_PER_HEADER if self._percent == 100 else NONCES_PER_HEADER_SHARED,
            )
            self._renew_at = now + max(self._renew_s, TEMPLATE_COST_FACTOR * (now - began))
        work = search.run()
        with self._changed:
            self._search = None
            self._count(search.hashes_done)
        if work is not None:
            self.blocks_found += 1
            self._found(template, work.header, work.extra_nonce)

    def _paced(self, template: SearchTemplate) -> Callable[[int], bytes]:
        """Returns the template's ``make_header`` with a rest before each further header, for the share of time."""
        last = time.monotonic()

        def make_header(extra_nonce: int) -> bytes:
            nonlocal last
            if extra_nonce and self._percent < 100:
                busy = time.monotonic() - last
                self._rest(busy * (100 - self._percent) / self._percent)
            last = time.monotonic()
            return template.make_header(extra_nonce)

        return make_header

    def _rest(self, seconds: float) -> None:
        """Waits that long, unless the search is cancelled."""
        with self._changed:
            if self._search is not None and not self._search.cancelled:
                self._changed.wait(seconds)

    # Figures.

    def _count(self, hashes: int) -> None:
        now = time.monotonic()
        self._hashes += hashes
        self._samples.append((now, hashes))
        while self._samples and self._samples[0][0] < now - RATE_WINDOW_S:
            self._samples.popleft()

    @property
    def hashes(self) -> int:
        """How many nonces were tried since the start."""
        with self._changed:
            return self._hashes + (self._search.hashes_done if self._search is not None else 0)

    @property
    def hashes_per_second(self) -> float:
        """How many nonces a second were tried in the last ten seconds."""
        with self._changed:
            since = time.monotonic() - RATE_WINDOW_S
            recent = sum(count for at, count in self._samples if at >= since)
            running = self._search.hashes_done if self._search is not None else 0
            return (recent + running) / RATE_WINDOW_S if self._on else 0.0

"""The bound on envelopes that are stored and that no record names (SPEC-ORPH-5).

Envelopes come before the records that name them, and are collected where these never come. Until then they take room
on the disk, which anyone who may submit could fill. So what was stored ahead is counted, and there is a bound on it.
Which of them were named meanwhile is found out only when the bound is reached: one look for thousands of envelopes.
"""

import threading
import time
from collections.abc import Callable, Collection, Iterable, Sequence

from fastledger.errors import LedgerBusyError

_LOOK_INTERVAL_S = 1.0
_RETRY_MS = 10_000
_PAGE = 1_000


class UnreferencedQuota:
    """The envelopes that were stored ahead and are not known to be named. Safe from any thread."""

    def __init__(
        self,
        *,
        count_max: int,
        bytes_max: int,
        unowned: Callable[[Sequence[bytes]], list[bytes]],
        found_before: Callable[[], Iterable[tuple[bytes, int]]],
    ) -> None:
        """``unowned`` gives those digests that no record names by now; ``found_before`` what an earlier run left."""
        self._count_max = count_max
        self._bytes_max = bytes_max
        self._unowned = unowned
        self._found_before: Callable[[], Iterable[tuple[bytes, int]]] | None = found_before
        self._lock = threading.Lock()
        self._sizes: dict[bytes, int] = {}
        self._bytes = 0
        self._looked_at = float("-inf")

    @property
    def counted(self) -> tuple[int, int]:
        """The number and bytes of the envelopes; some of them may be named by now."""
        return len(self._sizes), self._bytes

    def check(self, count: int, byte_count: int) -> None:
        """Raises ``LedgerBusyError`` where ``count`` more envelopes of ``byte_count`` bytes in all find no room."""
        with self._lock:
            self._begin()
            if self._has_room(count, byte_count):
                return
            now = time.monotonic()
            # Not with every request of who goes on asking.
            if now - self._looked_at >= _LOOK_INTERVAL_S:
                self._look()
                self._looked_at = now
            if not self._has_room(count, byte_count):
                raise LedgerBusyError(
                    f"{len(self._sizes)} envelopes wait for a record that names them",
                    retry_after_ms=_RETRY_MS,
                )

    def add(self, stored: Iterable[tuple[bytes, int]]) -> None:
        """Adds digests and sizes of envelopes that were stored ahead."""
        with self._lock:
            for digest, size in stored:
                self._add(digest, size)

    def discard(self, digests: Collection[bytes]) -> None:
        """Removes envelopes that are stored no more."""
        with self._lock:
            for digest in digests:
                self._bytes -= self._sizes.pop(digest, 0)

    def _begin(self) -> None:
        if self._found_before is not None:
            for digest, size in self._found_before():
                self._add(digest, size)
            self._found_before = None

    def _add(self, digest: bytes, size: int) -> None:
        self._bytes += size - self._sizes.get(digest, 0)
        self._sizes[digest] = size

    def _has_room(self, count: int, byte_count: int) -> bool:
        """Whether so much more fits; where nothing is counted, anything does, however long."""
        return not self._sizes or (
            len(self._sizes) + count <= self._count_max and self._bytes + byte_count <= self._bytes_max
        )

    def _look(self) -> None:
        """Removes the envelopes that were named meanwhile."""
        digests = list(self._sizes)
        for begin in range(0, len(digests), _PAGE):
            page = digests[begin : begin + _PAGE]
            for digest in set(page).difference(self._unowned(page)):
                self._bytes -= self._sizes.pop(digest)

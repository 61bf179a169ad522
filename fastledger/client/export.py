"""A node's transactions as lines of JSON: the lines that the ledger itself writes (SPEC-CLI-10, SPEC-EXP-1)."""

import asyncio
import threading
from collections.abc import AsyncIterator, Sequence
from typing import BinaryIO

from fastledger.client.reading import NodeReader
from fastledger.client.views import bad_answer
from fastledger.model.export import BlockRange, ExportLine, pruned
from fastledger.model.query import Entry, Page
from fastledger.model.reports import ExportReport
from fastledger.pace import Pace, Progress

# A page of the longest transactions takes some 20 MB.
PAGE_TRANSACTIONS = 200


class NodeExporter(NodeReader):
    """The part of a client that exports."""

    async def export_ndjson(
        self,
        out: BinaryIO,
        *,
        from_height: int | None = None,
        to_height: int | None = None,
        progress: Progress | None = None,
        rate_bytes_per_second: int | None = None,
    ) -> ExportReport:
        """Writes a line of JSON for every durable transaction of a range of heights, both ends included.

        The lines are written to ``out`` on another thread, a page at a time; what becomes durable meanwhile is left
        out. ``progress`` is called with (stage, done, total). Cancelling the task that waits ends it. Raises
        ``NotFoundError`` with PRUNED where the range begins before what the node keeps or is pruned under the export,
        ``InputError`` where it has no block.
        """
        block_range = BlockRange(from_height, to_height)
        first, last = block_range.within(*await self._kept())
        cancel = threading.Event()
        pace = Pace(rate_bytes_per_second=rate_bytes_per_second, cancel=cancel)
        transactions = byte_count = 0
        try:
            async for entries in self._pages_of(first, last):
                if not transactions and entries[0].height > first:
                    # Empty blocks, or blocks that were pruned since they were asked for.
                    BlockRange(first, last).within(*await self._kept())
                byte_count += await asyncio.to_thread(_write, entries, out, pace)
                transactions += len(entries)
                if progress is not None:
                    progress("blocks", entries[-1].height - first + 1, last - first + 1)
        finally:
            cancel.set()  # where this was cancelled, the thread that still writes ends
        return ExportReport(first, last, last - first + 1, transactions, 0, byte_count)

    async def _kept(self) -> tuple[int, int]:
        """The first and the newest height that the node has."""
        status = await self.status()
        first, height = status.get("first_height"), status.get("height")
        if not isinstance(first, int) or not isinstance(height, int):
            raise bad_answer("status")
        return first, height

    async def _pages_of(self, first: int, last: int) -> AsyncIterator[Sequence[Entry]]:
        """Every transaction of the heights, in order and without a gap, by the page."""
        cursor: int | None = None
        seq: int | None = None
        while True:
            page: Page = await self.query(
                from_height=first, to_height=last, cursor=cursor, limit=PAGE_TRANSACTIONS
            )
            for entry in page:
                if not first <= entry.height <= last:
                    raise bad_answer("page")
                if seq is not None and entry.seq != seq:
                    raise pruned(entry.height)
                seq = entry.seq + 1
            if page.entries:
                yield page.entries
            cursor = page.next_cursor
            if cursor is None:
                return
            if not page.entries:
                raise bad_answer("page")


def _write(entries: Sequence[Entry], out: BinaryIO, pace: Pace) -> int:
    """Writes the lines of a page, and returns how many bytes they have."""
    byte_count = 0
    for entry in entries:
        line = ExportLine.of_entry(entry).encode()
        pace.spend(len(line))
        out.write(line)
        byte_count += len(line)
    return byte_count

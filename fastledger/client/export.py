"""A node's transactions as lines of JSON: the lines that the ledger itself writes (SPEC-CLI-10, SPEC-EXP-1)."""

from collections.abc import Iterator
from typing import BinaryIO

from fastledger.client.api import LedgerApi
from fastledger.client.views import strange
from fastledger.model.export import BlockRange, ExportLine, pruned
from fastledger.model.query import Entry, Page
from fastledger.model.reports import ExportReport
from fastledger.pace import Pace, Progress

# A page of the longest transactions takes some 20 MB.
PAGE_TRANSACTIONS = 200


def export_ndjson(
    ledger: LedgerApi,
    out: BinaryIO,
    *,
    from_height: int | None = None,
    to_height: int | None = None,
    progress: Progress | None = None,
    rate_bytes_per_second: int | None = None,
) -> ExportReport:
    """Writes a line for every durable transaction of a range of heights, both ends included, a page at a time.

    What becomes durable meanwhile is left out. Raises ``NotFoundError`` with PRUNED where the range begins before
    what the node keeps or is pruned under the export, ``InputError`` where it is none.
    """
    pace = Pace(progress=progress, rate_bytes_per_second=rate_bytes_per_second)
    block_range = BlockRange(from_height, to_height)
    first, last = block_range.within(*_kept(ledger))
    transactions = byte_count = 0
    for entry in _entries(ledger, first, last):
        if not transactions and entry.height > first:
            # Empty blocks, or blocks that were pruned since they were asked for.
            BlockRange(first, last).within(*_kept(ledger))
        line = ExportLine.of_entry(entry).encode()
        pace.spend(len(line))
        out.write(line)
        transactions += 1
        byte_count += len(line)
        pace.tell("blocks", entry.height - first + 1, last - first + 1)
    return ExportReport(first, last, last - first + 1, transactions, 0, byte_count)


def _kept(ledger: LedgerApi) -> tuple[int, int]:
    """The first and the newest height that the ledger has."""
    status = ledger.status()
    first, height = status.get("first_height"), status.get("height")
    if not isinstance(first, int) or not isinstance(height, int):
        raise strange("status")
    return first, height


def _entries(ledger: LedgerApi, first: int, last: int) -> Iterator[Entry]:
    """Every transaction of the heights, in order and without a gap."""
    seq: int | None = None
    for page in _pages(ledger, first, last):
        for entry in page:
            if not first <= entry.height <= last:
                raise strange("page")
            if seq is not None and entry.seq != seq:
                raise pruned(entry.height)
            seq = entry.seq + 1
            yield entry


def _pages(ledger: LedgerApi, first: int, last: int) -> Iterator[Page]:
    cursor: int | None = None
    while True:
        page = ledger.query(from_height=first, to_height=last, cursor=cursor, limit=PAGE_TRANSACTIONS)
        yield page
        cursor = page.next_cursor
        if cursor is None:
            return
        if not page.entries:
            raise strange("page")

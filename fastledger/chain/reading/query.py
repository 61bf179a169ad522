"""Queries for transactions: by signer, subject, kind, ids and blind tokens (SPEC-QRY-1..3)."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from heapq import merge
from itertools import groupby

from fastledger.chain.execution.store import Snapshot
from fastledger.errors import Code, InputError
from fastledger.limits import QUERY_CANDIDATES_MAX, QUERY_PAGE_MAX
from fastledger.model.block import Block
from fastledger.model.query import Entry, Page, Query
from fastledger.model.terms import SIGNER, SUBJECT, TOKEN, code_term, kind_term
from fastledger.storage.log import FrameRef
from fastledger.subjects.catalogue import REGISTRY

HEIGHT_MAX = 2**63 - 1


def query_terms(query: Query) -> list[bytes]:
    """Returns the index terms of a query's conditions, those that usually hold for fewest transactions first.

    Raises ``InputError`` with ``BAD_QUERY`` where an id has not its length, or a kind or code does not exist.
    """
    query.check()
    ids = (
        (TOKEN, query.token),
        *((_table_of(name), value) for name, value in query.ids.items()),
        (SUBJECT, query.subject),
        (SIGNER, query.signed_by),
    )
    found = [table + value for table, value in ids if value is not None]
    if query.code is not None and query.code != Code.OK:
        found.append(code_term(query.code))
    if query.kind is not None:
        if query.kind not in REGISTRY.kinds:
            raise InputError("no such kind of transaction", code=Code.BAD_QUERY)
        found.append(kind_term(query.kind))
    return found


def _table_of(name: str) -> bytes:
    """The term table of an entity table that transactions are indexed by."""
    table = REGISTRY.tables.get(name)
    if table is None or not table.is_indexed:
        raise InputError(f"transactions are not found by {name}", code=Code.BAD_QUERY)
    return table.term


def run_query(
    query: Query, snapshot: Snapshot, read_block: Callable[[FrameRef], Block], *, first_height: int = 0
) -> Page:
    """Evaluates ``query`` over the blocks from ``first_height`` on, those before having been pruned; returns a page.

    Raises ``InputError`` with ``BAD_QUERY`` where it makes no sense.
    """
    if not 1 <= query.limit <= QUERY_PAGE_MAX:
        raise InputError(f"limit is 1 to {QUERY_PAGE_MAX}", code=Code.BAD_QUERY)
    start_seq, end_seq = _range(query, snapshot)
    if first_height:
        start_seq = max(start_seq, _first_seq(snapshot, first_height))
    entries: list[Entry] = []
    looked_at = 0
    for seq, meets in _candidates(query, snapshot, start_seq, end_seq):
        if looked_at == QUERY_CANDIDATES_MAX:
            return Page(entries, seq, snapshot.end_seq)
        looked_at += 1
        if not meets:
            continue
        entry = load_entry(snapshot, read_block, seq)
        if query.code == Code.OK and entry.code != Code.OK:
            continue
        if len(entries) == query.limit:
            return Page(entries, seq, snapshot.end_seq)
        entries.append(entry)
    return Page(entries, None, snapshot.end_seq)


def load_entry(snapshot: Snapshot, read_block: Callable[[FrameRef], Block], seq: int) -> Entry:
    """Returns the transaction number ``seq``."""
    found = snapshot.block_of_seq(seq)
    if found is None:
        raise InputError(f"there is no transaction number {seq}", code=Code.NOT_FOUND)
    height, block_entry = found
    block = read_block(block_entry.ref)
    index = seq - block_entry.first_seq
    return Entry(
        seq,
        height,
        index,
        block_entry.time_ms,
        Code(block.result(index)),
        block.transaction_bytes(index),
    )


def _candidates(query: Query, snapshot: Snapshot, start_seq: int, end_seq: int) -> Iterator[tuple[int, bool]]:
    """Yields the numbers of transactions under the rarest term, in order, and whether all other terms fit too."""
    terms = query_terms(query)
    numbers: Iterable[int]
    if query.alerts:
        numbers = _any_of(REGISTRY.alert_terms, snapshot, start_seq, end_seq, query.newest_first)
    elif terms:
        numbers = snapshot.postings(terms.pop(0), start_seq, end_seq, reverse=query.newest_first)
    else:
        every = range(start_seq, end_seq)
        numbers = reversed(every) if query.newest_first else every
    for seq in numbers:
        yield seq, all(snapshot.has_posting(term, seq) for term in terms)


def _any_of(
    terms: Sequence[bytes], snapshot: Snapshot, start_seq: int, end_seq: int, newest_first: bool
) -> Iterator[int]:
    """Yields the numbers of the transactions under at least one of the terms, in order, each once."""
    postings = [snapshot.postings(term, start_seq, end_seq, reverse=newest_first) for term in terms]
    for seq, _ in groupby(merge(*postings, reverse=newest_first)):
        yield seq


def _range(query: Query, snapshot: Snapshot) -> tuple[int, int]:
    """Returns the half-open range of transaction numbers that heights, times and cursor leave."""
    start_seq, end_seq = 0, snapshot.end_seq
    if end_seq == 0:
        return 0, 0
    if query.from_height is not None:
        start_seq = max(start_seq, _first_seq(snapshot, query.from_height))
    if query.to_height is not None:
        end_seq = min(end_seq, _first_seq(snapshot, query.to_height + 1))
    if query.from_time_ms is not None:
        start_seq = max(start_seq, _first_seq(snapshot, _height_at(snapshot, query.from_time_ms)))
    if query.to_time_ms is not None:
        end_seq = min(end_seq, _first_seq(snapshot, _height_at(snapshot, query.to_time_ms + 1)))
    if query.cursor is not None:
        if query.newest_first:
            end_seq = min(end_seq, query.cursor + 1)
        else:
            start_seq = max(start_seq, query.cursor)
    return min(start_seq, max(end_seq, 0)), max(end_seq, 0)


def _first_seq(snapshot: Snapshot, height: int) -> int:
    """Returns the number of the first transaction at or after ``height``."""
    entry = snapshot.block_entry(min(max(height, 0), HEIGHT_MAX))
    return snapshot.end_seq if entry is None else min(entry.first_seq, snapshot.end_seq)


def _height_at(snapshot: Snapshot, time_ms: int) -> int:
    """Returns the first height whose block time is at or after ``time_ms``, by bisection: block times only grow."""
    newest = snapshot.block_of_seq(snapshot.end_seq - 1)
    low, high = 0, 0 if newest is None else newest[0] + 1
    while low < high:
        middle = (low + high) // 2
        entry = snapshot.block_entry(middle)
        if entry is not None and entry.time_ms < time_ms:
            low = middle + 1
        else:
            high = middle
    return low

"""Finding transactions: by who signed, whom they concern, what they are, and blind tokens (SPEC-QRY-1..3)."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from heapq import merge
from itertools import groupby
from typing import Literal, TypeAlias

from fastledger.chain.store import Snapshot
from fastledger.errors import Code, InputError
from fastledger.limits import QUERY_CANDIDATES_MAX, QUERY_PAGE_DEFAULT, QUERY_PAGE_MAX
from fastledger.model.block import Block
from fastledger.model.ids import ID_BYTES
from fastledger.model.transaction import Transaction
from fastledger.state.terms import (
    CONSENT,
    FOLDER,
    KIND_TERMS,
    RECORD,
    SIGNER,
    SUBJECT,
    TOKEN,
    code_term,
)
from fastledger.storage.log import FrameRef

Topic: TypeAlias = Literal["blocks", "transactions", "alerts"]
"""What can be followed."""

HEIGHT_MAX = 2**63 - 1
# What the rules may say of a transaction in a block, and what ends an identity.
ALERT_TERMS = (
    *(code_term(code) for code in Code if 200 <= code < 300),
    KIND_TERMS["identity.revoke"],
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Query:
    """All conditions must hold. Ids are 16 bytes; heights and block times bound a range, both ends included.

    ``signer`` and ``subject`` are identity ids: who signed, and whom it concerns. ``code`` finds refusals.
    ``alerts`` finds what someone should look at: refusals and revoked identities. ``cursor`` is the ``next_cursor``
    of the page before.
    """

    kind: str | None = None
    signer: bytes | None = None
    subject: bytes | None = None
    record: bytes | None = None
    folder: bytes | None = None
    consent: bytes | None = None
    token: bytes | None = None
    code: Code | None = None
    alerts: bool = False
    from_height: int | None = None
    to_height: int | None = None
    from_time_ms: int | None = None
    to_time_ms: int | None = None
    newest_first: bool = False
    cursor: int | None = None
    limit: int = QUERY_PAGE_DEFAULT

    def terms(self) -> list[bytes]:
        """The indexed conditions, those that usually hold for fewest first."""
        found: list[bytes] = []
        ids = (
            ("token", TOKEN, self.token),
            ("record", RECORD, self.record),
            ("consent", CONSENT, self.consent),
            ("folder", FOLDER, self.folder),
            ("subject", SUBJECT, self.subject),
            ("signer", SIGNER, self.signer),
        )
        for name, table, value in ids:
            if value is not None:
                if not isinstance(value, bytes) or len(value) != ID_BYTES:
                    raise InputError(f"{name} is not an id of {ID_BYTES} bytes", code=Code.BAD_QUERY)
                found.append(table + value)
        if self.code is not None and self.code not in set(Code):
            raise InputError("no such result code", code=Code.BAD_QUERY)
        if self.code is not None and self.code != Code.OK:
            found.append(code_term(self.code))
        if self.kind is not None:
            if self.kind not in KIND_TERMS:
                raise InputError("no such kind of transaction", code=Code.BAD_QUERY)
            found.append(KIND_TERMS[self.kind])
        return found


@dataclass(frozen=True)
class Entry:
    """One transaction in the chain, as a query finds it."""

    seq: int
    height: int
    index: int
    time_ms: int
    code: Code
    encoded: bytes

    @cached_property
    def transaction(self) -> Transaction:
        """The decoded transaction."""
        return Transaction.decode(self.encoded)

    @property
    def txid(self) -> bytes:
        """Its 32-byte id."""
        return self.transaction.txid


@dataclass(frozen=True, slots=True)
class Page:
    """Some of the answers; ``next_cursor`` is None on the last page.

    ``end_seq`` is the number of the transaction that will be the next of the chain: a cursor behind all of it.
    """

    entries: list[Entry]
    next_cursor: int | None
    end_seq: int

    def __iter__(self) -> Iterator[Entry]:
        return iter(self.entries)

    def __len__(self) -> int:
        return len(self.entries)


def run_query(
    query: Query, snapshot: Snapshot, read_block: Callable[[FrameRef], Block], *, first_height: int = 0
) -> Page:
    """Evaluates ``query`` over the blocks from ``first_height`` on, those before having been pruned.

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


def cut_entries(entries: Sequence[Entry], bytes_max: int) -> tuple[Sequence[Entry], Entry | None]:
    """At least one and at most so many bytes of transactions, and the first that is left out."""
    room = bytes_max
    for place, entry in enumerate(entries):
        room -= len(entry.encoded)
        if room < 0 and place:
            return entries[:place], entry
    return entries, None


def load_entry(snapshot: Snapshot, read_block: Callable[[FrameRef], Block], seq: int) -> Entry:
    """The transaction number ``seq``."""
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
    """Numbers of the transactions under the rarest term, in order, and whether they are under all others too."""
    terms = query.terms()
    numbers: Iterable[int]
    if query.alerts:
        numbers = _any_of(ALERT_TERMS, snapshot, start_seq, end_seq, query.newest_first)
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
    """Numbers of the transactions under at least one of the terms, in order, each once."""
    postings = [snapshot.postings(term, start_seq, end_seq, reverse=newest_first) for term in terms]
    for seq, _ in groupby(merge(*postings, reverse=newest_first)):
        yield seq


def _range(query: Query, snapshot: Snapshot) -> tuple[int, int]:
    """The half-open range of transaction numbers that heights, times and cursor leave."""
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
    """The number of the first transaction at or after ``height``."""
    entry = snapshot.block_entry(min(max(height, 0), HEIGHT_MAX))
    return snapshot.end_seq if entry is None else min(entry.first_seq, snapshot.end_seq)


def _height_at(snapshot: Snapshot, time_ms: int) -> int:
    """The first height whose block time is at or after ``time_ms``, by bisection: block times only grow."""
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

"""Following the chain from a cursor: pages of durable blocks or transactions, each event once and none left out.

A follower keeps a cursor, not a queue: what it has not taken yet stays in the chain (SPEC-SUB-1). It is woken
when blocks become durable and when the ledger closes, and reads only then.
"""

import threading
import time
from abc import abstractmethod
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from typing import NamedTuple, Protocol

from fastledger.chain.execution.store import ChainStore
from fastledger.errors import LedgerClosedError, NotFoundError
from fastledger.model.block import Block
from fastledger.model.following import BlockSummary, FollowEvent, FollowPage, Tip
from fastledger.model.query import Entry, Page, Query, Topic, check_topic, cut_entries
from fastledger.model.terms import SIGNER, SUBJECT, kind_term

PAGE_EVENTS_MAX = 256
PAGE_BYTES_MAX = 1024 * 1024
"""A page ends at so many bytes of transactions; one event is in it however long."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FeedFilter:
    """The conditions on a followed transaction, all of which must hold where set.

    Signer and subject are 16-byte identity ids.
    """

    kind: str | None = None
    signed_by: bytes | None = None
    subject: bytes | None = None

    def wake_term(self) -> bytes | None:
        """Returns the rarest index term of the conditions, without which no transaction can match.

        Returns None where there is none.
        """
        if self.signed_by is not None:
            return SIGNER + self.signed_by
        if self.subject is not None:
            return SUBJECT + self.subject
        return None if self.kind is None else kind_term(self.kind)

    def check(self, topic: Topic) -> None:
        """Raises ``InputError`` with ``BAD_QUERY`` for no topic, and for conditions on blocks, which have none."""
        check_topic(topic, has_conditions=self != FeedFilter())


class BlockEvent(NamedTuple):
    """A durable block and the number of its first transaction."""

    block: Block
    first_seq: int


class FeedPage(NamedTuple):
    """Some events, oldest first; ``next_cursor`` resumes behind them and behind what was passed over.

    A follower of blocks gets ``blocks``, any other ``entries``.
    """

    blocks: Sequence[BlockEvent]
    entries: Sequence[Entry]
    next_cursor: int
    caught_up: bool


class ChainReader(Protocol):
    """What following needs of a ledger."""

    @property
    def height(self) -> int:
        """The height of the newest durable block."""

    @property
    def transaction_count(self) -> int:
        """How many transactions are durable."""

    def block_and_first_seq(self, height: int) -> tuple[Block, int]:
        """Returns a durable block and the number of its first transaction."""

    def query(self, query: Query | None = None) -> Page:
        """Returns a page of transactions."""


def start_cursor(ledger: ChainReader, topic: Topic, cursor: int | None) -> int:
    """Returns the cursor itself, or behind everything durable where it is None: a height for blocks, else a number."""
    if cursor is not None:
        return cursor
    return ledger.height + 1 if topic == "blocks" else ledger.transaction_count


def read_page(ledger: ChainReader, topic: Topic, cursor: int, conditions: FeedFilter) -> FeedPage:
    """Reads the events from ``cursor`` on, at most a page of them; off an event loop, since it reads the disk."""
    if topic == "blocks":
        return _block_page(ledger, cursor)
    query = Query(
        kind=conditions.kind,
        signed_by=conditions.signed_by,
        subject=conditions.subject,
        alerts=topic == "alerts",
        cursor=cursor,
        limit=PAGE_EVENTS_MAX,
    )
    return _entry_page(ledger, query)


def _block_page(ledger: ChainReader, cursor: int) -> FeedPage:
    end = ledger.height + 1
    blocks: list[BlockEvent] = []
    height, room = cursor, PAGE_BYTES_MAX
    while height < min(cursor + PAGE_EVENTS_MAX, end) and room > 0:
        event = BlockEvent(*ledger.block_and_first_seq(height))
        blocks.append(event)
        room -= len(event.block.transactions)
        height += 1
    return FeedPage(blocks, (), height, height >= end)


def _entry_page(ledger: ChainReader, query: Query) -> FeedPage:
    page = ledger.query(query)
    entries, following = cut_entries(page.entries, PAGE_BYTES_MAX)
    if following is not None:
        return FeedPage((), entries, following.seq, caught_up=False)
    behind = page.end_seq if page.next_cursor is None else page.next_cursor
    return FeedPage((), entries, max(query.cursor or 0, behind), page.next_cursor is None)


class ChainCursor:
    """One follower's place in the chain; whoever holds it waits to be woken wherever :meth:`read` gives None."""

    def __init__(self, ledger: ChainReader, topic: Topic, cursor: int | None, conditions: FeedFilter) -> None:
        """Raises ``InputError`` with ``BAD_QUERY`` for no topic and for conditions that it does not have."""
        conditions.check(topic)
        self._ledger = ledger
        self._topic = topic
        self._conditions = conditions
        self._cursor = start_cursor(ledger, topic, cursor)
        self._caught_up = False

    def read(self) -> FollowPage | None:
        """Returns the next page, and moves behind it; None where nothing is there to tell yet.

        The first page that has caught up is given even if it is empty: it tells just that.
        """
        while True:
            page = read_page(self._ledger, self._topic, self._cursor, self._conditions)
            is_news = page.caught_up and not self._caught_up
            self._caught_up = page.caught_up
            self._cursor = page.next_cursor
            if page.blocks or page.entries or is_news:
                return FollowPage(_events(page), page.next_cursor, page.caught_up)
            if page.caught_up:
                return None


def _events(page: FeedPage) -> list[FollowEvent]:
    blocks = [
        FollowEvent(event.block.height + 1, block=BlockSummary.of(event.block, event.first_seq))
        for event in page.blocks
    ]
    return blocks + [FollowEvent(entry.seq + 1, entry=entry) for entry in page.entries]


class Following:
    """The part of :class:`fastledger.Ledger` that follows the chain. Every method may be called from any thread."""

    _store: ChainStore
    _closed: bool
    # How to wake each follower; replaced as a whole, so that whoever wakes them needs no lock.
    _wakers: tuple[Callable[[], None], ...] = ()
    _changing_wakers: threading.Lock

    @abstractmethod
    def get(self, txid: bytes) -> Entry:
        """Returns a durable transaction; raises ``NotFoundError``."""

    def tip(self) -> Tip:
        """Returns the end of the durable chain: height, head and count that belong together."""
        durable = self._store.durable
        return Tip(durable.height, durable.block_id, durable.next_seq)

    @contextmanager
    def waking(self, wake: Callable[[], None]) -> Iterator[None]:
        """Calls ``wake`` soon after blocks became durable, and when the ledger closes, for the length of the block.

        It is called on another thread, and must not raise, wait or call the ledger.
        """
        with self._changing_wakers:
            self._wakers = (*self._wakers, wake)
        try:
            yield
        finally:
            with self._changing_wakers:
                self._wakers = tuple(other for other in self._wakers if other is not wake)

    def _wake_all(self) -> None:
        for wake in self._wakers:
            wake()

    def check_open(self) -> None:
        """Raises ``LedgerClosedError`` once the ledger is being closed."""
        if self._closed:
            raise LedgerClosedError("the ledger is closed")

    def follow(
        self,
        topic: Topic = "transactions",
        *,
        cursor: int | None = None,
        kind: str | None = None,
        signed_by: bytes | None = None,
        subject: bytes | None = None,
    ) -> Iterator[FollowEvent]:
        """Yields durable events without end, each once and none left out, waiting where there are none yet.

        The topic is *transactions*, *blocks* or *alerts*; ``kind``, ``signed_by`` and ``subject`` (16-byte ids)
        are conditions on transactions. ``cursor`` resumes behind the event that had it; 0 is the beginning, None means
        from now on. Raises ``InputError`` with ``BAD_QUERY`` for conditions that make no sense, and
        ``LedgerClosedError`` where the ledger is closed meanwhile.
        """
        pages = self.follow_pages(topic, cursor=cursor, kind=kind, signed_by=signed_by, subject=subject)
        with closing(pages):
            for page in pages:
                yield from page.events

    def follow_pages(
        self,
        topic: Topic = "transactions",
        *,
        cursor: int | None = None,
        kind: str | None = None,
        signed_by: bytes | None = None,
        subject: bytes | None = None,
    ) -> Generator[FollowPage, None, None]:
        """Yields what :meth:`follow` does by the page, with the cursor behind what the conditions passed over.

        The first page that has caught up with the chain comes even if it is empty. Raises what :meth:`follow` does.
        """
        woken = threading.Event()
        with self.waking(woken.set):
            place = self.cursor_at(topic, cursor=cursor, kind=kind, signed_by=signed_by, subject=subject)
            while True:
                woken.clear()
                self.check_open()
                page = place.read()
                if page is None:
                    woken.wait()
                else:
                    yield page

    def cursor_at(
        self,
        topic: Topic,
        *,
        cursor: int | None = None,
        kind: str | None = None,
        signed_by: bytes | None = None,
        subject: bytes | None = None,
    ) -> ChainCursor:
        """Returns a place in the chain that is read without waiting, for who waits in a way of their own."""
        return ChainCursor(
            self,  # type: ignore[arg-type]  # the whole ledger, of which this is a part
            topic,
            cursor,
            FeedFilter(kind=kind, signed_by=signed_by, subject=subject),
        )

    def wait_for(self, txid: bytes, *, timeout_ms: int = 60_000) -> Entry:
        """Returns the transaction ``txid`` once it is durable, whoever submitted it.

        Raises ``NotFoundError`` where it is not durable after ``timeout_ms``, and ``LedgerClosedError`` where the
        ledger is closed meanwhile.
        """
        ends = time.monotonic() + timeout_ms / 1000
        woken = threading.Event()
        with self.waking(woken.set):
            while True:
                woken.clear()
                self.check_open()
                with suppress(NotFoundError):
                    return self.get(txid)
                if not woken.wait(max(0.0, ends - time.monotonic())):
                    raise not_in_time(txid, timeout_ms)


def not_in_time(txid: bytes, timeout_ms: int) -> NotFoundError:
    """Returns the error of a wait for a transaction that did not become durable in time."""
    return NotFoundError(f"transaction {txid.hex()} is not durable after {timeout_ms} ms")

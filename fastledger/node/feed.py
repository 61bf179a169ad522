"""Following the chain: a subscription is a cursor and a wake-up, not a queue.

What a subscriber has not taken yet stays where it is, in the chain; so a slow one costs no memory, delays nobody,
and resumes after a break where it stopped, without gap or double (SPEC-SUB-1..3). It is woken only when a new block
holds something that the subscription asked for.
"""

import asyncio
from collections.abc import Sequence
from contextlib import suppress

from fastledger.chain.execution.store import Layer
from fastledger.chain.ledger import Ledger
from fastledger.chain.reading.following import FeedFilter, FeedPage, read_page, start_cursor
from fastledger.errors import LedgerClosedError
from fastledger.model.query import Topic
from fastledger.model.terms import TERM_BYTES
from fastledger.node.reads import Reads
from fastledger.subjects.catalogue import REGISTRY


class Subscription:
    """One reader's place in the chain; made by :meth:`Feed.follow`, used by one task at a time."""

    def __init__(self, feed: "Feed", topic: Topic, cursor: int, conditions: FeedFilter) -> None:
        """Makes a subscription that is awake; callers use :meth:`Feed.follow`."""
        self.topic = topic
        self.cursor = cursor
        self.conditions = conditions
        self._feed = feed
        self._woken = asyncio.Event()
        self._woken.set()
        self._caught_up = False

    def wake_terms(self) -> Sequence[bytes] | None:
        """Returns the index terms any of which makes a block wake it; None where every block does."""
        if self.topic == "blocks":
            return None
        if self.topic == "alerts":
            return REGISTRY.alert_terms
        term = self.conditions.wake_term()
        return None if term is None else (term,)

    def wake(self) -> None:
        """Wakes the reader, since there may be something new; called on the loop."""
        self._woken.set()

    async def next_page(self) -> FeedPage:
        """Returns the next events, waiting for some where there are none yet; the cursor moves behind them.

        The first page may be empty: it tells that the subscription has caught up. Raises ``LedgerClosedError`` when
        the node stops, ``LedgerBusyError`` where too many read, ``InputError`` for a bad condition.
        """
        while True:
            await self._woken.wait()
            self._feed.check_open()
            # Before the read: what becomes durable during it wakes again.
            self._woken.clear()
            page = await self._feed.read_page(self)
            first_time = page.caught_up and not self._caught_up
            self._caught_up = page.caught_up
            self.cursor = page.next_cursor
            if not page.caught_up:
                self._woken.set()
            if page.blocks or page.entries or first_time:
                return page

    def close(self) -> None:
        """Ends the subscription; may be called twice."""
        self._feed.forget(self)


class Feed:
    """The subscriptions to a ledger; it wakes them as blocks become durable."""

    def __init__(self, ledger: Ledger, reads: Reads, loop: asyncio.AbstractEventLoop) -> None:
        """Must be called on the event loop that follows."""
        self._ledger = ledger
        self._reads = reads
        self._loop = loop
        self._closed = False
        self._unfiltered: set[Subscription] = set()
        self._by_term: dict[bytes, set[Subscription]] = {}
        self._remove_listener = ledger.add_listener(self._publish)

    @property
    def subscription_count(self) -> int:
        """How many subscriptions there are."""
        return len(self._all())

    def blocks_behind(self) -> int:
        """Returns how many blocks the slowest subscription is behind.

        It reads the chain, so it is called off the loop.
        """
        ledger = self._ledger
        end, end_seq = ledger.height + 1, ledger.transaction_count
        slowest = end
        slowest_seq = end_seq
        for subscription in self._all():
            if subscription.topic == "blocks":
                slowest = min(slowest, subscription.cursor)
            else:
                slowest_seq = min(slowest_seq, subscription.cursor)
        if slowest_seq < end_seq:
            entries = ledger.query(cursor=slowest_seq, limit=1).entries
            slowest = min([slowest, *(entry.height for entry in entries)])
        return end - slowest

    def follow(
        self, topic: Topic, *, cursor: int | None = None, conditions: FeedFilter | None = None
    ) -> Subscription:
        """Makes a subscription from ``cursor``: a height for blocks, else a transaction's number.

        None stands for what comes from now on.
        """
        self.check_open()
        start = start_cursor(self._ledger, topic, cursor)
        subscription = Subscription(self, topic, start, conditions or FeedFilter())
        terms = subscription.wake_terms()
        if terms is None:
            self._unfiltered.add(subscription)
        for term in terms or ():
            self._by_term.setdefault(term, set()).add(subscription)
        return subscription

    def forget(self, subscription: Subscription) -> None:
        """Drops a subscription, for :meth:`Subscription.close`."""
        self._unfiltered.discard(subscription)
        for term in subscription.wake_terms() or ():
            followers = self._by_term.get(term)
            if followers is not None:
                followers.discard(subscription)
                if not followers:
                    del self._by_term[term]

    def check_open(self) -> None:
        """Raises ``LedgerClosedError`` once the node stops."""
        if self._closed:
            raise LedgerClosedError("the node is stopping")

    def close(self) -> None:
        """Wakes all subscriptions, whose next page then raises ``LedgerClosedError``."""
        self._remove_listener()
        self._closed = True
        for subscription in self._all():
            subscription.wake()

    def _all(self) -> set[Subscription]:
        return self._unfiltered.union(*self._by_term.values())

    # New blocks.

    def _publish(self, layers: Sequence[Layer]) -> None:
        """Passes new blocks from the ledger's thread to the loop.

        The loop may have ended; an error here would halt the ledger.
        """
        with suppress(RuntimeError):
            self._loop.call_soon_threadsafe(self._ring, layers)

    def _ring(self, layers: Sequence[Layer]) -> None:
        for subscription in self._unfiltered:
            subscription.wake()
        if not self._by_term:
            return
        for layer in layers:
            terms = layer.terms.terms
            present = {terms[i : i + TERM_BYTES] for i in range(0, len(terms), TERM_BYTES)}
            for term in present & self._by_term.keys():
                for subscription in self._by_term[term]:
                    subscription.wake()

    # Pages.

    async def read_page(self, subscription: Subscription) -> FeedPage:
        """Reads one page from the subscription's cursor on."""
        topic, cursor, conditions = subscription.topic, subscription.cursor, subscription.conditions
        return await self._reads.run(lambda: read_page(self._ledger, topic, cursor, conditions), heavy=True)

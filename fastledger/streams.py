"""Streams of transactions: cut into batches, submitted several at a time, answered in order.

Asynchronous ledgers and clients share :func:`outcomes_of`; those that block share :class:`BatchCutter` with it.
"""

import asyncio
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterable, Awaitable, Callable, Iterable, Iterator
from contextlib import aclosing
from typing import TypeAlias

from fastledger.errors import Code, InputError
from fastledger.model.outcome import Outcome
from fastledger.model.transaction import Transaction

Submit: TypeAlias = Callable[[list[bytes]], Awaitable[list[Outcome]]]
IN_FLIGHT = 4
BATCH_TRANSACTIONS = 1_000
BATCH_BYTES = 4 * 1024 * 1024


def encoded_of(item: bytes | Transaction) -> bytes:
    """Returns the bytes of a transaction that is given as an object or encoded."""
    return item.encoded if isinstance(item, Transaction) else bytes(memoryview(item))


def check_in_flight(in_flight: int) -> None:
    """Raises ``InputError`` with ``BAD_QUERY`` where a stream would have no batch under way."""
    if in_flight < 1:
        raise InputError("a stream needs a batch in flight", code=Code.BAD_QUERY)


class BatchCutter:
    """Gathers transactions, and gives a batch away whenever one more would exceed its bounds."""

    def __init__(
        self, *, transactions_max: int = BATCH_TRANSACTIONS, bytes_max: int = BATCH_BYTES
    ) -> None:
        """A single transaction longer than ``bytes_max`` is a batch of its own."""
        self._transactions_max = transactions_max
        self._bytes_max = bytes_max
        self._batch: list[bytes] = []
        self._size = 0

    def add(self, item: bytes | Transaction) -> list[bytes] | None:
        """Takes a transaction in; returns the batch that was full before it, or None."""
        encoded = encoded_of(item)
        is_full = len(self._batch) >= self._transactions_max or self._size + len(encoded) > self._bytes_max
        full = self.rest() if self._batch and is_full else None
        self._batch.append(encoded)
        self._size += len(encoded)
        return full

    def rest(self) -> list[bytes]:
        """Returns what has gathered, and begins anew."""
        batch, self._batch, self._size = self._batch, [], 0
        return batch

    def cut(self, transactions: Iterable[bytes | Transaction]) -> Iterator[list[bytes]]:
        """Yields all of ``transactions`` in batches."""
        for item in transactions:
            full = self.add(item)
            if full is not None:
                yield full
        rest = self.rest()
        if rest:
            yield rest


async def outcomes_of(
    submit: Submit,
    transactions: AsyncIterable[bytes | Transaction] | Iterable[bytes | Transaction],
    *,
    in_flight: int,
    cutter: BatchCutter,
) -> AsyncGenerator[Outcome, None]:
    """Yields the verdicts on a stream in its order, with at most ``in_flight`` batches under way.

    Whoever stops early cancels the submissions that are under way; their transactions may be durable all the same.
    """
    check_in_flight(in_flight)
    running: deque[asyncio.Task[list[Outcome]]] = deque()
    try:
        async with aclosing(_batches(transactions, cutter)) as batches:
            async for batch in batches:
                if len(running) >= in_flight:
                    for outcome in await running.popleft():
                        yield outcome
                running.append(asyncio.ensure_future(submit(batch)))
        while running:
            for outcome in await running.popleft():
                yield outcome
    finally:
        for task in running:
            task.cancel()
        await asyncio.gather(*running, return_exceptions=True)


async def _batches(
    transactions: AsyncIterable[bytes | Transaction] | Iterable[bytes | Transaction], cutter: BatchCutter
) -> AsyncGenerator[list[bytes], None]:
    if not isinstance(transactions, AsyncIterable):
        for batch in cutter.cut(transactions):
            yield batch
        return
    async for item in transactions:
        full = cutter.add(item)
        if full is not None:
            yield full
    rest = cutter.rest()
    if rest:
        yield rest

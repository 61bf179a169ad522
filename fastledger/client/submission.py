"""Batches as they go to a node: one body, with the ids of what is in it, from one native pass."""

import asyncio
from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate

from fastledger._native.scan import scan_many, split
from fastledger.errors import Code, InputError
from fastledger.model.outcome import Outcome
from fastledger.model.transaction import Transaction
from fastledger.streams import encoded_of

# Scanning so many takes less than a millisecond, handing them to a thread a tenth of one.
_INLINE_TRANSACTIONS_MAX = 64


@dataclass(frozen=True, slots=True)
class Chunk:
    """Transactions of one request: ``places`` are their positions in what the caller gave."""

    body: bytes
    txids: list[bytes]
    places: Sequence[int]


@dataclass(frozen=True, slots=True)
class Prepared:
    """A batch cut into requests. ``rejected`` are those whose form no node accepts, judged here (SPEC-CLI-3)."""

    count: int
    chunks: list[Chunk]
    rejected: dict[int, Outcome]


def prepare(batch: Sequence[bytes | Transaction], *, transactions_max: int, bytes_max: int) -> Prepared:
    """Scans a batch and cuts it, in its order, into requests of at most so many transactions and bytes.

    A malformed transaction would break the framing of the others; it gets the verdict that the node's border has for
    it, and is not sent.
    """
    encoded = [encoded_of(item) for item in batch]
    body = b"".join(encoded)
    scan = scan_many(body, array("Q", accumulate(map(len, encoded), initial=0)))
    txids = [scan.txids[place : place + 32] for place in range(0, 32 * len(encoded), 32)]
    if scan.all_ok and len(encoded) <= transactions_max and len(body) <= bytes_max:
        chunks = [Chunk(body, txids, range(len(encoded)))] if encoded else []
        return Prepared(len(encoded), chunks, {})
    rejected = {
        place: Outcome(txids[place], Code(status)) for place, status in enumerate(scan.statuses) if status
    }
    standing = [place for place in range(len(encoded)) if place not in rejected]
    chunks = []
    for places in _runs(standing, [len(item) for item in encoded], transactions_max, bytes_max):
        joined = b"".join(encoded[place] for place in places)
        chunks.append(Chunk(joined, [txids[place] for place in places], places))
    return Prepared(len(encoded), chunks, rejected)


async def prepare_off_loop(
    batch: Sequence[bytes | Transaction], *, transactions_max: int, bytes_max: int
) -> Prepared:
    """Returns what :func:`prepare` does; a batch of more than a few transactions is scanned on another thread."""
    if len(batch) <= _INLINE_TRANSACTIONS_MAX:
        return prepare(batch, transactions_max=transactions_max, bytes_max=bytes_max)
    return await asyncio.to_thread(prepare, batch, transactions_max=transactions_max, bytes_max=bytes_max)


def _runs(places: Sequence[int], sizes: Sequence[int], count_max: int, bytes_max: int) -> Iterator[list[int]]:
    run: list[int] = []
    room = bytes_max
    for place in places:
        if run and (len(run) >= count_max or sizes[place] > room):
            yield run
            run, room = [], bytes_max
        run.append(place)
        room -= sizes[place]
    if run:
        yield run


def cut_sequence(data: bytes, *, transactions_max: int) -> Iterator[list[bytes]]:
    """A CBOR sequence of transactions, as from a file, in batches; raises ``InputError`` naming the bad byte."""
    view, start = memoryview(data), 0
    while start < len(data):
        offsets, status, problem = split(view[start:], count_max=transactions_max)
        count = len(offsets) - 1
        if count:
            yield [bytes(view[start + offsets[i] : start + offsets[i + 1]]) for i in range(count)]
        if status not in (Code.OK, Code.OVERSIZED) or not count:
            code = Code(status)
            raise InputError(f"{code.text} (byte {start + problem})", code=code)
        start += offsets[count]

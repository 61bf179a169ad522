"""The tracking of submitted batches: from chain events to verdicts (SPEC-FORK-12).

Pure bookkeeping. A batch is *ordered* once each of its transactions stands in the best chain (a reorganisation may
take that back, and nobody is told), *durable* once each is final. A transaction that can enter no block any more,
because a final block's time has passed its window, is EXPIRED; nothing before that is certain.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Generic, NamedTuple, TypeVar

from fastledger.chain.forks.events import BlockConnected, BlocksFinal, ChainEvent
from fastledger.errors import Code
from fastledger.model.outcome import Outcome

TicketT = TypeVar("TicketT")


class Verdicts(NamedTuple, Generic[TicketT]):
    """The verdicts on one batch, in its order, at one stage."""

    ticket: TicketT
    outcomes: list[Outcome]


class Answers(NamedTuple, Generic[TicketT]):
    """The batches that reached a stage, with their verdicts."""

    ordered: list[Verdicts[TicketT]]
    durable: list[Verdicts[TicketT]]


@dataclass(eq=False)
class _Batch(Generic[TicketT]):
    ticket: TicketT
    verdicts: list[Outcome | None]
    # How many are not in the best chain yet, and not final yet.
    unordered: int = 0
    unsettled: int = 0
    told: bool = False

    def outcomes(self) -> list[Outcome]:
        return [verdict for verdict in self.verdicts if verdict is not None]


@dataclass(slots=True, eq=False)
class _Place(Generic[TicketT]):
    """The place of one transaction in one batch, while it is not final."""

    batch: _Batch[TicketT]
    index: int
    duplicate: bool
    expires_ms: int
    is_ordered: bool = field(default=False)


class SubmissionTracker(Generic[TicketT]):
    """Tracks batches, each known by its ``ticket``, until they are durable."""

    def __init__(self) -> None:
        self._waiting: dict[bytes, list[_Place[TicketT]]] = {}
        self._batches: dict[int, _Batch[TicketT]] = {}
        self._first_expiry_ms = 0

    def __len__(self) -> int:
        """Returns how many batches are not durable."""
        return len(self._batches)

    @property
    def tickets(self) -> list[TicketT]:
        """The tickets of the batches that are not durable."""
        return [batch.ticket for batch in self._batches.values()]

    def add(
        self,
        ticket: TicketT,
        txids: Sequence[bytes],
        codes: Sequence[Code],
        expires_ms: Sequence[int],
        known: Mapping[bytes, Outcome],
        final_height: int,
    ) -> Answers[TicketT]:
        """Begins to track a batch; answers at once where there is nothing to wait for.

        ``codes`` are the border's; ``known`` are the verdicts on those of ``txids`` that the best chain holds, final
        up to ``final_height``. A DUPLICATE that the chain does not hold waits in the pool, and is waited for.
        """
        batch = _Batch(ticket, [None] * len(txids))
        for index, (txid, code) in enumerate(zip(txids, codes, strict=True)):
            verdict = known.get(txid)
            if verdict is None and code not in (Code.OK, Code.DUPLICATE):
                batch.verdicts[index] = Outcome(txid, code)
                continue
            batch.verdicts[index] = verdict
            if verdict is not None and verdict.height is not None and verdict.height <= final_height:
                continue
            duplicate = verdict is not None or code == Code.DUPLICATE
            self._wait(txid, _Place(batch, index, duplicate, expires_ms[index], verdict is not None))
        if batch.unsettled:
            self._batches[id(batch)] = batch
        return self._answers([batch])

    def _wait(self, txid: bytes, place: _Place[TicketT]) -> None:
        if not self._waiting or place.expires_ms < self._first_expiry_ms:
            self._first_expiry_ms = place.expires_ms
        self._waiting.setdefault(txid, []).append(place)
        place.batch.unsettled += 1
        place.batch.unordered += not place.is_ordered

    def consume(self, events: Sequence[ChainEvent]) -> Answers[TicketT]:
        """Takes chain events and returns the batches that reached a stage by them."""
        touched: dict[int, _Batch[TicketT]] = {}
        for event in events:
            if isinstance(event, BlockConnected):
                self._order(event, touched)
            elif isinstance(event, BlocksFinal):
                for layer in event.layers:
                    self._settle(layer.txids, touched)
                self._expire(event.layers[-1].entry.time_ms, touched)
        return self._answers(list(touched.values()))

    def _order(self, event: BlockConnected, touched: dict[int, _Batch[TicketT]]) -> None:
        if not self._waiting:
            return
        for index, txid in enumerate(event.txids):
            for place in self._waiting.get(txid, ()):
                batch = place.batch
                code = Code(event.codes[index])
                batch.verdicts[place.index] = Outcome(txid, code, event.height, index, place.duplicate)
                # What a reorganisation took back was told, if it was, and is not told again.
                batch.unordered -= not place.is_ordered
                place.is_ordered = True
                touched[id(batch)] = batch

    def _settle(self, txids: Mapping[bytes, int], touched: dict[int, _Batch[TicketT]]) -> None:
        if not self._waiting:
            return
        for txid in txids:
            for place in self._waiting.pop(txid, ()):
                place.batch.unsettled -= 1
                touched[id(place.batch)] = place.batch

    def _expire(self, final_ms: int, touched: dict[int, _Batch[TicketT]]) -> None:
        if not self._waiting or self._first_expiry_ms > final_ms:
            return
        # A block's time has to be later than its parent's: at this one's the window was open for the last time.
        for txid, places in list(self._waiting.items()):
            for place in [place for place in places if place.expires_ms <= final_ms]:
                place.batch.verdicts[place.index] = Outcome(txid, Code.EXPIRED)
                place.batch.unordered -= not place.is_ordered
                place.batch.unsettled -= 1
                touched[id(place.batch)] = place.batch
                places.remove(place)
            if not places:
                del self._waiting[txid]
        expiries = (place.expires_ms for places in self._waiting.values() for place in places)
        self._first_expiry_ms = min(expiries, default=0)

    def _answers(self, batches: Sequence[_Batch[TicketT]]) -> Answers[TicketT]:
        answers: Answers[TicketT] = Answers([], [])
        for batch in batches:
            if not batch.unordered and not batch.told:
                batch.told = True
                answers.ordered.append(Verdicts(batch.ticket, batch.outcomes()))
            if not batch.unsettled:
                self._batches.pop(id(batch), None)
                answers.durable.append(Verdicts(batch.ticket, batch.outcomes()))
        return answers

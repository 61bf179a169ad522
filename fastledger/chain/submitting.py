"""The part of the façade that takes transactions in, by the batch and by the stream."""

from abc import abstractmethod
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future

from fastledger.chain.stages import Submission
from fastledger.model.outcome import Outcome, Wait, check_wait
from fastledger.model.transaction import Transaction
from fastledger.streams import IN_FLIGHT, BatchCutter, check_in_flight


class Submitting:
    """The part of :class:`fastledger.Ledger` that submits. Every method may be called from any thread."""

    @abstractmethod
    def begin(
        self, batch: Sequence[bytes | Transaction], blobs: Sequence[bytes] = (), *, wait: bool = False
    ) -> Submission:
        """Submits a batch and returns it with every stage of its way."""

    def submit(
        self,
        batch: Sequence[bytes | Transaction],
        blobs: Sequence[bytes] = (),
        *,
        wait: Wait = "durable",
    ) -> list[Outcome]:
        """Returns the verdicts on a batch, in its order, once they are durable.

        ``blobs`` are the envelopes that its records name; they are stored, and synced, first. With ``wait`` *accepted*
        or *ordered* the verdicts come earlier and promise less. A bad transaction gets its own outcome and the rest
        goes through. A full queue is waited for. Raises ``StorageFullError`` or ``LedgerHaltedError`` where nothing
        can be promised: what was not acknowledged may be sent again, the same transaction enters once.
        """
        check_wait(wait)
        return verdicts(self.begin(batch, blobs, wait=True), wait)

    def submit_nowait(
        self, batch: Sequence[bytes | Transaction], blobs: Sequence[bytes] = ()
    ) -> "Future[list[Outcome]]":
        """Submits a batch as :meth:`submit` does, and returns a future once the batch passed the border.

        Raises ``LedgerBusyError`` with ``retry_after_ms`` where the queue is full.
        """
        return self.begin(batch, blobs).durable

    def submit_stream(
        self,
        transactions: Iterable[bytes | Transaction],
        *,
        in_flight: int = IN_FLIGHT,
        wait: Wait = "durable",
    ) -> Iterator[Outcome]:
        """Yields the verdicts on a stream of transactions in its order; at most ``in_flight`` batches are under way.

        Batches that are under way together may enter the chain in either order: transactions that depend on others of
        the stream need ``in_flight=1``. Envelopes have to be stored before, with :meth:`store_blobs`. Raises what
        :meth:`submit` does, and ``InputError`` with ``BAD_QUERY`` where ``in_flight`` is less than 1.
        """
        check_in_flight(in_flight)
        check_wait(wait)
        running: deque[Submission] = deque()
        for batch in BatchCutter().cut(transactions):
            if len(running) >= in_flight:
                yield from verdicts(running.popleft(), wait)
            running.append(self.begin(batch, wait=True))
        while running:
            yield from verdicts(running.popleft(), wait)


def verdicts(submission: Submission, wait: Wait) -> list[Outcome]:
    """Returns the verdicts on a batch once it has come as far as ``wait`` says."""
    if wait == "accepted":
        return submission.accepted
    return (submission.ordered if wait == "ordered" else submission.durable).result()

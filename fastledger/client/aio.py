"""The client for asyncio: a node's ledger as :class:`fastledger.AsyncLedger` has one of its own.

    >>> async with await AsyncClient.connect("https://node:8443", token=token) as client:    # doctest: +SKIP
    ...     outcomes = await client.submit(batch, blobs)

Whatever can be repeated safely is repeated until the deadline of :class:`Retry`: transactions enter once, envelopes
are stored once, and an access read resumes by its ticket. Payloads are never logged.
"""

import asyncio
import time
from collections.abc import AsyncGenerator, AsyncIterable, Callable, Iterable, Sequence
from contextlib import aclosing, suppress
from dataclasses import dataclass, field
from types import TracebackType
from typing import Self, TypeVar

from fastledger.client.calls import Calls
from fastledger.client.follow import Follower, conditions_of
from fastledger.client.http import ClientTls, HttpTransport, load_http, tls_context
from fastledger.client.operating import NodeOperator
from fastledger.client.retry import Retry
from fastledger.client.submission import Chunk, prepare_off_loop
from fastledger.client.transfer import Transfers
from fastledger.client.views import bad_answer
from fastledger.errors import Code, InputError, NotFoundError, TransactionError, UnreachableError
from fastledger.limits import (
    BATCH_BYTES_MAX,
    BATCH_TRANSACTIONS_MAX,
    TRANSACTION_BYTES_MAX,
)
from fastledger.model.following import FollowEvent, FollowPage
from fastledger.model.outcome import Outcome, Wait, check_wait
from fastledger.model.query import Entry, Topic
from fastledger.model.transaction import Transaction
from fastledger.rpc.protocol import CBOR_SEQUENCE_TYPE, decode_outcomes
from fastledger.streams import (
    BATCH_BYTES,
    BATCH_TRANSACTIONS,
    IN_FLIGHT,
    BatchCutter,
    encoded_of,
    outcomes_of,
)
from fastledger.subjects.access import AccessRead
from fastledger.subjects.consent import Purpose
from fastledger.subjects.record import RECORDS
from fastledger.wallet.wallet import SealedRecord, Wallet

T = TypeVar("T")
WAIT_FOR_MS_MAX = 500
ACCESSES_MAX = 3
TRANSACTIONS_PATH = "/v1/transactions"


@dataclass(frozen=True, slots=True, kw_only=True)
class ClientOptions:
    """Bounds of one client. A request carries at most so many transactions and bytes; longer batches take several."""

    retry: Retry = field(default_factory=Retry)
    connections_max: int = 16
    connect_timeout_ms: int = 5_000
    request_timeout_ms: int = 30_000
    batch_transactions: int = BATCH_TRANSACTIONS
    batch_bytes: int = BATCH_BYTES

    def __post_init__(self) -> None:
        """Refuses bounds that no node grants."""
        counts = 1 <= self.batch_transactions <= BATCH_TRANSACTIONS_MAX and self.connections_max > 0
        sizes = TRANSACTION_BYTES_MAX <= self.batch_bytes <= BATCH_BYTES_MAX
        if not counts or not sizes or min(self.connect_timeout_ms, self.request_timeout_ms) <= 0:
            raise InputError("the client's options are out of bounds", code=Code.BAD_QUERY)


class AsyncClient(NodeOperator):
    """A node over the network; make one with :meth:`connect`, on the event loop that uses it."""

    options: ClientOptions

    def __init__(self, transport: HttpTransport, options: ClientOptions) -> None:
        """Use :meth:`connect`."""
        super().__init__(Calls(transport), options.retry)
        self.options = options
        self._transport = transport
        self._transfers = Transfers(transport, self._calls, options.retry)

    @classmethod
    async def connect(
        cls,
        url: str,
        *,
        token: str | None = None,
        tls: ClientTls | None = None,
        chain_id: bytes | None = None,
        options: ClientOptions | None = None,
    ) -> Self:
        """A client of the node at ``url`` (``https://host:port``), once the node has answered.

        ``token`` goes along as a bearer token; ``tls`` says whom to trust and holds a client's certificate.
        ``chain_id`` pins the chain: ``InputError`` with ``WRONG_CHAIN`` for a node of another. Raises
        ``UnreachableError`` where no node answers, or one of another protocol version (SPEC-CLI-2).
        """
        options = options or ClientOptions()
        await load_http()
        transport = HttpTransport(
            url,
            token=token,
            context=await tls_context(url, tls),
            connections_max=options.connections_max,
            connect_timeout_ms=options.connect_timeout_ms,
            request_timeout_ms=options.request_timeout_ms,
        )
        client = cls(transport, options)
        try:
            client.genesis = await client.fetch_genesis(chain_id)
        except BaseException:
            await client.close()
            raise
        return client

    def __repr__(self) -> str:
        chain = f" chain {self.chain_id.hex()}" if hasattr(self, "genesis") else ""
        return f"<{type(self).__name__} {self.url}{chain}>"

    @property
    def url(self) -> str:
        """The node's address."""
        return self._transport.url

    # Submitting.

    async def submit(
        self,
        batch: Sequence[bytes | Transaction],
        blobs: Sequence[bytes] = (),
        *,
        wait: Wait = "durable",
    ) -> list[Outcome]:
        """Returns the verdicts on a batch, in its order, once they are durable.

        ``blobs`` are the envelopes that its records name; they are stored, and synced, first. With ``wait`` *accepted*
        or *ordered* the verdicts come earlier and promise less. A bad transaction gets its own outcome and the rest
        goes through. The requests that a long batch takes go one after another, so what depends on earlier
        transactions of the batch finds them there. Where an answer was lost, the repetition finds the first verdict
        and says so by ``duplicate``.
        """
        check_wait(wait)
        if blobs:
            await self._transfers.store(blobs)
        outcomes = await self._submit_all(batch, wait)
        if blobs:
            await self._mend_missing(batch, blobs, outcomes, wait)
        return outcomes

    async def _submit_all(self, batch: Sequence[bytes | Transaction], wait: Wait) -> list[Outcome]:
        prepared = await prepare_off_loop(
            batch,
            transactions_max=self.options.batch_transactions,
            bytes_max=self.options.batch_bytes,
        )
        if not prepared.rejected and len(prepared.chunks) == 1:
            return await self._submit_chunk(prepared.chunks[0], wait)
        placed = dict(prepared.rejected)
        for chunk in prepared.chunks:
            placed.update(zip(chunk.places, await self._submit_chunk(chunk, wait), strict=True))
        return [placed[place] for place in range(prepared.count)]

    async def _submit_chunk(self, chunk: Chunk, wait: Wait) -> list[Outcome]:
        async def attempt() -> list[Outcome]:
            answer = await self._transport.exchange(
                "POST",
                f"{TRANSACTIONS_PATH}?wait={wait}",
                body=chunk.body,
                headers={"Content-Type": CBOR_SEQUENCE_TYPE},
                answer_bytes_max=32 * len(chunk.txids) + 4096,
            )
            try:
                given, outcomes = decode_outcomes(answer.body, chunk.txids)
            except InputError as error:
                raise UnreachableError(error.args[0], transient=False) from None
            if given != wait:
                raise bad_answer("answer to a batch")
            return outcomes

        return await self._retry.run(attempt)

    async def _mend_missing(
        self,
        batch: Sequence[bytes | Transaction],
        blobs: Sequence[bytes],
        outcomes: list[Outcome],
        wait: Wait,
    ) -> None:
        """An envelope may have been collected as an orphan since the node said that it has it: send it again."""
        places = [place for place, outcome in enumerate(outcomes) if outcome.code == Code.BLOB_MISSING]
        if not places:
            return
        await self._transfers.store(blobs, ask=False)
        again = await self._submit_all([batch[place] for place in places], wait)
        for place, outcome in zip(places, again, strict=True):
            outcomes[place] = outcome

    async def submit_stream(
        self,
        transactions: AsyncIterable[bytes | Transaction] | Iterable[bytes | Transaction],
        *,
        in_flight: int = IN_FLIGHT,
        wait: Wait = "durable",
    ) -> AsyncGenerator[Outcome, None]:
        """Yields the verdicts on a stream of transactions in its order; at most ``in_flight`` batches are under way.

        Batches that are under way together may enter the chain in either order: transactions that depend on others of
        the stream need ``in_flight=1``. Envelopes have to be stored before, with :meth:`store_blobs`. Raises what
        :meth:`submit` does, and ``InputError`` with ``BAD_QUERY`` where ``in_flight`` is less than 1.
        """
        cutter = BatchCutter(
            transactions_max=self.options.batch_transactions, bytes_max=self.options.batch_bytes
        )
        outcomes = outcomes_of(
            lambda batch: self._submit_all(batch, wait), transactions, in_flight=in_flight, cutter=cutter
        )
        async with aclosing(outcomes):
            async for outcome in outcomes:
                yield outcome

    async def store_blobs(self, blobs: Sequence[bytes]) -> list[bytes]:
        """Has the node keep envelopes ahead of the records that name them; returns their digests once they are synced.

        Each is sent once, and those that the node has not at all. Raises ``LedgerBusyError`` where too many wait for a
        record already.
        """
        return await self._transfers.store(blobs)

    async def missing_blobs(self, digests: Sequence[bytes]) -> list[bytes]:
        """Returns those of ``digests`` whose envelopes have to be stored before a record may name them."""
        return await self._transfers.missing(digests)

    async def wait_for(self, txid: bytes, *, timeout_ms: int = 60_000) -> Entry:
        """Returns the transaction ``txid`` once it is durable, whoever submitted it.

        Raises ``NotFoundError`` where it is not durable after ``timeout_ms``.
        """
        ends = time.monotonic() + timeout_ms / 1000
        wait_s = 0.005
        while True:
            with suppress(NotFoundError):
                return await self.get(txid)
            if time.monotonic() + wait_s > ends:
                raise NotFoundError(f"transaction {txid.hex()} is not durable after {timeout_ms} ms")
            await asyncio.sleep(wait_s)
            wait_s = min(2 * wait_s, WAIT_FOR_MS_MAX / 1000)

    # Records.

    async def read(self, access: bytes | Transaction) -> bytes:
        """Submits a signed ``access.read`` and returns the whole envelope, once the read stands in the audit.

        Raises ``AccessRefused`` where the rules refuse (the refusal is audited too), ``TransactionError`` where the
        transaction is rejected or was used before.
        """
        transaction = access if isinstance(access, Transaction) else Transaction.decode(encoded_of(access))
        if not isinstance(transaction.body, AccessRead):
            raise InputError(
                f"a read is asked for by access.read, not {transaction.kind}", code=Code.BAD_BODY
            )
        return await self._transfers.read(transaction)

    async def put_record(
        self, wallet: Wallet, folder: str | bytes, content: bytes, terms: Iterable[str] = ()
    ) -> SealedRecord:
        """Seals ``content`` with the wallet's key of ``folder`` (a label or an id) and has it durable.

        ``terms`` are what it can be found by. Returns the sealed record with its ids. Raises ``TransactionError`` with
        the code where the record is rejected or refused, and ``EnvelopeError`` where the wallet has no such key.
        """
        # Sealing takes as long as the content is; the wallet is only read.
        sealed = await asyncio.to_thread(wallet.put_record, folder, content, terms)
        (outcome,) = await self.submit([sealed.transaction], [sealed.blob])
        outcome.raise_for_status()
        return sealed

    async def read_record(
        self, wallet: Wallet, record: bytes, purpose: Purpose, *, version: int = 0
    ) -> bytes:
        """Reads a record through the audit and returns its content, opened with the wallet's folder key.

        Version 0 is the present one. Where the answer was lost for good another access is signed: the audit then has
        two. Raises what :meth:`read` does, and ``EnvelopeError`` where the wallet has no key that opens the envelope.
        """
        envelope = await self._read_again(lambda: wallet.access(record, purpose, version=version))
        state = await self.entity(RECORDS, record)
        return await asyncio.to_thread(
            wallet.open_record,
            envelope,
            folder=state.folder,
            record=record,
            version=version or state.version,
        )

    async def _read_again(self, sign: Callable[[], Transaction]) -> bytes:
        for _ in range(ACCESSES_MAX - 1):
            try:
                return await self.read(sign())
            except TransactionError as error:
                if error.code != Code.DUPLICATE:
                    raise
        return await self.read(sign())

    # Following.

    async def follow(
        self,
        topic: Topic = "transactions",
        *,
        cursor: int | None = None,
        kind: str | None = None,
        signed_by: bytes | None = None,
        subject: bytes | None = None,
    ) -> AsyncGenerator[FollowEvent, None]:
        """Yields durable events without end, each once and none left out, also across reconnects (SPEC-CLI-6).

        The topic is *transactions*, *blocks* or *alerts*; ``kind``, ``signed_by`` and ``subject`` (16-byte ids)
        are conditions on transactions. ``cursor`` resumes behind the event that had it; 0 is the beginning, None means
        from now on. Raises ``InputError`` with ``BAD_QUERY`` for conditions that make no sense, and the last error once
        the node was silent for the deadline of the retries.
        """
        pages = self.follow_pages(topic, cursor=cursor, kind=kind, signed_by=signed_by, subject=subject)
        async with aclosing(pages):
            async for page in pages:
                for event in page.events:
                    yield event

    async def follow_pages(
        self,
        topic: Topic = "transactions",
        *,
        cursor: int | None = None,
        kind: str | None = None,
        signed_by: bytes | None = None,
        subject: bytes | None = None,
    ) -> AsyncGenerator[FollowPage, None]:
        """Yields what :meth:`follow` does by the page, with the cursor behind what the conditions passed over.

        The first page that has caught up with the chain comes even if it is empty. Raises what :meth:`follow` does.
        """
        conditions = conditions_of(topic, kind, signed_by, subject)
        follower = Follower(self._transport, self._retry, topic, cursor, conditions)
        async with aclosing(follower.pages()) as pages:
            async for page in pages:
                yield page

    async def close(self) -> None:
        """Closes the connections; what waits gets ``UnreachableError``. May be called twice."""
        await self._calls.close()
        await self._transport.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.close()

"""The client for asyncio: a node's ledger as :class:`fastledger.AsyncLedger` has one of its own.

    >>> async with await AsyncClient.connect("https://node:8443", token=token) as client:    # doctest: +SKIP
    ...     outcomes = await client.submit(batch, blobs)

Whatever can be repeated safely is repeated until the deadline of :class:`Retry`: transactions enter once, envelopes
are stored once, and an access read resumes by its ticket. Payloads are never logged.
"""

import asyncio
import time
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterable, Callable, Iterable, Sequence
from contextlib import aclosing, suppress
from dataclasses import dataclass, field
from types import TracebackType
from typing import Self, TypeVar

from fastledger.client.calls import Calls
from fastledger.client.follow import Follower, FollowEvent, FollowPage
from fastledger.client.http import ClientTls, Transport, load_http
from fastledger.client.operating import NodeOperator
from fastledger.client.retry import Retry
from fastledger.client.submission import Chunk, encoded_of, prepare
from fastledger.client.transfer import Transfers
from fastledger.client.views import strange
from fastledger.client.wallet import SealedRecord, Wallet
from fastledger.errors import Code, InputError, NotFoundError, TransactionError, UnreachableError
from fastledger.limits import (
    BATCH_BYTES_MAX,
    BATCH_TRANSACTIONS_MAX,
    TRANSACTION_BYTES_MAX,
)
from fastledger.model.outcome import Outcome, Wait
from fastledger.model.query import Entry, Topic
from fastledger.model.transaction import Transaction
from fastledger.rpc.protocol import (
    CBOR_SEQUENCE_TYPE,
    Filter,
    decode_outcomes,
)
from fastledger.subjects.access import AccessRead
from fastledger.subjects.consent import Purpose
from fastledger.subjects.record import RECORDS

T = TypeVar("T")
WAIT_FOR_MS_MAX = 500
IN_FLIGHT = 4
ACCESSES_MAX = 3
TRANSACTIONS_PATH = "/v1/transactions"


@dataclass(frozen=True, slots=True, kw_only=True)
class ClientOptions:
    """Bounds of one client. A request carries at most so many transactions and bytes; longer batches take several."""

    retry: Retry = field(default_factory=Retry)
    connections_max: int = 16
    connect_timeout_ms: int = 5_000
    request_timeout_ms: int = 30_000
    batch_transactions: int = 1_000
    batch_bytes: int = 4 * 1024 * 1024

    def __post_init__(self) -> None:
        """Refuses bounds that no node grants."""
        counts = 1 <= self.batch_transactions <= BATCH_TRANSACTIONS_MAX and self.connections_max > 0
        sizes = TRANSACTION_BYTES_MAX <= self.batch_bytes <= BATCH_BYTES_MAX
        if not counts or not sizes or min(self.connect_timeout_ms, self.request_timeout_ms) <= 0:
            raise InputError("the client's options are out of bounds", code=Code.BAD_QUERY)


class AsyncClient(NodeOperator):
    """A node over the network; make one with :meth:`connect`, on the event loop that uses it."""

    def __init__(self, transport: Transport, options: ClientOptions) -> None:
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
        transport = Transport(
            url,
            token=token,
            tls=tls,
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
        """The verdicts on a batch, in its order, once they are durable; the envelopes are stored first.

        With ``wait`` *accepted* or *ordered* the answer comes earlier and promises less. The requests that a long batch
        takes go one after another, so what depends on earlier transactions of the batch finds them there. Where an
        answer was lost, the repetition finds the first verdict and says so by ``duplicate``.
        """
        if blobs:
            await self._transfers.store(blobs)
        outcomes = await self._submit_all(batch, wait)
        if blobs:
            await self._mend_missing(batch, blobs, outcomes, wait)
        return outcomes

    async def _submit_all(self, batch: Sequence[bytes | Transaction], wait: Wait) -> list[Outcome]:
        prepared = prepare(
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
                raise strange("answer to a batch")
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
        """The verdicts on a stream, in its order; at most ``in_flight`` batches are under way.

        Batches that are under way together may enter the chain in either order: transactions that depend on others of
        the stream need ``in_flight=1``. Envelopes have to be stored before (:meth:`store_blobs`).
        """
        if in_flight < 1:
            raise InputError("a stream needs a batch in flight", code=Code.BAD_QUERY)
        running: deque[asyncio.Task[list[Outcome]]] = deque()
        try:
            async with aclosing(_batches(transactions, self.options)) as batches:
                async for batch in batches:
                    if len(running) >= in_flight:
                        for outcome in await running.popleft():
                            yield outcome
                    running.append(asyncio.create_task(self._submit_all(batch, wait)))
            while running:
                for outcome in await running.popleft():
                    yield outcome
        finally:
            for task in running:
                task.cancel()
            await asyncio.gather(*running, return_exceptions=True)

    async def store_blobs(self, blobs: Sequence[bytes]) -> list[bytes]:
        """Has the node keep envelopes, each once; returns their digests once they are synced."""
        return await self._transfers.store(blobs)

    async def wait_for(self, txid: bytes, *, timeout_ms: int = 60_000) -> Entry:
        """The transaction ``txid`` once it is durable, whoever submitted it; ``NotFoundError`` if not in time."""
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
        """Submits a signed ``access.read`` and returns the envelope, once the read stands in the audit.

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
        """Seals ``content`` with the wallet's folder key and has it durable; raises where it is not."""
        sealed = wallet.put_record(folder, content, terms)
        (outcome,) = await self.submit([sealed.transaction], [sealed.blob])
        outcome.raise_for_status()
        return sealed

    async def read_record(
        self, wallet: Wallet, record: bytes, purpose: Purpose, *, version: int = 0
    ) -> bytes:
        """Reads a record through the audit and opens it with the wallet's folder key; version 0 is the present one.

        Where the answer was lost for good another access is signed: the audit then has two.
        """
        envelope = await self._read_again(lambda: wallet.access(record, purpose, version=version))
        state = await self.entity(RECORDS, record)
        return wallet.open_record(
            envelope, folder=state.folder, record=record, version=version or state.version
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
        filter: Filter | None = None,
    ) -> AsyncGenerator[FollowEvent, None]:
        """Events without end, each once and none left out, across reconnects (SPEC-CLI-6).

        ``cursor`` resumes behind the event that had it; 0 is the beginning, None means from now on. Raises the last
        error once the node was silent for the deadline of the retries.
        """
        async with aclosing(self.follow_pages(topic, cursor=cursor, filter=filter)) as pages:
            async for page in pages:
                for event in page.events:
                    yield event

    async def follow_pages(
        self,
        topic: Topic = "transactions",
        *,
        cursor: int | None = None,
        filter: Filter | None = None,
    ) -> AsyncGenerator[FollowPage, None]:
        """Gives the events of :meth:`follow` by the page, with the cursor behind what a filter passed over."""
        follower = Follower(self._transport, self._retry, topic, cursor, filter)
        async with aclosing(follower.pages()) as pages:
            async for page in pages:
                yield page

    async def close(self) -> None:
        """Closes the connections; what waits gets ``UnreachableError``."""
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


async def _batches(
    transactions: AsyncIterable[bytes | Transaction] | Iterable[bytes | Transaction], options: ClientOptions
) -> AsyncGenerator[list[bytes], None]:
    """A stream cut into batches of one request each."""
    batch: list[bytes] = []
    size = 0
    async with aclosing(_each(transactions)) as items:
        async for item in items:
            encoded = encoded_of(item)
            if batch and (
                len(batch) >= options.batch_transactions or size + len(encoded) > options.batch_bytes
            ):
                yield batch
                batch, size = [], 0
            batch.append(encoded)
            size += len(encoded)
    if batch:
        yield batch


async def _each(
    items: AsyncIterable[bytes | Transaction] | Iterable[bytes | Transaction],
) -> AsyncGenerator[bytes | Transaction, None]:
    if isinstance(items, AsyncIterable):
        async for item in items:
            yield item
    else:
        for item in items:
            yield item

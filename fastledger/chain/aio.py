"""The façade for asyncio (uvloop or any other loop): no hashing, rule or disk access runs on the loop."""

import asyncio
from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar

from fastledger.chain.ledger import Ledger
from fastledger.chain.options import LedgerOptions
from fastledger.crypto.signing import SigningKey
from fastledger.model.genesis import Authority, Genesis
from fastledger.model.outcome import Outcome
from fastledger.model.query import Entry, Page, Query
from fastledger.model.reports import VerifyReport
from fastledger.model.transaction import Transaction
from fastledger.pace import Progress

T = TypeVar("T")


class AsyncLedger:
    """The methods of a :class:`Ledger` as coroutines; concurrent ``submit`` calls overlap their stages."""

    def __init__(self, ledger: Ledger) -> None:
        """Wraps an open ledger, which stays reachable as ``ledger``."""
        self.ledger = ledger

    @classmethod
    async def create(
        cls,
        path: str | Path,
        *,
        authorities: Sequence[Authority] = (),
        node_key: SigningKey | None = None,
        password: str | None = None,
        options: LedgerOptions | None = None,
    ) -> Self:
        """Makes a new solo ledger and opens it, as :meth:`Ledger.create` does."""
        ledger = await asyncio.to_thread(
            lambda: Ledger.create(
                path, authorities=authorities, node_key=node_key, password=password, options=options
            )
        )
        return cls(ledger)

    @classmethod
    async def join(
        cls,
        path: str | Path,
        genesis: Genesis | bytes,
        *,
        node_key: SigningKey | None = None,
        keep_key: bool = False,
        password: str | None = None,
        options: LedgerOptions | None = None,
    ) -> Self:
        """Makes the ledger of a chain that others have begun and opens it, as :meth:`Ledger.join` does."""
        ledger = await asyncio.to_thread(
            lambda: Ledger.join(
                path, genesis, node_key=node_key, keep_key=keep_key, password=password, options=options
            )
        )
        return cls(ledger)

    @classmethod
    async def open(
        cls,
        path: str | Path,
        *,
        node_key: SigningKey | None = None,
        password: str | None = None,
        options: LedgerOptions | None = None,
    ) -> Self:
        """Opens the ledger in ``path``, as :meth:`Ledger.open` does."""
        ledger = await asyncio.to_thread(
            lambda: Ledger.open(path, node_key=node_key, password=password, options=options)
        )
        return cls(ledger)

    async def submit(
        self, batch: Sequence[bytes | Transaction], blobs: Sequence[bytes] = ()
    ) -> list[Outcome]:
        """Returns the verdicts on a batch once they are durable, as :meth:`Ledger.submit` does.

        Raises ``LedgerBusyError`` where the queue is full, instead of waiting.
        """
        future = await asyncio.to_thread(self.ledger.submit_nowait, batch, blobs)
        return await asyncio.wrap_future(future)

    async def read(self, access: bytes | Transaction) -> bytes:
        """Returns the envelope that a signed ``access.read`` asks for, as :meth:`Ledger.read` does."""
        return await self._run(lambda: self.ledger.read(access))

    async def get(self, txid: bytes) -> Entry:
        """Returns the transaction ``txid``, as :meth:`Ledger.get` does."""
        return await self._run(lambda: self.ledger.get(txid))

    async def query(self, query: Query | None = None, **conditions: Any) -> Page:
        """Returns a page of the transactions that meet a query, as :meth:`Ledger.query` does."""
        return await self._run(lambda: self.ledger.query(query, **conditions))

    async def prove(self, txid: bytes) -> bytes:
        """Returns the transparent statement of ``txid``, as :meth:`Ledger.prove` does."""
        return await self._run(lambda: self.ledger.prove(txid))

    async def verify(self, progress: Progress | None = None) -> VerifyReport:
        """Re-checks everything from disk, as :meth:`Ledger.verify` does.

        ``progress`` is called from another thread.
        """
        return await self._run(lambda: self.ledger.verify(progress))

    async def close(self) -> None:
        """Closes the ledger, as :meth:`Ledger.close` does."""
        await self._run(self.ledger.close)

    async def _run(self, work: Callable[[], T]) -> T:
        return await asyncio.to_thread(work)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.close()

"""The part of the façade that writes, reads and proves in one call each: records by a wallet, receipts by an id."""

from abc import abstractmethod
from array import array
from collections.abc import Iterable, Sequence

from fastledger._native.scan import scan_many
from fastledger.model.block import Block
from fastledger.model.genesis import Genesis
from fastledger.model.outcome import Outcome
from fastledger.model.query import Entry
from fastledger.model.receipt import Verified, make_receipt, make_statement, verify_statement
from fastledger.model.transaction import Transaction
from fastledger.state.entity import EntityT, EntityTable, KeyValue
from fastledger.subjects.consent import Purpose
from fastledger.subjects.record import RECORDS
from fastledger.wallet.wallet import SealedRecord, Wallet


class RecordCalls:
    """The part of :class:`fastledger.Ledger` for records and proofs. Every method may be called from any thread."""

    genesis: Genesis

    @abstractmethod
    def submit(self, batch: Sequence[bytes | Transaction], blobs: Sequence[bytes] = ()) -> list[Outcome]:
        """Returns the verdicts on a batch."""

    @abstractmethod
    def read(self, access: bytes | Transaction) -> bytes:
        """Returns the envelope that an ``access.read`` asks for."""

    @abstractmethod
    def get(self, txid: bytes) -> Entry:
        """Returns a durable transaction."""

    @abstractmethod
    def block(self, height: int) -> Block:
        """Returns a durable block."""

    @abstractmethod
    def entity(self, table: EntityTable[EntityT], *key: KeyValue) -> EntityT:
        """Returns an entity."""

    def put_record(
        self, wallet: Wallet, folder: str | bytes, content: bytes, terms: Iterable[str] = ()
    ) -> SealedRecord:
        """Seals ``content`` with the wallet's key of ``folder`` (a label or an id) and has it durable.

        ``terms`` are what it can be found by. Returns the sealed record with its ids. Raises ``TransactionError`` with
        the code where the record is rejected or refused, and ``EnvelopeError`` where the wallet has no such key.
        """
        sealed = wallet.put_record(folder, content, terms)
        (outcome,) = self.submit([sealed.transaction], [sealed.blob])
        outcome.raise_for_status()
        return sealed

    def read_record(self, wallet: Wallet, record: bytes, purpose: Purpose, *, version: int = 0) -> bytes:
        """Reads a record through the audit and returns its content, opened with the wallet's folder key.

        Version 0 is the present one. Raises what :meth:`read` does, and ``EnvelopeError`` where the wallet has no key
        that opens the envelope.
        """
        envelope = self.read(wallet.access(record, purpose, version=version))
        state = self.entity(RECORDS, record)
        return wallet.open_record(
            envelope, folder=state.folder, record=record, version=version or state.version
        )

    def prove(self, txid: bytes, *, verify: bool = False) -> bytes:
        """Returns the transparent statement of ``txid``: transaction and receipt in one, verifiable offline.

        With ``verify`` it is returned only if :meth:`verify_statement` accepts it. Raises ``NotFoundError`` where there
        is no such transaction, and ``ReceiptError`` for a statement that does not verify.
        """
        entry = self.get(txid)
        block = self.block(entry.height)
        txids = scan_many(block.transactions, array("Q", block.offsets)).txids
        statement = make_statement(entry.encoded, make_receipt(block, txids, entry.index))
        if verify:
            self.verify_statement(statement, txid)
        return statement

    def verify_statement(self, statement: bytes, txid: bytes | None = None) -> Verified:
        """Checks a transparent statement against the genesis document, and returns what it proves.

        It needs neither disk nor network. With ``txid`` the statement has to be that transaction's. Raises
        ``ReceiptError`` for a statement that does not verify or is another's.
        """
        return verify_statement(
            statement, chain_id=self.genesis.chain_id, proposers=self.genesis.proposers, txid=txid
        )

"""FastLedger: an embeddable, permissioned ledger engine for medical transactions.

    >>> from fastledger import Ledger, Wallet        # the ledger of a node, the keys of an identity
"""

from fastledger.chain.aio import AsyncLedger
from fastledger.chain.ledger import Ledger, LedgerOptions
from fastledger.chain.outcome import Outcome
from fastledger.chain.query import Entry, Page, Query
from fastledger.chain.replay import VerifyReport
from fastledger.client.wallet import SealedRecord, Wallet
from fastledger.crypto.hpke import KemSuite
from fastledger.crypto.keystore import Keystore
from fastledger.crypto.signing import SigningKey
from fastledger.errors import Code, FastLedgerError
from fastledger.model.bodies import Purpose, Right, Role
from fastledger.model.genesis import Authority, Genesis
from fastledger.model.receipt import Verified, verify_statement
from fastledger.model.transaction import Transaction
from fastledger.version import VERSION as __version__

__all__ = [
    "AsyncLedger",
    "Authority",
    "Code",
    "Entry",
    "FastLedgerError",
    "Genesis",
    "KemSuite",
    "Keystore",
    "Ledger",
    "LedgerOptions",
    "Outcome",
    "Page",
    "Purpose",
    "Query",
    "Right",
    "Role",
    "SealedRecord",
    "SigningKey",
    "Transaction",
    "Verified",
    "VerifyReport",
    "Wallet",
    "__version__",
    "verify_statement",
]

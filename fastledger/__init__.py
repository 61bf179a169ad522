"""FastLedger: an embeddable, permissioned ledger engine for medical transactions.

    >>> from fastledger import Ledger, Wallet        # the ledger of a node, the keys of an identity

Names are loaded when they are first used, so that a tool which needs one kernel does not start the whole engine.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from fastledger.version import VERSION as __version__

if TYPE_CHECKING:
    from fastledger.chain.aio import AsyncLedger
    from fastledger.chain.keeping.restore import import_blocks, restore_backup, restore_snapshot
    from fastledger.chain.ledger import Ledger
    from fastledger.chain.options import LedgerOptions
    from fastledger.client.aio import AsyncClient, ClientOptions
    from fastledger.client.api import LedgerApi
    from fastledger.client.http import ClientTls
    from fastledger.client.sync import Client
    from fastledger.client.wallet import SealedRecord, Wallet
    from fastledger.crypto.hpke import KemSuite
    from fastledger.crypto.keystore import Keystore
    from fastledger.crypto.signing import SigningKey
    from fastledger.errors import Code, FastLedgerError
    from fastledger.model.bodies import Purpose, Right, Role
    from fastledger.model.genesis import Authority, Genesis, WorkParameters
    from fastledger.model.outcome import Outcome
    from fastledger.model.query import Entry, Page, Query
    from fastledger.model.receipt import Verified, verify_statement
    from fastledger.model.reports import RestoreReport, VerifyReport
    from fastledger.model.transaction import Transaction

_HOMES = {
    "AsyncClient": "client.aio",
    "AsyncLedger": "chain.aio",
    "Authority": "model.genesis",
    "Client": "client.sync",
    "ClientOptions": "client.aio",
    "ClientTls": "client.http",
    "Code": "errors",
    "Entry": "model.query",
    "FastLedgerError": "errors",
    "Genesis": "model.genesis",
    "KemSuite": "crypto.hpke",
    "Keystore": "crypto.keystore",
    "Ledger": "chain.ledger",
    "LedgerApi": "client.api",
    "LedgerOptions": "chain.options",
    "Outcome": "model.outcome",
    "Page": "model.query",
    "Purpose": "model.bodies",
    "Query": "model.query",
    "RestoreReport": "model.reports",
    "Right": "model.bodies",
    "Role": "model.bodies",
    "SealedRecord": "client.wallet",
    "SigningKey": "crypto.signing",
    "Transaction": "model.transaction",
    "Verified": "model.receipt",
    "VerifyReport": "model.reports",
    "Wallet": "client.wallet",
    "WorkParameters": "model.genesis",
    "import_blocks": "chain.keeping.restore",
    "restore_backup": "chain.keeping.restore",
    "restore_snapshot": "chain.keeping.restore",
    "verify_statement": "model.receipt",
}

__all__ = [
    "AsyncClient",
    "AsyncLedger",
    "Authority",
    "Client",
    "ClientOptions",
    "ClientTls",
    "Code",
    "Entry",
    "FastLedgerError",
    "Genesis",
    "KemSuite",
    "Keystore",
    "Ledger",
    "LedgerApi",
    "LedgerOptions",
    "Outcome",
    "Page",
    "Purpose",
    "Query",
    "RestoreReport",
    "Right",
    "Role",
    "SealedRecord",
    "SigningKey",
    "Transaction",
    "Verified",
    "VerifyReport",
    "Wallet",
    "WorkParameters",
    "__version__",
    "import_blocks",
    "restore_backup",
    "restore_snapshot",
    "verify_statement",
]


def __getattr__(name: str) -> Any:
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module 'fastledger' has no attribute {name!r}")
    value = getattr(import_module(f"fastledger.{home}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return __all__

"""FastLedger: an embeddable, permissioned ledger engine for medical transactions.

    >>> from fastledger import Ledger, Wallet        # the ledger of a node, the keys of an identity

Names are loaded when they are first used, so that a program which needs one kernel does not start the whole engine.
Threads may ask for names at the same time: the import system lets one of them load a module while the others wait.
"""

from importlib import import_module

from fastledger.version import VERSION as __version__

TYPE_CHECKING = False  # as type checkers know it; ``typing`` itself takes longer to load than all of this

# What type checkers and editors see. A name that is added here is added to _HOMES as well; a test compares the two.
if TYPE_CHECKING:
    from fastledger.chain.aio.ledger import AsyncLedger as AsyncLedger
    from fastledger.chain.ledger import Ledger as Ledger
    from fastledger.chain.options import LedgerOptions as LedgerOptions
    from fastledger.chain.restore import import_blocks as import_blocks
    from fastledger.chain.restore import restore_backup as restore_backup
    from fastledger.chain.restore import restore_snapshot as restore_snapshot
    from fastledger.client.aio import AsyncClient as AsyncClient
    from fastledger.client.aio import ClientOptions as ClientOptions
    from fastledger.client.aio_api import AsyncLedgerApi as AsyncLedgerApi
    from fastledger.client.api import LedgerApi as LedgerApi
    from fastledger.client.http import ClientTls as ClientTls
    from fastledger.client.sync import Client as Client
    from fastledger.crypto.hpke import KemSuite as KemSuite
    from fastledger.crypto.keystore import Keystore as Keystore
    from fastledger.crypto.signing import SigningKey as SigningKey
    from fastledger.errors import Code as Code
    from fastledger.errors import FastLedgerError as FastLedgerError
    from fastledger.errors import InstallationError as InstallationError
    from fastledger.model.genesis import Authority as Authority
    from fastledger.model.genesis import Genesis as Genesis
    from fastledger.model.genesis import WorkParameters as WorkParameters
    from fastledger.model.outcome import Outcome as Outcome
    from fastledger.model.query import Entry as Entry
    from fastledger.model.query import Page as Page
    from fastledger.model.query import Query as Query
    from fastledger.model.receipt import Verified as Verified
    from fastledger.model.receipt import verify_statement as verify_statement
    from fastledger.model.reports import RestoreReport as RestoreReport
    from fastledger.model.reports import VerifyReport as VerifyReport
    from fastledger.model.transaction import Transaction as Transaction
    from fastledger.subjects.consent import Purpose as Purpose
    from fastledger.subjects.consent import Right as Right
    from fastledger.subjects.identity import Role as Role
    from fastledger.wallet.wallet import SealedRecord as SealedRecord
    from fastledger.wallet.wallet import Wallet as Wallet

# Each public name -> the module that defines it.
_HOMES = {
    "AsyncClient": "fastledger.client.aio",
    "AsyncLedgerApi": "fastledger.client.aio_api",
    "AsyncLedger": "fastledger.chain.aio.ledger",
    "Authority": "fastledger.model.genesis",
    "Client": "fastledger.client.sync",
    "ClientOptions": "fastledger.client.aio",
    "ClientTls": "fastledger.client.http",
    "Code": "fastledger.errors",
    "Entry": "fastledger.model.query",
    "FastLedgerError": "fastledger.errors",
    "Genesis": "fastledger.model.genesis",
    "InstallationError": "fastledger.errors",
    "KemSuite": "fastledger.crypto.hpke",
    "Keystore": "fastledger.crypto.keystore",
    "Ledger": "fastledger.chain.ledger",
    "LedgerApi": "fastledger.client.api",
    "LedgerOptions": "fastledger.chain.options",
    "Outcome": "fastledger.model.outcome",
    "Page": "fastledger.model.query",
    "Purpose": "fastledger.subjects.consent",
    "Query": "fastledger.model.query",
    "RestoreReport": "fastledger.model.reports",
    "Right": "fastledger.subjects.consent",
    "Role": "fastledger.subjects.identity",
    "SealedRecord": "fastledger.wallet.wallet",
    "SigningKey": "fastledger.crypto.signing",
    "Transaction": "fastledger.model.transaction",
    "Verified": "fastledger.model.receipt",
    "VerifyReport": "fastledger.model.reports",
    "Wallet": "fastledger.wallet.wallet",
    "WorkParameters": "fastledger.model.genesis",
    "import_blocks": "fastledger.chain.restore",
    "restore_backup": "fastledger.chain.restore",
    "restore_snapshot": "fastledger.chain.restore",
    "verify_statement": "fastledger.model.receipt",
}

__all__ = ["__version__", *_HOMES]

# What a transaction's body may be is declared by the subjects, which the model does not know.
_READ_BODIES = {"Entry", "Transaction", "Verified", "verify_statement"}

if not TYPE_CHECKING:  # for whom a misspelt name would have a type, and no error

    def __getattr__(name):
        home = _HOMES.get(name)
        if home is None:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        if name in _READ_BODIES:
            import_module("fastledger.subjects.catalogue")
        value = getattr(import_module(home), name)
        globals()[name] = value  # found without this function from now on; two threads write the same value
        return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})

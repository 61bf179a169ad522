"""Every error that the engine raises, and every code that it writes into a block.

::

    FastLedgerError
    ├── InputError            the caller's input is at fault: sending it again cannot help
    │   ├── TransactionError    one transaction, refused at the border; has ``txid`` or ``index``
    │   ├── AccessRefused       a read that the consent rules refuse; has the ``txid`` of its audit entry
    │   ├── FhirError           a resource that is not FHIR R4; has ``issues``, each with its path
    │   ├── EnvelopeError       an envelope that does not open: wrong key, wrong context, damaged
    │   ├── KeystoreError       wrong password, damaged or foreign keystore
    │   ├── ReceiptError        a receipt or proof that does not verify
    │   ├── BlockFault          a header or block that cannot be taken; tells what the fault condemns
    │   ├── UploadConflict      bytes for another place of an upload than its ``offset``
    │   ├── NotFoundError       nothing is known under that id
    │   ├── BadRequestError     a request that a node cannot take; has the HTTP ``status``
    │   ├── UnauthenticatedError  the caller has to say who it is
    │   ├── ForbiddenError      the caller's roles do not allow it
    │   ├── RateLimitedError    the caller sends too much; has ``retry_after_ms``
    │   ├── ConfigError         a node's configuration; has ``problems``, each with its line
    │   └── CertificateError    a certificate, key or authority that cannot be used
    └── LedgerError           the ledger cannot do it now
        ├── LedgerLockedError   another process (or this one) has the directory open
        ├── LedgerClosedError   used after ``close()``
        ├── LedgerHaltedError   a sync failed: what was acknowledged is safe, reopen to go on
        ├── LedgerBusyError     a bounded queue is full; has ``retry_after_ms``
        ├── StorageFullError    no space left; the ledger opens again once there is some
        ├── CorruptionError     bytes on disk are not what was written; has file and offset
        ├── FormatVersionError  written by another format version
        ├── UnreachableError    a node gave no answer that can be used; has ``transient``
        └── OperationCancelledError  whoever asked for a backup, an export … called it off

Messages carry codes, ids, lengths and offsets, never payload bytes (SPEC-PRIV-2).
"""

from collections.abc import Mapping, Sequence
from enum import IntEnum, unique
from typing import ClassVar


@unique
class Code(IntEnum):
    """Stable numbers of everything that can be wrong with an input; 0 is success.

    1xx: refused at the border, never enters a block. 2xx: refused by the rules at execution, stands in the
    block's results. 3xx: inputs around the ledger. 9xx: the ledger itself. A number is never reused.
    """

    OK = 0

    # Border: form of a transaction.
    MALFORMED = 100
    OVERSIZED = 101
    NON_CANONICAL = 102
    BAD_HEADER = 103
    BAD_SIGNATURE = 104
    BAD_KEY = 105
    WRONG_CHAIN = 106
    EXPIRED = 107
    NOT_YET_VALID = 108
    WINDOW_TOO_LONG = 109
    DUPLICATE = 110
    UNKNOWN_KIND = 111
    BAD_BODY = 112
    BLOB_MISSING = 113

    # Rules: identity.
    UNKNOWN_SIGNER = 200
    SIGNER_REVOKED = 201
    ALREADY_REGISTERED = 202
    UNKNOWN_SUBJECT = 203
    ROLE_NOT_ENDORSED = 204
    NOT_AUTHORISED = 205
    BAD_PROOF_OF_POSSESSION = 206
    KEY_IN_USE = 207

    # Rules: folders and records.
    FOLDER_EXISTS = 220
    UNKNOWN_FOLDER = 221
    WRONG_EPOCH = 222
    RECORD_EXISTS = 223
    UNKNOWN_RECORD = 224
    RECORD_ERASED = 225
    WRONG_VERSION = 226
    BLOB_IN_USE = 227
    NOT_OWNER = 228

    # Rules: consent and access.
    CONSENT_EXISTS = 240
    UNKNOWN_CONSENT = 241
    CONSENT_MISSING = 242
    CONSENT_EXPIRED = 243
    CONSENT_REVOKED = 244
    PURPOSE_NOT_ALLOWED = 245
    RIGHT_NOT_GRANTED = 246
    TOO_MANY_CONSENTS = 247
    COUNTS_DIFFER = 248

    # Around the ledger.
    BAD_RESOURCE = 300
    BAD_ENVELOPE = 301
    BAD_KEYSTORE = 302
    WRONG_PASSWORD = 303
    BAD_RECEIPT = 304
    NOT_FOUND = 305
    BAD_GENESIS = 306
    BAD_BLOCK = 307
    BAD_QUERY = 308
    UNKNOWN_FOLDER_KEY = 309
    PRUNED = 310
    BAD_CONFIG = 311
    BAD_CERTIFICATE = 312

    # Around the node.
    FORBIDDEN = 313
    RATE_LIMITED = 314
    UNAUTHENTICATED = 315
    BAD_REQUEST = 316
    UPLOAD_CONFLICT = 317
    UNKNOWN_UPLOAD = 318
    UNREACHABLE = 319

    # Around forks: headers of other nodes, transactions that wait.
    UNKNOWN_PARENT = 320
    BELOW_FINAL = 321
    TREE_FULL = 322
    POOL_FULL = 323

    # The ledger itself.
    LOCKED = 900
    CLOSED = 901
    HALTED = 902
    BUSY = 903
    STORAGE_FULL = 904
    CORRUPT = 905
    FORMAT_VERSION = 906
    STORAGE = 907
    CANCELLED = 908

    @property
    def slug(self) -> str:
        """The stable text form, for JSON and exit messages: ``BAD_SIGNATURE`` -> ``bad-signature``."""
        return self.name.lower().replace("_", "-")


class FastLedgerError(Exception):
    """Root of every error of the engine; ``code`` is stable, the message is for people."""

    default_code: ClassVar[Code] = Code.STORAGE
    code: Code

    def __init__(self, message: str, *, code: Code | None = None) -> None:
        super().__init__(message)
        self.code = self.default_code if code is None else code

    def __str__(self) -> str:
        return f"{self.code.slug}: {super().__str__()}"


class InputError(FastLedgerError):
    """The input is at fault."""

    default_code = Code.MALFORMED


class TransactionError(InputError):
    """One transaction refused at the border; the rest of its batch is unaffected."""

    def __init__(
        self, message: str, *, code: Code, index: int | None = None, txid: bytes | None = None
    ) -> None:
        super().__init__(message, code=code)
        self.index = index
        self.txid = txid


class AccessRefused(InputError):
    """The consent rules refuse a read; the refusal stands on the chain as ``txid``."""

    default_code = Code.CONSENT_MISSING

    def __init__(self, message: str, *, code: Code, txid: bytes) -> None:
        super().__init__(message, code=code)
        self.txid = txid


class FhirError(InputError):
    """A resource that is not valid FHIR R4; ``issues`` are (path, problem) pairs without values."""

    default_code = Code.BAD_RESOURCE

    def __init__(self, message: str, *, issues: Sequence[tuple[str, str]] = ()) -> None:
        super().__init__(message)
        self.issues = tuple(issues)


class EnvelopeError(InputError):
    """An envelope or wrapped key that does not open."""

    default_code = Code.BAD_ENVELOPE


class KeystoreError(InputError):
    """A keystore that does not open."""

    default_code = Code.BAD_KEYSTORE


class ReceiptError(InputError):
    """A receipt, proof or transparent statement that does not verify."""

    default_code = Code.BAD_RECEIPT


class BlockFault(InputError):
    """A header or a block of another node that cannot be taken.

    ``condemns``: the fault lies in what the block's id covers, so that no copy of this block can ever be good.
    Otherwise it is this copy, or the moment, that is at fault, and another one may bring a good copy (SPEC-FORK-2).
    ``index`` tells which of several headers it is.
    """

    default_code = Code.BAD_BLOCK

    def __init__(
        self,
        message: str,
        *,
        code: Code | None = None,
        block_id: bytes = b"",
        condemns: bool = False,
        index: int = 0,
    ) -> None:
        super().__init__(message, code=code)
        self.block_id = block_id
        self.condemns = condemns
        self.index = index


class UploadConflict(InputError):
    """Bytes for another place of an upload than the one that ``offset`` says is next."""

    default_code = Code.UPLOAD_CONFLICT

    def __init__(self, message: str, *, offset: int) -> None:
        super().__init__(message)
        self.offset = offset


class ConfigError(InputError):
    """A configuration that cannot be used; ``problems`` are all of them, each with its place, none with a value."""

    default_code = Code.BAD_CONFIG

    def __init__(self, problems: Sequence[str]) -> None:
        super().__init__("\n".join(problems))
        self.problems = tuple(problems)


class CertificateError(InputError):
    """A certificate, key, revocation list or authority that cannot be used."""

    default_code = Code.BAD_CERTIFICATE


class NotFoundError(InputError):
    """Nothing is known under that id."""

    default_code = Code.NOT_FOUND


class BadRequestError(InputError):
    """A request that a node cannot take; ``status`` is HTTP's and ``headers`` go with it."""

    default_code = Code.BAD_REQUEST

    def __init__(self, message: str, *, status: int = 400, headers: Mapping[str, str] | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.headers = headers


class UnauthenticatedError(InputError):
    """What was asked for needs a caller who is known."""

    default_code = Code.UNAUTHENTICATED


class ForbiddenError(InputError):
    """The caller is known and may not."""

    default_code = Code.FORBIDDEN


class RateLimitedError(InputError):
    """The caller sends more than it may; sending again after ``retry_after_ms`` helps."""

    default_code = Code.RATE_LIMITED

    def __init__(self, message: str, *, retry_after_ms: int) -> None:
        super().__init__(message)
        self.retry_after_ms = retry_after_ms


class LedgerError(FastLedgerError):
    """The ledger cannot do it now."""

    default_code = Code.STORAGE


class LedgerLockedError(LedgerError):
    """Another opener holds the ledger directory."""

    default_code = Code.LOCKED


class LedgerClosedError(LedgerError):
    """The ledger was used after it was closed."""

    default_code = Code.CLOSED


class LedgerHaltedError(LedgerError):
    """A write or sync failed, so nothing more is accepted until the ledger is reopened."""

    default_code = Code.HALTED


class LedgerBusyError(LedgerError):
    """A bounded queue is full."""

    default_code = Code.BUSY

    def __init__(self, message: str, *, retry_after_ms: int) -> None:
        super().__init__(message)
        self.retry_after_ms = retry_after_ms


class StorageFullError(LedgerError):
    """No space is left on the device; nothing acknowledged is lost."""

    default_code = Code.STORAGE_FULL


class CorruptionError(LedgerError):
    """Bytes on disk are not those that were written; names the file and the offset."""

    default_code = Code.CORRUPT

    def __init__(self, message: str, *, path: str, offset: int | None = None) -> None:
        place = path if offset is None else f"{path} at byte {offset}"
        super().__init__(f"{place}: {message}")
        self.path = path
        self.offset = offset


class FormatVersionError(LedgerError):
    """A file of a format version that this release does not read."""

    default_code = Code.FORMAT_VERSION


class UnreachableError(LedgerError):
    """A node gave no answer that can be used: no connection, none in time, cut off, or not of this protocol.

    What was asked may have happened or not. ``transient`` tells whether asking again may help.
    """

    default_code = Code.UNREACHABLE

    def __init__(self, message: str, *, transient: bool = True) -> None:
        super().__init__(message)
        self.transient = transient


class OperationCancelledError(LedgerError):
    """A long operation was called off by its caller, or by the ledger's closing; it left nothing half done."""

    default_code = Code.CANCELLED

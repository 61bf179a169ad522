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
        ├── ReleaseNeededError  the next block is under a rule set that this release does not know
        ├── UnreachableError    a node gave no answer that can be used; has ``transient``
        ├── OperationCancelledError  whoever asked for a backup, an export … called it off
        └── InstallationError   a library is missing or of a release that does not work; has ``extra``

Messages carry codes, ids, lengths and offsets, never payload bytes (SPEC-PRIV-2).
"""

from collections.abc import Collection, Mapping, Sequence
from typing import ClassVar

CODE_MAX = 2**16 - 1


class _Number:
    """A code of the engine itself, on its way to becoming an attribute of :class:`Code`."""

    def __init__(self, number: int, text: str, is_refusal: bool) -> None:
        self._number, self._text, self._is_refusal = number, text, is_refusal

    def __set_name__(self, owner: type["Code"], name: str) -> None:
        slug = name.lower().replace("_", "-")
        setattr(owner, name, owner.define(self._number, slug, self._text, is_refusal=self._is_refusal))


def _number(number: int, text: str, *, is_refusal: bool = False) -> "Code":
    return _Number(number, text, is_refusal)  # type: ignore[return-value]  # what __set_name__ puts in its place


class Code(int):
    """A stable number of something that can be wrong with an input; 0 is success.

    1xx: refused at the border, never enters a block. 2xx: refused at execution by the engine, so that it stands in
    the block's results. 3xx: inputs around the ledger. 9xx: the ledger itself. From 1000 on: refused at execution by
    the rule of a subject, whose number is ``number // 100`` (:meth:`fastledger.state.subject.Subject.refusal`). A
    number is never reused.

    There is one object a number: ``Code(101) is Code.OVERSIZED``. ``slug`` is the stable text form for JSON and exit
    messages (``bad-signature``), ``text`` a few words for people, ``is_refusal`` whether a rule says it of a
    transaction that stands in a block. ``Code(n)`` raises ``ValueError`` where nobody has defined n.
    """

    slug: str
    text: str
    is_refusal: bool
    _by_number: ClassVar[dict[int, "Code"]] = {}
    _by_slug: ClassVar[dict[str, "Code"]] = {}

    def __new__(cls, number: int) -> "Code":
        code = cls._by_number.get(number)
        if code is None:
            raise ValueError(f"{int(number)} is no code")
        return code

    @classmethod
    def define(cls, number: int, slug: str, text: str, *, is_refusal: bool) -> "Code":
        """Adds the code ``number`` (0 to 65,535, since a block keeps 16 bits of it).

        Raises ``ValueError`` where the number or the slug is taken.
        """
        if not 0 <= number <= CODE_MAX:
            raise ValueError(f"a code is 0 to {CODE_MAX}, not {number}")
        if number in cls._by_number or slug in cls._by_slug:
            raise ValueError(f"the code {number} or its slug {slug} is taken")
        code = super().__new__(cls, number)
        code.slug, code.text, code.is_refusal = slug, text, is_refusal
        cls._by_number[number] = cls._by_slug[slug] = code
        return code

    @classmethod
    def withdraw(cls, code: "Code") -> None:
        """Removes a code that :meth:`define` added, for a subject that leaves the registry."""
        del cls._by_number[int(code)], cls._by_slug[code.slug]

    @classmethod
    def named(cls, slug: str) -> "Code":
        """Returns the code with the slug ``slug``; raises ``ValueError`` where nobody has defined it."""
        code = cls._by_slug.get(slug)
        if code is None:
            raise ValueError("no code of that name")
        return code

    @classmethod
    def slugs(cls) -> Collection[str]:
        """The slugs of all codes that are defined by now."""
        return cls._by_slug.keys()

    @classmethod
    def all(cls) -> tuple["Code", ...]:
        """Every code that is defined by now, in the order of the numbers."""
        return tuple(cls._by_number[number] for number in sorted(cls._by_number))

    def __reduce__(self) -> tuple[type["Code"], tuple[int]]:
        return Code, (int(self),)

    def __repr__(self) -> str:
        return f"<Code {int(self)} {self.slug}>"

    OK = _number(0, "done")

    # Border: form of a transaction.
    MALFORMED = _number(100, "not a COSE_Sign1 of the transaction profile")
    OVERSIZED = _number(101, "longer than a transaction may be")
    NON_CANONICAL = _number(102, "payload is not deterministic CBOR")
    BAD_HEADER = _number(103, "protected header is not {1: -47, 4: key}")
    BAD_SIGNATURE = _number(104, "signature does not verify")
    BAD_KEY = _number(105, "not a public key")
    WRONG_CHAIN = _number(106, "made for another chain")
    EXPIRED = _number(107, "its validity has ended")
    NOT_YET_VALID = _number(108, "issued in the future")
    WINDOW_TOO_LONG = _number(109, "validity window is empty or too long")
    DUPLICATE = _number(110, "it is in the chain already")
    UNKNOWN_KIND = _number(111, "no such kind of transaction")
    BAD_BODY = _number(112, "the body does not fit its kind")
    BLOB_MISSING = _number(113, "the envelope that it names is not in the blob store")

    # At execution: what the engine itself refuses before it asks a rule.
    KIND_NOT_IN_FORCE = _number(200, "its kind is not in force at this height", is_refusal=True)

    # Around the ledger.
    BAD_RESOURCE = _number(300, "not a valid FHIR R4 resource")
    BAD_ENVELOPE = _number(301, "an envelope or a wrapped key does not open")
    BAD_KEYSTORE = _number(302, "the keystore is damaged or foreign")
    WRONG_PASSWORD = _number(303, "the password is wrong")
    BAD_RECEIPT = _number(304, "the receipt or proof does not verify")
    NOT_FOUND = _number(305, "nothing is known under that id")
    BAD_GENESIS = _number(306, "not a genesis document of this format")
    BAD_BLOCK = _number(307, "the block or header cannot be taken")
    BAD_QUERY = _number(308, "the conditions make no sense")
    UNKNOWN_FOLDER_KEY = _number(309, "the wallet holds no key of that folder and epoch")
    PRUNED = _number(310, "the block was pruned")
    BAD_CONFIG = _number(311, "the configuration cannot be used")
    BAD_CERTIFICATE = _number(312, "the certificate, key or authority cannot be used")

    # Around the node.
    FORBIDDEN = _number(313, "the caller's roles do not allow it")
    RATE_LIMITED = _number(314, "the caller sends too much")
    UNAUTHENTICATED = _number(315, "the caller has to say who it is")
    BAD_REQUEST = _number(316, "the node cannot take the request")
    UPLOAD_CONFLICT = _number(317, "bytes for another place of the upload")
    UNKNOWN_UPLOAD = _number(318, "no such upload is under way")
    UNREACHABLE = _number(319, "the node gave no answer that can be used")

    # Around forks: headers of other nodes, transactions that wait.
    UNKNOWN_PARENT = _number(320, "the block before it is not known")
    BELOW_FINAL = _number(321, "it forks off below the final height")
    TREE_FULL = _number(322, "too many headers wait")
    POOL_FULL = _number(323, "too many transactions wait")
    NOT_A_PROPOSER = _number(324, "the node's key is not a proposer of the chain")
    READ_ONLY = _number(325, "the ledger was opened to read alone")

    # Around the API and the command line.
    BAD_TIME = _number(330, "not a moment: a time of day, a date or an offset is missing or wrong")

    # The ledger itself.
    LOCKED = _number(900, "another process has the ledger open")
    CLOSED = _number(901, "the ledger was closed")
    HALTED = _number(902, "a write or sync failed; reopen to go on")
    BUSY = _number(903, "a bounded queue is full")
    STORAGE_FULL = _number(904, "no space is left on the device")
    CORRUPT = _number(905, "bytes on disk are not what was written")
    FORMAT_VERSION = _number(906, "written in a format that this release does not read")
    STORAGE = _number(907, "the ledger cannot do it now")
    CANCELLED = _number(908, "the operation was called off")
    INSTALLATION = _number(909, "a library is missing or of a release that does not work")
    RELEASE_NEEDED = _number(910, "the chain's rule set needs a newer release")


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
    """The caller's input is at fault; sending it again cannot help."""

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

    default_code = Code.FORBIDDEN

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
    """The request needs a caller who has proved a name."""

    default_code = Code.UNAUTHENTICATED


class ForbiddenError(InputError):
    """The caller is known, and none of its roles allows the request."""

    default_code = Code.FORBIDDEN


class RateLimitedError(InputError):
    """The caller sends more than it may; sending again after ``retry_after_ms`` helps."""

    default_code = Code.RATE_LIMITED

    def __init__(self, message: str, *, retry_after_ms: int) -> None:
        super().__init__(message)
        self.retry_after_ms = retry_after_ms


class LedgerError(FastLedgerError):
    """The ledger cannot do what was asked now; the input is not at fault."""

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


class ReleaseNeededError(LedgerError):
    """The chain goes on under a rule set that this release does not know; nothing is lost, and reading goes on.

    ``rule_set`` is in force from block ``height`` on. ``release`` is the first release that has it, as those who voted
    for it told; empty where they told none. A client gets 0 and an empty text, and the node's message.
    """

    default_code = Code.RELEASE_NEEDED

    def __init__(self, message: str, *, rule_set: int = 0, height: int = 0, release: str = "") -> None:
        super().__init__(message)
        self.rule_set = rule_set
        self.height = height
        self.release = release


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


class InstallationError(LedgerError, ImportError):
    """A library that is needed is not installed, or is of a release that does not work with this one.

    The message says what to install. ``extra`` names the extra of this package that brings the library, None where a
    plain installation has it. It is raised while a module is imported, so it is an ``ImportError`` too.
    """

    default_code = Code.INSTALLATION

    def __init__(self, message: str, *, extra: str | None = None) -> None:
        super().__init__(message)
        self.extra = extra

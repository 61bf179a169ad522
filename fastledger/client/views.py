"""What a node answers in JSON, as the objects that the engine itself returns; anything else is a typed error."""

from typing import Any

import msgspec

from fastledger.errors import Code, InputError, UnreachableError
from fastledger.model.bodies import Purpose, Right, Role
from fastledger.model.genesis import Genesis
from fastledger.model.ids import ID_BYTES
from fastledger.model.query import Entry
from fastledger.rpc.protocol import EntryView, RpcError
from fastledger.state.entities import PURPOSE_BITS, Consent, Folder, Identity, Record, RecordVersion

KEY_BYTES = 33
DIGEST_BYTES = 32
_RIGHTS = {"read": Right.READ, "write": Right.WRITE}


class Tip(msgspec.Struct, frozen=True):
    """Where the chain ends: ``head`` is the id of the newest durable block."""

    height: int
    head: bytes
    transaction_count: int


def strange(what: str) -> UnreachableError:
    """An answer that is well-formed and cannot be right."""
    return UnreachableError(f"the node's {what} is not one", transient=False)


def entry_of(view: EntryView, txid: bytes | None = None) -> Entry:
    """The transaction of a view; its id is computed anew, and compared where ``txid`` was asked for."""
    try:
        entry = Entry(view.seq, view.height, view.index, view.time_ms, Code(view.code), view.transaction)
        if txid is not None and entry.txid != txid:
            raise strange("transaction")
    except (InputError, ValueError):
        raise strange("transaction") from None
    return entry


def genesis_of(encoded: bytes, chain_id: bytes | None = None) -> Genesis:
    """The genesis document, compared with the chain that is asked for."""
    try:
        genesis = Genesis.decode(encoded)
    except InputError:
        raise strange("genesis document") from None
    if chain_id is not None and genesis.chain_id != chain_id:
        raise InputError(
            f"the node serves chain {genesis.chain_id.hex()}, not {chain_id.hex()}", code=Code.WRONG_CHAIN
        )
    return genesis


def hex_bytes(text: str, size: int) -> bytes:
    """An id or hash of ``size`` bytes."""
    try:
        data = bytes.fromhex(text)
    except ValueError:
        data = b""
    if len(data) != size:
        raise strange("id")
    return data


class InfoView(msgspec.Struct, frozen=True):
    """What a node says of itself."""

    protocol: int
    genesis: bytes
    height: int
    head: str
    transactions: int


class IdentityOfKey(msgspec.Struct, frozen=True):
    """The identity that a key signs for."""

    identity: str


class KemKeyView(msgspec.Struct, frozen=True):
    """An identity's key-encapsulation key."""

    kem: bytes


class IdentityView(msgspec.Struct, frozen=True):
    """An identity as it travels."""

    key: str
    role: Role
    endorser: str
    endorsed_until_ms: int
    revoked: bool

    def entity(self) -> Identity:
        """As the state holds it; nobody endorsed where ``endorser`` is empty."""
        endorser = hex_bytes(self.endorser, ID_BYTES) if self.endorser else b""
        key = hex_bytes(self.key, KEY_BYTES)
        return Identity(key, self.role, endorser, self.endorsed_until_ms, self.revoked)


class FolderView(msgspec.Struct, frozen=True):
    """A folder as it travels."""

    owner: str
    epoch: int

    def entity(self) -> Folder:
        """As the state holds it."""
        return Folder(hex_bytes(self.owner, ID_BYTES), self.epoch)


class RecordVersionView(msgspec.Struct, frozen=True):
    """A version of a record as it travels."""

    digest: str
    size: int
    epoch: int
    author: str
    time_ms: int

    def entity(self) -> RecordVersion:
        """As the state holds it."""
        digest, author = hex_bytes(self.digest, DIGEST_BYTES), hex_bytes(self.author, ID_BYTES)
        return RecordVersion(digest, self.size, self.epoch, author, self.time_ms)


class RecordView(msgspec.Struct, frozen=True):
    """A record as it travels."""

    folder: str
    version: int
    erased: bool
    present: RecordVersionView

    def entity(self) -> Record:
        """As the state holds it."""
        return Record(hex_bytes(self.folder, ID_BYTES), self.version, self.erased, self.present.entity())


class ConsentView(msgspec.Struct, frozen=True):
    """A consent as it travels."""

    owner: str
    grantee: str
    folders: list[str]
    purposes: list[Purpose]
    rights: list[str]
    until_ms: int
    revoked: bool

    def entity(self) -> Consent:
        """As the state holds it, purposes and rights as bit masks."""
        if not set(self.rights) <= _RIGHTS.keys():
            raise strange("consent")
        return Consent(
            hex_bytes(self.owner, ID_BYTES),
            hex_bytes(self.grantee, ID_BYTES),
            tuple(hex_bytes(folder, ID_BYTES) for folder in self.folders),
            sum(PURPOSE_BITS[purpose] for purpose in set(self.purposes)),
            int(sum(_RIGHTS[right] for right in set(self.rights))),
            self.until_ms,
            self.revoked,
        )


class JobProgress(msgspec.Struct, frozen=True):
    """How far a stage of a job is; ``total`` 0: nobody knows."""

    stage: str
    done: int
    total: int


class JobView(msgspec.Struct, frozen=True):
    """Long work of a node; ``result`` of one that is done, ``error`` of one that failed."""

    job: str
    operation: str
    state: str
    started_ms: int
    progress: JobProgress | None = None
    result: dict[str, Any] | None = None
    error: RpcError | None = None

"""Frames and messages between nodes (SPEC-PEER-1..4).

::

    frame = length u32 BE | protocol version u8 | MessagePack array [tag, field, …]      length counts what follows it

Ids stand one after another in one byte string (n × 32), so that a list costs no item of its own. Whether a frame may
be is decided from its first seven bytes: until it is whole, only the bytes that arrived are held.
"""

from collections.abc import Callable, Iterator
from typing import Annotated, Any, ClassVar, TypeAlias

import msgspec

from fastledger.errors import Code, InputError
from fastledger.limits import (
    BLOCK_TRANSACTIONS_MAX,
    PEER_ADDRESSES_PER_MESSAGE_MAX,
    PEER_CHUNK_BYTES,
    PEER_FRAME_BYTES_MAX,
    PEER_FRAME_SMALL_BYTES_MAX,
    PEER_HEADER_BYTES_MAX,
    PEER_HEADERS_MAX,
    PEER_IDS_MAX,
    PEER_LOCATOR_MAX,
    PEER_SNAPSHOT_PIECE_BYTES_MAX,
    PEER_SNAPSHOTS_MAX,
    PEER_TEXT_BYTES_MAX,
    PEER_TRANSACTIONS_BYTES,
    RULE_SET_MAX,
    TRANSACTION_BYTES_MAX,
)
from fastledger.peers.scores import Offence
from fastledger.version import PEER_PROTOCOL_VERSION

HASH_BYTES = 32
SHORT_ID_BYTES = 6
WORK_BYTES = 32
LENGTH_BYTES = 4
# Length, version, array head, tag: what a frame is judged by.
_PREFIX_BYTES = LENGTH_BYTES + 3
_BODY_BYTES_MIN = 3
_FIXARRAY = 0x90

Id: TypeAlias = Annotated[bytes, msgspec.Meta(min_length=HASH_BYTES, max_length=HASH_BYTES)]
Work: TypeAlias = Annotated[bytes, msgspec.Meta(min_length=WORK_BYTES, max_length=WORK_BYTES)]
Nonce: TypeAlias = Annotated[bytes, msgspec.Meta(min_length=8, max_length=8)]
Text: TypeAlias = Annotated[str, msgspec.Meta(max_length=PEER_TEXT_BYTES_MAX)]
Height: TypeAlias = Annotated[int, msgspec.Meta(ge=0, lt=2**53)]
Milliseconds: TypeAlias = Annotated[int, msgspec.Meta(ge=0, lt=2**53)]
Ids: TypeAlias = Annotated[bytes, msgspec.Meta(max_length=HASH_BYTES * PEER_IDS_MAX)]


class WireFault(InputError):
    """Bytes arrived that are not of this protocol; ``offence`` is what their sender is charged with."""

    default_code = Code.MALFORMED

    def __init__(self, message: str, offence: Offence) -> None:
        super().__init__(message)
        self.offence = offence


class Message(msgspec.Struct, array_like=True, forbid_unknown_fields=True):
    """A message, encoded as an array that begins with its integer tag.

    ``bytes_max`` bounds the encoded form; ``answers`` is the tag of the request that it answers, None where it
    answers none.
    """

    bytes_max: ClassVar[int] = PEER_FRAME_SMALL_BYTES_MAX
    answers: ClassVar[int | None] = None


class Hello(Message, tag=1):
    """The first message of either side; ``work`` is a claim, ``listen`` an address or empty.

    ``rule_set`` is the newest rule set that the sender's release knows.
    """

    chain_id: Nonce
    genesis_digest: Id
    nonce: Nonce
    height: Height
    work: Work
    tip: Id
    time_ms: Milliseconds
    listen: Text
    agent: Text
    rule_set: Annotated[int, msgspec.Meta(ge=1, le=RULE_SET_MAX)]


class Ping(Message, tag=2):
    """Asks for a sign of life and tells the sender's tip."""

    nonce: Nonce
    height: Height
    work: Work
    tip: Id


class Pong(Message, tag=3):
    """The answer to a Ping, with the same nonce."""

    answers = 2
    nonce: Nonce
    height: Height
    work: Work
    tip: Id


class Goodbye(Message, tag=4):
    """The last message: why the sender closes (a CloseCode)."""

    code: Annotated[int, msgspec.Meta(ge=0, lt=65536)]


class GetHeaders(Message, tag=10):
    """Asks for the headers after the first id of ``locator`` that the receiver's best chain has."""

    locator: Annotated[bytes, msgspec.Meta(max_length=HASH_BYTES * PEER_LOCATOR_MAX)]
    limit: Annotated[int, msgspec.Meta(ge=1, le=PEER_HEADERS_MAX)]


class WireHeader(msgspec.Struct, array_like=True, forbid_unknown_fields=True, frozen=True):
    """A header with the body that it commits to, its seal and the number of its transactions."""

    header80: Annotated[bytes, msgspec.Meta(min_length=80, max_length=80)]
    body: Annotated[bytes, msgspec.Meta(max_length=PEER_HEADER_BYTES_MAX // 2)]
    seal: Annotated[bytes, msgspec.Meta(max_length=PEER_HEADER_BYTES_MAX // 2 - 100)]
    count: Annotated[int, msgspec.Meta(ge=0, le=BLOCK_TRANSACTIONS_MAX)]


class Headers(Message, tag=11):
    """The answer to GetHeaders: headers, ascending, and the sender's tip."""

    bytes_max = PEER_HEADERS_MAX * PEER_HEADER_BYTES_MAX + PEER_FRAME_SMALL_BYTES_MAX
    answers = 10
    headers: Annotated[list[WireHeader], msgspec.Meta(max_length=PEER_HEADERS_MAX)]
    height: Height
    work: Work
    tip: Id


class GetBlocks(Message, tag=12):
    """Asks for whole blocks by id (n × 32 bytes); each is answered by a message of its own, in order."""

    ids: Annotated[bytes, msgspec.Meta(max_length=HASH_BYTES * 64)]


class BlockMessage(Message, tag=13):
    """One block in its stored form, hints included."""

    bytes_max = PEER_FRAME_BYTES_MAX
    answers = 12
    block: bytes


class NotFound(Message, tag=14):
    """Blocks that were asked for and that the sender does not have."""

    answers = 12
    ids: Annotated[bytes, msgspec.Meta(max_length=HASH_BYTES * 64)]


class Compact(Message, tag=20):
    """A block whose transactions the receiver most likely has: ``short_ids`` are n × 6 bytes under ``salt``."""

    bytes_max = BLOCK_TRANSACTIONS_MAX * (SHORT_ID_BYTES + 2) + PEER_FRAME_SMALL_BYTES_MAX
    header: WireHeader
    salt: Nonce
    short_ids: Annotated[bytes, msgspec.Meta(max_length=SHORT_ID_BYTES * BLOCK_TRANSACTIONS_MAX)]
    results: Annotated[bytes, msgspec.Meta(max_length=2 * BLOCK_TRANSACTIONS_MAX)]


class GetBlockTransactions(Message, tag=21):
    """Asks for the transactions of a compact block at ``indexes`` (n × u16 BE, ascending)."""

    bytes_max = 2 * BLOCK_TRANSACTIONS_MAX + PEER_FRAME_SMALL_BYTES_MAX
    block_id: Id
    indexes: Annotated[bytes, msgspec.Meta(max_length=2 * BLOCK_TRANSACTIONS_MAX)]


class BlockTransactions(Message, tag=22):
    """The answer to GetBlockTransactions, in the order of the indexes.

    Empty where the sender no longer has the block.
    """

    bytes_max = PEER_FRAME_BYTES_MAX
    answers = 21
    block_id: Id
    transactions: Annotated[list[bytes], msgspec.Meta(max_length=BLOCK_TRANSACTIONS_MAX)]


class Inventory(Message, tag=30):
    """Tells the ids (n × 32 bytes) of transactions that the sender has and the receiver may want."""

    bytes_max = HASH_BYTES * PEER_IDS_MAX + PEER_FRAME_SMALL_BYTES_MAX
    txids: Ids


class GetTransactions(Message, tag=31):
    """Asks for transactions of the receiver's inventory by id (n × 32 bytes)."""

    bytes_max = HASH_BYTES * PEER_IDS_MAX + PEER_FRAME_SMALL_BYTES_MAX
    txids: Ids


class Transactions(Message, tag=32):
    """An answer to GetTransactions or a part of it; ``missing`` are ids that the sender does not have any more."""

    bytes_max = PEER_TRANSACTIONS_BYTES + TRANSACTION_BYTES_MAX + HASH_BYTES * PEER_IDS_MAX + 65536
    answers = 31
    bodies: Annotated[list[bytes], msgspec.Meta(max_length=PEER_IDS_MAX)]
    missing: Ids


class GetPeers(Message, tag=40):
    """Asks for addresses of other nodes."""


class Peers(Message, tag=41):
    """Addresses that the sender was connected to."""

    bytes_max = PEER_ADDRESSES_PER_MESSAGE_MAX * (PEER_TEXT_BYTES_MAX + 8) + 64
    answers = 40
    addresses: Annotated[list[Text], msgspec.Meta(max_length=PEER_ADDRESSES_PER_MESSAGE_MAX)]


class GetBlob(Message, tag=50):
    """Asks for a part of an envelope; ``access_txid`` is the transaction that entitles the asker to it."""

    digest: Id
    access_txid: Id
    offset: Annotated[int, msgspec.Meta(ge=0, lt=2**53)]
    length: Annotated[int, msgspec.Meta(ge=1, le=PEER_CHUNK_BYTES)]


class BlobChunk(Message, tag=51):
    """A part of an envelope of ``size`` bytes, or a refusal by ``code`` (a Code, 0 where ``data`` is given)."""

    bytes_max = PEER_CHUNK_BYTES + PEER_FRAME_SMALL_BYTES_MAX
    answers = 50
    digest: Id
    offset: Annotated[int, msgspec.Meta(ge=0, lt=2**53)]
    size: Annotated[int, msgspec.Meta(ge=0, lt=2**53)]
    code: Annotated[int, msgspec.Meta(ge=0, lt=65536)]
    data: Annotated[bytes, msgspec.Meta(max_length=PEER_CHUNK_BYTES)]


class GetSnapshots(Message, tag=60):
    """Asks which snapshots the receiver can attest."""


class Attestation(msgspec.Struct, array_like=True, forbid_unknown_fields=True, frozen=True):
    """A proposer's signature under a snapshot: ``root`` commits to its whole content."""

    height: Height
    block_id: Id
    root: Id
    manifest: Id
    manifest_bytes: Annotated[int, msgspec.Meta(ge=0, lt=2**40)]
    signer: Annotated[bytes, msgspec.Meta(min_length=33, max_length=33)]
    signature: Annotated[bytes, msgspec.Meta(min_length=64, max_length=64)]


class Snapshots(Message, tag=61):
    """The answer to GetSnapshots: the sender's attestations and those of others that it holds."""

    bytes_max = PEER_SNAPSHOTS_MAX * 300 + 64
    answers = 60
    attestations: Annotated[list[Attestation], msgspec.Meta(max_length=PEER_SNAPSHOTS_MAX)]


class GetPiece(Message, tag=62):
    """Asks for a part of a snapshot's manifest or chunk by the SHA-256 of the whole piece."""

    digest: Id
    offset: Annotated[int, msgspec.Meta(ge=0, lt=2**40)]


class Piece(Message, tag=63):
    """Bytes of a piece from ``offset``; ``size`` is that of the whole, 0 where the sender does not have it."""

    bytes_max = PEER_SNAPSHOT_PIECE_BYTES_MAX + PEER_FRAME_SMALL_BYTES_MAX
    answers = 62
    digest: Id
    offset: Annotated[int, msgspec.Meta(ge=0, lt=2**40)]
    size: Annotated[int, msgspec.Meta(ge=0, lt=2**40)]
    data: Annotated[bytes, msgspec.Meta(max_length=PEER_SNAPSHOT_PIECE_BYTES_MAX)]


AnyMessage: TypeAlias = (
    Hello
    | Ping
    | Pong
    | Goodbye
    | GetHeaders
    | Headers
    | GetBlocks
    | BlockMessage
    | NotFound
    | Compact
    | GetBlockTransactions
    | BlockTransactions
    | Inventory
    | GetTransactions
    | Transactions
    | GetPeers
    | Peers
    | GetBlob
    | BlobChunk
    | GetSnapshots
    | Snapshots
    | GetPiece
    | Piece
)
MESSAGES: dict[int, type[Message]] = {
    int(kind.__struct_config__.tag or 0): kind for kind in AnyMessage.__args__
}
TAGS: dict[type[Message], int] = {kind: tag for tag, kind in MESSAGES.items()}
_ENCODER = msgspec.msgpack.Encoder()
_DECODER = msgspec.msgpack.Decoder(AnyMessage)


def encode_frame(message: Message) -> bytes:
    """Returns the whole frame of a message (SPEC-PEER-1)."""
    buffer = bytearray(LENGTH_BYTES + 1)
    buffer[LENGTH_BYTES] = PEER_PROTOCOL_VERSION
    _ENCODER.encode_into(message, buffer, LENGTH_BYTES + 1)
    buffer[:LENGTH_BYTES] = (len(buffer) - LENGTH_BYTES).to_bytes(LENGTH_BYTES, "big")
    return bytes(buffer)


def split_ids(ids: bytes) -> list[bytes]:
    """Returns the ids of a packed list; WireFault unless its length is n × 32."""
    if len(ids) % HASH_BYTES:
        raise WireFault(f"{len(ids)} bytes are no list of ids", Offence.GARBAGE)
    return [ids[at : at + HASH_BYTES] for at in range(0, len(ids), HASH_BYTES)]


class FrameReader:
    """Cuts a stream of bytes into messages.

    ``admit(tag)`` is called as soon as a frame's tag is there and raises WireFault where it may not come now. The
    work is linear in the bytes however they are dealt out, and no more is held than arrived.
    """

    def __init__(self, admit: Callable[[int], None]) -> None:
        self._admit = admit
        self._buffer = bytearray()
        self._at = 0
        self._need = LENGTH_BYTES
        self._judged = False

    @property
    def held_bytes(self) -> int:
        """How many bytes are held of the frame that is not yet whole."""
        return len(self._buffer) - self._at

    @property
    def frame_bytes(self) -> int:
        """The length that the frame that has begun will have, as far as it is known; 0 between frames."""
        return self._need if self.held_bytes else 0

    def feed(self, data: bytes) -> Iterator[Any]:
        """Takes bytes and yields every message that they complete.

        Raises WireFault for bytes that are not of the protocol.
        """
        self._buffer += data
        try:
            while self.held_bytes >= self._need or (not self._judged and self.held_bytes >= LENGTH_BYTES):
                self._judge()
                if self.held_bytes < self._need:
                    break
                yield self._cut()
        finally:
            del self._buffer[: self._at]
            self._at = 0

    def _judge(self) -> None:
        """Checks as much of the prefix as has arrived."""
        if self._judged:
            return
        held = bytes(self._buffer[self._at : self._at + _PREFIX_BYTES])
        length = int.from_bytes(held[:LENGTH_BYTES], "big")
        if not _BODY_BYTES_MIN <= length <= PEER_FRAME_BYTES_MAX:
            raise WireFault(f"a frame of {length} bytes", Offence.OVERSIZED)
        self._need = LENGTH_BYTES + length
        if len(held) > LENGTH_BYTES and held[LENGTH_BYTES] != PEER_PROTOCOL_VERSION:
            raise WireFault(f"protocol version {held[LENGTH_BYTES]}", Offence.WRONG_VERSION)
        if len(held) == _PREFIX_BYTES:
            self._judge_tag(held[-2], held[-1], length)
            self._judged = True

    def _judge_tag(self, head: int, tag: int, length: int) -> None:
        kind = MESSAGES.get(tag)
        if kind is None or head & 0xF0 != _FIXARRAY:
            raise WireFault("no message begins like this", Offence.GARBAGE)
        if length > kind.bytes_max:
            raise WireFault(f"message {tag} of {length} bytes", Offence.OVERSIZED)
        self._admit(tag)

    def _cut(self) -> Any:
        start, end = self._at + LENGTH_BYTES + 1, self._at + self._need
        self._at = end
        self._need = LENGTH_BYTES
        self._judged = False
        try:
            # The view is let go before the buffer is cut, which could not shrink under it.
            with memoryview(self._buffer) as view:
                return _DECODER.decode(view[start:end])
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError, MemoryError) as error:
            raise WireFault(
                f"a message that does not decode ({type(error).__name__})", Offence.GARBAGE
            ) from None

"""Blocks: an 80-byte header in Bitcoin's layout that commits to a CBOR body, and the transactions under it.

::

    header80 = version u32 | previous id 32 | commitment 32 | time u32 (s) | bits u32 | nonce u32     little-endian
    block id = SHA-256d(header80), internal byte order
    commitment = SHA-256(CBOR [height, time_ms, tx_root, result_root, state_root, history_root,
                               proposer, seal_ref, extra_nonce])

A block is stored and sent as CBOR ``[version, header80, body, seal, hints, lengths, transactions, results]``;
seal, hints, lengths and results stand outside the hash: the seal is referred to by the next block (``seal_ref``),
results are committed by ``result_root``, lengths and hints are derived (SPEC-BLK-1..4).
"""

import hashlib
import struct
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate

from fastledger._native.hashing import join_rows
from fastledger.errors import Code, InputError
from fastledger.limits import BLOCK_BYTES_MAX, BLOCK_TRANSACTIONS_MAX
from fastledger.model.codec import decode, encode
from fastledger.reprs import BriefRepr, short_hex
from fastledger.version import BLOCK_FORMAT_VERSION

HEADER_BYTES = 80
HEADER_VERSION = 1
ZERO32 = bytes(32)
_HEADER = struct.Struct("<I32s32sIII")


def _bad_block(message: str) -> InputError:
    return InputError(message, code=Code.BAD_BLOCK)


@dataclass(frozen=True, slots=True, repr=False)
class Header(BriefRepr):
    """The 80 bytes that are hashed; ids and commitment in internal byte order, ``time_s`` UTC seconds."""

    previous_id: bytes
    commitment: bytes
    time_s: int
    bits: int = 0
    nonce: int = 0
    version: int = HEADER_VERSION

    def encode(self) -> bytes:
        """Returns the 80 bytes of the header."""
        return _HEADER.pack(
            self.version, self.previous_id, self.commitment, self.time_s, self.bits, self.nonce
        )

    @classmethod
    def decode(cls, data: bytes) -> "Header":
        """Returns the header in ``data``.

        Raises ``InputError`` with ``BAD_BLOCK`` unless that has exactly 80 bytes.
        """
        if len(data) != HEADER_BYTES:
            raise _bad_block(f"a header has {HEADER_BYTES} bytes, not {len(data)}")
        version, previous_id, commitment, time_s, bits, nonce = _HEADER.unpack(data)
        return cls(previous_id, commitment, time_s, bits, nonce, version)

    @property
    def block_id(self) -> bytes:
        """The SHA-256d of the 80 bytes, in internal byte order."""
        return hashlib.sha256(hashlib.sha256(self.encode()).digest()).digest()


@dataclass(frozen=True, slots=True, repr=False)
class HeaderBody(BriefRepr):
    """The fields that the header commits to; roots and ids are 32 bytes, ``proposer`` a 33-byte key."""

    height: int
    time_ms: int
    tx_root: bytes
    result_root: bytes
    state_root: bytes
    history_root: bytes
    proposer: bytes
    seal_ref: bytes
    extra_nonce: int = 0

    def encode(self) -> bytes:
        """Returns the nine fields in order as a deterministic CBOR array."""
        return encode(
            [
                self.height,
                self.time_ms,
                self.tx_root,
                self.result_root,
                self.state_root,
                self.history_root,
                self.proposer,
                self.seal_ref,
                self.extra_nonce,
            ]
        )

    @classmethod
    def decode(cls, data: bytes) -> "HeaderBody":
        """Returns the body in ``data``; raises ``InputError`` with ``BAD_BLOCK`` where a field has another shape."""
        fields = decode(data, what="header body")
        if not isinstance(fields, list) or len(fields) != 9:
            raise _bad_block("a header body has nine fields")
        numbers = (fields[0], fields[1], fields[8])
        if any(type(number) is not int or number < 0 for number in numbers):
            raise _bad_block("height, time and extra nonce are unsigned integers")
        sizes = [len(item) if isinstance(item, bytes) else -1 for item in fields[2:8]]
        if sizes != [32, 32, 32, 32, 33, 32]:
            raise _bad_block("a root, the proposer or the seal reference has another length")
        return cls(*fields)

    @property
    def commitment(self) -> bytes:
        """The SHA-256 of the encoded body."""
        return hashlib.sha256(self.encode()).digest()


def _check_commitment(header: Header, body: HeaderBody, encoded_body: bytes) -> None:
    if header.version != HEADER_VERSION:
        raise _bad_block(f"header version {header.version} is unknown")
    if hashlib.sha256(encoded_body).digest() != header.commitment:
        raise _bad_block("the header does not commit to this body")
    if header.time_s != body.time_ms // 1000:
        raise _bad_block("header time and body time differ")


@dataclass(frozen=True, slots=True, repr=False)
class SealedHeader(BriefRepr):
    """A block without its ``count`` transactions, which nodes tell each other first (SPEC-TREE-8).

    It is made by :meth:`decode` or from a :class:`Block`, so that header and body belong together. Whether the seal
    is good, ``model.receipt.check_seals`` tells.
    """

    header: Header
    body: HeaderBody
    seal: bytes
    count: int

    @classmethod
    def decode(cls, header80: bytes, body: bytes, seal: bytes, count: int) -> "SealedHeader":
        """Returns the sealed header with these parts in their wire form.

        Raises ``InputError`` as :meth:`Block.decode`.
        """
        if not 0 <= count <= BLOCK_TRANSACTIONS_MAX:
            raise _bad_block("more than a block may hold")
        header, decoded = Header.decode(header80), HeaderBody.decode(body)
        _check_commitment(header, decoded, body)
        return cls(header, decoded, seal, count)

    @property
    def block_id(self) -> bytes:
        """The SHA-256d of the header."""
        return self.header.block_id


@dataclass(frozen=True)
class Block:
    """A whole block: ``transactions`` one after another, their ``lengths`` n × u32 LE, ``results`` n × u16 BE."""

    header: Header
    body: HeaderBody
    seal: bytes
    transactions: bytes
    lengths: bytes
    results: bytes
    hints: bytes = b""

    def __repr__(self) -> str:
        return f"<Block {self.height} {short_hex(self.block_id)}, {self.count} transactions>"

    @cached_property
    def block_id(self) -> bytes:
        """The SHA-256d of the header."""
        return self.header.block_id

    @property
    def height(self) -> int:
        """The number of blocks before this one; the genesis block's is 0."""
        return self.body.height

    @property
    def count(self) -> int:
        """How many transactions stand in the block."""
        return len(self.lengths) // 4

    @cached_property
    def offsets(self) -> list[int]:
        """The n + 1 byte offsets of the transactions in ``transactions``."""
        lengths = struct.unpack(f"<{self.count}I", self.lengths)
        return list(accumulate(lengths, initial=0))

    def transaction_bytes(self, index: int) -> bytes:
        """The wire form of the transaction at ``index``."""
        return self.transactions[self.offsets[index] : self.offsets[index + 1]]

    def result(self, index: int) -> int:
        """The result code of the transaction at ``index``."""
        return int.from_bytes(self.results[2 * index : 2 * index + 2], "big")

    def encode(self) -> bytes:
        """Returns the block's stored and sent form."""
        return encode(
            [
                BLOCK_FORMAT_VERSION,
                self.header.encode(),
                self.body.encode(),
                self.seal,
                self.hints,
                self.lengths,
                self.transactions,
                self.results,
            ]
        )

    @classmethod
    def decode(cls, data: bytes) -> "Block":
        """Returns the block in ``data``. Its shape and its header's commitment are checked, its contents are not.

        Raises ``InputError`` with ``BAD_BLOCK`` (or a codec error); execution checks roots and seal.
        """
        fields = decode(data, what="block")
        if not isinstance(fields, list) or len(fields) != 8:
            raise _bad_block("a block has eight parts")
        if type(fields[0]) is not int or fields[0] != BLOCK_FORMAT_VERSION:
            raise _bad_block(f"not a block of format {BLOCK_FORMAT_VERSION}")
        if not all(isinstance(item, bytes) for item in fields[1:]):
            raise _bad_block("the parts of a block are byte strings")
        header80, body, seal, hints, lengths, transactions, results = fields[1:]
        block = cls(
            Header.decode(header80), HeaderBody.decode(body), seal, transactions, lengths, results, hints
        )
        block._check_shape(body)
        return block

    @property
    def sealed_header(self) -> "SealedHeader":
        """The block's header, body and seal, without its transactions."""
        return SealedHeader(self.header, self.body, self.seal, self.count)

    def _check_shape(self, encoded_body: bytes) -> None:
        _check_commitment(self.header, self.body, encoded_body)
        if len(self.lengths) % 4 or len(self.results) * 2 != len(self.lengths):
            raise _bad_block("lengths and results differ in number")
        if self.count > BLOCK_TRANSACTIONS_MAX or len(self.transactions) > BLOCK_BYTES_MAX:
            raise _bad_block("more than a block may hold")
        if self.offsets[-1] != len(self.transactions):
            raise _bad_block("lengths do not add up to the transactions")


def result_entries(txids: bytes, results: bytes) -> tuple[bytes, list[int]]:
    """Returns the n entries txid || code u16 BE that ``result_root`` hashes, as one buffer with n + 1 offsets.

    ``txids`` are n × 32 bytes, ``results`` n × 2.
    """
    entries = join_rows(txids, 32, results, 2)
    return entries, list(range(0, len(entries) + 1, 34))

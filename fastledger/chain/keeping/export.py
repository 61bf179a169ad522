"""The chain as a stream: NDJSON for people's tools, and a block file that another node can check (SPEC-EXP-1..5).

Block file::

    magic 8 "FLBLOCKS" | version u16 | flags u16 (1: with envelopes) | genesis length u32 | genesis document
    item …  kind u8 | zero 3 | length u32 | CRC-32 u32 of kind, length and payload | payload
    kinds:  1 block, as stored · 2 a piece of an envelope, 1 MiB at most · 3 digest of the envelope that the pieces make
            255 the end: count of blocks u64 ‖ SHA-256 of every byte before this item

Envelopes stand before the block that names them. Both forms are written and read with a block or a piece in memory.
"""

import base64
import hashlib
import struct
from array import array
from collections.abc import Iterator, Sequence
from typing import BinaryIO, NamedTuple
from zlib import crc32

import msgspec

from fastledger._native.scan import scan_many
from fastledger.chain.admission import OWN_LOG, Batch, admit
from fastledger.errors import CorruptionError, FormatVersionError, NotFoundError
from fastledger.limits import COPY_CHUNK_BYTES, GENESIS_BYTES_MAX, LOG_FRAME_BYTES_MAX
from fastledger.model.block import Block
from fastledger.model.export import BlockRange, ExportLine
from fastledger.model.genesis import Genesis
from fastledger.model.reports import ExportReport
from fastledger.pace import Pace
from fastledger.state.registry import Rules, RulesAt
from fastledger.storage.blobs.store import BlobStore
from fastledger.storage.log import SegmentLog
from fastledger.version import BLOCK_FILE_FORMAT_VERSION

MAGIC = b"FLBLOCKS"
WITH_BLOBS = 1
BLOCK, PIECE, ENVELOPE, END = 1, 2, 3, 255
_HEAD = struct.Struct(">8sHHI")
_ITEM = struct.Struct(">B3sII")
_ZERO3 = bytes(3)
_END = struct.Struct(">Q32s")
_ENCODE = msgspec.json.Encoder().encode
_LENGTHS_MAX = {BLOCK: LOG_FRAME_BYTES_MAX, PIECE: COPY_CHUNK_BYTES, ENVELOPE: 32, END: _END.size}


class Exporter:
    """One export over an open log, up to the end of the range or to ``durable_height``, whichever comes first."""

    def __init__(
        self, log: SegmentLog, out: BinaryIO, pace: Pace, block_range: BlockRange, durable_height: int
    ):
        """Takes an open log and where to write.

        Raises NotFoundError (PRUNED) where the range begins before what is kept, InputError where it has no block.
        """
        self.first, self.last = block_range.within(log.first_height, durable_height)
        self._log = log
        self._out = out
        self._pace = pace
        self._hasher = hashlib.sha256()
        self._blocks = self._transactions = self._envelopes = self._bytes = 0

    def _each(self) -> Iterator[tuple[Block, bytes]]:
        for _ref, height, payload in self._log.frames(self.first):
            if height > self.last:
                return
            self._pace.spend(len(payload))
            block = Block.decode(payload)
            yield block, payload
            self._blocks += 1
            self._transactions += block.count
            self._pace.tell("blocks", height - self.first + 1, self.last - self.first + 1)

    def _write(self, data: bytes) -> None:
        self._out.write(data)
        self._hasher.update(data)
        self._bytes += len(data)

    def _report(self) -> ExportReport:
        return ExportReport(
            self.first, self.last, self._blocks, self._transactions, self._envelopes, self._bytes
        )

    def ndjson(self, first_seq: int) -> ExportReport:
        """Writes a line for each transaction; ``first_seq`` is the number of the first one."""
        seq = first_seq
        for block, _ in self._each():
            for line in _lines(block, seq):
                self._write(line.encode())
            seq += block.count
        return self._report()

    def blocks(self, genesis: Genesis, blobs: BlobStore | None, rules_at: RulesAt) -> ExportReport:
        """Writes the block file, with the envelopes that are still stored where ``blobs`` is given."""
        document = genesis.encoded
        flags = 0 if blobs is None else WITH_BLOBS
        self._write(_HEAD.pack(MAGIC, BLOCK_FILE_FORMAT_VERSION, flags, len(document)) + document)
        for block, payload in self._each():
            if blobs is not None and block.count:
                rules = rules_at(block.height)
                batch = admit(Batch.of_block(block), rules, chain_id=genesis.chain_id, trust=OWN_LOG)
                for digest in named_envelopes(batch, rules):
                    self._envelope(blobs, digest)
            self._item(BLOCK, payload)
        self._item(END, _END.pack(self._blocks, self._hasher.digest()))
        return self._report()

    def _envelope(self, blobs: BlobStore, digest: bytes) -> None:
        if not blobs.has(digest):  # erased, or kept elsewhere
            return
        try:
            # Large ones are checked behind their last piece, and may be erased meanwhile.
            for piece in blobs.open_reader(digest, COPY_CHUNK_BYTES):
                self._pace.spend(len(piece))
                self._item(PIECE, piece)
        except (NotFoundError, CorruptionError):
            if blobs.has(digest):
                raise
            # What was written of it is not an envelope: the reader drops pieces whose digest is zero.
            self._item(ENVELOPE, bytes(32))
            return
        self._item(ENVELOPE, digest)
        self._envelopes += 1

    def _item(self, kind: int, payload: bytes) -> None:
        self._write(_ITEM.pack(kind, _ZERO3, len(payload), _checksum(kind, payload)))
        self._write(payload)


def _checksum(kind: int, payload: bytes) -> int:
    return crc32(payload, crc32(struct.pack(">BI", kind, len(payload))))


def _lines(block: Block, first_seq: int) -> Iterator[ExportLine]:
    if not block.count:
        return
    scan = scan_many(block.transactions, array("Q", block.offsets))
    for index in range(block.count):
        yield ExportLine(
            first_seq + index,
            block.height,
            index,
            block.body.time_ms,
            scan.txids[32 * index : 32 * index + 32].hex(),
            scan.kind(index),
            scan.signers[33 * index : 33 * index + 33].hex(),
            block.result(index),
            base64.b64encode(block.transaction_bytes(index)).decode(),
        )


def named_envelopes(batch: Batch, rules: Rules) -> Sequence[bytes]:
    """Returns the digests of the envelopes that a block's transactions name, by the rule set of its height."""
    return [digest for _, digest in rules.envelopes(batch.bodies)]


class Item(NamedTuple):
    """One item of a block file and the offset at which it begins."""

    kind: int
    payload: bytes
    offset: int


class BlockFileReader:
    """Reads a block file item by item and checks everything that it says (SPEC-EXP-4)."""

    def __init__(self, source: BinaryIO, name: str) -> None:
        """Reads the head of the file; ``name`` is for errors. Raises CorruptionError or FormatVersionError."""
        self._source = source
        self._name = name
        self._hasher = hashlib.sha256()
        self.offset = 0
        magic, version, self.flags, length = _HEAD.unpack(self._take(_HEAD.size))
        if magic != MAGIC:
            raise self._damage("this is no block file", 0)
        if version != BLOCK_FILE_FORMAT_VERSION:
            raise FormatVersionError(
                f"{name} has block file format {version}, not {BLOCK_FILE_FORMAT_VERSION}"
            )
        if length > GENESIS_BYTES_MAX:
            raise self._damage("the genesis document is too long", 0)
        self.genesis = self._take(length)

    def items(self) -> Iterator[Item]:
        """Yields blocks, pieces and envelopes up to the end, which must be there and be right."""
        blocks = 0
        while True:
            begin, digest = self.offset, self._hasher.digest()
            kind, zero, length, checksum = _ITEM.unpack(self._take(_ITEM.size))
            if kind not in _LENGTHS_MAX or zero != _ZERO3 or length > _LENGTHS_MAX[kind]:
                raise self._damage("no item begins here", begin)
            payload = self._take(length)
            if _checksum(kind, payload) != checksum:
                raise self._damage("the item is damaged", begin)
            if kind == END:
                if length != _END.size or _END.unpack(payload) != (blocks, digest) or self._source.read(1):
                    raise self._damage("the end does not match what is before it", begin)
                return
            blocks += kind == BLOCK
            yield Item(kind, payload, begin)

    def _take(self, count: int) -> bytes:
        data = self._source.read(count)
        while len(data) < count:
            more = self._source.read(count - len(data))
            if not more:
                raise self._damage("the file is cut short", self.offset + len(data))
            data += more
        self._hasher.update(data)
        self.offset += count
        return data

    def _damage(self, message: str, offset: int) -> CorruptionError:
        return CorruptionError(message, path=self._name, offset=offset)

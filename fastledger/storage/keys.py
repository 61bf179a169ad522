"""Keys and values of the LMDB index. All integers are big-endian, so that byte order is number order.

======== ================================== ======================== =====================================
database key                                value                    holds
======== ================================== ======================== =====================================
meta     name, ASCII                        opaque                   format, chain; upstream's checkpoint
state    state key, 1 to 500 bytes          CRC-32 4, opaque         the state at the checkpoint
txids    txid 32                            seq 6                    which transactions the chain has
blocks   height 8                           first seq 6, entry       opaque entry: where the block is, its id
seqs     first seq 6, height 8              empty                    the block that holds a seq
postings term 18, first seq 6               n × u32 LE               query indexes: a run of seqs under a term
======== ================================== ======================== =====================================

``seq`` numbers the transactions of a chain from 0, in order. Terms belong to upstream. A run of
postings holds ascending seqs as offsets from its first one; the runs of a term follow one another.
The checksum of a state value covers its key too: LMDB has none, and what the rules read goes into blocks.
The blob store keeps ``blobs`` (digest 32 -> place 12, see ``blob_index.py``) in an environment of its own.
"""

import struct
from array import array
from typing import NamedTuple
from zlib import crc32

from fastledger.errors import CorruptionError, InputError

SEQ_BYTES = 6
SEQ_MAX = (1 << (8 * SEQ_BYTES)) - 1
HEIGHT_BYTES = 8
TXID_BYTES = 32
CHECKSUM_BYTES = 4
STATE_KEY_BYTES_MAX = 500  # LMDB's own limit is 511

META_FORMAT = b"format"
FORMAT_UNDER_WAY = (
    b"\xff\xff"  # in the place of the format while a checkpoint is half written: no release opens it
)
META_CHAIN = b"chain"

_HEIGHT = struct.Struct(">Q")
_RUN_ITEM = struct.Struct("<I")


class TermLog(NamedTuple):
    """The terms of consecutive transactions: what a block adds to the postings, before they are sorted.

    ``terms`` are n × 18 bytes; ``counts`` (uint32) tells how many each transaction has; ``first_seq`` is the number
    of the first transaction.
    """

    terms: bytes
    counts: "array[int]"
    first_seq: int


def seal_value(key: bytes, value: bytes) -> bytes:
    """Returns a state value as it is stored: the CRC-32 of key and value (4 bytes), then the value (SPEC-IDX-6)."""
    return crc32(value, crc32(key)).to_bytes(CHECKSUM_BYTES, "big") + value


def open_value(key: bytes, data: bytes) -> bytes:
    """Returns the value in ``data``, which :func:`seal_value` made for ``key``.

    Raises CorruptionError where the checksum is not theirs.
    """
    value = data[CHECKSUM_BYTES:]
    if crc32(value, crc32(key)) != int.from_bytes(data[:CHECKSUM_BYTES], "big"):
        raise CorruptionError(f"the state under {key.hex()} is damaged: reindex", path="index")
    return value


def encode_seq(seq: int) -> bytes:
    """Returns ``seq`` as 6 bytes, big-endian. InputError outside 0..2^48-1."""
    if not 0 <= seq <= SEQ_MAX:
        raise InputError(f"sequence number {seq} is out of range")
    return seq.to_bytes(SEQ_BYTES, "big")


def decode_seq(data: bytes) -> int:
    """Returns the seq in the first 6 bytes of ``data``."""
    return int.from_bytes(data[:SEQ_BYTES], "big")


def encode_height(height: int) -> bytes:
    """Returns ``height`` as 8 bytes, big-endian. InputError outside 0..2^63-1."""
    if not 0 <= height < 1 << 63:
        raise InputError(f"height {height} is out of range")
    return _HEIGHT.pack(height)


def decode_height(data: bytes) -> int:
    """Returns the height in ``data``, which has 8 bytes."""
    value: int = _HEIGHT.unpack(data)[0]
    return value


def run_seqs(key: bytes, value: bytes) -> list[int]:
    """Returns the seqs of one run of postings.

    Raises CorruptionError where ``value`` is not a whole number of offsets.
    """
    if len(value) % _RUN_ITEM.size:
        raise CorruptionError(f"a run of postings has {len(value)} bytes: reindex", path="index")
    first = int.from_bytes(key[-SEQ_BYTES:], "big")
    return [first + offset for (offset,) in _RUN_ITEM.iter_unpack(value)]


def seq_key(first_seq: int, height: int) -> bytes:
    """Returns the 14 bytes of a key of ``seqs``.

    A block without transactions has the first seq of the block after it, and sorts before that block.
    """
    return encode_seq(first_seq) + encode_height(height)


def split_seq_key(key: bytes) -> tuple[int, int]:
    """Returns (first seq, height) of a key that :func:`seq_key` made."""
    return decode_seq(key), decode_height(key[SEQ_BYTES:])

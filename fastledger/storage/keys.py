"""Keys and values of the LMDB index. All integers are big-endian, so that byte order is number order.

======== ================================== ======================== =====================================
database key                                value                    holds
======== ================================== ======================== =====================================
meta     name, ASCII                        opaque                   format, chain; upstream's checkpoint
state    state key, 1 to 500 bytes          opaque                   the state at the checkpoint
txids    txid 32                            seq 6                    which transactions the chain has
blocks   height 8                           first seq 6, entry       opaque entry: where the block is, its id
seqs     first seq 6, height 8              empty                    the block that holds a seq
postings table 1, term 16, first seq 6      n × u32 LE               query indexes: a run of seqs under a term
======== ================================== ======================== =====================================

``seq`` numbers the transactions of a chain from 0, in order. ``table`` and ``term`` belong to upstream. A run of
postings holds ascending seqs as offsets from its first one; the runs of a term follow one another.
The blob store keeps ``blobs`` (digest 32 -> place 12, see ``blob_index.py``) in an environment of its own.
"""

import struct
from collections.abc import Iterator, Sequence

from fastledger.errors import InputError

SEQ_BYTES = 6
SEQ_MAX = (1 << (8 * SEQ_BYTES)) - 1
HEIGHT_BYTES = 8
TXID_BYTES = 32
TERM_BYTES = 16
STATE_KEY_BYTES_MAX = 500  # LMDB's own limit is 511
# A run's value stays a fraction of a page, so that runs of rare terms share pages.
POSTING_RUN_SEQS = 256

META_FORMAT = b"format"
META_CHAIN = b"chain"

_HEIGHT = struct.Struct(">Q")
_RUN_ITEM = struct.Struct("<I")
_RUN_OF_ONE = bytes(4)


def encode_seq(seq: int) -> bytes:
    """6 bytes. InputError outside 0..2^48-1."""
    if not 0 <= seq <= SEQ_MAX:
        raise InputError(f"sequence number {seq} is out of range")
    return seq.to_bytes(SEQ_BYTES, "big")


def decode_seq(data: bytes) -> int:
    return int.from_bytes(data[:SEQ_BYTES], "big")


def encode_height(height: int) -> bytes:
    """8 bytes."""
    if not 0 <= height < 1 << 63:
        raise InputError(f"height {height} is out of range")
    return _HEIGHT.pack(height)


def decode_height(data: bytes) -> int:
    value: int = _HEIGHT.unpack(data)[0]
    return value


def posting_prefix(table: int, term: bytes) -> bytes:
    """17 bytes: what the postings of one term have in common."""
    if not 0 <= table <= 255 or len(term) != TERM_BYTES:
        raise InputError(f"posting of table {table} with a term of {len(term)} bytes")
    return bytes((table,)) + term


def posting_runs(table: int, term: bytes, seqs: Sequence[int]) -> Iterator[tuple[bytes, bytes]]:
    """Ascending seqs under a term as (key, value) of runs of at most ``POSTING_RUN_SEQS``."""
    prefix = posting_prefix(table, term)
    if len(seqs) == 1:
        yield prefix + encode_seq(seqs[0]), _RUN_OF_ONE
        return
    for start in range(0, len(seqs), POSTING_RUN_SEQS):
        run = seqs[start : start + POSTING_RUN_SEQS]
        first = run[0]
        if not 0 <= run[-1] - first < 1 << 32:
            raise InputError("the postings of one checkpoint span too many transactions")
        yield prefix + encode_seq(first), _run_value([seq - first for seq in run])


def run_seqs(key: bytes, value: bytes) -> list[int]:
    """The seqs of a run."""
    first = int.from_bytes(key[-SEQ_BYTES:], "big")
    return [first + offset for (offset,) in _RUN_ITEM.iter_unpack(value)]


def _run_value(offsets: list[int]) -> bytes:
    return struct.pack(f"<{len(offsets)}I", *offsets)


def seq_key(first_seq: int, height: int) -> bytes:
    """14 bytes; blocks without transactions share their first seq with the next block and sort before it."""
    return encode_seq(first_seq) + encode_height(height)


def split_seq_key(key: bytes) -> tuple[int, int]:
    """(first seq, height)."""
    return decode_seq(key), decode_height(key[SEQ_BYTES:])

"""The redo file: a whole checkpoint on disk before the first piece of it enters the index (SPEC-IDX-7).

::

    0 magic 8 | 8 version 2 | 10 length of the chain id 2 | 12 chain id
    then frames:  0 kind 1 | 1 length 4 | 5 checksum 4 | 9 payload

A checksum is the CRC-32 of kind, length and payload, begun with the checksum before (the first with the header's
CRC-32), so that no frame can be missing. Frames of state, txids, blocks and meta hold items, as ``pack_items`` makes
them, keyed as in the index; each of the others holds a term log: first seq 8, transactions 4, their term counts
(u32, little-endian), terms. The last frame is empty and ends the file.
"""

import struct
import sys
from array import array
from collections.abc import Iterator
from pathlib import Path
from zlib import crc32

from fastledger._native.lmdb_batch import encode_seqs, pack_items
from fastledger.errors import CorruptionError, FormatVersionError
from fastledger.storage import keys
from fastledger.storage.checkpoint import Checkpoint, CheckpointBatch, parts_of
from fastledger.storage.files import TEMPORARY, OpenFile, OsFiles
from fastledger.version import REDO_FORMAT_VERSION

REDO_NAME = "checkpoint.redo"
REDO_MAGIC = b"FLREDOv\0"
_HEADER = struct.Struct(">8sHH")
_FRAME = struct.Struct(">BII")
_ITEM = struct.Struct(">HI")
_LOG = struct.Struct(">QI")
_STATE, _TXIDS, _BLOCKS, _META, _TERMS, _END = range(1, 7)
_DELETED = 0xFFFF_FFFF
_ITEMS_PER_FRAME = 4_096


class RedoFile:
    """The redo file of one index. The caller serialises calls."""

    def __init__(self, folder: Path, chain_id: bytes, files: OsFiles) -> None:
        self._path = folder / REDO_NAME
        self._header = _HEADER.pack(REDO_MAGIC, REDO_FORMAT_VERSION, len(chain_id)) + chain_id
        self._files = files

    def write(self, checkpoint: Checkpoint) -> None:
        """Writes the file durably; after a crash it is there with all its bytes, or not at all.

        The bytes are made as they are written, so that this takes no memory of the file's size.
        """
        self._files.create_streamed(self._path, self._encode(checkpoint))

    def exists(self) -> bool:
        """Whether there is a redo file, and so a checkpoint to complete."""
        return self._path.exists()

    def remove(self) -> None:
        """Unlinks the file, and what an interrupted :meth:`write` left, durably; harmless where there is none."""
        self._files.unlink(self._path.with_name(REDO_NAME + TEMPORARY))
        self._files.unlink(self._path)
        # One that came back would undo the checkpoints after it.
        self._files.fsync_dir(self._path.parent)

    def read(self) -> CheckpointBatch:
        """Returns the checkpoint's batch. Raises CorruptionError where any byte is not what was written."""
        file = self._files.open(self._path)
        try:
            return self._decode(file)
        finally:
            self._files.close(file)

    def _encode(self, checkpoint: Checkpoint) -> Iterator[bytes]:
        yield self._header
        checksum = crc32(self._header)
        for kind, payload in _payloads(checkpoint):
            head = _FRAME.pack(kind, len(payload), 0)[:5]
            checksum = crc32(payload, crc32(head, checksum))
            yield head + checksum.to_bytes(4, "big")
            yield payload

    def _decode(self, file: OpenFile) -> CheckpointBatch:
        state: dict[bytes, bytes | None] = {}
        txids: dict[bytes, int] = {}
        blocks: list[tuple[int, int, bytes]] = []
        logs: list[keys.TermLog] = []
        meta: dict[bytes, bytes] = {}
        for kind, payload in self._frames(file):
            if kind == _TERMS:
                logs.append(_decode_log(payload))
                continue
            for key, value in _items(payload):
                if kind == _STATE:
                    state[key] = value
                elif kind == _TXIDS:
                    txids[key] = keys.decode_seq(value or b"")
                elif kind == _BLOCKS:
                    entry = value or b""
                    height, seq = keys.decode_height(key), keys.decode_seq(entry)
                    blocks.append((height, seq, entry[keys.SEQ_BYTES :]))
                else:
                    meta[key] = value or b""
        return CheckpointBatch(state, txids, blocks, logs, meta)

    def _frames(self, file: OpenFile) -> Iterator[tuple[int, bytes]]:
        """Yields kind and payload of each frame before the last, each after its checksum was found to match."""
        size, at = self._files.size(file), len(self._header)
        header = self._files.read(file, at, 0)
        if header[:8] == REDO_MAGIC and header[8:10] != self._header[8:10]:
            raise FormatVersionError(f"{self._path} has another format than {REDO_FORMAT_VERSION}")
        if header != self._header:
            raise self._damaged(0)
        checksum = crc32(header)
        while True:
            head = self._files.read(file, _FRAME.size, at)
            if len(head) < _FRAME.size:
                raise self._damaged(at)
            kind, length, told = _FRAME.unpack(head)
            # A length that is damaged must not be believed.
            payload = self._files.read(file, min(length, size), at + _FRAME.size)
            checksum = crc32(payload, crc32(head[:5], checksum))
            if len(payload) != length or checksum != told or not _STATE <= kind <= _END:
                raise self._damaged(at)
            at += _FRAME.size + length
            if kind == _END:
                if at != size:
                    raise self._damaged(at)
                return
            yield kind, payload

    def _damaged(self, offset: int) -> CorruptionError:
        return CorruptionError("is damaged: reindex", path=str(self._path), offset=offset)


def _payloads(checkpoint: Checkpoint) -> Iterator[tuple[int, bytes]]:
    """Yields kind and payload of every frame of a checkpoint's file, in file order."""
    for names, values in parts_of(checkpoint.state, _ITEMS_PER_FRAME):
        yield _STATE, pack_items(names, values)
    for names, seqs in parts_of(checkpoint.txids, _ITEMS_PER_FRAME):
        yield _TXIDS, pack_items(names, encode_seqs(seqs))
    for names, entries in parts_of(checkpoint.blocks, _ITEMS_PER_FRAME):
        yield _BLOCKS, pack_items(names, entries)
    yield _META, pack_items(list(checkpoint.meta), list(checkpoint.meta.values()))
    for log in checkpoint.logs:
        counts = log.counts.tobytes() if sys.byteorder == "little" else _swapped(log.counts).tobytes()
        yield _TERMS, b"".join((_LOG.pack(log.first_seq, len(log.counts)), counts, log.terms))
    yield _END, b""


def _swapped(counts: "array[int]") -> "array[int]":
    swapped = array("I", counts)
    swapped.byteswap()
    return swapped


def _items(payload: bytes) -> Iterator[tuple[bytes, bytes | None]]:
    """Yields the (key, value) that ``pack_items`` packed, None for a deletion; the checksum has matched before."""
    at = 0
    while at < len(payload):
        key_length, value_length = _ITEM.unpack_from(payload, at)
        at += _ITEM.size
        key = payload[at : at + key_length]
        at += key_length
        if value_length == _DELETED:
            yield key, None
            continue
        yield key, payload[at : at + value_length]
        at += value_length


def _decode_log(payload: bytes) -> keys.TermLog:
    first_seq, transactions = _LOG.unpack_from(payload)
    end = _LOG.size + 4 * transactions
    counts = array("I", payload[_LOG.size : end])
    if sys.byteorder != "little":
        counts.byteswap()
    return keys.TermLog(payload[end:], counts, first_seq)

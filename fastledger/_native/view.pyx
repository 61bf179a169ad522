"""What rules read and write: the state under a block that is being built, without a step of interpreter per access.

Only the bookkeeping lives here. What the entries mean, and every rule over them, is ``fastledger.state``.
"""

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from cpython.dict cimport PyDict_GetItemWithError
from cpython.ref cimport PyObject
from libc.stdint cimport uint8_t
from libc.string cimport memcpy

from fastledger._native.c_fl cimport fl_sha256, init_backend

import msgspec

cdef object ENCODE = msgspec.msgpack.Encoder().encode

cdef enum:
    LENGTH_BYTES = 4
    DIGEST_BYTES = 32


cdef class Table:
    """A family of state keys ``prefix || id`` whose values are one entity type."""

    cdef readonly bytes prefix
    cdef readonly object decode

    def __init__(self, bytes prefix not None, entity):
        self.prefix = prefix
        self.decode = msgspec.msgpack.Decoder(entity).decode

    def __class_getitem__(cls, _):
        return cls


cdef class View:
    """Reads through to ``base`` and collects the block's writes in ``writes``."""

    cdef readonly dict writes
    cdef object _base
    cdef dict _journal
    # Entries as of the last commit: a block's transactions share signers, folders and consents.
    cdef dict _decoded

    def __init__(self, base, dict writes=None):
        self._base = base
        self.writes = {} if writes is None else writes
        self._journal = {}
        self._decoded = {}

    def load(self, Table table not None, bytes key not None):
        """The entry ``key`` of ``table``; None where there is none."""
        cdef bytes full_key = table.prefix + key
        cdef PyObject *found
        cdef object raw, entry
        if self._journal:
            found = PyDict_GetItemWithError(self._journal, full_key)
            if found != NULL:
                raw = <object>found
                return None if raw is None else table.decode(raw)
        found = PyDict_GetItemWithError(self._decoded, full_key)
        if found != NULL:
            return <object>found
        found = PyDict_GetItemWithError(self.writes, full_key)
        raw = <object>found if found != NULL else self._base(full_key)
        entry = None if raw is None else table.decode(raw)
        self._decoded[full_key] = entry
        return entry

    def store(self, Table table not None, bytes key not None, value):
        """Sets the entry ``key`` of ``table``."""
        self._journal[table.prefix + key] = ENCODE(value)

    def remove(self, Table table not None, bytes key not None):
        """Removes the entry ``key`` of ``table``."""
        self._journal[table.prefix + key] = None

    def commit(self):
        """Keeps what the running transaction wrote."""
        if self._journal:
            self.writes.update(self._journal)
            for key in self._journal:
                self._decoded.pop(key, None)
            self._journal = {}

    def rollback(self):
        """Forgets what the running transaction wrote."""
        if self._journal:
            self._journal = {}


cdef inline uint8_t *put_length(uint8_t *target, size_t length) noexcept:
    target[0] = <uint8_t>(length >> 24)
    target[1] = <uint8_t>(length >> 16)
    target[2] = <uint8_t>(length >> 8)
    target[3] = <uint8_t>length
    return target + LENGTH_BYTES


cdef inline uint8_t *put_bytes(uint8_t *target, bytes data) noexcept:
    memcpy(target, PyBytes_AS_STRING(data), PyBytes_GET_SIZE(data))
    return target + PyBytes_GET_SIZE(data)


def write_set_digest(writes):
    """SHA-256 over the writes in key order: u32 key length, key, u32 value length + 1 (0: deleted), value (BE).

    ``writes``: a mapping of bytes to bytes or None, of less than 4 GiB each; TypeError for anything else.
    """
    cdef list items = sorted(writes.items())
    cdef size_t size = 0
    cdef bytes key, value
    for key, value in items:
        if key is None:
            raise TypeError("a state key is bytes")
        size += 2 * LENGTH_BYTES + PyBytes_GET_SIZE(key) + (0 if value is None else PyBytes_GET_SIZE(value))
    cdef bytes message = PyBytes_FromStringAndSize(NULL, size)
    cdef bytes digest = PyBytes_FromStringAndSize(NULL, DIGEST_BYTES)
    cdef uint8_t *at = <uint8_t *>PyBytes_AS_STRING(message)
    for key, value in items:
        at = put_bytes(put_length(at, PyBytes_GET_SIZE(key)), key)
        if value is None:
            at = put_length(at, 0)
        else:
            at = put_bytes(put_length(at, PyBytes_GET_SIZE(value) + 1), value)
    cdef const uint8_t *data = <const uint8_t *>PyBytes_AS_STRING(message)
    cdef uint8_t *out = <uint8_t *>PyBytes_AS_STRING(digest)
    with nogil:
        fl_sha256(out, data, size)
    return digest


init_backend()

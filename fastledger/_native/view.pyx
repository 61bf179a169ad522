"""The state under a block that is being built, as rules read and write it, without a step of interpreter per access.

Only the bookkeeping lives here. The meaning of the entries and every rule over them are in ``fastledger.state``.
"""

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from cpython.dict cimport PyDict_Clear, PyDict_GetItemWithError, PyDict_Next
from cpython.ref cimport PyObject
from cpython.tuple cimport PyTuple_Check, PyTuple_GET_ITEM, PyTuple_GET_SIZE
from libc.stdint cimport uint8_t, uint32_t
from libc.stdlib cimport free, realloc
from libc.string cimport memcpy

from fastledger._native.c_keyed cimport keyed, sort_keys
from fastledger._native.c_fl cimport fl_sha256, init_backend

from array import array

import msgspec

cdef object ENCODE = msgspec.msgpack.Encoder().encode

cdef enum:
    LENGTH_BYTES = 4
    DIGEST_BYTES = 32
    TABLE_BYTES = 2
    NAME_BYTES = 16
    TERM_BYTES = TABLE_BYTES + NAME_BYTES
    TERMS_MIN = 64


cdef class Table:
    """A family of state keys ``prefix || id`` whose values are one entity type."""

    cdef readonly bytes prefix
    cdef readonly object decode

    def __init__(self, bytes prefix not None, entity):
        self.prefix = prefix
        self.decode = msgspec.msgpack.Decoder(entity).decode

    def __class_getitem__(cls, _):
        return cls


cdef class Stack:
    """Maps laid over one another: the value of a key is that of the first map which has it.

    ``below(key)`` is called, once, for a key that no map has: its answer goes into ``cache``, which lies under them.
    """

    cdef list _maps
    cdef dict _cache
    cdef object _below

    def __init__(self, list maps not None, dict cache not None, below):
        cdef dict each
        for each in maps:
            if each is None:
                raise TypeError("a map is a dict")
        self._maps = list(maps)
        self._cache = cache
        self._below = below

    def __call__(self, bytes key not None):
        return self.look_up(key)

    cdef object look_up(self, bytes key):
        cdef PyObject *found
        for each in self._maps:
            found = PyDict_GetItemWithError(each, key)
            if found != NULL:
                return <object>found
        found = PyDict_GetItemWithError(self._cache, key)
        if found != NULL:
            return <object>found
        value = self._below(key)
        self._cache[key] = value
        return value


cdef class View:
    """Reads through to ``base`` and collects the block's writes in ``writes``."""

    cdef readonly dict writes
    cdef object _base
    cdef Stack _stack # the base, where it is one: it can be asked without a step of interpreter
    cdef dict _journal
    # Entries as of the last commit: a block's transactions share signers, folders and consents.
    cdef dict _decoded

    def __init__(self, base, dict writes=None):
        self._base = base
        self._stack = base if isinstance(base, Stack) else None
        self.writes = {} if writes is None else writes
        self._journal = {}
        self._decoded = {}

    def load(self, Table table not None, bytes key not None):
        """Returns the decoded entry ``key`` (the key without the prefix) of ``table``; None where there is none."""
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
        if found != NULL:
            raw = <object>found
        elif self._stack is not None:
            raw = self._stack.look_up(full_key)
        else:
            raw = self._base(full_key)
        entry = None if raw is None else table.decode(raw)
        self._decoded[full_key] = entry
        return entry

    def store(self, Table table not None, bytes key not None, value):
        """Sets the entry ``key`` of ``table`` for the running transaction; ``value`` is encoded at once."""
        self._journal[table.prefix + key] = ENCODE(value)

    def remove(self, Table table not None, bytes key not None):
        """Removes the entry ``key`` of ``table`` for the running transaction."""
        self._journal[table.prefix + key] = None

    def commit(self):
        """Moves what the running transaction wrote into ``writes`` and ends it."""
        cdef Py_ssize_t at = 0
        cdef PyObject *key
        cdef PyObject *value
        if self._journal:
            while PyDict_Next(self._journal, &at, &key, &value):
                self.writes[<object>key] = <object>value
                if PyDict_GetItemWithError(self._decoded, <object>key) != NULL:
                    del self._decoded[<object>key]
            PyDict_Clear(self._journal)

    def rollback(self):
        """Drops what the running transaction wrote and ends it."""
        PyDict_Clear(self._journal)


cdef class TermList:
    """The terms of consecutive transactions, 18 bytes each: a table (2) and a name in it (16).

    What is added belongs to the transaction that :meth:`end` ends. Adding raises ValueError for a table that has not
    2 bytes, or a name that has not 16.
    """

    cdef uint8_t *_terms
    cdef size_t _count
    cdef size_t _room
    cdef size_t _ended
    cdef object _counts

    def __cinit__(self):
        self._terms = NULL
        self._count = self._room = self._ended = 0
        self._counts = array("I")

    def __dealloc__(self):
        free(self._terms)

    def __len__(self):
        """How many terms there are, of all transactions together."""
        return self._count

    def add(self, bytes table not None, bytes name not None):
        """Adds one term to the running transaction."""
        self._add(self._reserve(1), table, name)

    def add_all(self, bytes table not None, list names not None):
        """Adds one term for each of ``names``, all or none."""
        self._add_all(table, names)

    cdef int _add_all(self, bytes table, list names) except -1:
        cdef Py_ssize_t count = len(names), i
        cdef uint8_t *at = self._reserve(count)
        cdef size_t before = self._count
        try:
            for i in range(count):
                self._add(at + i * TERM_BYTES, table, names[i])
        except BaseException:
            self._count = before
            raise
        return 0

    def add_found(self, tuple sources not None, body):
        """Adds what each of ``sources`` finds in ``body``.

        A source is a table, a function that gives a name (or None, for no term) or a list of names, and whether it
        gives a list.
        """
        cdef bytes table
        for source in sources:
            if not PyTuple_Check(source) or PyTuple_GET_SIZE(source) != 3:
                raise TypeError("a source is a table, a function, and whether it gives a list")
            table = <object>PyTuple_GET_ITEM(source, 0)
            found = (<object>PyTuple_GET_ITEM(source, 1))(body)
            if <object>PyTuple_GET_ITEM(source, 2):
                self._add_all(table, found)
            elif found is not None:
                self._add(self._reserve(1), table, found)

    def end(self):
        """Ends the running transaction; terms that are added from here on belong to the next one."""
        self._counts.append(self._count - self._ended)
        self._ended = self._count

    def copy(self):
        """Returns a list that holds the same terms and grows on its own."""
        cdef TermList other = TermList()
        cdef uint8_t *at = other._reserve(self._count)
        if self._count:
            memcpy(at, self._terms, self._count * TERM_BYTES)
        other._count, other._ended = self._count, self._ended
        other._counts = self._counts[:]
        return other

    @property
    def terms(self):
        """The terms, one after another, n x 18 bytes."""
        return PyBytes_FromStringAndSize(<const char *>self._terms, self._count * TERM_BYTES)

    @property
    def counts(self):
        """The number of terms of each transaction that has ended, as an array of uint32."""
        return self._counts[:]

    cdef uint8_t *_reserve(self, size_t count) except NULL:
        """Makes room for ``count`` more terms and returns where they go; raises MemoryError."""
        cdef size_t wanted = self._count + count, room
        cdef void *grown
        if wanted > self._room or self._terms == NULL:
            room = max(2 * self._room, wanted, <size_t>TERMS_MIN)
            grown = realloc(self._terms, room * TERM_BYTES)
            if grown == NULL:
                raise MemoryError(f"no room for {room} terms")
            self._terms, self._room = <uint8_t *>grown, room
        return self._terms + self._count * TERM_BYTES

    cdef inline int _add(self, uint8_t *at, bytes table, bytes name) except -1:
        if (
            table is None or PyBytes_GET_SIZE(table) != TABLE_BYTES
            or name is None or PyBytes_GET_SIZE(name) != NAME_BYTES
        ):
            raise ValueError(f"a term is {TABLE_BYTES} bytes of table and {NAME_BYTES} bytes of name")
        memcpy(at, PyBytes_AS_STRING(table), TABLE_BYTES)
        memcpy(at + TABLE_BYTES, PyBytes_AS_STRING(name), NAME_BYTES)
        self._count += 1
        return 0


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
    """Returns the SHA-256 over the writes in key order.

    Each is u32 key length, key, u32 value length + 1 (0 where the key is removed) and value, lengths big-endian.
    ``writes`` maps bytes to bytes or None, of less than 4 GiB each. Raises TypeError for anything else.
    """
    cdef list keys = list(writes.keys()), values = list(writes.values())
    cdef Py_ssize_t count = len(keys), i, size = 0
    cdef bytes key, value
    if len(values) != count:
        raise ValueError("the writes changed while they were read")
    for i in range(count):
        key, value = keys[i], values[i]
        if key is None:
            raise TypeError("a state key is bytes")
        size += 2 * LENGTH_BYTES + PyBytes_GET_SIZE(key) + (0 if value is None else PyBytes_GET_SIZE(value))
    cdef bytes message = PyBytes_FromStringAndSize(NULL, size)
    cdef bytes digest = PyBytes_FromStringAndSize(NULL, DIGEST_BYTES)
    cdef uint8_t *at = <uint8_t *>PyBytes_AS_STRING(message)
    cdef keyed *ordered = sort_keys(keys)
    for i in range(count):
        key, value = keys[ordered[i].place], values[ordered[i].place]
        at = put_bytes(put_length(at, PyBytes_GET_SIZE(key)), key)
        if value is None:
            at = put_length(at, 0)
        else:
            at = put_bytes(put_length(at, PyBytes_GET_SIZE(value) + 1), value)
    free(ordered)
    cdef const uint8_t *data = <const uint8_t *>PyBytes_AS_STRING(message)
    cdef uint8_t *out = <uint8_t *>PyBytes_AS_STRING(digest)
    with nogil:
        fl_sha256(out, data, size)
    return digest


init_backend()

"""Whole batches of LMDB puts and gets in one release of the GIL, through the engine's function addresses.

Which functions and handles to use is the caller's affair (``storage/lmdb_engine.py``): nothing here can check them.
The engine is the one that the ``lmdb`` package bundles; only its ``MDB_val`` layout is known here.
"""

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from libc.stdint cimport uintptr_t
from libc.stdlib cimport free, malloc

cdef struct mdb_val:
    size_t size
    void *data

ctypedef int (*cursor_put_fn)(void *cursor, mdb_val *key, mdb_val *value, unsigned flags) noexcept nogil
ctypedef int (*get_fn)(void *txn, unsigned dbi, mdb_val *key, mdb_val *value) noexcept nogil

cdef enum:
    NOTFOUND = -30798


cdef int fill(mdb_val *vals, list items) except -1:
    """Points ``vals`` at the bytes of ``items``, which the caller keeps alive."""
    cdef Py_ssize_t i
    cdef object item
    for i in range(len(items)):
        item = items[i]
        if type(item) is not bytes:
            raise ValueError(f"item {i}: expected bytes, got {type(item).__name__}")
        vals[i].size = PyBytes_GET_SIZE(item)
        vals[i].data = PyBytes_AS_STRING(item)
    return 0


def put_many(uintptr_t cursor_put, uintptr_t cursor, list keys not None, list values not None):
    """Puts n pairs through an open cursor; returns 0 or the engine's first error code.

    Sorted keys are several times faster. The GIL is released once for all n.
    """
    cdef Py_ssize_t count = len(keys), i
    if len(values) != count:
        raise ValueError(f"values: expected {count}, got {len(values)}")
    if count == 0:
        return 0
    cdef mdb_val *vals = <mdb_val *>malloc(2 * count * sizeof(mdb_val))
    if vals == NULL:
        raise MemoryError(f"no room to put {count} pairs")
    cdef int code = 0
    cdef cursor_put_fn put = <cursor_put_fn>cursor_put
    try:
        fill(vals, keys)
        fill(vals + count, values)
        with nogil:
            for i in range(count):
                code = put(<void *>cursor, &vals[i], &vals[count + i], 0)
                if code != 0:
                    break
    finally:
        free(vals)
    return code


def get_many(uintptr_t get, uintptr_t txn, unsigned database, list keys not None):
    """The values of n keys in order, None for a key that is not there; or the engine's first error code (an int).

    The GIL is released once for all n; the values are copied out.
    """
    cdef Py_ssize_t count = len(keys), i
    if count == 0:
        return []
    cdef mdb_val *vals = <mdb_val *>malloc(2 * count * sizeof(mdb_val))
    if vals == NULL:
        raise MemoryError(f"no room to get {count} values")
    cdef int code = 0
    cdef get_fn getter = <get_fn>get
    cdef list found = []
    try:
        fill(vals, keys)
        with nogil:
            for i in range(count):
                code = getter(<void *>txn, database, &vals[i], &vals[count + i])
                if code == NOTFOUND:
                    vals[count + i].data = NULL
                    code = 0
                elif code != 0:
                    break
        if code != 0:
            return code
        for i in range(count):
            if vals[count + i].data == NULL:
                found.append(None)
            else:
                found.append(PyBytes_FromStringAndSize(<char *>vals[count + i].data, vals[count + i].size))
    finally:
        free(vals)
    return found

"""The border to native SHA-256 and Merkle trees: whole batches, at most one GIL release a call."""

from cpython.buffer cimport (
    PyBUF_FORMAT,
    PyBUF_ND,
    PyBuffer_Release,
    PyObject_CheckBuffer,
    PyObject_GetBuffer,
)
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from cpython.mem cimport PyMem_Free, PyMem_Malloc
from libc.string cimport memcpy

import sys
from array import array

from fastledger._native.c_fl cimport *

cdef enum:
    HASH_BYTES = 32
    BLOCK_BYTES = 64
    # Fewest leaves, some 1 ms of work, that are worth a thread.
    THREAD_LEAVES_MIN = 16384

RFC9162 = <int>FL_MERKLE_RFC9162
RFC9162_HASHED = <int>FL_MERKLE_RFC9162_HASHED
BITCOIN = <int>FL_MERKLE_BITCOIN

# Struct formats of an unsigned 64-bit integer in this machine's byte order.
cdef frozenset UINT64_FORMATS = frozenset(
    (b"Q", b"L", b"@Q", b"@L", b"=Q", b"<Q" if sys.byteorder == "little" else b">Q")
)

ctypedef void (*hash_many_function)(
    uint8_t *out32s, const uint8_t *data, const uint64_t *offsets, size_t count) noexcept nogil


cdef uint64_t *copy_offsets(object offsets, size_t *count) except NULL:
    """Copy n + 1 offsets to memory of our own and set ``count`` to n; the caller frees it.

    A copy, because without the GIL another thread may write to the caller's buffer after we have checked it.
    """
    cdef Py_buffer view
    cdef uint64_t *copy
    if not PyObject_CheckBuffer(offsets):
        try:
            offsets = array("Q", offsets)
        except (TypeError, ValueError, OverflowError):
            raise ValueError(
                f"offsets: expected n + 1 integers from 0 to 2**64 - 1, got {type(offsets).__name__}"
            ) from None
    try:
        PyObject_GetBuffer(offsets, &view, PyBUF_FORMAT | PyBUF_ND)
    except BufferError:
        raise ValueError("offsets: expected a contiguous uint64 buffer, got a non-contiguous one") from None
    try:
        if view.ndim != 1 or view.itemsize != 8 or <bytes>view.format not in UINT64_FORMATS:
            raise ValueError(
                "offsets: expected a one-dimensional uint64 buffer, "
                f"got {view.ndim} dimensions of format {view.format.decode()!r}"
            )
        if view.len == 0:
            raise ValueError("offsets: expected n + 1 entries, got none")
        copy = <uint64_t *>PyMem_Malloc(view.len)
        if copy == NULL:
            raise MemoryError
        memcpy(copy, view.buf, view.len)
        count[0] = view.len // 8 - 1
        return copy
    finally:
        PyBuffer_Release(&view)


cdef int check_offsets(const uint64_t *offsets, size_t count, size_t data_size) except -1:
    cdef size_t bad = 0
    if not fl_offsets_check(&bad, offsets, count, data_size):
        raise ValueError(
            f"offsets: expected entries that never decrease and end within {data_size} bytes, "
            f"got {offsets[bad]} at {bad}"
        )
    return 0


cdef bytes hash_messages(object buffer, object offsets, hash_many_function hash_many):
    """Hash n messages by ``hash_many``: the common part of sha256_many and leaf_hashes."""
    cdef Py_buffer data
    cdef size_t count = 0
    cdef uint64_t *bounds = copy_offsets(offsets, &count)
    cdef bytes result
    cdef uint8_t *out
    try:
        acquire_bytes(buffer, &data, "buffer")
        try:
            check_offsets(bounds, count, data.len)
            result = PyBytes_FromStringAndSize(NULL, HASH_BYTES * count)
            out = <uint8_t *>PyBytes_AS_STRING(result)
            if bounds[count] - bounds[0] + BLOCK_BYTES * count < GIL_RELEASE_BYTES_MIN:
                hash_many(out, <const uint8_t *>data.buf, bounds, count)
            else:
                with nogil:
                    hash_many(out, <const uint8_t *>data.buf, bounds, count)
            return result
        finally:
            PyBuffer_Release(&data)
    finally:
        PyMem_Free(bounds)


def sha256_many(buffer, offsets):
    return hash_messages(buffer, offsets, fl_sha256_many)


def leaf_hashes(buffer, offsets):
    return hash_messages(buffer, offsets, fl_sha256_leaf_many)


cdef object as_leaf_buffer(object leaves):
    """Returns a buffer as it is, and a sequence of 32-byte ``bytes`` joined; ValueError for anything else."""
    if PyObject_CheckBuffer(leaves):
        return leaves
    cdef list items
    try:
        items = list(leaves)
    except TypeError:
        raise ValueError(
            f"leaves: expected n x 32 contiguous bytes or a sequence of them, got {type(leaves).__name__}"
        ) from None
    for index, leaf in enumerate(items):
        if type(leaf) is not bytes:
            raise ValueError(f"leaves: expected 32 bytes at index {index}, got {type(leaf).__name__}")
        if PyBytes_GET_SIZE(leaf) != HASH_BYTES:
            raise ValueError(f"leaves: expected 32 bytes at index {index}, got {len(leaf)}")
    return b"".join(items)


cdef size_t acquire_leaves(object leaves, Py_buffer *view) except? 0:
    """Borrow n x 32 bytes; returns n."""
    acquire_bytes(as_leaf_buffer(leaves), view, "leaves")
    if view.len % HASH_BYTES != 0:
        size = view.len
        PyBuffer_Release(view)
        raise ValueError(f"leaves: expected n x 32 bytes, got {size}")
    return view.len // HASH_BYTES


def join_rows(const uint8_t[::1] left not None, size_t left_width, const uint8_t[::1] right not None, size_t right_width):
    """Returns n rows of left_width + right_width bytes: row i of ``left``, then row i of ``right``.

    ValueError where the two have not the same number of whole rows.
    """
    if left_width == 0 or right_width == 0:
        raise ValueError("a row has at least a byte")
    cdef size_t count = left.shape[0] // left_width, i
    if count * left_width != <size_t>left.shape[0] or count * right_width != <size_t>right.shape[0]:
        raise ValueError(
            f"expected n x {left_width} and n x {right_width} bytes, got {left.shape[0]} and {right.shape[0]}"
        )
    cdef bytes joined = PyBytes_FromStringAndSize(NULL, count * (left_width + right_width))
    cdef char *at = PyBytes_AS_STRING(joined)
    for i in range(count):
        memcpy(at, &left[i * left_width], left_width)
        memcpy(at + left_width, &right[i * right_width], right_width)
        at += left_width + right_width
    return joined


def merkle_root(leaves, int scheme, threads=None):
    cdef Py_buffer view
    cdef size_t count = acquire_leaves(leaves, &view)
    cdef const uint8_t *leaf32s = <const uint8_t *>view.buf
    cdef uint8_t[HASH_BYTES] root
    cdef uint8_t *scratch = NULL
    cdef unsigned workers
    cdef int done = 0
    try:
        workers = choose_threads(threads, count // THREAD_LEAVES_MIN)
        scratch = <uint8_t *>PyMem_Malloc(fl_merkle_scratch_size(count))
        if scratch == NULL:
            raise MemoryError
        if view.len < GIL_RELEASE_BYTES_MIN:
            done = fl_merkle_root(root, <fl_merkle_scheme>scheme, leaf32s, count, workers, scratch)
        else:
            with nogil:
                done = fl_merkle_root(root, <fl_merkle_scheme>scheme, leaf32s, count, workers, scratch)
    finally:
        PyMem_Free(scratch)
        PyBuffer_Release(&view)
    if not done:
        raise ValueError("leaves: expected at least one, got none")
    return PyBytes_FromStringAndSize(<char *>root, HASH_BYTES)


def merkle_levels(leaves, bint hashed, threads=None):
    cdef Py_buffer view
    cdef size_t count = acquire_leaves(leaves, &view)
    cdef fl_merkle_scheme scheme = FL_MERKLE_RFC9162_HASHED if hashed else FL_MERKLE_RFC9162
    cdef unsigned workers
    cdef bytes result
    cdef uint8_t *out
    try:
        workers = choose_threads(threads, count // THREAD_LEAVES_MIN)
        result = PyBytes_FromStringAndSize(NULL, HASH_BYTES * fl_merkle_node_count(count))
        out = <uint8_t *>PyBytes_AS_STRING(result)
        if count == 0:
            return 0, result
        if view.len < GIL_RELEASE_BYTES_MIN:
            fl_merkle_levels(out, scheme, <const uint8_t *>view.buf, count, workers)
        else:
            with nogil:
                fl_merkle_levels(out, scheme, <const uint8_t *>view.buf, count, workers)
        return count, result
    finally:
        PyBuffer_Release(&view)


def merkle_proofs(bytes nodes, size_t count, size_t first, size_t proof_count):
    if count == 0 or <size_t>PyBytes_GET_SIZE(nodes) != HASH_BYTES * fl_merkle_node_count(count):
        raise ValueError(f"nodes: expected all nodes of a tree of {count} leaves, got {len(nodes)} bytes")
    if first > count or proof_count > count - first:
        raise ValueError(f"first, count: expected leaves within 0 .. {count}, got {first} and {proof_count}")
    cdef size_t depth = fl_merkle_depth(count)
    cdef bytes proofs = PyBytes_FromStringAndSize(NULL, HASH_BYTES * depth * proof_count)
    cdef bytes lengths = PyBytes_FromStringAndSize(NULL, proof_count)
    cdef uint8_t *out = <uint8_t *>PyBytes_AS_STRING(proofs)
    cdef uint8_t *lengths_out = <uint8_t *>PyBytes_AS_STRING(lengths)
    cdef const uint8_t *node32s = <const uint8_t *>PyBytes_AS_STRING(nodes)
    if HASH_BYTES * depth * proof_count < GIL_RELEASE_BYTES_MIN:
        fl_merkle_proofs(out, lengths_out, node32s, count, first, proof_count)
    else:
        with nogil:
            fl_merkle_proofs(out, lengths_out, node32s, count, first, proof_count)
    return depth, proofs, lengths


cdef tuple CPU_FEATURE_NAMES = (
    (FL_CPU_SSSE3, "ssse3"),
    (FL_CPU_SSE41, "sse4.1"),
    (FL_CPU_SHA, "sha"),
    (FL_CPU_BMI2, "bmi2"),
    (FL_CPU_ADX, "adx"),
    (FL_CPU_AVX2, "avx2"),
    (FL_CPU_AVX512F, "avx512f"),
    (FL_CPU_AVX512IFMA, "avx512ifma"),
    (FL_CPU_ARM_SHA2, "sha2"),
)


def cpu_features():
    found = fl_cpu_features()
    return [name for bit, name in CPU_FEATURE_NAMES if found & bit]


def multiply_chain(uint64_t count):
    return fl_multiply_chain(count)


def backends():
    return usable_backends()


def backend():
    return fl_backend_name().decode()


def backend_lanes():
    return fl_backend_lanes()


def backend_streams():
    return fl_backend_streams_name().decode()


def force_backend(name):
    force_backend_or_raise(name)


init_backend()

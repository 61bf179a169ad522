"""The border to native proof of work: header hashes in bulk and the nonce search, both without the GIL."""

from cpython.buffer cimport PyBuffer_Release
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize
from libc.string cimport memcpy

from fastledger._native.c_fl cimport *

cdef enum:
    HASH_BYTES = 32
    HEADER_BYTES = 80
    # Fewest nonces, two slices of the search, that are worth a thread.
    THREAD_NONCES_MIN = 32768

cdef uint64_t NONCE_END = <uint64_t>1 << 32


def header_hashes(headers):
    cdef Py_buffer view
    acquire_bytes(headers, &view, "headers")
    cdef size_t count = view.len // HEADER_BYTES
    cdef bytes result
    cdef uint8_t *out
    try:
        if view.len % HEADER_BYTES != 0:
            raise ValueError(f"headers: expected n x 80 bytes, got {view.len}")
        result = PyBytes_FromStringAndSize(NULL, HASH_BYTES * count)
        out = <uint8_t *>PyBytes_AS_STRING(result)
        if view.len < GIL_RELEASE_BYTES_MIN:
            fl_header_hash_many(out, <const uint8_t *>view.buf, count)
        else:
            with nogil:
                fl_header_hash_many(out, <const uint8_t *>view.buf, count)
        return result
    finally:
        PyBuffer_Release(&view)


cdef int copy_header(uint8_t *header80, object header) except -1:
    cdef Py_buffer view
    acquire_bytes(header, &view, "header")
    try:
        if view.len != HEADER_BYTES:
            raise ValueError(f"header: expected 80 bytes, got {view.len}")
        memcpy(header80, view.buf, HEADER_BYTES)
    finally:
        PyBuffer_Release(&view)
    return 0


cdef int encode_target(uint8_t *target32, object target) except -1:
    if not isinstance(target, int) or not 0 <= target < 1 << 256:
        raise ValueError("target: expected an integer from 0 to 2**256 - 1")
    cdef bytes encoded = target.to_bytes(32, "little")
    memcpy(target32, PyBytes_AS_STRING(encoded), 32)
    return 0


cdef class SearchControl:
    """A handle by which any thread can cancel a search and see how far it is."""

    cdef fl_pow_control state

    def __cinit__(self):
        fl_pow_control_init(&self.state)

    def cancel(self):
        """Asks the search to end, which it does within milliseconds. A control that was cancelled stays cancelled."""
        fl_pow_control_cancel(&self.state)

    @property
    def cancelled(self):
        """Whether `cancel` was called."""
        return bool(fl_pow_control_is_cancelled(&self.state))

    @property
    def hashes_done(self):
        """How many nonces were tried so far, in all searches that used this control."""
        return fl_pow_control_hashes_done(&self.state)


def search_nonce(header80, target, start, count, threads, SearchControl control):
    cdef uint8_t[HEADER_BYTES] header
    cdef uint8_t[32] bound
    cdef uint32_t nonce = 0
    cdef uint32_t first
    cdef uint64_t nonces
    cdef unsigned workers
    cdef fl_pow_control *shared = NULL if control is None else &control.state
    cdef int found
    copy_header(header, header80)
    encode_target(bound, target)
    if not isinstance(start, int) or not isinstance(count, int):
        raise ValueError("start, count: expected integers")
    if start < 0 or count < 0 or start + count > NONCE_END:
        raise ValueError(f"start, count: expected nonces within 0 .. 2**32, got {start} and {count}")
    workers = choose_threads(threads, count // THREAD_NONCES_MIN)
    if count == 0:
        return None
    first = start
    nonces = count
    with nogil:
        found = fl_pow_search(&nonce, header, bound, first, nonces, workers, shared)
    return nonce if found else None


init_backend()

"""ECDSA verification on secp256k1, a batch at a time, by the libsecp256k1 that coincurve carries.

The functions are called at their addresses from native threads, so that a batch costs one release of the GIL,
not one per signature: beside a busy event loop each release costs up to a switch interval of 5 ms.
"""

import os

from cpython.buffer cimport PyBuffer_Release
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize
from libc.stdint cimport uint8_t

from fastledger._native.c_fl cimport acquire_bytes
from fastledger._native.c_fl_tx cimport (
    fl_ecdsa,
    fl_ecdsa_hold,
    fl_ecdsa_new,
    fl_ecdsa_read_stats,
    fl_ecdsa_release,
    fl_ecdsa_resize_cache,
    fl_ecdsa_stats,
    fl_ecdsa_verify_many,
    fl_secp_addresses,
)

from fastledger.limits import VERIFY_THREADS_MAX

KEY_CACHE_ENTRIES_DEFAULT = 16_384
KEY_CACHE_ENTRIES_MAX = 1 << 22

cdef enum:
    DIGEST_LEN = 32
    SIG_LEN = 64
    KEY_LEN = 33
    PARSED_LEN = 64 # of the library's own keys and signatures
    # Fewest signatures, some 0.6 ms of work, that are worth starting a thread for.
    THREAD_SIGNATURES_MIN = 16

cdef fl_ecdsa *VERIFIER = NULL
LIBRARY_VERSION = ""


cdef fl_secp_addresses find_library() except *:
    """Addresses of libsecp256k1's functions; ImportError names what coincurve does not have."""
    global LIBRARY_VERSION
    import coincurve
    from coincurve._libsecp256k1 import ffi, lib

    def address(name):
        try:
            found = int(ffi.cast("uintptr_t", ffi.addressof(lib, name)))
        except AttributeError:
            found = 0
        if found == 0:
            raise ImportError(f"coincurve {coincurve.__version__} has no {name}")
        return found

    cdef fl_secp_addresses secp
    secp.ec_pubkey_parse = address("secp256k1_ec_pubkey_parse")
    secp.ecdsa_signature_parse_compact = address("secp256k1_ecdsa_signature_parse_compact")
    secp.ecdsa_verify = address("secp256k1_ecdsa_verify")
    secp.context = int(ffi.cast("uintptr_t", lib.secp256k1_context_static))
    if secp.context == 0:
        raise ImportError(f"coincurve {coincurve.__version__} has no secp256k1_context_static")
    if ffi.sizeof("secp256k1_pubkey") != PARSED_LEN or ffi.sizeof("secp256k1_ecdsa_signature") != PARSED_LEN:
        raise ImportError(f"coincurve {coincurve.__version__} lays out its types in another way")
    lib.secp256k1_selftest()
    LIBRARY_VERSION = coincurve.__version__
    return secp


def default_threads():
    """Threads that a large batch uses: one for each CPU that this process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return min(len(os.sched_getaffinity(0)), VERIFY_THREADS_MAX)
    return min(os.cpu_count() or 1, VERIFY_THREADS_MAX)


def verify_batch(digests, signatures, keys, *, threads=None):
    """Verify n signatures; returns n bytes, 1 for a good one and 0 for any other (SPEC-SIG).

    ``digests``: n x 32 bytes; ``signatures``: n x 64 bytes r || s; ``keys``: n x 33 bytes, compressed: all
    contiguous, else ValueError. ``threads`` (default: one for each CPU) is a ceiling: each gets at least 16
    signatures. The GIL is released once, for a single signature not at all.
    """
    cdef Py_buffer views[3]
    cdef int held = 0, i
    try:
        for source, name in ((digests, "digests"), (signatures, "signatures"), (keys, "keys")):
            acquire_bytes(source, &views[held], name)
            held += 1
        return verify_views(views, threads)
    finally:
        for i in range(held):
            PyBuffer_Release(&views[i])


cdef bytes verify_views(Py_buffer *views, object threads):
    """Verify what the buffers of digests, signatures and keys hold."""
    cdef size_t count = views[0].len // DIGEST_LEN
    check_shape("digests", views[0].len, DIGEST_LEN, count)
    check_shape("signatures", views[1].len, SIG_LEN, count)
    check_shape("keys", views[2].len, KEY_LEN, count)
    cdef unsigned workers = choose_threads(threads, count)
    cdef bytes mask = PyBytes_FromStringAndSize(NULL, count)
    cdef uint8_t *ok = <uint8_t *>PyBytes_AS_STRING(mask)
    cdef const uint8_t *digest32s = <const uint8_t *>views[0].buf
    cdef const uint8_t *sig64s = <const uint8_t *>views[1].buf
    cdef const uint8_t *key33s = <const uint8_t *>views[2].buf
    cdef int done
    if count <= 1: # some 40 us: to wait for the GIL would cost more than to keep it
        done = fl_ecdsa_verify_many(VERIFIER, ok, digest32s, sig64s, key33s, count, workers)
    else:
        with nogil:
            done = fl_ecdsa_verify_many(VERIFIER, ok, digest32s, sig64s, key33s, count, workers)
    if not done:
        raise MemoryError(f"no room to verify {count} signatures")
    return mask


def resize_key_cache(size_t entries=KEY_CACHE_ENTRIES_DEFAULT):
    """Empty the table of parsed keys and give it room for ``entries`` (about 110 bytes each; 0: no table).

    Rounded up to a power of two, at least 4. ValueError beyond KEY_CACHE_ENTRIES_MAX.
    """
    if entries > KEY_CACHE_ENTRIES_MAX:
        raise ValueError(f"entries: at most {KEY_CACHE_ENTRIES_MAX}, got {entries}")
    cdef int done
    with nogil:
        done = fl_ecdsa_resize_cache(VERIFIER, entries)
    if not done:
        raise MemoryError(f"no room for {entries} parsed keys")


def ecdsa_backend():
    """Which library verifies, with how many threads, and the state of the table of parsed keys."""
    cdef fl_ecdsa_stats stats = fl_ecdsa_read_stats(VERIFIER)
    return {
        "library": "libsecp256k1 of coincurve",
        "version": LIBRARY_VERSION,
        "threads": default_threads(),
        "cache_entries": stats.cache_entries,
        "cache_used": stats.cache_used,
        "cache_hits": stats.cache_hits,
        "cache_misses": stats.cache_misses,
    }


cdef int check_shape(str name, size_t size, size_t width, size_t count) except -1:
    if size != width * count:
        raise ValueError(f"{name}: expected n x {width} bytes with n = {count}, got {size} bytes")
    return 0


cdef unsigned choose_threads(object threads, size_t count) except 0:
    if threads is not None and not 1 <= threads <= VERIFY_THREADS_MAX:
        raise ValueError(f"threads: expected 1 to {VERIFY_THREADS_MAX}, got {threads}")
    if count < 2 * THREAD_SIGNATURES_MIN:
        return 1
    return min(default_threads() if threads is None else threads, count // THREAD_SIGNATURES_MIN)


def _hold_for_fork():
    fl_ecdsa_hold(VERIFIER)


def _release_after_fork():
    fl_ecdsa_release(VERIFIER)


cdef int start() except -1:
    global VERIFIER
    cdef fl_secp_addresses secp = find_library()
    VERIFIER = fl_ecdsa_new(&secp, KEY_CACHE_ENTRIES_DEFAULT)
    if VERIFIER == NULL:
        raise MemoryError("no room for the table of parsed keys")
    os.register_at_fork(
        before=_hold_for_fork,
        after_in_parent=_release_after_fork,
        after_in_child=_release_after_fork,
    )
    return 0


start()

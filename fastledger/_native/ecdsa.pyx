"""ECDSA verification on secp256k1, a batch at a time: kernels of our own, and the libsecp256k1 that coincurve carries.

The policy (SPEC-SIG-5) picks for each signature: the comb of a key that is seen often, a kernel for any key, a
randomised batch where hints are given, or libsecp256k1, which also decides whatever a kernel leaves undecided.
Everything runs in native threads, so that a batch costs one release of the GIL, not one per signature: beside a
busy event loop each release costs up to a switch interval of 5 ms.

``FASTLEDGER_ECDSA`` forces what verifies: ``libsecp`` (libsecp256k1 alone), ``fast`` (the import fails where no
kernel of ours passes its start-up test) or a kernel's name; unset or empty, the fastest that passes.
"""

import os

from cpython.buffer cimport PyBuffer_Release
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize
from libc.stdint cimport uint8_t
from libc.string cimport memset

from fastledger._native.c_fl cimport acquire_bytes
from fastledger._native.c_fl_tx cimport (
    FL_PATH_ANY,
    FL_PATH_AUTO,
    FL_PATH_KNOWN,
    FL_PATH_LIBSECP,
    FL_PATH_RANDOMISED,
    fl_batch_force,
    fl_batch_hold,
    fl_batch_input,
    fl_batch_kernel_name,
    fl_batch_kernel_usable,
    fl_batch_new,
    fl_batch_read_stats,
    fl_batch_release,
    fl_batch_resize_keys,
    fl_batch_set_table_memory,
    fl_batch_stats,
    fl_batch_verifier,
    fl_batch_verify,
    fl_ecdsa_path,
    fl_secp_addresses,
)

from fastledger.errors import InstallationError
from fastledger.limits import VERIFY_THREADS_MAX

KEY_CACHE_ENTRIES_DEFAULT = 16_384
KEY_CACHE_ENTRIES_MAX = 1 << 22
# Some 480 keys at 133 KB each.
TABLE_MEMORY_DEFAULT = 64 << 20
TABLE_MEMORY_MAX = 1 << 40

# First byte of a column of hints: what follows is one tag for each signature, or a tag and y(R) (SPEC-SIG-6).
HINTS_PARITY = 1
HINTS_FULL = 2

PATHS = {
    "auto": FL_PATH_AUTO,
    "libsecp": FL_PATH_LIBSECP,
    "known": FL_PATH_KNOWN,
    "any": FL_PATH_ANY,
    "randomised": FL_PATH_RANDOMISED,
}

cdef enum:
    DIGEST_LEN = 32
    SIG_LEN = 64
    KEY_LEN = 33
    FULL_HINT_LEN = 33
    PARSED_LEN = 64 # of the library's own keys and signatures
    # Fewest signatures, from 0.1 ms of work, that are worth starting a thread for.
    THREAD_SIGNATURES_MIN = 16

cdef fl_batch_verifier *VERIFIER = NULL
LIBRARY_VERSION = ""


def wrong_coincurve(problem):
    """Returns the error for a coincurve whose libsecp256k1 cannot be driven."""
    return InstallationError(f"{problem}: pip install --only-binary coincurve 'coincurve>=21,<22'")


cdef fl_secp_addresses find_library() except *:
    """Returns the addresses of libsecp256k1's functions; InstallationError names what coincurve does not have."""
    global LIBRARY_VERSION
    try:
        import coincurve
        from coincurve._libsecp256k1 import ffi, lib
    except ImportError as error:
        raise wrong_coincurve(str(error)) from None

    def address(name):
        try:
            found = int(ffi.cast("uintptr_t", ffi.addressof(lib, name)))
        except AttributeError:
            found = 0
        if found == 0:
            raise wrong_coincurve(f"coincurve {coincurve.__version__} has no {name}")
        return found

    cdef fl_secp_addresses secp
    secp.ec_pubkey_parse = address("secp256k1_ec_pubkey_parse")
    secp.ecdsa_signature_parse_compact = address("secp256k1_ecdsa_signature_parse_compact")
    secp.ecdsa_verify = address("secp256k1_ecdsa_verify")
    secp.context = int(ffi.cast("uintptr_t", lib.secp256k1_context_static))
    if secp.context == 0:
        raise wrong_coincurve(f"coincurve {coincurve.__version__} has no secp256k1_context_static")
    if ffi.sizeof("secp256k1_pubkey") != PARSED_LEN or ffi.sizeof("secp256k1_ecdsa_signature") != PARSED_LEN:
        raise wrong_coincurve(f"coincurve {coincurve.__version__} lays out its types in another way")
    lib.secp256k1_selftest()
    LIBRARY_VERSION = coincurve.__version__
    return secp


def default_threads():
    """Returns how many threads a large batch uses: one for each CPU that this process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return min(len(os.sched_getaffinity(0)), VERIFY_THREADS_MAX)
    return min(os.cpu_count() or 1, VERIFY_THREADS_MAX)


def verify_batch(digests, signatures, keys, *, hints=None, return_hints=False, threads=None):
    """Verify n signatures; returns n bytes, 1 for a good one and 0 for any other (SPEC-SIG).

    ``digests``: n x 32 bytes; ``signatures``: n x 64 bytes r || s; ``keys``: n x 33 bytes, compressed: all
    contiguous, else ValueError. ``hints``: the hints that an earlier call with ``return_hints`` gave, or their
    ``parity_hints`` (SPEC-SIG-6); a wrong hint costs time and changes no verdict. With ``return_hints`` the result is
    (verdicts, hints). ``threads`` (default: one for each CPU) is a ceiling: each gets at least 16 signatures. The
    GIL is released once, for a single signature not at all.
    """
    cdef Py_buffer views[4]
    cdef int held = 0, i
    try:
        for source, name in ((digests, "digests"), (signatures, "signatures"), (keys, "keys"), (hints, "hints")):
            if source is None and name == "hints":
                break
            acquire_bytes(source, &views[held], name)
            held += 1
        return verify_views(views, held == 4, bool(return_hints), threads)
    finally:
        for i in range(held):
            PyBuffer_Release(&views[i])


cdef object verify_views(Py_buffer *views, bint hinted, bint return_hints, object threads):
    """Verify the signatures in the buffers of digests, signatures, keys and (``hinted``) hints."""
    cdef size_t count = views[0].len // DIGEST_LEN
    check_shape("digests", views[0].len, DIGEST_LEN, count)
    check_shape("signatures", views[1].len, SIG_LEN, count)
    check_shape("keys", views[2].len, KEY_LEN, count)
    cdef fl_batch_input columns
    memset(&columns, 0, sizeof(columns))
    columns.count = count
    columns.digest32s = <const uint8_t *>views[0].buf
    columns.sig64s = <const uint8_t *>views[1].buf
    columns.key33s = <const uint8_t *>views[2].buf
    if hinted:
        columns.hint_len = hint_length(<const uint8_t *>views[3].buf, views[3].len, count)
        columns.hints = <const uint8_t *>views[3].buf + 1
    cdef unsigned workers = choose_threads(threads, count)
    cdef bytes mask = PyBytes_FromStringAndSize(NULL, count)
    cdef uint8_t *ok = <uint8_t *>PyBytes_AS_STRING(mask)
    cdef bytes found = None
    cdef uint8_t *hint33s = NULL
    if return_hints:
        found = PyBytes_FromStringAndSize(NULL, 1 + FULL_HINT_LEN * count)
        hint33s = <uint8_t *>PyBytes_AS_STRING(found)
        hint33s[0] = HINTS_FULL
        hint33s += 1
    cdef int done
    if count <= 1: # some 40 us: to wait for the GIL would cost more than to keep it
        done = fl_batch_verify(VERIFIER, ok, hint33s, &columns, workers)
    else:
        with nogil:
            done = fl_batch_verify(VERIFIER, ok, hint33s, &columns, workers)
    if not done:
        raise MemoryError(f"no room to verify {count} signatures")
    return (mask, found) if return_hints else mask


cdef size_t hint_length(const uint8_t *hints, size_t size, size_t count) except 0:
    if size == 1 + count and hints[0] == HINTS_PARITY:
        return 1
    if size == 1 + FULL_HINT_LEN * count and hints[0] == HINTS_FULL:
        return FULL_HINT_LEN
    version = hints[0] if size else None
    raise ValueError(
        f"hints: expected 1 + n bytes of version {HINTS_PARITY} or 1 + n x {FULL_HINT_LEN} of version {HINTS_FULL} "
        f"with n = {count}, got {size} bytes of version {version}"
    )


def parity_hints(hints):
    """Returns hints of one byte a signature, made from hints of 33 bytes each (SPEC-SIG-6).

    They are for storage; using one later costs a square root. ValueError for hints of another form.
    """
    data = bytes(hints)
    if not data or data[0] != HINTS_FULL or (len(data) - 1) % FULL_HINT_LEN:
        raise ValueError(f"hints: expected 1 + n x {FULL_HINT_LEN} bytes of version {HINTS_FULL}, got {len(data)}")
    return bytes([HINTS_PARITY]) + data[1::FULL_HINT_LEN]


def resize_key_cache(size_t entries=KEY_CACHE_ENTRIES_DEFAULT):
    """Empty the tables of keys and give them room for ``entries`` (some 230 bytes each in all; 0: none).

    Rounded up to a power of two, at least 4. ValueError beyond KEY_CACHE_ENTRIES_MAX. Comb tables go too.
    """
    if entries > KEY_CACHE_ENTRIES_MAX:
        raise ValueError(f"entries: at most {KEY_CACHE_ENTRIES_MAX}, got {entries}")
    cdef int done
    with nogil:
        done = fl_batch_resize_keys(VERIFIER, entries)
    if not done:
        raise MemoryError(f"no room for {entries} parsed keys")


def set_table_memory(size_t size=TABLE_MEMORY_DEFAULT):
    """Limit the comb tables of keys to ``size`` bytes in all (133 KB a key; 0: none), dropping those used longest ago.

    ValueError beyond TABLE_MEMORY_MAX. A table that a batch uses goes when that batch is done.
    """
    if size > TABLE_MEMORY_MAX:
        raise ValueError(f"size: at most {TABLE_MEMORY_MAX} bytes, got {size}")
    cdef int done
    with nogil:
        done = fl_batch_set_table_memory(VERIFIER, size)
    if not done:
        raise MemoryError(f"no room to account for {size} bytes of tables")


def ecdsa_kernels():
    """Returns the names of the kernels that this build has and this CPU can run, fastest first."""
    cdef size_t i = 0
    names = []
    while fl_batch_kernel_name(i) != NULL:
        if fl_batch_kernel_usable(i):
            names.append(fl_batch_kernel_name(i).decode())
        i += 1
    return names


def force_ecdsa(path=None, kernel=None):
    """For tests: verify everything in one way of PATHS, by one of ecdsa_kernels(); None restores the choice.

    ``known`` builds a table for every key, ``any`` uses none, ``randomised`` takes any number of hints. ValueError
    for a kernel that is not there or fails its start-up test. No batch may be running.
    """
    if path is not None and path not in PATHS:
        raise ValueError(f"path: expected one of {', '.join(PATHS)}, got {path!r}")
    choose(kernel, default_path() if path is None else PATHS[path])


cdef fl_ecdsa_path default_path() except *:
    return FL_PATH_LIBSECP if os.environ.get("FASTLEDGER_ECDSA") == "libsecp" else FL_PATH_AUTO


cdef int choose(object kernel, fl_ecdsa_path path) except -1:
    cdef bytes name
    cdef int done
    if kernel is None:
        done = fl_batch_force(VERIFIER, NULL, path)
    else:
        name = kernel.encode()
        done = fl_batch_force(VERIFIER, PyBytes_AS_STRING(name), path)
    if not done:
        raise ValueError(f"no ECDSA kernel {kernel or ''} here that passes its start-up test")
    return 0


def ecdsa_backend():
    """Reports the library, kernel and number of threads that verify, the state of the tables of keys, and counters.

    ``by``: signatures by what decided on them; ``undecided`` are those that a kernel left to libsecp256k1, and
    ``refused`` those with r, s or a key out of range.
    """
    cdef fl_batch_stats stats = fl_batch_read_stats(VERIFIER)
    return {
        "library": "libsecp256k1 of coincurve",
        "version": LIBRARY_VERSION,
        "kernel": None if stats.kernel == NULL else stats.kernel.decode(),
        "policy": next(name for name, path in PATHS.items() if path == stats.path),
        "threads": default_threads(),
        "cache_entries": stats.keys_max,
        "cache_used": stats.keys_used,
        "cache_hits": stats.key_hits,
        "cache_misses": stats.key_misses,
        "tables": stats.table_count,
        "table_memory": stats.table_memory,
        "table_memory_max": stats.table_memory_max,
        "tables_built": stats.tables_built,
        "tables_evicted": stats.tables_evicted,
        "by": {
            "known": stats.by_known,
            "any": stats.by_any,
            "randomised": stats.by_randomised,
            "libsecp": stats.by_libsecp,
            "undecided": stats.undecided,
            "refused": stats.refused,
        },
        "batches_failed": stats.batches_failed,
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
    fl_batch_hold(VERIFIER)


def _release_after_fork():
    fl_batch_release(VERIFIER)


cdef int start() except -1:
    """Makes the verifier and chooses its kernel.

    Where no kernel passes its start-up test, libsecp256k1 verifies alone; ImportError if a kernel was asked for.
    """
    global VERIFIER
    cdef fl_secp_addresses secp = find_library()
    cdef str wanted = os.environ.get("FASTLEDGER_ECDSA", "")
    VERIFIER = fl_batch_new(&secp, KEY_CACHE_ENTRIES_DEFAULT, TABLE_MEMORY_DEFAULT)
    if VERIFIER == NULL:
        raise MemoryError("no room for the tables of keys")
    if wanted != "libsecp":
        try:
            choose(None if wanted in ("", "fast") else wanted, FL_PATH_AUTO)
        except ValueError as error:
            if wanted:
                raise ImportError(f"FASTLEDGER_ECDSA={wanted}: {error}") from None
    os.register_at_fork(
        before=_hold_for_fork,
        after_in_parent=_release_after_fork,
        after_in_child=_release_after_fork,
    )
    return 0


start()

# Declarations of native/fl.h for the Cython modules, and the one way they choose a backend.
from cpython.buffer cimport PyBUF_SIMPLE, PyObject_GetBuffer
from libc.stddef cimport size_t
from libc.stdint cimport uint8_t, uint32_t, uint64_t
from libc.stdlib cimport getenv


cdef extern from "fl.h" nogil:
    unsigned FL_THREADS_MAX
    int fl_init(const char *forced) noexcept
    int fl_initialised() noexcept
    const char *fl_backend_name() noexcept
    size_t fl_backend_lanes() noexcept
    const char *fl_backend_streams_name() noexcept
    size_t fl_backend_count() noexcept
    const char *fl_backend_name_at(size_t index) noexcept
    int fl_backend_usable(size_t index) noexcept

    uint32_t FL_CPU_SSSE3
    uint32_t FL_CPU_SSE41
    uint32_t FL_CPU_SHA
    uint32_t FL_CPU_BMI2
    uint32_t FL_CPU_ADX
    uint32_t FL_CPU_AVX2
    uint32_t FL_CPU_AVX512F
    uint32_t FL_CPU_AVX512IFMA
    uint32_t FL_CPU_ARM_SHA2
    uint32_t fl_cpu_features() noexcept
    uint64_t fl_multiply_chain(uint64_t count) noexcept

    void fl_sha256(uint8_t *out32, const uint8_t *data, size_t data_size) noexcept
    void fl_sha256_many(uint8_t *out32s, const uint8_t *data, const uint64_t *offsets, size_t count) noexcept
    void fl_sha256_leaf_many(
        uint8_t *out32s, const uint8_t *data, const uint64_t *offsets, size_t count) noexcept
    int fl_offsets_check(
        size_t *bad_index, const uint64_t *offsets, size_t count, uint64_t data_size) noexcept

    ctypedef enum fl_merkle_scheme:
        FL_MERKLE_RFC9162
        FL_MERKLE_RFC9162_HASHED
        FL_MERKLE_BITCOIN
    size_t fl_merkle_scratch_size(size_t count) noexcept
    int fl_merkle_root(
        uint8_t *out32, fl_merkle_scheme scheme, const uint8_t *leaf32s, size_t count, unsigned threads,
        uint8_t *scratch) noexcept
    size_t fl_merkle_node_count(size_t count) noexcept
    void fl_merkle_levels(
        uint8_t *node32s, fl_merkle_scheme scheme, const uint8_t *leaf32s, size_t count,
        unsigned threads) noexcept
    size_t fl_merkle_depth(size_t count) noexcept
    void fl_merkle_proofs(
        uint8_t *out32s, uint8_t *lengths, const uint8_t *node32s, size_t count, size_t first,
        size_t proof_count) noexcept

    void fl_header_hash_many(uint8_t *out32s, const uint8_t *header80s, size_t count) noexcept
    ctypedef struct fl_pow_control:
        pass
    void fl_pow_control_init(fl_pow_control *control) noexcept
    void fl_pow_control_cancel(fl_pow_control *control) noexcept
    int fl_pow_control_is_cancelled(fl_pow_control *control) noexcept
    uint64_t fl_pow_control_hashes_done(fl_pow_control *control) noexcept
    int fl_pow_search(
        uint32_t *nonce, const uint8_t *header80, const uint8_t *target32, uint32_t start,
        uint64_t count, unsigned threads, fl_pow_control *control) noexcept


# A batch below this many bytes (some 25 us of hashing) keeps the GIL: when another thread is busy, a thread
# that gave the GIL up waits a whole switch interval, 5 ms by default, to have it back.
cdef enum:
    GIL_RELEASE_BYTES_MIN = 64 * 1024


cdef inline unsigned choose_threads(object threads, size_t useful) except 0:
    """``threads``, or by default one for each CPU that this process may run on, but no more than are useful."""
    if threads is None:
        import os
        affinity = getattr(os, "sched_getaffinity", None)
        threads = min(FL_THREADS_MAX, len(affinity(0)) if affinity is not None else os.cpu_count() or 1)
    elif not isinstance(threads, int) or not 1 <= threads <= FL_THREADS_MAX:
        raise ValueError(f"threads: expected 1 to {FL_THREADS_MAX}, got {threads!r}")
    return max(1, min(threads, useful))


cdef inline list usable_backends():
    return [fl_backend_name_at(i).decode() for i in range(fl_backend_count()) if fl_backend_usable(i)]


cdef inline str backend_problem(const char *forced):
    """Choose the backend of all modules, ``forced`` by name or NULL for the best; why not, or None."""
    if fl_init(forced):
        return None
    if forced == NULL or forced[0] == 0:
        return "no native SHA-256 backend reproduces its known answer on this CPU"
    name = forced.decode("ascii", "backslashreplace")
    return f"native backend {name!r} is unknown or not usable on this CPU: choose from {usable_backends()}"


cdef inline int init_backend() except -1:
    """Choose at the first import of a module, as the environment variable ``FASTLEDGER_NATIVE`` says if it is set."""
    if fl_initialised():
        return 0  # the choice is one for all modules, and a test may have forced another since
    cdef str problem = backend_problem(getenv("FASTLEDGER_NATIVE"))
    if problem is not None:
        raise ImportError(f"FASTLEDGER_NATIVE: {problem}")
    return 0


cdef inline int force_backend_or_raise(name) except -1:
    """Choose anew, by name or (None) the best; ValueError when that cannot be used here."""
    cdef bytes encoded = b"" if name is None else name.encode()
    cdef str problem = backend_problem(encoded)
    if problem is not None:
        raise ValueError(problem)
    return 0


cdef inline int acquire_bytes(object source, Py_buffer *view, str what) except -1:
    """Borrow a contiguous bytes-like object's memory; ValueError, naming ``what``, for anything else."""
    try:
        PyObject_GetBuffer(source, view, PyBUF_SIMPLE)
    except (TypeError, BufferError):
        shape = "non-contiguous " if isinstance(source, memoryview) else ""
        raise ValueError(
            f"{what}: expected a contiguous bytes-like object, got {shape}{type(source).__name__}"
        ) from None
    return 0

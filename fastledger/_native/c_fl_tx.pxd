"""C declarations of native/fl_tx.h: scan of transactions and ECDSA in batches."""

from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t, uintptr_t


cdef extern from "fl_tx.h" nogil:
    enum:
        FL_OK
        FL_MALFORMED
        FL_OVERSIZED
        FL_NON_CANONICAL
        FL_BAD_HEADER
        FL_CBOR_DEPTH_CAP
        FL_TX_BYTES_MIN

    int fl_cbor_check(
        size_t *item_len, size_t *error_offset, const uint8_t *data, size_t len, unsigned depth_max
    ) noexcept

    size_t fl_cbor_to_msgpack(uint8_t *out, const uint8_t *data, size_t len) noexcept

    ctypedef struct fl_tx_limits:
        size_t transaction_bytes_max
        size_t kind_bytes_max
        unsigned cbor_depth_max

    ctypedef struct fl_tx_fields:
        uint64_t issued_ms
        uint64_t expires_ms
        uint64_t nonce
        uint32_t payload_at
        uint32_t payload_len
        uint32_t kind_at
        uint32_t kind_len
        uint32_t body_at
        uint32_t body_len
        uint32_t error_offset
        uint8_t chain_id[8]

    ctypedef struct fl_tx_columns:
        uint16_t *status
        fl_tx_fields *fields
        uint8_t *txid32
        uint8_t *signer33
        uint8_t *sig64

    void fl_scan_many(
        const fl_tx_columns *out,
        uint8_t *scratch,
        size_t scratch_len,
        const fl_tx_limits *limits,
        const uint8_t *data,
        const uint64_t *offsets,
        size_t count,
    ) noexcept
    int fl_split(
        size_t *count,
        size_t *error_offset,
        uint64_t *offsets,
        size_t count_max,
        const uint8_t *data,
        size_t len,
    ) noexcept

    ctypedef struct fl_secp_addresses:
        uintptr_t context
        uintptr_t ec_pubkey_parse
        uintptr_t ecdsa_signature_parse_compact
        uintptr_t ecdsa_verify


cdef extern from "secp256k1/batch.h" nogil:
    ctypedef enum fl_ecdsa_path:
        FL_PATH_AUTO
        FL_PATH_LIBSECP
        FL_PATH_KNOWN
        FL_PATH_ANY
        FL_PATH_RANDOMISED
        FL_PATH_COUNT

    ctypedef struct fl_batch_stats:
        const char *kernel
        fl_ecdsa_path path
        size_t keys_max
        size_t keys_used
        uint64_t key_hits
        uint64_t key_misses
        size_t table_memory_max
        size_t table_memory
        size_t table_count
        uint64_t tables_built
        uint64_t tables_evicted
        uint64_t by_known
        uint64_t by_any
        uint64_t by_randomised
        uint64_t by_libsecp
        uint64_t undecided
        uint64_t refused
        uint64_t batches_failed

    ctypedef struct fl_batch_input:
        const uint8_t *digest32s
        const uint8_t *sig64s
        const uint8_t *key33s
        const uint8_t *hints
        size_t hint_len
        size_t count

    ctypedef struct fl_batch_verifier:
        pass

    fl_batch_verifier *fl_batch_new(
        const fl_secp_addresses *secp, size_t keys_max, size_t table_memory_max
    ) noexcept
    int fl_batch_force(fl_batch_verifier *verifier, const char *kernel_name, fl_ecdsa_path path) noexcept
    const char *fl_batch_kernel_name(size_t index) noexcept
    int fl_batch_kernel_usable(size_t index) noexcept
    int fl_batch_resize_keys(fl_batch_verifier *verifier, size_t keys_max) noexcept
    int fl_batch_set_table_memory(fl_batch_verifier *verifier, size_t bytes) noexcept
    void fl_batch_hold(fl_batch_verifier *verifier) noexcept
    void fl_batch_release(fl_batch_verifier *verifier) noexcept
    fl_batch_stats fl_batch_read_stats(fl_batch_verifier *verifier) noexcept
    int fl_batch_verify(
        fl_batch_verifier *verifier,
        uint8_t *ok,
        uint8_t *hint33s,
        const fl_batch_input *input,
        unsigned threads,
    ) noexcept

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

    ctypedef struct fl_ecdsa_stats:
        size_t cache_entries
        size_t cache_used
        uint64_t cache_hits
        uint64_t cache_misses

    ctypedef struct fl_ecdsa:
        pass

    fl_ecdsa *fl_ecdsa_new(const fl_secp_addresses *secp, size_t cache_entries) noexcept
    int fl_ecdsa_resize_cache(fl_ecdsa *verifier, size_t cache_entries) noexcept
    void fl_ecdsa_hold(fl_ecdsa *verifier) noexcept
    void fl_ecdsa_release(fl_ecdsa *verifier) noexcept
    fl_ecdsa_stats fl_ecdsa_read_stats(fl_ecdsa *verifier) noexcept
    int fl_ecdsa_verify_many(
        fl_ecdsa *verifier,
        uint8_t *ok,
        const uint8_t *digest32s,
        const uint8_t *sig64s,
        const uint8_t *key33s,
        size_t count,
        unsigned threads,
    ) noexcept

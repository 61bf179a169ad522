/* Strict scan of signed transactions, and exact ECDSA verification in batches.
 *
 * Everything here works on public data only, so timing may depend on it. Functions return a verdict or 1/0,
 * allocate nothing per item and leave all memory to the caller; the one exception, the key table of the
 * verifier, is bounded and owned by fl_ecdsa. Offsets inside a transaction count from its first byte.
 */
#ifndef FL_TX_H
#define FL_TX_H

#include <stddef.h>
#include <stdint.h>

/* Verdicts on one item; the numbers are those of fastledger.errors.Code (a test compares them). */
enum {
    FL_OK = 0,
    FL_MALFORMED = 100,
    FL_OVERSIZED = 101,
    FL_NON_CANONICAL = 102,
    FL_BAD_HEADER = 103
};

/* ---- CBOR (cbor.c) ---- */

enum {
    FL_CBOR_UINT = 0,
    FL_CBOR_NEGATIVE = 1,
    FL_CBOR_BYTES = 2,
    FL_CBOR_TEXT = 3,
    FL_CBOR_ARRAY = 4,
    FL_CBOR_MAP = 5,
    FL_CBOR_TAG = 6,
    FL_CBOR_SIMPLE = 7
};

/* Deepest nesting that fl_cbor_check can be asked for: the size of its stack of open containers. */
#define FL_CBOR_DEPTH_CAP 64

/* Initial byte and argument of a data item (RFC 8949 section 3). */
typedef struct {
    uint64_t argument;
    size_t next;    /* offset of the first byte after the head */
    unsigned major; /* FL_CBOR_* */
    unsigned info;  /* low five bits of the initial byte */
} fl_cbor_head;

/* Read the head at data[at]. FL_MALFORMED when truncated or reserved, FL_NON_CANONICAL when of indefinite
 * length or not the shortest form. The head is complete only under FL_OK. */
int fl_cbor_read_head(fl_cbor_head *head, const uint8_t *data, size_t len, size_t at);

/* Check one data item at the start of data[0..len) against the deterministic profile (cbor.c says which).
 * FL_OK: *item_len is its length, and bytes may follow it. Otherwise *error_offset is where the first problem
 * in reading order lies. At most depth_max (itself at most FL_CBOR_DEPTH_CAP) containers may be open. */
int fl_cbor_check(size_t *item_len, size_t *error_offset, const uint8_t *data, size_t len,
                  unsigned depth_max);

/* ---- MessagePack (msgpack.c) ---- */

/* Write the items of data[0..len), which fl_cbor_check has found deterministic, as MessagePack to out, which has
 * room for 3 x len bytes and does not overlap data. Returns the bytes written; 0 for data that was not checked. */
size_t fl_cbor_to_msgpack(uint8_t *out, const uint8_t *data, size_t len);

/* ---- Transactions (scan.c) ---- */

typedef struct {
    size_t transaction_bytes_max;
    size_t kind_bytes_max;
    unsigned cbor_depth_max;
} fl_tx_limits;

/* What the scan knows of one transaction; all zero but error_offset when it is refused. */
typedef struct {
    uint64_t issued_ms;
    uint64_t expires_ms;
    uint64_t nonce;
    uint32_t payload_at, payload_len;
    uint32_t kind_at, kind_len;
    uint32_t body_at, body_len;
    uint32_t error_offset;
    uint8_t chain_id[8];
} fl_tx_fields;

/* Columns of a batch, each `count` entries long; the rows of a refused transaction are zero but for its
 * status and error offset. No column may overlap another or the input. */
typedef struct {
    uint16_t *status;
    fl_tx_fields *fields;
    uint8_t *txid32;
    uint8_t *signer33;
    uint8_t *sig64;
} fl_tx_columns;

/* Scan transactions i = data[offsets[i]..offsets[i + 1]), i < count. The offsets never decrease and end in
 * the data; scratch_len is at least limits->transaction_bytes_max, or else what the offsets span. */
void fl_scan_many(const fl_tx_columns *out, uint8_t *scratch, size_t scratch_len, const fl_tx_limits *limits,
                  const uint8_t *data, const uint64_t *offsets, size_t count);

/* Cut a concatenation of transactions (a CBOR sequence, RFC 8742) by their outlines. Fills offsets[0..count],
 * with room for count_max + 1, and returns the verdict on what stands at offsets[count]: FL_OK at the end of
 * the data, FL_OVERSIZED when more than count_max stand there, otherwise what is wrong at *error_offset. */
int fl_split(size_t *count, size_t *error_offset, uint64_t *offsets, size_t count_max, const uint8_t *data,
             size_t len);

/* Fewest bytes that fl_split takes for a transaction: outline around an empty payload. */
#define FL_TX_BYTES_MIN 112

/* ---- ECDSA (ecdsa.c) ---- */

/* Where libsecp256k1 lives in this process: its static context and four of its functions. */
typedef struct {
    uintptr_t context;
    uintptr_t ec_pubkey_parse;
    uintptr_t ecdsa_signature_parse_compact;
    uintptr_t ecdsa_verify;
} fl_secp_addresses;

typedef struct {
    size_t cache_entries; /* capacity of the table of parsed keys */
    size_t cache_used;
    uint64_t cache_hits;
    uint64_t cache_misses;
} fl_ecdsa_stats;

typedef struct fl_ecdsa fl_ecdsa;

/* A verifier with a table of at least cache_entries parsed keys (rounded up to a power of two, 0 for none);
 * NULL when out of memory. Safe to share between threads. */
fl_ecdsa *fl_ecdsa_new(const fl_secp_addresses *secp, size_t cache_entries);
void fl_ecdsa_free(fl_ecdsa *verifier);

/* Empty the table and give it a new size; 0 when out of memory, the old table then stays. */
int fl_ecdsa_resize_cache(fl_ecdsa *verifier, size_t cache_entries);

/* Hold the table still across a fork, so that the child, which has none of the other threads, finds it whole
 * and unlocked: hold before, release after in both processes. */
void fl_ecdsa_hold(fl_ecdsa *verifier);
void fl_ecdsa_release(fl_ecdsa *verifier);

fl_ecdsa_stats fl_ecdsa_read_stats(fl_ecdsa *verifier);

/* ok[i] = 1 when sig64s[i] (compact r || s, low s) signs digest32s[i] under the compressed key33s[i], else 0.
 * At most `threads` threads work, the caller's included. Returns 0 when out of memory: ok is then unset. */
int fl_ecdsa_verify_many(fl_ecdsa *verifier, uint8_t *ok, const uint8_t *digest32s, const uint8_t *sig64s,
                         const uint8_t *key33s, size_t count, unsigned threads);

/* Returns 1 when one signature passes as in fl_ecdsa_verify_many, else 0; needs no table. The key has 33 bytes
 * (compressed) or 65. */
int fl_ecdsa_verify_one(const fl_ecdsa *verifier, const uint8_t *digest32, const uint8_t *sig64,
                        const uint8_t *key, size_t key_len);

#endif

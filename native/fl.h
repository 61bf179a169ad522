/* FastLedger's native layer: the public C contract.
 *
 * Rules of the layer (C11, GCC or Clang):
 *  - no Python, no I/O, no allocation: the caller owns every buffer;
 *  - `threads` is how many work on a call, the caller's own included: 1 .. FL_THREADS_MAX;
 *  - functions that can refuse return 1 (done) or 0 (refused, outputs untouched unless said otherwise);
 *  - a parameter named `x32` is 32 bytes, `x32s` is `count` items of 32 bytes, one after the other;
 *  - outputs may not overlap inputs unless a function says so;
 *  - everything here is re-entrant, except backend selection.
 *
 * Hashes are byte strings in the order SHA-256 emits them ("internal order" in Bitcoin's terms).
 */
#ifndef FL_H
#define FL_H

#include <stdatomic.h>
#include <stddef.h>
#include <stdint.h>

#define FL_HASH_BYTES 32
#define FL_HEADER_BYTES 80
#define FL_THREADS_MAX 256

/* ---- Backends (dispatch.c) ----
 *
 * There is one copy of this layer in a process, its choice of backend included. Of the modules over it, the one
 * that is imported first calls fl_init. Before that the portable kernel serves.
 */

/* Chooses the fastest backend that this CPU supports and that reproduces the built-in known answers; `forced`
 * (NULL or "" for none) demands one by name. Returns 0, and leaves the choice as it was, when the forced
 * backend is unknown, unsupported here, or computes a wrong answer, or when no backend computes right ones.
 * Not to be called while another thread is inside this layer. */
int fl_init(const char *forced);

/* Whether fl_init has chosen a backend. */
int fl_initialised(void);

/* Name of the backend in use, such as "portable" or "shani". */
const char *fl_backend_name(void);

/* How many messages the backend in use hashes side by side at most, and the backend that hashes single ones
 * for it: its own name, unless it borrows another's. */
size_t fl_backend_lanes(void);
const char *fl_backend_streams_name(void);

/* The compiled-in backends, fastest first; fl_backend_usable tells whether fl_init would accept one. */
size_t fl_backend_count(void);
const char *fl_backend_name_at(size_t index);
int fl_backend_usable(size_t index);

/* CPU features, as found by CPUID and, for vector registers, as enabled by the operating system (XGETBV). AVX512F
 * stands for F, VL, DQ and BW, which the kernels are compiled with and every CPU since the first servers has. */
#define FL_CPU_SSSE3 0x01u
#define FL_CPU_SSE41 0x02u
#define FL_CPU_SHA 0x04u
#define FL_CPU_BMI2 0x08u
#define FL_CPU_ADX 0x10u
#define FL_CPU_AVX2 0x20u
#define FL_CPU_AVX512F 0x40u
#define FL_CPU_AVX512IFMA 0x80u
#define FL_CPU_ARM_SHA2 0x10000u /* aarch64, as the operating system tells */
uint32_t fl_cpu_features(void);

/* A chain of `count` dependent multiplications, 3 cycles each on all x86-64 CPUs since 2008; the product is of no
 * interest (clock.c). */
uint64_t fl_multiply_chain(uint64_t count);

/* ---- SHA-256, FIPS 180-4 (sha256.c) ---- */

void fl_sha256(uint8_t out32[32], const uint8_t *data, size_t data_size);

/* Hashes `count` messages; message i is data[offsets[i] .. offsets[i + 1]).
 * `offsets` has count + 1 entries that never decrease; the caller has checked the last against the data. */
void fl_sha256_many(uint8_t *out32s, const uint8_t *data, const uint64_t *offsets, size_t count);

/* RFC 9162 section 2.1.1 leaf hashes of entries of any length: SHA-256(0x00 || message i), as above. */
void fl_sha256_leaf_many(uint8_t *out32s, const uint8_t *data, const uint64_t *offsets, size_t count);

/* SHA-256(0x00 || entry) for entries of 32 bytes. */
void fl_sha256_leaf32_many(uint8_t *out32s, const uint8_t *entry32s, size_t count);

/* RFC 9162 section 2.1.1 nodes: SHA-256(0x01 || pair). out32s may be pair64s. */
void fl_sha256_node_many(uint8_t *out32s, const uint8_t *pair64s, size_t count);

/* SHA-256(SHA-256(pair)), the nodes of Bitcoin's tree. out32s may be pair64s. */
void fl_sha256d64_many(uint8_t *out32s, const uint8_t *pair64s, size_t count);

/* 1 when offsets[0 .. count] never decrease and end within data_size; else 0 and *bad_index is the first
 * offset that is wrong. */
int fl_offsets_check(size_t *bad_index, const uint64_t *offsets, size_t count, uint64_t data_size);

/* ---- Merkle trees (merkle.c) ---- */

typedef enum {
    FL_MERKLE_RFC9162 = 0,        /* leaves are 32-byte entries, hashed with the leaf prefix first */
    FL_MERKLE_RFC9162_HASHED = 1, /* leaves are leaf hashes already */
    FL_MERKLE_BITCOIN = 2         /* leaves are txids; an odd last node is paired with itself */
} fl_merkle_scheme;

/* Bytes of scratch that fl_merkle_root needs for `count` leaves. */
size_t fl_merkle_scratch_size(size_t count);

/* Root over `count` leaves of 32 bytes. No leaves: SHA-256 of nothing (RFC 9162 section 2.1.1), and refused
 * for Bitcoin, which defines no such root. */
int fl_merkle_root(uint8_t out32[32], fl_merkle_scheme scheme, const uint8_t *leaf32s, size_t count,
                   unsigned threads, uint8_t *scratch);

/* Nodes in all levels of an RFC 9162 tree of `count` leaves: count + ceil(count/2) + ... + 1. */
size_t fl_merkle_node_count(size_t count);

/* Fills `node32s` with every level of an RFC 9162 tree, leaf hashes first, root last; an unpaired last node
 * moves up unchanged. `scheme` is one of the two RFC 9162 ones; count >= 1. */
void fl_merkle_levels(uint8_t *node32s, fl_merkle_scheme scheme, const uint8_t *leaf32s, size_t count,
                      unsigned threads);

/* Levels above the leaves, ceil(log2(count)), which is the length of the longest inclusion proof; count >= 1. */
size_t fl_merkle_depth(size_t count);

/* Inclusion proofs (RFC 9162 section 2.1.3.1) of leaves first .. first + proof_count - 1, from the nodes that
 * fl_merkle_levels gave for `count` leaves. Proof i has lengths[i] hashes, lowest first, at out32s + 32 *
 * depth * i; zeros fill it up to the depth. The leaves must exist. */
void fl_merkle_proofs(uint8_t *out32s, uint8_t *lengths, const uint8_t *node32s, size_t count, size_t first,
                      size_t proof_count);

/* ---- Proof of work (pow.c) ---- */

/* SHA256d of `count` block headers of 80 bytes. */
void fl_header_hash_many(uint8_t *out32s, const uint8_t *header80s, size_t count);

/* What a search shares with those who watch it: to be set up by fl_pow_control_init; then any thread may call
 * the functions below at any time, one search at a time may use it. */
typedef struct {
    atomic_int cancelled;
    atomic_uint_least64_t hashes_done;
} fl_pow_control;

void fl_pow_control_init(fl_pow_control *control);

/* Asks for the search to end. It does when each of its threads has finished the 16,384 nonces at hand: some 0.7 ms
 * with the SHA extensions, 12 ms with the portable kernel. */
void fl_pow_control_cancel(fl_pow_control *control);
int fl_pow_control_is_cancelled(fl_pow_control *control);

/* Nonces tried so far, over all searches that used the control. */
uint64_t fl_pow_control_hashes_done(fl_pow_control *control);

/* Searches nonces start, start + 1, ... (`count` of them, never past 2^32 - 1) for the first whose header
 * hash, read as a little-endian integer, is at most the little-endian target. The nonce stands little-endian
 * in bytes 76..80 of the header, whose own nonce is ignored. Returns 1 and sets *nonce, or 0 when there is
 * none, or none before the search was cancelled. `control` may be NULL. */
int fl_pow_search(uint32_t *nonce, const uint8_t header80[80], const uint8_t target32[32], uint32_t start,
                  uint64_t count, unsigned threads, fl_pow_control *control);

#endif

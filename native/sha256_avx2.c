/* SHA-256 on AVX2: eight messages at once, one in each 32-bit lane of the vector registers.
 *
 * A vector holds the same word of all eight messages, so each vector instruction is one instruction of the
 * plain algorithm. It is for CPUs without the SHA extensions, where a lane costs a third of the scalar code;
 * with them, two interleaved streams are faster (docs/decisions.md).
 *
 * The sixteen rounds of a loop body fit the first-level instruction cache together with the loads and
 * stores; a fully unrolled compression would not, and gains nothing.
 */
#include "fl_impl.h"

#include <immintrin.h>

enum { LANES = 8, WORDS = 16 };

/* Arithmetic on it is lane by lane, modulo 2^32. */
typedef uint32_t vec __attribute__((vector_size(32)));

FL_INLINE vec broadcast(uint32_t word) { return (vec)_mm256_set1_epi32((int)word); }

/* The functions of FIPS 180-4 section 4.1.2, under its names. */
FL_INLINE vec rotr(vec x, int n) { return x >> n | x << (32 - n); }
FL_INLINE vec ch(vec x, vec y, vec z) { return z ^ (x & (y ^ z)); }
FL_INLINE vec big_sigma0(vec x) { return rotr(x, 2) ^ rotr(x, 13) ^ rotr(x, 22); }
FL_INLINE vec big_sigma1(vec x) { return rotr(x, 6) ^ rotr(x, 11) ^ rotr(x, 25); }
FL_INLINE vec small_sigma0(vec x) { return rotr(x, 7) ^ rotr(x, 18) ^ x >> 3; }
FL_INLINE vec small_sigma1(vec x) { return rotr(x, 17) ^ rotr(x, 19) ^ x >> 10; }

/* maj(x, y, z) = y ^ ((x ^ y) & (y ^ z)). The x ^ y of a round is the y ^ z of the next one, in *y_xor_z. */
FL_INLINE vec maj_chained(vec x, vec y, vec *y_xor_z) {
    vec x_xor_y = x ^ y;
    vec result = y ^ (x_xor_y & *y_xor_z);
    *y_xor_z = x_xor_y;
    return result;
}

/* The working variables do not move: in round t variable number i of the standard is v[(i - t) mod 8]. */
#define V(i, t) v[((i) - (t)) & 7]

FL_INLINE void round_at(vec v[8], vec *b_xor_c, int t, vec word_plus_k) {
    vec t1 = V(7, t) + word_plus_k + ch(V(4, t), V(5, t), V(6, t)) + big_sigma1(V(4, t));
    V(3, t) += t1;
    V(7, t) = t1 + big_sigma0(V(0, t)) + maj_chained(V(0, t), V(1, t), b_xor_c);
}

/* W[t] for 16 <= t < 64, in the sliding window w, W[t] in w[t mod 16]. */
FL_INLINE vec schedule_at(vec w[WORDS], int t) {
    w[t & 15] += small_sigma1(w[(t + 14) & 15]) + w[(t + 9) & 15] + small_sigma0(w[(t + 1) & 15]);
    return w[t & 15];
}

/* Rounds first .. 15; and base + first .. base + end - 1 with their schedule, for a base that is a multiple of 16
 * from 16. */
FL_INLINE void rounds_of_message(vec v[8], vec *b_xor_c, const vec w[WORDS], const int first) {
#pragma GCC unroll 16
    for (int t = first; t < 16; t++) {
        round_at(v, b_xor_c, t, w[t] + broadcast(FL_SHA256_K[t]));
    }
}

FL_INLINE void rounds_of_schedule(vec v[8], vec *b_xor_c, vec w[WORDS], const uint32_t *k, const int end) {
#pragma GCC unroll 16
    for (int t = 0; t < end; t++) {
        round_at(v, b_xor_c, t, schedule_at(w, t) + broadcast(k[t]));
    }
}

/* FIPS 180-4 section 6.2.2 on eight blocks given as words, which it overwrites. */
FL_INLINE void compress_words(vec state[8], vec w[WORDS]) {
    vec v[8];
    memcpy(v, state, sizeof v);
    vec b_xor_c = v[1] ^ v[2];
    rounds_of_message(v, &b_xor_c, w, 0);
    for (int base = 16; base < 64; base += 16) {
        rounds_of_schedule(v, &b_xor_c, w, FL_SHA256_K + base, 16);
    }
    for (int i = 0; i < 8; i++) {
        state[i] += v[i];
    }
}

/* W[t] + K[t] of the block that pads a message of 64 bytes: the same in every lane, so without a schedule. */
static const uint32_t PADDING64_PLUS_K[64] = {
    0xc28a2f98, 0x71374491, 0xb5c0fbcf, 0xe9b5dba5, 0x3956c25b, 0x59f111f1, 0x923f82a4, 0xab1c5ed5,
    0xd807aa98, 0x12835b01, 0x243185be, 0x550c7dc3, 0x72be5d74, 0x80deb1fe, 0x9bdc06a7, 0xc19bf374,
    0x649b69c1, 0xf0fe4786, 0x0fe1edc6, 0x240cf254, 0x4fe9346f, 0x6cc984be, 0x61b9411e, 0x16f988fa,
    0xf2c65152, 0xa88e5a6d, 0xb019fc65, 0xb9d99ec7, 0x9a1231c3, 0xe70eeaa0, 0xfdb1232b, 0xc7353eb0,
    0x3069bad5, 0xcb976d5f, 0x5a0f118f, 0xdc1eeefd, 0x0a35b689, 0xde0b7a04, 0x58f4ca9d, 0xe15d5b16,
    0x007f3e86, 0x37088980, 0xa507ea32, 0x6fab9537, 0x17406110, 0x0d8cd6f1, 0xcdaa3b6d, 0xc0bbbe37,
    0x83613bda, 0xdb48a363, 0x0b02e931, 0x6fd15ca7, 0x521afaca, 0x31338431, 0x6ed41a95, 0x6d437890,
    0xc39c91f2, 0x9eccabbd, 0xb5c9a0e6, 0x532fb63c, 0xd2c741c6, 0x07237ea3, 0xa4954b68, 0x4c191d76,
};

FL_INLINE void compress_padding64(vec state[8]) {
    vec v[8];
    memcpy(v, state, sizeof v);
    vec b_xor_c = v[1] ^ v[2];
    for (int base = 0; base < 64; base += 16) {
#pragma GCC unroll 16
        for (int t = 0; t < 16; t++) {
            round_at(v, &b_xor_c, t, broadcast(PADDING64_PLUS_K[base + t]));
        }
    }
    for (int i = 0; i < 8; i++) {
        state[i] += v[i];
    }
}

FL_INLINE void state_initial(vec state[8]) {
    for (int i = 0; i < 8; i++) {
        state[i] = broadcast(FL_SHA256_IV[i]);
    }
}

/* ---- Between memory, a message after the other, and vectors, a word of all messages after the other ---- */

/* Message words are big-endian in memory. */
FL_INLINE vec swap_bytes(vec x) {
    const __m256i order = _mm256_broadcastsi128_si256(
        _mm_set_epi8(12, 13, 14, 15, 8, 9, 10, 11, 4, 5, 6, 7, 0, 1, 2, 3));
    return (vec)_mm256_shuffle_epi8((__m256i)x, order);
}

/* Transposes a square of 8 x 8 words: pairs of words, then of 64-bit halves, then of 128-bit halves. */
FL_INLINE void transpose(vec x[8]) {
    __m256i a[8], b[8];
    for (int i = 0; i < 8; i += 2) {
        a[i] = _mm256_unpacklo_epi32((__m256i)x[i], (__m256i)x[i + 1]);
        a[i + 1] = _mm256_unpackhi_epi32((__m256i)x[i], (__m256i)x[i + 1]);
    }
    for (int i = 0; i < 8; i += 4) {
        b[i] = _mm256_unpacklo_epi64(a[i], a[i + 2]);
        b[i + 1] = _mm256_unpackhi_epi64(a[i], a[i + 2]);
        b[i + 2] = _mm256_unpacklo_epi64(a[i + 1], a[i + 3]);
        b[i + 3] = _mm256_unpackhi_epi64(a[i + 1], a[i + 3]);
    }
    for (int i = 0; i < 4; i++) {
        x[i] = (vec)_mm256_permute2x128_si256(b[i], b[i + 4], 0x20);
        x[i + 4] = (vec)_mm256_permute2x128_si256(b[i], b[i + 4], 0x31);
    }
}

/* Eight words of each of eight messages that lie `stride` bytes apart. */
FL_INLINE void load_words8(vec w[8], const uint8_t *bytes, size_t stride) {
    for (int i = 0; i < LANES; i++) {
        w[i] = swap_bytes((vec)_mm256_loadu_si256((const __m256i *)(bytes + stride * i)));
    }
    transpose(w);
}

FL_INLINE void store_digests(uint8_t *out32s, vec state[8]) {
    transpose(state);
    for (int i = 0; i < LANES; i++) {
        _mm256_storeu_si256((__m256i *)(out32s + 32 * i), (__m256i)swap_bytes(state[i]));
    }
}

/* Sixteen words of which the first `count` stand in `from`, moved one byte up behind `prefix`; the word after
 * them takes the last byte and the bit that ends the message. */
FL_INLINE void words_prefixed(vec *w, const vec *from, int count, uint8_t prefix) {
    w[0] = broadcast((uint32_t)prefix << 24) | from[0] >> 8;
    for (int i = 1; i < count; i++) {
        w[i] = from[i - 1] << 24 | from[i] >> 8;
    }
}

FL_INLINE vec last_byte_and_end(vec last_word) { return last_word << 24 | broadcast(0x800000); }

/* ---- Kernel entries: a group of eight is loaded whole before its output is stored, so that output may
 * overwrite input. ---- */

static void leaf32_group(uint8_t *out32s, const uint8_t *entry32s) {
    vec entry[8], w[WORDS], state[8];
    load_words8(entry, entry32s, 32);
    words_prefixed(w, entry, 8, 0x00);
    w[8] = last_byte_and_end(entry[7]);
    for (int i = 9; i < 15; i++) {
        w[i] = broadcast(0);
    }
    w[15] = broadcast(33 * 8);
    state_initial(state);
    compress_words(state, w);
    store_digests(out32s, state);
}

static void node_group(uint8_t *out32s, const uint8_t *pair64s) {
    vec pair[WORDS], w[WORDS], state[8];
    load_words8(pair, pair64s, 64);
    load_words8(pair + 8, pair64s + 32, 64);
    words_prefixed(w, pair, WORDS, 0x01);
    state_initial(state);
    compress_words(state, w);
    w[0] = last_byte_and_end(pair[15]);
    for (int i = 1; i < 15; i++) {
        w[i] = broadcast(0);
    }
    w[15] = broadcast(65 * 8);
    compress_words(state, w);
    store_digests(out32s, state);
}

/* A digest as the message of the second SHA-256 in SHA256d. */
FL_INLINE void words_of_digest(vec w[WORDS], const vec digest[8]) {
    memcpy(w, digest, 8 * sizeof *w);
    w[8] = broadcast(0x80000000);
    for (int i = 9; i < 15; i++) {
        w[i] = broadcast(0);
    }
    w[15] = broadcast(FL_HASH_BYTES * 8);
}

static void double64_group(uint8_t *out32s, const uint8_t *pair64s) {
    vec w[WORDS], state[8];
    load_words8(w, pair64s, 64);
    load_words8(w + 8, pair64s + 32, 64);
    state_initial(state);
    compress_words(state, w);
    compress_padding64(state);
    words_of_digest(w, state);
    state_initial(state);
    compress_words(state, w);
    store_digests(out32s, state);
}

/* Items after the last full group: from three on a group with idle lanes is faster than one after another. */
enum { STRAGGLERS_GROUPED_MIN = 3 };

typedef void (*many_function)(uint8_t *out32s, const uint8_t *items, size_t count);

FL_INLINE void in_groups(uint8_t *out32s, const uint8_t *items, size_t count, const size_t item_bytes,
                         void (*group)(uint8_t *, const uint8_t *), many_function one_by_one) {
    size_t i = 0;
    for (; i + LANES <= count; i += LANES) {
        group(out32s + 32 * i, items + item_bytes * i);
    }
    size_t left = count - i;
    if (left < STRAGGLERS_GROUPED_MIN) {
        one_by_one(out32s + 32 * i, items + item_bytes * i, left);
        return;
    }
    uint8_t padded[LANES * FL_BLOCK_BYTES] = {0};
    uint8_t digests[LANES * FL_HASH_BYTES];
    memcpy(padded, items + item_bytes * i, item_bytes * left);
    group(digests, padded);
    memcpy(out32s + 32 * i, digests, FL_HASH_BYTES * left);
}

static void leaf32_many(uint8_t *out32s, const uint8_t *entry32s, size_t count) {
    in_groups(out32s, entry32s, count, 32, leaf32_group, fl_sha256_kernel_portable.leaf32_many);
}

static void node_many(uint8_t *out32s, const uint8_t *pair64s, size_t count) {
    in_groups(out32s, pair64s, count, 64, node_group, fl_sha256_kernel_portable.node_many);
}

static void double64_many(uint8_t *out32s, const uint8_t *pair64s, size_t count) {
    in_groups(out32s, pair64s, count, 64, double64_group, fl_sha256_kernel_portable.double64_many);
}

/* One message cannot fill lanes: single streams are the portable kernel's. */
static void compress(uint32_t state[8], const uint8_t *blocks, size_t count) {
    fl_sha256_kernel_portable.compress(state, blocks, count);
}

static void compress_two(uint32_t state_a[8], const uint8_t *blocks_a, uint32_t state_b[8],
                         const uint8_t *blocks_b, size_t count) {
    fl_sha256_kernel_portable.compress_two(state_a, blocks_a, state_b, blocks_b, count);
}

/* Half a block of each lane, from wherever the lane's message lies. */
FL_INLINE void load_lanes(vec w[8], const uint8_t *const blocks[LANES], size_t at) {
    for (int i = 0; i < LANES; i++) {
        w[i] = swap_bytes((vec)_mm256_loadu_si256((const __m256i *)(blocks[i] + at)));
    }
    transpose(w);
}

static void compress_lanes(uint32_t *states, const uint8_t *const blocks[], size_t count) {
    vec w[WORDS], state[8];
    memcpy(state, states, sizeof state);
    for (size_t at = 0; at < FL_BLOCK_BYTES * count; at += FL_BLOCK_BYTES) {
        load_lanes(w, blocks, at);
        load_lanes(w + 8, blocks, at + 32);
        compress_words(state, w);
    }
    memcpy(states, state, sizeof state);
}

/* ---- Proof of work ---- */

enum {
    NONCE_WORD = 3,      /* the rounds before it are the same for all nonces */
    HIGH_WORD_ROUNDS = 61 /* word h of the result is e after this many rounds, plus the initial h */
};

/* What a scan works out before its first nonce. */
typedef struct {
    vec midstate[8];
    vec v[8]; /* working variables before round NONCE_WORD */
    vec w[WORDS];
} scan_setup;

static void scan_prepare(scan_setup *setup, const fl_pow_job *job) {
    for (int i = 0; i < 8; i++) {
        setup->midstate[i] = broadcast(job->midstate[i]);
    }
    for (int i = 0; i < WORDS; i++) {
        setup->w[i] = broadcast(i < NONCE_WORD ? job->tail[i] : 0);
    }
    setup->w[4] = broadcast(0x80000000);
    setup->w[15] = broadcast(FL_HEADER_BYTES * 8);
    memcpy(setup->v, setup->midstate, sizeof setup->v);
    vec b_xor_c = setup->v[1] ^ setup->v[2];
    for (int t = 0; t < NONCE_WORD; t++) {
        round_at(setup->v, &b_xor_c, t, setup->w[t] + broadcast(FL_SHA256_K[t]));
    }
}

/* The most significant 32 bits of eight header hashes, read as little-endian integers. */
static vec header_hashes_high(const scan_setup *setup, vec nonces) {
    vec v[8], w[WORDS], digest[8];
    memcpy(v, setup->v, sizeof v);
    memcpy(w, setup->w, sizeof w);
    w[NONCE_WORD] = swap_bytes(nonces);
    vec b_xor_c = V(1, NONCE_WORD) ^ V(2, NONCE_WORD);
    rounds_of_message(v, &b_xor_c, w, NONCE_WORD);
    for (int base = 16; base < 64; base += 16) {
        rounds_of_schedule(v, &b_xor_c, w, FL_SHA256_K + base, 16);
    }
    for (int i = 0; i < 8; i++) {
        digest[i] = setup->midstate[i] + v[i];
    }
    words_of_digest(w, digest);
    state_initial(v);
    b_xor_c = v[1] ^ v[2];
    rounds_of_message(v, &b_xor_c, w, 0);
    for (int base = 16; base < 48; base += 16) {
        rounds_of_schedule(v, &b_xor_c, w, FL_SHA256_K + base, 16);
    }
    rounds_of_schedule(v, &b_xor_c, w, FL_SHA256_K + 48, HIGH_WORD_ROUNDS - 48);
    return swap_bytes(V(4, HIGH_WORD_ROUNDS) + broadcast(FL_SHA256_IV[7]));
}

static int pow_scan(uint32_t *nonce, const fl_pow_job *job, uint32_t start, uint64_t count) {
    scan_setup setup;
    scan_prepare(&setup, job);
    const vec target_high = broadcast(job->target_high);
    vec nonces = broadcast(start) + (vec){0, 1, 2, 3, 4, 5, 6, 7};
    for (uint64_t i = 0; i < count; i += LANES) {
        __m256i high = (__m256i)header_hashes_high(&setup, nonces);
        __m256i at_most = _mm256_cmpeq_epi32(_mm256_min_epu32(high, (__m256i)target_high), high);
        unsigned found = (unsigned)_mm256_movemask_ps(_mm256_castsi256_ps(at_most));
        if (found != 0) {
            uint64_t lane = (uint64_t)__builtin_ctz(found);
            /* The last group may run past the end, where its results do not count. */
            *nonce = start + (uint32_t)(i + lane);
            return i + lane < count;
        }
        nonces += broadcast(LANES);
    }
    return 0;
}

const fl_sha256_kernel fl_sha256_kernel_avx2 = {
    .name = "avx2",
    .cpu_features = FL_CPU_AVX2,
    .compress = compress,
    .compress_two = compress_two,
    .leaf32_many = leaf32_many,
    .node_many = node_many,
    .double64_many = double64_many,
    .pow_scan = pow_scan,
    .lanes = LANES,
    .lanes_busy_min = STRAGGLERS_GROUPED_MIN,
    .compress_lanes = compress_lanes,
    .streams_borrowed_from = "portable",
};

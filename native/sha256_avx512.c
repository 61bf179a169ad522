/* SHA-256 on AVX-512: sixteen messages at once, one in each 32-bit lane of the vector registers.
 *
 * Much of what is hashed here is not a message: padding, lengths, a prefix, the digest's own padding when a digest is
 * hashed again, and in a nonce search all but one word of the block. So the algorithm below is written over words that
 * know whether they differ between the lanes. What does not is added up on the scalar side, by the compiler where it
 * is constant, once before the loop where it belongs to a search; vectors see only what is left. Every round is
 * therefore a piece of code of its own: a compression is some 14 KB of instructions, a node 23 KB, and callers do one
 * kind of hashing for many items before they turn to another (merkle.c goes level by level).
 */
#include "fl_impl.h"

#ifdef FL_EMULATE_AVX512
#include "testing/avx512_emulation.h"
#else
#include <immintrin.h>
#endif

enum { LANES = 16, WORDS = 16, DIGEST_WORDS = 8 };

typedef struct {
    __m512i lanes;    /* one value for each message; unused when uniform */
    uint32_t uniform; /* the value that all have */
    int is_uniform;   /* always known to the compiler */
} word;

FL_INLINE word varying(__m512i lanes) { return (word){lanes, 0, 0}; }

FL_INLINE word same(uint32_t value) { return (word){_mm512_setzero_si512(), value, 1}; }

FL_INLINE __m512i vector(word x) { return x.is_uniform ? _mm512_set1_epi32((int)x.uniform) : x.lanes; }

/* ---- FIPS 180-4 section 4.1.2, on scalars and on vectors ---- */

FL_INLINE uint32_t rotr(uint32_t x, int n) { return x >> n | x << (32 - n); }

FL_INLINE __m512i xor3(__m512i x, __m512i y, __m512i z) { return _mm512_ternarylogic_epi32(x, y, z, 0x96); }

FL_INLINE word big_sigma0(word x) {
    if (x.is_uniform) {
        return same(rotr(x.uniform, 2) ^ rotr(x.uniform, 13) ^ rotr(x.uniform, 22));
    }
    return varying(xor3(_mm512_ror_epi32(x.lanes, 2), _mm512_ror_epi32(x.lanes, 13), _mm512_ror_epi32(x.lanes, 22)));
}

FL_INLINE word big_sigma1(word x) {
    if (x.is_uniform) {
        return same(rotr(x.uniform, 6) ^ rotr(x.uniform, 11) ^ rotr(x.uniform, 25));
    }
    return varying(xor3(_mm512_ror_epi32(x.lanes, 6), _mm512_ror_epi32(x.lanes, 11), _mm512_ror_epi32(x.lanes, 25)));
}

FL_INLINE word small_sigma0(word x) {
    if (x.is_uniform) {
        return same(rotr(x.uniform, 7) ^ rotr(x.uniform, 18) ^ x.uniform >> 3);
    }
    return varying(xor3(_mm512_ror_epi32(x.lanes, 7), _mm512_ror_epi32(x.lanes, 18), _mm512_srli_epi32(x.lanes, 3)));
}

FL_INLINE word small_sigma1(word x) {
    if (x.is_uniform) {
        return same(rotr(x.uniform, 17) ^ rotr(x.uniform, 19) ^ x.uniform >> 10);
    }
    return varying(xor3(_mm512_ror_epi32(x.lanes, 17), _mm512_ror_epi32(x.lanes, 19), _mm512_srli_epi32(x.lanes, 10)));
}

FL_INLINE word ch(word x, word y, word z) {
    if (x.is_uniform && y.is_uniform && z.is_uniform) {
        return same(z.uniform ^ (x.uniform & (y.uniform ^ z.uniform)));
    }
    return varying(_mm512_ternarylogic_epi32(vector(x), vector(y), vector(z), 0xca));
}

FL_INLINE word maj(word x, word y, word z) {
    if (x.is_uniform && y.is_uniform && z.is_uniform) {
        return same((x.uniform & y.uniform) | (z.uniform & (x.uniform | y.uniform)));
    }
    return varying(_mm512_ternarylogic_epi32(vector(x), vector(y), vector(z), 0xe8));
}

FL_INLINE word add(word x, word y) {
    if (x.is_uniform && y.is_uniform) {
        return same(x.uniform + y.uniform);
    }
    if (x.is_uniform && __builtin_constant_p(x.uniform) && x.uniform == 0) {
        return y;
    }
    if (y.is_uniform && __builtin_constant_p(y.uniform) && y.uniform == 0) {
        return x;
    }
    return varying(_mm512_add_epi32(vector(x), vector(y)));
}

/* The sum of four, uniform ones first, so that they cost at most one vector addition together. */
FL_INLINE word add4(word a, word b, word c, word d) {
    const word zero = same(0);
    word uniform = add(add(a.is_uniform ? a : zero, b.is_uniform ? b : zero),
                       add(c.is_uniform ? c : zero, d.is_uniform ? d : zero));
    word first = add(a.is_uniform ? zero : a, b.is_uniform ? zero : b);
    word second = add(c.is_uniform ? zero : c, d.is_uniform ? zero : d);
    return add(add(first, uniform), second);
}

/* ---- Compression ---- */

/* FL_SHA256_K where the compiler sees it, to fold it into other constants. */
static const uint32_t ROUND_CONSTANTS[64] = {
    0x428a2f98, 0x71374491, 0xb5c0fbcf, 0xe9b5dba5, 0x3956c25b, 0x59f111f1, 0x923f82a4, 0xab1c5ed5,
    0xd807aa98, 0x12835b01, 0x243185be, 0x550c7dc3, 0x72be5d74, 0x80deb1fe, 0x9bdc06a7, 0xc19bf174,
    0xe49b69c1, 0xefbe4786, 0x0fc19dc6, 0x240ca1cc, 0x2de92c6f, 0x4a7484aa, 0x5cb0a9dc, 0x76f988da,
    0x983e5152, 0xa831c66d, 0xb00327c8, 0xbf597fc7, 0xc6e00bf3, 0xd5a79147, 0x06ca6351, 0x14292967,
    0x27b70a85, 0x2e1b2138, 0x4d2c6dfc, 0x53380d13, 0x650a7354, 0x766a0abb, 0x81c2c92e, 0x92722c85,
    0xa2bfe8a1, 0xa81a664b, 0xc24b8b70, 0xc76c51a3, 0xd192e819, 0xd6990624, 0xf40e3585, 0x106aa070,
    0x19a4c116, 0x1e376c08, 0x2748774c, 0x34b0bcb5, 0x391c0cb3, 0x4ed8aa4a, 0x5b9cca4f, 0x682e6ff3,
    0x748f82ee, 0x78a5636f, 0x84c87814, 0x8cc70208, 0x90befffa, 0xa4506ceb, 0xbef9a3f7, 0xc67178f2,
};

/* The working variables do not move: in round t variable number i of the standard is v[(i - t) mod 8]. */
#define V(i, t) v[((i) - (t)) & 7]

/* K[t], to be folded into a uniform w_t; else as a memory operand of the addition: a constant known to the compiler
 * would come through a general register and take the port of the shuffles. */
FL_INLINE word round_constant(const int t, word w_t) {
    return w_t.is_uniform ? same(ROUND_CONSTANTS[t]) : varying(_mm512_set1_epi32((int)FL_SHA256_K[t]));
}

FL_INLINE void round_at(word v[8], const int t, word w_t) {
    word t1 = add(add4(w_t, round_constant(t, w_t), V(7, t), ch(V(4, t), V(5, t), V(6, t))), big_sigma1(V(4, t)));
    V(7, t) = add4(t1, maj(V(0, t), V(1, t), V(2, t)), big_sigma0(V(0, t)), same(0));
    V(3, t) = add(V(3, t), t1);
}

/* Round t, with W[t] in w[t mod 16], which from t = 16 on it computes from the sixteen before. */
FL_INLINE void step(word v[8], word w[WORDS], const int t) {
    if (t >= WORDS) {
        w[t & 15] = add4(w[t & 15], small_sigma0(w[(t + 1) & 15]), w[(t + 9) & 15], small_sigma1(w[(t + 14) & 15]));
    }
    round_at(v, t, w[t & 15]);
}

/* Written out rather than looped: each step must see which words are uniform as a constant. */
#define STEPS4(v, w, t) step(v, w, (t)), step(v, w, (t) + 1), step(v, w, (t) + 2), step(v, w, (t) + 3)
#define STEPS16(v, w, t) STEPS4(v, w, t), STEPS4(v, w, (t) + 4), STEPS4(v, w, (t) + 8), STEPS4(v, w, (t) + 12)

FL_INLINE void copy8(word to[8], const word from[8]) {
    to[0] = from[0], to[1] = from[1], to[2] = from[2], to[3] = from[3];
    to[4] = from[4], to[5] = from[5], to[6] = from[6], to[7] = from[7];
}

FL_INLINE void add8(word to[8], const word from[8]) {
    to[0] = add(to[0], from[0]), to[1] = add(to[1], from[1]), to[2] = add(to[2], from[2]), to[3] = add(to[3], from[3]);
    to[4] = add(to[4], from[4]), to[5] = add(to[5], from[5]), to[6] = add(to[6], from[6]), to[7] = add(to[7], from[7]);
}

/* FIPS 180-4 section 6.2.2; overwrites the block. */
FL_INLINE void compress_words(word state[8], word w[WORDS]) {
    word v[8];
    copy8(v, state);
    STEPS16(v, w, 0), STEPS16(v, w, 16), STEPS16(v, w, 32), STEPS16(v, w, 48);
    add8(state, v);
}

FL_INLINE void state_initial(word s[8]) {
    s[0] = same(0x6a09e667), s[1] = same(0xbb67ae85), s[2] = same(0x3c6ef372), s[3] = same(0xa54ff53a);
    s[4] = same(0x510e527f), s[5] = same(0x9b05688c), s[6] = same(0x1f83d9ab), s[7] = same(0x5be0cd19);
}

/* The end of a message of `size` bytes in a block whose first `used` words are there already; the bit that ends the
 * message too, unless the word before holds it. */
FL_INLINE void words_end(word w[WORDS], const int used, uint32_t end, uint32_t size) {
    w[used] = same(end);
#pragma GCC unroll 16
    for (int i = used + 1; i < WORDS - 1; i++) {
        w[i] = same(0);
    }
    w[WORDS - 1] = same(8 * size);
}

/* ---- Between memory, a message after the other, and vectors, a word of all messages after the other ---- */

/* Message words are big-endian in memory. */
FL_INLINE __m512i swap_bytes(__m512i x) {
    const __m512i order = _mm512_set4_epi32(0x0c0d0e0f, 0x08090a0b, 0x04050607, 0x00010203);
    return _mm512_shuffle_epi8(x, order);
}

/* In each 128-bit quarter transposes four vectors of four words. */
FL_INLINE void transpose_quarters(__m512i x[4]) {
    __m512i low01 = _mm512_unpacklo_epi32(x[0], x[1]), high01 = _mm512_unpackhi_epi32(x[0], x[1]);
    __m512i low23 = _mm512_unpacklo_epi32(x[2], x[3]), high23 = _mm512_unpackhi_epi32(x[2], x[3]);
    x[0] = _mm512_unpacklo_epi64(low01, low23);
    x[1] = _mm512_unpackhi_epi64(low01, low23);
    x[2] = _mm512_unpacklo_epi64(high01, high23);
    x[3] = _mm512_unpackhi_epi64(high01, high23);
}

/* Eight words of each of sixteen messages, message i at item[i]. Row i holds messages m and m + 4, m = i for i < 4
 * and i + 4 above, so that the quarters come out in order. */
FL_INLINE void load_words8(word w[DIGEST_WORDS], const uint8_t *const item[LANES]) {
    __m512i row[8];
#pragma GCC unroll 8
    for (int i = 0; i < 8; i++) {
        const uint8_t *first = item[i < 4 ? i : i + 4], *second = item[i < 4 ? i + 4 : i + 8];
        __m512i low = _mm512_castsi256_si512(_mm256_loadu_si256((const __m256i *)first));
        row[i] = swap_bytes(_mm512_inserti64x4(low, _mm256_loadu_si256((const __m256i *)second), 1));
    }
    transpose_quarters(row);
    transpose_quarters(row + 4);
    /* Quarters of row i: words i and i + 4 of messages 0..3, then of 4..7; of row i + 4: of 8..11 and 12..15. */
    w[0] = varying(_mm512_shuffle_i64x2(row[0], row[4], 0x88)), w[4] = varying(_mm512_shuffle_i64x2(row[0], row[4], 0xdd));
    w[1] = varying(_mm512_shuffle_i64x2(row[1], row[5], 0x88)), w[5] = varying(_mm512_shuffle_i64x2(row[1], row[5], 0xdd));
    w[2] = varying(_mm512_shuffle_i64x2(row[2], row[6], 0x88)), w[6] = varying(_mm512_shuffle_i64x2(row[2], row[6], 0xdd));
    w[3] = varying(_mm512_shuffle_i64x2(row[3], row[7], 0x88)), w[7] = varying(_mm512_shuffle_i64x2(row[3], row[7], 0xdd));
}

FL_INLINE void load_strided(word w[DIGEST_WORDS], const uint8_t *bytes, const size_t stride) {
    const uint8_t *item[LANES];
#pragma GCC unroll 16
    for (int i = 0; i < LANES; i++) {
        item[i] = bytes + stride * (size_t)i;
    }
    load_words8(w, item);
}

FL_INLINE void store_digests(uint8_t *out32s, const word state[8]) {
    __m512i low[4] = {vector(state[0]), vector(state[1]), vector(state[2]), vector(state[3])};
    __m512i high[4] = {vector(state[4]), vector(state[5]), vector(state[6]), vector(state[7])};
    /* Quarters q of low[i] and high[i]: the two halves of message 4 q + i. */
    transpose_quarters(low);
    transpose_quarters(high);
    const __m512i messages_01 = _mm512_set_epi64(11, 10, 3, 2, 9, 8, 1, 0);
    const __m512i messages_23 = _mm512_set_epi64(15, 14, 7, 6, 13, 12, 5, 4);
#pragma GCC unroll 4
    for (int i = 0; i < 4; i++) {
        __m512i quarters01 = swap_bytes(_mm512_permutex2var_epi64(low[i], messages_01, high[i]));
        __m512i quarters23 = swap_bytes(_mm512_permutex2var_epi64(low[i], messages_23, high[i]));
        uint8_t *out = out32s + 32 * i;
        _mm256_storeu_si256((__m256i *)out, _mm512_castsi512_si256(quarters01));
        _mm256_storeu_si256((__m256i *)(out + 128), _mm512_extracti64x4_epi64(quarters01, 1));
        _mm256_storeu_si256((__m256i *)(out + 256), _mm512_castsi512_si256(quarters23));
        _mm256_storeu_si256((__m256i *)(out + 384), _mm512_extracti64x4_epi64(quarters23, 1));
    }
}

/* ---- Kernel entries: a group of sixteen is loaded whole before its output is stored, so that output may overwrite
 * input. ---- */

/* The message moved one byte up: the last byte of one word before the first three of the next. */
FL_INLINE word across(word before, word at) {
    return varying(_mm512_or_si512(_mm512_slli_epi32(vector(before), 24), _mm512_srli_epi32(vector(at), 8)));
}

/* The last byte of the message, and the bit that ends it. */
FL_INLINE word last_byte_and_end(word last) {
    return varying(_mm512_or_si512(_mm512_slli_epi32(vector(last), 24), _mm512_set1_epi32(0x800000)));
}

static void leaf32_group(uint8_t *out32s, const uint8_t *entry32s) {
    word entry[8], w[WORDS], state[8];
    load_strided(entry, entry32s, 32);
    w[0] = varying(_mm512_srli_epi32(entry[0].lanes, 8)); /* prefix 0x00 */
#pragma GCC unroll 8
    for (int i = 1; i < 8; i++) {
        w[i] = across(entry[i - 1], entry[i]);
    }
    words_end(w, 8, 0, 33);
    w[8] = last_byte_and_end(entry[7]);
    state_initial(state);
    compress_words(state, w);
    store_digests(out32s, state);
}

static void node_group(uint8_t *out32s, const uint8_t *pair64s) {
    word pair[WORDS], w[WORDS], state[8];
    load_strided(pair, pair64s, 64);
    load_strided(pair + 8, pair64s + 32, 64);
    w[0] = varying(_mm512_or_si512(_mm512_set1_epi32(0x01000000), _mm512_srli_epi32(pair[0].lanes, 8)));
#pragma GCC unroll 16
    for (int i = 1; i < WORDS; i++) {
        w[i] = across(pair[i - 1], pair[i]);
    }
    word last = last_byte_and_end(pair[15]);
    state_initial(state);
    compress_words(state, w);
    words_end(w, 0, 0, 65);
    w[0] = last;
    compress_words(state, w);
    store_digests(out32s, state);
}

/* state = SHA-256 of the digests in `state`. */
FL_INLINE void hash_digests(word state[8]) {
    word w[WORDS];
    copy8(w, state);
    words_end(w, 8, 0x80000000, FL_HASH_BYTES);
    state_initial(state);
    compress_words(state, w);
}

static void double64_group(uint8_t *out32s, const uint8_t *pair64s) {
    word w[WORDS], state[8];
    load_strided(w, pair64s, 64);
    load_strided(w + 8, pair64s + 32, 64);
    state_initial(state);
    compress_words(state, w);
    words_end(w, 0, 0x80000000, 64);
    compress_words(state, w);
    hash_digests(state);
    store_digests(out32s, state);
}

/* Items after the last full group: from nine on a group with idle lanes is faster than the SHA extensions. By the
 * instruction counts, a group costs some 870 cycles a compression and two of their streams 200. */
enum { STRAGGLERS_GROUPED_MIN = 9 };

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
    in_groups(out32s, entry32s, count, 32, leaf32_group, fl_sha256_kernel_shani.leaf32_many);
}

static void node_many(uint8_t *out32s, const uint8_t *pair64s, size_t count) {
    in_groups(out32s, pair64s, count, 64, node_group, fl_sha256_kernel_shani.node_many);
}

static void double64_many(uint8_t *out32s, const uint8_t *pair64s, size_t count) {
    in_groups(out32s, pair64s, count, 64, double64_group, fl_sha256_kernel_shani.double64_many);
}

/* One or two messages cannot fill lanes: single streams are those of the SHA extensions, which every CPU has that has
 * AVX-512 without paying for it in clock frequency. */
static void compress(uint32_t state[8], const uint8_t *blocks, size_t count) {
    fl_sha256_kernel_shani.compress(state, blocks, count);
}

static void compress_two(uint32_t state_a[8], const uint8_t *blocks_a, uint32_t state_b[8], const uint8_t *blocks_b,
                         size_t count) {
    fl_sha256_kernel_shani.compress_two(state_a, blocks_a, state_b, blocks_b, count);
}

static void compress_lanes(uint32_t *states, const uint8_t *const blocks[], size_t count) {
    word state[8];
#pragma GCC unroll 8
    for (int i = 0; i < 8; i++) {
        state[i] = varying(_mm512_loadu_si512(states + LANES * i));
    }
    for (size_t at = 0; at < FL_BLOCK_BYTES * count; at += FL_BLOCK_BYTES) {
        const uint8_t *item[LANES];
        word w[WORDS];
        for (int half = 0; half < 2; half++) {
#pragma GCC unroll 16
            for (int i = 0; i < LANES; i++) {
                item[i] = blocks[i] + at + 32 * half;
            }
            load_words8(w + 8 * half, item);
        }
        compress_words(state, w);
    }
#pragma GCC unroll 8
    for (int i = 0; i < 8; i++) {
        _mm512_storeu_si512(states + LANES * i, state[i].lanes);
    }
}

/* ---- Proof of work ---- */

/* The most significant 32 bits of sixteen header hashes, read as little-endian integers. They are word h of the second
 * hash, which is e after 61 rounds plus the initial h: the last rounds, and whatever else only they need, are left out. */
FL_INLINE __m512i header_hashes_high(const fl_pow_job *job, __m512i nonces) {
    word state[8], v[8], w[WORDS];
#pragma GCC unroll 8
    for (int i = 0; i < 8; i++) {
        state[i] = same(job->midstate[i]);
    }
    w[0] = same(job->tail[0]), w[1] = same(job->tail[1]), w[2] = same(job->tail[2]);
    w[3] = varying(swap_bytes(nonces));
    words_end(w, 4, 0x80000000, FL_HEADER_BYTES);
    compress_words(state, w);

    copy8(w, state);
    words_end(w, 8, 0x80000000, FL_HASH_BYTES);
    state_initial(v);
    STEPS16(v, w, 0), STEPS16(v, w, 16), STEPS16(v, w, 32);
    STEPS4(v, w, 48), STEPS4(v, w, 52), STEPS4(v, w, 56), step(v, w, 60);
    return swap_bytes(vector(add(V(4, 61), same(0x5be0cd19))));
}

static int pow_scan(uint32_t *nonce, const fl_pow_job *job, uint32_t start, uint64_t count) {
    const fl_pow_job known = *job; /* not reached by any store: its sums leave the loop */
    const __m512i target_high = _mm512_set1_epi32((int)job->target_high);
    const __m512i first = _mm512_set_epi32(15, 14, 13, 12, 11, 10, 9, 8, 7, 6, 5, 4, 3, 2, 1, 0);
    __m512i nonces = _mm512_add_epi32(_mm512_set1_epi32((int)start), first);
    for (uint64_t i = 0; i < count; i += LANES) {
        unsigned found = _mm512_cmple_epu32_mask(header_hashes_high(&known, nonces), target_high);
        if (found != 0) {
            uint64_t lane = (uint64_t)__builtin_ctz(found);
            /* The last group may run past the end, where its results do not count. */
            *nonce = start + (uint32_t)(i + lane);
            return i + lane < count;
        }
        nonces = _mm512_add_epi32(nonces, _mm512_set1_epi32(LANES));
    }
    return 0;
}

const fl_sha256_kernel fl_sha256_kernel_avx512 = {
    .name = "avx512",
    .cpu_features = FL_CPU_AVX512F | FL_CPU_SHA | FL_CPU_SSSE3 | FL_CPU_SSE41,
    .compress = compress,
    .compress_two = compress_two,
    .leaf32_many = leaf32_many,
    .node_many = node_many,
    .double64_many = double64_many,
    .pow_scan = pow_scan,
    .lanes = LANES,
    .lanes_busy_min = STRAGGLERS_GROUPED_MIN,
    .compress_lanes = compress_lanes,
    .streams_borrowed_from = "shani",
};

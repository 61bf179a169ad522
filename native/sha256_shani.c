/* SHA-256 on the SHA extensions of x86-64, one stream or two interleaved.
 *
 * One stream is bound by latency: each sha256rnds2 waits for the one before. Two independent streams fill the
 * gaps. The functions below take the number of streams as a constant and are always inlined, so that each
 * caller becomes one straight line of instructions with its state in registers.
 *
 * Only 128-bit registers are used, in the legacy encoding that the SHA instructions have anyway: compiled
 * without AVX, this file neither needs nor dirties the upper halves of vector registers.
 */
#include "fl_impl.h"

#include <immintrin.h>

enum { WORDS = 4, STREAMS_MAX = 2 }; /* a block is four vectors of four 32-bit words */

/* The working variables as the instructions want them: {a, b, e, f} and {c, d, g, h}, high word first. */
typedef struct {
    __m128i abef, cdgh;
} hash_state;

typedef struct {
    __m128i w[WORDS];
} block_words;

/* Message words are big-endian in memory. */
FL_INLINE __m128i to_words(__m128i bytes) {
    return _mm_shuffle_epi8(bytes, _mm_set_epi8(12, 13, 14, 15, 8, 9, 10, 11, 4, 5, 6, 7, 0, 1, 2, 3));
}

FL_INLINE __m128i load(const void *bytes16) { return _mm_loadu_si128((const __m128i *)bytes16); }

FL_INLINE void store(void *bytes16, __m128i value) { _mm_storeu_si128((__m128i *)bytes16, value); }

FL_INLINE __m128i one_word(uint32_t word0) { return _mm_cvtsi32_si128((int)word0); }

FL_INLINE __m128i last_word(uint32_t word3) { return _mm_slli_si128(_mm_cvtsi32_si128((int)word3), 12); }

/* ---- State ---- */

FL_INLINE hash_state state_from_words(__m128i abcd, __m128i efgh) {
    __m128i cdab = _mm_shuffle_epi32(abcd, 0xb1);
    __m128i efgh_reversed = _mm_shuffle_epi32(efgh, 0x1b);
    return (hash_state){
        .abef = _mm_alignr_epi8(cdab, efgh_reversed, 8),
        .cdgh = _mm_blend_epi16(efgh_reversed, cdab, 0xf0),
    };
}

/* Words 0..3 and 4..7 of the hash, in order. */
FL_INLINE void state_to_words(__m128i *abcd, __m128i *efgh, hash_state s) {
    __m128i feba = _mm_shuffle_epi32(s.abef, 0x1b);
    __m128i dchg = _mm_shuffle_epi32(s.cdgh, 0xb1);
    *abcd = _mm_blend_epi16(feba, dchg, 0xf0);
    *efgh = _mm_alignr_epi8(dchg, feba, 8);
}

FL_INLINE hash_state state_initial(void) {
    return state_from_words(load(FL_SHA256_IV), load(FL_SHA256_IV + 4));
}

FL_INLINE void state_store_digest(uint8_t out32[32], hash_state s) {
    __m128i abcd, efgh;
    state_to_words(&abcd, &efgh, s);
    store(out32, to_words(abcd));
    store(out32 + 16, to_words(efgh));
}

/* ---- Compression ---- */

/* Four rounds; word_plus_k holds W[t] + K[t] for four consecutive t. After two rounds the former {a, b, e, f}
 * are {c, d, g, h}, so the two halves of the state change places twice. */
FL_INLINE void rounds4(hash_state *s, __m128i word_plus_k) {
    s->cdgh = _mm_sha256rnds2_epu32(s->cdgh, s->abef, word_plus_k);
    s->abef = _mm_sha256rnds2_epu32(s->abef, s->cdgh, _mm_shuffle_epi32(word_plus_k, 0x0e));
}

/* W[t .. t+3] from the sixteen words before them, oldest four first. */
FL_INLINE __m128i schedule4(__m128i w0, __m128i w1, __m128i w2, __m128i w3) {
    __m128i sum = _mm_add_epi32(_mm_sha256msg1_epu32(w0, w1), _mm_alignr_epi8(w3, w2, 4));
    return _mm_sha256msg2_epu32(sum, w3);
}

FL_INLINE void compress_streams(hash_state *s, block_words *m, const int streams) {
    hash_state before[STREAMS_MAX];
    for (int i = 0; i < streams; i++) {
        before[i] = s[i];
    }
#pragma GCC unroll 16
    for (int t = 0; t < 16; t++) {
        __m128i k = _mm_load_si128((const __m128i *)(FL_SHA256_K + 4 * t));
        for (int i = 0; i < streams; i++) {
            __m128i *w = m[i].w;
            rounds4(&s[i], _mm_add_epi32(w[t % 4], k));
            if (t < 12) {
                w[t % 4] = schedule4(w[t % 4], w[(t + 1) % 4], w[(t + 2) % 4], w[(t + 3) % 4]);
            }
        }
    }
    for (int i = 0; i < streams; i++) {
        s[i].abef = _mm_add_epi32(s[i].abef, before[i].abef);
        s[i].cdgh = _mm_add_epi32(s[i].cdgh, before[i].cdgh);
    }
}

/* ---- Blocks ---- */

FL_INLINE block_words block_load(const uint8_t *block) {
    block_words m;
    for (int i = 0; i < WORDS; i++) {
        m.w[i] = to_words(load(block + 16 * i));
    }
    return m;
}

/* The first 16 bytes of `prefix || data`; those after it are data[15 ..]. */
FL_INLINE __m128i load_prefixed(uint8_t prefix, const uint8_t *data) {
    return to_words(_mm_or_si128(_mm_slli_si128(load(data), 1), one_word(prefix)));
}

/* 0x00 || entry: 33 bytes, one block. */
FL_INLINE block_words block_leaf32(const uint8_t *entry32) {
    return (block_words){{
        load_prefixed(0x00, entry32),
        to_words(load(entry32 + 15)),
        one_word((uint32_t)entry32[31] << 24 | 0x800000),
        last_word(33 * 8),
    }};
}

/* 0x01 || pair: 65 bytes, this block and one more that holds the last byte. */
FL_INLINE block_words block_node_head(const uint8_t *pair64) {
    return (block_words){{
        load_prefixed(0x01, pair64),
        to_words(load(pair64 + 15)),
        to_words(load(pair64 + 31)),
        to_words(load(pair64 + 47)),
    }};
}

FL_INLINE block_words block_node_tail(const uint8_t *pair64) {
    return (block_words){{
        one_word((uint32_t)pair64[63] << 24 | 0x800000),
        _mm_setzero_si128(),
        _mm_setzero_si128(),
        last_word(65 * 8),
    }};
}

/* The padding block after a message of exactly one block. */
FL_INLINE block_words block_padding64(void) {
    return (block_words){{one_word(0x80000000), _mm_setzero_si128(), _mm_setzero_si128(), last_word(64 * 8)}};
}

/* A digest as the message of the second SHA-256 in SHA256d. */
FL_INLINE block_words block_digest(hash_state s) {
    block_words m;
    state_to_words(&m.w[0], &m.w[1], s);
    m.w[2] = one_word(0x80000000);
    m.w[3] = last_word(FL_HASH_BYTES * 8);
    return m;
}

/* ---- Kernel entries: each item is loaded whole before any output of its group is stored, so that output may
 * overwrite input. ---- */

static void compress(uint32_t state[8], const uint8_t *blocks, size_t count) {
    hash_state s = state_from_words(load(state), load(state + 4));
    for (; count > 0; count--, blocks += FL_BLOCK_BYTES) {
        block_words m = block_load(blocks);
        compress_streams(&s, &m, 1);
    }
    __m128i abcd, efgh;
    state_to_words(&abcd, &efgh, s);
    store(state, abcd);
    store(state + 4, efgh);
}

static void compress_two(uint32_t state_a[8], const uint8_t *blocks_a, uint32_t state_b[8],
                         const uint8_t *blocks_b, size_t count) {
    hash_state s[2] = {
        state_from_words(load(state_a), load(state_a + 4)),
        state_from_words(load(state_b), load(state_b + 4)),
    };
    for (; count > 0; count--, blocks_a += FL_BLOCK_BYTES, blocks_b += FL_BLOCK_BYTES) {
        block_words m[2] = {block_load(blocks_a), block_load(blocks_b)};
        compress_streams(s, m, 2);
    }
    __m128i abcd, efgh;
    state_to_words(&abcd, &efgh, s[0]);
    store(state_a, abcd);
    store(state_a + 4, efgh);
    state_to_words(&abcd, &efgh, s[1]);
    store(state_b, abcd);
    store(state_b + 4, efgh);
}

FL_INLINE void leaf32_streams(uint8_t *out32s, const uint8_t *entry32s, const int streams) {
    hash_state s[STREAMS_MAX];
    block_words m[STREAMS_MAX];
    for (int i = 0; i < streams; i++) {
        s[i] = state_initial();
        m[i] = block_leaf32(entry32s + 32 * i);
    }
    compress_streams(s, m, streams);
    for (int i = 0; i < streams; i++) {
        state_store_digest(out32s + 32 * i, s[i]);
    }
}

FL_INLINE void node_streams(uint8_t *out32s, const uint8_t *pair64s, const int streams) {
    hash_state s[STREAMS_MAX];
    block_words head[STREAMS_MAX], tail[STREAMS_MAX];
    for (int i = 0; i < streams; i++) {
        s[i] = state_initial();
        head[i] = block_node_head(pair64s + 64 * i);
        tail[i] = block_node_tail(pair64s + 64 * i);
    }
    compress_streams(s, head, streams);
    compress_streams(s, tail, streams);
    for (int i = 0; i < streams; i++) {
        state_store_digest(out32s + 32 * i, s[i]);
    }
}

FL_INLINE void double64_streams(uint8_t *out32s, const uint8_t *pair64s, const int streams) {
    hash_state s[STREAMS_MAX];
    block_words m[STREAMS_MAX];
    for (int i = 0; i < streams; i++) {
        s[i] = state_initial();
        m[i] = block_load(pair64s + 64 * i);
    }
    compress_streams(s, m, streams);
    for (int i = 0; i < streams; i++) {
        m[i] = block_padding64();
    }
    compress_streams(s, m, streams);
    for (int i = 0; i < streams; i++) {
        m[i] = block_digest(s[i]);
        s[i] = state_initial();
    }
    compress_streams(s, m, streams);
    for (int i = 0; i < streams; i++) {
        state_store_digest(out32s + 32 * i, s[i]);
    }
}

static void leaf32_many(uint8_t *out32s, const uint8_t *entry32s, size_t count) {
    size_t i = 0;
    for (; i + 2 <= count; i += 2) {
        leaf32_streams(out32s + 32 * i, entry32s + 32 * i, 2);
    }
    if (i < count) {
        leaf32_streams(out32s + 32 * i, entry32s + 32 * i, 1);
    }
}

static void node_many(uint8_t *out32s, const uint8_t *pair64s, size_t count) {
    size_t i = 0;
    for (; i + 2 <= count; i += 2) {
        node_streams(out32s + 32 * i, pair64s + 64 * i, 2);
    }
    if (i < count) {
        node_streams(out32s + 32 * i, pair64s + 64 * i, 1);
    }
}

static void double64_many(uint8_t *out32s, const uint8_t *pair64s, size_t count) {
    size_t i = 0;
    for (; i + 2 <= count; i += 2) {
        double64_streams(out32s + 32 * i, pair64s + 64 * i, 2);
    }
    if (i < count) {
        double64_streams(out32s + 32 * i, pair64s + 64 * i, 1);
    }
}

/* ---- Proof of work ---- */

/* Most significant 32 bits of the header hash, read as a little-endian integer: its word h, byte-swapped. */
FL_INLINE uint32_t state_high_le(hash_state s) { return fl_byteswap32((uint32_t)_mm_cvtsi128_si32(s.cdgh)); }

FL_INLINE void header_hash_streams(uint32_t high[], hash_state midstate, __m128i tail_words, uint32_t nonce,
                                   const int streams) {
    hash_state s[STREAMS_MAX];
    block_words m[STREAMS_MAX];
    for (int i = 0; i < streams; i++) {
        s[i] = midstate;
        m[i].w[0] = _mm_insert_epi32(tail_words, (int)fl_byteswap32(nonce + (uint32_t)i), 3);
        m[i].w[1] = one_word(0x80000000);
        m[i].w[2] = _mm_setzero_si128();
        m[i].w[3] = last_word(FL_HEADER_BYTES * 8);
    }
    compress_streams(s, m, streams);
    for (int i = 0; i < streams; i++) {
        m[i] = block_digest(s[i]);
        s[i] = state_initial();
    }
    compress_streams(s, m, streams);
    for (int i = 0; i < streams; i++) {
        high[i] = state_high_le(s[i]);
    }
}

static int pow_scan(uint32_t *nonce, const fl_pow_job *job, uint32_t start, uint64_t count) {
    hash_state midstate = state_from_words(load(job->midstate), load(job->midstate + 4));
    __m128i tail_words = _mm_set_epi32(0, (int)job->tail[2], (int)job->tail[1], (int)job->tail[0]);
    uint32_t high[STREAMS_MAX];
    for (uint64_t i = 0; i < count; i += 2) {
        /* The second stream may run one nonce past the end, where its result is not looked at. */
        uint32_t first = start + (uint32_t)i;
        header_hash_streams(high, midstate, tail_words, first, 2);
        if (high[0] <= job->target_high) {
            *nonce = first;
            return 1;
        }
        if (high[1] <= job->target_high && i + 1 < count) {
            *nonce = first + 1;
            return 1;
        }
    }
    return 0;
}

const fl_sha256_kernel fl_sha256_kernel_shani = {
    .name = "shani",
    .cpu_features = FL_CPU_SSSE3 | FL_CPU_SSE41 | FL_CPU_SHA,
    .compress = compress,
    .compress_two = compress_two,
    .leaf32_many = leaf32_many,
    .node_many = node_many,
    .double64_many = double64_many,
    .pow_scan = pow_scan,
};

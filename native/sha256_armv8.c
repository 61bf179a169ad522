/* SHA-256 on the cryptography extension of ARMv8, one stream or two interleaved.
 *
 * The outline is that of sha256_shani.c: an instruction does four rounds on one half of the state and waits for
 * the one before, so a second, independent stream fills the gaps. Functions take the number of streams as a
 * constant and are always inlined.
 */
#include "fl_impl.h"

#include <arm_neon.h>

enum { WORDS = 4, STREAMS_MAX = 2 }; /* a block is four vectors of four 32-bit words */

typedef struct {
    uint32x4_t abcd, efgh;
} hash_state;

typedef struct {
    uint32x4_t w[WORDS];
} block_words;

/* Message words are big-endian in memory; byte order of the vectors is that of a little-endian system. */
FL_INLINE uint32x4_t load_words(const uint8_t *bytes16) {
    return vreinterpretq_u32_u8(vrev32q_u8(vld1q_u8(bytes16)));
}

FL_INLINE void store_words(uint8_t *bytes16, uint32x4_t words) {
    vst1q_u8(bytes16, vrev32q_u8(vreinterpretq_u8_u32(words)));
}

FL_INLINE hash_state state_load(const uint32_t words[8]) {
    return (hash_state){vld1q_u32(words), vld1q_u32(words + 4)};
}

FL_INLINE void state_store(uint32_t words[8], hash_state s) {
    vst1q_u32(words, s.abcd);
    vst1q_u32(words + 4, s.efgh);
}

FL_INLINE void state_store_digest(uint8_t out32[32], hash_state s) {
    store_words(out32, s.abcd);
    store_words(out32 + 16, s.efgh);
}

FL_INLINE block_words block_load(const uint8_t *block) {
    block_words m;
    for (int i = 0; i < WORDS; i++) {
        m.w[i] = load_words(block + 16 * i);
    }
    return m;
}

/* ---- Compression ---- */

/* Four rounds; word_plus_k holds W[t] + K[t] for four consecutive t. */
FL_INLINE void rounds4(hash_state *s, uint32x4_t word_plus_k) {
    uint32x4_t abcd = s->abcd;
    s->abcd = vsha256hq_u32(abcd, s->efgh, word_plus_k);
    s->efgh = vsha256h2q_u32(s->efgh, abcd, word_plus_k);
}

/* W[t .. t+3] from the sixteen words before them, oldest four first. */
FL_INLINE uint32x4_t schedule4(uint32x4_t w0, uint32x4_t w1, uint32x4_t w2, uint32x4_t w3) {
    return vsha256su1q_u32(vsha256su0q_u32(w0, w1), w2, w3);
}

FL_INLINE void compress_streams(hash_state *s, block_words *m, const int streams) {
    hash_state before[STREAMS_MAX];
    for (int i = 0; i < streams; i++) {
        before[i] = s[i];
    }
#pragma GCC unroll 16
    for (int t = 0; t < 16; t++) {
        uint32x4_t k = vld1q_u32(FL_SHA256_K + 4 * t);
        for (int i = 0; i < streams; i++) {
            uint32x4_t *w = m[i].w;
            rounds4(&s[i], vaddq_u32(w[t % 4], k));
            if (t < 12) {
                w[t % 4] = schedule4(w[t % 4], w[(t + 1) % 4], w[(t + 2) % 4], w[(t + 3) % 4]);
            }
        }
    }
    for (int i = 0; i < streams; i++) {
        s[i].abcd = vaddq_u32(s[i].abcd, before[i].abcd);
        s[i].efgh = vaddq_u32(s[i].efgh, before[i].efgh);
    }
}

/* ---- Blocks with their padding ---- */

/* prefix || data of `size` bytes, padded to `blocks` blocks; `size` is a constant of each caller. */
FL_INLINE void pad_prefixed(uint8_t *padded, uint8_t prefix, const uint8_t *data, const size_t size,
                            const size_t blocks) {
    memset(padded, 0, FL_BLOCK_BYTES * blocks);
    padded[0] = prefix;
    memcpy(padded + 1, data, size);
    padded[1 + size] = 0x80;
    fl_store_be32(padded + FL_BLOCK_BYTES * blocks - 4, (uint32_t)(1 + size) * 8);
}

/* The padding block after a message of exactly one block. */
FL_INLINE block_words block_padding64(void) {
    const uint32_t words[16] = {[0] = 0x80000000, [15] = 64 * 8};
    return (block_words){{vld1q_u32(words), vld1q_u32(words + 4), vld1q_u32(words + 8), vld1q_u32(words + 12)}};
}

/* A digest as the message of the second SHA-256 in SHA256d. */
FL_INLINE block_words block_digest(hash_state s) {
    const uint32_t words[8] = {[0] = 0x80000000, [7] = FL_HASH_BYTES * 8};
    return (block_words){{s.abcd, s.efgh, vld1q_u32(words), vld1q_u32(words + 4)}};
}

/* ---- Kernel entries: each item is loaded whole before any output of its group is stored, so that output may
 * overwrite input. ---- */

static void compress(uint32_t state[8], const uint8_t *blocks, size_t count) {
    hash_state s = state_load(state);
    for (; count > 0; count--, blocks += FL_BLOCK_BYTES) {
        block_words m = block_load(blocks);
        compress_streams(&s, &m, 1);
    }
    state_store(state, s);
}

static void compress_two(uint32_t state_a[8], const uint8_t *blocks_a, uint32_t state_b[8],
                         const uint8_t *blocks_b, size_t count) {
    hash_state s[2] = {state_load(state_a), state_load(state_b)};
    for (; count > 0; count--, blocks_a += FL_BLOCK_BYTES, blocks_b += FL_BLOCK_BYTES) {
        block_words m[2] = {block_load(blocks_a), block_load(blocks_b)};
        compress_streams(s, m, 2);
    }
    state_store(state_a, s[0]);
    state_store(state_b, s[1]);
}

/* Hashes one item of `size` bytes for each stream, with its prefix. */
FL_INLINE void prefixed_streams(uint8_t *out32s, uint8_t prefix, const uint8_t *items, const size_t size,
                                const size_t blocks, const int streams) {
    uint8_t padded[STREAMS_MAX][2 * FL_BLOCK_BYTES];
    hash_state s[STREAMS_MAX];
    block_words m[STREAMS_MAX];
    for (int i = 0; i < streams; i++) {
        pad_prefixed(padded[i], prefix, items + size * (size_t)i, size, blocks);
        s[i] = state_load(FL_SHA256_IV);
    }
    for (size_t block = 0; block < blocks; block++) {
        for (int i = 0; i < streams; i++) {
            m[i] = block_load(padded[i] + FL_BLOCK_BYTES * block);
        }
        compress_streams(s, m, streams);
    }
    for (int i = 0; i < streams; i++) {
        state_store_digest(out32s + 32 * i, s[i]);
    }
}

FL_INLINE void double64_streams(uint8_t *out32s, const uint8_t *pair64s, const int streams) {
    hash_state s[STREAMS_MAX];
    block_words m[STREAMS_MAX];
    for (int i = 0; i < streams; i++) {
        s[i] = state_load(FL_SHA256_IV);
        m[i] = block_load(pair64s + 64 * i);
    }
    compress_streams(s, m, streams);
    for (int i = 0; i < streams; i++) {
        m[i] = block_padding64();
    }
    compress_streams(s, m, streams);
    for (int i = 0; i < streams; i++) {
        m[i] = block_digest(s[i]);
        s[i] = state_load(FL_SHA256_IV);
    }
    compress_streams(s, m, streams);
    for (int i = 0; i < streams; i++) {
        state_store_digest(out32s + 32 * i, s[i]);
    }
}

static void leaf32_many(uint8_t *out32s, const uint8_t *entry32s, size_t count) {
    size_t i = 0;
    for (; i + 2 <= count; i += 2) {
        prefixed_streams(out32s + 32 * i, 0x00, entry32s + 32 * i, 32, 1, 2);
    }
    if (i < count) {
        prefixed_streams(out32s + 32 * i, 0x00, entry32s + 32 * i, 32, 1, 1);
    }
}

static void node_many(uint8_t *out32s, const uint8_t *pair64s, size_t count) {
    size_t i = 0;
    for (; i + 2 <= count; i += 2) {
        prefixed_streams(out32s + 32 * i, 0x01, pair64s + 64 * i, 64, 2, 2);
    }
    if (i < count) {
        prefixed_streams(out32s + 32 * i, 0x01, pair64s + 64 * i, 64, 2, 1);
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

/* Two header hashes' most significant 32 bits, read as little-endian integers: their words h, byte-swapped. */
FL_INLINE void header_hashes_high(uint32_t high[2], hash_state midstate, const uint32_t block[16],
                                  uint32_t nonce) {
    hash_state s[2];
    block_words m[2];
    for (uint32_t i = 0; i < 2; i++) {
        s[i] = midstate;
        m[i].w[0] = vsetq_lane_u32(fl_byteswap32(nonce + i), vld1q_u32(block), 3);
        m[i].w[1] = vld1q_u32(block + 4);
        m[i].w[2] = vld1q_u32(block + 8);
        m[i].w[3] = vld1q_u32(block + 12);
    }
    compress_streams(s, m, 2);
    for (int i = 0; i < 2; i++) {
        m[i] = block_digest(s[i]);
        s[i] = state_load(FL_SHA256_IV);
    }
    compress_streams(s, m, 2);
    for (int i = 0; i < 2; i++) {
        high[i] = fl_byteswap32(vgetq_lane_u32(s[i].efgh, 3));
    }
}

static int pow_scan(uint32_t *nonce, const fl_pow_job *job, uint32_t start, uint64_t count) {
    hash_state midstate = state_load(job->midstate);
    uint32_t block[16] = {job->tail[0], job->tail[1], job->tail[2], [4] = 0x80000000, [15] = FL_HEADER_BYTES * 8};
    uint32_t high[2];
    for (uint64_t i = 0; i < count; i += 2) {
        /* The second stream may run one nonce past the end, where its result is not looked at. */
        uint32_t first = start + (uint32_t)i;
        header_hashes_high(high, midstate, block, first);
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

const fl_sha256_kernel fl_sha256_kernel_armv8 = {
    .name = "armv8",
    .cpu_features = FL_CPU_ARM_SHA2,
    .compress = compress,
    .compress_two = compress_two,
    .leaf32_many = leaf32_many,
    .node_many = node_many,
    .double64_many = double64_many,
    .pow_scan = pow_scan,
};

/* SHA-256 in plain C11: the reference for every other kernel, and the fallback for every CPU. */
#include "fl_impl.h"

const uint32_t FL_SHA256_IV[8] = {
    0x6a09e667, 0xbb67ae85, 0x3c6ef372, 0xa54ff53a, 0x510e527f, 0x9b05688c, 0x1f83d9ab, 0x5be0cd19,
};

_Alignas(64) const uint32_t FL_SHA256_K[64] = {
    0x428a2f98, 0x71374491, 0xb5c0fbcf, 0xe9b5dba5, 0x3956c25b, 0x59f111f1, 0x923f82a4, 0xab1c5ed5,
    0xd807aa98, 0x12835b01, 0x243185be, 0x550c7dc3, 0x72be5d74, 0x80deb1fe, 0x9bdc06a7, 0xc19bf174,
    0xe49b69c1, 0xefbe4786, 0x0fc19dc6, 0x240ca1cc, 0x2de92c6f, 0x4a7484aa, 0x5cb0a9dc, 0x76f988da,
    0x983e5152, 0xa831c66d, 0xb00327c8, 0xbf597fc7, 0xc6e00bf3, 0xd5a79147, 0x06ca6351, 0x14292967,
    0x27b70a85, 0x2e1b2138, 0x4d2c6dfc, 0x53380d13, 0x650a7354, 0x766a0abb, 0x81c2c92e, 0x92722c85,
    0xa2bfe8a1, 0xa81a664b, 0xc24b8b70, 0xc76c51a3, 0xd192e819, 0xd6990624, 0xf40e3585, 0x106aa070,
    0x19a4c116, 0x1e376c08, 0x2748774c, 0x34b0bcb5, 0x391c0cb3, 0x4ed8aa4a, 0x5b9cca4f, 0x682e6ff3,
    0x748f82ee, 0x78a5636f, 0x84c87814, 0x8cc70208, 0x90befffa, 0xa4506ceb, 0xbef9a3f7, 0xc67178f2,
};

/* The functions of FIPS 180-4 section 4.1.2, under its names. */
FL_INLINE uint32_t rotr(uint32_t x, int n) { return x >> n | x << (32 - n); }
FL_INLINE uint32_t ch(uint32_t x, uint32_t y, uint32_t z) { return z ^ (x & (y ^ z)); }
FL_INLINE uint32_t maj(uint32_t x, uint32_t y, uint32_t z) { return (x & y) | (z & (x | y)); }
FL_INLINE uint32_t big_sigma0(uint32_t x) { return rotr(x, 2) ^ rotr(x, 13) ^ rotr(x, 22); }
FL_INLINE uint32_t big_sigma1(uint32_t x) { return rotr(x, 6) ^ rotr(x, 11) ^ rotr(x, 25); }
FL_INLINE uint32_t small_sigma0(uint32_t x) { return rotr(x, 7) ^ rotr(x, 18) ^ x >> 3; }
FL_INLINE uint32_t small_sigma1(uint32_t x) { return rotr(x, 17) ^ rotr(x, 19) ^ x >> 10; }

/* One round. The working variables a..h are not moved: in round t variable number i of the standard stands in
 * v[(i - t) mod 8], so that only the two that change are written. */
FL_INLINE void round_at(uint32_t v[8], int t, uint32_t word_plus_k) {
#define V(i) v[((i) - t) & 7]
    uint32_t t1 = V(7) + big_sigma1(V(4)) + ch(V(4), V(5), V(6)) + word_plus_k;
    uint32_t t2 = big_sigma0(V(0)) + maj(V(0), V(1), V(2));
    V(3) += t1;
    V(7) = t1 + t2;
#undef V
}

/* FIPS 180-4 section 6.2.2 on a block given as 16 words, which it overwrites: w is the sliding window of the
 * message schedule, W[t] in w[t mod 16]. */
FL_INLINE void compress_words(uint32_t state[8], uint32_t w[16]) {
    uint32_t v[8];
    memcpy(v, state, sizeof v);
#pragma GCC unroll 16
    for (int t = 0; t < 16; t++) {
        round_at(v, t, w[t] + FL_SHA256_K[t]);
    }
    for (int base = 16; base < 64; base += 16) {
#pragma GCC unroll 16
        for (int t = 0; t < 16; t++) {
            w[t] += small_sigma1(w[(t + 14) & 15]) + w[(t + 9) & 15] + small_sigma0(w[(t + 1) & 15]);
            round_at(v, t, w[t] + FL_SHA256_K[base + t]);
        }
    }
    for (int i = 0; i < 8; i++) {
        state[i] += v[i];
    }
}

static void compress(uint32_t state[8], const uint8_t *blocks, size_t count) {
    for (; count > 0; count--, blocks += FL_BLOCK_BYTES) {
        uint32_t w[16];
        for (int i = 0; i < 16; i++) {
            w[i] = fl_load_be32(blocks + 4 * i);
        }
        compress_words(state, w);
    }
}

static void compress_two(uint32_t state_a[8], const uint8_t *blocks_a, uint32_t state_b[8],
                         const uint8_t *blocks_b, size_t count) {
    compress(state_a, blocks_a, count);
    compress(state_b, blocks_b, count);
}

/* Hashes a message of at most 119 bytes at the start of `buffer`, which has room for its padding. */
static void hash_short(uint8_t out32[32], uint8_t buffer[128], size_t size) {
    FL_VERIFY(size <= 119);
    size_t blocks = size < 56 ? 1 : 2;
    buffer[size] = 0x80;
    memset(buffer + size + 1, 0, FL_BLOCK_BYTES * blocks - size - 1);
    fl_store_be32(buffer + FL_BLOCK_BYTES * blocks - 4, (uint32_t)size * 8);
    uint32_t state[8];
    memcpy(state, FL_SHA256_IV, sizeof state);
    compress(state, buffer, blocks);
    fl_store_digest(out32, state);
}

static void hash_prefixed(uint8_t out32[32], uint8_t prefix, const uint8_t *data, size_t size) {
    uint8_t buffer[128];
    buffer[0] = prefix;
    memcpy(buffer + 1, data, size);
    hash_short(out32, buffer, size + 1);
}

static void leaf32_many(uint8_t *out32s, const uint8_t *entry32s, size_t count) {
    for (size_t i = 0; i < count; i++) {
        hash_prefixed(out32s + 32 * i, 0x00, entry32s + 32 * i, 32);
    }
}

static void node_many(uint8_t *out32s, const uint8_t *pair64s, size_t count) {
    for (size_t i = 0; i < count; i++) {
        hash_prefixed(out32s + 32 * i, 0x01, pair64s + 64 * i, 64);
    }
}

static void double64_many(uint8_t *out32s, const uint8_t *pair64s, size_t count) {
    for (size_t i = 0; i < count; i++) {
        uint8_t buffer[128];
        memcpy(buffer, pair64s + 64 * i, 64);
        hash_short(buffer, buffer, 64);
        hash_short(out32s + 32 * i, buffer, 32);
    }
}

/* The most significant 32 bits of the header hash, read as a little-endian integer, for one nonce. */
static uint32_t header_hash_high(const fl_pow_job *job, uint32_t nonce) {
    uint32_t state[8];
    uint32_t w[16] = {job->tail[0], job->tail[1], job->tail[2], fl_byteswap32(nonce), 0x80000000};
    w[15] = FL_HEADER_BYTES * 8;
    memcpy(state, job->midstate, sizeof state);
    compress_words(state, w);

    uint32_t second[16] = {0};
    memcpy(second, state, sizeof state);
    second[8] = 0x80000000;
    second[15] = FL_HASH_BYTES * 8;
    memcpy(state, FL_SHA256_IV, sizeof state);
    compress_words(state, second);
    return fl_byteswap32(state[7]);
}

static int pow_scan(uint32_t *nonce, const fl_pow_job *job, uint32_t start, uint64_t count) {
    for (uint64_t i = 0; i < count; i++) {
        if (header_hash_high(job, start + (uint32_t)i) <= job->target_high) {
            *nonce = start + (uint32_t)i;
            return 1;
        }
    }
    return 0;
}

const fl_sha256_kernel fl_sha256_kernel_portable = {
    .name = "portable",
    .cpu_features = 0,
    .compress = compress,
    .compress_two = compress_two,
    .leaf32_many = leaf32_many,
    .node_many = node_many,
    .double64_many = double64_many,
    .pow_scan = pow_scan,
};

/* The AVX-512 SHA-256 kernel against vectors made by tests/native/sha_vectors.py: every entry, every number of items
 * up to several groups, output over input where the contract allows it. */
#include <string.h>

#include "../fl_impl.h"
#include "runtime.h"

enum {
    MAGIC = 0x31414853, /* "SHA1": version 1 of the file, not the hash */
    ITEMS_MAX = 100,
    LANES = 16
};

typedef struct {
    uint64_t magic, item_count, stream_count, search_count, reserved[4];
} file_header;

/* 64 random bytes; the leaf hash of the first half; the node hash, and Bitcoin's, of both. */
typedef struct {
    uint8_t pair64[64], leaf32[32], node32[32], double32[32];
} item;

/* Sixteen padded messages of one size; their blocks follow, then their digests. */
typedef struct {
    uint64_t block_count, reserved[7];
} stream_group;

/* A search that starts at `start`: the first of `count` nonces that meets the target, if `found`. */
typedef struct {
    fl_pow_job job;
    uint32_t start, count, found, nonce;
} search;

static uint64_t hashes, failures;

#ifdef FL_EMULATE_AVX512
/* The machine need not have the SHA extensions either; the kernel then borrows its single streams elsewhere. */
#define KERNEL_BORROWED fl_sha256_kernel_portable
static void shani_compress(uint32_t state[8], const uint8_t *blocks, size_t count) {
    KERNEL_BORROWED.compress(state, blocks, count);
}
static void shani_leaf32_many(uint8_t *out32s, const uint8_t *entry32s, size_t count) {
    KERNEL_BORROWED.leaf32_many(out32s, entry32s, count);
}
static void shani_node_many(uint8_t *out32s, const uint8_t *pair64s, size_t count) {
    KERNEL_BORROWED.node_many(out32s, pair64s, count);
}
static void shani_double64_many(uint8_t *out32s, const uint8_t *pair64s, size_t count) {
    KERNEL_BORROWED.double64_many(out32s, pair64s, count);
}
const fl_sha256_kernel fl_sha256_kernel_shani = {
    .name = "stand-in",
    .compress = shani_compress,
    .leaf32_many = shani_leaf32_many,
    .node_many = shani_node_many,
    .double64_many = shani_double64_many,
};
#endif

static void expect(const void *got, const void *expected, size_t size) { failures += memcmp(got, expected, size) != 0; }

/* ---- leaf32_many, node_many, double64_many ---- */

static void check_items(const item *items, size_t count) {
    static uint8_t inputs[64 * ITEMS_MAX + 1], outputs[32 * ITEMS_MAX + 1], expected[32 * ITEMS_MAX];
    const fl_sha256_kernel *kernel = &fl_sha256_kernel_avx512;
    outputs[32 * count] = 0xa5;
    for (size_t i = 0; i < count; i++) {
        memcpy(inputs + 1 + 32 * i, items[i].pair64, 32); /* misaligned */
        memcpy(expected + 32 * i, items[i].leaf32, 32);
    }
    kernel->leaf32_many(outputs, inputs + 1, count);
    expect(outputs, expected, 32 * count);
    for (size_t i = 0; i < count; i++) {
        memcpy(inputs + 64 * i, items[i].pair64, 64);
        memcpy(expected + 32 * i, items[i].double32, 32);
    }
    kernel->double64_many(outputs, inputs, count);
    expect(outputs, expected, 32 * count);
    failures += outputs[32 * count] != 0xa5;
    for (size_t i = 0; i < count; i++) {
        memcpy(expected + 32 * i, items[i].node32, 32);
    }
    kernel->node_many(inputs, inputs, count);
    expect(inputs, expected, 32 * count);
    hashes += 3 * count;
}

/* ---- compress_lanes, and single streams ---- */

static const uint8_t *check_streams(const stream_group *group) {
    const uint8_t *bytes = (const uint8_t *)(group + 1);
    const size_t message_bytes = group->block_count * FL_BLOCK_BYTES;
    const uint8_t *digest32s = bytes + LANES * message_bytes;
    _Alignas(64) uint32_t states[8 * LANES];
    const uint8_t *blocks[LANES];
    for (size_t lane = 0; lane < LANES; lane++) {
        blocks[lane] = bytes + message_bytes * lane;
        for (size_t word = 0; word < 8; word++) {
            states[LANES * word + lane] = FL_SHA256_IV[word];
        }
    }
    fl_sha256_kernel_avx512.compress_lanes(states, blocks, group->block_count);
    for (size_t lane = 0; lane < LANES; lane++) {
        uint32_t state[8], single[8];
        uint8_t digest32[32];
        for (size_t word = 0; word < 8; word++) {
            state[word] = states[LANES * word + lane];
        }
        fl_store_digest(digest32, state);
        expect(digest32, digest32s + 32 * lane, 32);
        memcpy(single, FL_SHA256_IV, sizeof single);
        fl_sha256_kernel_avx512.compress(single, blocks[lane], group->block_count);
        expect(single, state, sizeof single);
    }
    hashes += LANES;
    return digest32s + 32 * LANES;
}

/* ---- pow_scan ---- */

static void check_search(const search *s) {
    uint32_t nonce = 0;
    int found = fl_sha256_kernel_avx512.pow_scan(&nonce, &s->job, s->start, s->count);
    failures += (uint32_t)found != s->found || (found && nonce != s->nonce);
    hashes += found ? (uint64_t)(nonce - s->start) + 1 : s->count;
}

uint64_t test_run(const uint8_t *vectors) {
    const file_header *header = (const file_header *)vectors;
    if (header->magic != MAGIC) {
        say("not a file of vectors\n");
        return 1;
    }
    const item *items = (const item *)(header + 1);
    for (size_t first = 0, count = 0; first + ITEMS_MAX <= header->item_count; first += count + 1) {
        check_items(items + first, count);
        count = (count + 1) % ITEMS_MAX;
    }
    const uint8_t *next = (const uint8_t *)(items + header->item_count);
    for (uint64_t i = 0; i < header->stream_count; i++) {
        next = check_streams((const stream_group *)next);
    }
    const search *searches = (const search *)next;
    for (uint64_t i = 0; i < header->search_count; i++) {
        check_search(&searches[i]);
    }
    say("SHA-256: hashes ");
    say_number(hashes);
    say(", wrong ");
    say_number(failures);
    say("\n");
    return failures;
}

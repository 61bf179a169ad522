/* Merkle trees over 32-byte leaves: RFC 9162 section 2.1.1, and Bitcoin's.
 *
 * Both are built level by level. In RFC 9162 the split at the largest power of two below n is the same tree
 * as pairing neighbours and letting an unpaired last node move up unchanged; Bitcoin pairs it with itself
 * instead.
 *
 * A root is computed in chunks of 2^CHUNK_LEVELS leaves: every level of a chunk stays in the first-level
 * cache, and the chunk's root is a node of the whole tree at level CHUNK_LEVELS.
 */
#include "fl_impl.h"

enum { CHUNK_LEVELS = 8, CHUNK_LEAVES = 1 << CHUNK_LEVELS };

/* Replaces `count` nodes by their parents, in place; returns how many parents there are. */
static size_t level_rfc9162(uint8_t *node32s, size_t count) {
    size_t pairs = count / 2;
    fl_sha256_active->node_many(node32s, node32s, pairs);
    if (count % 2 == 0) {
        return pairs;
    }
    memmove(node32s + 32 * pairs, node32s + 32 * (count - 1), 32);
    return pairs + 1;
}

static size_t level_bitcoin(uint8_t *node32s, size_t count) {
    size_t pairs = count / 2;
    fl_sha256_active->double64_many(node32s, node32s, pairs);
    if (count % 2 == 0) {
        return pairs;
    }
    uint8_t twice[64];
    memcpy(twice, node32s + 32 * (count - 1), 32);
    memcpy(twice + 32, twice, 32);
    fl_sha256_active->double64_many(node32s + 32 * pairs, twice, 1);
    return pairs + 1;
}

static size_t level_up(fl_merkle_scheme scheme, uint8_t *node32s, size_t count) {
    return scheme == FL_MERKLE_BITCOIN ? level_bitcoin(node32s, count) : level_rfc9162(node32s, count);
}

/* Level 0: what the tree combines in place of the leaves. */
static void level_zero(uint8_t *node32s, fl_merkle_scheme scheme, const uint8_t *leaf32s, size_t count) {
    if (scheme == FL_MERKLE_RFC9162) {
        fl_sha256_active->leaf32_many(node32s, leaf32s, count);
    } else {
        memcpy(node32s, leaf32s, 32 * count);
    }
}

static size_t chunk_count(size_t leaf_count) {
    return leaf_count / CHUNK_LEAVES + (leaf_count % CHUNK_LEAVES != 0);
}

/* Scratch holds the roots of all chunks, and then the nodes of the chunk at hand. */
size_t fl_merkle_scratch_size(size_t count) {
    return 32 * (chunk_count(count) + (count < CHUNK_LEAVES ? count : CHUNK_LEAVES));
}

int fl_merkle_root(uint8_t out32[32], fl_merkle_scheme scheme, const uint8_t *leaf32s, size_t count,
                   uint8_t *scratch) {
    if (count == 0) {
        if (scheme == FL_MERKLE_BITCOIN) {
            return 0;
        }
        fl_sha256(out32, leaf32s, 0);
        return 1;
    }
    size_t chunks = chunk_count(count);
    uint8_t *roots = scratch;
    uint8_t *chunk = scratch + 32 * chunks;
    for (size_t i = 0; i < chunks; i++) {
        size_t first = i * CHUNK_LEAVES;
        size_t nodes = count - first < CHUNK_LEAVES ? count - first : CHUNK_LEAVES;
        level_zero(chunk, scheme, leaf32s + 32 * first, nodes);
        /* A ragged last chunk climbs as many levels as the others, so that its root stands beside theirs. A
         * lone chunk is the tree, and stops at its root. */
        for (int level = 0; level < CHUNK_LEVELS && (chunks > 1 || nodes > 1); level++) {
            nodes = level_up(scheme, chunk, nodes);
        }
        FL_VERIFY(nodes == 1);
        memcpy(roots + 32 * i, chunk, 32);
    }
    while (chunks > 1) {
        chunks = level_up(scheme, roots, chunks);
    }
    memcpy(out32, roots, 32);
    return 1;
}

size_t fl_merkle_node_count(size_t count) {
    size_t total = count;
    while (count > 1) {
        count = count / 2 + count % 2;
        total += count;
    }
    return total;
}

void fl_merkle_levels(uint8_t *node32s, fl_merkle_scheme scheme, const uint8_t *leaf32s, size_t count) {
    FL_VERIFY(count >= 1 && scheme != FL_MERKLE_BITCOIN);
    level_zero(node32s, scheme, leaf32s, count);
    while (count > 1) {
        uint8_t *parents = node32s + 32 * count;
        fl_sha256_active->node_many(parents, node32s, count / 2);
        if (count % 2 != 0) {
            memcpy(parents + 32 * (count / 2), node32s + 32 * (count - 1), 32);
        }
        count = count / 2 + count % 2;
        node32s = parents;
    }
}

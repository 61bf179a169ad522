/* Merkle trees over 32-byte leaves: RFC 9162 section 2.1.1, and Bitcoin's.
 *
 * Both are built level by level. In RFC 9162 the split at the largest power of two below n is the same tree
 * as pairing neighbours and letting an unpaired last node move up unchanged; Bitcoin pairs it with itself
 * instead.
 *
 * A tree is computed in chunks of 2^CHUNK_LEVELS leaves: every level of a chunk stays in the first-level
 * cache, and the chunk's root is a node of the whole tree at level CHUNK_LEVELS. Threads share out the chunks;
 * the levels above, 1/2^CHUNK_LEVELS of the work, are the calling thread's.
 */
#include "fl_impl.h"

#include <stdatomic.h>

enum {
    CHUNK_LEVELS = 8,
    CHUNK_LEAVES = 1 << CHUNK_LEVELS,
    CHUNKS_TAKEN = 8, /* by a worker at once: some 100 us of work */
    LEVELS_MAX = 65   /* of a tree of up to 2^64 leaves, the leaves included */
};

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

/* Leaves of a chunk: all but the last have CHUNK_LEAVES. */
static size_t chunk_leaves(size_t leaf_count, size_t chunk) {
    size_t left = leaf_count - chunk * CHUNK_LEAVES;
    return left < CHUNK_LEAVES ? left : CHUNK_LEAVES;
}

/* What the workers on one tree share. */
typedef struct {
    fl_merkle_scheme scheme;
    const uint8_t *leaf32s;
    size_t leaf_count;
    size_t chunks;
    uint8_t *outputs;                  /* chunk roots, or all nodes */
    size_t level_starts[LEVELS_MAX];   /* in nodes; of all nodes only */
    void (*chunk)(const void *job, size_t chunk);
    atomic_size_t next; /* chunk that no worker has taken */
} tree_job;

static void *tree_worker(void *shared) {
    tree_job *job = shared;
    size_t first;
    while ((first = atomic_fetch_add(&job->next, CHUNKS_TAKEN)) < job->chunks) {
        size_t end = job->chunks - first > CHUNKS_TAKEN ? first + CHUNKS_TAKEN : job->chunks;
        for (size_t i = first; i < end; i++) {
            job->chunk(job, i);
        }
    }
    return NULL;
}

static void tree_run(tree_job *job, unsigned threads) {
    atomic_init(&job->next, 0);
    fl_workers_run(tree_worker, job, threads);
}

/* ---- Root ---- */

/* Scratch holds the roots of all chunks. */
size_t fl_merkle_scratch_size(size_t count) { return 32 * chunk_count(count); }

static void chunk_root(const void *shared, size_t i) {
    const tree_job *job = shared;
    uint8_t node32s[32 * CHUNK_LEAVES];
    size_t nodes = chunk_leaves(job->leaf_count, i);
    level_zero(node32s, job->scheme, job->leaf32s + 32 * CHUNK_LEAVES * i, nodes);
    /* A ragged last chunk climbs as many levels as the others, so that its root stands beside theirs. A lone
     * chunk is the tree, and stops at its root. */
    for (int level = 0; level < CHUNK_LEVELS && (job->chunks > 1 || nodes > 1); level++) {
        nodes = level_up(job->scheme, node32s, nodes);
    }
    FL_VERIFY(nodes == 1);
    memcpy(job->outputs + 32 * i, node32s, 32);
}

int fl_merkle_root(uint8_t out32[32], fl_merkle_scheme scheme, const uint8_t *leaf32s, size_t count,
                   unsigned threads, uint8_t *scratch) {
    if (count == 0) {
        if (scheme == FL_MERKLE_BITCOIN) {
            return 0;
        }
        fl_sha256(out32, leaf32s, 0);
        return 1;
    }
    tree_job job = {
        .scheme = scheme,
        .leaf32s = leaf32s,
        .leaf_count = count,
        .chunks = chunk_count(count),
        .outputs = scratch,
        .chunk = chunk_root,
    };
    tree_run(&job, threads);
    for (size_t nodes = job.chunks; nodes > 1;) {
        nodes = level_up(scheme, scratch, nodes);
    }
    memcpy(out32, scratch, 32);
    return 1;
}

/* ---- All nodes ---- */

size_t fl_merkle_node_count(size_t count) {
    size_t total = count;
    while (count > 1) {
        count = count / 2 + count % 2;
        total += count;
    }
    return total;
}

size_t fl_merkle_depth(size_t count) {
    size_t depth = 0;
    while (count > 1) {
        count = count / 2 + count % 2;
        depth++;
    }
    return depth;
}

/* Where each level begins, in nodes. */
static void find_level_starts(size_t starts[LEVELS_MAX], size_t count) {
    size_t depth = fl_merkle_depth(count);
    size_t start = 0;
    for (size_t level = 0; level <= depth; level++) {
        starts[level] = start;
        start += count;
        count = count / 2 + count % 2;
    }
}

/* Writes the parents of `count` nodes of one level; returns how many there are. */
static size_t write_parents(uint8_t *parent32s, const uint8_t *node32s, size_t count) {
    size_t pairs = count / 2;
    fl_sha256_active->node_many(parent32s, node32s, pairs);
    if (count % 2 != 0) {
        memcpy(parent32s + 32 * pairs, node32s + 32 * (count - 1), 32);
    }
    return pairs + count % 2;
}

static void chunk_levels(const void *shared, size_t i) {
    const tree_job *job = shared;
    size_t depth = fl_merkle_depth(job->leaf_count);
    size_t nodes = chunk_leaves(job->leaf_count, i);
    size_t at = CHUNK_LEAVES * i; /* in its level */
    level_zero(job->outputs + 32 * at, job->scheme, job->leaf32s + 32 * at, nodes);
    for (size_t level = 0; level < CHUNK_LEVELS && level < depth; level++) {
        const uint8_t *below = job->outputs + 32 * (job->level_starts[level] + at);
        at /= 2;
        nodes = write_parents(job->outputs + 32 * (job->level_starts[level + 1] + at), below, nodes);
    }
}

void fl_merkle_levels(uint8_t *node32s, fl_merkle_scheme scheme, const uint8_t *leaf32s, size_t count,
                      unsigned threads) {
    FL_VERIFY(count >= 1 && scheme != FL_MERKLE_BITCOIN);
    tree_job job = {
        .scheme = scheme,
        .leaf32s = leaf32s,
        .leaf_count = count,
        .chunks = chunk_count(count),
        .outputs = node32s,
        .chunk = chunk_levels,
    };
    size_t depth = fl_merkle_depth(count);
    find_level_starts(job.level_starts, count);
    tree_run(&job, threads);
    size_t nodes = job.chunks; /* of level CHUNK_LEVELS, where the tree reaches above it */
    for (size_t level = CHUNK_LEVELS; level < depth; level++) {
        nodes = write_parents(node32s + 32 * job.level_starts[level + 1],
                              node32s + 32 * job.level_starts[level], nodes);
    }
}

/* ---- Proofs ---- */

/* The siblings on the way from a leaf to the root; an unpaired last node has none. Returns how many. */
static size_t write_proof(uint8_t *out32s, const uint8_t *node32s, size_t count, size_t leaf) {
    size_t length = 0;
    while (count > 1) {
        size_t sibling = leaf ^ 1;
        if (sibling < count) {
            memcpy(out32s + 32 * length++, node32s + 32 * sibling, 32);
        }
        node32s += 32 * count;
        count = count / 2 + count % 2;
        leaf /= 2;
    }
    return length;
}

void fl_merkle_proofs(uint8_t *out32s, uint8_t *lengths, const uint8_t *node32s, size_t count, size_t first,
                      size_t proof_count) {
    FL_VERIFY(first + proof_count <= count);
    size_t depth = fl_merkle_depth(count);
    for (size_t i = 0; i < proof_count; i++) {
        uint8_t *proof = out32s + 32 * depth * i;
        size_t length = write_proof(proof, node32s, count, first + i);
        memset(proof + 32 * length, 0, 32 * (depth - length));
        lengths[i] = (uint8_t)length;
    }
}

/* SHA-256 of whole messages, over whichever kernel is active: padding, and keeping two streams busy when the
 * messages of a batch differ in length. */
#include "fl_impl.h"

/* A message on its way through the kernel, as up to three runs of whole blocks: a head block that holds the
 * prefix byte (only for prefixed messages of 64 bytes or more), the blocks that lie whole in the caller's
 * buffer, and the padded tail. */
typedef enum { RUN_HEAD, RUN_BODY, RUN_TAIL, RUN_NONE } run_kind;

typedef struct {
    uint32_t state[8];
    const uint8_t *blocks; /* the current run */
    size_t blocks_left;
    run_kind run;
    const uint8_t *rest; /* what follows the current run */
    size_t rest_size;
    uint64_t total_size; /* prefix included */
    uint8_t edge[2 * FL_BLOCK_BYTES]; /* head or tail */
} stream;

static void stream_enter_tail(stream *s, size_t edge_used) {
    memcpy(s->edge + edge_used, s->rest, s->rest_size);
    size_t used = edge_used + s->rest_size;
    FL_VERIFY(used < FL_BLOCK_BYTES);
    size_t blocks = used < FL_BLOCK_BYTES - 8 ? 1 : 2;
    uint8_t *end = s->edge + FL_BLOCK_BYTES * blocks;
    s->edge[used] = 0x80;
    memset(s->edge + used + 1, 0, (size_t)(end - s->edge) - used - 1);
    fl_store_be32(end - 8, (uint32_t)(s->total_size >> 29)); /* the length counts bits */
    fl_store_be32(end - 4, (uint32_t)(s->total_size << 3));
    s->run = RUN_TAIL;
    s->blocks = s->edge;
    s->blocks_left = blocks;
}

static void stream_enter_body(stream *s) {
    size_t blocks = s->rest_size / FL_BLOCK_BYTES;
    if (blocks == 0) {
        stream_enter_tail(s, 0);
        return;
    }
    s->run = RUN_BODY;
    s->blocks = s->rest;
    s->blocks_left = blocks;
    s->rest += FL_BLOCK_BYTES * blocks;
    s->rest_size -= FL_BLOCK_BYTES * blocks;
}

/* Starts a message of `prefix_size` (0 or 1) bytes `prefix` and then `size` bytes of data. */
static void stream_start(stream *s, uint8_t prefix, size_t prefix_size, const uint8_t *data, size_t size) {
    memcpy(s->state, FL_SHA256_IV, sizeof s->state);
    s->total_size = (uint64_t)prefix_size + size;
    s->rest = data;
    s->rest_size = size;
    if (prefix_size == 0) {
        stream_enter_body(s);
        return;
    }
    s->edge[0] = prefix;
    if (s->total_size < FL_BLOCK_BYTES) {
        stream_enter_tail(s, 1);
        return;
    }
    memcpy(s->edge + 1, data, FL_BLOCK_BYTES - 1);
    s->rest += FL_BLOCK_BYTES - 1;
    s->rest_size -= FL_BLOCK_BYTES - 1;
    s->run = RUN_HEAD;
    s->blocks = s->edge;
    s->blocks_left = 1;
}

/* Notes that `count` blocks of the current run were absorbed, and moves on to the next run. */
static void stream_advance(stream *s, size_t count) {
    FL_VERIFY(count <= s->blocks_left);
    s->blocks += FL_BLOCK_BYTES * count;
    s->blocks_left -= count;
    if (s->blocks_left > 0) {
        return;
    }
    if (s->run == RUN_HEAD) {
        stream_enter_body(s);
    } else if (s->run == RUN_BODY) {
        stream_enter_tail(s, 0);
    } else {
        s->run = RUN_NONE;
    }
}

static void stream_finish(stream *s, uint8_t out32[32]) {
    while (s->run != RUN_NONE) {
        size_t count = s->blocks_left;
        fl_sha256_active->compress(s->state, s->blocks, count);
        stream_advance(s, count);
    }
    fl_store_digest(out32, s->state);
}

/* Absorbs blocks into both streams until one of them has no more. */
static void streams_run(stream *a, stream *b) {
    while (a->run != RUN_NONE && b->run != RUN_NONE) {
        size_t count = a->blocks_left < b->blocks_left ? a->blocks_left : b->blocks_left;
        fl_sha256_active->compress_two(a->state, a->blocks, b->state, b->blocks, count);
        stream_advance(a, count);
        stream_advance(b, count);
    }
}

static void hash_many(uint8_t *out32s, uint8_t prefix, size_t prefix_size, const uint8_t *data,
                      const uint64_t *offsets, size_t count) {
    stream streams[2];
    size_t index[2] = {0, 1}; /* the message that each stream carries */
    size_t next = 0;
    for (; next < count && next < 2; next++) {
        stream_start(&streams[next], prefix, prefix_size, data + offsets[next],
                     (size_t)(offsets[next + 1] - offsets[next]));
    }
    if (count > 1) {
        streams_run(&streams[0], &streams[1]);
    }
    while (next < count) {
        for (int i = 0; i < 2 && next < count; i++) {
            if (streams[i].run == RUN_NONE) {
                fl_store_digest(out32s + 32 * index[i], streams[i].state);
                stream_start(&streams[i], prefix, prefix_size, data + offsets[next],
                             (size_t)(offsets[next + 1] - offsets[next]));
                index[i] = next++;
            }
        }
        streams_run(&streams[0], &streams[1]);
    }
    for (size_t i = 0; i < count && i < 2; i++) {
        stream_finish(&streams[i], out32s + 32 * index[i]);
    }
}

void fl_sha256(uint8_t out32[32], const uint8_t *data, size_t data_size) {
    stream s;
    stream_start(&s, 0, 0, data, data_size);
    stream_finish(&s, out32);
}

void fl_sha256_many(uint8_t *out32s, const uint8_t *data, const uint64_t *offsets, size_t count) {
    hash_many(out32s, 0, 0, data, offsets, count);
}

void fl_sha256_leaf_many(uint8_t *out32s, const uint8_t *data, const uint64_t *offsets, size_t count) {
    hash_many(out32s, 0x00, 1, data, offsets, count);
}

void fl_sha256_leaf32_many(uint8_t *out32s, const uint8_t *entry32s, size_t count) {
    fl_sha256_active->leaf32_many(out32s, entry32s, count);
}

void fl_sha256_node_many(uint8_t *out32s, const uint8_t *pair64s, size_t count) {
    fl_sha256_active->node_many(out32s, pair64s, count);
}

void fl_sha256d64_many(uint8_t *out32s, const uint8_t *pair64s, size_t count) {
    fl_sha256_active->double64_many(out32s, pair64s, count);
}

int fl_offsets_check(size_t *bad_index, const uint64_t *offsets, size_t count, uint64_t data_size) {
    uint64_t previous = 0;
    for (size_t i = 0; i <= count; i++) {
        if (offsets[i] < previous || offsets[i] > data_size) {
            *bad_index = i;
            return 0;
        }
        previous = offsets[i];
    }
    return 1;
}

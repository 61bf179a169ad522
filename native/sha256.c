/* SHA-256 of whole messages, over whichever kernel is active: padding, and keeping its streams or lanes busy
 * when the messages of a batch differ in length. */
#include "fl_impl.h"

/* A message on its way through the kernel, as up to three runs of whole blocks: a head block that holds the
 * prefix byte (only for prefixed messages of 64 bytes or more), the blocks that lie whole in the caller's
 * buffer, and the padded tail. All are known at the start: a tail that was written long before it is read
 * costs the reader no wait for the stores. */
enum { RUN_HEAD, RUN_BODY, RUN_TAIL, RUN_END };

typedef struct {
    const uint8_t *blocks;
    size_t count;
} block_run;

typedef struct {
    uint32_t state[8];
    size_t index; /* of the message in its batch */
    block_run runs[RUN_END];
    int run; /* the current one, never empty; RUN_END when all is absorbed */
    uint8_t head[FL_BLOCK_BYTES];
    /* The tail begins FL_BLOCK_BYTES in: what stands before it is left over from copying whole blocks. */
    _Alignas(FL_BLOCK_BYTES) uint8_t tail[3 * FL_BLOCK_BYTES];
} stream;

/* Pads a tail whose first `used` bytes are there; returns its blocks. The 64 zeros reach the end of a first
 * block, and of a second up to the length, which takes its last 8 bytes. */
static size_t tail_pad(uint8_t *tail, size_t used, uint64_t message_size) {
    FL_VERIFY(used < FL_BLOCK_BYTES);
    size_t blocks = used < FL_BLOCK_BYTES - 8 ? 1 : 2;
    uint8_t *end = tail + FL_BLOCK_BYTES * blocks;
    memset(tail + used, 0, FL_BLOCK_BYTES);
    tail[used] = 0x80;
    fl_store_be32(end - 8, (uint32_t)(message_size >> 29)); /* the length counts bits */
    fl_store_be32(end - 4, (uint32_t)(message_size << 3));
    return blocks;
}

static void stream_skip_empty_runs(stream *s) {
    while (s->run < RUN_END && s->runs[s->run].count == 0) {
        s->run++;
    }
}

/* Readies the runs of a message of `prefix_size` (0 or 1) bytes `prefix` and then `size` bytes of data. */
static void stream_start(stream *s, uint8_t prefix, size_t prefix_size, const uint8_t *data, size_t size) {
    uint8_t *tail = s->tail + FL_BLOCK_BYTES;
    uint64_t message_size = (uint64_t)prefix_size + size;
    const uint8_t *rest = data;
    size_t rest_size = size;
    size_t used = 0;

    s->runs[RUN_HEAD] = (block_run){s->head, 0};
    if (prefix_size > 0 && message_size < FL_BLOCK_BYTES) {
        tail[used++] = prefix;
    } else if (prefix_size > 0) {
        s->head[0] = prefix;
        memcpy(s->head + 1, data, FL_BLOCK_BYTES - 1);
        s->runs[RUN_HEAD].count = 1;
        rest += FL_BLOCK_BYTES - 1;
        rest_size -= FL_BLOCK_BYTES - 1;
    }
    s->runs[RUN_BODY] = (block_run){rest, rest_size / FL_BLOCK_BYTES};
    rest_size %= FL_BLOCK_BYTES;
    if (size >= FL_BLOCK_BYTES) {
        /* The last 64 bytes of the message, of which the last rest_size come to lie in the tail: a copy of
         * fixed size is a handful of instructions, one of rest_size bytes is a call. */
        memcpy(tail + rest_size - FL_BLOCK_BYTES, data + size - FL_BLOCK_BYTES, FL_BLOCK_BYTES);
    } else if (rest_size > 0) {
        memcpy(tail + used, data + size - rest_size, rest_size);
    }
    s->runs[RUN_TAIL] = (block_run){tail, tail_pad(tail, used + rest_size, message_size)};
    s->run = RUN_HEAD;
    stream_skip_empty_runs(s);
}

/* Notes that `count` blocks of the current run were absorbed. */
static void stream_advance(stream *s, size_t count) {
    block_run *run = &s->runs[s->run];
    FL_VERIFY(count <= run->count);
    run->blocks += FL_BLOCK_BYTES * count;
    run->count -= count;
    stream_skip_empty_runs(s);
}

static int stream_ended(const stream *s) { return s->run == RUN_END; }

static block_run stream_run(const stream *s) { return s->runs[s->run]; }

enum { PREFETCH_MESSAGES = 4 };

/* The messages of a batch, handed out one after the other. */
typedef struct {
    uint8_t *out32s;
    const uint8_t *data;
    const uint64_t *offsets;
    size_t count;
    size_t next;
    uint8_t prefix;
    size_t prefix_size;
} message_queue;

static size_t queue_left(const message_queue *queue) { return queue->count - queue->next; }

/* A stream's start reads the end of its message at once, where no hardware prefetcher expects it. The start of
 * the one that follows the next stands beside the end of the next. */
static void queue_prefetch(const message_queue *queue) {
    size_t ahead = queue->next + PREFETCH_MESSAGES;
    if (ahead <= queue->count) {
        __builtin_prefetch(queue->data + queue->offsets[ahead]);
    }
}

static void queue_take(message_queue *queue, stream *s) {
    size_t i = queue->next++;
    FL_VERIFY(i < queue->count);
    memcpy(s->state, FL_SHA256_IV, sizeof s->state);
    s->index = i;
    stream_start(s, queue->prefix, queue->prefix_size, queue->data + queue->offsets[i],
                 (size_t)(queue->offsets[i + 1] - queue->offsets[i]));
    queue_prefetch(queue);
}

static void queue_store(message_queue *queue, const stream *s) {
    fl_store_digest(queue->out32s + FL_HASH_BYTES * s->index, s->state);
}

/* ---- One and two streams ---- */

/* Absorbs what is left of a stream. */
static void stream_drain(stream *s) {
    for (; s->run < RUN_END; s->run++) {
        fl_sha256_active->compress(s->state, stream_run(s).blocks, stream_run(s).count);
    }
}

/* What to hash next: a stream that is under way already, else the queue's next message in the stream `ended`,
 * else nothing. */
static stream *next_stream(message_queue *queue, stream *const *under_way, size_t *waiting, stream *ended) {
    if (*waiting > 0) {
        return under_way[--*waiting];
    }
    if (queue_left(queue) == 0) {
        return NULL;
    }
    queue_take(queue, ended);
    return ended;
}

/* Hashes under_way[0 .. waiting) and what is left of the queue in two streams: when one ends, the next takes
 * its place. */
static void hash_by_two(message_queue *queue, stream *const *under_way, size_t waiting) {
    stream spare[2];
    stream *pair[2];
    for (size_t i = 0; i < 2; i++) {
        pair[i] = next_stream(queue, under_way, &waiting, &spare[i]);
    }
    while (pair[0] != NULL && pair[1] != NULL) {
        block_run a = stream_run(pair[0]), b = stream_run(pair[1]);
        size_t count = a.count < b.count ? a.count : b.count;
        fl_sha256_active->compress_two(pair[0]->state, a.blocks, pair[1]->state, b.blocks, count);
        for (size_t i = 0; i < 2; i++) {
            stream_advance(pair[i], count);
            if (stream_ended(pair[i])) {
                queue_store(queue, pair[i]);
                pair[i] = next_stream(queue, under_way, &waiting, pair[i]);
            }
        }
    }
    stream *last = pair[0] != NULL ? pair[0] : pair[1];
    if (last != NULL) {
        stream_drain(last);
        queue_store(queue, last);
    }
}

/* ---- Many lanes ---- */

/* The streams in the lanes of a kernel: a busy lane carries a stream, whose state stands in the lane's column
 * of `states` meanwhile. */
typedef struct {
    _Alignas(64) uint32_t states[8 * FL_LANES_MAX];
    stream streams[FL_LANES_MAX];
    int is_busy[FL_LANES_MAX];
    size_t count;
    size_t busy;
} lane_set;

static void lane_load_state(lane_set *lanes, size_t lane) {
    for (size_t word = 0; word < 8; word++) {
        lanes->states[word * lanes->count + lane] = lanes->streams[lane].state[word];
    }
}

static void lane_save_state(lane_set *lanes, size_t lane) {
    for (size_t word = 0; word < 8; word++) {
        lanes->streams[lane].state[word] = lanes->states[word * lanes->count + lane];
    }
}

static void lane_take(lane_set *lanes, size_t lane, message_queue *queue) {
    lanes->is_busy[lane] = queue_left(queue) > 0;
    if (lanes->is_busy[lane]) {
        queue_take(queue, &lanes->streams[lane]);
        lane_load_state(lanes, lane);
        lanes->busy++;
    }
}

/* Absorbs as many blocks into every lane as the shortest of their runs has. An idle lane goes along with
 * the blocks of a busy one, and its result is not looked at. */
static size_t lanes_absorb(lane_set *lanes) {
    const uint8_t *blocks[FL_LANES_MAX];
    const uint8_t *any = NULL;
    size_t count = SIZE_MAX;
    for (size_t i = 0; i < lanes->count; i++) {
        if (lanes->is_busy[i]) {
            block_run run = stream_run(&lanes->streams[i]);
            blocks[i] = any = run.blocks;
            count = run.count < count ? run.count : count;
        }
    }
    FL_VERIFY(any != NULL);
    for (size_t i = 0; i < lanes->count; i++) {
        if (!lanes->is_busy[i]) {
            blocks[i] = any;
        }
    }
    fl_sha256_active->compress_lanes(lanes->states, blocks, count);
    return count;
}

/* Hashes a queue in lanes while enough of them are busy, and what is under way then in two streams. */
static void hash_by_lanes(message_queue *queue) {
    lane_set lanes = {.count = fl_sha256_active->lanes, .busy = 0};
    for (size_t i = 0; i < lanes.count; i++) {
        lane_take(&lanes, i, queue);
    }
    while (lanes.busy >= fl_sha256_active->lanes_busy_min) {
        size_t absorbed = lanes_absorb(&lanes);
        for (size_t i = 0; i < lanes.count; i++) {
            if (!lanes.is_busy[i]) {
                continue;
            }
            stream_advance(&lanes.streams[i], absorbed);
            if (stream_ended(&lanes.streams[i])) {
                lane_save_state(&lanes, i);
                queue_store(queue, &lanes.streams[i]);
                lanes.busy--;
                lane_take(&lanes, i, queue);
            }
        }
    }
    stream *under_way[FL_LANES_MAX];
    size_t started = 0;
    for (size_t i = 0; i < lanes.count; i++) {
        if (lanes.is_busy[i]) {
            lane_save_state(&lanes, i);
            under_way[started++] = &lanes.streams[i];
        }
    }
    hash_by_two(queue, under_way, started);
}

static void hash_many(uint8_t *out32s, uint8_t prefix, size_t prefix_size, const uint8_t *data,
                      const uint64_t *offsets, size_t count) {
    message_queue queue = {
        .out32s = out32s, .data = data, .offsets = offsets, .count = count, .prefix = prefix,
        .prefix_size = prefix_size,
    };
    if (fl_sha256_active->compress_lanes != NULL && count >= fl_sha256_active->lanes_busy_min) {
        hash_by_lanes(&queue);
    } else {
        hash_by_two(&queue, NULL, 0);
    }
}

void fl_sha256(uint8_t out32[32], const uint8_t *data, size_t data_size) {
    stream s;
    memcpy(s.state, FL_SHA256_IV, sizeof s.state);
    stream_start(&s, 0, 0, data, data_size);
    stream_drain(&s);
    fl_store_digest(out32, s.state);
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

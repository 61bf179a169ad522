/* The randomised batch: signatures with hints, whose nonce points R are therefore known.
 *
 * With a_i, b_i drawn from 2^64 each after all else is fixed, z_i = a_i + b_i lambda takes 2^128 different values
 * modulo n (the lattice of group.h has no vector so short). If any u1 G + u2 Q - R is not zero, at most one value
 * of its z makes the sum zero, whatever the others are: a false batch passes with probability 2^-128.
 */
#define _DEFAULT_SOURCE

#include "batch_impl.h"

#include <stdlib.h>
#include <string.h>
#if defined(__linux__)
#include <errno.h>
#include <sys/random.h>
#else
#include <unistd.h>
#endif

typedef struct {
    fl_prepared prepared;
    fl_scalar *scratch;
    fl_affine *nonce_points;
    uint8_t *odd, *ok;
    uint64_t (*randomizers)[2];
    uint32_t *key_index;
    fl_affine *keys;
    const fl_comb_table **tables;
    uint32_t *key_slot; /* of a key of the batch: its place in `keys`, or UINT32_MAX */
} randomised_work;

static int draw(void *out, size_t bytes)
{
    uint8_t *next = out;
    while (bytes > 0) {
#if defined(__linux__)
        ssize_t got = getrandom(next, bytes, 0);
        if (got < 0 && errno == EINTR)
            continue;
        if (got <= 0)
            return 0;
#else
        ssize_t got = bytes < 256 ? (ssize_t)bytes : 256;
        if (getentropy(next, (size_t)got) != 0)
            return 0;
#endif
        next += got;
        bytes -= (size_t)got;
    }
    return 1;
}

static void *carve(uint8_t **memory, size_t bytes)
{
    void *taken = *memory;
    *memory += (bytes + 63) & ~(size_t)63;
    return taken;
}

/* One allocation for all of the work; NULL when out of memory. */
static void *work_layout(randomised_work *work, size_t count, size_t key_count)
{
    size_t per_signature = sizeof(fl_verify_job) + sizeof(uint32_t) + 2 * sizeof(fl_scalar) + sizeof(fl_affine) + 2 +
                           16 + sizeof(uint32_t) + sizeof(fl_affine) + sizeof(void *);
    uint8_t *memory =
        aligned_alloc(64, (per_signature * count + sizeof(uint32_t) * key_count + 16 * 64) & ~(size_t)63);
    uint8_t *next = memory;
    if (memory == NULL)
        return NULL;
    work->nonce_points = carve(&next, count * sizeof(fl_affine));
    work->keys = carve(&next, count * sizeof(fl_affine));
    work->prepared.jobs = carve(&next, count * sizeof(fl_verify_job));
    work->scratch = carve(&next, 2 * count * sizeof(fl_scalar));
    work->randomizers = carve(&next, count * 16);
    work->tables = carve(&next, count * sizeof(void *));
    work->prepared.index = carve(&next, count * sizeof(uint32_t));
    work->key_index = carve(&next, count * sizeof(uint32_t));
    work->key_slot = carve(&next, key_count * sizeof(uint32_t));
    work->odd = carve(&next, count);
    work->ok = carve(&next, count);
    return memory;
}

/* x(R) = r, or r + n if the tag says so and that is below p. */
static int hinted_x(uint64_t x[4], uint8_t tag, const uint64_t r[4])
{
    static const uint64_t P_MINUS_N[4] = {UINT64_C(0x402da1722fc9baee), UINT64_C(0x4551231950b75fc4), 1, 0};
    unsigned __int128 sum = 0;
    memcpy(x, r, 4 * sizeof *x);
    if ((tag & ~1) == FL_HINT_X_IS_R)
        return 1;
    if ((tag & ~1) != FL_HINT_X_IS_R_PLUS_N || fl_compare256(r, P_MINUS_N) >= 0)
        return 0;
    for (int i = 0; i < 4; i++) {
        sum += (unsigned __int128)r[i] + FL_ORDER.limb[i];
        x[i] = (uint64_t)sum;
        sum >>= 64;
    }
    return 1;
}

static int below_p(const uint64_t a[4])
{
    return !(a[3] == UINT64_MAX && a[2] == UINT64_MAX && a[1] == UINT64_MAX && a[0] >= UINT64_C(0xfffffffefffffc2f));
}

/* Sets ok[k] where the hint of job k gives a point of the curve. */
static void find_nonce_points(const fl_batch *batch, randomised_work *work)
{
    const fl_batch_input *input = &batch->input;
    size_t count = work->prepared.count;
    uint8_t *usable = work->ok;
    for (size_t k = 0; k < count; k++) {
        const uint8_t *hint = input->hints + input->hint_len * work->prepared.index[k];
        fl_affine *point = &work->nonce_points[k];
        work->odd[k] = hint[0] & 1;
        usable[k] = (uint8_t)hinted_x(point->x, hint[0], work->prepared.jobs[k].r);
        if (input->hint_len == FL_HINT_LEN) {
            fl_load_be256(point->y, hint + 1);
            usable[k] &= (uint8_t)below_p(point->y); /* its parity is not needed: the point says it */
        }
    }
    for (size_t k = 0; k < count; k++) /* a point that any check takes in its stride */
        if (!usable[k])
            memset(&work->nonce_points[k], 0, sizeof work->nonce_points[k]);
    if (input->hint_len == FL_HINT_LEN)
        batch->kernel->check_points(usable, work->nonce_points, count);
    else
        batch->kernel->lift(usable, work->nonce_points, work->odd, count);
}

/* Moves the signatures without a usable point behind the others; returns how many have one. */
static size_t partition(randomised_work *work)
{
    size_t usable = 0;
    for (size_t k = 0; k < work->prepared.count; k++) {
        if (!work->ok[k])
            continue;
        fl_verify_job job = work->prepared.jobs[usable];
        uint32_t index = work->prepared.index[usable];
        work->prepared.jobs[usable] = work->prepared.jobs[k];
        work->prepared.index[usable] = work->prepared.index[k];
        work->prepared.jobs[k] = job;
        work->prepared.index[k] = index;
        work->nonce_points[usable++] = work->nonce_points[k];
    }
    return usable;
}

static int sum_closes(const fl_batch *batch, randomised_work *work, size_t count)
{
    fl_msm_job job = {.jobs = work->prepared.jobs,
                      .nonce_points = work->nonce_points,
                      .randomizers = (const uint64_t(*)[2])work->randomizers,
                      .key_index = work->key_index,
                      .keys = work->keys,
                      .tables = work->tables,
                      .count = count};
    memset(work->key_slot, 0xff, batch->key_count * sizeof *work->key_slot);
    for (size_t k = 0; k < count; k++) {
        uint32_t key = batch->key_index[work->prepared.index[k]];
        if (work->key_slot[key] == UINT32_MAX) {
            work->key_slot[key] = (uint32_t)job.key_count;
            work->keys[job.key_count] = work->prepared.jobs[k].key;
            work->tables[job.key_count++] = work->prepared.jobs[k].table;
        }
        work->key_index[k] = work->key_slot[key];
    }
    return draw(work->randomizers, count * sizeof *work->randomizers) && batch->kernel->sum_is_zero(&job);
}

static void write_hint(uint8_t hint33[FL_HINT_LEN], const fl_affine *point, const uint64_t r[4])
{
    int is_r = fl_compare256(point->x, r) == 0;
    hint33[0] = (uint8_t)((is_r ? FL_HINT_X_IS_R : FL_HINT_X_IS_R_PLUS_N) + (point->y[0] & 1));
    fl_store_be256(hint33 + 1, point->y);
}

void fl_batch_randomised(fl_batch *batch, size_t first, size_t count)
{
    fl_batch_counters *counters = &batch->verifier->counters;
    randomised_work work;
    void *memory = work_layout(&work, count, batch->key_count);
    if (memory == NULL) {
        for (size_t slot = first; slot < first + count; slot++)
            fl_batch_ask_libsecp(batch, batch->order[slot]);
        return;
    }
    fl_batch_prepare(&work.prepared, batch, first, count, work.scratch);
    find_nonce_points(batch, &work);
    size_t usable = partition(&work), decided = 0;
    if (usable > 0 && sum_closes(batch, &work, usable)) {
        for (; decided < usable; decided++) {
            uint8_t hint33[FL_HINT_LEN];
            write_hint(hint33, &work.nonce_points[decided], work.prepared.jobs[decided].r);
            fl_batch_accept(batch, work.prepared.index[decided], hint33);
        }
        fl_count(&counters->by_randomised, usable);
    } else if (usable > 0) {
        fl_count(&counters->batches_failed, 1);
    }
    fl_prepared rest = {work.prepared.jobs + decided, work.prepared.index + decided, work.prepared.count - decided};
    fl_batch_decide(batch, &rest);
    free(memory);
}

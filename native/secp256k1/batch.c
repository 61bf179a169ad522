/* The policy: which kernel decides on which signature of a batch.
 *
 *   hint given, and enough of them             one randomised batch a worker
 *   key has a table, or earns one now          its comb
 *   several signatures under other keys        the kernel for any key
 *   a few of those                             libsecp256k1, as for all that the others leave undecided
 */
#include "batch_impl.h"
#include "select.h"
#include "fl_impl.h"

#include <stdlib.h>
#include <string.h>

enum {
    /* Fewest signatures with hints for which one sum costs less than combs do, and most that it is fed with: from
     * there on it only grows slower to fail. */
    RANDOMISED_MIN = 64,
    RANDOMISED_MAX = 4096,
    /* Fewest signatures under keys without tables that the lanes of a kernel beat the library for. */
    ANY_MIN = 4,
    LANE_UNIT_MIN = 16,
    LANE_UNIT_MAX = 64,
    EXACT_UNIT = 8,
    KEY_UNIT = 4
};

/* ---- Distinct keys ---- */

static size_t hash_of(const uint8_t *key33)
{
    uint64_t low, high;
    memcpy(&low, key33 + 1, sizeof low);
    memcpy(&high, key33 + KEY33_LEN - sizeof high, sizeof high);
    return (size_t)(((low ^ high ^ key33[0]) * UINT64_C(0x9e3779b97f4a7c15)) >> 32);
}

/* Numbers the distinct keys of the batch. `slots`, a power of two above the count, are numbers plus one; probing
 * is linear, and keys ground to collide would make it long: past PROBES_MAX a key counts as another one. */
static void group_keys(fl_batch *batch, uint32_t *slots, size_t slot_count)
{
    enum { PROBES_MAX = 64 };
    memset(slots, 0, slot_count * sizeof *slots);
    for (size_t i = 0; i < batch->input.count; i++) {
        const uint8_t *key33 = batch->input.key33s + KEY33_LEN * i;
        size_t slot = hash_of(key33) & (slot_count - 1), probes = 0;
        while (slots[slot] && probes++ < PROBES_MAX &&
               memcmp(batch->keys[slots[slot] - 1].key33, key33, KEY33_LEN) != 0)
            slot = (slot + 1) & (slot_count - 1);
        uint32_t number = slots[slot];
        if (number == 0 || memcmp(batch->keys[number - 1].key33, key33, KEY33_LEN) != 0) {
            fl_batch_key *key = &batch->keys[batch->key_count++];
            memset(key, 0, sizeof *key);
            key->key33 = key33;
            number = (uint32_t)batch->key_count;
            slots[slot] = number;
        }
        batch->key_index[i] = number - 1;
        batch->keys[number - 1].count++;
    }
}

/* Parses a few keys that the directory does not know (SPEC-SIG-1). */
static void parse_keys(fl_batch *batch, size_t first, size_t count)
{
    static const uint64_t P[4] = {UINT64_C(0xfffffffefffffc2f), UINT64_MAX, UINT64_MAX, UINT64_MAX};
    fl_affine points[KEY_UNIT];
    uint8_t odd[KEY_UNIT] = {0}, ok[KEY_UNIT];
    fl_batch_key *parsed[KEY_UNIT];
    size_t used = 0;
    for (size_t k = first; k < first + count; k++) {
        fl_batch_key *key = &batch->keys[k];
        if (key->known)
            continue;
        fl_load_be256(points[used].x, key->key33 + 1);
        odd[used] = key->key33[0] & 1;
        key->invalid = (key->key33[0] & ~1) != 2 || fl_compare256(points[used].x, P) >= 0;
        if (!key->invalid)
            parsed[used++] = key;
    }
    batch->kernel->lift(ok, points, odd, used);
    for (size_t k = 0; k < used; k++) {
        parsed[k]->point = points[k];
        parsed[k]->known = ok[k];
        parsed[k]->invalid = !ok[k];
    }
}

static void build_table(fl_batch *batch, fl_batch_key *key)
{
    fl_ecdsa_path path = batch->verifier->path;
    if (key->table != NULL || key->invalid || path == FL_PATH_ANY || !(key->build || path == FL_PATH_KNOWN))
        return;
    fl_key_table *table = fl_key_table_new();
    if (table == NULL)
        return;
    fl_affine *points = (fl_affine *)(uintptr_t)table->comb.points;
    if (batch->kernel->build_table(points, table->comb.window, &key->point))
        key->table = table;
    else
        fl_key_table_release(table);
}

static void *key_worker(void *shared)
{
    fl_batch *batch = shared;
    size_t first;
    while ((first = atomic_fetch_add(&batch->next, KEY_UNIT)) < batch->key_count) {
        size_t count = batch->key_count - first < KEY_UNIT ? batch->key_count - first : KEY_UNIT;
        parse_keys(batch, first, count);
        for (size_t k = first; k < first + count; k++)
            build_table(batch, &batch->keys[k]);
    }
    return NULL;
}

/* ---- Plan ---- */

enum { STRETCH_NONE, STRETCH_RANDOMISED, STRETCH_KNOWN, STRETCH_ANY };

static int has_hint(const fl_batch *batch, size_t i)
{
    return batch->input.hints != NULL && batch->input.hints[batch->input.hint_len * i] != FL_HINT_NONE;
}

static int stretch_of(const fl_batch *batch, size_t i, int randomised)
{
    const fl_batch_key *key = &batch->keys[batch->key_index[i]];
    if (key->invalid)
        return STRETCH_NONE;
    if (randomised && has_hint(batch, i))
        return STRETCH_RANDOMISED;
    return key->table != NULL && batch->verifier->path != FL_PATH_ANY ? STRETCH_KNOWN : STRETCH_ANY;
}

static int worth_randomising(const fl_batch *batch)
{
    size_t hints = 0;
    if (batch->verifier->path != FL_PATH_AUTO && batch->verifier->path != FL_PATH_RANDOMISED)
        return 0;
    for (size_t i = 0; i < batch->input.count; i++)
        hints += (size_t)has_hint(batch, i);
    return hints >= (batch->verifier->path == FL_PATH_RANDOMISED ? 1 : RANDOMISED_MIN);
}

static size_t append_stretch(fl_batch *batch, size_t used, int stretch, int randomised)
{
    for (size_t i = 0; i < batch->input.count; i++)
        if (stretch_of(batch, i, randomised) == stretch)
            batch->order[used++] = (uint32_t)i;
    return used;
}

static size_t share(size_t count, unsigned threads, size_t min, size_t max)
{
    size_t each = (count + threads - 1) / threads;
    return each < min ? min : each > max ? max : each;
}

/* With a single path forced, or hints asked for, few signatures go the way of many. */
static void plan(fl_batch *batch, unsigned threads)
{
    int randomised = worth_randomising(batch);
    size_t any_min = batch->verifier->path != FL_PATH_AUTO || batch->hint33s != NULL ? 1 : ANY_MIN;
    batch->randomised_end = append_stretch(batch, 0, STRETCH_RANDOMISED, randomised);
    batch->known_end = append_stretch(batch, batch->randomised_end, STRETCH_KNOWN, randomised);
    batch->end = append_stretch(batch, batch->known_end, STRETCH_ANY, randomised);
    batch->any_end = batch->end - batch->known_end >= any_min ? batch->end : batch->known_end;
    batch->randomised_unit = share(batch->randomised_end, threads, RANDOMISED_MIN, RANDOMISED_MAX);
    batch->lane_unit = share(batch->end - batch->randomised_end, threads, LANE_UNIT_MIN, LANE_UNIT_MAX);
    fl_count(&batch->verifier->counters.refused, batch->input.count - batch->end);
}

/* ---- Work ---- */

/* The next stretch of slots that a worker takes; 0 when none is left. */
static int take_unit(fl_batch *batch, size_t *first, size_t *count)
{
    size_t at = atomic_load(&batch->next), end, unit;
    do {
        if (at >= batch->end)
            return 0;
        if (at < batch->randomised_end)
            unit = batch->randomised_unit, end = batch->randomised_end;
        else if (at < batch->any_end)
            unit = batch->lane_unit, end = batch->any_end;
        else
            unit = EXACT_UNIT, end = batch->end;
        *count = end - at < unit ? end - at : unit;
    } while (!atomic_compare_exchange_weak(&batch->next, &at, at + *count));
    *first = at;
    return 1;
}

static void verify_lanes(fl_batch *batch, size_t first, size_t count)
{
    fl_verify_job jobs[LANE_UNIT_MAX];
    uint32_t index[LANE_UNIT_MAX];
    fl_scalar scratch[2 * LANE_UNIT_MAX];
    fl_prepared prepared = {jobs, index, 0};
    fl_batch_prepare(&prepared, batch, first, count, scratch);
    fl_batch_decide(batch, &prepared);
}

static void *signature_worker(void *shared)
{
    fl_batch *batch = shared;
    size_t first, count;
    while (take_unit(batch, &first, &count)) {
        if (first < batch->randomised_end)
            fl_batch_randomised(batch, first, count);
        else if (first < batch->any_end)
            verify_lanes(batch, first, count);
        else
            for (size_t slot = first; slot < first + count; slot++)
                fl_batch_ask_libsecp(batch, batch->order[slot]);
    }
    return NULL;
}

static void run(fl_batch *batch, uint32_t *slots, size_t slot_count, unsigned threads)
{
    fl_keys *keys = &batch->verifier->keys;
    group_keys(batch, slots, slot_count);
    fl_keys_lookup(keys, batch->keys, batch->key_count);
    unsigned key_threads = batch->key_count >= 8 * KEY_UNIT ? threads : 1;
    atomic_store(&batch->next, 0);
    fl_workers_run(key_worker, batch, key_threads);
    plan(batch, threads);
    atomic_store(&batch->next, 0);
    memset(batch->ok, 0, batch->input.count);
    if (batch->hint33s != NULL)
        memset(batch->hint33s, 0, FL_HINT_LEN * batch->input.count);
    fl_workers_run(signature_worker, batch, threads);
    fl_keys_learn(keys, batch->keys, batch->key_count);
}

static uint8_t *copy_column(uint8_t **next, const uint8_t *from, size_t bytes)
{
    uint8_t *copy = *next;
    memcpy(copy, from, bytes);
    *next += bytes;
    return copy;
}

static int verify_fast(fl_batch_verifier *verifier, uint8_t *ok, uint8_t *hint33s, const fl_batch_input *input,
                       unsigned threads)
{
    size_t count = input->count, slot_count = 2, hint_len = input->hints ? input->hint_len : 0;
    while (slot_count < 2 * count)
        slot_count *= 2;
    size_t row = sizeof(fl_batch_key) + 2 * sizeof(uint32_t) + DIGEST_LEN + SIG_LEN + KEY33_LEN + hint_len;
    fl_batch_key *memory = malloc(count * row + slot_count * sizeof(uint32_t));
    if (memory == NULL)
        return 0;
    fl_batch batch = {.verifier = verifier, .kernel = verifier->kernel, .ok = ok, .hint33s = hint33s};
    batch.keys = memory;
    batch.key_index = (uint32_t *)(memory + count);
    batch.order = batch.key_index + count;
    uint32_t *slots = batch.order + count;
    uint8_t *next = (uint8_t *)(slots + slot_count);
    batch.input.count = count;
    batch.input.hint_len = hint_len;
    batch.input.digest32s = copy_column(&next, input->digest32s, DIGEST_LEN * count);
    batch.input.sig64s = copy_column(&next, input->sig64s, SIG_LEN * count);
    batch.input.key33s = copy_column(&next, input->key33s, KEY33_LEN * count);
    batch.input.hints = hint_len ? copy_column(&next, input->hints, hint_len * count) : NULL;
    run(&batch, slots, slot_count, threads);
    free(memory);
    return 1;
}

int fl_batch_verify(fl_batch_verifier *verifier, uint8_t *ok, uint8_t *hint33s, const fl_batch_input *input,
                    unsigned threads)
{
    if (input->count == 0)
        return 1;
    threads = threads > 0 ? threads : 1;
    if (verifier->kernel != NULL && verifier->path != FL_PATH_LIBSECP)
        return verify_fast(verifier, ok, hint33s, input, threads);
    if (hint33s != NULL)
        memset(hint33s, 0, FL_HINT_LEN * input->count);
    fl_count(&verifier->counters.by_libsecp, input->count);
    return fl_ecdsa_verify_many(verifier->exact, ok, input->digest32s, input->sig64s, input->key33s, input->count,
                                threads);
}

/* ---- Life ---- */

int fl_batch_force(fl_batch_verifier *verifier, const char *kernel_name, fl_ecdsa_path path)
{
    const fl_secp_kernel *kernel;
    for (size_t i = 0; (kernel = fl_secp_kernel_at(i)) != NULL; i++) {
        int wanted = kernel_name == NULL || strcmp(kernel->name, kernel_name) == 0;
        if (wanted && (kernel == verifier->kernel || fl_secp_kernel_passes(kernel)))
            break;
    }
    if (kernel == NULL && path != FL_PATH_LIBSECP)
        return 0;
    if (kernel != NULL)
        verifier->kernel = kernel;
    verifier->path = path;
    return 1;
}

fl_batch_verifier *fl_batch_new(const fl_secp_addresses *secp, size_t keys_max, size_t table_memory_max)
{
    fl_batch_verifier *verifier = calloc(1, sizeof *verifier);
    if (verifier == NULL)
        return NULL;
    verifier->exact = fl_ecdsa_new(secp, keys_max);
    if (verifier->exact == NULL || !fl_keys_init(&verifier->keys, keys_max, table_memory_max)) {
        fl_ecdsa_free(verifier->exact);
        free(verifier);
        return NULL;
    }
    verifier->path = FL_PATH_LIBSECP;
    return verifier;
}

void fl_batch_free(fl_batch_verifier *verifier)
{
    if (verifier == NULL)
        return;
    fl_ecdsa_free(verifier->exact);
    fl_keys_destroy(&verifier->keys);
    free(verifier);
}

const char *fl_batch_kernel_name(size_t index)
{
    const fl_secp_kernel *kernel = fl_secp_kernel_at(index);
    return kernel ? kernel->name : NULL;
}

int fl_batch_kernel_usable(size_t index)
{
    return fl_secp_kernel_supported(fl_secp_kernel_at(index));
}

int fl_batch_resize_keys(fl_batch_verifier *verifier, size_t keys_max)
{
    return fl_ecdsa_resize_cache(verifier->exact, keys_max) && fl_keys_resize(&verifier->keys, keys_max);
}

int fl_batch_set_table_memory(fl_batch_verifier *verifier, size_t bytes)
{
    return fl_keys_set_memory(&verifier->keys, bytes);
}

void fl_batch_hold(fl_batch_verifier *verifier)
{
    fl_ecdsa_hold(verifier->exact);
    pthread_mutex_lock(&verifier->keys.lock);
}

void fl_batch_release(fl_batch_verifier *verifier)
{
    pthread_mutex_unlock(&verifier->keys.lock);
    fl_ecdsa_release(verifier->exact);
}

fl_batch_stats fl_batch_read_stats(fl_batch_verifier *verifier)
{
    fl_keys *keys = &verifier->keys;
    fl_batch_counters *counters = &verifier->counters;
    fl_ecdsa_stats exact = fl_ecdsa_read_stats(verifier->exact);
    int alone = verifier->kernel == NULL || verifier->path == FL_PATH_LIBSECP;
    fl_batch_stats stats = {.kernel = alone ? NULL : verifier->kernel->name, .path = verifier->path};

    pthread_mutex_lock(&keys->lock);
    stats.keys_max = exact.cache_entries;
    stats.keys_used = alone ? exact.cache_used : keys->used;
    stats.key_hits = alone ? exact.cache_hits : keys->hits;
    stats.key_misses = alone ? exact.cache_misses : keys->misses;
    stats.table_memory_max = keys->memory_max;
    stats.table_memory = keys->table_count * fl_key_table_bytes();
    stats.table_count = keys->table_count;
    stats.tables_built = keys->tables_built;
    stats.tables_evicted = keys->tables_evicted;
    pthread_mutex_unlock(&keys->lock);
    stats.by_known = atomic_load(&counters->by_known);
    stats.by_any = atomic_load(&counters->by_any);
    stats.by_randomised = atomic_load(&counters->by_randomised);
    stats.by_libsecp = atomic_load(&counters->by_libsecp);
    stats.undecided = atomic_load(&counters->undecided);
    stats.refused = atomic_load(&counters->refused);
    stats.batches_failed = atomic_load(&counters->batches_failed);
    return stats;
}

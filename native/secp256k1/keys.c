#include "keys.h"

#include <stdlib.h>
#include <string.h>

enum {
    /* Entries of a set: where a key may stand. Four keeps a set in few cache lines and evicts rarely. */
    SET_ENTRIES = 4,
    /* A table costs as much as it saves in some 15 verifications under a key without one. */
    EARNED_IN_BATCH = 16,
    EARNED_IN_ALL = 32,
    /* Batches for which a table has to go unused before one that was earned over several batches may replace it:
     * with more busy keys than memory, tables would otherwise be built in turns. */
    IDLE_BATCHES = 64
};

/* A key that had a good signature; `stamp` is the batch that last used it, 0 in an empty entry. */
typedef struct fl_key_entry {
    uint64_t stamp;
    fl_affine point;
    fl_key_table *table;
    uint32_t seen;
    uint8_t key33[FL_KEY_LEN];
} key_entry;

/* ---- Tables ---- */

size_t fl_key_table_bytes(void)
{
    return fl_comb_points(FL_KEY_TABLE_WINDOW) * sizeof(fl_affine);
}

fl_key_table *fl_key_table_new(void)
{
    fl_key_table *table = malloc(sizeof *table);
    if (table == NULL)
        return NULL;
    table->comb.points = aligned_alloc(64, fl_key_table_bytes());
    if (table->comb.points == NULL) {
        free(table);
        return NULL;
    }
    table->comb.window = FL_KEY_TABLE_WINDOW;
    table->stamp = 0;
    table->entry = NULL;
    atomic_init(&table->references, 1);
    return table;
}

void fl_key_table_release(fl_key_table *table)
{
    if (table == NULL || atomic_fetch_sub(&table->references, 1) != 1)
        return;
    free((void *)(uintptr_t)table->comb.points);
    free(table);
}

static size_t tables_max(size_t memory_max)
{
    return memory_max / fl_key_table_bytes();
}

/* Takes the table out of the directory; batches that use it keep it alive. */
static void evict_table(fl_keys *keys, size_t slot)
{
    fl_key_table *table = keys->tables[slot];
    table->entry->table = NULL;
    table->entry = NULL;
    keys->tables[slot] = keys->tables[--keys->table_count];
    keys->tables_evicted++;
    fl_key_table_release(table);
}

static size_t oldest_table(const fl_keys *keys)
{
    size_t oldest = 0;
    for (size_t i = 1; i < keys->table_count; i++)
        if (keys->tables[i]->stamp < keys->tables[oldest]->stamp)
            oldest = i;
    return oldest;
}

static size_t slot_of(const fl_keys *keys, const fl_key_table *table)
{
    size_t slot = 0;
    while (keys->tables[slot] != table)
        slot++;
    return slot;
}

/* Gives an entry the batch's table, unless there is no room that this batch itself does not use. */
static void adopt_table(fl_keys *keys, key_entry *entry, fl_key_table *table)
{
    if (entry->table != NULL || keys->table_slots == 0)
        return;
    if (keys->table_count == keys->table_slots) {
        size_t oldest = oldest_table(keys);
        if (keys->tables[oldest]->stamp >= keys->stamp)
            return;
        evict_table(keys, oldest);
    }
    entry->table = table;
    table->entry = entry;
    table->stamp = keys->stamp;
    atomic_fetch_add(&table->references, 1);
    keys->tables[keys->table_count++] = table;
    keys->tables_built++;
}

/* ---- Directory ---- */

/* First entry of the key's set. Honest x coordinates are uniform. Whoever grinds keys into one set gains that
 * its members are parsed again: there is nothing to protect with a secret hash. */
static key_entry *set_of(const fl_keys *keys, const uint8_t *key33)
{
    uint64_t low, high;
    memcpy(&low, key33 + 1, sizeof low);
    memcpy(&high, key33 + FL_KEY_LEN - sizeof high, sizeof high);
    uint64_t hash = (low ^ high ^ key33[0]) * UINT64_C(0x9e3779b97f4a7c15);
    return keys->entries + SET_ENTRIES * ((size_t)(hash >> 32) & (keys->set_count - 1));
}

static key_entry *find(const fl_keys *keys, const uint8_t *key33)
{
    if (keys->set_count == 0)
        return NULL;
    key_entry *set = set_of(keys, key33);
    for (size_t i = 0; i < SET_ENTRIES; i++)
        if (set[i].stamp != 0 && memcmp(set[i].key33, key33, FL_KEY_LEN) == 0)
            return &set[i];
    return NULL;
}

/* The entry of the set that a new key takes: one without a table before one that has one, then the oldest. */
static key_entry *choose_victim(key_entry *set)
{
    key_entry *victim = set;
    for (size_t i = 1; i < SET_ENTRIES; i++) {
        int has = set[i].table != NULL, victim_has = victim->table != NULL;
        if (has != victim_has ? !has : set[i].stamp < victim->stamp)
            victim = &set[i];
    }
    return victim;
}

static key_entry *insert(fl_keys *keys, const fl_batch_key *key)
{
    if (keys->set_count == 0)
        return NULL;
    key_entry *entry = choose_victim(set_of(keys, key->key33));
    if (entry->table != NULL)
        evict_table(keys, slot_of(keys, entry->table));
    if (entry->stamp == 0)
        keys->used++;
    entry->point = key->point;
    entry->seen = 0;
    memcpy(entry->key33, key->key33, FL_KEY_LEN);
    return entry;
}

static int may_build(const fl_keys *keys, const fl_batch_key *key, uint32_t seen_before)
{
    if (keys->table_slots == 0)
        return 0;
    if (key->count >= EARNED_IN_BATCH)
        return 1;
    if (seen_before + (uint64_t)key->count < EARNED_IN_ALL)
        return 0;
    return keys->table_count < keys->table_slots ||
           keys->tables[oldest_table(keys)]->stamp + IDLE_BATCHES < keys->stamp;
}

void fl_keys_lookup(fl_keys *keys, fl_batch_key *batch, size_t count)
{
    size_t builds = 0;
    pthread_mutex_lock(&keys->lock);
    keys->stamp++;
    for (size_t i = 0; i < count; i++) {
        fl_batch_key *key = &batch[i];
        key_entry *entry = find(keys, key->key33);
        if (entry != NULL) {
            keys->hits += key->count;
            entry->stamp = keys->stamp;
            key->point = entry->point;
            key->known = 1;
            key->table = entry->table;
        } else {
            keys->misses += key->count;
        }
        if (key->table != NULL) {
            key->table->stamp = keys->stamp;
            atomic_fetch_add(&key->table->references, 1);
        } else if (builds < keys->table_slots && may_build(keys, key, entry ? entry->seen : 0)) {
            key->build = 1;
            builds++;
        }
    }
    pthread_mutex_unlock(&keys->lock);
}

/* Only keys with a good signature are kept: who wants to push others out has to own keys. */
void fl_keys_learn(fl_keys *keys, fl_batch_key *batch, size_t count)
{
    pthread_mutex_lock(&keys->lock);
    for (size_t i = 0; i < count; i++) {
        fl_batch_key *key = &batch[i];
        uint32_t good = atomic_load(&key->good);
        key_entry *entry = good ? find(keys, key->key33) : NULL;
        if (good && entry == NULL)
            entry = insert(keys, key);
        if (entry != NULL) {
            entry->stamp = keys->stamp;
            entry->seen = entry->seen > UINT32_MAX - good ? UINT32_MAX : entry->seen + good;
            if (key->build && key->table != NULL)
                adopt_table(keys, entry, key->table);
        }
        fl_key_table_release(key->table);
        key->table = NULL;
    }
    pthread_mutex_unlock(&keys->lock);
}

/* ---- Life ---- */

static size_t sets_for(size_t entries)
{
    size_t sets = 1;
    if (entries == 0)
        return 0;
    while (sets * SET_ENTRIES < entries)
        sets *= 2;
    return sets;
}

int fl_keys_resize(fl_keys *keys, size_t entries)
{
    size_t sets = sets_for(entries);
    key_entry *fresh = sets ? calloc(sets * SET_ENTRIES, sizeof *fresh) : NULL;

    if (sets && fresh == NULL)
        return 0;
    pthread_mutex_lock(&keys->lock);
    while (keys->table_count > 0)
        evict_table(keys, keys->table_count - 1);
    key_entry *old = keys->entries;
    keys->entries = fresh;
    keys->set_count = sets;
    keys->used = 0;
    keys->hits = keys->misses = 0;
    keys->tables_built = keys->tables_evicted = 0;
    pthread_mutex_unlock(&keys->lock);
    free(old);
    return 1;
}

int fl_keys_set_memory(fl_keys *keys, size_t memory_max)
{
    size_t slots = tables_max(memory_max);
    fl_key_table **fresh = slots ? malloc(slots * sizeof *fresh) : NULL;

    if (slots && fresh == NULL)
        return 0;
    pthread_mutex_lock(&keys->lock);
    while (keys->table_count > slots)
        evict_table(keys, oldest_table(keys));
    if (keys->table_count > 0)
        memcpy(fresh, keys->tables, keys->table_count * sizeof *fresh);
    fl_key_table **old = keys->tables;
    keys->tables = fresh;
    keys->table_slots = slots;
    keys->memory_max = memory_max;
    pthread_mutex_unlock(&keys->lock);
    free(old);
    return 1;
}

int fl_keys_init(fl_keys *keys, size_t entries, size_t memory_max)
{
    memset(keys, 0, sizeof *keys);
    if (pthread_mutex_init(&keys->lock, NULL) != 0)
        return 0;
    if (fl_keys_resize(keys, entries) && fl_keys_set_memory(keys, memory_max))
        return 1;
    fl_keys_destroy(keys);
    return 0;
}

void fl_keys_destroy(fl_keys *keys)
{
    while (keys->table_count > 0)
        evict_table(keys, keys->table_count - 1);
    free(keys->tables);
    free(keys->entries);
    pthread_mutex_destroy(&keys->lock);
}

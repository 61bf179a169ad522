/* What is remembered of signers: the point of a compressed key, whose parsing costs a square root, how often it
 * was seen, and a comb table for those that are seen often. */
#ifndef FL_SECP256K1_KEYS_H
#define FL_SECP256K1_KEYS_H

#include "group.h"

#include <pthread.h>
#include <stdatomic.h>
#include <stddef.h>
#include <stdint.h>

enum {
    FL_KEY_LEN = 33,
    /* 133 KB a key; 6 bits save half of it and cost a sixth more time, 10 bits take three times as much. */
    FL_KEY_TABLE_WINDOW = 8
};

/* A key's table, freed with the last reference: the directory's, or one of a batch that uses it. */
typedef struct fl_key_table {
    fl_comb_table comb;
    atomic_uint references;
    uint64_t stamp;              /* the last batch that used it */
    struct fl_key_entry *entry; /* NULL when the directory has let go of it */
} fl_key_table;

/* A distinct key of one batch. */
typedef struct {
    const uint8_t *key33; /* lives as long as the batch */
    fl_affine point;
    fl_key_table *table; /* referenced, or NULL */
    uint32_t count;      /* signatures in this batch */
    atomic_uint good;    /* of them valid */
    uint8_t known;       /* the point is set */
    uint8_t invalid;     /* no key */
    uint8_t build;       /* has earned a table that does not exist yet */
} fl_batch_key;

typedef struct {
    pthread_mutex_t lock;
    struct fl_key_entry *entries;
    size_t set_count;
    uint64_t stamp;
    size_t used;
    uint64_t hits, misses;
    fl_key_table **tables; /* table_count of them, in any order */
    size_t table_count, table_slots;
    size_t memory_max;
    uint64_t tables_built, tables_evicted;
} fl_keys;

/* 0 when out of memory. */
int fl_keys_init(fl_keys *keys, size_t entries, size_t memory_max);
void fl_keys_destroy(fl_keys *keys);

/* Forget everything and make room for at least `entries` keys; 0 when out of memory, all then stays. */
int fl_keys_resize(fl_keys *keys, size_t entries);
/* Limit the tables to memory_max bytes in all, letting go of those used longest ago; 0 when out of memory. */
int fl_keys_set_memory(fl_keys *keys, size_t memory_max);

/* Bytes of one table. */
size_t fl_key_table_bytes(void);
/* A table without its points computed and with one reference; NULL when out of memory. */
fl_key_table *fl_key_table_new(void);
void fl_key_table_release(fl_key_table *table); /* drops a reference; NULL is allowed */

/* Fill in what is known of the batch's distinct keys, and mark those that have earned a table. */
void fl_keys_lookup(fl_keys *keys, fl_batch_key *batch, size_t count);
/* Remember the keys that have good signatures, with the tables that were built for them, and give all references
 * of the batch back. */
void fl_keys_learn(fl_keys *keys, fl_batch_key *batch, size_t count);

#endif

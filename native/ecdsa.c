/* Exact ECDSA verification of many signatures by libsecp256k1, whose functions are handed in as addresses.
 *
 * The library's verdict is the rule: low s (BIP-146), scalars in range, keys on the curve. What is added here
 * is threads, and a table of parsed keys: a compressed key costs a square root in the field each time it is
 * parsed, a seventh of a verification, and a ledger sees the same signers over and over.
 */
#define _POSIX_C_SOURCE 200809L

#include "fl_tx.h"
#include "fl_impl.h"

#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>

/* The library's types, declared as its public header declares them. */
typedef struct secp256k1_context_struct secp256k1_context;
typedef struct secp256k1_pubkey {
    unsigned char data[64];
} secp256k1_pubkey;
typedef struct secp256k1_ecdsa_signature {
    unsigned char data[64];
} secp256k1_ecdsa_signature;

typedef int parse_key_fn(const secp256k1_context *, secp256k1_pubkey *, const unsigned char *, size_t);
typedef int parse_signature_fn(const secp256k1_context *, secp256k1_ecdsa_signature *, const unsigned char *);
typedef int verify_fn(const secp256k1_context *, const secp256k1_ecdsa_signature *, const unsigned char *,
                      const secp256k1_pubkey *);

enum {
    DIGEST_LEN = 32,
    SIG_LEN = 64,
    KEY_LEN = 33,
    /* Entries of a set: where a key may stand. Four keeps a set in few cache lines and evicts rarely. */
    SET_ENTRIES = 4,
    /* Signatures taken at a time: some 0.3 ms of work, which bounds how long cores wait for the last one. */
    CHUNK = 8
};

/* A parsed key; `stamp` is the batch that last used it, 0 in an empty entry. */
typedef struct {
    uint64_t stamp;
    secp256k1_pubkey parsed;
    uint8_t key33[KEY_LEN];
} cache_entry;

struct fl_ecdsa {
    const secp256k1_context *context;
    parse_key_fn *parse_key;
    parse_signature_fn *parse_signature;
    verify_fn *verify;

    pthread_mutex_t lock; /* guards all that follows */
    cache_entry *entries; /* set_count sets of SET_ENTRIES */
    size_t set_count;     /* a power of two, or 0 */
    uint64_t stamp;
    size_t used;
    uint64_t hits, misses;
};

/* One call of fl_ecdsa_verify_many, shared by its workers: each index belongs to the worker that took it. */
typedef struct {
    const fl_ecdsa *verifier;
    uint8_t *ok;
    const uint8_t *digest32s, *sig64s;
    secp256k1_pubkey *keys;
    /* Our copy. Were the caller's memory to change between parsing a key and keeping it, the table would
     * answer for one signer with the key of another, to everybody. */
    uint8_t *key33s;
    uint8_t *key_known; /* 1 where keys[i] was found in the table */
    size_t count;
    atomic_size_t next;
} verify_batch;

/* ---- Table of parsed keys ---- */

/* First entry of the key's set. Honest x coordinates are uniform. Whoever grinds keys into one set gains that
 * its members are parsed again: there is nothing to protect with a secret hash. */
static cache_entry *cache_set(const fl_ecdsa *verifier, const uint8_t *key33)
{
    uint64_t low, high;
    memcpy(&low, key33 + 1, sizeof low);
    memcpy(&high, key33 + KEY_LEN - sizeof high, sizeof high);
    uint64_t hash = (low ^ high ^ key33[0]) * UINT64_C(0x9e3779b97f4a7c15);
    return verifier->entries + SET_ENTRIES * ((size_t)(hash >> 32) & (verifier->set_count - 1));
}

static cache_entry *cache_find(const fl_ecdsa *verifier, const uint8_t *key33)
{
    cache_entry *set = cache_set(verifier, key33);
    for (size_t i = 0; i < SET_ENTRIES; i++)
        if (set[i].stamp != 0 && memcmp(set[i].key33, key33, KEY_LEN) == 0)
            return &set[i];
    return NULL;
}

/* Put a key in the place of the entry of its set that was used longest ago. */
static void cache_insert(fl_ecdsa *verifier, const uint8_t *key33, const secp256k1_pubkey *parsed)
{
    if (cache_find(verifier, key33) != NULL)
        return; /* the same signer earlier in the batch, or another batch meanwhile */
    cache_entry *set = cache_set(verifier, key33), *victim = set;
    for (size_t i = 1; i < SET_ENTRIES; i++)
        if (set[i].stamp < victim->stamp)
            victim = &set[i];
    if (victim->stamp == 0)
        verifier->used++;
    victim->stamp = verifier->stamp;
    victim->parsed = *parsed;
    memcpy(victim->key33, key33, KEY_LEN);
}

static void cache_lookup_many(fl_ecdsa *verifier, verify_batch *batch)
{
    pthread_mutex_lock(&verifier->lock);
    verifier->stamp++;
    for (size_t i = 0; i < batch->count; i++) {
        cache_entry *entry = verifier->set_count ? cache_find(verifier, batch->key33s + KEY_LEN * i) : NULL;
        batch->key_known[i] = entry != NULL;
        if (entry == NULL) {
            verifier->misses++;
            continue;
        }
        verifier->hits++;
        entry->stamp = verifier->stamp;
        batch->keys[i] = entry->parsed;
    }
    pthread_mutex_unlock(&verifier->lock);
}

/* Keep the keys that were parsed for a good signature: who wants to push others out has to own keys. */
static void cache_insert_many(fl_ecdsa *verifier, const verify_batch *batch)
{
    pthread_mutex_lock(&verifier->lock);
    for (size_t i = 0; i < batch->count && verifier->set_count; i++)
        if (batch->ok[i] && !batch->key_known[i])
            cache_insert(verifier, batch->key33s + KEY_LEN * i, &batch->keys[i]);
    pthread_mutex_unlock(&verifier->lock);
}

static size_t sets_for(size_t cache_entries)
{
    size_t sets = 1;
    if (cache_entries == 0)
        return 0;
    while (sets * SET_ENTRIES < cache_entries)
        sets *= 2;
    return sets;
}

/* ---- Verifying ---- */

/* A key that was not parsed must never reach `verify`, which ends the process on one. */
static uint8_t verify_at(const verify_batch *batch, size_t i)
{
    const fl_ecdsa *v = batch->verifier;
    const uint8_t *key33 = batch->key33s + KEY_LEN * i;
    secp256k1_ecdsa_signature sig;

    if (!v->parse_signature(v->context, &sig, batch->sig64s + SIG_LEN * i))
        return 0;
    if (!batch->key_known[i] && !v->parse_key(v->context, &batch->keys[i], key33, KEY_LEN))
        return 0;
    return v->verify(v->context, &sig, batch->digest32s + DIGEST_LEN * i, &batch->keys[i]) == 1;
}

static void *verify_worker(void *shared)
{
    verify_batch *batch = shared;
    size_t first;

    while ((first = atomic_fetch_add(&batch->next, CHUNK)) < batch->count) {
        size_t end = batch->count - first > CHUNK ? first + CHUNK : batch->count;
        for (size_t i = first; i < end; i++)
            batch->ok[i] = verify_at(batch, i);
    }
    return NULL;
}

int fl_ecdsa_verify_one(const fl_ecdsa *v, const uint8_t *digest32, const uint8_t *sig64, const uint8_t *key,
                        size_t key_len)
{
    secp256k1_ecdsa_signature sig;
    secp256k1_pubkey parsed;
    return v->parse_signature(v->context, &sig, sig64) && v->parse_key(v->context, &parsed, key, key_len) &&
           v->verify(v->context, &sig, digest32, &parsed) == 1;
}

int fl_ecdsa_verify_many(fl_ecdsa *verifier, uint8_t *ok, const uint8_t *digest32s, const uint8_t *sig64s,
                         const uint8_t *key33s, size_t count, unsigned threads)
{
    verify_batch batch = {.verifier = verifier,
                          .ok = ok,
                          .digest32s = digest32s,
                          .sig64s = sig64s,
                          .count = count};

    if (count == 0)
        return 1;
    batch.keys = malloc(count * (sizeof *batch.keys + KEY_LEN + 1)); /* keys, key33s and key_known */
    if (batch.keys == NULL)
        return 0;
    batch.key33s = (uint8_t *)(batch.keys + count);
    batch.key_known = batch.key33s + KEY_LEN * count;
    memcpy(batch.key33s, key33s, KEY_LEN * count);
    atomic_init(&batch.next, 0);
    cache_lookup_many(verifier, &batch);
    fl_workers_run(verify_worker, &batch, threads);
    cache_insert_many(verifier, &batch);
    free(batch.keys);
    return 1;
}

/* ---- Life of a verifier ---- */

int fl_ecdsa_resize_cache(fl_ecdsa *verifier, size_t cache_entries)
{
    size_t sets = sets_for(cache_entries);
    cache_entry *entries = sets ? calloc(sets * SET_ENTRIES, sizeof *entries) : NULL;

    if (sets && entries == NULL)
        return 0;
    pthread_mutex_lock(&verifier->lock);
    cache_entry *old = verifier->entries;
    verifier->entries = entries;
    verifier->set_count = sets;
    verifier->used = 0;
    verifier->hits = verifier->misses = 0;
    pthread_mutex_unlock(&verifier->lock);
    free(old);
    return 1;
}

fl_ecdsa *fl_ecdsa_new(const fl_secp_addresses *secp, size_t cache_entries)
{
    fl_ecdsa *verifier = calloc(1, sizeof *verifier);

    if (verifier == NULL)
        return NULL;
    verifier->context = (const secp256k1_context *)secp->context;
    verifier->parse_key = (parse_key_fn *)secp->ec_pubkey_parse;
    verifier->parse_signature = (parse_signature_fn *)secp->ecdsa_signature_parse_compact;
    verifier->verify = (verify_fn *)secp->ecdsa_verify;
    if (pthread_mutex_init(&verifier->lock, NULL) != 0) {
        free(verifier);
        return NULL;
    }
    if (!fl_ecdsa_resize_cache(verifier, cache_entries)) {
        fl_ecdsa_free(verifier);
        return NULL;
    }
    return verifier;
}

void fl_ecdsa_free(fl_ecdsa *verifier)
{
    if (verifier == NULL)
        return;
    pthread_mutex_destroy(&verifier->lock);
    free(verifier->entries);
    free(verifier);
}

void fl_ecdsa_hold(fl_ecdsa *verifier)
{
    pthread_mutex_lock(&verifier->lock);
}

void fl_ecdsa_release(fl_ecdsa *verifier)
{
    pthread_mutex_unlock(&verifier->lock);
}

fl_ecdsa_stats fl_ecdsa_read_stats(fl_ecdsa *verifier)
{
    fl_ecdsa_stats stats;

    pthread_mutex_lock(&verifier->lock);
    stats.cache_entries = verifier->set_count * SET_ENTRIES;
    stats.cache_used = verifier->used;
    stats.cache_hits = verifier->hits;
    stats.cache_misses = verifier->misses;
    pthread_mutex_unlock(&verifier->lock);
    return stats;
}

/* Batches of ECDSA signatures: the policy that picks a kernel for each, and exact verdicts for all. */
#ifndef FL_SECP256K1_BATCH_H
#define FL_SECP256K1_BATCH_H

#include "fl_tx.h"

/* How a batch is verified. Under AUTO the others are picked from, signature by signature. */
typedef enum {
    FL_PATH_AUTO = 0,
    FL_PATH_LIBSECP = 1,    /* libsecp256k1 alone */
    FL_PATH_KNOWN = 2,      /* a comb table for every key */
    FL_PATH_ANY = 3,        /* no tables */
    FL_PATH_RANDOMISED = 4, /* the randomised batch for every signature with a hint, however few */
    FL_PATH_COUNT = 5
} fl_ecdsa_path;

typedef struct {
    const char *kernel; /* NULL when libsecp256k1 verifies alone */
    fl_ecdsa_path path;
    size_t keys_max, keys_used;
    uint64_t key_hits, key_misses;
    size_t table_memory_max, table_memory, table_count;
    uint64_t tables_built, tables_evicted;
    /* Signatures by what decided on them. */
    uint64_t by_known, by_any, by_randomised, by_libsecp;
    uint64_t undecided; /* of by_libsecp: those that a kernel left to it */
    uint64_t refused;   /* r, s or key out of range */
    uint64_t batches_failed; /* randomised batches that did not close */
} fl_batch_stats;

typedef struct fl_batch_verifier fl_batch_verifier;

/* NULL when out of memory. kernel_name NULL: the fastest that this CPU has and that passes its start-up test; if
 * there is none, libsecp256k1 verifies alone. */
fl_batch_verifier *fl_batch_new(const fl_secp_addresses *secp, size_t keys_max, size_t table_memory_max);
void fl_batch_free(fl_batch_verifier *verifier);

/* Use another kernel or path from now on; kernel_name NULL picks as at the start. 0 when there is no such kernel
 * here, or it fails its test: nothing then changes. Not to be called while batches run. */
int fl_batch_force(fl_batch_verifier *verifier, const char *kernel_name, fl_ecdsa_path path);

/* Name of kernel `index`, NULL beyond the last; and whether this CPU can run it. */
const char *fl_batch_kernel_name(size_t index);
int fl_batch_kernel_usable(size_t index);

int fl_batch_resize_keys(fl_batch_verifier *verifier, size_t keys_max);
int fl_batch_set_table_memory(fl_batch_verifier *verifier, size_t bytes);
void fl_batch_hold(fl_batch_verifier *verifier);
void fl_batch_release(fl_batch_verifier *verifier);
fl_batch_stats fl_batch_read_stats(fl_batch_verifier *verifier);

/* The signatures of a batch, as columns. hints may be NULL; a hint is hint_len bytes: a tag alone (1) or with
 * y(R) (33), as group.h defines them. */
typedef struct {
    const uint8_t *digest32s, *sig64s, *key33s, *hints;
    size_t hint_len;
    size_t count;
} fl_batch_input;

/* ok[i] = 1 when signature i is good, else 0; and where hint33s is not NULL, count hints of 33 bytes: of the good
 * ones, tag 0 where libsecp256k1 decided. The input is copied first: what others write to it meanwhile changes
 * neither what is verified nor what is remembered. Returns 0 when out of memory: ok is then unset. */
int fl_batch_verify(fl_batch_verifier *verifier, uint8_t *ok, uint8_t *hint33s, const fl_batch_input *input,
                    unsigned threads);

#endif

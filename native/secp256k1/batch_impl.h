/* What the parts of the batch verifier share. */
#ifndef FL_SECP256K1_BATCH_IMPL_H
#define FL_SECP256K1_BATCH_IMPL_H

#include "batch.h"
#include "kernel.h"
#include "keys.h"

#include <stdatomic.h>

enum { DIGEST_LEN = 32, SIG_LEN = 64, KEY33_LEN = 33, KEY65_LEN = 65 };

typedef struct {
    atomic_uint_least64_t by_known, by_any, by_randomised, by_libsecp, undecided, refused, batches_failed;
} fl_batch_counters;

struct fl_batch_verifier {
    fl_ecdsa *exact;
    const fl_secp_kernel *kernel; /* NULL: libsecp256k1 alone */
    fl_ecdsa_path path;
    fl_keys keys;
    fl_batch_counters counters;
};

/* A batch under way. Signatures are worked on in `order`: those of the randomised batch, those whose keys have
 * tables, those of any keys, those for libsecp256k1; the ends of these stretches are slots. */
typedef struct {
    fl_batch_verifier *verifier;
    const fl_secp_kernel *kernel;
    fl_batch_input input; /* our copy */
    uint8_t *ok;
    uint8_t *hint33s;    /* or NULL */
    uint32_t *key_index; /* of signature i, in keys */
    fl_batch_key *keys;
    size_t key_count;
    uint32_t *order;
    size_t randomised_end, known_end, any_end, end;
    size_t randomised_unit, lane_unit; /* slots that a worker takes at a time */
    atomic_size_t next;
    atomic_int out_of_memory;
} fl_batch;

/* Signatures of one stretch made ready: job k is signature index[k] of the batch. */
typedef struct {
    fl_verify_job *jobs;
    uint32_t *index;
    size_t count;
} fl_prepared;

/* Parse `count` slots from `first` on, refusing what is out of range. `scratch` holds 2 count scalars. */
void fl_batch_prepare(fl_prepared *out, fl_batch *batch, size_t first, size_t count, fl_scalar *scratch);

/* Decide on prepared signatures, in pieces that suit the lane verifiers, libsecp256k1 having the last word. */
void fl_batch_decide(fl_batch *batch, const fl_prepared *prepared);

/* Decide on `count` slots from `first` on by one randomised batch and, where that fails, one by one. */
void fl_batch_randomised(fl_batch *batch, size_t first, size_t count);

/* libsecp256k1's verdict on signature i. */
void fl_batch_ask_libsecp(fl_batch *batch, size_t i);

void fl_batch_accept(fl_batch *batch, size_t i, const uint8_t *hint33);

static inline void fl_count(atomic_uint_least64_t *counter, size_t count)
{
    atomic_fetch_add_explicit(counter, count, memory_order_relaxed);
}

#endif

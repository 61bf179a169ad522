/* From bytes to verdicts: parsing of signatures, the deterministic kernels, libsecp256k1's last word. */
#include "batch_impl.h"

#include <stdlib.h>
#include <string.h>

void fl_batch_accept(fl_batch *batch, size_t i, const uint8_t *hint33)
{
    batch->ok[i] = 1;
    atomic_fetch_add_explicit(&batch->keys[batch->key_index[i]].good, 1, memory_order_relaxed);
    if (batch->hint33s != NULL && hint33 != NULL)
        memcpy(batch->hint33s + FL_HINT_LEN * i, hint33, FL_HINT_LEN);
}

/* The key is handed over uncompressed where its point is known: that saves the library a square root, and it
 * checks the point itself. */
void fl_batch_ask_libsecp(fl_batch *batch, size_t i)
{
    const fl_batch_input *input = &batch->input;
    const fl_batch_key *key = &batch->keys[batch->key_index[i]];
    uint8_t key65[KEY65_LEN] = {4};
    const uint8_t *bytes = key->key33;
    size_t len = KEY33_LEN;

    if (key->known) {
        fl_store_be256(key65 + 1, key->point.x);
        fl_store_be256(key65 + 33, key->point.y);
        bytes = key65;
        len = KEY65_LEN;
    }
    fl_count(&batch->verifier->counters.by_libsecp, 1);
    if (fl_ecdsa_verify_one(batch->verifier->exact, input->digest32s + DIGEST_LEN * i, input->sig64s + SIG_LEN * i,
                            bytes, len))
        fl_batch_accept(batch, i, NULL);
}

/* 1 <= r < n and 1 <= s <= n / 2 (SPEC-SIG-2, SPEC-SIG-3) */
static int parse_signature(fl_scalar *r, fl_scalar *s, const uint8_t sig64[SIG_LEN])
{
    fl_load_be256(r->limb, sig64);
    fl_load_be256(s->limb, sig64 + 32);
    return !fl_is_zero256(r->limb) && fl_compare256(r->limb, FL_ORDER.limb) < 0 && !fl_is_zero256(s->limb) &&
           fl_compare256(s->limb, FL_HALF_ORDER.limb) <= 0;
}

void fl_batch_prepare(fl_prepared *out, fl_batch *batch, size_t first, size_t count, fl_scalar *scratch)
{
    const fl_batch_input *input = &batch->input;
    fl_scalar *s = scratch, *products = scratch + count;

    out->count = 0;
    for (size_t slot = first; slot < first + count; slot++) {
        size_t i = batch->order[slot];
        fl_scalar r;
        if (!parse_signature(&r, &s[out->count], input->sig64s + SIG_LEN * i))
            continue;
        memcpy(out->jobs[out->count].r, r.limb, sizeof r.limb);
        out->index[out->count++] = (uint32_t)i;
    }
    fl_count(&batch->verifier->counters.refused, count - out->count);
    fl_scalar_invert_many(s, products, out->count);
    for (size_t k = 0; k < out->count; k++) {
        fl_verify_job *job = &out->jobs[k];
        const fl_batch_key *key = &batch->keys[batch->key_index[out->index[k]]];
        fl_scalar digest, r;
        fl_load_be256(digest.limb, input->digest32s + DIGEST_LEN * out->index[k]);
        fl_scalar_reduce(&digest);
        memcpy(r.limb, job->r, sizeof r.limb);
        fl_scalar_mul(&digest, &digest, &s[k]);
        fl_scalar_mul(&r, &r, &s[k]);
        memcpy(job->u1, digest.limb, sizeof job->u1);
        memcpy(job->u2, r.limb, sizeof job->u2);
        job->key = key->point;
        job->table = key->table && batch->verifier->path != FL_PATH_ANY ? &key->table->comb : NULL;
    }
}

static void decide_piece(fl_batch *batch, const fl_prepared *piece, int known)
{
    enum { PIECE_MAX = 64 };
    uint8_t verdicts[PIECE_MAX], hints[PIECE_MAX * FL_HINT_LEN];
    fl_batch_counters *counters = &batch->verifier->counters;
    size_t undecided = 0;

    (known ? batch->kernel->verify_known : batch->kernel->verify_any)(
        verdicts, batch->hint33s ? hints : NULL, piece->jobs, piece->count);
    for (size_t k = 0; k < piece->count; k++) {
        if (verdicts[k] == FL_LANE_VALID) {
            fl_batch_accept(batch, piece->index[k], hints + FL_HINT_LEN * k);
        } else if (verdicts[k] == FL_LANE_UNDECIDED) {
            fl_batch_ask_libsecp(batch, piece->index[k]);
            undecided++;
        }
    }
    fl_count(known ? &counters->by_known : &counters->by_any, piece->count - undecided);
    fl_count(&counters->undecided, undecided);
}

void fl_batch_decide(fl_batch *batch, const fl_prepared *prepared)
{
    enum { PIECE_MAX = 64 };
    for (size_t first = 0; first < prepared->count;) {
        int known = prepared->jobs[first].table != NULL;
        size_t end = first;
        while (end < prepared->count && end - first < PIECE_MAX && (prepared->jobs[end].table != NULL) == known)
            end++;
        fl_prepared piece = {prepared->jobs + first, prepared->index + first, end - first};
        decide_piece(batch, &piece, known);
        first = end;
    }
}

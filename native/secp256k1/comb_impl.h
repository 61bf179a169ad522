/* Comb tables and the verification under keys that have them: no doublings, some fifty additions a signature.
 * Included by the kernels. */
#ifndef FL_SECP256K1_COMB_IMPL_H
#define FL_SECP256K1_COMB_IMPL_H

#include "affine.h"
#include "fl_impl.h"
#include "jacobian.h"
#include "scalar.h"

#include <stdlib.h>

/* ---- Building ---- */

static size_t comb_index(unsigned window, unsigned position, size_t multiple)
{
    return ((size_t)position << (window - 1)) + multiple - 1;
}

/* Writes the multiples 2^i 2^(window j) of the point, which all other entries are made of. */
static void comb_fill_powers(fl_affine *points, unsigned window, const fl_affine *point)
{
    enum { POWERS_MAX = FL_GLV_BITS + FL_COMB_WINDOW_MAX };
    unsigned positions = fl_comb_positions(window), count = window * positions;
    fl_jacobian chain[POWERS_MAX];
    fl_field products[POWERS_MAX];
    fl_affine powers[POWERS_MAX];

    FL_VERIFY(count <= POWERS_MAX);
    fl_jacobian_set(&chain[0], fl_term_of(point, 0));
    for (unsigned i = 1; i < count; i++) {
        chain[i] = chain[i - 1];
        fl_jacobian_double(&chain[i]);
    }
    fl_jacobian_to_affine_many(powers, chain, products, count);
    for (unsigned j = 0; j < positions; j++)
        for (unsigned i = 0; (size_t)1 << i <= fl_comb_entries(window, j); i++)
            points[comb_index(window, j, (size_t)1 << i)] = powers[window * j + i];
}

/* Lists the additions 2^i + k, k < 2^i, of every position; returns how many. */
static size_t comb_list_pairs(fl_term *pairs, size_t *targets, const fl_affine *points, unsigned window, unsigned i)
{
    size_t count = 0, power = (size_t)1 << i;
    for (unsigned j = 0; j < fl_comb_positions(window); j++)
        for (size_t k = 1; k < power && power + k <= fl_comb_entries(window, j); k++) {
            pairs[2 * count] = fl_term_of(&points[comb_index(window, j, power)], 0);
            pairs[2 * count + 1] = fl_term_of(&points[comb_index(window, j, k)], 0);
            targets[count++] = comb_index(window, j, power + k);
        }
    return count;
}

static void canonical_point(fl_affine *out, const fl_affine *point)
{
    fl_field x, y;
    fl_field_load(&x, point->x);
    fl_field_load(&y, point->y);
    fl_field_store(out->x, &x);
    fl_field_store(out->y, &y);
}

/* Equal x would need 2^i +- k = 0 (mod n), hence no addition here is undefined. */
static int comb_build(fl_affine *points, unsigned window, const fl_affine *point)
{
    size_t batch_max = fl_comb_points(window);
    size_t item = sizeof(fl_affine) + sizeof(fl_field) + 2 * sizeof(fl_term) + sizeof(size_t);
    fl_affine *sums = aligned_alloc(64, (batch_max * item + 63) & ~(size_t)63);
    if (sums == NULL)
        return 0;
    fl_field *products = (fl_field *)(sums + batch_max);
    fl_term *pairs = (fl_term *)(products + batch_max);
    size_t *targets = (size_t *)(pairs + 2 * batch_max);

    comb_fill_powers(points, window, point);
    for (unsigned i = 1; i < window; i++) {
        size_t count = comb_list_pairs(pairs, targets, points, window, i);
        fl_add_pairs(sums, pairs, count, products);
        for (size_t k = 0; k < count; k++)
            canonical_point(&points[targets[k]], &sums[k]);
    }
    free(sums);
    return 1;
}

/* ---- Verifying ---- */

enum {
    /* Signatures summed together: their points fill a good part of a second-level cache, and the inversions of
     * a block's levels, some 8 us, are shared by them all. */
    COMB_BLOCK = 64,
    /* Terms of a half: positions of the generator's table and of the key's. */
    COMB_TERMS_MAX = 2 * FL_GLV_BITS / FL_COMB_WINDOW_MIN,
    BLOCK_TERMS_MAX = 2 * COMB_BLOCK * COMB_TERMS_MAX
};

typedef struct {
    fl_groups groups; /* two for each signature: of the first and the second halves of its scalars */
    fl_sum_scratch scratch;
    fl_affine rotated[COMB_BLOCK]; /* sums of the second halves, times lambda */
    fl_affine nonce_points[COMB_BLOCK];
    fl_term terms[BLOCK_TERMS_MAX];
    uint32_t starts[2 * COMB_BLOCK];
    uint32_t counts[2 * COMB_BLOCK];
    uint8_t failed[2 * COMB_BLOCK];
    fl_affine points[BLOCK_TERMS_MAX];
    fl_term pairs[BLOCK_TERMS_MAX];
    fl_field products[BLOCK_TERMS_MAX / 2];
} comb_workspace;

static void comb_workspace_init(comb_workspace *work)
{
    work->groups = (fl_groups){work->terms, work->starts, work->counts, work->failed, 0};
    work->scratch = (fl_sum_scratch){work->points, work->pairs, work->products};
}

static comb_workspace *comb_workspace_new(void)
{
    comb_workspace *work = aligned_alloc(64, (sizeof *work + 63) & ~(size_t)63);
    if (work != NULL)
        comb_workspace_init(work);
    return work;
}

/* Appends digit[j] 2^(window j) times the table's point for all j. */
static uint32_t comb_append(fl_term *terms, const fl_comb_table *table, const fl_half *half)
{
    int32_t digits[FL_GLV_BITS / FL_COMB_WINDOW_MIN];
    unsigned positions = fl_comb_positions(table->window);
    uint32_t count = 0;

    fl_half_digits(digits, half, table->window);
    for (unsigned j = 0; j < positions; j++) {
        int32_t digit = digits[j];
        if (digit == 0)
            continue;
        size_t multiple = (size_t)(digit < 0 ? -digit : digit);
        FL_VERIFY(multiple <= fl_comb_entries(table->window, j));
        const fl_affine *point = &table->points[comb_index(table->window, j, multiple)];
        __builtin_prefetch(point);
        terms[count++] = fl_term_of(point, digit < 0);
    }
    return count;
}

/* Makes the two groups of u1 G + u2 Q. */
static uint32_t comb_append_job(fl_groups *groups, uint32_t used, const fl_verify_job *job)
{
    fl_half g_halves[2], q_halves[2];
    fl_scalar u1, u2;
    memcpy(u1.limb, job->u1, sizeof u1.limb);
    memcpy(u2.limb, job->u2, sizeof u2.limb);
    fl_scalar_split(&g_halves[0], &g_halves[1], &u1);
    fl_scalar_split(&q_halves[0], &q_halves[1], &u2);
    for (int i = 0; i < 2; i++) {
        fl_term *terms = groups->terms + used;
        uint32_t count = comb_append(terms, &fl_generator_table, &g_halves[i]);
        count += comb_append(terms + count, job->table, &q_halves[i]);
        size_t g = groups->groups++;
        groups->starts[g] = used;
        groups->counts[g] = count;
        groups->failed[g] = 0;
        used += count;
    }
    FL_VERIFY(used <= BLOCK_TERMS_MAX);
    return used;
}

static void rotate(fl_affine *out, fl_term term)
{
    fl_field x, y;
    fl_field_load(&x, fl_term_point(term)->x);
    fl_field_mul(&x, &x, &FL_FIELD_BETA);
    fl_term_y(&y, term);
    memcpy(out->x, x.limb, sizeof out->x);
    memcpy(out->y, y.limb, sizeof out->y);
}

/* Compares x(R) with r modulo n: x is r, or r + n, which is below p for few r. */
static uint8_t judge(uint8_t *hint33, fl_term nonce_point, const uint64_t r[4])
{
    fl_affine point;
    fl_field y;
    uint8_t tag = FL_HINT_X_IS_R;
    canonical_point(&point, fl_term_point(nonce_point));
    if (fl_compare256(point.x, FL_ORDER.limb) >= 0) {
        fl_scalar x;
        memcpy(x.limb, point.x, sizeof x.limb);
        fl_scalar_reduce(&x);
        memcpy(point.x, x.limb, sizeof point.x);
        tag = FL_HINT_X_IS_R_PLUS_N;
    }
    if (fl_compare256(point.x, r) != 0)
        return FL_LANE_INVALID;
    if (hint33 != NULL) {
        fl_term_y(&y, nonce_point);
        fl_field_canonical(&y);
        hint33[0] = (uint8_t)(tag + (y.limb[0] & 1));
        fl_store_be256(hint33 + 1, y.limb);
    }
    return FL_LANE_VALID;
}

/* Adds the halves that are left in the groups, the second times lambda, and judges what comes out. */
static void comb_finish(comb_workspace *work, uint8_t *verdicts, uint8_t *hint33s, const fl_verify_job *jobs,
                        size_t count)
{
    const fl_groups *groups = &work->groups;
    size_t pairs = 0;
    for (size_t i = 0; i < count; i++) {
        verdicts[i] = FL_LANE_UNDECIDED;
        if (groups->counts[2 * i] == 0 || groups->counts[2 * i + 1] == 0)
            continue;
        verdicts[i] = FL_LANE_VALID;
        rotate(&work->rotated[i], groups->terms[groups->starts[2 * i + 1]]);
        work->pairs[2 * pairs] = groups->terms[groups->starts[2 * i]];
        work->pairs[2 * pairs++ + 1] = fl_term_of(&work->rotated[i], 0);
    }
    int any_undefined = fl_add_pairs(work->nonce_points, work->pairs, pairs, work->products);
    pairs = 0;
    for (size_t i = 0; i < count; i++) {
        if (verdicts[i] == FL_LANE_UNDECIDED)
            continue;
        const fl_affine *point = &work->nonce_points[pairs];
        fl_term nonce_point = fl_term_of(point, work->pairs[2 * pairs++] & 1);
        if (any_undefined && fl_is_undefined(point))
            verdicts[i] = FL_LANE_UNDECIDED;
        else
            verdicts[i] = judge(hint33s ? hint33s + FL_HINT_LEN * i : NULL, nonce_point, jobs[i].r);
    }
}

static void comb_verify_block(comb_workspace *work, uint8_t *verdicts, uint8_t *hint33s,
                              const fl_verify_job *jobs, size_t count)
{
    uint32_t used = 0;
    work->groups.groups = 0;
    for (size_t i = 0; i < count; i++)
        used = comb_append_job(&work->groups, used, &jobs[i]);
    fl_groups_sum(&work->groups, &work->scratch);
    comb_finish(work, verdicts, hint33s, jobs, count);
}

static void comb_verify(uint8_t *verdicts, uint8_t *hint33s, const fl_verify_job *jobs, size_t count)
{
    comb_workspace *work = comb_workspace_new();
    memset(verdicts, FL_LANE_UNDECIDED, count);
    if (hint33s != NULL)
        memset(hint33s, 0, FL_HINT_LEN * count);
    for (size_t first = 0; work != NULL && first < count; first += COMB_BLOCK) {
        size_t size = count - first < COMB_BLOCK ? count - first : COMB_BLOCK;
        comb_verify_block(work, verdicts + first, hint33s ? hint33s + FL_HINT_LEN * first : NULL, jobs + first,
                          size);
    }
    free(work);
}

#endif

/* Sums of many affine points: additions in batches that share one inversion in the field.
 *
 * One addition costs 5 products and a square, against 8 and 3 in Jacobian coordinates, if there are many to be
 * done at the same time: so sums are trees, whose levels are batches. Compiled once into every kernel.
 */
#ifndef FL_SECP256K1_AFFINE_H
#define FL_SECP256K1_AFFINE_H

#include "field.h"
#include "group.h"
#include "modinv.h"

/* A point or its negative: the address of an fl_affine, which leaves the low bits free, | 1 for the negative. */
typedef uintptr_t fl_term;

static inline fl_term fl_term_of(const fl_affine *point, int negative)
{
    return (fl_term)point | (negative != 0);
}

static inline const fl_affine *fl_term_point(fl_term term)
{
    return (const fl_affine *)(term & ~(fl_term)1);
}

static inline void fl_term_y(fl_field *y, fl_term term)
{
    fl_field_load(y, fl_term_point(term)->y);
    if (term & 1)
        fl_field_negate(y, y);
}

static inline void fl_field_invert(fl_field *out, const fl_field *a)
{
    uint64_t limbs[4];
    fl_field_store(limbs, a);
    fl_modinv(limbs, limbs, &FL_MODULUS_P);
    fl_field_load(out, limbs);
}

/* Interleaved chains: a product waits 50 cycles for the one before it, of which another could use half. */
enum { FL_CHAINS = 4 };

#define FL_FLATTEN static inline __attribute__((always_inline))

static inline void fl_field_select(fl_field *out, const fl_field *if_zero, const fl_field *if_one, uint64_t bit)
{
    for (int i = 0; i < 4; i++)
        out->limb[i] = if_zero->limb[i] ^ ((if_zero->limb[i] ^ if_one->limb[i]) & (0 - bit));
}

/* A pair of equal x has dx = 1 for the sake of its chain's product where zeros are expected (`guard`). */
FL_FLATTEN void fl_pair_dx(fl_field *dx, const fl_term pair[2], int guard)
{
    fl_field x1, x2;
    fl_field_load(&x1, fl_term_point(pair[0])->x);
    fl_field_load(&x2, fl_term_point(pair[1])->x);
    fl_field_sub(dx, &x2, &x1);
    if (guard && fl_field_is_zero(dx))
        *dx = FL_FIELD_ONE;
}

/* For each lane: slope l = dy / dx, x3 = l^2 - x1 - x2, y3 = l (x1 - x3) - y1, with the second point negated if
 * the signs differ. Each line is done for all lanes before the next. */
FL_FLATTEN void fl_pairs_chord(fl_affine *out, const fl_term *pairs, const fl_field *inverse_dx, int lanes)
{
    fl_field x1[FL_CHAINS], y1[FL_CHAINS], x2[FL_CHAINS], slope[FL_CHAINS], x3[FL_CHAINS], y3[FL_CHAINS];
#pragma GCC unroll 4
    for (int c = 0; c < lanes; c++) {
        const fl_affine *first = fl_term_point(pairs[2 * c]), *second = fl_term_point(pairs[2 * c + 1]);
        fl_field y2, negative;
        fl_field_load(&x1[c], first->x);
        fl_field_load(&x2[c], second->x);
        fl_field_load(&y1[c], first->y);
        fl_field_load(&y2, second->y);
        fl_field_negate(&negative, &y2);
        fl_field_select(&y2, &y2, &negative, (pairs[2 * c] ^ pairs[2 * c + 1]) & 1);
        fl_field_sub(&slope[c], &y2, &y1[c]);
    }
#pragma GCC unroll 4
    for (int c = 0; c < lanes; c++)
        fl_field_mul(&slope[c], &slope[c], &inverse_dx[c]);
#pragma GCC unroll 4
    for (int c = 0; c < lanes; c++)
        fl_field_sqr(&x3[c], &slope[c]);
#pragma GCC unroll 4
    for (int c = 0; c < lanes; c++) {
        fl_field_sub(&x3[c], &x3[c], &x1[c]);
        fl_field_sub(&x3[c], &x3[c], &x2[c]);
        fl_field_sub(&y3[c], &x1[c], &x3[c]);
    }
#pragma GCC unroll 4
    for (int c = 0; c < lanes; c++)
        fl_field_mul(&y3[c], &y3[c], &slope[c]);
#pragma GCC unroll 4
    for (int c = 0; c < lanes; c++) {
        fl_field_sub(&y3[c], &y3[c], &y1[c]);
        memcpy(out[c].x, x3[c].limb, sizeof out[c].x);
        memcpy(out[c].y, y3[c].limb, sizeof out[c].y);
    }
}

/* Pair i belongs to chain i mod FL_CHAINS: products[i] = product of the dx before it in its chain, all[c] = that
 * of the whole chain. */
FL_FLATTEN void fl_pairs_products(fl_field all[FL_CHAINS], fl_field *products, const fl_term *pairs, size_t count,
                                  int guard)
{
    enum { AHEAD = 2 * FL_CHAINS };
    for (int c = 0; c < FL_CHAINS; c++)
        all[c] = FL_FIELD_ONE;
    for (size_t i = 0; i < count; i += FL_CHAINS) {
        size_t lanes = count - i < FL_CHAINS ? count - i : FL_CHAINS;
#pragma GCC unroll 4
        for (size_t c = 0; c < lanes; c++) {
            fl_field dx;
            if (i + c + AHEAD < count) {
                __builtin_prefetch(fl_term_point(pairs[2 * (i + c + AHEAD)]));
                __builtin_prefetch(fl_term_point(pairs[2 * (i + c + AHEAD) + 1]));
            }
            fl_pair_dx(&dx, pairs + 2 * (i + c), guard);
            products[i + c] = all[c];
            fl_field_mul(&all[c], &all[c], &dx);
        }
    }
}

/* Inverts each chain's product by one inversion; returns 0 if their product is zero. */
static inline int fl_invert_chains(fl_field all[FL_CHAINS])
{
    fl_field before[FL_CHAINS], product = FL_FIELD_ONE, one;
    for (int c = 0; c < FL_CHAINS; c++) {
        before[c] = product;
        fl_field_mul(&product, &product, &all[c]);
    }
    if (fl_field_is_zero(&product))
        return 0;
    fl_field_invert(&product, &product);
    for (int c = FL_CHAINS - 1; c >= 0; c--) {
        fl_field_mul(&one, &product, &before[c]);
        fl_field_mul(&product, &product, &all[c]);
        all[c] = one;
    }
    return 1;
}

FL_FLATTEN void fl_pairs_finish(fl_affine *out, const fl_term *pairs, fl_field *inverses, const fl_field *products,
                                int lanes, int guard)
{
    fl_field inverse_dx[FL_CHAINS];
#pragma GCC unroll 4
    for (int c = 0; c < lanes; c++) {
        fl_field dx;
        fl_pair_dx(&dx, pairs + 2 * c, guard);
        fl_field_mul(&inverse_dx[c], &inverses[c], &products[c]);
        fl_field_mul(&inverses[c], &inverses[c], &dx);
    }
    fl_pairs_chord(out, pairs, inverse_dx, lanes);
}

/* Not a point of the curve: what an addition gives that the chord does not define. */
static inline int fl_is_undefined(const fl_affine *point)
{
    uint64_t any = 0;
    for (int i = 0; i < 4; i++)
        any |= point->x[i] | point->y[i];
    return any == 0;
}

static inline void fl_mark_undefined(fl_affine *out, const fl_term *pairs, size_t count)
{
    for (size_t i = 0; i < count; i++) {
        fl_field x1, x2;
        fl_field_load(&x1, fl_term_point(pairs[2 * i])->x);
        fl_field_load(&x2, fl_term_point(pairs[2 * i + 1])->x);
        if (fl_field_equal(&x1, &x2))
            memset(&out[i], 0, sizeof out[i]);
    }
}

/* out[i] = pairs[2 i] + pairs[2 i + 1], or its negative if the first term is one: its term has the first one's
 * sign. Coordinates are below 2^256, not canonical. A pair of equal x becomes the undefined point; returns 1 if
 * there was any. out must not overlap the points; products holds count. */
static inline int fl_add_pairs(fl_affine *out, const fl_term *pairs, size_t count, fl_field *products)
{
    fl_field chains[FL_CHAINS];
    int guard = 0;
    if (count == 0)
        return 0;
    fl_pairs_products(chains, products, pairs, count, 0);
    if (!fl_invert_chains(chains)) {
        guard = 1;
        fl_pairs_products(chains, products, pairs, count, 1);
        fl_invert_chains(chains);
    }
    size_t rest = count % FL_CHAINS, whole = count - rest;
    for (size_t c = 0; c < rest; c++)
        fl_pairs_finish(out + whole + c, pairs + 2 * (whole + c), chains + c, products + whole + c, 1, guard);
    for (size_t i = whole; i > 0;) {
        i -= FL_CHAINS;
        fl_pairs_finish(out + i, pairs + 2 * i, chains, products + i, FL_CHAINS, guard);
    }
    if (guard)
        fl_mark_undefined(out, pairs, count);
    return guard;
}

/* ---- Sums of groups ---- */

/* Terms of group g: terms[starts[g] .. starts[g] + counts[g]). */
typedef struct {
    fl_term *terms;
    uint32_t *starts;
    uint32_t *counts;
    uint8_t *failed; /* set where an addition was undefined: the group then has no terms left */
    size_t groups;
} fl_groups;

/* Scratch for sums of `terms_max` terms in all: that many points, since each addition takes one term away and
 * makes one point, and half as many pairs and products. */
typedef struct {
    fl_affine *points;
    fl_term *pairs;
    fl_field *products;
} fl_sum_scratch;

static inline size_t fl_groups_pair(const fl_groups *groups, fl_term *pairs)
{
    size_t used = 0;
    for (size_t g = 0; g < groups->groups; g++) {
        const fl_term *terms = groups->terms + groups->starts[g];
        uint32_t paired = groups->counts[g] & ~UINT32_C(1);
        for (uint32_t i = 0; i < paired; i++)
            pairs[used++] = terms[i];
    }
    return used / 2;
}

/* Puts the sums in the place of their pairs. */
static inline void fl_groups_take(fl_groups *groups, const fl_affine *sums, int any_undefined)
{
    for (size_t g = 0; g < groups->groups; g++) {
        fl_term *terms = groups->terms + groups->starts[g];
        uint32_t count = groups->counts[g], half = count / 2;
        for (uint32_t i = 0; i < half; i++, sums++) {
            if (any_undefined && fl_is_undefined(sums))
                groups->failed[g] = 1;
            terms[i] = fl_term_of(sums, terms[2 * i] & 1);
        }
        if (count & 1)
            terms[half] = terms[count - 1];
        groups->counts[g] = groups->failed[g] ? 0 : half + (count & 1);
    }
}

/* Sums every group to a single term, at its start, that lies in the scratch or is the group's only one; a count
 * of 0 is left where there was no term or an addition was undefined. */
static inline void fl_groups_sum(fl_groups *groups, const fl_sum_scratch *scratch)
{
    fl_affine *next = scratch->points;
    size_t count;
    while ((count = fl_groups_pair(groups, scratch->pairs)) > 0) {
        int any_undefined = fl_add_pairs(next, scratch->pairs, count, scratch->products);
        fl_groups_take(groups, next, any_undefined);
        next += count;
    }
}

#endif

/* What the two lane verifiers of AVX-512 IFMA share: sums of table points, and from the sum to verdicts and hints.
 *
 * Jobs are taken sixteen at a time as lanes of a block. All lanes of a block do the same steps; what differs is which
 * points they add. A step in which a lane has nothing to add is done all the same, and that lane's result discarded.
 */
#ifndef FL_SECP256K1_LANES_IFMA_H
#define FL_SECP256K1_LANES_IFMA_H

#include <string.h>

#include "group_ifma.h"
#include "../scalar.h"

/* ---- Plans ---- */

enum {
    POSITIONS_MAX = (FL_GLV_BITS + FL_COMB_WINDOW_MIN - 1) / FL_COMB_WINDOW_MIN,
    STEPS_MAX = 4 * POSITIONS_MAX, /* two scalars of two halves each */
    PREFETCH_STEPS = 3,            /* an addition takes long enough for an L3 hit, not for memory */
};

/* The points that each lane adds, step by step. */
typedef struct {
    size_t steps;
    const fl_affine *point[STEPS_MAX][BLOCK_LANES];
    __mmask8 used[STEPS_MAX][GROUPS];    /* lanes that add something; point is readable for the others too */
    __mmask8 negated[STEPS_MAX][GROUPS]; /* lanes that subtract */
} lane_plan;

FL_INLINE void plan_set(lane_plan *plan, size_t step, int lane, const fl_affine *point, int used, int negated) {
    const int g = lane / FE8_LANES, bit = lane % FE8_LANES;
    plan->point[step][lane] = point;
    plan->used[step][g] |= (__mmask8)(used << bit);
    plan->negated[step][g] |= (__mmask8)(negated << bit);
}

/* Appends `steps` steps in which, for now, no lane adds anything; returns the first. */
static size_t plan_extend(lane_plan *plan, size_t steps, const fl_affine *anything) {
    size_t first = plan->steps;
    FL_VERIFY(first + steps <= STEPS_MAX);
    for (size_t step = first; step < first + steps; step++) {
        for (int g = 0; g < GROUPS; g++) {
            plan->used[step][g] = plan->negated[step][g] = 0;
        }
        for (int lane = 0; lane < BLOCK_LANES; lane++) {
            plan->point[step][lane] = anything;
        }
    }
    plan->steps += steps;
    return first;
}

/* In one lane, from step `first`: the comb's points for one half of a scalar (group.h). */
static void plan_comb(lane_plan *plan, size_t first, int lane, const fl_comb_table *table, const fl_half *half) {
    int32_t digits[POSITIONS_MAX];
    unsigned positions = fl_comb_positions(table->window);
    const fl_affine *points = table->points;
    fl_half_digits(digits, half, table->window);
    for (unsigned position = 0; position < positions; position++) {
        int32_t digit = digits[position];
        size_t index = (size_t)(digit < 0 ? -digit : digit);
        plan_set(plan, first + position, lane, digit == 0 ? points : points + index - 1, digit != 0, digit < 0);
        points += (size_t)1 << (table->window - 1);
    }
}

/* ---- Sums ---- */

typedef struct {
    point16 sum;
    __mmask8 started[GROUPS]; /* lanes whose sum is no longer the empty one */
} lane_sum;

static void sum_clear(lane_sum *s) {
    EACH_GROUP {
        s->sum.x.group[g] = s->sum.y.group[g] = s->sum.z.group[g] = fe8_small(0);
        s->started[g] = 0;
    }
}

static __attribute__((noinline)) void add_all_lanes(point16 *p, const affine16 *q) {
    fe16 h;
    point16_add_affine(p, q, &h);
}

/* Takes the addition back in lanes that had nothing to add, and replaces it by the point itself in lanes that had
 * nothing to add it to. */
static __attribute__((noinline)) void sum_correct(lane_sum *s, const point16 *before, const affine16 *q,
                                                  const __mmask8 used[GROUPS]) {
    const fe8 one = fe8_small(1);
    EACH_GROUP {
        __mmask8 keep = (__mmask8)~used[g], begin = used[g] & (__mmask8)~s->started[g];
        fe8 *x = &s->sum.x.group[g], *y = &s->sum.y.group[g], *z = &s->sum.z.group[g];
        fe8_select(x, begin, &q->x.group[g], x);
        fe8_select(y, begin, &q->y.group[g], y);
        fe8_select(z, begin, &one, z);
        fe8_select(x, keep, &before->x.group[g], x);
        fe8_select(y, keep, &before->y.group[g], y);
        fe8_select(z, keep, &before->z.group[g], z);
        s->started[g] |= used[g];
    }
}

FL_INLINE void plan_prefetch(const lane_plan *plan, size_t step) {
    if (step < plan->steps) {
        for (int lane = 0; lane < BLOCK_LANES; lane++) {
            _mm_prefetch((const char *)plan->point[step][lane], _MM_HINT_T0);
        }
    }
}

/* Adds the points of steps first .. end - 1. */
static void sum_add(lane_sum *s, const lane_plan *plan, size_t first, size_t end) {
    for (size_t step = first; step < end; step++) {
        affine16 q;
        plan_prefetch(plan, step + PREFETCH_STEPS);
        EACH_GROUP {
            affine8_load(&q.x.group[g], &q.y.group[g], &plan->point[step][FE8_LANES * g], plan->negated[step][g]);
        }
        const __mmask8 *used = plan->used[step];
        if ((used[0] & used[1] & s->started[0] & s->started[1]) == 0xff) {
            add_all_lanes(&s->sum, &q);
        } else {
            point16 before = s->sum;
            add_all_lanes(&s->sum, &q);
            sum_correct(s, &before, &q, used);
        }
    }
}

/* ---- Verdicts ---- */

/* p - n, the values of r that leave room for x = r + n. */
static const uint64_t P_MINUS_N[4] = {UINT64_C(0x402da1722fc9baee), UINT64_C(0x4551231950b75fc4), 1, 0};

/* Lanes whose x / z^2 is `candidate`. */
FL_INLINE __mmask8 x_equals(const fe8 *x, const fe8 *z_squared, const uint64_t candidate[FE8_LANES][4]) {
    __m512i row[FE8_LANES];
    fe8 expected, scaled_x, difference;
    for (int lane = 0; lane < FE8_LANES; lane++) {
        uint64_t words[FE8_LANES] = {0};
        memcpy(words, candidate[lane], sizeof candidate[lane]);
        row[lane] = _mm512_loadu_si512(words);
    }
    transpose8(row);
    fe8_from_words(&expected, row);
    fe8_mul(&scaled_x, &expected, z_squared);
    fe8_sub(&difference, &scaled_x, x);
    return fe8_is_zero(&difference);
}

/* out = r + n where that is below p; returns 0, and leaves out alone, where it is not. */
static int r_plus_n(uint64_t out[4], const uint64_t r[4]) {
    if (fl_compare256(r, P_MINUS_N) >= 0) {
        return 0;
    }
    unsigned __int128 sum = 0;
    for (int i = 0; i < 4; i++) {
        sum += (unsigned __int128)r[i] + FL_ORDER.limb[i];
        out[i] = (uint64_t)sum;
        sum >>= 64;
    }
    return 1;
}

/* Compares the sums of one group with r, and with r + n in lanes where that is an x coordinate too; `tags` are the
 * hints' tags without the parity. */
static void group_verdicts(uint8_t verdicts[FE8_LANES], uint8_t tags[FE8_LANES], const point16 *sum, int g,
                           const fl_verify_job *const jobs[FE8_LANES]) {
    const fe8 *x = &sum->x.group[g], *z = &sum->z.group[g];
    uint64_t r[FE8_LANES][4], wrapped[FE8_LANES][4];
    __mmask8 may_wrap = 0;
    fe8 z_squared;
    for (int lane = 0; lane < FE8_LANES; lane++) {
        memcpy(r[lane], jobs[lane]->r, sizeof r[lane]);
        memcpy(wrapped[lane], jobs[lane]->r, sizeof r[lane]);
        may_wrap |= (__mmask8)(r_plus_n(wrapped[lane], jobs[lane]->r) << lane);
    }
    fe8_sqr(&z_squared, z);
    __mmask8 undecided = fe8_is_zero(z);
    __mmask8 is_r = x_equals(x, &z_squared, (const uint64_t(*)[4])r);
    __mmask8 is_wrapped = may_wrap == 0 ? 0 : x_equals(x, &z_squared, (const uint64_t(*)[4])wrapped) & may_wrap;
    for (int lane = 0; lane < FE8_LANES; lane++) {
        int r_matches = is_r >> lane & 1, wrapped_matches = is_wrapped >> lane & 1;
        int valid = (r_matches | wrapped_matches) & ~(undecided >> lane);
        verdicts[lane] = undecided >> lane & 1 ? FL_LANE_UNDECIDED : valid ? FL_LANE_VALID : FL_LANE_INVALID;
        tags[lane] = !valid ? FL_HINT_NONE : r_matches ? FL_HINT_X_IS_R : FL_HINT_X_IS_R_PLUS_N;
    }
}

/* ---- Hints ---- */

enum { HINT_BLOCKS = 8, HINT_GROUPS = HINT_BLOCKS * GROUPS }; /* 128 jobs share an inversion, a hundredth of the work */

/* Sums that wait for the inverse of their z. */
typedef struct {
    size_t groups;
    fe8 y[HINT_GROUPS], z[HINT_GROUPS];
    uint8_t tags[HINT_GROUPS][FE8_LANES];
} hint_batch;

static void hint_write(uint8_t hint33[FL_HINT_LEN], uint8_t tag, const uint64_t y[4]) {
    memset(hint33, 0, FL_HINT_LEN);
    if (tag != FL_HINT_NONE) {
        hint33[0] = tag | (uint8_t)(y[0] & 1);
        fl_store_be256(hint33 + 1, y);
    }
}

/* y / z^3 for every waiting lane, by one inversion in each of the eight lanes. */
static void hints_write(uint8_t *hint33s, hint_batch *batch, size_t count) {
    fe8 product[HINT_GROUPS], inverse, one = fe8_small(1);
    for (size_t i = 0; i < batch->groups; i++) {
        /* An undecided lane must not spoil the product of the others. */
        fe8_select(&batch->z[i], fe8_is_zero(&batch->z[i]), &one, &batch->z[i]);
        product[i] = batch->z[i];
        if (i > 0) {
            fe8_mul_call(&product[i], &product[i - 1], &batch->z[i]);
        }
    }
    fe8_invert(&inverse, &product[batch->groups - 1]);
    for (size_t i = batch->groups; i-- > 0;) {
        fe8 z_inverse = inverse, cubed, y;
        if (i > 0) {
            fe8_mul_call(&z_inverse, &inverse, &product[i - 1]);
            fe8_mul_call(&inverse, &inverse, &batch->z[i]);
        }
        fe8_sqr_times_mul(&cubed, &z_inverse, 1, &z_inverse);
        fe8_mul_call(&y, &batch->y[i], &cubed);
        __m512i words[4];
        uint64_t lanes[4][FE8_LANES];
        fe8_to_words(words, &y);
        for (int j = 0; j < 4; j++) {
            _mm512_storeu_si512(lanes[j], words[j]);
        }
        for (size_t lane = 0; lane < FE8_LANES && FE8_LANES * i + lane < count; lane++) {
            const uint64_t y_words[4] = {lanes[0][lane], lanes[1][lane], lanes[2][lane], lanes[3][lane]};
            hint_write(hint33s + FL_HINT_LEN * (FE8_LANES * i + lane), batch->tags[i][lane], y_words);
        }
    }
}

/* ---- Batches ---- */

typedef void block_sum_fn(lane_sum *out, const fl_verify_job *const jobs[BLOCK_LANES]);

/* Verdicts of one block, and its entries in `batch`. */
FL_INLINE void block_verify(uint8_t *verdicts, hint_batch *batch, const fl_verify_job *jobs, size_t count,
                            block_sum_fn *block_sum) {
    const fl_verify_job *lanes[BLOCK_LANES];
    uint8_t found[BLOCK_LANES];
    lane_sum s;
    for (size_t lane = 0; lane < BLOCK_LANES; lane++) {
        lanes[lane] = &jobs[lane < count ? lane : 0]; /* a short block repeats its first job */
    }
    block_sum(&s, lanes);
    for (int g = 0; g < GROUPS; g++) {
        size_t i = batch->groups++;
        group_verdicts(found + FE8_LANES * g, batch->tags[i], &s.sum, g, lanes + FE8_LANES * g);
        batch->y[i] = s.sum.y.group[g];
        batch->z[i] = s.sum.z.group[g];
    }
    memcpy(verdicts, found, count < BLOCK_LANES ? count : BLOCK_LANES);
}

/* The lane verifier (group.h) around a way to compute u1 G + u2 Q. */
FL_INLINE void lanes_verify(uint8_t *verdicts, uint8_t *hint33s, const fl_verify_job *jobs, size_t count,
                            block_sum_fn *block_sum) {
    hint_batch batch;
    for (size_t first = 0; first < count; first += HINT_BLOCKS * BLOCK_LANES) {
        size_t left = count - first < HINT_BLOCKS * BLOCK_LANES ? count - first : HINT_BLOCKS * BLOCK_LANES;
        batch.groups = 0;
        for (size_t i = 0; i < left; i += BLOCK_LANES) {
            block_verify(verdicts + first + i, &batch, jobs + first + i, left - i, block_sum);
        }
        if (hint33s != NULL) {
            hints_write(hint33s + FL_HINT_LEN * first, &batch, left);
        }
    }
}

#endif

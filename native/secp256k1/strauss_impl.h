/* Verification under any key: u2 Q by doublings shared between the two halves of u2 (Strauss), u1 G by the
 * generator's comb. Included by the kernels. */
#ifndef FL_SECP256K1_STRAUSS_IMPL_H
#define FL_SECP256K1_STRAUSS_IMPL_H

#include "comb_impl.h"

enum {
    /* Non-adjacent forms of width 5: odd digits up to 15, one in six places. */
    NAF_WIDTH = 5,
    ODD_MULTIPLES = 8,
    NAF_PLACES = FL_GLV_BITS + 1
};

typedef struct {
    fl_affine odd[ODD_MULTIPLES]; /* Q, 3 Q .. 15 Q */
    fl_field rotated_x[ODD_MULTIPLES];
    int8_t naf[2][NAF_PLACES];
} strauss_lane;

typedef struct {
    strauss_lane lanes[COMB_BLOCK];
    fl_affine powers[3 * COMB_BLOCK]; /* 2 Q, 4 Q, 8 Q */
    fl_jacobian sums[3 * COMB_BLOCK];
    fl_affine key_products[COMB_BLOCK]; /* u2 Q */
    fl_field scratch[3 * COMB_BLOCK];
    comb_workspace comb;
} strauss_workspace;

/* Digit i is 0 or odd, and of any five neighbours at most one is not 0. */
static void write_naf(int8_t naf[NAF_PLACES], const fl_half *half)
{
    fl_u128 rest = (fl_u128)half->magnitude[1] << 64 | half->magnitude[0];
    for (int i = 0; i < NAF_PLACES; i++) {
        int digit = 0;
        if (rest & 1) {
            digit = (int)(rest & ((1 << NAF_WIDTH) - 1));
            digit -= digit >= 1 << (NAF_WIDTH - 1) ? 1 << NAF_WIDTH : 0;
            rest -= (fl_u128)(__int128)digit; /* below 2^128 still: halves leave room for a carry */
        }
        naf[i] = (int8_t)(half->negative ? -digit : digit);
        rest >>= 1;
    }
}

static void list_multiples(fl_term *pairs, const strauss_lane *lane, const fl_affine *powers)
{
    fl_term one = fl_term_of(&lane->odd[0], 0), eight = fl_term_of(&powers[2], 0);
    pairs[0] = fl_term_of(&powers[0], 0), pairs[1] = one; /* 3 */
    pairs[2] = fl_term_of(&powers[1], 0), pairs[3] = one; /* 5 */
    pairs[4] = eight, pairs[5] = one ^ 1;                  /* 7 */
    pairs[6] = eight, pairs[7] = one;                      /* 9 */
}

/* Odd multiples of all keys of a block: powers by doubling, 3, 5, 7, 9 from them, 11, 13, 15 as 8 more. Multiples
 * of one point so small never share their x. */
static void strauss_fill_multiples(strauss_workspace *work, const fl_verify_job *jobs, size_t count)
{
    fl_affine *sums = work->comb.points;
    fl_term *pairs = work->comb.pairs;
    for (size_t i = 0; i < count; i++) {
        work->lanes[i].odd[0] = jobs[i].key;
        fl_jacobian_set(&work->sums[3 * i], fl_term_of(&work->lanes[i].odd[0], 0));
        fl_jacobian_double(&work->sums[3 * i]);
        for (size_t k = 1; k < 3; k++) {
            work->sums[3 * i + k] = work->sums[3 * i + k - 1];
            fl_jacobian_double(&work->sums[3 * i + k]);
        }
    }
    fl_jacobian_to_affine_many(work->powers, work->sums, work->scratch, 3 * count);
    for (size_t i = 0; i < count; i++)
        list_multiples(pairs + 8 * i, &work->lanes[i], work->powers + 3 * i);
    fl_add_pairs(sums, pairs, 4 * count, work->comb.products);
    for (size_t i = 0; i < count; i++)
        memcpy(&work->lanes[i].odd[1], sums + 4 * i, 4 * sizeof *sums);
    for (size_t i = 0; i < count; i++)
        for (size_t k = 0; k < 3; k++) {
            pairs[2 * (3 * i + k)] = fl_term_of(&work->lanes[i].odd[k + 1], 0);
            pairs[2 * (3 * i + k) + 1] = fl_term_of(&work->powers[3 * i + 2], 0);
        }
    fl_add_pairs(sums, pairs, 3 * count, work->comb.products);
    for (size_t i = 0; i < count; i++) {
        memcpy(&work->lanes[i].odd[5], sums + 3 * i, 3 * sizeof *sums);
        for (int k = 0; k < ODD_MULTIPLES; k++) {
            fl_field x;
            fl_field_load(&x, work->lanes[i].odd[k].x);
            fl_field_mul(&work->lanes[i].rotated_x[k], &x, &FL_FIELD_BETA);
        }
    }
}

/* A sum and whether anything was added to it. Once an addition was undefined, z is 0 and stays so. */
typedef struct {
    fl_jacobian points[FL_CHAINS];
    uint8_t started[FL_CHAINS];
} strauss_sums;

static inline void add_digit(strauss_sums *sums, int c, const strauss_lane *lane, int half, int digit)
{
    int k = (digit < 0 ? -digit : digit) / 2;
    fl_field x, y;
    fl_term_y(&y, fl_term_of(&lane->odd[k], digit < 0));
    fl_field_load(&x, half ? lane->rotated_x[k].limb : lane->odd[k].x);
    if (sums->started[c]) {
        fl_jacobian_add(&sums->points[c], &x, &y);
    } else {
        sums->points[c] = (fl_jacobian){x, y, FL_FIELD_ONE};
        sums->started[c] = 1;
    }
}

/* u2 Q of up to FL_CHAINS signatures; the doublings of all are interleaved. */
FL_FLATTEN void strauss_multiply(fl_jacobian *out, const strauss_lane *lanes, int count)
{
    strauss_sums sums;
    memset(&sums, 0, sizeof sums);
    for (int i = NAF_PLACES - 1; i >= 0; i--) {
        fl_jacobian_double_lanes(sums.points, count);
        for (int c = 0; c < count; c++)
            for (int half = 0; half < 2; half++)
                if (lanes[c].naf[half][i])
                    add_digit(&sums, c, &lanes[c], half, lanes[c].naf[half][i]);
    }
    memcpy(out, sums.points, (size_t)count * sizeof *out);
}

static void strauss_multiply_all(strauss_workspace *work, const fl_verify_job *jobs, size_t count)
{
    for (size_t i = 0; i < count; i++) {
        fl_half halves[2];
        fl_scalar u2;
        memcpy(u2.limb, jobs[i].u2, sizeof u2.limb);
        fl_scalar_split(&halves[0], &halves[1], &u2);
        write_naf(work->lanes[i].naf[0], &halves[0]);
        write_naf(work->lanes[i].naf[1], &halves[1]);
    }
    size_t whole = count - count % FL_CHAINS;
    for (size_t i = 0; i < whole; i += FL_CHAINS)
        strauss_multiply(work->sums + i, work->lanes + i, FL_CHAINS);
    for (size_t i = whole; i < count; i++)
        strauss_multiply(work->sums + i, work->lanes + i, 1);
}

/* Adds u1 G: its halves' digits, with u2 Q among those of the first. */
static void strauss_append_job(fl_groups *groups, const fl_verify_job *job, fl_affine *key_product, int failed)
{
    size_t g = groups->groups;
    uint32_t used = g ? groups->starts[g - 1] + groups->counts[g - 1] : 0;
    fl_half halves[2];
    fl_scalar u1;
    memcpy(u1.limb, job->u1, sizeof u1.limb);
    fl_scalar_split(&halves[0], &halves[1], &u1);
    for (int i = 0; i < 2; i++, g++) {
        uint32_t count = comb_append(groups->terms + used, &fl_generator_table, &halves[i]);
        if (i == 0)
            groups->terms[used + count++] = fl_term_of(key_product, 0);
        groups->starts[g] = used;
        groups->counts[g] = failed ? 0 : count;
        groups->failed[g] = 0;
        used += count;
    }
    groups->groups = g;
}

static void strauss_verify_block(strauss_workspace *work, uint8_t *verdicts, uint8_t *hint33s,
                                 const fl_verify_job *jobs, size_t count)
{
    uint8_t failed[COMB_BLOCK];
    strauss_fill_multiples(work, jobs, count);
    strauss_multiply_all(work, jobs, count);
    for (size_t i = 0; i < count; i++) {
        /* Only where u2 is 0, which it is for no signature: tests/native/test_odd_digits.py says why. */
        failed[i] = (uint8_t)fl_field_is_zero(&work->sums[i].z);
        if (failed[i])
            work->sums[i].z = FL_FIELD_ONE;
    }
    fl_jacobian_to_affine_many(work->key_products, work->sums, work->scratch, count);
    work->comb.groups.groups = 0;
    for (size_t i = 0; i < count; i++)
        strauss_append_job(&work->comb.groups, &jobs[i], &work->key_products[i], failed[i]);
    fl_groups_sum(&work->comb.groups, &work->comb.scratch);
    comb_finish(&work->comb, verdicts, hint33s, jobs, count);
}

static void strauss_verify(uint8_t *verdicts, uint8_t *hint33s, const fl_verify_job *jobs, size_t count)
{
    strauss_workspace *work = aligned_alloc(64, (sizeof *work + 63) & ~(size_t)63);
    memset(verdicts, FL_LANE_UNDECIDED, count);
    if (hint33s != NULL)
        memset(hint33s, 0, FL_HINT_LEN * count);
    if (work != NULL)
        comb_workspace_init(&work->comb);
    for (size_t first = 0; work != NULL && first < count; first += COMB_BLOCK) {
        size_t size = count - first < COMB_BLOCK ? count - first : COMB_BLOCK;
        strauss_verify_block(work, verdicts + first, hint33s ? hint33s + FL_HINT_LEN * first : NULL,
                             jobs + first, size);
    }
    free(work);
}

#endif

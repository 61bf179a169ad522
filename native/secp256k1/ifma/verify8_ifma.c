/* Verification under any keys: u2 Q by doubling and adding small odd multiples of Q and lambda Q, u1 G from the
 * generator's comb. */
#include "lanes_ifma.h"

fl_lane_verifier fl_verify8_ifma;

/* ---- Odd halves ----
 *
 * With both halves of u2 odd, every digit in base 2^5 can be odd as well, -31 .. 31: there are no zeros to treat apart.
 */

enum {
    WINDOW = 5,
    ODD_DIGITS = 26,               /* 130 bits */
    MULTIPLES = 1 << (WINDOW - 1), /* Q, 3 Q, .. 31 Q */
};

/* Two's complement of 192 bits. */
typedef struct {
    uint64_t limb[3];
} wide_half;

/* Short vectors (a, b) with a + b lambda = 0 (mod n): the first has both coordinates odd, the second an even a and an
 * odd b. */
static const wide_half VECTOR[2][2] = {
    {{{UINT64_C(0xe86c90e49284eb15), UINT64_C(0x3086d221a7d46bcd), 0}},
     {{UINT64_C(0x90ab8056f5401b3d), UINT64_C(0x1bbc8129fef177d7), ~UINT64_C(0)}}},
    {{{UINT64_C(0x57c1108d9d44cfd8), UINT64_C(0x14ca50f7a8e2f3f6), 1}},
     {{UINT64_C(0xe86c90e49284eb15), UINT64_C(0x3086d221a7d46bcd), 0}}},
};

/* a += b, or a -= b = a + ~b + 1 */
static void wide_half_add(wide_half *a, const wide_half *b, int subtract) {
    unsigned __int128 sum = (unsigned)subtract;
    const uint64_t flip = subtract ? ~UINT64_C(0) : 0;
    for (int i = 0; i < 3; i++) {
        sum += (unsigned __int128)a->limb[i] + (b->limb[i] ^ flip);
        a->limb[i] = (uint64_t)sum;
        sum >>= 64;
    }
}

static void wide_half_from(wide_half *out, const fl_half *half) {
    const wide_half magnitude = {{half->magnitude[0], half->magnitude[1], 0}};
    *out = (wide_half){{0}};
    wide_half_add(out, &magnitude, half->negative);
}

/* Makes both halves odd without changing k1 + k2 lambda (mod n). A vector is added against the sign of k1, so that
 * |k1| < 2^129; |k2| < 2^127.4 + 2^127.9 + 2^125.7 < 2^129. */
static void make_odd(wide_half half[2]) {
    for (int i = 0; i < 2; i++) {
        if ((half[i].limb[0] & 1) == 0) {
            int subtract = half[0].limb[2] >> 63 == 0;
            wide_half_add(&half[0], &VECTOR[i][0], subtract);
            wide_half_add(&half[1], &VECTOR[i][1], subtract);
        }
    }
    FL_VERIFY((half[0].limb[0] & half[1].limb[0] & 1) == 1);
}

/* k = sum of (2 d[j] - 31) 32^j, 0 <= d[j] < 32: then sum of d[j] 32^j = (k + 2^130 - 1) / 2, which is below 2^130. */
static void odd_digits(uint8_t d[ODD_DIGITS], const wide_half *k) {
    static const wide_half OFFSET = {{~UINT64_C(0), ~UINT64_C(0), 3}};
    wide_half e = *k;
    wide_half_add(&e, &OFFSET, 0);
    FL_VERIFY(e.limb[2] < 8);
    unsigned __int128 rest = (unsigned __int128)e.limb[1] << 64 | e.limb[0];
    rest >>= 1;
    for (int j = 0; j < ODD_DIGITS; j++) {
        if (j == 15) { /* 75 bits gone: room for the bits above 128, one of them lost by now */
            rest |= (unsigned __int128)e.limb[2] << (127 - 5 * 15);
        }
        d[j] = (uint8_t)((uint64_t)rest & 31);
        rest >>= WINDOW;
    }
}

/* ---- Multiples of the keys ---- */

static __attribute__((noinline)) void double_all_lanes(point16 *p, int times) {
    for (int i = 0; i < times; i++) {
        point16_double(p);
    }
}

/* [0]: multiples 1, 3, .. 31 of Q, [1]: of lambda Q, on a curve isomorphic to the lane's own. */
typedef struct {
    _Alignas(64) fl_affine point[BLOCK_LANES][2][MULTIPLES];
} key_multiples;

static __attribute__((noinline)) void multiples_store(key_multiples *table, int multiple, const fe16 *x, const fe16 *y) {
    fe16 beta_x;
    fe16_mul_constant(&beta_x, x, BETA);
    EACH_GROUP {
        fl_affine *point[2][FE8_LANES];
        for (int lane = 0; lane < FE8_LANES; lane++) {
            for (int half = 0; half < 2; half++) {
                point[half][lane] = &table->point[FE8_LANES * g + lane][half][multiple];
            }
        }
        affine8_store(point[0], &x->group[g], &y->group[g]);
        affine8_store(point[1], &beta_x.group[g], &y->group[g]);
    }
}

/* x z^2, y z^3 */
static __attribute__((noinline)) void rescale(fe16 *x, fe16 *y, const fe16 *z) {
    fe16 power;
    fe16_sqr(&power, z);
    fe16_mul(x, x, &power);
    fe16_mul(&power, &power, z);
    fe16_mul(y, y, &power);
}

/* Fills the table and gives the z that takes its points back to secp256k1: (x, y) there is (x, y, z) here.
 *
 * 2 Q = (x, y, z) is affine on the curve scaled by z, where Q is (x z^2, y z^3). There 2 Q is added to Q fifteen times
 * by mixed additions; each multiplies the running sum's z by its h, so that walking back from the last sum, whose z
 * becomes that of all, each sum lacks the product of the h after it. None of the additions is exceptional: Q has a large
 * prime order. */
static void multiples_build(key_multiples *table, fe16 *z, const affine16 *key) {
    point16 twice, sum;
    affine16 step;
    fe16 x[MULTIPLES], y[MULTIPLES], h[MULTIPLES], missing;
    const fe8 one = fe8_small(1);
    twice.x = key->x;
    twice.y = key->y;
    EACH_GROUP { twice.z.group[g] = sum.z.group[g] = one; }
    double_all_lanes(&twice, 1);
    step.x = twice.x;
    step.y = twice.y;
    sum.x = key->x;
    sum.y = key->y;
    rescale(&sum.x, &sum.y, &twice.z);
    x[0] = sum.x;
    y[0] = sum.y;
    for (int i = 1; i < MULTIPLES; i++) {
        point16_add_affine(&sum, &step, &h[i]);
        x[i] = sum.x;
        y[i] = sum.y;
    }
    fe16_mul(z, &sum.z, &twice.z);
    for (int i = MULTIPLES - 1; i >= 0; i--) {
        if (i == MULTIPLES - 2) {
            missing = h[i + 1];
        } else if (i < MULTIPLES - 2) {
            fe16_mul(&missing, &missing, &h[i + 1]);
        }
        if (i < MULTIPLES - 1) {
            rescale(&x[i], &y[i], &missing);
        }
        multiples_store(table, i, &x[i], &y[i]);
    }
}

/* ---- Sums ---- */

static void key_load(affine16 *key, const fl_verify_job *const jobs[BLOCK_LANES]) {
    const fl_affine *point[BLOCK_LANES];
    for (int lane = 0; lane < BLOCK_LANES; lane++) {
        point[lane] = &jobs[lane]->key;
    }
    EACH_GROUP { affine8_load(&key->x.group[g], &key->y.group[g], point + FE8_LANES * g, 0); }
}

/* Steps 2 i and 2 i + 1 add the digits of weight 32^(25 - i) of the first and of the second half of u2. */
static void plan_key(lane_plan *plan, int lane, const key_multiples *table, const uint64_t u2[4]) {
    fl_half split[2];
    wide_half half[2];
    fl_scalar_split(&split[0], &split[1], (const fl_scalar *)u2);
    wide_half_from(&half[0], &split[0]);
    wide_half_from(&half[1], &split[1]);
    make_odd(half);
    for (int i = 0; i < 2; i++) {
        uint8_t digits[ODD_DIGITS];
        odd_digits(digits, &half[i]);
        for (int j = 0; j < ODD_DIGITS; j++) {
            int negative = digits[j] < MULTIPLES;
            int index = negative ? MULTIPLES - 1 - digits[j] : digits[j] - MULTIPLES;
            size_t step = 2 * (size_t)(ODD_DIGITS - 1 - j) + (size_t)i;
            plan_set(plan, step, lane, &table->point[lane][i][index], 1, negative);
        }
    }
}

/* out = u2 Q, with a z on the table's curve. An addition is exceptional for one u2 alone, 58 lambda, whatever the key:
 * tests/native/test_odd_digits.py says why. */
static void sum_key(lane_sum *out, const lane_plan *plan) {
    sum_clear(out);
    sum_add(out, plan, 0, 2);
    for (size_t digit = 1; digit < ODD_DIGITS; digit++) {
        double_all_lanes(&out->sum, WINDOW);
        sum_add(out, plan, 2 * digit, 2 * digit + 2);
    }
}

static void block_sum(lane_sum *out, const fl_verify_job *const jobs[BLOCK_LANES]) {
    const fl_comb_table *generator = &fl_generator_table;
    const size_t positions = fl_comb_positions(generator->window);
    key_multiples table;
    lane_plan plan = {.steps = 0};
    affine16 key;
    fe16 z;
    key_load(&key, jobs);
    multiples_build(&table, &z, &key);
    plan_extend(&plan, 2 * ODD_DIGITS, generator->points);
    size_t second = plan_extend(&plan, positions, generator->points);
    size_t first = plan_extend(&plan, positions, generator->points);
    for (int lane = 0; lane < BLOCK_LANES; lane++) {
        fl_half half[2];
        plan_key(&plan, lane, &table, jobs[lane]->u2);
        fl_scalar_split(&half[0], &half[1], (const fl_scalar *)jobs[lane]->u1);
        plan_comb(&plan, first, lane, generator, &half[0]);
        plan_comb(&plan, second, lane, generator, &half[1]);
    }
    sum_key(out, &plan);
    fe16_mul(&out->sum.z, &out->sum.z, &z);
    /* u2 Q + k1 G + k2 lambda G = (u2 Q / lambda + k2 G) lambda + k1 G */
    fe16_mul_constant(&out->sum.x, &out->sum.x, BETA_SQUARED);
    sum_add(out, &plan, second, first);
    fe16_mul_constant(&out->sum.x, &out->sum.x, BETA);
    sum_add(out, &plan, first, plan.steps);
}

void fl_verify8_ifma(uint8_t *verdicts, uint8_t *hint33s, const fl_verify_job *jobs, size_t count) {
    lanes_verify(verdicts, hint33s, jobs, count, block_sum);
}

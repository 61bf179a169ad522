/* The randomised batch: one sum of many multiples of points, by buckets (Pippenger) filled in batches of affine
 * additions. Included by the kernels.
 *
 * A term's scalar is written in signed digits of `window` bits. Bucket (j, m) gets the points whose digit j is m;
 * then sum over j, m of m 2^(window j) bucket(j, m) is wanted. With m = row 2^h + column, buckets are summed by row
 * and by column, and rows and columns by the bits of their number, each time in batches, so that one sum for each
 * bit of the scalars is left: those are added by Horner's rule.
 */
#ifndef FL_SECP256K1_MSM_IMPL_H
#define FL_SECP256K1_MSM_IMPL_H

#include "comb_impl.h"

enum {
    MSM_WINDOW_MIN = 4,
    MSM_WINDOW_MAX = 11,
    MSM_DIGITS_MAX = FL_GLV_BITS / MSM_WINDOW_MIN + 1,
    /* Terms of the buckets that are filled together: their points fit the second-level cache. */
    MSM_TERMS_AT_ONCE = 3072
};

typedef struct {
    fl_term point;
    fl_half scalar;
} msm_term;

typedef struct {
    const msm_term *terms; /* those of full length first, then those of 64 bits */
    size_t long_count, count;
    unsigned window;
    unsigned digits_short, digits_long;
    int16_t *digits;    /* digits_long for each term */
    fl_affine *buckets; /* bucket (j, m) at j 2^(window-1) + m - 1 */
    uint8_t *filled;
    fl_groups groups;
    fl_sum_scratch scratch;
    int failed;
} msm_state;

static unsigned msm_digits(unsigned bits, unsigned window)
{
    return bits / window + 1; /* one bit more, for the carry */
}

/* The window with the fewest additions: each term once for each digit, each bucket twice. */
static unsigned msm_choose_window(size_t long_count, size_t short_count)
{
    unsigned best = MSM_WINDOW_MIN;
    size_t best_cost = SIZE_MAX;
    for (unsigned window = MSM_WINDOW_MIN; window <= MSM_WINDOW_MAX; window++) {
        unsigned digits = msm_digits(long_count ? FL_GLV_BITS : 64, window);
        size_t cost = long_count * msm_digits(FL_GLV_BITS, window) + short_count * msm_digits(64, window) +
                      ((size_t)digits << window);
        if (cost < best_cost) {
            best_cost = cost;
            best = window;
        }
    }
    return best;
}

static void msm_write_digits(int16_t *digits, const fl_half *scalar, unsigned window, unsigned count)
{
    fl_u128 rest = (fl_u128)scalar->magnitude[1] << 64 | scalar->magnitude[0];
    int full = 1 << window, carry = 0;
    for (unsigned j = 0; j < count; j++) {
        int digit = (int)((uint64_t)rest & (uint64_t)(full - 1)) + carry;
        carry = digit > full / 2;
        digit -= carry ? full : 0;
        digits[j] = (int16_t)(scalar->negative ? -digit : digit);
        rest >>= window;
    }
    FL_VERIFY(rest == 0 && carry == 0);
}

static size_t msm_terms_with_digit(const msm_state *state, unsigned j)
{
    return j < state->digits_short ? state->count : state->long_count;
}

/* Sorts the terms by their digits j in [first, end) into one group a bucket. */
static void msm_sort(msm_state *state, unsigned first, unsigned end)
{
    size_t per_digit = (size_t)1 << (state->window - 1), groups = (end - first) * per_digit;
    fl_groups *out = &state->groups;
    memset(out->counts, 0, groups * sizeof *out->counts);
    memset(out->failed, 0, groups);
    for (int pass = 0; pass < 2; pass++) {
        for (unsigned j = first; j < end; j++)
            for (size_t t = 0; t < msm_terms_with_digit(state, j); t++) {
                int digit = state->digits[t * state->digits_long + j];
                if (digit == 0)
                    continue;
                size_t g = (j - first) * per_digit + (size_t)(digit < 0 ? -digit : digit) - 1;
                uint32_t place = out->counts[g]++;
                if (pass == 1)
                    out->terms[out->starts[g] + place] = state->terms[t].point ^ (fl_term)(digit < 0);
            }
        uint32_t used = 0;
        for (size_t g = 0; pass == 0 && g < groups; g++) {
            out->starts[g] = used;
            used += out->counts[g];
            out->counts[g] = 0;
        }
    }
    out->groups = groups;
}

/* Copies the sums of the groups to points that outlive the scratch; filled[g] = 0 where there is none. */
static void msm_take_sums(msm_state *state, fl_affine *out, uint8_t *filled)
{
    const fl_groups *groups = &state->groups;
    for (size_t g = 0; g < groups->groups; g++) {
        state->failed |= groups->failed[g];
        filled[g] = groups->counts[g] != 0;
        if (!filled[g])
            continue;
        fl_term term = groups->terms[groups->starts[g]];
        fl_field y;
        fl_term_y(&y, term);
        memcpy(out[g].x, fl_term_point(term)->x, sizeof out[g].x);
        memcpy(out[g].y, y.limb, sizeof out[g].y);
    }
}

static void msm_fill_buckets(msm_state *state)
{
    size_t per_digit = (size_t)1 << (state->window - 1);
    for (unsigned j = 0; j < state->digits_long;) {
        unsigned end = j;
        size_t terms = 0;
        do {
            terms += msm_terms_with_digit(state, end++);
        } while (end < state->digits_long && terms + msm_terms_with_digit(state, end) <= MSM_TERMS_AT_ONCE);
        msm_sort(state, j, end);
        fl_groups_sum(&state->groups, &state->scratch);
        msm_take_sums(state, state->buckets + j * per_digit, state->filled + j * per_digit);
        j = end;
    }
}

/* Groups are made in two passes over what they consist of: the first counts, the second places. */
static void msm_group_add(fl_groups *groups, size_t g, const fl_affine *point, int pass)
{
    uint32_t place = groups->counts[g]++;
    if (pass == 1)
        groups->terms[groups->starts[g] + place] = fl_term_of(point, 0);
}

static void msm_group_starts(fl_groups *groups)
{
    uint32_t used = 0;
    for (size_t g = 0; g < groups->groups; g++) {
        groups->starts[g] = used;
        used += groups->counts[g];
        groups->counts[g] = 0;
    }
}

static void msm_groups_clear(fl_groups *groups, size_t count)
{
    groups->groups = count;
    memset(groups->counts, 0, count * sizeof *groups->counts);
    memset(groups->failed, 0, count);
}

/* Sums buckets by row (m >> h) and by column (m & (2^h - 1)): line l of digit j at j lines + l, the rows after
 * the columns. m = 2^(window-1) makes one row more than 2^(window-1-h). */
static unsigned msm_low_bits(unsigned window)
{
    return (window - 1) / 2;
}

static size_t msm_lines(unsigned window)
{
    unsigned low = msm_low_bits(window);
    return ((size_t)1 << low) + ((size_t)1 << (window - 1 - low)) + 1;
}

static void msm_sum_lines(msm_state *state, fl_affine *lines, uint8_t *filled)
{
    unsigned low = msm_low_bits(state->window);
    size_t per_digit = (size_t)1 << (state->window - 1), columns = (size_t)1 << low;
    size_t per_lines = msm_lines(state->window);
    fl_groups *groups = &state->groups;
    msm_groups_clear(groups, state->digits_long * per_lines);
    for (int pass = 0; pass < 2; pass++) {
        for (unsigned j = 0; j < state->digits_long; j++)
            for (size_t m = 1; m <= per_digit; m++) {
                size_t bucket = j * per_digit + m - 1;
                if (!state->filled[bucket])
                    continue;
                if (m % columns)
                    msm_group_add(groups, j * per_lines + m % columns, &state->buckets[bucket], pass);
                if (m / columns)
                    msm_group_add(groups, j * per_lines + columns + m / columns, &state->buckets[bucket], pass);
            }
        if (pass == 0)
            msm_group_starts(groups);
    }
    fl_groups_sum(groups, &state->scratch);
    msm_take_sums(state, lines, filled);
}

/* Sums lines by the bits of their number: bit b of digit j at j window + b. */
static void msm_sum_bits(msm_state *state, fl_affine *bits, uint8_t *bit_filled, const fl_affine *lines,
                         const uint8_t *filled)
{
    unsigned low = msm_low_bits(state->window), window = state->window;
    size_t per_lines = msm_lines(window), columns = (size_t)1 << low;
    fl_groups *groups = &state->groups;
    msm_groups_clear(groups, (size_t)state->digits_long * window);
    for (int pass = 0; pass < 2; pass++) {
        for (unsigned j = 0; j < state->digits_long; j++)
            for (size_t l = 1; l < per_lines; l++) {
                size_t line = j * per_lines + l, value = l < columns ? l : (l - columns) << low;
                for (unsigned b = 0; filled[line] && b < window; b++)
                    if (value >> b & 1)
                        msm_group_add(groups, j * window + b, &lines[line], pass);
            }
        if (pass == 0)
            msm_group_starts(groups);
    }
    fl_groups_sum(groups, &state->scratch);
    msm_take_sums(state, bits, bit_filled);
}

/* Horner: sum of 2^i bits[i]. z = 0 for infinity, or where an addition was undefined. */
static void msm_horner(fl_jacobian *sum, const fl_affine *bits, const uint8_t *filled, size_t count)
{
    int started = 0;
    memset(sum, 0, sizeof *sum);
    for (size_t i = count; i-- > 0;) {
        fl_field x, y;
        fl_jacobian_double(sum);
        if (!filled[i])
            continue;
        fl_field_load(&x, bits[i].x);
        fl_field_load(&y, bits[i].y);
        if (started)
            fl_jacobian_add(sum, &x, &y);
        else
            *sum = (fl_jacobian){x, y, FL_FIELD_ONE};
        started = 1;
    }
}

static size_t max_size(size_t a, size_t b)
{
    return a > b ? a : b;
}

static void *msm_take(uintptr_t *next, size_t bytes)
{
    void *taken = (void *)*next;
    *next += (bytes + 63) & ~(uintptr_t)63;
    return taken;
}

/* Lays the state out from `memory`; returns the bytes needed, which memory may be NULL to ask for. */
static size_t msm_layout(msm_state *state, void *memory)
{
    size_t per_digit = (size_t)1 << (state->window - 1), digits = state->digits_long;
    size_t groups = digits * per_digit;
    size_t line_terms = digits * max_size(2 * per_digit, msm_lines(state->window) * state->window);
    size_t terms = max_size(max_size(MSM_TERMS_AT_ONCE, state->count), line_terms);
    uintptr_t next = (uintptr_t)memory;

    state->buckets = msm_take(&next, groups * sizeof(fl_affine));
    state->scratch.points = msm_take(&next, terms * sizeof(fl_affine));
    state->scratch.pairs = msm_take(&next, terms * sizeof(fl_term));
    state->scratch.products = msm_take(&next, terms / 2 * sizeof(fl_field));
    state->groups.terms = msm_take(&next, terms * sizeof(fl_term));
    state->groups.starts = msm_take(&next, groups * sizeof(uint32_t));
    state->groups.counts = msm_take(&next, groups * sizeof(uint32_t));
    state->groups.failed = msm_take(&next, groups);
    state->filled = msm_take(&next, groups);
    state->digits = msm_take(&next, state->count * digits * sizeof(int16_t));
    return (size_t)(next - (uintptr_t)memory);
}

/* sum = the terms' sum; 0 when out of memory or an addition was undefined. z = 0 where the sum is infinity. */
static int msm_sum(fl_jacobian *sum, const msm_term *terms, size_t long_count, size_t short_count)
{
    msm_state state = {.terms = terms, .long_count = long_count, .count = long_count + short_count};
    state.window = msm_choose_window(long_count, short_count);
    state.digits_short = msm_digits(64, state.window);
    state.digits_long = long_count ? msm_digits(FL_GLV_BITS, state.window) : state.digits_short;
    size_t lines_max = state.digits_long * max_size(msm_lines(state.window), state.window);
    size_t bytes = msm_layout(&state, NULL), line_bytes = lines_max * (sizeof(fl_affine) + 1);
    uint8_t *memory = aligned_alloc(64, (bytes + 2 * line_bytes + 63) & ~(size_t)63);
    if (memory == NULL)
        return 0;
    msm_layout(&state, memory);
    fl_affine *lines = (fl_affine *)(memory + bytes), *bits = lines + lines_max;
    uint8_t *line_filled = (uint8_t *)(bits + lines_max), *bit_filled = line_filled + lines_max;

    for (size_t t = 0; t < state.count; t++)
        msm_write_digits(state.digits + t * state.digits_long, &terms[t].scalar, state.window,
                         t < long_count ? state.digits_long : state.digits_short);
    msm_fill_buckets(&state);
    msm_sum_lines(&state, lines, line_filled);
    msm_sum_bits(&state, bits, bit_filled, lines, line_filled);
    msm_horner(sum, bits, bit_filled, (size_t)state.digits_long * state.window);
    free(memory);
    return !state.failed;
}

/* ---- The equation ---- */

typedef struct {
    msm_term *terms; /* keys without tables, both halves, then the nonce points, both halves */
    size_t long_count, short_count;
    fl_affine *rotated; /* lambda times the points of every second term */
    fl_scalar *key_scalars;
    fl_scalar generator_scalar;
    fl_groups combs; /* what tables give: the sums of first and of second halves */
} msm_equation;

static void randomizer_scalar(fl_scalar *out, const uint64_t randomizer[2])
{
    static const fl_scalar LAMBDA = {{UINT64_C(0xdf02967c1b23bd72), UINT64_C(0x122e22ea20816678),
                                      UINT64_C(0xa5261c028812645a), UINT64_C(0x5363ad4cc05c30e0)}};
    fl_scalar a = {{randomizer[0]}}, b = {{randomizer[1]}};
    fl_scalar_mul(&b, &b, &LAMBDA);
    fl_scalar_add(out, &a, &b);
}

/* Adds up, for the generator and for each key, what it is to be multiplied by. */
static void msm_add_scalars(msm_equation *equation, const fl_msm_job *job)
{
    memset(equation->key_scalars, 0, job->key_count * sizeof *equation->key_scalars);
    memset(&equation->generator_scalar, 0, sizeof equation->generator_scalar);
    for (size_t i = 0; i < job->count; i++) {
        fl_scalar z, u, *key_scalar = &equation->key_scalars[job->key_index[i]];
        randomizer_scalar(&z, job->randomizers[i]);
        memcpy(u.limb, job->jobs[i].u1, sizeof u.limb);
        fl_scalar_mul(&u, &u, &z);
        fl_scalar_add(&equation->generator_scalar, &equation->generator_scalar, &u);
        memcpy(u.limb, job->jobs[i].u2, sizeof u.limb);
        fl_scalar_mul(&u, &u, &z);
        fl_scalar_add(key_scalar, key_scalar, &u);
    }
}

/* Appends half[0] P + half[1] lambda P. */
static void msm_append(msm_equation *equation, const fl_affine *point, const fl_half halves[2])
{
    size_t at = equation->long_count + equation->short_count;
    fl_affine *rotated = &equation->rotated[at / 2];
    rotate(rotated, fl_term_of(point, 0));
    equation->terms[at] = (msm_term){fl_term_of(point, 0), halves[0]};
    equation->terms[at + 1] = (msm_term){fl_term_of(rotated, 0), halves[1]};
}

static void msm_append_comb(fl_groups *combs, size_t stride, const fl_comb_table *table, const fl_half halves[2])
{
    for (size_t g = 0; g < 2; g++)
        combs->counts[g] +=
            comb_append(combs->terms + g * stride + combs->counts[g], table, &halves[g]);
}

static void msm_list_terms(msm_equation *equation, const fl_msm_job *job, size_t comb_stride)
{
    fl_half halves[2];
    fl_groups *combs = &equation->combs;
    equation->long_count = equation->short_count = 0;
    for (size_t g = 0; g < 2; g++) {
        combs->starts[g] = (uint32_t)(g * comb_stride);
        combs->counts[g] = 0;
        combs->failed[g] = 0;
    }
    combs->groups = 2;
    fl_scalar_split(&halves[0], &halves[1], &equation->generator_scalar);
    msm_append_comb(combs, comb_stride, &fl_generator_table, halves);
    for (size_t k = 0; k < job->key_count; k++) {
        fl_scalar_split(&halves[0], &halves[1], &equation->key_scalars[k]);
        if (job->tables[k] != NULL) {
            msm_append_comb(combs, comb_stride, job->tables[k], halves);
        } else {
            msm_append(equation, &job->keys[k], halves);
            equation->long_count += 2;
        }
    }
    for (size_t i = 0; i < job->count; i++) {
        for (int h = 0; h < 2; h++)
            halves[h] = (fl_half){{job->randomizers[i][h], 0}, 1};
        msm_append(equation, &job->nonce_points[i], halves);
        equation->short_count += 2;
    }
}

/* Whether sum = -(combs[0] + lambda combs[1]), with z = 0 for none of it. */
static int msm_closes(const fl_jacobian *sum, const msm_equation *equation, const fl_sum_scratch *scratch)
{
    const fl_groups *combs = &equation->combs;
    fl_affine rotated, total;
    fl_term pair[2];
    fl_field zz, x, y;
    if (combs->counts[0] == 0 || combs->counts[1] == 0 || fl_field_is_zero(&sum->z))
        return 0;
    rotate(&rotated, combs->terms[combs->starts[1]]);
    pair[0] = combs->terms[combs->starts[0]];
    pair[1] = fl_term_of(&rotated, 0);
    if (fl_add_pairs(&total, pair, 1, scratch->products))
        return 0;
    fl_field_sqr(&zz, &sum->z);
    fl_field_load(&x, total.x);
    fl_field_mul(&x, &x, &zz);
    fl_field_mul(&zz, &zz, &sum->z);
    fl_term_y(&y, fl_term_of(&total, !(pair[0] & 1)));
    fl_field_mul(&y, &y, &zz);
    return fl_field_equal(&x, &sum->x) && fl_field_equal(&y, &sum->y);
}

static size_t msm_comb_terms(const fl_msm_job *job)
{
    size_t terms = fl_comb_positions(fl_generator_table.window);
    for (size_t k = 0; k < job->key_count; k++)
        terms += job->tables[k] ? fl_comb_positions(job->tables[k]->window) : 0;
    return terms;
}

static int msm_sum_is_zero(const fl_msm_job *job)
{
    size_t stride = msm_comb_terms(job), terms = 2 * (job->count + job->key_count);
    msm_equation equation;
    uint32_t starts[2], counts[2];
    uint8_t failed[2];
    fl_sum_scratch scratch;
    fl_jacobian sum;
    size_t point_count = terms / 2 + 2 * stride;
    size_t bytes = point_count * sizeof(fl_affine) + terms * sizeof(msm_term) + 4 * stride * sizeof(fl_term) +
                   stride * sizeof(fl_field) + job->key_count * sizeof(fl_scalar);
    fl_affine *memory = aligned_alloc(64, (bytes + 63) & ~(size_t)63);

    if (memory == NULL)
        return 0;
    equation.rotated = memory;
    scratch.points = memory + terms / 2;
    scratch.products = (fl_field *)(memory + point_count);
    equation.key_scalars = (fl_scalar *)(scratch.products + stride);
    equation.terms = (msm_term *)(equation.key_scalars + job->key_count);
    scratch.pairs = (fl_term *)(equation.terms + terms);
    equation.combs = (fl_groups){scratch.pairs + 2 * stride, starts, counts, failed, 2};

    msm_add_scalars(&equation, job);
    msm_list_terms(&equation, job, stride);
    fl_groups_sum(&equation.combs, &scratch);
    int ok = msm_sum(&sum, equation.terms, equation.long_count, equation.short_count) &&
             msm_closes(&sum, &equation, &scratch);
    free(memory);
    return ok;
}

#endif

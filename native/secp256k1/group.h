/* Layouts that the secp256k1 kernels share: points, comb tables, jobs and verdicts.
 *
 * All is public data; timing may depend on it. Integers are four 64-bit limbs, least significant first, and
 * canonical in memory: field elements below p, scalars below n. Kernels may be sloppier in registers.
 */
#ifndef FL_SECP256K1_GROUP_H
#define FL_SECP256K1_GROUP_H

#include <stddef.h>
#include <stdint.h>

/* An affine point, 64 bytes, aligned to a cache line in every table. The point at infinity has no such form. */
typedef struct {
    uint64_t x[4];
    uint64_t y[4];
} fl_affine;

/* ---- Comb tables ----
 *
 * A scalar is split by the curve's endomorphism, k = k1 + k2 lambda (mod n), with |k1|, |k2| < FL_GLV_BOUND, and
 * each half is written in signed digits of `window` bits:
 *
 *     |half| = sum over j < positions of digit[j] * 2^(window j)
 *
 * -2^(window-1) <= digit < 2^(window-1) below the top position, which takes what is left and is not negative. (Low
 * to high: take the low `window` bits plus the carry; from 2^(window-1) on, subtract 2^window and carry one. The
 * sign of the half itself is applied to every digit afterwards.) A table of Q holds for every position j the
 * multiples d 2^(window j) Q, d = 1 .. fl_comb_entries(window, j), one after the other:
 *
 *     points[j * 2^(window-1) + d - 1] = d 2^(window j) Q
 *
 * The positions below the top have 2^(window-1) entries each, so the formula holds for the top too, which may
 * have more or fewer. A negative digit negates y, a digit 0 adds nothing. One table serves both halves, since
 * lambda (x, y) = (beta x, y): sum the digits of k1 and those of k2 apart, multiply the second sum's x by beta once.
 */

/* Larger than any |k1| and |k2|: 0xa2a8918ca85bafe22016d0b917e4dd77 is the largest that the split can give. Its
 * top 8 bits decide how many entries the top position needs where window divides 128. */
#define FL_GLV_BITS 128
#define FL_GLV_TOP16 0xa2a9u

#define FL_COMB_WINDOW_MIN 4
#define FL_COMB_WINDOW_MAX 16

static inline unsigned fl_comb_positions(unsigned window)
{
    return (FL_GLV_BITS + window - 1) / window;
}

/* Entries of a position: 2^(window-1), but at the top as many as the largest half and a carry can ask for. */
static inline size_t fl_comb_entries(unsigned window, unsigned position)
{
    unsigned top = fl_comb_positions(window) - 1;
    if (position < top)
        return (size_t)1 << (window - 1);
    unsigned bits = FL_GLV_BITS - window * top; /* 1 .. window: bits of a half that reach the top */
    return (FL_GLV_TOP16 >> (16 - bits)) + 1;
}

static inline size_t fl_comb_points(unsigned window)
{
    unsigned top = fl_comb_positions(window) - 1;
    return ((size_t)top << (window - 1)) + fl_comb_entries(window, top);
}

typedef struct {
    const fl_affine *points; /* fl_comb_points(window) of them, 64-byte aligned */
    unsigned window;
} fl_comb_table;

/* ---- Verifying ---- */

/* One signature, its scalars in range (r and s not 0, below n, s low) and its key on the curve:
 * u1 = digest / s, u2 = r / s (mod n). Valid when x(u1 G + u2 Q) mod n = r. */
typedef struct {
    uint64_t u1[4];
    uint64_t u2[4];
    uint64_t r[4];
    fl_affine key;
    const fl_comb_table *table; /* of the key, or NULL: then the verifier is one for any key */
} fl_verify_job;

/* Verdicts of a lane verifier. UNDECIDED is given when an addition met equal x coordinates, or the point at
 * infinity, anywhere: the caller then asks libsecp256k1. VALID and INVALID are exact. */
enum { FL_LANE_INVALID = 0, FL_LANE_VALID = 1, FL_LANE_UNDECIDED = 2 };

/* A hint is 33 bytes: a tag and y(R), big-endian. The tag is 2 + (y is odd) where x(R) = r, 4 + (y is odd) where
 * x(R) = r + n, and 0 (y then 0 too) where there is no hint. */
enum { FL_HINT_LEN = 33, FL_HINT_NONE = 0, FL_HINT_X_IS_R = 2, FL_HINT_X_IS_R_PLUS_N = 4 };

/* Writes verdicts[0..count) and, unless hints is NULL, count hints of FL_HINT_LEN bytes: those of valid
 * signatures, tag 0 for the others. Any count. Out of memory for scratch, the verdict is UNDECIDED. */
typedef void fl_lane_verifier(uint8_t *verdicts, uint8_t *hint33s, const fl_verify_job *jobs, size_t count);

/* The generator's table, built when the first kernel is tested (select.c). */
extern fl_comb_table fl_generator_table;

#endif

/* Scalars modulo the group order n, four 64-bit limbs, least significant first, always canonical. */
#ifndef FL_SECP256K1_SCALAR_H
#define FL_SECP256K1_SCALAR_H

#include <stddef.h>
#include <stdint.h>

typedef struct {
    uint64_t limb[4];
} fl_scalar;

extern const fl_scalar FL_ORDER;      /* n itself */
extern const fl_scalar FL_HALF_ORDER; /* floor(n / 2), the largest low s */

/* A half of a split scalar: sign and magnitude below 2^128. */
typedef struct {
    uint64_t magnitude[2];
    int negative;
} fl_half;

void fl_load_be256(uint64_t limbs[4], const uint8_t bytes[32]);
void fl_store_be256(uint8_t bytes[32], const uint64_t limbs[4]);

static inline int fl_is_zero256(const uint64_t a[4])
{
    return (a[0] | a[1] | a[2] | a[3]) == 0;
}

/* Less than 0, 0 or more than 0, as a is below, equal to or above b. */
static inline int fl_compare256(const uint64_t a[4], const uint64_t b[4])
{
    for (int i = 3; i >= 0; i--)
        if (a[i] != b[i])
            return a[i] < b[i] ? -1 : 1;
    return 0;
}

/* a modulo n, for any a below 2^256. */
void fl_scalar_reduce(fl_scalar *a);

void fl_scalar_add(fl_scalar *out, const fl_scalar *a, const fl_scalar *b);
void fl_scalar_negate(fl_scalar *out, const fl_scalar *a);
void fl_scalar_mul(fl_scalar *out, const fl_scalar *a, const fl_scalar *b);

/* Replaces each of count scalars, none of them zero, by its inverse: one inversion and 3 (count - 1) products.
 * `products` is scratch for count scalars. */
void fl_scalar_invert_many(fl_scalar *a, fl_scalar *products, size_t count);

/* k = k1 + k2 lambda (mod n), both halves below FL_GLV_BITS bits in magnitude (group.h). */
void fl_scalar_split(fl_half *k1, fl_half *k2, const fl_scalar *k);

/* The signed digits of a half, as group.h defines them for a comb of `window` bits, its sign applied. */
void fl_half_digits(int32_t *digits, const fl_half *half, unsigned window);

#endif

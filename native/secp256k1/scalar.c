#include "scalar.h"

#include "fl_impl.h"
#include "group.h"
#include "modinv.h"

#include <string.h>

typedef unsigned __int128 wide;

const fl_scalar FL_ORDER = {{UINT64_C(0xbfd25e8cd0364141), UINT64_C(0xbaaedce6af48a03b),
                             UINT64_C(0xfffffffffffffffe), UINT64_C(0xffffffffffffffff)}};
const fl_scalar FL_HALF_ORDER = {{UINT64_C(0xdfe92f46681b20a0), UINT64_C(0x5d576e7357a4501d),
                                  UINT64_C(0xffffffffffffffff), UINT64_C(0x7fffffffffffffff)}};

/* 2^256 - n, below 2^129. */
static const uint64_t COMPLEMENT[3] = {UINT64_C(0x402da1732fc9bebf), UINT64_C(0x4551231950b75fc4), 1};

/* The lattice of (a, b) with a + b lambda = 0 (mod n) has the short basis (a1, b1), (a2, a1). */
static const uint64_t A1[2] = {UINT64_C(0xe86c90e49284eb15), UINT64_C(0x3086d221a7d46bcd)};
static const uint64_t MINUS_B1[2] = {UINT64_C(0x6f547fa90abfe4c3), UINT64_C(0xe4437ed6010e8828)};
static const uint64_t A2[3] = {UINT64_C(0x57c1108d9d44cfd8), UINT64_C(0x14ca50f7a8e2f3f6), 1};
/* round(2^384 a1 / n) and round(2^384 (-b1) / n) */
static const uint64_t G1[4] = {UINT64_C(0xe893209a45dbb031), UINT64_C(0x3daa8a1471e8ca7f),
                               UINT64_C(0xe86c90e49284eb15), UINT64_C(0x3086d221a7d46bcd)};
static const uint64_t G2[4] = {UINT64_C(0x1571b4ae8ac47f71), UINT64_C(0x221208ac9df506c6),
                               UINT64_C(0x6f547fa90abfe4c4), UINT64_C(0xe4437ed6010e8828)};

void fl_load_be256(uint64_t limbs[4], const uint8_t bytes[32])
{
    for (int i = 0; i < 4; i++) {
        uint64_t limb = 0;
        for (int j = 0; j < 8; j++)
            limb = limb << 8 | bytes[8 * (3 - i) + j];
        limbs[i] = limb;
    }
}

void fl_store_be256(uint8_t bytes[32], const uint64_t limbs[4])
{
    for (int i = 0; i < 32; i++)
        bytes[i] = (uint8_t)(limbs[3 - i / 8] >> (56 - 8 * (i % 8)));
}

/* out[0..na+nb) = a b */
static inline void multiply(uint64_t *out, const uint64_t *a, int na, const uint64_t *b, int nb)
{
    for (int i = 0; i < na + nb; i++)
        out[i] = 0;
    for (int i = 0; i < na; i++) {
        uint64_t carry = 0;
        for (int j = 0; j < nb; j++) {
            wide sum = (wide)a[i] * b[j] + out[i + j] + carry;
            out[i + j] = (uint64_t)sum;
            carry = (uint64_t)(sum >> 64);
        }
        out[i + nb] = carry;
    }
}

/* out = low[0..4) + high[0..count) (2^256 - n), of count + 3 limbs or 5 if that is more; the caller knows that it
 * fits. */
static inline void fold(uint64_t *out, const uint64_t *low, const uint64_t *high, int count)
{
    int limbs = count + 3 > 5 ? count + 3 : 5;
    multiply(out, high, count, COMPLEMENT, 3);
    for (int i = count + 3; i < limbs; i++)
        out[i] = 0;
    wide sum = 0;
    for (int i = 0; i < limbs; i++) {
        sum += (wide)out[i] + (i < 4 ? low[i] : 0);
        out[i] = (uint64_t)sum;
        sum >>= 64;
    }
}

/* A number of eight limbs, folded thrice: below 2^385 + 2^256, 2^259 + 2^256 and 2^256 + 2^133. A last fold, after
 * which nothing can carry, and at most one subtraction are left. */
static void reduce512(fl_scalar *out, const uint64_t z[8])
{
    uint64_t first[7], second[6], third[5], last[5];
    fold(first, z, z + 4, 4);
    fold(second, first, first + 4, 3);
    fold(third, second, second + 4, 1);
    fold(last, third, third + 4, 1);
    FL_VERIFY(third[4] <= 1 && last[4] == 0);
    memcpy(out->limb, last, sizeof out->limb);
    fl_scalar_reduce(out);
    FL_VERIFY(fl_compare256(out->limb, FL_ORDER.limb) < 0);
}

void fl_scalar_reduce(fl_scalar *a)
{
    if (fl_compare256(a->limb, FL_ORDER.limb) < 0)
        return;
    wide sum = 0;
    for (int i = 0; i < 4; i++) {
        sum += (wide)a->limb[i] + (i < 3 ? COMPLEMENT[i] : 0);
        a->limb[i] = (uint64_t)sum;
        sum >>= 64;
    }
}

void fl_scalar_add(fl_scalar *out, const fl_scalar *a, const fl_scalar *b)
{
    wide sum = 0;
    for (int i = 0; i < 4; i++) {
        sum += (wide)a->limb[i] + b->limb[i];
        out->limb[i] = (uint64_t)sum;
        sum >>= 64;
    }
    if (sum) { /* the sum less 2^256 is below n - (2^256 - n): adding the complement cannot carry */
        sum = 0;
        for (int i = 0; i < 4; i++) {
            sum += (wide)out->limb[i] + (i < 3 ? COMPLEMENT[i] : 0);
            out->limb[i] = (uint64_t)sum;
            sum >>= 64;
        }
    } else {
        fl_scalar_reduce(out);
    }
}

void fl_scalar_negate(fl_scalar *out, const fl_scalar *a)
{
    uint64_t borrow = 0;
    if (fl_is_zero256(a->limb)) {
        *out = *a;
        return;
    }
    for (int i = 0; i < 4; i++) {
        wide difference = (wide)FL_ORDER.limb[i] - a->limb[i] - borrow;
        out->limb[i] = (uint64_t)difference;
        borrow = (uint64_t)(difference >> 64) & 1;
    }
}

void fl_scalar_mul(fl_scalar *out, const fl_scalar *a, const fl_scalar *b)
{
    uint64_t product[8];
    multiply(product, a->limb, 4, b->limb, 4);
    reduce512(out, product);
}

void fl_scalar_invert_many(fl_scalar *a, fl_scalar *products, size_t count)
{
    if (count == 0)
        return;
    products[0] = a[0];
    for (size_t i = 1; i < count; i++)
        fl_scalar_mul(&products[i], &products[i - 1], &a[i]);
    fl_scalar inverse; /* of a[0] ... a[i] */
    fl_modinv(inverse.limb, products[count - 1].limb, &FL_MODULUS_N);
    for (size_t i = count - 1; i > 0; i--) {
        fl_scalar one;
        fl_scalar_mul(&one, &inverse, &products[i - 1]);
        fl_scalar_mul(&inverse, &inverse, &a[i]);
        a[i] = one;
    }
    a[0] = inverse;
}

/* ---- Splitting ---- */

/* round(k g / 2^384), below 2^128 */
static void quotient(uint64_t out[2], const fl_scalar *k, const uint64_t g[4])
{
    uint64_t product[8];
    multiply(product, k->limb, 4, g, 4);
    wide rounded = ((wide)product[7] << 64 | product[6]) + (product[5] >> 63);
    out[0] = (uint64_t)rounded;
    out[1] = (uint64_t)(rounded >> 64);
}

/* acc -= a modulo 2^192 */
static void subtract(uint64_t acc[3], const uint64_t a[3])
{
    uint64_t borrow = 0;
    for (int i = 0; i < 3; i++) {
        wide difference = (wide)acc[i] - a[i] - borrow;
        acc[i] = (uint64_t)difference;
        borrow = (uint64_t)(difference >> 64) & 1;
    }
}

/* acc -= c b modulo 2^192 */
static void subtract_product(uint64_t acc[3], const uint64_t c[2], const uint64_t *b, int nb)
{
    uint64_t product[5];
    multiply(product, c, 2, b, nb);
    subtract(acc, product);
}

/* out = a, a two's complement number of 192 bits whose magnitude is below 2^128 */
static void to_half(fl_half *out, const uint64_t a[3])
{
    int minus = (int)(a[2] >> 63);
    wide low = (wide)a[1] << 64 | a[0];
    if (minus)
        low = -low;
    FL_VERIFY(low >> 112 < FL_GLV_TOP16); /* and a[2] says no more than the sign */
    FL_VERIFY(a[2] == (minus && low ? UINT64_MAX : 0));
    out->magnitude[0] = (uint64_t)low;
    out->magnitude[1] = (uint64_t)(low >> 64);
    out->negative = minus;
}

/* (k1, k2) = (k, 0) - c1 (a1, b1) - c2 (a2, a1), with c1 and c2 the rounded coordinates of (k, 0) in the basis:
 * what is left is at most half of each vector, hence |k1|, |k2| < FL_GLV_TOP16 2^112. */
void fl_scalar_split(fl_half *k1, fl_half *k2, const fl_scalar *k)
{
    uint64_t c1[2], c2[2];
    uint64_t first[3] = {k->limb[0], k->limb[1], k->limb[2]}, second[3] = {0}, part[3] = {0};
    quotient(c1, k, G1);
    quotient(c2, k, G2);
    subtract_product(first, c1, A1, 2);
    subtract_product(first, c2, A2, 3);
    subtract_product(second, c2, A1, 2);
    subtract_product(part, c1, MINUS_B1, 2); /* c1 b1 */
    subtract(second, part);
    to_half(k1, first);
    to_half(k2, second);
}

void fl_half_digits(int32_t *digits, const fl_half *half, unsigned window)
{
    wide rest = (wide)half->magnitude[1] << 64 | half->magnitude[0];
    unsigned top = fl_comb_positions(window) - 1;
    int32_t full = (int32_t)1 << window, carry = 0;
    for (unsigned j = 0; j <= top; j++) {
        int32_t digit = (int32_t)((uint64_t)rest & (uint64_t)(full - 1)) + carry;
        carry = j < top && digit >= full / 2;
        digit -= carry ? full : 0;
        digits[j] = half->negative ? -digit : digit;
        rest >>= window;
    }
}

/* Points of secp256k1, sixteen at once: two groups of eight lanes, whose steps are interleaved because the carries of
 * one multiplication alone leave the multipliers idle for a third of the time.
 *
 * Jacobian coordinates: (x, y, z) is the affine point (x / z^2, y / z^3). z = 0 (mod p) says that an addition met
 * equal x coordinates, and stays 0 through every later step: the lane is undecided.
 */
#ifndef FL_SECP256K1_GROUP_IFMA_H
#define FL_SECP256K1_GROUP_IFMA_H

#include "field_ifma.h"
#include "../group.h"

enum { GROUPS = 2, BLOCK_LANES = GROUPS * FE8_LANES };

#define EACH_GROUP _Pragma("GCC unroll 2") for (int g = 0; g < GROUPS; g++)

/* One field element for each of the sixteen lanes. */
typedef struct {
    fe8 group[GROUPS];
} fe16;

typedef struct {
    fe16 x, y, z; /* weak */
} point16;

typedef struct {
    fe16 x, y; /* x weak, y loose */
} affine16;

/* A cube root of one: lambda (x, y) = (BETA x, y); and its square, which goes with 1 / lambda. */
static const uint64_t BETA[4] = {UINT64_C(0xc1396c28719501ee), UINT64_C(0x9cf0497512f58995),
                                 UINT64_C(0x6e64479eac3434e9), UINT64_C(0x7ae96a2b657c0710)};
static const uint64_t BETA_SQUARED[4] = {UINT64_C(0x3ec693d68e6afa40), UINT64_C(0x630fb68aed0a766a),
                                         UINT64_C(0x919bb86153cbcb16), UINT64_C(0x851695d49a83f8ef)};

FL_INLINE void fe16_mul(fe16 *out, const fe16 *a, const fe16 *b) {
    EACH_GROUP { fe8_mul(&out->group[g], &a->group[g], &b->group[g]); }
}

FL_INLINE void fe16_sqr(fe16 *out, const fe16 *a) {
    EACH_GROUP { fe8_sqr(&out->group[g], &a->group[g]); }
}

/* out = a b - c; c weak */
FL_INLINE void fe16_mul_sub(fe16 *out, const fe16 *a, const fe16 *b, const fe16 *c, const int shift) {
    EACH_GROUP {
        fe8 addend = fe8_minus(NULL, &c->group[g], shift);
        fe8_mul_full(&out->group[g], &a->group[g], &b->group[g], &addend, 1);
    }
}

/* out = a^2 - c - 2^shift d; c (or NULL) and d weak */
FL_INLINE void fe16_sqr_sub(fe16 *out, const fe16 *a, const fe16 *c, const fe16 *d, const int shift) {
    EACH_GROUP {
        fe8 addend = fe8_minus(c == NULL ? NULL : &c->group[g], &d->group[g], shift);
        fe8_sqr_full(&out->group[g], &a->group[g], &addend, 1);
    }
}

FL_INLINE void fe16_sub(fe16 *out, const fe16 *a, const fe16 *b) {
    EACH_GROUP { fe8_sub(&out->group[g], &a->group[g], &b->group[g]); }
}

/* out = a times the same constant in every lane */
FL_INLINE void fe16_mul_constant(fe16 *out, const fe16 *a, const uint64_t words[4]) {
    const fe8 constant = fe8_all(words);
    EACH_GROUP { fe8_mul(&out->group[g], &a->group[g], &constant); }
}

/* out = 4 t - x, loose; t and x weak: 4 t + 4 p - x has a limb 4 below 9 2^48. */
FL_INLINE void fe16_four_minus(fe16 *out, const fe16 *t, const fe16 *x) {
    const fe8 cover = fe8_multiple_of_p(4);
    EACH_GROUP {
        fe8 *o = &out->group[g];
        for (int i = 0; i < FE8_LIMBS; i++) {
            __m512i four_t = _mm512_slli_epi64(t->group[g].limb[i], 2);
            o->limb[i] = _mm512_sub_epi64(_mm512_add_epi64(four_t, cover.limb[i]), x->group[g].limb[i]);
        }
        fe8_carry(o);
        fe8_verify_loose(o);
    }
}

/* p = 2 p, on y^2 = x^3 + b for any b: four squarings and three multiplications.
 *
 *     e = 3 x^2, b = y^2, t = x b:  x' = e^2 - 8 t,  y' = e (4 t - x') - 8 b^2,  z' = 2 y z
 */
FL_INLINE void point16_double(point16 *p) {
    fe16 e, b, t, difference;
    EACH_GROUP { fe8_sqr_full(&e.group[g], &p->x.group[g], NULL, 3); }
    fe16_sqr(&b, &p->y);
    fe16_mul(&t, &p->x, &b);
    EACH_GROUP { fe8_mul_full(&p->z.group[g], &p->y.group[g], &p->z.group[g], NULL, 2); }
    fe16_sqr_sub(&p->x, &e, NULL, &t, 3);
    fe16_sqr(&b, &b);
    fe16_four_minus(&difference, &t, &p->x);
    fe16_mul_sub(&p->y, &e, &difference, &b, 3);
}

/* p = p + q: three squarings and eight multiplications; h is what z was multiplied by. Exceptional when h = 0 (mod p),
 * p = q or p = -q: then z becomes 0.
 *
 *     h = q.x z^2 - x, r = q.y z^3 - y, v = x h^2:
 *     x' = r^2 - h^3 - 2 v,  y' = r (v - x') - y h^3,  z' = z h
 */
FL_INLINE void point16_add_affine(point16 *p, const affine16 *q, fe16 *h) {
    fe16 a, r, v, difference;
    fe16_sqr(&a, &p->z);
    fe16_mul_sub(h, &q->x, &a, &p->x, 0);
    fe16_mul(&a, &p->z, &a);
    fe16_mul_sub(&r, &q->y, &a, &p->y, 0);
    fe16_mul(&p->z, &p->z, h);
    fe16_sqr(&a, h);
    fe16_mul(&v, &p->x, &a);
    fe16_mul(&a, h, &a);
    fe16_sqr_sub(&p->x, &r, &a, &v, 1);
    fe16_mul(&a, &p->y, &a);
    fe16_sub(&difference, &v, &p->x);
    fe16_mul_sub(&p->y, &r, &difference, &a, 0);
}

/* ---- Memory ---- */

/* Reads eight points, one per lane; negates y in the lanes of `negated`. */
FL_INLINE void affine8_load(fe8 *x, fe8 *y, const fl_affine *const point[FE8_LANES], __mmask8 negated) {
    __m512i row[FE8_LANES];
    for (int lane = 0; lane < FE8_LANES; lane++) {
        row[lane] = _mm512_loadu_si512(point[lane]);
    }
    transpose8(row);
    fe8_from_words(x, row);
    fe8_from_words(y, row + 4);
    fe8_negate_lanes(y, negated);
}

/* Writes eight points of loose coordinates in canonical form. */
FL_INLINE void affine8_store(fl_affine *const point[FE8_LANES], const fe8 *x, const fe8 *y) {
    __m512i row[FE8_LANES];
    fe8_to_words(row, x);
    fe8_to_words(row + 4, y);
    transpose8(row);
    for (int lane = 0; lane < FE8_LANES; lane++) {
        _mm512_storeu_si512(point[lane], row[lane]);
    }
}

#endif

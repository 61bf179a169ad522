/* Points in Jacobian coordinates, (X / Z^2, Y / Z^3): for chains of doublings, which cannot be batched. */
#ifndef FL_SECP256K1_JACOBIAN_H
#define FL_SECP256K1_JACOBIAN_H

#include "affine.h"

typedef struct {
    fl_field x, y, z;
} fl_jacobian;

static inline void fl_jacobian_set(fl_jacobian *out, fl_term term)
{
    fl_field_load(&out->x, fl_term_point(term)->x);
    fl_term_y(&out->y, term);
    out->z = FL_FIELD_ONE;
}

#define FL_EACH_LANE(lanes) _Pragma("GCC unroll 4") for (int c = 0; c < (lanes); c++)

/* Doubles each of `lanes` (at most FL_CHAINS) points, interleaved. With s = y^2, m = 3 x^2 / 2 and t = x s:
 * x' = m^2 - 2 t, y' = m (t - x') - s^2, z' = y z. Never infinity: no point of the curve has order two. */
FL_FLATTEN void fl_jacobian_double_lanes(fl_jacobian *p, int lanes)
{
    fl_field s[FL_CHAINS], m[FL_CHAINS], t[FL_CHAINS];
    FL_EACH_LANE(lanes) fl_field_mul(&p[c].z, &p[c].z, &p[c].y);
    FL_EACH_LANE(lanes) fl_field_sqr(&s[c], &p[c].y);
    FL_EACH_LANE(lanes) fl_field_sqr(&m[c], &p[c].x);
    FL_EACH_LANE(lanes) {
        fl_field_add(&t[c], &m[c], &m[c]);
        fl_field_add(&m[c], &m[c], &t[c]);
        fl_field_half(&m[c], &m[c]);
    }
    FL_EACH_LANE(lanes) fl_field_mul(&t[c], &p[c].x, &s[c]);
    FL_EACH_LANE(lanes) fl_field_sqr(&p[c].x, &m[c]);
    FL_EACH_LANE(lanes) {
        fl_field_sub(&p[c].x, &p[c].x, &t[c]);
        fl_field_sub(&p[c].x, &p[c].x, &t[c]);
        fl_field_sub(&t[c], &t[c], &p[c].x);
    }
    FL_EACH_LANE(lanes) fl_field_mul(&t[c], &t[c], &m[c]);
    FL_EACH_LANE(lanes) fl_field_sqr(&s[c], &s[c]);
    FL_EACH_LANE(lanes) fl_field_sub(&p[c].y, &t[c], &s[c]);
}

static inline void fl_jacobian_double(fl_jacobian *p)
{
    fl_jacobian_double_lanes(p, 1);
}

/* p += (x2, y2). Where both have the same x, or p is infinity, z becomes 0 and stays 0 in all that follows: a
 * z of 0 says that the result is not to be used. */
static inline void fl_jacobian_add(fl_jacobian *p, const fl_field *x2, const fl_field *y2)
{
    fl_field zz, h, r, hh, hhh, v;
    fl_field_sqr(&zz, &p->z);
    fl_field_mul(&h, x2, &zz);
    fl_field_sub(&h, &h, &p->x);
    fl_field_mul(&zz, &zz, &p->z);
    fl_field_mul(&r, y2, &zz);
    fl_field_sub(&r, &r, &p->y);
    fl_field_mul(&p->z, &p->z, &h);
    fl_field_sqr(&hh, &h);
    fl_field_mul(&hhh, &hh, &h);
    fl_field_mul(&v, &p->x, &hh);
    fl_field_sqr(&p->x, &r);
    fl_field_sub(&p->x, &p->x, &hhh);
    fl_field_sub(&p->x, &p->x, &v);
    fl_field_sub(&p->x, &p->x, &v);
    fl_field_sub(&v, &v, &p->x);
    fl_field_mul(&v, &v, &r);
    fl_field_mul(&hhh, &hhh, &p->y);
    fl_field_sub(&p->y, &v, &hhh);
}

/* out = p, given 1 / z; canonical. */
static inline void fl_jacobian_to_affine(fl_affine *out, const fl_jacobian *p, const fl_field *inverse_z)
{
    fl_field zz, x, y;
    fl_field_sqr(&zz, inverse_z);
    fl_field_mul(&x, &p->x, &zz);
    fl_field_mul(&zz, &zz, inverse_z);
    fl_field_mul(&y, &p->y, &zz);
    fl_field_store(out->x, &x);
    fl_field_store(out->y, &y);
}

/* Converts `count` points, none of them with z = 0, to affine ones at the cost of one inversion. `products` has
 * room for `count` elements. */
static inline void fl_jacobian_to_affine_many(fl_affine *out, const fl_jacobian *p, fl_field *products,
                                              size_t count)
{
    fl_field product = FL_FIELD_ONE, inverse_z;
    for (size_t i = 0; i < count; i++) {
        products[i] = product;
        fl_field_mul(&product, &product, &p[i].z);
    }
    fl_field_invert(&product, &product);
    for (size_t i = count; i-- > 0;) {
        fl_field_mul(&inverse_z, &product, &products[i]);
        fl_field_mul(&product, &product, &p[i].z);
        fl_jacobian_to_affine(&out[i], &p[i], &inverse_z);
    }
}

#endif

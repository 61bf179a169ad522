/* Square roots in the field: the y of compressed points. Included by the kernels. */
#ifndef FL_SECP256K1_ROOT_IMPL_H
#define FL_SECP256K1_ROOT_IMPL_H

#include "affine.h"

/* a[c] = a[c]^(2^times) multiplied by b[c] */
FL_FLATTEN void root_step(fl_field *out, const fl_field *a, int times, const fl_field *b, int lanes)
{
    fl_field power[FL_CHAINS];
    for (int c = 0; c < lanes; c++)
        power[c] = a[c];
    for (int i = 0; i < times; i++)
#pragma GCC unroll 4
        for (int c = 0; c < lanes; c++)
            fl_field_sqr(&power[c], &power[c]);
#pragma GCC unroll 4
    for (int c = 0; c < lanes; c++)
        fl_field_mul(&out[c], &power[c], &b[c]);
}

/* a^((p + 1) / 4), a root of a if a has one. In binary the exponent is 223 ones, a zero, 22 ones, four zeros, two
 * ones, two zeros; x_k below is a to the power of k ones. */
FL_FLATTEN void root_lanes(fl_field *out, const fl_field *a, int lanes)
{
    fl_field x2[FL_CHAINS], x3[FL_CHAINS], x22[FL_CHAINS], x44[FL_CHAINS], x[FL_CHAINS], x88[FL_CHAINS];
    root_step(x2, a, 1, a, lanes);
    root_step(x3, x2, 1, a, lanes);
    root_step(x, x3, 3, x3, lanes);
    root_step(x, x, 3, x3, lanes);
    root_step(x, x, 2, x2, lanes);       /* 11 */
    root_step(x22, x, 11, x, lanes);     /* 22 */
    root_step(x44, x22, 22, x22, lanes); /* 44 */
    root_step(x88, x44, 44, x44, lanes); /* 88 */
    root_step(x, x88, 88, x88, lanes);   /* 176 */
    root_step(x, x, 44, x44, lanes);     /* 220 */
    root_step(x, x, 3, x3, lanes);       /* 223 */
    root_step(x, x, 23, x22, lanes);
    root_step(x, x, 6, x2, lanes);
    for (int c = 0; c < lanes; c++)
        fl_field_sqr_times(&out[c], &x[c], 2);
}

static void curve_right_side(fl_field *out, const fl_field *x)
{
    static const fl_field SEVEN = {{7}};
    fl_field square;
    fl_field_sqr(&square, x);
    fl_field_mul(out, &square, x);
    fl_field_add(out, out, &SEVEN);
}

static int is_on_curve(const fl_affine *point)
{
    fl_field x, y;
    fl_field_load(&x, point->x);
    fl_field_load(&y, point->y);
    curve_right_side(&x, &x);
    fl_field_sqr(&y, &y);
    return fl_field_equal(&x, &y);
}

FL_FLATTEN void lift_lanes(uint8_t *ok, fl_affine *points, const uint8_t *odd, int lanes)
{
    fl_field side[FL_CHAINS], root[FL_CHAINS];
    for (int c = 0; c < lanes; c++) {
        fl_field x;
        fl_field_load(&x, points[c].x);
        curve_right_side(&side[c], &x);
    }
    root_lanes(root, side, lanes);
    for (int c = 0; c < lanes; c++) {
        fl_field square;
        fl_field_sqr(&square, &root[c]);
        ok[c] = (uint8_t)fl_field_equal(&square, &side[c]);
        fl_field_canonical(&root[c]);
        if ((root[c].limb[0] & 1) != odd[c])
            fl_field_negate(&root[c], &root[c]);
        fl_field_store(points[c].y, &root[c]);
    }
}

static void lift_all(uint8_t *ok, fl_affine *points, const uint8_t *odd, size_t count)
{
    size_t whole = count - count % FL_CHAINS;
    for (size_t i = 0; i < whole; i += FL_CHAINS)
        lift_lanes(ok + i, points + i, odd + i, FL_CHAINS);
    for (size_t i = whole; i < count; i++)
        lift_lanes(ok + i, points + i, odd + i, 1);
}

static void check_all(uint8_t *ok, const fl_affine *points, size_t count)
{
    for (size_t i = 0; i < count; i++)
        ok[i] = (uint8_t)is_on_curve(&points[i]);
}

#endif

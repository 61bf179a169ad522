/* The kernel for CPUs with AVX-512 IFMA: verification on its lanes, all else, which is seldom called or not written for
 * lanes, by the kernel for BMI2 and ADX, which every such CPU has. */
#include "fl.h"
#include "../kernel.h"

fl_lane_verifier fl_verify8_ifma, fl_comb8_ifma;

static int build_table(fl_affine *points, unsigned window, const fl_affine *point) {
    return fl_secp_kernel_adx.build_table(points, window, point);
}

static void lift(uint8_t *ok, fl_affine *points, const uint8_t *odd, size_t count) {
    fl_secp_kernel_adx.lift(ok, points, odd, count);
}

static void check_points(uint8_t *ok, const fl_affine *points, size_t count) {
    fl_secp_kernel_adx.check_points(ok, points, count);
}

static int sum_is_zero(const fl_msm_job *job) { return fl_secp_kernel_adx.sum_is_zero(job); }

const fl_secp_kernel fl_secp_kernel_ifma = {
    .name = "ifma",
    .cpu_features = FL_CPU_AVX512F | FL_CPU_AVX512IFMA | FL_CPU_BMI2 | FL_CPU_ADX,
    .verify_known = fl_comb8_ifma,
    .verify_any = fl_verify8_ifma,
    .build_table = build_table,
    .lift = lift,
    .check_points = check_points,
    .sum_is_zero = sum_is_zero,
};

/* The kernel for x86-64 with BMI2 and ADX: mulx leaves the flags alone, so that two carries can run side by side. */
#define FL_FIELD_ADX 1
#include "kernel.h"

#include "fl.h"

#include "msm_impl.h"
#include "root_impl.h"
#include "strauss_impl.h"

const fl_secp_kernel fl_secp_kernel_adx = {
    .name = "adx",
    .cpu_features = FL_CPU_BMI2 | FL_CPU_ADX,
    .verify_known = comb_verify,
    .verify_any = strauss_verify,
    .build_table = comb_build,
    .lift = lift_all,
    .check_points = check_all,
    .sum_is_zero = msm_sum_is_zero,
};

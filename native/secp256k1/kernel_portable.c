/* The kernel for any 64-bit CPU. */
#include "kernel.h"

#include "msm_impl.h"
#include "root_impl.h"
#include "strauss_impl.h"

const fl_secp_kernel fl_secp_kernel_portable = {
    .name = "portable",
    .cpu_features = 0,
    .verify_known = comb_verify,
    .verify_any = strauss_verify,
    .build_table = comb_build,
    .lift = lift_all,
    .check_points = check_all,
    .sum_is_zero = msm_sum_is_zero,
};

/* The kernels: the same algorithms over several implementations of the field, chosen when the process starts. */
#ifndef FL_SECP256K1_KERNEL_H
#define FL_SECP256K1_KERNEL_H

#include "group.h"
#include "scalar.h"

/* One randomised batch: is the sum over i of (a_i + b_i lambda) (u1_i G + u2_i Q_i - R_i) zero?
 * keys[key_index[i]] is Q_i, so that what multiplies one key is added up first. */
typedef struct {
    const fl_verify_job *jobs;
    const fl_affine *nonce_points;   /* R_i, on the curve, x(R_i) = r_i modulo n */
    const uint64_t (*randomizers)[2]; /* a_i, b_i */
    const uint32_t *key_index;
    const fl_affine *keys;
    const fl_comb_table *const *tables; /* of the keys; NULL for those without */
    size_t count;
    size_t key_count;
} fl_msm_job;

typedef struct {
    const char *name;
    uint32_t cpu_features; /* FL_CPU_* that it needs */
    /* Verifies jobs whose keys have tables; the table's window may differ from key to key. */
    fl_lane_verifier *verify_known;
    /* Verifies jobs of any keys, whose tables are not looked at. */
    fl_lane_verifier *verify_any;
    /* Fills fl_comb_points(window) points with the multiples of a point of the curve; 0 when out of memory. */
    int (*build_table)(fl_affine *points, unsigned window, const fl_affine *point);
    /* points[i].y = the root of x^3 + 7 with the parity odd[i]; ok[i] = 0 where there is none. x below p. */
    void (*lift)(uint8_t *ok, fl_affine *points, const uint8_t *odd, size_t count);
    /* ok[i] = 1 where points[i], its coordinates below p, lies on the curve. */
    void (*check_points)(uint8_t *ok, const fl_affine *points, size_t count);
    /* 1 when the sum is zero, and every addition on the way was defined; 0 says nothing. */
    int (*sum_is_zero)(const fl_msm_job *job);
} fl_secp_kernel;

extern const fl_secp_kernel fl_secp_kernel_portable;
#if defined(__x86_64__)
extern const fl_secp_kernel fl_secp_kernel_adx;
extern const fl_secp_kernel fl_secp_kernel_ifma;
#endif

#endif

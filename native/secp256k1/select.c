#include "select.h"

#include "fl.h"

#include <stdlib.h>
#include <string.h>

/* Fastest first. */
static const fl_secp_kernel *const KERNELS[] = {
#if defined(__x86_64__)
    &fl_secp_kernel_ifma,
    &fl_secp_kernel_adx,
#endif
    &fl_secp_kernel_portable,
};
enum { KERNEL_COUNT = sizeof KERNELS / sizeof KERNELS[0] };

/* 2.4 MB, within a third-level cache: 20 additions for u1 G. */
enum { GENERATOR_WINDOW = 13 };

fl_comb_table fl_generator_table;

static const fl_affine GENERATOR = {
    .x = {UINT64_C(0x59f2815b16f81798), UINT64_C(0x029bfcdb2dce28d9), UINT64_C(0x55a06295ce870b07),
          UINT64_C(0x79be667ef9dcbbac)},
    .y = {UINT64_C(0x9c47d08ffb10d4b8), UINT64_C(0xfd17b448a6855419), UINT64_C(0x5da4fbfc0e1108a8),
          UINT64_C(0x483ada7726a3c465)},
};

const fl_secp_kernel *fl_secp_kernel_at(size_t index)
{
    return index < KERNEL_COUNT ? KERNELS[index] : NULL;
}

int fl_secp_kernel_supported(const fl_secp_kernel *kernel)
{
    return kernel != NULL && (fl_cpu_features() & kernel->cpu_features) == kernel->cpu_features;
}

/* Builds the generator's table; a later kernel has to build the same. */
static int build_generator_table(const fl_secp_kernel *kernel)
{
    size_t bytes = fl_comb_points(GENERATOR_WINDOW) * sizeof(fl_affine);
    fl_affine *points = aligned_alloc(64, bytes);
    if (points == NULL || !kernel->build_table(points, GENERATOR_WINDOW, &GENERATOR)) {
        free(points);
        return 0;
    }
    if (fl_generator_table.points == NULL) {
        fl_generator_table = (fl_comb_table){points, GENERATOR_WINDOW};
        return 1;
    }
    int same = memcmp(points, fl_generator_table.points, bytes) == 0;
    free(points);
    return same;
}

/* ---- Known answers ---- */

/* Signatures made with RFC 6979 nonces; the tag is that of R. */
typedef struct {
    uint8_t digest32[32];
    uint8_t sig64[64];
    uint8_t key33[33];
    uint8_t tag;
} known_answer;

static const known_answer ANSWERS[] = {
    {.digest32 = {0x74, 0xf2, 0xba, 0xb0, 0xf7, 0xb4, 0x96, 0xdb, 0x35, 0x96, 0x7b, 0x36, 0x5a, 0x4b, 0xed, 0xc0,
     0xf6, 0x37, 0x88, 0x88, 0xde, 0xa6, 0x71, 0xec, 0x30, 0x7e, 0xe9, 0x9e, 0x67, 0x7f, 0xe2, 0x1d},
     .sig64 = {0x83, 0xba, 0x6b, 0x2f, 0x78, 0x91, 0xc3, 0x4d, 0xdd, 0x1e, 0x73, 0x9d, 0x24, 0xb6, 0x3e, 0xff,
     0xdc, 0xfe, 0xe2, 0xc8, 0xd7, 0x6b, 0x79, 0xf2, 0xd0, 0x26, 0x17, 0x73, 0x5c, 0xae, 0x07, 0x66,
     0x5a, 0xa7, 0xc0, 0xf5, 0xa7, 0x51, 0xf6, 0x7b, 0xc8, 0xdb, 0xb2, 0x68, 0x6f, 0x75, 0x78, 0x8b,
     0x76, 0xe2, 0x4a, 0xae, 0xb4, 0x2d, 0x7e, 0xfb, 0x58, 0x35, 0x39, 0x08, 0xcd, 0xed, 0xaa, 0x26},
     .key33 = {0x02, 0x97, 0x84, 0xcc, 0x16, 0xe4, 0x09, 0x8e, 0x73, 0x8a, 0x13, 0x5e, 0x81, 0x5b, 0xd0, 0x59,
     0xfd, 0xaa, 0x5b, 0xbc, 0x99, 0x4a, 0x62, 0xe0, 0x60, 0xbc, 0xc3, 0x51, 0x09, 0xba, 0xe6, 0x67,
     0x0f},
     .tag = 2},
    {.digest32 = {0xb5, 0x26, 0xae, 0xf1, 0xa3, 0x41, 0xcf, 0xe6, 0xe5, 0xc3, 0x77, 0xed, 0x4c, 0x22, 0x28, 0x88,
     0xee, 0xb8, 0x1f, 0x91, 0x3a, 0x10, 0x71, 0x10, 0xa8, 0x67, 0xe0, 0x09, 0xc1, 0x75, 0x8f, 0x24},
     .sig64 = {0x7b, 0xf4, 0x56, 0xcb, 0x9e, 0x5c, 0x29, 0xed, 0x07, 0x27, 0x71, 0x20, 0x80, 0x4b, 0x12, 0x2e,
     0xbb, 0x9c, 0xe7, 0x5e, 0x2e, 0x26, 0x36, 0x7d, 0xab, 0xbc, 0xd8, 0xc1, 0xff, 0x2f, 0x37, 0x8d,
     0x48, 0xd4, 0x58, 0xfb, 0xde, 0xe0, 0x4f, 0x7d, 0xbf, 0xfd, 0x94, 0x64, 0x7a, 0x6b, 0xb8, 0x6c,
     0x65, 0x6a, 0x5d, 0x35, 0xea, 0x87, 0xf7, 0xd8, 0xb6, 0x02, 0x28, 0xf4, 0xdd, 0x48, 0xe1, 0x24},
     .key33 = {0x02, 0x97, 0x84, 0xcc, 0x16, 0xe4, 0x09, 0x8e, 0x73, 0x8a, 0x13, 0x5e, 0x81, 0x5b, 0xd0, 0x59,
     0xfd, 0xaa, 0x5b, 0xbc, 0x99, 0x4a, 0x62, 0xe0, 0x60, 0xbc, 0xc3, 0x51, 0x09, 0xba, 0xe6, 0x67,
     0x0f},
     .tag = 2},
    {.digest32 = {0x74, 0xf2, 0xba, 0xb0, 0xf7, 0xb4, 0x96, 0xdb, 0x35, 0x96, 0x7b, 0x36, 0x5a, 0x4b, 0xed, 0xc0,
     0xf6, 0x37, 0x88, 0x88, 0xde, 0xa6, 0x71, 0xec, 0x30, 0x7e, 0xe9, 0x9e, 0x67, 0x7f, 0xe2, 0x1d},
     .sig64 = {0xce, 0x93, 0x8f, 0x42, 0xf9, 0xb8, 0x45, 0x01, 0x42, 0xdc, 0xf8, 0x87, 0x9e, 0x29, 0x80, 0xe0,
     0x33, 0xf1, 0x8b, 0x5b, 0x5d, 0xea, 0x10, 0x05, 0xdb, 0x22, 0x46, 0x57, 0x6a, 0x72, 0x72, 0x9a,
     0x1b, 0x5c, 0xeb, 0xb3, 0x5f, 0xa9, 0xba, 0x9f, 0xde, 0x2f, 0xb1, 0x14, 0x7e, 0x65, 0x59, 0x21,
     0x4f, 0x3e, 0x9e, 0x32, 0xa4, 0xc1, 0xf5, 0x33, 0x57, 0x8e, 0x5d, 0x53, 0xd9, 0xee, 0x55, 0xff},
     .key33 = {0x03, 0x0b, 0xf1, 0x8e, 0x48, 0x01, 0xf8, 0x55, 0x70, 0x25, 0xcf, 0x76, 0x13, 0x82, 0x5e, 0x57,
     0x1a, 0x85, 0xe7, 0x32, 0x89, 0xe2, 0x73, 0x4d, 0x6a, 0x35, 0x8c, 0x1d, 0x32, 0xf4, 0x1d, 0x50,
     0x93},
     .tag = 2},
    {.digest32 = {0xb5, 0x26, 0xae, 0xf1, 0xa3, 0x41, 0xcf, 0xe6, 0xe5, 0xc3, 0x77, 0xed, 0x4c, 0x22, 0x28, 0x88,
     0xee, 0xb8, 0x1f, 0x91, 0x3a, 0x10, 0x71, 0x10, 0xa8, 0x67, 0xe0, 0x09, 0xc1, 0x75, 0x8f, 0x24},
     .sig64 = {0xc3, 0x5f, 0x1e, 0x82, 0x4e, 0x6a, 0x19, 0x05, 0x19, 0x65, 0xd5, 0xb6, 0xeb, 0x73, 0x87, 0xe4,
     0x54, 0xf4, 0x4e, 0x51, 0x68, 0x3f, 0x9a, 0x5b, 0x8b, 0x4b, 0xf2, 0x34, 0x28, 0x46, 0xe0, 0x0e,
     0x5d, 0xae, 0x3f, 0xa2, 0x4e, 0x96, 0x63, 0x23, 0x32, 0x2b, 0x16, 0x61, 0xc1, 0xe9, 0x78, 0xd9,
     0x97, 0x7d, 0x05, 0xb0, 0xcd, 0xa6, 0x23, 0x02, 0xb3, 0xdd, 0x2d, 0x85, 0x7e, 0x8e, 0x92, 0x92},
     .key33 = {0x03, 0x0b, 0xf1, 0x8e, 0x48, 0x01, 0xf8, 0x55, 0x70, 0x25, 0xcf, 0x76, 0x13, 0x82, 0x5e, 0x57,
     0x1a, 0x85, 0xe7, 0x32, 0x89, 0xe2, 0x73, 0x4d, 0x6a, 0x35, 0x8c, 0x1d, 0x32, 0xf4, 0x1d, 0x50,
     0x93},
     .tag = 3},
};

enum { ANSWER_COUNT = sizeof ANSWERS / sizeof ANSWERS[0], TEST_KEYS = 2, TEST_WINDOW = 4 };

/* The answers as jobs, followed by the same with u1 one too large. */
typedef struct {
    fl_verify_job jobs[2 * ANSWER_COUNT];
    fl_comb_table tables[TEST_KEYS];
    fl_affine keys[TEST_KEYS], nonce_points[ANSWER_COUNT];
    fl_affine *table_points;
} test_jobs;

static int load_points(const fl_secp_kernel *kernel, test_jobs *test)
{
    uint8_t odd[ANSWER_COUNT], ok[ANSWER_COUNT];
    int all = 1;
    for (size_t k = 0; k < TEST_KEYS; k++) {
        const uint8_t *key33 = ANSWERS[k * ANSWER_COUNT / TEST_KEYS].key33;
        fl_load_be256(test->keys[k].x, key33 + 1);
        odd[k] = key33[0] & 1;
    }
    kernel->lift(ok, test->keys, odd, TEST_KEYS);
    for (size_t k = 0; k < TEST_KEYS; k++)
        all &= ok[k];
    for (size_t i = 0; i < ANSWER_COUNT; i++) {
        fl_load_be256(test->nonce_points[i].x, ANSWERS[i].sig64);
        odd[i] = ANSWERS[i].tag & 1;
    }
    kernel->lift(ok, test->nonce_points, odd, ANSWER_COUNT);
    for (size_t i = 0; i < ANSWER_COUNT; i++)
        all &= ok[i];
    kernel->check_points(ok, test->nonce_points, ANSWER_COUNT);
    for (size_t i = 0; i < ANSWER_COUNT; i++)
        all &= ok[i];
    return all;
}

static void load_jobs(test_jobs *test)
{
    static const fl_scalar ONE = {{1}};
    for (size_t i = 0; i < 2 * ANSWER_COUNT; i++) {
        const known_answer *answer = &ANSWERS[i % ANSWER_COUNT];
        fl_verify_job *job = &test->jobs[i];
        size_t key = i % ANSWER_COUNT / (ANSWER_COUNT / TEST_KEYS);
        fl_scalar s, digest, r, product;
        fl_load_be256(s.limb, answer->sig64 + 32);
        fl_load_be256(r.limb, answer->sig64);
        fl_load_be256(digest.limb, answer->digest32);
        fl_scalar_reduce(&digest);
        fl_scalar_invert_many(&s, &product, 1);
        fl_scalar_mul(&digest, &digest, &s);
        fl_scalar_mul(&product, &r, &s);
        if (i >= ANSWER_COUNT)
            fl_scalar_add(&digest, &digest, &ONE);
        memcpy(job->u1, digest.limb, sizeof job->u1);
        memcpy(job->u2, product.limb, sizeof job->u2);
        memcpy(job->r, r.limb, sizeof job->r);
        job->key = test->keys[key];
        job->table = &test->tables[key];
    }
}

static int build_tables(const fl_secp_kernel *kernel, test_jobs *test)
{
    size_t points = fl_comb_points(TEST_WINDOW);
    test->table_points = aligned_alloc(64, TEST_KEYS * points * sizeof(fl_affine));
    if (test->table_points == NULL)
        return 0;
    for (size_t k = 0; k < TEST_KEYS; k++) {
        test->tables[k] = (fl_comb_table){test->table_points + k * points, TEST_WINDOW};
        if (!kernel->build_table(test->table_points + k * points, TEST_WINDOW, &test->keys[k]))
            return 0;
    }
    return 1;
}

/* Both lane verifiers accept the first half with its hints, and refuse the second. */
static int check_lanes(fl_lane_verifier *verify, const test_jobs *test)
{
    uint8_t verdicts[2 * ANSWER_COUNT], hints[2 * ANSWER_COUNT * FL_HINT_LEN];
    verify(verdicts, hints, test->jobs, 2 * ANSWER_COUNT);
    for (size_t i = 0; i < 2 * ANSWER_COUNT; i++) {
        const uint8_t *hint33 = hints + FL_HINT_LEN * i;
        uint8_t y32[32];
        if (verdicts[i] != (i < ANSWER_COUNT ? FL_LANE_VALID : FL_LANE_INVALID))
            return 0;
        if (i >= ANSWER_COUNT)
            continue;
        fl_store_be256(y32, test->nonce_points[i].y);
        if (hint33[0] != ANSWERS[i].tag || memcmp(hint33 + 1, y32, sizeof y32) != 0)
            return 0;
    }
    return 1;
}

/* The sum closes over the answers, with and without tables, and not when one of them is false. */
static int check_sum(const fl_secp_kernel *kernel, const test_jobs *test)
{
    static const uint64_t RANDOMIZERS[ANSWER_COUNT][2] = {
        {UINT64_C(0x9e3779b97f4a7c15), UINT64_C(0xf39cc0605cedc834)},
        {UINT64_C(0x1082276bf3a27251), UINT64_C(0xf86c6a11d0c18e95)},
        {1, UINT64_MAX},
        {UINT64_MAX, 0x8000},
    };
    static const uint32_t KEY_INDEX[ANSWER_COUNT] = {0, 0, 1, 1};
    const fl_comb_table *with[TEST_KEYS] = {&test->tables[0], &test->tables[1]}, *without[TEST_KEYS] = {NULL, NULL};
    fl_verify_job jobs[ANSWER_COUNT];
    fl_msm_job job = {.jobs = jobs,
                      .nonce_points = test->nonce_points,
                      .randomizers = RANDOMIZERS,
                      .key_index = KEY_INDEX,
                      .keys = test->keys,
                      .tables = with,
                      .count = ANSWER_COUNT,
                      .key_count = TEST_KEYS};
    memcpy(jobs, test->jobs, sizeof jobs);
    if (!kernel->sum_is_zero(&job))
        return 0;
    job.tables = without;
    if (!kernel->sum_is_zero(&job))
        return 0;
    jobs[2] = test->jobs[ANSWER_COUNT + 2];
    return !kernel->sum_is_zero(&job);
}

int fl_secp_kernel_passes(const fl_secp_kernel *kernel)
{
    test_jobs test;
    if (!fl_secp_kernel_supported(kernel) || !build_generator_table(kernel) || !load_points(kernel, &test))
        return 0;
    int passes = build_tables(kernel, &test);
    if (passes) {
        load_jobs(&test);
        passes = check_lanes(kernel->verify_known, &test) && check_lanes(kernel->verify_any, &test) &&
                 check_sum(kernel, &test);
    }
    free(test.table_points);
    return passes;
}

/* The randomised sums of the secp256k1 kernels, with factors that are not random: made by tests/native/sum_vectors.py so
 * that an addition on the way meets a point twice, or a point and its negative. Built for the kernel FL_TEST_TREES. */
#include <string.h>

#include "../secp256k1/kernel.h"
#include "runtime.h"

extern const fl_secp_kernel FL_TEST_TREES;

enum {
    MAGIC = 0x314d5553, /* "SUM1" */
    TABLES_MAX = 256,
    SIGNATURES_MAX = 16,
    NO_TABLE = UINT32_MAX
};

typedef struct {
    uint64_t magic, table_count, sum_count, reserved[5];
} file_header;

typedef struct {
    uint64_t window, point_count, reserved[6];
} table_header;

/* Followed by its keys, then by its signatures. */
typedef struct {
    uint64_t key_count, signature_count, closes, reserved[5];
} sum_header;

typedef struct {
    fl_affine point;
    uint32_t table; /* NO_TABLE: the sum has to do without */
    uint8_t reserved[60];
} sum_key;

typedef struct {
    fl_affine nonce_point;
    uint64_t u1[4], u2[4];
    uint64_t randomizer[2];
    uint32_t key;
    uint8_t reserved[44];
} sum_signature;

_Static_assert(sizeof(sum_key) == 128 && sizeof(sum_signature) == 192, "as sum_vectors.py writes them");

fl_comb_table fl_generator_table;
static fl_comb_table tables[TABLES_MAX];

static const uint8_t *load_tables(const uint8_t *next, uint64_t count) {
    for (uint64_t i = 0; i < count; i++) {
        const table_header *header = (const table_header *)next;
        tables[i].window = (unsigned)header->window;
        tables[i].points = (const fl_affine *)(next + sizeof *header);
        next += sizeof *header + header->point_count * sizeof(fl_affine);
    }
    fl_generator_table = tables[0];
    return next;
}

static int sum_is_zero(const sum_header *sum, const sum_key *keys, const sum_signature *signatures) {
    static fl_verify_job jobs[SIGNATURES_MAX];
    static fl_affine nonce_points[SIGNATURES_MAX], points[SIGNATURES_MAX];
    uint64_t randomizers[SIGNATURES_MAX][2];
    uint32_t key_index[SIGNATURES_MAX];
    const fl_comb_table *key_tables[SIGNATURES_MAX];
    const fl_msm_job job = {.jobs = jobs,
                            .nonce_points = nonce_points,
                            .randomizers = (const uint64_t(*)[2])randomizers,
                            .key_index = key_index,
                            .keys = points,
                            .tables = key_tables,
                            .count = sum->signature_count,
                            .key_count = sum->key_count};
    for (size_t k = 0; k < job.key_count; k++) {
        points[k] = keys[k].point;
        key_tables[k] = keys[k].table == NO_TABLE ? NULL : &tables[keys[k].table];
    }
    for (size_t i = 0; i < job.count; i++) {
        memcpy(jobs[i].u1, signatures[i].u1, sizeof jobs[i].u1);
        memcpy(jobs[i].u2, signatures[i].u2, sizeof jobs[i].u2);
        memcpy(randomizers[i], signatures[i].randomizer, sizeof randomizers[i]);
        nonce_points[i] = signatures[i].nonce_point;
        key_index[i] = signatures[i].key;
    }
    return FL_TEST_TREES.sum_is_zero(&job);
}

uint64_t test_run(const uint8_t *vectors) {
    const file_header *header = (const file_header *)vectors;
    if (header->magic != MAGIC || header->table_count > TABLES_MAX) {
        say("not a file of sums\n");
        return 1;
    }
    const uint8_t *next = load_tables(vectors + sizeof *header, header->table_count);
    uint64_t closed = 0, failures = 0;
    for (uint64_t i = 0; i < header->sum_count; i++) {
        const sum_header *sum = (const sum_header *)next;
        const sum_key *keys = (const sum_key *)(sum + 1);
        const sum_signature *signatures = (const sum_signature *)(keys + sum->key_count);
        if (sum->signature_count > SIGNATURES_MAX || sum->key_count > SIGNATURES_MAX) {
            say("a sum is too long\n");
            return 1;
        }
        int closes = sum_is_zero(sum, keys, signatures);
        closed += (uint64_t)closes;
        if (closes != (int)sum->closes) {
            failures++;
            say("wrong: sum ");
            say_number(i);
            say("\n");
        }
        next = (const uint8_t *)(signatures + sum->signature_count);
    }
    say("sums ");
    say_number(header->sum_count);
    say(", closed ");
    say_number(closed);
    say(", wrong ");
    say_number(failures);
    say("\n");
    return failures;
}

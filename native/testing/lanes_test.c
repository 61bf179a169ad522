/* The verifiers of the secp256k1 kernels against vectors made by tests/native/lane_vectors.py: exact verdicts, hints,
 * and every way to cut a batch. Built for the lanes of AVX-512 IFMA, or, with FL_TEST_TREES, for another kernel. */
#include <string.h>

#ifdef FL_TEST_TREES
#include "../secp256k1/kernel.h"
#else
#include "../secp256k1/group.h"
#endif
#include "runtime.h"

fl_lane_verifier fl_verify8_ifma, fl_comb8_ifma;

enum {
    MAGIC = 0x3245564c, /* "LVE2" */
    BATCH_MAX = 333,    /* over two chunks of 128, with a rest that fills neither a block nor a group */
    TABLES_MAX = 256,
};

/* What a verifier must answer: one byte for each of them, in this order. Sums that meet in one of its own steps, and a
 * point at infinity, demand UNDECIDED; other crafted scalars may give it. */
enum { ANY_LANES, KNOWN_LANES, ANY_TREES, KNOWN_TREES, VERIFIERS };
enum { EXPECT_INVALID = 0, EXPECT_VALID = 1, EXPECT_UNDECIDED = 2, MAY_BE_UNDECIDED = 4 };

typedef struct {
    uint64_t magic, table_count, record_count, reserved[5];
} file_header;

typedef struct {
    uint64_t window, point_count, reserved[6];
} table_header;

typedef struct {
    uint64_t u1[4], u2[4], r[4];
    fl_affine key;
    uint32_t table;
    uint8_t expected[VERIFIERS];
    uint8_t hint33[FL_HINT_LEN];
    uint8_t reserved[55];
} record;

_Static_assert(sizeof(record) == 256, "as lane_vectors.py writes it");

fl_comb_table fl_generator_table;
static fl_comb_table tables[TABLES_MAX];
static fl_verify_job jobs[BATCH_MAX];
static uint8_t verdicts[BATCH_MAX + 1], hint33s[(BATCH_MAX + 1) * FL_HINT_LEN];

typedef struct {
    uint64_t checked, undecided, failures;
} tally;

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

static void load_job(fl_verify_job *job, const record *from) {
    memcpy(job->u1, from->u1, sizeof job->u1);
    memcpy(job->u2, from->u2, sizeof job->u2);
    memcpy(job->r, from->r, sizeof job->r);
    job->key = from->key;
    job->table = &tables[from->table];
}

static int is_right(const record *from, int which, uint8_t verdict, const uint8_t *hint33) {
    static const uint8_t NONE[FL_HINT_LEN] = {0};
    const uint8_t expected = from->expected[which];
    if (verdict == FL_LANE_UNDECIDED) {
        int allowed = (expected & (MAY_BE_UNDECIDED | EXPECT_UNDECIDED)) != 0;
        return allowed && (hint33 == NULL || memcmp(hint33, NONE, FL_HINT_LEN) == 0);
    }
    return verdict == (expected & 3) && (hint33 == NULL || memcmp(hint33, from->hint33, FL_HINT_LEN) == 0);
}

typedef struct {
    const char *name;
    int which;
    fl_lane_verifier *verify;
} subject;

/* One call of a verifier on `count` records; nothing past the outputs may change. */
static void check_batch(tally *t, const subject *s, const record *records, size_t count, int hints) {
    for (size_t i = 0; i < count; i++) {
        load_job(&jobs[i], &records[i]);
    }
    memset(verdicts, 0xa5, sizeof verdicts);
    memset(hint33s, 0xa5, sizeof hint33s);
    s->verify(verdicts, hints ? hint33s : NULL, jobs, count);
    for (size_t i = 0; i < count; i++) {
        const uint8_t *hint33 = hints ? hint33s + FL_HINT_LEN * i : NULL;
        t->undecided += verdicts[i] == FL_LANE_UNDECIDED;
        t->failures += !is_right(&records[i], s->which, verdicts[i], hint33);
    }
    t->checked += count;
    t->failures += verdicts[count] != 0xa5 || hint33s[hints ? FL_HINT_LEN * count : 0] != 0xa5;
}

/* All records in batches whose sizes run through 1, 2, 3 .., then in large ones; hints in every other call. */
static uint64_t check_all(const subject *s, const record *records, uint64_t count) {
    tally t = {0};
    size_t size = 1;
    for (uint64_t first = 0, call = 0; first < count; first += size, call++) {
        size = call < 40 ? call + 1 : BATCH_MAX - call % 2 * 317;
        size = first + size > count ? (size_t)(count - first) : size;
        check_batch(&t, s, records + first, size, call % 2 == 0);
    }
    check_batch(&t, s, records, 0, 1);
    say(s->name);
    say(": signatures ");
    say_number(t.checked);
    say(", undecided ");
    say_number(t.undecided);
    say(", wrong ");
    say_number(t.failures);
    say("\n");
    return t.failures;
}

uint64_t test_run(const uint8_t *vectors) {
    const file_header *header = (const file_header *)vectors;
    if (header->magic != MAGIC || header->table_count > TABLES_MAX) {
        say("not a file of vectors\n");
        return 1;
    }
    const record *records = (const record *)load_tables(vectors + sizeof *header, header->table_count);
#ifdef FL_TEST_TREES
    const subject subjects[] = {{"any key", ANY_TREES, FL_TEST_TREES.verify_any},
                                {"known key", KNOWN_TREES, FL_TEST_TREES.verify_known}};
#else
    const subject subjects[] = {{"any key", ANY_LANES, fl_verify8_ifma}, {"known key", KNOWN_LANES, fl_comb8_ifma}};
#endif
    uint64_t failures = 0;
    for (size_t i = 0; i < sizeof subjects / sizeof subjects[0]; i++) {
        failures += check_all(&subjects[i], records, header->record_count);
    }
    return failures;
}

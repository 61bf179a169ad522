/* Bitcoin's proof of work: SHA256d of an 80-byte header against a 256-bit target. */
#include "fl_impl.h"

enum {
    NONCE_OFFSET = 76,
    GROUP_HEADERS = 64,
    SLICE_NONCES = 1 << 14 /* that a thread tries between looks at what the others found */
};

static void header_hash(uint8_t out32[32], const uint8_t header80[80]) {
    uint8_t first[FL_HASH_BYTES];
    fl_sha256(first, header80, FL_HEADER_BYTES);
    fl_sha256(out32, first, sizeof first);
}

/* In groups that fill the lanes of a kernel, so that both hashes of many headers run side by side. */
void fl_header_hash_many(uint8_t *out32s, const uint8_t *header80s, size_t count) {
    uint64_t header_offsets[GROUP_HEADERS + 1], hash_offsets[GROUP_HEADERS + 1];
    uint8_t hashes[FL_HASH_BYTES * GROUP_HEADERS];
    for (size_t i = 0; i <= GROUP_HEADERS; i++) {
        header_offsets[i] = FL_HEADER_BYTES * i;
        hash_offsets[i] = FL_HASH_BYTES * i;
    }
    for (size_t i = 0; i < count; i += GROUP_HEADERS) {
        size_t group = count - i < GROUP_HEADERS ? count - i : GROUP_HEADERS;
        fl_sha256_many(hashes, header80s + FL_HEADER_BYTES * i, header_offsets, group);
        fl_sha256_many(out32s + FL_HASH_BYTES * i, hashes, hash_offsets, group);
    }
}

static int at_most_le256(const uint8_t value32[32], const uint8_t bound32[32]) {
    for (int i = 31; i >= 0; i--) {
        if (value32[i] != bound32[i]) {
            return value32[i] < bound32[i];
        }
    }
    return 1;
}

static void job_init(fl_pow_job *job, const uint8_t header80[80], const uint8_t target32[32]) {
    memcpy(job->midstate, FL_SHA256_IV, sizeof job->midstate);
    fl_sha256_active->compress(job->midstate, header80, 1);
    for (int i = 0; i < 3; i++) {
        job->tail[i] = fl_load_be32(header80 + FL_BLOCK_BYTES + 4 * i);
    }
    job->target_high = fl_byteswap32(fl_load_be32(target32 + 28));
}

/* The kernel's scan compares 32 bits; its finds are rare, and are hashed again in full. */
static int nonce_meets_target(const uint8_t header80[80], const uint8_t target32[32], uint32_t nonce) {
    uint8_t candidate[FL_HEADER_BYTES];
    uint8_t hash[32];
    memcpy(candidate, header80, NONCE_OFFSET);
    fl_store_be32(candidate + NONCE_OFFSET, fl_byteswap32(nonce));
    header_hash(hash, candidate);
    return at_most_le256(hash, target32);
}

/* ---- Search ----
 *
 * The range is cut into slices, which the threads take in order and always finish. When one finds a nonce, all
 * slices before its own are taken, so the least of all finds is the first nonce of the range, also where the
 * search was cancelled meanwhile.
 */

static const uint64_t NOT_FOUND = UINT64_MAX;

typedef struct {
    const uint8_t *header80;
    const uint8_t *target32;
    fl_pow_job job;
    fl_pow_control *control;         /* may be NULL */
    uint64_t end;                    /* past the last nonce */
    atomic_uint_least64_t next;      /* first nonce that no thread has taken */
    atomic_uint_least64_t least;     /* nonce found, or NOT_FOUND */
} pow_search;

/* The first nonce of start .. end - 1 that meets the target, or NOT_FOUND. */
static uint64_t search_slice(const pow_search *search, uint64_t start, uint64_t end) {
    while (start < end) {
        uint32_t candidate;
        if (!fl_sha256_active->pow_scan(&candidate, &search->job, (uint32_t)start, end - start)) {
            return NOT_FOUND;
        }
        if (nonce_meets_target(search->header80, search->target32, candidate)) {
            return candidate;
        }
        start = (uint64_t)candidate + 1;
    }
    return NOT_FOUND;
}

static void keep_least(atomic_uint_least64_t *least, uint64_t nonce) {
    uint64_t known = atomic_load(least);
    while (nonce < known && !atomic_compare_exchange_weak(least, &known, nonce)) {
    }
}

static void *search_worker(void *shared) {
    pow_search *search = shared;
    while (search->control == NULL || !fl_pow_control_is_cancelled(search->control)) {
        uint64_t start = atomic_fetch_add(&search->next, SLICE_NONCES);
        if (start >= search->end || start > atomic_load(&search->least)) {
            break;
        }
        uint64_t end = search->end - start > SLICE_NONCES ? start + SLICE_NONCES : search->end;
        uint64_t found = search_slice(search, start, end);
        if (search->control != NULL) {
            atomic_fetch_add(&search->control->hashes_done, (found == NOT_FOUND ? end : found + 1) - start);
        }
        keep_least(&search->least, found);
    }
    return NULL;
}

int fl_pow_search(uint32_t *nonce, const uint8_t header80[80], const uint8_t target32[32], uint32_t start,
                  uint64_t count, unsigned threads, fl_pow_control *control) {
    uint64_t nonces_left = ((uint64_t)1 << 32) - start;
    pow_search search = {
        .header80 = header80,
        .target32 = target32,
        .control = control,
        .end = start + (count < nonces_left ? count : nonces_left),
    };
    job_init(&search.job, header80, target32);
    atomic_init(&search.next, start);
    atomic_init(&search.least, NOT_FOUND);
    fl_workers_run(search_worker, &search, threads);
    uint64_t found = atomic_load(&search.least);
    if (found == NOT_FOUND) {
        return 0;
    }
    *nonce = (uint32_t)found;
    return 1;
}

/* ---- Control ---- */

void fl_pow_control_init(fl_pow_control *control) {
    atomic_init(&control->cancelled, 0);
    atomic_init(&control->hashes_done, 0);
}

void fl_pow_control_cancel(fl_pow_control *control) { atomic_store(&control->cancelled, 1); }

int fl_pow_control_is_cancelled(fl_pow_control *control) { return atomic_load(&control->cancelled); }

uint64_t fl_pow_control_hashes_done(fl_pow_control *control) { return atomic_load(&control->hashes_done); }

/* Bitcoin's proof of work: SHA256d of an 80-byte header against a 256-bit target. */
#include "fl_impl.h"

enum { NONCE_OFFSET = 76 };

static void header_hash(uint8_t out32[32], const uint8_t header80[80]) {
    uint8_t first[32];
    fl_sha256(first, header80, FL_HEADER_BYTES);
    fl_sha256(out32, first, sizeof first);
}

void fl_header_hash_many(uint8_t *out32s, const uint8_t *header80s, size_t count) {
    for (size_t i = 0; i < count; i++) {
        header_hash(out32s + 32 * i, header80s + FL_HEADER_BYTES * i);
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

int fl_pow_search(uint32_t *nonce, const uint8_t header80[80], const uint8_t target32[32], uint32_t start,
                  uint64_t count) {
    fl_pow_job job;
    job_init(&job, header80, target32);
    uint64_t next = start;
    uint64_t end = (uint64_t)1 << 32;
    if (count < end - next) {
        end = next + count;
    }
    while (next < end) {
        uint32_t candidate;
        if (!fl_sha256_active->pow_scan(&candidate, &job, (uint32_t)next, end - next)) {
            return 0;
        }
        if (nonce_meets_target(header80, target32, candidate)) {
            *nonce = candidate;
            return 1;
        }
        next = (uint64_t)candidate + 1;
    }
    return 0;
}

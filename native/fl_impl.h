/* Inside the native layer: byte order, checks of our own arithmetic, and what a SHA-256 kernel provides. */
#ifndef FL_IMPL_H
#define FL_IMPL_H

#include <stdint.h>
#include <string.h>

#include "fl.h"

/* FL_VERIFY states what our own code guarantees; it is compiled in only by FASTLEDGER_DEBUG=1 builds. */
#ifdef FL_DEBUG
#include <stdlib.h>
#define FL_VERIFY(condition) \
    do { \
        if (!(condition)) { \
            abort(); \
        } \
    } while (0)
#else
#define FL_VERIFY(condition) ((void)0)
#endif

#define FL_INLINE static inline __attribute__((always_inline))

#define FL_BLOCK_BYTES 64

FL_INLINE uint32_t fl_load_be32(const uint8_t *bytes) {
    return (uint32_t)bytes[0] << 24 | (uint32_t)bytes[1] << 16 | (uint32_t)bytes[2] << 8 | (uint32_t)bytes[3];
}

FL_INLINE void fl_store_be32(uint8_t *bytes, uint32_t word) {
    bytes[0] = (uint8_t)(word >> 24);
    bytes[1] = (uint8_t)(word >> 16);
    bytes[2] = (uint8_t)(word >> 8);
    bytes[3] = (uint8_t)word;
}

FL_INLINE uint32_t fl_byteswap32(uint32_t word) {
    return word >> 24 | (word >> 8 & 0xff00u) | (word << 8 & 0xff0000u) | word << 24;
}

FL_INLINE void fl_store_digest(uint8_t out32[32], const uint32_t state[8]) {
    for (int i = 0; i < 8; i++) {
        fl_store_be32(out32 + 4 * i, state[i]);
    }
}

/* FIPS 180-4 section 5.3.3 and 4.2.2. */
extern const uint32_t FL_SHA256_IV[8];
extern const uint32_t FL_SHA256_K[64];

/* What a nonce search knows before its first nonce. */
typedef struct {
    uint32_t midstate[8];  /* state after the header's first 64 bytes */
    uint32_t tail[3];      /* header bytes 64..76 as big-endian words */
    uint32_t target_high;  /* most significant 32 bits of the target */
} fl_pow_job;

/* One implementation of SHA-256 for one instruction set. The *_many members have the contracts of the public
 * functions of the same name. */
typedef struct {
    const char *name;
    uint32_t cpu_features; /* FL_CPU_* bits that it needs */

    /* Absorbs `count` consecutive blocks of 64 bytes. */
    void (*compress)(uint32_t state[8], const uint8_t *blocks, size_t count);
    /* Absorbs `count` blocks of 64 bytes in each of two independent streams at once. */
    void (*compress_two)(uint32_t state_a[8], const uint8_t *blocks_a, uint32_t state_b[8],
                         const uint8_t *blocks_b, size_t count);
    void (*leaf32_many)(uint8_t *out32s, const uint8_t *entry32s, size_t count);
    void (*node_many)(uint8_t *out32s, const uint8_t *pair64s, size_t count);
    void (*double64_many)(uint8_t *out32s, const uint8_t *pair64s, size_t count);
    /* Finds the first nonce of start .. start + count - 1 whose hash has its most significant 32 bits at most
     * job->target_high; the caller compares the rest. start + count <= 2^32. Returns 1/0. */
    int (*pow_scan)(uint32_t *nonce, const fl_pow_job *job, uint32_t start, uint64_t count);

    /* ---- Optional: 0 or NULL where a kernel lacks them ---- */

    /* How many independent streams compress_lanes takes at once, at most FL_LANES_MAX. */
    size_t lanes;
    /* With fewer busy lanes than this, streams one and two at a time are faster. */
    size_t lanes_busy_min;
    /* Absorbs `count` consecutive blocks into each stream, stream i's from blocks[i]. Word w of stream i's
     * state is states[w * lanes + i]; `states` is aligned to 64 bytes. */
    void (*compress_lanes)(uint32_t *states, const uint8_t *const blocks[], size_t count);
    /* Name of the kernel that lends compress and compress_two, for the backend report. */
    const char *streams_borrowed_from;
} fl_sha256_kernel;

#define FL_LANES_MAX 16

/* Runs `work(shared)` in the calling thread and in up to threads - 1 more, and returns when all are done. A
 * thread that cannot be started is not missed: the workers share out the work among themselves (workers.c). */
typedef void *fl_worker(void *shared);
void fl_workers_run(fl_worker *work, void *shared, unsigned threads);

extern const fl_sha256_kernel fl_sha256_kernel_portable;
#if defined(__x86_64__)
extern const fl_sha256_kernel fl_sha256_kernel_shani;
extern const fl_sha256_kernel fl_sha256_kernel_avx2;
extern const fl_sha256_kernel fl_sha256_kernel_avx512;
#elif defined(__aarch64__)
extern const fl_sha256_kernel fl_sha256_kernel_armv8;
#endif

/* The kernel in use; never NULL. */
extern const fl_sha256_kernel *fl_sha256_active;

#endif

/* Chooses the SHA-256 kernel once: what the CPU offers, what the operating system enables, and a known answer
 * that the kernel must reproduce before it is trusted. */
#include "fl_impl.h"

#if defined(__x86_64__)
#include <cpuid.h>
#elif defined(__aarch64__) && defined(__linux__)
#include <sys/auxv.h>
#endif

/* Fastest first. */
static const fl_sha256_kernel *const KERNELS[] = {
#if defined(__x86_64__)
    &fl_sha256_kernel_avx512,
    &fl_sha256_kernel_shani,
    &fl_sha256_kernel_avx2,
#elif defined(__aarch64__)
    &fl_sha256_kernel_armv8,
#endif
    &fl_sha256_kernel_portable,
};
enum { KERNEL_COUNT = sizeof KERNELS / sizeof KERNELS[0] };

const fl_sha256_kernel *fl_sha256_active = &fl_sha256_kernel_portable;
static int initialised = 0;

#if defined(__x86_64__)
/* Register state that the operating system saves on a context switch (Intel SDM volume 1, section 13.3): a
 * vector unit that is present but not enabled there must not be used. */
static uint64_t xgetbv0(void) {
    uint32_t low, high;
    __asm__("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
    return (uint64_t)high << 32 | low;
}

uint32_t fl_cpu_features(void) {
    uint32_t eax, ebx, ecx, edx;
    uint32_t found = 0;
    if (!__get_cpuid(1, &eax, &ebx, &ecx, &edx)) {
        return 0;
    }
    found |= ecx & bit_SSSE3 ? FL_CPU_SSSE3 : 0;
    found |= ecx & bit_SSE4_1 ? FL_CPU_SSE41 : 0;
    uint64_t enabled = ecx & bit_OSXSAVE ? xgetbv0() : 0;
    if (!__get_cpuid_count(7, 0, &eax, &ebx, &ecx, &edx)) {
        return found;
    }
    found |= ebx & bit_SHA ? FL_CPU_SHA : 0;
    found |= ebx & bit_BMI2 ? FL_CPU_BMI2 : 0;
    found |= ebx & bit_ADX ? FL_CPU_ADX : 0;
    const uint64_t ymm = 0x06, zmm = 0xe6; /* XCR0: SSE + AVX; and opmask + both halves of ZMM */
    if ((enabled & ymm) == ymm) {
        found |= ebx & bit_AVX2 ? FL_CPU_AVX2 : 0;
    }
    if ((enabled & zmm) == zmm) {
        const uint32_t common = bit_AVX512F | bit_AVX512VL | bit_AVX512DQ | bit_AVX512BW;
        if ((ebx & common) == common) {
            found |= FL_CPU_AVX512F;
            found |= ebx & bit_AVX512IFMA ? FL_CPU_AVX512IFMA : 0;
        }
    }
    return found;
}
#elif defined(__aarch64__) && defined(__linux__)
uint32_t fl_cpu_features(void) {
    const unsigned long hwcap_sha2 = 1ul << 6; /* HWCAP_SHA2 of Linux's asm/hwcap.h */
    return getauxval(AT_HWCAP) & hwcap_sha2 ? FL_CPU_ARM_SHA2 : 0;
}
#elif defined(__aarch64__) && defined(__APPLE__)
uint32_t fl_cpu_features(void) { return FL_CPU_ARM_SHA2; } /* every Apple CPU of this architecture has it */
#else
uint32_t fl_cpu_features(void) { return 0; }
#endif

/* ---- Smoke test ----
 *
 * Every entry of a kernel runs on fixed inputs, three items where it takes many (a pair and a straggler); the
 * outputs form a transcript, and the kernel's own SHA-256 of it must be KNOWN_ANSWER. tests/native/test_hashing.py
 * derives that value independently with hashlib.
 */
enum {
    SMOKE_ITEMS = 3,
    SMOKE_INPUT_BYTES = 64 * SMOKE_ITEMS,
    SMOKE_MESSAGE_BYTES = 119, /* the longest that pads to two blocks */
    SMOKE_TRANSCRIPT_BYTES = (3 * SMOKE_ITEMS + 2) * 32 + 4
};

static const uint8_t KNOWN_ANSWER[32] = {
    0x0e, 0xf2, 0x25, 0x38, 0x12, 0x75, 0xab, 0xd6, 0xe4, 0xda, 0x92, 0xa5, 0xba, 0x77, 0x6c, 0x50,
    0x51, 0xc5, 0xfc, 0xd5, 0x71, 0x97, 0xc9, 0xca, 0x03, 0x4a, 0x44, 0xe1, 0xc2, 0x19, 0xb9, 0x13,
};

/* Pads `size` bytes at the start of a zeroed buffer; returns the number of blocks. */
static size_t smoke_pad(uint8_t *buffer, size_t size) {
    size_t blocks = (size + 8) / FL_BLOCK_BYTES + 1;
    buffer[size] = 0x80;
    fl_store_be32(buffer + FL_BLOCK_BYTES * blocks - 4, (uint32_t)size * 8);
    return blocks;
}

static void smoke_two_streams(const fl_sha256_kernel *kernel, uint8_t out64[64], const uint8_t *input) {
    uint8_t message[2][2 * FL_BLOCK_BYTES] = {{0}};
    uint32_t state[2][8];
    for (int i = 0; i < 2; i++) {
        memcpy(message[i], input + i, SMOKE_MESSAGE_BYTES);
        smoke_pad(message[i], SMOKE_MESSAGE_BYTES);
        memcpy(state[i], FL_SHA256_IV, sizeof state[i]);
    }
    kernel->compress_two(state[0], message[0], state[1], message[1], 2);
    fl_store_digest(out64, state[0]);
    fl_store_digest(out64 + 32, state[1]);
}

/* Bitcoin's first block, whose nonce 2083236893 the scan must find among its neighbours. */
static uint32_t smoke_nonce(const fl_sha256_kernel *kernel) {
    static const uint8_t header76[76] = {
        0x01, 0x00, 0x00, 0x00, [36] = 0x3b, 0xa3, 0xed, 0xfd, 0x7a, 0x7b, 0x12, 0xb2, 0x7a, 0xc7, 0x2c, 0x3e,
        0x67, 0x76, 0x8f, 0x61, 0x7f, 0xc8, 0x1b, 0xc3, 0x88, 0x8a, 0x51, 0x32, 0x3a, 0x9f, 0xb8, 0xaa,
        0x4b, 0x1e, 0x5e, 0x4a, 0x29, 0xab, 0x5f, 0x49, 0xff, 0xff, 0x00, 0x1d,
    };
    fl_pow_job job = {.target_high = 0};
    memcpy(job.midstate, FL_SHA256_IV, sizeof job.midstate);
    kernel->compress(job.midstate, header76, 1);
    for (int i = 0; i < 3; i++) {
        job.tail[i] = fl_load_be32(header76 + FL_BLOCK_BYTES + 4 * i);
    }
    uint32_t nonce;
    return kernel->pow_scan(&nonce, &job, 2083236890u, 7) ? nonce : 0;
}

/* Each lane, absorbing another message of two blocks, must agree with the kernel's own single stream. */
static int smoke_lanes(const fl_sha256_kernel *kernel, const uint8_t *input) {
    if (kernel->compress_lanes == NULL) {
        return 1;
    }
    FL_VERIFY(kernel->lanes <= FL_LANES_MAX && kernel->lanes_busy_min >= 1);
    _Alignas(64) uint32_t states[8 * FL_LANES_MAX];
    const uint8_t *blocks[FL_LANES_MAX];
    for (size_t lane = 0; lane < kernel->lanes; lane++) {
        blocks[lane] = input + lane;
        for (size_t word = 0; word < 8; word++) {
            states[word * kernel->lanes + lane] = FL_SHA256_IV[word] + (uint32_t)lane;
        }
    }
    kernel->compress_lanes(states, blocks, 2);
    for (size_t lane = 0; lane < kernel->lanes; lane++) {
        uint32_t state[8];
        uint32_t differs = 0;
        for (size_t word = 0; word < 8; word++) {
            state[word] = FL_SHA256_IV[word] + (uint32_t)lane;
        }
        kernel->compress(state, blocks[lane], 2);
        for (size_t word = 0; word < 8; word++) {
            differs |= state[word] ^ states[word * kernel->lanes + lane];
        }
        if (differs != 0) {
            return 0;
        }
    }
    return 1;
}

static int smoke_test(const fl_sha256_kernel *kernel) {
    uint8_t input[SMOKE_INPUT_BYTES];
    for (int i = 0; i < SMOKE_INPUT_BYTES; i++) {
        input[i] = (uint8_t)(i * 167 + 13);
    }
    uint8_t transcript[(SMOKE_TRANSCRIPT_BYTES / FL_BLOCK_BYTES + 2) * FL_BLOCK_BYTES] = {0};
    uint8_t *next = transcript;
    kernel->leaf32_many(next, input, SMOKE_ITEMS);
    kernel->node_many(next += 32 * SMOKE_ITEMS, input, SMOKE_ITEMS);
    kernel->double64_many(next += 32 * SMOKE_ITEMS, input, SMOKE_ITEMS);
    smoke_two_streams(kernel, next += 32 * SMOKE_ITEMS, input);
    fl_store_be32(next += 64, smoke_nonce(kernel));
    FL_VERIFY(next + 4 == transcript + SMOKE_TRANSCRIPT_BYTES);

    uint32_t state[8];
    uint8_t digest[32];
    memcpy(state, FL_SHA256_IV, sizeof state);
    kernel->compress(state, transcript, smoke_pad(transcript, SMOKE_TRANSCRIPT_BYTES));
    fl_store_digest(digest, state);
    return memcmp(digest, KNOWN_ANSWER, sizeof digest) == 0 && smoke_lanes(kernel, input);
}

/* ---- Selection ---- */

static int kernel_usable(const fl_sha256_kernel *kernel) {
    uint32_t needed = kernel->cpu_features;
    return (fl_cpu_features() & needed) == needed && smoke_test(kernel);
}

int fl_init(const char *forced) {
    int any = forced == NULL || forced[0] == '\0';
    for (size_t i = 0; i < KERNEL_COUNT; i++) {
        if ((any || strcmp(KERNELS[i]->name, forced) == 0) && kernel_usable(KERNELS[i])) {
            fl_sha256_active = KERNELS[i];
            initialised = 1;
            return 1;
        }
    }
    return 0;
}

int fl_initialised(void) { return initialised; }

const char *fl_backend_name(void) { return fl_sha256_active->name; }

size_t fl_backend_lanes(void) {
    return fl_sha256_active->compress_lanes != NULL ? fl_sha256_active->lanes : 2;
}

const char *fl_backend_streams_name(void) {
    const char *lender = fl_sha256_active->streams_borrowed_from;
    return lender != NULL ? lender : fl_sha256_active->name;
}

size_t fl_backend_count(void) { return KERNEL_COUNT; }

const char *fl_backend_name_at(size_t index) { return index < KERNEL_COUNT ? KERNELS[index]->name : NULL; }

int fl_backend_usable(size_t index) { return index < KERNEL_COUNT && kernel_usable(KERNELS[index]); }

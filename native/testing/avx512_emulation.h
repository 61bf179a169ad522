/* The AVX-512 intrinsics that this project uses, in plain C, for tests only: the lane kernels compile and run with it on
 * any machine. Semantics from the Intel SDM, volume 2; one loop over the lanes each. Loads and stores take any
 * alignment, shift counts are below the lane's width.
 *
 * Included after fl_impl.h. Vectors are GCC's generic ones, so that kernels that name the type, copy it and keep arrays of it need not know.
 */
#ifndef FL_AVX512_EMULATION_H
#define FL_AVX512_EMULATION_H

#include <stdint.h>
#include <string.h>

typedef long long __m512i __attribute__((vector_size(64), may_alias));
typedef long long __m256i __attribute__((vector_size(32), may_alias));
typedef uint8_t __mmask8;
typedef uint16_t __mmask16;

typedef union {
    __m512i vector;
    uint64_t u64[8];
    uint32_t u32[16];
    uint8_t u8[64];
} emulated;

/* In loops over lanes, what is one instruction becomes dozens: inlining all of a kernel would take minutes to compile. */
#undef FL_INLINE
#define FL_INLINE static __attribute__((noinline, unused))

#define EMULATED static inline __attribute__((unused))
#define LANES64 for (int i = 0; i < 8; i++)
#define LANES32 for (int i = 0; i < 16; i++)
#define LANES8 for (int i = 0; i < 64; i++)

enum { _MM_CMPINT_LE = 2, _MM_CMPINT_NLE = 6, _MM_HINT_T0 = 3 };

#define _mm_prefetch(address, hint) ((void)(address), (void)(hint))

/* ---- Whole vectors ---- */

EMULATED __m512i _mm512_setzero_si512(void) { return (__m512i){0}; }

EMULATED __m512i _mm512_loadu_si512(const void *from) {
    emulated out;
    memcpy(&out, from, sizeof out);
    return out.vector;
}

EMULATED void _mm512_storeu_si512(void *to, __m512i a) { memcpy(to, &a, sizeof a); }

EMULATED __m512i _mm512_and_si512(__m512i a, __m512i b) { return a & b; }
EMULATED __m512i _mm512_or_si512(__m512i a, __m512i b) { return a | b; }

EMULATED __m256i _mm512_castsi512_si256(__m512i a) {
    __m256i out;
    memcpy(&out, &a, sizeof out);
    return out;
}

EMULATED __m256i _mm512_extracti64x4_epi64(__m512i a, int half) {
    __m256i out;
    memcpy(&out, (const uint8_t *)&a + 32 * half, sizeof out);
    return out;
}

EMULATED __m512i _mm512_castsi256_si512(__m256i a) {
    __m512i out = {0};
    memcpy(&out, &a, sizeof a);
    return out;
}

EMULATED __m512i _mm512_inserti64x4(__m512i a, __m256i b, int half) {
    memcpy((uint8_t *)&a + 32 * half, &b, sizeof b);
    return a;
}

EMULATED __m256i _mm256_loadu_si256(const __m256i *from) {
    __m256i out;
    memcpy(&out, from, sizeof out);
    return out;
}

EMULATED void _mm256_storeu_si256(__m256i *to, __m256i a) { memcpy(to, &a, sizeof a); }

/* ---- Lanes of 64 bits ---- */

#define BINARY64(name, expression)                                        \
    EMULATED __m512i name(__m512i a_, __m512i b_) {                       \
        emulated a = {a_}, b = {b_}, out;                                 \
        LANES64 { out.u64[i] = (expression); }                            \
        return out.vector;                                                \
    }

#define MASK64(name, expression)                                          \
    EMULATED __mmask8 name(__m512i a_, __m512i b_) {                      \
        emulated a = {a_}, b = {b_};                                      \
        __mmask8 out = 0;                                                 \
        LANES64 { out |= (__mmask8)((expression) << i); }                 \
        return out;                                                       \
    }

BINARY64(_mm512_add_epi64, a.u64[i] + b.u64[i])
BINARY64(_mm512_sub_epi64, a.u64[i] - b.u64[i])
BINARY64(_mm512_unpacklo_epi64, i % 2 ? b.u64[i - 1] : a.u64[i])
BINARY64(_mm512_unpackhi_epi64, i % 2 ? b.u64[i] : a.u64[i + 1])
MASK64(_mm512_test_epi64_mask, (a.u64[i] & b.u64[i]) != 0)
MASK64(_mm512_testn_epi64_mask, (a.u64[i] & b.u64[i]) == 0)

EMULATED __m512i _mm512_set1_epi64(long long value) {
    emulated out;
    LANES64 { out.u64[i] = (uint64_t)value; }
    return out.vector;
}

EMULATED __m512i _mm512_srli_epi64(__m512i a_, unsigned count) {
    emulated a = {a_};
    LANES64 { a.u64[i] >>= count; }
    return a.vector;
}

EMULATED __m512i _mm512_slli_epi64(__m512i a_, unsigned count) {
    emulated a = {a_};
    LANES64 { a.u64[i] <<= count; }
    return a.vector;
}

EMULATED unsigned __int128 product52(uint64_t a, uint64_t b) {
    const uint64_t mask = (UINT64_C(1) << 52) - 1;
    return (unsigned __int128)(a & mask) * (b & mask);
}

EMULATED __m512i _mm512_madd52lo_epu64(__m512i sum_, __m512i a_, __m512i b_) {
    emulated sum = {sum_}, a = {a_}, b = {b_};
    LANES64 { sum.u64[i] += (uint64_t)product52(a.u64[i], b.u64[i]) & ((UINT64_C(1) << 52) - 1); }
    return sum.vector;
}

EMULATED __m512i _mm512_madd52hi_epu64(__m512i sum_, __m512i a_, __m512i b_) {
    emulated sum = {sum_}, a = {a_}, b = {b_};
    LANES64 { sum.u64[i] += (uint64_t)(product52(a.u64[i], b.u64[i]) >> 52); }
    return sum.vector;
}

EMULATED __m512i _mm512_mask_sub_epi64(__m512i otherwise_, __mmask8 lanes, __m512i a_, __m512i b_) {
    emulated out = {otherwise_}, a = {a_}, b = {b_};
    LANES64 { out.u64[i] = lanes >> i & 1 ? a.u64[i] - b.u64[i] : out.u64[i]; }
    return out.vector;
}

EMULATED __m512i _mm512_mask_blend_epi64(__mmask8 lanes, __m512i a_, __m512i b_) {
    emulated a = {a_}, b = {b_};
    LANES64 { a.u64[i] = lanes >> i & 1 ? b.u64[i] : a.u64[i]; }
    return a.vector;
}

EMULATED __mmask8 _mm512_cmp_epu64_mask(__m512i a_, __m512i b_, int predicate) {
    emulated a = {a_}, b = {b_};
    __mmask8 at_most = 0;
    LANES64 { at_most |= (__mmask8)((a.u64[i] <= b.u64[i]) << i); }
    return predicate == _MM_CMPINT_LE ? at_most : (__mmask8)~at_most;
}

/* Each 128-bit quarter of the result: one of a's four, then two of b's, as two bits of `control` each say. */
EMULATED __m512i _mm512_shuffle_i64x2(__m512i a_, __m512i b_, int control) {
    emulated a = {a_}, b = {b_}, out;
    LANES64 { out.u64[i] = (i < 4 ? a : b).u64[2 * (control >> (i / 2 * 2) & 3) + i % 2]; }
    return out.vector;
}

/* Index bits 0..2 name a word, bit 3 whether of b. */
EMULATED __m512i _mm512_permutex2var_epi64(__m512i a_, __m512i index_, __m512i b_) {
    emulated a = {a_}, index = {index_}, b = {b_}, out;
    LANES64 { out.u64[i] = (index.u64[i] & 8 ? b : a).u64[index.u64[i] & 7]; }
    return out.vector;
}

EMULATED __m512i _mm512_set_epi64(long long e7, long long e6, long long e5, long long e4, long long e3, long long e2,
                                  long long e1, long long e0) {
    return (__m512i){e0, e1, e2, e3, e4, e5, e6, e7};
}

/* ---- Lanes of 32 bits ---- */

#define BINARY32(name, expression)                                        \
    EMULATED __m512i name(__m512i a_, __m512i b_) {                       \
        emulated a = {a_}, b = {b_}, out;                                 \
        LANES32 { out.u32[i] = (expression); }                            \
        return out.vector;                                                \
    }

BINARY32(_mm512_add_epi32, a.u32[i] + b.u32[i])
BINARY32(_mm512_unpacklo_epi32, (i % 2 ? b : a).u32[i / 4 * 4 + i % 4 / 2])
BINARY32(_mm512_unpackhi_epi32, (i % 2 ? b : a).u32[i / 4 * 4 + 2 + i % 4 / 2])

EMULATED __m512i _mm512_set1_epi32(int value) {
    emulated out;
    LANES32 { out.u32[i] = (uint32_t)value; }
    return out.vector;
}

#define _mm512_set_epi32(...) emulated_set_epi32((const uint32_t[16]){__VA_ARGS__})

EMULATED __m512i _mm512_set4_epi32(int e3, int e2, int e1, int e0) {
    emulated out;
    LANES32 { out.u32[i] = (uint32_t)(i % 4 == 0 ? e0 : i % 4 == 1 ? e1 : i % 4 == 2 ? e2 : e3); }
    return out.vector;
}

EMULATED __m512i emulated_set_epi32(const uint32_t highest_first[16]) {
    emulated out;
    LANES32 { out.u32[i] = highest_first[15 - i]; }
    return out.vector;
}

EMULATED __m512i _mm512_srli_epi32(__m512i a_, unsigned count) {
    emulated a = {a_};
    LANES32 { a.u32[i] >>= count; }
    return a.vector;
}

EMULATED __m512i _mm512_slli_epi32(__m512i a_, unsigned count) {
    emulated a = {a_};
    LANES32 { a.u32[i] <<= count; }
    return a.vector;
}

EMULATED __m512i _mm512_ror_epi32(__m512i a_, int count) {
    emulated a = {a_};
    LANES32 { a.u32[i] = a.u32[i] >> count | a.u32[i] << (32 - count); }
    return a.vector;
}

/* Bit (a b c) of `table`, read as a number of three bits, for every bit position. */
EMULATED __m512i _mm512_ternarylogic_epi32(__m512i a, __m512i b, __m512i c, int table) {
    __m512i out = {0};
    for (int row = 0; row < 8; row++) {
        if (table >> row & 1) {
            out |= (row & 4 ? a : ~a) & (row & 2 ? b : ~b) & (row & 1 ? c : ~c);
        }
    }
    return out;
}

EMULATED __mmask16 _mm512_cmple_epu32_mask(__m512i a_, __m512i b_) {
    emulated a = {a_}, b = {b_};
    __mmask16 out = 0;
    LANES32 { out |= (__mmask16)((a.u32[i] <= b.u32[i]) << i); }
    return out;
}

/* ---- Bytes ---- */

/* Within each 128-bit quarter: the byte of `a` that the low four bits of the index name, or 0 if its bit 7 is set. */
EMULATED __m512i _mm512_shuffle_epi8(__m512i a_, __m512i index_) {
    emulated a = {a_}, index = {index_}, out;
    LANES8 { out.u8[i] = index.u8[i] & 0x80 ? 0 : a.u8[i / 16 * 16 + (index.u8[i] & 15)]; }
    return out.vector;
}

#undef BINARY64
#undef MASK64
#undef BINARY32

#endif

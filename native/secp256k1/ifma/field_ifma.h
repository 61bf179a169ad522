/* Arithmetic modulo p = 2^256 - C, C = 2^32 + 977, for eight elements at once: one per 64-bit lane of a vector,
 * five limbs of 52 bits, on the 52-bit multipliers of AVX-512 IFMA.
 *
 * Two sizes of element, always with limbs that are not negative:
 *
 *     loose   every limb below 2^52: what a multiplication takes
 *     weak    loose, and limb 4 below 2^48 + 2^13: what a multiplication gives
 *
 * The multipliers read the low 52 bits of a limb and drop the rest without notice. Hence every carry runs from limb
 * to limb in sequence; carrying all limbs at once would leave limbs of 2^52 on inputs that an adversary can find.
 */
#ifndef FL_SECP256K1_FIELD_IFMA_H
#define FL_SECP256K1_FIELD_IFMA_H

#include <stddef.h>
#include <stdint.h>

#include "../../fl_impl.h"

#ifdef FL_EMULATE_AVX512
#include "../../testing/avx512_emulation.h"
#else
#include <immintrin.h>
#endif

enum { FE8_LIMBS = 5, FE8_COLUMNS = 10, FE8_LANES = 8 };

#define FE8_MASK52 UINT64_C(0xfffffffffffff)
#define FE8_MASK48 UINT64_C(0xffffffffffff)
#define FE8_C UINT64_C(0x1000003d1)        /* 2^256 = C (mod p) */
#define FE8_C16 UINT64_C(0x1000003d10)     /* 2^260 = 16 C */
#define FE8_P0 UINT64_C(0xffffefffffc2f)   /* limb 0 of p; limbs 1, 2, 3 are FE8_MASK52 and limb 4 is FE8_MASK48 */

typedef struct {
    __m512i limb[FE8_LIMBS];
} fe8;

FL_INLINE __m512i fe8_word(uint64_t value) { return _mm512_set1_epi64((long long)value); }

/* sum + the low, and the high, 52 bits of a b. */
FL_INLINE __m512i multiply_low(__m512i sum, __m512i a, __m512i b) { return _mm512_madd52lo_epu64(sum, a, b); }
FL_INLINE __m512i multiply_high(__m512i sum, __m512i a, __m512i b) { return _mm512_madd52hi_epu64(sum, a, b); }

FL_INLINE void fe8_verify(const fe8 *a, int top_bits) {
#ifdef FL_DEBUG
    for (int i = 0; i < FE8_LIMBS; i++) {
        uint64_t limit = i < FE8_LIMBS - 1 || top_bits >= 52 ? FE8_MASK52 : (UINT64_C(1) << top_bits) + 8191;
        FL_VERIFY(_mm512_cmp_epu64_mask(a->limb[i], fe8_word(limit), _MM_CMPINT_NLE) == 0);
    }
#else
    (void)a;
    (void)top_bits;
#endif
}

FL_INLINE void fe8_verify_loose(const fe8 *a) { fe8_verify(a, 52); }
FL_INLINE void fe8_verify_weak(const fe8 *a) { fe8_verify(a, 48); }

/* ---- Constants ---- */

FL_INLINE fe8 fe8_small(uint64_t value) {
    fe8 a = {{fe8_word(value)}};
    for (int i = 1; i < FE8_LIMBS; i++) {
        a.limb[i] = _mm512_setzero_si512();
    }
    return a;
}

/* The same element, of four 64-bit limbs, in every lane. */
FL_INLINE fe8 fe8_all(const uint64_t words[4]) {
    return (fe8){{
        fe8_word(words[0] & FE8_MASK52),
        fe8_word((words[0] >> 52 | words[1] << 12) & FE8_MASK52),
        fe8_word((words[1] >> 40 | words[2] << 24) & FE8_MASK52),
        fe8_word((words[2] >> 28 | words[3] << 36) & FE8_MASK52),
        fe8_word(words[3] >> 16),
    }};
}

/* m p, with m units borrowed by each limb from the next above it: limbs 0..3 are at least (2 m - 1) 2^52 and limb 4 is
 * m 2^48 - 2 m, so that m - 1 weak elements can be subtracted limb by limb. m <= 16. */
FL_INLINE fe8 fe8_multiple_of_p(uint64_t m) {
    uint64_t middle = m * FE8_MASK52 + (m << 52) - m;
    return (fe8){{
        fe8_word(m * FE8_P0 + (m << 52)),
        fe8_word(middle),
        fe8_word(middle),
        fe8_word(middle),
        fe8_word(m * FE8_MASK48 - m),
    }};
}

/* ---- Carrying ---- */

/* Limbs 0..3 of any 64-bit size; limb 4 must have room for what comes up to it. */
FL_INLINE void fe8_carry(fe8 *a) {
    const __m512i mask = fe8_word(FE8_MASK52);
    for (int i = 0; i < FE8_LIMBS - 1; i++) {
        a->limb[i + 1] = _mm512_add_epi64(a->limb[i + 1], _mm512_srli_epi64(a->limb[i], 52));
        a->limb[i] = _mm512_and_si512(a->limb[i], mask);
    }
}

/* out = a - b (mod p), loose; a and b weak: 4 p + a - b has a limb 4 below 6 2^48. */
FL_INLINE void fe8_sub(fe8 *out, const fe8 *a, const fe8 *b) {
    const fe8 cover = fe8_multiple_of_p(4);
    fe8_verify_weak(a);
    fe8_verify_weak(b);
    for (int i = 0; i < FE8_LIMBS; i++) {
        out->limb[i] = _mm512_sub_epi64(_mm512_add_epi64(a->limb[i], cover.limb[i]), b->limb[i]);
    }
    fe8_carry(out);
    fe8_verify_loose(out);
}

/* Negates, in the lanes of `lanes` only, a weak element; loose. */
FL_INLINE void fe8_negate_lanes(fe8 *a, __mmask8 lanes) {
    const fe8 cover = fe8_multiple_of_p(4);
    fe8_verify_weak(a);
    for (int i = 0; i < FE8_LIMBS; i++) {
        a->limb[i] = _mm512_mask_sub_epi64(a->limb[i], lanes, cover.limb[i], a->limb[i]);
    }
    fe8_carry(a);
    fe8_verify_loose(a);
}

FL_INLINE void fe8_select(fe8 *out, __mmask8 lanes, const fe8 *chosen, const fe8 *otherwise) {
    for (int i = 0; i < FE8_LIMBS; i++) {
        out->limb[i] = _mm512_mask_blend_epi64(lanes, otherwise->limb[i], chosen->limb[i]);
    }
}

/* From loose to the one representative below p. */
FL_INLINE void fe8_canonical(fe8 *a) {
    fe8_verify_loose(a);
    /* What stands above 2^256 is below 16. Folding it in can carry past 2^256 once more, but then leaves less than
     * 16 C below, and the second fold cannot. */
    for (int i = 0; i < 2; i++) {
        __m512i above = _mm512_srli_epi64(a->limb[4], 48);
        a->limb[4] = _mm512_and_si512(a->limb[4], fe8_word(FE8_MASK48));
        a->limb[0] = multiply_low(a->limb[0], above, fe8_word(FE8_C));
        fe8_carry(a);
    }
    /* a >= p exactly when a + C reaches 2^256, and then a - p is a + C without that bit. */
    fe8 reduced = *a;
    reduced.limb[0] = _mm512_add_epi64(reduced.limb[0], fe8_word(FE8_C));
    fe8_carry(&reduced);
    __mmask8 at_least_p = _mm512_test_epi64_mask(reduced.limb[4], fe8_word(UINT64_C(1) << 48));
    reduced.limb[4] = _mm512_and_si512(reduced.limb[4], fe8_word(FE8_MASK48));
    fe8_select(a, at_least_p, &reduced, a);
}

/* The lanes in which a loose element is 0 (mod p). */
FL_INLINE __mmask8 fe8_is_zero(const fe8 *a) {
    fe8 c = *a;
    fe8_canonical(&c);
    __m512i any = c.limb[0];
    for (int i = 1; i < FE8_LIMBS; i++) {
        any = _mm512_or_si512(any, c.limb[i]);
    }
    return _mm512_testn_epi64_mask(any, any);
}

/* ---- Multiplying ----
 *
 * A product is summed up in ten columns of weight 2^(52 k). A column takes at most ten halves of products, each below
 * 2^52, and an addend of up to 2^58: below 2^59.
 */

FL_INLINE __m512i scaled(__m512i z, const int scale) {
    __m512i twice = _mm512_add_epi64(z, z);
    return scale == 1 ? z : scale == 2 ? twice : _mm512_add_epi64(twice, z);
}

/* out = scale times the columns (mod p), weak; scale <= 3. The product that went into the columns is below 2^520,
 * the addend went into columns 0..4 only. */
FL_INLINE void fe8_reduce(fe8 *out, __m512i z[FE8_COLUMNS], const int scale) {
    const __m512i mask52 = fe8_word(FE8_MASK52), fold260 = fe8_word(FE8_C16), fold256 = fe8_word(FE8_C);
    /* Columns 5..9 alone are at most the product over 2^260: after carrying, column 9 is below 2^52 too. */
    for (int k = 5; k < 9; k++) {
        z[k + 1] = _mm512_add_epi64(z[k + 1], _mm512_srli_epi64(z[k], 52));
        z[k] = _mm512_and_si512(z[k], mask52);
    }
    /* 2^260 = 16 C: column 5 + k comes down to k. What falls on column 5 again is below 2^37. */
    __m512i top = multiply_high(_mm512_setzero_si512(), z[9], fold260);
    for (int k = 0; k < 5; k++) {
        z[k] = multiply_low(z[k], z[5 + k], fold260);
        if (k < 4) {
            z[k + 1] = multiply_high(z[k + 1], z[5 + k], fold260);
        }
    }
    for (int k = 0; k < FE8_LIMBS; k++) {
        z[k] = scaled(z[k], scale);
    }
    top = scaled(top, scale);
    /* Columns below 2^61, top below 2^39. */
    /* What stands above 2^256, in units of it, is below 2^13 + 2^43; times C below 2^77. */
    __m512i above = _mm512_add_epi64(_mm512_srli_epi64(z[4], 48), _mm512_slli_epi64(top, 4));
    z[4] = _mm512_and_si512(z[4], fe8_word(FE8_MASK48));
    z[0] = multiply_low(z[0], above, fold256);
    z[1] = multiply_high(z[1], above, fold256);
    /* Columns still below 2^62: no more than 2^10 reaches limb 4. */
    for (int k = 0; k < FE8_LIMBS; k++) {
        out->limb[k] = z[k];
    }
    fe8_carry(out);
    fe8_verify_weak(out);
}

FL_INLINE void fe8_start_columns(__m512i z[FE8_COLUMNS], const fe8 *addend) {
    for (int k = 0; k < FE8_COLUMNS; k++) {
        z[k] = addend != NULL && k < FE8_LIMBS ? addend->limb[k] : _mm512_setzero_si512();
    }
}

/* out = scale (a b + addend), weak; a and b loose, the addend NULL or of limbs below 2^58. */
FL_INLINE void fe8_mul_full(fe8 *out, const fe8 *a, const fe8 *b, const fe8 *addend, const int scale) {
    __m512i z[FE8_COLUMNS];
    fe8_verify_loose(a);
    fe8_verify_loose(b);
    fe8_start_columns(z, addend);
#pragma GCC unroll 5
    for (int i = 0; i < FE8_LIMBS; i++) {
#pragma GCC unroll 5
        for (int j = 0; j < FE8_LIMBS; j++) {
            z[i + j] = multiply_low(z[i + j], a->limb[i], b->limb[j]);
            z[i + j + 1] = multiply_high(z[i + j + 1], a->limb[i], b->limb[j]);
        }
    }
    fe8_reduce(out, z, scale);
}

/* out = scale (a^2 + addend): the products of two different limbs are summed once and doubled. */
FL_INLINE void fe8_sqr_full(fe8 *out, const fe8 *a, const fe8 *addend, const int scale) {
    __m512i z[FE8_COLUMNS];
    fe8_verify_loose(a);
    fe8_start_columns(z, NULL);
#pragma GCC unroll 5
    for (int i = 0; i < FE8_LIMBS; i++) {
#pragma GCC unroll 5
        for (int j = i + 1; j < FE8_LIMBS; j++) {
            z[i + j] = multiply_low(z[i + j], a->limb[i], a->limb[j]);
            z[i + j + 1] = multiply_high(z[i + j + 1], a->limb[i], a->limb[j]);
        }
    }
    for (int k = 1; k < FE8_COLUMNS - 1; k++) {
        z[k] = _mm512_add_epi64(z[k], z[k]);
    }
    for (int k = 0; k < FE8_LIMBS && addend != NULL; k++) {
        z[k] = _mm512_add_epi64(z[k], addend->limb[k]);
    }
#pragma GCC unroll 5
    for (int i = 0; i < FE8_LIMBS; i++) {
        z[2 * i] = multiply_low(z[2 * i], a->limb[i], a->limb[i]);
        z[2 * i + 1] = multiply_high(z[2 * i + 1], a->limb[i], a->limb[i]);
    }
    fe8_reduce(out, z, scale);
}

FL_INLINE void fe8_mul(fe8 *out, const fe8 *a, const fe8 *b) { fe8_mul_full(out, a, b, NULL, 1); }

FL_INLINE void fe8_sqr(fe8 *out, const fe8 *a) { fe8_sqr_full(out, a, NULL, 1); }

/* An addend of value 16 p - a - 2^shift b, of limbs below 2^57; a and b weak or NULL, shift <= 3. Limb 4 is at least
 * 16 2^48 - 32 less nine weak ones: not negative. */
FL_INLINE fe8 fe8_minus(const fe8 *a, const fe8 *b, const int shift) {
    fe8 out = fe8_multiple_of_p(16);
    for (int i = 0; i < FE8_LIMBS; i++) {
        if (a != NULL) {
            out.limb[i] = _mm512_sub_epi64(out.limb[i], a->limb[i]);
        }
        if (b != NULL) {
            out.limb[i] = _mm512_sub_epi64(out.limb[i], _mm512_slli_epi64(b->limb[i], (unsigned)shift));
        }
    }
    return out;
}

/* ---- Inverting ---- */

static __attribute__((noinline)) void fe8_sqr_times(fe8 *out, const fe8 *a, int times) {
    fe8 x = *a;
    for (int i = 0; i < times; i++) {
        fe8_sqr(&x, &x);
    }
    *out = x;
}

static __attribute__((noinline)) void fe8_mul_call(fe8 *out, const fe8 *a, const fe8 *b) { fe8_mul(out, a, b); }

/* out = a^(2^times) b */
static void fe8_sqr_times_mul(fe8 *out, const fe8 *a, int times, const fe8 *b) {
    fe8 x;
    fe8_sqr_times(&x, a, times);
    fe8_mul_call(out, &x, b);
}

/* a^(p - 2): 1 / a, or 0 for 0. In binary p - 2 is 223 ones, a zero, 22 ones, four zeros and 101101; x<k> below is a to
 * the power of k ones. */
static void fe8_invert(fe8 *out, const fe8 *a) {
    fe8 x2, x3, x6, x9, x11, x22, x44, x88, x176, x220, x223, x;
    fe8_sqr_times_mul(&x2, a, 1, a);
    fe8_sqr_times_mul(&x3, &x2, 1, a);
    fe8_sqr_times_mul(&x6, &x3, 3, &x3);
    fe8_sqr_times_mul(&x9, &x6, 3, &x3);
    fe8_sqr_times_mul(&x11, &x9, 2, &x2);
    fe8_sqr_times_mul(&x22, &x11, 11, &x11);
    fe8_sqr_times_mul(&x44, &x22, 22, &x22);
    fe8_sqr_times_mul(&x88, &x44, 44, &x44);
    fe8_sqr_times_mul(&x176, &x88, 88, &x88);
    fe8_sqr_times_mul(&x220, &x176, 44, &x44);
    fe8_sqr_times_mul(&x223, &x220, 3, &x3);
    fe8_sqr_times_mul(&x, &x223, 23, &x22);
    fe8_sqr_times_mul(&x, &x, 5, a);
    fe8_sqr_times_mul(&x, &x, 3, &x2);
    fe8_sqr_times_mul(out, &x, 2, a);
}

/* ---- Memory ---- */

/* Rows to columns: word j of row[i] becomes word i of row[j]. */
FL_INLINE void transpose8(__m512i row[FE8_LANES]) {
    __m512i pair[8], quad[8];
    for (int i = 0; i < 8; i += 2) {
        pair[i] = _mm512_unpacklo_epi64(row[i], row[i + 1]);     /* words 0, 2, 4, 6 of two rows */
        pair[i + 1] = _mm512_unpackhi_epi64(row[i], row[i + 1]); /* words 1, 3, 5, 7 */
    }
    for (int half = 0; half < 8; half += 4) {
        for (int odd = 0; odd < 2; odd++) {
            __m512i low = pair[half + odd], high = pair[half + odd + 2];
            quad[half + odd] = _mm512_shuffle_i64x2(low, high, 0x88);     /* words 0 + odd, 4 + odd of four rows */
            quad[half + odd + 2] = _mm512_shuffle_i64x2(low, high, 0xdd); /* words 2 + odd, 6 + odd */
        }
    }
    for (int word = 0; word < 4; word++) {
        row[word] = _mm512_shuffle_i64x2(quad[word], quad[word + 4], 0x88);
        row[word + 4] = _mm512_shuffle_i64x2(quad[word], quad[word + 4], 0xdd);
    }
}

/* (high:low >> shift) mod 2^52 in each lane */
FL_INLINE __m512i limb_across(__m512i low, __m512i high, const unsigned shift) {
    __m512i joined = _mm512_or_si512(_mm512_srli_epi64(low, shift), _mm512_slli_epi64(high, 64 - shift));
    return _mm512_and_si512(joined, fe8_word(FE8_MASK52));
}

/* From 64-bit limbs, one vector per limb; below 2^256, hence weak. */
FL_INLINE void fe8_from_words(fe8 *out, const __m512i word[4]) {
    out->limb[0] = _mm512_and_si512(word[0], fe8_word(FE8_MASK52));
    out->limb[1] = limb_across(word[0], word[1], 52);
    out->limb[2] = limb_across(word[1], word[2], 40);
    out->limb[3] = limb_across(word[2], word[3], 28);
    out->limb[4] = _mm512_srli_epi64(word[3], 16);
}

/* The canonical 64-bit limbs of a loose element. */
FL_INLINE void fe8_to_words(__m512i word[4], const fe8 *a) {
    fe8 c = *a;
    fe8_canonical(&c);
    for (unsigned i = 0; i < 4; i++) {
        word[i] = _mm512_or_si512(_mm512_srli_epi64(c.limb[i], 12 * i), _mm512_slli_epi64(c.limb[i + 1], 52 - 12 * i));
    }
}

#endif

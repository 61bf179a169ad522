/* Arithmetic modulo p = 2^256 - C, C = 2^32 + 977, in four 64-bit limbs, least significant first.
 *
 * Every function takes and gives any value below 2^256: p and what is above it are folded, never required to be
 * absent. fl_field_canonical makes the one representative below p, which memory shared with others must hold.
 * With FL_FIELD_ADX defined, multiplication is written for CPUs with BMI2 and ADX.
 */
#ifndef FL_SECP256K1_FIELD_H
#define FL_SECP256K1_FIELD_H

#include <stdint.h>
#include <string.h>

typedef struct {
    uint64_t limb[4];
} fl_field;

typedef unsigned __int128 fl_u128;

#define FL_FIELD_C UINT64_C(0x1000003d1)

static const fl_field FL_FIELD_ZERO = {{0}};
static const fl_field FL_FIELD_ONE = {{1}};
/* A cube root of one: lambda (x, y) = (beta x, y). */
static const fl_field FL_FIELD_BETA = {
    {UINT64_C(0xc1396c28719501ee), UINT64_C(0x9cf0497512f58995), UINT64_C(0x6e64479eac3434e9),
     UINT64_C(0x7ae96a2b657c0710)}};

/* ---- Adding ---- */

/* A carry out of 2^256 is worth C. Folding it may carry once more, and then leaves less than C, so that the
 * second fold ends in the lowest limb. */
#if defined(__x86_64__)
static inline void fl_field_add(fl_field *out, const fl_field *a, const fl_field *b)
{
    uint64_t r0 = a->limb[0], r1 = a->limb[1], r2 = a->limb[2], r3 = a->limb[3], mask;
    __asm__("add %[b0], %[r0]\n\t"
            "adc %[b1], %[r1]\n\t"
            "adc %[b2], %[r2]\n\t"
            "adc %[b3], %[r3]\n\t"
            "sbb %[mask], %[mask]\n\t"
            "and %[c], %[mask]\n\t"
            "add %[mask], %[r0]\n\t"
            "adc $0, %[r1]\n\t"
            "adc $0, %[r2]\n\t"
            "adc $0, %[r3]\n\t"
            "jnc 1f\n\t"
            "add %[c], %[r0]\n"
            "1:"
            : [r0] "+&r"(r0), [r1] "+&r"(r1), [r2] "+&r"(r2), [r3] "+&r"(r3), [mask] "=&r"(mask)
            : [b0] "m"(b->limb[0]), [b1] "m"(b->limb[1]), [b2] "m"(b->limb[2]), [b3] "m"(b->limb[3]),
              [c] "r"(FL_FIELD_C)
            : "cc");
    out->limb[0] = r0;
    out->limb[1] = r1;
    out->limb[2] = r2;
    out->limb[3] = r3;
}
#else
static inline void fl_field_add(fl_field *out, const fl_field *a, const fl_field *b)
{
    fl_u128 sum = 0;
    for (int i = 0; i < 4; i++) {
        sum += (fl_u128)a->limb[i] + b->limb[i];
        out->limb[i] = (uint64_t)sum;
        sum >>= 64;
    }
    sum *= FL_FIELD_C;
    for (int i = 0; i < 4; i++) {
        sum += out->limb[i];
        out->limb[i] = (uint64_t)sum;
        sum >>= 64;
    }
    out->limb[0] += (uint64_t)sum * FL_FIELD_C;
}
#endif

/* A borrow is worth -C. Folding it may borrow once more, and then leaves at least 2^256 - C, whose lowest limb is
 * at least 2^64 - C: the second fold ends there. */
#if defined(__x86_64__)
static inline void fl_field_sub(fl_field *out, const fl_field *a, const fl_field *b)
{
    uint64_t r0 = a->limb[0], r1 = a->limb[1], r2 = a->limb[2], r3 = a->limb[3], mask;
    __asm__("sub %[b0], %[r0]\n\t"
            "sbb %[b1], %[r1]\n\t"
            "sbb %[b2], %[r2]\n\t"
            "sbb %[b3], %[r3]\n\t"
            "sbb %[mask], %[mask]\n\t"
            "and %[c], %[mask]\n\t"
            "sub %[mask], %[r0]\n\t"
            "sbb $0, %[r1]\n\t"
            "sbb $0, %[r2]\n\t"
            "sbb $0, %[r3]\n\t"
            "jnc 1f\n\t"
            "sub %[c], %[r0]\n"
            "1:"
            : [r0] "+&r"(r0), [r1] "+&r"(r1), [r2] "+&r"(r2), [r3] "+&r"(r3), [mask] "=&r"(mask)
            : [b0] "m"(b->limb[0]), [b1] "m"(b->limb[1]), [b2] "m"(b->limb[2]), [b3] "m"(b->limb[3]),
              [c] "r"(FL_FIELD_C)
            : "cc");
    out->limb[0] = r0;
    out->limb[1] = r1;
    out->limb[2] = r2;
    out->limb[3] = r3;
}
#else
static inline void fl_field_sub(fl_field *out, const fl_field *a, const fl_field *b)
{
    uint64_t borrow = 0;
    for (int i = 0; i < 4; i++) {
        fl_u128 difference = (fl_u128)a->limb[i] - b->limb[i] - borrow;
        out->limb[i] = (uint64_t)difference;
        borrow = (uint64_t)(difference >> 64) & 1;
    }
    borrow *= FL_FIELD_C;
    for (int i = 0; i < 4; i++) {
        fl_u128 difference = (fl_u128)out->limb[i] - borrow;
        out->limb[i] = (uint64_t)difference;
        borrow = (uint64_t)(difference >> 64) & 1;
    }
    out->limb[0] -= borrow * FL_FIELD_C;
}
#endif

static inline void fl_field_negate(fl_field *out, const fl_field *a)
{
    fl_field_sub(out, &FL_FIELD_ZERO, a);
}

/* a / 2: an odd a becomes even by adding p, whose carry is the top bit of the result. */
static inline void fl_field_half(fl_field *out, const fl_field *a)
{
    uint64_t odd = 0 - (a->limb[0] & 1), sum[4], carry = 0;
    for (int i = 0; i < 4; i++) {
        fl_u128 limb = (fl_u128)a->limb[i] + (odd & (i == 0 ? 0 - FL_FIELD_C : UINT64_MAX)) + carry;
        sum[i] = (uint64_t)limb;
        carry = (uint64_t)(limb >> 64);
    }
    for (int i = 0; i < 4; i++)
        out->limb[i] = sum[i] >> 1 | (i < 3 ? sum[i + 1] : carry) << 63;
}

/* ---- Multiplying ---- */

#if defined(FL_FIELD_ADX)
/* One row of the product: adds b * a[0..3], b in rdx, to the accumulators r0..r3 and makes r4. Carries of the
 * low halves run through CF, those of the high halves through OF; xor has cleared both. A row's sum fits into
 * five limbs, so that the last of each carry ends in r4. */
#define FL_ROW_FIRST(r0, r1, r2, r3, r4)                                                                    \
    "mulx 0(%[a]), %[" r0 "], %[" r1 "]\n\t"                                                                \
    "mulx 8(%[a]), %[t], %[" r2 "]\n\t"                                                                     \
    "add %[t], %[" r1 "]\n\t"                                                                               \
    "mulx 16(%[a]), %[t], %[" r3 "]\n\t"                                                                    \
    "adc %[t], %[" r2 "]\n\t"                                                                               \
    "mulx 24(%[a]), %[t], %[" r4 "]\n\t"                                                                    \
    "adc %[t], %[" r3 "]\n\t"                                                                               \
    "adc $0, %[" r4 "]\n\t"
#define FL_ROW(r0, r1, r2, r3, r4)                                                                          \
    "xor %k[u], %k[u]\n\t"                                                                                  \
    "mulx 0(%[a]), %[t], %[u]\n\t"                                                                          \
    "adcx %[t], %[" r0 "]\n\t"                                                                              \
    "adox %[u], %[" r1 "]\n\t"                                                                              \
    "mulx 8(%[a]), %[t], %[u]\n\t"                                                                          \
    "adcx %[t], %[" r1 "]\n\t"                                                                              \
    "adox %[u], %[" r2 "]\n\t"                                                                              \
    "mulx 16(%[a]), %[t], %[u]\n\t"                                                                         \
    "adcx %[t], %[" r2 "]\n\t"                                                                              \
    "adox %[u], %[" r3 "]\n\t"                                                                              \
    "mulx 24(%[a]), %[t], %[" r4 "]\n\t"                                                                    \
    "mov $0, %k[u]\n\t"                                                                                     \
    "adcx %[t], %[" r3 "]\n\t"                                                                              \
    "adox %[u], %[" r4 "]\n\t"                                                                              \
    "adc $0, %[" r4 "]\n\t"
/* Folds z4..z7 as C z[4..7]: the top, at most C, is folded by a full product, since C^2 exceeds 2^64. A carry
 * out of that leaves less than C^2, hence z1 <= 1, and its fold ends in z1. */
#define FL_FOLD                                                                                             \
    "mov %[c], %%rdx\n\t"                                                                                   \
    "xor %k[u], %k[u]\n\t"                                                                                  \
    "mulx %[z4], %[t], %[u]\n\t"                                                                            \
    "adcx %[t], %[z0]\n\t"                                                                                  \
    "adox %[u], %[z1]\n\t"                                                                                  \
    "mulx %[z5], %[t], %[u]\n\t"                                                                            \
    "adcx %[t], %[z1]\n\t"                                                                                  \
    "adox %[u], %[z2]\n\t"                                                                                  \
    "mulx %[z6], %[t], %[u]\n\t"                                                                            \
    "adcx %[t], %[z2]\n\t"                                                                                  \
    "adox %[u], %[z3]\n\t"                                                                                  \
    "mulx %[z7], %[t], %[z4]\n\t"                                                                           \
    "mov $0, %k[u]\n\t"                                                                                     \
    "adcx %[t], %[z3]\n\t"                                                                                  \
    "adox %[u], %[z4]\n\t"                                                                                  \
    "adc $0, %[z4]\n\t"                                                                                     \
    "mulx %[z4], %[t], %[u]\n\t"                                                                            \
    "add %[t], %[z0]\n\t"                                                                                   \
    "adc %[u], %[z1]\n\t"                                                                                   \
    "adc $0, %[z2]\n\t"                                                                                     \
    "adc $0, %[z3]\n\t"                                                                                     \
    "jnc 1f\n\t"                                                                                            \
    "add %%rdx, %[z0]\n\t"                                                                                  \
    "adc $0, %[z1]\n"                                                                                       \
    "1:"

static inline void fl_field_mul(fl_field *out, const fl_field *a, const fl_field *b)
{
    uint64_t z0, z1, z2, z3, z4, z5, z6, z7, t, u;
    __asm__("mov 0(%[b]), %%rdx\n\t" FL_ROW_FIRST("z0", "z1", "z2", "z3", "z4")
            "mov 8(%[b]), %%rdx\n\t" FL_ROW("z1", "z2", "z3", "z4", "z5")
            "mov 16(%[b]), %%rdx\n\t" FL_ROW("z2", "z3", "z4", "z5", "z6")
            "mov 24(%[b]), %%rdx\n\t" FL_ROW("z3", "z4", "z5", "z6", "z7") FL_FOLD
            : [z0] "=&r"(z0), [z1] "=&r"(z1), [z2] "=&r"(z2), [z3] "=&r"(z3), [z4] "=&r"(z4), [z5] "=&r"(z5),
              [z6] "=&r"(z6), [z7] "=&r"(z7), [t] "=&r"(t), [u] "=&r"(u)
            : [a] "r"(a->limb), [b] "r"(b->limb), "m"(*a), "m"(*b), [c] "i"(FL_FIELD_C)
            : "rdx", "cc");
    out->limb[0] = z0;
    out->limb[1] = z1;
    out->limb[2] = z2;
    out->limb[3] = z3;
}

/* The six mixed products, z1..z6, doubled into z7, then the squares. */
static inline void fl_field_sqr(fl_field *out, const fl_field *a)
{
    uint64_t z0, z1, z2, z3, z4, z5, z6, z7, t, u;
    __asm__("mov 0(%[a]), %%rdx\n\t"
            "mulx 8(%[a]), %[z1], %[z2]\n\t"
            "mulx 16(%[a]), %[t], %[z3]\n\t"
            "add %[t], %[z2]\n\t"
            "mulx 24(%[a]), %[t], %[z4]\n\t"
            "adc %[t], %[z3]\n\t"
            "adc $0, %[z4]\n\t"
            "mov 8(%[a]), %%rdx\n\t"
            "xor %k[u], %k[u]\n\t"
            "mulx 16(%[a]), %[t], %[u]\n\t"
            "adcx %[t], %[z3]\n\t"
            "adox %[u], %[z4]\n\t"
            "mulx 24(%[a]), %[t], %[z5]\n\t"
            "mov $0, %k[u]\n\t"
            "adcx %[t], %[z4]\n\t"
            "adox %[u], %[z5]\n\t"
            "adc $0, %[z5]\n\t"
            "mov 16(%[a]), %%rdx\n\t"
            "mulx 24(%[a]), %[t], %[z6]\n\t"
            "add %[t], %[z5]\n\t"
            "adc $0, %[z6]\n\t"
            /* double through CF, squares through OF */
            "mov 0(%[a]), %%rdx\n\t"
            "xor %k[z7], %k[z7]\n\t"
            "mulx %%rdx, %[z0], %[u]\n\t"
            "adcx %[z1], %[z1]\n\t"
            "adox %[u], %[z1]\n\t"
            "mov 8(%[a]), %%rdx\n\t"
            "mulx %%rdx, %[t], %[u]\n\t"
            "adcx %[z2], %[z2]\n\t"
            "adox %[t], %[z2]\n\t"
            "adcx %[z3], %[z3]\n\t"
            "adox %[u], %[z3]\n\t"
            "mov 16(%[a]), %%rdx\n\t"
            "mulx %%rdx, %[t], %[u]\n\t"
            "adcx %[z4], %[z4]\n\t"
            "adox %[t], %[z4]\n\t"
            "adcx %[z5], %[z5]\n\t"
            "adox %[u], %[z5]\n\t"
            "mov 24(%[a]), %%rdx\n\t"
            "mulx %%rdx, %[t], %[u]\n\t"
            "adcx %[z6], %[z6]\n\t"
            "adox %[t], %[z6]\n\t"
            "adcx %[z7], %[z7]\n\t"
            "adox %[u], %[z7]\n\t" FL_FOLD
            : [z0] "=&r"(z0), [z1] "=&r"(z1), [z2] "=&r"(z2), [z3] "=&r"(z3), [z4] "=&r"(z4), [z5] "=&r"(z5),
              [z6] "=&r"(z6), [z7] "=&r"(z7), [t] "=&r"(t), [u] "=&r"(u)
            : [a] "r"(a->limb), "m"(*a), [c] "i"(FL_FIELD_C)
            : "rdx", "cc");
    out->limb[0] = z0;
    out->limb[1] = z1;
    out->limb[2] = z2;
    out->limb[3] = z3;
}
#else
/* Folds an eight-limb product: z[4..7] times C reaches at most C in the fifth limb; that times C is below 2^65,
 * and a carry out of its addition leaves less than C^2, so that the last fold ends in the second limb. */
static inline void fl_field_fold(fl_field *out, const uint64_t z[8])
{
    uint64_t low[4], carry = 0;
    for (int i = 0; i < 4; i++) {
        fl_u128 sum = (fl_u128)z[4 + i] * FL_FIELD_C + z[i] + carry;
        low[i] = (uint64_t)sum;
        carry = (uint64_t)(sum >> 64);
    }
    fl_u128 sum = (fl_u128)carry * FL_FIELD_C;
    for (int i = 0; i < 4; i++) {
        sum += low[i];
        low[i] = (uint64_t)sum;
        sum >>= 64;
    }
    sum = (fl_u128)low[0] + (uint64_t)sum * FL_FIELD_C;
    out->limb[0] = (uint64_t)sum;
    out->limb[1] = low[1] + (uint64_t)(sum >> 64);
    out->limb[2] = low[2];
    out->limb[3] = low[3];
}

static inline void fl_field_mul(fl_field *out, const fl_field *a, const fl_field *b)
{
    uint64_t z[8] = {0};
#pragma GCC unroll 4
    for (int i = 0; i < 4; i++) {
        uint64_t carry = 0;
#pragma GCC unroll 4
        for (int j = 0; j < 4; j++) {
            /* (2^64 - 1)^2 + 2 (2^64 - 1) = 2^128 - 1 */
            fl_u128 sum = (fl_u128)a->limb[i] * b->limb[j] + z[i + j] + carry;
            z[i + j] = (uint64_t)sum;
            carry = (uint64_t)(sum >> 64);
        }
        z[i + 4] = carry;
    }
    fl_field_fold(out, z);
}

static inline void fl_field_sqr(fl_field *out, const fl_field *a)
{
    fl_field_mul(out, a, a);
}
#endif

static inline void fl_field_sqr_times(fl_field *out, const fl_field *a, int times)
{
    *out = *a;
    for (int i = 0; i < times; i++)
        fl_field_sqr(out, out);
}

/* ---- Comparing, loading ---- */

/* p <= a < 2^256 exactly when a + C carries out; a - p is then a + C without the carry. */
static inline void fl_field_canonical(fl_field *a)
{
    fl_u128 sum = FL_FIELD_C;
    uint64_t reduced[4];
    for (int i = 0; i < 4; i++) {
        sum += a->limb[i];
        reduced[i] = (uint64_t)sum;
        sum >>= 64;
    }
    if (sum)
        memcpy(a->limb, reduced, sizeof reduced);
}

static inline int fl_field_is_zero(const fl_field *a)
{
    fl_field copy = *a;
    fl_field_canonical(&copy);
    return (copy.limb[0] | copy.limb[1] | copy.limb[2] | copy.limb[3]) == 0;
}

static inline int fl_field_equal(const fl_field *a, const fl_field *b)
{
    fl_field difference;
    fl_field_sub(&difference, a, b);
    return fl_field_is_zero(&difference);
}

static inline void fl_field_load(fl_field *out, const uint64_t limbs[4])
{
    memcpy(out->limb, limbs, sizeof out->limb);
}

static inline void fl_field_store(uint64_t limbs[4], const fl_field *a)
{
    fl_field copy = *a;
    fl_field_canonical(&copy);
    memcpy(limbs, copy.limb, sizeof copy.limb);
}

#endif

/* Modular inverses by divsteps (Bernstein and Yang, "Fast constant-time gcd computation and modular inversion",
 * 2019), in the variant whose running time depends on its input: nothing here is secret. */
#ifndef FL_SECP256K1_MODINV_H
#define FL_SECP256K1_MODINV_H

#include <stdint.h>

/* An odd modulus below 2^256 and its inverse modulo 2^62. */
typedef struct {
    int64_t limbs62[5];
    uint64_t inverse62;
} fl_modulus;

extern const fl_modulus FL_MODULUS_P, FL_MODULUS_N;

/* out = a^-1 modulo the modulus, for 0 <= a < modulus; 0 for 0. out may be a. */
void fl_modinv(uint64_t out[4], const uint64_t a[4], const fl_modulus *modulus);

#endif

/* The clock rate, for figures in cycles: a chain of multiplications, each of which waits for the one before. */
#include "fl_impl.h"

uint64_t fl_multiply_chain(uint64_t count) {
    uint64_t x = 3;
    for (uint64_t i = 0; i < count; i++) {
        x *= 0x9e3779b97f4a7c15u;
        __asm__ volatile("" : "+r"(x)); /* so that the chain is neither shortened nor split */
    }
    return x;
}

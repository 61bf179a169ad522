/* The kernels that this build has, and their start-up test. */
#ifndef FL_SECP256K1_SELECT_H
#define FL_SECP256K1_SELECT_H

#include "kernel.h"

/* Kernel `index`, fastest first; NULL beyond the last. */
const fl_secp_kernel *fl_secp_kernel_at(size_t index);
int fl_secp_kernel_supported(const fl_secp_kernel *kernel);

/* Known answers that every entry of the kernel has to reproduce, with a generator's table built by it. Leaves
 * that table in fl_generator_table; returns 0 if an answer is wrong, or when out of memory. */
int fl_secp_kernel_passes(const fl_secp_kernel *kernel);

#endif

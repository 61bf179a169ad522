/* Threads for one call, under the name that the ECDSA sources use. */
#ifndef FL_WORKERS_H
#define FL_WORKERS_H

#include "fl_impl.h"

static inline void fl_run_workers(void *(*work)(void *), void *shared, unsigned threads) {
    fl_workers_run(work, shared, threads);
}

#endif

/* Threads for one call: started, used and joined inside it, so that a fork never finds a pool without threads. */
#define _POSIX_C_SOURCE 200809L /* pthread_sigmask */

#include "fl_impl.h"

#include <pthread.h>
#include <signal.h>

void fl_workers_run(fl_worker *work, void *shared, unsigned threads) {
    pthread_t others[FL_THREADS_MAX - 1];
    size_t others_max = (threads < FL_THREADS_MAX ? threads : FL_THREADS_MAX);
    size_t started = 0;
    others_max -= others_max > 0;
    if (others_max > 0) {
        /* Signals stay with the threads that the process had before. */
        sigset_t all, before;
        sigfillset(&all);
        pthread_sigmask(SIG_SETMASK, &all, &before);
        while (started < others_max && pthread_create(&others[started], NULL, work, shared) == 0) {
            started++;
        }
        pthread_sigmask(SIG_SETMASK, &before, NULL);
    }
    work(shared);
    for (size_t i = 0; i < started; i++) {
        pthread_join(others[i], NULL);
    }
}

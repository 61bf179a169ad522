#define _POSIX_C_SOURCE 200809L

#include "workers.h"

#include <pthread.h>
#include <signal.h>
#include <stddef.h>

enum { THREADS_CAP = 256 };

void fl_run_workers(void *(*work)(void *), void *shared, unsigned threads)
{
    pthread_t others[THREADS_CAP - 1];
    sigset_t all, before;
    size_t started = 0;
    size_t others_max = (threads == 0 ? 1 : threads < THREADS_CAP ? threads : THREADS_CAP) - 1;

    if (others_max > 0) {
        sigfillset(&all);
        pthread_sigmask(SIG_SETMASK, &all, &before);
        while (started < others_max && pthread_create(&others[started], NULL, work, shared) == 0)
            started++;
        pthread_sigmask(SIG_SETMASK, &before, NULL);
    }
    work(shared);
    for (size_t i = 0; i < started; i++)
        pthread_join(others[i], NULL);
}

/* Work that several threads share for the length of one call. */
#ifndef FL_WORKERS_H
#define FL_WORKERS_H

/* Call work(shared) on the calling thread and on up to threads - 1 more, and wait for all of them. A thread that
 * cannot be started is not missed: `work` takes pieces from `shared` until none is left. Signals stay with the
 * threads that the process had before. */
void fl_run_workers(void *(*work)(void *), void *shared, unsigned threads);

#endif

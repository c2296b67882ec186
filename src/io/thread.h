/*
 * Threads beside the one that works with MPI: with a small stack, and without signals, which are
 * for that one.
 */
#ifndef MGR_IO_THREAD_H
#define MGR_IO_THREAD_H

#include <pthread.h>

/* Begin work(context); the caller joins it. An errno, 0 if it has begun. Local. */
int mgr_thread_start(pthread_t *thread, void *(*work)(void *), void *context);

#endif

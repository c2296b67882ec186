#include "io/thread.h"

#include <signal.h>
#include <stddef.h>

#include "io/fault.h"

#define STACK ((size_t)256 << 10)

int mgr_thread_start(pthread_t *thread, void *(*work)(void *), void *context)
{
    sigset_t all, before;
    pthread_attr_t attributes;
    sigfillset(&all);
    pthread_attr_init(&attributes);
    (void)pthread_attr_setstacksize(&attributes, STACK);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    int sys = mgr_fault("thread");
    if (sys == 0)
        sys = pthread_create(thread, &attributes, work, context);
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    pthread_attr_destroy(&attributes);
    return sys;
}

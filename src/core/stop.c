#include "core/stop.h"

#include <signal.h>
#include <stddef.h>

static volatile sig_atomic_t stop_requested; /* the signal's number */

void mgr_request_stop(int signal_number)
{
    stop_requested = signal_number;
}

static const char *signal_name(int number)
{
    static const struct {
        int number;
        const char *name;
    } names[] = {
        {SIGINT, "SIGINT"}, {SIGTERM, "SIGTERM"}, {SIGHUP, "SIGHUP"}, {SIGUSR1, "SIGUSR1"}};
    for (size_t i = 0; i < sizeof names / sizeof names[0]; i++)
        if (names[i].number == number)
            return names[i].name;
    return "a signal";
}

int mgr_check_stop(mgr_err *err)
{
    return stop_requested
               ? mgr_fail(err, MGR_ERR_INTERRUPTED, "stopped by %s", signal_name(stop_requested))
               : MGR_OK;
}

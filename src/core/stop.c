#include "core/stop.h"

#include <signal.h>

static volatile sig_atomic_t stop_requested;

void mgr_request_stop(void)
{
    stop_requested = 1;
}

int mgr_check_stop(mgr_err *err)
{
    return stop_requested ? mgr_fail(err, MGR_ERR_INTERRUPTED, "stopped by a signal") : MGR_OK;
}

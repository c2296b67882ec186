/*
 * A stop that somebody asked for: a signal's handler calls mgr_request_stop, and every long loop
 * asks mgr_check_stop between two pieces of work.
 */
#ifndef MGR_CORE_STOP_H
#define MGR_CORE_STOP_H

#include "mgr/err.h"

/* Ask this process to stop in order, because of this signal. Safe in a signal's handler. */
void mgr_request_stop(int signal_number);

/* MGR_ERR_INTERRUPTED once it has been asked to. Local. */
int mgr_check_stop(mgr_err *err) MGR_NODISCARD;

#endif

/*
 * Progress on rank 0 without stopping anyone: ranks post their byte counts now and then, rank 0
 * prints a line every few seconds while it works or waits; on a terminal the same line again.
 */
#ifndef MGR_ENGINE_PROGRESS_H
#define MGR_ENGINE_PROGRESS_H

#include <stdint.h>

#include "mgr/err.h"
#include "mgr/plan.h"
#include "par/comm.h"

typedef struct mgr_progress mgr_progress;

/* `seconds` between lines, 0 for none; what the plan calls done counts from the start. *out may be
 * NULL on success when no progress is wanted. Local. */
int mgr_progress_start(mgr_progress **out, mgr_comm *comm, double seconds, const mgr_plan *plan,
                       mgr_err *err) MGR_NODISCARD;

/* Count bytes, and post or print when it is time. NULL-safe. Local, never waits. */
void mgr_progress_add(mgr_progress *progress, uint64_t bytes_read, uint64_t bytes_written);

/* What goes on from now: "sums" or "write". NULL-safe; `phase` is borrowed. Local. */
void mgr_progress_phase(mgr_progress *progress, const char *phase);

/* This rank has done its work, or not `whole` of it; rank 0 goes on printing until the others have,
 * too. NULL-safe. All ranks call it. */
void mgr_progress_finish(mgr_progress *progress, bool whole);

/* Take late messages and free; behind a failure a last line says how far it got. NULL-safe.
 * Collective if progress was started. */
void mgr_progress_stop(mgr_progress *progress);

/* Free where nothing was posted. NULL-safe. Local. */
void mgr_progress_drop(mgr_progress *progress);

#endif

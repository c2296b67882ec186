/*
 * `router: file`: the rows come from a safetensors file, which is named as a checkpoint's router
 * is.
 */
#ifndef MGR_RUN_ROUTER_FILE_H
#define MGR_RUN_ROUTER_FILE_H

#include "engine/job.h"

/* Its header into job->router_file, where the router is 'file'. Collective. */
int mgr_router_file_read(mgr_job *job, mgr_err *err) MGR_NODISCARD;

/* Which tensor is which layer's, when the target is described. Every layer with experts has one
 * matrix [experts, hidden]; nothing else is in the file. Local. */
int mgr_router_file_match(mgr_job *job, mgr_err *err) MGR_NODISCARD;

#endif

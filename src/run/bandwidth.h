/*
 * How fast this process reads the source and writes beside the target, for the page of a dry run.
 */
#ifndef MGR_RUN_BANDWIDTH_H
#define MGR_RUN_BANDWIDTH_H

#include "engine/job.h"
#include "mgr/err.h"

typedef struct mgr_bandwidth {
    double read, write; /* bytes a second; 0: there was nothing to measure with */
} mgr_bandwidth;

/* Read from the source's largest file, which the system is asked to forget before, and write and
 * sync a file in the folder that the target goes into; it is gone afterwards. At most 256 MiB and
 * about two seconds each. Local. Errors: MGR_ERR_IO, MGR_ERR_SPACE, MGR_ERR_CREATE, MGR_ERR_NOMEM.
 */
int mgr_bandwidth_measure(const mgr_job *job, mgr_bandwidth *out, mgr_err *err) MGR_NODISCARD;

#endif

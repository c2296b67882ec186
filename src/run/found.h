/*
 * For --verify: an output that is there, opened as a source and held against what the
 * configuration means. Its own files say where its tensors lie.
 */
#ifndef MGR_RUN_FOUND_H
#define MGR_RUN_FOUND_H

#include "engine/job.h"
#include "look/findings.h"
#include "look/view.h"

typedef struct mgr_found {
    const mgr_source_format *format;
    mgr_side side; /* what lies there; behind mgr_found_take what was planned */
    bool comparable;
    mgr_findings findings; /* the same on all ranks until the engine has run */
    json_t *manifest;      /* rank 0: of the output, or NULL */
} mgr_found;

/* Open the output at target.path, whose tensors job->target plans, and compare the model that it
 * shows. What differs there is a finding, and then it is not `comparable`. Errors:
 * MGR_ERR_NOT_FOUND, of reading, and MGR_ERR_CONFIG where its manifest tells of a configuration
 * that makes other bytes. Collective. */
int mgr_found_open(mgr_job *job, mgr_found *found, mgr_err *err) MGR_NODISCARD;

/* Make what was found the target that the plan is for and the engine compares with. */
void mgr_found_take(mgr_job *job, mgr_found *found);

void mgr_found_clear(mgr_found *found);

#endif

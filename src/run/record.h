/*
 * What a run was begun with: the record in its journal's folder, by which --resume knows that the
 * source is still the same, and in the manifest, by which it knows a finished output for its own.
 */
#ifndef MGR_RUN_RECORD_H
#define MGR_RUN_RECORD_H

#include <jansson.h>

#include "engine/job.h"

#define MGR_RECORD_NAME "run.json"

/* Per source file: path, size, when it was changed (ns), inode, and hashes of all that its header
 * says and of its checksummed records; the caller's to decref. NULL without memory. */
json_t *mgr_record_sources(const mgr_job *job);

/* The record of this run into the journal's folder `journal`, unless there is one. Rank 0. */
int mgr_record_write(const mgr_job *job, const char *journal, mgr_err *err) MGR_NODISCARD;

/* Compare the record there with this run; one that is missing or makes no sense stands for nothing,
 * and *known is false. Rank 0. Errors: MGR_ERR_EXISTS, naming what has changed. */
int mgr_record_check(const mgr_job *job, const char *journal, bool *known,
                     mgr_err *err) MGR_NODISCARD;

/* Is `target` a finished output of this configuration and source, with every file at its size?
 * Rank 0. */
bool mgr_record_is_complete(const mgr_job *job, const char *target);

/* The source's files are what they were when their headers were read; each rank looks at some.
 * Local. Errors: MGR_ERR_FORMAT. */
int mgr_record_look_again(const mgr_job *job, mgr_err *err) MGR_NODISCARD;

#endif

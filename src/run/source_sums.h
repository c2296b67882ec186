/*
 * What a source says of its own bytes beside its archives' checksums: a manifest of ours, and
 * Megatron's integrity.json.
 */
#ifndef MGR_RUN_SOURCE_SUMS_H
#define MGR_RUN_SOURCE_SUMS_H

#include "engine/job.h"
#include "look/manifest_read.h"

/* Where the source carries a manifest of ours: its weights' files have the sizes, and what is not
 * tensors in them the checksums, that it says; its tensors become records of the catalogue, from
 * job->manifest_records on, so that they are checked as they are read. Small files that are others
 * are said: people edit them. Errors: MGR_ERR_FORMAT naming the file. Collective. */
int mgr_source_sums(mgr_job *job, mgr_err *err) MGR_NODISCARD;

/* With source.sha256: read every file that integrity.json lists once more and compare, each rank
 * some. Errors: MGR_ERR_FORMAT, MGR_ERR_NOT_FOUND naming the file. Collective. */
int mgr_source_integrity(const mgr_job *job, mgr_err *err) MGR_NODISCARD;

/* The way out where a source is not what its manifest says. */
#define MGR_HINT_MANIFEST                                                                          \
    "bring back the file, or remove " MGR_MANIFEST " where it was meant to change"

#endif

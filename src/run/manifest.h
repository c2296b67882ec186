/*
 * mgr-manifest.json: what made an output, and of what. Rank 0 only.
 */
#ifndef MGR_RUN_MANIFEST_H
#define MGR_RUN_MANIFEST_H

#include "engine/job.h"

#define MGR_MANIFEST_NAME "mgr-manifest.json"

/* mgr-manifest.json: program, contract, configuration, seed, fingerprints of the source, and per
 * file of the output its size, CRC-32, expert-parallel rank and tensors with theirs. With
 * `complete` also `beside`, the other files that now lie in `directory`: all of them are the
 * output's. */
int mgr_manifest_write(const mgr_job *job, const char *directory, bool complete,
                       mgr_err *err) MGR_NODISCARD;

#endif

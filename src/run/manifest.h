/*
 * mgr-manifest.json: what made an output, of what, and the checksum of every file.
 */
#ifndef MGR_RUN_MANIFEST_H
#define MGR_RUN_MANIFEST_H

#include "engine/job.h"
#include "look/manifest_read.h"

/* The manifest of the weights: program, contract, configuration, seed, fingerprints of the source,
 * and per file of the weights its size, CRC-32, expert-parallel rank and tensors with theirs. That
 * is what other files of the output may hold a copy of. Rank 0 only. */
int mgr_manifest_begin(const mgr_job *job, const char *directory, mgr_err *err) MGR_NODISCARD;

/* When all other files are there: the same with "files", every file of the output with its size and
 * CRC-32, and sealed with its own SHA-256. Collective. */
int mgr_manifest_finish(mgr_job *job, const char *directory, mgr_err *err) MGR_NODISCARD;

#endif

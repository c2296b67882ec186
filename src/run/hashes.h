/*
 * SHA-256 of whole output files, for who wants to check a copy, or Megatron's verify_integrity
 * (megatron/core/dist_checkpointing/validation.py, save_integrity_manifest).
 */
#ifndef MGR_RUN_HASHES_H
#define MGR_RUN_HASHES_H

#include "engine/job.h"

/* Hash the finished files of the target below `directory`, each on one rank, into
 * job->file_sha256 on rank 0. Nothing is done where the configuration does not ask for it.
 * Collective. */
int mgr_hash_files(mgr_job *job, const char *directory, mgr_err *err) MGR_NODISCARD;

#endif

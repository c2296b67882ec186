/*
 * Sealing: files that were written plain are packed into their final form, one by one. Each that is
 * done has a record in the journal's folder with its size and CRC-32, so that a run that is stopped
 * while it packs goes on with the next file. Where a container does not pack, none of this does
 * anything.
 */
#ifndef MGR_RUN_SEAL_H
#define MGR_RUN_SEAL_H

#include "engine/job.h"

typedef struct mgr_seal {
    uint8_t *whole; /* per file: packed, or found so by reading it; on all ranks. NULL: none */
    uint32_t *crc;  /* of those, on rank 0 */
} mgr_seal;

/* Read what a stopped run packed below `directory`, and compare it with its records in `journal`.
 * Collective. */
int mgr_seal_recall(mgr_seal *seal, mgr_job *job, const char *journal, const char *directory,
                    mgr_err *err) MGR_NODISCARD;

/* Pack what is not packed, from `plain` into `directory`; then the catalogue of rank 0 has the
 * sealed files' sizes and places, and job->file_crc their checksums. Collective. */
int mgr_seal_files(mgr_seal *seal, mgr_job *job, const char *journal, const char *plain,
                   const char *directory, mgr_err *err) MGR_NODISCARD;

/* NULL-safe in all fields. */
void mgr_seal_clear(mgr_seal *seal);

#endif

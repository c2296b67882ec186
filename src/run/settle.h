/*
 * After the engine: everyone's extents become checksums, and the proof that every byte of the
 * output was written exactly once and that what was read is what was saved.
 */
#ifndef MGR_RUN_SETTLE_H
#define MGR_RUN_SETTLE_H

#include "engine/engine.h"

/* Bring the extents of all ranks to rank 0 (there they replace its own). Collective. */
int mgr_settle_gather(mgr_comm *comm, mgr_extents *extents, mgr_err *err) MGR_NODISCARD;

/* Compare the CRC-32 of every source record that was read whole with what its archive says; fills
 * the tally. Rank 0 only. Errors: MGR_ERR_FORMAT naming the record. */
int mgr_settle_source(mgr_job *job, mgr_extents *read, mgr_err *err) MGR_NODISCARD;

/* Join the extents of each stored tensor, write the headers, and join all to the files' CRC-32s:
 * fills job->stored_crc, job->file_crc and what the ledger wants to know. A hole or an overlap is
 * MGR_ERR_INTERNAL. Where the container places tensors itself, files are only measured, and
 * job->file_crc stays NULL. Rank 0 only. */
int mgr_settle_target(mgr_job *job, const char *directory, mgr_extents *written,
                      mgr_err *err) MGR_NODISCARD;

#endif

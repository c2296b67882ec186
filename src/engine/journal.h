/*
 * The journal of a run, for --resume: which units are written and durable. It lies in the staging
 * directory, one file per rank, and is gone when the output is published.
 *
 * A file is a sequence of blocks, each appended after an fsync of everything it speaks of:
 *   block := "MGRJRNL1" fingerprint:u64 n_units:u64 n_read:u64 n_written:u64
 *            unit:u32{n_units} extent{n_read} extent{n_written} hash:u64
 * The hash is XXH3 over the block before it; a torn block at the end is passed over. The
 * fingerprint is of the plan, the sizes of the source's files and the CRC-32s they carry: work of
 * another plan, or of a source that differs in these, is not continued.
 */
#ifndef MGR_ENGINE_JOURNAL_H
#define MGR_ENGINE_JOURNAL_H

#include "engine/engine.h"

#define MGR_JOURNAL_FOLDER ".mgr-journal"

typedef enum mgr_unit_state {
    MGR_UNIT_PENDING,
    MGR_UNIT_WRITTEN,  /* not yet known to be durable */
    MGR_UNIT_JOURNALED /* by this run or by one before it */
} mgr_unit_state;

typedef struct mgr_journal {
    int fd;
    mgr_buf path;
    uint64_t fingerprint, end; /* end of the last good block */
    size_t n_units;
    uint8_t *state;       /* mgr_unit_state of every unit of the plan */
    double seconds, last; /* between blocks; when the last one was written */
} mgr_journal;

/* Begin the journal of this rank in `directory`, or go on with the one that is there: then the
 * units it names are marked, and their extents added to the lists. Local. Errors: MGR_ERR_EXISTS if
 * it belongs to another plan, source or number of ranks. */
int mgr_journal_open(mgr_journal *journal, const mgr_job *job, const char *directory,
                     double seconds, mgr_extents *read, mgr_extents *written,
                     mgr_err *err) MGR_NODISCARD;

/* A unit has been written. When it is time, everything written so far is synced and journaled.
 * Local. */
int mgr_journal_unit(mgr_journal *journal, uint32_t unit, mgr_open_files *files,
                     const mgr_extents *read, const mgr_extents *written,
                     mgr_err *err) MGR_NODISCARD;

/* Sync and journal now: before a run stops in order. Local. */
int mgr_journal_flush(mgr_journal *journal, mgr_open_files *files, const mgr_extents *read,
                      const mgr_extents *written, mgr_err *err) MGR_NODISCARD;

/* NULL-safe in all fields. */
void mgr_journal_close(mgr_journal *journal);

#endif

/*
 * The journal of a run, for --resume: which units are written and durable. It lies in the staging
 * directory, one file for each rank of each attempt, and is gone when the output is published.
 *
 * A file is a sequence of blocks, each appended after an fsync of everything it speaks of:
 *   block := "MGRJRNL2" fingerprint:u64 n_units:u64 n_read:u64 n_written:u64
 *            piece{n_units} extent{n_read} extent{n_written} hash:u64
 *
 * A unit is named by its first piece, and an extent's `unit` is the unit's place in the block: that
 * holds whatever plan cut the unit, so another number of ranks or another memory_per_rank goes on
 * with it. The hash is XXH3 over the block before it; a block that is torn or of another
 * fingerprint ends the file. engine/recall.h reads it, and believes nothing of it unseen.
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
    uint64_t fingerprint, end; /* of what was appended */
    const mgr_plan *plan;
    uint8_t *state;       /* mgr_unit_state of every unit of the plan */
    double seconds, last; /* between blocks, -1 for none; when the last one was written */
    double spent;         /* on blocks, without the sync of what they speak of */
} mgr_journal;

/* Of everything that gives a stored tensor's place and bytes their meaning: the build, the
 * configuration, the source, the target's tensors. Not of the plan. Pure. */
uint64_t mgr_journal_fingerprint(const mgr_job *job);

/* Begin the file `number` of the journal in `folder`; units that the plan calls done are journaled
 * from the start. Local. */
int mgr_journal_open(mgr_journal *journal, const mgr_job *job, const char *folder, uint32_t number,
                     double seconds, mgr_err *err) MGR_NODISCARD;

/* A unit has been written, or will be before the next block. Local. */
void mgr_journal_unit(mgr_journal *journal, uint32_t unit);

/* It has not been. Local. */
void mgr_journal_lose(mgr_journal *journal, uint32_t unit);

/* Is it time for a block? Local. */
bool mgr_journal_is_due(const mgr_journal *journal);

/* Sync and journal now, all that has been written: when it is time, and before a run stops. Local.
 */
int mgr_journal_flush(mgr_journal *journal, mgr_open_files *files, const mgr_extents *read,
                      const mgr_extents *written, mgr_err *err) MGR_NODISCARD;

/* NULL-safe in all fields. */
void mgr_journal_close(mgr_journal *journal);

/* The name of file `number` of a journal; *out is cleared first. Local. */
int mgr_journal_path(mgr_buf *out, const char *folder, uint32_t number, mgr_err *err) MGR_NODISCARD;

/* One block of a journal, whole and of this fingerprint; all in `text`, none of it aligned. */
typedef struct mgr_journal_block {
    uint64_t n_units, n_read, n_written;
    const char *units, *read, *written;
} mgr_journal_block;

/* The block at *at of a journal's text, and *at behind it; false at the end of what can be
 * believed. Pure. */
bool mgr_journal_next(const mgr_buf *text, uint64_t fingerprint, size_t *at,
                      mgr_journal_block *block);

#endif

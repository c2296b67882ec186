/*
 * Staging and publishing of an output directory: it is written beside its final place under another
 * name, and appears under its own name only when it is complete and durable.
 */
#ifndef MGR_RUN_STAGE_H
#define MGR_RUN_STAGE_H

#include <stdbool.h>
#include <stdint.h>

#include "core/str.h"
#include "form/occupant.h"
#include "mgr/catalogue.h"
#include "mgr/err.h"

typedef struct mgr_stage {
    mgr_arena arena;
    const char *target; /* without a slash at the end */
    const char *parent;
    const char *directory; /* "<target>.partial-<id>" */
    mgr_occupant replaced; /* what was there; without a kind nothing */
    bool made;             /* by this run */
    bool replace;          /* --force: an existing target, or a leftover, may go */
    bool dry_run;          /* nothing is removed */
    bool resume;           /* --resume: go on in a leftover staging directory, if there is one */
    bool keep;             /* do not remove the staging directory: the run can be resumed */
    int hold;              /* on the staging directory, against a second run; -1 before */
} mgr_stage;

/* May `target` be written: does it not exist (or is it to be replaced), can its parent be written,
 * has the file system room for `bytes`? `id` becomes part of the staging name. `replace`,
 * `resume` and `dry_run` are set by the caller. Rank 0 only. Errors: MGR_ERR_EXISTS,
 * MGR_ERR_CREATE, MGR_ERR_SPACE. */
int mgr_stage_check(mgr_stage *stage, const char *target, const char *id, uint64_t bytes,
                    mgr_err *err) MGR_NODISCARD;

/* Make the staging directory with the journal's folder and, with `make_files`, every file of the
 * catalogue at its full size; or complete the one that is resumed. Rank 0 only. */
int mgr_stage_make(mgr_stage *stage, const mgr_catalogue *files, bool make_files,
                   mgr_err *err) MGR_NODISCARD;

/* Drop the journal, make every name below the staging directory durable and rename it to the
 * target. Rank 0 only. */
int mgr_stage_publish(mgr_stage *stage, mgr_err *err) MGR_NODISCARD;

/* Remove what mgr_stage_make made, unless it was published or is to be kept; then free. Rank 0
 * only. */
void mgr_stage_clear(mgr_stage *stage);

#endif

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
#include "io/file.h"
#include "mgr/catalogue.h"
#include "mgr/err.h"

/* Where files lie that are packed into their final form at the end. */
#define MGR_PLAIN_FOLDER ".mgr-plain"

typedef struct mgr_stage {
    mgr_arena arena;
    const char *target; /* without a slash at the end */
    const char *parent;
    const char *directory; /* "<target>.partial-<id>" */
    const char *weights;   /* where tensors are written: that, or a folder in it */
    const char *journal;   /* its folder for the journal, */
    const char *aside;     /* and the folder's name while the output gets its own */
    const char *others;    /* what runs of other configurations left here, for people; or NULL */
    bool packs;            /* files are packed at the end */
    mgr_occupant replaced; /* what was there; without a kind nothing */
    mgr_beat *beat;        /* says to other hosts that this run lives */
    mgr_room room;         /* what the file system said of it */
    bool made;             /* by this run */
    bool leftover;         /* it was there, and is resumed */
    bool replace;          /* --force: an existing target, or a leftover, may go */
    bool dry_run;          /* nothing is removed */
    bool resume;           /* --resume: go on in a leftover staging directory, if there is one */
    bool keep;             /* do not remove the staging directory: the run can be resumed */
    bool discard;          /* remove it even if it was there before */
    int hold;              /* on the staging directory, against a second run; -1 before */
} mgr_stage;

/* What is going to be written. */
typedef struct mgr_stage_plan {
    const mgr_catalogue *files;
    uint64_t bytes; /* of everything, small files and what is there at times only included */
} mgr_stage_plan;

/* May `target` be written: does it not exist (or is it to be replaced), can its parent be written,
 * does the file system take names, sizes and calls, and has it room? `id` becomes part of the
 * staging name. The flags above are set by the caller. Rank 0 only. Errors: MGR_ERR_EXISTS,
 * MGR_ERR_CREATE, MGR_ERR_SPACE. */
int mgr_stage_check(mgr_stage *stage, const char *target, const char *id,
                    const mgr_stage_plan *plan, mgr_err *err) MGR_NODISCARD;

/* Remove what a run that was killed behind its last step left beside `target`. Rank 0 only. */
int mgr_stage_forget(const char *target, const char *id, mgr_err *err) MGR_NODISCARD;

/* Make the staging directory with the journal's folder and, with `make_files`, every file of the
 * catalogue at its full size. One that is resumed is swept first: small files go, links and files
 * of another kind or size are replaced, and what no run can have put there is refused by name.
 * Unless its journal is `known` to be of the same source, it goes. Rank 0 only. */
int mgr_stage_make(mgr_stage *stage, const mgr_catalogue *files, bool make_files, bool known,
                   mgr_err *err) MGR_NODISCARD;

/* From here on small files are written. Rank 0 only. */
int mgr_stage_finish(mgr_stage *stage, mgr_err *err) MGR_NODISCARD;

/* Make every name below the staging directory durable, drop the journal, and rename the directory
 * to the target. Rank 0 only. */
int mgr_stage_publish(mgr_stage *stage, mgr_err *err) MGR_NODISCARD;

/* Remove the staging directory, unless it was published, is to be kept, or was there before; then
 * free. Rank 0 only. */
void mgr_stage_clear(mgr_stage *stage);

#endif

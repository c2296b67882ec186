/*
 * The folder of a Megatron checkpoint: its tracker file, the iterations below it, and which format
 * one of them has (megatron/training/checkpointing.py, _get_checkpoint_format).
 */
#ifndef MGR_FORM_MEGATRON_ROOT_H
#define MGR_FORM_MEGATRON_ROOT_H

#include <stdbool.h>

#include "core/str.h"
#include "mgr/err.h"

#define MGR_MEGATRON_TRACKER "latest_checkpointed_iteration.txt"

typedef enum mgr_megatron_kind {
    MGR_MEGATRON_NONE,
    MGR_MEGATRON_TORCH, /* has mp_rank_* folders */
    MGR_MEGATRON_DIST,  /* has metadata.json, which Megatron looks at first */
    MGR_MEGATRON_DCP    /* has .metadata and neither: torch_dcp, fsdp_dtensor */
} mgr_megatron_kind;

/* "mp_rank_" and numbers. */
bool mgr_megatron_is_rank_folder(const char *name);

/* What the folder of one iteration holds. Local. */
mgr_megatron_kind mgr_megatron_kind_of(const char *directory);

/* The same of the last iteration below `root`, with or without a tracker file. Local. */
mgr_megatron_kind mgr_megatron_kind_below(const char *root);

/* Does `root` hold a tracker file? Local. */
bool mgr_megatron_has_tracker(const char *root);

/* The folder of `iteration`, a number, "release" or "latest", of the checkpoint at `root`, which
 * may be that of one iteration itself. Local. Errors: MGR_ERR_NOT_FOUND, MGR_ERR_FORMAT. */
int mgr_megatron_find_iteration(const char *root, const char *iteration, mgr_arena *arena,
                                const char **out, mgr_err *err) MGR_NODISCARD;

#endif

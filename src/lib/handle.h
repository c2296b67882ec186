/*
 * What the files of libmgr.so share. They are its alone: no program links them.
 */
#ifndef MGR_LIB_HANDLE_H
#define MGR_LIB_HANDLE_H

#include "look/rows.h"
#include "look/view.h"
#include "mgr/checkpoint.h"
#include "mgr/config.h"

struct mgr_checkpoint {
    mgr_view view;
    mgr_rows rows;
    mgr_arena arena;
    const char *path;
    mgr_config *config; /* of the settings; NULL without */
    const char **names; /* of the logical tensors */
    mgr_buf about;
    unsigned char *block;
};

/* The names of all tensors of a list, the arena's. Local. */
int mgr_name_tensors(const mgr_tensors *tensors, mgr_arena *arena, const char ***out,
                     mgr_err *err) MGR_NODISCARD;

/* What callers are told of logical tensor `idx`. Pure. */
mgr_checkpoint_tensor mgr_logical_tensor(const mgr_layout *layout, const char *const *names,
                                         uint32_t idx);

/* The text of a configuration file, or NULL, whose paths are these. Local. */
int mgr_settings_parse(mgr_config *config, const char *settings, const char *source,
                       const char *target, mgr_err *err) MGR_NODISCARD;

#endif

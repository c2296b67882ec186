/*
 * Looking at a checkpoint: tensors, shapes, types, layout and sizes, for people or as JSON. Serial,
 * without MPI; reads headers only.
 */
#ifndef MGR_LOOK_INSPECT_H
#define MGR_LOOK_INSPECT_H

#include <stdbool.h>

#include "mgr/err.h"

typedef struct mgr_inspect_options {
    const char *path; /* a checkpoint's folder, or one .pt or .safetensors file */
    bool optimizer;   /* what it keeps, too */
    bool json;
    bool summary; /* no list of tensors */
} mgr_inspect_options;

/* Print to stdout. Errors: as the formats' readers. Local. */
int mgr_inspect(const mgr_inspect_options *options, mgr_err *err) MGR_NODISCARD;

#endif

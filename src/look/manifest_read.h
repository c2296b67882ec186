/*
 * The manifest of an output, read back.
 */
#ifndef MGR_LOOK_MANIFEST_READ_H
#define MGR_LOOK_MANIFEST_READ_H

#include <stdbool.h>

#include <jansson.h>

#include "mgr/err.h"

#define MGR_MANIFEST "mgr-manifest.json"
#define MGR_MANIFEST_SCHEMA 2 /* from 2 on it lists every file, and is sealed */

typedef enum mgr_manifest_state {
    MGR_MANIFEST_ABSENT,
    MGR_MANIFEST_OLD,     /* of a version before the seal */
    MGR_MANIFEST_DAMAGED, /* its digest is not that of its text */
    MGR_MANIFEST_WHOLE
} mgr_manifest_state;

/* The manifest in `folder`; *out is NULL unless it is whole, and the caller's. Errors: MGR_ERR_IO
 * and of the file system. Local. */
int mgr_manifest_read(const char *folder, mgr_manifest_state *state, json_t **out,
                      mgr_err *err) MGR_NODISCARD;

/* A list of objects with a `path` by that; *out is the caller's, its values are the list's own.
 * Errors: MGR_ERR_NOMEM. Local. */
int mgr_manifest_by_path(const json_t *files, json_t **out, mgr_err *err) MGR_NODISCARD;

/* Does a path that a manifest lists stay in its folder? Pure. */
bool mgr_manifest_is_safe(const char *path);

#endif

/*
 * What a rank has read and written, as a list of stretches, and the files it holds open meanwhile.
 */
#ifndef MGR_ENGINE_EXTENTS_H
#define MGR_ENGINE_EXTENTS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "mgr/catalogue.h"

/* A stretch of a target tensor that was written, or of a source record that was read. */
typedef struct mgr_extent {
    uint32_t what; /* stored tensor, or record */
    uint32_t crc32;
    uint64_t offset, bytes; /* within it */
    uint32_t unit, pad;     /* of the plan; MGR_NONE: of a run before this one */
} mgr_extent;

typedef struct mgr_extents {
    mgr_extent *list;
    size_t n, capacity;
} mgr_extents;

int mgr_extents_add(mgr_extents *extents, const mgr_extent *extent, mgr_err *err) MGR_NODISCARD;

/* The first of `what` or behind in a sorted list. Pure. */
size_t mgr_extents_find(const mgr_extents *extents, uint32_t what);

typedef struct mgr_open_file {
    int fd;       /* -1: not open */
    bool written; /* asked for, for writing, since it was synced */
} mgr_open_file;

/* Files by index of a catalogue, opened on first use. When too many are open all are closed, those
 * for writing after fsync. */
typedef struct mgr_open_files {
    const mgr_catalogue *cat;
    const char *directory; /* in front of the catalogue's paths; NULL for none */
    mgr_open_file *list;
    uint32_t n_open;
    bool for_writing;
    bool unsafe; /* a sync failed: what was written since the one before it may be lost */
} mgr_open_files;

/* No file open. The caller frees files->list when all are closed. Local. */
int mgr_open_files_init(mgr_open_files *files, const mgr_catalogue *cat, const char *directory,
                        bool for_writing, mgr_err *err) MGR_NODISCARD;
/* To be asked before each write, so that a sync knows of it. */
int mgr_open_files_get(mgr_open_files *files, uint32_t file, int *fd, mgr_err *err) MGR_NODISCARD;
/* Would opening this one close all others? Pure. */
bool mgr_open_files_is_full(const mgr_open_files *files, uint32_t file);
/* Make what was written so far durable, and leave the files open. What has been is not synced
 * again, here or when it is closed: a server would be asked for nothing. Local. */
int mgr_open_files_sync(mgr_open_files *files, mgr_err *err) MGR_NODISCARD;
/* Close all; those for writing are synced, unless `failed`. */
int mgr_open_files_close(mgr_open_files *files, bool failed, mgr_err *err) MGR_NODISCARD;

#endif

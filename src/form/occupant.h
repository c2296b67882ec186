/*
 * What lies where an output is to go: --force replaces a checkpoint, and nothing else.
 */
#ifndef MGR_FORM_OCCUPANT_H
#define MGR_FORM_OCCUPANT_H

#include <stddef.h>
#include <stdint.h>

#include "mgr/err.h"

typedef struct mgr_occupant {
    const char *kind; /* for people: a format's name, "link", "empty directory" */
    size_t n_files;
} mgr_occupant;

/* May what lies at `path` go? An empty directory and a link may (what a link points to stays), and
 * so may a directory that holds a checkpoint and nothing that is not of it: what its manifest
 * lists, where it has one of ours, else what files of its format are called. Local. Errors:
 * MGR_ERR_EXISTS, naming what is in the way. */
int mgr_occupant_check(const char *path, mgr_occupant *found, mgr_err *err) MGR_NODISCARD;

#endif

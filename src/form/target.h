/*
 * Target formats behind one table. Adding one is adding a file and a line in target.c.
 */
#ifndef MGR_FORM_TARGET_H
#define MGR_FORM_TARGET_H

#include "core/str.h"
#include "form/container.h"
#include "mgr/config.h"
#include "mgr/layout.h"
#include "mgr/model.h"

/* A target whose tensors are written: what its small files are made from. All borrowed. */
typedef struct mgr_output {
    const mgr_config *config;
    const mgr_layout *layout;      /* with its catalogue and its tensors' model */
    const void *state;             /* the format's own */
    const char *source_directory;  /* where a tokenizer may lie; NULL: nowhere */
    const char (*file_sha256)[65]; /* per file of the catalogue; NULL unless asked for */
} mgr_output;

typedef struct mgr_target_format {
    const char *name;
    const mgr_container *container;
    /* NULL, or what to take in its place. Pure. */
    const mgr_container *(*choose)(const mgr_config *config);

    /* Refuse, before any output, what this format cannot express. Local. */
    int (*check)(const mgr_config *config, const mgr_model *model, mgr_err *err);

    /* Declare files and tensors of `layout`; *state is handed to the container and to the rest as
     * their context. Local. */
    int (*layout)(const mgr_config *config, mgr_layout *layout, void **state, mgr_err *err);

    /* Write the small files beside the tensors into `directory`, the one that makes the output
     * valid last. Rank 0 only. */
    int (*sidecars)(const mgr_output *out, const char *directory, mgr_err *err);

    void (*release)(void *state); /* NULL-safe */
} mgr_target_format;

const mgr_target_format *mgr_target_find(const char *name);
const mgr_target_format *mgr_target_at(size_t idx);

#endif

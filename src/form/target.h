/*
 * Target formats behind one table. Adding one is adding a file and a line in target.c.
 */
#ifndef MGR_FORM_TARGET_H
#define MGR_FORM_TARGET_H

#include "core/str.h"
#include "form/container.h"
#include "form/remarks.h"
#include "mgr/config.h"
#include "mgr/layout.h"
#include "mgr/model.h"

/* Where a target's tensors come from: what it may carry of it. All borrowed. */
typedef struct mgr_origin {
    const char *format;    /* of the source */
    const char *directory; /* of its files: the iteration's */
    const mgr_catalogue *cat;
    const mgr_model *model;
} mgr_origin;

/* A target whose tensors are written: what its small files are made from. All borrowed. */
typedef struct mgr_output {
    const mgr_config *config;
    const mgr_layout *layout;      /* with its catalogue and its tensors' model */
    const void *state;             /* the format's own */
    const mgr_origin *origin;      /* NULL: there is no source */
    const char (*file_sha256)[65]; /* per file of the catalogue; NULL unless asked for */
} mgr_output;

typedef struct mgr_target_format {
    const char *name;
    mgr_key_table keys; /* of the configuration, that this format reads */
    const mgr_container *container;
    bool opaque; /* stores any tensor under its own name */
    bool kin;    /* stores those of Megatron-Core's models beside GPTModel */
    /* NULL, or what to take in its place. Pure. */
    const mgr_container *(*choose)(const mgr_config *config);

    /* Refuse, before any output, what this format cannot express. Local. */
    int (*check)(const mgr_config *config, const mgr_model *model, mgr_err *err);

    /* NULL, or: fill in what the configuration leaves to the source. Pure. */
    void (*settle)(const mgr_origin *origin, mgr_config *config);

    /* NULL: no optimizer. Or: the planes that its state has here, of a model of type `dtype`. Pure.
     */
    unsigned (*planes)(const mgr_origin *origin, mgr_dtype dtype);

    /* NULL, or: give a mixture that was just made of a dense model what this format's class for it
     * always has, and what says nothing yet. Pure. */
    void (*complete)(const mgr_config *config, mgr_model *model);

    /* Declare files and tensors of `layout`; *state is handed to the container and to the rest as
     * their context. `origin`, NULL without a source, lives longer. Local. */
    int (*layout)(const mgr_config *config, const mgr_origin *origin, mgr_layout *layout,
                  void **state, mgr_err *err);

    /* NULL, or: what becomes of the source's fields, what people should know of this output and how
     * to go on with it, into `remarks`. Rank 0 only, before the plan is made. */
    int (*review)(const mgr_output *out, mgr_remarks *remarks, mgr_err *err);

    /* Write the small files beside the tensors into `directory`, the one that makes the output
     * valid last. Rank 0 only. */
    int (*sidecars)(const mgr_output *out, const char *directory, mgr_err *err);

    void (*release)(void *state); /* NULL-safe */
} mgr_target_format;

/* All of them, NULL behind the last: the programs' (form/target_table.c), or those that libmgr.so
 * has (lib/settings.c). */
extern const mgr_target_format *const mgr_target_table[];
const mgr_target_format *mgr_target_find(const char *name);
const mgr_target_format *mgr_target_at(size_t idx);

/* Complete the model and check it; where it is the model that is refused, the hint names the
 * formats that would take it. Local. */
int mgr_target_check(const mgr_target_format *format, const mgr_config *config,
                     const mgr_origin *origin, mgr_model *model, mgr_err *err) MGR_NODISCARD;

#endif

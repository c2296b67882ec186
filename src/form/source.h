/*
 * Source formats behind one table. Adding one is adding a file and a line in source.c.
 */
#ifndef MGR_FORM_SOURCE_H
#define MGR_FORM_SOURCE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "core/str.h"
#include "form/remarks.h"
#include "io/reader.h"
#include "mgr/config.h"
#include "mgr/layout.h"
#include "mgr/model.h"

/* The files of a source, in an order that is a function of their names alone. */
typedef struct mgr_source_files {
    const char *directory; /* that holds them: the iteration's */
    const char **paths;
    size_t n;
    void *held; /* what the format keeps between `find` and the last `read`; NULL at first */
} mgr_source_files;

typedef struct mgr_source_format {
    const char *name;
    mgr_key_table keys; /* of the configuration, that this format reads */

    /* NULL: nothing is read that an optimizer keeps, whatever config->source.planes has. Or: the
     * planes that are in the catalogue. Pure. */
    unsigned (*planes)(const mgr_catalogue *cat);
    bool masters; /* the weights are the optimizer's, unless copies of them are asked for */

    /* Is `path` of this kind? Local, reads directories only. */
    bool (*probe)(const char *path);

    /* Which files does the configuration mean? Strings are the arena's. Local. Errors:
     * MGR_ERR_NOT_FOUND, MGR_ERR_FORMAT. */
    int (*find)(const mgr_config *config, mgr_arena *arena, mgr_source_files *files, mgr_err *err);

    /* NULL, or: say to `read` what `config` means, on a rank that `find` did not run on. Local. */
    int (*begin)(const mgr_config *config, const char *directory, void **held, mgr_err *err);

    /* Add one file's tensors to the catalogue from its header. *held is NULL or what was kept since
     * `find` or another file of the source was read. Local. */
    int (*read)(mgr_catalogue *cat, uint32_t file, const mgr_reader *reader, void **held,
                mgr_err *err);

    /* NULL, or: frees what `find` and `read` kept. NULL-safe. */
    void (*forget)(void *held);

    /* From the catalogue of all files: the model, and in *state what `layout` needs. Local. */
    int (*describe)(const mgr_catalogue *cat, const mgr_config *config, void **state,
                    mgr_model *model, mgr_err *err);

    /* NULL, or: add the opaque tensors, which the model leads to no more than a name of. Local. */
    int (*opaque)(const void *state, const mgr_catalogue *cat, mgr_tensors *tensors, mgr_err *err);

    /* Put the boxes of all files into `layout`. Local. */
    int (*layout)(const void *state, mgr_layout *layout, mgr_err *err);

    /* One line on the layout for people: "tensor parallel 2 x pipeline parallel 2, ...". Local. */
    int (*summary)(const void *state, mgr_buf *out, mgr_err *err);

    /* NULL, or: what people should know of the source's fields, into `remarks`. Rank 0 only,
     * when it has been described. */
    int (*review)(const void *state, const mgr_catalogue *cat, const mgr_config *config,
                  mgr_remarks *remarks, mgr_err *err);

    void (*release)(void *state); /* NULL-safe */

    /* NULL, unless offsets of MGR_VIRTUAL_OFFSET and more occur: `len` bytes from there. *reader is
     * NULL at first, holds what is open between calls, and is closed with `fetched`. Local. */
    int (*fetch)(void **reader, const mgr_catalogue *cat, uint32_t file, uint64_t offset, void *out,
                 size_t len, mgr_err *err);
    void (*fetched)(void *reader); /* NULL-safe */
} mgr_source_format;

/* By name; NULL for an unknown one. `mgr_source_at` counts from 0 and ends with NULL. */
const mgr_source_format *mgr_source_find(const char *name);
const mgr_source_format *mgr_source_at(size_t idx);

/* The format that recognises `path`, or NULL. Local. */
const mgr_source_format *mgr_source_probe(const char *path);

/* Model, tensors and layout of what was read, up to the proof that nothing is left over. *state is
 * the format's to release, after an error, too. Local. */
int mgr_source_lay_out(const mgr_source_format *format, mgr_catalogue *cat,
                       const mgr_config *config, void **state, mgr_tensors *tensors,
                       mgr_layout *layout, mgr_err *err) MGR_NODISCARD;

#endif

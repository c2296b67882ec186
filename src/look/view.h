/*
 * A checkpoint opened to be looked at: serial, without MPI, headers only.
 */
#ifndef MGR_LOOK_VIEW_H
#define MGR_LOOK_VIEW_H

#include <stdbool.h>

#include "core/str.h"
#include "mgr/config.h"
#include "mgr/layout.h"
#include "mgr/model.h"

typedef struct mgr_view {
    const char *path;
    const char *format;
    const char *directory; /* of the files, where it is a source's: the iteration's; else NULL */
    mgr_catalogue cat;
    mgr_arena arena;
    mgr_buf split;   /* one line on the split, empty if unknown */
    mgr_buf refusal; /* why it cannot be a source, empty if it can or that was not asked */
    bool has_model;  /* then: */
    mgr_tensors tensors;
    mgr_layout layout;
} mgr_view;

/* Open a checkpoint's folder, with what an optimizer keeps where `optimizer` says so, or one .pt,
 * .bin or .safetensors file. One that is well formed but of a kind that cannot be a source is
 * opened, too, without a model. Free with mgr_view_close, also after an error. Errors: as the
 * formats' readers. Local. */
int mgr_view_open(mgr_view *view, const char *path, bool optimizer, mgr_err *err) MGR_NODISCARD;
/* The same, of the folder of a checkpoint in `format`, with `planes` of an optimizer. */
struct mgr_source_format;
int mgr_view_open_as(mgr_view *view, const struct mgr_source_format *format, const char *path,
                     unsigned planes, mgr_err *err) MGR_NODISCARD;
/* The same, as the section `source` of a configuration says, which lives as long. */
int mgr_view_open_config(mgr_view *view, const mgr_config *config, mgr_err *err) MGR_NODISCARD;
void mgr_view_close(mgr_view *view);

/* For people: "4 layers, hidden 256, ..., 8 experts of 704, top 2; LayerNorm, ..." */
int mgr_view_model(const mgr_model *model, mgr_buf *out, mgr_err *err) MGR_NODISCARD;

/* "", or, where a layout's tensors are of several types: "; float32: 9 of 41 tensors". Local. */
int mgr_view_types(const mgr_layout *layout, mgr_buf *out, mgr_err *err) MGR_NODISCARD;

/* "[2, 3]" into a caller's buffer; returns it. */
const char *mgr_view_shape(const mgr_stored *stored, char *out, size_t size);
uint64_t mgr_view_elements(const mgr_stored *stored);
/* Their bytes: without what lies between rows that are apart (mgr_stored_bytes has it). */
uint64_t mgr_view_bytes(const mgr_stored *stored);

#endif

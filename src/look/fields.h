/*
 * What two models compute with beside their tensors, side by side. Serial, without MPI.
 */
#ifndef MGR_LOOK_FIELDS_H
#define MGR_LOOK_FIELDS_H

#include "look/view.h"

typedef struct mgr_fields_diff {
    mgr_buf lines;             /* one a difference: "norm_epsilon: 1e-05 and 1e-06" */
    unsigned compared, differ; /* fields of the model, and args that may change it */
    unsigned inert;            /* args of training, logging and paths that differ */
    bool args_on_one_side;     /* then they could not be compared */
} mgr_fields_diff;

/* The first field that two models compute differently by, as "norm epsilon: 1e-05 and 1e-06". What
 * training or text alone goes by, tokens and the longest sequence, is none. Pure. */
bool mgr_fields_differ(const mgr_model *a, const mgr_model *b, char *out, size_t size);

/* Compare what two views with a model derived and carry. Free `lines` with mgr_buf_clear. Local. */
int mgr_fields_compare(const mgr_view *a, const mgr_view *b, mgr_fields_diff *out,
                       mgr_err *err) MGR_NODISCARD;

#endif

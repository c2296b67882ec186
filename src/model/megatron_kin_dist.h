/*
 * The opaque tensors of model/megatron_kin.h in `torch_dist`: a key of its own for each kind of a
 * stack where layers are stacked, else for each layer's.
 */
#ifndef MGR_MODEL_MEGATRON_KIN_DIST_H
#define MGR_MODEL_MEGATRON_KIN_DIST_H

#include "mgr/layout.h"
#include "model/megatron_dist.h"
#include "model/megatron_kin.h"

/* Those of a source. Local. */
int mgr_kin_dist_opaque(mgr_tensors *tensors, const mgr_catalogue *cat, mgr_err *err) MGR_NODISCARD;

/* Put the chunks of a source that are theirs. Errors: MGR_ERR_FORMAT. Local. */
int mgr_kin_dist_layout(mgr_layout *layout, mgr_err *err) MGR_NODISCARD;

/* A chunk of a target: the key, and [axes] where it lies. */
typedef struct mgr_kin_chunk {
    char key[MGR_KIN_NAME_BYTES];
    uint32_t ndim;
    uint64_t shape[MGR_MAX_NDIM + 1], offset[MGR_MAX_NDIM + 1];
    mgr_box box;  /* of the tensor, in the chunk */
    uint64_t pad; /* rows behind the box */
    size_t kind;  /* chunks of one kind have one element type: below 2 x 2 x MGR_KIN_ROWS_MOST */
} mgr_kin_chunk;

/* The `number`-th chunk of opaque tensor `idx`; false where there are no more. Pure. */
bool mgr_kin_dist_chunk(const mgr_layout *layout, const mgr_megatron_dist_target *target,
                        uint32_t idx, uint64_t number, mgr_kin_chunk *out);

#endif

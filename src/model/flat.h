/*
 * A layout without cuts: every logical tensor is one stored tensor under its Hugging Face name, the
 * shared weights in one file and the experts of each expert-parallel rank in another. What the HDF5
 * checkpoint has, as target and as source.
 */
#ifndef MGR_MODEL_FLAT_H
#define MGR_MODEL_FLAT_H

#include "mgr/layout.h"
#include "model/huggingface.h"

typedef struct mgr_flat {
    uint32_t first_file, n_files; /* of the weights: shared, experts of rank 0, of rank 1, ... */
} mgr_flat;

/* Put every tensor into `layout`. A target's are declared in the file that they belong to; then
 * n_files - 1 divides the number of experts, and layout->file_owner says whose a file is. A
 * source's may be in any of the files. Errors: MGR_ERR_FORMAT, MGR_ERR_UNSUPPORTED for a tensor
 * without a name. Local. */
int mgr_flat_layout(mgr_layout *layout, const mgr_flat *flat, mgr_err *err) MGR_NODISCARD;

/* Put what of the files none of the model's tensors is stored as behind them, as opaque ones, where
 * the model says that there are such. Local. */
int mgr_flat_opaque(const mgr_catalogue *cat, const mgr_flat *flat, mgr_tensors *tensors,
                    mgr_err *err) MGR_NODISCARD;

/* The Hugging Face name of a tensor of the list; false where no class has one. Pure. */
bool mgr_flat_name(const mgr_tensors *tensors, const mgr_tensor *tensor,
                   char out[MGR_HF_NAME_BYTES]);

#endif

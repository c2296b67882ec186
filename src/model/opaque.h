/*
 * Opaque tensors: what of a checkpoint the model leads to no more than a name of. They are moved as
 * they are, under that name.
 */
#ifndef MGR_MODEL_OPAQUE_H
#define MGR_MODEL_OPAQUE_H

#include "mgr/layout.h"
#include "model/huggingface.h"

/* What a tensor of the model is stored as; false where that is another one's. Pure. */
typedef bool (*mgr_namer)(const void *context, const mgr_tensors *tensors, const mgr_tensor *tensor,
                          char name[MGR_HF_NAME_BYTES]);

/* Is a tensor none of its own, though no other has its place? Pure. */
typedef bool (*mgr_repeats)(const mgr_catalogue *cat, const mgr_model *model, const mgr_stored *s);

/* Put behind the model's tensors those of the files from `first_file` on that none of them is
 * stored as, by name. One that lies where another one does is that one by a second name, and left
 * out, and so is what `repeats`, if that is not NULL. The names are the catalogue's, which lives
 * longer. Local. */
int mgr_opaque_find(mgr_tensors *tensors, const mgr_catalogue *cat, uint32_t first_file,
                    mgr_namer name, mgr_repeats repeats, const void *context,
                    mgr_err *err) MGR_NODISCARD;

/* Do two names mean the same bytes as the same tensor? Pure. */
bool mgr_same_bytes(const mgr_stored *a, const mgr_stored *b);

/* Those second names are no tensors that a source's layout has left over. Local. */
int mgr_opaque_aliases(mgr_layout *layout, uint32_t first_file, mgr_err *err) MGR_NODISCARD;

#endif

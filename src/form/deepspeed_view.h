/*
 * The parameters of a DeepSpeed checkpoint as one model, from the catalogue of its files.
 */
#ifndef MGR_FORM_DEEPSPEED_VIEW_H
#define MGR_FORM_DEEPSPEED_VIEW_H

#include "model/deepspeed.h"

/* Check that the files are of one run and one step, each rank's there, and make ds->view, parts and
 * masters of them. `copies`: take the module's own tensors, not the masters. Without a config.json
 * in the catalogue there is none in the view. MGR_ERR_FORMAT, MGR_ERR_UNSUPPORTED. Local. */
int mgr_deepspeed_view(const mgr_catalogue *cat, bool copies, mgr_deepspeed *ds,
                       mgr_err *err) MGR_NODISCARD;

/* The number of config.json in the catalogue, or MGR_NONE. Pure. */
uint32_t mgr_deepspeed_config(const mgr_catalogue *cat);

#endif

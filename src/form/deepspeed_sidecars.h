/*
 * The small files of a DeepSpeed checkpoint: what the engine asks for beside the float32 weights.
 * Where nothing is kept of an optimizer, moments are zero, and the step is 0. Rank 0 only.
 */
#ifndef MGR_FORM_DEEPSPEED_SIDECARS_H
#define MGR_FORM_DEEPSPEED_SIDECARS_H

#include "core/str.h"
#include "form/deepspeed_optimizer.h"

/* Below `directory`: the model's files and the optimizer's settings in `folder`, the moments of a
 * universal checkpoint, and last the file that names `folder`. */
int mgr_deepspeed_sidecars(const mgr_deepspeed *ds, const mgr_deepspeed_optimizer *optimizer,
                           bool tied, uint64_t iteration, const char *folder, const char *directory,
                           mgr_err *err) MGR_NODISCARD;

#endif

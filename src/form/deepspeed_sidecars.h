/*
 * The small files of a DeepSpeed checkpoint: what the engine asks for beside the float32 weights.
 * Nothing was trained yet: moments are zero, the step is 0. Rank 0 only.
 */
#ifndef MGR_FORM_DEEPSPEED_SIDECARS_H
#define MGR_FORM_DEEPSPEED_SIDECARS_H

#include "core/str.h"
#include "form/target.h"
#include "model/deepspeed.h"

#define MGR_DEEPSPEED_VERSION "0.19.8" /* whose files these are */

/* Below `directory`: the model's files and the optimizer's settings in `folder`, the moments of a
 * universal checkpoint, and last the file that names `folder`. */
int mgr_deepspeed_sidecars(const mgr_deepspeed *ds, bool tied, uint64_t iteration,
                           const char *folder, const char *directory, mgr_err *err) MGR_NODISCARD;

/* Emit the object of a rank's file of ZeRO-3's optimizer, whose masters are storages 0, 1, ... of
 * sizes[groups] elements. */
int mgr_deepspeed_emit_optimizer(const mgr_deepspeed *ds, const uint64_t *sizes, mgr_buf *out,
                                 mgr_err *err) MGR_NODISCARD;

#endif

/*
 * The settings of an optimizer in a DeepSpeed checkpoint: its count of steps, its groups of
 * parameters and the scheduler. They are a source's, where its moments are kept, or those of an
 * optimizer that begins.
 */
#ifndef MGR_FORM_DEEPSPEED_OPTIMIZER_H
#define MGR_FORM_DEEPSPEED_OPTIMIZER_H

#include <stdbool.h>

#include "core/str.h"
#include "form/target.h"
#include "model/deepspeed.h"

#define MGR_DEEPSPEED_VERSION "0.19.8" /* whose files these are */

/* All zero: nothing is kept. */
typedef struct mgr_deepspeed_optimizer {
    const mgr_catalogue *from; /* of the source */
    bool own;                  /* it is DeepSpeed's: groups and scheduler go along */
    bool int_step;             /* the step is an int there, no tensor */
    double step;
} mgr_deepspeed_optimizer;

/* What `origin` has. `one`: of all parameters in one group, so that groups with settings of their
 * own are refused, as is a source without a count of steps. Local. */
int mgr_deepspeed_optimizer_take(const mgr_origin *origin, bool one, mgr_deepspeed_optimizer *out,
                                 mgr_err *err) MGR_NODISCARD;

/* A setting ("lr") of a group of parameters in a source of DeepSpeed's; NULL where it says nothing
 * of it. Pure. */
const mgr_attr *mgr_deepspeed_setting(const mgr_catalogue *from, unsigned long group,
                                      const char *name);

/* Refuse groups with settings of their own other than `but`, which may be NULL, since `what` are
 * alike. Local. */
int mgr_deepspeed_settings_alike(const mgr_catalogue *from, const char *but, const char *what,
                                 mgr_err *err) MGR_NODISCARD;

/* Entry "lr_scheduler" of the model's file. Local. */
int mgr_deepspeed_emit_scheduler(const mgr_deepspeed_optimizer *o, mgr_buf *out,
                                 mgr_err *err) MGR_NODISCARD;

/* A step as the file of a universal checkpoint has it: all of storage "0", or a number. Local. */
int mgr_deepspeed_emit_step(const mgr_deepspeed_optimizer *o, mgr_buf *out,
                            mgr_err *err) MGR_NODISCARD;

/* The object of zero/optimizer_state.pt; its storage "0" is the step. Local. */
int mgr_deepspeed_emit_universal(const mgr_deepspeed_optimizer *o, mgr_buf *out,
                                 mgr_err *err) MGR_NODISCARD;

/* Emit the object of a rank's file of ZeRO-3's optimizer. Its masters are storages 0, 1, ... of
 * sizes[groups] elements; behind them are the moments, if they are kept. Local. */
int mgr_deepspeed_emit_optimizer(const mgr_deepspeed *ds, const mgr_deepspeed_optimizer *o,
                                 const uint64_t *sizes, mgr_buf *out, mgr_err *err) MGR_NODISCARD;

#endif

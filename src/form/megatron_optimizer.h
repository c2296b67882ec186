/*
 * The settings of an optimizer of Megatron's: its groups of parameters, its count of steps and the
 * scheduler, on their way from a torch_dist source to a torch_dist target. Its tensors are planes.
 */
#ifndef MGR_FORM_MEGATRON_OPTIMIZER_H
#define MGR_FORM_MEGATRON_OPTIMIZER_H

#include <stdbool.h>

#include "core/str.h"
#include "mgr/catalogue.h"
#include "mgr/dtype.h"

/* How a run asks for the state that is written. */
typedef struct mgr_megatron_optimizer {
    const mgr_catalogue *from; /* of the source */
    mgr_dtype dtype;           /* of the weights */
    bool distributed;          /* as --use-distributed-optimizer has it */
    bool chained;              /* experts have an optimizer of their own: expert parallelism */
    bool expert_biases;        /* without them it has no group that does not decay */
} mgr_megatron_optimizer;

/* Was it a distributed one? Pure. */
bool mgr_megatron_optimizer_distributed(const mgr_catalogue *from);

/* The planes that a run asks for: one that is not distributed has no masters of float32. Pure. */
unsigned mgr_megatron_optimizer_planes(bool distributed, mgr_dtype dtype);

/* Refuse a source whose settings are not there. Local. */
int mgr_megatron_optimizer_check(const mgr_catalogue *from, mgr_err *err) MGR_NODISCARD;

/* Its count of steps, a number; or NULL. Pure. */
const mgr_attr *mgr_megatron_optimizer_steps(const mgr_catalogue *from);

/* A setting ("lr") of the group that all others differ from: the first with a weight decay, or the
 * first; NULL where it says nothing of it. Pure. */
const mgr_attr *mgr_megatron_optimizer_setting(const mgr_catalogue *from, const char *name);

/* The steps that the optimizer has taken. Pure. */
float mgr_megatron_optimizer_step(const mgr_catalogue *from);

/* Emit the entries "optimizer" and "opt_param_scheduler" of a dict; a tensor in them is all of
 * storage "0", which holds the step. Local. */
int mgr_megatron_optimizer_emit(const mgr_megatron_optimizer *o, mgr_buf *out,
                                mgr_err *err) MGR_NODISCARD;

#endif

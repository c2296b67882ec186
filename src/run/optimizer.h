/*
 * What an optimizer keeps of the parameters, on its way from a source to a target
 * ('target.optimizer: keep'): planes of tensors like any other, of which these rules say how each
 * is made.
 */
#ifndef MGR_RUN_OPTIMIZER_H
#define MGR_RUN_OPTIMIZER_H

#include "engine/job.h"

/* The source's format is known: say to it which planes are asked for, or refuse by name. Local. */
int mgr_optimizer_ask(mgr_job *job, mgr_err *err) MGR_NODISCARD;

/* Give the target's tensors, of a model of type `dtype`, the planes that are asked for. Local. */
int mgr_optimizer_add(mgr_job *job, mgr_dtype dtype, mgr_err *err) MGR_NODISCARD;

/* How `plane` of a tensor is made whose weight is made as `weight` says. The masters are made as
 * the weights, and rounded no more. Moments go where their weights go; they are zeros where a
 * weight is drawn. Pure. */
mgr_define mgr_optimizer_define(const mgr_tensors *from, mgr_plane plane, const mgr_define *weight);

#endif

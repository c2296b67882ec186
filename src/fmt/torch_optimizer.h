/*
 * The optimizer in a rank's file of Megatron's format `torch`, one that is not distributed
 * (core/optimizer/optimizer.py, Float16OptimizerWithFloat16Params and FP32Optimizer). It has no
 * names: parameters are numbered group by group in the order of named_parameters(), which is that
 * of the model's tensors in the same file.
 */
#ifndef MGR_FMT_TORCH_OPTIMIZER_H
#define MGR_FMT_TORCH_OPTIMIZER_H

#include "fmt/torch_archive.h"

/* What is kept of the tensor NAME is called "optimizer.exp_avg.NAME" and so on. */
#define MGR_TORCH_PLANE "optimizer."
#define MGR_TORCH_MASTER "master"
#define MGR_TORCH_EXP_AVG "exp_avg"
#define MGR_TORCH_EXP_AVG_SQ "exp_avg_sq"

/* Masters and moments of the model's tensors, which are in the catalogue, and the count of steps;
 * with `settings` the groups' and the schedule's, as torch_file.h has them. What does not fit is
 * refused by the parameter's name: their number, their shapes, and masters that are not rounded to
 * their weights in the first elements. Local. */
int mgr_torch_optimizer_add(mgr_torch_archive *t, const mgr_node *root,
                            bool settings) MGR_NODISCARD;

#endif
